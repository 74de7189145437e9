//! What tests of running programs take from the environment, where they work, and what a node says of itself.

// Each test binary uses its own part of this; and tests of running programs deal with the world.
#![allow(dead_code, clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

/// How long a node may take to say a metric.
const HTTP_TIMEOUT: Duration = Duration::from_secs(2);

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

/// A metric of the node that serves HTTP there, by its name with its labels; none if the node does not say.
pub(crate) fn metric(to: SocketAddr, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect_timeout(&to, HTTP_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
