use serde_json::json;

use super::*;

const X86_64: u32 = 0xc000_003e;

/// Runs a program as the kernel does.
fn run(filter: &Filter, arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    data.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
    let (mut at, mut a) = (0usize, 0u32);
    loop {
        let bytes = filter.program[at].to_ne_bytes();
        let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let value = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let branch = |holds: bool| usize::from(if holds { bytes[2] } else { bytes[3] });
        at += 1;
        match code {
            LOAD => a = u32::from_le_bytes(data[value as usize..][..4].try_into().unwrap()),
            AND => a &= value,
            JUMP => at += value as usize,
            EQUAL => at += branch(a == value),
            GREATER => at += branch(a > value),
            AT_LEAST => at += branch(a >= value),
            RETURN => return value,
            other => panic!("no such instruction: {other:#x}"),
        }
    }
}

fn native() -> (u32, fn(&str) -> Option<u32>) {
    let arch = ARCHITECTURES.iter().find(|arch| arch.names == [NATIVE]).unwrap();
    (arch.audit, arch.number)
}

#[test]
fn the_default_lets_through_what_containers_need() {
    let (arch, number) = native();
    let ordinary = compile(&Profile::usual(&["CAP_CHOWN", "CAP_SYS_CHROOT"])).unwrap();
    let asked = |filter: &Filter, name: &str, first: u64| {
        run(filter, arch, number(name).unwrap(), [first, 0, 0, 0, 0, 0])
    };
    let refused = ERRNO | libc::EPERM as u32;
    let unknown = ERRNO | libc::ENOSYS as u32;
    for (name, first, answer) in [
        ("read", 0, ALLOW),
        ("execve", 0, ALLOW),
        ("chroot", 0, ALLOW),
        ("socket", 2, ALLOW),
        ("socket", 40, refused),
        ("clone", 0x11, ALLOW),
        ("clone", 0x1000_0000, refused),
        ("clone3", 0, unknown),
        ("personality", 8, ALLOW),
        ("personality", 9, refused),
        ("personality", 1 << 33, refused),
        ("mount", 0, refused),
        ("unshare", 0, refused),
        ("reboot", 0, refused),
        ("keyctl", 0, refused),
        ("io_uring_setup", 0, refused),
    ] {
        assert_eq!(asked(&ordinary, name, first), answer, "{name}({first:#x})");
    }
    assert_eq!(run(&ordinary, arch, 9999, [0; 6]), unknown);
    assert_eq!(run(&ordinary, 0x1234, 0, [0; 6]), KILL_THREAD);
    let mighty = compile(&Profile::usual(&["CAP_SYS_ADMIN"])).unwrap();
    assert_eq!(asked(&mighty, "mount", 0), ALLOW);
    assert_eq!(asked(&mighty, "clone", 0x1000_0000), ALLOW);
    assert_eq!(asked(&mighty, "chroot", 0), refused);
    assert!(ordinary.program.len() < LONGEST / 2, "{}", ordinary.program.len());
}

#[test]
fn arguments_are_compared_whole() {
    let big = 1u64 << 32;
    for (op, value, two, holds, fails) in [
        ("SCMP_CMP_EQ", big, 0, vec![big], vec![0, big + 1]),
        ("SCMP_CMP_NE", big, 0, vec![0, big + 1], vec![big]),
        ("SCMP_CMP_GE", big + 5, 0, vec![big + 5, 2 * big], vec![big + 4, 9]),
        ("SCMP_CMP_GT", big + 5, 0, vec![big + 6, 2 * big], vec![big + 5, 9]),
        ("SCMP_CMP_LT", big + 5, 0, vec![big + 4, 9], vec![big + 5, 2 * big]),
        ("SCMP_CMP_LE", big + 5, 0, vec![big + 5, 9], vec![big + 6, 2 * big]),
        ("SCMP_CMP_MASKED_EQ", big | 1, 1, vec![1, 3], vec![0, big | 1]),
    ] {
        let profile: Profile = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_KILL", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 2, "value": value, "valueTwo": two, "op": op}]}]}))
        .unwrap();
        let filter = compile(&profile).unwrap();
        let ask = |value| run(&filter, X86_64, 0, [0, 0, value, 0, 0, 0]);
        assert!(holds.iter().all(|value| ask(*value) == ALLOW), "{op}");
        assert!(fails.iter().all(|value| ask(*value) == KILL_THREAD), "{op}");
    }
}

#[test]
fn every_condition_must_hold_unless_one_argument_has_several() {
    let profile = |args: serde_json::Value| -> Profile {
        serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 0x26,
            "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": ["read", "no_such_call"], "action": "SCMP_ACT_LOG", "args": args}]}))
        .unwrap()
    };
    let both = profile(
        json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]),
    );
    let either = profile(
        json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]),
    );
    let (both, either) = (compile(&both).unwrap(), compile(&either).unwrap());
    assert_eq!(both.flags, 2);
    let ask = |filter, a, b| run(filter, X86_64, 0, [a, b, 0, 0, 0, 0]);
    assert_eq!((ask(&both, 1, 2), ask(&both, 1, 1), ask(&both, 2, 2)), (LOG, ERRNO | 0x26, ERRNO | 0x26));
    assert_eq!((ask(&either, 1, 0), ask(&either, 2, 0), ask(&either, 3, 0)), (LOG, LOG, ERRNO | 0x26));
}

#[test]
fn what_is_not_understood_is_refused() {
    for wrong in [
        json!({"defaultAction": "SCMP_ACT_WAVE"}),
        json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL",
            "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_ODD"}]}]}),
    ] {
        let profile: Profile = serde_json::from_value(wrong.clone()).unwrap();
        assert!(compile(&profile).is_err(), "{wrong}");
    }
}
