//! Keys that a plugin keeps (KMS v2, KEP-3299): a seed of this server's encrypts the values, the plugin encrypts the
//! seed, and the encrypted seed lies beside every value.

mod api;
mod client;
mod envelope;
mod object;
mod probe;

pub use api::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, SERVICE, StatusRequest, StatusResponse,
};
pub(crate) use envelope::Envelope;
pub use probe::Timing;
