//! Admission: what a cluster adds to objects and refuses, whatever their kind's own rules say. The plugins stand in a
//! table, in upstream's order; a new one is a file and a line.

mod attributes;
mod certificates;
mod claim_access;
mod claim_resize;
mod escalation;
mod ingress_class;
mod limit_ranger;
pub(crate) mod lookup;
mod matching;
mod metrics;
mod namespace_lifecycle;
mod node_restriction;
mod pod_defaults;
mod pod_resize;
mod pod_security;
mod pod_topology;
pub mod policy;
mod priority;
mod resource_quota;
mod review;
mod runtime_class;
mod service_account;
mod storage_class;
mod versions;
pub(crate) mod webhook;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use krate_api::{Kind, StatusError};
use prometheus::proto::MetricFamily;

use crate::auth::Authorizer;
use crate::instruments::Gathered;
use crate::kinds::Kinds;
use crate::registry::erased::Object;
use attributes::Asked;
pub use attributes::{Attributes, Body};
use metrics::{Metrics, Phase, Took};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A connection to what an object stands for: exec, attach, port-forward, proxy.
    Connect,
}

/// A plugin implements what it means: changes to an object, or a judgement of it.
#[async_trait]
pub trait Admit: Send + Sync {
    async fn mutate(
        &self,
        _attributes: &Attributes,
        _object: &mut dyn Object,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        Ok(())
    }

    /// What is asked before a deletion or a connection: there is no object that could be changed, but the options of a
    /// connection could.
    async fn consult(
        &self,
        _attributes: &mut Attributes,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        Ok(())
    }

    /// `object` is absent for a deletion, `old` for a creation.
    async fn validate(
        &self,
        _attributes: &Attributes,
        _object: Option<&dyn Object>,
        _old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        Ok(())
    }
}

const CREATE: &[Operation] = &[Operation::Create];
const UPDATE: &[Operation] = &[Operation::Update];
const WRITE: &[Operation] = &[Operation::Create, Operation::Update];
const ALL: &[Operation] = &[Operation::Create, Operation::Update, Operation::Delete];
const EVERYTHING: &[Operation] =
    &[Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];

/// A plugin by its upstream name, with the operations that it is asked about.
struct Plugin {
    name: &'static str,
    operations: &'static [Operation],
    admit: Box<dyn Admit>,
    /// What it took; none for what upstream does elsewhere.
    took: Option<Took>,
    /// When it has a part, and in which resources; in all where none is named.
    phases: &'static [Phase],
    resources: &'static [&'static str],
}

fn plugin(name: &'static str, operations: &'static [Operation], admit: impl Admit + 'static) -> Plugin {
    let known = NAMES.iter().find(|(known, ..)| *known == name);
    let (phases, resources) = known.map_or((BOTH, ANY), |(_, _, phases, resources)| (*phases, *resources));
    let took = known.map(|_| Took::default());
    Plugin { name, operations, admit: Box::new(admit), took, phases, resources }
}

impl Plugin {
    /// Whether it has a part in what is done to a kind.
    fn is_about(&self, kind: &Kind) -> bool {
        self.resources.is_empty() || self.resources.contains(&kind.plural)
    }
}

/// Which plugins are asked besides the default ones, and which of those are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub enabled: Vec<String>,
    pub disabled: Vec<String>,
    pub tolerated: Tolerated,
}

/// For how long pods bear a node that is away where they do not say so, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerated {
    pub not_ready: i64,
    pub unreachable: i64,
}

impl Default for Tolerated {
    fn default() -> Self {
        Tolerated { not_ready: 300, unreachable: 300 }
    }
}

const MUTATES: &[Phase] = &[Phase::Mutate];
const VALIDATES: &[Phase] = &[Phase::Validate];
const BOTH: &[Phase] = &[Phase::Mutate, Phase::Validate];

/// Resources, all of them.
const ANY: &[&str] = &[];
const PODS: &[&str] = &["pods"];
const CLAIMS: &[&str] = &["persistentvolumeclaims"];
const REQUESTS: &[&str] = &["certificatesigningrequests"];

