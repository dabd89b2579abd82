//! Bearer tokens: those who know tokens, asked one after the other, local ones first.

use async_trait::async_trait;

use super::User;

/// Whose a token is, and for which of the audiences that were asked for it is good: `None` where a token is for this
/// server and names no audience. Nobody's is no error; what kept from knowing is.
pub type Found = Result<Option<(User, Option<Vec<String>>)>, String>;

/// Knows users by their tokens.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// Whose it is. `audiences` are those of which one has to be the token's.
    async fn whose(&self, token: &str, audiences: &[String]) -> Found;
}

/// All who know tokens, in the order in which they are asked.
pub struct Union {
    sources: Vec<Box<dyn Tokens>>,
    /// The audiences that this server is one of.
    own: Vec<String>,
}

impl Union {
    pub fn new(sources: Vec<Box<dyn Tokens>>, own: Vec<String>) -> Self {
        Union { sources, own }
    }

    /// Whose a token is, and for which of `audiences` it is good.
    ///
    /// # Errors
    /// Nobody's: what kept from knowing, if anything did.
    pub async fn whose(&self, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), Vec<String>> {
        let mut errors = Vec::new();
        // What names no audience is good for those that are this server's.
        let shared: Vec<String> = audiences.iter().filter(|a| self.own.contains(a)).cloned().collect();
        for source in &self.sources {
            match source.whose(token, audiences).await {
                Ok(Some((user, Some(good)))) => return Ok((user, good)),
                Ok(Some((user, None))) if !shared.is_empty() => return Ok((user, shared)),
                Ok(_) => {}
                Err(why) => errors.push(why),
            }
        }
        Err(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Knows(&'static str, Option<&'static str>);

    #[async_trait]
    impl Tokens for Knows {
        async fn whose(&self, token: &str, _: &[String]) -> Found {
            match token {
                "broken" => Err("out of order".to_owned()),
                token if token == self.0 => {
                    let good = self.1.map(|audience| vec![audience.to_owned()]);
                    Ok(Some((User::authenticated(self.0, &[]), good)))
                }
                _ => Ok(None),
            }
        }
    }

    #[tokio::test]
    async fn the_first_who_knows_a_token_tells_whose_it_is() {
        let sources: Vec<Box<dyn Tokens>> =
            vec![Box::new(Knows("a", None)), Box::new(Knows("b", Some("x"))), Box::new(Knows("b", None))];
        let union = Union::new(sources, vec!["api".to_owned()]);
        for (token, audiences, expected) in [
            ("a", &["api", "x"][..], Ok(("a", "api"))),
            ("a", &["x"], Err(0)),
            ("b", &["x"], Ok(("b", "x"))),
            ("c", &["api"], Err(0)),
            ("broken", &["api"], Err(3)),
        ] {
            let audiences: Vec<String> = audiences.iter().map(|&a| a.to_owned()).collect();
            let found = union.whose(token, &audiences).await;
            let found = found.as_ref().map(|(user, good)| (user.name.as_str(), good[0].as_str()));
            let found = found.map_err(Vec::len);
            assert_eq!(found, expected, "{token} {audiences:?}");
        }
    }
}
