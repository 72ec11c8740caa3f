//! Notifications: a filter can leave the answer to a system call to an agent of the host, which is
//! given the filter's descriptor over a socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{ContainerProcessState, LinuxSeccomp, LinuxSeccompAction, State};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::plan::PlanError;
use crate::process::message::{Channel, Message, Stage, Step};

/// The agent that answers.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    /// Its socket; absolute, on the host.
    path: PathBuf,
    /// What the spec wants it to be told.
    metadata: Option<String>,
}

impl Listener {
    /// The one that a profile names; `None` when no call is left to it.
    pub(crate) fn new(profile: &LinuxSeccomp) -> Result<Option<Self>, PlanError> {
        let notify = LinuxSeccompAction::ScmpActNotify;
        if profile.default_action() == notify {
            return Err(PlanError::new(
                "linux.seccomp.defaultAction",
                "SCMP_ACT_NOTIFY is for single system calls; use another action",
            ));
        }
        let mut asked = false;
        for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
            if rule.action() != notify {
                continue;
            }
            asked = true;
            // The process hands the filter's descriptor over by writing.
            if rule.names().iter().any(|name| name == "write") {
                return Err(PlanError::new(
                    format!("linux.seccomp.syscalls[{index}]"),
                    "SCMP_ACT_NOTIFY cannot be used for write",
                ));
            }
        }
        if !asked {
            return Ok(None);
        }
        let path = profile.listener_path().clone().unwrap_or_default();
        if !path.is_absolute() {
            return Err(PlanError::new(
                "linux.seccomp.listenerPath",
                "is missing or not absolute; SCMP_ACT_NOTIFY needs the socket of an agent",
            ));
        }
        Ok(Some(Self {
            path,
            metadata: profile.listener_metadata().clone(),
        }))
    }

    /// Gives the agent the filter of a process, which waits meanwhile: `number` is its descriptor
    /// there, `state` the container's.
    pub(crate) fn hand_over(
        &self,
        number: i32,
        process: (u32, BorrowedFd<'_>),
        state: &State,
        channel: &Channel,
    ) -> Step<()> {
        let (pid, pidfd) = process;
        let filter = pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())
            .stage(|| "take the seccomp filter's descriptor")?;
        self.tell(&filter, pid, state)
            .stage(|| format!("hand the seccomp filter to {}", self.path.display()))?;
        channel
            .send(&Message::ListenerTaken, None)
            .stage(|| "talk to the container's process")
    }

    fn tell(&self, filter: &OwnedFd, pid: u32, state: &State) -> io::Result<()> {
        let mut process = ContainerProcessState::default();
        process
            .set_version(state.version().clone())
            .set_fds(vec![oci_spec::runtime::SECCOMP_FD_NAME.to_owned()])
            .set_pid(pid as i32)
            .set_metadata(self.metadata.clone())
            .set_state(state.clone());
        let json = serde_json::to_vec(&process)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        let fds = [filter.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(
            &socket,
            &[IoSlice::new(&json)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        if sent == json.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}
