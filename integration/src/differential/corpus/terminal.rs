//! Terminals and standard streams.

use serde_json::json;

use crate::differential::case::{Case, Step, case};

pub fn cases() -> Vec<Case> {
    vec![
        case("terminal/base").with_terminal(),
        case("terminal/size").with_terminal().process(json!({"consoleSize": {"height": 33, "width": 101}})),
        case("terminal/of-a-user").with_terminal().process(json!({"user": {"uid": 1000, "gid": 1000}})),
        case("terminal/with-readonly-root").with_terminal().merge(json!({"root": {"readonly": true}})),
        case("terminal/settings").with_terminal().script("stty -a | head -n 20"),
        case("terminal/without-pts").with_terminal().without_mount("/dev/pts").says(&["pts", "ptmx", "console", "terminal"]),
        case("terminal/in-a-user-namespace")
            .with_terminal()
            .host("chown -R 100000:100000 {rootfs}; chmod 755 {dir} {bundle}", "")
            .namespace(json!({"type": "user"}))
            .linux(json!({
                "uidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}],
                "gidMappings": [{"containerID": 0, "hostID": 100_000, "size": 65536}]})),
        case("terminal/without-socket").process(json!({"terminal": true})).says(&["console", "terminal"]),
        case("terminal/socket-without-terminal")
            .steps(vec![Step::Create(vec!["--console-socket", "{dir}/none"])])
            .says(&["console", "terminal"]),
        case("terminal/missing-socket")
            .process(json!({"terminal": true}))
            .steps(vec![Step::Create(vec!["--console-socket", "/nowhere/socket"])])
            .says(&["console", "/nowhere"]),
        case("terminal/size-without-terminal").process(json!({"consoleSize": {"height": 33, "width": 101}})),
        case("terminal/background-session").with_terminal().script("ps -o pid,pgid,sid 2>/dev/null | head -n 1; tty 2>&1; cat </dev/tty >/dev/null & sleep 0.1; echo done"),
    ]
}
