//! A sandbox's Configure, in namespaces that stand for the guest.

mod common;
#[path = "common/machine.rs"]
#[allow(dead_code)]
mod machine;

use common::{isolated, run};
use machine::{context, with_machine};
use protocol::guest::{ConfigureRequest, Dns, Empty, Interface, Route};
use protocol::ids::SHM_PATH;

#[test]
fn one_call_configures_a_sandbox() {
    isolated("one_call_configures_a_sandbox", || {
        run(
            "ip",
            &[
                "link",
                "add",
                "veth7",
                "address",
                "0a:58:0a:58:00:05",
                "type",
                "veth",
                "peer",
                "name",
                "peer",
            ],
        );
        run("ip", &["link", "set", "peer", "up"]);
        run("mount", &["-t", "tmpfs", "tmpfs", "/etc"]);
        std::fs::create_dir_all("/run/joey").unwrap();
        with_machine(async |machine| {
            let mut request = ConfigureRequest {
                sandbox_id: "sandbox".into(),
                hostname: "my-pod".into(),
                dns: Some(Dns {
                    servers: vec!["10.96.0.10".into()],
                    ..Default::default()
                })
                .into(),
                interfaces: vec![Interface {
                    name: "eth0".into(),
                    mac: vec![0x0a, 0x58, 0x0a, 0x58, 0, 5],
                    mtu: 1450,
                    addresses: vec!["10.88.0.5/16".into()],
                    ..Default::default()
                }],
                routes: vec![Route {
                    destination: "0.0.0.0/0".into(),
                    gateway: "10.88.0.1".into(),
                    interface: "eth0".into(),
                    ..Default::default()
                }],
                sysctls: [("net.ipv4.ip_unprivileged_port_start".into(), "0".into())].into(),
                entropy: vec![7; 45],
                cpus: 1,
                ..Default::default()
            };
            machine.guest.configure(context(), &request).await.unwrap();
            assert_eq!(run("hostname", &[]).trim(), "my-pod");
            assert!(run("ip", &["route"]).contains("default via 10.88.0.1 dev eth0"));
            let dns = std::fs::read_to_string("/etc/resolv.conf").unwrap();
            assert_eq!(dns, "nameserver 10.96.0.10\n");
            let shm = run(
                "findmnt",
                &["-n", "-b", "-o", "FSTYPE,SIZE,OPTIONS", SHM_PATH],
            );
            assert!(
                shm.contains("tmpfs") && shm.contains("67108864") && shm.contains("noexec"),
                "{shm}"
            );

            request.shm_bytes = 1 << 20;
            machine.guest.configure(context(), &request).await.unwrap();
            let shm = run("findmnt", &["-n", "-b", "-o", "SIZE", SHM_PATH]);
            assert_eq!(shm.trim(), "1048576");

            request.sysctls = [("net.no.such.thing".into(), "1".into())].into();
            let error = machine
                .guest
                .configure(context(), &request)
                .await
                .unwrap_err();
            assert!(error.to_string().contains("net.no.such.thing"), "{error}");
            let stats = machine
                .guest
                .stats(context(), &Empty::default())
                .await
                .unwrap();
            assert!(stats.memory_total_bytes > stats.memory_available_bytes);
            assert!(stats.processes > 0);
        });
    });
}
