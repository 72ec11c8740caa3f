//! `/etc/joey/config.toml`: what the operator may set. Every key has a default,
//! so the file may be missing; a key that is not known is an error.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vmm::spec::{HOTPLUG_STEP_MIB, MAX_MEMORY_MIB};

/// Read when neither the environment nor containerd names another file.
pub const DEFAULT_PATH: &str = "/etc/joey/config.toml";

/// Environment variable that names another file.
pub const PATH_VARIABLE: &str = "JOEY_CONFIG";

/// Most vCPUs that the VMM takes.
const MAX_VCPUS: u8 = 32;
/// vCPUs that a guest may have even where the host has fewer: they take turns.
const FEW_VCPUS: u8 = 4;
const MIN_MEMORY_MIB: u32 = 64;
const MIN_SCRATCH_MIB: u64 = 16;

/// What pods run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A microVM each.
    #[default]
    Vm,
    /// The host's kernel, as with runc.
    Runc,
}

impl Mode {
    /// What the name says that this program was started by: `containerd-shim-joey-runc-v2` is
    /// of the runtime type `io.containerd.joey-runc.v2`. By the Sandbox API containerd 2.1
    /// starts no containers of a handler that has options.
    pub fn of_program(name: &OsStr) -> Option<Self> {
        let file = Path::new(name).file_name()?;
        (file == "containerd-shim-joey-runc-v2").then_some(Self::Runc)
    }
}

/// The operator's settings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What pods run on. With `runc` nothing else here counts.
    pub mode: Mode,
    /// The guest kernel: an uncompressed x86-64 ELF (`vmlinux`).
    pub kernel: PathBuf,
    /// The initramfs that holds the agent: a cpio archive.
    pub agent: PathBuf,
    /// The `joey-vmm` binary.
    pub vmm: PathBuf,
    /// The `virtiofsd` binary, for pods with volumes; without it the places where
    /// distributions have it are searched.
    pub virtiofsd: Option<PathBuf>,
    /// What lives no longer than the host's boot: sockets and records.
    pub state_dir: PathBuf,
    /// Image blobs and the scratch template; on a disk with room.
    pub data_dir: PathBuf,
    /// Guest memory of a pod, in MiB, on top of the pod's own memory limit.
    pub memory_mib: u32,
    /// Upper bound of a guest's memory in MiB, whatever the pod asks for; 0: what
    /// the host has.
    pub max_memory_mib: u32,
    /// vCPUs of a pod without a CPU limit.
    pub vcpus: u8,
    /// Upper bound of a pod's vCPUs; 0: as many as the host has processors, at least 4.
    pub max_vcpus: u8,
    /// Whether sandboxes start from a template, which the first one has made, instead of
    /// booting each.
    pub templates: bool,
    /// Most VMs that wait for a pod, restored from the template ahead of time; 0: none.
    pub pool_max: u32,
    /// Size of a pod's scratch disk in MiB. It is sparse: only what the pod
    /// writes is used.
    pub scratch_mib: u64,
    /// First user id that VMMs run as; each runs as one of its own.
    pub uid_base: u32,
    /// How many user ids from `uid_base` on are joey's.
    pub uid_count: u32,
    /// Whether the guest's kernel messages go to `console.log` in the sandbox's
    /// state directory. Slows the start.
    pub console: bool,
    /// What `joeyctl console` runs in the guest: a static executable of the host;
    /// without it there are no consoles.
    pub debug_shell: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            kernel: "/usr/local/share/joey/vmlinux".into(),
            agent: "/usr/local/share/joey/agent.cpio".into(),
            vmm: "/usr/local/bin/joey-vmm".into(),
            virtiofsd: None,
            state_dir: "/run/joey".into(),
            data_dir: "/var/lib/joey".into(),
            memory_mib: 256,
            max_memory_mib: 0,
            vcpus: 1,
            max_vcpus: 0,
            templates: true,
            pool_max: 16,
            scratch_mib: 10240,
            uid_base: 1_885_000_000,
            uid_count: 65536,
            console: false,
            debug_shell: None,
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists but cannot be read, or was named and does not exist.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key or a value of the wrong type.
    #[error("configuration {origin}, line {line}: {message}")]
    Parse {
        /// The file, or where else the text is from.
        origin: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong; an unknown key is named beside the known ones.
        message: String,
    },
    /// A value that cannot work.
    #[error("configuration {origin}: {key} is {value}, but must be {must}")]
    Value {
        /// The file, or where else the text is from.
        origin: String,
        /// The key.
        key: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        must: String,
    },
}

