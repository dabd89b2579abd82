//! What images there are. The index is one file, replaced whole, so that the server and the command line see each
//! other's changes at once without talking; layers lie unpacked beside it, ready for overlayfs, by their digest.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImageError;
use super::lease::{Claim, Claims, Lease, leased};
use super::reference::{Reference, is_digest, is_hex64};
use super::unpack::unpack;

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    pub user: String,
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// An image's own description, as far as it matters here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    pub architecture: String,
    pub os: String,
    pub created: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub config: RunConfig,
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// Old tools write `null` for what is empty.
fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    /// The digest of its configuration, by which CRI knows it.
    pub id: String,
    pub tags: BTreeSet<String>,
    pub digests: BTreeSet<String>,
    /// Bytes of its unpacked layers.
    pub size: u64,
    pub config: ImageConfig,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Index {
    pub images: BTreeMap<String, Image>,
}

impl Index {
    /// Finds an image by its id, the beginning of it, a tag, or a digest in a repository.
    pub fn find(&self, name: &str) -> Option<&Image> {
        if is_digest(name) {
            return self.images.get(name);
        }
        let by_reference = name.parse::<Reference>().ok().and_then(|reference| {
            let full = reference.to_string();
            let by_digest = reference.digest.as_ref().map(|digest| reference.at(digest));
            self.images.values().find(|image| {
                image.tags.contains(&full) || by_digest.as_ref().is_some_and(|d| image.digests.contains(d))
            })
        });
        by_reference.or_else(|| {
            let short = name.len() >= 12 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            let mut found = self.images.values().filter(|image| image.id[7..].starts_with(name));
            let first = if short { found.next() } else { None };
            if found.next().is_some() { None } else { first }
        })
    }
}

/// The images of one node.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    cache: Mutex<(Option<Stamp>, Arc<Index>)>,
    claims: Claims,
}

/// After how long a download that nobody goes on with is given up.
const ABANDONED: Duration = Duration::from_hours(24);

type Stamp = (u64, i64, i64, u64);

impl Store {
    /// Opens the store below `root`, making it if there is none.
    pub fn open(root: &Path) -> io::Result<Self> {
        for directory in ["layers", "blobs/sha256", "ingest", "leases"] {
            std::fs::create_dir_all(root.join(directory))?;
        }
        Ok(Self { root: root.to_owned(), cache: Mutex::default(), claims: Claims::default() })
    }

    /// The index as it is now.
    pub fn index(&self) -> io::Result<Arc<Index>> {
        let path = self.root.join("images.json");
        let stamp = match std::fs::metadata(&path) {
            Ok(meta) => Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut cache = self.cache.lock();
        if cache.0 != stamp {
            let index = if stamp.is_some() {
                serde_json::from_slice(&std::fs::read(&path)?)?
            } else {
                Index::default()
            };
            *cache = (stamp, Arc::new(index));
        }
        Ok(Arc::clone(&cache.1))
    }

    /// Changes the index, alone among all processes.
    pub fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> io::Result<T> {
        let _lock = self.lock()?;
        let mut index = Index::clone(&*self.index()?);
        let outcome = change(&mut index);
        let partial = self.root.join("images.json.partial");
        std::fs::write(&partial, serde_json::to_vec(&index)?)?;
        File::open(&partial)?.sync_all()?;
        std::fs::rename(&partial, self.root.join("images.json"))?;
        File::open(&self.root)?.sync_all()?;
        Ok(outcome)
    }

    fn lock(&self) -> io::Result<Flock<File>> {
        let file = File::options().create(true).append(true).open(self.root.join("lock"))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    }

    /// Keeps an image whose layers have been unpacked, under its names. A tag leaves the image that had it before.
    pub fn keep(
        &self,
        id: &str,
        config: ImageConfig,
        tag: Option<String>,
        digest: Option<String>,
    ) -> io::Result<Image> {
        let size = config.rootfs.diff_ids.iter().map(|layer| self.layer_size(layer)).sum();
        self.change(|index| {
            if let Some(tag) = &tag {
                for image in index.images.values_mut() {
                    image.tags.remove(tag);
                }
            }
            let image = index.images.entry(id.to_owned()).or_insert_with(|| Image {
                id: id.to_owned(),
                tags: BTreeSet::new(),
                digests: BTreeSet::new(),
                size,
                config,
            });
            image.tags.extend(tag);
            image.digests.extend(digest);
            image.clone()
        })
    }

    /// Protects the content with these digests until the lease is dropped, also from other processes.
    pub fn lease<'a>(&self, digests: impl IntoIterator<Item = &'a String>) -> io::Result<Lease> {
        let _lock = self.lock()?;
        Lease::new(&self.root.join("leases"), digests)
    }

    /// Finds an image, whose layers stay at least until the claim is dropped.
    pub fn claim(&self, name: &str) -> io::Result<Option<(Image, Claim)>> {
        let Some(image) = self.index()?.find(name).cloned() else { return Ok(None) };
        let claim = self.claims.claim(&image.config.rootfs.diff_ids);
        // It may have gone before the claim was heard.
        let still = self.index()?.images.contains_key(&image.id);
        Ok(still.then_some((image, claim)))
    }

    /// Forgets an image and the layers that neither another image nor what is `in_use` by then needs.
    pub fn remove(&self, id: &str, in_use: impl FnOnce() -> HashSet<String>) -> io::Result<()> {
        self.change(|index| index.images.remove(id))?;
        self.collect(in_use)
    }

