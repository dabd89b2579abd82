//! Images: where they come from, where they lie, what they are called. Usable without a running server, and beside
//! one: both see each other's changes at once.

pub mod archive;
mod hosts;
mod ingest;
pub(crate) mod lease;
mod manifest;
pub mod pull;
pub mod reference;
mod registry;
pub mod store;
mod unpack;

use std::io;
use std::path::{Path, PathBuf};

pub use reference::{InvalidReference, Reference};
pub use registry::RegistryError;
pub use store::{Image, Store};

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Name(#[from] InvalidReference),
    #[error("{0}")]
    Invalid(String),
    #[error("the content is not what its digest says: {actual} instead of {expected}")]
    WrongDigest { expected: String, actual: String },
    #[error(transparent)]
    Unpack(#[from] unpack::UnpackError),
    #[error("a description is not valid: {0}")]
    Description(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Hosts(#[from] hosts::HostsError),
    #[error("{name}: {source}")]
    Registry { name: String, source: Box<RegistryError> },
}

/// How far an import or a pull has come with one layer.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The layer's digest.
    pub item: String,
    /// Bytes read of it, of `total`.
    pub done: u64,
    pub total: u64,
}

/// Whoever wants to know.
pub type ProgressFn<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// An image, as the command line shows it.
#[derive(Clone, Debug)]
pub struct ImageRef {
    pub id: String,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// When it was made, as the image says.
    pub created: Option<String>,
}

impl From<Image> for ImageRef {
    fn from(image: Image) -> Self {
        Self {
            id: image.id,
            tags: image.tags.into_iter().collect(),
            digests: image.digests.into_iter().collect(),
            size: image.size,
            created: image.config.created,
        }
    }
}

/// Imports archives into the images below `root` (the runtime's [`Config::root`](crate::Config::root)), whether a
/// server runs there or not. Reads and writes files: to be called where blocking is allowed.
pub fn import(root: &Path, files: &[PathBuf], progress: ProgressFn<'_>) -> Result<Vec<ImageRef>, ImageError> {
    let store = Store::open(&images_dir(root))?;
    let mut all = Vec::new();
    for file in files {
        all.extend(archive::import(&store, file, progress)?.into_iter().map(ImageRef::from));
    }
    Ok(all)
}

/// The images below `root`.
pub fn list(root: &Path) -> Result<Vec<ImageRef>, ImageError> {
    let index = Store::open(&images_dir(root))?.index()?;
    Ok(index.images.values().cloned().map(ImageRef::from).collect())
}

/// Forgets the image that `name` stands for. Its layers stay until the server next tidies up.
pub fn remove(root: &Path, name: &str) -> Result<bool, ImageError> {
    let store = Store::open(&images_dir(root))?;
    Ok(store.change(|index| {
        let id = index.find(name).map(|image| image.id.clone());
        id.is_some_and(|id| index.images.remove(&id).is_some())
    })?)
}

pub(crate) fn images_dir(root: &Path) -> PathBuf {
    root.join("images")
}

/// Whether an image for this system and architecture runs here; one that says nothing is taken at its word.
pub fn platform_matches(os: &str, architecture: &str) -> bool {
    let ours = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (os.is_empty() || os == "linux") && (architecture.is_empty() || architecture == ours)
}
