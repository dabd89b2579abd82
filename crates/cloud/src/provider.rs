//! The door: upstream's cloud provider interface, as Rust has it. A provider offers the parts that it has.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, NodeAddress, Service};

/// Why a provider could not do what was asked. The text is shown to the user in an event.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProviderError(pub String);

type Result<T> = std::result::Result<T, ProviderError>;

/// A place where clusters run.
pub trait Provider: Send + Sync + 'static {
    /// Its name, the scheme of its provider ids.
    fn name(&self) -> &'static str;

    fn load_balancers(&self) -> Option<&dyn LoadBalancers> {
        None
    }

    fn instances(&self) -> Option<&dyn Instances> {
        None
    }

    fn routes(&self) -> Option<&dyn Routes> {
        None
    }
}

/// Where a load balancer is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingress {
    Ip(String),
    Hostname(String),
}

/// Load balancers for Services. Every call may come again with the same arguments.
#[async_trait]
pub trait LoadBalancers: Send + Sync {
    /// Where the Service's load balancer is reached now; none if it has none.
    async fn get(&self, service: &Service) -> Result<Option<Vec<Ingress>>>;

    /// Makes the Service's load balancer, or brings it in line with the Service and the nodes that may take traffic.
    async fn ensure(&self, service: &Service, nodes: &[Node]) -> Result<Vec<Ingress>>;

    /// Takes it away. None to take away is no error.
    async fn delete(&self, service: &Service) -> Result<()>;
}

/// What a provider knows of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    pub provider_id: String,
    pub instance_type: String,
    pub zone: String,
    pub region: String,
    pub addresses: Vec<Address>,
}

/// An address of a machine: its kind as a Node's status has it (`InternalIP`, `ExternalIP`, `Hostname`), and itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub kind: String,
    pub address: String,
}

impl From<Address> for NodeAddress {
    fn from(a: Address) -> NodeAddress {
        NodeAddress { type_: a.kind, address: a.address }
    }
}

/// The machines behind nodes.
#[async_trait]
pub trait Instances: Send + Sync {
    /// None if there is no such machine any more.
    async fn get(&self, node: &Node) -> Result<Option<Instance>>;

    async fn is_shut_down(&self, node: &Node) -> Result<bool>;
}

/// A way to a node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: String,
    pub node: String,
    pub destination: String,
}

/// Routes of the provider's network to nodes' pods.
#[async_trait]
pub trait Routes: Send + Sync {
    async fn list(&self, cluster: &str) -> Result<Vec<Route>>;
    async fn create(&self, cluster: &str, route: &Route) -> Result<()>;
    async fn delete(&self, cluster: &str, route: &Route) -> Result<()>;
}
