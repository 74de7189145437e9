//! Two replicas that hold different things hold the same after an exchange, at a cost that follows from what differed.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc};

use antientropy::{
    exchange::{
        Entry, Exchange, ExchangeError, FollowError, Follower, Object, Question, Replica, Report, Span,
        Stretch, TreeId, TreeKind, memory::MemoryReplica,
    },
    hash_tree::{HashTree, position_of},
    version::{Actor, Context, CopyCount, Counter, Dot, Record, SiblingSet, Value},
};
use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use ring::{KeyspaceId, PartitionId, Partitions, Token};

const SECRET: [u8; 32] = [9; 32];
const KEYSPACE: KeyspaceId = KeyspaceId(1);

/// What a key's record is made of: who wrote it, in which order.
fn record(writes: &[(u64, u64)], copies: u8) -> Arc<Record> {
    let copies = if copies == 0 { CopyCount::default() } else { CopyCount::explicit(copies) };
    let mut set = SiblingSet::new();
    for (actor, counter) in writes {
        let mut one = SiblingSet::new();
        let dot = Dot { actor: Actor(*actor), counter: Counter(*counter) };
        one.write(dot, &Context::new(), Some(Value::new(vec![*actor as u8; 100])), copies);
        set.merge(&one);
    }
    Arc::new(Record::Siblings(set))
}

fn overwritten(before: &Record, counter: u64) -> Arc<Record> {
    let Record::Siblings(mut set) = before.clone() else { unreachable!("all are sibling sets") };
    let context = set.context();
    let dot = Dot { actor: Actor(77), counter: Counter(counter) };
    set.write(dot, &context, Some(Value::new(vec![7; 100])), CopyCount::default());
    Arc::new(Record::Siblings(set))
}

fn partitions(bits: u8) -> Partitions {
    Partitions::new(1 << bits).expect("a power of two")
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:012}"))
}

/// A replica of so many keys, in 64 partitions.
fn filled(keys: u64) -> MemoryReplica {
    let mut replica = MemoryReplica::new(SECRET, partitions(6), keys >> 6);
    (0..keys).for_each(|number| replica.set(KEYSPACE, key(number), Some(record(&[(1, 1000 + number)], 0))));
    replica
}

/// One that holds deletions alone: a flipped bit of a value would be another value under the same dot, which records,
/// and not exchanges, have an opinion on.
fn deleted(keys: u64) -> MemoryReplica {
    let mut replica = MemoryReplica::new(SECRET, partitions(6), keys >> 6);
    for number in 0..keys {
        let (mut set, dot) = (SiblingSet::new(), Dot { actor: Actor(1), counter: Counter(1000 + number) });
        set.write(dot, &Context::new(), None, CopyCount::default());
        replica.set(KEYSPACE, key(number), Some(Arc::new(Record::Siblings(set))));
    }
    replica
}

fn newer(number: u64) -> Arc<Record> {
    overwritten(&record(&[(1, 1000 + number)], 0), 1 << 50 | number)
}

/// Answers questions in an order that the dice decide, until there are none.
fn run<R: Replica<Error = Infallible>>(
    leader: &mut R,
    follower: &mut R,
    salt: u64,
) -> Result<Report, ExchangeError<Infallible>> {
    let mut other = Follower::new();
    let (mut exchange, question) = Exchange::begin(leader, salt);
    let mut open = vec![question];
    let mut dice = salt;
    while let Some(Question { number, message }) = draw(&mut open, &mut dice) {
        assert!(exchange.report().messages < 10_000, "it does not end");
        let answer = other.answer(follower, message, true).expect("a question that makes sense");
        open.extend(exchange.answered(leader, number, answer)?);
    }
    assert!(exchange.is_complete());
    Ok(exchange.report())
}

/// One of the questions, as the dice fall.
fn draw(open: &mut Vec<Question>, dice: &mut u64) -> Option<Question> {
    *dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    (!open.is_empty()).then(|| open.swap_remove((*dice >> 33) as usize % open.len()))
}

fn assert_equal(here: &MemoryReplica, there: &MemoryReplica) {
    assert_eq!(here.len(), there.len());
    assert!(here.iter().eq(there.iter()));
}

