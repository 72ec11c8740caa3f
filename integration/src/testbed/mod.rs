//! A test host: a Debian machine under QEMU in which commands run.
//!
//! Booting takes seconds, so the tests of a process share one: [`TestHost::shared`].

mod awake;
mod command;
mod cpio;
mod layer;
mod qemu;
mod scripts;
mod session;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

pub use command::{Command, Output};
pub use cpio::Archive;
pub use layer::Layer;
pub use qemu::Acceleration;
pub use scripts::{build, repository};
pub use session::{Event, Input, Session};

use crate::combination::Combination;
use awake::Awake;
use qemu::{Disks, Qemu};

/// At each switch between two VMs an emulated processor forgets its translations. With the
/// scheduler's usual 0.7 ms ten VMs that boot together hardly come forward.
const LONG_SLICES: &str = "mount -t debugfs debugfs /sys/kernel/debug && \
    echo 50000000 >/sys/kernel/debug/sched/base_slice_ns && umount /sys/kernel/debug";

/// While the virtual clock's only processor waits for a disk, which takes real time, the clock
/// runs from one timer to the next: a write on a loaded machine took a virtual second. A disk
/// in the host's memory answers at once, and programs are read before they are needed. The
/// registry stays where it is: who pulls is not measured.
const DISK_IN_MEMORY: &str = "modprobe brd rd_nr=1 rd_size=6291456 && \
    mkfs.ext4 -q -m 0 -O ^has_journal -E nodiscard,lazy_itable_init=1 /dev/ram0 && \
    mkdir /run/registry && mount --bind /var/lib/registry /run/registry && \
    mount /dev/ram0 /var/lib && \
    mkdir /var/lib/registry && mount --bind /run/registry /var/lib/registry && \
    find /usr/bin /usr/sbin /usr/local /usr/lib/cni /usr/lib/modules \
        /usr/lib/x86_64-linux-gnu -xdev -type f \
        -exec cat {} + >/dev/null";

/// Why the test host did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A script that builds a part of the test host failed.
    #[error("{script} failed: {reason}")]
    Build {
        /// Its path.
        script: String,
        /// What happened.
        reason: String,
    },
    /// It did not come up.
    #[error("the test host did not boot: {reason}; its console's last lines:\n{console}")]
    Boot {
        /// What happened.
        reason: String,
        /// The console's last lines.
        console: String,
    },
    /// It ended or does not answer while a command runs.
    #[error("the test host broke off `{command}`: {reason}; its console's last lines:\n{console}")]
    Broken {
        /// What ran.
        command: String,
        /// What happened.
        reason: String,
        /// The console's last lines.
        console: String,
    },
    /// The command was not started.
    #[error("the test host did not start `{command}`: {reason}")]
    Refused {
        /// What should have run.
        command: String,
        /// What happened.
        reason: String,
    },
    /// A command ended with another code than 0.
    #[error("`{command}` ended with {status}:\n{said}")]
    Failed {
        /// What ran.
        command: String,
        /// Its exit code.
        status: i32,
        /// Standard output, then standard error.
        said: String,
    },
    /// Something on this side failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    fn is_port_taken(&self) -> bool {
        matches!(self, Error::Boot { console, .. } if console.contains("host forwarding rule"))
    }
}

/// What kind of test host is wanted.
#[derive(Debug, Clone)]
pub struct Config {
    /// The Debian suite of its root.
    pub suite: String,
    /// Processors; the virtual clock has one. With two, emulated SVM on two threads
    /// corrupted the kernel of a host that ran a dozen microVMs.
    pub processors: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of the sparse disk under /var/lib in GiB.
    pub data_gib: u64,
    /// Runs by QEMU's instruction counter: one instruction takes one nanosecond of
    /// the test host's time. Slower, but times taken inside are reproducible.
    pub virtual_clock: bool,
    /// What runs the processors, unless the clock is virtual.
    pub acceleration: Acceleration,
    /// Files beside those of the root.
    pub layer: Layer,
    /// The script that builds what the registry serves.
    pub images: String,
    /// How long booting may take.
    pub boot_limit: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            suite: "forky".into(),
            processors: 1,
            memory_mib: 4096,
            data_gib: 16,
            virtual_clock: false,
            acceleration: Acceleration::of_this_machine(),
            layer: Layer::new(),
            images: "testhost/build-images.sh".into(),
            boot_limit: Duration::from_secs(180),
        }
    }
}

