//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use krate_apiserver::options::{Logs, Options};
use krate_kubelet::{ProviderError, Providers};

use crate::datadir;

/// Kubernetes, written in Rust, in one binary.
#[derive(Debug, Parser)]
#[command(name = "krate", version, disable_version_flag = true, max_term_width = 100)]
pub struct Cli {
    /// Where the cluster keeps its state
    #[arg(long, global = true, env = "KRATE_DATA_DIR", default_value = datadir::DEFAULT, value_name = "DIR")]
    pub data_dir: PathBuf,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a whole cluster on this machine: control plane, node, network, DNS
    Up(Up),
    /// Start the API server alone, as upstream's kube-apiserver, on the store in the data directory
    #[command(name = "apiserver")]
    ApiServer(Box<Options>),
    /// Stop the cluster and all its pods; what it stored stays
    Down(Down),
    /// Show components, nodes, pods and versions
    Status(Status),
    /// Import and list container images
    #[command(subcommand)]
    Image(Image),
    /// Run the kubelet alone, for any API server and any container runtime
    Kubelet(Box<Kubelet>),
    /// Show the versions of krate and of the Kubernetes API that it serves
    Version(Version),
}

/// A duration as upstream's flags have it, such as 1h30m, that is more than none.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed = krate_api::duration::parse(text).and_then(|duration| Duration::try_from(duration).ok());
    parsed.filter(|duration| !duration.is_zero()).ok_or_else(|| format!("invalid duration {text:?}"))
}

#[derive(Args, Clone, Debug, Default)]
pub struct Up {
    /// Go to the background once the cluster is ready; the log goes to DIR/krate.log
    #[arg(long, short)]
    pub detach: bool,

    /// Where the API server listens [default: 0.0.0.0:6443, or what the cluster was first started with]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bind: Option<SocketAddr>,

    /// The addresses of Services [default: 10.96.0.0/16]
    #[arg(long, value_name = "RANGE")]
    pub service_cidr: Option<Ipv4Net>,

    /// The addresses of pods [default: 10.244.0.0/16]
    #[arg(long, value_name = "RANGE")]
    pub pod_cidr: Option<Ipv4Net>,

    /// The CRI socket of a container runtime to use instead of krate's own, such as
    /// unix:///run/containerd/containerd.sock; empty for krate's own again
    #[arg(long, value_name = "ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,

    /// Where that container runtime reads the configuration of its pod network from [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// Start the control plane alone, without a node; needs no root
    #[arg(long)]
    pub no_node: bool,

    /// Leave the user's own kubeconfig as it is
    #[arg(long)]
    pub no_kubeconfig: bool,

    /// How long certificates last that are asked for by certificate signing requests, at most
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = duration)]
    pub cluster_signing_duration: Duration,

    /// A flag of `krate apiserver` for this cluster's API server; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    pub kube_apiserver_arg: Vec<String>,

    /// A KubeletConfiguration for this node; what the cluster itself decides (addresses, certificates, directories) stays
    #[arg(long, value_name = "FILE")]
    pub kubelet_config: Option<PathBuf>,

    /// Drop-ins that go over it: files that end in .conf, in the order of their names
    #[arg(long, value_name = "DIR")]
    pub kubelet_config_dir: Option<PathBuf>,

    #[command(flatten)]
    pub providers: CredentialProviders,
}

/// Flags and their names are upstream's; all but the first ten are fields of the configuration file too, over which
/// they go.
#[derive(Args, Debug)]
pub struct Kubelet {
    /// How the API server is reached, and as whom; written, where --bootstrap-kubeconfig is used
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,

    /// As whom the node's certificate is asked for while the kubeconfig has none that is good
    #[arg(long, value_name = "FILE")]
    pub bootstrap_kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    pub logs: Logs,

    /// The initial configuration: a KubeletConfiguration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Drop-ins that go over it: files that end in .conf, in the order of their names
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,

    /// The node's name, instead of the machine's
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// The node's address
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,

    /// Labels of the node when it is registered
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub node_labels: Option<Vec<String>>,

    /// Where volumes and files of pods live
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,

    /// Where certificates are kept that are asked for, and the one that is made when none is given
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet/pki")]
    pub cert_dir: PathBuf,

    /// Whether the client certificate is asked for anew before it ends
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub rotate_certificates: Option<bool>,

