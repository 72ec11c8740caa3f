//! What is left in a namespace and in the kernel when an attachment ends.

mod bed;

use std::collections::HashSet;
use std::time::Instant;

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use bed::{Bed, Netns, PATIENCE, POD_V4, TAP};
use network::{HookKind, Options, Remains, attach, sweep};

const ATTACHED: [&str; 2] = ["eth0", TAP];
const HOOKS: [HookKind; 2] = [HookKind::Clsact, HookKind::Tcx];

fn options(hook: HookKind) -> Options {
    Options {
        hook,
        ..Options::default()
    }
}

/// The ids of the programs on the pod's interfaces, however attached.
fn programs(pod: &Netns) -> HashSet<u32> {
    let mut ids: HashSet<u32> = pod.within(|| {
        ATTACHED
            .into_iter()
            .filter_map(|name| SchedClassifier::query_tcx(name, TcAttachType::Ingress).ok())
            .flat_map(|(_, programs)| programs)
            .map(|program| program.id())
            .collect()
    });
    let links = pod.ip("-o link show");
    for name in ATTACHED.into_iter().filter(|name| links.contains(name)) {
        let filters = pod.tc(&format!("filter show dev {name} ingress"));
        // "... direct-action not_in_hw id 42 name ... tag ..."
        let mut words = filters.split_whitespace();
        while words.any(|word| word == "id") {
            ids.insert(words.next().unwrap().parse().unwrap());
        }
    }
    ids
}

/// Waits until the kernel, which frees programs in its own time, has none of
/// `ids` left.
fn assert_unloaded(ids: &HashSet<u32>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<u32> = loaded_programs()
            // Others' programs may go while the list is read.
            .filter_map(|program| program.ok())
            .map(|program| program.id())
            .filter(|id| ids.contains(id))
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "programs {left:?} stay loaded");
    }
}

fn assert_as_before(bed: &Bed) {
    bed.pod.await_gone(TAP);
    assert!(programs(&bed.pod).is_empty());
    assert!(bed.host.ping(POD_V4.parse().unwrap(), PATIENCE));
}

#[test]
fn detaching_leaves_nothing() {
    for hook in HOOKS {
        let bed = Bed::new();
        let attachment = attach(&bed.pod.path(), &options(hook)).unwrap().unwrap();
        let ids = programs(&bed.pod);
        assert_eq!(ids.len(), 2, "{hook:?}: one program on each interface");
        attachment.detach().unwrap();
        assert_as_before(&bed);
        assert_unloaded(&ids);
    }
}

#[test]
fn dropping_leaves_the_tap_to_its_holder_and_nothing_else() {
    for hook in HOOKS {
        let bed = Bed::new();
        let mut attachment = attach(&bed.pod.path(), &options(hook)).unwrap().unwrap();
        let tap = attachment.take_tap();
        let ids = programs(&bed.pod);
        drop(attachment);
        assert!(bed.pod.ip("-o link show").contains(TAP));
        drop(tap);
        assert_as_before(&bed);
        assert_unloaded(&ids);
    }
}

#[test]
fn the_interface_may_go_first() {
    for hook in HOOKS {
        let bed = Bed::new();
        let attachment = attach(&bed.pod.path(), &options(hook)).unwrap().unwrap();
        bed.pod.ip("link del eth0");
        attachment.counters().unwrap();
        attachment.detach().unwrap();
        bed.pod.await_gone(TAP);
    }
}

#[test]
fn the_namespace_may_go_first() {
    for hook in HOOKS {
        let bed = Bed::new();
        let attachment = attach(&bed.pod.path(), &options(hook)).unwrap().unwrap();
        drop(bed);
        attachment.detach().unwrap();
    }
}

#[test]
fn what_a_killed_process_left_is_replaced() {
    let bed = Bed::new();
    let options = options(HookKind::Clsact);
    let mut killed = attach(&bed.pod.path(), &options).unwrap().unwrap();
    drop(killed.take_tap());
    bed.pod.await_gone(TAP);
    let stale = programs(&bed.pod);
    assert_eq!(stale.len(), 1, "the filter on the pod's interface");
    let attachment = attach(&bed.pod.path(), &options).unwrap().unwrap();
    assert!(programs(&bed.pod).is_disjoint(&stale));
    // A late farewell takes nothing from the one that lives.
    let living = programs(&bed.pod);
    killed.detach().unwrap();
    assert_eq!(programs(&bed.pod), living);
    attachment.detach().unwrap();
    assert_as_before(&bed);
    assert_unloaded(&stale);
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let bed = Bed::new();
    bed.pod.tc("qdisc add dev eth0 clsact");
    bed.pod
        .tc("filter add dev eth0 ingress prio 9 u32 match u32 0 0 classid 1:1");
    let before = bed.pod.tc("filter show dev eth0 ingress");
    let options = options(HookKind::Clsact);
    let mut killed = attach(&bed.pod.path(), &options).unwrap().unwrap();
    let remains = killed.remains().unwrap();
    drop(killed.take_tap());
    bed.pod.await_gone(TAP);
    assert_ne!(bed.pod.tc("filter show dev eth0 ingress"), before);
    // Another's filter is not what was left.
    let other = Remains {
        handle: remains.handle + 1,
        ..remains
    };
    sweep(&bed.pod.path(), other).unwrap();
    assert_ne!(bed.pod.tc("filter show dev eth0 ingress"), before);
    for _ in 0..2 {
        sweep(&bed.pod.path(), remains).unwrap();
        assert_eq!(bed.pod.tc("filter show dev eth0 ingress"), before);
    }
    bed.pod.tc("qdisc del dev eth0 clsact");
    sweep(&bed.pod.path(), remains).unwrap();
    sweep(std::path::Path::new("/run/netns/no-such"), remains).unwrap();
}

#[test]
fn filters_of_others_stay() {
    let bed = Bed::new();
    bed.pod.tc("qdisc add dev eth0 clsact");
    bed.pod
        .tc("filter add dev eth0 ingress prio 9 u32 match u32 0 0 classid 1:1");
    let before = bed.pod.tc("filter show dev eth0 ingress");
    let attachment = attach(&bed.pod.path(), &Options::default())
        .unwrap()
        .unwrap();
    attachment.detach().unwrap();
    assert_eq!(bed.pod.tc("filter show dev eth0 ingress"), before);
}

#[test]
fn a_failed_attach_leaves_nothing() {
    let bed = Bed::new();
    // Taken: the TAP cannot be made.
    bed.pod.ip("link add joey0 type bridge");
    attach(&bed.pod.path(), &Options::default()).unwrap_err();
    bed.pod.ip("link del joey0");
    assert_as_before(&bed);
}

#[test]
fn addresses_and_routes_stay_in_the_namespace() {
    let bed = Bed::new();
    let state = || {
        ["-o addr show dev eth0", "route show", "-6 route show"]
            .map(|arguments| bed.pod.ip(arguments))
    };
    let before = state();
    let attachment = attach(&bed.pod.path(), &Options::default())
        .unwrap()
        .unwrap();
    assert_eq!(state()[1], before[1]);
    attachment.detach().unwrap();
    assert_eq!(state(), before);
}