/// What an exchange took beside the objects, for each key that differed.
fn overhead(report: &Report) -> f64 {
    (report.bytes - report.payload_bytes) as f64 / (report.updated + report.missing) as f64
}

#[test]
fn equals_take_one_round_trip_of_some_bytes() {
    let (mut here, mut there) = (filled(20_000), filled(20_000));
    let report = run(&mut here, &mut there, 1).unwrap();
    assert_eq!((report.messages, report.round_trips), (1, 1));
    assert!(report.bytes < 100, "{report:?}");
}

#[test]
fn one_difference_takes_four_round_trips_at_most() {
    for case in 0..4 {
        let (mut here, mut there) = (filled(20_000), filled(20_000));
        let changed = if case % 2 == 0 { &mut here } else { &mut there };
        let record = if case < 2 { Some(newer(777)) } else { None };
        changed.set(KEYSPACE, key(777), record);
        let report = run(&mut here, &mut there, case).unwrap();
        assert_equal(&here, &there);
        assert!(report.round_trips <= 4, "{report:?}");
        assert_eq!(report.updated + report.missing, 1);
        assert_eq!(report.objects_received + report.objects_sent, 1, "no record goes the wrong way");
        assert!(overhead(&report) < 1100.0, "{report:?}");
    }
}

#[test]
fn the_cost_follows_from_what_differs() {
    const KEYS: u64 = 100_000;
    const DIFFERING: u64 = 1000;
    let mut order: Vec<u64> = (0..KEYS).collect();
    order.sort_unstable_by_key(|number| Token::of_key(&key(*number)));
    let stretch: Vec<u64> = order[5000..].iter().copied().take(DIFFERING as usize).collect();
    let scattered: Vec<u64> = (0..DIFFERING).map(|number| number * (KEYS / DIFFERING)).collect();
    for (name, keys, limit) in [("scattered", scattered, 64.0), ("clustered", stretch, 64.0)] {
        let (mut here, mut there) = (filled(KEYS), filled(KEYS));
        for (at, number) in keys.iter().enumerate() {
            let changed = if at % 2 == 0 { &mut here } else { &mut there };
            changed.set(KEYSPACE, key(*number), Some(newer(*number)));
        }
        let report = run(&mut here, &mut there, 5).unwrap();
        assert_equal(&here, &there);
        assert_eq!((report.updated, report.missing), (DIFFERING, 0), "{name}: {report:?}");
        assert!(overhead(&report) < limit, "{name}: {} {report:?}", overhead(&report));
        for side in 0..2 {
            let (mut here, mut there) = (filled(KEYS), filled(KEYS));
            let lacking = if side == 0 { &mut here } else { &mut there };
            keys.iter().for_each(|number| lacking.set(KEYSPACE, key(*number), None));
            let report = run(&mut here, &mut there, 6).unwrap();
            assert_equal(&here, &there);
            assert_eq!((report.updated, report.missing), (0, DIFFERING), "{name}: {report:?}");
            assert!(overhead(&report) < 40.0, "{name} {side}: {} {report:?}", overhead(&report));
        }
    }
}

#[test]
fn much_that_differs_takes_little_more_than_it_is() {
    const KEYS: u64 = 40_000;
    for (share, is_updated) in [(10, true), (3, true), (1, true), (10, false), (2, false)] {
        let (mut here, mut there) = (filled(KEYS), filled(KEYS));
        for number in (0..KEYS).step_by(share) {
            here.set(KEYSPACE, key(number), is_updated.then(|| newer(number)));
        }
        let report = run(&mut here, &mut there, 7).unwrap();
        assert_equal(&here, &there);
        let bound = report.payload_bytes + 16 * (2 * report.updated + report.missing);
        let times = report.bytes as f64 / bound as f64;
        assert!(times < 1.25, "one in {share}, updated {is_updated}: {times} {report:?}");
    }
}

