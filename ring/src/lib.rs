//! The ring: who is in the cluster, and who owns what.
//!
//! This is what every other part of Quorate has to agree on before it can say anything about a key, and it follows
//! the Dynamo paper (DeCandia et al., SOSP 2007): partitioning (section 4.2), replication (4.3) and membership
//! (4.8). A key hashes to a [`Token`]; the token's highest bits name one of the [`Partitions`]; in each
//! [`Datacenter`] a [`Placement`] gives each partition its preference list, whose first n entries are the replicas
//! and whose rest are the fallbacks. [`plan`] makes placements, and the [`ClusterDocument`] carries them together
//! with the members and the keyspaces, as one value with one epoch.
//!
//! Everything here is a pure function of its arguments: no clock, no generator, no I/O. The crate does not know
//! who is up, does not agree on documents, and moves no data: those who use it do.

mod balance;
mod digest;
mod document;
mod fault;
mod fill;
mod id;
mod keyspace;
mod layer;
mod placement;
mod planner;
mod shares;
mod strategy;
mod token;

pub use document::{ClusterDocument, Datacenter, Member, Replica};
pub use fault::DocumentFault;
pub use id::{ClusterId, DatacenterId, Epoch, KeyspaceId, NodeId, PartitionId, RackId, StoreId, VoterId};
pub use keyspace::{ConflictPolicy, Durability, Keyspace, NAME_BYTES_MAX, name_is_valid};
pub use placement::{BadPlacement, FALLBACKS, LIST_MAX, Move, Owner, Placement, REPLICAS_MAX};
pub use planner::{Candidate, Plan, plan};
pub use shares::fair_shares;
pub use token::{BadPartitionCount, Partitions, Token};
