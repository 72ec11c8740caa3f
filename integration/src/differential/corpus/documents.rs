//! Specs as documents: what is missing, of the wrong type or of another version.

use serde_json::json;

use crate::differential::case::{Case, Step, case};

pub fn cases() -> Vec<Case> {
    vec![
        case("documents/base"),
        case("documents/not-json").document("{\"ociVersion\": \"1.2.0\",").says(&["config.json", "json", "eof"]),
        case("documents/empty").document("").says(&["config.json", "json", "eof"]),
        case("documents/a-list").document("[]").says(&["config.json", "json", "spec", "sequence"]),
        case("documents/no-config")
            .host("rm {bundle}/config.json", "")
            .says(&["config.json"]),
        case("documents/no-bundle")
            .steps(vec![Step::Call(vec!["create", "--bundle", "{dir}/nowhere", "{id}"])])
            .says(&["nowhere"]),
        case("documents/args-are-text").process(json!({"args": "true"})).says(&["args", "string"]),
        case("documents/uid-is-text").process(json!({"user": {"uid": "0"}})).says(&["uid", "string"]),
        case("documents/uid-is-negative").process(json!({"user": {"uid": -1}})).says(&["uid", "-1"]),
        case("documents/mounts-are-an-object").merge(json!({"mounts": {}})).says(&["mounts", "map", "sequence"]),
        case("documents/without-version").merge(json!({"ociVersion": null})),
        case("documents/version-2").merge(json!({"ociVersion": "2.0.0"})),
        case("documents/version-1.0.0").merge(json!({"ociVersion": "1.0.0"})),
        case("documents/version-1.3.0").merge(json!({"ociVersion": "1.3.0"})),
        case("documents/version-0.6.0").merge(json!({"ociVersion": "0.6.0"})),
        case("documents/version-of-words").merge(json!({"ociVersion": "newest"})),
        case("documents/without-root").merge(json!({"root": null})).says(&["root"]),
        case("documents/without-process").merge(json!({"process": null})).says(&["process"]),
        case("documents/without-linux").merge(json!({"linux": null})).says(&["linux", "namespace"]),
        case("documents/without-mounts")
            .merge(json!({"mounts": null, "linux": {"maskedPaths": null, "readonlyPaths": null}}))
            .script("echo there is no proc; ls /proc"),
        case("documents/root-is-missing")
            .merge(json!({"root": {"path": "nowhere"}}))
            .says(&["nowhere"]),
        case("documents/root-is-a-file")
            .merge(json!({"root": {"path": "config.json"}}))
            .says(&["root", "config.json"]),
        case("documents/root-is-a-link")
            .host("ln -s rootfs {bundle}/link", "")
            .merge(json!({"root": {"path": "link"}}))
            .says(&["root"]),
        case("documents/root-is-absolute").merge(json!({"root": {"path": "{rootfs}"}})),
        case("documents/root-is-empty").merge(json!({"root": {"path": ""}})).says(&["root"]),
        case("documents/root-has-dots").merge(json!({"root": {"path": "./x/../rootfs/."}})),
        case("documents/unknown-members")
            .merge(json!({"unheardOf": {"a": 1}}))
            .process(json!({"unheardOf": true}))
            .linux(json!({"unheardOf": [1]})),
        case("documents/other-platforms")
            .merge(json!({"solaris": {"milestone": "x"}, "windows": {"layerFolders": ["c:\\"]}})),
        case("documents/annotations")
            .merge(json!({"annotations": {"org.example.a": "1", "org.example.b": ""}})),
        case("documents/annotation-is-a-number")
            .merge(json!({"annotations": {"org.example.a": 1}}))
            .says(&["annotations", "string"]),
        case("documents/member-twice").document(
            "{\"ociVersion\": \"1.2.0\", \"ociVersion\": \"1.2.0\", \"root\": {\"path\": \"rootfs\"},
              \"process\": {\"user\": {\"uid\": 0, \"gid\": 0}, \"args\": [\"/bin/true\"], \"cwd\": \"/\"},
              \"linux\": {\"cgroupsPath\": \"/differential/{id}\", \"namespaces\": [{\"type\": \"mount\"}, {\"type\": \"pid\"}]}}",
        ),
        case("documents/smallest").document(
            "{\"ociVersion\": \"1.2.0\", \"root\": {\"path\": \"rootfs\"},
              \"process\": {\"user\": {\"uid\": 0, \"gid\": 0}, \"args\": [\"/bin/sh\", \"-c\", \"echo $HOME; ls /proc; pwd\"], \"cwd\": \"/\"},
              \"linux\": {\"cgroupsPath\": \"/differential/{id}\", \"namespaces\": [{\"type\": \"mount\"}, {\"type\": \"pid\"}]}}",
        ),
        case("documents/vm-section").merge(json!({"vm": {"kernel": {"path": "/x"}}})),
        case("documents/intel-rdt")
            .linux(json!({"intelRdt": {"closID": "a", "l3CacheSchema": "L3:0=f"}}))
            .says(&["intelrdt", "rdt"]),
        case("documents/net-devices-missing")
            .linux(json!({"netDevices": {"nothere0": {"name": "eth0"}}})),
    ]
}
