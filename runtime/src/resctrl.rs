//! Shares of caches and of memory bandwidth (`linux.intelRdt`), by the kernel's resctrl file system.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, Spec};

use crate::plan::PlanError;

/// The group that a container's processes are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    /// The root of the file system.
    root: PathBuf,
    /// The group's directory: the root itself for the group that everything is in by default.
    path: PathBuf,
    /// Whether it is the container's alone.
    own: bool,
    /// What to write to its `schemata`; empty leaves it.
    schemata: String,
    /// The directory of the container's own monitoring group, if it is to have one.
    monitor: Option<PathBuf>,
}

/// What was made for a container that is being made. Dropping it takes that back.
#[derive(Debug, Default)]
pub(crate) struct Entered(Vec<PathBuf>);

impl Entered {
    /// Leaves everything.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // The container is not made for another reason, which the caller learns.
            let _ = std::fs::remove_dir(path);
        }
    }
}

impl Group {
    /// The group that a spec asks for, for the container `id`; `None` when it asks for none.
    pub(crate) fn new(spec: &Spec, id: &str) -> Result<Option<Self>, PlanError> {
        let linux = spec.linux().as_ref();
        let Some(rdt) = linux.and_then(|linux| linux.intel_rdt().as_ref()) else {
            return Ok(None);
        };
        let root = mount_point().ok_or_else(|| {
            PlanError::new(
                "linux.intelRdt",
                "the resctrl file system is not mounted on this host; mount it on \
                 /sys/fs/resctrl or leave intelRdt out",
            )
        })?;
        Self::in_root(rdt, id, root).map(Some)
    }

    fn in_root(rdt: &LinuxIntelRdt, id: &str, root: PathBuf) -> Result<Self, PlanError> {
        let class = rdt.clos_id().as_deref().unwrap_or("");
        let path = match class {
            "" => root.join(id),
            "/" => root.clone(),
            name if name == "." || name == ".." || name.contains('/') => {
                return Err(PlanError::new(
                    "linux.intelRdt.closID",
                    format!("{name:?} is not the name of a group"),
                ));
            }
            name => root.join(name),
        };
        let lines = [rdt.l3_cache_schema(), rdt.mem_bw_schema()]
            .into_iter()
            .flatten()
            .chain(rdt.schemata().iter().flatten());
        let schemata: String = lines
            .filter(|line| !line.is_empty())
            .map(|line| format!("{line}\n"))
            .collect();
        if !class.is_empty() && schemata.is_empty() && !path.is_dir() {
            return Err(PlanError::new(
                "linux.intelRdt.closID",
                format!(
                    "there is no group {}; make it, or say what its schemata are",
                    path.display()
                ),
            ));
        }
        // What version 1.2 of the specification calls the two kinds of it.
        #[allow(deprecated)]
        let kinds = [rdt.enable_cmt(), rdt.enable_mbm(), rdt.enable_monitoring()];
        let monitored = kinds.into_iter().any(|kind| *kind == Some(true));
        Ok(Self {
            monitor: monitored.then(|| path.join("mon_groups").join(id)),
            root,
            path,
            own: class.is_empty(),
            schemata,
        })
    }

    /// Makes the group, with its shares, and moves a process into it.
    pub(crate) fn enter(&self, pid: u32) -> io::Result<Entered> {
        let mut entered = Entered::default();
        for path in [Some(&self.path), self.monitor.as_ref()]
            .into_iter()
            .flatten()
        {
            match std::fs::create_dir(path) {
                Ok(()) => entered.0.push(path.clone()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.explain(error)),
            }
        }
        if !self.schemata.is_empty() {
            let file = self.path.join("schemata");
            std::fs::write(file, &self.schemata).map_err(|error| self.explain(error))?;
        }
        self.add(pid)?;
        Ok(entered)
    }

