//! The file under the engine, or what stands for it in tests, and a watch on its failures.

use parking_lot::Mutex;
use redb::{StorageBackend, backends::FileBackend};
use std::{
    fs::{File, OpenOptions},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Opens the engine's storage; asked again after each failure.
pub trait Opener: Send + Sync + 'static {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;
}

impl<F> Opener for F
where
    F: Fn() -> io::Result<Box<dyn StorageBackend>> + Send + Sync + 'static,
{
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        self()
    }
}

/// A file in the data directory.
#[derive(Debug)]
pub struct InFile(pub PathBuf);

impl InFile {
    /// Makes an empty database under another name first: one that was only begun cannot be opened.
    fn create(&self) -> io::Result<()> {
        let new = self.0.with_extension("new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new)?;
        let synced = file.try_clone()?;
        let backend = FileBackend::new(file).map_err(|e| io::Error::other(e.to_string()))?;
        drop(redb::Builder::new().create_with_backend(backend).map_err(|e| match e {
            redb::DatabaseError::Storage(redb::StorageError::Io(e)) => e,
            other => io::Error::other(other.to_string()),
        })?);
        synced.sync_all()?;
        std::fs::rename(&new, &self.0)?;
        match self.0.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Opener for InFile {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        if !self.0.exists() {
            self.create()?;
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.0)?;
        Ok(Box::new(FileBackend::new(file).map_err(|e| io::Error::other(e.to_string()))?))
    }
}

#[derive(Debug)]
struct Inner {
    storage: Box<dyn StorageBackend>,
    first_error: Mutex<Option<(io::ErrorKind, Option<i32>, String)>>,
    sync_failed: AtomicBool,
}

/// Remembers the first failure of a storage, and whether syncing failed.
#[derive(Clone, Debug)]
pub struct Watched(Arc<Inner>);

impl Watched {
    pub fn new(storage: Box<dyn StorageBackend>) -> Self {
        Watched(Arc::new(Inner {
            storage,
            first_error: Mutex::new(None),
            sync_failed: AtomicBool::new(false),
        }))
    }

    pub fn sync_failed(&self) -> bool {
        self.0.sync_failed.load(Ordering::Relaxed)
    }

    pub fn first_error(&self) -> Option<io::Error> {
        self.0.first_error.lock().as_ref().map(|(kind, os, text)| match os {
            Some(code) => io::Error::from_raw_os_error(*code),
            None => io::Error::new(*kind, text.clone()),
        })
    }

    /// Writes every page that is not empty over itself, and syncs. After a failed sync the kernel may hold pages as
    /// clean that never reached the disk; this makes them reach it.
    pub fn rewrite(&self) -> io::Result<()> {
        const CHUNK: u64 = 1 << 20;
        const PAGE: usize = 4096;
        let storage = &self.0.storage;
        let len = storage.len()?;
        let mut buffer = vec![0; CHUNK as usize];
        let mut offset = 0;
        while offset < len {
            let n = CHUNK.min(len - offset) as usize;
            storage.read(offset, &mut buffer[..n])?;
            for (i, page) in buffer[..n].chunks(PAGE).enumerate() {
                if page.iter().any(|b| *b != 0) {
                    storage.write(offset + (i * PAGE) as u64, page)?;
                }
            }
            offset += n as u64;
        }
        storage.sync_data()
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result {
            self.0.first_error.lock().get_or_insert_with(|| (e.kind(), e.raw_os_error(), e.to_string()));
        }
        result
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.note(self.0.storage.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.note(self.0.storage.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(self.0.storage.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let result = self.note(self.0.storage.sync_data());
        if result.is_err() {
            self.0.sync_failed.store(true, Ordering::Relaxed);
        }
        result
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(self.0.storage.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.0.storage.close()
    }
}
