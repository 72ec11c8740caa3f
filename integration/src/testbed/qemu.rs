//! The QEMU process of a test host: how it is accelerated, started, watched and
//! ended. It leaves nothing behind however this process ends.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Config, Error, unnamed_file};
use crate::channel;

/// What runs the test host's processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// Hardware virtualization, with nesting for the microVMs inside.
    Kvm,
    /// Emulation, of AMD's virtualization too.
    Tcg,
}

impl Acceleration {
    /// KVM where it can nest, else TCG. `JOEY_TESTHOST_ACCEL` (kvm or tcg)
    /// overrides the look at the machine.
    ///
    /// That /dev/kvm exists says too little: without kvm-intel or kvm-amd behind
    /// it, it is a software flavour that does not run stock kernels.
    pub fn of_this_machine() -> Acceleration {
        match std::env::var("JOEY_TESTHOST_ACCEL").as_deref() {
            Ok("kvm") => Acceleration::Kvm,
            Ok("tcg") => Acceleration::Tcg,
            _ => Acceleration::detect(Path::new("/")),
        }
    }

    fn detect(root: &Path) -> Acceleration {
        let nests = |module: &str| {
            let parameter = root
                .join("sys/module")
                .join(module)
                .join("parameters/nested");
            std::fs::read_to_string(parameter).is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
        };
        let usable = OpenOptions::new()
            .read(true)
            .write(true)
            .open(root.join("dev/kvm"))
            .is_ok();
        if usable && (nests("kvm_intel") || nests("kvm_amd")) {
            Acceleration::Kvm
        } else {
            Acceleration::Tcg
        }
    }
}

/// The files that a test host boots from.
#[derive(Debug)]
pub struct Disks {
    /// ELF kernel.
    pub kernel: PathBuf,
    /// Content of the initramfs.
    pub initramfs: Vec<u8>,
    /// Read-only root.
    pub root: PathBuf,
    /// Read-only registry storage.
    pub images: PathBuf,
    /// Read-only files that lie over the root.
    pub layer: File,
}

/// A running QEMU. Dropping it kills it.
#[derive(Debug)]
pub struct Qemu {
    process: OwnedFd,
    console: Arc<Console>,
    /// The port of the loopback that leads to `testhost-init`.
    pub port: u16,
}

impl Qemu {
    /// Starts QEMU and waits until the test host takes commands.
    pub fn boot(config: &Config, disks: Disks) -> Result<Qemu, Error> {
        let disks = Arc::new(disks);
        let mut last = None;
        // The port is chosen before QEMU binds it, so somebody else can be faster.
        for _ in 0..5 {
            match Qemu::start(config, &disks)?.wait_until_ready(config.boot_limit) {
                Err(error @ Error::Boot { .. }) if error.is_port_taken() => last = Some(error),
                result => return result,
            }
        }
        Err(last.expect("the loop ran"))
    }

    fn start(config: &Config, disks: &Arc<Disks>) -> Result<Qemu, Error> {
        let port = free_port().map_err(Error::io("find a free port"))?;
        let data = data_disk(config.data_gib)?;
        let initramfs = in_memory("initramfs", &disks.initramfs)
            .map_err(Error::io("keep the initramfs in memory"))?;

        // QEMU opens these through this process, so that they need no names and
        // vanish with it.
        let ours = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        command.args(arguments(config));
        command.args(["-m", &config.memory_mib.to_string()]);
        command.arg("-kernel").arg(&disks.kernel);
        command.args(["-initrd", &ours(&initramfs)]);
        let read_only = "readonly=on,file.locking=off,cache=unsafe";
        let mut drive = |id: &str, file: &str, options: &str| {
            command.args([
                "-drive",
                &format!(
                    "if=none,id={id},format=raw,{options},file={}",
                    file.replace(',', ",,")
                ),
                "-device",
                &format!("virtio-blk-pci,drive={id}"),
            ]);
        };
        drive("root", &disks.root.to_string_lossy(), read_only);
        drive(
            "data",
            &ours(&data),
            "cache=unsafe,discard=unmap,file.locking=off",
        );
        drive("images", &disks.images.to_string_lossy(), read_only);
        drive("layer", &ours(&disks.layer), read_only);
        command.args([
            "-netdev",
            &format!(
                "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:{}",
                channel::PORT
            ),
        ]);

        let (reader, writer) = std::io::pipe().map_err(Error::io("make a pipe"))?;
        let errors = writer.try_clone().map_err(Error::io("make a pipe"))?;
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
        let console = Arc::new(Console::default());
        let keep = (initramfs, data, Arc::clone(disks));
        let process = spawn_watched(command, reader, Arc::clone(&console), keep)?;
        Ok(Qemu {
            process,
            console,
            port,
        })
    }

    fn wait_until_ready(self, limit: Duration) -> Result<Qemu, Error> {
        match self.console.wait_for(channel::READY, limit) {
            Seen::Yes => Ok(self),
            Seen::Ended => Err(Error::Boot {
                reason: "QEMU ended".into(),
                console: self.console.tail(),
            }),
            Seen::TimedOut => Err(Error::Boot {
                reason: format!("not ready within {} s", limit.as_secs()),
                console: self.console.tail(),
            }),
        }
    }

    /// The last lines of the console, for error messages.
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    /// Whether QEMU has ended.
    pub fn has_ended(&self) -> bool {
        self.console.lock().ended
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        self.console.wait_for_end();
    }
}

