//! What a pod asks for: size, network, DNS, name. Read here from its sandbox's OCI
//! spec (podsandbox), in [`cri`] from its CRI configuration (Sandbox API).

pub mod cri;

use std::collections::HashMap;
use std::path::PathBuf;

use network::Endpoint;
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};
use protocol::guest::{ConfigureRequest, Dns, Interface, Route};

use crate::config::Config;
use crate::guest_spec::{self, SpecError};

/// containerd's annotations.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// The sandbox that a container belongs to.
pub const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The kernel's default, for a quota without one.
const DEFAULT_PERIOD: u64 = 100_000;

/// Shares that are one CPU.
const SHARES: u64 = 1024;

/// Most that is read of a resolv.conf, in bytes.
const MAX_RESOLV_CONF: usize = 64 << 10;

/// What a bundle is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pod's sandbox; no process of its own.
    Sandbox,
    /// A container in a pod.
    Container,
    /// A container without a pod (`ctr run`): it gets a sandbox to itself.
    Alone,
}

impl Kind {
    /// By containerd's annotation.
    pub fn of(spec: &Spec) -> Self {
        match annotation(spec, CONTAINER_TYPE) {
            Some("sandbox") => Self::Sandbox,
            Some(_) => Self::Container,
            None => Self::Alone,
        }
    }
}

/// One annotation's value.
pub fn annotation<'a>(spec: &'a Spec, key: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(key).map(String::as_str)
}

/// What a sandbox is made by, whichever of containerd's services asked for it.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its name and Kubernetes namespace; empty without a pod.
    pub name: (String, String),
    /// The network namespace that the CNI set up, if the pod has one.
    pub netns: Option<PathBuf>,
    /// As the OCI spec names it.
    pub cgroups_path: PathBuf,
    /// Of the VM.
    pub size: Size,
    /// The pod's name; empty: the host's.
    pub hostname: String,
    /// The resolver's settings; `None`: containers bring their own.
    pub dns: Option<Dns>,
    /// For the whole guest.
    pub sysctls: HashMap<String, String>,
    /// What containers find in /etc unless they mount something else there.
    /// containerd mounts its own unless the Sandbox API is used.
    pub etc: Option<Etc>,
}

/// Files that containerd writes for a sandbox that is a task, and leaves to the
/// shim otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etc {
    /// `/etc/hostname`.
    pub hostname: String,
    /// `/etc/hosts`.
    pub hosts: Vec<u8>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
}

impl Etc {
    /// Each file's path in containers, and its content.
    pub fn files(&self) -> [(&'static str, &[u8]); 3] {
        [
            ("/etc/hostname", self.hostname.as_bytes()),
            ("/etc/hosts", &self.hosts),
            ("/etc/resolv.conf", &self.resolv_conf),
        ]
    }
}

impl PodSpec {
    /// By the OCI spec of a sandbox, or of a container that has one to itself.
    ///
    /// # Errors
    /// When a sandbox is to have a namespace of the host.
    pub fn of_oci(
        spec: &Spec,
        namespace: &str,
        id: &str,
        config: &Config,
    ) -> Result<Self, SpecError> {
        if Kind::of(spec) == Kind::Sandbox {
            guest_spec::check_sandbox(spec)?;
        }
        let text = |key| annotation(spec, key).unwrap_or_default().to_owned();
        Ok(Self {
            name: (text(SANDBOX_NAME), text(SANDBOX_NAMESPACE)),
            netns: netns(spec),
            cgroups_path: cgroups_path(spec, namespace, id),
            size: Size::of(spec, config),
            hostname: spec.hostname().clone().unwrap_or_default(),
            dns: dns(spec),
            sysctls: sysctls(spec),
            etc: None,
        })
    }
}

/// A pod's limits, as far as they decide how large its VM is.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    memory: Option<i64>,
    cpu_quota: Option<i64>,
    cpu_period: Option<u64>,
    /// What is requested, in 1024ths of a CPU.
    cpu_shares: Option<i64>,
}

/// How large the pod's VM is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Guest memory.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u8,
}

impl Size {
    /// With limits that the whole pod is updated to. What they do not name stays.
    pub fn updated(self, resources: &LinuxResources, config: &Config) -> Self {
        let cpu = resources.cpu().as_ref();
        let limits = Limits {
            memory: resources.memory().and_then(|memory| memory.limit()),
            cpu_quota: cpu.and_then(|cpu| cpu.quota()),
            cpu_period: cpu.and_then(|cpu| cpu.period()),
            cpu_shares: cpu
                .and_then(|cpu| cpu.shares())
                .and_then(|shares| i64::try_from(shares).ok()),
        };
        let named = Self::within(&limits, config);
        let cpus_named = limits.cpu_quota.is_some() || limits.cpu_shares.is_some();
        Self {
            memory_mib: limits.memory.map_or(self.memory_mib, |_| named.memory_mib),
            vcpus: if cpus_named { named.vcpus } else { self.vcpus },
        }
    }

