//! Keeps the code map true: each link of `ARCHITECTURE.md` that names a symbol, as in ``[`run`](crates/x/src/y.rs#L1)``,
//! points at the line that defines it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::root;

const MAP: &str = "ARCHITECTURE.md";

/// Rewrites the lines of all links.
pub fn update() -> Result<()> {
    let file = root().join(MAP);
    let text = fs::read_to_string(&file)?;
    let mended = mend(&text, &root())?;
    if mended != text {
        fs::write(&file, mended)?;
    }
    Ok(())
}

/// # Errors
/// A link leads nowhere, or to another line than it says.
pub fn check() -> Result<()> {
    let text = fs::read_to_string(root().join(MAP))?;
    if mend(&text, &root())? != text {
        bail!("the lines that {MAP} names have moved; `cargo xtask map` mends them");
    }
    Ok(())
}

fn mend(text: &str, root: &Path) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("`](crates/") {
        let (before, after) = rest.split_at(at);
        let symbol = before.rsplit_once('`').map(|(_, s)| s).context("a link without a symbol")?;
        let target = &after["`](".len()..];
        let end = target.find(')').context("a link without an end")?;
        let path = target[..end].split_once("#L").map_or(&target[..end], |(path, _)| path);
        out.push_str(before);
        out.push_str("`](");
        out.push_str(path);
        if Path::new(path).extension().is_some_and(|e| e == "rs") {
            let line = line_of(&root.join(path), symbol)?;
            let _ = write!(out, "#L{line}");
        } else if !root.join(path).exists() {
            bail!("{MAP} links to {path}, which is not there");
        }
        rest = &target[end..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The line of `file` (from 1) that defines `symbol`: `name`, or `Type::name` for what is inside an `impl`.
fn line_of(file: &Path, symbol: &str) -> Result<usize> {
    let text = fs::read_to_string(file).with_context(|| format!("{MAP} links to {}", file.display()))?;
    let name = symbol.rsplit("::").next().unwrap_or(symbol).trim_end_matches("()");
    let defines = |line: &str| {
        ["fn ", "struct ", "enum ", "trait ", "const ", "static ", "type ", "mod ", "macro_rules! "]
            .iter()
            .any(|word| {
                line.match_indices(word).any(|(i, _)| {
                    let head = line[..i].trim();
                    let tail = &line[i + word.len()..];
                    (head.is_empty()
                        || head.split(' ').all(|w| w.starts_with("pub") || w == "async" || w == "const"))
                        && tail
                            .strip_prefix(name)
                            .is_some_and(|t| !t.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
                })
            })
    };
    text.lines()
        .position(defines)
        .map(|i| i + 1)
        .with_context(|| format!("{MAP} names `{symbol}`, and {} does not define it", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_moved_to_the_line_of_their_symbol() {
        let dir = std::env::temp_dir().join(format!("xtask-map-{}", std::process::id()));
        fs::create_dir_all(dir.join("crates")).expect("made");
        fs::write(dir.join("crates/a.rs"), "fn runner() {}\n\npub async fn run() {}\n").expect("written");
        let text = "see [`run`](crates/a.rs#L1) and [`A::runner`](crates/a.rs).";
        let mended = mend(text, &dir).expect("mended");
        assert_eq!(mended, "see [`run`](crates/a.rs#L3) and [`A::runner`](crates/a.rs#L1).");
        assert!(mend("[`gone`](crates/a.rs#L1)", &dir).is_err());
        fs::remove_dir_all(dir).expect("removed");
    }
}
