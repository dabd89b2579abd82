//! From a profile to a program of the kernel's classic packet filter language.
//!
//! For each architecture the numbers of calls that end alike are gathered into ranges; those that depend on
//! arguments come before them, each with its own test.

use std::collections::BTreeMap;

use super::profile::{Condition, Profile, Rule};
use super::{Filter, SeccompError};

/// What the kernel takes at most.
const LONGEST: usize = 4096;

// Where the kernel puts what a program may look at (`struct seccomp_data`).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Calls of the x32 form have this bit; nobody speaks it.
const X32: u32 = 0x4000_0000;

/// A set of calls with numbers of their own.
struct Architecture {
    names: &'static [&'static str],
    audit: u32,
    number: fn(&str) -> Option<u32>,
}

macro_rules! numbers {
    ($module:ident) => {
        |name| name.parse::<syscalls::$module::Sysno>().ok().and_then(|call| u32::try_from(call.id()).ok())
    };
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { names: &["SCMP_ARCH_X86_64"], audit: 0xc000_003e, number: numbers!(x86_64) },
    Architecture { names: &["SCMP_ARCH_X86"], audit: 0x4000_0003, number: numbers!(x86) },
    Architecture { names: &["SCMP_ARCH_AARCH64"], audit: 0xc000_00b7, number: numbers!(aarch64) },
    Architecture { names: &["SCMP_ARCH_ARM"], audit: 0x4000_0028, number: numbers!(arm) },
];

/// The one of this machine.
const NATIVE: &str = if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" };

#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

fn act(code: u16, value: u32) -> Instruction {
    Instruction { code, yes: 0, no: 0, value }
}

fn test(code: u16, value: u32, yes: u8, no: u8) -> Instruction {
    Instruction { code, yes, no, value }
}

fn answer(action: &str, errno: Option<u32>) -> Result<u32, SeccompError> {
    let errno = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match action {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => ERRNO | errno,
        "SCMP_ACT_TRACE" => TRACE | errno,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_NOTIFY" => return Err(SeccompError::Unsupported("SCMP_ACT_NOTIFY")),
        other => return Err(SeccompError::Unknown { what: "action", name: other.to_owned() }),
    })
}

fn flags(names: Option<&[String]>) -> Result<u32, SeccompError> {
    // As runc: with nothing said, no mitigations of speculation, which cost much and help little here.
    let Some(names) = names else { return Ok(4) };
    names.iter().try_fold(0, |flags, name| match name.as_str() {
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags | 1),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | 2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | 4),
        other => Err(SeccompError::Unknown { what: "flag", name: other.to_owned() }),
    })
}

