//! The life of pods and containers as crictl drives it.

use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Pod, sh};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("pods::whole_life_of_a_pod", whole_life_of_a_pod),
        trial("pods::kernel_is_the_guests", kernel_is_the_guests),
        trial(
            "pods::two_containers_share_the_network",
            two_containers_share_the_network,
        ),
        trial("pods::ten_pods_at_once", ten_pods_at_once),
        trial("pods::stop_asks_then_kills", stop_asks_then_kills),
    ]
}

fn whole_life_of_a_pod() {
    let pod = Pod::run();
    let status = pod.inspect();
    assert_eq!(status["status"]["state"], "SANDBOX_READY");
    assert!(sh("crictl pods -q --no-trunc").contains(&pod.id));

    let container = pod.create(
        BUSYBOX,
        json!({"command": ["sh", "-c", "echo started; sleep 1000"]}),
    );
    assert_eq!(container.inspect()["status"]["state"], "CONTAINER_CREATED");
    sh(&format!("crictl start {}", container.id));
    assert_eq!(container.inspect()["status"]["state"], "CONTAINER_RUNNING");
    assert!(sh("crictl ps -q --no-trunc").contains(&container.id));

    let name = sh(&format!(
        "crictl inspectp -o json {} | jq -r .status.metadata.name",
        pod.id
    ));
    assert_eq!(container.sh("hostname"), name);
    assert!(container.sh("cat /etc/hosts").contains("localhost"));

    let stats = sh(&format!("crictl stats -o json {}", container.id));
    let stats: serde_json::Value = serde_json::from_str(&stats).expect("stats are JSON");
    let figure = |pointer: &str| {
        stats
            .pointer(pointer)
            .and_then(|value| value.as_str())
            .and_then(|text| text.parse::<u64>().ok())
    };
    assert!(
        figure("/stats/0/memory/workingSetBytes/value").expect("memory") > 0,
        "{stats}"
    );
    assert!(
        figure("/stats/0/cpu/usageCoreNanoSeconds/value").expect("cpu") > 0,
        "{stats}"
    );

    sh(&format!("crictl stop -t 0 {}", container.id));
    assert_eq!(container.inspect()["status"]["state"], "CONTAINER_EXITED");
    assert_eq!(container.inspect()["status"]["exitCode"], 137);
    sh(&format!("crictl rm {}", container.id));
    sh(&format!("crictl stopp {}", pod.id));
    assert_eq!(pod.inspect()["status"]["state"], "SANDBOX_NOTREADY");
}

fn kernel_is_the_guests() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let guest = container.sh("uname -r");
    assert_ne!(guest, sh("uname -r"));
    assert!(guest.starts_with("6.12"), "{guest}");
}

fn two_containers_share_the_network() {
    let pod = Pod::run();
    let _server = pod.start(
        BUSYBOX,
        &[
            "sh",
            "-c",
            "mkdir /www; echo from-the-other > /www/index.html; httpd -f -p 127.0.0.1:8080 -h /www",
        ],
    );
    // Without this the CRI shares one pid namespace in the pod, as with runc.
    let client = pod.create(
        BUSYBOX,
        json!({
            "command": ["sleep", "1000"],
            "linux": {"security_context": {"namespace_options": {"pid": 1}}}
        }),
    );
    sh(&format!("crictl start {}", client.id));
    let page = client.sh(
        "for i in $(seq 1000); do wget -qO- http://127.0.0.1:8080/ && exit; sleep 0.2; done; exit 1",
    );
    assert_eq!(page, "from-the-other");
    // Their processes and files stay apart.
    assert_eq!(client.sh("ps | grep -c '[h]ttpd' || true"), "0");
    assert_eq!(client.sh("ls -d /www 2>/dev/null || echo none"), "none");
}

fn ten_pods_at_once() {
    let threads: Vec<_> = (0..10)
        .map(|n| {
            std::thread::spawn(move || {
                let pod = Pod::run();
                let container = pod.start(BUSYBOX, &["sleep", "1000"]);
                assert_eq!(container.sh(&format!("echo pod {n}")), format!("pod {n}"));
                pod
            })
        })
        .collect();
    // Removed one by one: ten crictls beside ten dying VMs keep an emulated containerd
    // from greeting one of them in time.
    let pods: Vec<Pod> = threads
        .into_iter()
        .map(|t| t.join().expect("pod works"))
        .collect();
    let mut addresses: Vec<String> = pods.iter().map(|pod| pod.addresses().remove(0)).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 10, "addresses are distinct: {addresses:?}");
}

fn stop_asks_then_kills() {
    let pod = Pod::run();
    let polite = pod.start(
        BUSYBOX,
        &[
            "sh",
            "-c",
            "trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done",
        ],
    );
    assert_eq!(polite.sh("echo up"), "up");
    sh(&format!("crictl stop -t 30 {}", polite.id));
    assert_eq!(polite.inspect()["status"]["exitCode"], 7);
    let stubborn = pod.start(
        BUSYBOX,
        &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"],
    );
    assert_eq!(stubborn.sh("echo up"), "up");
    sh(&format!("crictl stop -t 1 {}", stubborn.id));
    assert_eq!(stubborn.inspect()["status"]["exitCode"], 137);
}
