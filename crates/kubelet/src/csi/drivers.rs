//! The CSI drivers of the node: those that have announced themselves, and what the API says of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::storage::v1::CSIDriver;
use krate_client::{Client, Informer};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::client::Driver;
use super::node_info::NodeInfo;
use crate::cri::rpc_error;
use crate::plugins::{Announced, Handler};

/// How long the API may take to say which drivers there are.
const SYNCED: Duration = Duration::from_secs(10);

struct Registered {
    driver: Driver,
    version: Version,
    /// Ends what is done for the driver as long as it is there.
    gone: CancellationToken,
}

pub struct Drivers {
    registered: Mutex<BTreeMap<String, Registered>>,
    objects: Informer<CSIDriver>,
    /// Told when an object has changed.
    changed: Arc<Notify>,
    pub info: NodeInfo,
    /// Whether the node's `CSINode` is there.
    ready: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Drivers {
    pub fn new(client: Client, node: &str, stop: CancellationToken) -> Arc<Self> {
        let objects: Informer<CSIDriver> =
            Informer::start(Api::all(client.clone()), watcher::Config::default(), stop.clone());
        let changed = Arc::new(Notify::new());
        let tell = Arc::clone(&changed);
        objects.handle(move |_| tell.notify_waiters());
        Arc::new(Drivers {
            registered: Mutex::default(),
            objects,
            changed,
            info: NodeInfo::new(client, node),
            ready: watch::Sender::new(false),
            stop,
        })
    }

    /// The node is known to the API; from now on drivers are listed there.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn initialize(&self, node: &k8s_openapi::api::core::v1::Node) -> kube::Result<()> {
        self.info.initialize(node).await?;
        self.ready.send_replace(true);
        Ok(())
    }

    /// A driver that has announced itself.
    ///
    /// # Errors
    /// It has not.
    pub fn get(&self, name: &str) -> Result<Driver, String> {
        if name.is_empty() {
            return Err("driver name is empty".to_owned());
        }
        let found = self.registered.lock().get(name).map(|known| known.driver.clone());
        found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))
    }

    /// What the API says of a driver; it need not say anything.
    ///
    /// # Errors
    /// The API cannot be asked.
    pub async fn object(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, String> {
        let synced = tokio::time::timeout(SYNCED, self.objects.synced()).await;
        synced.map_err(|_| "timed out waiting for the condition".to_owned())?;
        Ok(self.objects.get("", name))
    }

    /// Whether volumes of a driver must be attached to the node before they are used; so it is where the API says nothing.
    pub fn must_be_attached(&self, name: &str) -> bool {
        self.objects.get("", name).and_then(|driver| driver.spec.attach_required).unwrap_or(true)
    }

    /// Asks a driver again and again how many volumes it can have, as often as the API says (KEP-4876).
    async fn follow_allocatable(self: Arc<Self>, driver: Driver, gone: CancellationToken) {
        let period = |drivers: &Drivers| {
            let object = drivers.objects.get("", &driver.name)?;
            let seconds = object.spec.node_allocatable_update_period_seconds?;
            u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs)
        };
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let wanted = period(&self);
            let due = async {
                match wanted {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            let is_due = tokio::select! {
                () = gone.cancelled() => return,
                () = changed => false,
                () = due => true,
            };
            if is_due && let Err(error) = self.update(&driver).await {
                tracing::error!(driver = driver.name, error, "a driver's limit of volumes could not be told");
            }
        }
    }

    async fn update(&self, driver: &Driver) -> Result<(), String> {
        let info = driver.info().await.map_err(|status| {
            format!("failed to get NodeGetInfo from driver {:?}: {}", driver.name, rpc_error(&status))
        })?;
        self.info
            .update(&driver.name, &info)
            .await
            .map_err(|e| format!("failed to update driver {:?}: {e}", driver.name))
    }

    fn check(&self, who: &str, plugin: &Announced) -> Result<Version, String> {
        let name = &plugin.name;
        if plugin.versions.is_empty() {
            return Err(format!(
                "kubernetes.io/csi: {who} for CSI driver {name:?} failed. Plugin returned an empty list for supported \
                 versions"
            ));
        }
        let highest = highest(&plugin.versions).map_err(|why| {
            format!(
                "kubernetes.io/csi: {who} for CSI driver {name:?} failed. None of the versions specified {:?} are \
                 supported. err={why}",
                plugin.versions
            )
        })?;
        let known = self.registered.lock().get(name).map(|known| known.version);
        match known {
            Some(known) if known >= highest => Err(format!(
                "kubernetes.io/csi: {who} for CSI driver {name:?} failed. Another driver with the same name is already \
                 registered with a higher supported version: \"{known}\""
            )),
            _ => Ok(highest),
        }
    }

    fn forget(&self, name: &str) {
        if let Some(known) = self.registered.lock().remove(name) {
            known.gone.cancel();
        }
    }
}

