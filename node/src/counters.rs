//! What a node counts. The cores keep plain numbers; whoever drives them exports them.

use client::{GetError, Reply, WriteError};

use crate::message::MergePath;

/// Upper bounds of the ages that are counted, in milliseconds: from what a fast disk does to what an outage of a day leaves.
pub const AGE_BOUNDS_MS: [u64; 12] =
    [1, 5, 10, 50, 100, 1_000, 5_000, 10_000, 60_000, 600_000, 3_600_000, 86_400_000];

/// Ages, counted by bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ages {
    /// How many were no older than each of [`AGE_BOUNDS_MS`] and older than the one before, and the rest.
    pub counts: [u64; AGE_BOUNDS_MS.len() + 1],
    /// The sum of the ages, in milliseconds.
    pub sum_ms: u64,
}

impl Ages {
    /// One more, of this age.
    pub(crate) fn add(&mut self, age_ms: u64) {
        self.counts[AGE_BOUNDS_MS.partition_point(|bound| *bound < age_ms)] += 1;
        self.sum_ms = self.sum_ms.saturating_add(age_ms);
    }
}

/// What merges by one path have changed here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// How many records.
    pub records: u64,
    /// Bytes of the records and keys that came.
    pub bytes: u64,
    /// How old the newest version was of each.
    pub ages: Ages,
}

/// Counters since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes that were acknowledged.
    pub writes_acknowledged: u64,
    /// Writes that were reported as in doubt.
    pub writes_in_doubt: u64,
    /// Reads that were answered.
    pub reads_answered: u64,
    /// Reads that found too few replicas in time.
    pub reads_timed_out: u64,
    /// Reads whose answers did not agree.
    pub reads_diverged: u64,
    /// Requests that were refused, for whatever reason.
    pub refused: u64,
    /// Requests that were forwarded to a replica.
    pub forwarded: u64,
    /// Silent replicas that a read replaced.
    pub replicas_replaced: u64,
    /// Replicas that a read asked because another took longer than its answers usually do.
    pub reads_hedged: u64,
    /// Replicas that reads found stale and have mended.
    pub read_repairs_merged: u64,
    /// Replicas that reads found stale and could not mend in time: each is left a hint.
    pub read_repairs_hinted: u64,
    /// How old the newest version was that such a replica lacked, in either case.
    pub read_repair_ages: Ages,
    /// Merges that changed a record: clients' writes.
    pub merged_write: Merged,
    /// Those that this node took in place of a replica.
    pub merged_stand_in: Merged,
    /// Read repair.
    pub merged_read_repair: Merged,
    /// Hints.
    pub merged_hint: Merged,
    /// Exchanges between whole copies.
    pub merged_anti_entropy: Merged,
    /// Exchanges that filled a copy.
    pub merged_movement: Merged,
    /// Merges that were refused because too many bytes wait for the disk.
    pub merges_refused: u64,
    /// Merges that were refused because all that they brought was over long since: exchanges bring what is true of it.
    pub merges_late: u64,
    /// Merges that were refused because they named a write below the watermark of which this node knows nothing, and whose
    /// sender had not promised it: it may be one that has been deleted. By their path, in the order of [`MergePath`].
    pub merges_behind: [u64; 6],
    /// Times that a partition's watermark rose.
    pub watermarks_raised: u64,
    /// Tombstones, and expired values, that were dropped below the watermark.
    pub tombstones_dropped: u64,
    /// Records of which superfluous context entries, or expired values, were dropped.
    pub contexts_pruned: u64,
    /// Records of which a filling copy dropped values that a whole one knows to be dead.
    pub values_quarantined: u64,
    /// Copies that became whole by the union of what others held, none of which was whole.
    pub unions: u64,
    /// Last-write-wins values that were discarded although their winner's writer had not seen them.
    pub lww_discarded: u64,
    /// Records that could not be read.
    pub damaged_records: u64,
    /// Times that the store could not read a record.
    pub unreadable_records: u64,
    /// Times that a copy began to fill.
    pub copies_filled: u64,
    /// Times that a copy became whole.
    pub copies_made_whole: u64,
    /// Partitions whose hash trees were found not to say what is stored: the copy was not believed any more.
    pub trees_mended: u64,
    /// Exchanges that this node led and that were completed.
    pub exchanges_completed: u64,
    /// Of these, those that found everything equal at once.
    pub exchanges_equal: u64,
    /// Exchanges that found a difference and were put off, because one of the two was busy with another.
    pub exchanges_put_off: u64,
    /// Exchanges that were given up.
    pub exchanges_abandoned: u64,
    /// Bytes of all messages of exchanges that this node led, both ways.
    pub exchange_bytes: u64,
    /// Bytes of keys and records among them.
    pub exchange_payload_bytes: u64,
    /// Keys that such exchanges found to differ: those of which one side had another record, and those that it lacked.
    pub exchange_differences: u64,
    /// How long they took.
    pub exchange_durations: Ages,
    /// Writes that were acknowledged with the help of nodes that stood in for replicas.
    pub writes_sloppy: u64,
    /// Writes that this node was to take in place of a replica, and did not: it owes that one as much as it may.
    pub stand_ins_refused: u64,
    /// Hints that were left for a silent replica.
    pub hints_left: u64,
    /// Hints that were replayed and acknowledged.
    pub hints_replayed: u64,
    /// Hints that were dropped at a limit, or because their record was gone.
    pub hints_dropped: u64,
    /// Messages of processes that had not said hello, or of strangers.
    pub messages_ignored: u64,
    /// Peers that were found dead.
    pub peers_died: u64,
    /// Times that this process was declared dead and went on under another name.
    pub rejoined: u64,
    /// Packets about who is up that made no sense.
    pub datagrams_ignored: u64,
    /// Messages of a newer epoch that found no room to wait for its document.
    pub parked_dropped: u64,
    /// Batches that the store refused.
    pub commits_failed: u64,
    /// Whether the store was found to have gone back in time: 0 or 1.
    pub store_went_back: u64,
    /// Rounds of agreement that this node began.
    pub rounds_begun: u64,
    /// Rounds that were given up: outbid by another node's, or without a majority in time.
    pub rounds_given_up: u64,
    /// Rounds that got a document agreed on.
    pub rounds_decided: u64,
    /// Votes about documents that this node has given.
    pub votes_given: u64,
    /// Votes that it may not give: its store or its memory of votes is not the recorded one, or its peers have not
    /// said yet whether it went back in time.
    pub votes_withheld: u64,
    /// Times that a peer was met whose document is of the same epoch and another one: two clusters under one id, or a
    /// bug. Nothing of such a peer is taken.
    pub documents_conflicting: u64,
    /// Stored documents that could not be read for so long that a peer's was taken in their place, which may be older.
    pub documents_given_up: u64,
    /// Times that a founder was met that is configured otherwise.
    pub configurations_differing: u64,
    /// Formations that were proposed to this founder and not accepted.
    pub formations_refused: u64,
}

