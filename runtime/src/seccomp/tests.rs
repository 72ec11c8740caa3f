//! Profiles, compiled here and by the C library, must judge every call alike.

use super::program::tests::{Call, run};
use super::*;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};
use std::io::{Read, Seek};

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn judge(profile: &LinuxSeccomp, number: u32, arguments: [u64; 6]) -> u32 {
    let call = Call {
        number,
        audit: NATIVE as u32,
        arguments,
    };
    run(&compile(profile).unwrap(), &call)
}

fn of(name: &str) -> u32 {
    number(name, NATIVE).unwrap()
}

const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | 1;

#[test]
fn allowing_everything_is_no_filter() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert!(Filter::compile(&profile).unwrap().is_none());
}

#[test]
fn an_unknown_call_is_left_out() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read", "no_such_call", "futex"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_eq!(judge(&profile, of("read"), [0; 6]), libc::SECCOMP_RET_ALLOW);
    assert_eq!(judge(&profile, of("close"), [0; 6]), REFUSED);
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let rules = json!([{"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]);
    let refusing = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    let newest = of("openat2");
    let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    assert_eq!(judge(&refusing, newest - 1, [0; 6]), REFUSED);
    assert_eq!(judge(&refusing, newest + 1, [0; 6]), missing);
    let logging = profile(json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rules}));
    assert_eq!(judge(&logging, newest + 1, [0; 6]), libc::SECCOMP_RET_LOG);
}

#[test]
fn a_repeated_argument_means_any_of_its_values() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["personality", "openat2"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
            {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]}));
    let judge = |value| judge(&profile, of("personality"), [value, 0, 0, 0, 0, 0]);
    assert_eq!(
        [judge(0), judge(8), judge(4)],
        [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ALLOW, REFUSED]
    );
}

#[test]
fn foreign_calls_end_the_thread() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO"}]}));
    let call = |audit, number| Call {
        number,
        audit,
        arguments: [0; 6],
    };
    let program = compile(&profile).unwrap();
    let killed = libc::SECCOMP_RET_KILL_THREAD;
    assert_eq!(run(&program, &call(Arch::ScmpArchX86 as u32, 3)), killed);
    assert_eq!(run(&program, &call(NATIVE as u32, X32)), killed);
}

#[test]
fn notifications_need_an_agent_and_leave_the_engine_its_way_to_it() {
    let asking = |rules: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
            "syscalls": rules})
    };
    let rule = |name: &str| json!([{"names": ["read", name], "action": "SCMP_ACT_NOTIFY"}]);
    let filter = Filter::compile(&profile(asking(rule("mkdir")))).unwrap();
    assert!(filter.unwrap().listener().is_some());

    let wrong = |value: Value| Filter::compile(&profile(value)).unwrap_err().field;
    assert_eq!(wrong(asking(rule("write"))), "linux.seccomp.syscalls[0]");
    let mut nobody = asking(rule("mkdir"));
    nobody["listenerPath"] = json!("relative");
    assert_eq!(wrong(nobody), "linux.seccomp.listenerPath");
    let mut all = asking(json!([]));
    all["defaultAction"] = json!("SCMP_ACT_NOTIFY");
    assert_eq!(wrong(all), "linux.seccomp.defaultAction");
}

#[test]
fn the_field_that_is_wrong_is_named() {
    let wrong = |rule: Value| {
        let rules = json!([{"names": ["read"], "action": "SCMP_ACT_LOG"}, rule]);
        let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
        Filter::compile(&profile).unwrap_err().field
    };
    assert_eq!(
        wrong(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65536})),
        "linux.seccomp.syscalls[1].errnoRet"
    );
    assert_eq!(
        wrong(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
        "linux.seccomp.syscalls[1].args"
    );
    assert_eq!(
        wrong(json!({"names": [""], "action": "SCMP_ACT_ERRNO"})),
        "linux.seccomp.syscalls[1].names"
    );
}

#[test]
fn flags() {
    let of = |flags: Value, listens| {
        let profile = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": flags}));
        super::flags(&profile, listens)
    };
    let (log, allow, new) = (
        libc::SECCOMP_FILTER_FLAG_LOG,
        libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    );
    assert_eq!(of(json!(null), false), allow);
    assert_eq!(of(json!([]), true), new);
    let names = json!([
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    ]);
    assert_eq!(of(names.clone(), false), log);
    assert_eq!(of(names, true), log | new | 1 << 5);
}

