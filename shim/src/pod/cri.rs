//! A pod by its CRI configuration, as the Sandbox API hands it over. What
//! containerd does with it for a sandbox that is a task is done here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::{Etc, Limits, PodSpec, Size, hostname, parse_resolv_conf};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::guest_spec::{self, SpecError};
use crate::shared::Plan;

#[allow(missing_docs, clippy::all)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}

use proto::cri::{DNSConfig, IDMapping, NamespaceMode, NamespaceOption, PodSandboxConfig};

/// Name of the message.
const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// What containerd 2 sets in each pod's network namespace by default, and the
/// Sandbox API does not tell: unprivileged ports and ICMP.
const DEFAULT_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Where the pod's own files come from.
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Most that is read of one of them, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The pod by CreateSandbox's options and network namespace.
///
/// # Errors
/// When the options are not a pod's configuration, or ask for what cannot be.
pub fn pod(
    options: Option<&Any>,
    netns: &str,
    namespace: &str,
    id: &str,
    config: &Config,
) -> Result<PodSpec> {
    let pod = parse(options)?;
    let etc = etc(&pod)?;
    let linux = pod.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let namespaces = context.namespace_options.unwrap_or_default();
    check_namespaces(&namespaces).map_err(Error::invalid)?;

    let resources = linux.resources.unwrap_or_default();
    let limits = Limits {
        memory: Some(resources.memory_limit_in_bytes),
        cpu_quota: Some(resources.cpu_quota),
        cpu_period: u64::try_from(resources.cpu_period).ok(),
        cpu_shares: Some(resources.cpu_shares),
    };
    let metadata = pod.metadata.unwrap_or_default();
    Ok(PodSpec {
        name: (metadata.name, metadata.namespace),
        netns: (!netns.is_empty()).then(|| netns.into()),
        cgroups_path: cgroups_path(&linux.cgroup_parent, namespace, id),
        size: Size::within(&limits, config),
        dns: Some(parse_resolv_conf(&String::from_utf8_lossy(
            &etc.resolv_conf,
        ))),
        sysctls: with_defaults(linux.sysctls),
        etc: Some(etc),
        hostname: pod.hostname,
    })
}

/// As [`pod`], for a pod on the host's kernel.
///
/// # Errors
/// When the options are not a pod's configuration, or a file cannot be read.
pub fn shared(options: Option<&Any>, netns: &str, namespace: &str, id: &str) -> Result<Plan> {
    let pod = parse(options)?;
    let etc = etc(&pod)?;
    let linux = pod.linux.unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let namespaces = context.namespace_options.unwrap_or_default();
    let node = NamespaceMode::NODE.into();
    let user = namespaces.userns_options.unwrap_or_default();
    // Unless it says so, the ids that it lists count for nothing.
    let own_users = user.mode == NamespaceMode::POD.into();
    let mappings = |list: &[IDMapping]| -> Result<Vec<LinuxIdMapping>> {
        let listed = list.iter().filter(|_| own_users);
        listed
            .map(|ids| {
                LinuxIdMappingBuilder::default()
                    .container_id(ids.container_id)
                    .host_id(ids.host_id)
                    .size(ids.length)
                    .build()
                    .map_err(Error::invalid)
            })
            .collect()
    };
    let own_network = namespaces.network != node && !netns.is_empty();
    Ok(Plan {
        netns: own_network.then(|| netns.into()),
        host_pids: namespaces.pid == node,
        host_ipc: namespaces.ipc == node,
        uids: mappings(&user.uids)?,
        gids: mappings(&user.gids)?,
        cgroups_path: cgroups_path(&linux.cgroup_parent, namespace, id),
        hostname: pod.hostname,
        sysctls: with_defaults(linux.sysctls),
        etc,
    })
}

/// What the pod's containers find in /etc.
fn etc(pod: &PodSandboxConfig) -> Result<Etc> {
    Ok(Etc {
        hostname: format!("{}\n", hostname(&pod.hostname)),
        hosts: read(HOSTS)?,
        resolv_conf: match resolv_conf(&pod.dns_config) {
            Some(text) => text.into_bytes(),
            None => read(RESOLV_CONF)?,
        },
    })
}

fn with_defaults(mut sysctls: HashMap<String, String>) -> HashMap<String, String> {
    for (name, value) in DEFAULT_SYSCTLS {
        sysctls.entry(name.into()).or_insert_with(|| value.into());
    }
    sysctls
}

