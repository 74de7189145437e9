//! What excuses an otherwise broken promise, and what may have covered a value.
//!
//! Two kinds of fault excuse. Both are computed from the simulated disks at the moment of the damage, for exactly the
//! versions that it hit.
//!
//! - **Lost by fault** ([`History::lost_by_fault`]). A version that was destroyed on one node while no other copy of
//!   the key covered it: no other among the first n that the write asked for, or that keep the key. (A read that asked
//!   for more copies than are kept may have left an old record elsewhere.) For a quorum's promise only the first n
//!   count ([`History::lost_by_replicas`]). For a write of durability `disk`, only the destruction of synced bytes
//!   counts, and only synced bytes elsewhere count as another copy; so an acknowledgement before the sync excuses
//!   nothing. For `memory`, a crash counts as well; a refused batch excuses nothing.
//! - **Unnoticed** ([`History::unnoticed`]). A disk that went back in time under its store id answers as if it knew
//!   until it has heard a peer that knows better. A read is excused from showing a version if that very version was
//!   on the disk before and not after, and the read overlaps the time from the damage until the copy was filling, held
//!   the version again, or was welcomed by a process that had itself seen the store come further. If the machine crashes
//!   before that is on its disk, it has to be told again.

use client::Version;
use ring::{Durability, NodeId};

use crate::{
    history::{History, KeyId, WriteId, WriteKind, dot},
    schedule::Moment,
};

impl History {
    /// Whether all copies of this version were destroyed by faults that the promise for `durability` excepts, by
    /// `until`.
    #[must_use]
    pub fn lost_by_fault(
        &self,
        key: KeyId,
        n: Option<u8>,
        version: Version,
        durability: Durability,
        until: Moment,
    ) -> bool {
        let keepers = self.keepers.get(key.0);
        let is_kept = |node| keepers.is_none_or(|keepers| keepers.contains(&node));
        let counts = |node| is_kept(node) || self.replicas(key, n).any(|replica| replica == node);
        self.lost_among(counts, key, version, durability, until)
    }

    /// The same for the copies among the first n: a quorum counts on no others.
    #[must_use]
    pub fn lost_by_replicas(
        &self,
        key: KeyId,
        n: Option<u8>,
        version: Version,
        durability: Durability,
        until: Moment,
    ) -> bool {
        let is_replica = |node| self.replicas(key, n).any(|replica| replica == node);
        self.lost_among(is_replica, key, version, durability, until)
    }

    fn lost_among(
        &self,
        counts: impl Fn(NodeId) -> bool,
        key: KeyId,
        version: Version,
        durability: Durability,
        until: Moment,
    ) -> bool {
        let dot = dot(version);
        self.losses.iter().any(|loss| {
            loss.key == key
                && loss.at <= until
                && (loss.durability == Durability::Disk || durability == Durability::Memory)
                && loss.before.covers(dot)
                && !loss.survivors.iter().any(|(node, record)| counts(*node) && record.covers(dot))
        })
    }

    /// Whether nobody can record the stores that replaced the lost ones, so that their copies fill for ever: a run beyond
    /// the promises in which no majority of the members can vote any more.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.beyond_the_promise && self.electorate_is_lost
    }

    /// Whether a disk that had gone back behind this version was believed at some time from `from` to `until`.
    #[must_use]
    pub fn unnoticed(&self, key: KeyId, version: Version, from: Moment, until: Moment) -> bool {
        let dot = dot(version);
        self.regressions.iter().any(|regression| {
            regression.key == key
                && regression.at <= until
                && regression.noticed.is_none_or(|noticed| noticed >= from)
                && regression.before.covers(dot)
        })
    }

    /// Whether a read that ended at `until` may leave a value out: it may have been covered, or it may have ended.
    #[must_use]
    pub fn may_be_missing(&self, value: WriteId, until: Moment) -> bool {
        self.writes[value.0].expires_ms.is_some() || self.may_be_covered(value, until)
    }

    /// Whether a write that may have happened, sent before `until`, may have covered the value of `covered`: one that
    /// carried a context shown together with it, or a delete without a context that had not ended when `covered` began.
    #[must_use]
    pub fn may_be_covered(&self, covered: WriteId, until: Moment) -> bool {
        let began = self.writes[covered.0].began();
        let key = self.writes[covered.0].key;
        self.writes.iter().enumerate().any(|(index, write)| {
            write.key == key
                && index != covered.0
                && write.began() <= until
                && write.may_have_happened()
                && match write.context {
                    Some(context) if write.is_foreign => {
                        debug_assert_ne!(self.contexts[context.0].key, key);
                        false
                    }
                    Some(context) => self.contexts[context.0].shown.contains(&covered),
                    None => write.kind == WriteKind::Delete && write.took_effect_by() >= began,
                }
        })
    }
}
