//! A process writes and says what it tries and what was acknowledged; it is killed at some moment; then everything
//! is looked at. Again and again on the same directory.

use futures::StreamExt;
use krate_store::{Backend, CompareAndSet, Embedded, KeyRange, KeyValue, Limit, Op, Revision, WatchEvent};
use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Set for the process that writes.
pub const DIRECTORY: &str = "KRATE_CRASH_DIRECTORY";
/// How many kills.
const ROUNDS: &str = "KRATE_CRASH_ROUNDS";
const DEFAULT_ROUNDS: usize = 150;

const WRITERS: usize = 6;
const KEYS_EACH: usize = 4;

/// A value that shows whether it is whole: its own name, its length, and bytes that follow from them.
fn value(key: &str, seed: u64) -> Vec<u8> {
    let len = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize * 2;
    let mut value = format!("{key} {seed} {len} ").into_bytes();
    value.extend((0..len).map(|i| (seed as usize).wrapping_mul(31).wrapping_add(i) as u8));
    value
}

fn seed_of(kv: &KeyValue) -> u64 {
    let text: Vec<&[u8]> = kv.value.splitn(4, |b| *b == b' ').collect();
    let seed = std::str::from_utf8(text[1]).unwrap().parse().unwrap();
    let key = std::str::from_utf8(&kv.key).unwrap();
    assert!(kv.value[..] == value(key, seed)[..], "the value of {key} is whole");
    seed
}

fn say(line: &str) {
    // One write each, shorter than a pipe's atomic size: a line is there whole or not at all.
    let _ = std::io::stdout().lock().write_all(format!("{line}\n").as_bytes());
    let _ = std::io::stdout().flush();
}

/// Writes until it is killed.
pub fn writer(directory: &Path) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let store = std::sync::Arc::new(Embedded::open(directory).unwrap());
    say("O");
    runtime.block_on(async {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let store = store.clone();
            writers.spawn(async move {
                loop {
                    for n in 0..KEYS_EACH {
                        write(&store, &format!("/r/{writer}/{n}"), rand::random()).await;
                    }
                    if writer == 0 && rand::random_ratio(1, 8) {
                        let newest = store.revision().await.unwrap();
                        let to = Revision(newest.0.saturating_sub(rand::random_range(0..40)));
                        say(&format!("C {to}"));
                        // Refused when it goes back before an earlier one.
                        let _ = store.compact(to).await;
                    }
                }
            });
        }
        while writers.join_next().await.is_some() {}
    });
    std::process::exit(1);
}

async fn write(store: &Embedded, key: &str, seed: u32) {
    let was = store.range(KeyRange::single(key.to_owned()), None, Limit::NONE).await.unwrap().items.pop();
    let seed = u64::from(seed);
    let op = match &was {
        Some(kv) if seed.is_multiple_of(4) => CompareAndSet::delete(key.to_owned(), kv.mod_revision),
        Some(kv) => CompareAndSet::update(key.to_owned(), kv.mod_revision, value(key, seed)),
        None => CompareAndSet::create(key.to_owned(), value(key, seed)),
    };
    let after = if op.op == Op::Delete { "-".to_owned() } else { seed.to_string() };
    say(&format!("T {key} {after}"));
    let done = store.commit(op).await.unwrap();
    say(&format!("A {key} {after} {}", done.revision));
}

/// A key's state: its value's seed, `None` when it is deleted.
type Seed = Option<u64>;

#[derive(Default)]
struct Said {
    /// By key, what was acknowledged last and at which revision.
    acknowledged: HashMap<String, (Seed, u64)>,
    /// All acknowledgements by revision.
    by_revision: BTreeMap<u64, (String, Seed)>,
    /// By key, what was tried and not acknowledged.
    open: HashMap<String, Seed>,
    compacted: u64,
}

impl Said {
    fn take(&mut self, text: &str) {
        // What follows the last newline was cut off by the kill.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        self.by_revision.clear();
        for line in whole.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let seed = |word: &str| (word != "-").then(|| word.parse().unwrap());
            match words[..] {
                ["T", key, after] => {
                    self.open.insert(key.to_owned(), seed(after));
                }
                ["A", key, after, revision] => {
                    let revision = revision.parse().unwrap();
                    self.open.remove(key);
                    self.acknowledged.insert(key.to_owned(), (seed(after), revision));
                    let twice = self.by_revision.insert(revision, (key.to_owned(), seed(after)));
                    assert!(twice.is_none(), "revision {revision} was given twice");
                }
                ["C", to] => self.compacted = self.compacted.max(to.parse().unwrap()),
                ["O"] => {}
                _ => panic!("{line}"),
            }
        }
    }
}

