//! A node of Quorate: coordinator, replica and storage, as a deterministic state machine.
//!
//! [`Node`] does no I/O and reads no clock. It is told things ([`Input`]) with the time at which they happened, asks
//! for things ([`Output`]) when it is polled, and says when it wants to be woken. Sockets, files, threads and the
//! generator's seed belong to whoever drives it: the async shell, or the simulator, which runs whole clusters of
//! these from one seed.
//!
//! A replica understands four verbs: *read* and *write* a key, *merge* a record that carries its versions, and list
//! a *tree* range. Client writes, read repair, hints, exchanges and data movement all end in the same merge, which is
//! commutative, associative and idempotent; so none of them needs an order or a lock against the others.

mod admission;
mod agreement;
mod cache;
mod collect;
mod coordinator;
mod copies;
mod counters;
mod door;
mod event;
mod exchange;
mod formation;
mod hints;
mod lag;
mod local;
mod membership;
pub mod message;
mod node;
mod operations;
mod peers;
mod placement;
mod planted;
mod prunable;
mod recovery;
mod replica;
mod settings;
// The only place for I/O, clocks and threads: what the crate bans elsewhere is allowed here.
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod shell;
pub mod storage;
mod trees;
mod waiting;
mod watermarks;
pub mod wire;

pub use counters::{AGE_BOUNDS_MS, Ages, Counters, Merged};
pub use event::{Change, ClientTag, Input, Now, Output, Wake};
pub use formation::{Formation, Founder};
pub use hints::HintsPending;
pub use lag::PeerSync;
pub use membership::DATAGRAM_BYTES_MAX;
pub use node::{Identity, Node};
pub use planted::PlantedBug;
pub use settings::Settings;
