//! The client library: [`Client`], one builder for each operation, and what their outcomes mean.
//!
//! A [`Client`] holds the cluster document, so it sends each request to a replica of its key
//! ([`routing`]), over one connection to each node with many requests in flight ([`connection`]). An operation may be
//! several attempts ([`operation`]); which retries are safe, and what a write that was tried several times may have
//! done, is decided in one place ([`attempts`]).
//!
//! It does not cache values, and it keeps nothing on disk. What the caller has read is known only by the
//! [`Context`] that the caller passes on.

mod attempts;
mod client;
mod cluster;
mod config;
mod connection;
mod context;
mod dialer;
mod failure;
mod keys;
mod keyspace;
mod nodes;
mod operation;
mod overlap;
mod race;
mod random;
mod read;
mod routing;
mod topology;
mod update;
mod window;
mod write;

pub use client::Client;
pub use config::{ClientConfig, ConfigError, ConfigFault};
pub use context::{BadContextText, Context};
pub use failure::{
    ConnectError, ControlFailure, DialError, Doubt, ReadFailure, Unreachable, Unreached, WriteFailure,
};
pub use keys::{KeyScan, KeysFailure};
pub use keyspace::{BadKeyspaceName, KeyspaceHandle};
pub use overlap::Overlap;
pub use read::{Found, GetBuilder};
pub use update::{UpdateBuilder, UpdateFailure};
pub use write::{DeleteBuilder, PutBuilder, Written};
