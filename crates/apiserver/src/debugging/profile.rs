//! Where the processor's time is spent: samples of all threads, in the form that `go tool pprof` reads
//! (`perftools.profiles.Profile`).

use std::collections::HashMap;
use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use krate_api::protobuf::wire::{put_bytes, put_message, put_raw_varint, put_varint};
use pprof::{ProfilerGuard, ProfilerGuardBuilder, Report, Symbol};

/// Samples a second, as Go's.
const FREQUENCY: i32 = 100;
const PERIOD_NANOS: u64 = 1_000_000_000 / FREQUENCY as u64;
/// No sample is taken while one of these runs: to look at a stack is not safe there.
const UNSAFE_IN: &[&str] = &["libc", "libgcc", "pthread", "vdso"];

/// Samples are taken while it is there; one at a time.
pub struct Watch(ProfilerGuard<'static>);

impl Watch {
    /// # Errors
    /// Another one is under way, or the kernel gives no timer.
    pub fn start() -> Result<Self, String> {
        let builder = ProfilerGuardBuilder::default().frequency(FREQUENCY).blocklist(UNSAFE_IN);
        builder.build().map(Watch).map_err(|error| match error {
            pprof::Error::Running => "cpu profiling already in use".to_owned(),
            other => other.to_string(),
        })
    }

    /// Ends it. To find the names takes a while.
    ///
    /// # Errors
    /// No stack could be read.
    pub async fn profile(self) -> Result<Bytes, String> {
        let made = tokio::task::spawn_blocking(move || {
            let report = self.0.report().build().map_err(|error| error.to_string())?;
            drop(self);
            let mut out = GzEncoder::new(Vec::new(), Compression::default());
            let written = out.write_all(&encode(&report)).and_then(|()| out.finish());
            written.map(Bytes::from).map_err(|error| error.to_string())
        });
        made.await.map_err(|error| error.to_string())?
    }
}

/// Texts, each once, by their places.
struct Texts(HashMap<String, u64>, Vec<String>);

impl Texts {
    fn new() -> Self {
        let mut texts = Texts(HashMap::new(), Vec::new());
        // The first one is empty.
        texts.place("");
        texts
    }

    fn place(&mut self, text: &str) -> u64 {
        if let Some(place) = self.0.get(text) {
            return *place;
        }
        let place = self.1.len() as u64;
        self.0.insert(text.to_owned(), place);
        self.1.push(text.to_owned());
        place
    }
}

fn encode(report: &Report) -> Vec<u8> {
    let mut texts = Texts::new();
    let mut out = Vec::new();
    let kinds = [("samples", "count"), ("cpu", "nanoseconds")];
    let kinds = kinds.map(|(kind, unit)| (texts.place(kind), texts.place(unit)));
    for (kind, unit) in kinds {
        put_message(&mut out, 1, |out| {
            put_varint(out, 1, kind);
            put_varint(out, 2, unit);
        });
    }
    // A function's place in a file is where it is called from; each has its own id.
    let mut functions: HashMap<(u64, u64), u64> = HashMap::new();
    let mut locations: HashMap<(u64, u64), u64> = HashMap::new();
    let thread = texts.place("thread");
    for (frames, count) in &report.data {
        let mut stack = Vec::new();
        for symbol in frames.frames.iter().flatten() {
            put_raw_varint(&mut stack, locate(symbol, &mut texts, &mut functions, &mut locations));
        }
        let name = texts.place(&frames.thread_name);
        let count = u64::try_from(*count).unwrap_or(0);
        put_message(&mut out, 2, |out| {
            put_bytes(out, 1, &stack);
            put_message(out, 2, |out| {
                put_raw_varint(out, count);
                put_raw_varint(out, count * PERIOD_NANOS);
            });
            put_message(out, 3, |out| {
                put_varint(out, 1, thread);
                put_varint(out, 2, name);
            });
        });
    }
    for ((function, line), id) in &locations {
        put_message(&mut out, 4, |out| {
            put_varint(out, 1, *id);
            put_message(out, 4, |out| {
                put_varint(out, 1, *function);
                put_varint(out, 2, *line);
            });
        });
    }
    for ((name, file), id) in &functions {
        put_message(&mut out, 5, |out| {
            put_varint(out, 1, *id);
            put_varint(out, 2, *name);
            put_varint(out, 3, *name);
            put_varint(out, 4, *file);
        });
    }
    for text in &texts.1 {
        put_bytes(&mut out, 6, text.as_bytes());
    }
    let since = report.timing.start_time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    put_varint(&mut out, 9, since.as_nanos() as u64);
    put_varint(&mut out, 10, report.timing.duration.as_nanos() as u64);
    let (kind, unit) = kinds[1];
    put_message(&mut out, 11, |out| {
        put_varint(out, 1, kind);
        put_varint(out, 2, unit);
    });
    put_varint(&mut out, 12, PERIOD_NANOS);
    out
}

/// The id of where a symbol is.
fn locate(
    symbol: &Symbol,
    texts: &mut Texts,
    functions: &mut HashMap<(u64, u64), u64>,
    locations: &mut HashMap<(u64, u64), u64>,
) -> u64 {
    let file = symbol.filename.as_ref().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
    let function = (texts.place(&symbol.name()), texts.place(&file));
    let next = functions.len() as u64 + 1;
    let function = *functions.entry(function).or_insert(next);
    let next = locations.len() as u64 + 1;
    *locations.entry((function, u64::from(symbol.lineno()))).or_insert(next)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use flate2::read::GzDecoder;
    use krate_api::protobuf::wire::{Wire, fields};

    use super::*;

    static ENDED: AtomicBool = AtomicBool::new(false);

    #[inline(never)]
    fn busy_on_purpose() -> u64 {
        let mut n = 0u64;
        while !ENDED.load(Ordering::Relaxed) {
            n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(7));
        }
        n
    }

    #[tokio::test]
    async fn a_profile_names_where_time_is_spent() {
        let busy = std::thread::spawn(busy_on_purpose);
        let watch = Watch::start().expect("a timer");
        assert_eq!(Watch::start().err().as_deref(), Some("cpu profiling already in use"));
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let packed = watch.profile().await.expect("a profile");
        ENDED.store(true, Ordering::Relaxed);
        busy.join().expect("it ends");
        let mut bytes = Vec::new();
        GzDecoder::new(&*packed).read_to_end(&mut bytes).expect("gzip");
        let (mut texts, mut samples, mut period) = (Vec::new(), 0, 0);
        for field in fields(&bytes) {
            match field.expect("a field") {
                (2, _) => samples += 1,
                (6, text) => texts.push(String::from_utf8_lossy(text.bytes(6).expect("text")).into_owned()),
                (12, Wire::Varint(n)) => period = n,
                _ => {}
            }
        }
        assert!(samples > 0);
        assert_eq!((texts[0].as_str(), period), ("", 10_000_000));
        assert!(texts.iter().any(|text| text.contains("busy_on_purpose")), "{texts:?}");
    }
}
