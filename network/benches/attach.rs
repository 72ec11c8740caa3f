//! How long attaching and detaching take, and handing over a frame:
//! `cargo bench -p network`.

#[path = "../tests/bed/mod.rs"]
mod bed;

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use bed::{Bed, HOST_MAC, POD_MAC};
use network::{HookKind, Options, VNET_HEADER_BYTES, attach};

/// Each on a pod of its own, as it is in earnest.
const PODS: usize = 40;
const FRAMES: u32 = 10_000;
const ROUNDS: u32 = 50;

fn main() {
    let bed = Bed::new();
    println!("before the first: {}", anonymous());
    let attachment = attach(&bed.pod.path(), &Options::default()).unwrap();
    println!("attached: {}", anonymous());
    drop(attachment);
    for hook in [HookKind::Clsact, HookKind::Tcx] {
        let options = Options {
            hook,
            ..Options::default()
        };
        let (mut attaching, mut detaching, mut closing) = (vec![], vec![], vec![]);
        for _ in 0..PODS {
            let bed = Bed::new();
            let start = Instant::now();
            let mut attachment = attach(&bed.pod.path(), &options).unwrap().unwrap();
            attaching.push(start.elapsed());
            let tap = attachment.take_tap();
            let start = Instant::now();
            attachment.detach().unwrap();
            detaching.push(start.elapsed());
            let start = Instant::now();
            drop(tap);
            closing.push(start.elapsed());
        }
        for (name, times) in [
            ("attach", &mut attaching),
            ("detach", &mut detaching),
            ("close the TAP", &mut closing),
        ] {
            times.sort();
            println!(
                "{hook:?} {name}: median {:?}, least {:?}, p95 {:?}",
                times[times.len() / 2],
                times[0],
                times[times.len() * 95 / 100]
            );
        }
        println!("{hook:?} a frame from the guest: {:?}", frame(&options));
    }
}

/// This process's memory that no file backs, as the kernel words it.
fn anonymous() -> String {
    let maps = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let anonymous = maps.lines().find(|line| line.starts_with("Anonymous"));
    anonymous.unwrap_or_default().to_owned()
}

/// The least time to write one small frame to the TAP, all the way to the
/// other side of the pod's link.
fn frame(options: &Options) -> Duration {
    let bed = Bed::new();
    let mut attachment = attach(&bed.pod.path(), options).unwrap().unwrap();
    let mut tap = File::from(attachment.take_tap().unwrap());
    let mut frame = vec![0; VNET_HEADER_BYTES];
    frame.extend([HOST_MAC, POD_MAC].concat());
    // An experimental EtherType, which the other side drops.
    frame.extend([0x88, 0xb5]);
    frame.resize(VNET_HEADER_BYTES + 64, 0);
    let mut round = || {
        let start = Instant::now();
        for _ in 0..FRAMES {
            tap.write_all(&frame).unwrap();
        }
        start.elapsed() / FRAMES
    };
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}
