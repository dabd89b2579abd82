//! Who has which address: a file a sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A transport protocol that ports are mapped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As the Internet Protocol numbers it.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    /// On this address of the node alone; None for all of them.
    pub host_ip: Option<Ipv4Addr>,
    pub host_port: u16,
    pub pod_port: u16,
}

/// What a sandbox was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub address: Ipv4Addr,
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

/// The addresses of a range and their leases.
///
/// Addresses go round: one that was given back is the last to be given again, so that who still talks to a pod that
/// is gone does not reach another one.
#[derive(Debug)]
pub(crate) struct Leases {
    directory: PathBuf,
    range: Ipv4Net,
    taken: BTreeMap<String, Lease>,
    /// Those that an earlier process leased and that nobody of this one has asked for yet.
    inherited: BTreeSet<String>,
    last: Ipv4Addr,
}

const LAST: &str = "last-address";

impl Leases {
    /// Reads what a process before this one leased.
    pub(crate) fn open(directory: &Path, range: Ipv4Net) -> Result<Self> {
        if !(8..=29).contains(&range.prefix_len()) {
            return Err(Error::BadRange(range));
        }
        let leases = directory.join("leases");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::State { path, error }
        };
        std::fs::create_dir_all(&leases).map_err(at(&leases))?;
        let mut taken = BTreeMap::new();
        for entry in std::fs::read_dir(&leases).map_err(at(&leases))? {
            let path = entry.map_err(at(&leases))?.path();
            let Some(sandbox) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let text = std::fs::read(&path).map_err(at(&path))?;
            match serde_json::from_slice::<Lease>(&text) {
                Ok(lease) => drop(taken.insert(sandbox.to_owned(), lease)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a lease that cannot be read is dropped");
                    std::fs::remove_file(&path).map_err(at(&path))?;
                }
            }
        }
        let last = std::fs::read_to_string(directory.join(LAST)).ok();
        let last = last.and_then(|text| text.trim().parse().ok()).unwrap_or(gateway(range));
        let inherited = taken.keys().cloned().collect();
        Ok(Self { directory: directory.to_owned(), range, taken, inherited, last })
    }

    pub(crate) fn get(&self, sandbox: &str) -> Option<&Lease> {
        self.taken.get(sandbox)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Lease)> {
        self.taken.iter()
    }

    /// Leases the next free address to a sandbox, or gives the lease that it has.
    pub(crate) fn take(&mut self, sandbox: &str, host_ports: &[HostPort]) -> Result<Lease> {
        if let Some(lease) = self.taken.get(sandbox) {
            self.inherited.remove(sandbox);
            return Ok(lease.clone());
        }
        let path = self.file(sandbox)?;
        let used: BTreeSet<Ipv4Addr> = self.taken.values().map(|lease| lease.address).collect();
        let address = next_free(self.range, self.last, &used).ok_or(Error::Exhausted(self.range))?;
        let lease = Lease { address, host_ports: host_ports.to_vec() };
        let text = serde_json::to_vec(&lease).expect("a lease can be written as JSON");
        self.replace(&path, &text)?;
        self.replace(&self.directory.join(LAST), address.to_string().as_bytes())?;
        self.last = address;
        self.taken.insert(sandbox.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Leases of an earlier process that nobody of this one has asked for yet.
    pub(crate) fn inherited(&self) -> impl Iterator<Item = &String> {
        self.inherited.iter()
    }

    /// Ends a sandbox's lease, if it has one.
    pub(crate) fn free(&mut self, sandbox: &str) -> Result<Option<Lease>> {
        if !self.taken.contains_key(sandbox) {
            return Ok(None);
        }
        let path = self.file(sandbox)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::State { path, error }),
            _ => {
                self.inherited.remove(sandbox);
                Ok(self.taken.remove(sandbox))
            }
        }
    }

    fn file(&self, sandbox: &str) -> Result<PathBuf> {
        let plain = !sandbox.is_empty()
            && sandbox.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !sandbox.starts_with('.');
        if plain {
            Ok(self.directory.join("leases").join(sandbox))
        } else {
            Err(Error::BadSandbox(sandbox.to_owned()))
        }
    }

    /// Writes a file as a whole or not at all.
    fn replace(&self, path: &Path, text: &[u8]) -> Result<()> {
        let draft = self.directory.join("draft");
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, path))
            .map_err(|error| Error::State { path: path.to_owned(), error })
    }
}

/// The node's own address in its range: the first.
pub(crate) fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()) + 1)
}

/// The first address after `last`, and round again, that is neither the gateway's nor taken.
fn next_free(range: Ipv4Net, last: Ipv4Addr, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let first = u32::from(gateway(range)) + 1;
    let end = u32::from(range.broadcast());
    let start = (u32::from(last) + 1).clamp(first, end);
    (start..end).chain(first..start).map(Ipv4Addr::from).find(|address| !used.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_go_round_and_are_never_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut leases = Leases::open(directory.path(), range("10.1.0.0/29")).unwrap();
        let take =
            |leases: &mut Leases, sandbox: &str| leases.take(sandbox, &[]).map(|l| l.address.octets()[3]);
        assert_eq!(take(&mut leases, "a").unwrap(), 2);
        assert_eq!(take(&mut leases, "b").unwrap(), 3);
        assert_eq!(take(&mut leases, "a").unwrap(), 2, "the same sandbox, the same address");
        leases.free("a").unwrap().unwrap();
        assert_eq!(leases.free("a").unwrap(), None);
        assert_eq!(take(&mut leases, "c").unwrap(), 4, "2 was given back just now");
        assert_eq!(take(&mut leases, "d").unwrap(), 5);
        assert_eq!(take(&mut leases, "e").unwrap(), 6);
        assert_eq!(
            take(&mut leases, "f").unwrap(),
            2,
            "the broadcast address is nobody's, the gateway's is the node's"
        );
        assert!(matches!(take(&mut leases, "g"), Err(Error::Exhausted(_))));
        leases.free("d").unwrap().unwrap();
        assert_eq!(take(&mut leases, "g").unwrap(), 5);
    }

    #[test]
    fn leases_outlive_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let port = HostPort { protocol: Protocol::Udp, host_ip: None, host_port: 53, pod_port: 5353 };
        let open = || Leases::open(directory.path(), range("10.1.0.0/24")).unwrap();
        let lease = open().take("a", &[port]).unwrap();
        assert_eq!(open().get("a"), Some(&lease));
        assert_eq!(lease.host_ports, [port]);
        let mut leases = open();
        leases.free("a").unwrap();
        assert_eq!(
            open().take("b", &[]).unwrap().address,
            Ipv4Addr::new(10, 1, 0, 3),
            "not the last one again"
        );
    }

    #[test]
    fn a_sandbox_is_named_like_a_file_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let mut leases = Leases::open(directory.path(), range("10.1.0.0/24")).unwrap();
        for bad in ["", "..", "a/b", ".hidden", "a\0"] {
            assert!(matches!(leases.take(bad, &[]), Err(Error::BadSandbox(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_lease_that_cannot_be_read_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("leases")).unwrap();
        std::fs::write(directory.path().join("leases/a"), "{").unwrap();
        assert_eq!(Leases::open(directory.path(), range("10.1.0.0/24")).unwrap().iter().count(), 0);
        assert!(!directory.path().join("leases/a").exists());
    }
}