/// An ask names the first bits of a position, which others may share. That those are known does not make it all that is there.
#[test]
fn keys_that_begin_like_one_that_was_compared_are_found_too() {
    const KEYS: u64 = 2000;
    // So many bits of a token are told if there are so many keys.
    let begin = |number: u64| Token::of_key(&key(number)).0 >> (64 - 12 - 12);
    let compared: BTreeSet<u64> = (0..KEYS).map(begin).collect();
    let is_alike = |number: &u64| compared.contains(&begin(*number));
    let alike: Vec<u64> = (2 * KEYS..200 * KEYS).filter(is_alike).take(25).collect();
    assert_eq!(alike.len(), 25);
    for salt in 0..5 {
        let [mut here, mut there] = [(); 2].map(|()| MemoryReplica::new(SECRET, partitions(6), KEYS >> 6));
        for number in 0..KEYS {
            here.set(KEYSPACE, key(number), Some(record(&[(1, 1)], 2)));
            there.set(KEYSPACE, key(number), Some(record(&[(1, 1), (2, 2)], 2)));
            // What both hold of the other kind.
            here.set(KEYSPACE, key(KEYS + number), Some(record(&[(1, 1)], 0)));
            there.set(KEYSPACE, key(KEYS + number), Some(record(&[(1, 1)], 0)));
        }
        alike.iter().for_each(|number| there.set(KEYSPACE, key(*number), Some(record(&[(1, 1)], 0))));
        run(&mut here, &mut there, salt).unwrap();
        assert_equal(&here, &there);
    }
}

#[test]
fn a_side_that_holds_nothing_or_little_is_filled_for_little_more_than_the_objects() {
    const KEYS: u64 = 20_000;
    for held in [0, 100, 2000] {
        for is_leading in [true, false] {
            let (mut full, mut empty) = (filled(KEYS), MemoryReplica::new(SECRET, partitions(6), 0));
            for number in 0..held {
                empty.set(KEYSPACE, key(number * 3), Some(newer(number * 3)));
            }
            let (here, there) = if is_leading { (&mut empty, &mut full) } else { (&mut full, &mut empty) };
            let report = run(here, there, 8).unwrap();
            assert_equal(here, there);
            let per_object = report.bytes as f64 / KEYS as f64 - 144.0;
            assert!(per_object < 30.0, "{held} {is_leading}: {per_object} {report:?}");
        }
    }
}

#[test]
fn a_follower_that_forgot_ends_the_exchange_and_the_next_one_works() {
    let (mut here, mut there) = (filled(5000), filled(5000));
    (0..1000).for_each(|number| here.set(KEYSPACE, key(number * 5), Some(newer(number * 5))));
    for answers in 1..4 {
        let mut follower = Follower::new();
        let (mut exchange, question) = Exchange::begin(&here, 3);
        let mut open = vec![question];
        for _ in 0..answers {
            let Some(Question { number, message }) = open.pop() else { break };
            let answer = follower.answer(&mut there, message, true).unwrap();
            open.extend(exchange.answered(&mut here, number, answer).unwrap());
        }
        let Some(Question { number, message }) = open.pop() else { continue };
        let mut forgetful = Follower::new();
        let answer = forgetful.answer(&mut there, message, true).unwrap();
        match exchange.answered(&mut here, number, answer) {
            Err(ExchangeError::Forgotten) | Ok(_) => {}
            Err(other) => panic!("{other}"),
        }
    }
    run(&mut here, &mut there, 4).unwrap();
    assert_equal(&here, &there);
}

/// A replica that refuses some keys, and may believe what whole copies say.
struct Choosy {
    held: MemoryReplica,
    /// Of these it takes nothing that it does not hold.
    refused: BTreeSet<Bytes>,
    /// Whether it holds whatever a copy says that is whole under a watermark.
    believes: bool,
    /// Under which watermark it is whole where a key is.
    under: fn(&Bytes) -> Counter,
    /// Records of so many copies are no matter of the other side's.
    keeps_alone: Option<CopyCount>,
    /// What came.
    came: Vec<Object>,
    /// How many stretches were read.
    stretches: u64,
}

impl Choosy {
    /// One that holds this, and takes everything.
    fn holding(held: MemoryReplica, under: fn(&Bytes) -> Counter) -> Choosy {
        let (refused, keeps_alone, came) = (BTreeSet::new(), None, Vec::new());
        Choosy { held, refused, believes: false, under, keeps_alone, came, stretches: 0 }
    }

    fn keeping_alone(self, copies: CopyCount) -> Choosy {
        Choosy { keeps_alone: Some(copies.most()), ..self }
    }

    fn both_keep(&self, copies: CopyCount) -> bool {
        self.keeps_alone != Some(copies.most())
    }