impl Config {
    /// The configuration of this host: the file that [`PATH_VARIABLE`] names,
    /// else [`DEFAULT_PATH`], else the defaults.
    ///
    /// # Errors
    /// When the file cannot be read or is wrong; a missing default file is not.
    pub fn load() -> Result<Self, ConfigError> {
        match std::env::var_os(PATH_VARIABLE) {
            Some(path) => Self::read(Path::new(&path)),
            None => match Self::read(Path::new(DEFAULT_PATH)) {
                Err(ConfigError::Read { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    Ok(Self::default())
                }
                other => other,
            },
        }
    }

    /// Reads one file.
    ///
    /// # Errors
    /// When it is missing, unreadable or wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads a text; `origin` stands for its file in errors.
    ///
    /// # Errors
    /// When it is not TOML, has an unknown key or a value that cannot work.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            ConfigError::Parse {
                origin: origin.to_owned(),
                line: 1 + text.as_bytes()[..start]
                    .iter()
                    .filter(|byte| **byte == b'\n')
                    .count(),
                message: error.message().replace('\n', " "),
            }
        })?;
        config.check(origin)?;
        Ok(config)
    }

    /// Most memory that a guest gets, in MiB: what the operator says, else what the
    /// host has. Never less than a pod without a limit gets.
    pub fn guest_memory_mib(&self) -> u32 {
        match self.max_memory_mib {
            0 => host_memory_mib().max(self.memory_mib),
            max => max,
        }
    }

    /// MiB by which a guest may grow beyond what it boots with, in the steps that Linux
    /// adds memory in. The same for all pods.
    pub fn hotplug_mib(&self) -> u32 {
        let steps = |mib: u32| mib / HOTPLUG_STEP_MIB;
        let room = steps(MAX_MEMORY_MIB.saturating_sub(self.memory_mib));
        let more = self.guest_memory_mib().saturating_sub(self.memory_mib);
        more.div_ceil(HOTPLUG_STEP_MIB).min(room) * HOTPLUG_STEP_MIB
    }

    /// Whether starts go on from a template. A VM with a console shows how it boots.
    pub fn uses_templates(&self) -> bool {
        self.templates && !self.console
    }

    /// Most vCPUs that a guest gets: what the operator says, else what the host has, and
    /// on a small host a few more. All VMs are made for as many.
    pub fn guest_vcpus(&self) -> u8 {
        match self.max_vcpus {
            0 => host_cpus().clamp(FEW_VCPUS, MAX_VCPUS).max(self.vcpus),
            max => max,
        }
    }

    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let wrong = |key, value: &dyn ToString, must: String| {
            Err(ConfigError::Value {
                origin: origin.to_owned(),
                key,
                value: value.to_string(),
                must,
            })
        };
        for (key, path) in [
            ("kernel", &self.kernel),
            ("agent", &self.agent),
            ("vmm", &self.vmm),
            ("state_dir", &self.state_dir),
            ("data_dir", &self.data_dir),
        ]
        .into_iter()
        .chain(self.virtiofsd.as_ref().map(|path| ("virtiofsd", path)))
        .chain(self.debug_shell.as_ref().map(|path| ("debug_shell", path)))
        {
            if !path.is_absolute() {
                return wrong(key, &path.display(), "an absolute path".into());
            }
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return wrong(
                "memory_mib",
                &self.memory_mib,
                format!("{MIN_MEMORY_MIB} or more"),
            );
        }
        if self.max_memory_mib != 0 && self.max_memory_mib < self.memory_mib {
            return wrong(
                "max_memory_mib",
                &self.max_memory_mib,
                format!("memory_mib ({}) or more, or 0", self.memory_mib),
            );
        }
        if self.max_vcpus > MAX_VCPUS {
            return wrong("max_vcpus", &self.max_vcpus, format!("0 to {MAX_VCPUS}"));
        }
        let max_vcpus = match self.max_vcpus {
            0 => MAX_VCPUS,
            max => max,
        };
        if !(1..=max_vcpus).contains(&self.vcpus) {
            return wrong(
                "vcpus",
                &self.vcpus,
                format!("1 to max_vcpus ({max_vcpus})"),
            );
        }
        if self.scratch_mib < MIN_SCRATCH_MIB {
            return wrong(
                "scratch_mib",
                &self.scratch_mib,
                format!("{MIN_SCRATCH_MIB} or more"),
            );
        }
        if self.uid_base == 0 {
            return wrong(
                "uid_base",
                &self.uid_base,
                "above 0: a VMM never runs as root".into(),
            );
        }
        // The last id, u32::MAX, means "none" to the kernel.
        if self.uid_count == 0 || self.uid_base.checked_add(self.uid_count).is_none() {
            return wrong(
                "uid_count",
                &self.uid_count,
                "above 0, and uid_base + uid_count below 4294967296".into(),
            );
        }
        Ok(())
    }
}