    /// Whether the certificate that is served is asked of the API server, and asked for anew
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub rotate_server_certificates: Option<bool>,

    /// The address that is listened on
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,

    /// The port that is listened on
    #[arg(long)]
    pub port: Option<u16>,

    /// The port of health alone; 0 for none
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,

    /// The address of health alone
    #[arg(long, value_name = "IP")]
    pub healthz_bind_address: Option<IpAddr>,

    /// The certificate that is served
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,

    /// Its key
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,

    /// The certificates that sign clients'
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,

    /// Whether who shows nothing is let in as system:anonymous
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub anonymous_auth: Option<bool>,

    /// Whether the API server is asked whose a bearer token is
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub authentication_token_webhook: Option<bool>,

    /// AlwaysAllow or Webhook
    #[arg(long, value_name = "MODE")]
    pub authorization_mode: Option<String>,

    /// The cluster's resolvers
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub cluster_dns: Option<Vec<IpAddr>>,

    /// The cluster's domain
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,

    /// Features that are on or off; may be given several times
    #[arg(long, value_name = "NAME=true|false", value_delimiter = ',')]
    pub feature_gates: Option<Vec<String>>,

    /// How the node itself resolves names
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,

    /// The control group that holds those of all pods
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<String>,

    /// How many pods may run
    #[arg(long, value_name = "N")]
    pub max_pods: Option<u32>,

    /// Where logs of pods live
    #[arg(long, value_name = "DIR")]
    pub pod_logs_dir: Option<PathBuf>,

    /// The socket of the container runtime
    #[arg(long, value_name = "unix://PATH")]
    pub container_runtime_endpoint: Option<String>,

    /// Whether a machine that swaps is refused
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub fail_swap_on: Option<bool>,

    /// A file or a directory of static pods
    #[arg(long, value_name = "PATH")]
    pub pod_manifest_path: Option<PathBuf>,

    /// A URL of static pods
    #[arg(long, value_name = "URL")]
    pub manifest_url: Option<String>,

    /// How often files of static pods are looked at
    #[arg(long, value_name = "DURATION")]
    pub file_check_frequency: Option<String>,

    /// How often the URL of static pods is asked
    #[arg(long, value_name = "DURATION")]
    pub http_check_frequency: Option<String>,

    /// Taints of the node when it is registered
    #[arg(long, value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    pub register_with_taints: Option<Vec<String>>,

    #[command(flatten)]
    pub providers: CredentialProviders,
}

/// Plugins that know accounts for registries, by upstream's flags.
#[derive(Args, Clone, Debug, Default)]
pub struct CredentialProviders {
    /// Which plugins know accounts for registries: a CredentialProviderConfig, or a directory of such files
    #[arg(
        id = "plugins",
        long = "image-credential-provider-config",
        value_name = "PATH",
        requires = "programs"
    )]
    pub config: Option<PathBuf>,

    /// Where those plugins are
    #[arg(id = "programs", long = "image-credential-provider-bin-dir", value_name = "DIR")]
    pub programs: Option<PathBuf>,
}

impl CredentialProviders {
    /// The plugins; none where nothing is said of them.
    ///
    /// # Errors
    /// Their configuration is not sound, or one is not there.
    pub fn load(&self) -> Result<Providers, ProviderError> {
        match (&self.config, &self.programs) {
            (Some(config), Some(programs)) => Providers::load(config, programs),
            _ => Ok(Providers::default()),
        }
    }
}

#[derive(Args, Debug)]
pub struct Down {
    /// Remove the data directory too: the cluster with all its objects is gone
    #[arg(long)]
    pub delete_data: bool,
}

#[derive(Args, Debug)]
pub struct Status {
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Version {
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Import images from archives (`docker save`, OCI layout)
    Import {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List the images of this node
    Ls,
    /// Pull images from their registry
    Pull {
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_takes_the_data_directory_anywhere() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["krate", "image", "ls", "--data-dir", "/tmp/x"]);
        assert_eq!(cli.data_dir, PathBuf::from("/tmp/x"));
    }

    #[test]
    fn the_api_server_alone_takes_upstreams_flags() {
        let cli = Cli::parse_from(["krate", "apiserver", "--secure-port", "7443", "--data-dir=/tmp/x"]);
        let Command::ApiServer(options) = cli.command else { panic!("{cli:?}") };
        assert_eq!(options.serving.secure_port, Some(7443));
    }
}