pub fn survives_kills() {
    let rounds = std::env::var(ROUNDS).ok().and_then(|n| n.parse().ok()).unwrap_or(DEFAULT_ROUNDS);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    let mut newest = Revision(1);
    let mut acknowledged = 0;
    for round in 0..rounds {
        // Sometimes it is killed while it opens the store, mostly while it writes.
        let early = rand::random_ratio(1, 10);
        said.take(&write_and_kill(directory.path(), early, Duration::from_millis(40)));
        acknowledged += said.by_revision.len();
        newest = runtime.block_on(check(directory.path(), &mut said, newest, round));
    }
    assert!(acknowledged > rounds / 2, "only {acknowledged} writes were acknowledged in {rounds} rounds");
    eprintln!("{acknowledged} acknowledged writes survived {rounds} kills; revision {newest}");
}

pub fn survives_a_kill_at_the_first_start() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for round in 0..40 {
        let directory = tempfile::tempdir().unwrap();
        let mut said = Said::default();
        said.take(&write_and_kill(&directory.path().join("new"), true, Duration::from_millis(25)));
        runtime.block_on(check(&directory.path().join("new"), &mut said, Revision(1), round));
    }
}

/// What the process said before it was killed.
fn write_and_kill(directory: &Path, early: bool, most: Duration) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(DIRECTORY, directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = Vec::new();
    // So that every round but the early ones has written something, however slow the machine is.
    let mut line_at = 0;
    while !early && !text[line_at..].starts_with(b"A ") {
        line_at = text.len();
        let n = stdout.read_until(b'\n', &mut text).unwrap();
        assert!(n > 0, "the writer ended by itself");
    }
    std::thread::sleep(most.mul_f64(rand::random_range(0.0..1.0)));
    child.kill().unwrap();
    stdout.read_to_end(&mut text).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL), "{status}");
    String::from_utf8(text).unwrap()
}

async fn check(directory: &Path, said: &mut Said, before: Revision, round: usize) -> Revision {
    let store = Embedded::open(directory).unwrap();
    let page = store.range(KeyRange::all(), None, Limit::NONE).await.unwrap();
    let there: HashMap<String, &KeyValue> =
        page.items.iter().map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv)).collect();
    let newest = page.revision;
    let last = said.by_revision.last_key_value().map_or(0, |(revision, _)| *revision);
    assert!(
        newest >= before && newest.0 >= last,
        "round {round}: revision {newest}, {before} and {last} before"
    );

    let keys: Vec<String> = said.acknowledged.keys().chain(said.open.keys()).cloned().collect();
    for key in keys.iter().chain(there.keys()) {
        let is = there.get(key).map(|kv| seed_of(kv));
        let acknowledged = said.acknowledged.get(key);
        let as_acknowledged = is == acknowledged.and_then(|(seed, _)| *seed);
        let as_tried = said.open.get(key) == Some(&is);
        assert!(
            as_acknowledged || as_tried,
            "round {round}: {key} is {is:?}, acknowledged was {acknowledged:?}"
        );
        if let (Some(kv), Some((_, revision)), false) = (there.get(key), acknowledged, as_tried) {
            assert_eq!(kv.mod_revision.0, *revision, "round {round}: {key} is at its revision");
        }
        // From here on what is there is what counts, as a reader may have seen it.
        let revision = there.get(key).map_or(0, |kv| kv.mod_revision.0);
        said.acknowledged.insert(key.clone(), (is, revision));
    }
    said.open.clear();

    // History is whole from the last compaction on: every revision once, with what was acknowledged as it.
    let from = said.compacted.max(1);
    let mut watch = store.watch(KeyRange::all(), Revision(from));
    let mut next = from + 1;
    while next <= newest.0 {
        let batch = watch.next().await.unwrap().unwrap();
        for event in batch.events {
            assert_eq!(event.revision().0, next, "round {round}: no revision is missing");
            if let Some((key, seed)) = said.by_revision.get(&next) {
                let is = match &event {
                    WatchEvent::Put { kv, .. } => Some(seed_of(kv)),
                    WatchEvent::Delete { .. } => None,
                };
                assert_eq!((&event.key()[..], is), (key.as_bytes(), *seed), "round {round}: revision {next}");
            }
            next += 1;
        }
    }
    newest
}