    fn refusing(self, keys: impl IntoIterator<Item = u64>) -> Choosy {
        Choosy { refused: keys.into_iter().map(key).collect(), ..self }
    }

    fn believing(self) -> Choosy {
        Choosy { believes: true, ..self }
    }
}

impl Replica for Choosy {
    type Error = Infallible;

    fn partition_bits(&self) -> u8 {
        self.held.partition_bits()
    }

    fn kinds(&self) -> Vec<TreeKind> {
        let kinds = self.held.kinds().into_iter();
        kinds.filter(|kind| self.both_keep(kind.copies)).collect()
    }

    fn partitions(&self, kind: TreeKind) -> Vec<PartitionId> {
        if self.both_keep(kind.copies) { Replica::partitions(&self.held, kind) } else { Vec::new() }
    }

    fn unbuilt(&self) -> Vec<PartitionId> {
        self.held.unbuilt()
    }

    fn tree(&self, tree: TreeId) -> Option<&HashTree> {
        self.held.tree(tree)
    }

    fn secret(&self) -> &[u8; 32] {
        self.held.secret()
    }

    fn entries(&mut self, tree: TreeId, span: Span, limit: usize) -> Result<Option<Vec<Entry>>, Infallible> {
        self.held.entries(tree, span, limit)
    }

    fn objects(
        &mut self,
        keyspace: KeyspaceId,
        copies: Option<CopyCount>,
        span: Span,
        bytes_max: usize,
    ) -> Result<Stretch, Infallible> {
        self.stretches += 1;
        let mut found = self.held.objects(keyspace, copies, span, bytes_max)?;
        found
            .objects
            .retain(|object| object.record.as_ref().is_some_and(|record| self.both_keep(record.copies())));
        found.objects.iter_mut().for_each(|object| object.under = (self.under)(&object.key));
        Ok(found)
    }

    fn held(&mut self, keyspace: KeyspaceId, key: &Bytes) -> Result<Object, Infallible> {
        let mut held = self.held.held(keyspace, key)?;
        held.record = held.record.filter(|record| self.both_keep(record.copies()));
        Ok(Object { under: (self.under)(key), ..held })
    }

    fn merge(&mut self, keyspace: KeyspaceId, object: &Object) -> Result<bool, Infallible> {
        self.came.push(object.clone());
        if self.held.get(keyspace, &object.key) == object.record.as_ref() {
            return Ok(true);
        }
        if self.refused.contains(&object.key) {
            return Ok(false);
        }
        if self.believes && object.under > Counter::ZERO {
            self.held.set(keyspace, object.key.clone(), object.record.clone());
            return Ok(true);
        }
        self.held.merge(keyspace, object)
    }
}

fn under_nothing(_: &Bytes) -> Counter {
    Counter::ZERO
}

fn under_one(_: &Bytes) -> Counter {
    Counter(1 << 60)
}

/// Another in each partition.
fn under_many(key: &Bytes) -> Counter {
    Counter(1 << 60 | u64::from(partitions(6).of(Token::of_key(key)).0))
}

const GHOSTS: u64 = 300;

/// What holds all keys, and what lacks the first.
fn haunted(keys: u64) -> [MemoryReplica; 2] {
    let (full, mut sound) = (filled(keys), filled(keys));
    (0..GHOSTS).for_each(|number| sound.set(KEYSPACE, key(number), None));
    [full, sound]
}

#[test]
fn what_the_other_side_refuses_and_does_not_hold_is_dropped_where_it_is_believed() {
    for keys in [GHOSTS, 20_000] {
        for is_leading in [true, false] {
            let [haunted, sound] = haunted(keys);
            let mut haunted = Choosy::holding(haunted, under_nothing).believing();
            let mut sound = Choosy::holding(sound, under_one).refusing(0..GHOSTS);
            let (here, there) =
                if is_leading { (&mut haunted, &mut sound) } else { (&mut sound, &mut haunted) };
            let report = run(here, there, 9).unwrap();
            assert_eq!(sound.held.len() as u64, keys - GHOSTS);
            assert_equal(&haunted.held, &sound.held);
            let moved = report.objects_sent + report.objects_received;
            assert_eq!(moved, 2 * GHOSTS, "each goes there, and comes back as nothing: {report:?}");
        }
    }
}

