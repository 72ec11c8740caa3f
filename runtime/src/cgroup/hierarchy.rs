//! The cgroup hierarchies that the host has mounted.

use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use serde::{Deserialize, Serialize};

use super::CgroupError;

const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Which version has the controllers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Version {
    /// A hierarchy for each controller or two. The one of version 2 may be there too, with what is
    /// left over: then kernel and systemd call it hybrid.
    V1,
    /// One hierarchy with all of them.
    #[default]
    V2,
}

/// A hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its controllers, `name=systemd` for one with a name and no controller; none for the one of
    /// version 2.
    pub controllers: Vec<String>,
}

/// All hierarchies that a container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Which version has the controllers.
    pub version: Version,
    /// For version 2 only its one.
    pub list: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Those of this host: version 2's when it is on `/sys/fs/cgroup`, where it belongs; else
    /// version 1's when they have a controller; else version 2's, wherever it is.
    pub(crate) fn of_host() -> Result<Self, CgroupError> {
        let usual = Path::new("/sys/fs/cgroup");
        if statfs(usual).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_MAGIC) {
            return Ok(Self {
                version: Version::V2,
                list: vec![Hierarchy {
                    point: usual.to_owned(),
                    controllers: Vec::new(),
                }],
            });
        }
        std::fs::read_to_string("/proc/self/mountinfo")
            .ok()
            .and_then(|table| Self::in_table(&table))
            .ok_or(CgroupError::NotMounted)
    }

    /// Those in a `mountinfo` table.
    fn in_table(table: &str) -> Option<Self> {
        let mut list: Vec<Hierarchy> = Vec::new();
        let mut unified = None;
        for line in table.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let mut fields = left.split(' ').skip(3);
            let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
                continue;
            };
            let mut fields = right.split(' ');
            let (kind, options) = (fields.next(), fields.nth(1).unwrap_or_default());
            let hierarchy = |controllers| Hierarchy {
                point: PathBuf::from(point),
                controllers,
            };
            match kind {
                Some("cgroup2") if root == "/" && unified.is_none() => {
                    unified = Some(hierarchy(Vec::new()));
                }
                Some("cgroup") => {
                    let controllers = controllers(options);
                    // A hierarchy may be mounted twice.
                    if !list.iter().any(|other| other.controllers == controllers) {
                        list.push(hierarchy(controllers));
                    }
                }
                _ => {}
            }
        }
        let real = |name: &String| !name.starts_with("name=");
        let version = if list.iter().flat_map(|one| &one.controllers).any(real) {
            Version::V1
        } else {
            list.clear();
            Version::V2
        };
        list.extend(unified);
        (!list.is_empty()).then_some(Self { version, list })
    }
}

/// The controllers among the options of a mount of version 1.
fn controllers(options: &str) -> Vec<String> {
    const OTHERS: &[&str] = &[
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "all",
        "none",
        "seclabel",
        "favordynmods",
        "cpuset_v2_mode",
    ];
    options
        .split(',')
        .filter(|option| {
            option.starts_with("name=") || !(option.contains('=') || OTHERS.contains(option))
        })
        .map(str::to_owned)
        .collect()
}

impl Version {
    /// That of this host; 2 where nothing is mounted, which making a cgroup will tell.
    pub(crate) fn of_host() -> Self {
        Hierarchies::of_host().map_or(Self::V2, |hierarchies| hierarchies.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &str) -> (Version, Vec<(String, String)>) {
        let found = Hierarchies::in_table(table).unwrap();
        let list = found.list.iter().map(|one| {
            let point = one.point.to_str().unwrap().to_owned();
            (point, one.controllers.join("+"))
        });
        (found.version, list.collect())
    }

    fn pair(point: &str, controllers: &str) -> (String, String) {
        (point.to_owned(), controllers.to_owned())
    }

    #[test]
    fn hybrid_hosts_have_both() {
        let table = "\
            24 1 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            25 1 0:23 / /sys/fs/cgroup/systemd rw - cgroup none rw,xattr,name=systemd,\
            release_agent=/x\n\
            26 1 0:24 /part /mnt rw - cgroup2 cgroup2 rw\n\
            27 1 0:24 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n\
            28 1 0:22 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct\n";
        let expected = vec![
            pair("/sys/fs/cgroup/cpu,cpuacct", "cpu+cpuacct"),
            pair("/sys/fs/cgroup/systemd", "name=systemd"),
            pair("/sys/fs/cgroup/unified", ""),
        ];
        assert_eq!(found(table), (Version::V1, expected));
    }

    #[test]
    fn version_2_counts_when_version_1_has_no_controller() {
        let table = "\
            25 1 0:23 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd\n\
            27 1 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let expected = vec![pair("/sys/fs/cgroup/unified", "")];
        assert_eq!(found(table), (Version::V2, expected));
        assert_eq!(
            Hierarchies::in_table("1 0 0:1 / / rw - ext4 /dev/vda rw\n"),
            None
        );
    }
}
