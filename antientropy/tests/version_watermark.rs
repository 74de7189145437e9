//! What watermarks leave of records reached through random histories, against a slow and obvious account of it.
//!
//! Several replicas of one key are written, read, merged, pruned and lost in any order. Watermarks are drawn, and
//! not promised by anybody: what is asked here of pruning, judging and cutting has to hold of any record at any
//! watermark. Whether nothing is lost is asked where there are several copies and a protocol.
//!
//! `PROPTEST_RNG_SEED=<seed> cargo test -p quorate-antientropy --test version_watermark` replays a seed.

use std::collections::BTreeSet;

use antientropy::version::{
    Actor, Context, CopyCount, Counter, Cut, Dot, LwwVersion, Pruned, Record, SiblingSet, UnixMillis, Value,
};
use bytes::BytesMut;
use proptest::{prelude::*, sample::Index};
use ring::ConflictPolicy;

const REPLICAS: usize = 3;

/// Expiries and watermarks are drawn up to here; clocks go about as far.
const MILLIS_MAX: u64 = 12;

/// Half a millisecond of a counter: dots fall on whole milliseconds, where an expiry is passed, and between them.
const HALF: u64 = 1 << 15;

#[derive(Clone, Debug)]
enum Step {
    Write {
        replica: usize,
        /// A state whose context the client has; `None` for a blind write.
        read: Option<Index>,
        /// `None` deletes; the time within is the expiry, if there is one.
        value: Option<Option<u64>>,
        copies: u8,
        /// In halves of a millisecond.
        clock_step: u64,
    },
    /// A state that existed at some time reaches a replica.
    Merge {
        sent: Index,
        replica: usize,
    },
    Prune {
        replica: usize,
        watermark: Counter,
    },
    /// A replica loses its record, and therefore takes a fresh actor.
    Lose {
        replica: usize,
    },
}

fn watermarks() -> impl Strategy<Value = Counter> {
    (0..=2 * MILLIS_MAX, 0..=2u64).prop_map(|(halves, off)| Counter((halves * HALF + off).saturating_sub(1)))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let read = prop::option::weighted(0.6, any::<Index>());
    let value = prop::option::weighted(0.8, prop::option::weighted(0.4, 0..=MILLIS_MAX));
    let explicit = (1..=7u8).prop_map(|n| CopyCount::explicit(n).to_byte());
    let copies = prop_oneof![3 => Just(0x80), 1 => explicit];
    let write = (0..REPLICAS, read, value, copies, 0..4u64);
    let step = prop_oneof![
        6 => write.prop_map(|(replica, read, value, copies, clock_step)| Step::Write {
            replica, read, value, copies, clock_step
        }),
        5 => (any::<Index>(), 0..REPLICAS).prop_map(|(sent, replica)| Step::Merge { sent, replica }),
        1 => (0..REPLICAS, watermarks()).prop_map(|(replica, watermark)| Step::Prune { replica, watermark }),
        1 => (0..REPLICAS).prop_map(|replica| Step::Lose { replica }),
    ];
    prop::collection::vec(step, 1..24)
}

fn policies() -> impl Strategy<Value = ConflictPolicy> {
    prop_oneof![3 => Just(ConflictPolicy::Siblings), 1 => Just(ConflictPolicy::LastWriteWins)]
}

/// Every record that a history made.
fn history() -> impl Strategy<Value = Vec<Record>> {
    (policies(), steps())
        .prop_map(|(policy, steps)| run(policy, &steps))
        .prop_filter("a history without a record", |records| !records.is_empty())
}

