//! Environment files that a pod's containers leave for one another in its volumes (KEP-3721): lines of `NAME='value'`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use k8s_openapi::api::core::v1::FileKeySelector;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

use crate::volumes;

/// Bytes of a file that are read at most; containers write it, and nobody bounds them.
const LARGEST: u64 = 1 << 20;

/// The value of a key in a file of a volume of the pod; `None` when it is not there and need not be.
///
/// # Errors
/// Upstream's message.
pub fn value(pod_dir: &Path, wanted: &FileKeySelector) -> Result<Option<String>, String> {
    let is_optional = wanted.optional == Some(true);
    let volume = volumes::empty_dir(pod_dir, &wanted.volume_name);
    if !volume.is_dir() {
        let name = &wanted.volume_name;
        return Err(format!("cannot find the volume {name:?} referenced by FileKeyRef"));
    }
    let text = match read(&volume, &wanted.path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_optional => return Ok(None),
        Err(error) => {
            tracing::debug!(volume = wanted.volume_name, path = wanted.path, %error, "no environment file");
            return Err("couldn't parse env file".to_owned());
        }
    };
    let found = find(&text, &wanted.key).map_err(|error| {
        tracing::debug!(
            volume = wanted.volume_name,
            path = wanted.path,
            error,
            "an environment file is wrong"
        );
        "couldn't parse env file".to_owned()
    })?;
    match found.filter(|value| !value.is_empty()) {
        None if !is_optional => {
            let (key, path) = (&wanted.key, volume.join(&wanted.path).display().to_string());
            Err(format!("environment variable key {key:?} not found in file {path:?}"))
        }
        value => Ok(value),
    }
}

/// Reads a file of a volume, with links followed inside it only.
fn read(volume: &Path, path: &str) -> io::Result<String> {
    let root =
        openat(AT_FDCWD, volume, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        // A pipe would make the kubelet wait for whoever writes to it.
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(&root, path, how)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    if file.take(LARGEST + 1).read_to_string(&mut text)? as u64 > LARGEST {
        return Err(io::Error::other("it is too large"));
    }
    Ok(text)
}

/// The value of a key. What follows it is not looked at.
fn find(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(None);
        }
        let number = text[..text.len() - rest.len()].matches('\n').count() + 1;
        let wrong = |why: &str| format!("invalid environment variable format at line {number}: {why}");
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        if line.starts_with('#') {
            rest = after;
            continue;
        }
        let (name, _) = line.split_once('=').ok_or_else(|| wrong("no ="))?;
        let after_sign = rest[name.len() + 1..].trim_start_matches([' ', '\t']);
        let name = name.trim_end();
        if name.is_empty() {
            return Err(wrong("no name"));
        }
        let quoted =
            after_sign.strip_prefix('\'').ok_or_else(|| wrong("a value must be in single quotes"))?;
        let (value, behind) = quoted.split_once('\'').ok_or_else(|| wrong("the quote has no end"))?;
        let (tail, next) = behind.split_once('\n').unwrap_or((behind, ""));
        if !(tail.trim().is_empty()
            || tail.starts_with(char::is_whitespace) && tail.trim_start().starts_with('#'))
        {
            return Err(wrong("something follows the value"));
        }
        if name == key {
            return Ok(Some(value.to_owned()));
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_taken_as_they_are() {
        let text = "# a comment\n\n  A='1'\nB = 'two words' # said\nC='over\nlines'\nD='$A \"#\" \\'\nE=''\nA='again'\n";
        for (key, value) in [
            ("A", Some("1")),
            ("B", Some("two words")),
            ("C", Some("over\nlines")),
            ("D", Some("$A \"#\" \\")),
            ("E", Some("")),
            ("F", None),
        ] {
            assert_eq!(find(text, key).unwrap().as_deref(), value, "{key}");
        }
        for (text, said) in [
            ("A='1'\nplain\nB='2'", "line 2: no ="),
            ("A=1\n", "line 1: a value must be in single quotes"),
            ("A=\"1\"\n", "a value must be in single quotes"),
            ("A='1\n", "the quote has no end"),
            ("A='1'2\n", "something follows"),
            ("='1'\n", "no name"),
        ] {
            let error = find(text, "B").unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_inside_its_volume_only() {
        let pod = tempfile::tempdir().unwrap();
        let volume = volumes::empty_dir(pod.path(), "shared");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("env"), "A='1'\n").unwrap();
        std::fs::write(pod.path().join("secret"), "A='2'\n").unwrap();
        std::os::unix::fs::symlink(pod.path().join("secret"), volume.join("out")).unwrap();
        nix::unistd::mkfifo(&volume.join("pipe"), Mode::S_IRUSR).unwrap();
        let of = |path: &str, key: &str, optional| {
            let wanted = FileKeySelector {
                volume_name: "shared".to_owned(),
                path: path.to_owned(),
                key: key.to_owned(),
                optional,
            };
            value(pod.path(), &wanted)
        };
        assert_eq!(of("env", "A", None), Ok(Some("1".to_owned())));
        assert_eq!(of("env", "B", Some(true)), Ok(None));
        assert!(
            of("env", "B", None).unwrap_err().starts_with("environment variable key \"B\" not found in file")
        );
        assert_eq!(of("none", "A", Some(true)), Ok(None));
        for path in ["out", "pipe", "none", "../secret"] {
            assert_eq!(of(path, "A", None), Err("couldn't parse env file".to_owned()), "{path}");
        }
    }
}
