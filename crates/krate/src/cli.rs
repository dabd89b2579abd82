//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use krate_apiserver::options::Options;

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
    /// Show the versions of krate and of the Kubernetes API that it serves
    Version(Version),
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

    /// Start the control plane alone, without a node; needs no root
    #[arg(long)]
    pub no_node: bool,

    /// Leave the user's own kubeconfig as it is
    #[arg(long)]
    pub no_kubeconfig: bool,

    /// A flag of `krate apiserver` for this cluster's API server; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    pub kube_apiserver_arg: Vec<String>,
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
