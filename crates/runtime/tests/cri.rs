//! The runtime through its socket: real processes, namespaces, control groups and mounts.

// The harness is our own, because the executable must be able to become a shim and a server.
#[path = "cri/calls.rs"]
mod calls;
#[path = "cri/churn.rs"]
mod churn;
#[path = "cri/fixture.rs"]
mod fixture;
#[path = "cri/image.rs"]
mod image;
#[path = "cri/lifecycle.rs"]
mod lifecycle;
#[path = "cri/pulling.rs"]
mod pulling;
#[path = "cri/registry.rs"]
mod registry;
#[path = "cri/security.rs"]
mod security;
#[path = "cri/streams.rs"]
mod streams;
#[path = "cri/users.rs"]
mod users;

use libtest_mimic::{Arguments, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

fn main() {
    krate_runtime::reexec::dispatch();
    fixture::dispatch();
    let arguments = Arguments::from_args();
    let usable = nix::unistd::getuid().is_root() && std::path::Path::new(image::BUSYBOX).exists();
    if !usable && !arguments.list {
        eprintln!("SKIPPED: the runtime's tests need root and {}", image::BUSYBOX);
    }
    if usable && !arguments.list {
        // Nothing that is mounted here is seen outside.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    }
    let trials = lifecycle::TESTS
        .iter()
        .chain(calls::TESTS)
        .chain(churn::TESTS)
        .chain(pulling::TESTS)
        .chain(security::TESTS)
        .chain(streams::TESTS)
        .chain(users::TESTS)
        .map(|(name, test)| {
            Trial::test(*name, move || {
                if usable {
                    test();
                }
                Ok(())
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
