//! Certificates with their keys as they are used: read and judged, replaced while they are in use, and followed in the
//! files in which others renew them. And PEM, as the API has it in objects.
//!
//! Nothing here signs a certificate or asks anybody for one, and nothing here asks who it is that uses it.

mod changes;
mod clock;
mod current;
mod files;
mod pair;
pub mod pem;
mod write;

pub use changes::Looks;
pub use clock::until;
pub use current::{Current, Renewal};
pub use files::{FileError, Source, Text, follow, pair_of};
pub use pair::{Pair, PairError};
pub use write::write;
