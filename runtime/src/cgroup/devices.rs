//! Which devices may be made, read and written: the rules of a spec.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::CgroupError;

// Accesses and kinds as the kernel's eBPF programs for devices get them.
pub(super) const MKNOD: i32 = 1;
pub(super) const READ: i32 = 2;
pub(super) const WRITE: i32 = 4;
pub(super) const BLOCK: i32 = 1;
pub(super) const CHARACTER: i32 = 2;

/// One rule; `None` matches anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Whether it allows or forbids.
    pub(super) allow: bool,
    /// `BLOCK` or `CHARACTER`.
    pub(super) kind: Option<i32>,
    /// The major number.
    pub(super) major: Option<i32>,
    /// The minor number.
    pub(super) minor: Option<i32>,
    /// What it allows or forbids: `MKNOD`, `READ`, `WRITE`.
    pub(super) access: i32,
}

impl Rule {
    const fn allow(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Self {
        Self {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            access,
        }
    }

    /// Whether it is for every access to every device.
    pub(super) fn is_for_all(&self) -> bool {
        self.kind.is_none()
            && self.major.is_none()
            && self.minor.is_none()
            && self.access == MKNOD | READ | WRITE
    }
}

/// What every container may use, whatever its spec says: making device nodes (using them is
/// another matter), the default devices and pseudo terminals.
pub(super) const DEFAULT_RULES: &[Rule] = &[
    Rule::allow(CHARACTER, None, None, MKNOD),
    Rule::allow(BLOCK, None, None, MKNOD),
    Rule::allow(CHARACTER, Some(1), Some(3), MKNOD | READ | WRITE),
    Rule::allow(CHARACTER, Some(1), Some(5), MKNOD | READ | WRITE),
    Rule::allow(CHARACTER, Some(1), Some(7), MKNOD | READ | WRITE),
    Rule::allow(CHARACTER, Some(1), Some(8), MKNOD | READ | WRITE),
    Rule::allow(CHARACTER, Some(1), Some(9), MKNOD | READ | WRITE),
    Rule::allow(CHARACTER, Some(5), Some(0), MKNOD | READ | WRITE),
    Rule::allow(CHARACTER, Some(5), Some(2), MKNOD | READ | WRITE),
    Rule::allow(CHARACTER, Some(136), None, MKNOD | READ | WRITE),
];

/// The rules of a spec in its order, followed by the default ones.
pub(crate) fn rules(spec: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, CgroupError> {
    let mut rules = Vec::with_capacity(spec.len() + DEFAULT_RULES.len());
    for device in spec {
        rules.push(rule(device)?);
    }
    rules.extend_from_slice(DEFAULT_RULES);
    Ok(rules)
}

fn rule(device: &LinuxDeviceCgroup) -> Result<Rule, CgroupError> {
    let invalid = |problem: String| CgroupError::Invalid {
        field: "resources.devices",
        problem,
    };
    let kind = match device.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => {
            return Err(invalid("type p is not a device; use a, b or c".to_owned()));
        }
    };
    let number = |number: Option<i64>| match number {
        None | Some(..0) => Ok(None),
        Some(number) => i32::try_from(number)
            .map(Some)
            .map_err(|_| invalid(format!("device number {number} is too large"))),
    };
    let mut access = 0;
    for letter in device.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                return Err(invalid(format!(
                    "access {letter:?} is not one of 'r', 'w', 'm'"
                )));
            }
        };
    }
    // Type "a" means every device and every access, whatever else the rule says (as in version 1).
    if kind.is_none() {
        return Ok(Rule {
            allow: device.allow(),
            kind: None,
            major: None,
            minor: None,
            access: MKNOD | READ | WRITE,
        });
    }
    Ok(Rule {
        allow: device.allow(),
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        access,
    })
}

/// The rules that can still decide something: a rule for all devices makes those before it void.
/// `None` when nothing is left to forbid.
pub(super) fn effective(rules: &[Rule]) -> Option<&[Rule]> {
    let start = rules.iter().rposition(Rule::is_for_all).unwrap_or(0);
    let rules = &rules[start..];
    let open = rules
        .first()
        .is_some_and(|rule| rule.is_for_all() && rule.allow);
    if open && rules.iter().all(|rule| rule.allow) {
        return None;
    }
    Some(rules)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cgroup) fn spec(
        allow: bool,
        typ: LinuxDeviceType,
        number: Option<(i64, i64)>,
        access: &str,
    ) -> Rule {
        let mut device = LinuxDeviceCgroup::default();
        device.set_allow(allow);
        device.set_typ(Some(typ));
        device.set_major(number.map(|number| number.0));
        device.set_minor(number.map(|number| number.1));
        device.set_access(Some(access.to_owned()));
        rule(&device).unwrap()
    }
}
