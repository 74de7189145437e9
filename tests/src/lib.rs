//! The simulated cluster: real nodes on simulated machines, networks and disks, with faults drawn from a seed, and
//! checkers that say which promises the history breaks.
//!
//! A run has two phases. In the safety phase clients work while faults strike; in the liveness phase faults are over,
//! clients are silent, and all copies have to become equal. Then the checkers read the history. A seed decides a run
//! completely, so a failing seed is a bug report: `sim --seed S --trace` tells its story.
//!
//! - [`swarm`]: the shape of a run; `faults`: the fault model; [`history`]: what is recorded; `excuses`: what is excused.
//! - [`checkers`]: one file for each promise.
//! - [`scenario`]: scripted runs, for circumstances that random ones seldom hit.

mod administrator;
mod ballot_box;
pub mod checkers;
mod clients;
pub mod counts;
mod damage;
mod excuses;
mod faults;
mod formation;
pub mod history;
mod host;
mod network;
pub mod random;
pub mod run;
pub mod scenario;
pub mod schedule;
mod settle;
pub mod swarm;
pub mod world;

pub use clients::{decode_value, encode_value};
