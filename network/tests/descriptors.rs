//! Alone in its process, since it counts that process's descriptors.

mod bed;

use std::fs;

use bed::Bed;
use network::{HookKind, Options, attach};

#[test]
fn fifty_attachments_leak_no_descriptors() {
    let bed = Bed::new();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let before = (open(), threads());
    for round in 0..50 {
        let options = Options {
            hook: [HookKind::Tcx, HookKind::Clsact][round % 2],
            ..Options::default()
        };
        let mut attachment = attach(&bed.pod.path(), &options).unwrap().unwrap();
        let tap = attachment.take_tap();
        // An attempt that fails half-way, with the TAP's name taken.
        attach(&bed.pod.path(), &options).unwrap_err();
        attachment.counters().unwrap();
        attachment.detach().unwrap();
        drop(tap);
    }
    assert_eq!((open(), threads()), before);
}
