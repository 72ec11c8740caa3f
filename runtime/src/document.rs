//! Reading a spec from JSON, with errors that name the field.
//!
//! The types of the crate oci-spec are stricter in places than the Go types that other engines read
//! with and that most callers write with. What differs is made good in the JSON before it becomes a
//! [`Spec`]:
//!
//! * a member that is `null` counts as absent;
//! * `process.user`, `process.cwd`, the `names` of a seccomp rule and the `index` and `value` of its
//!   arguments may be absent, which means empty or 0;
//! * an empty string stands for an absent type of a device rule and for an absent list of
//!   processors; a seccomp profile with neither a default action nor rules is none;
//! * a capability that has no name in Linux is left out, with a warning, as the specification wants;
//! * `SCHED_FLAG_DL_OVERRUN`, `SCHED_FLAG_RESET_ON_FORK`, `enableCMT` and `enableMBM` are what
//!   the specification calls them;
//! * a huge page limit above the range of `i64` is the highest one;
//! * sections for other platforms are not read.

use oci_spec::runtime::{Capability, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::plan::PlanError;

/// Reads a container's spec (`config.json`).
///
/// # Errors
/// [`PlanError`] that names the field, as in `process.rlimits[0].type`, and what is allowed there.
/// Only the document's form is checked: [`Container::create`](crate::Container::create) checks
/// whether it can be carried out.
pub fn parse_spec(json: &[u8]) -> Result<Spec, PlanError> {
    let mut document = parse("config.json", json)?;
    if let Some(spec) = document.as_object_mut() {
        for other in ["solaris", "windows", "vm", "zos"] {
            spec.remove(other);
        }
        // They are members of `linux`; oci-spec once read them here.
        spec.remove("uidMappings");
        spec.remove("gidMappings");
    }
    if let Some(process) = object(&mut document, "/process") {
        complete_process(process);
    }
    if let Some(linux) = object(&mut document, "/linux") {
        complete_linux(linux);
    }
    build("config.json", document)
}

/// Reads a process that is to be added to a container. Its fields are named as those of a spec's
/// `process` would be.
///
/// # Errors
/// As [`parse_spec`].
pub fn parse_process(json: &[u8]) -> Result<Process, PlanError> {
    let mut document = parse("process", json)?;
    if let Some(process) = document.as_object_mut() {
        complete_process(process);
    }
    build("process", document).map_err(|error| match error.field.as_str() {
        "process" => error,
        field => PlanError::new(format!("process.{field}"), error.problem),
    })
}

/// The document, without members that are null.
fn parse(name: &str, json: &[u8]) -> Result<Value, PlanError> {
    let mut document: Value = serde_json::from_slice(json)
        .map_err(|error| PlanError::new(name, format!("is not JSON: {error}")))?;
    if !document.is_object() {
        return Err(PlanError::new(name, "is not a JSON object"));
    }
    drop_nulls(&mut document);
    Ok(document)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Turns a document into what it describes. `name` stands for the document as a whole.
fn build<T: DeserializeOwned>(name: &str, document: Value) -> Result<T, PlanError> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let mut field = error.path().to_string();
        let problem = error.inner().to_string();
        // The path ends where the member should be.
        let missing = problem
            .strip_prefix("missing field `")
            .and_then(|rest| rest.strip_suffix('`'));
        if field == "." {
            field.clear();
        }
        match missing {
            Some(member) => {
                let dot = if field.is_empty() { "" } else { "." };
                PlanError::new(format!("{field}{dot}{member}"), "is missing")
            }
            None if field.is_empty() => PlanError::new(name, problem),
            None => PlanError::new(field, problem),
        }
    })
}

fn complete_process(process: &mut Map<String, Value>) {
    process.entry("user").or_insert_with(|| json!({}));
    process.entry("cwd").or_insert_with(|| json!(""));
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for (set, names) in sets.into_iter().flatten() {
        if let Some(names) = names.as_array_mut() {
            names.retain(|name| is_capability(set, name));
        }
    }
    if let Some(affinity) = process.get_mut("execCPUAffinity") {
        drop_empty(affinity, &["initial", "final"]);
    }
    let flags = process
        .get_mut("scheduler")
        .and_then(|scheduler| scheduler.get_mut("flags"));
    for flag in elements(flags) {
        match flag.as_str() {
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = json!("SCHED_FLAG_D_L_OVERRUN"),
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = json!("SCHED_RESET_ON_FORK"),
            _ => {}
        }
    }
}

