//! Device rules as the list that the kernel keeps: a default for all devices, and exceptions.

use oci_spec::runtime::LinuxDeviceType;

use crate::cgroup::CgroupError;
use crate::cgroup::devices::{BLOCK, CHARACTER, MKNOD, READ, Rule, WRITE, effective};
use crate::cgroup::directory::Directory;

const ALLOW: &str = "devices.allow";
const DENY: &str = "devices.deny";

/// One exception; `None` is every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Exception {
    kind: i32,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Exception {
    fn is_same_device(&self, other: &Self) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    /// Whether it is for every device that the other is for.
    fn covers(&self, other: &Self) -> bool {
        let part = |own: Option<i32>, others: Option<i32>| own.is_none() || own == others;
        self.kind == other.kind && part(self.major, other.major) && part(self.minor, other.minor)
    }

    /// Whether there is a device that both are for.
    fn meets(&self, other: &Self) -> bool {
        let part =
            |one: Option<i32>, other: Option<i32>| one.is_none() || other.is_none() || one == other;
        self.kind == other.kind && part(self.major, other.major) && part(self.minor, other.minor)
    }

    /// As the kernel writes and reads it: `c 1:3 rwm`.
    fn line(&self) -> String {
        let kind = match self.kind {
            BLOCK => LinuxDeviceType::B,
            _ => LinuxDeviceType::C,
        };
        let number = |number: Option<i32>| number.map_or("*".to_owned(), |n| n.to_string());
        let (major, minor) = (number(self.major), number(self.minor));
        format!("{} {major}:{minor} {}", kind.as_str(), self.letters())
    }

    fn letters(&self) -> String {
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .into_iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, letter)| letter)
            .collect()
    }

    fn from_line(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let kind = match words.next()? {
            "b" => BLOCK,
            "c" => CHARACTER,
            _ => return None,
        };
        let number = |text: &str| match text {
            "*" => Some(None),
            number => number.parse().ok().map(Some),
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let access = words.next()?.chars().fold(0, |access, letter| {
            access
                | match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    _ => 0,
                }
        });
        Some(Self {
            kind,
            major: number(major)?,
            minor: number(minor)?,
            access,
        })
    }
}

/// What rules come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct List {
    /// Whether devices without an exception are allowed.
    open: bool,
    exceptions: Vec<Exception>,
}

impl List {
    fn new(rules: &[Rule]) -> Result<Self, CgroupError> {
        let mut list = Self::default();
        let Some(rules) = effective(rules) else {
            list.open = true;
            return Ok(list);
        };
        for rule in rules {
            list.apply(rule)?;
        }
        Ok(list)
    }

    fn apply(&mut self, rule: &Rule) -> Result<(), CgroupError> {
        let Some(kind) = rule.kind else {
            self.open = rule.allow;
            self.exceptions.clear();
            return Ok(());
        };
        let new = Exception {
            kind,
            major: rule.major,
            minor: rule.minor,
            access: rule.access,
        };
        if rule.allow == self.open {
            return self.strike_out(&new);
        }
        match self
            .exceptions
            .iter_mut()
            .find(|one| one.is_same_device(&new))
        {
            Some(old) => old.access |= new.access,
            None => self.exceptions.push(new),
        }
        Ok(())
    }

    /// Takes accesses out of the exceptions.
    fn strike_out(&mut self, out: &Exception) -> Result<(), CgroupError> {
        for one in &mut self.exceptions {
            if one.access & out.access == 0 || !out.meets(one) {
                continue;
            }
            // The kernel's list has no exceptions from exceptions.
            if !out.covers(one) {
                return Err(CgroupError::Invalid {
                    field: "resources.devices",
                    problem: format!(
                        "cgroup version 1 cannot except {:?} from {:?}; name the devices in one \
                         rule each, or use a host with version 2",
                        out.line(),
                        one.line()
                    ),
                });
            }
            one.access &= !out.access;
        }
        self.exceptions.retain(|one| one.access != 0);
        Ok(())
    }

    /// The writes that lead to it from what `devices.list` says. From a closed list to another the
    /// devices that are in both can be used all the time.
    fn writes(&self, now: &str) -> Vec<(&'static str, String)> {
        let (add, remove) = if self.open {
            (DENY, ALLOW)
        } else {
            (ALLOW, DENY)
        };
        let mut writes = Vec::new();
        let mut old = List::default();
        for line in now.lines() {
            match Exception::from_line(line) {
                Some(exception) => old.exceptions.push(exception),
                None => old.open = true,
            }
        }
        if self.open || old.open {
            writes.push((remove, "a".to_owned()));
            old.exceptions.clear();
        }
        for new in &self.exceptions {
            let has = old.exceptions.iter().find(|one| one.is_same_device(new));
            if has.is_none_or(|has| has.access & new.access != new.access) {
                writes.push((add, new.line()));
            }
        }
        for one in old.exceptions {
            let stays = self.exceptions.iter().find(|new| new.is_same_device(&one));
            let access = one.access & !stays.map_or(0, |new| new.access);
            if access != 0 {
                writes.push((remove, Exception { access, ..one }.line()));
            }
        }
        writes
    }
}

