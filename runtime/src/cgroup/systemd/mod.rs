//! Cgroups that systemd makes: transient scopes, which it is asked for over D-Bus.
//!
//! A scope cannot be without a process. A placeholder begins it, so that the cgroup is there and
//! has its limits before the container's first process is made, and ends when that is inside.

mod annotation;
mod bus;
mod name;
mod properties;
mod wire;

pub(crate) use annotation::annotated_properties;
pub(crate) use name::ScopeName;
pub(crate) use wire::Value;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::pause;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::write::Known;
use super::{CgroupDriver, CgroupError, Version};
use crate::process::end;
use crate::sys::{self, NewProcess};
use bus::Bus;

/// A property of a unit.
pub(crate) type Property = (String, Value);

impl CgroupDriver {
    /// Whether the manager is that of the caller's user; `None` without systemd.
    pub(crate) fn user_manager(self) -> Option<bool> {
        match self {
            Self::Cgroupfs => None,
            Self::Systemd => Some(false),
            Self::SystemdUser => Some(true),
        }
    }
}

/// The scope of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    name: ScopeName,
    user: bool,
}

impl Scope {
    /// A scope of the system's manager, or of that of the caller's user.
    pub(crate) fn new(name: ScopeName, user: bool) -> Self {
        Self { name, user }
    }

    /// Whether the manager is that of the caller's user.
    pub(super) fn is_users(&self) -> bool {
        self.user
    }

    /// Has it made, with a placeholder inside.
    pub(super) fn start(
        &self,
        version: Version,
        wanted: Vec<Property>,
    ) -> Result<Placeholder, CgroupError> {
        let mut bus = Bus::connect(self.user)?;
        let placeholder = Placeholder::new()?;
        let unit = &self.name.scope;
        let mut all = properties::of_scope(&self.name.slice, unit, placeholder.pid, version);
        // Those of the spec come last and so win.
        all.extend(wanted);
        let start = |bus: &mut Bus| {
            let arguments = vec![
                Value::text(unit),
                Value::text("replace"),
                structures(&all),
                Value::Array("(sa(sv))".to_owned(), Vec::new()),
            ];
            bus.job(unit, "StartTransientUnit", arguments)
        };
        let mut started = start(&mut bus);
        if started.as_ref().is_err_and(|error| error.is("UnitExists")) {
            // What is left of one that failed is in the way until systemd is told to forget it.
            let _ = bus.manager("ResetFailedUnit", vec![Value::text(unit)]);
            started = start(&mut bus);
        }
        match started {
            Ok(()) => Ok(placeholder),
            Err(error) if error.is("UnitExists") => Err(CgroupError::Systemd(format!(
                "systemd has a unit {unit} already; give the container another cgroupsPath"
            ))),
            Err(error) => {
                let _ = bus.manager("ResetFailedUnit", vec![Value::text(unit)]);
                Err(CgroupError::Systemd(format!("start {unit}: {error}")))
            }
        }
    }

    /// Tells systemd the limits that it has properties for: what it does not know, it undoes when
    /// it next writes the files itself. It counts processor time in percent, and a file that has
    /// the exact value keeps it until then. `current` reads a file of the processor controller.
    pub(super) fn set_resources(
        &self,
        version: Version,
        known: &[Known<'_>],
        current: impl Fn(&str) -> Option<String>,
    ) -> Result<(), CgroupError> {
        let files = properties::files(known);
        let mut properties = properties::of_files(version, &files, current)?;
        if properties.is_empty() {
            return Ok(());
        }
        let mut bus = Bus::connect(self.user)?;
        if properties::asks_for_idle(&properties) && bus.version()? < properties::IDLE_SINCE {
            properties.retain(|(name, _)| name != properties::WEIGHT);
        }
        self.set(&mut bus, &properties)
    }

    /// Tells systemd the device rules of version 1: `None` allows all.
    pub(super) fn set_devices(
        &self,
        allowed: Option<&[(String, String)]>,
    ) -> Result<(), CgroupError> {
        let properties = properties::of_devices(allowed);
        self.set(&mut Bus::connect(self.user)?, &properties)
    }

    fn set(&self, bus: &mut Bus, properties: &[Property]) -> Result<(), CgroupError> {
        let unit = &self.name.scope;
        let arguments = vec![
            Value::text(unit),
            // Until the unit ends.
            Value::Bool(true),
            structures(properties),
        ];
        bus.manager("SetUnitProperties", arguments)
            .map_err(|error| CgroupError::Systemd(format!("limit {unit}: {error}")))?;
        Ok(())
    }

    /// Has a process moved into it.
    pub(super) fn attach(&self, pid: u32) -> Result<(), CgroupError> {
        let unit = &self.name.scope;
        let arguments = vec![
            Value::text(unit),
            Value::text("/"),
            Value::Array("u".to_owned(), vec![Value::U32(pid)]),
        ];
        Bus::connect(self.user)?
            .manager("AttachProcessesToUnit", arguments)
            .map_err(|error| CgroupError::Systemd(format!("add a process to {unit}: {error}")))?;
        Ok(())
    }

    /// Has it removed. It may be gone already: it ends with its last process.
    pub(super) fn stop(&self) -> Result<(), CgroupError> {
        let mut bus = Bus::connect(self.user)?;
        let unit = &self.name.scope;
        let arguments = vec![Value::text(unit), Value::text("replace")];
        let stopped = bus.job(unit, "StopUnit", arguments);
        // A failed one stays listed otherwise.
        let _ = bus.manager("ResetFailedUnit", vec![Value::text(unit)]);
        match stopped {
            Err(error) if !error.is("NoSuchUnit") => {
                Err(CgroupError::Systemd(format!("stop {unit}: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// Properties as D-Bus takes them.
fn structures(properties: &[Property]) -> Value {
    let values = properties
        .iter()
        .map(|(name, value)| {
            let value = Value::Variant(Box::new(value.clone()));
            Value::Struct(vec![Value::text(name), value])
        })
        .collect();
    Value::Array("(sv)".to_owned(), values)
}

/// A process that does nothing. It ends with this.
#[derive(Debug)]
pub(super) struct Placeholder {
    pid: u32,
    process: OwnedFd,
}

impl Placeholder {
    fn new() -> Result<Self, CgroupError> {
        let (pid, process) = sys::spawn(NewProcess::default(), || {
            // Killed when this is dropped, or with the caller.
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            loop {
                pause();
            }
        })
        .map_err(|error| CgroupError::Systemd(format!("make a process for the scope: {error}")))?;
        Ok(Self { pid, process })
    }

    /// Its id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Where systemd has put it, relative to the roots of the hierarchies.
    pub(super) fn cgroup(&self, version: Version) -> Result<PathBuf, CgroupError> {
        let path = PathBuf::from(format!("/proc/{}/cgroup", self.pid));
        let table = std::fs::read_to_string(&path).map_err(|source| CgroupError::File {
            action: "read".to_owned(),
            path,
            source,
        })?;
        let hierarchy = match version {
            Version::V1 => ":name=systemd:/",
            Version::V2 => "0::/",
        };
        table
            .lines()
            .find_map(|line| Some(line.split_once(hierarchy)?.1))
            .map(PathBuf::from)
            .ok_or_else(|| {
                CgroupError::Systemd("systemd has put the scope into no cgroup".to_owned())
            })
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        end(self.process.as_fd());
    }
}