/// The drivers as plugins that announce themselves.
pub struct CsiPlugins(pub Arc<Drivers>);

#[async_trait]
impl Handler for CsiPlugins {
    fn kind(&self) -> &'static str {
        "CSIPlugin"
    }

    fn validate(&self, plugin: &Announced) -> Result<(), String> {
        self.0.check("ValidatePlugin", plugin).map(drop).map_err(|why| {
            format!(
                "validation failed for CSI Driver {} at endpoint {}: {why}",
                plugin.name,
                plugin.endpoint.display()
            )
        })
    }

    async fn register(&self, plugin: &Announced) -> Result<(), String> {
        let drivers = &self.0;
        let version = drivers.check("RegisterPlugin", plugin)?;
        // Of a node that the API does not know, nothing can be told.
        let _ = drivers.ready.subscribe().wait_for(|ready| *ready).await;
        let driver = Driver::new(&plugin.name, &plugin.endpoint);
        let gone = drivers.stop.child_token();
        let known = Registered { driver: driver.clone(), version, gone: gone.clone() };
        if let Some(before) = drivers.registered.lock().insert(plugin.name.clone(), known) {
            before.gone.cancel();
        }
        let told = async {
            let info = driver.info().await.map_err(|status| rpc_error(&status))?;
            drivers.info.install(&plugin.name, &info).await
        };
        if let Err(error) = told.await {
            self.deregister(plugin).await;
            return Err(error);
        }
        tokio::spawn(Arc::clone(drivers).follow_allocatable(driver, gone));
        Ok(())
    }

    async fn deregister(&self, plugin: &Announced) {
        self.0.forget(&plugin.name);
        if let Err(error) = self.0.info.uninstall(&plugin.name).await {
            tracing::error!(driver = plugin.name, error, "a driver that is gone is still listed");
        }
    }
}

/// The highest of the versions that are spoken here.
fn highest(versions: &[String]) -> Result<Version, String> {
    match versions.iter().filter_map(|v| Version::parse(v)).filter(|v| v.0 <= 1).max() {
        Some(found) if found.0 == 1 => Ok(found),
        Some(found) => Err(format!("highest supported version reported is {found}, must be v1.x")),
        None => Err(format!(
            "could not find a highest supported version from versions ({versions:?}) reported: none is both known and \
             below 2"
        )),
    }
}

/// A version of CSI: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim_start_matches('v').split('.').map(|part| part.parse().ok());
        let mut next = || parts.next().unwrap_or(Some(0));
        let version = Version(next()?, next()?, next()?);
        parts.next().is_none().then_some(version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_up_to_three_parts() {
        for (text, expected) in [
            ("1.0.0", Some(Version(1, 0, 0))),
            ("v1.2", Some(Version(1, 2, 0))),
            ("0.3.0", Some(Version(0, 3, 0))),
            ("1.0.0.0", None),
            ("one", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text), expected, "{text}");
        }
        assert!(Version(1, 10, 0) > Version(1, 9, 9));
        let of = |versions: &[&str]| highest(&versions.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["0.3.0", "1.2.0", "2.0.0", "1.10.0"]), Ok(Version(1, 10, 0)));
        assert_eq!(of(&["0.3.0"]).unwrap_err(), "highest supported version reported is 0.3.0, must be v1.x");
        assert!(of(&["2.0.0"]).unwrap_err().starts_with("could not find a highest supported version"));
    }
}
