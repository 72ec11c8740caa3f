//! A VMM without a VM: answers every action, and serves the agent's side of the
//! guest itself. What a container does its first argument says.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use async_trait::async_trait;
use containerd_shim_protos::api as task;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};
use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::{Code, Error, Result};
use protocol::guest::{self, event};
use protocol::guest_ttrpc::{Guest, create_guest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, watch};
use vmm::channel::Channel;
use vmm::{Action, Reply};

/// Where the VMM says things unasked.
static EVENTS: OnceLock<File> = OnceLock::new();

/// Runs until the owner is gone or a container asks for the VM's death.
pub fn run() {
    let control = Channel::new(vmm::sys::inherited(3).expect("control socket"));
    let mut events = File::from(vmm::sys::inherited(4).expect("event socket"));
    let (action, files) = control.receive::<Action>().expect("an action");
    let Action::Boot(spec) = action else {
        panic!("{action:?} before boot");
    };
    assert_ne!(spec.uid, 0);
    assert_eq!(files.len(), 3, "no console");
    control.send(&Reply::Done, &[]).unwrap();
    let (action, mut files) = control.receive::<Action>().expect("an action");
    assert!(matches!(action, Action::Run { .. }), "{action:?}");
    assert_eq!(files.len(), 2, "no TAP");
    let listener = StdListener::from(files.remove(1));
    control.send(&Reply::Done, &[]).unwrap();
    std::thread::spawn(move || {
        while let Ok((action, _)) = control.receive::<Action>() {
            let reply = match action {
                Action::KernelLog => {
                    Reply::KernelLog("[    1.000000] the kernel said this\n".into())
                }
                Action::Stats => Reply::Stats(Box::default()),
                Action::ResizeMemory { mib } => {
                    // A guest that takes at once what it gets.
                    let event = vmm::Event::MemoryResized { mib };
                    let line = format!("{}\n", serde_json::to_string(&event).unwrap());
                    let mut events = EVENTS.get().expect("a guest that is ready");
                    events.write_all(line.as_bytes()).unwrap();
                    Reply::Done
                }
                _ => Reply::Done,
            };
            control.send(&reply, &[]).unwrap();
            if action == Action::Shutdown {
                break;
            }
        }
        std::process::exit(0);
    });
    events.write_all(b"\"ready\"\n").unwrap();
    EVENTS.set(events).unwrap();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(serve(listener));
}

