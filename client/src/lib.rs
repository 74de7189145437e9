//! What a client of Quorate says and hears: requests with a consistency level of their own, replies that say how
//! fresh they are, and errors that say what the caller may conclude.
//!
//! This crate holds the public protocol as values. Nodes import it: a level means the same thing on both sides of
//! the wire because there is one function that says what it requires. See sections 4.1 and 6.4 of the Dynamo paper.

mod access;
pub mod certificates;
mod error;
pub mod hedge;
mod level;
mod library;
mod request;
pub mod tls;
pub mod udp;
pub mod wire;

/// The guide for users, whose examples are compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/client.md")]
pub struct Guide;

pub use access::{Access, Grant, Role, UnknownRole};
pub use error::{DoubtCause, GetError, Limit, Refusal, WriteError};
pub use level::{Copies, Level, LevelError, Operation, Preset, Required, UnknownLevel, overlaps};
pub use library::{
    BadContextText, BadKeyspaceName, Client, ClientConfig, ConfigError, ConfigFault, ConnectError, Context,
    ControlFailure, DeleteBuilder, DialError, Doubt, Found, GetBuilder, KeyScan, KeysFailure, KeyspaceHandle,
    Overlap, PutBuilder, ReadFailure, Unreachable, Unreached, UpdateBuilder, UpdateFailure, WriteFailure,
    Written,
};
pub use request::{
    Delete, Freshness, Get, GetReply, KEY_BYTES_MAX, Put, ReadOptions, ReadRepair, Reply, Request, RequestId,
    ReturnedValue, TIMEOUT_DEFAULT, VALUE_BYTES_MAX, Version, WriteOptions, WriteReply,
};
