//! What is told of requests, and where to.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{OptionError, Topic, duration};
use crate::audit::{Batch, Mode, Truncate};
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Audit {
    /// The Policy that says which requests are told of, and how much of them
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,

    /// The file that events are written to; - is standard output
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,

    /// How many days a full file is kept; 0 is for ever [default: 366]
    #[arg(long, value_name = "DAYS")]
    pub audit_log_maxage: Option<u32>,

    /// How many full files are kept; 0 is all [default: 100]
    #[arg(long, value_name = "N")]
    pub audit_log_maxbackup: Option<usize>,

    /// The size in megabytes at which a file is full; 0 is never [default: 100]
    #[arg(long, value_name = "MEGABYTES")]
    pub audit_log_maxsize: Option<u32>,

    /// How events are written: json or legacy [default: json]
    #[arg(long, value_name = "FORMAT")]
    pub audit_log_format: Option<String>,

    /// Whether full files are compressed
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_log_compress: Option<bool>,

    /// When events are sent: batch, blocking, or blocking-strict [default: blocking]
    #[arg(long, value_name = "MODE")]
    pub audit_log_mode: Option<String>,

    /// How many events wait for a batch at most [default: 10000]
    #[arg(long, value_name = "N")]
    pub audit_log_batch_buffer_size: Option<usize>,

    /// How many events a batch has at most [default: 1]
    #[arg(long, value_name = "N")]
    pub audit_log_batch_max_size: Option<usize>,

    /// How long a batch waits to be full
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub audit_log_batch_max_wait: Option<Duration>,

    /// Whether batches are held back that are too many
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_log_batch_throttle_enable: Option<bool>,

    /// How many batches are sent in a second
    #[arg(long, value_name = "N")]
    pub audit_log_batch_throttle_qps: Option<f32>,

    /// How many batches are sent at once after a pause
    #[arg(long, value_name = "N")]
    pub audit_log_batch_throttle_burst: Option<u32>,

    /// Whether events that are too large are cut
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_log_truncate_enabled: Option<bool>,

    /// The size of a batch in bytes [default: 10485760]
    #[arg(long, value_name = "BYTES")]
    pub audit_log_truncate_max_batch_size: Option<usize>,

    /// The size in bytes from which an event is too large [default: 102400]
    #[arg(long, value_name = "BYTES")]
    pub audit_log_truncate_max_event_size: Option<usize>,

    /// The form of events in the file [default: audit.k8s.io/v1]
    #[arg(long, value_name = "VERSION")]
    pub audit_log_version: Option<String>,

    /// The kubeconfig whose current cluster is the webhook that events are sent to
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,

    /// How long is waited before a request is sent again that failed [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub audit_webhook_initial_backoff: Option<Duration>,

    /// When events are sent: batch, blocking, or blocking-strict [default: batch]
    #[arg(long, value_name = "MODE")]
    pub audit_webhook_mode: Option<String>,

    /// How many events wait for a batch at most [default: 10000]
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_buffer_size: Option<usize>,

    /// How many events a batch has at most [default: 400]
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_max_size: Option<usize>,

    /// How long a batch waits to be full [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub audit_webhook_batch_max_wait: Option<Duration>,

    /// Whether batches are held back that are too many [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_webhook_batch_throttle_enable: Option<bool>,

    /// How many batches are sent in a second [default: 10]
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_throttle_qps: Option<f32>,

    /// How many batches are sent at once after a pause [default: 15]
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_throttle_burst: Option<u32>,

    /// Whether events that are too large are cut
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_webhook_truncate_enabled: Option<bool>,

    /// The size of a batch in bytes [default: 10485760]
    #[arg(long, value_name = "BYTES")]
    pub audit_webhook_truncate_max_batch_size: Option<usize>,

    /// The size in bytes from which an event is too large [default: 102400]
    #[arg(long, value_name = "BYTES")]
    pub audit_webhook_truncate_max_event_size: Option<usize>,

    /// The form of events for the webhook [default: audit.k8s.io/v1]
    #[arg(long, value_name = "VERSION")]
    pub audit_webhook_version: Option<String>,
}

/// What the flags of one place for events say of when they are sent.
struct Way<'a> {
    mode: &'a Option<String>,
    buffer_size: Option<usize>,
    max_size: Option<usize>,
    max_wait: Option<Duration>,
    throttle: (Option<f32>, Option<u32>),
    is_throttled: Option<bool>,
}

