//! The runtime's door to the pod network. The network's range is given by the control plane once the node is known, so
//! that the runtime may start before it.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use krate_network::{HostPort, PodNetwork as Network, Protocol};
use krate_runtime::{
    NetworkError, PodAddresses, PodIdentity, PodNetwork, PortMapping, Protocol as PortProtocol,
};

/// A pod network that is not there until [`Late::set`].
#[derive(Clone, Default)]
pub struct Late(Arc<OnceLock<Network>>);

impl Late {
    pub fn set(&self, network: Network) -> &Network {
        self.0.get_or_init(|| network)
    }

    fn get(&self) -> Result<&Network, NetworkError> {
        self.0.get().ok_or_else(|| NetworkError("the node has no range of pod addresses yet".to_owned()))
    }
}

fn refused(error: krate_network::Error) -> NetworkError {
    NetworkError(error.to_string())
}

#[async_trait]
impl PodNetwork for Late {
    async fn attach(
        &self,
        pod: &PodIdentity,
        netns: &Path,
        ports: &[PortMapping],
    ) -> Result<PodAddresses, NetworkError> {
        let ports: Vec<HostPort> = ports.iter().map(host_port).collect::<Result<_, _>>()?;
        let ips = self.get()?.attach(&pod.sandbox_id, netns, &ports).await.map_err(refused)?;
        Ok(PodAddresses { ips })
    }

    async fn detach(&self, pod: &PodIdentity, _netns: Option<&Path>) -> Result<(), NetworkError> {
        self.get()?.detach(&pod.sandbox_id).await.map_err(refused)
    }

    async fn status(&self) -> Result<(), NetworkError> {
        self.get().map(drop)
    }
}

fn host_port(port: &PortMapping) -> Result<HostPort, NetworkError> {
    let host_ip = match port.host_ip {
        None => None,
        Some(IpAddr::V4(address)) if address.is_unspecified() => None,
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(address)) => {
            return Err(NetworkError(format!(
                "host ports on IPv6 addresses such as {address} are not served"
            )));
        }
    };
    Ok(HostPort {
        protocol: match port.protocol {
            PortProtocol::Tcp => Protocol::Tcp,
            PortProtocol::Udp => Protocol::Udp,
            PortProtocol::Sctp => Protocol::Sctp,
        },
        host_ip,
        host_port: port.host_port,
        pod_port: port.container_port,
    })
}