fn run(policy: ConflictPolicy, steps: &[Step]) -> Vec<Record> {
    let mut replicas: Vec<(Option<Record>, Actor)> =
        (0..REPLICAS as u64).map(|actor| (None, Actor(actor))).collect();
    let (mut states, mut clock, mut actors) = (Vec::<Record>::new(), 1, REPLICAS as u64);
    for step in steps {
        let replica = match step {
            Step::Write { replica, read, value, copies, clock_step } => {
                let (held, actor) = &mut replicas[*replica];
                let read = read.filter(|_| !states.is_empty()).map(|read| read.get(&states).context());
                clock += 1 + clock_step * HALF;
                clock -= clock % HALF * (clock_step % 2);
                let dot = Dot { counter: Counter(clock), actor: *actor };
                let value = value.map(|expires| Value {
                    expires: expires.map(UnixMillis),
                    ..Value::new(format!("value of {dot}"))
                });
                let copies = CopyCount::from_byte(*copies).expect("the strategy makes valid bytes");
                *held = Some(written(policy, held.take(), dot, &read.unwrap_or_default(), value, copies));
                replica
            }
            Step::Merge { sent, replica } if !states.is_empty() => {
                let sent = sent.get(&states);
                replicas[*replica].0 = Some(joined(replicas[*replica].0.as_ref(), sent));
                replica
            }
            Step::Merge { replica, .. } => replica,
            Step::Prune { replica, watermark } => {
                let held = replicas[*replica].0.take();
                replicas[*replica].0 = held.and_then(|record| pruned(&record, *watermark));
                replica
            }
            Step::Lose { replica } => {
                actors += 1;
                replicas[*replica] = (None, Actor(actors));
                replica
            }
        };
        states.extend(replicas[*replica].0.clone());
    }
    states
}

fn written(
    policy: ConflictPolicy,
    held: Option<Record>,
    dot: Dot,
    context: &Context,
    value: Option<Value>,
    copies: CopyCount,
) -> Record {
    if policy == ConflictPolicy::LastWriteWins {
        return joined(held.as_ref(), &Record::Lww(LwwVersion::write(dot, context, value, copies)));
    }
    let mut set = match held {
        Some(Record::Siblings(set)) => set,
        Some(Record::Lww(_)) => unreachable!("one policy in a history"),
        None => SiblingSet::new(),
    };
    set.write(dot, context, value, copies);
    Record::Siblings(set)
}

fn joined(held: Option<&Record>, other: &Record) -> Record {
    held.cloned().map_or(other.clone(), |mut record| {
        record.merge(other);
        record
    })
}

fn pruned(record: &Record, watermark: Counter) -> Option<Record> {
    match record.prune(watermark) {
        Pruned::Same => Some(record.clone()),
        Pruned::Less(less) => Some(less),
        Pruned::Nothing => None,
    }
}

/// What a record says, of either kind: the writes that it has seen of each actor, its values, its n.
#[derive(Clone, Debug, PartialEq)]
struct Parts {
    entries: Vec<Dot>,
    values: Vec<(Dot, Value)>,
    copies: CopyCount,
}

impl Parts {
    fn of(record: &Record) -> Parts {
        let context = record.context();
        let entries = context.entries().iter().map(|&(actor, counter)| Dot { counter, actor }).collect();
        let values = match record {
            Record::Siblings(set) => set.values().map(|(dot, value)| (dot, value.clone())).collect(),
            Record::Lww(version) => version.value.iter().map(|value| (version.dot, value.clone())).collect(),
        };
        Parts { entries, values, copies: record.copies() }
    }

    fn is_nothing(&self) -> bool {
        self.entries.is_empty() && self.values.is_empty()
    }

    /// Every write that the record names.
    fn names(&self) -> BTreeSet<Dot> {
        self.entries.iter().copied().chain(self.values.iter().map(|(dot, _)| *dot)).collect()
    }

    /// What is left at a watermark, in so many words.
    fn prune(&mut self, watermark: Counter) {
        let is_over = |value: &Value| value.expires.is_some_and(|expires| Counter::at(expires) <= watermark);
        self.values.retain(|(dot, value)| dot.counter > watermark || !is_over(value));
        if self.entries.iter().all(|entry| entry.counter <= watermark) {
            let Parts { entries, values, .. } = self;
            entries.retain(|entry| values.iter().any(|(dot, _)| dot.actor == entry.actor));
        }
    }
}

