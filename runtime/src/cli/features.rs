//! `features`: what this program can do, in the form of the specification's `features.md`.

use anyhow::Result;
use clap::Args;
use libseccomp::ScmpVersion;
use oci_spec::runtime::{
    Arch, Hooks, LinuxNamespaceType, LinuxSeccompAction, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, MemoryPolicyFlagType, MemoryPolicyModeType,
};
use serde::de::{DeserializeOwned, Deserializer, Visitor, value::Error};
use serde_json::{Value, json};

/// The newest specification that is known here.
macro_rules! spec_version {
    () => {
        "1.2.1"
    };
}
pub(super) use spec_version;

/// The runc whose place this takes.
const RUNC_VERSION: &str = "1.3.0";

#[derive(Debug, Args)]
pub(super) struct Features {}

impl Features {
    pub(super) fn run(self) -> Result<()> {
        println!("{:#}", features());
        Ok(())
    }
}

fn features() -> Value {
    let enabled = json!({"enabled": true});
    let flags = names::<LinuxSeccompFilterFlag>();
    let supported: Vec<&str> = flags
        .iter()
        .copied()
        .filter(|name| name.parse().is_ok_and(runtime::has_filter_flag))
        .collect();
    let mut annotations = json!({
        "io.joey.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.runc.version": RUNC_VERSION,
        "org.opencontainers.runc.checkpoint.enabled": "true",
    });
    if let Ok(library) = ScmpVersion::current() {
        annotations["io.github.seccomp.libseccomp.version"] = library.to_string().into();
    }
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec_version!(),
        "hooks": names::<Hooks>(),
        "mountOptions": runtime::mount_options(),
        "linux": {
            "namespaces": names::<LinuxNamespaceType>(),
            "capabilities": runtime::capability_names(),
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                "systemdUser": true,
                "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": names::<LinuxSeccompAction>(),
                "operators": names::<LinuxSeccompOperator>(),
                "archs": names::<Arch>(),
                "knownFlags": flags,
                "supportedFlags": supported,
            },
            "apparmor": enabled,
            "selinux": enabled,
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": names::<MemoryPolicyModeType>(),
                "flags": names::<MemoryPolicyFlagType>(),
            },
            "mountExtensions": {"idmap": enabled},
            "netDevices": enabled,
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config", "org.systemd.property."],
    })
}

/// The names that a document may use for a `T`, of which the engine knows every one: those of an
/// enum's variants, or of a struct's members.
fn names<T: DeserializeOwned>() -> Vec<&'static str> {
    let mut names = Vec::new();
    // It cannot succeed: no value is given.
    let _ = T::deserialize(Names(&mut names));
    names.sort_unstable();
    names
}

/// Notes what could be read from it.
struct Names<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.extend(variants);
        visitor.visit_unit()
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.extend(fields);
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of callers that look for a feature, by the names of the specification and of runc.
    #[test]
    fn features_have_the_names_that_callers_look_for() {
        let features = features();
        let has = |pointer: &str, name: &str| {
            let list = features.pointer(pointer).and_then(Value::as_array).unwrap();
            assert!(list.iter().any(|item| item == name), "{pointer}: {list:?}");
        };
        has("/hooks", "createRuntime");
        has("/linux/namespaces", "mount");
        has("/linux/seccomp/actions", "SCMP_ACT_NOTIFY");
        has("/linux/seccomp/actions", "SCMP_ACT_KILL_PROCESS");
        has("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ");
        has("/linux/seccomp/archs", "SCMP_ARCH_X86_64");
        has("/linux/seccomp/archs", "SCMP_ARCH_MIPSEL64N32");
        has(
            "/linux/seccomp/knownFlags",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        );
        has("/linux/seccomp/supportedFlags", "SECCOMP_FILTER_FLAG_LOG");
        has("/linux/memoryPolicy/modes", "MPOL_WEIGHTED_INTERLEAVE");
        has("/linux/memoryPolicy/flags", "MPOL_F_STATIC_NODES");
        let counts = [
            ("/hooks", 6),
            ("/linux/namespaces", 8),
            ("/linux/seccomp/operators", 7),
        ];
        for (pointer, count) in counts {
            let list = features.pointer(pointer).and_then(Value::as_array).unwrap();
            assert_eq!(list.len(), count, "{pointer}: {list:?}");
        }
    }

    #[test]
    fn features_can_be_read_by_the_specifications_types() {
        let read = serde_json::from_value::<oci_spec::runtime::Features>(features()).unwrap();
        assert_eq!(read.oci_version_max(), spec_version!());
        let linux = read.linux().as_ref().unwrap();
        assert_eq!(linux.intel_rdt().as_ref().unwrap().enabled(), &Some(true));
    }
}
