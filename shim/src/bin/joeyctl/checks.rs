//! The checks of `joeyctl doctor`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use shim::config::Config;
use shim::error::chain;
use shim::host::{cgroup, files, remains};
use vmm::probe::{self, Outcome};

use crate::doctor::Finding::{self, Bad, Good, Poor};

/// How long the probe's guest may run. A real one needs milliseconds; emulated
/// virtualization within an emulated machine still less than this.
const PROBE_TIME: Duration = Duration::from_secs(15);

/// Free space below which images soon do not fit.
const SCARCE_BYTES: u64 = 1 << 30;

/// Kernel that first has the links that end with their holder (6.6).
const LINK_KERNEL: (u32, u32) = (6, 6);

pub fn user() -> Finding {
    if nix::unistd::geteuid().is_root() {
        Good("root, as containerd and the shim are".into())
    } else {
        Bad("the shim runs as root, and so should this check: use sudo".into())
    }
}

/// Whether KVM is there, for us, and runs what every kernel runs.
pub fn kvm() -> Finding {
    let kvm = match files::kvm() {
        Ok(kvm) => kvm,
        Err(error) => return Bad(format!("{}{}", chain(&error), cpu_note())),
    };
    match probe::run(kvm.into(), PROBE_TIME) {
        Ok(Outcome::Works(time)) => Good(format!(
            "runs ordinary guests: {} million instructions in {:.1} ms{}",
            probe::LOOP_INSTRUCTIONS / 1_000_000,
            time.as_secs_f64() * 1e3,
            flavour().map_or(String::new(), |name| format!(" ({name})"))
        )),
        Ok(Outcome::Stuck(step)) => Bad(format!(
            "/dev/kvm is there, but a test guest did not finish \"{step}\" within {} s{}",
            PROBE_TIME.as_secs(),
            advice()
        )),
        Ok(Outcome::Failed { step, reason }) => Bad(format!(
            "/dev/kvm is there, but a test guest failed in \"{step}\" ({reason}){}",
            advice()
        )),
        Err(error) => Bad(format!("{}{}", chain(&error), advice())),
    }
}

/// The KVM module in charge, if it says so.
fn flavour() -> Option<&'static str> {
    ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .into_iter()
        .find(|module| Path::new("/sys/module").join(module).exists())
}

fn advice() -> String {
    match flavour() {
        Some("kvm_pvm") => ": this KVM is PVM (module kvm_pvm), a software flavour that emulates \
             what ordinary kernels do when they boot; use a machine with hardware \
             virtualization, or ask its provider for nested VT-x/AMD-V"
            .into(),
        Some(module) => format!(": update the host's kernel, or look in its log for {module}"),
        None => format!(
            ": neither kvm_intel nor kvm_amd is in charge, so this is a software flavour that \
             does not run ordinary kernels; use a machine with hardware virtualization{}",
            cpu_note()
        ),
    }
}

/// What the CPU says about virtualization, if that explains a missing KVM.
fn cpu_note() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpu
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let has = |name| flags.split_ascii_whitespace().any(|flag| flag == name);
    if has("vmx") || has("svm") {
        String::new()
    } else if has("hypervisor") {
        "; this machine is itself virtual and its CPU shows no VT-x or AMD-V: \
         have nested virtualization switched on"
            .into()
    } else {
        "; its CPU shows no VT-x or AMD-V: switch it on in the firmware".into()
    }
}

pub fn kernel(config: &Config) -> Finding {
    file(&config.kernel, files::kernel(&config.kernel).err())
}

pub fn agent(config: &Config) -> Finding {
    file(&config.agent, files::agent(&config.agent).err())
}

pub fn vmm(config: &Config) -> Finding {
    if let Err(error) = files::vmm(&config.vmm) {
        return Bad(chain(&error));
    }
    match output(Command::new(&config.vmm).arg("--version")) {
        Ok(version) => Good(format!("{} ({version})", config.vmm.display())),
        Err(reason) => Bad(format!("{}: {reason}", config.vmm.display())),
    }
}

/// Pods without volumes of the host need none, so a missing one is only poor.
pub fn virtiofsd(config: &Config) -> Finding {
    let path = match shim::volumes::find_daemon(config.virtiofsd.as_deref()) {
        Ok(path) => path,
        Err(error) => return Poor(chain(&error)),
    };
    match output(Command::new(&path).arg("--version")) {
        Ok(version) => Good(format!("{} ({version})", path.display())),
        Err(reason) => Poor(format!("{}: {reason}", path.display())),
    }
}

fn file(path: &Path, error: Option<files::FileError>) -> Finding {
    match error {
        None => Good(path.display().to_string()),
        Some(error) => Bad(chain(&error)),
    }
}

pub fn tool(name: &str, package: &str) -> Finding {
    match find(name) {
        Some(path) => Good(path.display().to_string()),
        None => Bad(format!("not found in PATH: install {package}")),
    }
}

pub fn shim_binary() -> Finding {
    let name = "containerd-shim-joey-v2";
    match find(name) {
        Some(path) => Good(path.display().to_string()),
        None => Poor(format!(
            "{name} is not in this PATH; containerd needs it in its own, or as `runtime_path`"
        )),
    }
}

/// A program in PATH.
fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| {
            path.metadata().is_ok_and(|metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
            })
        })
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(format!("ended with {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

pub fn cgroup() -> Finding {
    let root = Path::new(cgroup::ROOT);
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
        return Bad(chain(&cgroup::CgroupError::NotUnified));
    };
    let missing: Vec<_> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !controllers.split_ascii_whitespace().any(|has| has == *name))
        .collect();
    if missing.is_empty() {
        Good(format!("version 2 with {}", controllers.trim()))
    } else {
        Poor(format!(
            "version 2, but without {}: pods are not limited by it",
            missing.join(", ")
        ))
    }
}

