//! A connection to systemd: one call at a time, without threads.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::{Kind, Message, Value};
use crate::cgroup::CgroupError;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const DBUS: &str = "org.freedesktop.DBus";

/// How long systemd may take for one answer or one job; its own tools wait for 25 and 90 seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    /// The connection cannot be used.
    #[error("systemd does not answer: {0}")]
    Connection(#[from] io::Error),
    /// systemd has refused.
    #[error("{text} ({name})")]
    Refused {
        /// The name of the error, for example `org.freedesktop.systemd1.NoSuchUnit`.
        name: String,
        /// What it means.
        text: String,
    },
    /// A job did not end well.
    #[error("systemd's job for {unit} ended with {result:?}; see `journalctl -u {unit}`")]
    Job {
        /// The unit.
        unit: String,
        /// `failed`, `canceled`, `timeout`, `dependency` or `skipped`.
        result: String,
    },
}

impl BusError {
    /// Whether it is the error of systemd with this name.
    pub(super) fn is(&self, error: &str) -> bool {
        matches!(self, Self::Refused { name, .. }
            if name.strip_prefix(SYSTEMD).and_then(|rest| rest.strip_prefix('.')) == Some(error))
    }
}

impl From<BusError> for CgroupError {
    fn from(error: BusError) -> Self {
        Self::Systemd(error.to_string())
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Jobs that have ended while something else was waited for: object and result.
    ended: VecDeque<(String, String)>,
}

impl Bus {
    /// To the system's manager, or to that of the caller's user.
    pub(super) fn connect(user: bool) -> Result<Self, CgroupError> {
        let places = places(user, |name| std::env::var_os(name));
        for (path, broker) in &places {
            let Ok(stream) = UnixStream::connect(path) else {
                continue;
            };
            let mut bus = Self::greet(stream).map_err(BusError::from)?;
            if *broker {
                bus.introduce()?;
            }
            return Ok(bus);
        }
        let tried: Vec<_> = places
            .iter()
            .map(|(path, _)| path.display().to_string())
            .collect();
        let manager = if user {
            "the user's manager"
        } else {
            "the system's manager"
        };
        Err(CgroupError::Systemd(format!(
            "systemd is not running as {manager} (nobody answers at {}); use the cgroupfs driver \
             and a path as cgroupsPath",
            tried.join(" or ")
        )))
    }

