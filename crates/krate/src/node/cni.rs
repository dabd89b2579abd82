//! The pod network of a container runtime that is not krate's: the runtime connects its pods by CNI plugins, and is told
//! here how, so that they find what krate's own pods find: the node's range, its gateway, and the same way to Services.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use serde_json::json;

use super::MTU;
use crate::datadir::DataDir;

/// Writes the configuration, whole or not at all: the runtime takes what it finds.
///
/// # Errors
/// The directory cannot be written to.
pub fn write(directory: &Path, dir: &DataDir, range: Ipv4Net, gateway: Ipv4Addr) -> Result<()> {
    let file = file(directory, dir);
    let text = serde_json::to_vec_pretty(&config(dir, range, gateway))?;
    let partial = file.with_extension("partial");
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&partial, text))
        .and_then(|()| fs::rename(&partial, &file))
        .with_context(|| format!("writing {}", file.display()))
}

/// Removes the configuration, if it is there, and the record of addresses.
///
/// # Errors
/// The directory cannot be written to.
pub fn remove(directory: &Path, dir: &DataDir) -> Result<()> {
    let file = file(directory, dir);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}

fn file(directory: &Path, dir: &DataDir) -> PathBuf {
    directory.join(format!("10-krate-{}.conflist", dir.instance()))
}

/// Each pod is on a link of its own, to which the node has a route, as in krate's own network; so all that it sends
/// passes the rules of Services.
fn config(dir: &DataDir, range: Ipv4Net, gateway: Ipv4Addr) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": format!("krate-{}", dir.instance()),
        "plugins": [
            {
                "type": "ptp",
                "mtu": MTU,
                "ipam": {
                    "type": "host-local",
                    "dataDir": dir.network().join("cni"),
                    "ranges": [[{ "subnet": range, "gateway": gateway }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}