fn parse(options: Option<&Any>) -> Result<PodSandboxConfig> {
    let Some(any) = options else {
        // `ctr sandboxes run` may give none.
        return Ok(PodSandboxConfig::default());
    };
    match any.type_url.rsplit('/').next() {
        Some("") => Ok(PodSandboxConfig::default()),
        Some(TYPE) => PodSandboxConfig::parse_from_bytes(&any.value)
            .map_err(|error| Error::Invalid(format!("the sandbox's {TYPE}: {error}"))),
        _ => Err(Error::Invalid(format!(
            "the sandbox's configuration is a {:?}, but must be a {TYPE}",
            any.type_url
        ))),
    }
}

fn check_namespaces(options: &NamespaceOption) -> std::result::Result<(), SpecError> {
    let node = NamespaceMode::NODE.into();
    for (mode, name, setting) in [
        (options.network, "network", "hostNetwork"),
        (options.pid, "pid", "hostPID"),
        (options.ipc, "ipc", "hostIPC"),
    ] {
        if mode == node {
            return Err(SpecError::HostNamespace(name, setting));
        }
    }
    let user = options.userns_options.clone().unwrap_or_default();
    let first = |list: &[IDMapping]| list.iter().map(|ids| ids.container_id).collect::<Vec<_>>();
    guest_spec::check_root_is_mapped(&first(&user.uids), &first(&user.gids))
}

/// As containerd names a sandbox's cgroup: below the parent, by the systemd
/// driver's form where the parent is a slice.
fn cgroups_path(parent: &str, namespace: &str, id: &str) -> PathBuf {
    if parent.is_empty() {
        return Path::new("/").join(namespace).join(id);
    }
    match Path::new(parent).file_name().and_then(|name| name.to_str()) {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}").into(),
        _ => Path::new(parent).join(id),
    }
}

/// The text for the pod's own settings; `None`: it has none, so the host's count.
fn resolv_conf(dns: &MessageField<DNSConfig>) -> Option<String> {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    (!text.is_empty()).then_some(text)
}

