//! Each binary is the target that it is named after.

#![no_main]

use krate_apiserver::fuzzing::TARGETS;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (_, target) = TARGETS.iter().find(|(name, _)| *name == env!("CARGO_BIN_NAME")).expect("it is a target");
    target(data);
});
