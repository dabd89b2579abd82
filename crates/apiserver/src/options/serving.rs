//! Where the server listens, by which certificates it is known, and where others reach it.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::Ipv4Net;

use super::{OptionError, Topic, pair, read};
use crate::server::Config;

#[derive(Args, Clone, Debug, Default)]
pub struct Serving {
    /// The address to listen at [default: 0.0.0.0]
    #[arg(long, value_name = "ADDRESS")]
    pub bind_address: Option<IpAddr>,

    /// The port to listen at [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub secure_port: Option<u16>,

    /// The address by which the cluster's members reach this server [default: this machine's]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise_address: Option<IpAddr>,

    /// The addresses of Services
    #[arg(long, value_name = "RANGE")]
    pub service_cluster_ip_range: Option<Ipv4Net>,

    /// The certificate of the server, and those between it and its authority, PEM [default: signed anew at each start]
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,

    /// The key of --tls-cert-file
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,

    /// The certificate by which kubelets know this server
    #[arg(long, value_name = "FILE", requires = "kubelet_client_key")]
    pub kubelet_client_certificate: Option<PathBuf>,

    /// The key of --kubelet-client-certificate
    #[arg(long, value_name = "FILE", requires = "kubelet_client_certificate")]
    pub kubelet_client_key: Option<PathBuf>,

    /// The authority of the kubelets' serving certificates
    #[arg(long, value_name = "FILE")]
    pub kubelet_certificate_authority: Option<PathBuf>,
}

impl Topic for Serving {
    fn apply(&self, config: &mut Config) -> Result<(), OptionError> {
        if let Some(address) = self.advertise_address {
            config.advertise.set_ip(address);
        }
        if let Some(range) = self.service_cluster_ip_range {
            config.service_cidr = range.to_string();
        }
        if let (Some(certificate), Some(key)) = (&self.tls_cert_file, &self.tls_private_key_file) {
            config.serving = Some(pair(("tls-cert-file", certificate), ("tls-private-key-file", key))?);
        }
        if let (Some(certificate), Some(key)) = (&self.kubelet_client_certificate, &self.kubelet_client_key) {
            let pair = pair(("kubelet-client-certificate", certificate), ("kubelet-client-key", key))?;
            config.node_client = Some(pair);
        }
        if let Some(file) = &self.kubelet_certificate_authority {
            config.node_ca = read("kubelet-certificate-authority", file)?;
        }
        Ok(())
    }
}
