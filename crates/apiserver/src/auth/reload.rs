//! Configuration of who is known and who may, in files that are read again when they change (KEP-3221, KEP-3331). What is
//! wrong is told and counted, and what was taken before stays in force.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use krate_pki::Looks;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Registry};
use tokio_util::sync::CancellationToken;

use super::metrics::hashed;
use crate::instruments::{Alpha, Beta, Families};

/// How often a file is looked at whatever is heard of it, as upstream.
const LOOK_EVERY: Duration = Duration::from_mins(1);

/// A file, and what it said when it was last taken.
#[derive(Clone, Debug)]
pub struct Followed {
    pub path: PathBuf,
    pub text: String,
    pub look_every: Duration,
}

impl Followed {
    pub fn new(path: impl Into<PathBuf>, text: String) -> Self {
        Followed { path: path.into(), text, look_every: LOOK_EVERY }
    }

    /// Hands every new content of the file to `take`, until `shutdown`. `what` is how upstream's metrics name it.
    pub fn follow<F: Future<Output = Result<(), String>> + Send>(
        mut self,
        what: &'static str,
        metrics: &Arc<Metrics>,
        shutdown: CancellationToken,
        take: impl Fn(String) -> F + Send + 'static,
    ) {
        let metrics = Arc::clone(metrics);
        metrics.taken(what, &self.text);
        tokio::spawn(async move {
            let mut looks = Looks::at([self.path.as_path()], self.look_every);
            loop {
                tokio::select! {
                    () = looks.next() => {}
                    () = shutdown.cancelled() => return,
                }
                let path = self.path.display();
                let taken = match tokio::fs::read_to_string(&self.path).await {
                    Ok(text) if text == self.text => continue,
                    Ok(text) => {
                        // Wrong once, it is not told again until it changes.
                        self.text.clone_from(&text);
                        take(text).await
                    }
                    Err(error) => Err(error.to_string()),
                };
                metrics.reloaded(what, taken.is_ok());
                match taken {
                    Ok(()) => {
                        metrics.taken(what, &self.text);
                        tracing::info!("reloaded {what} config from {path}");
                    }
                    Err(error) => tracing::error!("reloading {what} config from {path}: {error}"),
                }
            }
        });
    }
}

/// What is counted of it, under upstream's names.
pub struct Metrics {
    families: Families,
    /// Which server it is, as a hash.
    server: String,
    of: [Reloads; 2],
}

/// What is counted of one configuration.
struct Reloads {
    what: &'static str,
    total: IntCounterVec,
    /// When that was last, in seconds since 1970.
    last: GaugeVec,
    info: IntGaugeVec,
}

impl Metrics {
    /// For the server of this identity.
    pub fn new(server: &str) -> Self {
        const BY: &[&str] = &["status", "apiserver_id_hash"];
        let families = Families::default();
        let of = ["authentication", "authorization"].map(|what| {
            let name = |end: &str| format!("apiserver_{what}_config_controller_{end}");
            Reloads {
                what,
                total: families.counters(
                    Beta,
                    &name("automatic_reloads_total"),
                    "Configurations read again, by whether they were taken.",
                    BY,
                ),
                last: families.fractions(
                    Beta,
                    &name("automatic_reload_last_timestamp_seconds"),
                    "When that was last done.",
                    BY,
                ),
                info: families.gauges(
                    Alpha,
                    &name("last_config_info"),
                    "Which configuration is in force, as a hash; always 1.",
                    &["apiserver_id_hash", "hash"],
                ),
            }
        });
        Metrics { families, server: hashed(server), of }
    }

    /// All of them, to be shown with the server's own.
    pub fn collector(&self) -> Registry {
        self.families.0.clone()
    }

    fn of(&self, what: &str) -> impl Iterator<Item = &Reloads> {
        self.of.iter().filter(move |of| of.what == what)
    }

    fn reloaded(&self, what: &str, success: bool) {
        let labels = [if success { "success" } else { "failure" }, self.server.as_str()];
        for reloads in self.of(what) {
            reloads.total.with_label_values(&labels).inc();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            reloads.last.with_label_values(&labels).set(now);
        }
    }

    /// Tells which configuration is in force.
    fn taken(&self, what: &str, text: &str) {
        for reloads in self.of(what) {
            reloads.info.reset();
            reloads.info.with_label_values(&[self.server.as_str(), &hashed(text)]).set(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Authorizer, User, authorization_config};
    use crate::features::Features;
    use crate::request::RequestInfo;

    #[tokio::test]
    async fn authorizers_are_others_once_the_file_names_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("config");
        let of = |types: &[&str]| {
            let entries: Vec<String> = types
                .iter()
                .map(|kind| format!("- type: {kind}\n  name: {}\n", kind.to_lowercase()))
                .collect();
            format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n{}",
                entries.concat()
            )
        };
        let text = of(&["RBAC"]);
        std::fs::write(&path, &text).expect("written");
        let before = authorization_config::parse(&text, None).expect("modes");
        let authorizer = Authorizer::open(&before, &Features::default()).await.expect("authorizers");
        let metrics = Arc::new(Metrics::new("here"));
        // It is not looked at again while this runs, unless it is known to have changed.
        let file = Followed { look_every: Duration::from_hours(1), ..Followed::new(&path, text) };
        let shutdown = CancellationToken::new();
        let (asked, taken) = (authorizer.clone(), before.clone());
        file.follow("authorization", &metrics, shutdown.clone(), move |text| {
            let (asked, taken) = (asked.clone(), taken.clone());
            async move {
                let modes = authorization_config::parse(&text, None)?;
                authorization_config::keeps(&taken, &modes)?;
                asked.replace(&modes).await
            }
        });
        let counted = |status: &str| {
            let families = metrics.collector().gather();
            let all = families.iter().filter(|f| f.name().ends_with("automatic_reloads_total"));
            all.flat_map(|f| f.get_metric().to_vec())
                .filter(|m| m.get_label().iter().any(|label| label.value() == status))
                .map(|m| m.get_counter().get_value())
                .sum::<f64>()
        };
        let until = async |status: &str, wanted: f64| {
            let end = tokio::time::Instant::now() + Duration::from_secs(30);
            while counted(status) < wanted {
                assert!(tokio::time::Instant::now() < end, "{status}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (amy, info) = (User::authenticated("amy", &[]), RequestInfo::default());
        assert!(authorizer.check(&amy, &info).await.is_err());
        // Who was asked must be asked still.
        std::fs::write(&path, of(&["AlwaysAllow"])).expect("written");
        until("failure", 1.0).await;
        assert!(authorizer.check(&amy, &info).await.is_err());
        // Replaced as careful writers do it.
        let new = dir.path().join("new");
        std::fs::write(&new, of(&["RBAC", "AlwaysAllow"])).expect("written");
        std::fs::rename(&new, &path).expect("renamed");
        until("success", 1.0).await;
        assert!(authorizer.check(&amy, &info).await.is_ok());
        shutdown.cancel();
    }
}
