//! Device rules as an eBPF program on the cgroup.

use std::os::fd::AsFd;

use crate::cgroup::CgroupError;
use crate::cgroup::devices::{Rule, effective};
use crate::cgroup::directory::Directory;
use crate::sys::{self, Instruction};

// eBPF operations: class | source of the operand | operation.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const JUMP_IF_NOT_EQUAL: u8 = 0x55;
const JUMP_IF_BITS: u8 = 0x45;
const JUMP: u8 = 0x05;
const EXIT: u8 = 0x95;

// Registers of the program.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | (from << 4),
        offset,
        immediate,
    }
}

/// The program: it walks the rules from the last to the first, so that later ones win, and strikes
/// out the accesses that are allowed; a forbidden one, or one that no rule names, is refused.
/// The context is `struct bpf_cgroup_dev_ctx`: access and type in one word, major, minor.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND_32, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        // Offsets of these jumps to the next rule are filled in below.
        for (register, value) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(value) = value {
                block.push(instruction(JUMP_IF_NOT_EQUAL, register, 0, 0, value));
            }
        }
        let conditions = block.len();
        if rule.allow {
            block.push(instruction(AND_32, ACCESS, 0, 0, !rule.access));
            // Something is left to be decided by an earlier rule: skip the exit.
            block.push(instruction(JUMP_IF_NOT_EQUAL, ACCESS, 0, 2, 0));
            block.push(instruction(MOVE, RESULT, 0, 0, 1));
        } else {
            block.push(instruction(JUMP_IF_BITS, ACCESS, 0, 1, rule.access));
            // Nothing that is asked for is forbidden here: skip the exit.
            block.push(instruction(JUMP, 0, 0, 2, 0));
            block.push(instruction(MOVE, RESULT, 0, 0, 0));
        }
        block.push(instruction(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (index, condition) in block.iter_mut().take(conditions).enumerate() {
            condition.offset = (length - index - 1) as i16;
        }
        code.extend(block);
    }
    code.push(instruction(MOVE, RESULT, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// Puts the rules in force, in the place of those that this engine has put there before.
pub(in crate::cgroup) fn set(directory: &Directory, rules: &[Rule]) -> Result<(), CgroupError> {
    let failed = |source| directory.error("set the device rules of", "", source);
    let cgroup = directory.as_fd();
    let old = sys::attached_device_programs(cgroup);
    if let Some(rules) = effective(rules) {
        let program = sys::load_device_program(&program(rules)).map_err(failed)?;
        sys::attach_device_program(cgroup, program.as_fd()).map_err(failed)?;
    } else if old.is_err() {
        // A kernel without device programs forbids nothing, which is what was asked for.
        return Ok(());
    }
    // The new program is in force beside the old ones before those go: no moment without rules.
    for program in old.map_err(failed)? {
        sys::detach_device_program(cgroup, program.as_fd()).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::tests::spec;
    use crate::cgroup::devices::{BLOCK, CHARACTER, DEFAULT_RULES, MKNOD, READ, WRITE, rules};
    use oci_spec::runtime::LinuxDeviceType;

    /// Runs a program as the kernel would, for the operations that it uses.
    fn run(code: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0i64; 11];
        let mut at = 0usize;
        loop {
            let now = code[at];
            let to = usize::from(now.registers & 15);
            let from = usize::from(now.registers >> 4);
            at += 1;
            let jump = match now.code {
                LOAD_WORD => {
                    registers[to] = i64::from(context[now.offset as usize / 4]);
                    false
                }
                MOVE => {
                    registers[to] = now.immediate.into();
                    false
                }
                MOVE_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                AND_32 => {
                    registers[to] = i64::from(registers[to] as u32 & now.immediate as u32);
                    false
                }
                SHIFT_RIGHT_32 => {
                    registers[to] = i64::from(registers[to] as u32 >> now.immediate);
                    false
                }
                JUMP_IF_NOT_EQUAL => registers[to] != i64::from(now.immediate),
                JUMP_IF_BITS => registers[to] & i64::from(now.immediate) != 0,
                JUMP => true,
                EXIT => return registers[usize::from(RESULT)] == 1,
                other => panic!("operation {other:#x}"),
            };
            if jump {
                at = (at as i64 + i64::from(now.offset)) as usize;
            }
        }
    }

    #[test]
    fn later_rules_win_and_accesses_are_judged_one_by_one() {
        let rules = [
            spec(false, LinuxDeviceType::A, None, "rwm"),
            spec(true, LinuxDeviceType::B, Some((8, 0)), "rw"),
            spec(false, LinuxDeviceType::B, Some((8, 0)), "w"),
            spec(true, LinuxDeviceType::C, Some((10, 1)), "r"),
            spec(true, LinuxDeviceType::C, Some((10, 1)), "w"),
        ];
        let code = program(effective(&rules).unwrap());
        assert!(run(&code, BLOCK, READ, 8, 0));
        assert!(!run(&code, BLOCK, WRITE, 8, 0));
        assert!(!run(&code, BLOCK, READ | WRITE, 8, 0));
        assert!(!run(&code, BLOCK, READ, 8, 1));
        assert!(!run(&code, CHARACTER, READ, 8, 0));
        assert!(run(&code, CHARACTER, READ | WRITE, 10, 1));
        assert!(!run(&code, CHARACTER, MKNOD, 10, 1));
    }

    #[test]
    fn the_default_devices_are_always_allowed() {
        let code = program(&rules(&[]).unwrap());
        assert!(run(&code, CHARACTER, READ | WRITE, 1, 3));
        assert!(run(&code, CHARACTER, READ | WRITE, 136, 7));
        assert!(run(&code, BLOCK, MKNOD, 8, 0));
        assert!(!run(&code, BLOCK, READ, 8, 0));
    }

    #[test]
    fn allowing_everything_needs_no_program() {
        let mut rules = vec![
            spec(false, LinuxDeviceType::A, None, "rwm"),
            spec(true, LinuxDeviceType::A, None, "rwm"),
        ];
        rules.extend_from_slice(DEFAULT_RULES);
        assert_eq!(effective(&rules), None);
        rules.push(spec(false, LinuxDeviceType::B, Some((8, 0)), "rwm"));
        let code = program(effective(&rules).unwrap());
        assert!(!run(&code, BLOCK, READ, 8, 0));
        assert!(run(&code, BLOCK, READ, 8, 1));
    }
}
