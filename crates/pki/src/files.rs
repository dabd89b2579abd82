//! Files that others renew: what is in them is taken again when they change. What is wrong with them is told once, and what
//! was taken before stays in use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::changes::Looks;
use crate::current::{Current, Renewal};
use crate::pair::{Pair, PairError};

/// How often files are looked at whatever is heard of them, as upstream.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: {error}", path.display())]
    Pair { path: PathBuf, error: PairError },
}

/// A file with what it said last.
#[derive(Clone, Debug)]
pub struct Text {
    pub path: PathBuf,
    pub text: String,
}

impl Text {
    /// # Errors
    /// It cannot be read.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Text { path, text }),
            Err(error) => Err(FileError::Read { path, error }),
        }
    }
}

/// Hands what files say to `take`, all of them, whenever one has changed, until `shutdown`.
pub async fn follow(
    mut files: Vec<Text>,
    shutdown: CancellationToken,
    mut take: impl FnMut(&[Text]) -> Result<(), String>,
) {
    let mut looks = Looks::at(files.iter().map(|file| file.path.as_path()), LOOK_EVERY);
    loop {
        tokio::select! {
            () = looks.next() => {}
            () = shutdown.cancelled() => return,
        }
        let mut has_changed = false;
        for file in &mut files {
            match tokio::fs::read_to_string(&file.path).await {
                Ok(text) if text == file.text => {}
                Ok(text) => {
                    file.text = text;
                    has_changed = true;
                }
                // Between one and the next, most likely.
                Err(error) => tracing::warn!(file = %file.path.display(), %error, "a file cannot be read"),
            }
        }
        if has_changed {
            let of = files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
            match take(&files) {
                Ok(()) => tracing::info!(file = of, "a file that has changed is in use"),
                // A certificate and its key are two files: the second comes in a moment.
                Err(error) => tracing::warn!(file = of, error, "a file that has changed cannot be used"),
            }
        }
    }
}

/// The pair of two files, or of one that holds both, kept as they are until `shutdown`.
///
/// # Errors
/// What is there now cannot be used.
pub fn pair_of(certificate: &Path, key: &Path, shutdown: CancellationToken) -> Result<Current, FileError> {
    let files = vec![Text::read(certificate)?, Text::read(key)?];
    let read = |files: &[Text]| Pair::from_pem(&files[0].text, &files[1].text);
    let pair = read(&files).map_err(|error| FileError::Pair { path: certificate.to_owned(), error })?;
    let (renewal, current) = Renewal::new(Some(pair));
    tokio::spawn(follow(files, shutdown, move |files| {
        renewal.set(read(files).map_err(|error| error.to_string())?);
        Ok(())
    }));
    Ok(current)
}

/// Where a pair comes from that is used as it is.
#[derive(Clone, Debug)]
pub enum Source {
    /// Somebody else keeps it current.
    Given(Current),
    /// Two files, which are read again when they change.
    Files { certificate: PathBuf, key: PathBuf },
}

impl Source {
    /// One that stays, both PEM.
    ///
    /// # Errors
    /// They are none.
    pub fn fixed(certificate: &str, key: &str) -> Result<Self, PairError> {
        Pair::from_pem(certificate, key).map(|pair| Source::Given(Current::fixed(pair)))
    }

    /// The pair, kept as its files say until `shutdown`.
    ///
    /// # Errors
    /// What is in the files cannot be used.
    pub fn open(&self, shutdown: &CancellationToken) -> Result<Current, FileError> {
        match self {
            Source::Given(current) => Ok(current.clone()),
            Source::Files { certificate, key } => pair_of(certificate, key, shutdown.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::tests::pems;

    #[tokio::test]
    async fn a_pair_that_others_replace_is_replaced_in_use() {
        let directory = tempfile::tempdir().expect("a directory");
        let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
        let write = |name: &str| {
            let (first, second) = pems(name, Duration::from_hours(1));
            std::fs::write(&certificate, first).expect("written");
            std::fs::write(&key, second).expect("written");
        };
        write("one");
        let shutdown = CancellationToken::new();
        let mut current = pair_of(&certificate, &key, shutdown.clone()).expect("a pair");
        let name = |current: &Current| current.get().map(|pair| pair.common_name.clone()).unwrap_or_default();
        assert_eq!(name(&current), "one");
        // The first look at the files is one at what is there.
        tokio::task::yield_now().await;
        write("two");
        tokio::time::timeout(Duration::from_secs(30), current.changed()).await.expect("told");
        assert_eq!(name(&current), "two");
        std::fs::write(&certificate, "nothing").expect("written");
        write("three");
        tokio::time::timeout(Duration::from_secs(30), current.changed()).await.expect("told");
        assert_eq!(name(&current), "three", "what cannot be used is passed over");
        shutdown.cancel();
        assert!(pair_of(Path::new("/nowhere"), &key, CancellationToken::new()).is_err());
    }
}
