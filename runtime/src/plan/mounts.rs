//! Mounts and their options.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::namespaces::check_mappings;
use super::{IdMapping, NamespacePlan, PlanError, id_mappings};
use crate::rootfs::clean;
use crate::sys::Attributes;

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountKind {
    /// A part of the host's tree.
    Bind {
        /// Which; absolute.
        source: PathBuf,
        /// Whether the mounts below it come along.
        recursive: bool,
    },
    /// A new instance of a file system.
    FileSystem {
        /// Its type.
        kind: String,
        /// Its device or name.
        source: String,
        /// Its options: names, with values where they have one.
        options: Vec<(String, Option<String>)>,
        /// Whether what the image has at the destination is copied into it (`tmpcopyup`).
        copy_up: bool,
    },
    /// The cgroup file system.
    Cgroup,
    /// Nothing new: other attributes for what is mounted there.
    Remount,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Where; absolute, in the container.
    pub destination: PathBuf,
    /// What.
    pub kind: MountKind,
    /// Attributes of the mount itself.
    pub attributes: Attributes,
    /// Attributes of it and all mounts below it.
    pub recursive: Attributes,
    /// Whether it becomes read-only when everything else is done: things must still be made in it.
    pub readonly_at_end: bool,
    /// Propagation, in order: the `MS_*` flag, and whether it goes for all mounts below too.
    pub propagation: Vec<(u64, bool)>,
    /// Ids of files: user ids, group ids, and whether it goes for all mounts below too.
    pub id_mapping: Option<IdMappings>,
}

/// How ids of files are shown through a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdMappings {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
    /// Whether it goes for all mounts below too.
    pub recursive: bool,
}

impl MountPlan {
    pub(super) fn all(
        spec: &Spec,
        bundle: &Path,
        namespaces: &NamespacePlan,
    ) -> Result<Vec<Self>, PlanError> {
        spec.mounts()
            .iter()
            .flatten()
            .map(|mount| Self::new(mount, bundle, namespaces))
            .collect()
    }

    fn new(mount: &Mount, bundle: &Path, namespaces: &NamespacePlan) -> Result<Self, PlanError> {
        let field = format!("mounts[{}]", mount.destination().display());
        let fail = |problem: String| PlanError::new(&field, problem);
        // A relative destination is an old habit of some callers; it means "from the root".
        let destination = clean(&Path::new("/").join(mount.destination()));
        if destination == Path::new("/") {
            return Err(fail(
                "the destination is the root itself; use root.path".to_owned(),
            ));
        }

        let mut options = Options::default();
        for option in mount.options().iter().flatten() {
            options.take(option);
        }
        let typ = mount.typ().as_deref().unwrap_or("");
        let bind = options.bind.or((typ == "bind").then_some(false));
        let source = mount.source().clone().unwrap_or_default();
        let kind = if options.remount {
            MountKind::Remount
        } else if let Some(recursive) = bind {
            if source.as_os_str().is_empty() {
                return Err(fail("a bind mount needs a source".to_owned()));
            }
            if let Some((name, _)) = options.data.first() {
                return Err(fail(format!(
                    "a bind mount has the options of its source; leave out {name:?}"
                )));
            }
            MountKind::Bind {
                source: bundle.join(source),
                recursive,
            }
        } else {
            match typ {
                "" => return Err(fail("the type is missing".to_owned())),
                "cgroup" | "cgroup2" => MountKind::Cgroup,
                kind => MountKind::FileSystem {
                    kind: kind.to_owned(),
                    source: source
                        .into_os_string()
                        .into_string()
                        .map_err(|_| fail("the source is not text".to_owned()))?,
                    options: [options.superblock, options.data].concat(),
                    copy_up: options.copy_up,
                },
            }
        };

        let uids = id_mappings(mount.uid_mappings());
        let gids = id_mappings(mount.gid_mappings());
        let id_mapping = match (uids.is_empty(), gids.is_empty(), options.id_map) {
            (true, true, None) => None,
            (true, true, Some(recursive)) if namespaces.has_user() => Some(IdMappings {
                uids: namespaces.uid_mappings.clone(),
                gids: namespaces.gid_mappings.clone(),
                recursive,
            }),
            (false, false, recursive) => Some(IdMappings {
                uids,
                gids,
                recursive: recursive.unwrap_or(false),
            }),
            _ => return Err(fail("uidMappings and gidMappings go together".to_owned())),
        };
        if let Some(mapping) = &id_mapping {
            if !matches!(kind, MountKind::Bind { .. }) {
                return Err(fail("only bind mounts can map ids".to_owned()));
            }
            check_mappings(&field, &mapping.uids)?;
            check_mappings(&field, &mapping.gids)?;
        }

        let mut attributes = options.attributes;
        let readonly = attributes.set & libc::MOUNT_ATTR_RDONLY != 0;
        let readonly_at_end =
            readonly && matches!(&kind, MountKind::FileSystem { kind, .. } if kind == "tmpfs");
        if readonly_at_end {
            attributes.set &= !libc::MOUNT_ATTR_RDONLY;
        }
        Ok(Self {
            destination,
            kind,
            attributes,
            recursive: options.recursive,
            readonly_at_end,
            propagation: options.propagation,
            id_mapping,
        })
    }
}

