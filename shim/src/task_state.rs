//! The life of anything that containerd calls a process: a sandbox, the first
//! process of a container, an exec.

use std::time::SystemTime;

use containerd_shim_protos::api::Status;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + the signal's number.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

impl Exit {
    /// An end just now.
    pub fn now(status: u32) -> Self {
        Self {
            status,
            at: SystemTime::now(),
        }
    }
}

/// Where a process is in its life. Each state holds what is known in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// The agent was asked for it and has not answered. An exit that comes first
    /// is held, because containerd must hear of the creation before it.
    Creating {
        /// The exit that came first.
        early: Option<Exit>,
    },
    /// Exists, but does not run yet. An exec has no pid until it starts.
    Created {
        /// In the guest; 0: none yet.
        pid: u32,
    },
    /// The start was asked for and is not answered. An exit that comes first is
    /// held, because containerd must hear of the start before it.
    Starting {
        /// As in `Created`.
        pid: u32,
        /// The exit that came first.
        early: Option<Exit>,
    },
    /// Runs.
    Running {
        /// In the guest.
        pid: u32,
    },
    /// Frozen.
    Paused {
        /// In the guest.
        pid: u32,
    },
    /// Ended.
    Stopped {
        /// What it was.
        pid: u32,
        /// How it ended.
        exit: Exit,
    },
}

/// A step that is not possible from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {step}: it is {from}")]
pub struct TransitionError {
    /// What was asked for.
    pub step: &'static str,
    /// The state's name.
    pub from: &'static str,
}

/// What an exit means to its reporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exited {
    /// The process is stopped now: tell containerd.
    Now,
    /// Held until the creation or the start is answered.
    Held,
    /// It had stopped before.
    Before,
}

impl TaskState {
    /// It is made. Returns the exit that came first, if one did: publish the
    /// creation, then report it with [`TaskState::exited`].
    ///
    /// # Errors
    /// Unless it is being created.
    pub fn created(&mut self, pid: u32) -> Result<Option<Exit>, TransitionError> {
        match *self {
            Self::Creating { early } => {
                *self = Self::Created { pid };
                Ok(early)
            }
            _ => Err(self.cannot("finish creating")),
        }
    }

    /// Asks for the start.
    ///
    /// # Errors
    /// Unless it is created.
    pub fn start(&mut self) -> Result<(), TransitionError> {
        match *self {
            Self::Created { pid } => {
                *self = Self::Starting { pid, early: None };
                Ok(())
            }
            _ => Err(self.cannot("start")),
        }
    }

    /// The start is done. Returns the exit that came first, if one did: publish
    /// the start, then report it with [`TaskState::exited`].
    ///
    /// # Errors
    /// Unless it is starting.
    pub fn started(&mut self, pid: u32) -> Result<Option<Exit>, TransitionError> {
        match *self {
            Self::Starting { early, .. } => {
                *self = Self::Running { pid };
                Ok(early)
            }
            _ => Err(self.cannot("finish starting")),
        }
    }

    /// The start failed: back to created, unless an exit came meanwhile.
    ///
    /// # Errors
    /// Unless it is starting.
    pub fn start_failed(&mut self) -> Result<Option<Exit>, TransitionError> {
        match *self {
            Self::Starting { pid, early } => {
                *self = Self::Created { pid };
                Ok(early)
            }
            _ => Err(self.cannot("fail to start")),
        }
    }

    /// Freezes it.
    ///
    /// # Errors
    /// Unless it runs.
    pub fn pause(&mut self) -> Result<(), TransitionError> {
        match *self {
            Self::Running { pid } => {
                *self = Self::Paused { pid };
                Ok(())
            }
            _ => Err(self.cannot("pause")),
        }
    }

    /// Thaws it.
    ///
    /// # Errors
    /// Unless it is paused.
    pub fn resume(&mut self) -> Result<(), TransitionError> {
        match *self {
            Self::Paused { pid } => {
                *self = Self::Running { pid };
                Ok(())
            }
            _ => Err(self.cannot("resume")),
        }
    }

    /// Gives it another pid.
    ///
    /// # Errors
    /// Unless it is paused.
    pub fn moved(&mut self, pid: u32) -> Result<(), TransitionError> {
        match self {
            Self::Paused { pid: old } => {
                *old = pid;
                Ok(())
            }
            _ => Err(self.cannot("become another process")),
        }
    }

