//! Ends that nobody asked for: each is seen, reported as the right exit, explained, and
//! leaves nothing.

use integration::channel::Size;
use integration::testbed::TestHost;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::cri::{BUSYBOX, Container, DEBIAN, Pod, fails, handler, run, sh, text};
use crate::leaks;
use crate::resources::Configured;
use crate::streams::expect;
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("life::killed_vmm_ends_its_pod", killed_vmm_ends_its_pod),
        trial("life::killed_shim_ends_its_pod", killed_shim_ends_its_pod),
        trial("life::hung_guest_is_killed", hung_guest_is_killed),
        trial("life::guest_panic_is_explained", guest_panic_is_explained),
        trial(
            "life::guest_without_an_agent_is_explained",
            guest_without_an_agent_is_explained,
        ),
        trial("life::remains_are_removed", remains_are_removed),
        trial("life::node_tools_tell", node_tools_tell),
        trial(
            "life::only_the_host_reaches_the_agent",
            only_the_host_reaches_the_agent,
        ),
        trial(
            "life::exec_into_a_stopped_container",
            exec_into_a_stopped_container,
        ),
    ]
}

/// Those that change the host's configuration, for one at a time.
pub fn alone() -> Vec<Trial> {
    vec![trial(
        "life::console_is_a_shell_beside_the_agent",
        console_is_a_shell_beside_the_agent,
    )]
}

/// The VMM's pid on the host.
fn vmm(pod: &Pod) -> u64 {
    pod.inspect()["info"]["pid"].as_u64().expect("a pid")
}

/// Waits until containerd knows that the pod has ended.
fn wait_not_ready(pod: &Pod) {
    sh(&format!(
        "for i in $(seq 600); do [ $(crictl inspectp -o json {0} | jq -r .status.state) = SANDBOX_NOTREADY ] && exit 0; sleep 0.1; done; exit 1",
        pod.id
    ));
}

fn ended_by(container: &Container, pod: &Pod, status: i64) {
    assert_eq!(container.wait(), status);
    wait_not_ready(pod);
}

/// What is kept of a pod that died.
fn obituary(pod: &Pod) -> String {
    sh(&format!("joeyctl logs {}", pod.id))
}

fn killed_vmm_ends_its_pod() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        sh(&format!("kill -9 {}", vmm(&pod)));
        ended_by(&container, &pod, 137);
        assert!(obituary(&pod).contains("the VMM has died"));
        // Its log line can be found by the sandbox's id.
        sh(&format!(
            "grep 'the sandbox has died' /var/log/containerd.log | grep -q sandbox={}",
            pod.id
        ));
    }
    leaks::settled(&before);
}

fn killed_shim_ends_its_pod() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        let vmm = vmm(&pod);
        // A VMM that hangs does not even notice that its owner is gone.
        sh(&format!(
            "shim=$(jq .shim_pid /run/joey/k8s.io/{}/sandbox.json); kill -STOP {vmm}; kill -9 $shim",
            pod.id
        ));
        // containerd says 255, unknown, where its wait for the exit breaks before what our
        // cleanup answers gets through; with runc too.
        let status = container.wait();
        assert!([137, 255].contains(&status), "{status}");
        wait_not_ready(&pod);
        assert_ne!(run(&format!("kill -0 {vmm}")).status, 0, "the VMM lives");
    }
    leaks::settled(&before);
}

fn hung_guest_is_killed() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        sh(&format!("kill -STOP {}", vmm(&pod)));
        sh(&format!("crictl stop -t 1 {}", container.id));
        ended_by(&container, &pod, 137);
        assert!(obituary(&pod).contains("the guest hangs"));
        sh(&format!("crictl stopp {}", pod.id));
    }
    // Without a stop of its container before.
    {
        let pod = Pod::run();
        let _container = pod.start(BUSYBOX, &["sleep", "1000"]);
        sh(&format!("kill -STOP {}", vmm(&pod)));
        sh(&format!("crictl stopp {}", pod.id));
    }
    leaks::settled(&before);
}