#[test]
fn what_neither_side_takes_is_left() {
    let [haunted, sound] = haunted(20_000);
    let (here_first, there_first) = (haunted.len(), sound.len());
    for is_leading in [true, false] {
        let mut haunted = Choosy::holding(haunted.clone(), under_one).refusing(0..GHOSTS);
        let mut sound = Choosy::holding(sound.clone(), under_one).refusing(0..GHOSTS);
        let (here, there) = if is_leading { (&mut haunted, &mut sound) } else { (&mut sound, &mut haunted) };
        let report = run(here, there, 10).unwrap();
        assert_eq!((haunted.held.len(), sound.held.len()), (here_first, there_first));
        assert_eq!(report.missing, GHOSTS, "{report:?}");
        let moved = report.objects_sent + report.objects_received;
        assert!(moved <= 8 * GHOSTS, "each goes there four times at most: {report:?}");
        assert!(report.messages < 100, "{report:?}");
    }
}

#[test]
fn what_an_answer_has_no_room_for_is_told_later() {
    for keys in [GHOSTS, 20_000] {
        let [haunted, mut sound] = haunted(keys);
        for number in (0..GHOSTS).step_by(3) {
            // It looks older than the ghost, which is sent, and takes the room that others need.
            let (mut set, dot) = (SiblingSet::new(), Dot { actor: Actor(3), counter: Counter(1) });
            set.write(dot, &Context::new(), Some(Value::new(vec![3; 3000])), CopyCount::default());
            sound.set(KEYSPACE, key(number), Some(Arc::new(Record::Siblings(set))));
        }
        let mut haunted = Choosy::holding(haunted, under_nothing).believing();
        let mut sound = Choosy::holding(sound, under_one).refusing(0..GHOSTS);
        run(&mut haunted, &mut sound, 11).unwrap();
        assert_equal(&haunted.held, &sound.held);
        assert_eq!(sound.held.len() as u64, keys - GHOSTS + GHOSTS.div_ceil(3));
    }
}

#[test]
fn keys_that_were_compared_are_not_looked_for_again() {
    const KEYS: u64 = 20_000;
    let (here, mut there) = (filled(KEYS), filled(KEYS));
    (0..KEYS).step_by(10).for_each(|number| there.set(KEYSPACE, key(number), Some(newer(number))));
    let [mut here, mut there] = [here, there].map(|held| Choosy::holding(held, under_nothing));
    let report = run(&mut here, &mut there, 14).unwrap();
    assert_equal(&here.held, &there.held);
    assert_eq!(report.updated, KEYS / 10);
    // Those of which a bucket's sum told are.
    let looked = here.stretches + there.stretches;
    assert!(looked < report.updated / 2, "{looked} of {}", report.updated);
}

/// What one side alone was to keep becomes both sides' when it is joined with what both are to keep. It was in nobody's sketch.
#[test]
fn what_becomes_both_sides_by_what_is_sent_is_on_both_sides() {
    const KEYS: u64 = 4000;
    const MIXED: u64 = 400;
    let alone = CopyCount::explicit(1);
    let written = |actor: u64, len: usize, copies: CopyCount| {
        let (mut set, dot) = (SiblingSet::new(), Dot { actor: Actor(actor), counter: Counter(actor) });
        set.write(dot, &Context::new(), Some(Value::new(vec![7; len])), copies);
        Arc::new(Record::Siblings(set))
    };
    for salt in 0..4 {
        let [mut here, mut there] = [(); 2].map(|()| MemoryReplica::new(SECRET, partitions(6), KEYS >> 6));
        for number in 0..KEYS {
            let both = written(1, 100, CopyCount::DEFAULT);
            here.set(KEYSPACE, key(number), Some(Arc::clone(&both)));
            // So large that an answer has no room for a second.
            let theirs = if number < MIXED { written(2, 10_000, alone) } else { both };
            there.set(KEYSPACE, key(number), Some(theirs));
        }
        let [mut here, mut there] =
            [here, there].map(|held| Choosy::holding(held, under_nothing).keeping_alone(alone));
        run(&mut here, &mut there, salt).unwrap();
        assert_equal(&here.held, &there.held);
    }
}