fn host_memory_mib() -> u32 {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: Option<u64> = table
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .and_then(|kib| kib.parse().ok());
    // Without a number there is no bound but that of the field.
    kib.map_or(u32::MAX, |kib| u32::try_from(kib >> 10).unwrap_or(u32::MAX))
}

fn host_cpus() -> u8 {
    // Not what this process may use: that is the pod's limit, or containerd's.
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    let online = online.ok().flatten().unwrap_or(1);
    u8::try_from(online.max(1)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_its_mode_by_name() {
        let of = |name: &str| Mode::of_program(OsStr::new(name));
        assert_eq!(
            of("/usr/local/bin/containerd-shim-joey-runc-v2"),
            Some(Mode::Runc)
        );
        assert_eq!(of("containerd-shim-joey-v2"), None);
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse("", "c").unwrap();
        assert_eq!(config, Config::default());
        config.check("defaults").unwrap();
    }

    #[test]
    fn an_unknown_key_is_named_with_file_line_and_the_known_keys() {
        let text = "vcpus = 2\n\nmemori_mib = 5\n";
        let error = Config::parse(text, "/etc/joey/config.toml")
            .unwrap_err()
            .to_string();
        for part in [
            "/etc/joey/config.toml",
            "line 3",
            "memori_mib",
            "memory_mib",
            "kernel",
        ] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_line() {
        let error = Config::parse("console = 1", "c").unwrap_err();
        assert!(
            matches!(error, ConfigError::Parse { line: 1, .. }),
            "{error}"
        );
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for (text, key) in [
            ("kernel = 'vmlinux'", "kernel"),
            ("virtiofsd = 'virtiofsd'", "virtiofsd"),
            ("debug_shell = ''", "debug_shell"),
            ("memory_mib = 63", "memory_mib"),
            ("max_memory_mib = 64", "max_memory_mib"),
            ("vcpus = 0", "vcpus"),
            ("vcpus = 3\nmax_vcpus = 2", "vcpus"),
            ("max_vcpus = 33", "max_vcpus"),
            ("scratch_mib = 1", "scratch_mib"),
            ("uid_base = 0", "uid_base"),
            ("uid_base = 4294967000", "uid_count"),
        ] {
            match Config::parse(text, "c") {
                Err(ConfigError::Value { key: named, .. }) => assert_eq!(named, key, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_guest_is_not_larger_than_the_host_unless_the_operator_says_so() {
        let config = Config::default();
        assert_eq!(
            config.guest_memory_mib(),
            host_memory_mib().max(config.memory_mib)
        );
        assert_eq!(config.guest_vcpus(), host_cpus().clamp(4, MAX_VCPUS));
        let config = Config::parse("max_memory_mib = 99999999\nmax_vcpus = 32", "c").unwrap();
        assert_eq!(
            (config.guest_memory_mib(), config.guest_vcpus()),
            (99_999_999, 32)
        );
        assert_eq!(config.hotplug_mib(), 999_680);
        let config = Config::parse("max_memory_mib = 1000", "c").unwrap();
        assert_eq!(config.hotplug_mib(), 768);
        let config = Config::parse("max_memory_mib = 256", "c").unwrap();
        assert_eq!(config.hotplug_mib(), 0);
        // What every pod gets must work even on a host that is smaller.
        let config = Config::parse("memory_mib = 4000000000\nvcpus = 32", "c").unwrap();
        assert_eq!(
            (config.guest_memory_mib(), config.guest_vcpus()),
            (4_000_000_000, 32)
        );
    }

    #[test]
    fn a_named_file_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let error = Config::read(&dir.path().join("none.toml")).unwrap_err();
        assert!(error.to_string().contains("none.toml"));
    }
}
