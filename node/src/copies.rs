//! Whether a copy of a partition may be believed: *whole* or *filling*.
//!
//! A copy is filling when the node gained the partition, when its store is not the one that the document records,
//! when its store went back in time, when it acknowledged writes from memory and stopped uncleanly, and when one of
//! its records was found damaged. A filling copy takes merges, acknowledges and coordinates, but its answers to reads
//! do not count. It becomes whole by completed exchanges with every other copy. One state serves new owners and
//! wiped, restored and damaged disks alike.
//!
//! *Whole* is a stored mark for one store, for the time that it is recorded without a break, and for one gain epoch; a
//! copy without it is filling. (A disk that was replaced and put back has missed what its replacement acknowledged.) What is known only in
//! memory errs to the careful side: a copy is filling here before the removal of its mark is synced, and whole here
//! only after the mark is.
//!
//! A filling copy that has exchanged with some of the others, one of them whole, is whole for those requests whose n asks no
//! further: what the first n hold has reached it. So a dead node at the fifth place does not keep requests of three copies
//! waiting.
//!
//! **Union.** A filling copy takes from others that fill only what is above the partition's watermark: they may hold what a
//! whole copy knows to be dead and has forgotten. If for some records none of the others that keep them was whole, it begins a
//! round in which it takes everything, and is whole after it if it found the others in the same times of filling: then there
//! was a moment at which none of them was whole, and the union is all there is.

use std::collections::{BTreeMap, BTreeSet};

use antientropy::version::CopyCount;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::{Epoch, KeyspaceId, NodeId, PartitionId, StoreId};

use crate::{
    message::StartId,
    storage::{Sequence, seal_stored},
};

/// This node's copies.
pub(crate) struct Copies {
    copies: BTreeMap<PartitionId, Copy>,
    /// Copies with a mark on its way.
    marking: BTreeSet<PartitionId>,
    /// Counts from a random number the times that any copy began to fill, so that another time is told apart, whichever
    /// process it was in.
    generations: u64,
}

/// One copy.
struct Copy {
    gained: Epoch,
    state: State,
    memory: Memory,
}

/// Whether it may be believed.
enum State {
    Whole,
    Filling {
        /// Which time of filling this is.
        time: Time,
        /// The nodes with which exchanges were completed in this time, and in which time of filling each was; 0 if it was
        /// whole.
        exchanged: BTreeMap<NodeId, u64>,
        /// In a union: how the others were found in the round before.
        union: Option<BTreeMap<NodeId, u64>>,
        /// Of what it has refused in exchanges of this round: whose records, and for how many copies.
        blocked: BTreeSet<(KeyspaceId, CopyCount)>,
        /// The batch that carries the mark of wholeness, once it is on its way.
        becoming: Option<Sequence>,
    },
}

/// Which time of filling a copy is in: both 0 if it is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    /// Drawn when it begins to fill, and said to others.
    pub(crate) generation: u64,
    /// Counts how often it began to exchange with all others anew.
    round: u64,
}

/// Whether a filling copy has become whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// It has still to exchange with others.
    Filling,
    /// It has to exchange with all of them again.
    Again,
    /// Its mark may be written.
    Whole,
    /// The same, because no other copy was whole.
    Union,
}

/// What a copy was before it began to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Whole, or about to be: its mark says so, or may.
    Marked,
    /// Filling already.
    Filling,
}

/// Whether the stored mark says that this process acknowledges from memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    Unmarked,
    Marking(Sequence),
    Marked,
}

/// What is stored about a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Whether the copy was whole.
    pub(crate) whole: bool,
    /// The store whose copy it was.
    pub(crate) store: StoreId,
    /// Since when that store was recorded; epoch 0 if it was not.
    pub(crate) recorded: Epoch,
    /// The gain that it was about.
    pub(crate) gained: Epoch,
    /// The process that acknowledged writes from memory, if one did.
    pub(crate) memory: Option<StartId>,
}

impl Copies {
    /// No copies. The random number names their times of filling.
    pub(crate) fn new(random: u64) -> Copies {
        Copies { copies: BTreeMap::new(), marking: BTreeSet::new(), generations: random }
    }

