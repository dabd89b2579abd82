//! ResourceQuota: what is made is charged to its namespace, before it is made.
//!
//! All charges pass one task, which takes those that wait together, checks them one after another against the
//! namespace's quotas, and writes what they use by one compare-and-set a quota. So nothing is given twice, whoever asks
//! at the same time, here or at another server of the same store.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use krate_api::quota::{self, Counted, Resource, Usage};
use krate_api::{Quantity, StatusError};
use krate_store::Revision;
use krate_store::cache::{Freshness, ListQuery, Scope};
use tokio::sync::{mpsc, oneshot};

use super::{Admit, Attributes, Operation};
use crate::kinds::Kinds;
use crate::path;
use crate::registry::erased::Object;
use crate::storage::{Outcome, Storage, refused};

/// How often usage is written anew when others wrote it meanwhile.
const ATTEMPTS: usize = 10;

pub struct ResourceQuotas {
    kinds: Arc<Kinds>,
    charges: mpsc::UnboundedSender<Charge>,
}

/// Something that is to be made.
struct Charge {
    attributes: Attributes,
    new: Box<dyn Object>,
    old: Option<Box<dyn Object>>,
    answer: oneshot::Sender<Result<(), StatusError>>,
}

impl ResourceQuotas {
    /// Must be called within a tokio runtime. The task ends with the plugin.
    pub fn new(kinds: Arc<Kinds>) -> Self {
        let (charges, waiting) = mpsc::unbounded_channel();
        tokio::spawn(work(Arc::clone(&kinds), waiting));
        ResourceQuotas { kinds, charges }
    }
}

/// Whether a request can use more than before.
fn charges(attributes: &Attributes, new: &dyn Object, old: Option<&dyn Object>) -> bool {
    let kind = attributes.kind;
    let core = |plural: &str| kind.group.is_empty() && kind.plural == plural;
    match (attributes.operation, attributes.subresource.as_str()) {
        (Operation::Create, "") => kind.plural != "events" && attributes.body.is_none(),
        (Operation::Update, "") if core("pods") => changes_scope(new, old),
        (Operation::Update, "") => {
            core("persistentvolumeclaims") || core("services") || kind.plural == "resourceclaims"
        }
        (Operation::Update, "resize") => core("pods"),
        (Operation::Update, "status") => core("persistentvolumeclaims"),
        _ => false,
    }
}

/// Whether a pod comes to be among those that end by themselves, or no longer is.
fn changes_scope(new: &dyn Object, old: Option<&dyn Object>) -> bool {
    let ends = |object: &dyn Object| object.is::<Pod>().is_some_and(quota::is_terminating);
    old.is_some_and(|old| ends(old) != ends(new))
}

