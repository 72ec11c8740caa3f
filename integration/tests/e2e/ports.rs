//! Port-forward: `crictl port-forward`, and localhost of the pod's network namespace,
//! which is what containerd dials for it.

use integration::combination::Combination;
use libtest_mimic::Trial;
use serde_json::json;

use crate::cri::{BUSYBOX, Container, HUNDRED_MB, Pod, run, sh, text};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "ports::either_family_is_forwarded_to_the_right_pod",
            either_family_is_forwarded_to_the_right_pod,
        ),
        trial(
            "ports::a_hundred_megabytes_each_way_are_intact",
            a_hundred_megabytes_each_way_are_intact,
        ),
        trial(
            "ports::a_port_that_nobody_listens_on_is_an_error",
            a_port_that_nobody_listens_on_is_an_error,
        ),
        trial(
            "ports::half_closed_connections_go_on",
            half_closed_connections_go_on,
        ),
        trial(
            "ports::many_at_once_leave_nothing_behind",
            many_at_once_leave_nothing_behind,
        ),
    ]
}

/// A container that serves its hostname on 8080 of 127.0.0.1 and on 8081 of ::1 only.
fn serve(pod: &Pod) -> Container {
    let container = pod.start(
        BUSYBOX,
        &[
            "sh",
            "-c",
            "mkdir -p /www/cgi-bin; hostname > /www/index.html; \
             printf '#!/bin/sh\\nprintf \"Content-Type: text/plain\\\\r\\\\n\\\\r\\\\n\"; head -c $CONTENT_LENGTH | sha256sum\\n' > /www/cgi-bin/sum; \
             chmod +x /www/cgi-bin/sum; \
             httpd -p 127.0.0.1:8080 -h /www; httpd -f -p [::1]:8081 -h /www",
        ],
    );
    container.sh(
        "for i in $(seq 1000); do netstat -lnt | grep -q :8081 && exit; sleep 0.1; done; exit 1",
    );
    container
}

/// Runs `script` while `crictl port-forward` leads 18080 and 18081 of the host to
/// 8080 and 8081 of the pod. What crictl said is in /tmp/forward.log.
fn forwarded(pod: &Pod, script: &str) -> String {
    sh(&format!(
        "crictl port-forward {} 18080:8080 18081:8081 >/tmp/forward.log 2>&1 & forward=$!
         trap 'kill $forward; wait $forward; rm -f /tmp/forward.log' EXIT
         until grep -q 'Forwarding from.* 8081' /tmp/forward.log; do kill -0 $forward; sleep 0.1; done
         {script}",
        pod.id
    ))
}

/// The start of a command that runs in the pod's network namespace on the host.
fn inside(pod: &Pod) -> String {
    if Combination::of_this_run().has_vm() {
        return format!(
            "nsenter --net=$(jq -r .netns /run/joey/k8s.io/{}/sandbox.json)",
            pod.id
        );
    }
    let pid = &pod.inspect()["info"]["pid"];
    format!("nsenter --net=/proc/{pid}/ns/net")
}

/// Bounded, but not by how fast an emulated host is.
const CURL: &str = "curl -gsS --max-time 600";

fn either_family_is_forwarded_to_the_right_pod() {
    let (one, two) = (Pod::run(), Pod::run());
    let servers = [serve(&one), serve(&two)];
    for (pod, server) in [&one, &two].into_iter().zip(&servers) {
        let name = server.sh("hostname");
        let seen = forwarded(
            pod,
            &format!("{CURL} http://127.0.0.1:18080/; {CURL} http://127.0.0.1:18081/"),
        );
        assert_eq!(seen, format!("{name}\n{name}"));
        let inside = inside(pod);
        let served = ["http://127.0.0.1:8080/", "http://[::1]:8081/"];
        // The other family, as the pod has only one of them.
        let forwarded = ["http://127.0.0.1:8081/", "http://[::1]:8080/"];
        let forwarded = forwarded
            .iter()
            .filter(|_| Combination::of_this_run().has_vm());
        for url in served.iter().chain(forwarded) {
            assert_eq!(sh(&format!("{inside} {CURL} {url}")), name, "{url}");
        }
    }
}

