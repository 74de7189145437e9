//! What tests of running programs take from the environment, and where they work.

// Each test binary uses its own part of this; and tests of running programs deal with the world.
#![allow(dead_code, clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

use std::path::PathBuf;

/// A path for a directory of a test's own, where nothing is yet.
pub(crate) fn fresh_path() -> PathBuf {
    let mut name = [0; 8];
    getrandom::fill(&mut name).unwrap();
    std::env::temp_dir().join(format!("quorate-test-{:016x}", u64::from_be_bytes(name)))
}

/// How long or how much a suite is to do, from the environment.
pub(crate) fn number_from<N: std::str::FromStr<Err: std::fmt::Debug>>(variable: &str, default: N) -> N {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}