/// What the rules allow, as systemd names it: devices and accesses; `None` when that is all. What
/// it has no name for (one minor number of all majors), and what is forbidden in an open list, is
/// left to the kernel's own list.
#[cfg(feature = "systemd")]
pub(in crate::cgroup) fn names(
    rules: &[Rule],
) -> Result<Option<Vec<(String, String)>>, CgroupError> {
    let list = List::new(rules)?;
    if list.open {
        return Ok(None);
    }
    let name = |one: &Exception| {
        let kind = if one.kind == BLOCK { "block" } else { "char" };
        match (one.major, one.minor) {
            (None, None) => Some(format!("{kind}-*")),
            (Some(major), None) => Some(format!("{kind}-{major}")),
            (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
            (None, Some(_)) => None,
        }
    };
    let named = list
        .exceptions
        .iter()
        .filter_map(|one| Some((name(one)?, one.letters())));
    Ok(Some(named.collect()))
}

/// Puts the rules in force, in the place of those that are there.
pub(in crate::cgroup) fn set(directory: &Directory, rules: &[Rule]) -> Result<(), CgroupError> {
    let list = List::new(rules)?;
    let now = directory.read("devices.list")?;
    for (file, line) in list.writes(&now) {
        directory.write(file, &line)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::rules;
    use crate::cgroup::devices::tests::spec;

    const ALL: &str = "a *:* rwm\n";

    fn list(rules: &[Rule]) -> List {
        List::new(rules).unwrap()
    }

    #[test]
    fn a_closed_list_begins_with_no_device() {
        let rules = [
            spec(false, LinuxDeviceType::A, None, "rwm"),
            spec(true, LinuxDeviceType::B, Some((8, 0)), "rw"),
            spec(false, LinuxDeviceType::B, Some((8, 0)), "w"),
            spec(true, LinuxDeviceType::C, Some((10, -1)), "r"),
        ];
        let text = |file, line: &str| (file, line.to_owned());
        assert_eq!(
            list(&rules).writes(ALL),
            [
                text(DENY, "a"),
                text(ALLOW, "b 8:0 r"),
                text(ALLOW, "c 10:* r")
            ]
        );
    }

    #[test]
    fn the_default_devices_are_allowed() {
        let writes = list(&rules(&[]).unwrap()).writes(ALL);
        assert_eq!(writes[0], (DENY, "a".to_owned()));
        assert!(writes.contains(&(ALLOW, "c 1:3 rwm".to_owned())));
        assert!(writes.contains(&(ALLOW, "b *:* m".to_owned())));
    }

    #[cfg(feature = "systemd")]
    #[test]
    fn devices_have_names_of_systemd() {
        let rules = [
            spec(false, LinuxDeviceType::A, None, "rwm"),
            spec(true, LinuxDeviceType::C, Some((1, 3)), "rw"),
            spec(true, LinuxDeviceType::C, Some((136, -1)), "rwm"),
            spec(true, LinuxDeviceType::B, Some((-1, -1)), "m"),
            spec(true, LinuxDeviceType::B, Some((-1, 5)), "r"),
        ];
        let named = names(&rules).unwrap().unwrap();
        let named: Vec<_> = named
            .iter()
            .map(|(name, access)| (&name[..], &access[..]))
            .collect();
        assert_eq!(
            named,
            [
                ("/dev/char/1:3", "rw"),
                ("char-136", "rwm"),
                ("block-*", "m")
            ]
        );
        let all = spec(true, LinuxDeviceType::A, None, "rwm");
        assert_eq!(names(&[all]).unwrap(), None);
    }

    #[test]
    fn an_update_touches_what_changes() {
        let closed = spec(false, LinuxDeviceType::A, None, "rwm");
        let rules = [
            closed,
            spec(true, LinuxDeviceType::C, Some((1, 3)), "rwm"),
            spec(true, LinuxDeviceType::C, Some((1, 5)), "r"),
            spec(true, LinuxDeviceType::C, Some((1, 8)), "rw"),
        ];
        let now = "c 1:3 rwm\nc 1:5 rw\nc 1:9 rwm\n";
        let text = |file, line: &str| (file, line.to_owned());
        assert_eq!(
            list(&rules).writes(now),
            [
                text(ALLOW, "c 1:8 rw"),
                text(DENY, "c 1:5 w"),
                text(DENY, "c 1:9 rwm")
            ]
        );
        assert_eq!(list(&[closed]).writes(""), []);
    }

    #[test]
    fn an_open_list_has_forbidden_devices() {
        let rules = [
            spec(true, LinuxDeviceType::A, None, "rwm"),
            spec(false, LinuxDeviceType::B, Some((8, 0)), "rwm"),
        ];
        let text = |file, line: &str| (file, line.to_owned());
        assert_eq!(
            list(&rules).writes("c 1:3 rwm\n"),
            [text(ALLOW, "a"), text(DENY, "b 8:0 rwm")]
        );
        assert_eq!(list(&rules[..1]).writes(ALL), [text(ALLOW, "a")]);
    }

    #[test]
    fn exceptions_from_exceptions_are_refused() {
        let rules = [
            spec(true, LinuxDeviceType::B, Some((8, -1)), "rw"),
            spec(false, LinuxDeviceType::B, Some((8, 0)), "w"),
        ];
        let error = List::new(&rules).unwrap_err().to_string();
        assert!(
            error.contains("cannot except \"b 8:0 w\" from \"b 8:* rw\""),
            "{error}"
        );
    }
}
