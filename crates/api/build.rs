//! Gathers what the vocabulary's types and fields are documented to be, for `kubectl explain` and the columns of
//! tables: the doc comments of `k8s-openapi`, compressed. The texts stay that crate's; none is kept in this repository.

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The version of Kubernetes whose types are served, as `k8s-openapi` names its folder.
const VERSION: &str = "v1_36";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let mut files = Vec::new();
    collect(&source()?.join(VERSION), &mut files)?;
    files.sort();
    let mut out = String::new();
    for file in files {
        documented(&fs::read_to_string(file)?, &mut out);
    }
    if out.is_empty() {
        return Err("k8s-openapi has no documentation where it was looked for".into());
    }
    let target = PathBuf::from(std::env::var("OUT_DIR")?).join("docs.gz");
    let mut encoder = GzEncoder::new(fs::File::create(target)?, Compression::best());
    encoder.write_all(out.as_bytes())?;
    encoder.finish()?;
    Ok(())
}

/// Where `k8s-openapi` is on this machine: the version that is locked, as cargo unpacked it. (`cargo metadata` would
/// tell, but wants every package of the workspace at hand, for whatever platform.)
fn source() -> Result<PathBuf, Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../..");
    let lock = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let lock = fs::read_to_string(lock)?;
    let (_, after) =
        lock.split_once("name = \"k8s-openapi\"\nversion = \"").ok_or("k8s-openapi is not locked")?;
    let version = after.split('"').next().unwrap_or_default();
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var("HOME")?).join(".cargo"),
    };
    let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let folder = format!("k8s-openapi-{version}/src");
    let mut places =
        registries.map(|entry| entry.path().join(&folder)).chain([root.join("vendor/k8s-openapi/src")]);
    let found = places.find(|place| place.join(VERSION).is_dir());
    found.ok_or_else(|| format!("k8s-openapi {version} is not unpacked; run `cargo fetch`").into())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// Adds the documentation of one file: lines of a name, a tab, and the text with `\n` for its line breaks.
fn documented(code: &str, out: &mut String) {
    const DEFINITION: &str = "// Generated from definition ";
    let Some(definition) = code.lines().find_map(|line| line.strip_prefix(DEFINITION)) else { return };
    let mut doc: Vec<&str> = Vec::new();
    for line in code.lines() {
        let line = line.trim();
        if line.starts_with("impl") {
            break;
        }
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.strip_prefix(' ').unwrap_or(text));
            continue;
        }
        let name = if line.starts_with("pub struct ") {
            Some(definition.to_owned())
        } else {
            let field =
                line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")).map(|(field, _)| field);
            field.and_then(|field| json_name(code, field)).map(|field| format!("{definition}.{field}"))
        };
        if let (Some(name), false) = (name, doc.is_empty()) {
            for part in [&name, "\t", &unescaped(&doc.join("\n")).replace('\n', "\\n"), "\n"] {
                out.push_str(part);
            }
        }
        if !line.starts_with("#[") {
            doc.clear();
        }
    }
}

/// The name in JSON of a field.
fn json_name<'a>(code: &'a str, field: &str) -> Option<&'a str> {
    let key = format!("Field::Key_{},", field.trim_start_matches("r#"));
    let line = code.lines().find(|line| line.contains("\" => ") && line.ends_with(&key))?;
    line.trim().strip_prefix('"')?.split('"').next()
}

/// Doc comments escape what Markdown would read as its own.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\\' && rest.peek().is_some_and(char::is_ascii_punctuation) {
            out.extend(rest.next());
        } else {
            out.push(c);
        }
    }
    out
}
