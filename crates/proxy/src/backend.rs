//! The door to the kernel, and what stands behind it.

use std::collections::BTreeSet;

use crate::{Config, Memory, Nftables, PortName, ServiceMap};

/// The ports of Services that are not as they were when the rules were last told.
pub type Changes = BTreeSet<PortName>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no proxy mode {mode:?}; there are {known}")]
    UnknownMode { mode: String, known: String },
    #[error(transparent)]
    Nftables(#[from] krate_nft::Error),
}

/// Desired rules in, one atomic change of the kernel out.
pub trait Rules: Send {
    /// Makes the kernel do what `desired` says. The first call, and the first one after an error, replaces whatever
    /// is there; any other may look at `changed` alone.
    fn sync(&mut self, desired: &ServiceMap, changed: &Changes) -> Result<(), Error>;

    /// Removes all that this backend ever made. That there is nothing is no error.
    fn clean_up(&mut self) -> Result<(), Error>;
}

/// A row of [`BACKENDS`].
#[derive(Debug)]
pub struct Backend {
    /// What `--proxy-mode` calls it.
    pub mode: &'static str,
    pub make: fn(&Config) -> Box<dyn Rules>,
}

/// All backends. The first is the default.
pub const BACKENDS: &[Backend] = &[
    Backend { mode: "nftables", make: |config| Box::new(Nftables::new(config)) },
    // For simulated nodes: everything but the kernel.
    Backend { mode: "none", make: |_| Box::new(Memory::default()) },
];

/// The backend that `config` names.
pub fn make(config: &Config) -> Result<Box<dyn Rules>, Error> {
    let known = || BACKENDS.iter().map(|backend| backend.mode).collect::<Vec<_>>().join(", ");
    let backend = BACKENDS.iter().find(|backend| backend.mode == config.mode);
    let backend = backend.ok_or_else(|| Error::UnknownMode { mode: config.mode.clone(), known: known() })?;
    Ok((backend.make)(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_found_by_its_mode() {
        assert!(make(&Config::default()).is_ok());
        let Err(error) = make(&Config { mode: "ipvs".into(), ..Config::default() }) else { panic!("found") };
        assert_eq!(error.to_string(), "there is no proxy mode \"ipvs\"; there are nftables, none");
    }
}
