//! Reading a container's log: the file that is written now, and the ones that were rotated away.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// What is to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub timestamps: bool,
    /// Lines from the end; all when not given.
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    /// Bytes at most.
    pub limit: Option<usize>,
    /// One stream alone: `stdout` or `stderr`.
    pub stream: Option<&'static str>,
}

/// A line of a log: time, stream, whether it is complete, text.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    stream: &'a [u8],
    is_whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let (stream, tag) = (parts.next()?, parts.next()?);
    let is_whole = tag.split(|b| *b == b':').next() != Some(b"P");
    Some(Line { time, stream, is_whole, text: parts.next().unwrap_or_default() })
}

/// Shows lines as they are asked for.
#[derive(Debug)]
pub struct Shower {
    options: Options,
    /// Whether what was shown last was the beginning of a longer line.
    is_open: bool,
    left: Option<usize>,
}

impl Shower {
    pub fn new(options: Options) -> Self {
        Shower { left: options.limit, options, is_open: false }
    }

    /// Whether nothing more may be shown.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Adds a raw line, without its end, to `out`.
    pub fn show(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(raw) else { return };
        if self.options.stream.is_some_and(|s| s.as_bytes() != line.stream) {
            return;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        let from = out.len();
        if self.options.timestamps && !self.is_open {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        self.is_open = !line.is_whole;
        if line.is_whole {
            out.push(b'\n');
        }
        if let Some(left) = &mut self.left {
            out.truncate(from + (*left).min(out.len() - from));
            *left -= out.len() - from;
        }
    }
}

/// The files of a log, the oldest first; the last one is being written.
pub fn files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let mut rotated: Vec<PathBuf> = path
        .parent()
        .and_then(|parent| fs::read_dir(parent).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|p| {
            p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&format!("{name}.")))
        })
        .collect();
    rotated.sort();
    rotated.push(path.to_owned());
    rotated
}

/// A log that is being read. What it gives are raw lines; of one that is still being written, only whole ones.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    open: Option<(u64, BufReader<File>)>,
    rest: Vec<u8>,
    /// Files still to be read before the one that is written.
    waiting: Vec<PathBuf>,
}

impl Reader {
    /// Opens a log so that `tail` lines are left to read, or all.
    ///
    /// # Errors
    /// There is no such log.
    pub fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut all = files(path);
        let mut reader = Reader { path: path.to_owned(), open: None, rest: Vec::new(), waiting: Vec::new() };
        fs::metadata(path)?;
        let mut start = 0;
        if let Some(mut wanted) = tail {
            let mut first = all.len() - 1;
            for (i, file) in all.iter().enumerate().rev() {
                let (offset, found) = last_lines(file, wanted)?;
                (first, start) = (i, offset);
                wanted -= found.min(wanted);
                if wanted == 0 {
                    break;
                }
            }
            all.drain(..first);
        }
        all.reverse();
        reader.waiting = all;
        reader.advance()?;
        if let Some((_, file)) = &mut reader.open {
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(reader)
    }

    /// Goes on to the next file; `false` when there is none.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(next) = self.waiting.pop() else { return Ok(false) };
        let file = File::open(next)?;
        self.open = Some((file.metadata()?.ino(), BufReader::new(file)));
        Ok(true)
    }

    /// The next whole line, without its end; `None` when there is none yet.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some((inode, file)) = &mut self.open else { return Ok(None) };
            file.read_until(b'\n', &mut self.rest)?;
            if self.rest.last() == Some(&b'\n') {
                self.rest.pop();
                return Ok(Some(std::mem::take(&mut self.rest)));
            }
            if !self.waiting.is_empty() {
                self.rest.clear();
                self.advance()?;
                continue;
            }
            // Another file under the same name: this one was rotated away, and is read to its end.
            match fs::metadata(&self.path) {
                Ok(now) if now.ino() != *inode => {
                    self.waiting.push(self.path.clone());
                    self.rest.clear();
                    self.advance()?;
                }
                _ => return Ok(None),
            }
        }
    }
}

/// Where the last `wanted` lines of a file begin, and how many of them there are.
fn last_lines(path: &Path, wanted: usize) -> io::Result<(u64, usize)> {
    const CHUNK: u64 = 64 << 10;
    let mut file = File::open(path)?;
    let mut end = file.metadata()?.len();
    if wanted == 0 {
        return Ok((end, 0));
    }
    let (mut found, mut is_last) = (0, true);
    while end > 0 {
        let from = end.saturating_sub(CHUNK);
        let mut bytes = vec![0; (end - from) as usize];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(&mut bytes)?;
        for (i, byte) in bytes.iter().enumerate().rev() {
            if *byte == b'\n' {
                // The end of the last line begins no other.
                if !is_last {
                    found += 1;
                    if found == wanted {
                        return Ok((from + i as u64 + 1, found));
                    }
                }
            }
            is_last = false;
        }
        end = from;
    }
    let has_any = !is_last;
    Ok((0, found + usize::from(has_any)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn all(reader: &mut Reader, options: Options) -> String {
        let (mut shower, mut out) = (Shower::new(options), Vec::new());
        while let Some(line) = reader.next().unwrap() {
            shower.show(&line, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    fn log(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let rows: Vec<String> = lines
            .iter()
            .enumerate()
            .map(|(i, l)| format!("2026-01-01T00:00:0{i}.5Z stdout F {l}\n"))
            .collect();
        let text = rows.concat();
        fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn options_choose_what_is_shown() {
        let (_directory, path) = log(&["a", "b", "c"]);
        for (tail, options, expected) in [
            (None, Options::default(), "a\nb\nc\n"),
            (Some(2), Options::default(), "b\nc\n"),
            (Some(9), Options::default(), "a\nb\nc\n"),
            (Some(0), Options::default(), ""),
            (None, Options { limit: Some(3), ..Default::default() }, "a\nb"),
            (
                None,
                Options { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..Default::default() },
                "c\n",
            ),
            (Some(1), Options { timestamps: true, ..Default::default() }, "2026-01-01T00:00:02.5Z c\n"),
            (None, Options { stream: Some("stderr"), ..Default::default() }, ""),
        ] {
            let mut reader = Reader::open(&path, tail).unwrap();
            assert_eq!(all(&mut reader, options.clone()), expected, "{tail:?} {options:?}");
        }
    }

    #[test]
    fn parts_of_a_line_are_joined() {
        let (_directory, path) = log(&[]);
        fs::write(&path, "T stdout P long \nT stdout F line\n").unwrap();
        let options = Options { timestamps: true, ..Default::default() };
        assert_eq!(all(&mut Reader::open(&path, None).unwrap(), options), "T long line\n");
    }

    #[test]
    fn a_log_is_followed_over_its_rotation() {
        let (directory, path) = log(&["a"]);
        let mut reader = Reader::open(&path, None).unwrap();
        assert_eq!(all(&mut reader, Options::default()), "a\n");
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"T stdout F b").unwrap();
        assert_eq!(all(&mut reader, Options::default()), "", "the line is not whole yet");
        file.write_all(b"1\nT stdout F b2\n").unwrap();
        fs::rename(&path, directory.path().join("0.log.20260101-000000")).unwrap();
        fs::write(&path, "T stdout F c\n").unwrap();
        assert_eq!(all(&mut reader, Options::default()), "b1\nb2\nc\n");
        let mut again = Reader::open(&path, Some(3)).unwrap();
        assert_eq!(all(&mut again, Options::default()), "b1\nb2\nc\n");
    }
}
