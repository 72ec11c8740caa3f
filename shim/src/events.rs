//! What containerd is told unasked: one queue, so that it hears everything in
//! the order in which it happened.

use std::future::Future;
use std::time::{Duration, SystemTime};

use containerd_shim::event::Event;
use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::{self, context};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;

use crate::telemetry;

/// How long containerd may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// Rests between attempts, the last one again and again: events wait for a containerd
/// that is away. One that is there and refuses an event is asked this often.
const RESTS: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];

/// Most events that wait. Those that come then are lost: a containerd that comes back
/// asks for the state anyway.
const WAITING: usize = 1024;

/// Where events go: containerd, or a test's list.
pub trait Forward: Send + 'static {
    /// Delivers one event; called again with the same one after an error.
    fn forward(
        &mut self,
        request: &ForwardRequest,
    ) -> impl Future<Output = Result<(), ttrpc::Error>> + Send;
}

/// containerd's event service.
pub struct Containerd {
    address: String,
    client: Option<EventsClient>,
}

impl Containerd {
    /// The service at a socket's path. It is not connected before it is needed.
    pub fn new(socket: &str) -> Self {
        let scheme = "unix://";
        Self {
            address: if socket.starts_with(scheme) {
                socket.to_owned()
            } else {
                format!("{scheme}{socket}")
            },
            client: None,
        }
    }
}

impl Forward for Containerd {
    async fn forward(&mut self, request: &ForwardRequest) -> Result<(), ttrpc::Error> {
        let client = match self.client.take() {
            Some(client) => client,
            None => EventsClient::new(Client::connect(&self.address).await?),
        };
        let answer = client
            .forward(context::with_duration(ANSWER_TIME), request)
            .await;
        match answer {
            Ok(_) => {
                self.client = Some(client);
                Ok(())
            }
            // An answer, though not a good one: the connection is fine.
            Err(error @ ttrpc::Error::RpcStatus(_)) => {
                self.client = Some(client);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }
}

/// The queue's end where events are put in.
#[derive(Clone, Debug)]
pub struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

/// What is in the queue.
#[derive(Debug)]
enum Item {
    Event(Box<ForwardRequest>),
    /// Answered when everything before it has been delivered or given up.
    Flush(oneshot::Sender<()>),
}

impl Publisher {
    /// A queue of its own for `namespace`, emptied by a task as long as there are
    /// publishers.
    pub fn new(namespace: &str, to: impl Forward) -> Self {
        let (queue, items) = mpsc::channel(WAITING);
        tokio::spawn(deliver(items, to));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Waits until everything queued so far is delivered or given up.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        let _ = self.queue.send(Item::Flush(done)).await;
        // An error means that the task is gone, and the queue with it.
        let _ = flushed.await;
    }

    /// Queues an event. Never waits.
    pub fn publish<E: Event + Message>(&self, event: &E) {
        let topic = event.topic();
        let any = Any {
            // containerd's registry of types knows them without a prefix. Not from
            // the descriptor: that would build the description of every message
            // in memory.
            type_url: format!("containerd.events.{}", E::NAME),
            value: match event.write_to_bytes() {
                Ok(value) => value,
                Err(error) => {
                    tracing::error!(topic, %error, "cannot encode an event");
                    return;
                }
            },
            ..Default::default()
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic,
            event: MessageField::some(any),
            ..Default::default()
        };
        let item = Item::Event(Box::new(ForwardRequest {
            envelope: MessageField::some(envelope),
            ..Default::default()
        }));
        // The receiver goes only with the whole shim.
        if let Err(TrySendError::Full(Item::Event(lost))) = self.queue.try_send(item) {
            let topic = &lost.envelope.topic;
            tracing::error!(
                topic,
                "containerd is away and {WAITING} events wait for it: lost"
            );
        }
    }
}

async fn deliver(mut items: mpsc::Receiver<Item>, mut to: impl Forward) {
    while let Some(item) = items.recv().await {
        let request = match item {
            Item::Event(request) => request,
            Item::Flush(done) => {
                // Whoever waited may have given up.
                let _ = done.send(());
                continue;
            }
        };
        let mut rests = RESTS.iter();
        while let Err(error) = to.forward(&request).await {
            let topic = &request.envelope.topic;
            let rest = match (rests.next(), &error) {
                (Some(rest), _) => {
                    telemetry::event_retry();
                    tracing::warn!(topic, %error, "containerd did not take an event: trying again");
                    rest
                }
                (None, ttrpc::Error::RpcStatus(_)) => {
                    tracing::error!(topic, %error, "containerd refuses an event: giving it up");
                    break;
                }
                (None, _) => &RESTS[RESTS.len() - 1],
            };
            tokio::time::sleep(*rest).await;
        }
    }
}

/// A point in time as protobuf has it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use containerd_shim_protos::events::task::{TaskExit, TaskStart};
    use containerd_shim_protos::protobuf::Message;

    use super::*;

    #[derive(Clone, Default)]
    struct List {
        taken: Arc<Mutex<Vec<ForwardRequest>>>,
        failures: usize,
        /// Whether they are containerd's answers.
        refusals: bool,
    }

    impl Forward for List {
        async fn forward(&mut self, request: &ForwardRequest) -> Result<(), ttrpc::Error> {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(if self.refusals {
                    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, "no"))
                } else {
                    ttrpc::Error::RemoteClosed
                });
            }
            self.taken.lock().unwrap().push(request.clone());
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_arrive_in_order_though_containerd_restarts() {
        let list = List {
            failures: 1000,
            ..Default::default()
        };
        let publisher = Publisher::new("k8s.io", list.clone());
        let start = TaskStart {
            container_id: "c".into(),
            pid: 7,
            ..Default::default()
        };
        publisher.publish(&start);
        publisher.publish(&TaskExit {
            container_id: "c".into(),
            ..Default::default()
        });
        publisher.flush().await;

        let taken = list.taken.lock().unwrap();
        let topics: Vec<_> = taken
            .iter()
            .map(|request| request.envelope.topic.as_str())
            .collect();
        assert_eq!(topics, ["/tasks/start", "/tasks/exit"]);
        let envelope = &taken[0].envelope;
        assert_eq!(envelope.namespace, "k8s.io");
        assert_eq!(envelope.event.type_url, "containerd.events.TaskStart");
        assert_eq!(
            TaskStart::parse_from_bytes(&envelope.event.value).unwrap(),
            start
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_containerd_that_stays_away_costs_no_more_than_so_many_events() {
        let list = List {
            failures: 10,
            ..Default::default()
        };
        let publisher = Publisher::new("n", list.clone());
        for pid in 0..2 * WAITING {
            publisher.publish(&TaskStart {
                pid: pid as u32,
                ..Default::default()
            });
        }
        publisher.flush().await;
        let taken = list.taken.lock().unwrap();
        assert_eq!(taken.len(), WAITING);
        let first = TaskStart::parse_from_bytes(&taken[0].envelope.event.value).unwrap();
        assert_eq!(first.pid, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_never_taken_does_not_block_the_next() {
        let list = List {
            failures: RESTS.len() + 1,
            refusals: true,
            ..Default::default()
        };
        let publisher = Publisher::new("n", list.clone());
        publisher.publish(&TaskStart::default());
        publisher.publish(&TaskExit::default());
        publisher.flush().await;
        let taken = list.taken.lock().unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].envelope.topic, "/tasks/exit");
    }
}
