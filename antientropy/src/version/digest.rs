//! Version digests: by what replicas compare records without sending them.

use std::fmt;

use bytes::BufMut;
use serde::{Deserialize, Serialize};

use super::{LwwVersion, Record, SiblingSet, codec};

/// 128 bits that stand for the version of a record.
///
/// Two records have equal digests if and only if they are of one kind and have the same live dots, the same
/// context (for `lww`: the same dot and the same `seen`) and the same stored n. Bytes, expiry and request of a
/// value follow from its dot. Nothing depends on the time of day, on who computes it, or on how the record came
/// about, so replicas in sync never differ; expired values count until they are dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionDigest(pub [u8; 16]);

impl VersionDigest {
    /// Of a key without a record. No record has it.
    pub const ABSENT: VersionDigest = VersionDigest([0; 16]);
}

impl fmt::Display for VersionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for VersionDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "digest-{self}")
    }
}

/// Separates these hashes from all others. Not a secret: clients choose no part of a dot.
const HASH_KEY: &[u8; 32] = b"quorate: version digest, format1";

/// The longest input hashed from the stack: a sibling set of up to 14 entries with as many values, or so.
const STACK_LEN: usize = 384;

impl Record {
    /// The record's digest.
    ///
    /// The first 128 bits of keyed BLAKE3 over (numbers big-endian): kind (1), copies (1), then for siblings the
    /// count of entries (varint), each entry's actor (8) and counter (8), and each live dot, newest first, as
    /// its counter (8) and its actor's position among the entries (varint); for `lww` the dot's counter (8) and
    /// actor (8), `seen` (8), and whether there is a value (1). One that came out as zero would be one.
    ///
    /// Positions instead of actors keep three entries with a value within one block of the hash.
    pub fn digest(&self) -> VersionDigest {
        let mut digest = VersionDigest::ABSENT;
        digest.0.copy_from_slice(&self.keyed_hash(HASH_KEY, &[]).as_bytes()[..16]);
        if digest == VersionDigest::ABSENT {
            digest.0[15] = 1;
        }
        digest
    }

    /// The keyed BLAKE3 of a prefix and, after it, of what [`digest`](Self::digest) is of.
    pub(crate) fn keyed_hash(&self, key: &[u8; 32], prefix: &[u8]) -> blake3::Hash {
        let len_max = prefix.len()
            + match self {
                Record::Siblings(set) => siblings_len_max(set),
                Record::Lww(_) => LWW_LEN,
            };
        if len_max > STACK_LEN {
            let mut heap = Vec::with_capacity(len_max);
            self.put_version(prefix, &mut heap);
            return blake3::keyed_hash(key, &heap);
        }
        let mut stack = [0; STACK_LEN];
        let mut free = &mut stack[..];
        self.put_version(prefix, &mut free);
        let len = STACK_LEN - free.len();
        blake3::keyed_hash(key, &stack[..len])
    }

    fn put_version(&self, prefix: &[u8], out: &mut impl BufMut) {
        out.put_slice(prefix);
        match self {
            Record::Siblings(set) => put_siblings(set, out),
            Record::Lww(version) => put_lww(version, out),
        }
    }
}

/// What [`put_lww`] writes.
const LWW_LEN: usize = 27;

/// At least as long as what [`put_siblings`] writes.
fn siblings_len_max(set: &SiblingSet) -> usize {
    2 + codec::VARINT_LEN_MAX
        + 16 * set.context_ref().entries().len()
        + (8 + codec::VARINT_LEN_MAX) * set.live_len()
}

fn put_siblings(set: &SiblingSet, out: &mut impl BufMut) {
    out.put_u8(codec::KIND_SIBLINGS);
    out.put_u8(set.copies().to_byte());
    codec::put_entries(set.context_ref(), out);
    for (dot, _) in set.values() {
        codec::put_dot(dot, set.context_ref(), out);
    }
}

