//! The one binary: its command line, and the wiring of components into a cluster.

mod address;
mod allocator;
mod apiserver;
mod cli;
mod commands;
mod datadir;
mod kubeconfig;
mod log;
mod node;
mod pki;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};
use datadir::DataDir;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() -> ExitCode {
    // The container runtime runs this binary again for its small processes: those must not become anything else first.
    krate_runtime::reexec::dispatch();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("krate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let dir = DataDir::new(&cli.data_dir)?;
    if let Command::Up(up) = &cli.command
        && up.detach
    {
        return up::detached(&dir);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let node_threads =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("node").build()?;
    let done = runtime.block_on(async {
        match cli.command {
            Command::Up(args) => up::run(&dir, &args, node_threads.handle()).await,
            Command::ApiServer(options) => commands::apiserver(&dir, &options).await,
            Command::Down(args) => commands::down(&dir, &args).await,
            Command::Status(args) => commands::status(&dir, &args).await,
            Command::Image(command) => commands::image(&dir, command).await,
            Command::Version(args) => commands::version(&args),
            Command::Kubelet(args) => commands::kubelet(&args).await,
        }
    });
    // Blocking work that has lost its purpose must not hold up the end.
    node_threads.shutdown_background();
    runtime.shutdown_background();
    done
}