/// What decoding accepts, its invariants hold of.
fn check_invariants(record: &Record) {
    let mut out = BytesMut::new();
    record.encode(&mut out);
    assert_eq!(Record::decode(&mut out.freeze()).as_ref(), Ok(record));
}

fn covers(held: Option<&Record>, dot: Dot) -> bool {
    held.is_some_and(|held| held.covers(dot))
}

/// The writes at or below a bound that one names and the other does not cover.
fn unknown(record: &Record, held: Option<&Record>, bound: Counter) -> BTreeSet<Dot> {
    let names = Parts::of(record).names();
    names.into_iter().filter(|&dot| dot.counter <= bound && !covers(held, dot)).collect()
}

fn check_pruning(record: &Record, watermark: Counter) {
    let parts = Parts::of(record);
    let mut expected = parts.clone();
    expected.prune(watermark);
    match record.prune(watermark) {
        Pruned::Same => assert_eq!(expected, parts),
        Pruned::Nothing => assert!(expected.is_nothing(), "{expected:?} was to stay"),
        Pruned::Less(less) => {
            let left = Parts::of(&less);
            assert_eq!(left, expected);
            assert_ne!(left, parts);
            assert_eq!(less.prune(watermark), Pruned::Same);
            assert!(less.prunable_at().is_none_or(|next| next > watermark));
            check_invariants(&less);
        }
    }

    let left = pruned(record, watermark);
    let remains = |dot: Dot| left.as_ref().is_some_and(|left| Parts::of(left).names().contains(&dot));
    let shown = record.live(watermark.millis());
    assert!(shown.iter().all(|&(dot, _)| remains(dot)), "a value went that had not expired");
    if record.highest() > watermark && record.policy() == ConflictPolicy::Siblings {
        let left = left.expect("a counter above the watermark stays");
        assert_eq!(left.context(), record.context(), "an entry went by its own counter");
    }
}

fn check_prunable_at(record: &Record) {
    let Some(lowest) = record.prunable_at() else {
        assert_eq!(record.prune(Counter::MAX), Pruned::Same);
        return;
    };
    assert_ne!(record.prune(lowest), Pruned::Same);
    assert_ne!(pruned(record, lowest).as_ref(), Some(record), "less is less");
    assert_eq!(record.prune(Counter(lowest.0 - 1)), Pruned::Same);
}

fn check_judging(incoming: &Record, held: Option<&Record>, bound: Counter) {
    let names_unknown = Record::names_unknown(incoming, held, bound);
    assert_eq!(names_unknown, !unknown(incoming, held, bound).is_empty());
    assert!(!Record::names_unknown(incoming, Some(incoming), bound));
    assert!(!Record::names_unknown(incoming, Some(&joined(held, incoming)), bound));
    // What would change nothing is never refused.
    if let Some(held) = held.filter(|held| held.dominates(incoming)) {
        assert!(!Record::names_unknown(incoming, Some(held), bound));
    }
}

fn check_cut(own: &Record, believed: Option<&Record>, watermark: Counter) {
    let Cut { rest, has_lost } = own.cut(believed, watermark);
    let unknown_before = unknown(own, believed, watermark);
    let before = Parts::of(own);
    let left = rest.as_ref().map(Parts::of);
    rest.iter().for_each(check_invariants);

    // What the rest is.
    if own.highest() <= watermark {
        assert_eq!(rest.as_ref(), believed);
    } else {
        let dead: BTreeSet<Actor> = unknown_before.iter().map(|dot| dot.actor).collect();
        let mut expected = before.clone();
        expected.entries.retain(|entry| !dead.contains(&entry.actor));
        expected.values.retain(|(dot, _)| !dead.contains(&dot.actor));
        assert_eq!(left, Some(expected).filter(|expected| !expected.is_nothing()));
        let claims_dead = |entry: &Dot| unknown_before.iter().any(|dead| dead.actor == entry.actor);
        assert!(!left.is_some_and(|left| left.entries.iter().any(claims_dead)), "a dead write is claimed");
    }

    // What it makes of both.
    let both = match (&rest, believed) {
        (Some(rest), Some(believed)) => Some(joined(Some(rest), believed)),
        (Some(record), None) | (None, Some(record)) => Some(record.clone()),
        (None, None) => None,
    };
    if let Some(believed) = believed {
        let names = Parts::of(believed).names();
        assert!(names.iter().all(|&dot| covers(both.as_ref(), dot)), "what is believed is covered");
        both.iter().for_each(|both| assert!(both.dominates(believed)));
    }
    both.iter().for_each(|both| assert!(!Record::names_unknown(both, believed, watermark)));
    let went = |dot: Dot| !covers(both.as_ref(), dot);
    let live = before.values.iter().map(|(dot, _)| *dot);
    assert_eq!(has_lost, live.into_iter().any(went), "a value that nothing covers any more is lost");
}