    /// By the pod's limits: those that containerd was told for the sandbox, or
    /// those of the one container. Without limits: the configuration's defaults. It has
    /// no fewer CPUs than are requested: containers without a limit do not count in
    /// the pod's.
    /// A limit is no request, so one that is above what the host has is lawful, and
    /// gets what there is.
    pub fn of(spec: &Spec, config: &Config) -> Self {
        let number = |key| -> Option<i64> { annotation(spec, key)?.parse().ok() };
        let resources = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().as_ref())
            .filter(|_| Kind::of(spec) == Kind::Alone);
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let limits = Limits {
            memory: number(MEMORY).or_else(|| resources?.memory().as_ref()?.limit()),
            cpu_quota: number(CPU_QUOTA).or_else(|| cpu?.quota()),
            cpu_period: number(CPU_PERIOD)
                .and_then(|period| u64::try_from(period).ok())
                .or_else(|| cpu?.period()),
            cpu_shares: number(CPU_SHARES).or_else(|| i64::try_from(cpu?.shares()?).ok()),
        };
        Self::within(&limits, config)
    }

    /// Of the VM that a template is made of.
    pub fn of_template(config: &Config) -> Self {
        Self {
            memory_mib: config.memory_mib,
            vcpus: config.vcpus,
        }
    }

    fn within(limits: &Limits, config: &Config) -> Self {
        let limit_mib = positive(limits.memory).map_or(0, |bytes| bytes.div_ceil(1 << 20));
        let wanted_mib = u64::from(config.memory_mib) + limit_mib;
        let requested = positive(limits.cpu_shares).map_or(0, |shares| shares.div_ceil(SHARES));
        let wanted_vcpus = cpus_of(limits.cpu_quota, limits.cpu_period)
            .unwrap_or_else(|| u64::from(config.vcpus))
            .max(requested);
        let memory_mib = u64::from(config.guest_memory_mib()).min(wanted_mib) as u32;
        let vcpus = wanted_vcpus.clamp(1, u64::from(config.guest_vcpus())) as u8;
        if wanted_mib > u64::from(memory_mib) {
            tracing::warn!(
                "the pod's limits make a VM of {wanted_mib} MiB; it gets {memory_mib} MiB, the \
                 most that the host or max_memory_mib allows"
            );
        }
        if wanted_vcpus > u64::from(vcpus) {
            tracing::warn!(
                "the pod's limits and requests make a VM of {wanted_vcpus} CPUs; it gets {vcpus}, the most \
                 that the host or max_vcpus allows"
            );
        }
        Self { memory_mib, vcpus }
    }
}

/// How many CPUs a quota comes to; `None`: it is no limit.
pub fn cpus_of(quota: Option<i64>, period: Option<u64>) -> Option<u64> {
    let period = period.filter(|period| *period > 0);
    Some(positive(quota)?.div_ceil(period.unwrap_or(DEFAULT_PERIOD)))
}

/// The same in thousandths, which add up without rounding.
pub fn millicpus_of(quota: Option<i64>, period: Option<u64>) -> Option<u64> {
    cpus_of(quota.map(|quota| quota.saturating_mul(1000)), period)
}

/// A limit; zero and less mean that there is none.
fn positive(limit: Option<i64>) -> Option<u64> {
    u64::try_from(limit?).ok().filter(|limit| *limit > 0)
}

/// The network namespace that the CNI set up, if the pod has one.
fn netns(spec: &Spec) -> Option<PathBuf> {
    spec.linux()
        .as_ref()?
        .namespaces()
        .as_deref()?
        .iter()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?
        .path()
        .clone()
        .filter(|path| !path.as_os_str().is_empty())
}

/// The pod's cgroup; containerd always names one, else it is one of ours.
fn cgroups_path(spec: &Spec, namespace: &str, id: &str) -> PathBuf {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone())
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or_else(|| PathBuf::from("/").join(namespace).join(id))
}