/// The plugins, in the order in which they are asked, whether they are by default, and in which phases and of which
/// resources they have a part.
const NAMES: &[(&str, bool, &[Phase], &[&str])] = &[
    ("NamespaceLifecycle", true, BOTH, ANY),
    ("LimitRanger", true, BOTH, &["pods", "persistentvolumeclaims"]),
    ("ServiceAccount", true, BOTH, PODS),
    ("NodeRestriction", false, BOTH, ANY),
    ("TaintNodesByCondition", true, MUTATES, &["nodes"]),
    ("AlwaysPullImages", false, MUTATES, PODS),
    ("PodSecurity", true, VALIDATES, ANY),
    ("Priority", true, BOTH, &["pods", "priorityclasses"]),
    ("DefaultTolerationSeconds", true, MUTATES, PODS),
    ("DefaultStorageClass", true, MUTATES, CLAIMS),
    ("StorageObjectInUseProtection", true, MUTATES, ANY),
    ("PersistentVolumeClaimResize", true, VALIDATES, CLAIMS),
    ("RuntimeClass", true, BOTH, PODS),
    ("CertificateApproval", true, VALIDATES, REQUESTS),
    ("CertificateSigning", true, VALIDATES, REQUESTS),
    ("ClusterTrustBundleAttest", true, VALIDATES, &["clustertrustbundles"]),
    ("CertificateSubjectRestriction", true, VALIDATES, REQUESTS),
    ("DefaultIngressClass", true, MUTATES, &["ingresses"]),
    ("PodTopologyLabels", true, MUTATES, PODS),
    ("NodeDeclaredFeatureValidator", true, VALIDATES, PODS),
    ("PodResizeValidator", true, VALIDATES, PODS),
    ("MutatingAdmissionPolicy", true, MUTATES, ANY),
    ("MutatingAdmissionWebhook", true, MUTATES, ANY),
    ("ValidatingAdmissionPolicy", true, VALIDATES, ANY),
    ("ValidatingAdmissionWebhook", true, VALIDATES, ANY),
    ("ResourceQuota", true, VALIDATES, ANY),
];

/// Whether there is a plugin of this name.
pub fn is_known(plugin: &str) -> bool {
    NAMES.iter().any(|(name, ..)| *name == plugin)
}

/// Whether a plugin's work is done by the kinds' own strategies, so that it cannot be left out.
pub fn is_fixed(plugin: &str) -> bool {
    plugin == "StorageObjectInUseProtection"
}

impl Settings {
    fn asks(&self, plugin: &str) -> bool {
        let has = |list: &[String]| list.iter().any(|name| name == plugin);
        // What stands in no table cannot be turned off.
        let by_default = NAMES.iter().find(|(name, ..)| *name == plugin).is_none_or(|(_, on, ..)| *on);
        has(&self.enabled) || (by_default && !has(&self.disabled))
    }
}

/// The plugins, in the order in which they are asked.
pub struct Chain {
    plugins: Vec<Plugin>,
    /// What all plugins took together.
    took: Took,
    metrics: Arc<Metrics>,
}

impl Chain {
    /// Upstream's default plugins, and what the settings say. Must be called within a tokio runtime.
    ///
    /// StorageObjectInUseProtection is not among them: its finalizers are given by the kinds' own strategies.
    pub fn new(kinds: &Arc<Kinds>, authorizer: &Authorizer, settings: &Settings) -> Self {
        let kinds = || Arc::clone(kinds);
        let authorizer = || authorizer.clone();
        let metrics = Arc::new(Metrics::default());
        let counts = || Arc::clone(&metrics);
        let mut plugins = vec![
            plugin("PodCertificateSigning", UPDATE, certificates::PodCertificateSigning(authorizer())),
            plugin("NamespaceLifecycle", ALL, namespace_lifecycle::NamespaceLifecycle::new(kinds())),
            plugin("LimitRanger", WRITE, limit_ranger::LimitRanger::new(kinds())),
            plugin("ServiceAccount", WRITE, service_account::ServiceAccounts::new(kinds())),
            plugin("NodeRestriction", ALL, node_restriction::NodeRestriction::new(kinds(), authorizer())),
            plugin("TaintNodesByCondition", CREATE, pod_defaults::TaintNodesByCondition),
            plugin("AlwaysPullImages", WRITE, pod_defaults::AlwaysPullImages),
            plugin("PodSecurity", WRITE, pod_security::PodSecurity::new(kinds(), counts())),
            plugin("Priority", ALL, priority::Priority::new(kinds())),
            plugin(
                "DefaultTolerationSeconds",
                WRITE,
                pod_defaults::DefaultTolerationSeconds(settings.tolerated),
            ),
            plugin("DefaultStorageClass", CREATE, storage_class::DefaultStorageClass::new(kinds())),
            plugin(
                "PersistentVolumeClaimResize",
                UPDATE,
                claim_resize::PersistentVolumeClaimResize::new(kinds()),
            ),
            plugin("RuntimeClass", CREATE, runtime_class::RuntimeClasses::new(kinds())),
            plugin("CertificateApproval", UPDATE, certificates::CertificateApproval(authorizer())),
            plugin("CertificateSigning", UPDATE, certificates::CertificateSigning(authorizer())),
            plugin("ClusterTrustBundleAttest", WRITE, certificates::ClusterTrustBundleAttest(authorizer())),
            plugin("CertificateSubjectRestriction", CREATE, certificates::CertificateSubjectRestriction),
            plugin("DefaultIngressClass", CREATE, ingress_class::DefaultIngressClass::new(kinds())),
            plugin("PodTopologyLabels", CREATE, pod_topology::PodTopologyLabels::new(kinds())),
            plugin("NodeDeclaredFeatureValidator", UPDATE, pod_resize::NodeDeclaredFeatureValidator(kinds())),
            plugin("PodResizeValidator", UPDATE, pod_resize::PodResizeValidator(kinds())),
            plugin(
                "MutatingAdmissionPolicy",
                WRITE,
                policy::mutating::MutatingPolicies::new(kinds(), authorizer(), counts()),
            ),
            plugin(
                "MutatingAdmissionWebhook",
                EVERYTHING,
                webhook::mutating::MutatingWebhooks::new(kinds(), authorizer(), counts()),
            ),
            plugin(
                "ValidatingAdmissionPolicy",
                EVERYTHING,
                policy::validating::ValidatingPolicies::new(kinds(), authorizer(), counts()),
            ),
            plugin(
                "ValidatingAdmissionWebhook",
                EVERYTHING,
                webhook::validating::ValidatingWebhooks::new(kinds(), authorizer(), counts()),
            ),
            plugin("Escalation", WRITE, escalation::Escalation(authorizer())),
            plugin("ClaimAccess", WRITE, claim_access::ClaimAccess::new(kinds(), authorizer())),
            plugin("ResourceQuota", WRITE, resource_quota::ResourceQuotas::new(kinds())),
        ];
        plugins.retain(|plugin| settings.asks(plugin.name));
        Chain { plugins, took: Took::default(), metrics }
    }

