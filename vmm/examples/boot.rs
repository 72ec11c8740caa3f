//! Boots a kernel and an initramfs with the client library and says what happened
//! and how long it took: for measurements and for a look at a guest by hand.
//!
//! ```text
//! boot VMM KERNEL INITRAMFS [--vcpus N] [--memory MIB] [--hotplug MIB] [--console] [--scratch FILE]
//!      [--map OFFSET=FILE]... [--disk FILE]... [--disk-ro FILE]... [--fs SOCKET]
//!      [--resize MIB]... [--balloon MIB] [--wait] [--online CPU]... [--connect PORT] [--stats]
//!      [--repeat N] [--save DIRECTORY] [--restore DIRECTORY]
//! ```
//! With `--connect` standard input goes to that vsock port once the guest is ready,
//! and what comes back to standard output. Disks and the file system daemon are attached
//! once the guest is ready; `--wait` goes on until it ends. With `--save` the guest is
//! written to `memory` and `state` in a directory at the end, with `--restore` it goes on
//! from there. Run it as root.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use vmm::{BootFiles, Event, Place, RestoreFiles, RunFiles, VmSpec, Vmm};

type Failure = Box<dyn Error>;

/// What the command line asks for.
struct Options {
    vmm: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    vcpus: u8,
    memory_mib: u32,
    hotplug_mib: u32,
    resize: Vec<u32>,
    balloon: Option<u32>,
    console: bool,
    scratch: Option<PathBuf>,
    maps: Vec<(u64, PathBuf)>,
    disks: Vec<(PathBuf, bool)>,
    fs: Option<PathBuf>,
    online: Vec<u8>,
    connect: Option<u32>,
    wait: bool,
    stats: bool,
    repeat: usize,
    save: Option<PathBuf>,
    restore: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Self, Failure> {
        let mut words = std::env::args().skip(1);
        let mut next = |name: &str| words.next().ok_or(format!("{name} is missing"));
        let mut options = Self {
            vmm: next("VMM")?.into(),
            kernel: next("KERNEL")?.into(),
            initramfs: next("INITRAMFS")?.into(),
            vcpus: 1,
            memory_mib: 128,
            hotplug_mib: 0,
            resize: Vec::new(),
            balloon: None,
            console: false,
            scratch: None,
            maps: Vec::new(),
            disks: Vec::new(),
            fs: None,
            online: Vec::new(),
            connect: None,
            wait: false,
            stats: false,
            repeat: 1,
            save: None,
            restore: None,
        };
        while let Ok(word) = next("") {
            match word.as_str() {
                "--vcpus" => options.vcpus = next("N")?.parse()?,
                "--memory" => options.memory_mib = next("MIB")?.parse()?,
                "--hotplug" => options.hotplug_mib = next("MIB")?.parse()?,
                "--resize" => options.resize.push(next("MIB")?.parse()?),
                "--balloon" => options.balloon = Some(next("MIB")?.parse()?),
                "--console" => options.console = true,
                "--scratch" => options.scratch = Some(next("FILE")?.into()),
                "--map" => {
                    let map = next("OFFSET=FILE")?;
                    let (offset, file) = map.split_once('=').ok_or("--map OFFSET=FILE")?;
                    options.maps.push((offset.parse()?, file.into()));
                }
                "--disk" => options.disks.push((next("FILE")?.into(), false)),
                "--disk-ro" => options.disks.push((next("FILE")?.into(), true)),
                "--fs" => options.fs = Some(next("SOCKET")?.into()),
                "--online" => options.online.push(next("CPU")?.parse()?),
                "--connect" => options.connect = Some(next("PORT")?.parse()?),
                "--wait" => options.wait = true,
                "--stats" => options.stats = true,
                "--repeat" => options.repeat = next("N")?.parse()?,
                "--save" => options.save = Some(next("DIRECTORY")?.into()),
                "--restore" => options.restore = Some(next("DIRECTORY")?.into()),
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(options)
    }
}

fn main() -> Result<(), Failure> {
    let options = Options::parse()?;
    for _ in 0..options.repeat {
        run(&options)?;
    }
    Ok(())
}

fn run(options: &Options) -> Result<(), Failure> {
    let directory = std::env::temp_dir().join(format!("joey-boot-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let socket = directory.join("vsock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let scratch = scratch(options, &directory.join("scratch"))?;
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let kernel = File::open(&options.kernel)?;
    let initramfs = File::open(&options.initramfs)?;
    let serial = if options.console {
        Some(OpenOptions::new().write(true).open("/dev/stderr")?)
    } else {
        None
    };
    let spec = VmSpec {
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        hotplug_mib: options.hotplug_mib,
        offloads: vmm::offloads(),
        uid: 65534,
        gid: 65534,
        console: options.console,
    };

    let start = Instant::now();
    let millis = || start.elapsed().as_secs_f64() * 1000.0;
    let log = OpenOptions::new().write(true).open("/dev/stderr")?;
    let mut vmm = Vmm::spawn(&options.vmm, Place::default(), Some(log))?;
    let spawned = millis();
    match &options.restore {
        Some(directory) => {
            let memory = File::open(directory.join("memory"))?;
            let state = File::open(directory.join("state"))?;
            vmm.restore(
                &spec,
                RestoreFiles {
                    kvm: kvm.as_fd(),
                    kernel: kernel.as_fd(),
                    memory: memory.as_fd(),
                    state: state.as_fd(),
                    changes: None,
                },
                false,
            )?;
        }
        None => vmm.boot(
            &spec,
            BootFiles {
                kvm: kvm.as_fd(),
                kernel: kernel.as_fd(),
                initramfs: initramfs.as_fd(),
                serial: serial.as_ref().map(AsFd::as_fd),
            },
        )?,
    }
    let made = millis();
    vmm.run(
        RunFiles {
            scratch: scratch.as_fd(),
            vsock_listener: listener.as_fd(),
            tap: None,
            outlets: None,
        },
        scratch.metadata()?.len(),
        spec.offloads,
    )?;
    let booted = millis();
    for (offset, path) in &options.maps {
        let file = File::open(path)?;
        let length = file.metadata()?.len().next_multiple_of(4096);
        vmm.map_image(*offset, length, file.as_fd())?;
    }
    for cpu in &options.online {
        vmm.online_cpu(*cpu)?;
    }
    let mut events = BufReader::new(vmm.events()?).lines();
    let mut event = || -> Result<Option<Event>, Failure> {
        match events.next() {
            Some(line) => Ok(Some(serde_json::from_str(&line?)?)),
            None => Ok(None),
        }
    };
    eprintln!("spawned {spawned:.3} ms, made {made:.3} ms, runs {booted:.3} ms");
    if options.restore.is_none() {
        eprintln!("{:?} after {:.3} ms", event()?, millis());
    }
    for (path, read_only) in &options.disks {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let size = (&file).seek(SeekFrom::End(0))?;
        let (slot, device) = vmm.attach_disk(file.as_fd(), size, *read_only, None)?;
        eprintln!("{}: slot {slot}, {device}", path.display());
    }
    if let Some(socket) = &options.fs {
        let backend = vmm::connect_fs(UnixStream::connect(socket)?.as_fd())?;
        let device = vmm.attach_fs(&backend)?;
        eprintln!("{}: {device}", socket.display());
    }
    for mib in &options.resize {
        vmm.resize_memory(*mib)?;
        eprintln!("{:?} after {:.3} ms", event()?, millis());
    }
    if let Some(mib) = options.balloon {
        vmm.inflate_balloon(mib)?;
    }
    if let Some(port) = options.connect {
        talk(&socket, port)?;
        eprintln!("talked until {:.3} ms", millis());
    }
    if let Some(directory) = &options.save {
        std::fs::create_dir_all(directory)?;
        let memory = File::create(directory.join("memory"))?;
        memory.set_len(u64::from(options.memory_mib) << 20)?;
        let state = File::create(directory.join("state"))?;
        vmm.pause()?;
        vmm.save(memory.as_fd(), state.as_fd())?;
        vmm.resume()?;
    }
    if options.wait {
        while let Some(other) = event()? {
            eprintln!("{other:?} after {:.3} ms", millis());
        }
    }
    if options.stats {
        println!("{}", serde_json::to_string(&vmm.stats()?)?);
    }
    if vmm.shutdown().is_err() {
        eprintln!("ended: {:?}", event()?);
    }
    vmm.wait()?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// The file behind vdb: the one given, or an empty one of 64 MiB.
fn scratch(options: &Options, default: &PathBuf) -> Result<File, Failure> {
    let path = options.scratch.as_ref().unwrap_or(default);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    if file.metadata()?.len() == 0 {
        file.set_len(64 << 20)?;
    }
    Ok(file)
}

/// Connects standard input and output to a port of the guest.
fn talk(socket: &PathBuf, port: u32) -> Result<(), Failure> {
    let mut stream = UnixStream::connect(socket)?;
    writeln!(stream, "CONNECT {port}")?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Err(format!("the guest does not listen on port {port}").into());
        }
        line.push(byte[0]);
    }
    let mut input = stream.try_clone()?;
    let writer = std::thread::spawn(move || {
        // The guest may end first; then there is nobody to write to.
        let _ = std::io::copy(&mut std::io::stdin(), &mut input);
        let _ = input.shutdown(Shutdown::Write);
    });
    std::io::copy(&mut stream, &mut std::io::stdout())?;
    drop(writer);
    Ok(())
}
