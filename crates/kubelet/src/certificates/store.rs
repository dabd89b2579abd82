//! Where a kubelet keeps the certificates that it was given: each with its key in a file that is named by its time, and a
//! link `PREFIX-current.pem` to the one in use, as upstream's kubelet does, so that either finds what the other kept.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use krate_pki::{Pair, PairError};

/// Why a certificate cannot be kept, or taken.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("expected {:?} to be a symlink but it is a file", path.display().to_string())]
    NoLink { path: PathBuf },
    #[error("could not convert data from {:?} into cert/key pair: {error}", path.display().to_string())]
    Pair { path: PathBuf, error: PairError },
}

/// The certificates of one purpose.
#[derive(Debug)]
pub struct Store {
    prefix: &'static str,
    directory: PathBuf,
    /// A certificate and its key that somebody else has put somewhere, to begin with.
    given: Option<(PathBuf, PathBuf)>,
}

impl Store {
    /// A replacement that was broken off is brought to its end.
    ///
    /// # Errors
    /// What is there is not what this puts there.
    pub fn open(
        prefix: &'static str,
        directory: &Path,
        given: Option<(PathBuf, PathBuf)>,
    ) -> Result<Self, StoreError> {
        let directory = std::path::absolute(directory)
            .map_err(|error| StoreError::File { path: directory.to_owned(), error })?;
        let store = Store { prefix, directory, given };
        let (current, updated) = (store.current_path(), store.path("updated"));
        if !current.exists() && is_link(&updated)? {
            fs::rename(&updated, &current).map_err(|error| StoreError::File { path: updated, error })?;
        }
        Ok(store)
    }

    /// The link to the one in use.
    pub fn current_path(&self) -> PathBuf {
        self.path("current")
    }

    fn path(&self, which: &str) -> PathBuf {
        self.directory.join(format!("{}-{which}.pem", self.prefix))
    }

    /// The pair in use, or what there is to begin with: what was given, or `PREFIX.crt` and `PREFIX.key`.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn current(&self) -> Result<Option<Pair>, StoreError> {
        let current = self.current_path();
        let own = (
            self.directory.join(format!("{}.crt", self.prefix)),
            self.directory.join(format!("{}.key", self.prefix)),
        );
        let both = (current.clone(), current);
        let all = [Some(both), self.given.clone(), Some(own)];
        match all.into_iter().flatten().find(|(certificate, key)| certificate.exists() && key.exists()) {
            Some((certificate, key)) => read(&certificate, &key).map(Some),
            None => Ok(None),
        }
    }

    /// Keeps a pair, both PEM, as the one in use.
    ///
    /// # Errors
    /// It is none, or cannot be written.
    pub fn update(&self, certificate: &str, key: &str) -> Result<Pair, StoreError> {
        let path = self.path(&jiff::Zoned::now().strftime("%Y-%m-%d-%H-%M-%S").to_string());
        let pair = Pair::from_pem(certificate, key)
            .map_err(|error| StoreError::Pair { path: path.clone(), error })?;
        fs::create_dir_all(&self.directory)
            .map_err(|error| StoreError::File { path: self.directory.clone(), error })?;
        let both = format!("{}\n{key}", certificate.trim_end());
        krate_pki::write(&path, both.as_bytes(), 0o600)
            .map_err(|error| StoreError::File { path: path.clone(), error })?;
        self.link(&path)?;
        Ok(pair)
    }

    fn link(&self, to: &Path) -> Result<(), StoreError> {
        let (current, updated) = (self.current_path(), self.path("updated"));
        is_link(&current)?;
        if is_link(&updated)? {
            fs::remove_file(&updated).map_err(|error| StoreError::File { path: updated.clone(), error })?;
        }
        symlink(to, &updated)
            .and_then(|()| fs::rename(&updated, &current))
            .map_err(|error| StoreError::File { path: updated, error })
    }
}

/// Whether there is a link.
fn is_link(path: &Path) -> Result<bool, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => Ok(true),
        Ok(_) => Err(StoreError::NoLink { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::File { path: path.to_owned(), error }),
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Pair, StoreError> {
    let text = |path: &Path| {
        fs::read_to_string(path).map_err(|error| StoreError::File { path: path.to_owned(), error })
    };
    Pair::from_pem(&text(certificate)?, &text(key)?)
        .map_err(|error| StoreError::Pair { path: certificate.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pems(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn name(store: &Store) -> Option<String> {
        store.current().unwrap().map(|pair| pair.common_name.clone())
    }

    #[test]
    fn the_newest_is_in_use_and_what_was_given_is_the_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let given = (at("mine.crt"), at("mine.key"));
        let store = Store::open("kubelet-client", directory.path(), Some(given.clone())).unwrap();
        assert_eq!(name(&store), None);
        let put = |(certificate, key): (PathBuf, PathBuf), name: &str| {
            let (first, second) = pems(name);
            fs::write(certificate, first).unwrap();
            fs::write(key, second).unwrap();
        };
        put((at("kubelet-client.crt"), at("kubelet-client.key")), "beside");
        assert_eq!(name(&store).as_deref(), Some("beside"));
        put(given, "given");
        assert_eq!(name(&store).as_deref(), Some("given"));
        for new in ["one", "two"] {
            let (certificate, key) = pems(new);
            store.update(&certificate, &key).unwrap();
            assert_eq!(name(&store).as_deref(), Some(new));
        }
        let kept = fs::read_link(at("kubelet-client-current.pem")).unwrap();
        assert!(
            kept.is_absolute() && kept.file_name().unwrap().to_string_lossy().starts_with("kubelet-client-2")
        );
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&kept).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let (certificate, _) = pems("x");
        assert!(matches!(store.update(&certificate, &pems("y").1), Err(StoreError::Pair { .. })));
        assert_eq!(name(&store).as_deref(), Some("two"), "what cannot be used replaces nothing");
    }

    #[test]
    fn a_replacement_that_was_broken_off_comes_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let store = Store::open("kubelet-server", directory.path(), None).unwrap();
        let (certificate, key) = pems("one");
        store.update(&certificate, &key).unwrap();
        fs::rename(at("kubelet-server-current.pem"), at("kubelet-server-updated.pem")).unwrap();
        let again = Store::open("kubelet-server", directory.path(), None).unwrap();
        assert_eq!(name(&again).as_deref(), Some("one"));
        fs::remove_file(at("kubelet-server-current.pem")).unwrap();
        fs::write(at("kubelet-server-current.pem"), "a file").unwrap();
        assert!(matches!(again.update(&certificate, &key), Err(StoreError::NoLink { .. })));
    }
}