/// Keys whose hashes begin with the same 56 bits, found among a thousand millions.
const AT_ONE_POSITION: [u64; 2] = [151_231_253, 784_099_725];

#[test]
fn two_keys_at_one_position_are_found_although_one_looks_newer() {
    let keys = AT_ONE_POSITION.map(key);
    let [first, second] = keys.each_ref().map(|key| position_of(Token::of_key(key)));
    assert_eq!(first, second);
    // Where a bucket's sum tells of the position, and where keys are compared.
    for others in [0, 500] {
        for is_newer_here in [true, false] {
            let (mut here, mut there) = (filled(10_000), filled(10_000));
            (0..others).for_each(|number| there.set(KEYSPACE, key(number), Some(newer(number))));
            let (ours, theirs) = if is_newer_here { (9, 5) } else { (5, 9) };
            here.set(KEYSPACE, keys[0].clone(), Some(record(&[(1, ours)], 0)));
            there.set(KEYSPACE, keys[1].clone(), Some(record(&[(1, theirs)], 0)));
            let report = run(&mut here, &mut there, 15).unwrap();
            assert_equal(&here, &there);
            assert!(report.messages < 200, "{report:?}");
        }
    }
}

#[test]
fn watermarks_come_as_records_were_read_and_cost_less_than_a_byte_a_key() {
    const KEYS: u64 = 20_000;
    const DIFFERING: u64 = 500;
    fn other_many(key: &Bytes) -> Counter {
        Counter(1 << 61 | Token::of_key(key).0 & 0xff)
    }
    let sides = |how: u8| {
        let (mut here, mut there) = (filled(KEYS), filled(KEYS));
        for number in (0..DIFFERING).map(|number| number * (KEYS / DIFFERING)) {
            match how {
                0 => here.set(KEYSPACE, key(number), None),
                1 => there.set(KEYSPACE, key(number), None),
                2 => here.set(KEYSPACE, key(number), Some(newer(number))),
                3 => there.set(KEYSPACE, key(number), Some(newer(number))),
                // Records that have to be joined.
                4 => {
                    here.set(KEYSPACE, key(number), Some(record(&[(2, 1 << 50)], 0)));
                    there.set(KEYSPACE, key(number), Some(record(&[(3, 1 << 50)], 0)));
                }
                _ => here = MemoryReplica::new(SECRET, partitions(6), 0),
            }
        }
        (here, there)
    };
    for how in 0..6 {
        let mut bytes = Vec::new();
        for (ours, theirs) in [
            (under_nothing as fn(&Bytes) -> Counter, under_nothing as fn(&Bytes) -> Counter),
            (under_one, under_one),
            (under_many, other_many),
        ] {
            let (here, there) = sides(how);
            let (mut here, mut there) = (Choosy::holding(here, ours), Choosy::holding(there, theirs));
            let report = run(&mut here, &mut there, 12).unwrap();
            assert_equal(&here.held, &there.held);
            assert_eq!(
                (here.came.len() as u64, there.came.len() as u64),
                (report.objects_received, report.objects_sent)
            );
            assert!(here.came.iter().all(|object| object.under == theirs(&object.key)));
            assert!(there.came.iter().all(|object| object.under == ours(&object.key)));
            bytes.push(report.bytes as f64 / (report.updated + report.missing) as f64);
        }
        assert!(bytes[1] - bytes[0] < 1.0, "{how}: {bytes:?}");
        assert!(bytes[2] - bytes[0] < 18.0, "{how}: {bytes:?}");
    }
}

/// A key with what each side holds of it: who wrote it, and for how many copies.
type Content = (u8, Vec<(u8, u8)>, Vec<(u8, u8)>, u8);

fn set(replica: &mut MemoryReplica, number: u8, writes: &[(u8, u8)], copies: u8) {
    let writes: Vec<(u64, u64)> =
        writes.iter().map(|(actor, counter)| (u64::from(*actor), u64::from(*counter) + 1)).collect();
    let keyspace = KeyspaceId(u32::from(number % 2));
    if !writes.is_empty() {
        replica.set(keyspace, key(u64::from(number)), Some(record(&writes, copies)));
    }
}

