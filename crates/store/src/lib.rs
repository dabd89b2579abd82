//! Where the cluster's objects are kept: revisions, compare-and-set, watch and compaction, as etcd has them, over
//! opaque bytes; and the watch cache that serves reads and watches from memory.
//!
//! [`Backend`] is the door; [`Embedded`] keeps everything in one directory of this machine. Only the API server
//! uses this crate. It never looks into a value: what an object is, its owner tells the cache through
//! [`cache::Decode`].

pub mod backend;
pub mod cache;
pub mod compactor;
pub mod durations;
pub mod embedded;
pub mod types;

pub use backend::{Backend, Progress, ProgressHandle, WatchBatch, WatchStream};
pub use compactor::Compactor;
pub use durations::Durations;
pub use embedded::{Embedded, Options};
pub use types::{
    Committed, CompareAndSet, Error, Expect, KeyRange, KeyValue, Limit, Op, Page, Result, Revision,
    WatchEvent,
};