/// Names of all mount options that mean something to the engine itself; any other goes to the file
/// system. Recursive ones (an `r` in front) exist for all that set attributes of a mount.
pub fn mount_options() -> Vec<String> {
    let recursive = ATTRIBUTES.iter().map(|(name, _)| format!("r{name}"));
    let plain = ATTRIBUTES.iter().map(|(name, _)| *name);
    let mut names: Vec<String> = plain
        .chain(OTHER_OPTIONS.iter().copied())
        .map(str::to_owned)
        .chain(recursive)
        .collect();
    names.sort();
    names
}

/// Options that are no attributes of a mount.
const OTHER_OPTIONS: &[&str] = &[
    "async",
    "bind",
    "defaults",
    "dirsync",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noiversion",
    "nolazytime",
    "nomand",
    "private",
    "rbind",
    "remount",
    "ridmap",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "shared",
    "silent",
    "slave",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// The options of one mount, sorted.
#[derive(Debug, Default)]
struct Options {
    attributes: Attributes,
    recursive: Attributes,
    propagation: Vec<(u64, bool)>,
    /// A bind mount, and whether it is recursive.
    bind: Option<bool>,
    remount: bool,
    copy_up: bool,
    /// Mapped ids, and whether recursively.
    id_map: Option<bool>,
    /// Options of every file system, which mean nothing for a part of one.
    superblock: Vec<(String, Option<String>)>,
    data: Vec<(String, Option<String>)>,
}

impl Options {
    fn take(&mut self, option: &str) {
        if let Some(change) = attribute(option) {
            change.apply(&mut self.attributes);
            return;
        }
        if let Some(change) = option.strip_prefix('r').and_then(attribute) {
            change.apply(&mut self.recursive);
            return;
        }
        match option {
            "defaults" | "" => {}
            "bind" => self.bind = Some(false),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "sync" | "async" | "dirsync" | "mand" | "nomand" | "lazytime" | "nolazytime" => {
                self.superblock.push((option.to_owned(), None));
            }
            // How much the kernel logs; and versions of inodes, which it counts where it can.
            "silent" | "loud" | "iversion" | "noiversion" => {}
            _ => match propagation(option) {
                Some(propagation) => self.propagation.push(propagation),
                None => self.data(option),
            },
        }
    }

    /// An option for the file system. Several may come in one, with commas, which a quoted or
    /// escaped value may contain too.
    fn data(&mut self, option: &str) {
        let parts: Vec<&str> = if option.contains(['"', '\\']) {
            vec![option]
        } else {
            option.split(',').collect()
        };
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            self.data.push(match part.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.trim_matches('"').to_owned())),
                None => (part.to_owned(), None),
            });
        }
    }
}

/// The `MS_*` flag of a propagation, and whether it goes for all mounts below too.
pub(super) fn propagation(option: &str) -> Option<(u64, bool)> {
    let flag = |name| {
        Some(match name {
            "private" => libc::MS_PRIVATE,
            "slave" => libc::MS_SLAVE,
            "shared" => libc::MS_SHARED,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return None,
        })
    };
    match flag(option) {
        Some(flag) => Some((flag, false)),
        None => Some((flag(option.strip_prefix('r')?)?, true)),
    }
}

/// What an option does to attributes.
#[derive(Debug, Clone, Copy)]
enum Change {
    Set(u64),
    Clear(u64),
    /// One of the ways to keep access times, which exclude each other.
    AccessTime(u64),
}

