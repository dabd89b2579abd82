//! What is told of attaching: how many volumes are wanted and attached, where they are in use, and how often one was
//! detached without its node having let go of it.

use std::sync::Arc;

use krate_metrics::Stability::Alpha;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::wanted::{Informers, Volume};
use crate::meta::{is_deleting, node_of};

/// Why a volume is detached that its node may still use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// The node has had time enough.
    Timeout,
    /// Somebody says that the node is out of service.
    OutOfService,
}

#[derive(Clone)]
pub struct Figures {
    informers: Arc<Informers>,
    forced: IntCounterVec,
    in_use: IntGaugeVec,
    total: IntGaugeVec,
}

impl Figures {
    /// # Panics
    /// Never: the names are good.
    pub fn new(informers: Informers) -> Self {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            IntGaugeVec::new(Opts::new(name, Alpha.help(help)), labels).expect("the name is good")
        };
        let forced = Opts::new(
            "attach_detach_controller_attachdetach_controller_forced_detaches",
            Alpha.help("Number of times the A/D Controller performed a forced detach"),
        );
        Figures {
            informers: Arc::new(informers),
            forced: IntCounterVec::new(forced, &["reason"]).expect("the name is good"),
            in_use: gauges(
                "storage_count_attachable_volumes_in_use",
                "Measure number of volumes in use",
                &["node", "volume_plugin"],
            ),
            total: gauges(
                "attachdetach_controller_total_volumes",
                "Number of volumes in A/D Controller",
                &["plugin_name", "state"],
            ),
        }
    }

    pub fn forced(&self, why: Forced) {
        let reason = match why {
            Forced::Timeout => "timeout",
            Forced::OutOfService => "out-of-service",
        };
        self.forced.with_label_values(&[reason]).inc();
    }

    fn count(&self) {
        self.in_use.reset();
        self.total.reset();
        for pod in self.informers.pods.list() {
            let Some(node) = node_of(&pod) else { continue };
            for volume in self.informers.of_pod(&pod) {
                self.in_use.with_label_values(&[node, &plugin(&volume)]).inc();
            }
        }
        let mut volumes: Vec<Volume> =
            self.informers.volumes.list().iter().filter_map(|pv| Volume::of(pv)).collect();
        volumes.sort_unstable();
        volumes.dedup();
        for volume in volumes {
            let wanted = self.informers.wanted(&volume).len();
            if wanted > 0 {
                let total = self.total.with_label_values(&[&*plugin(&volume), "desired_state_of_world"]);
                total.add(i64::try_from(wanted).unwrap_or(i64::MAX));
            }
        }
        for attachment in self.informers.attachments.list() {
            if !is_deleting(&*attachment)
                && let Some(volume) = self.informers.of_attachment(&attachment)
            {
                self.total.with_label_values(&[&*plugin(&volume), "actual_state_of_world"]).inc();
            }
        }
    }
}

/// How metrics name the plugin of a volume.
fn plugin(volume: &Volume) -> String {
    format!("kubernetes.io/csi:{}", volume.driver)
}

impl Collector for Figures {
    fn desc(&self) -> Vec<&Desc> {
        [self.forced.desc(), self.in_use.desc(), self.total.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.count();
        [self.forced.collect(), self.in_use.collect(), self.total.collect()].concat()
    }
}