impl Counters {
    /// A read has mended a stale replica, or has left it a hint.
    pub(crate) fn read_repaired(&mut self, is_merged: bool, age_ms: u64) {
        self.read_repairs_merged += u64::from(is_merged);
        self.read_repairs_hinted += u64::from(!is_merged);
        self.read_repair_ages.add(age_ms);
    }

    /// A request ended.
    pub(crate) fn replied(&mut self, reply: &Reply) {
        match reply {
            Reply::Write(Ok(_)) => self.writes_acknowledged += 1,
            Reply::Write(Err(WriteError::InDoubt { .. })) => self.writes_in_doubt += 1,
            Reply::Get(Ok(_)) => self.reads_answered += 1,
            Reply::Get(Err(GetError::TimedOut { .. })) => self.reads_timed_out += 1,
            Reply::Write(Err(WriteError::Refused(_))) | Reply::Get(Err(GetError::Refused(_))) => {
                self.refused += 1;
            }
        }
    }

    /// A merge was refused that may bring back what was deleted.
    pub(crate) fn merged_behind(&mut self, path: MergePath) {
        let place = match path {
            MergePath::Write => 0,
            MergePath::StandIn { .. } => 1,
            MergePath::ReadRepair => 2,
            MergePath::Hint => 3,
            MergePath::AntiEntropy => 4,
            MergePath::Movement => 5,
        };
        self.merges_behind[place] += 1;
    }

    /// A merge of so many bytes changed a record; the newest that it brought was of this age.
    pub(crate) fn merged(&mut self, path: MergePath, bytes: usize, age_ms: u64) {
        let merged = match path {
            MergePath::Write => &mut self.merged_write,
            MergePath::StandIn { .. } => &mut self.merged_stand_in,
            MergePath::ReadRepair => &mut self.merged_read_repair,
            MergePath::Hint => &mut self.merged_hint,
            MergePath::AntiEntropy => &mut self.merged_anti_entropy,
            MergePath::Movement => &mut self.merged_movement,
        };
        merged.records += 1;
        merged.bytes += bytes as u64;
        merged.ages.add(age_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_counted_by_bounds() {
        let mut ages = Ages::default();
        for age_ms in [0, 10, 11, 86_400_000, u64::MAX] {
            ages.add(age_ms);
        }
        assert_eq!(ages.counts, [1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(ages.sum_ms, u64::MAX, "it does not wrap");
    }
}
