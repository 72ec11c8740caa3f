//! `features`: what this program can do, in the form of the specification's `features.md`.

use anyhow::Result;
use clap::Args;
use serde_json::json;

/// The newest specification that is known here.
pub(super) const SPEC_VERSION: &str = "1.2.1";

#[derive(Debug, Args)]
pub(super) struct Features {}

impl Features {
    pub(super) fn run(self) -> Result<()> {
        let enabled = json!({"enabled": true});
        let features = json!({
            "ociVersionMin": "1.0.0",
            "ociVersionMax": SPEC_VERSION,
            "hooks": [
                "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
                "poststop",
            ],
            "mountOptions": runtime::mount_options(),
            "linux": {
                "namespaces": [
                    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
                ],
                "capabilities": runtime::capability_names(),
                "cgroup": {
                    "v1": false,
                    "v2": true,
                    "systemd": false,
                    "systemdUser": false,
                    "rdma": true,
                },
                "seccomp": {
                    "enabled": true,
                    "actions": [
                        "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL",
                        "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG",
                        "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                    ],
                    "operators": [
                        "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                        "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                    ],
                    "archs": [
                        "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_LOONGARCH64",
                        "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32",
                        "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32",
                        "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE",
                        "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_X32",
                        "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
                    ],
                    "knownFlags": [
                        "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                        "SECCOMP_FILTER_FLAG_TSYNC",
                    ],
                    "supportedFlags": [
                        "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                        "SECCOMP_FILTER_FLAG_TSYNC",
                    ],
                },
                "apparmor": enabled,
                "selinux": enabled,
                "intelRdt": {"enabled": false},
                "mountExtensions": {"idmap": enabled},
            },
            "annotations": {
                "io.joey.version": env!("CARGO_PKG_VERSION"),
            },
        });
        println!("{features:#}");
        Ok(())
    }
}
