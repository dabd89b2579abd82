//! All that CI checks, in the order in which it is cheapest to fail.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Result;

use crate::{cargo, kubectl, map, packages, run};

fn checks() -> Result<()> {
    packages::install(packages::BUILD)?;
    packages::install(packages::TEST)?;
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    map::check()?;
    let kubectl = kubectl::fetch()?;
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let mut tests = if has_nextest() {
        cargo(&["nextest", "run", "--workspace", "--profile", "ci"])
    } else {
        // One process a test is what nextest gives and the tests do not depend on.
        cargo(&["test", "--workspace"])
    };
    run(tests.env("KRATE_KUBECTL", kubectl))
}

fn has_nextest() -> bool {
    let quiet = Stdio::null;
    Command::new("cargo-nextest")
        .args(["nextest", "--version"])
        .stdout(quiet())
        .stderr(quiet())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs them all.
pub fn run_tests() -> Result<()> {
    let start = Instant::now();
    checks()?;
    eprintln!("\nall checks passed in {} s", start.elapsed().as_secs());
    Ok(())
}
