//! Users, groups, capabilities, no_new_privs and labels.

use serde_json::{Value, json};

use crate::differential::case::{Case, case};

/// The five sets, of which those not named are empty.
fn sets(sets: Value) -> Value {
    let mut all =
        json!({"bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": []});
    if let (Some(all), Some(sets)) = (all.as_object_mut(), sets.as_object()) {
        all.extend(sets.clone());
    }
    json!({ "capabilities": all })
}

pub fn cases() -> Vec<Case> {
    let kill = json!(["CAP_KILL"]);
    let user = json!({"uid": 1000, "gid": 1000});
    vec![
        case("users/user").process(json!({"user": user})),
        case("users/groups").process(json!({"user": {"uid": 1000, "gid": 100, "additionalGids": [5, 50, 7]}})),
        case("users/groups-of-root").process(json!({"user": {"additionalGids": [5]}})),
        case("users/group-twice").process(json!({"user": {"additionalGids": [5, 5]}})),
        case("users/large-ids").process(json!({"user": {"uid": 4_000_000_000_u32, "gid": 4_000_000_001_u32}})),
        case("users/last-id").process(json!({"user": {"uid": u32::MAX, "gid": 0}})).says(&["uid", "user"]),
        case("users/beyond-ids").process(json!({"user": {"uid": 4_294_967_296_u64}})).says(&["uid", "4294967296"]),
        case("users/name").process(json!({"user": {"username": "ann"}})),
        case("users/missing").process(json!({"user": null})),
        case("capabilities/none").process(sets(json!({}))),
        case("capabilities/missing").process(json!({"capabilities": null})),
        case("capabilities/missing-for-a-user").process(json!({"capabilities": null, "user": user})),
        case("capabilities/all-five").process(sets(json!({
            "bounding": kill, "effective": kill, "permitted": kill, "inheritable": kill, "ambient": kill}))),
        case("capabilities/ambient-of-a-user")
            .process(sets(json!({
                "bounding": kill, "effective": kill, "permitted": kill, "inheritable": kill, "ambient": kill})))
            .process(json!({"user": user})),
        case("capabilities/ambient-not-inheritable")
            .process(sets(json!({"bounding": kill, "effective": kill, "permitted": kill, "ambient": kill})))
            .process(json!({"user": user})),
        case("capabilities/inheritable-alone").process(sets(json!({"inheritable": kill, "bounding": kill}))),
        case("capabilities/effective-not-permitted").process(sets(json!({"bounding": kill, "effective": kill})))
            .says(&["capabilit"]),
        case("capabilities/permitted-not-effective").process(sets(json!({"bounding": kill, "permitted": kill}))),
        case("capabilities/permitted-not-bounding").process(sets(json!({"effective": kill, "permitted": kill}))),
        case("capabilities/permitted-not-bounding-of-a-user")
            .process(sets(json!({"effective": kill, "permitted": kill})))
            .process(json!({"user": user})),
        case("capabilities/unknown").process(sets(json!({
            "bounding": ["CAP_KILL", "CAP_NEVER"], "effective": ["CAP_KILL", "CAP_NEVER"],
            "permitted": ["CAP_KILL", "CAP_NEVER"]}))),
        case("capabilities/lower-case").process(sets(json!({
            "bounding": ["cap_kill"], "effective": ["cap_kill"], "permitted": ["cap_kill"]}))),
        case("capabilities/without-prefix").process(sets(json!({"bounding": ["KILL"]}))),
        case("capabilities/twice").process(sets(json!({"bounding": ["CAP_KILL", "CAP_KILL"]}))),
        case("capabilities/a-list").process(json!({"capabilities": ["CAP_KILL"]})).says(&["capabilit", "array", "sequence"]),
        case("capabilities/many").process(sets(json!({
            "bounding": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_CHECKPOINT_RESTORE"],
            "effective": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_CHECKPOINT_RESTORE"],
            "permitted": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_PERFMON", "CAP_CHECKPOINT_RESTORE"]}))),
        case("privileges/new-privileges").process(json!({"noNewPrivileges": false})),
        case("privileges/new-privileges-missing").process(json!({"noNewPrivileges": null})),
        case("privileges/apparmor").process(json!({"apparmorProfile": "nowhere"})).says(&["apparmor"]),
        case("privileges/apparmor-unconfined").process(json!({"apparmorProfile": "unconfined"})),
        case("privileges/apparmor-empty").process(json!({"apparmorProfile": ""})),
        case("privileges/selinux").process(json!({"selinuxLabel": "system_u:system_r:container_t:s0"})).says(&["selinux"]),
        case("privileges/mount-label").linux(json!({"mountLabel": "system_u:object_r:container_file_t:s0"})),
    ]
}
