//! What `-info` says about the OCI engine, in the form of `runc features`.
//!
//! containerd reads it before it maps the ids of a mount, and at its start to learn
//! whether a runtime handler has user namespaces and recursive read-only mounts.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::json;

/// containerd's name of the message.
const TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The features, as containerd takes them in a `RuntimeInfo`.
pub fn any() -> Any {
    Any {
        type_url: TYPE.into(),
        value: features().to_string().into_bytes(),
        ..Default::default()
    }
}

/// What the guest's engine does. Labels of the host's security modules are not among it:
/// they mean nothing in the guest.
fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        // The host's hooks do not run in the guest.
        "hooks": [],
        "mountOptions": [
            "async", "atime", "bind", "defaults", "dev", "diratime", "exec", "idmap",
            "noatime", "nodev", "nodiratime", "noexec", "norelatime", "nostrictatime",
            "nosuid", "nosymfollow", "private", "ratime", "rbind", "rdev", "rdiratime",
            "relatime", "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec",
            "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate",
            "rrelatime", "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid",
            "rsymfollow", "runbindable", "rw", "shared", "slave", "strictatime", "suid",
            "symfollow", "tmpcopyup", "unbindable",
        ],
        "linux": {
            "namespaces": [
                "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
            ],
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Features, LinuxNamespaceType};

    use super::*;

    #[test]
    fn the_features_are_those_of_the_runtime_spec() {
        let any = any();
        let features: Features = serde_json::from_slice(&any.value).unwrap();
        let options = features.mount_options().clone().unwrap();
        assert!(options.contains(&"rro".to_owned()));
        assert!(options.is_sorted());
        let linux = features.linux().clone().unwrap();
        let namespaces = linux.namespaces().clone().unwrap();
        assert!(namespaces.contains(&LinuxNamespaceType::User));
        let extensions = linux.mount_extensions().clone().unwrap();
        assert_eq!(*extensions.idmap().clone().unwrap().enabled(), Some(true));
    }
}
