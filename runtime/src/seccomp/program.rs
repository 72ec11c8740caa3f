//! From rules to a filter program in classic BPF. The C library for this copies its whole database
//! for every rule that is added, which takes tens of milliseconds for the usual profiles; this takes
//! a fraction of one.

use std::collections::BTreeMap;

// Operations of classic BPF.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`, for a little-endian processor.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// One instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions to skip when a comparison holds.
    pub yes: u8,
    /// How many to skip when it does not.
    pub no: u8,
    /// Operand.
    pub operand: u32,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal in the bits of the mask.
    Masked(u64),
}

/// What must hold for one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, from 0 to 5.
    pub argument: u32,
    pub comparison: Comparison,
    pub value: u64,
}

/// What to do with a call when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub conditions: Vec<Condition>,
    /// Whether arguments have 64 bits.
    pub wide: bool,
    /// `SECCOMP_RET_*`.
    pub action: u32,
}

/// The rules of an architecture as the kernel tells it.
#[derive(Debug, Clone)]
pub(super) struct Architecture {
    /// `AUDIT_ARCH_*`.
    pub audit: u32,
    /// Rules by the number of the call.
    pub calls: BTreeMap<u32, Vec<Rule>>,
    /// The action for numbers without a rule, from each number on. The first one is 0.
    pub otherwise: BTreeMap<u32, u32>,
}

/// What is done with a range of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Leaf {
    Always(u32),
    /// The first rule whose conditions hold, else the action.
    Depends(Vec<Rule>, u32),
}

/// Compiles rules; `foreign` is the action for calls of any other architecture.
pub(super) fn compile(architectures: &[Architecture], foreign: u32) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, ARCHITECTURE)];
    for architecture in architectures {
        let mut body = vec![plain(LOAD, NUMBER)];
        body.extend(tree(&leaves(architecture)));
        // The body ends with a return on every way, so only another architecture comes past it.
        program.push(jump(JUMP_EQUAL, 1, 0, architecture.audit));
        program.push(plain(JUMP, body.len() as u32));
        program.extend(body);
    }
    program.push(plain(RETURN, foreign));
    program
}

/// The numbers at which something else begins.
fn leaves(architecture: &Architecture) -> Vec<(u32, Leaf)> {
    let otherwise = |number: u32| {
        let default = architecture.otherwise.range(..=number).next_back();
        default.map_or(0, |(_, action)| *action)
    };
    let mut points: BTreeMap<u32, Leaf> = architecture
        .otherwise
        .iter()
        .map(|(number, action)| (*number, Leaf::Always(*action)))
        .collect();
    for (number, rules) in &architecture.calls {
        if let Some(next) = number.checked_add(1) {
            points
                .entry(next)
                .or_insert_with(|| Leaf::Always(otherwise(next)));
        }
        let leaf = match rules.iter().find(|rule| rule.conditions.is_empty()) {
            Some(rule) => Leaf::Always(rule.action),
            None => Leaf::Depends(rules.clone(), otherwise(*number)),
        };
        points.insert(*number, leaf);
    }
    let mut leaves: Vec<(u32, Leaf)> = points.into_iter().collect();
    leaves.dedup_by(|next, last| next.1 == last.1);
    leaves
}

/// A binary search for the number. Every way ends with a return.
fn tree(leaves: &[(u32, Leaf)]) -> Vec<Instruction> {
    let [(_, only)] = leaves else {
        let (left, right) = leaves.split_at(leaves.len() / 2);
        let pivot = right[0].0;
        let (left, right) = (tree(left), tree(right));
        let mut code = match u8::try_from(left.len()) {
            Ok(length) => vec![jump(JUMP_AT_LEAST, length, 0, pivot)],
            // A comparison cannot jump that far.
            Err(_) => vec![
                jump(JUMP_AT_LEAST, 0, 1, pivot),
                plain(JUMP, left.len() as u32),
            ],
        };
        code.extend(left);
        code.extend(right);
        return code;
    };
    match only {
        Leaf::Always(action) => vec![plain(RETURN, *action)],
        Leaf::Depends(rules, otherwise) => {
            let mut code: Vec<Instruction> = rules.iter().flat_map(rule).collect();
            code.push(plain(RETURN, *otherwise));
            code
        }
    }
}

/// Returns the rule's action if its conditions hold, else goes on behind it.
fn rule(rule: &Rule) -> Vec<Instruction> {
    let mut code = vec![plain(RETURN, rule.action)];
    // From the last condition to the first: how far it is to the end is known then.
    for condition in rule.conditions.iter().rev() {
        let mut whole = check(condition, rule.wide, code.len() as u8);
        whole.extend(code);
        code = whole;
    }
    code
}