impl Way<'_> {
    fn mode(
        &self,
        flag: &'static str,
        plugin: &str,
        before: &Mode,
        batch: Batch,
    ) -> Result<Mode, OptionError> {
        let batch = match before {
            Mode::Batch(batch) => *batch,
            _ => batch,
        };
        let (qps, burst) = self.throttle;
        let (rate, at_once) = batch.throttle.unwrap_or_default();
        let throttle = (qps.unwrap_or(rate), burst.unwrap_or(at_once));
        let batch = Batch {
            buffer_size: self.buffer_size.unwrap_or(batch.buffer_size),
            max_size: self.max_size.unwrap_or(batch.max_size),
            max_wait: self.max_wait.unwrap_or(batch.max_wait),
            throttle: self.is_throttled.unwrap_or(batch.throttle.is_some()).then_some(throttle),
            concurrent: batch.concurrent,
        };
        match (self.mode, before) {
            (Some(mode), _) => {
                Mode::named(mode, plugin, batch).map_err(|error| OptionError::new(flag, error))
            }
            (None, Mode::Batch(_)) => Ok(Mode::Batch(batch)),
            (None, other) => Ok(other.clone()),
        }
    }
}

fn truncate(enabled: Option<bool>, batch: Option<usize>, event: Option<usize>, before: Truncate) -> Truncate {
    Truncate {
        enabled: enabled.unwrap_or(before.enabled),
        max_batch_size: batch.unwrap_or(before.max_batch_size),
        max_event_size: event.unwrap_or(before.max_event_size),
    }
}

impl Topic for Audit {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        let options = &mut config.audit;
        if self.audit_policy_file.is_some() {
            options.policy_file.clone_from(&self.audit_policy_file);
        }
        let log = &mut options.log;
        set(&mut log.path, self.audit_log_path.as_ref());
        set(&mut log.max_age, self.audit_log_maxage.as_ref());
        set(&mut log.max_backups, self.audit_log_maxbackup.as_ref());
        set(&mut log.max_size, self.audit_log_maxsize.as_ref());
        set(&mut log.format, self.audit_log_format.as_ref());
        set(&mut log.compress, self.audit_log_compress.as_ref());
        set(&mut log.version, self.audit_log_version.as_ref());
        let way = Way {
            mode: &self.audit_log_mode,
            buffer_size: self.audit_log_batch_buffer_size,
            max_size: self.audit_log_batch_max_size,
            max_wait: self.audit_log_batch_max_wait,
            throttle: (self.audit_log_batch_throttle_qps, self.audit_log_batch_throttle_burst),
            is_throttled: self.audit_log_batch_throttle_enable,
        };
        log.mode = way.mode("audit-log-mode", "log", &log.mode, Batch::LOG)?;
        log.truncate = truncate(
            self.audit_log_truncate_enabled,
            self.audit_log_truncate_max_batch_size,
            self.audit_log_truncate_max_event_size,
            log.truncate,
        );
        let webhook = &mut options.webhook;
        if self.audit_webhook_config_file.is_some() {
            webhook.config_file.clone_from(&self.audit_webhook_config_file);
        }
        set(&mut webhook.initial_backoff, self.audit_webhook_initial_backoff.as_ref());
        set(&mut webhook.version, self.audit_webhook_version.as_ref());
        let way = Way {
            mode: &self.audit_webhook_mode,
            buffer_size: self.audit_webhook_batch_buffer_size,
            max_size: self.audit_webhook_batch_max_size,
            max_wait: self.audit_webhook_batch_max_wait,
            throttle: (self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst),
            is_throttled: self.audit_webhook_batch_throttle_enable,
        };
        webhook.mode = way.mode("audit-webhook-mode", "webhook", &webhook.mode, Batch::WEBHOOK)?;
        webhook.truncate = truncate(
            self.audit_webhook_truncate_enabled,
            self.audit_webhook_truncate_max_batch_size,
            self.audit_webhook_truncate_max_event_size,
            webhook.truncate,
        );
        Ok(())
    }
}

/// Takes what is said, and leaves what is not.
fn set<T: Clone>(there: &mut T, said: Option<&T>) {
    if let Some(said) = said {
        there.clone_from(said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;

    fn applied(flags: &[&str]) -> Result<Config, String> {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let mut config = Config::default();
        Options::of(&flags)?.apply(&mut config).map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn flags_say_where_events_go_and_how() {
        let config = applied(&[
            "audit-policy-file=/p",
            "audit-log-path=/l",
            "audit-log-maxsize=5",
            "audit-log-mode=batch",
            "audit-log-truncate-enabled",
            "audit-webhook-config-file=/w",
            "audit-webhook-batch-max-wait=1m30s",
            "audit-webhook-batch-throttle-enable=false",
        ])
        .expect("sound");
        let options = config.audit;
        assert_eq!((options.policy_file, options.log.path), (Some("/p".into()), "/l".into()));
        assert_eq!(options.log.max_size, 5);
        assert_eq!(options.log.mode, Mode::Batch(Batch::LOG));
        assert!(options.log.truncate.enabled);
        let wanted = Batch { max_wait: Duration::from_secs(90), throttle: None, ..Batch::WEBHOOK };
        assert_eq!(options.webhook.mode, Mode::Batch(wanted));
        assert_eq!(
            applied(&["audit-log-mode=later"]).err().as_deref(),
            Some(
                "--audit-log-mode: invalid audit log mode later, allowed modes are \"batch,blocking,blocking-strict\""
            )
        );
    }
}
