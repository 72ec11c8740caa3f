//! Terminals of a container's first process.

mod common;

use common::Bundle;
use serde_json::json;

#[test]
fn the_first_process_has_one_on_dev_console() {
    let mut bundle = Bundle::new(
        "tty; stty size; stat -c '%u %t' /dev/console; echo out > /dev/tty; read x; echo got $x",
    );
    bundle.terminal = Some("word\n");
    bundle.spec["process"]["terminal"] = json!(true);
    let text = bundle.run();
    // The other side is a terminal of the container, which it reaches by both names.
    assert!(
        text.contains("/dev/pts/0") || text.contains("/dev/console"),
        "{text}"
    );
    assert!(text.contains("25 80\r\n"), "{text}");
    assert!(text.contains("0 88\r\n"), "{text}");
    assert!(
        text.contains("out\r\n") && text.contains("got word\r\n"),
        "{text}"
    );
}

#[test]
fn it_belongs_to_the_user() {
    let mut bundle = Bundle::new("stat -c %u /dev/pts/0; echo x > /dev/tty");
    bundle.terminal = Some("");
    bundle.spec["process"]["user"]["uid"] = json!(1000);
    let text = bundle.run();
    assert!(text.starts_with("1000\r\n"), "{text}");
}

#[test]
fn it_has_the_size_of_the_spec() {
    let mut bundle = Bundle::new("stty size; touch /told; exec sleep 1000");
    bundle.terminal = Some("");
    bundle.spec["process"]["consoleSize"] = json!({"height": 43, "width": 132});
    let after = "until [ -e /told ]; do sleep 0.1; done; stty size";
    let added = json!({"exec": {"terminal": "", "process": {"user": {"uid": 0, "gid": 0},
        "cwd": "/", "args": ["sh", "-c", after], "consoleSize": {"height": 7, "width": 9}}}});
    let outcomes = bundle.take(json!(["create", "start", added, {"kill": 9}, "wait",
        {"delete": {"force": true}}]));
    assert_eq!(outcomes[2]["output"], "7 9\r\n");
    let text = outcomes[4]["output"].as_str().unwrap();
    assert!(text.contains("43 132\r\n"), "{text}");
}

#[test]
fn it_needs_devpts() {
    let mut bundle = Bundle::new("true");
    bundle.terminal = Some("");
    bundle.spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| mount["destination"] != "/dev/pts");
    assert!(
        bundle
            .fail()
            .0
            .starts_with("open a terminal (the container needs devpts")
    );
}

#[test]
fn it_works_with_a_read_only_root_and_dev() {
    let mut bundle = Bundle::new("test -c /dev/console && echo there");
    bundle.terminal = Some("");
    bundle.spec["root"]["readonly"] = json!(true);
    bundle.push("/mounts/1/options", json!("ro"));
    assert_eq!(bundle.run(), "there\r\n");
}
