//! Keyspaces: what a client names beside its key, and what it is promised there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DatacenterId, REPLICAS_MAX};

/// The longest name of a keyspace, a datacenter or a rack. Names are labels of metrics and parts of requests.
pub const NAME_BYTES_MAX: usize = 64;

/// What happens to concurrent writes of one key. Never changes for a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConflictPolicy {
    /// Keep every concurrent value until a write covers it. Nothing is lost silently.
    Siblings,
    /// Keep the value of the highest version; the others are discarded and counted.
    LastWriteWins,
}

/// When a replica may acknowledge a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Durability {
    /// When it is in memory; it is synced soon after.
    Memory,
    /// When its bytes are synced.
    Disk,
}

/// A keyspace: a name space of keys with one replication and one conflict policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyspace {
    /// Its name, unique among the keyspaces of a document; see [`name_is_valid`].
    pub name: String,
    /// Copies in each datacenter that has any, from 1 to [`REPLICAS_MAX`]. A datacenter may have fewer nodes than
    /// that; then each of them has a copy.
    pub replication: BTreeMap<DatacenterId, u8>,
    /// What happens to concurrent writes.
    pub conflict: ConflictPolicy,
    /// The durability of writes that do not name one.
    pub durability: Durability,
}

impl Keyspace {
    /// A keyspace of one datacenter, the first, with `copies` of each key.
    #[must_use]
    pub fn new(name: &str, copies: u8, conflict: ConflictPolicy, durability: Durability) -> Keyspace {
        let replication = BTreeMap::from([(DatacenterId(0), copies)]);
        Keyspace { name: name.to_owned(), replication, conflict, durability }
    }

    /// How many copies a request asks for in `datacenter`: `n` if the request named a number, the keyspace's own
    /// otherwise, never more than [`REPLICAS_MAX`]; 0 in a datacenter where the keyspace has none, whatever `n` is.
    #[must_use]
    pub fn copies(&self, datacenter: DatacenterId, n: Option<u8>) -> usize {
        match self.replication.get(&datacenter) {
            Some(own) => usize::from(n.unwrap_or(*own)).min(REPLICAS_MAX),
            None => 0,
        }
    }
}

/// Whether `name` may name a keyspace, a datacenter or a rack: 1 to [`NAME_BYTES_MAX`] ASCII letters, digits, `-`,
/// `_` and `.`, the first of them a letter or a digit. Such names need no quoting in a shell, a URL or a metric.
#[must_use]
pub fn name_is_valid(name: &str) -> bool {
    let first_is_plain = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let all_are_allowed = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    first_is_plain && all_are_allowed && name.len() <= NAME_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_quoting() {
        for name in ["carts", "9", "eu-west-1a", "a_b.c", &"x".repeat(NAME_BYTES_MAX)] {
            assert!(name_is_valid(name), "{name}");
        }
        for name in ["", "-x", ".", "a b", "a/b", "käse", "a\n", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(!name_is_valid(name), "{name:?}");
        }
    }

    #[test]
    fn a_request_may_ask_for_another_n_but_only_where_the_keyspace_has_copies() {
        let keyspace = Keyspace::new("carts", 3, ConflictPolicy::Siblings, Durability::Disk);
        assert_eq!(keyspace.copies(DatacenterId(0), None), 3);
        assert_eq!(keyspace.copies(DatacenterId(0), Some(5)), 5);
        assert_eq!(keyspace.copies(DatacenterId(0), Some(200)), REPLICAS_MAX);
        assert_eq!(keyspace.copies(DatacenterId(1), Some(5)), 0);
    }
}
