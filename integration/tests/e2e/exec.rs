//! crictl exec: exit codes, stdin, tty.

use integration::channel::Size;
use integration::testbed::TestHost;
use libtest_mimic::Trial;

use crate::cri::{BUSYBOX, Pod, fails, handler, sh, text};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "exec::exit_codes_and_streams_come_back",
            exit_codes_and_streams_come_back,
        ),
        trial(
            "exec::stdin_reaches_the_process_and_ends",
            stdin_reaches_the_process_and_ends,
        ),
        trial("exec::tty_is_a_terminal", tty_is_a_terminal),
        trial(
            "exec::missing_command_is_told_as_by_runc",
            missing_command_is_told_as_by_runc,
        ),
    ]
}

fn exit_codes_and_streams_come_back() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let output = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(text(&output.stdout), "out\n");
    // crictl itself exits 1 and names the command's code on stderr.
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("err\n"), "{stderr}");
    assert!(
        stderr.contains("exit code 3") || stderr.contains("exit status 3"),
        "{stderr}"
    );
    let killed = container.exec(&["sh", "-c", "kill -9 $$"]);
    assert!(
        text(&killed.stderr).contains("137"),
        "{}",
        text(&killed.stderr)
    );
}

fn stdin_reaches_the_process_and_ends() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    let counted = sh(&format!(
        "head -c 3000000 /dev/zero | tr '\\0' x | crictl exec -i {} wc -c",
        container.id
    ));
    assert_eq!(counted, "3000000");
}

fn tty_is_a_terminal() {
    let pod = Pod::run();
    let container = pod.start(BUSYBOX, &["sleep", "1000"]);
    // crictl passes on the size of the terminal that it has, once the process runs.
    let inside =
        "tty; for i in $(seq 1000); do stty size 2>/dev/null | grep 101 && exit; sleep 0.1; done";
    let script = format!("crictl exec -it {} sh -c '{inside}'", container.id);
    let size = Size {
        rows: 33,
        columns: 101,
    };
    let output = TestHost::shared().shell(&script).terminal(size).run();
    let seen = text(&output.unwrap_or_else(|error| panic!("{error}")).stdout);
    assert!(
        seen.contains("/dev/pts/") && seen.contains("33 101"),
        "{seen}"
    );
    let without = container.exec(&["tty"]);
    assert!(
        text(&without.stdout).contains("not a tty"),
        "{}",
        text(&without.stdout)
    );
}

fn missing_command_is_told_as_by_runc() {
    for (command, says) in [
        ("/nowhere", "no such file or directory"),
        ("nowhere", "executable file not found in $PATH"),
        ("/etc/passwd", "permission denied"),
    ] {
        let mut told = Vec::new();
        for handler in [handler(), "runc"] {
            let pod = Pod::with(handler, serde_json::json!({}));
            let container = pod.start(BUSYBOX, &["sleep", "1000"]);
            told.push(fails(&format!("crictl exec {} {command}", container.id)));
        }
        for message in &told {
            assert!(message.contains(says), "{command}: {message}");
        }
    }
}