    /// Takes over the partitions that a document gives this node, with the epoch of each gain. A copy that is
    /// already there for that gain stays as it is; others are whole if `whole` says so and filling otherwise.
    pub(crate) fn adopt(
        &mut self,
        gains: BTreeMap<PartitionId, Epoch>,
        whole: impl Fn(PartitionId, Epoch) -> bool,
    ) {
        self.copies.retain(|partition, copy| gains.get(partition) == Some(&copy.gained));
        for (partition, gained) in gains {
            if !self.copies.contains_key(&partition) {
                let state = if whole(partition, gained) { State::Whole } else { self.filling() };
                self.copies.insert(partition, Copy { gained, state, memory: Memory::Unmarked });
            }
        }
    }

    /// A new time of filling.
    fn filling(&mut self) -> State {
        self.generations = self.generations.wrapping_add(1).max(1);
        let time = Time { generation: self.generations, round: 0 };
        let (exchanged, blocked) = (BTreeMap::new(), BTreeSet::new());
        State::Filling { time, exchanged, union: None, blocked, becoming: None }
    }

    /// The copy cannot be believed any more. Says what it was before; none if there is no such copy.
    pub(crate) fn fill(&mut self, partition: PartitionId) -> Option<Before> {
        let state = self.filling();
        let copy = self.copies.get_mut(&partition)?;
        match std::mem::replace(&mut copy.state, state) {
            State::Whole | State::Filling { becoming: Some(_), .. } => Some(Before::Marked),
            State::Filling { becoming: None, .. } => Some(Before::Filling),
        }
    }

    /// The epoch at which this node gained the partition; none if it holds no copy.
    pub(crate) fn gained(&self, partition: PartitionId) -> Option<Epoch> {
        self.copies.get(&partition).map(|copy| copy.gained)
    }

