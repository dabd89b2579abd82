//! `krate version`.

use anyhow::Result;
use serde_json::json;

use crate::cli::{Output, Version};

/// The version of the API that is served.
pub const KUBERNETES: &str = "v1.36.2";

#[allow(clippy::unnecessary_wraps, reason = "every command returns the same")]
pub fn run(args: &Version) -> Result<()> {
    let krate = env!("CARGO_PKG_VERSION");
    match args.output {
        Output::Text => println!("krate v{krate}\nKubernetes {KUBERNETES}"),
        Output::Json => println!("{}", json!({"krate": format!("v{krate}"), "kubernetes": KUBERNETES})),
    }
    Ok(())
}
