use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::UnixListener;
use tokio::sync::Notify;

use super::*;

/// The guest's side: takes connections and keeps them by stream id.
#[derive(Clone)]
struct FakeGuest {
    streams: Arc<Mutex<HashMap<u64, UnixStream>>>,
    arrived: Arc<Notify>,
}

impl FakeGuest {
    fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let guest = Self {
            streams: Arc::default(),
            arrived: Arc::default(),
        };
        let this = guest.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = Vec::new();
                while !line.ends_with(b"\n") {
                    line.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(b"OK 1\n").await.unwrap();
                let id = stream.read_u64_le().await.unwrap();
                this.streams.lock().unwrap().insert(id, stream);
                this.arrived.notify_one();
            }
        });
        guest
    }

    async fn take(&self, id: &str) -> UnixStream {
        let id = id.parse().unwrap();
        loop {
            if let Some(stream) = self.streams.lock().unwrap().remove(&id) {
                return stream;
            }
            self.arrived.notified().await;
        }
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    guest: FakeGuest,
    counter: AtomicU64,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guest = FakeGuest::new(&dir.path().join("vsock"));
        Self {
            dir,
            guest,
            counter: AtomicU64::new(1),
        }
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.into_os_string().into_string().unwrap()
    }

    /// A process with stdout alone: the client's end, and the guest's.
    async fn output(&self) -> (Receiver, Streams, UnixStream) {
        let stdio = Stdio {
            stdout: self.fifo("out"),
            ..Default::default()
        };
        let client = reader(&stdio.stdout);
        let (streams, ids) = self.open(&stdio).await.unwrap();
        let guest = self.guest.take(&ids.stdout).await;
        (client, streams, guest)
    }

    async fn open(&self, stdio: &Stdio) -> Result<(Streams, StreamIds), StreamError> {
        let vsock = Vsock::new(self.dir.path().join("vsock"));
        let ids = StreamIds::reserve(stdio, &self.counter);
        Ok((Streams::open(stdio, &ids, &vsock).await?, ids))
    }
}

fn reader(path: &str) -> Receiver {
    pipe::OpenOptions::new().open_receiver(path).unwrap()
}

fn writer(path: &str) -> Sender {
    pipe::OpenOptions::new().open_sender(path).unwrap()
}

async fn read_all(mut from: Receiver) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn no_paths_no_streams() {
    let fixture = Fixture::new();
    let (streams, ids) = fixture.open(&Stdio::default()).await.unwrap();
    assert_eq!(ids, StreamIds::default());
    streams.drain().await;
}

#[tokio::test]
async fn output_reaches_its_own_fifo_and_ends() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdout: fixture.fifo("out"),
        stderr: fixture.fifo("err"),
        ..Default::default()
    };
    let (out, err) = (reader(&stdio.stdout), reader(&stdio.stderr));
    let (streams, ids) = fixture.open(&stdio).await.unwrap();
    let mut guest_out = fixture.guest.take(&ids.stdout).await;
    let mut guest_err = fixture.guest.take(&ids.stderr).await;
    // More than a pipe and all buffers hold.
    let bytes: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
    let sent = bytes.clone();
    tokio::spawn(async move { guest_out.write_all(&sent).await.unwrap() });
    guest_err.write_all(b"oops").await.unwrap();
    drop(guest_err);
    assert_eq!(read_all(err).await, b"oops");
    assert!(read_all(out).await == bytes);
    streams.drain().await;
}

#[tokio::test]
async fn last_words_wait_for_a_client_that_comes_later() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("out");
    let (client, streams, mut guest) = fixture.output().await;
    // As when containerd is killed.
    drop(client);
    guest.write_all(b"farewell").await.unwrap();
    drop(guest);
    streams.drain().await;
    assert_eq!(read_all(reader(path.to_str().unwrap())).await, b"farewell");

    // Removed, it is for nobody.
    let mut ends = Ends {
        reader: File::options().read(true).write(true).open(&path).unwrap(),
        sender: writer(path.to_str().unwrap()),
    };
    ends.sender.write_all(b"x").await.unwrap();
    assert!(ends.has_unread());
    std::fs::remove_file(&path).unwrap();
    ends.linger().await;
}

#[tokio::test]
async fn a_terminal_has_no_stderr() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdout: fixture.fifo("out"),
        stderr: fixture.fifo("err"),
        terminal: true,
        ..Default::default()
    };
    let _out = reader(&stdio.stdout);
    let (_streams, ids) = fixture.open(&stdio).await.unwrap();
    assert_eq!(ids.stderr, "");
    assert_ne!(ids.stdout, "");
}

