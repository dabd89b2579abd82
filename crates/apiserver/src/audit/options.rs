//! What audit is told by flags, under upstream's names and with its defaults.

use std::path::PathBuf;
use std::time::Duration;

/// All of it; by default nothing is audited.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--audit-policy-file`
    pub policy_file: Option<PathBuf>,
    pub log: LogOptions,
    pub webhook: WebhookOptions,
}

/// `--audit-log-*`
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// `-` is standard output; empty is no log.
    pub path: PathBuf,
    /// In days; 0 keeps files however old.
    pub max_age: u32,
    /// 0 keeps all.
    pub max_backups: usize,
    /// In megabytes; 0 never begins a new file.
    pub max_size: u32,
    /// `json`, or `legacy`.
    pub format: String,
    pub compress: bool,
    /// The form of events: `audit.k8s.io/v1`.
    pub version: String,
    pub mode: Mode,
    pub truncate: Truncate,
}

/// `--audit-webhook-*`
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// A kubeconfig, whose current cluster is the webhook.
    pub config_file: Option<PathBuf>,
    /// How long a request that failed is waited with; longer each time.
    pub initial_backoff: Duration,
    pub version: String,
    pub mode: Mode,
    pub truncate: Truncate,
}

/// When events are sent: `batch`, `blocking` or `blocking-strict`.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    Batch(Batch),
    Blocking,
    BlockingStrict,
}

/// `--audit-*-batch-*`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Batch {
    /// In events, as the next.
    pub buffer_size: usize,
    pub max_size: usize,
    pub max_wait: Duration,
    /// Batches a second, and at once after a pause.
    pub throttle: Option<(f32, u32)>,
    /// Whether a batch is sent while others still are.
    pub concurrent: bool,
}

/// `--audit-*-truncate-*`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    pub enabled: bool,
    pub max_batch_size: usize,
    pub max_event_size: usize,
}

const VERSION: &str = "audit.k8s.io/v1";
const MODES: &str = "batch,blocking,blocking-strict";

impl Default for Truncate {
    fn default() -> Self {
        Truncate { enabled: false, max_batch_size: 10 * 1024 * 1024, max_event_size: 100 * 1024 }
    }
}

impl Batch {
    /// As events go to a file that are not written at once.
    pub const LOG: Batch = Batch {
        buffer_size: 10_000,
        max_size: 1,
        max_wait: Duration::ZERO,
        throttle: None,
        concurrent: false,
    };
    /// As events go to a webhook.
    pub const WEBHOOK: Batch = Batch {
        buffer_size: 10_000,
        max_size: 400,
        max_wait: Duration::from_secs(30),
        throttle: Some((10.0, 15)),
        concurrent: true,
    };
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            path: PathBuf::new(),
            max_age: 366,
            max_backups: 100,
            max_size: 100,
            format: "json".to_owned(),
            compress: false,
            version: VERSION.to_owned(),
            mode: Mode::Blocking,
            truncate: Truncate::default(),
        }
    }
}

impl Default for WebhookOptions {
    fn default() -> Self {
        WebhookOptions {
            config_file: None,
            initial_backoff: Duration::from_secs(10),
            version: VERSION.to_owned(),
            mode: Mode::Batch(Batch::WEBHOOK),
            truncate: Truncate::default(),
        }
    }
}

impl LogOptions {
    pub fn is_used(&self) -> bool {
        !self.path.as_os_str().is_empty()
    }
}

impl WebhookOptions {
    pub fn is_used(&self) -> bool {
        self.config_file.is_some()
    }
}

impl Mode {
    /// By its name; `batch` with these values.
    ///
    /// # Errors
    /// There is no such mode.
    pub fn named(name: &str, plugin: &str, batch: Batch) -> Result<Self, String> {
        match name {
            "batch" => Ok(Mode::Batch(batch)),
            "blocking" => Ok(Mode::Blocking),
            "blocking-strict" => Ok(Mode::BlockingStrict),
            _ => Err(format!("invalid audit {plugin} mode {name}, allowed modes are \"{MODES}\"")),
        }
    }

    fn validate(&self, plugin: &str) -> Option<String> {
        let Mode::Batch(batch) = self else { return None };
        let wrong = |what: &str, value: &dyn std::fmt::Display| {
            Some(format!("invalid audit batch {plugin} {what} {value}, must be a positive number"))
        };
        match batch {
            Batch { buffer_size: 0, .. } => wrong("buffer size", &0),
            Batch { max_size: 0, .. } => wrong("max batch size", &0),
            Batch { throttle: Some((rate, _)), .. } if *rate <= 0.0 => wrong("throttle QPS", rate),
            Batch { throttle: Some((_, 0)), .. } => wrong("throttle burst", &0),
            _ => None,
        }
    }
}

impl Truncate {
    fn validate(&self, plugin: &str) -> Option<String> {
        let Truncate { max_event_size: event, max_batch_size: batch, .. } = self;
        if *event == 0 {
            return Some(format!(
                "invalid audit truncate {plugin} max event size {event}, must be a positive number"
            ));
        }
        (batch < event).then(|| {
            format!(
                "invalid audit truncate {plugin} max batch size {batch}, must be greater than max event size ({event})"
            )
        })
    }
}

fn validate_version(version: &str) -> Option<String> {
    (version != VERSION)
        .then(|| "invalid group version, allowed versions are [\"audit.k8s.io/v1\"]".to_owned())
}

impl Options {
    /// # Errors
    /// What cannot be, in upstream's words.
    pub fn validate(&self) -> Result<(), String> {
        let mut errors = Vec::new();
        if self.log.is_used() {
            errors.extend(self.log.mode.validate("log"));
            errors.extend(self.log.truncate.validate("log"));
            errors.extend(validate_version(&self.log.version));
            let format = &self.log.format;
            if !matches!(format.as_str(), "json" | "legacy") {
                errors
                    .push(format!("invalid audit log format {format}, allowed formats are \"legacy,json\""));
            }
        }
        if self.webhook.is_used() {
            errors.extend(self.webhook.mode.validate("webhook"));
            errors.extend(self.webhook.truncate.validate("webhook"));
            errors.extend(validate_version(&self.webhook.version));
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(format!("[{}]", errors.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_in_upstreams_words() {
        let told = |change: fn(&mut Options)| {
            let mut options = Options::default();
            options.log.path = "-".into();
            change(&mut options);
            options.validate().err().unwrap_or_default()
        };
        assert_eq!(told(|_| {}), "");
        assert_eq!(
            told(|o| o.log.format = "xml".to_owned()),
            "invalid audit log format xml, allowed formats are \"legacy,json\""
        );
        assert_eq!(
            told(|o| o.log.truncate.max_batch_size = 1),
            "invalid audit truncate log max batch size 1, must be greater than max event size (102400)"
        );
        assert_eq!(
            told(|o| o.log.mode = Mode::Batch(Batch { buffer_size: 0, ..Batch::LOG })),
            "invalid audit batch log buffer size 0, must be a positive number"
        );
        assert_eq!(
            told(|o| {
                o.webhook.config_file = Some("x".into());
                o.webhook.version = "v2".to_owned();
                o.webhook.mode = Mode::Batch(Batch { throttle: Some((0.0, 1)), ..Batch::WEBHOOK });
            }),
            "[invalid audit batch webhook throttle QPS 0, must be a positive number, invalid group version, \
             allowed versions are [\"audit.k8s.io/v1\"]]"
        );
        assert_eq!(
            Mode::named("later", "log", Batch::LOG),
            Err("invalid audit log mode later, allowed modes are \"batch,blocking,blocking-strict\""
                .to_owned())
        );
    }
}
