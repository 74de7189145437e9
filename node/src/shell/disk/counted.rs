//! What a committer counts: plain numbers, for whoever exports them.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What a committer has counted, and what waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitterCounters {
    /// Batches that wait, and those that are being written.
    pub queued_batches: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Batches that were committed.
    pub batches: u64,
    /// Changes in them.
    pub changes: u64,
    /// Bytes of keys and values in them.
    pub bytes: u64,
    /// Batches that were refused, at the queue or later.
    pub refused: u64,
    /// Syncs.
    pub syncs: u64,
    /// Time spent in syncs, in all.
    pub sync_time: Duration,
    /// The longest sync.
    pub sync_time_max: Duration,
    /// Time spent in writes, in all: among it any time that the engine held them up because it could not keep up.
    pub write_time: Duration,
    /// The longest that the batches of one sync took to write.
    pub write_time_max: Duration,
    /// Bytes in memory that are in no table yet.
    pub memory_bytes: u64,
    /// Bytes of the journal on disk, a second ago or less.
    pub journal_bytes: u64,
    /// Bytes of tables on disk.
    pub table_bytes: u64,
}

/// The numbers themselves, which the committer's thread writes and others read. Times in nanoseconds.
#[derive(Default)]
pub(super) struct Counted {
    batches: AtomicU64,
    changes: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    syncs: AtomicU64,
    sync_nanos: AtomicU64,
    sync_nanos_max: AtomicU64,
    write_nanos: AtomicU64,
    write_nanos_max: AtomicU64,
    memory_bytes: AtomicU64,
    journal_bytes: AtomicU64,
    table_bytes: AtomicU64,
}

impl Counted {
    /// A batch was written.
    pub(super) fn written(&self, changes: usize, bytes: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.changes.fetch_add(changes as u64, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// What was written is synced.
    pub(super) fn synced(&self, write_time: Duration, sync_time: Duration) {
        self.syncs.fetch_add(1, Relaxed);
        add(&self.write_nanos, &self.write_nanos_max, write_time);
        add(&self.sync_nanos, &self.sync_nanos_max, sync_time);
    }

    /// A batch was refused.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// So many bytes are in memory.
    pub(super) fn holds(&self, memory_bytes: u64) {
        self.memory_bytes.store(memory_bytes, Relaxed);
    }

    /// So many bytes are on disk.
    pub(super) fn used(&self, journal_bytes: u64, table_bytes: u64) {
        self.journal_bytes.store(journal_bytes, Relaxed);
        self.table_bytes.store(table_bytes, Relaxed);
    }

    /// All of it, with what waits at this moment.
    pub(super) fn counters(&self, queued_batches: u64, queued_bytes: u64) -> CommitterCounters {
        let time = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Relaxed));
        CommitterCounters {
            queued_batches,
            queued_bytes,
            batches: self.batches.load(Relaxed),
            changes: self.changes.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            refused: self.refused.load(Relaxed),
            syncs: self.syncs.load(Relaxed),
            sync_time: time(&self.sync_nanos),
            sync_time_max: time(&self.sync_nanos_max),
            write_time: time(&self.write_nanos),
            write_time_max: time(&self.write_nanos_max),
            memory_bytes: self.memory_bytes.load(Relaxed),
            journal_bytes: self.journal_bytes.load(Relaxed),
            table_bytes: self.table_bytes.load(Relaxed),
        }
    }
}

fn add(sum: &AtomicU64, max: &AtomicU64, time: Duration) {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    sum.fetch_add(nanos, Relaxed);
    max.fetch_max(nanos, Relaxed);
}
