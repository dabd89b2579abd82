//! Hosts for tests: each a network namespace of its own, with no route out, made in a moment and gone with the
//! value that stands for it.
//!
//! A [`Host`] is a namespace that nothing on the file system names: the test process alone holds it, so that a
//! test that panics, is killed or is interrupted leaves nothing behind. Several hosts meet on a [`Net`], a bridge
//! in a namespace of *its* own. The crate never touches the namespace that the test was started in: no interface,
//! route or rule of the machine is read or changed, and nothing that a host sends can leave its `Net`.

mod child;
mod control_group;
mod host;
mod logind;
mod namespace;
mod net;

use std::time::{Duration, Instant};

pub use child::Child;
pub use control_group::ControlGroup;
pub use host::Host;
pub use logind::{Bus, Logind};
pub use namespace::Namespace;
pub use net::Net;

/// Whether this process may make hosts; says aloud on stderr why not, so that a skipped test is seen to be
/// skipped.
pub fn available() -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces need root");
        return false;
    }
    match Namespace::new() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: this machine makes no network namespaces: {error}");
            false
        }
    }
}

/// Waits until `check` gives a value, and gives up with a panic that names `what` after `deadline`.
///
/// For states that send no event to wait on (a port that begins to listen, a rule that takes effect).
pub fn eventually<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