/// Goes on behind itself if the condition holds, else skips `rest` instructions more. A rule has at
/// most six conditions of at most seven instructions, so all jumps are short.
fn check(condition: &Condition, wide: bool, rest: u8) -> Vec<Instruction> {
    let low = ARGUMENTS + condition.argument * 8;
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high_value, low_value) = halves(condition.value);
    // Whether the comparison of the lower half decides with yes or with no.
    let last = |code: u16, negated: bool| {
        if negated {
            jump(code, rest, 0, low_value)
        } else {
            jump(code, 0, rest, low_value)
        }
    };
    let (code, negated) = match condition.comparison {
        Comparison::Equal | Comparison::Masked(_) => (JUMP_EQUAL, false),
        Comparison::NotEqual => (JUMP_EQUAL, true),
        Comparison::Greater => (JUMP_GREATER, false),
        Comparison::LessOrEqual => (JUMP_GREATER, true),
        Comparison::GreaterOrEqual => (JUMP_AT_LEAST, false),
        Comparison::Less => (JUMP_AT_LEAST, true),
    };
    let mask = match condition.comparison {
        Comparison::Masked(mask) => Some(halves(mask)),
        _ => None,
    };
    let mut end = vec![plain(LOAD, low)];
    if let Some((_, mask)) = mask {
        end.push(plain(AND, mask));
    }
    end.push(last(code, negated));
    if !wide {
        return end;
    }
    // The upper half decides unless it is equal.
    let to_end = end.len() as u8;
    let fail = to_end + rest;
    let mut start = vec![plain(LOAD, high)];
    match condition.comparison {
        Comparison::Masked(_) => {
            start.push(plain(AND, mask.map_or(0, |mask| mask.0)));
            start.push(jump(JUMP_EQUAL, 0, fail, high_value));
        }
        Comparison::Equal => start.push(jump(JUMP_EQUAL, 0, fail, high_value)),
        Comparison::NotEqual => start.push(jump(JUMP_EQUAL, 0, to_end, high_value)),
        Comparison::Greater | Comparison::GreaterOrEqual => {
            start.push(jump(JUMP_GREATER, to_end + 1, 0, high_value));
            start.push(jump(JUMP_EQUAL, 0, fail, high_value));
        }
        Comparison::Less | Comparison::LessOrEqual => {
            start.push(jump(JUMP_GREATER, fail + 1, 0, high_value));
            start.push(jump(JUMP_EQUAL, 0, to_end, high_value));
        }
    }
    start.extend(end);
    start
}

fn plain(code: u16, operand: u32) -> Instruction {
    jump(code, 0, 0, operand)
}

fn jump(code: u16, yes: u8, no: u8, operand: u32) -> Instruction {
    Instruction {
        code,
        yes,
        no,
        operand,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A system call as the kernel shows it to a filter.
    #[derive(Debug, Clone, Copy)]
    pub(in crate::seccomp) struct Call {
        pub number: u32,
        pub audit: u32,
        pub arguments: [u64; 6],
    }

    /// Runs a program as the kernel would, for the operations that compilers use.
    pub(in crate::seccomp) fn run(program: &[Instruction], call: &Call) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => call.number,
            ARCHITECTURE => call.audit,
            offset => {
                let argument = call.arguments[((offset - ARGUMENTS) / 8) as usize];
                (argument >> (8 * ((offset - ARGUMENTS) % 8))) as u32
            }
        };
        let mut value = 0u32;
        let mut at = 0;
        loop {
            let now = program[at];
            at += 1;
            let holds = match now.code {
                LOAD => {
                    value = word(now.operand);
                    continue;
                }
                AND => {
                    value &= now.operand;
                    continue;
                }
                JUMP => {
                    at += now.operand as usize;
                    continue;
                }
                RETURN => return now.operand,
                JUMP_EQUAL => value == now.operand,
                JUMP_GREATER => value > now.operand,
                JUMP_AT_LEAST => value >= now.operand,
                other => panic!("operation {other:#x}"),
            };
            at += usize::from(if holds { now.yes } else { now.no });
        }
    }

    const AUDIT: u32 = 0xc000_003e;

    fn compare(comparison: Comparison, value: u64, argument: u64) -> bool {
        let rule = Rule {
            conditions: vec![Condition {
                argument: 2,
                comparison,
                value,
            }],
            wide: true,
            action: 1,
        };
        let architecture = Architecture {
            audit: AUDIT,
            calls: [(7, vec![rule])].into(),
            otherwise: [(0, 2)].into(),
        };
        let call = Call {
            number: 7,
            audit: AUDIT,
            arguments: [0, 0, argument, 0, 0, 0],
        };
        run(&compile(&[architecture], 3), &call) == 1
    }

    #[test]
    fn all_comparisons_of_both_halves() {
        let one = 1u64 << 32;
        let values = [
            0,
            1,
            5,
            one - 1,
            one,
            one + 1,
            5 * one,
            5 * one + 5,
            u64::MAX,
        ];
        for value in values {
            for argument in values {
                let check = |comparison, expected| {
                    assert_eq!(
                        compare(comparison, value, argument),
                        expected,
                        "{comparison:?} {value:#x} {argument:#x}"
                    );
                };
                check(Comparison::Equal, argument == value);
                check(Comparison::NotEqual, argument != value);
                check(Comparison::Less, argument < value);
                check(Comparison::LessOrEqual, argument <= value);
                check(Comparison::Greater, argument > value);
                check(Comparison::GreaterOrEqual, argument >= value);
                let mask = 0xff00_0000_00ff;
                check(Comparison::Masked(mask), argument & mask == value);
            }
        }
    }

    #[test]
    fn far_jumps_reach() {
        let rule = |action| Rule {
            conditions: Vec::new(),
            wide: true,
            action,
        };
        let architecture = Architecture {
            audit: AUDIT,
            calls: (0..2000)
                .map(|number| (number * 2, vec![rule(number)]))
                .collect(),
            otherwise: [(0, 9999)].into(),
        };
        let program = compile(&[architecture], 3);
        for number in 0..4000 {
            let call = Call {
                number,
                audit: AUDIT,
                arguments: [0; 6],
            };
            let expected = if number % 2 == 0 { number / 2 } else { 9999 };
            assert_eq!(run(&program, &call), expected);
        }
        let foreign = Call {
            number: 2,
            audit: 1,
            arguments: [0; 6],
        };
        assert_eq!(run(&program, &foreign), 3);
    }
}
