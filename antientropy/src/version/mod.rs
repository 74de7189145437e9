//! Versions: which write made a value, and which writes that write had seen.
//!
//! Every write has a [`Dot`], the pair of the [`Actor`] that minted it and a [`Counter`] from a hybrid logical
//! clock. A [`Record`] is all that a replica holds for one key, of one of two kinds for good, by the keyspace's
//! conflict policy:
//!
//! - A [`SiblingSet`] keeps every value until a write covers it. Its one [`Context`] says which dots it has seen,
//!   live or not. It is a dotted version vector set (Almeida, Baquero, Gonçalves, Preguiça and Fonte, "Scalable
//!   and Accurate Causality Tracking for Eventually Consistent Stores", DAIS 2014).
//! - An [`LwwVersion`] keeps the value of the highest dot, and says when one was discarded that its winner's
//!   writer had not seen.
//!
//! Dynamo (section 4.4) attaches a vector clock to each value. Two clients that write concurrently through one
//! coordinator then get comparable clocks, and one write vanishes; with an entry for each client instead, clocks
//! grow without bound and have to be truncated, which Dynamo does and which forges concurrency. A dot names the
//! write apart from what it had seen, so an entry for each coordinator is enough and nothing has to be guessed.
//!
//! A client reads a sealed [`Context`] with the values ([`ContextKey`]) and returns it with its next write: "I
//! have seen this much". Deletions are writes without a value. Tombstones and context entries are dropped at a
//! watermark ([`Record::prune`]); when that is safe is a question about all copies, not about one record.

mod clock;
mod codec;
mod context;
mod decode;
mod digest;
mod dot;
mod lww;
mod record;
mod seal;
mod siblings;
mod watermark;

pub use clock::{Counter, HybridClock, UnixMillis};
pub use context::{Context, CopyCount};
pub use decode::DecodeError;
pub use digest::VersionDigest;
pub use dot::{Actor, Dot, RequestId, Value};
pub use lww::LwwVersion;
pub use record::{MergeOutcome, Record};
pub use seal::{CONTEXT_ENTRIES_MAX, ContextError, ContextKey};
pub use siblings::SiblingSet;
pub use watermark::{Cut, Pruned};

/// A record that nothing but its version tells from others.
#[cfg(test)]
pub(crate) fn written(version: u64) -> Record {
    let dot = Dot { counter: Counter(version + 1), actor: Actor(1) };
    Record::Lww(LwwVersion::write(dot, &Context::new(), None, CopyCount::DEFAULT))
}
