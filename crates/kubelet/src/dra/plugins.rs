//! The DRA drivers' plugins at the node: those that have announced themselves, and whether they can be reached. Of a driver
//! that has none for long, the ResourceSlices go, so that nothing is placed here for its sake.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::resource::v1::ResourceSlice;
use krate_client::{Client, is_not_found, message};
use krate_metrics::Stability::Alpha;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use parking_lot::Mutex;
use prometheus::HistogramVec;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::api::{
    Claim, NodePrepareResourcesRequest, NodePrepareResourcesResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse, NodeWatchResourcesRequest, NodeWatchResourcesResponse, V1, V1BETA1,
};
use super::health::{DeviceKey, Healths};
use crate::instruments::FAMILIES;
use crate::plugins::{Announced, Handler};
use crate::socket::{self, Caller};

/// How long a plugin may take for the claims of one pod (upstream's).
const PATIENCE: Duration = Duration::from_secs(45);
/// How often a plugin that cannot be reached is tried, and one asked again that has ended its stream.
const RECONNECT: Duration = Duration::from_secs(1);
const WATCH_AGAIN: Duration = Duration::from_secs(5);
/// What is waited after slices could not be removed, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_mins(5);

/// Upper bounds in seconds, from 0.1 to 40 in equal steps of their logarithms.
pub const BOUNDS: &[f64] = &[
    0.1,
    0.1534127404634391,
    0.23535468936502524,
    0.36106407876409946,
    0.5539182980610752,
    0.8497812409839363,
    1.303672689737678,
    1.9999999999999993,
    3.068254809268781,
    4.707093787300503,
    7.221281575281985,
    11.0783659612215,
    16.995624819678717,
    26.07345379475355,
    39.99999999999997,
];

/// How long plugins take.
static CALLS: LazyLock<HistogramVec> = LazyLock::new(|| {
    FAMILIES.histograms(
        Alpha,
        "dra_grpc_operations_duration_seconds",
        "Duration in seconds of the DRA gRPC operations",
        &["driver_name", "method_name", "grpc_status_code"],
        BOUNDS,
    )
});

/// A plugin of a driver; there may be several at a time, while one takes the place of another.
#[derive(Clone, Debug)]
pub struct Plugin {
    pub driver: String,
    endpoint: PathBuf,
    is_v1: bool,
    caller: Caller,
}

impl Plugin {
    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let began = Instant::now();
        let answer = self.caller.call(method, request, PATIENCE).await;
        let code = answer.as_ref().map_or_else(|s| format!("{:?}", s.code()), |_| "OK".to_owned());
        let labels = [self.driver.as_str(), method, &code];
        CALLS.with_label_values(&labels).observe(began.elapsed().as_secs_f64());
        answer
    }

    pub async fn prepare(&self, claims: Vec<Claim>) -> Result<NodePrepareResourcesResponse, Status> {
        let method = if self.is_v1 {
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources"
        } else {
            "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodePrepareResources"
        };
        self.call(method, NodePrepareResourcesRequest { claims }).await
    }

    pub async fn unprepare(&self, claims: Vec<Claim>) -> Result<NodeUnprepareResourcesResponse, Status> {
        let method = if self.is_v1 {
            "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources"
        } else {
            "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources"
        };
        self.call(method, NodeUnprepareResourcesRequest { claims }).await
    }
}

struct Known {
    plugin: Plugin,
    is_connected: bool,
    gone: CancellationToken,
}

#[derive(Default)]
struct State {
    /// By driver, in the order in which they came.
    known: BTreeMap<String, Vec<Known>>,
    /// What keeps the slices of a driver that comes back in time.
    wiping: BTreeMap<String, CancellationToken>,
}

pub struct Plugins {
    client: Client,
    node: String,
    /// How long a driver may be away until its slices go.
    patience: Duration,
    state: Mutex<State>,
    pub healths: Healths,
    /// Devices whose health has changed, until somebody takes them.
    changed: Mutex<Vec<DeviceKey>>,
    pub told: Notify,
    stop: CancellationToken,
}

impl Plugins {
    /// No plugin is known at first, so nothing can be had of any driver until it announces itself.
    pub fn new(client: Client, node: &str, patience: Duration, stop: CancellationToken) -> Arc<Self> {
        let plugins = Arc::new(Plugins {
            client,
            node: node.to_owned(),
            patience,
            state: Mutex::default(),
            healths: Healths::default(),
            changed: Mutex::default(),
            told: Notify::new(),
            stop: stop.clone(),
        });
        let wiping = Arc::clone(&plugins);
        tokio::spawn(async move { stop.run_until_cancelled(wiping.wipe(None)).await });
        plugins
    }

