//! Connections to a namespace's loopback: which are taken, and what is left after.

mod bed;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use aya::programs::loaded_programs;
use bed::{Netns, PATIENCE};
use network::{Error, Loopback, listen_on_loopback};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn dial(netns: &Netns, address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    netns.within(|| TcpStream::connect_timeout(&address, PATIENCE))
}

/// The next connection, and the address that it was meant for.
fn accept(loopback: &Loopback) -> (TcpStream, SocketAddr) {
    let mut fds = [PollFd::new(loopback.listener.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut fds, patience).unwrap(), 1, "no connection came");
    let (stream, _) = loopback.listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    let local = stream.local_addr().unwrap();
    (
        stream,
        SocketAddr::new(local.ip().to_canonical(), local.port()),
    )
}

fn refused(netns: &Netns, address: &str) -> bool {
    matches!(dial(netns, address), Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn every_port_of_both_families_is_taken_and_known() {
    let netns = Netns::new("pod");
    let loopback = listen_on_loopback(&netns.path()).unwrap();
    for address in [
        "127.0.0.1:80",
        "127.0.0.1:65535",
        "127.255.0.9:1",
        "[::1]:80",
        "[::1]:5432",
    ] {
        let mut client = dial(&netns, address).unwrap();
        let (mut server, meant) = accept(&loopback);
        assert_eq!(meant.to_string(), address);
        // An ordinary connection from here on, whose halves end one by one.
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        server.write_all(b"answer").unwrap();
        drop(server);
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "questionanswer");
    }
}

#[test]
fn other_addresses_and_protocols_are_left_alone() {
    let netns = Netns::new("pod");
    netns.ip("addr add 10.88.0.5/32 dev lo");
    netns.ip("addr add fd88::5/128 dev lo nodad");
    let loopback = listen_on_loopback(&netns.path()).unwrap();
    assert!(refused(&netns, "10.88.0.5:80"));
    assert!(refused(&netns, "[fd88::5]:80"));
    let own = netns.within(|| TcpListener::bind("10.88.0.5:81").unwrap());
    let mut client = dial(&netns, "10.88.0.5:81").unwrap();
    client.write_all(b"x").unwrap();
    own.accept().unwrap().0.read_exact(&mut [0]).unwrap();

    let (one, two) = netns.within(|| {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        (bind(), bind())
    });
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    two.send_to(b"datagram", one.local_addr().unwrap()).unwrap();
    assert_eq!(one.recv(&mut [0; 16]).unwrap(), 8);
    assert_eq!(
        loopback.listener.accept().unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

#[test]
fn other_namespaces_are_left_alone() {
    let (pod, other) = (Netns::new("pod"), Netns::new("other"));
    let _loopback = listen_on_loopback(&pod.path()).unwrap();
    assert!(refused(&other, "127.0.0.1:80"));
    assert!(refused(&other, "[::1]:80"));
}

#[test]
fn two_pods_have_one_each() {
    let pods = [Netns::new("one"), Netns::new("two")];
    let loopbacks = pods
        .each_ref()
        .map(|pod| listen_on_loopback(&pod.path()).unwrap());
    for (pod, loopback) in pods.iter().zip(&loopbacks).rev() {
        let _client = dial(pod, "127.0.0.1:80").unwrap();
        accept(loopback);
    }
}

#[test]
fn what_was_accepted_outlives_the_listener_and_nothing_else_does() {
    let netns = Netns::new("pod");
    let before = programs();
    let loopback = listen_on_loopback(&netns.path()).unwrap();
    let ours: HashSet<u32> = programs().difference(&before).copied().collect();
    assert!(!ours.is_empty());
    let mut client = dial(&netns, "127.0.0.1:80").unwrap();
    let (mut server, _) = accept(&loopback);
    drop(loopback);
    for address in ["127.0.0.1:80", "[::1]:80"] {
        // A process that another test has forked just now holds the listener too,
        // until it becomes its program.
        let deadline = Instant::now() + PATIENCE;
        while !refused(&netns, address) {
            assert!(Instant::now() < deadline, "{address} is still taken");
        }
    }
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    // The kernel frees programs in its own time.
    let deadline = Instant::now() + PATIENCE;
    while !programs().is_disjoint(&ours) {
        assert!(Instant::now() < deadline, "the program stays loaded");
    }
}

#[test]
fn the_namespace_may_go_first() {
    let netns = Netns::new("pod");
    let loopback = listen_on_loopback(&netns.path()).unwrap();
    drop(netns);
    drop(loopback);
}

#[test]
fn a_namespace_without_ipv6_addresses_has_ipv4() {
    let netns = Netns::new("pod");
    netns.within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    let loopback = listen_on_loopback(&netns.path()).unwrap();
    let _client = dial(&netns, "127.0.0.1:80").unwrap();
    let meant = accept(&loopback).1;
    assert_eq!(meant.ip(), IpAddr::from([127, 0, 0, 1]));
}

#[test]
fn what_is_no_namespace_of_a_pod_is_named() {
    let error = listen_on_loopback(Path::new("/run/netns/joeytest-none")).unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
    let error = listen_on_loopback(Path::new("/proc/self/ns/net")).unwrap_err();
    assert!(matches!(error, Error::OwnNamespace { .. }), "{error}");
}

/// The ids of the programs of this kind that the kernel has.
fn programs() -> HashSet<u32> {
    loaded_programs()
        // Others' programs may go while the list is read.
        .filter_map(|program| program.ok())
        .filter(|program| program.name_as_str() == Some("joey_loopback"))
        .map(|program| program.id())
        .collect()
}