    /// The partitions that this node holds copies of.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionId> {
        self.copies.keys().copied()
    }

    /// Whether the copy is whole for everyone.
    pub(crate) fn is_whole(&self, partition: PartitionId) -> bool {
        matches!(self.copies.get(&partition), Some(Copy { state: State::Whole, .. }))
    }

    /// Whether the copy is marked as whole, or will be with a batch that is on its way.
    pub(crate) fn is_marked(&self, partition: PartitionId) -> bool {
        let state = self.copies.get(&partition).map(|copy| &copy.state);
        matches!(state, Some(State::Whole | State::Filling { becoming: Some(_), .. }))
    }

    /// Whether the copy is whole as far as `others`, the other copies that a request asked for, are concerned.
    pub(crate) fn is_whole_for(
        &self,
        partition: PartitionId,
        others: impl IntoIterator<Item = NodeId>,
    ) -> bool {
        match self.copies.get(&partition).map(|copy| &copy.state) {
            Some(State::Whole) => true,
            // What it has refused may be alive: those that know have yet to say.
            Some(State::Filling { blocked, .. }) if !blocked.is_empty() => false,
            Some(State::Filling { exchanged, .. }) => {
                let found: Vec<Option<u64>> =
                    others.into_iter().map(|node| exchanged.get(&node).copied()).collect();
                found.iter().all(Option::is_some) && (found.is_empty() || found.contains(&Some(0)))
            }
            None => false,
        }
    }

    /// The time of filling that the copy is in.
    pub(crate) fn time(&self, partition: PartitionId) -> Time {
        match self.copies.get(&partition).map(|copy| &copy.state) {
            Some(State::Filling { time, .. }) => *time,
            Some(State::Whole) | None => Time::default(),
        }
    }

    /// Changes whenever any copy begins to fill.
    pub(crate) fn generations(&self) -> u64 {
        self.generations
    }

    /// Whether the copy fills, and did not, or in another time of filling, at `time`: it has lost something since.
    pub(crate) fn has_lost_since(&self, partition: PartitionId, time: Time) -> bool {
        let now = self.time(partition).generation;
        now != 0 && now != time.generation
    }

    /// Whether a filling copy has still to exchange with `node`.
    pub(crate) fn lacks_exchange(&self, partition: PartitionId, node: NodeId) -> bool {
        match self.copies.get(&partition).map(|copy| &copy.state) {
            Some(State::Filling { exchanged, .. }) => !exchanged.contains_key(&node),
            Some(State::Whole) | None => false,
        }
    }

    /// An exchange with `node`, which was in this time of filling or whole, is complete that began in `time`.
    pub(crate) fn exchanged(&mut self, partition: PartitionId, time: Time, node: NodeId, theirs: u64) {
        if let Some(State::Filling { time: current, exchanged, .. }) =
            self.copies.get_mut(&partition).map(|copy| &mut copy.state)
            && *current == time
        {
            exchanged.insert(node, theirs);
        }
    }

    /// A filling copy has to exchange with all others again.
    pub(crate) fn begin_round(&mut self, partition: PartitionId) {
        if let Some(State::Filling { time, exchanged, union, blocked, becoming: None }) =
            self.copies.get_mut(&partition).map(|copy| &mut copy.state)
        {
            time.round += 1;
            exchanged.clear();
            blocked.clear();
            *union = None;
        }
    }

    /// Whether a filling copy has exchanged with all of `others` and its mark may be written. If what was found in the
    /// others needs a union, that begins.
    pub(crate) fn judge(
        &mut self,
        partition: PartitionId,
        others: &[NodeId],
        needs_union: impl FnOnce(&BTreeMap<NodeId, u64>, &BTreeSet<(KeyspaceId, CopyCount)>) -> bool,
    ) -> Judged {
        let Some(State::Filling { time, exchanged, union, blocked, becoming: None }) =
            self.copies.get_mut(&partition).map(|copy| &mut copy.state)
        else {
            return Judged::Filling;
        };
        if !others.iter().all(|other| exchanged.contains_key(other)) {
            return Judged::Filling;
        }
        match union {
            None if !needs_union(exchanged, blocked) => Judged::Whole,
            None => {
                *union = Some(std::mem::take(exchanged));
                blocked.clear();
                time.round += 1;
                Judged::Again
            }
            Some(before) => {
                let is_same = |node: &NodeId| {
                    let before = before.get(node);
                    before == Some(&0) || before == exchanged.get(node)
                };
                if others.iter().all(is_same) {
                    return Judged::Union;
                }
                // It took what a copy that is whole by now may know to be dead.
                self.begin_round(partition);
                Judged::Again
            }
        }
    }

    /// A filling copy refuses a record in an exchange, of this keyspace and for so many copies.
    pub(crate) fn blocked(&mut self, partition: PartitionId, keyspace: KeyspaceId, copies: CopyCount) {
        if let Some(State::Filling { blocked, .. }) =
            self.copies.get_mut(&partition).map(|copy| &mut copy.state)
        {
            blocked.insert((keyspace, copies));
        }
    }

    /// In a union: how the others were found before it began.
    pub(crate) fn union(&self, partition: PartitionId) -> Option<&BTreeMap<NodeId, u64>> {
        match self.copies.get(&partition).map(|copy| &copy.state) {
            Some(State::Filling { union, .. }) => union.as_ref(),
            Some(State::Whole) | None => None,
        }
    }

    /// The mark of wholeness is on its way with this batch.
    pub(crate) fn becoming_whole(&mut self, partition: PartitionId, sequence: Sequence) {
        if let Some(Copy { state: State::Filling { becoming, .. }, .. }) = self.copies.get_mut(&partition) {
            *becoming = Some(sequence);
            self.marking.insert(partition);
        }
    }

    /// Batches through `sequence` are synced: marks that were on their way are in force. Returns the copies that
    /// became whole.
    pub(crate) fn committed(&mut self, sequence: Sequence) -> Vec<PartitionId> {
        let mut whole = Vec::new();
        let copies = &mut self.copies;
        self.marking.retain(|partition| {
            let Some(copy) = copies.get_mut(partition) else { return false };
            if matches!(copy.memory, Memory::Marking(at) if at <= sequence) {
                copy.memory = Memory::Marked;
            }
            if matches!(copy.state, State::Filling { becoming: Some(at), .. } if at <= sequence) {
                copy.state = State::Whole;
                whole.push(*partition);
            }
            let is_becoming = matches!(copy.state, State::Filling { becoming: Some(_), .. });
            is_becoming || matches!(copy.memory, Memory::Marking(_))
        });
        whole
    }

    /// The batch was refused: marks that were in it have to be written again. Returns the copies that would have
    /// become whole with it.
    pub(crate) fn commit_failed(&mut self, sequence: Sequence) -> Vec<PartitionId> {
        let mut unmarked = Vec::new();
        for (partition, copy) in &mut self.copies {
            if copy.memory == Memory::Marking(sequence) {
                copy.memory = Memory::Unmarked;
            }
            if let State::Filling { becoming, .. } = &mut copy.state
                && *becoming == Some(sequence)
            {
                *becoming = None;
                unmarked.push(*partition);
            }
        }
        unmarked
    }

    /// Whether the mark says, or is about to say with the batch that is returned, that writes are acknowledged from
    /// memory.
    pub(crate) fn memory_mark(&self, partition: PartitionId) -> Option<Option<Sequence>> {
        match self.copies.get(&partition)?.memory {
            Memory::Unmarked => None,
            Memory::Marking(sequence) => Some(Some(sequence)),
            Memory::Marked => Some(None),
        }
    }

    /// The mark of acknowledgements from memory is on its way with this batch.
    pub(crate) fn marking_memory(&mut self, partition: PartitionId, sequence: Sequence) {
        if let Some(copy) = self.copies.get_mut(&partition) {
            copy.memory = Memory::Marking(sequence);
            self.marking.insert(partition);
        }
    }

    /// What is to be stored about a copy as it now stands, or as it will once its mark of wholeness is synced.
    pub(crate) fn mark(
        &self,
        partition: PartitionId,
        (store, recorded): (StoreId, Epoch),
        start: StartId,
    ) -> Option<Mark> {
        let copy = self.copies.get(&partition)?;
        let whole = match copy.state {
            State::Whole => true,
            State::Filling { becoming, .. } => becoming.is_some(),
        };
        let memory = (copy.memory != Memory::Unmarked).then_some(start);
        Some(Mark { whole, store, recorded, gained: copy.gained, memory })
    }

    /// How many copies there are, and how many of them are whole.
    pub(crate) fn census(&self) -> (usize, usize) {
        let whole = self.copies.values().filter(|copy| matches!(copy.state, State::Whole)).count();
        (self.copies.len(), whole)
    }
}