    /// The plugin to ask for a driver's devices: the newest that can be reached, or else the newest.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, driver: &str) -> Result<Plugin, String> {
        let state = self.state.lock();
        let all = state.known.get(driver).map(Vec::as_slice).unwrap_or_default();
        let found = all.iter().rfind(|known| known.is_connected).or(all.last());
        let found = found.map(|known| known.plugin.clone());
        found.ok_or_else(|| format!("DRA driver {driver} is not registered"))
    }

    /// The devices whose health has changed since this was asked last.
    pub fn take_changed(&self) -> Vec<DeviceKey> {
        std::mem::take(&mut self.changed.lock())
    }

    fn is_new(&self, devices: Vec<DeviceKey>) {
        if !devices.is_empty() {
            self.changed.lock().extend(devices);
            self.told.notify_one();
        }
    }

    /// Holds a connection to a plugin, so that it is known when it is away.
    async fn follow_connection(self: Arc<Self>, plugin: Plugin) {
        loop {
            if let Ok(mut stream) = socket::connect(&plugin.endpoint).await {
                self.connected(&plugin, true);
                let mut buffer = [0; 256];
                // It says nothing of interest here but its end.
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            }
            self.connected(&plugin, false);
            tokio::time::sleep(RECONNECT).await;
        }
    }

    fn connected(self: &Arc<Self>, plugin: &Plugin, is_connected: bool) {
        let mut state = self.state.lock();
        let all = state.known.get_mut(&plugin.driver);
        let known = all.into_iter().flatten().find(|known| known.plugin.endpoint == plugin.endpoint);
        if let Some(known) = known {
            known.is_connected = is_connected;
        }
        self.look(&mut state, &plugin.driver);
    }

    /// Begins to wait for the end of a driver's slices, or stops that.
    fn look(self: &Arc<Self>, state: &mut State, driver: &str) {
        let is_usable = state.known.get(driver).is_some_and(|all| all.iter().any(|known| known.is_connected));
        if is_usable {
            if let Some(wiping) = state.wiping.remove(driver) {
                wiping.cancel();
            }
            return;
        }
        if state.wiping.contains_key(driver) {
            return;
        }
        let kept = self.stop.child_token();
        state.wiping.insert(driver.to_owned(), kept.clone());
        let (plugins, driver) = (Arc::clone(self), driver.to_owned());
        tokio::spawn(async move {
            let wiping = async {
                tokio::time::sleep(plugins.patience).await;
                plugins.wipe(Some(&driver)).await;
            };
            if kept.run_until_cancelled(wiping).await.is_some() {
                plugins.state.lock().wiping.remove(&driver);
            }
        });
    }

    /// Removes the node's slices, of one driver or of all.
    async fn wipe(&self, driver: Option<&str>) {
        let api: Api<ResourceSlice> = Api::all(self.client.clone());
        let mut fields = format!("spec.nodeName={}", self.node);
        if let Some(driver) = driver {
            fields = format!("{fields},spec.driver={driver}");
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let selected = ListParams::default().fields(&fields);
            match api.delete_collection(&DeleteParams::default(), &selected).await {
                Ok(_) => return,
                Err(error) if is_not_found(&error) => return,
                Err(error) => {
                    tracing::debug!(driver, error = message(&error), "slices could not be removed");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Takes what a plugin tells of its devices, as long as it does.
    async fn follow_health(self: Arc<Self>, plugin: Plugin) {
        loop {
            let method = "/v1alpha1.DRAResourceHealth/NodeWatchResources";
            let stream = plugin
                .caller
                .stream::<_, NodeWatchResourcesResponse>(method, NodeWatchResourcesRequest {})
                .await;
            let ended = match stream {
                Ok(mut stream) => loop {
                    match stream.message().await {
                        Ok(Some(told)) => {
                            self.is_new(self.healths.tell(&plugin.driver, told.devices, Instant::now()));
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                },
                Err(status) => Some(status),
            };
            self.is_new(self.healths.forget(&plugin.driver));
            if ended.is_some_and(|status| status.code() == tonic::Code::Unimplemented) {
                // It is one that does not tell.
                return;
            }
            tokio::time::sleep(WATCH_AGAIN).await;
        }
    }
}

/// The services that a plugin has, by what it announces: the first that is spoken here.
fn chosen(plugin: &Announced) -> Result<bool, String> {
    let (name, at) = (&plugin.name, plugin.endpoint.display());
    let invalid = |why: String| {
        format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {at}: {why}")
    };
    if plugin.versions.is_empty() {
        return Err(invalid("empty list of supported gRPC services (aka supported versions)".to_owned()));
    }
    let known = |version: &String| match version.as_str() {
        V1 => Some(true),
        V1BETA1 => Some(false),
        _ => None,
    };
    plugin.versions.iter().find_map(known).ok_or_else(|| {
        let list = |all: &[&str]| all.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" ");
        let theirs: Vec<&str> = plugin.versions.iter().map(String::as_str).collect();
        invalid(format!(
            "none of services supported by the plugin ([{}]) are supported by the kubelet ([{}])",
            list(&theirs),
            list(&[V1, V1BETA1])
        ))
    })
}

/// The plugins as such that announce themselves.
pub struct DraPlugins(pub Arc<Plugins>);

#[async_trait]
impl Handler for DraPlugins {
    fn kind(&self) -> &'static str {
        "DRAPlugin"
    }

    fn validate(&self, plugin: &Announced) -> Result<(), String> {
        chosen(plugin).map(drop)
    }

    async fn register(&self, announced: &Announced) -> Result<(), String> {
        let is_v1 = chosen(announced)?;
        let (name, endpoint) = (&announced.name, &announced.endpoint);
        let plugin =
            Plugin { driver: name.clone(), endpoint: endpoint.clone(), is_v1, caller: Caller::new(endpoint) };
        let gone = self.0.stop.child_token();
        {
            let mut state = self.0.state.lock();
            let all = state.known.entry(name.clone()).or_default();
            if all.iter().any(|known| known.plugin.endpoint == *endpoint) {
                return Err(format!(
                    "endpoint {} already registered for DRA driver plugin {name}",
                    endpoint.display()
                ));
            }
            all.push(Known { plugin: plugin.clone(), is_connected: false, gone: gone.clone() });
            self.0.look(&mut state, name);
        }
        let connection = Arc::clone(&self.0).follow_connection(plugin.clone());
        tokio::spawn(gone.clone().run_until_cancelled_owned(connection));
        let health = Arc::clone(&self.0).follow_health(plugin);
        tokio::spawn(gone.run_until_cancelled_owned(health));
        Ok(())
    }

    async fn deregister(&self, plugin: &Announced) {
        let is_last = {
            let mut state = self.0.state.lock();
            let all = state.known.entry(plugin.name.clone()).or_default();
            all.retain(|known| {
                let is_it = known.plugin.endpoint == plugin.endpoint;
                if is_it {
                    known.gone.cancel();
                }
                !is_it
            });
            let is_last = all.is_empty();
            if is_last {
                state.known.remove(&plugin.name);
            }
            self.0.look(&mut state, &plugin.name);
            is_last
        };
        if is_last {
            self.0.is_new(self.0.healths.forget(&plugin.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_upstreams() {
        for (at, bound) in BOUNDS.iter().enumerate() {
            let exact = 0.1 * 400_f64.powf(at as f64 / 14.0);
            assert!((bound - exact).abs() < 1e-9, "{bound} {exact}");
        }
    }

    #[test]
    fn the_first_service_that_is_spoken_is_used() {
        let of = |versions: &[&str]| {
            chosen(&Announced {
                name: "d".to_owned(),
                endpoint: "/s".into(),
                versions: versions.iter().map(|v| (*v).to_owned()).collect(),
            })
        };
        assert_eq!(of(&["v1.DRAPlugin", "v1beta1.DRAPlugin"]), Ok(true));
        assert_eq!(of(&["v1alpha1.DRAResourceHealth", "v1beta1.DRAPlugin"]), Ok(false));
        assert_eq!(
            of(&["v1alpha4.Node"]).unwrap_err(),
            "invalid supported gRPC versions of DRA driver plugin d at endpoint /s: none of services supported by the \
             plugin ([\"v1alpha4.Node\"]) are supported by the kubelet ([\"v1.DRAPlugin\" \"v1beta1.DRAPlugin\"])"
        );
    }
}