    /// It ended.
    pub fn exited(&mut self, exit: Exit) -> Exited {
        match self {
            Self::Creating { early } | Self::Starting { early, .. } => {
                early.get_or_insert(exit);
                Exited::Held
            }
            Self::Created { pid } | Self::Running { pid } | Self::Paused { pid } => {
                *self = Self::Stopped { pid: *pid, exit };
                Exited::Now
            }
            Self::Stopped { .. } => Exited::Before,
        }
    }

    /// Whether it may be removed.
    ///
    /// # Errors
    /// While it runs.
    pub fn deletable(&self) -> Result<(), TransitionError> {
        match self {
            Self::Created { .. } | Self::Stopped { .. } => Ok(()),
            _ => Err(self.cannot("delete")),
        }
    }

    /// Its pid; 0: none yet.
    pub fn pid(&self) -> u32 {
        match *self {
            Self::Creating { .. } => 0,
            Self::Created { pid }
            | Self::Starting { pid, .. }
            | Self::Running { pid }
            | Self::Paused { pid }
            | Self::Stopped { pid, .. } => pid,
        }
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        match self {
            Self::Stopped { exit, .. } => Some(*exit),
            _ => None,
        }
    }

    /// containerd's name for the state.
    pub fn status(&self) -> Status {
        match self {
            Self::Creating { .. } | Self::Created { .. } | Self::Starting { .. } => Status::CREATED,
            Self::Running { .. } => Status::RUNNING,
            Self::Paused { .. } => Status::PAUSED,
            Self::Stopped { .. } => Status::STOPPED,
        }
    }

    fn cannot(&self, step: &'static str) -> TransitionError {
        let from = match self {
            Self::Creating { .. } => "being created",
            Self::Created { .. } => "created",
            Self::Starting { .. } => "starting",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Stopped { .. } => "stopped",
        };
        TransitionError { step, from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_before_the_starts_answer_is_held() {
        let exit = Exit::now(3);
        let mut state = TaskState::Created { pid: 0 };
        state.start().unwrap();
        assert_eq!(state.exited(exit), Exited::Held);
        assert_eq!(state.exit(), None);
        let early = state.started(7).unwrap();
        assert_eq!(early, Some(exit));
        assert_eq!(state.exited(exit), Exited::Now);
        assert_eq!(state, TaskState::Stopped { pid: 7, exit });
    }

    #[test]
    fn an_exit_before_the_creations_answer_is_held() {
        let exit = Exit::now(137);
        let mut state = TaskState::Creating { early: None };
        assert!(state.start().is_err());
        assert!(state.deletable().is_err());
        assert_eq!(state.exited(exit), Exited::Held);
        assert_eq!(state.created(7).unwrap(), Some(exit));
        assert_eq!(state.pid(), 7);
        assert!(state.created(7).is_err());
    }

    #[test]
    fn only_what_is_paused_may_become_another_process() {
        let mut state = TaskState::Running { pid: 7 };
        assert!(state.moved(8).is_err());
        state.pause().unwrap();
        state.moved(8).unwrap();
        state.resume().unwrap();
        assert_eq!(state, TaskState::Running { pid: 8 });
    }

    #[test]
    fn the_first_exit_counts() {
        let mut state = TaskState::Running { pid: 7 };
        assert_eq!(state.exited(Exit::now(1)), Exited::Now);
        assert_eq!(state.exited(Exit::now(2)), Exited::Before);
        assert_eq!(state.exit().unwrap().status, 1);
    }

    #[test]
    fn a_failed_start_may_be_tried_again() {
        let mut state = TaskState::Created { pid: 7 };
        state.start().unwrap();
        assert_eq!(state.start_failed().unwrap(), None);
        state.start().unwrap();
    }

    #[test]
    fn impossible_steps_name_state_and_step() {
        let mut state = TaskState::Running { pid: 7 };
        assert_eq!(
            state.start().unwrap_err().to_string(),
            "cannot start: it is running"
        );
        assert_eq!(
            state.resume().unwrap_err().to_string(),
            "cannot resume: it is running"
        );
        assert!(state.deletable().is_err());
        state.pause().unwrap();
        assert!(state.deletable().is_err());
        assert!(state.pause().is_err());
        state.resume().unwrap();
        assert_eq!(state.exited(Exit::now(0)), Exited::Now);
        state.deletable().unwrap();
        assert!(state.pause().is_err());
        assert!(state.started(1).is_err());
        assert!(state.start_failed().is_err());
    }

    #[test]
    fn a_created_container_can_be_killed_and_deleted() {
        let mut state = TaskState::Created { pid: 7 };
        state.deletable().unwrap();
        assert_eq!(state.exited(Exit::now(137)), Exited::Now);
        assert_eq!(state.status(), Status::STOPPED);
    }
}