    /// Removes content that nothing needs: no image, nobody who is gathering one, and nothing that is `in_use`.
    pub fn collect(&self, in_use: impl FnOnce() -> HashSet<String>) -> io::Result<()> {
        let _lock = self.lock()?;
        let index = self.index()?;
        let leased = leased(&self.root.join("leases"))?;
        // Claims first: who has made something of a layer gives up the claim once it is known to be in use.
        let claimed = self.claims.layers();
        let in_use = in_use();
        let wanted: HashSet<String> = index
            .images
            .values()
            .flat_map(|image| &image.config.rootfs.diff_ids)
            .chain(&in_use)
            .chain(&leased)
            .chain(&claimed)
            .map(|layer| self.layer(layer).file_name().unwrap_or_default().to_string_lossy().into_owned())
            .collect();
        for entry in std::fs::read_dir(self.root.join("layers"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || wanted.contains(name.trim_end_matches(".size")) {
                continue;
            }
            let _ = if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
        }
        for entry in std::fs::read_dir(self.root.join("blobs/sha256"))? {
            let entry = entry?;
            let name = format!("sha256:{}", entry.file_name().to_string_lossy());
            if !index.images.contains_key(&name) && !leased.contains(&name) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Where a layer lies. Half of the digest is enough to tell it by, and many fit into one mount.
    pub fn layer(&self, diff_id: &str) -> PathBuf {
        let hex = diff_id.strip_prefix("sha256:").unwrap_or(diff_id);
        self.root.join("layers").join(hex.get(..32).unwrap_or(hex))
    }

    pub fn has_layer(&self, diff_id: &str) -> bool {
        self.layer(diff_id).is_dir()
    }

    fn layer_size(&self, diff_id: &str) -> u64 {
        let noted = std::fs::read_to_string(self.layer(diff_id).with_extension("size"));
        noted.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// Unpacks a layer from its uncompressed tar, whose digest must be `diff_id`.
    pub fn add_layer(&self, diff_id: &str, tar: impl Read) -> Result<(), ImageError> {
        if !is_digest(diff_id) {
            return Err(ImageError::Invalid(format!("{diff_id} is not a digest")));
        }
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let partial = self.root.join("layers").join(format!(".{:016x}", rand::random::<u64>()));
        // Locked for as long as it is filled, so that it is not taken for one whose filling was cut short.
        let _filling = {
            let _lock = self.lock()?;
            std::fs::create_dir(&partial)?;
            hold(&partial)?
        };
        let outcome = self.fill_layer(diff_id, tar, &partial);
        if outcome.is_err() {
            let _ = std::fs::remove_dir_all(&partial);
        }
        outcome
    }

    fn fill_layer(&self, diff_id: &str, tar: impl Read, partial: &Path) -> Result<(), ImageError> {
        let mut hashing = Hashing::new(tar);
        let size = unpack(&mut hashing, partial)?;
        let actual = hashing.digest();
        if actual != diff_id {
            return Err(ImageError::WrongDigest { expected: diff_id.to_owned(), actual });
        }
        let place = self.layer(diff_id);
        std::fs::write(place.with_extension("size"), size.to_string())?;
        // A layer at its place is taken for whole, also after a crash of the machine: all of it must be on disk before.
        nix::unistd::syncfs(File::open(partial)?).map_err(io::Error::from)?;
        match std::fs::rename(partial, &place) {
            // Somebody else was faster.
            Err(_) if place.is_dir() => Ok(std::fs::remove_dir_all(partial)?),
            outcome => Ok(outcome?),
        }
    }

    /// Keeps a small blob (a configuration) under its digest, which is checked.
    pub fn add_blob(&self, digest: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let actual = digest_of(bytes);
        if actual != digest {
            return Err(ImageError::WrongDigest { expected: digest.to_owned(), actual });
        }
        let place = self.root.join("blobs/sha256").join(&digest[7..]);
        let partial = place.with_extension(format!("{:016x}", rand::random::<u64>()));
        std::fs::write(&partial, bytes)?;
        File::open(&partial)?.sync_all()?;
        Ok(std::fs::rename(partial, place)?)
    }

    /// Removes what was cut short: unpackings at once, downloads when nobody has gone on with them for a day.
    pub fn sweep(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        for entry in std::fs::read_dir(self.root.join("layers"))? {
            let entry = entry?;
            let partial = entry.file_name().to_string_lossy().starts_with('.');
            if partial && hold(&entry.path()).is_ok() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        for entry in std::fs::read_dir(self.ingest())? {
            let entry = entry?;
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if age > ABANDONED && hold(&entry.path()).is_ok() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// Where blobs lie that are on their way.
    pub fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// Bytes of all layers, each counted once.
    pub fn used(&self) -> io::Result<u64> {
        let index = self.index()?;
        let layers: BTreeSet<&String> =
            index.images.values().flat_map(|image| &image.config.rootfs.diff_ids).collect();
        Ok(layers.into_iter().map(|layer| self.layer_size(layer)).sum())
    }

    /// Where it all lies.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Locks a file or directory that nobody else holds.
fn hold(path: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Whether this is the file name of a blob.
pub fn is_blob_name(name: &str) -> bool {
    is_hex64(name)
}

/// Reads on, and knows the digest of all that was read.
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    pub fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