/// What both sides hold, in trees for so many keys, and the join of it.
fn sides(contents: &[Content], bits: u8, keys: (u64, u64)) -> [MemoryReplica; 3] {
    let mut here = MemoryReplica::new(SECRET, partitions(bits), keys.0 * 16);
    let mut there = MemoryReplica::new(SECRET, partitions(bits), keys.1 * 16);
    for (number, ours, theirs, copies) in contents {
        set(&mut here, *number, ours, *copies);
        set(&mut there, *number, theirs, *copies);
    }
    let mut joined = here.clone();
    for (keyspace, key, record) in there.iter() {
        let object = Object { key: key.clone(), record: Some(Arc::clone(record)), under: Counter::ZERO };
        joined.merge(keyspace, &object).unwrap();
    }
    [here, there, joined]
}

fn writes() -> impl Strategy<Value = Vec<(u8, u8)>> {
    vec((0..3_u8, 0..3_u8), 0..3)
}

fn contents() -> impl Strategy<Value = Vec<Content>> {
    let differing = (any::<u8>(), writes(), writes(), 0..3_u8);
    let equal = (any::<u8>(), writes(), 0..3_u8).prop_map(|(number, writes, copies)| {
        let again = writes.clone();
        (number, writes, again, copies)
    });
    vec(prop_oneof![differing, equal], 0..120)
}

