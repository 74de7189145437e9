//! Everything that a node needs of the world: disks, sockets, clocks and threads. The only part of the crate that may
//! touch them; it decides nothing about data.
//!
//! [`server`] is one running node, [`config`] what it is told, [`disk`] its store, [`dev`] a cluster on one machine.

mod clients;
mod closing;
pub mod config;
pub mod dev;
pub mod disk;
mod driver;
mod http;
mod links;
mod mailbox;
mod metrics;
mod outbox;
mod pace;
mod pid_file;
mod renewal;
mod resets;
#[cfg(test)]
mod scratch;
pub mod server;

pub use driver::DriverError;