pub fn compile(profile: &Profile) -> Result<Filter, SeccompError> {
    let otherwise = answer(&profile.default_action, profile.default_errno_ret)?;
    let mut program = vec![act(LOAD, ARCHITECTURE)];
    let wanted = |arch: &Architecture| {
        arch.names.iter().any(|name| *name == NATIVE || profile.architectures.iter().any(|a| a == name))
    };
    for arch in ARCHITECTURES.iter().filter(|arch| wanted(arch)) {
        let section = section(arch, profile, otherwise)?;
        program.push(test(EQUAL, arch.audit, 1, 0));
        program.push(act(JUMP, section.len() as u32));
        program.extend(section);
    }
    // A form of calls that the profile does not speak of.
    program.push(act(RETURN, KILL_THREAD));
    if program.len() > LONGEST {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(Filter { flags: flags(profile.flags.as_deref())?, program: program.into_iter().map(packed).collect() })
}

fn packed(one: Instruction) -> u64 {
    let [c0, c1] = one.code.to_ne_bytes();
    let [v0, v1, v2, v3] = one.value.to_ne_bytes();
    u64::from_ne_bytes([c0, c1, one.yes, one.no, v0, v1, v2, v3])
}

/// The part of the program for one architecture. Every way through it ends in it.
fn section(arch: &Architecture, profile: &Profile, otherwise: u32) -> Result<Vec<Instruction>, SeccompError> {
    let mut settled: BTreeMap<u32, u32> = BTreeMap::new();
    let mut depends: BTreeMap<u32, Vec<(Vec<&Condition>, u32)>> = BTreeMap::new();
    let mut newest = 0;
    for rule in &profile.syscalls {
        let action = answer(&rule.action, rule.errno)?;
        for number in rule.names.iter().filter_map(|name| (arch.number)(name)) {
            newest = newest.max(number);
            if rule.args.is_empty() {
                settled.entry(number).or_insert(action);
            } else {
                depends.entry(number).or_default().extend(alternatives(rule).map(|all| (all, action)));
            }
        }
    }
    let mut out = vec![act(LOAD, NUMBER)];
    if arch.names.contains(&"SCMP_ARCH_X86_64") {
        out.extend([test(AT_LEAST, X32, 0, 1), act(RETURN, ERRNO | libc::ENOSYS as u32)]);
    }
    // A call that is newer than the profile is answered as by a kernel that does not know it (as runc), so that
    // libraries do what they do there.
    if otherwise & 0xffff_0000 == ERRNO {
        out.extend([test(GREATER, newest, 0, 1), act(RETURN, ERRNO | libc::ENOSYS as u32)]);
    }
    for (number, rules) in depends.iter().filter(|(number, _)| !settled.contains_key(number)) {
        let mut body = Vec::new();
        for (conditions, action) in rules {
            body.extend(tested(conditions, *action)?);
        }
        body.push(act(RETURN, otherwise));
        out.extend([test(EQUAL, *number, 1, 0), act(JUMP, body.len() as u32)]);
        out.extend(body);
    }
    let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
    for (number, action) in settled {
        match ranges.last_mut() {
            Some((_, last, same)) if *last + 1 == number && *same == action => *last = number,
            _ => ranges.push((number, number, action)),
        }
    }
    for (first, last, action) in ranges {
        out.extend([test(AT_LEAST, first, 0, 2), test(GREATER, last, 1, 0), act(RETURN, action)]);
    }
    out.push(act(RETURN, otherwise));
    Ok(out)
}

/// A rule that speaks twice of one argument means either.
fn alternatives(rule: &Rule) -> impl Iterator<Item = Vec<&Condition>> {
    let twice =
        rule.args.iter().enumerate().any(|(at, one)| rule.args[..at].iter().any(|o| o.index == one.index));
    let all: Vec<Vec<&Condition>> = if twice {
        rule.args.iter().map(|one| vec![one]).collect()
    } else {
        vec![rule.args.iter().collect()]
    };
    all.into_iter()
}

/// Where a test goes on: to the next instruction, past the condition, or past the rule.
#[derive(Clone, Copy)]
enum To {
    Next,
    Holds,
    Fails,
}

/// The instructions that end with `action` if all conditions hold, and are passed through otherwise.
fn tested(conditions: &[&Condition], action: u32) -> Result<Vec<Instruction>, SeccompError> {
    let blocks = conditions.iter().map(|one| block(one)).collect::<Result<Vec<_>, _>>()?;
    let length = blocks.iter().map(Vec::len).sum::<usize>() + 1;
    let mut out = Vec::with_capacity(length);
    for block in blocks {
        let end = out.len() + block.len();
        for (code, value, yes, no) in block {
            let next = out.len() + 1;
            let distance = |to| match to {
                To::Next => 0,
                To::Holds => (end - next) as u8,
                To::Fails => (length - next) as u8,
            };
            out.push(Instruction { code, value, yes: distance(yes), no: distance(no) });
        }
    }
    out.push(act(RETURN, action));
    Ok(out)
}

type Step = (u16, u32, To, To);

/// Arguments have 64 bits and the language has 32: the upper half is looked at first.
fn block(condition: &Condition) -> Result<Vec<Step>, SeccompError> {
    use To::{Fails, Holds, Next};
    let lower = ARGUMENTS + 8 * condition.index;
    let load = |half: u32| (LOAD, lower + 4 * half, Next, Next);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value);
    if condition.index > 5 {
        return Err(SeccompError::Unknown { what: "argument", name: condition.index.to_string() });
    }
    Ok(match condition.op.as_str() {
        "SCMP_CMP_EQ" => vec![load(1), (EQUAL, high, Next, Fails), load(0), (EQUAL, low, Next, Fails)],
        "SCMP_CMP_NE" => vec![load(1), (EQUAL, high, Next, Holds), load(0), (EQUAL, low, Fails, Next)],
        "SCMP_CMP_MASKED_EQ" => {
            let (wanted_high, wanted_low) = halves(condition.value_two);
            vec![
                load(1),
                (AND, high, Next, Next),
                (EQUAL, wanted_high, Next, Fails),
                load(0),
                (AND, low, Next, Next),
                (EQUAL, wanted_low, Next, Fails),
            ]
        }
        op @ ("SCMP_CMP_GE" | "SCMP_CMP_GT") => {
            let code = if op == "SCMP_CMP_GE" { AT_LEAST } else { GREATER };
            vec![
                load(1),
                (GREATER, high, Holds, Next),
                (EQUAL, high, Next, Fails),
                load(0),
                (code, low, Next, Fails),
            ]
        }
        op @ ("SCMP_CMP_LT" | "SCMP_CMP_LE") => {
            let code = if op == "SCMP_CMP_LT" { AT_LEAST } else { GREATER };
            vec![
                load(1),
                (GREATER, high, Fails, Next),
                (EQUAL, high, Next, Holds),
                load(0),
                (code, low, Fails, Next),
            ]
        }
        other => return Err(SeccompError::Unknown { what: "operator", name: other.to_owned() }),
    })
}

#[cfg(test)]
mod tests;
