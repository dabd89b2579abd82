//! The pair that is in use: whoever serves or asks with it shows the newest, and hears when there is another.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use crate::pair::Pair;

/// The pair as it is now. Clones see the same.
#[derive(Clone, Debug)]
pub struct Current(watch::Receiver<Option<Arc<Pair>>>);

/// Who replaces it.
#[derive(Debug)]
pub struct Renewal(watch::Sender<Option<Arc<Pair>>>);

impl Renewal {
    pub fn new(first: Option<Pair>) -> (Self, Current) {
        let (sender, receiver) = watch::channel(first.map(Arc::new));
        (Renewal(sender), Current(receiver))
    }

    /// Connections that begin from now on are with this one.
    pub fn set(&self, pair: Pair) {
        self.0.send_replace(Some(Arc::new(pair)));
    }

    pub fn current(&self) -> Current {
        Current(self.0.subscribe())
    }
}

impl Current {
    /// One that stays.
    pub fn fixed(pair: Pair) -> Self {
        Renewal::new(Some(pair)).1
    }

    /// The pair; none where there is none yet, or it has ended.
    pub fn get(&self) -> Option<Arc<Pair>> {
        self.newest().filter(|pair| !pair.has_ended(SystemTime::now()))
    }

    /// The same, even if it has ended.
    pub fn newest(&self) -> Option<Arc<Pair>> {
        self.0.borrow().clone()
    }

    /// Returns when there is another than when this was last asked; never, where nobody replaces it.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // One that has ended is still better than none: the client says what is wrong.
        self.newest().map(|pair| pair.certified())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.get().map(|pair| pair.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pair::tests::pems;

    fn pair(name: &str) -> Pair {
        let (certificate, key) = pems(name, Duration::from_hours(1));
        Pair::from_pem(&certificate, &key).expect("a pair")
    }

    #[tokio::test]
    async fn whoever_uses_it_hears_of_another() {
        let (renewal, mut current) = Renewal::new(None);
        assert!(current.get().is_none() && ResolvesClientCert::resolve(&current, &[], &[]).is_none());
        let seen = current.clone();
        renewal.set(pair("one"));
        current.changed().await;
        assert_eq!(seen.get().map(|pair| pair.common_name.clone()).as_deref(), Some("one"));
        renewal.set(pair("two"));
        tokio::time::timeout(Duration::from_secs(10), current.changed()).await.expect("told");
        assert_eq!(current.newest().map(|pair| pair.common_name.clone()).as_deref(), Some("two"));
        drop(renewal);
        assert!(tokio::time::timeout(Duration::from_millis(20), current.changed()).await.is_err());
        assert!(current.get().is_some(), "what there is stays");
    }
}