impl Mark {
    /// The key under which the mark of a partition is stored.
    fn key(partition: PartitionId) -> Bytes {
        let mut key = BytesMut::with_capacity(Mark::PREFIX.len() + 2);
        key.put_slice(Mark::PREFIX);
        key.put_u16(partition.0);
        key.freeze()
    }

    /// The partition that a key of a mark names.
    pub(crate) fn partition(key: &[u8]) -> Option<PartitionId> {
        let number = key.strip_prefix(Mark::PREFIX)?;
        Some(PartitionId(u16::from_be_bytes(number.try_into().ok()?)))
    }

    /// Writes the mark: a byte of flags, the store, since when it is recorded, the gain and the process.
    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(u8::from(self.whole) | u8::from(self.memory.is_some()) << 1);
        out.put_u64(self.store.0);
        out.put_u64(self.recorded.0);
        out.put_u64(self.gained.0);
        out.put_u64(self.memory.map_or(0, |start| start.0));
    }

    /// The mark of a partition as it is stored: a key and a value.
    pub(crate) fn to_store(self, partition: PartitionId) -> (Bytes, Bytes) {
        let key = Mark::key(partition);
        let value = seal_stored(&key, |out| self.encode(out), Mark::BYTES);
        (key, value)
    }

    /// Reads a mark; none if it is none.
    pub(crate) fn decode(mut stored: Bytes) -> Option<Mark> {
        if stored.len() != Mark::BYTES {
            return None;
        }
        let flags = stored.get_u8();
        let (store, recorded) = (stored.get_u64(), stored.get_u64());
        let (gained, start) = (stored.get_u64(), stored.get_u64());
        (flags < 4).then(|| Mark {
            whole: flags & 1 != 0,
            store: StoreId(store),
            recorded: Epoch(recorded),
            gained: Epoch(gained),
            memory: (flags & 2 != 0).then_some(StartId(start)),
        })
    }

    /// What every key of a mark begins with.
    pub(crate) const PREFIX: &[u8] = b"copy/";
    /// Bytes of an encoded mark.
    const BYTES: usize = 33;
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(3);
    const OTHERS: [NodeId; 2] = [NodeId(2), NodeId(3)];

    const WHOLE: u64 = 0;

    fn gained_one() -> Copies {
        let mut copies = Copies::new(7);
        copies.adopt(BTreeMap::from([(P, Epoch(1))]), |_, _| false);
        copies
    }

    fn judge(copies: &mut Copies) -> Judged {
        copies.judge(P, &OTHERS, |found, _| !found.values().any(|found| *found == WHOLE))
    }

    #[test]
    fn a_copy_is_whole_once_its_mark_is_synced_and_not_before() {
        let mut copies = gained_one();
        let time = copies.time(P);
        copies.exchanged(P, time, NodeId(2), WHOLE);
        assert_eq!(judge(&mut copies), Judged::Filling);
        assert!(copies.is_whole_for(P, [NodeId(2)]), "whole for requests that ask no further");
        copies.exchanged(P, time, NodeId(3), 77);
        assert_eq!(judge(&mut copies), Judged::Whole);
        copies.becoming_whole(P, Sequence(7));
        assert!(!copies.is_whole(P));
        assert_eq!(copies.committed(Sequence(6)), []);
        assert_eq!(copies.committed(Sequence(7)), [P]);
        assert!(copies.is_whole(P));
    }

    #[test]
    fn an_exchange_of_an_earlier_time_of_filling_does_not_count() {
        let mut copies = gained_one();
        let earlier = copies.time(P);
        copies.exchanged(P, earlier, NodeId(2), WHOLE);
        assert_eq!(copies.fill(P), Some(Before::Filling));
        copies.exchanged(P, earlier, NodeId(3), WHOLE);
        assert!(copies.lacks_exchange(P, NodeId(2)) && copies.lacks_exchange(P, NodeId(3)));
        let earlier = copies.time(P);
        copies.begin_round(P);
        copies.exchanged(P, earlier, NodeId(3), WHOLE);
        assert!(copies.lacks_exchange(P, NodeId(3)));
    }

    #[test]
    fn where_nobody_is_whole_the_union_is_taken_in_another_round() {
        let mut copies = gained_one();
        let exchange = |copies: &mut Copies, theirs: [u64; 2]| {
            let time = copies.time(P);
            for (other, theirs) in OTHERS.into_iter().zip(theirs) {
                copies.exchanged(P, time, other, theirs);
            }
            judge(copies)
        };
        assert_eq!(exchange(&mut copies, [20, 30]), Judged::Again);
        assert!(copies.union(P).is_some() && !copies.is_whole_for(P, [NodeId(2)]));
        assert_eq!(exchange(&mut copies, [20, WHOLE]), Judged::Again, "one has become whole meanwhile");
        assert!(copies.union(P).is_none());
        assert_eq!(exchange(&mut copies, [20, WHOLE]), Judged::Whole);
        let mut copies = gained_one();
        exchange(&mut copies, [20, 30]);
        assert_eq!(exchange(&mut copies, [20, 30]), Judged::Union);
    }

    #[test]
    fn damage_while_the_mark_is_on_its_way_wins() {
        let mut copies = gained_one();
        copies.becoming_whole(P, Sequence(7));
        copies.fill(P);
        copies.committed(Sequence(7));
        assert!(!copies.is_whole(P));
    }

    #[test]
    fn a_gain_is_another_copy() {
        let mut copies = Copies::new(7);
        copies.adopt(BTreeMap::from([(P, Epoch(1))]), |_, _| true);
        copies.adopt(BTreeMap::from([(P, Epoch(1))]), |_, _| false);
        assert!(copies.is_whole(P), "the same gain, the same copy");
        copies.adopt(BTreeMap::from([(P, Epoch(5))]), |_, _| false);
        assert!(!copies.is_whole(P));
    }

    #[test]
    fn a_mark_reads_back() {
        let (store, recorded, gained) = (StoreId(9), Epoch(3), Epoch(4));
        let mark = Mark { whole: true, store, recorded, gained, memory: Some(StartId(u64::MAX)) };
        let mut out = BytesMut::new();
        mark.encode(&mut out);
        assert_eq!(Mark::decode(out.clone().freeze()), Some(mark));
        assert_eq!(Mark::decode(out.freeze().slice(1..)), None);
        assert_eq!(Mark::partition(&Mark::key(P)), Some(P));
    }
}
