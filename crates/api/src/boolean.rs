//! Truths as Go reads them: flags, feature gates and options of policies are written so.

/// What is neither true nor false, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("strconv.ParseBool: parsing {0:?}: invalid syntax")]
pub struct BoolError(String);

/// Reads `1`, `t`, `T`, `true`, `TRUE`, `True`, and the same of what is false.
///
/// # Errors
/// It is neither.
pub fn parse(text: &str) -> Result<bool, BoolError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(BoolError(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truth_is_read_as_go_reads_it() {
        for (text, read) in [("1", true), ("T", true), ("True", true), ("f", false), ("FALSE", false)] {
            assert_eq!(parse(text), Ok(read), "{text}");
        }
        for text in ["", "tRUE", "yes", " true"] {
            let said = format!("strconv.ParseBool: parsing {text:?}: invalid syntax");
            assert_eq!(parse(text).map_err(|error| error.to_string()), Err(said));
        }
    }
}