    /// Moves a process into the group.
    pub(crate) fn add(&self, pid: u32) -> io::Result<()> {
        for path in [Some(&self.path), self.monitor.as_ref()]
            .into_iter()
            .flatten()
        {
            std::fs::write(path.join("tasks"), pid.to_string())
                .map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// Removes what is the container's own.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // A group takes those that monitor it along.
        let own = self.own.then_some(&self.path).or(self.monitor.as_ref());
        match own.map(std::fs::remove_dir) {
            Some(Err(error)) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The kernel tells the reason in a file.
    fn explain(&self, error: io::Error) -> io::Error {
        match std::fs::read_to_string(self.root.join("info/last_cmd_status")) {
            Ok(text) if !text.trim().is_empty() && text.trim() != "ok" => {
                io::Error::new(error.kind(), format!("{error}: {}", text.trim()))
            }
            _ => error,
        }
    }
}

/// Where the host has mounted the file system.
fn mount_point() -> Option<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mount_point_in(&table).map(Path::to_owned)
}

fn mount_point_in(table: &str) -> Option<&Path> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        right.starts_with("resctrl ").then(|| Path::new(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("resctrl-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn group(root: &Path, rdt: Value) -> Result<Group, PlanError> {
        Group::in_root(&serde_json::from_value(rdt).unwrap(), "c1", root.to_owned())
    }

    #[test]
    fn the_mount_is_found() {
        let table = "22 1 0:3 / /proc rw - proc proc rw\n\
                     30 22 0:40 / /sys/fs/resctrl rw,nosuid shared:9 - resctrl resctrl rw\n";
        assert_eq!(mount_point_in(table), Some(Path::new("/sys/fs/resctrl")));
        assert_eq!(mount_point_in(&table[..40]), None);
    }

    #[test]
    fn a_container_has_a_group_of_its_own() {
        let root = scratch("own");
        let rdt = json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20",
            "schemata": ["L2:0=3"]});
        let group = group(&root, rdt).unwrap();
        group.enter(17).unwrap().keep();
        let read = |name: &str| std::fs::read_to_string(root.join("c1").join(name)).unwrap();
        assert_eq!(read("schemata"), "L3:0=f\nMB:0=20\nL2:0=3\n");
        assert_eq!(read("tasks"), "17");
        // In the real file system these are no obstacle.
        for name in ["schemata", "tasks"] {
            std::fs::remove_file(root.join("c1").join(name)).unwrap();
        }
        group.remove().unwrap();
        assert!(!root.join("c1").exists());
        group.remove().unwrap();
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_shared_group_stays_and_its_monitor_goes() {
        let root = scratch("shared");
        std::fs::create_dir_all(root.join("gold/mon_groups")).unwrap();
        let group = group(&root, json!({"closID": "gold", "enableMonitoring": true})).unwrap();
        group.enter(17).unwrap().keep();
        let monitor = root.join("gold/mon_groups/c1");
        for path in [&root.join("gold"), &monitor] {
            let tasks = path.join("tasks");
            assert_eq!(std::fs::read_to_string(&tasks).unwrap(), "17");
            std::fs::remove_file(tasks).unwrap();
        }
        assert!(!root.join("gold/schemata").exists());
        group.remove().unwrap();
        assert!(root.join("gold").exists() && !monitor.exists());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_cannot_be_entered_is_taken_back() {
        let root = scratch("back");
        // No place for monitoring groups: as in a kernel that cannot monitor.
        let group = group(&root, json!({"enableMonitoring": true})).unwrap();
        std::fs::create_dir(root.join("info")).unwrap();
        std::fs::write(root.join("info/last_cmd_status"), "no way\n").unwrap();
        let error = group.enter(17).unwrap_err().to_string();
        assert!(error.ends_with(": no way"), "{error}");
        assert!(!root.join("c1").exists());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn names_of_groups() {
        let root = scratch("names");
        for name in [".", "..", "a/b", "none"] {
            let error = group(&root, json!({"closID": name})).unwrap_err();
            assert_eq!(error.field, "linux.intelRdt.closID");
        }
        let new = json!({"closID": "new", "schemata": ["L3:0=f"]});
        assert_eq!(group(&root, new).unwrap().path, root.join("new"));
        let default = group(&root, json!({"closID": "/"})).unwrap();
        assert_eq!(default.path, root);
        std::fs::remove_dir_all(root).unwrap();
    }
}