proptest! {
    /// Whatever both hold: they hold the join of it, of every key, afterwards.
    #[test]
    fn both_sides_hold_the_join(
        contents in contents(),
        bits in 0..4_u8,
        keys in (0..200_u64, 0..200_u64),
        salt in any::<u64>(),
    ) {
        let [mut here, mut there, joined] = sides(&contents, bits, keys);
        run(&mut here, &mut there, salt).unwrap();
        assert_equal(&here, &joined);
        assert_equal(&there, &joined);
    }

    /// While both are written to and lose trees and records, an exchange that says that it is complete has brought to
    /// both what differed when it began, of all keys that it does not leave out; and one without any of this, all.
    #[test]
    fn what_differed_at_the_beginning_is_on_both_sides_whatever_happens_meanwhile(
        contents in contents(),
        bits in 0..3_u8,
        keys in (0..200_u64, 0..200_u64),
        salt in any::<u64>(),
        events in vec((any::<bool>(), 0..8_u8, any::<u8>(), (0..5_u8, 3..6_u8), 0..4_u8), 0..40),
    ) {
        let [mut here, mut there, joined] = sides(&contents, bits, keys);
        let mut follower = Follower::new();
        let (mut exchange, question) = Exchange::begin(&here, salt);
        let (mut open, mut dice, mut events, mut removed) = (vec![question], salt, events.into_iter(), Vec::new());
        let mut is_complete = true;
        while let Some(Question { number, message }) = draw(&mut open, &mut dice) {
            for (is_here, what, number, write, copies) in events.by_ref().take(2) {
                let side = if is_here { &mut here } else { &mut there };
                let (keyspace, name) = (KeyspaceId(u32::from(number % 2)), key(u64::from(number)));
                match what {
                    0 => side.forget_trees(side.partitions().of(Token::of_key(&name))),
                    1 => side.build_trees(u64::from(number) * 4),
                    2 => {
                        side.set(keyspace, name.clone(), None);
                        removed.push((keyspace, name));
                    }
                    _ => {
                        let record = Some(record(&[(u64::from(write.0), u64::from(write.1))], copies));
                        side.merge(keyspace, &Object { key: name, record, under: Counter::ZERO }).unwrap();
                    }
                }
            }
            let answer = follower.answer(&mut there, message, true).unwrap();
            match exchange.answered(&mut here, number, answer) {
                Ok(next) => open.extend(next),
                // There are records of another number of copies than before.
                Err(ExchangeError::Forgotten) => {
                    is_complete = false;
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
        prop_assert_eq!(exchange.is_complete(), is_complete);
        for (keyspace, key, record) in joined.iter() {
            let partition = here.partitions().of(Token::of_key(key));
            let is_excused = removed.contains(&(keyspace, key.clone())) || !is_complete;
            if is_excused || exchange.left_out().contains(&partition) {
                continue;
            }
            for side in [&here, &there] {
                let held = side.get(keyspace, key);
                prop_assert!(held.is_some_and(|held| held.dominates(record)), "{key:?} {held:?} {record:?}");
            }
        }
        here.build_trees(keys.0);
        there.build_trees(keys.1);
        run(&mut here, &mut there, salt ^ 1).unwrap();
        assert_equal(&here, &there);
    }

    /// Whoever refuses and believes what: an exchange ends, complete, and keys that a side takes are the same on both.
    #[test]
    fn an_exchange_ends_whatever_is_refused(
        contents in vec((0..32_u64, writes(), writes()), 0..32),
        standings in (0..3_u8, 0..3_u8),
        refused in (any::<u32>(), any::<u32>()),
        trees in (0..4_u8, 0..200_u64, 0..200_u64),
        salt in any::<u64>(),
    ) {
        let contents: Vec<Content> = contents
            .into_iter()
            .map(|(number, ours, theirs)| (number as u8 * 2, ours, theirs, 0))
            .collect();
        let [here, there, joined] = sides(&contents, trees.0, (trees.1, trees.2));
        let side = |held, standing, refused: u32| {
            // Only who is not whole believes who is.
            let under = if standing == 0 { under_one } else { under_nothing };
            let keys = (0..32).filter(|number| refused >> number & 1 == 1).map(|number| number * 2);
            Choosy { believes: standing == 1, ..Choosy::holding(held, under).refusing(keys) }
        };
        let (mut here, mut there) = (side(here, standings.0, refused.0), side(there, standings.1, refused.1));
        let before = [here.held.clone(), there.held.clone()];
        let report = match run(&mut here, &mut there, salt) {
            // One salt in some ten thousand does not tell two trees apart. Nothing has been moved then.
            Err(ExchangeError::Senseless) if here.came.is_empty() && there.came.is_empty() => {
                run(&mut here, &mut there, !salt).unwrap()
            }
            ended => ended.unwrap(),
        };
        prop_assert!(report.messages < 20 + 4 * contents.len() as u64, "{report:?}");
        for number in (0..32).map(|number| number * 2) {
            let (keyspace, key) = (KeyspaceId(0), key(number));
            let (ours, theirs) = (here.held.get(keyspace, &key), there.held.get(keyspace, &key));
            let is_refused = (here.refused.contains(&key), there.refused.contains(&key));
            match is_refused {
                (false, false) => {
                    prop_assert_eq!(ours, theirs);
                    if !here.believes && !there.believes {
                        prop_assert_eq!(ours, joined.get(keyspace, &key));
                    }
                }
                (true, true) => {
                    prop_assert_eq!(ours, before[0].get(keyspace, &key));
                    prop_assert_eq!(theirs, before[1].get(keyspace, &key));
                }
                // Who is refused believes who refuses, and is whole.
                (true, false) if standings == (0, 1) => prop_assert_eq!(ours, theirs),
                (false, true) if standings == (1, 0) => prop_assert_eq!(ours, theirs),
                _ => {}
            }
        }
    }

    /// Nothing that a peer may say makes either side panic or go on for ever.
    #[test]
    fn nonsense_is_refused(bytes in vec(any::<u8>(), 0..200), flips in vec((any::<u16>(), 1..=255_u8), 1..4)) {
        let (mut here, mut there) = (deleted(200), deleted(300));
        let mut follower = Follower::new();
        let _: Result<Bytes, FollowError<Infallible>> = follower.answer(&mut there, bytes.clone().into(), true);
        let (mut exchange, question) = Exchange::begin(&here, 1);
        let mut open = vec![question];
        let mut steps = 0;
        while let Some(Question { number, message }) = open.pop() {
            steps += 1;
            prop_assert!(steps < 1000);
            let damage = |message: Bytes| {
                let mut message = message.to_vec();
                for (at, flip) in &flips {
                    let at = usize::from(*at);
                    if at < message.len() * 3 {
                        let at = at % message.len();
                        message[at] ^= *flip;
                    }
                }
                Bytes::from(message)
            };
            let Ok(answer) = follower.answer(&mut there, damage(message), true) else { break };
            let Ok(next) = exchange.answered(&mut here, number, damage(answer)) else { break };
            open.extend(next);
        }
        let (mut exchange, question) = Exchange::begin(&here, 1);
        let _ = exchange.answered(&mut here, question.number, bytes.into());
    }
}
