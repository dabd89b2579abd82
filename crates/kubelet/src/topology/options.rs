//! What can be wished of the policy (upstream's `topologyManagerPolicyOptions`, KEP-3545).

use std::collections::BTreeMap;

use krate_api::boolean;

use super::TopologyPolicy;

/// More nodes than these are not recommended.
pub const MAX_NODES: usize = 8;
const CLOSEST: &str = "prefer-closest-numa-nodes";
const MOST: &str = "max-allowable-numa-nodes";

/// Reads options into a policy.
///
/// # Errors
/// Upstream's message.
pub fn parse(options: &BTreeMap<String, String>, policy: &mut TopologyPolicy) -> Result<(), String> {
    for (name, value) in options {
        match name.as_str() {
            CLOSEST => {
                policy.prefer_closest =
                    boolean::parse(value).map_err(|why| format!("bad value for option {name:?}: {why}"))?;
            }
            MOST => {
                let most: i64 = value.parse().map_err(|_| {
                    format!(
                        "unable to convert policy option to integer {name:?}: strconv.Atoi: parsing {value:?}: invalid syntax"
                    )
                })?;
                policy.max_nodes =
                    usize::try_from(most).ok().filter(|most| *most >= MAX_NODES).ok_or_else(|| {
                        format!("the minimum value of {name:?} should not be less than {MAX_NODES}")
                    })?;
            }
            _ => return Err(format!("unknown Topology Manager Policy option: {name:?}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        for (name, value, expected) in [
            (CLOSEST, "true", Ok((true, 8))),
            (CLOSEST, "0", Ok((false, 8))),
            (CLOSEST, "near", Err("bad value for option \"prefer-closest-numa-nodes\"")),
            (MOST, "16", Ok((false, 16))),
            (MOST, "7", Err("the minimum value of \"max-allowable-numa-nodes\" should not be less than 8")),
            (MOST, "many", Err("unable to convert policy option to integer \"max-allowable-numa-nodes\"")),
            ("farthest", "true", Err("unknown Topology Manager Policy option: \"farthest\"")),
        ] {
            let mut policy = TopologyPolicy::default();
            let read = parse(&[(name.to_owned(), value.to_owned())].into(), &mut policy);
            match expected {
                Ok(expected) => {
                    assert_eq!((read, (policy.prefer_closest, policy.max_nodes)), (Ok(()), expected));
                }
                Err(said) => assert!(read.as_ref().is_err_and(|e| e.contains(said)), "{read:?}"),
            }
        }
    }
}