impl Change {
    /// A later option wins over an earlier one.
    fn apply(self, attributes: &mut Attributes) {
        let (set, clear) = match self {
            Self::Set(bit) => (bit, 0),
            Self::Clear(bit) => (0, bit),
            // The kernel wants the whole field cleared when one value of it is set.
            Self::AccessTime(value) => (value, libc::MOUNT_ATTR__ATIME),
        };
        attributes.set = (attributes.set & !clear) | set;
        attributes.clear = match self {
            Self::AccessTime(_) => attributes.clear | clear,
            _ => (attributes.clear & !set) | clear,
        };
    }
}

fn attribute(option: &str) -> Option<Change> {
    let find = |(name, change): &(&str, Change)| (*name == option).then_some(*change);
    ATTRIBUTES.iter().find_map(find)
}

const ATTRIBUTES: &[(&str, Change)] = {
    use Change::{AccessTime, Clear, Set};
    &[
        ("ro", Set(libc::MOUNT_ATTR_RDONLY)),
        ("rw", Clear(libc::MOUNT_ATTR_RDONLY)),
        ("nosuid", Set(libc::MOUNT_ATTR_NOSUID)),
        ("suid", Clear(libc::MOUNT_ATTR_NOSUID)),
        ("nodev", Set(libc::MOUNT_ATTR_NODEV)),
        ("dev", Clear(libc::MOUNT_ATTR_NODEV)),
        ("noexec", Set(libc::MOUNT_ATTR_NOEXEC)),
        ("exec", Clear(libc::MOUNT_ATTR_NOEXEC)),
        ("nodiratime", Set(libc::MOUNT_ATTR_NODIRATIME)),
        ("diratime", Clear(libc::MOUNT_ATTR_NODIRATIME)),
        ("nosymfollow", Set(libc::MOUNT_ATTR_NOSYMFOLLOW)),
        ("symfollow", Clear(libc::MOUNT_ATTR_NOSYMFOLLOW)),
        ("noatime", AccessTime(libc::MOUNT_ATTR_NOATIME)),
        ("strictatime", AccessTime(libc::MOUNT_ATTR_STRICTATIME)),
        ("relatime", AccessTime(libc::MOUNT_ATTR_RELATIME)),
        ("atime", AccessTime(libc::MOUNT_ATTR_RELATIME)),
        ("norelatime", AccessTime(libc::MOUNT_ATTR_RELATIME)),
        ("nostrictatime", AccessTime(libc::MOUNT_ATTR_RELATIME)),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> Options {
        let mut options = Options::default();
        list.iter().for_each(|option| options.take(option));
        options
    }

    #[test]
    fn the_last_of_two_options_wins() {
        let options = options(&["ro", "nosuid", "rw"]);
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attributes.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn recursive_options_are_kept_apart() {
        let options = options(&["rro", "nodev", "rbind", "rslave"]);
        assert_eq!(options.recursive.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_NODEV);
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.propagation, [(libc::MS_SLAVE, true)]);
        assert!(options.data.is_empty());
    }

    #[test]
    fn what_concerns_a_whole_file_system_is_kept_apart() {
        let options = options(&["sync", "silent", "size=1m", "loud", "noiversion", "async"]);
        let names: Vec<_> = options.superblock.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["sync", "async"]);
        assert_eq!(options.data.len(), 1);
    }

    /// The names that runc 1.3 knows: none of them is for the file system itself.
    #[test]
    fn all_the_usual_options_are_known() {
        let known = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand \
            noatime nodev nodiratime noexec noiversion nolazytime nomand norelatime nostrictatime \
            nosuid nosymfollow private ratime rbind rdev rdiratime relatime remount rexec rnoatime \
            rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate \
            rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared \
            silent slave strictatime suid symfollow sync tmpcopyup unbindable idmap ridmap";
        for option in known.split_whitespace() {
            assert!(options(&[option]).data.is_empty(), "{option}");
        }
        assert_eq!(options(&["rsync"]).data.len(), 1);
    }

    #[test]
    fn access_time_options_replace_each_other() {
        let options = options(&["noatime", "strictatime"]);
        assert_eq!(options.attributes.set, libc::MOUNT_ATTR_STRICTATIME);
        assert_eq!(options.attributes.clear, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn every_known_option_is_kept_from_the_file_system() {
        for name in mount_options() {
            let options = options(&[&name]);
            assert!(options.data.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_rest_goes_to_the_file_system() {
        let options = options(&["mode=755,size=64k", "newinstance", "context=\"a,b\""]);
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        assert_eq!(
            options.data,
            [
                pair("mode", Some("755")),
                pair("size", Some("64k")),
                pair("newinstance", None),
                pair("context", Some("a,b"))
            ]
        );
    }
}
