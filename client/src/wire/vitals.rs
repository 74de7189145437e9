//! What a node's process has done, and what its machine has left.

use serde::{Deserialize, Serialize};

/// Counts since the process began, and the state of what it runs on. For rates, look twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVitals {
    /// The node's wall clock, in milliseconds of Unix time.
    pub wall_unix_ms: u64,
    /// Gets that it was asked for.
    pub reads: RequestVitals,
    /// Puts and deletes.
    pub writes: RequestVitals,
    /// Requests that were refused: none of them took effect.
    pub refused: u64,
    /// The bounds of [`RequestVitals::durations`], in microseconds.
    pub duration_bounds_us: Vec<u64>,
    /// Records that repairs of any kind have brought to this node: reads, hints, exchanges and moves.
    pub repaired_objects: u64,
    /// Their bytes.
    pub repaired_bytes: u64,
    /// Bytes that the store takes on disk.
    pub storage_bytes: u64,
    /// Bytes that are free for the node on the file system of its store; 0 of 0 if the system does not say.
    pub storage_free_bytes: u64,
    /// Bytes of that file system.
    pub storage_size_bytes: u64,
    /// When the node's certificate ends, in seconds of Unix time.
    pub certificate_expires_unix_s: u64,
    /// When the first of the authorities ends that it trusts.
    pub ca_expires_unix_s: u64,
    /// Whether the files of its certificates have something that it could not use, when it looked last.
    pub certificates_refused: bool,
    /// A digest of the settings that have to be the same on all nodes. It says nothing of the secret among them.
    pub cluster_settings: u64,
    /// The limits that its configuration gives, key and value.
    pub limits: Vec<(String, String)>,
}

/// Requests of clients, as the node that the client asked counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestVitals {
    /// Those that succeeded.
    pub succeeded: u64,
    /// Writes that were left in doubt, reads that timed out.
    pub unanswered: u64,
    /// Of those that succeeded, how many took no longer than each bound.
    pub durations: Vec<u64>,
}