pub fn tun() -> Finding {
    let path = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Good(path.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Bad(format!("{path} is missing: modprobe tun"))
        }
        Err(error) => Bad(format!("cannot open {path}: {error}")),
    }
}

pub fn bpf() -> Finding {
    // The kernel has this switch if and only if it has the system call.
    if !Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists() {
        return Bad("this kernel is built without CONFIG_BPF_SYSCALL: use one that has it".into());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if version(release).is_some_and(|version| version >= LINK_KERNEL) {
        Good(format!(
            "kernel {release}, which ends links with their holder"
        ))
    } else {
        Poor(format!(
            "kernel {release} is older than 6.6: a killed shim leaves its filters until the pod's \
             network namespace goes"
        ))
    }
}

/// Major and minor number of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether a VMM can have a user namespace, without which it refuses to run.
pub fn user_namespaces() -> Finding {
    let path = "/proc/sys/user/max_user_namespaces";
    user_namespaces_of(fs::read_to_string(path).ok().as_deref().map(str::trim))
}

/// `most` is what the sysctl says, if it is there.
fn user_namespaces_of(most: Option<&str>) -> Finding {
    match most {
        None => Bad("this kernel is built without CONFIG_USER_NS: use one that has it".into()),
        Some("0") => Bad(
            "forbidden, so that no VMM can be locked up: sysctl user.max_user_namespaces=1, or more"
                .into(),
        ),
        // Each VMM has a user id of its own, and the limit is one of each user.
        Some(most) => Good(format!("up to {most} of each user, one is enough")),
    }
}

/// Whether the VMM's jail has the layer that some kernels lack.
pub fn landlock() -> Finding {
    match vmm::landlock::version() {
        Ok(Some(version)) => Good(format!("version {version}")),
        Ok(None) => Poor(
            "this kernel has none, or is booted without it: VMMs have one layer less around them; \
             if CONFIG_SECURITY_LANDLOCK is there, add landlock to the kernel's `lsm=`"
                .into(),
        ),
        Err(error) => Poor(format!("cannot be asked for its version: {error}")),
    }
}

pub fn data_dir(dir: &Path) -> Finding {
    let failed = |error: &dyn std::fmt::Display| {
        Bad(format!(
            "{}: {error}; set `data_dir` to a directory on a local disk",
            dir.display()
        ))
    };
    let present = present(dir);
    if let Err(error) = files::unnamed(present) {
        return failed(&format!(
            "no files without a name (O_TMPFILE) in {}: {error}",
            present.display()
        ));
    }
    let free = match statvfs(present) {
        Ok(space) => space.blocks_available() * space.fragment_size(),
        Err(error) => return failed(&error),
    };
    let text = format!("{}, {} MiB free", dir.display(), free >> 20);
    if free < SCARCE_BYTES {
        Poor(format!("{text}: images may not fit"))
    } else {
        Good(text)
    }
}

pub fn state_dir(dir: &Path) -> Finding {
    let present = present(dir);
    match access(present, AccessFlags::W_OK) {
        Ok(()) if present.is_dir() => Good(dir.display().to_string()),
        Ok(()) => Bad(format!(
            "{}: {} is not a directory; set `state_dir` to another",
            dir.display(),
            present.display()
        )),
        Err(error) => Bad(format!(
            "{}: {error}; set `state_dir` to a directory that can be written",
            dir.display()
        )),
    }
}

/// Whether a crash or a reboot left something.
pub fn remains(config: &Config) -> Finding {
    if !config.state_dir.exists() {
        return Good("no pod has run since this host was booted".into());
    }
    match remains::reconcile(config, false) {
        Ok(None) => Good("being looked for by a shim".into()),
        Ok(Some(findings)) if findings.is_empty() => Good("nothing is left behind".into()),
        Ok(Some(findings)) => Poor(format!(
            "{} things were left behind, such as {}: `joeyctl reconcile` removes them",
            findings.len(),
            findings[0].what
        )),
        Err(error) => Poor(format!("cannot look for what was left behind: {error}")),
    }
}

/// The directory, or what of its path is there already: the shim makes the rest.
fn present(dir: &Path) -> &Path {
    dir.ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_compared_as_numbers() {
        assert_eq!(version("6.12.107-1-amd64"), Some((6, 12)));
        assert_eq!(version("6.1-rc1"), Some((6, 1)));
        assert!(version("5.10.0").unwrap() < LINK_KERNEL);
        assert!(version("6.12").unwrap() > LINK_KERNEL);
        assert_eq!(version("next"), None);
    }

    #[test]
    fn user_namespaces_may_be_missing_or_forbidden() {
        assert!(matches!(user_namespaces_of(None), Bad(_)));
        let Bad(text) = user_namespaces_of(Some("0")) else {
            panic!("forbidden ones are no trouble");
        };
        assert!(text.contains("sysctl user.max_user_namespaces"), "{text}");
        assert!(matches!(user_namespaces_of(Some("1")), Good(_)));
    }

    #[test]
    fn directories_are_checked_but_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = dir.path().join("a/b");
        assert!(!matches!(data_dir(&wanted), Bad(_)));
        assert!(matches!(state_dir(&wanted), Good(_)));
        assert!(!wanted.exists());

        // The kernel lets nobody make files there.
        assert!(matches!(data_dir(Path::new("/proc/none")), Bad(_)));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(state_dir(&file.join("x")), Bad(_)));
    }

    #[test]
    fn programs_are_found_in_path() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program").is_none());
    }
}
