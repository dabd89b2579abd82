//! What lies in the store of a value whose key a plugin has: upstream's `EncryptedObject`, in protobuf.

use std::collections::{BTreeMap, HashMap};

use krate_api::names::{is_dns1123_label, is_dns1123_subdomain};
use krate_api::{FieldErrors, FieldPath};
use sha2::{Digest as _, Sha256};

use crate::error::Error;

const ANNOTATIONS: usize = 32 * 1024;
const KEY_ID: usize = 1024;
const SOURCE: usize = 1024;

/// The source is the key itself, of AES-GCM.
pub const KEY: i32 = 0;
/// The source is a seed, from which each value's key is derived.
pub const SEED: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// The key or seed as the plugin encrypted it.
    #[prost(bytes = "vec", tag = "3")]
    pub source: Vec<u8>,
    #[prost(map = "string, bytes", tag = "4")]
    pub annotations: HashMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub source_type: i32,
}

/// What is wrong with the id of a key: the error's label for metrics, and its text.
pub fn wrong_key_id(id: &str) -> Option<(&'static str, String)> {
    match id.len() {
        0 => Some(("empty", "keyID is empty".to_owned())),
        long if long > KEY_ID => {
            Some(("too_long", format!("keyID is {long} bytes, which exceeds the max size of {KEY_ID}")))
        }
        _ => None,
    }
}

impl EncryptedObject {
    /// What upstream refuses to store and to read.
    pub fn validate(&self) -> Result<(), Error> {
        if !matches!(self.source_type, KEY | SEED) {
            return Err(Error::new(format!("unknown encryptedDEKSourceType: {}", self.source_type)));
        }
        if self.data.is_empty() {
            return Err(Error::new("encrypted data is empty"));
        }
        self.validate_source()
    }

    /// As [`EncryptedObject::validate`], before there is a value.
    pub fn validate_source(&self) -> Result<(), Error> {
        let source = match self.source.len() {
            0 => Some("encrypted DEK source is empty".to_owned()),
            long if long > SOURCE => {
                Some(format!("encrypted DEK source is {long} bytes, which exceeds the max size of {SOURCE}"))
            }
            _ => None,
        };
        if let Some(wrong) = source {
            return Err(Error::new(format!("failed to validate encrypted DEK source: {wrong}")));
        }
        if let Some((_, wrong)) = wrong_key_id(&self.key_id) {
            return Err(Error::new(format!("failed to validate key id: {wrong}")));
        }
        self.validate_annotations().map_err(|error| error.while_doing("failed to validate annotations"))
    }

    fn validate_annotations(&self) -> Result<(), Error> {
        let mut errors: Vec<Error> = Vec::new();
        let mut size = 0;
        for (name, value) in self.annotations.iter().collect::<BTreeMap<_, _>>() {
            size += name.len() + value.len();
            let wrong = wrong_domain_name(name);
            if !wrong.is_empty() {
                errors.push(Error::new(wrong.aggregate()));
            }
        }
        if size > ANNOTATIONS {
            errors.push(Error::new(format!(
                "total size of annotations is {size}, which exceeds the max size of {ANNOTATIONS}"
            )));
        }
        Error::all(errors).map_or(Ok(()), Err)
    }

    /// What the decrypted source is remembered by: everything that a plugin is told to decrypt it.
    pub fn source_hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        add(&self.source_type.to_be_bytes());
        add(&self.source);
        add(self.key_id.as_bytes());
        for (name, value) in self.annotations.iter().collect::<BTreeMap<_, _>>() {
            add(name.as_bytes());
            add(value);
        }
        hash.finalize().into()
    }
}

/// What keeps an annotation's name from being a fully qualified domain name.
fn wrong_domain_name(name: &str) -> FieldErrors {
    let at = FieldPath::new("annotations");
    let mut errors = FieldErrors::new();
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.is_empty() {
        errors.required(&at, "");
        return errors;
    }
    let wrong = is_dns1123_subdomain(bare);
    if !wrong.is_empty() {
        errors.invalid(&at, bare, wrong.join(","));
    } else if !bare.contains('.') {
        errors.invalid(&at, bare, "should be a domain with at least two segments separated by dots");
    } else {
        for label in bare.split('.') {
            let wrong = is_dns1123_label(label);
            if !wrong.is_empty() {
                errors.invalid(&at, label, wrong.join(","));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_encrypted_object_is_refused_in_upstreams_words() {
        let good = EncryptedObject {
            data: vec![0],
            key_id: "k".to_owned(),
            source: vec![1],
            annotations: HashMap::from([("a.example.com".to_owned(), vec![1])]),
            source_type: SEED,
        };
        good.validate().expect("it is good");
        let told = |change: fn(&mut EncryptedObject)| {
            let mut object = good.clone();
            change(&mut object);
            object.validate().expect_err("refused").to_string()
        };
        assert_eq!(told(|o| o.source_type = 7), "unknown encryptedDEKSourceType: 7");
        assert_eq!(told(|o| o.data.clear()), "encrypted data is empty");
        assert_eq!(
            told(|o| o.source.clear()),
            "failed to validate encrypted DEK source: encrypted DEK source is empty"
        );
        assert_eq!(
            told(|o| o.source = vec![0; 1025]),
            "failed to validate encrypted DEK source: encrypted DEK source is 1025 bytes, which exceeds the max size of 1024"
        );
        assert_eq!(told(|o| o.key_id.clear()), "failed to validate key id: keyID is empty");
        assert_eq!(
            told(|o| o.annotations = HashMap::from([("a".to_owned(), vec![])])),
            "failed to validate annotations: annotations: Invalid value: \"a\": should be a domain with at least two segments separated by dots"
        );
        let mut other = good.clone();
        other.annotations.clear();
        assert_ne!(good.source_hash(), other.source_hash());
    }
}