/// Whether a member of a set of capabilities is to be read: all but unknown names.
fn is_capability(set: &str, name: &Value) -> bool {
    let Some(name) = name.as_str() else {
        return true;
    };
    let known = name
        .strip_prefix("CAP_")
        .is_some_and(|name| name.parse::<Capability>().is_ok());
    if !known {
        tracing::warn!("process.capabilities.{set}: {name:?} is not a capability; it is ignored");
    }
    known
}

fn complete_linux(linux: &mut Map<String, Value>) {
    let profile = linux.get_mut("seccomp");
    if profile.is_some_and(|profile| !complete_seccomp(profile)) {
        linux.remove("seccomp");
    }
    if let Some(resources) = linux.get_mut("resources") {
        for rule in elements(resources.get_mut("devices")) {
            drop_empty(rule, &["type"]);
        }
        for limit in elements(resources.get_mut("hugepageLimits")) {
            if let Some(limit) = limit.get_mut("limit").filter(|limit| limit.is_u64()) {
                *limit = json!(limit.as_u64().map(|limit| limit.min(i64::MAX as u64)));
            }
        }
    }
    if let Some(rdt) = linux.get_mut("intelRdt").and_then(Value::as_object_mut) {
        for (name, other) in [("enableCMT", "enableCmt"), ("enableMBM", "enableMbm")] {
            if let Some(value) = rdt.remove(name) {
                rdt.insert(other.to_owned(), value);
            }
        }
    }
}

/// False when the profile is empty.
fn complete_seccomp(profile: &mut Value) -> bool {
    drop_empty(profile, &["defaultAction"]);
    let Some(profile) = profile.as_object_mut() else {
        return true;
    };
    let rules = profile.get_mut("syscalls");
    if !profile_has_rules(rules.as_deref()) && !profile.contains_key("defaultAction") {
        return false;
    }
    for rule in elements(profile.get_mut("syscalls")) {
        if let Some(rule) = rule.as_object_mut() {
            rule.entry("names").or_insert_with(|| json!([]));
        }
        for argument in elements(rule.get_mut("args")) {
            if let Some(argument) = argument.as_object_mut() {
                argument.entry("index").or_insert_with(|| json!(0));
                argument.entry("value").or_insert_with(|| json!(0));
            }
        }
    }
    true
}

fn profile_has_rules(rules: Option<&Value>) -> bool {
    rules.is_some_and(|rules| rules.as_array().is_none_or(|list| !list.is_empty()))
}

fn object<'a>(document: &'a mut Value, pointer: &str) -> Option<&'a mut Map<String, Value>> {
    document.pointer_mut(pointer)?.as_object_mut()
}

fn elements(list: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    list.and_then(Value::as_array_mut).into_iter().flatten()
}

