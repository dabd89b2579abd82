//! The log file of a container, in CRI's form: `<time> <stream> <F|P> <line>`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest line, in bytes, before it is cut into partial ones (containerd's `max_container_log_line_size`).
pub const MAX_LINE: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// One log file, written by both streams of a container.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)? })
    }

    /// Starts a new file at the same path, after somebody has moved the old one away.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    pub fn write(&mut self, formatted: &[u8]) -> io::Result<()> {
        self.file.write_all(formatted)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Cuts what one stream says into lines.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    pending: Vec<u8>,
}

impl Lines {
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Adds what `chunk` completes to `out`; keeps the rest.
    pub fn push(&mut self, chunk: &[u8], now: impl Fn() -> String, out: &mut Vec<u8>) {
        let mut rest = chunk;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.piece(&rest[..end], &now, out);
            self.flush("F", &now(), out);
            rest = &rest[end + 1..];
        }
        self.piece(rest, &now, out);
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    /// Adds what was left without a newline when the stream ended: a line that is not whole.
    pub fn finish(&mut self, now: impl Fn() -> String, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.flush("P", &now(), out);
        }
    }

    fn piece(&mut self, mut bytes: &[u8], now: &impl Fn() -> String, out: &mut Vec<u8>) {
        while self.pending.len() + bytes.len() > MAX_LINE {
            let (head, tail) = bytes.split_at(MAX_LINE - self.pending.len());
            self.pending.extend_from_slice(head);
            self.flush("P", &now(), out);
            bytes = tail;
        }
        self.pending.extend_from_slice(bytes);
    }

    fn flush(&mut self, tag: &str, time: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(time.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.stream.name().as_bytes());
        out.push(b' ');
        out.extend_from_slice(tag.as_bytes());
        out.push(b' ');
        out.extend_from_slice(&self.pending);
        out.push(b'\n');
        self.pending.clear();
    }
}

/// The time as log lines bear it.
pub fn now() -> String {
    jiff::Timestamp::now().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &mut Lines, chunks: &[&[u8]], end: bool) -> String {
        let mut out = Vec::new();
        for chunk in chunks {
            lines.push(chunk, || "T".to_owned(), &mut out);
        }
        if end {
            lines.finish(|| "T".to_owned(), &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn whole_lines_are_full() {
        let mut lines = Lines::new(Stream::Stdout);
        assert_eq!(
            said(&mut lines, &[b"a\nb", b"c\n\n"], false),
            "T stdout F a\nT stdout F bc\nT stdout F \n"
        );
    }

    #[test]
    fn what_is_left_at_the_end_is_a_part_of_a_line() {
        let mut lines = Lines::new(Stream::Stderr);
        assert_eq!(said(&mut lines, &[b"no newline"], true), "T stderr P no newline\n");
    }

    #[test]
    fn a_long_line_is_cut() {
        let mut lines = Lines::new(Stream::Stdout);
        let long = vec![b'x'; MAX_LINE + 5];
        let text = said(&mut lines, &[&long, b"\n"], false);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 2);
        assert!(rows[0].starts_with("T stdout P x") && rows[0].len() == MAX_LINE + 11);
        assert_eq!(rows[1], "T stdout F xxxxx");
    }

    #[test]
    fn the_time_has_a_zone() {
        assert!(now().ends_with('Z'), "{}", now());
    }
}
