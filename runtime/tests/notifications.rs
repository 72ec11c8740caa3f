//! System calls that an agent of the host answers.

mod common;

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use common::Bundle;
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// Takes `count` filters, answers the calls of each with ENOMEDIUM until the last process under it
/// has gone, and returns what it was told with them.
fn agent(bundle: &Bundle, count: usize) -> JoinHandle<Vec<Value>> {
    let listener = UnixListener::bind(bundle.dir.join("agent")).unwrap();
    std::thread::spawn(move || {
        let serving: Vec<_> = (0..count)
            .map(|_| {
                let (connection, _) = listener.accept().unwrap();
                std::thread::spawn(move || serve(connection))
            })
            .collect();
        serving.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

fn serve(connection: UnixStream) -> Value {
    let mut bytes = [0u8; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &connection,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let fd: OwnedFd = control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("no descriptor");
    loop {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        if !fds[0].revents().contains(PollFlags::IN) {
            break;
        }
        let call = ScmpNotifReq::receive(fd.as_raw_fd()).unwrap();
        let flags = ScmpNotifRespFlags::empty();
        let answer = ScmpNotifResp::new_error(call.id, -libc::ENOMEDIUM, flags);
        answer.respond(fd.as_raw_fd()).unwrap();
    }
    serde_json::from_slice(&bytes[..received.bytes]).unwrap()
}

fn notifying(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.spec["annotations"] = json!({"a": "b"});
    bundle.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": bundle.dir.join("agent"),
        "listenerMetadata": "for the agent",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    bundle
}

const REFUSED: &str = "mkdir: can't create directory '/tmp/a': No medium found\n";

#[test]
fn an_agent_answers_for_the_first_process() {
    for (no_new_privileges, status) in [(true, "created"), (false, "creating")] {
        let mut bundle = notifying("mkdir /tmp/a");
        bundle.spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        let agent = agent(&bundle, 1);
        let outcomes =
            bundle.take(json!(["create", "start", "wait", {"delete": {"force": false}}]));
        assert_eq!(outcomes[2]["output"], REFUSED, "{outcomes:?}");
        let told = agent.join().unwrap().remove(0);
        let pid = &outcomes[0]["pid"];
        assert_eq!(
            told,
            json!({
                "ociVersion": "1.2.0",
                "fds": ["seccompFd"],
                "pid": pid,
                "metadata": "for the agent",
                "state": {
                    "ociVersion": "1.2.0", "id": bundle.id, "status": status, "pid": pid,
                    "bundle": bundle.dir, "annotations": {"a": "b"},
                },
            })
        );
    }
}

#[test]
fn an_agent_answers_for_a_process_that_joins() {
    let bundle = notifying("exec sleep 1000");
    let agent = agent(&bundle, 3);
    let added = |no_new_privileges: bool| {
        json!({"exec": {"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/",
            "args": ["/bin/sh", "-c", "mkdir /tmp/a"], "noNewPrivileges": no_new_privileges}}})
    };
    let outcomes = bundle.take(json!(["create", "start", added(true), added(false),
        {"delete": {"force": true}}]));
    for outcome in &outcomes[2..4] {
        assert_eq!(outcome["output"], REFUSED, "{outcomes:?}");
    }
    let told = agent.join().unwrap();
    for one in &told[1..] {
        assert_eq!(one["state"]["status"], "running");
        assert_eq!(one["state"]["pid"], outcomes[0]["pid"]);
        assert_ne!(one["pid"], outcomes[0]["pid"]);
    }
}

#[test]
fn without_an_agent_nothing_is_left() {
    let mut bundle = notifying("true");
    bundle.spec["process"]["noNewPrivileges"] = json!(false);
    let (error, _) = bundle.fail();
    let expected = format!(
        "hand the seccomp filter to {}: No such file",
        bundle.dir.join("agent").display()
    );
    assert!(error.starts_with(&expected), "{error}");

    bundle.spec["process"]["noNewPrivileges"] = json!(true);
    let outcomes = bundle.take(json!(["create", "start", "wait", "status",
        {"delete": {"force": false}}, "children"]));
    let error = outcomes[1]["error"].as_str().unwrap();
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(outcomes[3], "stopped");
    assert_eq!(outcomes[5], false);
}
