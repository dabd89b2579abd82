//! `/logs/`: the files of the node's own log directory, listed and read.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, flowing, text, whole};

const DIRECTORY: &str = "/var/log";
/// How a listing begins.
const HEAD: &str = "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n";
/// Bytes that are read at a time, and how many such pieces wait for a slow client.
const PIECE: usize = 64 << 10;
const AHEAD: usize = 4;

/// What lies at a path below the directory.
pub async fn answer(parts: &[&str]) -> Answer {
    let Some(path) = place(parts) else { return text(StatusCode::NOT_FOUND, "404 page not found\n") };
    let opened = tokio::task::spawn_blocking(move || open(&path)).await.map_err(io::Error::other).flatten();
    match opened {
        Ok(Found::Directory(listing)) => whole(StatusCode::OK, "text/html; charset=utf-8", listing),
        Ok(Found::File(file)) => flowing(pieces(file)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            text(StatusCode::FORBIDDEN, "403 Forbidden\n")
        }
        Err(_) => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

enum Found {
    Directory(String),
    File(File),
}

/// Names only: no path leads above the directory.
fn place(parts: &[&str]) -> Option<PathBuf> {
    let mut path = PathBuf::from(DIRECTORY);
    for part in parts.iter().filter(|part| !part.is_empty()) {
        let mut components = Path::new(part).components();
        match (components.next(), components.next()) {
            (Some(Component::Normal(name)), None) => path.push(name),
            _ => return None,
        }
    }
    Some(path)
}

fn open(path: &Path) -> io::Result<Found> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        let mut names: Vec<String> = fs::read_dir(path)?
            .flatten()
            .map(|entry| {
                let slash = if entry.file_type().is_ok_and(|t| t.is_dir()) { "/" } else { "" };
                format!("{}{slash}", entry.file_name().to_string_lossy())
            })
            .collect();
        names.sort();
        let lines: Vec<String> =
            names.iter().map(|name| format!("<a href=\"{0}\">{0}</a>\n", escaped(name))).collect();
        return Ok(Found::Directory(format!("{HEAD}<pre>\n{}</pre>\n", lines.concat())));
    }
    // A pipe would keep whoever opens it waiting.
    if kind.is_file() { Ok(Found::File(File::open(path)?)) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn escaped(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

/// A file's content, read as fast as it is taken.
fn pieces(mut file: File) -> ReceiverStream<io::Result<Bytes>> {
    let (send, receive) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = match file.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => Ok(Bytes::copy_from_slice(&buffer[..read])),
                Err(error) => Err(error),
            };
            let is_last = piece.is_err();
            // A client that is gone wants no more.
            if send.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    });
    ReceiverStream::new(receive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out() {
        assert_eq!(place(&["a", "", "b.log"]), Some("/var/log/a/b.log".into()));
        for parts in [&["..", "etc"][..], &["a", "..", "..", "x"], &["."], &["a/../b"]] {
            assert_eq!(place(parts), None, "{parts:?}");
        }
        assert_eq!(escaped("a\"<b>&"), "a&#34;&lt;b&gt;&amp;");
    }
}