/// A privileged container tells its kernel to panic where others kill a process.
fn guest_panic_is_explained() {
    let before = leaks::snapshot();
    {
        let privileged = json!({"linux": {"security_context": {"privileged": true}}});
        let pod = Pod::with(handler(), privileged);
        let container = pod.create(
            BUSYBOX,
            json!({
                "command": ["sh", "-c", "echo 2 > /proc/sys/vm/panic_on_oom && dd if=/dev/zero of=/dev/null bs=100M"],
                "linux": {
                    "resources": {"memory_limit_in_bytes": 16 << 20},
                    "security_context": {"privileged": true},
                },
            }),
        );
        sh(&format!("crictl start {}", container.id));
        ended_by(&container, &pod, 137);
        let said = obituary(&pod);
        for part in [
            "guest panic",
            "Linux version",
            "Kernel panic - not syncing",
            "panic_on_oom",
        ] {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
        sh(&format!(
            "grep 'the sandbox has died' /var/log/containerd.log | grep sandbox={} | grep -q 'Kernel panic'",
            pod.id
        ));
    }
    leaks::settled(&before);
}

/// An archive that holds nothing: the kernel finds no init, and panics.
fn guest_without_an_agent_is_explained() {
    let before = leaks::snapshot();
    let agent = "/usr/local/share/joey/agent.cpio";
    let zeros = |fields: usize| "0".repeat(8 * fields);
    let header = format!("070701{}00000001{}0000000b{}", zeros(4), zeros(6), zeros(1));
    sh(&format!(
        "mv {agent} {agent}.away && printf '{header}TRAILER!!!\\0\\0\\0\\0' > {agent}"
    ));
    let config = Pod::write_config(json!({}));
    let said = fails(&format!("timeout 100 crictl runp --runtime joey {config}"));
    sh(&format!("mv {agent}.away {agent}"));
    for part in [
        "did not answer: guest panic",
        "/var/lib/joey/dead/",
        "Kernel panic",
    ] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    sh("crictl pods -q --state NotReady | xargs -r crictl rmp -f");
    leaks::settled(&before);
}

fn remains_are_removed() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    sh("joeyctl reconcile");
    assert_eq!(sh("joeyctl reconcile --dry-run"), "nothing is left behind");
    let state = "/run/joey/k8s.io/crashed";
    let partial = "/var/lib/joey/layers/0123456789abcdef.partial";
    sh(&format!(
        "mkdir {state} && echo '{{}}' > {state}/sandbox.json && touch {partial}"
    ));
    let doctor = sh("joeyctl doctor");
    assert!(
        doctor.contains("warn  remains") && doctor.contains("joeyctl reconcile"),
        "{doctor}"
    );
    let found = sh("joeyctl reconcile --dry-run");
    assert!(found.contains(state) && found.contains(partial), "{found}");
    sh(&format!("test -e {state} && test -e {partial}"));
    let removed = sh("joeyctl reconcile");
    assert!(
        removed.contains(state) && removed.contains(partial),
        "{removed}"
    );
    sh(&format!("test ! -e {state} && test ! -e {partial}"));
    // What lives goes on.
    assert_eq!(container.sh("echo alive"), "alive");
}

fn node_tools_tell() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let rows: Value = serde_json::from_str(&sh("joeyctl ps --json")).expect("JSON");
    let rows = rows.as_array().expect("rows");
    let row = rows
        .iter()
        .find(|row| row["id"] == pod.id.as_str())
        .expect("its row");
    assert_eq!(row["state"], "running");
    assert_eq!(row["pod_namespace"], "test");
    assert_eq!(row["vmm_pid"].as_u64(), Some(vmm(&pod)));
    assert_eq!(row["containers"][0]["id"], container.id.as_str());
    assert_eq!(row["containers"][0]["state"], "running");
    for (key, least, most) in [
        ("guest_bytes", 4 << 20, 300 << 20),
        ("vmm_bytes", 1, 5 << 20),
        ("shim_bytes", 1, 5 << 20),
    ] {
        let bytes = row[key].as_u64().expect(key);
        assert!((least..most).contains(&bytes), "{key}: {bytes}");
    }
    let listed = sh("joeyctl ps");
    assert!(listed.contains(&pod.id[..13]), "{listed}");

    // The log of a guest that lives.
    let log = sh(&format!("joeyctl logs {}", pod.id));
    assert!(log.contains("Linux version 6.12"), "{log}");

    let metrics = sh("joeyctl metrics");
    for part in [
        format!(
            "joey_sandbox_up{{namespace=\"k8s.io\",sandbox=\"{}\"",
            pod.id
        ),
        "# TYPE joey_vmm_net_sent_bytes_total counter".into(),
        "# TYPE joey_sandbox_memory_bytes gauge".into(),
        "joey_shim_requests_total{".into(),
        "joey_node_sandbox_start_stage_seconds_bucket{stage=\"configure\"".into(),
    ] {
        assert!(metrics.contains(&part), "no {part} in: {metrics}");
    }
    let served = sh(
        "joeyctl metrics --listen 127.0.0.1:9180 2>/tmp/metrics.log & server=$!
        for i in $(seq 1000); do curl -fs http://127.0.0.1:9180/metrics && break; sleep 0.1; done
        kill $server",
    );
    assert!(served.contains("joey_node_sandboxes "), "{served}");

    // Without these pods, and with them.
    for (arguments, starts) in [
        ("--runs 2", "\n2 starts: median "),
        ("--running", " starts: "),
    ] {
        let said = sh(&format!("joeyctl bench {arguments}"));
        assert!(said.contains(starts), "{said}");
        assert!(said.lines().any(|line| line.starts_with("run ")), "{said}");
    }
}

