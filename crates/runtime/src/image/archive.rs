//! Reading images from files: what `docker save` writes, and OCI layouts, as directories or as tars, compressed or
//! not. Layers go straight from the archive to their place; nothing is copied in between.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::lease::Lease;
use super::manifest::{Descriptor, Index, Manifest};
use super::reference::{Reference, is_digest};
use super::store::{Hashing, Image, ImageConfig, Store, digest_of};
use super::{ImageError, Progress, ProgressFn, platform_matches};

/// Largest file of an archive that is read into memory: descriptions, never layers.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Takes every image out of `path` that is for this machine.
pub fn import(store: &Store, path: &Path, progress: ProgressFn<'_>) -> Result<Vec<Image>, ImageError> {
    let archive = Archive::open(store, path)?;
    if archive.has("manifest.json") {
        docker(store, &archive, progress)
    } else if archive.has("index.json") {
        oci(store, &archive, progress)
    } else {
        Err(ImageError::Invalid(format!(
            "{} is neither what `docker save` writes nor an OCI layout: it has no manifest.json and no index.json",
            path.display()
        )))
    }
}

/// Something with files in it.
enum Archive {
    Directory(PathBuf),
    Tar { file: File, entries: HashMap<PathBuf, Place> },
}

enum Place {
    Here { offset: u64, size: u64 },
    At(PathBuf),
}

impl Archive {
    fn open(store: &Store, path: &Path) -> Result<Self, ImageError> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = File::open(path)
            .map_err(|e| ImageError::Invalid(format!("cannot open {}: {e}", path.display())))?;
        let mut magic = [0; 4];
        let read = file.read(&mut magic)?;
        file.rewind()?;
        if is_compressed(&magic[..read]) {
            let place =
                store.root().join(format!(".import-{}-{:016x}", std::process::id(), rand::random::<u64>()));
            let mut plain = File::options().read(true).write(true).create_new(true).open(&place)?;
            std::fs::remove_file(&place)?;
            io::copy(&mut decompress(file)?, &mut plain)?;
            plain.flush()?;
            plain.rewind()?;
            file = plain;
        }
        let mut entries = HashMap::new();
        let mut archive = tar::Archive::new(BufReader::new(file.try_clone()?));
        for entry in archive.entries_with_seek()? {
            let entry = entry?;
            let Some(name) = normal(&entry.path()?) else { continue };
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let Some(target) = entry.link_name()? else { continue };
                let base =
                    if kind.is_symlink() { name.parent().unwrap_or(Path::new("")) } else { Path::new("") };
                if let Some(target) = normal(&base.join(target)) {
                    entries.insert(name, Place::At(target));
                }
            } else if kind.is_file() {
                entries.insert(name, Place::Here { offset: entry.raw_file_position(), size: entry.size() });
            }
        }
        Ok(Self::Tar { file, entries })
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(path) => path.join(name).is_file(),
            Self::Tar { entries, .. } => entries.contains_key(Path::new(name)),
        }
    }

    /// A file's content and its length.
    fn read(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64), ImageError> {
        let missing = || ImageError::Invalid(format!("the archive lacks {name}"));
        let clean = normal(Path::new(name)).ok_or_else(missing)?;
        match self {
            Self::Directory(path) => {
                let file = File::open(path.join(clean)).map_err(|_| missing())?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
            Self::Tar { file, entries } => {
                let mut place = entries.get(&clean);
                for _ in 0..8 {
                    match place {
                        Some(Place::At(target)) => place = entries.get(target),
                        Some(Place::Here { offset, size }) => {
                            let mut file = file;
                            file.seek(SeekFrom::Start(*offset))?;
                            return Ok((Box::new(file.take(*size)), *size));
                        }
                        None => break,
                    }
                }
                Err(missing())
            }
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let (reader, size) = self.read(name)?;
        if size > MAX_DOCUMENT {
            return Err(ImageError::Invalid(format!("{name} is too large to be a description")));
        }
        let mut bytes = Vec::new();
        reader.take(MAX_DOCUMENT).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let bytes = self.document(&blob_path(digest)?)?;
        let actual = digest_of(&bytes);
        if actual != digest {
            return Err(ImageError::WrongDigest { expected: digest.to_owned(), actual });
        }
        Ok(bytes)
    }
}

fn blob_path(digest: &str) -> Result<String, ImageError> {
    if !is_digest(digest) {
        return Err(ImageError::Invalid(format!("{digest} is not a sha256 digest")));
    }
    Ok(format!("blobs/sha256/{}", &digest[7..]))
}

/// The path within the archive, none when it leads out.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                if !clean.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir => {}
            Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker(store: &Store, archive: &Archive, progress: ProgressFn<'_>) -> Result<Vec<Image>, ImageError> {
    let listed: Vec<DockerImage> = serde_json::from_slice(&archive.document("manifest.json")?)?;
    let mut images = Vec::new();
    for image in listed {
        let text = archive.document(&image.config)?;
        let (id, config, _lease) = described(store, &text)?;
        if config.rootfs.diff_ids.len() != image.layers.len() {
            return Err(ImageError::Invalid(format!("{id} has not as many layers as it says")));
        }
        for (diff_id, path) in config.rootfs.diff_ids.iter().zip(&image.layers) {
            if store.has_layer(diff_id) {
                continue;
            }
            let (reader, size) = archive.read(path)?;
            let reader = Counted::new(reader, diff_id, size, progress);
            store.add_layer(diff_id, decompress(reader)?)?;
        }
        let mut kept = store.keep(&id, config.clone(), None, None)?;
        for tag in image.repo_tags.unwrap_or_default() {
            kept = store.keep(&id, config.clone(), Some(tag.parse::<Reference>()?.to_string()), None)?;
        }
        images.push(kept);
    }
    Ok(images)
}

/// A configuration's digest and meaning. It is kept as a blob too, and protected together with its layers.
pub fn described(store: &Store, text: &[u8]) -> Result<(String, ImageConfig, Lease), ImageError> {
    let id = digest_of(text);
    let config: ImageConfig = serde_json::from_slice(text)?;
    if !platform_matches(&config.os, &config.architecture) {
        return Err(ImageError::Invalid(format!(
            "the image is for {}/{}, not for this machine",
            config.os, config.architecture
        )));
    }
    let lease = store.lease(config.rootfs.diff_ids.iter().chain([&id]))?;
    store.add_blob(&id, text)?;
    Ok((id, config, lease))
}

fn oci(store: &Store, archive: &Archive, progress: ProgressFn<'_>) -> Result<Vec<Image>, ImageError> {
    let layout: Index = serde_json::from_slice(&archive.document("index.json")?)?;
    let mut images = Vec::new();
    for named in layout.manifests {
        let name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .iter()
            .filter_map(|key| named.annotations.get(*key))
            .find(|name| name.contains(['/', ':']))
            .map(|name| name.parse::<Reference>())
            .transpose()?;
        let Some(manifest) = for_this_machine(archive, &named, 0)? else { continue };
        let manifest: Manifest = serde_json::from_slice(&archive.blob(&manifest.digest)?)?;
        let (id, config, _lease) = described(store, &archive.blob(&manifest.config.digest)?)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid(format!("{id} has not as many layers as it says")));
        }
        for (diff_id, layer) in config.rootfs.diff_ids.iter().zip(&manifest.layers) {
            if store.has_layer(diff_id) {
                continue;
            }
            let (reader, size) = archive.read(&blob_path(&layer.digest)?)?;
            let mut packed = Hashing::new(Counted::new(reader, diff_id, size, progress));
            store.add_layer(diff_id, decompress(&mut packed)?)?;
            io::copy(&mut packed, &mut io::sink())?;
            let actual = packed.digest();
            if actual != layer.digest {
                return Err(ImageError::WrongDigest { expected: layer.digest.clone(), actual });
            }
        }
        let tag = name.as_ref().filter(|name| name.tag.is_some()).map(Reference::to_string);
        let digest = name.as_ref().map(|name| name.at(&named.digest));
        images.push(store.keep(&id, config, tag, digest)?);
    }
    if images.is_empty() {
        return Err(ImageError::Invalid("the layout has no image for this machine".into()));
    }
    Ok(images)
}

