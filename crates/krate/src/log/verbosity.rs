//! How much is told, as upstream's `-v` and `--vmodule` say it: a number for the whole process, which can be changed while
//! it runs, and others for single source files.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use tracing::subscriber::Interest;
use tracing::{Level, Metadata};
use tracing_subscriber::layer::{Context, Filter};

static VERBOSITY: AtomicI32 = AtomicI32::new(0);
static MODULES: OnceLock<Vec<(String, i32)>> = OnceLock::new();

/// How much further down the events of others' libraries stand than this project's own.
const OF_OTHERS: i32 = 4;

/// The verbosity that an event needs to be told, in upstream's numbers.
pub fn needed(metadata: &Metadata<'_>) -> i32 {
    match *metadata.level() {
        Level::ERROR | Level::WARN | Level::INFO => 0,
        Level::DEBUG => 4,
        Level::TRACE => 6,
    }
}

/// Sets both at the start of the process. Modules are `pattern=N`: a source file's name without `.rs`, in which `*` and
/// `?` stand for others.
pub fn configure(verbosity: i32, modules: &[(String, i32)]) {
    VERBOSITY.store(verbosity, Relaxed);
    let _ = MODULES.set(modules.to_vec());
}

/// Changes the number for the whole process, and says so in upstream's words.
///
/// # Errors
/// It is none, in upstream's words.
pub fn set(text: &str) -> Result<String, String> {
    let verbosity: i32 = text.parse().map_err(|_| {
        format!(
            "failed set klog.logging.verbosity {text}: strconv.ParseInt: parsing {text:?}: invalid syntax"
        )
    })?;
    VERBOSITY.store(verbosity, Relaxed);
    // What each place in the code has been told of its events holds no more.
    tracing::callsite::rebuild_interest_cache();
    Ok(format!("successfully set klog.logging.verbosity to {text}"))
}

/// Whether a name matches a pattern.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..]))
        }
        (Some(p), Some(n)) if p == '?' || p == n => matches(&pattern[p.len_utf8()..], &name[n.len_utf8()..]),
        _ => false,
    }
}

/// The name by which a source file is meant: of a folder's own file, the folder's.
fn module(file: &str) -> &str {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

fn is_told(metadata: &Metadata<'_>) -> bool {
    if matches!(*metadata.level(), Level::ERROR | Level::WARN) {
        return true;
    }
    let own = metadata.target().starts_with("krate");
    let file = module(metadata.file().unwrap_or_default());
    let of_module = MODULES.get().into_iter().flatten().find(|(pattern, _)| matches(pattern, file));
    let verbosity = of_module.map_or_else(|| VERBOSITY.load(Relaxed), |(_, level)| *level);
    needed(metadata) + if own { 0 } else { OF_OTHERS } <= verbosity
}

/// Lets pass what is to be told. Asked once for each place in the code, until the verbosity changes.
pub struct Verbosity;

impl<S> Filter<S> for Verbosity {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        is_told(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_told(metadata) { Interest::always() } else { Interest::never() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_source_files() {
        for (pattern, file, matched) in [
            ("writer", "crates/store/src/embedded/writer.rs", true),
            ("wr*", "crates/store/src/embedded/writer.rs", true),
            ("*r", "crates/store/src/embedded/writer.rs", true),
            ("w?iter", "crates/store/src/embedded/writer.rs", true),
            ("write", "crates/store/src/embedded/writer.rs", false),
            ("fairness", "crates/apiserver/src/fairness/mod.rs", true),
            ("*", "x.rs", true),
        ] {
            assert_eq!(matches(pattern, module(file)), matched, "{pattern} {file}");
        }
    }
}
