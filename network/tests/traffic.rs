//! Frames between the other side of the pod's link and the guest, both ways.

mod bed;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use bed::frames::{FRAME_BYTES, Guest};
use bed::{Bed, HOST_MAC, MTU, Netns, PATIENCE, POD_MAC, POD_V4, POD_V6, mac_text, veth};
use network::{Attachment, Endpoint, HookKind, Options, Traffic, VNET_HEADER_BYTES, attach};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// How long an answer may take that must not come.
const MOMENT: Duration = Duration::from_millis(300);

fn attached(pod: &Netns, hook: HookKind) -> Attachment {
    let options = Options {
        hook,
        ..Options::default()
    };
    attach(&pod.path(), &options).unwrap().unwrap()
}

/// Pings the pod by IPv4 and IPv6 while the guest's side is played by hand.
fn ping_both(hook: HookKind) {
    let bed = Bed::new();
    let mut attachment = attached(&bed.pod, hook);
    let tap = attachment.take_tap().unwrap();
    let mut guest = Guest::new(tap, POD_MAC, POD_V4, POD_V6);
    for address in [POD_V4, POD_V6] {
        let address: IpAddr = address.parse().unwrap();
        thread::scope(|scope| {
            let ping = scope.spawn(|| bed.host.ping(address, PATIENCE));
            guest.answer_ping(PATIENCE);
            assert!(ping.join().unwrap(), "{address} answers");
        });
    }
    let counters = attachment.counters().unwrap();
    // At least ARP or neighbour discovery and an echo of each family.
    for traffic in [counters.to_guest, counters.from_guest] {
        assert!(traffic.packets >= 4, "{counters:?}");
        assert!(traffic.bytes >= 28 + 28 + 72 + 48, "{counters:?}");
    }
    attachment.detach().unwrap();
    // The namespace has its interface back.
    assert!(bed.host.ping(POD_V4.parse().unwrap(), PATIENCE));
}

#[test]
fn pings_reach_the_tap_and_answers_come_back() {
    ping_both(HookKind::Clsact);
}

#[test]
fn pings_pass_with_links() {
    ping_both(HookKind::Tcx);
}

/// As a child has all our descriptors between its fork and its program.
#[test]
fn links_end_though_somebody_else_has_them() {
    let bed = Bed::new();
    let attachment = attached(&bed.pod, HookKind::Tcx);
    let held = links_of_this_process();
    assert!(held.len() >= 2, "one for each direction");
    attachment.detach().unwrap();
    assert!(bed.host.ping(POD_V4.parse().unwrap(), PATIENCE));
}

fn links_of_this_process() -> Vec<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter(|entry| {
            let what = fs::read_link(entry.path()).unwrap_or_default();
            what.to_string_lossy().contains("bpf_link")
        })
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        // Another test may have closed its own meanwhile.
        .filter_map(|fd| pidfd_getfd(&this, fd, PidfdGetfdFlags::empty()).ok())
        .collect()
}

#[test]
fn the_namespace_does_not_answer_for_the_guest() {
    let bed = Bed::new();
    for address in [POD_V4, POD_V6] {
        assert!(bed.host.ping(address.parse().unwrap(), PATIENCE));
    }
    let attachment = attached(&bed.pod, HookKind::Auto);
    for address in [POD_V4, POD_V6] {
        assert!(!bed.host.ping(address.parse().unwrap(), MOMENT));
    }
    let addresses = bed.pod.ip("addr show dev joey0");
    assert!(!addresses.contains("inet"), "{addresses}");
    assert!(addresses.contains(&format!("mtu {MTU}")), "{addresses}");
    assert_eq!(
        attachment.counters().unwrap().from_guest,
        Traffic::default()
    );
}

#[test]
fn counters_count_frames_and_bytes() {
    let bed = Bed::new();
    let mut attachment = attached(&bed.pod, HookKind::Auto);
    let tap = attachment.take_tap().unwrap();
    let mut guest = Guest::new(tap, POD_MAC, POD_V4, POD_V6);
    let mut frame = [HOST_MAC, POD_MAC].concat();
    // An experimental EtherType, which nobody answers.
    frame.extend([0x88, 0xb5]);
    frame.resize(100, 0);
    for _ in 0..7 {
        guest.send(&frame);
    }
    let expected = Traffic {
        packets: 7,
        bytes: 700,
    };
    assert_eq!(attachment.counters().unwrap().from_guest, expected);
}

/// A kernel as guest: the relay stands for the VMM, between the TAP under
/// test and a second one whose far end is an interface of this namespace.
struct KernelGuest {
    netns: Netns,
    stop: OwnedFd,
    relay: thread::JoinHandle<Relayed>,
}

/// The frames with segmentation offload that the relay saw.
#[derive(Default)]
struct Relayed {
    large_to_guest: u32,
    large_from_guest: u32,
}