async fn serve(listener: StdListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = UnixListener::from_std(listener).unwrap();
    let agent = Agent::default();
    let (connections, queue) = mpsc::unbounded_channel();
    let connections_in = Listener::new(incoming(queue));
    let service = Arc::new(agent.clone());
    let mut server = Server::new()
        .add_listener(connections_in)
        .register_service(create_task(service.clone()))
        .register_service(create_guest(service));
    server.start().await.unwrap();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = agent.0.leaves.notified() => {
                server.disconnect().await;
                // The VMM does not notice.
                return std::future::pending().await;
            }
        };
        let (mut stream, _) = accepted.unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"OK 7\n").await.unwrap();
        match line.as_slice() {
            b"CONNECT 1024\n" => connections.send(stream).unwrap(),
            b"CONNECT 1025\n" => {
                let id = stream.read_u64_le().await.unwrap();
                agent.0.streams.lock().unwrap().insert(id, stream);
                agent.0.arrived.notify_waiters();
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The queue as the stream of sockets that the ttrpc server listens to.
fn incoming(
    mut queue: mpsc::UnboundedReceiver<UnixStream>,
) -> impl futures_core::Stream<Item = std::io::Result<UnixStream>> {
    stream_fn::PollFn(move |cx: &mut std::task::Context<'_>| queue.poll_recv(cx).map(|s| s.map(Ok)))
}

mod stream_fn {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// A stream by its poll function.
    pub struct PollFn<F>(pub F);

    impl<F> Unpin for PollFn<F> {}

    impl<T, F: FnMut(&mut Context<'_>) -> Poll<Option<T>>> futures_core::Stream for PollFn<F> {
        type Item = T;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
            (self.0)(cx)
        }
    }
}

#[derive(Clone, Default)]
struct Agent(Arc<State>);

#[derive(Default)]
struct State {
    processes: Mutex<HashMap<(String, String), Process>>,
    streams: Mutex<HashMap<u64, UnixStream>>,
    arrived: Notify,
    leaves: Notify,
    events: watch::Sender<Vec<event::Kind>>,
    pid: AtomicU32,
}

#[derive(Clone)]
struct Process {
    args: Vec<String>,
    stdin: String,
    stdout: String,
    pid: u32,
}

impl Agent {
    fn add(&self, id: &str, exec: &str, process: Process) {
        let key = (id.to_owned(), exec.to_owned());
        self.0.processes.lock().unwrap().insert(key, process);
    }

    fn get(&self, id: &str, exec: &str) -> Result<Process> {
        let key = (id.to_owned(), exec.to_owned());
        let processes = self.0.processes.lock().unwrap();
        processes
            .get(&key)
            .cloned()
            .ok_or_else(|| get_rpc_status(Code::NOT_FOUND, "no such process"))
    }

    fn exited(&self, id: &str, exec: &str, pid: u32, status: u32) {
        let exit = guest::Exit {
            container_id: id.into(),
            exec_id: exec.into(),
            pid,
            status,
            ..Default::default()
        };
        self.0
            .events
            .send_modify(|events| events.push(event::Kind::Exit(exit)));
    }

    async fn stream(&self, id: &str) -> UnixStream {
        let id = id.parse().unwrap();
        loop {
            let arrived = self.0.arrived.notified();
            if let Some(stream) = self.0.streams.lock().unwrap().remove(&id) {
                return stream;
            }
            arrived.await;
        }
    }
}

#[async_trait]
impl Task for Agent {
    async fn create(
        &self,
        _: &TtrpcContext,
        r: task::CreateTaskRequest,
    ) -> Result<task::CreateTaskResponse> {
        let options = guest::CreateOptions::parse_from_bytes(&r.options.value).unwrap();
        let spec: serde_json::Value = serde_json::from_slice(&options.spec).unwrap();
        assert_eq!(r.rootfs[0].type_, "erofs");
        assert!(r.rootfs[0].options[0].starts_with("offset="));
        assert_eq!(r.rootfs.last().unwrap().type_, "scratch");
        let args: Vec<String> = serde_json::from_value(spec["process"]["args"].clone()).unwrap();
        if args[0] == "no-such-command" {
            return Err(get_rpc_status(
                Code::NOT_FOUND,
                "exec: \"no-such-command\": not found in $PATH",
            ));
        }
        let pid = 100 + self.0.pid.fetch_add(1, Ordering::Relaxed);
        self.add(
            &r.id,
            "",
            Process {
                args,
                stdin: r.stdin,
                stdout: r.stdout,
                pid,
            },
        );
        Ok(task::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn exec(&self, _: &TtrpcContext, r: task::ExecProcessRequest) -> Result<task::Empty> {
        let spec: serde_json::Value = serde_json::from_slice(&r.spec.value).unwrap();
        self.add(
            &r.id,
            &r.exec_id,
            Process {
                args: serde_json::from_value(spec["args"].clone()).unwrap(),
                stdin: r.stdin,
                stdout: r.stdout,
                pid: 0,
            },
        );
        Ok(task::Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, r: task::StartRequest) -> Result<task::StartResponse> {
        let mut process = self.get(&r.id, &r.exec_id)?;
        if process.pid == 0 {
            process.pid = 100 + self.0.pid.fetch_add(1, Ordering::Relaxed);
            self.add(&r.id, &r.exec_id, process.clone());
        }
        let pid = process.pid;
        match process.args[0].as_str() {
            // Reported before the answer to this very request.
            "exit" => self.exited(&r.id, &r.exec_id, pid, process.args[1].parse().unwrap()),
            "sleep" => {}
            "die" => std::process::exit(1),
            "leave" => {
                self.0.leaves.notify_one();
                std::future::pending::<()>().await;
            }
            "panic" => {
                let stopped = b"{\"stopped\":{\"reason\":\"guest panic\"}}\n";
                EVENTS.get().unwrap().write_all(stopped).unwrap();
                std::future::pending::<()>().await;
            }
            "echo" => {
                let mut stdout = self.stream(&process.stdout).await;
                stdout.write_all(process.args[1].as_bytes()).await.unwrap();
                drop(stdout);
                self.exited(&r.id, &r.exec_id, pid, 0);
            }
            "cat" => {
                let mut stdin = self.stream(&process.stdin).await;
                let mut stdout = self.stream(&process.stdout).await;
                let agent = self.clone();
                tokio::spawn(async move {
                    tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
                    drop(stdout);
                    agent.exited(&r.id, &r.exec_id, pid, 0);
                });
            }
            other => panic!("{other}"),
        }
        Ok(task::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, r: task::KillRequest) -> Result<task::Empty> {
        let process = self.get(&r.id, &r.exec_id)?;
        // A container's end is reported before that of its execs, to see that
        // the shim turns them around.
        self.exited(&r.id, &r.exec_id, process.pid, 128 + r.signal);
        let execs: Vec<_> = self.0.processes.lock().unwrap().keys().cloned().collect();
        for (id, exec) in execs {
            if id == r.id && !exec.is_empty() && r.exec_id.is_empty() {
                let pid = self.get(&id, &exec)?.pid;
                self.exited(&id, &exec, pid, 137);
            }
        }
        Ok(task::Empty::new())
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        r: task::DeleteRequest,
    ) -> Result<task::DeleteResponse> {
        self.get(&r.id, &r.exec_id)?;
        self.0.processes.lock().unwrap().remove(&(r.id, r.exec_id));
        Ok(task::DeleteResponse::new())
    }

    async fn stats(&self, _: &TtrpcContext, _: task::StatsRequest) -> Result<task::StatsResponse> {
        Ok(task::StatsResponse {
            stats: Some(Any {
                type_url: "something.else".into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl Guest for Agent {
    async fn configure(
        &self,
        _: &TtrpcContext,
        r: guest::ConfigureRequest,
    ) -> Result<guest::Empty> {
        assert_eq!(r.entropy.len(), 64);
        assert_ne!(r.clock_ns, 0);
        if r.hostname == "refused" {
            return Err(get_rpc_status(Code::INVALID_ARGUMENT, "hostname refused"));
        }
        Ok(guest::Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, _: guest::Empty) -> Result<guest::StatsResponse> {
        Ok(guest::StatsResponse::new())
    }

    async fn next_event(
        &self,
        _: &TtrpcContext,
        r: guest::NextEventRequest,
    ) -> Result<guest::Event> {
        let mut events = self.0.events.subscribe();
        let after = usize::try_from(r.after).unwrap();
        let kind = events
            .wait_for(|events| events.len() > after)
            .await
            .map_err(|_| Error::RemoteClosed)?[after]
            .clone();
        Ok(guest::Event {
            sequence: r.after + 1,
            kind: Some(kind),
            ..Default::default()
        })
    }
}
