//! Dots: the names of writes.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Counter, UnixMillis};

/// Who minted a dot: one unbroken memory of one partition's copy, as 64 random bits.
///
/// A context entry `(actor, counter)` claims to have seen *every* dot of that actor for the key up to that
/// counter. The claim holds only because an actor never writes on top of less than its own past. So a copy keeps
/// its actor in RAM alone and takes a fresh one whenever its memory may have a gap: at the first write after every
/// start (clean or not), after gaining the partition, after a record was found lost or corrupt, after a batch
/// failed. A node that is not a replica of the key has no memory of it at all, and mints each write under an
/// actor of its own.
///
/// Unique dots alone are not enough. A copy that lost a record and kept its actor would mint a new, unique dot
/// whose context entry claims the lost one too, and the join would then erase the lost value from the copies that
/// still have it: see the tests `*_annihilat*` of [`SiblingSet`](super::SiblingSet). (riak_kv met this as
/// basho/riak_kv#679 and answered with an epoch for each key's actor; a random actor for each memory needs no
/// epoch on disk.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Actor(pub u64);

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "actor-{:016x}", self.0)
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of one write. No two writes have the same.
///
/// Ordered by counter, then actor (the order of the fields): the order by which last-write-wins keyspaces decide,
/// and the same on every node.
///
/// The counter is one more than the highest of the node's clock, the counters in the key's record, those in the
/// client's context, and the partition's promised watermark.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// When, by the hybrid logical clock. Never [`Counter::ZERO`], never above [`Counter::MAX`].
    pub counter: Counter,
    /// Who.
    pub actor: Actor,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.counter, self.actor)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which request of a client made a value: 128 bits of the client's choosing.
///
/// It lets a retry be told from a second write. A retry that reaches another coordinator may leave the value
/// twice; values with equal ids are then shown once, and the next write drops one.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub u128);

impl RequestId {
    /// No request: equal to no other, itself included, where duplicates are looked for.
    pub const NONE: RequestId = RequestId(0);

    /// Whether both come from one request; [`RequestId::NONE`] comes from no request.
    pub fn is_same_request(self, other: RequestId) -> bool {
        self == other && self != RequestId::NONE
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request-{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A client's value, with what has to travel with it. Immutable: its dot stands for all of it.
///
/// The order has no meaning; it only lets a tie that cannot happen be broken the same way on every node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    /// What the client wrote.
    pub bytes: Bytes,
    /// From when on reads leave it out. Absolute, so that every replica agrees without talking.
    pub expires: Option<UnixMillis>,
    /// The request that wrote it.
    pub request: RequestId,
}

impl Value {
    /// A value that never expires, of no request.
    pub fn new(bytes: impl Into<Bytes>) -> Value {
        Value { bytes: bytes.into(), expires: None, request: RequestId::NONE }
    }

    /// Whether reads at `now` leave it out.
    pub fn is_expired(&self, now: UnixMillis) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// The one of two values under one dot that every replica keeps.
    ///
    /// One dot is one write, so they are equal unless there is a bug of ours; then replicas should at least not
    /// disagree for ever, and the join should stay commutative.
    pub(super) fn tie_break<'a>(dot: Dot, left: &'a Value, right: &'a Value) -> &'a Value {
        debug_assert_eq!(left, right, "two writes were minted under the one dot {dot}");
        left.max(right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(counter: u64, actor: u64) -> Dot {
        Dot { counter: Counter(counter), actor: Actor(actor) }
    }

    #[test]
    fn dots_order_by_counter_before_actor() {
        assert!(dot(1, 9) < dot(2, 1));
        assert!(dot(2, 1) < dot(2, 2));
    }

    #[test]
    fn no_request_is_not_the_same_request() {
        assert!(!RequestId::NONE.is_same_request(RequestId::NONE));
        assert!(RequestId(1).is_same_request(RequestId(1)));
        assert!(!RequestId(1).is_same_request(RequestId(2)));
    }

    #[test]
    fn a_value_is_expired_from_its_expiry_on() {
        let value = Value { expires: Some(UnixMillis(10)), ..Value::new("v") };
        assert!(!value.is_expired(UnixMillis(9)));
        assert!(value.is_expired(UnixMillis(10)));
        assert!(!Value::new("v").is_expired(UnixMillis(u64::MAX)));
    }

    #[test]
    fn names_print_short() {
        assert_eq!(dot(65_536 * 3 + 1, 0xab).to_string(), "3.1@actor-00000000000000ab");
        assert_eq!(format!("{:?}", RequestId(7)), "request-00000000000000000000000000000007");
    }
}