/// What does not depend on the run.
fn arguments(config: &Config) -> Vec<String> {
    let mut list: Vec<String> = "-M q35 -nodefaults -no-user-config -no-reboot -display none \
        -serial stdio -device virtio-rng-pci -device virtio-net-pci,netdev=net,romfile="
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let mut add = |words: &[&str]| list.extend(words.iter().map(|word| (*word).to_owned()));
    let processors = config.processors.to_string();
    if config.virtual_clock {
        // One instruction is one nanosecond; more than one processor hangs.
        add(&["-accel", "tcg", "-icount", "shift=0,sleep=off", "-smp", "1"]);
        add(&["-cpu", "max,+svm"]);
    } else {
        match config.acceleration {
            Acceleration::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
            Acceleration::Tcg => add(&["-accel", "tcg,thread=multi", "-cpu", "max,+svm"]),
        }
        add(&["-smp", &processors]);
    }
    add(&[
        "-append",
        // The kernel's tests of its ciphers are half of an emulated boot. AppArmor's
        // profiles belong to a host's kernel: without it, tests of them do not apply.
        "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on tsc=reliable \
         cryptomgr.notests apparmor=0",
    ]);
    list
}

/// Starts the process from a thread that lives as long as the process does: the
/// parent-death signal is bound to the starting thread. The thread reads the
/// console and reaps; `keep` is what the process needs to stay open.
fn spawn_watched<T: Send + 'static>(
    mut command: Command,
    console_pipe: PipeReader,
    console: Arc<Console>,
    keep: T,
) -> Result<OwnedFd, Error> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("test host".into())
        .spawn(move || {
            let started = command.spawn();
            // It holds the pipe's other ends.
            drop(command);
            let child = match started {
                Ok(child) => child,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
            let _ = sender.send(pidfd.map_err(Into::into));
            watch(child, console_pipe, &console);
            drop(keep);
        })
        .map_err(Error::io("start a thread"))?;
    receiver
        .recv()
        .expect("the thread sends before it ends")
        .map_err(Error::io(
            "start qemu-system-x86_64 (scripts/deps.sh installs it)",
        ))
}

fn watch(mut child: Child, mut pipe: PipeReader, console: &Console) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        console.add(&buffer[..count]);
    }
    let _ = child.wait();
    console.end();
}

/// What the test host and QEMU printed last.
#[derive(Debug, Default)]
struct Console {
    state: Mutex<ConsoleState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ConsoleState {
    text: Vec<u8>,
    ended: bool,
}

enum Seen {
    Yes,
    Ended,
    TimedOut,
}

impl Console {
    const KEPT: usize = 64 * 1024;
    const TAIL_LINES: usize = 30;

    fn lock(&self) -> std::sync::MutexGuard<'_, ConsoleState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.text.extend_from_slice(bytes);
        let excess = state.text.len().saturating_sub(Self::KEPT);
        state.text.drain(..excess);
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn wait_for(&self, line: &str, limit: Duration) -> Seen {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if String::from_utf8_lossy(&state.text).contains(line) {
                return Seen::Yes;
            }
            if state.ended {
                return Seen::Ended;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Seen::TimedOut;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn wait_for_end(&self) {
        let mut state = self.lock();
        while !state.ended {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn tail(&self) -> String {
        let state = self.lock();
        let text = String::from_utf8_lossy(&state.text).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(Self::TAIL_LINES)..].join("\n")
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn in_memory(name: &str, content: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// A sparse file without a name, formatted as ext4.
fn data_disk(gib: u64) -> Result<File, Error> {
    let what = "make the test host's data disk";
    let file = unnamed_file().map_err(Error::io(what))?;
    file.set_len(gib << 30).map_err(Error::io(what))?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal"])
        .args(["-E", "lazy_itable_init=1,nodiscard"])
        .arg(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            file.as_raw_fd()
        ))
        .output()
        .map_err(Error::io("run mkfs.ext4"))?;
    if !output.status.success() {
        return Err(Error::Boot {
            reason: format!("mkfs.ext4 ended with {}", output.status),
            console: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_keeps_its_end() {
        let console = Console::default();
        for number in 0..20_000 {
            console.add(format!("line {number}\r\n").as_bytes());
        }
        let tail = console.tail();
        assert!(tail.ends_with("line 19998\nline 19999"), "{tail}");
        assert_eq!(tail.lines().count(), Console::TAIL_LINES);
        assert!(matches!(
            console.wait_for("line 19999", Duration::ZERO),
            Seen::Yes
        ));
        assert!(matches!(
            console.wait_for("absent", Duration::ZERO),
            Seen::TimedOut
        ));
        console.end();
        assert!(matches!(
            console.wait_for("absent", Duration::from_secs(60)),
            Seen::Ended
        ));
    }

    #[test]
    fn a_kvm_device_alone_is_not_enough() {
        let root = std::env::temp_dir().join(format!("joey-accel-{}", std::process::id()));
        let parameters = root.join("sys/module/kvm_intel/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        std::fs::create_dir_all(root.join("dev")).unwrap();
        std::fs::write(root.join("dev/kvm"), "").unwrap();
        let before = Acceleration::detect(&root);
        std::fs::write(parameters.join("nested"), "N\n").unwrap();
        let without_nesting = Acceleration::detect(&root);
        std::fs::write(parameters.join("nested"), "Y\n").unwrap();
        let with_nesting = Acceleration::detect(&root);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(before, Acceleration::Tcg);
        assert_eq!(without_nesting, Acceleration::Tcg);
        assert_eq!(with_nesting, Acceleration::Kvm);
    }
}
