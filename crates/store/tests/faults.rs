//! A disk that is full or fails: writes are refused, nothing acknowledged is lost, nothing refused is done, and
//! writing goes on when the disk does.

use bytes::Bytes;
use krate_store::{Backend, CompareAndSet, Embedded, Error, KeyRange, Limit, Revision};
use parking_lot::Mutex;
use redb::{StorageBackend, backends::InMemoryBackend};
use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// What fails, and with which error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Write(i32),
    Sync(i32),
}

#[derive(Debug)]
struct Shared {
    disk: InMemoryBackend,
    fault: Mutex<Fault>,
}

#[derive(Clone, Debug)]
struct Faulty(Arc<Shared>);

impl Faulty {
    fn new() -> Self {
        Faulty(Arc::new(Shared { disk: InMemoryBackend::new(), fault: Mutex::new(Fault::None) }))
    }

    fn open(&self) -> Embedded {
        let disk = self.clone();
        Embedded::open_on(move || Ok(Box::new(disk.clone()) as Box<dyn StorageBackend>)).unwrap()
    }

    fn set(&self, fault: Fault) {
        *self.0.fault.lock() = fault;
    }

    fn write_fault(&self) -> io::Result<()> {
        match *self.0.fault.lock() {
            Fault::Write(code) => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.0.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write_fault()?;
        self.0.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match *self.0.fault.lock() {
            Fault::Sync(code) => Err(io::Error::from_raw_os_error(code)),
            _ => self.0.disk.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_fault()?;
        self.0.disk.write(offset, data)
    }
}

async fn put(store: &Embedded, key: &str, value: impl Into<Bytes>) -> Result<Revision, Error> {
    store.commit(CompareAndSet::put(key.to_owned(), value)).await.map(|done| done.revision)
}

/// Tries until the store takes writes again.
async fn put_again(store: &Embedded, key: &str) -> Revision {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match put(store, key, "again").await {
            Ok(revision) => return revision,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn keys(store: &Embedded) -> Vec<String> {
    let page = store.range(KeyRange::all(), None, Limit::NONE).await.unwrap();
    page.items.iter().map(|kv| kv.key.escape_ascii().to_string()).collect()
}

#[tokio::test]
async fn a_failing_disk_refuses_writes_and_loses_nothing() {
    type Is = fn(&Error) -> bool;
    let cases: [(Fault, Is); 5] = [
        (Fault::Write(libc::ENOSPC), |e| matches!(e, Error::NoSpace(_))),
        (Fault::Write(libc::EDQUOT), |e| matches!(e, Error::NoSpace(_))),
        (Fault::Write(libc::EROFS), |e| matches!(e, Error::ReadOnly(_))),
        (Fault::Write(libc::EIO), |e| matches!(e, Error::Io(_))),
        (Fault::Sync(libc::EIO), |e| matches!(e, Error::Io(_))),
    ];
    for (fault, is) in cases {
        let disk = Faulty::new();
        let store = disk.open();
        let before = put(&store, "/r/before", "1").await.unwrap();
        disk.set(fault);
        for _ in 0..3 {
            let error = put(&store, "/r/refused", vec![0; 20_000]).await.unwrap_err();
            assert!(is(&error), "{fault:?}: {error:?}");
        }
        let error = store.compact(before).await.unwrap_err();
        assert!(is(&error), "{fault:?}: {error:?}");
        assert_eq!(keys(&store).await, ["/r/before"], "{fault:?}: reads go on");
        assert_eq!(store.revision().await.unwrap(), before);

        disk.set(Fault::None);
        assert_eq!(put_again(&store, "/r/after").await, before.next(), "{fault:?}");
        drop(store);
        assert_eq!(keys(&disk.open()).await, ["/r/after", "/r/before"], "{fault:?}: after a restart");
    }
}

/// Runs in a mount namespace of this thread's own, so that the small file system is nobody else's.
#[test]
fn a_full_file_system_refuses_writes_until_there_is_space() {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let here = std::thread::spawn(move || {
        let none: Option<&str> = None;
        let small = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=16m")));
        if let Err(error) = small {
            eprintln!("SKIPPED: cannot mount a small file system: {error}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(fill_up(&path));
    });
    here.join().unwrap();
}

async fn fill_up(path: &Path) {
    let ballast = path.join("ballast");
    std::fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let store = Embedded::open(path.join("store")).unwrap();
    let mut acknowledged = Vec::new();
    let error = loop {
        let key = format!("/r/{:04}", acknowledged.len());
        match put(&store, &key, vec![7; 100_000]).await {
            Ok(_) => acknowledged.push(key),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 500, "the file system is never full");
    };
    assert!(matches!(error, Error::NoSpace(_)), "{error:?}");
    assert!(!acknowledged.is_empty());
    assert_eq!(keys(&store).await, acknowledged);

    std::fs::remove_file(&ballast).unwrap();
    put_again(&store, "/r/again").await;
    acknowledged.push("/r/again".to_owned());
    assert_eq!(keys(&store).await, acknowledged);
    drop(store);
    assert_eq!(keys(&Embedded::open(path.join("store")).unwrap()).await, acknowledged);
}

#[test]
fn a_directory_of_another_version_or_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let error = Embedded::open(directory.path()).err().unwrap();
    assert!(matches!(error, Error::Locked { .. }), "{error:?}");
    drop(store);

    let format = directory.path().join("FORMAT");
    std::fs::write(&format, "2\n").unwrap();
    let error = Embedded::open(directory.path()).err().unwrap();
    assert!(matches!(&error, Error::Format { found, supported: 1, .. } if found == "2"), "{error:?}");
    assert!(error.to_string().contains("restore from a backup"), "{error}");
    std::fs::remove_file(&format).unwrap();
    let error = Embedded::open(directory.path()).err().unwrap();
    assert!(matches!(&error, Error::Format { found, .. } if found == "none"), "{error:?}");
    std::fs::write(&format, "1\n").unwrap();
    drop(Embedded::open(directory.path()).unwrap());

    std::fs::write(directory.path().join("store.redb"), "something else").unwrap();
    let error = Embedded::open(directory.path()).err().unwrap();
    assert!(matches!(error, Error::Corrupt(_)), "{error:?}");
}
