//! Network namespaces to attach in: a pod as a CNI plugin leaves it, and the
//! other side of its link. Making them takes root and iproute2.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod frames;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, recv,
    sendto, setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::TimeVal;

pub const POD_MAC: [u8; 6] = [0x02, 0xca, 0xfe, 0, 0, 5];
pub const HOST_MAC: [u8; 6] = [0x02, 0xca, 0xfe, 0, 0, 1];
pub const POD_V4: &str = "10.88.0.5";
pub const POD_V6: &str = "fd88::5";
pub const MTU: u32 = 1450;
pub const TAP: &str = "joey0";

/// Bounds what must not last; what is expected comes long before.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace of this test's own, removed with it.
pub struct Netns {
    pub name: String,
}

impl Netns {
    /// An empty namespace; `role` is for whoever looks at it.
    pub fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("joeytest-{}-{count}-{role}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let this = Self { name };
        this.ip("link set lo up");
        this
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `ip` inside the namespace; its output.
    pub fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run("ip", &all)
    }

    /// `tc` inside the namespace; its output.
    pub fn tc(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split_whitespace());
        run("tc", &all)
    }

    /// Waits until there is no interface `name`. Closing a TAP's descriptor
    /// removes it at once, except while a child that another test has just
    /// forked still has a copy.
    pub fn await_gone(&self, name: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let links = self.ip("-o link show");
            if !links.contains(name) {
                return;
            }
            assert!(Instant::now() < deadline, "{links}");
        }
    }

    /// Runs `work` on a thread inside the namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = fs::File::open(self.path()).unwrap();
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            worker
                .join()
                .unwrap_or_else(|p| std::panic::resume_unwind(p))
        })
    }

    /// Whether an echo request from here to `target` is answered in time.
    pub fn ping(&self, target: IpAddr, patience: Duration) -> bool {
        self.within(|| ping(target, patience).unwrap())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// A pod as a CNI plugin leaves it, and the node's side of its veth pair.
pub struct Bed {
    pub pod: Netns,
    pub host: Netns,
}

impl Bed {
    /// `eth0` with IPv4 and IPv6 addresses, default routes and a route MTU.
    pub fn new() -> Self {
        let this = Self::bare();
        let pod = &this.pod;
        pod.ip("addr add 10.88.0.5/16 dev eth0");
        pod.ip("addr add fd88::5/64 dev eth0 nodad");
        pod.ip("route add default via 10.88.0.1 dev eth0 mtu 1400");
        pod.ip("route add 10.99.0.0/16 via 10.88.0.2 dev eth0 metric 7 src 10.88.0.5");
        pod.ip("-6 route add default via fd88::1 dev eth0 mtu 1410");
        this
    }

    /// `eth0` that is up and has no addresses but those the kernel makes.
    pub fn bare() -> Self {
        let this = Self {
            pod: Netns::new("pod"),
            host: Netns::new("host"),
        };
        veth(&this.pod, "eth0", POD_MAC, &this.host, "veth0", HOST_MAC);
        this.host.ip("addr add 10.88.0.1/16 dev veth0");
        this.host.ip("addr add fd88::1/64 dev veth0 nodad");
        this
    }
}

/// A veth pair with an end in each of two namespaces, both up.
pub fn veth(a: &Netns, name: &str, mac: [u8; 6], b: &Netns, peer: &str, peer_mac: [u8; 6]) {
    let (mac, peer_mac) = (mac_text(mac), mac_text(peer_mac));
    a.ip(&format!(
        "link add {name} mtu {MTU} address {mac} type veth \
         peer name {peer} netns {} mtu {MTU} address {peer_mac}",
        b.name
    ));
    a.ip(&format!("link set {name} up"));
    b.ip(&format!("link set {peer} up"));
}

pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Sends one echo request from the calling thread's namespace.
fn ping(target: IpAddr, patience: Duration) -> io::Result<bool> {
    const IDENTIFIER: [u8; 2] = [0x4a, 0x59];
    // Type, code, checksum, identifier, sequence. The kernel fills in the
    // checksum of ICMPv6 only.
    let request = |kind, checksum: [u8; 2]| {
        let [i, j] = IDENTIFIER;
        [kind, 0, checksum[0], checksum[1], i, j, 0, 1]
    };
    let (family, protocol, address, request, answer): (_, _, Box<dyn SockaddrLike>, _, _) =
        match target {
            IpAddr::V4(ip) => (
                AddressFamily::Inet,
                SockProtocol::Icmp,
                Box::new(SockaddrIn::from(std::net::SocketAddrV4::new(ip, 0))),
                request(8, frames::checksum(&request(8, [0; 2])).to_be_bytes()),
                0,
            ),
            IpAddr::V6(ip) => (
                AddressFamily::Inet6,
                SockProtocol::IcmpV6,
                Box::new(SockaddrIn6::from(std::net::SocketAddrV6::new(ip, 0, 0, 0))),
                request(128, [0; 2]),
                129,
            ),
        };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(
        &socket,
        ReceiveTimeout,
        &TimeVal::new(
            patience.as_secs() as i64,
            i64::from(patience.subsec_micros()),
        ),
    )?;
    sendto(
        socket.as_raw_fd(),
        &request,
        address.as_ref(),
        nix::sys::socket::MsgFlags::empty(),
    )?;
    let mut buffer = [0; 1500];
    loop {
        let received = match recv(
            socket.as_raw_fd(),
            &mut buffer,
            nix::sys::socket::MsgFlags::empty(),
        ) {
            Ok(received) => &buffer[..received],
            Err(Errno::EAGAIN) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        // Raw IPv4 sockets show the IP header.
        let message = match target {
            IpAddr::V4(_) => &received[usize::from(received[0] & 0xf) * 4..],
            IpAddr::V6(_) => received,
        };
        if message[0] == answer && message[4..6] == IDENTIFIER {
            return Ok(true);
        }
    }
}
