//! What is told of the keys that issuers were asked for, under upstream's names (KEP-3331). Each server tells its own.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus::{GaugeVec, IntGaugeVec, Registry};
use sha2::{Digest as _, Sha256};

use crate::auth::metrics::hashed;
use crate::instruments::{Alpha, Families};

pub struct KeySets {
    families: Families,
    /// Which server it is, as a hash.
    server: String,
    /// When keys were last asked for, in seconds since 1970.
    asked: GaugeVec,
    info: IntGaugeVec,
    /// The hash of an issuer's keys, by that of the issuer.
    known: Mutex<HashMap<String, String>>,
}

impl KeySets {
    /// For the server of this identity.
    pub fn new(server: &str) -> Self {
        let families = Families::default();
        let name = |end: &str| format!("apiserver_authentication_jwt_authenticator_jwks_fetch_last_{end}");
        KeySets {
            server: hashed(server),
            asked: families.fractions(
                Alpha,
                &name("timestamp_seconds"),
                "When an issuer was last asked for its keys, by whether it told them.",
                &["result", "jwt_issuer_hash", "apiserver_id_hash"],
            ),
            info: families.gauges(
                Alpha,
                &name("key_set_info"),
                "Which keys an issuer last told, as a hash; always 1.",
                &["jwt_issuer_hash", "apiserver_id_hash", "hash"],
            ),
            known: Mutex::default(),
            families,
        }
    }

    /// All of it, to be shown with the server's own.
    pub fn collector(&self) -> Registry {
        self.families.0.clone()
    }

    /// Notes that an issuer was asked for its keys, and what it sent.
    pub(super) fn asked(&self, issuer: &str, sent: Option<&[u8]>) {
        let issuer = hashed(issuer);
        let result = if sent.is_some() { "success" } else { "failure" };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.asked.with_label_values(&[result, &issuer, &self.server]).set(now);
        let Some(sent) = sent else { return };
        let keys = format!("sha256:{}", hex::encode(Sha256::digest(sent)));
        self.info.with_label_values(&[&issuer, &self.server, &keys]).set(1);
        if let Some(before) = self.known.lock().insert(issuer.clone(), keys.clone())
            && before != keys
        {
            drop(self.info.remove_label_values(&[&issuer, &self.server, &before]));
        }
    }

    /// Tells no more of an issuer, whose tokens are not taken any longer.
    pub(super) fn forget(&self, issuer: &str) {
        let issuer = hashed(issuer);
        for result in ["success", "failure"] {
            drop(self.asked.remove_label_values(&[result, &issuer, &self.server]));
        }
        if let Some(keys) = self.known.lock().remove(&issuer) {
            drop(self.info.remove_label_values(&[&issuer, &self.server, &keys]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_keys_are_told_for_as_long_as_their_issuer_is_known() {
        let sets = KeySets::new("a");
        let rows = |end: &str| {
            let families = sets.collector().gather();
            let found = families.iter().find(|family| family.name().ends_with(end));
            let rows = found.map(prometheus::proto::MetricFamily::get_metric).unwrap_or_default();
            let hash = |row: &prometheus::proto::Metric| {
                let labels = row.get_label().iter();
                labels
                    .filter(|l| matches!(l.name(), "hash" | "result"))
                    .map(|l| l.value().to_owned())
                    .collect()
            };
            rows.iter().map(hash).collect::<Vec<String>>()
        };
        sets.asked("https://issuer.example", None);
        assert_eq!((rows("key_set_info"), rows("timestamp_seconds")), (vec![], vec!["failure".to_owned()]));
        for keys in ["{}", "{\"keys\": []}", "{\"keys\": []}"] {
            sets.asked("https://issuer.example", Some(keys.as_bytes()));
            assert_eq!(rows("key_set_info"), [hashed(keys)]);
        }
        sets.forget("https://other.example");
        assert_eq!(rows("timestamp_seconds").len(), 2);
        sets.forget("https://issuer.example");
        assert_eq!((rows("key_set_info"), rows("timestamp_seconds")), (vec![], vec![]));
    }
}