#[tokio::test]
async fn stdin_outlives_clients_until_it_is_closed() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdin: fixture.fifo("in"),
        ..Default::default()
    };
    let (mut streams, ids) = fixture.open(&stdio).await.unwrap();
    let mut guest = fixture.guest.take(&ids.stdin).await;
    let mut bytes = [0; 3];
    for word in [b"one", b"two"] {
        let mut client = writer(&stdio.stdin);
        client.write_all(word).await.unwrap();
        drop(client);
        guest.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, word);
    }
    let mut client = writer(&stdio.stdin);
    streams.close_stdin();
    client.write_all(b"end").await.unwrap();
    drop(client);
    let mut rest = Vec::new();
    guest.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"end");
}

#[tokio::test]
async fn a_client_hears_that_the_process_stopped_reading() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdin: fixture.fifo("in"),
        ..Default::default()
    };
    let (mut streams, ids) = fixture.open(&stdio).await.unwrap();
    let guest = fixture.guest.take(&ids.stdin).await;
    let mut client = writer(&stdio.stdin);
    drop(guest);
    (&mut streams.input.as_mut().unwrap().0).await.unwrap();
    let error = client.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn output_waits_for_the_next_client() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdout: fixture.fifo("out"),
        ..Default::default()
    };
    let first = reader(&stdio.stdout);
    let (streams, ids) = fixture.open(&stdio).await.unwrap();
    let mut guest = fixture.guest.take(&ids.stdout).await;
    drop(first);
    guest.write_all(b"while away").await.unwrap();
    let second = reader(&stdio.stdout);
    drop(guest);
    assert_eq!(read_all(second).await, b"while away");
    streams.drain().await;
}

#[tokio::test]
async fn a_late_client_loses_nothing() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdout: fixture.fifo("out"),
        ..Default::default()
    };
    let path = stdio.stdout.clone();
    let client = tokio::spawn(async move {
        tokio::task::yield_now().await;
        read_all(reader(&path)).await
    });
    let (streams, ids) = fixture.open(&stdio).await.unwrap();
    let mut guest = fixture.guest.take(&ids.stdout).await;
    guest.write_all(b"short").await.unwrap();
    drop(guest);
    streams.drain().await;
    assert_eq!(client.await.unwrap(), b"short");
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_guest() {
    let fixture = Fixture::new();
    let (mut client, streams, guest) = fixture.output().await;
    let chunk = [7u8; 4096];
    let mut sent = 0usize;
    // Everything in between fills up, then the guest cannot write any more.
    while timeout(Duration::from_millis(200), guest.writable())
        .await
        .is_ok()
    {
        match guest.try_write(&chunk) {
            Ok(n) => sent += n,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(sent < 8 << 20, "nothing holds the guest back");
    }
    drop(guest);
    let mut received = 0;
    let mut buffer = vec![0; 65536];
    while received < sent {
        received += client.read(&mut buffer).await.unwrap();
    }
    streams.drain().await;
}

#[tokio::test(start_paused = true)]
async fn draining_goes_on_while_bytes_flow() {
    let fixture = Fixture::new();
    let (client, streams, mut guest) = fixture.output().await;
    let slowly = tokio::spawn(async move {
        for _ in 0..5 {
            tokio::time::sleep(DRAIN_REST - Duration::from_millis(700)).await;
            guest.write_all(b"more ").await.unwrap();
        }
    });
    let read = tokio::spawn(read_all(client));
    streams.drain().await;
    slowly.await.unwrap();
    assert_eq!(read.await.unwrap(), b"more more more more more ");
}

#[tokio::test(start_paused = true)]
async fn output_that_rests_is_given_up() {
    let fixture = Fixture::new();
    let (client, streams, guest) = fixture.output().await;
    let begin = tokio::time::Instant::now();
    streams.drain().await;
    assert_eq!(begin.elapsed(), DRAIN_REST);
    assert_eq!(read_all(client).await, b"");
    drop(guest);
}

#[tokio::test]
async fn other_kinds_of_io_are_refused_by_name() {
    let fixture = Fixture::new();
    let file = fixture.dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [
        "binary:///bin/log?a=b",
        "file:///log",
        file.to_str().unwrap(),
    ] {
        let stdio = Stdio {
            stdout: path.into(),
            ..Default::default()
        };
        let error = fixture.open(&stdio).await.unwrap_err();
        assert!(matches!(error, StreamError::Kind { .. }), "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fifo_that_nobody_reads_is_named() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdout: fixture.fifo("out"),
        ..Default::default()
    };
    let error = fixture.open(&stdio).await.unwrap_err();
    assert!(matches!(error, StreamError::NoReader { .. }), "{error}");
}
