//! Files that are replaced as a whole.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a file so that whoever reads it finds either the old one or the whole new one; `mode` says whose it is to read.
///
/// # Errors
/// It cannot be written; then the old one is still there.
pub fn write(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let part = file.with_extension(format!("{}.part", std::process::id()));
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&part)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    fs::rename(&part, file)
}