/// Follows indexes to the manifest that fits.
fn for_this_machine(
    archive: &Archive,
    from: &Descriptor,
    depth: u8,
) -> Result<Option<Descriptor>, ImageError> {
    if !from.fits() || depth > 4 {
        return Ok(None);
    }
    if !from.is_index() {
        return Ok(Some(from.clone()));
    }
    let index: Index = serde_json::from_slice(&archive.blob(&from.digest)?)?;
    for inner in index.for_this_machine() {
        if let Some(found) = for_this_machine(archive, inner, depth + 1)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn is_compressed(magic: &[u8]) -> bool {
    magic.starts_with(&[0x1f, 0x8b]) || magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

/// Undoes gzip or zstd, by what the first bytes say; all else is left as it is.
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let magic = reader.fill_buf()?;
    Ok(if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if is_compressed(magic) {
        Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

/// Tells how far the reading has come.
pub struct Counted<'a, R> {
    inner: R,
    item: String,
    done: u64,
    total: u64,
    progress: ProgressFn<'a>,
}

impl<'a, R> Counted<'a, R> {
    pub fn new(inner: R, item: &str, total: u64, progress: ProgressFn<'a>) -> Self {
        Self { inner, item: item.to_owned(), done: 0, total, progress }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.done += read as u64;
        (self.progress)(Progress { item: self.item.clone(), done: self.done, total: self.total });
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
