//! AppArmor: profiles that the node's administrator has loaded are named; none is made here.

use k8s_cri::v1::SecurityProfile;
use k8s_cri::v1::security_profile::ProfileType;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("apparmor is not supported")]
pub struct NotSupported;

/// Whether the kernel confines by profiles.
fn is_enabled() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|said| said.starts_with('Y'))
}

/// The profile that a container's processes get. Where the kernel has no AppArmor, only a profile that was asked for
/// by name is refused (as containerd).
pub fn profile(asked: Option<&SecurityProfile>, privileged: bool) -> Result<Option<String>, NotSupported> {
    decide(asked, privileged, is_enabled())
}

fn decide(
    asked: Option<&SecurityProfile>,
    privileged: bool,
    enabled: bool,
) -> Result<Option<String>, NotSupported> {
    let Some(asked) = asked.filter(|asked| asked.profile_type() == ProfileType::Localhost) else {
        return Ok(None);
    };
    match (enabled, privileged) {
        (false, _) => Err(NotSupported),
        (true, true) => Ok(None),
        (true, false) => {
            let name = asked.localhost_ref.strip_prefix("localhost/").unwrap_or(&asked.localhost_ref);
            Ok(Some(name.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_named_profile_needs_a_kernel_that_has_it() {
        let of = |kind: ProfileType| SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: "localhost/web".into(),
        };
        let (named, usual) = (of(ProfileType::Localhost), of(ProfileType::RuntimeDefault));
        assert_eq!(decide(Some(&named), false, false), Err(NotSupported));
        assert_eq!(decide(Some(&named), false, true), Ok(Some("web".into())));
        assert_eq!(decide(Some(&usual), false, false), Ok(None));
        assert_eq!(decide(None, true, true), Ok(None));
    }
}
