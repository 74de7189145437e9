//! The names of things: newtypes for every identifier, so that none can stand in for another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Defines an identifier: a transparent, ordered newtype that prints as its prefix and its value.
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, $format), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

identifier!(
    /// A node, for as long as the cluster lives. Chosen by whoever runs it; never used again for another node.
    NodeId(u32), "node-", "{}"
);
identifier!(
    /// One node's storage directory, from the day it was made: 64 random bits. A node whose disk was replaced
    /// keeps its [`NodeId`] and comes back with another `StoreId`, which is how the others can tell.
    StoreId(u64), "store-", "{:016x}"
);
identifier!(
    /// One unbroken memory of a member's votes about documents: 64 bits. A new store's first voter is named after the
    /// store; a store that went back in time, and may have forgotten how it voted, draws another.
    VoterId(u64), "voter-", "{:016x}"
);
identifier!(
    /// One cluster. Two clusters that meet by accident refuse each other by it.
    ClusterId(u64), "cluster-", "{:016x}"
);
identifier!(
    /// The version of the cluster document. Epoch 0 means that no document is known.
    Epoch(u64), "epoch-", "{}"
);
identifier!(
    /// A keyspace, for as long as the cluster lives. Never used again after the keyspace is dropped.
    KeyspaceId(u32), "keyspace-", "{}"
);
identifier!(
    /// One of the equal parts of the token circle; see [`crate::Partitions`].
    PartitionId(u16), "partition-", "{}"
);
identifier!(
    /// A datacenter: its position in [`crate::ClusterDocument::datacenters`].
    DatacenterId(u16), "datacenter-", "{}"
);
identifier!(
    /// A rack within one datacenter: its position in [`crate::Datacenter::racks`].
    RackId(u16), "rack-", "{}"
);

impl VoterId {
    /// The voter of a store that has never forgotten anything.
    #[must_use]
    pub fn first_of(store: StoreId) -> VoterId {
        VoterId(store.0)
    }
}

impl Epoch {
    /// The epoch after this one.
    ///
    /// # Panics
    ///
    /// After 2^64 - 1 changes.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0.checked_add(1).expect("2^64 - 1 changes of one document"))
    }
}