    /// What is counted of plugins, webhooks and policies.
    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        let plugins = self.plugins.iter().filter_map(|plugin| Some((plugin.name, plugin.took.as_ref()?)));
        let mut all = self.metrics.families.0.gather();
        all.extend(metrics::gather(plugins, &self.took).into_iter().filter_map(Gathered::family));
        all
    }

    /// Whether a plugin of this name is among them.
    pub fn has(&self, plugin: &str) -> bool {
        self.plugins.iter().any(|there| there.name == plugin)
    }

    /// Those that have a part in a phase of what is done.
    fn asked<'c>(
        &'c self,
        phase: Phase,
        attributes: &Attributes,
    ) -> impl Iterator<Item = &'c Plugin> + use<'c> {
        let (operation, kind) = (attributes.operation, attributes.kind);
        let in_phase =
            move |plugin: &&Plugin| plugin.operations.contains(&operation) && plugin.phases.contains(&phase);
        self.plugins.iter().filter(in_phase).filter(move |plugin| {
            let about = plugin.is_about(kind);
            if let (false, Some(took)) = (about, &plugin.took) {
                // It would have nothing to say, and is as good as asked.
                took.done(phase, operation, false, Duration::ZERO);
            }
            about
        })
    }

    /// # Errors
    /// A plugin refuses.
    pub async fn mutate(
        &self,
        attributes: &Attributes,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let mut watch = Watch::start(self, Phase::Mutate, attributes.operation);
        loop {
            for plugin in self.asked(Phase::Mutate, attributes) {
                let answer = plugin.admit.mutate(attributes, object, old).await;
                watch.asked(plugin, answer.is_err());
                answer.inspect_err(|error| refused(plugin, error))?;
            }
            // What a webhook has changed, others may have something to say to.
            if !attributes.begins_again() {
                return Ok(());
            }
        }
    }

    /// Asks about a deletion or a connection those who would change an object.
    ///
    /// # Errors
    /// A plugin refuses.
    pub async fn consult(
        &self,
        attributes: &mut Attributes,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let mut watch = Watch::start(self, Phase::Mutate, attributes.operation);
        for plugin in self.asked(Phase::Mutate, attributes) {
            let answer = plugin.admit.consult(attributes, old).await;
            watch.asked(plugin, answer.is_err());
            answer.inspect_err(|error| refused(plugin, error))?;
        }
        Ok(())
    }

    /// # Errors
    /// A plugin refuses.
    pub async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let mut watch = Watch::start(self, Phase::Validate, attributes.operation);
        for plugin in self.asked(Phase::Validate, attributes) {
            let answer = plugin.admit.validate(attributes, object, old).await;
            watch.asked(plugin, answer.is_err());
            answer.inspect_err(|error| refused(plugin, error))?;
        }
        Ok(())
    }
}

/// Notes what each plugin takes, and all of them when it goes. The clock is read once a plugin that has a part.
struct Watch<'c> {
    chain: &'c Chain,
    phase: Phase,
    operation: Operation,
    began: Instant,
    last: Instant,
    rejected: bool,
}

impl<'c> Watch<'c> {
    fn start(chain: &'c Chain, phase: Phase, operation: Operation) -> Self {
        let now = Instant::now();
        Watch { chain, phase, operation, began: now, last: now, rejected: false }
    }

    fn asked(&mut self, plugin: &Plugin, rejected: bool) {
        self.rejected |= rejected;
        if let Some(took) = &plugin.took {
            let now = Instant::now();
            took.done(self.phase, self.operation, rejected, now - self.last);
            self.last = now;
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.chain.took.done(self.phase, self.operation, self.rejected, self.began.elapsed());
    }
}

fn refused(plugin: &Plugin, error: &StatusError) {
    tracing::debug!(plugin = plugin.name, %error, "admission refused");
}