/// A profile of the kind that containerd has: most calls allowed, some by their arguments, some
/// with errors of their own.
fn usual(architectures: Value) -> LinuxSeccomp {
    let names: Vec<String> = (0..460)
        .filter_map(|number| ScmpSyscall::from_raw_syscall(number).get_name().ok())
        .filter(|name| {
            let apart = [
                "mount",
                "ptrace",
                "bpf",
                "clone",
                "clone3",
                "personality",
                "keyctl",
                "ioctl",
                "setns",
            ];
            !apart.contains(&name.as_str()) && !name.starts_with('p')
        })
        .collect();
    profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": architectures,
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x20008, "op": "SCMP_CMP_EQ"}]},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0xffff_ffffu64, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0,
                       "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["ioctl"], "action": "SCMP_ACT_KILL_PROCESS",
             "args": [{"index": 1, "value": 0x5412, "op": "SCMP_CMP_EQ"},
                      {"index": 2, "value": 0x1_0000_0005u64, "op": "SCMP_CMP_GT"}]},
            {"names": ["setns"], "action": "SCMP_ACT_TRAP",
             "args": [{"index": 1, "value": 7, "op": "SCMP_CMP_LT"}]},
            {"names": ["keyctl"], "action": "SCMP_ACT_LOG",
             "args": [{"index": 3, "value": 7, "op": "SCMP_CMP_NE"}]},
        ],
    }))
}

/// The same profile, compiled by the C library.
fn library(profile: &LinuxSeccomp) -> Vec<Instruction> {
    let convert = |action, errno: Option<u32>| match action {
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno.unwrap_or(1) as i32),
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        _ => ScmpAction::Allow,
    };
    let default = convert(profile.default_action(), None);
    let mut context = ScmpFilterContext::new(default).unwrap();
    for &arch in profile.architectures().iter().flatten() {
        if !context.is_arch_present(architecture(arch)).unwrap() {
            context.add_arch(architecture(arch)).unwrap();
        }
    }
    for call in profile.syscalls().iter().flatten() {
        let compares: Vec<ScmpArgCompare> = call
            .args()
            .iter()
            .flatten()
            .map(|arg| {
                let (operator, value) = match arg.op() {
                    LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
                    LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
                    LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
                    LinuxSeccompOperator::ScmpCmpMaskedEq => (
                        ScmpCompareOp::MaskedEqual(arg.value()),
                        arg.value_two().unwrap_or(0),
                    ),
                    _ => (ScmpCompareOp::Equal, arg.value()),
                };
                ScmpArgCompare::new(arg.index() as u32, operator, value)
            })
            .collect();
        for name in call.names() {
            let number = ScmpSyscall::from_name(name).unwrap();
            let action = convert(call.action(), call.errno_ret());
            if compares.is_empty() {
                context.add_rule(action, number).unwrap();
            } else {
                context
                    .add_rule_conditional(action, number, &compares)
                    .unwrap();
            }
        }
    }
    let mut file = std::fs::File::from(memfd_create("filter", MemfdFlags::CLOEXEC).unwrap());
    context.export_bpf(&file).unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
        .chunks_exact(8)
        .map(|chunk| Instruction {
            code: u16::from_ne_bytes([chunk[0], chunk[1]]),
            yes: chunk[2],
            no: chunk[3],
            operand: u32::from_ne_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
        })
        .collect()
}

/// Compares both on all calls up to the newest that the profile knows, with arguments on both sides
/// of each value that the profile compares with.
fn agree(profile: &LinuxSeccomp) {
    let (own, theirs) = (compile(profile).unwrap(), library(profile));
    let values = [
        0,
        1,
        5,
        6,
        7,
        8,
        0x5412,
        0x20008,
        0x2000_0000,
        0xffff_ffff,
        0x1_0000_0005,
        0x1_0000_0006,
        0x2_0000_0000,
        0x7e02_0000_0000,
        u64::MAX,
    ];
    for arch in profile.architectures().iter().flatten() {
        let (audit, base) = match arch {
            Arch::ScmpArchX32 => (Arch::ScmpArchX86_64 as u32, X32),
            arch => (*arch as u32, 0),
        };
        let mut calls = Calls::default();
        calls.add_profile(profile, *arch, 0).unwrap();
        for number in base..=calls.newest.unwrap() {
            for value in values {
                for second in values {
                    let call = Call {
                        number,
                        audit,
                        arguments: [value, second, value, second, 0, 0],
                    };
                    assert_eq!(run(&own, &call), run(&theirs, &call), "{arch:?} {call:x?}");
                }
            }
        }
    }
}

#[test]
fn the_c_library_agrees_on_the_native_architecture() {
    agree(&usual(json!(["SCMP_ARCH_X86_64"])));
}

#[test]
fn the_c_library_agrees_on_all_of_a_processor_s_architectures() {
    agree(&usual(json!([
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32"
    ])));
}
