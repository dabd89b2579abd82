//! Content on its way here: a file for each blob, which grows as its bytes come, is taken up again after a failure or a
//! kill, and is checked whole before anything is made of it.

use std::fs::File;
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::manifest::Descriptor;
use super::registry::{Content, Registry, RegistryError, causes};
use super::store::{Hashing, Store};
use super::{ImageError, Progress};

/// How often a download is taken up again without a byte having come in between.
const TRIES: u32 = 5;
/// The first pause before that; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);

/// A blob's file, which nobody else writes to.
#[derive(Debug)]
pub struct Ingest {
    path: PathBuf,
    file: Flock<File>,
}

impl Ingest {
    /// The file of the blob `digest` below `store`, once whoever is writing it is done. Blocks until then.
    pub fn open(store: &Store, digest: &str) -> io::Result<Self> {
        let path = store.ingest().join(digest.replace(':', "-"));
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            // Whoever had it may have removed it.
            if is_at(&file, &path) {
                return Ok(Self { path, file });
            }
        }
    }

    /// Brings what is missing of the blob, from the first of `hosts` that has it.
    pub async fn fill(
        &self,
        hosts: &[Registry],
        blob: &Descriptor,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ImageError> {
        let mut last = None;
        for host in hosts.iter().filter(|host| host.host().pulls) {
            match self.fill_from(host, blob, progress).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::debug!(host = %host.host().base, digest = %blob.digest, %error, "no blob from here");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| ImageError::Invalid("no host may be pulled from".into())))
    }

    async fn fill_from(
        &self,
        host: &Registry,
        blob: &Descriptor,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ImageError> {
        let mut file = tokio::fs::File::from_std(self.file.try_clone()?);
        let (mut failures, mut pause) = (0, PAUSE);
        loop {
            let have = self.file.metadata()?.len();
            if have == blob.size && self.digest().await? == blob.digest {
                return Ok(());
            }
            // What is complete or longer and yet not it begins anew.
            let from = if have < blob.size { have } else { 0 };
            let content = host.blob(&blob.digest, from).await.map_err(|e| refused(&blob.digest, e))?;
            let (done, outcome) = copy(content, &mut file, blob, progress).await?;
            match outcome {
                Ok(()) if done == blob.size => {
                    let actual = self.digest().await?;
                    if actual == blob.digest {
                        return Ok(());
                    }
                    file.set_len(0).await?;
                    // What was taken up again may have been begun wrongly; what came whole is wrong.
                    if from == 0 {
                        return Err(ImageError::WrongDigest { expected: blob.digest.clone(), actual });
                    }
                }
                Ok(()) if done > blob.size => {
                    file.set_len(0).await?;
                    return Err(ImageError::Invalid(format!(
                        "{} is longer than the {} bytes that it should have",
                        blob.digest, blob.size
                    )));
                }
                outcome => {
                    let why = outcome.err().unwrap_or_else(|| "unexpected EOF".into());
                    failures = if done > from { 1 } else { failures + 1 };
                    if failures == 1 {
                        pause = PAUSE;
                    }
                    if failures >= TRIES {
                        return Err(refused(&blob.digest, RegistryError::Setup(why)));
                    }
                    tracing::debug!(digest = %blob.digest, done, %why, "taking the download up again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
    }

    /// The digest of what is on disk.
    async fn digest(&self) -> io::Result<String> {
        let file = self.reader()?;
        let read = move || -> io::Result<String> {
            let mut hashing = Hashing::new(io::BufReader::with_capacity(256 << 10, file));
            io::copy(&mut hashing, &mut io::sink())?;
            Ok(hashing.digest())
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }

    /// The content, from its beginning.
    pub fn reader(&self) -> io::Result<File> {
        // Opened anew, because clones of a descriptor share their place.
        File::open(&self.path)
    }

    /// It is needed no more.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }
}

/// Writes content to its place in the file; how far the file reaches now, and whether the content ended as it should.
async fn copy(
    Content { offset, mut response }: Content,
    file: &mut tokio::fs::File,
    blob: &Descriptor,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> io::Result<(u64, Result<(), String>)> {
    file.set_len(offset).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut done = offset;
    let outcome = loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                done += chunk.len() as u64;
                if done > blob.size {
                    break Ok(());
                }
                file.write_all(&chunk).await?;
                progress(Progress { item: blob.digest.clone(), done, total: blob.size });
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(causes(&error)),
        }
    };
    file.flush().await?;
    Ok((done, outcome))
}

fn refused(digest: &str, source: RegistryError) -> ImageError {
    ImageError::Registry { name: digest.to_owned(), source: Box::new(source) }
}

fn is_at(file: &File, path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    open.ino() == named.ino() && open.dev() == named.dev()
}