/// Drops members that are empty strings.
fn drop_empty(value: &mut Value, names: &[&str]) {
    if let Some(members) = value.as_object_mut() {
        members.retain(|name, member| member != "" || !names.contains(&name.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxSchedulerFlag;

    fn read(document: Value) -> Result<Spec, PlanError> {
        parse_spec(document.to_string().as_bytes())
    }

    /// What is said about a document.
    fn wrong(document: Value) -> String {
        read(document).unwrap_err().to_string()
    }

    #[test]
    fn the_field_is_named() {
        assert_eq!(
            wrong(json!({"process": {"cwd": "/", "user": {"uid": "root"}}})),
            "process.user.uid: invalid type: string \"root\", expected u32"
        );
        assert_eq!(
            wrong(json!({"linux": {"resources": {"pids": {"limit": "max"}}}})),
            "linux.resources.pids.limit: invalid type: string \"max\", expected i64"
        );
        assert_eq!(
            wrong(json!({"mounts": [{"destination": "/a"}, {"type": "bind"}]})),
            "mounts[1].destination: is missing"
        );
        let limits = wrong(json!({"process": {"rlimits": [{"type": "RLIMIT_X"}]}}));
        assert!(
            limits.starts_with(
                "process.rlimits[0].type: unknown variant `RLIMIT_X`, expected one of `RLIMIT_CPU`"
            ),
            "{limits}"
        );
        let namespaces = wrong(json!({"linux": {"namespaces": [{"type": "mnt"}]}}));
        assert!(
            namespaces.starts_with("linux.namespaces[0].type: unknown variant `mnt`"),
            "{namespaces}"
        );
        assert_eq!(
            wrong(json!({"hooks": {"poststop": [{"path": "/a"}, {"args": []}]}})),
            "hooks.poststop[1].path: is missing"
        );
        assert_eq!(
            wrong(json!({"process": "sh"})),
            "process: invalid type: string \"sh\", expected struct Process"
        );
    }

    #[test]
    fn what_is_not_a_document_is_told_in_one_line() {
        for text in ["", "{", "[]", "null", "{\"process\": {}} x"] {
            let error = parse_spec(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("config.json: is not"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_process_is_named_as_in_a_spec() {
        let error = parse_process(br#"{"args": "sh"}"#).unwrap_err();
        assert_eq!(error.field, "process.args");
        let error = parse_process(br#"{"rlimits": [{}]}"#).unwrap_err();
        assert_eq!(error.to_string(), "process.rlimits[0].type: is missing");
        assert_eq!(parse_process(b"7").unwrap_err().field, "process");
        let process = parse_process(br#"{"args": ["sh"], "user": null, "x": 1}"#).unwrap();
        assert_eq!(process.user().uid(), 0);
        assert_eq!(process.cwd().as_os_str(), "");
    }

    #[test]
    fn nulls_and_absent_members_are_nothing() {
        let spec = read(json!({
            "ociVersion": "1.2.0",
            "mounts": null,
            "hooks": {"prestart": null},
            "annotations": null,
            "process": {
                "user": {"uid": 7, "additionalGids": null},
                "args": ["sh"],
                "env": null,
                "capabilities": {"bounding": null},
                "execCPUAffinity": {"initial": "", "final": "0-1"},
            },
            "linux": {
                "resources": {"pids": {"limit": null}, "devices": [{"allow": false, "type": ""}]},
                "seccomp": {"defaultAction": "", "syscalls": []},
            },
            "solaris": {"anet": 7},
            "unheardOf": {"a": [null]},
        }))
        .unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (7, 0));
        let affinity = process.exec_cpu_affinity().as_ref().unwrap();
        assert!(affinity.initial().is_none());
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_none());
        let rules = linux.resources().as_ref().unwrap().devices().as_ref();
        assert!(rules.unwrap()[0].typ().is_none());
    }

    #[test]
    fn rules_of_a_profile_may_leave_members_out() {
        let spec = read(json!({"linux": {"seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"action": "SCMP_ACT_ERRNO"},
                {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"op": "SCMP_CMP_EQ"}]},
            ],
        }}}))
        .unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let rules = linux.seccomp().as_ref().unwrap().syscalls().as_ref();
        assert!(rules.unwrap()[0].names().is_empty());
        assert_eq!(rules.unwrap()[1].args().as_ref().unwrap()[0].index(), 0);
        assert_eq!(
            wrong(json!({"linux": {"seccomp": {"syscalls": [{"names": ["read"]}]}}})),
            "linux.seccomp.syscalls[0].action: is missing"
        );
    }

    #[test]
    fn unknown_capabilities_are_left_out() {
        let names = ["CAP_CHOWN", "CAP_NO_SUCH", "chown", "KILL"];
        let spec = read(json!({"process": {"capabilities": {"bounding": names}}})).unwrap();
        let sets = spec.process().as_ref().unwrap().capabilities().as_ref();
        let bounding = sets.unwrap().bounding().as_ref().unwrap();
        assert_eq!(bounding.iter().collect::<Vec<_>>(), [&Capability::Chown]);
        assert_eq!(
            wrong(json!({"process": {"capabilities": {"bounding": [7]}}})),
            "process.capabilities.bounding[0]: invalid type: integer `7`, expected a string"
        );
    }

    #[test]
    fn names_of_the_specification_are_read() {
        let spec = read(json!({
            "process": {"scheduler": {"policy": "SCHED_DEADLINE",
                "flags": ["SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_RESET_ON_FORK"]}},
            "linux": {
                "intelRdt": {"enableCMT": true, "enableMBM": false},
                "resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": u64::MAX}]},
            },
        }))
        .unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(
            process.scheduler().as_ref().unwrap().flags().as_deref(),
            Some(
                [
                    LinuxSchedulerFlag::SchedFlagDLOverrun,
                    LinuxSchedulerFlag::SchedResetOnFork
                ]
                .as_slice()
            )
        );
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(
            linux.intel_rdt().as_ref().unwrap().enable_cmt(),
            &Some(true)
        );
        let limits = linux.resources().as_ref().unwrap().hugepage_limits();
        assert_eq!(limits.as_ref().unwrap()[0].limit(), i64::MAX);
    }
}
