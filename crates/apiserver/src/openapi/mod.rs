//! The OpenAPI documents: version 2 of all that is served, version 3 of each group version. They are made from the
//! table of kinds and the schema of their types when they are first asked for, and kept compressed.
//!
//! They say what clients reckon with: types and what they are for, keys of lists, patch strategies, operations,
//! parameters.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use krate_api::Kind;
use krate_api::docs::Docs;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::aggregation;

mod custom;
mod messages;
mod operations;
mod protobuf;
mod resolve;
mod serve;
mod text;
mod types;

pub(crate) use custom::Custom;
pub(crate) use resolve::Schemas;
pub(crate) use serve::answer;

#[cfg(test)]
mod tests;

/// A document, as it is kept.
#[derive(Clone, Debug)]
pub struct Document {
    compressed: Bytes,
    /// Of the document's text, in capital hexadecimal digits: its version for caches.
    pub hash: String,
}

impl Document {
    fn new(text: &str) -> Self {
        Self::packed(text.as_bytes(), hex::encode_upper(Sha256::digest(text.as_bytes())))
    }

    fn packed(bytes: &[u8], hash: String) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to memory does not fail.
        let compressed = encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default();
        Document { compressed: compressed.into(), hash }
    }

    /// The document in gzip, for clients that take that.
    pub fn gzip(&self) -> Bytes {
        self.compressed.clone()
    }

    /// The document as it is.
    pub fn plain(&self) -> Bytes {
        let mut out = Vec::new();
        // What was compressed here is in order.
        let _ = GzDecoder::new(&*self.compressed).read_to_end(&mut out);
        out.into()
    }
}

/// What the documents are about.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// Of the documents, from before this was looked up.
    pub generation: u64,
    pub rows: Vec<&'static Kind>,
    /// The built-in kinds that are not served.
    pub off: Vec<&'static Kind>,
    /// The custom ones of the rows, with what their definitions say of them.
    pub custom: Vec<Custom>,
    /// Documents of version 2 of what other servers serve, to be merged into this server's.
    pub others: Vec<Arc<Value>>,
    /// Where other servers' documents of version 3 are, by what stands for them in the index.
    pub elsewhere: Vec<(String, String)>,
}

/// The documents of a server, each made once.
#[derive(Debug, Default)]
pub struct Documents {
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    /// How often what is served has changed.
    generation: u64,
    documents: HashMap<String, Document>,
}

impl Documents {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn generation(&self) -> u64 {
        self.made.lock().generation
    }

    fn once(&self, key: &str, generation: u64, make: impl FnOnce() -> Option<String>) -> Option<Document> {
        self.once_packed(key, generation, || make().map(|text| Document::new(&text)))
    }

    fn once_packed(
        &self,
        key: &str,
        generation: u64,
        make: impl FnOnce() -> Option<Document>,
    ) -> Option<Document> {
        if let Some(document) = self.made.lock().documents.get(key) {
            return Some(document.clone());
        }
        let document = make()?;
        let mut made = self.made.lock();
        // What was made of what is served no more is for this client alone.
        if made.generation == generation {
            made.documents.insert(key.to_owned(), document.clone());
        }
        Some(document)
    }

    /// `/openapi/v2`.
    pub(crate) fn v2(&self, served: &Served) -> Option<Document> {
        self.once("v2", served.generation, || {
            let own = text::v2(served);
            if served.others.is_empty() {
                return Some(own);
            }
            let mut all: Value = serde_json::from_str(&own).ok()?;
            served.others.iter().for_each(|other| aggregation::merge_openapi(&mut all, other));
            Some(all.to_string())
        })
    }

    /// The same in protobuf. Its version is that of the text, as upstream: caches tell them apart by what was accepted.
    pub(crate) fn v2_protobuf(&self, served: &Served) -> Option<Document> {
        self.once_packed("v2 in protobuf", served.generation, || {
            let text = self.v2(served)?;
            let made = protobuf::document(&text.plain());
            let bytes = made.inspect_err(|error| tracing::error!(%error, "the OpenAPI document is no JSON"));
            Some(Document::packed(&bytes.ok()?, text.hash))
        })
    }

    /// `/openapi/v3`: where the document of each group version is, with its hash.
    pub(crate) fn v3_index(&self, served: &Served) -> Option<Document> {
        let mut all: Vec<(&str, &str)> = served.rows.iter().map(|r| (r.group, r.version)).collect();
        all.sort_unstable();
        all.dedup();
        let mut entries = Vec::with_capacity(all.len());
        // All of the documents take from the same texts.
        let _kept = Docs::shared();
        for (group, version) in all {
            let place = place(group, version);
            let document = self.v3(served, group, version)?;
            entries.push((format!("/openapi/v3/{place}?hash={}", document.hash), place));
        }
        entries.extend(served.elsewhere.iter().map(|(place, url)| (url.clone(), place.clone())));
        self.once("v3", served.generation, || Some(text::v3_index(&entries)))
    }

    /// `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION`: None for what is not served.
    pub(crate) fn v3(&self, served: &Served, group: &str, version: &str) -> Option<Document> {
        self.once(&place(group, version), served.generation, || {
            let is_of = |row: &Kind| row.group == group && row.version == version;
            let served = Served {
                generation: served.generation,
                rows: served.rows.iter().copied().filter(|row| is_of(row)).collect(),
                off: Vec::new(),
                custom: served.custom.iter().filter(|custom| is_of(custom.kind)).cloned().collect(),
                others: Vec::new(),
                elsewhere: Vec::new(),
            };
            (!served.rows.is_empty()).then(|| text::v3(&served))
        })
    }

    /// Forgets all documents: what is served changed.
    pub fn forget(&self) {
        let mut made = self.made.lock();
        made.generation += 1;
        made.documents.clear();
    }
}

/// `api/v1`, or `apis/apps/v1`.
fn place(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}