/// A file of the host for the pod; one that is missing is empty.
fn read(path: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::Failed(format!("cannot read {path}: {error}")))
        }
        _ => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::cri::{
        LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
        PodSandboxMetadata, UserNamespace,
    };

    fn any(config: &PodSandboxConfig) -> Any {
        Any {
            type_url: TYPE.into(),
            value: config.write_to_bytes().unwrap(),
            ..Default::default()
        }
    }

    fn made(config: &PodSandboxConfig) -> Result<PodSpec> {
        pod(
            Some(&any(config)),
            "/run/netns/x",
            "k8s.io",
            "abc",
            &Config {
                max_memory_mib: 4096,
                max_vcpus: 4,
                ..Config::default()
            },
        )
    }

    #[test]
    fn a_pods_configuration_is_read() {
        let config = PodSandboxConfig {
            metadata: MessageField::some(PodSandboxMetadata {
                name: "web".into(),
                namespace: "shop".into(),
                ..Default::default()
            }),
            hostname: "web-0".into(),
            dns_config: MessageField::some(DNSConfig {
                servers: vec!["10.0.0.10".into()],
                searches: vec!["a.svc".into(), "svc".into()],
                options: vec!["ndots:5".into()],
                ..Default::default()
            }),
            linux: MessageField::some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                sysctls: [("net.ipv4.ip_unprivileged_port_start".into(), "80".into())].into(),
                resources: MessageField::some(LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_quota: 250_000,
                    memory_limit_in_bytes: 512 << 20,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let pod = made(&config).unwrap();
        assert_eq!(pod.name, ("web".into(), "shop".into()));
        assert_eq!(pod.hostname, "web-0");
        assert_eq!(pod.netns.unwrap(), Path::new("/run/netns/x"));
        assert_eq!(pod.cgroups_path, Path::new("/kubepods/pod1/abc"));
        assert_eq!((pod.size.memory_mib, pod.size.vcpus), (256 + 512, 3));
        assert_eq!(pod.sysctls["net.ipv4.ip_unprivileged_port_start"], "80");
        assert_eq!(pod.sysctls["net.ipv4.ping_group_range"], "0 2147483647");
        assert_eq!(pod.dns.unwrap().searches, ["a.svc", "svc"]);
        let etc = pod.etc.unwrap();
        assert_eq!(etc.hostname, "web-0\n");
        assert_eq!(
            String::from_utf8(etc.resolv_conf).unwrap(),
            "search a.svc svc\nnameserver 10.0.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn fields_that_are_not_listed_are_skipped() {
        // log_directory (3), a label (6), an annotation (7).
        let mut options = any(&PodSandboxConfig {
            hostname: "h".into(),
            ..Default::default()
        });
        let extra = [
            &[0x1a, 1, b'/'][..],
            &[0x32, 6, 0x0a, 1, b'k', 0x12, 1, b'v'],
        ];
        options.value.extend(extra.concat());
        let pod = pod(Some(&options), "", "n", "abc", &Config::default()).unwrap();
        assert_eq!((pod.hostname.as_str(), pod.netns), ("h", None));
        assert_eq!(pod.cgroups_path, Path::new("/n/abc"));
    }

    #[test]
    fn namespaces_of_the_host_are_refused() {
        let refused = |options: NamespaceOption| {
            let config = PodSandboxConfig {
                linux: MessageField::some(LinuxPodSandboxConfig {
                    security_context: MessageField::some(LinuxSandboxSecurityContext {
                        namespace_options: MessageField::some(options),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            };
            made(&config).unwrap_err().to_string()
        };
        let node = NamespaceMode::NODE.into();
        for (options, setting) in [
            (
                NamespaceOption {
                    network: node,
                    ..Default::default()
                },
                "hostNetwork",
            ),
            (
                NamespaceOption {
                    pid: node,
                    ..Default::default()
                },
                "hostPID",
            ),
            (
                NamespaceOption {
                    ipc: node,
                    ..Default::default()
                },
                "hostIPC",
            ),
            (
                NamespaceOption {
                    userns_options: MessageField::some(UserNamespace {
                        uids: vec![IDMapping {
                            container_id: 1,
                            length: 10,
                            ..Default::default()
                        }],
                        ..Default::default()
                    }),
                    ..Default::default()
                },
                "no user id 0",
            ),
        ] {
            let said = refused(options);
            assert!(said.contains(setting), "{said}");
        }
    }

    #[test]
    fn on_the_hosts_kernel_a_pod_may_have_the_hosts_namespaces() {
        let plan = |network: NamespaceMode, user: NamespaceMode| {
            let options = NamespaceOption {
                network: network.into(),
                pid: network.into(),
                ipc: NamespaceMode::POD.into(),
                userns_options: MessageField::some(UserNamespace {
                    mode: user.into(),
                    uids: vec![IDMapping {
                        host_id: 1000,
                        container_id: 0,
                        length: 10,
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
                ..Default::default()
            };
            let config = PodSandboxConfig {
                linux: MessageField::some(LinuxPodSandboxConfig {
                    security_context: MessageField::some(LinuxSandboxSecurityContext {
                        namespace_options: MessageField::some(options),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            };
            shared(Some(&any(&config)), "/run/netns/x", "k8s.io", "abc").unwrap()
        };
        let host = plan(NamespaceMode::NODE, NamespaceMode::NODE);
        assert_eq!(
            (host.netns, host.host_pids, host.host_ipc),
            (None, true, false)
        );
        assert!(host.uids.is_empty());
        let own = plan(NamespaceMode::POD, NamespaceMode::POD);
        assert_eq!(own.netns.as_deref(), Some(Path::new("/run/netns/x")));
        assert!(!own.host_pids);
        assert_eq!(own.uids[0].host_id(), 1000);
    }

    #[test]
    fn other_options_are_refused_by_name() {
        let options = Any {
            type_url: "types.example.com/Other".into(),
            ..Default::default()
        };
        let error = pod(Some(&options), "", "n", "abc", &Config::default()).unwrap_err();
        assert!(error.to_string().contains("Other"), "{error}");
        let garbage = Any {
            type_url: TYPE.into(),
            value: vec![0xff],
            ..Default::default()
        };
        pod(Some(&garbage), "", "n", "abc", &Config::default()).unwrap_err();
    }

    #[test]
    fn cgroups_are_named_as_containerd_names_them() {
        let path = |parent| cgroups_path(parent, "k8s.io", "abc");
        assert_eq!(
            path("/kubepods.slice/kubepods-pod1.slice"),
            Path::new("kubepods-pod1.slice:cri-containerd:abc")
        );
        assert_eq!(path("/kubepods/pod1"), Path::new("/kubepods/pod1/abc"));
        assert_eq!(path(""), Path::new("/k8s.io/abc"));
    }
}