impl KernelGuest {
    fn start(tap: OwnedFd, endpoint: &Endpoint) -> Self {
        let netns = Netns::new("guest");
        let nic = Netns::new("nic");
        let other_mac = [0x02, 0xca, 0xfe, 0, 0, 9];
        veth(&netns, "eth0", endpoint.mac, &nic, "nic0", other_mac);
        configure(&netns, endpoint);
        let mut attachment = attached(&nic, HookKind::Auto);
        let far = attachment.take_tap().unwrap();
        let (stopped, stop) = pipe().unwrap();
        let relay = thread::spawn(move || {
            let relayed = relay(tap.into(), far.into(), &stopped);
            drop((attachment, nic));
            relayed
        });
        Self { netns, stop, relay }
    }

    fn stop(self) -> Relayed {
        drop(self.stop);
        self.relay.join().unwrap()
    }
}

/// What the agent does with an endpoint.
fn configure(netns: &Netns, endpoint: &Endpoint) {
    netns.ip(&format!("link set eth0 mtu {}", endpoint.mtu));
    assert!(
        netns
            .ip("link show dev eth0")
            .contains(&mac_text(endpoint.mac))
    );
    for address in &endpoint.addresses {
        let nodad = if address.ip.is_ipv6() { "nodad" } else { "" };
        netns.ip(&format!(
            "addr add {address} dev eth0 {nodad} noprefixroute"
        ));
    }
    for route in &endpoint.routes {
        let mut text = format!(
            "route replace {} dev {}",
            route.destination, route.interface
        );
        let mut option = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!(" {name} {value}"));
            }
        };
        option("via", route.gateway.map(|gateway| gateway.to_string()));
        option("src", route.source.map(|source| source.to_string()));
        option("mtu", route.mtu.map(|mtu| mtu.to_string()));
        option(
            "scope",
            route
                .destination
                .ip
                .is_ipv4()
                .then(|| route.scope.to_string()),
        );
        option(
            "metric",
            (route.metric != 0).then(|| route.metric.to_string()),
        );
        netns.ip(&text);
    }
}

/// Copies frames both ways, header and all, until `stopped` is closed.
fn relay(mut tap: File, mut far: File, stopped: &OwnedFd) -> Relayed {
    let mut relayed = Relayed::default();
    loop {
        let mut fds = [
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(tap.as_fd(), PollFlags::POLLIN),
            PollFd::new(far.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).unwrap();
        if fds[0].any() == Some(true) {
            return relayed;
        }
        copy(&mut tap, &mut far, &mut relayed.large_to_guest);
        copy(&mut far, &mut tap, &mut relayed.large_from_guest);
    }
}

/// Copies the frames that are there; counts those larger than the MTU, which
/// must say how they are to be cut.
fn copy(from: &mut File, to: &mut File, large: &mut u32) {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        };
        let gso_type = buffer[1];
        if length > VNET_HEADER_BYTES + 14 + MTU as usize {
            assert_ne!(gso_type, 0, "a frame of {length} bytes without GSO");
            *large += 1;
        }
        to.write_all(&buffer[..length]).unwrap();
    }
}

/// Sends `BYTES` from `client` to a listener in `server`.
fn transfer(client: &Netns, server: &Netns, address: IpAddr) {
    const BYTES: usize = 8 << 20;
    let listener = server
        .within(|| TcpListener::bind(SocketAddr::new(address, 0)))
        .unwrap();
    let target = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        let sent: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
        client.within(|| {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&sent).unwrap();
        });
        assert!(receiver.join().unwrap() == sent, "bytes arrive as sent");
    });
}

#[test]
fn a_kernel_as_guest_talks_with_offloads_both_ways() {
    let bed = Bed::new();
    let mut attachment = attached(&bed.pod, HookKind::Auto);
    let tap = attachment.take_tap().unwrap();
    let guest = KernelGuest::start(tap, attachment.endpoint());
    for address in [POD_V4, POD_V6] {
        let address = address.parse().unwrap();
        assert!(bed.host.ping(address, PATIENCE), "{address}");
        transfer(&bed.host, &guest.netns, address);
    }
    for address in ["10.88.0.1", "fd88::1"] {
        let address = address.parse().unwrap();
        assert!(guest.netns.ping(address, PATIENCE), "{address}");
        transfer(&guest.netns, &bed.host, address);
    }
    let counters = attachment.counters().unwrap();
    assert!(counters.to_guest.bytes > 16 << 20, "{counters:?}");
    assert!(counters.from_guest.bytes > 16 << 20, "{counters:?}");
    let relayed = guest.stop();
    assert!(relayed.large_to_guest > 0, "large frames to the guest");
    assert!(relayed.large_from_guest > 0, "large frames from the guest");
}