    /// Proves who the caller is by the socket itself: the credentials that the kernel attaches.
    pub(super) fn greet(stream: UnixStream) -> io::Result<Self> {
        let mut bus = Self {
            stream,
            serial: 0,
            ended: VecDeque::new(),
        };
        let deadline = Instant::now() + PATIENCE;
        // All at once: a message that came in one read with BEGIN would lie there unread.
        bus.stream
            .write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut answer = bus.line(deadline)?;
        if answer.starts_with("DATA") {
            answer = bus.line(deadline)?;
        }
        if !answer.starts_with("OK") {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("it does not take the caller's user id ({answer:?})"),
            ));
        }
        Ok(bus)
    }

    /// What a broker between the caller and systemd wants to know first.
    fn introduce(&mut self) -> Result<(), BusError> {
        self.call(DBUS, "/org/freedesktop/DBus", DBUS, "Hello", vec![])?;
        let rule = format!("type='signal',interface='{MANAGER}',member='JobRemoved'");
        let rule = vec![Value::Str(rule)];
        self.call(DBUS, "/org/freedesktop/DBus", DBUS, "AddMatch", rule)?;
        self.manager("Subscribe", vec![])?;
        Ok(())
    }

    /// Calls a method of the manager.
    pub(super) fn manager(
        &mut self,
        method: &str,
        arguments: Vec<Value>,
    ) -> Result<Vec<Value>, BusError> {
        self.call(SYSTEMD, OBJECT, MANAGER, method, arguments)
    }

    /// A property of the manager.
    fn property(&mut self, name: &str) -> Result<Value, BusError> {
        let arguments = vec![Value::text(MANAGER), Value::text(name)];
        let interface = "org.freedesktop.DBus.Properties";
        let mut body = self.call(SYSTEMD, OBJECT, interface, "Get", arguments)?;
        match body.pop() {
            Some(Value::Variant(value)) => Ok(*value),
            other => Err(unexpected(&format!("{name} is {other:?}")).into()),
        }
    }

    /// Its version, for example 252.
    pub(super) fn version(&mut self) -> Result<u32, BusError> {
        let value = self.property("Version")?;
        // "252.38-1~deb12u1", "v249.11"
        value
            .as_text()
            .and_then(|text| {
                let text = text.trim_start_matches('v');
                let end = text.find(|letter: char| !letter.is_ascii_digit());
                text[..end.unwrap_or(text.len())].parse().ok()
            })
            .ok_or_else(|| unexpected(&format!("its version is {value:?}")).into())
    }

    /// Calls a method that starts a job for a unit, and waits for the end of the job.
    pub(super) fn job(
        &mut self,
        unit: &str,
        method: &str,
        arguments: Vec<Value>,
    ) -> Result<(), BusError> {
        let body = self.manager(method, arguments)?;
        let Some(Value::Path(job)) = body.first() else {
            return Err(unexpected(&format!("{method} gave {body:?}")).into());
        };
        let deadline = Instant::now() + PATIENCE;
        let result = loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| ended == job) {
                break result.clone();
            }
            let message = self.receive(deadline)?;
            self.note(message);
        };
        match result.as_str() {
            "done" => Ok(()),
            _ => Err(BusError::Job {
                unit: unit.to_owned(),
                result,
            }),
        }
    }

    fn call(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &str,
        body: Vec<Value>,
    ) -> Result<Vec<Value>, BusError> {
        self.serial += 1;
        let mut call = Message::new(Kind::Call, self.serial);
        call.destination = Some(destination.to_owned());
        call.path = Some(path.to_owned());
        call.interface = Some(interface.to_owned());
        call.member = Some(member.to_owned());
        call.body = body;
        self.stream.write_all(&call.encode())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(deadline)?;
            match message.kind {
                Kind::Reply if message.reply_to == Some(self.serial) => return Ok(message.body),
                Kind::Error if message.reply_to == Some(self.serial) => {
                    let text = message.body.first().and_then(Value::as_text);
                    return Err(BusError::Refused {
                        text: text.unwrap_or(member).to_owned(),
                        name: message.error.unwrap_or_default(),
                    });
                }
                _ => self.note(message),
            }
        }
    }

    /// Keeps the news of a job's end: it may come before the answer that names the job.
    fn note(&mut self, message: Message) {
        const MOST: usize = 1000;
        if message.kind == Kind::Signal
            && message.member.as_deref() == Some("JobRemoved")
            && let [_, Value::Path(job), _, Value::Str(result)] = &message.body[..]
        {
            self.ended.push_back((job.clone(), result.clone()));
            if self.ended.len() > MOST {
                self.ended.pop_front();
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<Message> {
        let mut start = [0; 16];
        self.fill(&mut start, deadline)?;
        let malformed = |error: super::wire::Malformed| unexpected(&error.to_string());
        let mut bytes = vec![0; Message::length(&start).map_err(malformed)?];
        bytes[..16].copy_from_slice(&start);
        self.fill(&mut bytes[16..], deadline)?;
        Message::decode(&bytes).map_err(malformed)
    }

    fn line(&mut self, deadline: Instant) -> io::Result<String> {
        const LONGEST: usize = 4096;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.fill(&mut byte, deadline)?;
            line.push(byte[0]);
            if line.len() > LONGEST {
                return Err(unexpected("a line without end"));
            }
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Reads as much as there is room for.
    fn fill(&mut self, mut room: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !room.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let stream = self.stream.as_fd();
            let mut fds = [PollFd::from_borrowed_fd(stream, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match self.stream.read(room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => room = &mut room[length..],
            }
        }
        Ok(())
    }
}

fn unexpected(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Where a manager may be reached, and whether through a broker: the bus, which is the documented
/// way, then the manager's own socket, which is there without a bus too.
fn places(
    user: bool,
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Vec<(PathBuf, bool)> {
    let mut places = Vec::new();
    let address = if user {
        "DBUS_SESSION_BUS_ADDRESS"
    } else {
        "DBUS_SYSTEM_BUS_ADDRESS"
    };
    let address = variable(address);
    // Only the form that systemd itself sets; others name busses without systemd.
    if let Some(path) = address
        .as_ref()
        .and_then(|address| address.to_str()?.strip_prefix("unix:path="))
    {
        let path = path.split([',', ';']).next().unwrap_or(path);
        places.push((PathBuf::from(path), true));
    }
    if !user {
        places.push((PathBuf::from("/run/dbus/system_bus_socket"), true));
        places.push((PathBuf::from("/run/systemd/private"), false));
    } else {
        let run = match variable("XDG_RUNTIME_DIR") {
            Some(run) => PathBuf::from(run),
            None => Path::new("/run/user").join(rustix::process::getuid().as_raw().to_string()),
        };
        places.push((run.join("bus"), true));
        places.push((run.join("systemd/private"), false));
    }
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &[u8] = b"DATA\r\nOK 0\r\n";

    /// A systemd that has said all this already: the client's order of reading is known.
    fn scripted(greeting: &[u8], messages: &[Message]) -> (Bus, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(greeting).unwrap();
        for message in messages {
            theirs.write_all(&message.encode()).unwrap();
        }
        (Bus::greet(ours).unwrap(), theirs)
    }

    fn reply(to: u32, body: Vec<Value>) -> Message {
        let mut message = Message::new(Kind::Reply, 100 + to);
        message.reply_to = Some(to);
        message.body = body;
        message
    }

    fn removed(job: &str, result: &str) -> Message {
        let mut message = Message::new(Kind::Signal, 50);
        message.member = Some("JobRemoved".to_owned());
        message.body = vec![
            Value::U32(1),
            Value::Path(job.to_owned()),
            Value::text("x.scope"),
            Value::text(result),
        ];
        message
    }

    /// What the client has sent after its greeting.
    fn sent(theirs: &mut UnixStream, greeting: &[u8]) -> Message {
        let mut bytes = vec![0; 64 * 1024];
        let length = theirs.read(&mut bytes).unwrap();
        let rest = bytes[..length].strip_prefix(greeting).unwrap();
        Message::decode(rest).unwrap()
    }

    #[test]
    fn a_call_is_answered_past_other_messages() {
        let messages = [
            removed("/other", "done"),
            reply(9, vec![Value::U32(9)]),
            reply(1, vec![Value::U32(1)]),
        ];
        let (mut bus, mut theirs) = scripted(GREETING, &messages);
        let body = bus.manager("GetUnit", vec![Value::text("a")]).unwrap();
        assert_eq!(body, [Value::U32(1)]);
        let call = sent(&mut theirs, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
        assert_eq!(call.member.as_deref(), Some("GetUnit"));
        assert_eq!(call.interface.as_deref(), Some(MANAGER));
        assert_eq!(call.body, [Value::text("a")]);
    }

    #[test]
    fn a_job_may_end_before_it_is_named() {
        let messages = [
            removed("/job/1", "done"),
            reply(1, vec![Value::Path("/job/1".to_owned())]),
        ];
        let (mut bus, _theirs) = scripted(GREETING, &messages);
        bus.job("x.scope", "StartTransientUnit", vec![]).unwrap();
    }

    #[test]
    fn a_job_that_fails_is_an_error() {
        let messages = [
            reply(1, vec![Value::Path("/job/1".to_owned())]),
            removed("/job/2", "done"),
            removed("/job/1", "failed"),
        ];
        let (mut bus, _theirs) = scripted(GREETING, &messages);
        let error = bus
            .job("x.scope", "StartTransientUnit", vec![])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "systemd's job for x.scope ended with \"failed\"; see `journalctl -u x.scope`"
        );
    }

    #[test]
    fn a_refusal_has_its_name() {
        let mut refusal = Message::new(Kind::Error, 5);
        refusal.reply_to = Some(1);
        refusal.error = Some("org.freedesktop.systemd1.NoSuchUnit".to_owned());
        refusal.body = vec![Value::text("Unit x.scope not loaded.")];
        let (mut bus, _theirs) = scripted(GREETING, &[refusal]);
        let error = bus.manager("StopUnit", vec![]).unwrap_err();
        assert!(error.is("NoSuchUnit") && !error.is("UnitExists"));
        assert_eq!(
            error.to_string(),
            "Unit x.scope not loaded. (org.freedesktop.systemd1.NoSuchUnit)"
        );
    }

    #[test]
    fn the_version_is_its_first_number() {
        for (text, version) in [
            ("252.38-1~deb12u1", Some(252)),
            ("v249", Some(249)),
            ("x", None),
        ] {
            let value = Value::Variant(Box::new(Value::text(text)));
            let (mut bus, _theirs) = scripted(GREETING, &[reply(1, vec![value])]);
            assert_eq!(bus.version().ok(), version, "{text}");
        }
    }

    #[test]
    fn a_systemd_that_goes_away_is_an_error() {
        let (mut bus, theirs) = scripted(GREETING, &[]);
        drop(theirs);
        assert!(bus.manager("Subscribe", vec![]).is_err());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
        assert!(Bus::greet(ours).is_err());
    }

    #[test]
    fn the_bus_comes_before_the_own_socket() {
        let none = |_: &str| None;
        let paths = |places: Vec<(PathBuf, bool)>| {
            let paths: Vec<_> = places.into_iter().map(|(path, _)| path).collect();
            paths
        };
        assert_eq!(
            paths(places(false, none)),
            [
                Path::new("/run/dbus/system_bus_socket"),
                Path::new("/run/systemd/private")
            ]
        );
        let session = |name: &str| match name {
            "DBUS_SESSION_BUS_ADDRESS" => Some("unix:path=/r/bus,guid=1".into()),
            "XDG_RUNTIME_DIR" => Some("/r".into()),
            _ => None,
        };
        assert_eq!(
            paths(places(true, session)),
            [Path::new("/r/bus"), Path::new("/r/systemd/private")]
        );
    }
}