/// Everything that the guest is told before its first container.
pub fn configuration(
    pod: &PodSpec,
    id: &str,
    endpoint: Option<&Endpoint>,
    clock_ns: u64,
    entropy: Vec<u8>,
) -> ConfigureRequest {
    ConfigureRequest {
        sandbox_id: id.to_owned(),
        hostname: hostname(&pod.hostname),
        dns: pod.dns.clone().into(),
        interfaces: endpoint.map(interface).into_iter().collect(),
        routes: endpoint
            .map(|endpoint| endpoint.routes.iter().map(route).collect())
            .unwrap_or_default(),
        sysctls: pod.sysctls.clone(),
        clock_ns,
        entropy,
        shm_bytes: 0,
        // The others are brought online while the pod already runs.
        cpus: 1,
        ..Default::default()
    }
}

/// The same for no pod: what it touches in the guest is what a pod's touches. The addresses
/// are those of documentation (RFC 5737 and 3849).
pub fn rehearsal() -> ConfigureRequest {
    let route = |destination: &str, gateway: &str| Route {
        destination: destination.into(),
        gateway: gateway.into(),
        interface: "eth0".into(),
        ..Default::default()
    };
    ConfigureRequest {
        sandbox_id: "rehearsal".into(),
        hostname: "rehearsal".into(),
        dns: Some(Dns::default()).into(),
        interfaces: vec![Interface {
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec!["192.0.2.2/24".into(), "2001:db8::2/64".into()],
            ..Default::default()
        }],
        routes: vec![
            route("0.0.0.0/0", "192.0.2.1"),
            route("::/0", "2001:db8::1"),
        ],
        clock_ns: 1_700_000_000_000_000_000,
        entropy: vec![0; 64],
        cpus: 1,
        ..Default::default()
    }
}

/// The pod's name; a pod without one has the host's, as with any runtime.
fn hostname(name: &str) -> String {
    if !name.is_empty() {
        return name.to_owned();
    }
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

fn sysctls(spec: &Spec) -> HashMap<String, String> {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.sysctl().clone())
        .unwrap_or_default()
}

/// The resolv.conf that containerd wrote for the sandbox.
fn dns(spec: &Spec) -> Option<Dns> {
    let mounts = spec.mounts().as_deref()?;
    let source = mounts
        .iter()
        .find(|mount| mount.destination().as_os_str() == "/etc/resolv.conf")?
        .source()
        .as_deref()?;
    match std::fs::read(source) {
        Ok(text) if text.len() <= MAX_RESOLV_CONF => {
            Some(parse_resolv_conf(&String::from_utf8_lossy(&text)))
        }
        Ok(_) => {
            tracing::warn!(path = %source.display(), "resolv.conf is too long: not used");
            None
        }
        Err(error) => {
            tracing::warn!(path = %source.display(), %error, "cannot read the sandbox's resolv.conf");
            None
        }
    }
}

fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let keyword = words.next().unwrap_or_default();
        let words = words
            .take_while(|word| !word.starts_with(['#', ';']))
            .map(str::to_owned);
        match keyword {
            "nameserver" => dns.servers.extend(words.take(1)),
            // The last line of its kind counts (resolv.conf(5)).
            "search" | "domain" => dns.searches = words.collect(),
            "options" => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

fn interface(endpoint: &Endpoint) -> Interface {
    Interface {
        name: endpoint.name.clone(),
        mac: endpoint.mac.to_vec(),
        mtu: endpoint.mtu,
        addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

fn route(route: &network::Route) -> Route {
    let text = |ip: &Option<std::net::IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    Route {
        destination: route.destination.to_string(),
        gateway: text(&route.gateway),
        interface: route.interface.clone(),
        source: text(&route.source),
        mtu: route.mtu.unwrap_or_default(),
        scope: route.scope.into(),
        metric: route.metric,
        onlink: route.onlink,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(annotations: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "hostname": "web-0",
            "annotations": annotations,
            "linux": {
                "namespaces": [{"type": "network", "path": "/run/netns/cni-1"}],
                "resources": {"memory": {"limit": 1 << 30}, "cpu": {"quota": 400_000, "period": 100_000}},
                "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            },
        }))
        .unwrap()
    }

    fn size(annotations: serde_json::Value) -> (u32, u8) {
        let config = Config {
            max_memory_mib: 65536,
            max_vcpus: 32,
            ..Config::default()
        };
        let size = Size::of(&spec(annotations), &config);
        (size.memory_mib, size.vcpus)
    }

    #[test]
    fn a_pod_is_as_large_as_its_limits() {
        let sandbox = |memory: &str, quota: &str, period: &str| {
            json!({
                CONTAINER_TYPE: "sandbox", MEMORY: memory, CPU_QUOTA: quota, CPU_PERIOD: period,
            })
        };
        assert_eq!(
            size(sandbox("536870912", "150000", "100000")),
            (256 + 512, 2)
        );
        assert_eq!(size(sandbox("1", "1", "100000")), (257, 1));
        assert_eq!(size(sandbox("0", "0", "0")), (256, 1));
        assert_eq!(size(sandbox("-1", "-1", "100000")), (256, 1));
        assert_eq!(size(sandbox("x", "", "")), (256, 1));
        assert_eq!(
            size(sandbox("9223372036854775807", "9223372036854775807", "1")),
            (65536, 32)
        );
        let requested = |quota: &str, shares: &str| {
            size(json!({CONTAINER_TYPE: "sandbox", CPU_QUOTA: quota, CPU_SHARES: shares})).1
        };
        assert_eq!(requested("0", "4096"), 4);
        assert_eq!(requested("0", "2"), 1);
        assert_eq!(requested("50000", "2049"), 3);
        assert_eq!(requested("500000", "1024"), 5);
        // A sandbox without limits is not as large as its pause container.
        assert_eq!(size(json!({CONTAINER_TYPE: "sandbox"})), (256, 1));
    }

    #[test]
    fn a_container_alone_is_as_large_as_its_own_limits() {
        assert_eq!(size(json!({})), (256 + 1024, 4));
    }

    #[test]
    fn an_update_of_the_pod_changes_what_it_names() {
        let config = Config {
            max_memory_mib: 65536,
            max_vcpus: 32,
            ..Config::default()
        };
        let pod = Size {
            memory_mib: 768,
            vcpus: 2,
        };
        let updated = |resources| {
            let resources = serde_json::from_value(resources).unwrap();
            let size = pod.updated(&resources, &config);
            (size.memory_mib, size.vcpus)
        };
        assert_eq!(updated(json!({})), (768, 2));
        assert_eq!(updated(json!({"memory": {"limit": 1 << 30}})), (1280, 2));
        assert_eq!(updated(json!({"cpu": {"quota": 300_000}})), (768, 3));
        assert_eq!(updated(json!({"memory": {"limit": -1}})), (256, 2));
    }

    #[test]
    fn kinds_are_told_by_annotation() {
        let kind = |annotations| Kind::of(&spec(annotations));
        assert_eq!(kind(json!({CONTAINER_TYPE: "sandbox"})), Kind::Sandbox);
        assert_eq!(kind(json!({CONTAINER_TYPE: "container"})), Kind::Container);
        assert_eq!(kind(json!({})), Kind::Alone);
    }

    #[test]
    fn resolv_conf_is_read_as_the_resolver_does() {
        let dns = parse_resolv_conf(
            "# made by kubelet\nsearch old\nsearch a.svc b.svc # two\nnameserver 10.0.0.10\n\
             nameserver fd00::a\noptions ndots:5 edns0\n;nameserver 9.9.9.9\n",
        );
        assert_eq!(dns.servers, ["10.0.0.10", "fd00::a"]);
        assert_eq!(dns.searches, ["a.svc", "b.svc"]);
        assert_eq!(dns.options, ["ndots:5", "edns0"]);
    }

    #[test]
    fn the_guest_is_told_name_network_and_sysctls() {
        let endpoint = Endpoint {
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
            addresses: vec!["10.1.0.2/24".parse().unwrap()],
            routes: vec![network::Route {
                destination: "0.0.0.0/0".parse().unwrap(),
                gateway: Some("10.1.0.1".parse().unwrap()),
                interface: "eth0".into(),
                source: None,
                mtu: None,
                scope: 0,
                metric: 0,
                onlink: true,
            }],
            neighbours: vec![],
        };
        let spec = spec(json!({}));
        let pod = PodSpec::of_oci(&spec, "n", "abc", &Config::default()).unwrap();
        let request = configuration(&pod, "abc", Some(&endpoint), 7, vec![1]);
        assert_eq!(request.hostname, "web-0");
        assert_eq!(request.interfaces[0].addresses, ["10.1.0.2/24"]);
        assert_eq!(request.interfaces[0].mac, [2, 0, 0, 0, 0, 1]);
        assert_eq!(request.routes[0].gateway, "10.1.0.1");
        assert!(request.routes[0].onlink);
        assert_eq!(request.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(pod.netns.unwrap().to_str(), Some("/run/netns/cni-1"));
        assert_eq!(pod.cgroups_path.to_str(), Some("/n/abc"));
    }
}
