//! Power cuts. All writes and syncs of a run are recorded; for each place between two of them the disk is put
//! together as a cut may leave it: what was synced is there, and of what was not yet synced any part, in pieces of
//! a sector. The store opened on that must show a state between what was acknowledged and what was asked.

use bytes::Bytes;
use krate_store::{Backend, CompareAndSet, Embedded, KeyRange, KeyValue, Limit, Revision};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use redb::StorageBackend;
use std::{io, sync::Arc};

const SECTOR: usize = 512;
/// How many ways in which a cut may fall out are tried at each place.
const OUTCOMES: u64 = 6;

#[derive(Clone, Debug)]
enum Io {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

fn apply(disk: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let offset = offset as usize;
    if disk.len() < offset + data.len() {
        disk.resize(offset + data.len(), 0);
    }
    disk[offset..offset + data.len()].copy_from_slice(data);
}

/// A disk in memory that remembers what was done to it.
#[derive(Clone, Debug, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    done: Arc<Mutex<Vec<Io>>>,
}

impl Disk {
    fn with(bytes: Vec<u8>) -> Self {
        Disk { bytes: Arc::new(Mutex::new(bytes)), done: Arc::default() }
    }

    fn open(&self) -> krate_store::Result<Embedded> {
        let disk = self.clone();
        Embedded::open_on(move || Ok(Box::new(disk.clone()) as Box<dyn StorageBackend>))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock();
        let from = bytes.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().resize(len as usize, 0);
        self.done.lock().push(Io::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.done.lock().push(Io::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        apply(&mut self.bytes.lock(), offset, data);
        self.done.lock().push(Io::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// The disk after a cut: `synced` is certain, `pending` may be there in part.
fn cut(synced: &[u8], pending: &[Io], chance: &mut StdRng) -> Vec<u8> {
    let mut disk = synced.to_vec();
    // How likely a sector made it: all, none, or some.
    let likely = [0.0, 1.0, 0.5, 0.9, 0.1][chance.random_range(0..5)];
    for io in pending {
        match io {
            Io::Write(offset, data) => {
                for (i, sector) in data.chunks(SECTOR).enumerate() {
                    if chance.random_bool(likely) {
                        apply(&mut disk, offset + (i * SECTOR) as u64, sector);
                    }
                }
            }
            // The file's length is part of what a sync makes certain; growing alone loses nothing.
            Io::SetLen(len) => disk.resize((*len as usize).max(disk.len()), 0),
            Io::Sync => unreachable!("a sync ends what is pending"),
        }
    }
    disk
}

/// The whole content at one moment, and when it was acknowledged.
struct Moment {
    /// How much had been done to the disk.
    done: usize,
    revision: Revision,
    content: Vec<KeyValue>,
}

pub fn survives_cuts() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let disk = Disk::default();
        let moments = record(&disk).await;
        let done = disk.done.lock().clone();
        let mut synced = Vec::new();
        let mut now = Vec::new();
        let mut pending = 0;
        let mut cuts = 0;
        for place in 0..=done.len() {
            for outcome in 0..OUTCOMES {
                let mut chance = StdRng::seed_from_u64(place as u64 * OUTCOMES + outcome);
                let after = cut(&synced, &done[pending..place], &mut chance);
                check(after, &moments, place).await;
                cuts += 1;
            }
            match done.get(place) {
                Some(Io::Write(offset, data)) => apply(&mut now, *offset, data),
                Some(Io::SetLen(len)) => now.resize(*len as usize, 0),
                Some(Io::Sync) => {
                    synced.clone_from(&now);
                    pending = place + 1;
                }
                None => {}
            }
        }
        assert!(cuts > 500, "{cuts}");
        eprintln!("{} acknowledged moments survived {cuts} power cuts", moments.len());
    });
}

/// Writes of all kinds, one after the other, so that each has its own place on the disk's record.
async fn record(disk: &Disk) -> Vec<Moment> {
    let mut chance = StdRng::seed_from_u64(7);
    let store = disk.open().unwrap();
    let mut moments = vec![moment(disk, &store).await];
    for step in 0..40u32 {
        let key = format!("/r/{}", chance.random_range(0..6));
        let len = chance.random_range(0..6000);
        let value = Bytes::from(vec![step as u8; len]);
        let op = if step % 5 == 4 { CompareAndSet::delete_any(key) } else { CompareAndSet::put(key, value) };
        store.commit(op).await.unwrap();
        moments.push(moment(disk, &store).await);
        if step % 10 == 9 {
            store.compact(store.revision().await.unwrap()).await.unwrap();
        }
    }
    // Closing is not what makes things durable.
    std::mem::forget(store);
    moments
}

async fn moment(disk: &Disk, store: &Embedded) -> Moment {
    let page = store.range(KeyRange::all(), None, Limit::NONE).await.unwrap();
    Moment { done: disk.done.lock().len(), revision: page.revision, content: page.items }
}

async fn check(disk: Vec<u8>, moments: &[Moment], place: usize) {
    let acknowledged = moments.iter().rposition(|moment| moment.done <= place);
    let store = match Disk::with(disk).open() {
        Ok(store) => store,
        // Before the first acknowledgement there may be no store yet; an operator sees the error.
        Err(_) if acknowledged.is_none() => return,
        Err(error) => panic!("cut at {place}: {error}"),
    };
    let page = store.range(KeyRange::all(), None, Limit::NONE).await.unwrap();
    let from = acknowledged.unwrap_or(0);
    let allowed = &moments[from..(from + 2).min(moments.len())];
    let found =
        allowed.iter().find(|moment| moment.content == page.items && moment.revision == page.revision);
    assert!(
        found.is_some(),
        "cut at {place}: revision {} with {:?} is neither what was acknowledged nor what was asked",
        page.revision,
        page.items
    );
    let more = store.commit(CompareAndSet::put("/r/after", "the cut")).await.unwrap();
    assert_eq!(more.revision, page.revision.next());
}
