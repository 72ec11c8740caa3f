//! Connections that the host forwards into the pod; this machine's loopback is the pod's.

use std::io::ErrorKind;

use guest_agent::forward;
use protocol::forward::{CONNECTED, Family, REFUSED, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// The agent's part.
struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("forwards")).unwrap();
        tokio::spawn(forward::serve(listener));
        Self { directory }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("forwards"))
            .await
            .unwrap()
    }
}

/// A connection of the host to this port, and what the agent answered.
async fn dial(machine: &Machine, family: Family, port: u16) -> (UnixStream, u8) {
    let mut host = machine.connect().await;
    host.write_all(&Target { family, port }.to_bytes())
        .await
        .unwrap();
    let answer = host.read_u8().await.unwrap();
    (host, answer)
}

/// A forwarded connection: the host's end and the pod's.
async fn pair(machine: &Machine) -> (UnixStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (host, answer) = dial(machine, Family::V4, port).await;
    assert_eq!(answer, CONNECTED);
    (host, listener.accept().await.unwrap().0)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| ((i * 7) >> 3) as u8).collect()
}

#[tokio::test]
async fn either_family_leads_to_a_process_that_has_only_one() {
    let machine = &Machine::new();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for family in [Family::V4, Family::V6] {
            let (mut host, answer) = dial(machine, family, port).await;
            assert_eq!(answer, CONNECTED, "{address} by {family:?}");
            let (mut pod, _) = listener.accept().await.unwrap();
            pod.write_all(b"x").await.unwrap();
            assert_eq!(host.read_u8().await.unwrap(), b'x');
        }
    }
}

#[tokio::test]
async fn the_family_that_was_asked_for_comes_first() {
    let machine = &Machine::new();
    let v4 = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = v4.local_addr().unwrap().port();
    let v6 = TcpListener::bind(("::1", port)).await.unwrap();
    let _one = dial(machine, Family::V6, port).await;
    v6.accept().await.unwrap();
    let _two = dial(machine, Family::V4, port).await;
    v4.accept().await.unwrap();
}

#[tokio::test]
async fn refusals_and_nonsense_end_the_connection() {
    let machine = &Machine::new();
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let (mut host, answer) = dial(machine, Family::V4, port).await;
    assert_eq!(answer, REFUSED);
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);

    let mut host = machine.connect().await;
    host.write_all(&[9, 0, 80]).await.unwrap();
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn many_bytes_arrive_whole_both_ways_at_once() {
    let machine = &Machine::new();
    let (host, pod) = pair(machine).await;
    let sent = bytes(20_000_000);
    let (mut from_host, mut to_host) = host.into_split();
    let (mut from_pod, mut to_pod) = pod.into_split();
    let write_host = async {
        to_host.write_all(&sent).await.unwrap();
        to_host.shutdown().await.unwrap();
    };
    let write_pod = async {
        to_pod.write_all(&sent).await.unwrap();
        to_pod.shutdown().await.unwrap();
    };
    let (mut at_host, mut at_pod) = (Vec::new(), Vec::new());
    let read_host = async { from_host.read_to_end(&mut at_host).await.unwrap() };
    let read_pod = async { from_pod.read_to_end(&mut at_pod).await.unwrap() };
    tokio::join!(write_host, write_pod, read_host, read_pod);
    assert!(at_host == sent && at_pod == sent);
}

#[tokio::test]
async fn one_direction_may_end_long_before_the_other() {
    let machine = &Machine::new();
    let (mut host, mut pod) = pair(machine).await;
    host.write_all(b"question").await.unwrap();
    host.shutdown().await.unwrap();
    let mut text = String::new();
    pod.read_to_string(&mut text).await.unwrap();
    pod.write_all(b"answer").await.unwrap();
    drop(pod);
    host.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "questionanswer");

    let (mut host, mut pod) = pair(machine).await;
    pod.shutdown().await.unwrap();
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    host.write_all(b"still").await.unwrap();
    drop(host);
    let mut text = String::new();
    pod.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "still");
}

#[tokio::test]
async fn a_host_that_goes_altogether_resets_a_silent_process() {
    let machine = &Machine::new();
    let (host, mut pod) = pair(machine).await;
    drop(host);
    // The end of its input, which it does not react to, and then a reset.
    assert_eq!(pod.read(&mut [0]).await.unwrap(), 0);
    pod.ready(tokio::io::Interest::ERROR).await.unwrap();
    let error = pod.write_all(b"late").await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_process_that_resets_ends_the_connection() {
    let machine = &Machine::new();
    let (mut host, pod) = pair(machine).await;
    pod.set_zero_linger().unwrap();
    drop(pod);
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn one_that_stands_still_holds_up_nobody() {
    let machine = &Machine::new();
    let (mut stuck, _pod) = pair(machine).await;
    // Until nothing more fits on the way.
    let chunk = bytes(1 << 20);
    while tokio::time::timeout(
        std::time::Duration::from_millis(300),
        stuck.write_all(&chunk),
    )
    .await
    .is_ok()
    {}
    let (mut host, mut pod) = pair(machine).await;
    host.write_all(b"x").await.unwrap();
    assert_eq!(pod.read_u8().await.unwrap(), b'x');
}
