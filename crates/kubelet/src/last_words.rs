//! What a container says as it ends: a file of its own, or the end of its log.

use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::names;
use crate::observed::ContainerSeen;

/// Bytes of a message, from its file and from the log.
const FROM_FILE: u64 = 4096;
const FROM_LOG: usize = 2048;
/// Lines of the log.
const LINES: usize = 80;

/// The last words of a container that has ended; empty when it said none.
pub fn read(container: &ContainerSeen) -> String {
    let annotation =
        |name: &str| container.status.annotations.get(name).map(String::as_str).unwrap_or_default();
    let path = annotation(names::TERMINATION_PATH);
    let mount = container.status.mounts.iter().find(|m| m.container_path == path);
    let said = mount.and_then(|m| beginning(Path::new(&m.host_path)).ok()).unwrap_or_default();
    let falls_back =
        annotation(names::TERMINATION_POLICY) == "FallbackToLogsOnError" && container.status.exit_code != 0;
    if said.is_empty() && falls_back {
        return end_of_log(Path::new(&container.status.log_path)).unwrap_or_default();
    }
    said
}

fn beginning(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(FROM_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn end_of_log(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(4, ' ').skip(2);
            Some((parts.next()?, parts.next()?))
        })
        .collect();
    let mut said = String::new();
    for (tag, line) in &lines[lines.len().saturating_sub(LINES)..] {
        said.push_str(line);
        // The part of a line has no end.
        if *tag != "P" {
            said.push('\n');
        }
    }
    let mut from = said.len().saturating_sub(FROM_LOG);
    while !said.is_char_boundary(from) {
        from += 1;
    }
    Ok(said.split_off(from))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use k8s_cri::v1::{ContainerStatus, Mount};

    use super::*;

    #[test]
    fn words_come_from_the_file_or_else_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let (file, log) = (directory.path().join("words"), directory.path().join("0.log"));
        fs::write(&file, "").unwrap();
        fs::write(&log, "T stdout F one\nT stderr F two\n").unwrap();
        let status = |policy: &str, exit_code| ContainerSeen {
            sandbox: String::new(),
            status: ContainerStatus {
                exit_code,
                log_path: log.display().to_string(),
                mounts: vec![Mount {
                    container_path: "/dev/termination-log".into(),
                    host_path: file.display().to_string(),
                    ..Default::default()
                }],
                annotations: HashMap::from([
                    (names::TERMINATION_PATH.to_owned(), "/dev/termination-log".to_owned()),
                    (names::TERMINATION_POLICY.to_owned(), policy.to_owned()),
                ]),
                ..Default::default()
            },
        };
        assert_eq!(read(&status("File", 1)), "");
        assert_eq!(read(&status("FallbackToLogsOnError", 0)), "");
        assert_eq!(read(&status("FallbackToLogsOnError", 1)), "one\ntwo\n");
        fs::write(&log, "T stdout F one\nT stdout P two\n").unwrap();
        assert_eq!(read(&status("FallbackToLogsOnError", 1)), "one\ntwo");
        fs::write(&file, "last").unwrap();
        assert_eq!(read(&status("FallbackToLogsOnError", 1)), "last");
    }
}
