//! What it means for replicas to be in sync, and how they get there.
//!
//! Two replicas are *in sync* on a key when they hold equal records, and on a partition when they are in sync on
//! each of its keys. Equal means equal [digests](version::VersionDigest): the same live dots, the same causal
//! context, the same number of copies to keep. The bytes of a value follow from its dot, so they are not compared.
//!
//! Replicas get there through one door. Every record is a point in a join-semilattice, and
//! [`Record::merge`](version::Record::merge) is its join: commutative, associative and idempotent. A client's
//! write, read repair, the replay of a hint, an exchange of hash trees and the move of a partition all end in the
//! same join, so none of them needs an order, a lock against the others or a write path of its own; whatever
//! order messages arrive in, however often, replicas that have seen the same writes hold the same record.
//!
//! The join keeps what was acknowledged only under one condition, which is not the join's to enforce: *an actor
//! never mints a dot on top of less than its own past*. [`Actor`](version::Actor) says what that asks of a node.
//!
//! The sources are sections 4.4 (data versioning), 4.6 (hinted handoff) and 4.7 (replica synchronisation) of
//! DeCandia et al., "Dynamo: Amazon's Highly Available Key-value Store" (SOSP 2007). Where Dynamo has vector
//! clocks, Quorate has dotted version vectors; [`version`] says why.
//!
//! What two replicas hold is compared by sums that are always current ([`hash_tree`]), and what differs is found at a cost
//! that follows from how much differs, not from how much there is ([`sketch`]); an [`exchange`] brings it to both. Nodes do
//! not use these yet: their own exchanges list keys.
//!
//! The crate is pure: no I/O, no clock, no generator, no threads. Time and randomness are arguments.

pub mod exchange;
pub mod hash_tree;
pub mod residue;
pub mod sketch;
pub mod version;
