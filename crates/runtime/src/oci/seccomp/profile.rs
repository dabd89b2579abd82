//! Profiles, as the OCI specification writes them down, and containerd's default one.

use serde::Deserialize;

/// One call, or several that are judged alike.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: String,
    #[serde(default, rename = "errnoRet")]
    pub errno: Option<u32>,
    /// All must hold; several for one argument are alternatives, as runc takes them.
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<Condition>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Condition {
    pub index: u32,
    pub value: u64,
    #[serde(default, rename = "valueTwo")]
    pub value_two: u64,
    pub op: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub default_action: String,
    #[serde(default)]
    pub default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    #[serde(default)]
    pub flags: Option<Vec<String>>,
    #[serde(default, deserialize_with = "nullable")]
    pub syscalls: Vec<Rule>,
}

fn nullable<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

const DEFAULT: &str = include_str!("default.txt");
const ALLOW: &str = "SCMP_ACT_ALLOW";
/// What `clone` must not be asked for by who is no administrator: every kind of namespace.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// Linux, 32-bit Linux, both with uname26, and the question for the present one.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Machines can be spoken to over it past every network policy.
const AF_VSOCK: u64 = 40;

impl Profile {
    /// containerd's default.
    pub fn usual(capabilities: &[&str]) -> Self {
        let of = |key: &str| key == "always" || key == std::env::consts::ARCH || capabilities.contains(&key);
        let names = DEFAULT
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| of(key))
            .flat_map(|(_, names)| names.split_whitespace().map(str::to_owned));
        let mut syscalls = vec![Rule::new(names.collect(), ALLOW, None)];
        for value in PERSONALITIES {
            syscalls.push(Rule::when("personality", 0, "SCMP_CMP_EQ", value, 0));
        }
        syscalls.push(Rule::when("socket", 0, "SCMP_CMP_NE", AF_VSOCK, 0));
        if !capabilities.contains(&"CAP_SYS_ADMIN") {
            syscalls.push(Rule::when("clone", 0, "SCMP_CMP_MASKED_EQ", NEW_NAMESPACES, 0));
            // Its flags lie in memory, where a filter cannot look: libraries then fall back to `clone`.
            syscalls.push(Rule::new(vec!["clone3".into()], "SCMP_ACT_ERRNO", Some(libc::ENOSYS as u32)));
        }
        Self {
            default_action: "SCMP_ACT_ERRNO".into(),
            default_errno_ret: None,
            architectures: if cfg!(target_arch = "x86_64") {
                vec!["SCMP_ARCH_X86_64".into(), "SCMP_ARCH_X86".into()]
            } else {
                vec!["SCMP_ARCH_AARCH64".into(), "SCMP_ARCH_ARM".into()]
            },
            flags: None,
            syscalls,
        }
    }
}

impl Rule {
    fn new(names: Vec<String>, action: &str, errno: Option<u32>) -> Self {
        Self { names, action: action.into(), errno, args: Vec::new() }
    }

    fn when(name: &str, index: u32, op: &str, value: u64, value_two: u64) -> Self {
        let condition = Condition { index, value, value_two, op: op.into() };
        Self { args: vec![condition], ..Self::new(vec![name.into()], ALLOW, None) }
    }
}
