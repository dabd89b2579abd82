//! What types and fields are documented to be. The texts are those of `k8s-openapi`, gathered when this crate is built.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use flate2::read::GzDecoder;

static TEXTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docs.gz"));
static UNPACKED: Mutex<Weak<Docs>> = Mutex::new(Weak::new());

/// All texts, unpacked.
#[derive(Debug)]
pub struct Docs(HashMap<String, String>);

impl Docs {
    /// The texts. They take two megabytes of memory, for as long as somebody holds them.
    pub fn shared() -> Arc<Self> {
        let mut there = UNPACKED.lock().unwrap_or_else(PoisonError::into_inner);
        there.upgrade().unwrap_or_else(|| {
            let docs = Arc::new(Self::unpack());
            *there = Arc::downgrade(&docs);
            docs
        })
    }

    fn unpack() -> Self {
        let mut text = String::new();
        // What the build packed is in order.
        let _ = GzDecoder::new(TEXTS).read_to_string(&mut text);
        let line = |line: &str| {
            line.split_once('\t').map(|(name, text)| (name.to_owned(), text.replace("\\n", "\n")))
        };
        Docs(text.lines().filter_map(line).collect())
    }

    /// The text of a type (`io.k8s.api.core.v1.Pod`), or of a field (`io.k8s.api.core.v1.Pod.spec`).
    pub fn of(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_are_documented() {
        let docs = Docs::unpack();
        assert!(docs.of("io.k8s.api.core.v1.Pod").is_some_and(|text| text.starts_with("Pod is")));
        for field in
            ["core.v1.PodSpec.nodeName", "core.v1.EventSource.component", "batch.v1.JobSpec.podFailurePolicy"]
        {
            assert!(docs.of(&format!("io.k8s.api.{field}")).is_some(), "{field}");
        }
        // A line break, and a character that Markdown would take for its own.
        let image =
            docs.of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.creationTimestamp").expect("a text");
        assert!(image.contains("\n\n"), "{image}");
        assert!(docs.0.values().all(|text| !text.contains("\\<")));
    }
}