#[async_trait]
impl Admit for ResourceQuotas {
    async fn validate(
        &self,
        attributes: &Attributes,
        object: Option<&dyn Object>,
        old: Option<&dyn Object>,
    ) -> Result<(), StatusError> {
        let Some(object) = object.filter(|_| !attributes.namespace.is_empty()) else { return Ok(()) };
        if !charges(attributes, object, old) {
            return Ok(());
        }
        if quotas(&self.kinds, &attributes.namespace, Freshness::Any).await?.is_empty() {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        let charge = Charge {
            attributes: attributes.clone(),
            new: object.boxed_clone(),
            old: old.map(Object::boxed_clone),
            answer,
        };
        let gone = || StatusError::internal("quota is no longer counted");
        self.charges.send(charge).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// A quota as it is charged.
struct Account {
    quota: ResourceQuota,
    revision: Revision,
    hard: Usage,
    used: Usage,
    changed: bool,
}

impl Account {
    fn name(&self) -> &str {
        self.quota.metadata.name.as_deref().unwrap_or_default()
    }
}

fn storage(kinds: &Kinds) -> Option<Arc<Storage>> {
    kinds.of("", "resourcequotas")
}

async fn quotas(kinds: &Kinds, namespace: &str, freshness: Freshness) -> Result<Vec<Account>, StatusError> {
    let Some(storage) = storage(kinds) else { return Ok(Vec::new()) };
    let list = storage.cache.list(&ListQuery::new(Scope::namespace(namespace), freshness)).await;
    let list = list.map_err(refused)?;
    let accounts = list.items.iter().filter_map(|cached| {
        let current = storage.decode(&cached.value, cached.revision).ok()?;
        let quota = current.object.is::<ResourceQuota>()?.clone();
        let status = quota.status.clone().unwrap_or_default();
        let (hard, used) = (quota::amounts(status.hard.as_ref()), quota::amounts(status.used.as_ref()));
        Some(Account { quota, revision: cached.revision, hard, used, changed: false })
    });
    Ok(accounts.collect())
}

async fn work(kinds: Arc<Kinds>, mut waiting: mpsc::UnboundedReceiver<Charge>) {
    while let Some(first) = waiting.recv().await {
        let mut by_namespace: BTreeMap<String, Vec<Charge>> = BTreeMap::new();
        by_namespace.entry(first.attributes.namespace.clone()).or_default().push(first);
        while let Ok(next) = waiting.try_recv() {
            by_namespace.entry(next.attributes.namespace.clone()).or_default().push(next);
        }
        for (namespace, charges) in by_namespace {
            settle(&kinds, &namespace, charges).await;
        }
    }
}

/// Answers all charges of a namespace.
async fn settle(kinds: &Kinds, namespace: &str, mut charges: Vec<Charge>) {
    let mut wanted: Option<Vec<String>> = None;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let mut accounts = match quotas(kinds, namespace, Freshness::Latest).await {
            Ok(accounts) => accounts,
            Err(error) => {
                last = Some(error);
                break;
            }
        };
        // What was charged to the other quotas is charged.
        if let Some(wanted) = &wanted {
            accounts.retain(|account| wanted.iter().any(|name| name == account.name()));
        }
        let mut pending = Vec::new();
        for charge in charges {
            match check(&mut accounts, &charge) {
                Ok(true) => pending.push(charge),
                Ok(false) => drop(charge.answer.send(Ok(()))),
                Err(error) => drop(charge.answer.send(Err(error))),
            }
        }
        charges = pending;
        if charges.is_empty() {
            return;
        }
        let mut again = Vec::new();
        for account in accounts.into_iter().filter(|account| account.changed) {
            match write(kinds, &account).await {
                Ok(true) => {}
                Ok(false) => again.push(account.name().to_owned()),
                Err(error) => {
                    again.push(account.name().to_owned());
                    last = Some(error);
                }
            }
        }
        if again.is_empty() {
            for charge in charges {
                drop(charge.answer.send(Ok(())));
            }
            return;
        }
        wanted = Some(again);
    }
    for charge in charges {
        let error = last.clone().unwrap_or_else(|| {
            let kind = krate_api::kinds::RESOURCE_QUOTA;
            let name = wanted.iter().flatten().next().map_or("", String::as_str);
            StatusError::conflict(
                kind.group,
                kind.plural,
                name,
                "the quota is written by others all the time",
            )
        });
        drop(charge.answer.send(Err(error)));
    }
}

/// Writes what is used. False if somebody else was first.
async fn write(kinds: &Kinds, account: &Account) -> Result<bool, StatusError> {
    let Some(storage) = storage(kinds) else { return Ok(true) };
    let mut quota = account.quota.clone();
    let used = account.used.iter().map(|(name, amount)| (name.clone(), amount.into())).collect();
    quota.status.get_or_insert_default().used = Some(used);
    path::owned_by_server(storage.kind(), &account.quota, &mut quota, "status", &[&["spec"]])?;
    let value = storage.to_value(&mut quota).await?;
    Ok(matches!(storage.replace(&quota, value, account.revision).await?, Outcome::Done(_)))
}

fn counted(object: &dyn Object) -> Counted<'_> {
    if let Some(pod) = object.is::<Pod>() {
        Counted::Pod(pod)
    } else if let Some(claim) = object.is::<PersistentVolumeClaim>() {
        Counted::Claim(claim)
    } else if let Some(service) = object.is::<Service>() {
        Counted::Service(service)
    } else if let Some(claim) = object.is::<ResourceClaim>() {
        Counted::Devices(claim)
    } else {
        Counted::Other
    }
}

/// The quotas that count an object, each with whether it counted what was there before.
fn concerned(
    accounts: &[Account],
    attributes: &Attributes,
    object: Counted<'_>,
    old: Option<Counted<'_>>,
) -> Result<Vec<(usize, bool)>, StatusError> {
    let resource = Resource::new(attributes.kind.group, attributes.kind.plural);
    let mut concerned = Vec::new();
    for (i, account) in accounts.iter().enumerate() {
        let spec = account.quota.spec.clone().unwrap_or_default();
        let tracked: Vec<&str> =
            account.hard.keys().map(String::as_str).filter(|name| resource.tracks(name)).collect();
        if tracked.is_empty() || !quota::in_scope(&spec, object) {
            continue;
        }
        if let Some(missing) = quota::missing(object, tracked.iter().copied()) {
            let why = format!("failed quota: {}: must specify {missing}", account.name());
            return Err(attributes.forbidden(why));
        }
        if tracked.iter().any(|name| !account.used.contains_key(*name)) {
            let why =
                format!("status unknown for quota: {}, resources: {}", account.name(), tracked.join(","));
            return Err(attributes.forbidden(why));
        }
        concerned.push((i, old.is_some_and(|old| quota::in_scope(&spec, old))));
    }
    Ok(concerned)
}

/// Charges one request to all quotas that count it, or to none. False if there is nothing to write for it.
fn check(accounts: &mut [Account], charge: &Charge) -> Result<bool, StatusError> {
    let attributes = &charge.attributes;
    let resource = Resource::new(attributes.kind.group, attributes.kind.plural);
    let (object, old) = (counted(&*charge.new), charge.old.as_ref().map(|old| counted(&**old)));
    let now = jiff::Timestamp::now();
    let concerned = concerned(accounts, attributes, object, old)?;
    let whole = quota::usage(&resource, object, now);
    let negative: Vec<&str> =
        whole.iter().filter(|(_, amount)| amount.signum() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        let why = format!("quota usage is negative for resource(s): {}", negative.join(","));
        return Err(attributes.forbidden(why));
    }
    let mut grown = whole.clone();
    for (name, was) in old.iter().flat_map(|old| quota::usage(&resource, *old, now)) {
        if let Some(amount) = grown.get_mut(&name) {
            *amount = amount.sub(&was);
        }
    }
    let mut charged = Vec::new();
    for (i, counted_before) in concerned {
        let account = &accounts[i];
        let more = if counted_before { &grown } else { &whole };
        let counts = |name: &str, amount: &Quantity| amount.signum() > 0 && account.hard.contains_key(name);
        let asked: Usage =
            more.iter().filter(|(name, amount)| counts(name.as_str(), amount)).map(own).collect();
        if asked.is_empty() {
            continue;
        }
        let mut used = account.used.clone();
        quota::add(&mut used, &asked);
        let exceeded: Vec<&String> = asked.keys().filter(|name| used[*name] > account.hard[*name]).collect();
        // What is told of an object is so already: it is counted, and not refused.
        if !exceeded.is_empty() && attributes.subresource != "status" {
            let show = |amounts: &Usage| -> String {
                let zero = Quantity::default();
                let each: Vec<String> = exceeded
                    .iter()
                    .map(|name| format!("{name}={}", amounts.get(*name).unwrap_or(&zero)))
                    .collect();
                each.join(",")
            };
            return Err(attributes.forbidden(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                account.name(),
                show(&asked),
                show(&account.used),
                show(&account.hard)
            )));
        }
        charged.push((i, used));
    }
    // A dry run is told what it would be told, and uses nothing.
    if attributes.dry_run || charged.is_empty() {
        return Ok(false);
    }
    for (i, used) in charged {
        accounts[i].used = used;
        accounts[i].changed = true;
    }
    Ok(true)
}