impl Config {
    /// A test host in which joey is installed, built from this checkout.
    pub fn with_joey() -> Result<Config, Error> {
        Ok(Config {
            layer: crate::install::add_joey(Layer::new())?,
            ..Config::default()
        })
    }
}

/// A running test host. It ends when this is dropped or the process ends.
#[derive(Debug)]
pub struct TestHost {
    qemu: Qemu,
    token: String,
    is_emulated: bool,
    /// There where processors are emulated in real time.
    _awake: Option<Awake>,
}

impl TestHost {
    /// The test host of this process, booted at first use, with joey installed and
    /// the containerd of [`Combination::of_this_run`] running.
    ///
    /// # Panics
    /// When it does not come up: no test can go on without it.
    pub fn shared() -> &'static TestHost {
        // A failure is kept too: a second try would only take its time again.
        static SHARED: OnceLock<Result<TestHost, Error>> = OnceLock::new();
        let boot = || {
            let host = TestHost::boot(&Config::with_joey()?)?;
            let version = Combination::of_this_run().containerd;
            host.check(&format!("start-containerd {version}"))?;
            Ok(host)
        };
        match SHARED.get_or_init(boot) {
            Ok(host) => host,
            Err(error) => panic!("{error}"),
        }
    }

    /// Builds what is missing and boots.
    pub fn boot(config: &Config) -> Result<TestHost, Error> {
        let root = build("testhost/build-root.sh", &[&config.suite])?;
        let images = build(&config.images, &[])?;
        let init = build("testhost/build-init.sh", &["testhost-init"])?;
        let token = random_token().map_err(Error::io("read /dev/urandom"))?;
        let guest = repository().join("integration/guest");
        let disks = Disks {
            kernel: root.join("vmlinux"),
            initramfs: initramfs(&init, &root.join("modules"), &token)
                .map_err(Error::io("pack the initramfs"))?,
            root: root.join("root.erofs"),
            images,
            layer: config
                .layer
                .clone()
                .tree(guest.join("common"))
                .tree(guest.join(&config.suite))
                .build()?,
        };
        let is_emulated = config.acceleration == Acceleration::Tcg || config.virtual_clock;
        let qemu = Qemu::boot(config, disks)?;
        let awake = is_emulated && !config.virtual_clock;
        Ok(TestHost {
            _awake: awake.then(|| Awake::keep(qemu.port)),
            qemu,
            token,
            is_emulated,
        })
    }

    /// Lets whoever runs in an emulated host run for longer at a time: for many VMs at
    /// once. One that thrashes keeps the others waiting for it.
    ///
    /// # Errors
    /// When the host's kernel does not take it.
    pub fn lengthen_slices(&self) -> Result<(), Error> {
        match self.is_emulated {
            true => self.check(LONG_SLICES).map(drop),
            false => Ok(()),
        }
    }

    /// Puts an empty disk in the host's memory under /var/lib, so that what is measured by the
    /// virtual clock waits for none of the machine's. To be called before containerd starts.
    ///
    /// # Errors
    /// When the host's kernel has no such disks.
    pub fn keep_data_in_memory(&self) -> Result<(), Error> {
        self.check(DISK_IN_MEMORY).map(drop)
    }

    /// Starts the suite's containerd and the registry (127.0.0.1:5000, with the images
    /// `pause`, `busybox` and `debian`) and waits until they serve. To be called
    /// once.
    pub fn start_containerd(&self) -> Result<(), Error> {
        self.check("start-containerd").map(drop)
    }

    /// Runs a shell command.
    pub fn run(&self, script: &str) -> Result<Output, Error> {
        self.shell(script).run()
    }

    /// Runs a shell command that must succeed, and returns what it said.
    pub fn check(&self, script: &str) -> Result<String, Error> {
        self.run(script)?.success()
    }

    /// A shell command to be adjusted before it runs.
    pub fn shell(&self, script: &str) -> Command<'_> {
        self.command(["sh", "-c", script])
    }

    /// A program with its arguments, to be adjusted before it runs.
    pub fn command<I>(&self, argv: I) -> Command<'_>
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Command::new(self, argv.into_iter().map(Into::into).collect())
    }

    /// Runs crictl, which must succeed, and returns what it said.
    pub fn crictl(&self, arguments: &[&str]) -> Result<String, Error> {
        self.command(["crictl"].iter().chain(arguments).copied())
            .run()?
            .success()
    }

    /// Copies a file into the test host, with its permissions. Directories on the
    /// way are made.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<(), Error> {
        let reading = || format!("read {}", from.display());
        let file = File::open(from).map_err(Error::io(reading()))?;
        let mode = file
            .metadata()
            .map_err(Error::io(reading()))?
            .permissions()
            .mode();
        self.write(file, to, mode & 0o7777)
    }

    /// Writes what `content` yields to a file in the test host.
    pub fn write(&self, content: impl Read + Send, to: &str, mode: u32) -> Result<(), Error> {
        // The rename replaces programs that are running.
        let script = r#"mkdir -p "$(dirname "$1")" && cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1""#;
        self.command(["sh", "-c", script, "write", to, &format!("{mode:o}")])
            .run_with(content)?
            .success()
            .map(drop)
    }

    /// Copies a file out of the test host.
    pub fn copy_out(&self, from: &str, to: &Path) -> Result<(), Error> {
        let writing = || format!("write {}", to.display());
        let mut file = File::create(to).map_err(Error::io(writing()))?;
        let mut said = Vec::new();
        let status = self
            .command(["cat", from])
            .stream(io::empty(), |event| match event {
                Event::Stdout(bytes) => io::Write::write_all(&mut file, &bytes),
                Event::Stderr(bytes) => {
                    said.extend(bytes);
                    Ok(())
                }
                Event::Exit(_) => Ok(()),
            })?;
        if status != 0 {
            return Err(Error::Failed {
                command: format!("cat {from}"),
                status,
                said: String::from_utf8_lossy(&said).into_owned(),
            });
        }
        Ok(())
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        self.qemu.console_tail()
    }

    /// Explains why a command's connection failed.
    fn broken(&self, command: &str, limit: Duration, error: io::Error) -> Error {
        let command = command.to_owned();
        let reason = match error.kind() {
            io::ErrorKind::Other => {
                return Error::Refused {
                    command,
                    reason: error.to_string(),
                };
            }
            io::ErrorKind::TimedOut => format!("no end within {} s", limit.as_secs()),
            _ if self.qemu.has_ended() => "QEMU has ended".to_owned(),
            _ => format!("the connection failed: {error}"),
        };
        Error::Broken {
            command,
            reason,
            console: self.qemu.console_tail(),
        }
    }
}

/// A file for this process and those that it names it to; it has no path and
/// vanishes with them.
fn unnamed_file() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(std::env::temp_dir())
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The initramfs: the init program, the modules that lead to the root, and the
/// token, which so stands on no command line.
fn initramfs(init: &Path, modules: &Path, token: &str) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.directory("dev");
    archive.character_device("dev/console", 5, 1);
    archive.directory("root");
    archive.directory("modules");
    let mut files = std::fs::read_dir(modules)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    files.sort();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &std::fs::read(&path)?);
    }
    archive.file("token", 0o600, token.as_bytes());
    archive.file("init", 0o755, &std::fs::read(init)?);
    Ok(archive.finish())
}
