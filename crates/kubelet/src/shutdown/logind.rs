//! What is asked of systemd-logind over D-Bus: to hold a shutdown up, for how long, and to tell of one.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use zbus::Connection;

use crate::backoff::go_duration;

/// How logind is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogindConfig {
    /// The address of the bus; none: the system's, which `DBUS_SYSTEM_BUS_ADDRESS` may name.
    pub bus: Option<String>,
    /// Where files lie that change logind's configuration.
    pub drop_ins: PathBuf,
}

impl Default for LogindConfig {
    fn default() -> Self {
        LogindConfig { bus: None, drop_ins: PathBuf::from("/etc/systemd/logind.conf.d") }
    }
}

const DROP_IN: &str = "99-kubelet.conf";

/// How often it is looked whether logind has read its configuration anew, and the pause after the first look, which
/// doubles each time.
const LOOKS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// SIGHUP, by which logind reads its configuration anew.
const HANG_UP: i32 = 1;

/// Why shutdowns cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    #[error("{what}: {error}")]
    Bus { what: &'static str, error: zbus::Error },
    #[error("unable to override inhibit delay by shutdown manager: {what} {path}: {error}")]
    Override { what: &'static str, path: String, error: std::io::Error },
    #[error(
        "node shutdown manager was timed out after {LOOKS} attempts waiting for logind InhibitDelayMaxSec to update to {} \
         (ShutdownGracePeriod), current value is {}",
        go_duration(*wanted),
        go_duration(*found)
    )]
    TooShort { wanted: Duration, found: Duration },
}

fn failed(what: &'static str) -> impl FnOnce(zbus::Error) -> LogindError {
    move |error| LogindError::Bus { what, error }
}

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1",
    gen_blocking = false
)]
trait LoginManager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<zbus::zvariant::OwnedFd>;

    /// Microseconds.
    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max(&self) -> zbus::Result<u64>;

    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait ServiceManager {
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
}

/// A connection to logind.
pub struct Logind {
    bus: Connection,
    manager: LoginManagerProxy<'static>,
    drop_ins: PathBuf,
}

impl Logind {
    /// # Errors
    /// There is no bus at the address.
    pub async fn connect(config: &LogindConfig) -> Result<Self, LogindError> {
        let connecting = async {
            let bus = match &config.bus {
                Some(address) => zbus::connection::Builder::address(address.as_str())?.build().await?,
                None => Connection::system().await?,
            };
            let manager = LoginManagerProxy::new(&bus).await?;
            Ok(Logind { bus, manager, drop_ins: config.drop_ins.clone() })
        };
        connecting.await.map_err(failed("connecting to the system bus"))
    }

    /// How long a shutdown may be held up.
    async fn delay(&self) -> Result<Duration, LogindError> {
        let told = self.manager.inhibit_delay_max().await;
        told.map(Duration::from_micros)
            .map_err(failed("failed reading InhibitDelayMaxUSec property from logind"))
    }

    /// Sees to it that a shutdown may be held up for so long, by logind's configuration if need be.
    ///
    /// # Errors
    /// logind does not let itself be told.
    pub async fn allow(&self, wanted: Duration) -> Result<(), LogindError> {
        if wanted <= self.delay().await? {
            return Ok(());
        }
        self.override_delay(wanted).await?;
        let services = async {
            let services = ServiceManagerProxy::new(&self.bus).await?;
            services.kill_unit("systemd-logind.service", "all", HANG_UP).await
        };
        services.await.map_err(failed("unable to reload logind conf"))?;
        // A signal is not answered, and the property does not tell when it changes.
        let mut pause = FIRST_PAUSE;
        let mut found = self.delay().await?;
        for _ in 1..LOOKS {
            if wanted <= found {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            found = self.delay().await?;
        }
        if wanted <= found { Ok(()) } else { Err(LogindError::TooShort { wanted, found }) }
    }

    async fn override_delay(&self, wanted: Duration) -> Result<(), LogindError> {
        let said = |what, path: &std::path::Path| {
            let path = path.display().to_string();
            move |error| LogindError::Override { what, path, error }
        };
        let made = tokio::fs::create_dir_all(&self.drop_ins).await;
        made.map_err(said("failed creating directory", &self.drop_ins))?;
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        let file = self.drop_ins.join(DROP_IN);
        let written = tokio::fs::write(&file, text).await;
        written.map_err(said("failed writing logind shutdown inhibit override file", &file))
    }

    /// Holds shutdowns up for as long as the descriptor is open, or logind lets them be.
    ///
    /// # Errors
    /// logind refuses.
    pub async fn inhibit(&self) -> Result<OwnedFd, LogindError> {
        const WHY: &str = "Kubelet needs time to handle node shutdown";
        let lock = self.manager.inhibit("shutdown", "kubelet", WHY, "delay").await;
        lock.map(OwnedFd::from).map_err(failed("failed creating systemd inhibitor"))
    }

    /// Tells of shutdowns until the connection breaks off: true when one begins, false when it is called off.
    ///
    /// # Errors
    /// The bus refuses.
    pub async fn shutdowns(&self) -> Result<impl Stream<Item = bool> + Unpin + use<>, LogindError> {
        let told = self
            .manager
            .receive_prepare_for_shutdown()
            .await
            .map_err(failed("failed to monitor shutdown"))?;
        Ok(told.filter_map(|told| std::future::ready(told.args().ok().map(|args| args.start))))
    }
}
