//! Nothing acknowledged is ever lost and nothing half done is ever there: after a kill at any moment, and after a
//! power cut between or within any two writes to the disk.
//!
//! The binary runs itself as the process that is killed, so it has no harness but the one in `main`.

mod killed;
mod power;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    if let Some(directory) = std::env::var_os(killed::DIRECTORY) {
        killed::writer(directory.as_ref());
    }
    let trials = vec![
        trial("what_was_acknowledged_survives_every_kill", killed::survives_kills),
        trial("a_first_start_that_was_killed_can_be_begun_again", killed::survives_a_kill_at_the_first_start),
        trial("what_was_acknowledged_survives_every_power_cut", power::survives_cuts),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok::<(), Failed>(())
    })
}
