//! The kubelet: runs the pods that are bound to this node, and tells the API how they are. It speaks CRI v1 to the
//! container runtime and never asks which one that is; it holds nothing that it could not find again in the API, in the
//! runtime and in the kernel, so that it may be killed at any moment: what runs goes on, and is found when it is back.

mod admission;
mod backoff;
mod cgroups;
mod config;
mod configuration;
mod container;
mod cri;
mod devices;
mod env;
mod env_file;
mod eviction;
mod features;
mod fieldpath;
mod garbage;
mod hooks;
mod http_check;
mod images;
mod keyring;
mod last_words;
mod logs;
mod mounts;
mod names;
mod naming;
mod node;
mod objects;
mod observed;
mod plan;
mod pods;
mod preemption;
mod probes;
mod providers;
mod resize;
mod resources;
mod run;
mod sandbox;
mod security;
mod server;
mod shared;
mod signal;
mod spec;
mod start;
mod static_pods;
mod status;
mod stop;
mod volumes;
mod worker;

pub use config::{Config, Enforce, LogPolicy, ShutdownPeriod};
pub use configuration::{Configuration, ConfigurationError, StaticPods};
pub use devices::api as device_plugin;
pub use eviction::EvictionConfig;
pub use garbage::ImagePolicy;
pub use providers::{ProviderError, Providers};
pub use run::{Error, run};
