//! The static token file: bearer tokens that are known beforehand, one a line, as comma-separated values: token, user,
//! UID, and optionally the groups in quotes.

use std::collections::HashMap;

use async_trait::async_trait;

use super::tokens::{Found, Tokens};
use super::{AUTHENTICATED, User};

/// Tokens, and whose they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFile(HashMap<String, User>);

impl TokenFile {
    /// Reads a file's text. A line without a token is skipped, and the last of several with the same token holds.
    ///
    /// # Errors
    /// A line has less than three columns, or a quote without its end.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let columns =
                columns(line).ok_or_else(|| format!("line {}: a quote is not closed", number + 1))?;
            let [token, name, uid, rest @ ..] = columns.as_slice() else {
                return Err(format!(
                    "must have at least 3 columns (token, user name, user uid), found {}",
                    columns.len()
                ));
            };
            if token.is_empty() {
                tracing::warn!(line = number + 1, "a token of the token file is empty");
                continue;
            }
            let groups = rest.first().map(String::as_str).unwrap_or_default();
            let groups = groups.split(',').filter(|group| !group.is_empty()).map(str::to_owned);
            let groups = groups.chain([AUTHENTICATED.to_owned()]).collect();
            let user = User { name: name.clone(), uid: uid.clone(), groups, ..User::default() };
            if tokens.insert(token.clone(), user).is_some() {
                tracing::warn!(line = number + 1, "a token of the token file is there twice");
            }
        }
        Ok(TokenFile(tokens))
    }
}

/// The values of a line (RFC 4180). `None` if a quote is not closed.
fn columns(line: &str) -> Option<Vec<String>> {
    let (mut columns, mut value, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                value.push('"');
                chars.next();
            }
            '"' if quoted => quoted = false,
            // Only at its beginning does a quote begin a value.
            '"' if value.is_empty() => quoted = true,
            ',' if !quoted => columns.push(std::mem::take(&mut value)),
            // What stands before a value is no part of it.
            ' ' | '\t' if !quoted && value.is_empty() => {}
            c => value.push(c),
        }
    }
    columns.push(value);
    (!quoted).then_some(columns)
}

#[async_trait]
impl Tokens for TokenFile {
    async fn whose(&self, token: &str, _: &[String]) -> Found {
        Ok(self.0.get(token).map(|user| (user.clone(), None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_upstream_reads_it() {
        let file = TokenFile::parse(
            "t1,amy,1\n\nt2, jane ,2,\"dev,ops\"\nt3,\"o\"\"neill\",3,dev,ignored\n,nobody,4\nt1,bob,5\n",
        )
        .expect("sound");
        let user = |token: &str| &file.0[token];
        assert_eq!(file.0.len(), 3);
        assert_eq!((user("t1").name.as_str(), user("t1").uid.as_str()), ("bob", "5"));
        assert_eq!(user("t2").groups, ["dev", "ops", AUTHENTICATED]);
        assert_eq!((user("t3").name.as_str(), &user("t3").groups[0]), ("o\"neill", &"dev".to_owned()));
        for (text, told) in [
            ("t1,amy", "must have at least 3 columns (token, user name, user uid), found 2"),
            ("t1,amy,1,\"dev", "line 1: a quote is not closed"),
        ] {
            assert_eq!(TokenFile::parse(text).expect_err(text), told);
        }
    }
}
