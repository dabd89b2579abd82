//! The audit log on disk: one line an event, and a new file when one is full. Old files are named and removed as upstream
//! does it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use parking_lot::Mutex;

use super::event::Record;
use super::options::LogOptions;

const MEGABYTE: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_hours(24);
/// How the time is written in the name of a file that is full.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";

/// Writes events as lines.
pub struct Log {
    legacy: bool,
    out: Mutex<Out>,
}

enum Out {
    Stdout,
    File(Rotating),
}

impl Log {
    pub fn open(options: &LogOptions) -> Result<Self, String> {
        let out = if options.path.as_os_str() == "-" {
            Out::Stdout
        } else {
            let rotating = Rotating::open(options);
            Out::File(rotating.map_err(|error| format!("ensureLogFile: {error}"))?)
        };
        Ok(Log { legacy: options.format == "legacy", out: Mutex::new(out) })
    }

    pub fn write(&self, records: &[Arc<Record>]) -> Result<(), String> {
        let mut out = self.out.lock();
        for record in records {
            let mut line =
                if self.legacy { record.event.line().into_bytes() } else { record.json().to_vec() };
            line.push(b'\n');
            let written = match &mut *out {
                Out::Stdout => io::stdout().write_all(&line),
                Out::File(file) => file.write(&line),
            };
            written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// A file that begins anew when it is full.
struct Rotating {
    keep: Keep,
    /// In bytes; 0 is no limit.
    max_size: u64,
    file: File,
    size: u64,
}

/// What is done with full files.
#[derive(Clone)]
struct Keep {
    path: PathBuf,
    /// 0 is no limit, as of the next.
    most: usize,
    days: u32,
    compress: bool,
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Rotating {
    fn open(options: &LogOptions) -> io::Result<Self> {
        if let Some(parent) = options.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        let file = open(&options.path)?;
        let size = file.metadata()?.len();
        let keep = Keep {
            path: options.path.clone(),
            most: options.max_backups,
            days: options.max_age,
            compress: options.compress,
        };
        Ok(Rotating { keep, max_size: u64::from(options.max_size) * MEGABYTE, file, size })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.max_size > 0 && length > self.max_size {
            let most = self.max_size;
            return Err(io::Error::other(format!("write length {length} exceeds maximum file size {most}")));
        }
        if self.max_size > 0 && self.size + length > self.max_size {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.keep.path, self.keep.backup(Timestamp::now()))?;
        self.file = open(&self.keep.path)?;
        self.size = 0;
        let keep = self.keep.clone();
        let tidy = move || {
            if let Err(error) = keep.tidy(Timestamp::now()) {
                tracing::warn!(%error, "old audit logs cannot be removed or compressed");
            }
        };
        // What takes long is not waited for.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(tidy)),
            Err(_) => tidy(),
        }
        Ok(())
    }
}

impl Keep {
    /// The file's name before and after the time.
    fn parts(&self) -> (String, String) {
        let name = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = self.path.extension().map(|e| format!(".{}", e.to_string_lossy()));
        (format!("{}-", name(self.path.file_stem())), extension.unwrap_or_default())
    }

    fn backup(&self, at: Timestamp) -> PathBuf {
        let (before, after) = self.parts();
        self.path.with_file_name(format!("{before}{}{after}", at.strftime(STAMP)))
    }

    /// The full files and when they were full, the newest first.
    fn full(&self) -> io::Result<Vec<(Timestamp, PathBuf)>> {
        let (before, after) = self.parts();
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut found = Vec::new();
        for entry in fs::read_dir(dir.unwrap_or(Path::new(".")))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = name.strip_suffix(".gz").unwrap_or(&name);
            let stamp = name.strip_prefix(&before).and_then(|rest| rest.strip_suffix(after.as_str()));
            let at = stamp.and_then(|stamp| DateTime::strptime(STAMP, stamp).ok());
            if let Some(at) = at.and_then(|at| at.to_zoned(TimeZone::UTC).ok()) {
                found.push((at.timestamp(), path));
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        Ok(found)
    }

    /// Removes what is too much or too old, and compresses the rest if that is wanted.
    fn tidy(&self, now: Timestamp) -> io::Result<()> {
        let oldest = now.checked_sub(DAY * self.days).ok().filter(|_| self.days > 0);
        for (i, (at, path)) in self.full()?.into_iter().enumerate() {
            if (self.most > 0 && i >= self.most) || oldest.is_some_and(|oldest| at < oldest) {
                fs::remove_file(path)?;
            } else if self.compress && path.extension().is_none_or(|extension| extension != "gz") {
                compress(&path)?;
            }
        }
        Ok(())
    }
}

fn compress(path: &Path) -> io::Result<()> {
    let mut compressed = path.as_os_str().to_owned();
    compressed.push(".gz");
    let out = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&compressed)?;
    let mut encoder = GzEncoder::new(out, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(dir: &Path) -> Keep {
        Keep { path: dir.join("audit.log"), most: 2, days: 10, compress: true }
    }

    #[test]
    fn a_full_file_is_put_aside_and_old_ones_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let keep = keep(dir.path());
        let now: Timestamp = "2026-03-04T05:06:07.089Z".parse().expect("a time");
        assert_eq!(keep.backup(now), dir.path().join("audit-2026-03-04T05-06-07.089.log"));
        for stamp in ["2026-03-03T00-00-00.000", "2026-03-02T00-00-00.000", "2026-03-01T00-00-00.000"] {
            fs::write(dir.path().join(format!("audit-{stamp}.log")), stamp).expect("written");
        }
        fs::write(dir.path().join("audit-else.log"), "else").expect("written");
        fs::write(dir.path().join("other-2026-01-01T00-00-00.000.log"), "other").expect("written");
        keep.tidy(now).expect("tidied");
        let names = || {
            let mut names: Vec<String> = fs::read_dir(dir.path())
                .expect("a directory")
                .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        assert_eq!(
            names(),
            [
                "audit-2026-03-02T00-00-00.000.log.gz",
                "audit-2026-03-03T00-00-00.000.log.gz",
                "audit-else.log",
                "other-2026-01-01T00-00-00.000.log"
            ]
        );
        keep.tidy(now + DAY * 9).expect("tidied");
        assert_eq!(names().len(), 2, "what is ten days old has gone");
    }

    #[test]
    fn a_file_begins_anew_when_it_is_full() {
        let dir = tempfile::tempdir().expect("a directory");
        let keep = Keep { compress: false, ..keep(dir.path()) };
        let file = open(&keep.path).expect("a file");
        let mut log = Rotating { keep: keep.clone(), max_size: 10, file, size: 0 };
        log.write(b"12345\n").expect("written");
        log.write(b"67890\n").expect("written");
        assert!(log.write(b"this is longer\n").is_err());
        assert_eq!(fs::read(&keep.path).expect("a file"), b"67890\n");
        let full = keep.full().expect("listed");
        assert_eq!(full.len(), 1);
        assert_eq!(fs::read(&full[0].1).expect("a file"), b"12345\n");
    }
}