/// What a write does to the values of a record does not depend on what was left out of its context.
fn check_context(read: &Context, held: Option<&Record>, watermark: Counter) {
    let left = read.clone().without_forgotten(held, watermark);
    assert_eq!(left.copies(), read.copies());
    let Some(Record::Siblings(_)) = held else {
        let is_lww = held.is_some();
        let expected = read.entries().iter().filter(|entry| is_lww || entry.1 > watermark);
        assert!(left.entries().iter().eq(expected));
        return;
    };
    let named = held.map(Record::context).unwrap_or_default();
    let is_named = |actor: Actor| named.entries().iter().any(|entry| entry.0 == actor);
    let expected = read.entries().iter().filter(|&&(actor, counter)| counter > watermark || is_named(actor));
    assert!(left.entries().iter().eq(expected));

    let values = |context: &Context| {
        let counter = named.highest().max(read.highest()).next();
        let dot = Dot { counter, actor: Actor(u64::MAX) };
        let (policy, value) = (ConflictPolicy::Siblings, Some(Value::new("next")));
        Parts::of(&written(policy, held.cloned(), dot, context, value, CopyCount::DEFAULT)).values
    };
    assert_eq!(values(&left), values(read));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_pruned_is_what_is_said(
        records in history(),
        watermarks in prop::collection::vec(watermarks(), 4),
    ) {
        for record in &records {
            check_prunable_at(record);
            let own = Parts::of(record).names().into_iter().map(|dot| dot.counter);
            for watermark in own.chain(watermarks.iter().copied()) {
                check_pruning(record, watermark);
            }
        }
    }

    #[test]
    fn it_does_not_matter_by_which_steps_a_watermark_rises(
        records in history(),
        mut watermarks in prop::collection::vec(watermarks(), 3),
    ) {
        watermarks.sort();
        for record in &records {
            let at_once = pruned(record, watermarks[2]);
            let by_steps = watermarks.iter().try_fold(record.clone(), |left, &at| pruned(&left, at));
            prop_assert_eq!(by_steps, at_once);
        }
    }

    #[test]
    fn copies_that_hold_the_same_prune_the_same(
        records in history(),
        picks in prop::collection::vec(any::<Index>(), 2),
        watermark in watermarks(),
    ) {
        let (one, other) = (picks[0].get(&records), picks[1].get(&records));
        let (left, right) = (joined(Some(one), other), joined(Some(other), one));
        prop_assert_eq!(left.prunable_at(), right.prunable_at());
        prop_assert_eq!(left.prune(watermark), right.prune(watermark));
    }

    #[test]
    fn what_is_unknown_is_judged_and_cut_as_it_is_said(
        records in history(),
        picks in prop::collection::vec(any::<Index>(), 3),
        watermarks in prop::collection::vec(watermarks(), 3),
    ) {
        for (pick, watermark) in picks.iter().zip(watermarks) {
            let held = pick.get(&records);
            // As a believed copy has it: pruned, or forgotten as a whole.
            let believed = pruned(held, watermark);
            for record in &records {
                for held in [Some(held), believed.as_ref(), None] {
                    check_judging(record, held, watermark);
                    check_cut(record, held, watermark);
                    check_context(&record.context(), held, watermark);
                }
            }
        }
    }
}