fn exec_into_a_stopped_container() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["true"]);
    assert_eq!(container.wait(), 0);
    let said = fails(&format!("crictl exec {} true", container.id));
    assert!(
        said.contains("not running") || said.contains("CONTAINER_EXITED"),
        "{said}"
    );
}

fn console_is_a_shell_beside_the_agent() {
    let before = leaks::snapshot();
    {
        let pod = Pod::run();
        let said = fails(&format!("joeyctl console {} </dev/null", pod.id));
        assert!(said.contains("debug_shell"), "{said}");
    }
    {
        let _configured = Configured::with("debug_shell = \"/usr/bin/busybox\"");
        let pod = Pod::run();
        let container = pod.start(BUSYBOX, &["sleep", "1000"]);
        let console = |script: &str, command: &str| {
            run(&format!(
                "echo '{script}' | joeyctl console {} {command}",
                pod.id
            ))
        };
        let output = console("uname -r; echo err >&2; exit 3", "sh");
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status, err.as_str()), (3, "err\n"));
        assert_eq!(out.trim(), container.sh("uname -r"));
        // PID 1 is the agent; busybox goes by the name that it is called with.
        assert_eq!(text(&console("", "cat /proc/1/comm").stdout), "init\n");
        // At a terminal: its size, a new one, and its settings as they were.
        let mut session = TestHost::shared()
            .shell(&format!(
                "before=$(stty -g); joeyctl console {}; code=$?; [ $before = $(stty -g) ] && echo restored-$code",
                pod.id
            ))
            .terminal(Size { rows: 33, columns: 77 })
            .spawn()
            .expect("the host takes commands");
        let input = session.input();
        let line = |text: &str| input.write(text.as_bytes()).expect("the session lives");
        line("stty size\r");
        expect(&mut session, "33 77");
        input
            .resize(Size {
                rows: 33,
                columns: 82,
            })
            .expect("the session lives");
        line("until stty size | grep 82; do sleep 0.1; done; echo at-$((82 + 1))\r");
        expect(&mut session, "at-83");
        line("\x1d");
        expect(&mut session, "restored-1");
        // With its client, all goes that it has started.
        sh(&format!(
            "running() {{ ps=$(joeyctl console {0} ps </dev/null) || exit 2; echo \"$ps\" | grep -q 'sleep 1234'; }}
            mkfifo /tmp/in
            (echo 'setsid sleep 1234 & echo started'; exec sleep 1000) >/tmp/in & typed=$!
            joeyctl console {0} </tmp/in >/tmp/out & client=$!
            for i in $(seq 1000); do grep -q started /tmp/out && break; sleep 0.1; done
            running || exit 3
            kill -9 $client $typed; rm /tmp/in /tmp/out
            for i in $(seq 1000); do running || exit 0; sleep 0.1; done
            exit 1",
            pod.id
        ));
    }
    leaks::settled(&before);
}

/// Whoever calls the agent is root in the guest.
fn only_the_host_reaches_the_agent() {
    sh(&format!("crictl pull {DEBIAN}"));
    let pod = Pod::run();
    let container = pod.start(DEBIAN, &["sleep", "1000"]);
    // AF_VSOCK to the guest's own addresses: refused, or closed before a byte is taken.
    for (cid, port) in [(1, 1024), (1, 1025), (1, 1026), (3, 1024)] {
        let said = container.sh(&format!(
            "timeout 20 perl -e 'socket(my $s, 40, 1, 0) or die $!; connect($s, pack(\"SSLLx4\", 40, 0, {port}, {cid})) or print(\"refused\"), exit; print sysread($s, my $b, 1) ? \"open\" : \"closed\"'"
        ));
        assert!(["refused", "closed"].contains(&said.as_str()), "{said}");
    }
}
