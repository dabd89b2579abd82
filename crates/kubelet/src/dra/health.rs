//! How devices are, as their drivers tell it (KEP-4680). What was told long ago, or by a driver that is gone, is not known.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::{DeviceHealth, Health};

/// How long what a driver says is believed, when it does not say (upstream's).
const BELIEVED: Duration = Duration::from_secs(30);
/// Bytes of a message.
const LONGEST: usize = 1024;

#[derive(Clone, Debug)]
struct Told {
    health: Health,
    message: String,
    at: Instant,
    believed: Duration,
}

/// A driver, a pool, and a device.
pub type DeviceKey = (String, String, String);

/// What drivers have told.
#[derive(Debug, Default)]
pub struct Healths(Mutex<BTreeMap<DeviceKey, Told>>);

impl Healths {
    /// Takes what a driver tells. Returns the devices of which something else was known.
    pub fn tell(&self, driver: &str, devices: Vec<DeviceHealth>, now: Instant) -> Vec<DeviceKey> {
        let mut known = self.0.lock();
        let mut changed = Vec::new();
        for device in devices {
            let id = device.device.clone().unwrap_or_default();
            let key = (driver.to_owned(), id.pool_name, id.device_name);
            let seconds = u64::try_from(device.health_check_timeout_seconds).unwrap_or(0);
            let new = Told {
                health: device.health(),
                message: shortened(&device.message),
                at: now,
                believed: if seconds == 0 { BELIEVED } else { Duration::from_secs(seconds) },
            };
            let is_same =
                known.get(&key).is_some_and(|old| old.health == new.health && old.message == new.message);
            if !is_same {
                changed.push(key.clone());
            }
            known.insert(key, new);
        }
        changed
    }

    /// A driver tells nothing any more. Returns its devices.
    pub fn forget(&self, driver: &str) -> Vec<DeviceKey> {
        let mut known = self.0.lock();
        let gone: Vec<DeviceKey> = known.keys().filter(|(of, ..)| of == driver).cloned().collect();
        known.retain(|(of, ..), _| of != driver);
        gone
    }

    /// How a device is, in the words of a pod's status, and what is said of that.
    pub fn of(&self, key: &DeviceKey, now: Instant) -> (&'static str, Option<String>) {
        let known = self.0.lock();
        let Some(told) =
            known.get(key).filter(|told| now.saturating_duration_since(told.at) <= told.believed)
        else {
            return ("Unknown", None);
        };
        let health = match told.health {
            Health::Healthy => "Healthy",
            Health::Unhealthy => "Unhealthy",
            Health::Unknown => "Unknown",
        };
        (health, Some(told.message.clone()).filter(|message| !message.is_empty()))
    }
}

fn shortened(message: &str) -> String {
    if message.len() <= LONGEST {
        return message.to_owned();
    }
    let mut end = LONGEST - 3;
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::super::api::DeviceIdentifier;
    use super::*;

    #[test]
    fn what_is_told_is_believed_for_a_while() {
        let healths = Healths::default();
        let told = |health: Health, seconds, message: &str| DeviceHealth {
            device: Some(DeviceIdentifier { pool_name: "p".to_owned(), device_name: "d".to_owned() }),
            health: health as i32,
            health_check_timeout_seconds: seconds,
            message: message.to_owned(),
            ..DeviceHealth::default()
        };
        let key = ("driver".to_owned(), "p".to_owned(), "d".to_owned());
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(healths.of(&key, began), ("Unknown", None));
        assert_eq!(
            healths.tell("driver", vec![told(Health::Healthy, 0, "")], began),
            std::slice::from_ref(&key)
        );
        assert!(healths.tell("driver", vec![told(Health::Healthy, 0, "")], began).is_empty());
        assert_eq!(healths.of(&key, after(30)), ("Healthy", None));
        assert_eq!(healths.of(&key, after(31)), ("Unknown", None));
        let long = "x".repeat(2000);
        assert_eq!(healths.tell("driver", vec![told(Health::Unhealthy, 90, &long)], after(40)).len(), 1);
        let (health, said) = healths.of(&key, after(100));
        assert_eq!((health, said.unwrap().len()), ("Unhealthy", 1024));
        assert_eq!(healths.forget("driver"), std::slice::from_ref(&key));
        assert_eq!(healths.of(&key, after(100)), ("Unknown", None));
    }
}
