//! The binary's second life: the same executable, run again as a small process of one thread.

use crate::shim;

/// Runs the internal command that the arguments name, and ends the process; returns when they name none. To be
/// called before anything else in `main`, while there is one thread and nothing has been allocated in vain.
pub fn dispatch() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|command| command == shim::client::COMMAND) {
        let code = match shim::zygote::run() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("krate shim: {error}");
                1
            }
        };
        std::process::exit(code);
    }
}