fn a_hundred_megabytes_each_way_are_intact() {
    let pod = Pod::run();
    let server = serve(&pod);
    let expected = sh(&format!("{HUNDRED_MB} | tee /tmp/hundred | sha256sum"));
    server.sh(&format!("{HUNDRED_MB} > /www/hundred"));
    let seen = forwarded(
        &pod,
        &format!(
            "{CURL} http://127.0.0.1:18080/hundred | sha256sum
             {CURL} -X POST -H Expect: -T /tmp/hundred http://127.0.0.1:18080/cgi-bin/sum
             rm /tmp/hundred"
        ),
    );
    assert_eq!(seen, format!("{expected}\n{expected}"));
}

fn a_port_that_nobody_listens_on_is_an_error() {
    let pod = Pod::run();
    let said = forwarded(
        &pod,
        &format!(
            "{CURL} http://127.0.0.1:18080/ >/dev/null 2>&1 && echo answered; \
             cat /tmp/forward.log"
        ),
    );
    assert!(!said.contains("answered"), "{said}");
    // containerd 1.7 resets the client's connection too, and says so in its own log only.
    if !Combination::of_this_run().is_containerd_1_7() {
        assert!(
            said.contains("error") && said.contains("connection reset"),
            "{said}"
        );
    }
    // Not an empty answer, which curl would call by another name. Where the reset comes
    // before it looks, it takes that for a refusal.
    for url in ["http://127.0.0.1:8080/", "http://[::1]:8080/"] {
        let output = run(&format!("{} {CURL} {url}", inside(&pod)));
        let error = text(&output.stderr);
        assert!(
            error.contains("reset by peer") || error.contains("Could not connect"),
            "{url}: {error}"
        );
    }
    // Neither is harm to what comes later.
    let server = serve(&pod);
    let name = server.sh("hostname");
    let seen = sh(&format!("{} {CURL} http://127.0.0.1:8080/", inside(&pod)));
    assert_eq!(seen, name);
}

/// Sends its input, ends its direction, and prints what comes then.
const ASK: &str = r#"use IO::Socket::IP; use Socket;
my $socket = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1]) or die "connect: $@";
while (read STDIN, my $chunk, 65536) { print $socket $chunk or die "write: $!" }
$socket->flush; shutdown $socket, SHUT_WR;
print while <$socket>; die "read: $!" if $socket->error"#;

fn half_closed_connections_go_on() {
    let pod = Pod::run();
    let container = pod.create(
        BUSYBOX,
        json!({"command": ["sh", "-c", "while :; do nc -l -p 7000 -e sha256sum; done"]}),
    );
    sh(&format!("crictl start {}", container.id));
    let content = "seq 1000000000 | head -c 10485760";
    let expected = sh(&format!("{content} | sha256sum"));
    let inside = inside(&pod);
    for address in ["127.0.0.1", "::1"] {
        container.sh(
            "for i in $(seq 1000); do netstat -lnt | grep -q :7000 && exit; sleep 0.1; done; exit 1",
        );
        let seen = sh(&format!(
            "{content} | {inside} perl -e '{ASK}' {address} 7000"
        ));
        assert_eq!(seen, expected, "{address}");
    }
}

fn many_at_once_leave_nothing_behind() {
    let pod = Pod::run();
    let server = serve(&pod);
    server.sh("seq 1000000 | head -c 1048576 > /www/one");
    let expected = sh("seq 1000000 | head -c 1048576 | sha256sum");
    let inside = inside(&pod);
    let shim = sh(&format!(
        "pgrep -f '[c]ontainerd-shim-joey-v2.* -id {}'",
        pod.id
    ));
    let descriptors = format!("ls /proc/{shim}/fd | wc -l");
    sh(&format!(
        "{inside} {CURL} http://127.0.0.1:8080/one -o /dev/null"
    ));
    let before: usize = sh(&descriptors).parse().expect("a number");
    let seen = sh(&format!(
        "mkdir /tmp/many; cd /tmp/many
         {inside} {CURL} --fail-early -Z --parallel-immediate --parallel-max 64 \
           $(for i in $(seq 64); do echo \"-o $i http://127.0.0.1:8080/one?$i\"; done) || exit
         cat * | wc -c; for file in *; do sha256sum <$file; done | sort -u; rm -r /tmp/many"
    ));
    assert_eq!(seen, format!("{}\n{expected}", 64 << 20));
    // They end a moment after the clients have.
    sh(&format!(
        "for i in $(seq 1000); do [ $({descriptors}) -le {before} ] && exit; sleep 0.1; done; ls -l /proc/{shim}/fd; exit 1"
    ));
}
