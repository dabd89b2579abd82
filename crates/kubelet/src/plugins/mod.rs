//! Plugins announce themselves by a socket in `plugins_registry`: who finds one asks it what it is, hands it to those who
//! work with its kind, and tells it whether it is taken (upstream's plugin manager). Its socket's end is its own.

pub mod api;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::api::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use self::watch::{Identity, Sockets};
use crate::socket::{self, Caller};

/// The directory of the sockets below the kubelet's own.
const DIRECTORY: &str = "plugins_registry";
/// How long a socket may be there before somebody listens at it, how long a plugin may take to say what it is and to
/// hear that it is taken, and how long it waits after a failure at first and at last (all upstream's).
const CONNECTED: Duration = Duration::from_secs(10);
const TOLD: Duration = Duration::from_secs(1);
const HEARD: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(122);

/// A plugin that has announced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    pub name: String,
    /// The socket at which it works.
    pub endpoint: PathBuf,
    pub versions: Vec<String>,
}

/// Who works with plugins of one kind.
#[async_trait]
pub trait Handler: Send + Sync {
    /// What such plugins say that they are.
    fn kind(&self) -> &'static str;

    /// Whether such a plugin could be taken.
    ///
    /// # Errors
    /// Why not, as it is told to the plugin.
    fn validate(&self, plugin: &Announced) -> Result<(), String>;

    /// Takes a plugin.
    ///
    /// # Errors
    /// Why not, as it is told to the plugin; nothing of it is left then.
    async fn register(&self, plugin: &Announced) -> Result<(), String>;

    /// The plugin is gone.
    async fn deregister(&self, plugin: &Announced);
}

pub type Handlers = Arc<[Arc<dyn Handler>]>;

/// The work with one socket.
struct Followed {
    identity: Identity,
    gone: CancellationToken,
    work: JoinHandle<()>,
}

impl Followed {
    fn begin(socket: PathBuf, identity: Identity, handlers: Handlers) -> Self {
        let gone = CancellationToken::new();
        let work = tokio::spawn(follow(socket, handlers, gone.clone()));
        Followed { identity, gone, work }
    }

    async fn end(self) {
        self.gone.cancel();
        // One that panicked has nothing more to end.
        let _ = self.work.await;
    }
}

/// Follows the sockets of plugins until the kubelet ends. Plugins stay what they are then: a kubelet's end is not theirs.
pub async fn run(root: &Path, handlers: Handlers, stop: CancellationToken) {
    let sockets = match Sockets::below(root.join(DIRECTORY)) {
        Ok(sockets) => sockets,
        Err(error) => return tracing::error!(%error, "plugins cannot announce themselves"),
    };
    let mut followed: BTreeMap<PathBuf, Followed> = BTreeMap::new();
    loop {
        let found = sockets.look();
        let gone: Vec<PathBuf> = followed
            .iter()
            .filter(|(socket, known)| found.get(*socket) != Some(&known.identity))
            .map(|(socket, _)| socket.clone())
            .collect();
        // Whatever has gone has gone before another one comes.
        for socket in gone {
            if let Some(known) = followed.remove(&socket) {
                known.end().await;
            }
        }
        for (socket, identity) in found {
            followed
                .entry(socket.clone())
                .or_insert_with(|| Followed::begin(socket, identity, Arc::clone(&handlers)));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = sockets.changed() => {}
        }
    }
    for known in followed.into_values() {
        known.work.abort();
    }
}

/// Registers the plugin of a socket, as often as that takes, and deregisters it when the socket is gone.
async fn follow(socket: PathBuf, handlers: Handlers, gone: CancellationToken) {
    let mut pause = FIRST_PAUSE;
    let (handler, plugin) = loop {
        match register(&socket, &handlers, &gone).await {
            Ok(taken) => break taken,
            Err(_) if gone.is_cancelled() => return,
            Err(error) => tracing::warn!(socket = %socket.display(), error, "a plugin is not registered"),
        }
        tokio::select! {
            () = gone.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(LAST_PAUSE);
    };
    gone.cancelled().await;
    tracing::info!(name = plugin.name, "a plugin is gone");
    handler.deregister(&plugin).await;
}

/// Registers the plugin of a socket. It goes on to its end, so that nothing of a plugin is left half done when its socket is
/// `gone` meanwhile; but then it waits for nobody.
async fn register(
    socket: &Path,
    handlers: &Handlers,
    gone: &CancellationToken,
) -> Result<(Arc<dyn Handler>, Announced), String> {
    let at = socket.display();
    let is_gone = || format!("RegisterPlugin error -- socket {at} is gone");
    let heard = tokio::select! {
        () = gone.cancelled() => return Err(is_gone()),
        heard = listened(socket) => heard,
    };
    heard.map_err(|e| {
        format!(
            "RegisterPlugin error -- dial failed at socket {at}, err: failed to dial socket {at}, err: {e}"
        )
    })?;
    let caller = Caller::new(socket);
    let info: Result<PluginInfo, tonic::Status> =
        caller.call("/pluginregistration.Registration/GetInfo", InfoRequest {}, TOLD).await;
    let info = info.map_err(|status| {
        format!(
            "RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {at}, err: {}",
            crate::cri::rpc_error(&status)
        )
    })?;
    let Some(handler) = handlers.iter().find(|handler| handler.kind() == info.kind) else {
        let why = format!(
            "RegisterPlugin error -- no handler registered for plugin type: {} at socket {at}",
            info.kind
        );
        return Err(refuse(&caller, why).await);
    };
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(info.endpoint) };
    let plugin = Announced { name: info.name, endpoint, versions: info.supported_versions };
    if let Err(why) = handler.validate(&plugin) {
        let why = format!("RegisterPlugin error -- plugin validation failed with err: {why}");
        return Err(refuse(&caller, why).await);
    }
    let taken = tokio::select! {
        () = gone.cancelled() => {
            handler.deregister(&plugin).await;
            return Err(is_gone());
        }
        taken = handler.register(&plugin) => taken,
    };
    if let Err(why) = taken {
        let why = format!("RegisterPlugin error -- plugin registration failed with err: {why}");
        return Err(refuse(&caller, why).await);
    }
    if let Err(status) = notify(&caller, true, String::new()).await {
        handler.deregister(&plugin).await;
        return Err(format!(
            "RegisterPlugin error -- failed to send registration status at socket {at}, err: {}",
            crate::cri::rpc_error(&status)
        ));
    }
    tracing::info!(name = plugin.name, kind = info.kind, "a plugin is registered");
    Ok((Arc::clone(handler), plugin))
}

/// Waits until somebody listens at a socket.
async fn listened(socket: &Path) -> std::io::Result<()> {
    let deadline = Instant::now() + CONNECTED;
    let mut pause = Duration::from_millis(5);
    loop {
        match socket::connect(socket).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(250));
    }
}

/// Tells the plugin why it is not taken. Returns what is said of that.
async fn refuse(caller: &Caller, why: String) -> String {
    match notify(caller, false, why.clone()).await {
        Ok(()) => why,
        Err(status) => format!("{why}: {}", crate::cri::rpc_error(&status)),
    }
}

async fn notify(caller: &Caller, registered: bool, error: String) -> Result<(), tonic::Status> {
    let status = RegistrationStatus { plugin_registered: registered, error };
    let method = "/pluginregistration.Registration/NotifyRegistrationStatus";
    caller.call::<_, RegistrationStatusResponse>(method, status, HEARD).await.map(drop)
}
