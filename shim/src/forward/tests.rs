//! A client on one side, on the other a socket in the place of the VMM's and behind it
//! an agent that does as it is told.

use tokio::net::UnixListener;

use super::*;

/// A pod whose agent gives `answer`, and the client's end of a connection to it.
struct Bench {
    _directory: tempfile::TempDir,
    listener: UnixListener,
    client: TcpStream,
    carried: JoinHandle<()>,
}

impl Bench {
    async fn new(address: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let pod = TcpListener::bind(address).await.unwrap();
        let client = TcpStream::connect(pod.local_addr().unwrap()).await.unwrap();
        let (server, _) = pod.accept().await.unwrap();
        Self {
            _directory: directory,
            listener,
            client,
            carried: tokio::spawn(forward(server, Vsock::new(path))),
        }
    }

    /// The agent takes the connection and answers; its end, and what it was told.
    async fn agent(&self, answer: u8) -> (UnixStream, Target) {
        let (mut agent, _) = self.listener.accept().await.unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(agent.read_u8().await.unwrap());
        }
        assert_eq!(line, format!("CONNECT {}\n", ports::FORWARD).as_bytes());
        agent.write_all(b"OK 1073741824\n").await.unwrap();
        let mut header = [0; Target::SIZE];
        agent.read_exact(&mut header).await.unwrap();
        agent.write_u8(answer).await.unwrap();
        (agent, Target::from_bytes(header).unwrap())
    }

    async fn open(address: &str) -> (Self, UnixStream) {
        let bench = Self::new(address).await;
        let (agent, _) = bench.agent(CONNECTED).await;
        (bench, agent)
    }
}

const V4: &str = "127.0.0.1:0";

#[tokio::test]
async fn the_agent_is_told_what_was_dialled() {
    for (address, family) in [(V4, Family::V4), ("[::1]:0", Family::V6)] {
        let bench = Bench::new(address).await;
        let port = bench.client.peer_addr().unwrap().port();
        assert_eq!(bench.agent(CONNECTED).await.1, Target { family, port });
    }
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:80".parse().unwrap();
    assert_eq!(target(mapped).family, Family::V4);
}

#[tokio::test]
async fn who_is_refused_gets_a_reset_and_no_empty_answer() {
    for closes in [true, false] {
        let mut bench = Bench::new(V4).await;
        if closes {
            // A VMM without room, or one that is gone.
            drop(bench.listener.accept().await.unwrap());
        } else {
            bench.agent(protocol::forward::REFUSED).await;
        }
        let error = bench.client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (mut bench, mut agent) = Bench::open(V4).await;
    bench.client.write_all(b"question").await.unwrap();
    bench.client.shutdown().await.unwrap();
    let mut text = String::new();
    agent.read_to_string(&mut text).await.unwrap();
    agent.write_all(b"answer").await.unwrap();
    drop(agent);
    bench.client.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "questionanswer");
    bench.carried.await.unwrap();

    let (mut bench, mut agent) = Bench::open(V4).await;
    agent.shutdown().await.unwrap();
    assert_eq!(bench.client.read(&mut [0]).await.unwrap(), 0);
    bench.client.write_all(b"still").await.unwrap();
    drop(bench.client);
    let mut text = String::new();
    agent.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "still");
    bench.carried.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_altogether_takes_the_guests_side_along() {
    // Before and after it ended its own direction.
    for ended in [false, true] {
        let (mut bench, mut agent) = Bench::open(V4).await;
        if ended {
            bench.client.shutdown().await.unwrap();
            assert_eq!(agent.read(&mut [0]).await.unwrap(), 0);
        }
        bench.client.set_zero_linger().unwrap();
        drop(bench.client);
        bench.carried.await.unwrap();
        assert!(agent.write_all(b"x").await.is_err());
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_guest_back() {
    let (mut bench, mut agent) = Bench::open(V4).await;
    let sent: Vec<u8> = (0..20_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let expected = sent.clone();
    let mut writer = tokio::spawn(async move {
        agent.write_all(&sent).await.unwrap();
    });
    let early = timeout(Duration::from_millis(500), &mut writer).await;
    assert!(early.is_err(), "20 MB were taken that nobody read");
    let mut got = Vec::new();
    bench.client.read_to_end(&mut got).await.unwrap();
    assert!(got == expected);
}