fn put_lww(version: &LwwVersion, out: &mut impl BufMut) {
    out.put_u8(codec::KIND_LWW);
    out.put_u8(version.copies.to_byte());
    out.put_u64(version.dot.counter.0);
    out.put_u64(version.dot.actor.0);
    out.put_u64(version.seen.0);
    out.put_u8(u8::from(version.value.is_some()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::{Actor, Context, CopyCount, Counter, Dot, RequestId, UnixMillis, Value};

    fn dot(actor: u64, counter: u64) -> Dot {
        Dot { counter: Counter(counter), actor: Actor(actor) }
    }

    fn set(writes: u64, value: &Value) -> SiblingSet {
        let mut set = SiblingSet::new();
        for counter in 1..=writes {
            set.write(dot(counter ^ 5, counter), &Context::new(), Some(value.clone()), CopyCount::DEFAULT);
        }
        set
    }

    #[test]
    fn digests_are_pinned() {
        let siblings = Record::Siblings(set(2, &Value::new("v")));
        let lww = LwwVersion::write(dot(1, 2), &Context::new(), Some(Value::new("v")), CopyCount::DEFAULT);
        assert_eq!(siblings.digest().to_string(), "3e0117e11dcbcc4be1c80f5230846727");
        assert_eq!(Record::Lww(lww).digest().to_string(), "3e84a19046297904ac8a283f75354d26");
    }

    #[test]
    fn nothing_about_a_value_but_its_dot_counts() {
        let long = Value { expires: Some(UnixMillis(9)), request: RequestId(9), bytes: vec![7; 999].into() };
        for writes in [1, 3, 40] {
            let plain = Record::Siblings(set(writes, &Value::new("v")));
            // Distinct requests, or the writes would collapse.
            let mut other = SiblingSet::new();
            for counter in 1..=writes {
                let value = Value { request: RequestId(counter.into()), ..long.clone() };
                other.write(dot(counter ^ 5, counter), &Context::new(), Some(value), CopyCount::DEFAULT);
            }
            assert_eq!(plain.digest(), Record::Siblings(other).digest());
        }
    }

    #[test]
    fn every_part_of_the_version_counts() {
        let base = set(2, &Value::new("v"));
        let mut deleted = base.clone();
        deleted.write(dot(8, 3), &base.context(), None, CopyCount::DEFAULT);
        let mut one_covered = SiblingSet::new();
        one_covered.merge(&base);
        let first = Context::from_entries(CopyCount::DEFAULT, vec![(dot(1 ^ 5, 1).actor, Counter(1))]);
        one_covered.write(dot(8, 3), &first, None, CopyCount::DEFAULT);
        let mut more_copies = base.clone();
        more_copies.raise_copies(CopyCount::explicit(5));
        let version = LwwVersion::write(dot(1, 2), &Context::new(), None, CopyCount::DEFAULT);
        let records = [
            Record::Siblings(SiblingSet::new()),
            Record::Siblings(base),
            Record::Siblings(deleted),
            Record::Siblings(one_covered),
            Record::Siblings(more_copies),
            Record::Siblings(set(3, &Value::new("v"))),
            Record::Lww(version.clone()),
            Record::Lww(LwwVersion { seen: Counter(1), ..version.clone() }),
            Record::Lww(LwwVersion { copies: CopyCount::NONE, ..version.clone() }),
            Record::Lww(LwwVersion { value: Some(Value::new("v")), ..version.clone() }),
            Record::Lww(LwwVersion { dot: dot(2, 2), ..version }),
        ];
        let mut digests: Vec<VersionDigest> = records.iter().map(Record::digest).collect();
        digests.push(VersionDigest::ABSENT);
        digests.sort();
        assert!(digests.is_sorted_by(|a, b| a < b), "two records with one digest");
    }

    #[test]
    fn the_stack_and_the_heap_hash_alike() {
        // Around the length at which the input moves to the heap, the digest is still a function of the version.
        for writes in 1..40 {
            let record = Record::Siblings(set(writes, &Value::new("v")));
            for prefix in [&b""[..], &[7; 8]] {
                let mut input = Vec::new();
                record.put_version(prefix, &mut input);
                let hash = blake3::keyed_hash(HASH_KEY, &input);
                assert_eq!(record.keyed_hash(HASH_KEY, prefix), hash);
                assert!(!prefix.is_empty() || record.digest().0 == hash.as_bytes()[..16]);
            }
        }
    }
}