fn own((name, amount): (&String, &Quantity)) -> (String, Quantity) {
    (name.clone(), amount.clone())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Binding;
    use krate_api::kinds;
    use krate_api::quota::parsed;
    use serde_json::{Value, json};

    use super::*;
    use crate::admission::Body;
    use crate::registry::erased::Unstored;

    fn typed<T: serde::de::DeserializeOwned>(json: Value) -> T {
        serde_json::from_value(json).expect("an object")
    }

    fn account(spec: Value, hard: Value, used: Value) -> Account {
        let amounts = |amounts: &Value| -> Usage {
            let amounts: BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
                typed(amounts.clone());
            amounts.iter().map(|(name, raw)| (name.clone(), parsed(raw))).collect()
        };
        Account {
            hard: amounts(&hard),
            used: amounts(&used),
            quota: typed(json!({"metadata": {"name": "q"}, "spec": spec})),
            revision: Revision::ZERO,
            changed: false,
        }
    }

    fn charge(
        operation: Operation,
        kind: &'static krate_api::Kind,
        subresource: &str,
        new: Box<dyn Object>,
        old: Option<Box<dyn Object>>,
    ) -> Charge {
        let (answer, _) = oneshot::channel();
        let attributes = Attributes::for_test(operation, kind, subresource, "ns", "x");
        Charge { attributes, new, old, answer }
    }

    fn used(account: &Account, name: &str) -> String {
        account.used[name].to_string()
    }

    #[test]
    fn what_is_not_stored_is_not_charged() {
        let mut attributes = Attributes::for_test(Operation::Create, &kinds::BINDING, "", "ns", "x");
        let binding = Unstored(typed::<Binding>(json!({"metadata": {"name": "x"}, "target": {}})));
        let kind = kinds::BINDING.gvk();
        attributes.body = Some(Body { kind, decode: Unstored::<Binding>::decode });
        assert!(!charges(&attributes, &binding, None));
    }

    #[test]
    fn a_pod_that_comes_into_a_scope_is_charged_whole() {
        let pod = |seconds: Value| -> Pod {
            let spec = json!({"containers": [], "activeDeadlineSeconds": seconds});
            typed(json!({"metadata": {"name": "x"}, "spec": spec}))
        };
        let (plain, ends) = (pod(Value::Null), pod(5.into()));
        let attributes = Attributes::for_test(Operation::Update, &kinds::POD, "", "ns", "x");
        assert!(charges(&attributes, &ends, Some(&plain)));
        assert!(!charges(&attributes, &ends, Some(&ends)));
        let mut accounts = [
            account(json!({"scopes": ["Terminating"]}), json!({"pods": "1"}), json!({"pods": "0"})),
            account(json!({}), json!({"pods": "1"}), json!({"pods": "1"})),
        ];
        let update = charge(Operation::Update, &kinds::POD, "", Box::new(ends), Some(Box::new(plain)));
        assert!(check(&mut accounts, &update).expect("room"));
        assert_eq!(
            (used(&accounts[0], "pods"), used(&accounts[1], "pods")),
            ("1".to_owned(), "1".to_owned())
        );
        let refused = check(&mut accounts, &update).expect_err("no room").to_string();
        assert!(refused.ends_with("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"));
    }

    #[test]
    fn a_claims_status_is_counted_and_never_refused() {
        let claim = |given: &str| -> Box<dyn Object> {
            Box::new(typed::<PersistentVolumeClaim>(json!({"metadata": {"name": "x"},
                "spec": {"resources": {"requests": {"storage": "1Gi"}}},
                "status": {"allocatedResources": {"storage": given}}})))
        };
        let mut accounts =
            [account(json!({}), json!({"requests.storage": "1Gi"}), json!({"requests.storage": "1Gi"}))];
        let kind = &kinds::PERSISTENT_VOLUME_CLAIM;
        let told = charge(Operation::Update, kind, "status", claim("3Gi"), Some(claim("1Gi")));
        assert!(check(&mut accounts, &told).expect("no refusal"));
        assert_eq!(used(&accounts[0], "requests.storage"), "3Gi");
        let asked = charge(Operation::Update, kind, "", claim("5Gi"), Some(claim("3Gi")));
        assert!(check(&mut accounts, &asked).is_err());
    }

    #[test]
    fn what_is_not_counted_yet_is_told_with_all_that_the_quota_counts() {
        let hard = json!({"configmaps": "1", "count/pods": "2", "pods": "1"});
        let mut accounts = [account(json!({}), hard, json!({"pods": "0"}))];
        let pod: Pod = typed(json!({"metadata": {"name": "x"}, "spec": {"containers": []}}));
        let create = charge(Operation::Create, &kinds::POD, "", Box::new(pod), None);
        let refused = check(&mut accounts, &create).expect_err("not counted").to_string();
        assert!(refused.ends_with("status unknown for quota: q, resources: count/pods,pods"), "{refused}");
    }
}
