//! Records reached through random histories, against a slow and obvious model.
//!
//! Several replicas of one key are written, read, merged in any order, from any earlier state (late and duplicated
//! messages), and lose their record. The model keeps explicit causal histories instead of counters: the set of
//! write events that a replica knows, and for each event the set that it covers. In a siblings keyspace a value is
//! live if and only if no event known with it covers it; in an lww keyspace the highest event known wins. After
//! every step the replica has to say what the model says, and over all states reached the join has to be one.
//!
//! `PROPTEST_RNG_SEED=<seed> cargo test -p quorate-antientropy --test version_histories` replays a seed.

use std::collections::BTreeSet;

use antientropy::version::{
    Actor, Context, CopyCount, Counter, Dot, LwwVersion, MergeOutcome, Record, RequestId, SiblingSet,
    UnixMillis, Value, VersionDigest,
};
use bytes::BytesMut;
use proptest::{prelude::*, sample::Index};
use ring::ConflictPolicy;

const REPLICAS: usize = 4;
const CLIENTS: usize = 3;

/// What a client sends.
#[derive(Clone, Debug)]
struct Request {
    /// Whose context it carries; `None` for a blind write.
    client: Option<usize>,
    delete: bool,
    /// 0 for none. Few ids, so that many writes are retries of others.
    id: u128,
    /// A wire byte of [`CopyCount`].
    copies: u8,
    /// How far the coordinator's clock moves first: clocks drift apart.
    clock_step: u64,
}

#[derive(Clone, Debug)]
enum Step {
    /// A client reads a replica, and remembers the context.
    Read { replica: usize, client: usize },
    /// A replica coordinates a write.
    Write { replica: usize, request: Request },
    /// A node that is no replica coordinates a write, under an actor of its own; the record reaches one replica.
    WriteElsewhere { replica: usize, request: Request },
    /// A record that existed at some time reaches a replica.
    Merge { sent: Index, replica: usize },
    /// A replica loses its record, and therefore takes a fresh actor.
    Lose { replica: usize },
}

fn steps(steps_max: usize) -> impl Strategy<Value = Vec<Step>> {
    let request = || {
        let explicit = (1..=7u8).prop_map(|n| CopyCount::explicit(n).to_byte());
        let copies = prop_oneof![4 => Just(0x80), 2 => explicit];
        (prop::option::weighted(0.7, 0..CLIENTS), prop::bool::weighted(0.25), 0..4u128, copies, 0..6u64)
            .prop_map(|(client, delete, id, copies, clock_step)| Request {
                client,
                delete,
                id,
                copies,
                clock_step,
            })
    };
    let step = prop_oneof![
        3 => (0..REPLICAS, 0..CLIENTS).prop_map(|(replica, client)| Step::Read { replica, client }),
        6 => (0..REPLICAS, request()).prop_map(|(replica, request)| Step::Write { replica, request }),
        1 => (0..REPLICAS, request()).prop_map(|(replica, request)| Step::WriteElsewhere { replica, request }),
        7 => (any::<Index>(), 0..REPLICAS).prop_map(|(sent, replica)| Step::Merge { sent, replica }),
        1 => (0..REPLICAS).prop_map(|replica| Step::Lose { replica }),
    ];
    prop::collection::vec(step, 1..steps_max)
}

/// A set of write events, by their position in [`World::events`].
type Events = BTreeSet<usize>;

/// A write as the model sees it.
struct Event {
    dot: Dot,
    value: Option<Value>,
    copies: CopyCount,
    /// Whatever it was meant to replace: what its client had seen, and duplicates of one request.
    covers: Events,
    /// What its client had seen.
    seen: Events,
}

/// A record, and the events that the model says it knows.
#[derive(Clone)]
struct State {
    record: Record,
    known: Events,
}

#[derive(Clone, Default)]
struct Replica {
    state: Option<State>,
    actor: Option<Actor>,
    clock: u64,
}

struct World {
    policy: ConflictPolicy,
    replicas: Vec<Replica>,
    /// What each client last read.
    clients: Vec<(Context, Events)>,
    events: Vec<Event>,
    /// Every state that a replica was ever in: what a message may carry.
    sent: Vec<State>,
    actors: u64,
}

impl World {
    fn new(policy: ConflictPolicy) -> World {
        let replicas = vec![Replica::default(); REPLICAS];
        let clients = vec![(Context::new(), Events::new()); CLIENTS];
        World { policy, replicas, clients, events: Vec::new(), sent: Vec::new(), actors: 0 }
    }

    fn run(policy: ConflictPolicy, steps: &[Step]) -> World {
        let mut world = World::new(policy);
        steps.iter().for_each(|step| world.step(step));
        world
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Read { replica, client } => {
                if let Some(state) = &self.replicas[*replica].state {
                    self.clients[*client] = (state.record.context(), state.known.clone());
                }
            }
            Step::Write { replica, request } => {
                let fresh = self.fresh_actor();
                let actor = *self.replicas[*replica].actor.get_or_insert(fresh);
                let current = self.replicas[*replica].state.take();
                let state = self.write(*replica, actor, current, request);
                self.store(*replica, state);
            }
            Step::WriteElsewhere { replica, request } => {
                let actor = self.fresh_actor();
                let state = self.write(*replica, actor, None, request);
                self.receive(*replica, &state);
            }
            Step::Merge { sent, replica } if !self.sent.is_empty() => {
                let state = sent.get(&self.sent).clone();
                self.receive(*replica, &state);
            }
            Step::Merge { .. } => {}
            Step::Lose { replica } => {
                self.replicas[*replica].state = None;
                self.replicas[*replica].actor = None;
            }
        }
    }

    fn fresh_actor(&mut self) -> Actor {
        self.actors += 1;
        Actor(self.actors.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A write on top of `current`, by the clock of `replica`.
    fn write(&mut self, replica: usize, actor: Actor, current: Option<State>, request: &Request) -> State {
        let (context, seen) =
            request.client.map_or_else(Default::default, |client| self.clients[client].clone());
        let clock = &mut self.replicas[replica].clock;
        *clock += request.clock_step;
        let highest = current.as_ref().map_or(Counter::ZERO, |state| state.record.highest());
        let dot = Dot { counter: Counter(*clock).max(highest).max(context.highest()).next(), actor };
        let bytes = format!("value {}", self.events.len());
        let value = (!request.delete).then(|| Value { request: RequestId(request.id), ..Value::new(bytes) });
        let asked = CopyCount::from_byte(request.copies).expect("the strategy makes valid bytes");

        let mut known = current.as_ref().map_or_else(Events::new, |state| state.known.clone());
        known.extend(&seen);
        let copies = self.copies(&known).raised(asked);
        known.insert(self.events.len());
        let event = Event { dot, value: value.clone(), copies, covers: seen.clone(), seen };
        self.events.push(event);
        self.cover_duplicates(&known);

        let record = match (self.policy, current.map(|state| state.record)) {
            (ConflictPolicy::Siblings, current) => {
                let mut set = match current {
                    Some(Record::Siblings(set)) => set,
                    Some(Record::Lww(_)) => unreachable!("one policy in a world"),
                    None => SiblingSet::new(),
                };
                set.write(dot, &context, value, asked);
                Record::Siblings(set)
            }
            (ConflictPolicy::LastWriteWins, current) => {
                let held = current.as_ref().map_or(CopyCount::NONE, |record| record.copies());
                let version = Record::Lww(LwwVersion::write(dot, &context, value, held.raised(asked)));
                current.map_or(version.clone(), |mut record| {
                    record.merge(&version);
                    record
                })
            }
        };
        let state = State { record, known };
        self.check(&state);
        state
    }

    /// The newest event covers, of values left live that one request wrote, all but the one with the highest dot.
    fn cover_duplicates(&mut self, known: &Events) {
        let live = self.live(known);
        let duplicates: Vec<usize> = live
            .iter()
            .copied()
            .filter(|&older| live.iter().any(|&newer| self.is_duplicate(older, newer)))
            .collect();
        self.events.last_mut().expect("just written").covers.extend(duplicates);
    }

    /// Whether both events wrote the value of one request, and `older` has the lower dot.
    fn is_duplicate(&self, older: usize, newer: usize) -> bool {
        let id =
            |event: usize| self.events[event].value.as_ref().map_or(RequestId::NONE, |value| value.request);
        self.events[older].dot < self.events[newer].dot && id(older).is_same_request(id(newer))
    }

    fn receive(&mut self, replica: usize, sent: &State) {
        let state = match self.replicas[replica].state.take() {
            None => sent.clone(),
            Some(mut state) => {
                let expected = self.expected_outcome(&state, sent);
                assert_eq!(state.record.merge(&sent.record), expected);
                state.known.extend(&sent.known);
                state
            }
        };
        self.check(&state);
        self.store(replica, state);
    }

    fn store(&mut self, replica: usize, state: State) {
        self.sent.push(state.clone());
        self.replicas[replica].state = Some(state);
    }

    /// What the model says a merge does.
    fn expected_outcome(&self, state: &State, sent: &State) -> MergeOutcome {
        let union: Events = state.known.union(&sent.known).copied().collect();
        let is_more = |known: &Events| match self.policy {
            ConflictPolicy::Siblings => union != *known,
            ConflictPolicy::LastWriteWins => self.winner(&union) != self.winner(known),
        };
        let changed = is_more(&state.known) || self.copies(&union) != self.copies(&state.known);
        let discarded_concurrent = self.policy == ConflictPolicy::LastWriteWins && {
            let winner = self.winner(&union);
            let lost = if self.winner(&state.known) == winner { &sent.known } else { &state.known };
            let lost = &self.events[self.winner(lost)];
            let winner = &self.events[winner];
            let seen = winner.seen.iter().map(|&event| self.events[event].dot.counter).max();
            lost.dot != winner.dot && lost.value.is_some() && Some(lost.dot.counter) > seen
        };
        MergeOutcome { changed, discarded_concurrent }
    }

    /// The live values of a causal history: those that no event of it covers.
    fn live(&self, known: &Events) -> Vec<usize> {
        let is_covered = |value: &usize| known.iter().any(|&event| self.events[event].covers.contains(value));
        let has_value = |event: &usize| self.events[*event].value.is_some();
        known.iter().copied().filter(has_value).filter(|event| !is_covered(event)).collect()
    }

    /// The event of the highest dot.
    fn winner(&self, known: &Events) -> usize {
        *known.iter().max_by_key(|&&event| self.events[event].dot).expect("a record knows at least one write")
    }

    fn copies(&self, known: &Events) -> CopyCount {
        known.iter().fold(CopyCount::NONE, |copies, &event| copies.join(self.events[event].copies))
    }

    /// The record says what the model says, and its encoding says what the record says.
    fn check(&self, state: &State) {
        let State { record, known } = state;
        let mut expected: Vec<usize> = match self.policy {
            ConflictPolicy::Siblings => self.live(known),
            ConflictPolicy::LastWriteWins => {
                let winner = self.winner(known);
                self.events[winner].value.iter().map(|_| winner).collect()
            }
        };
        assert_eq!(record.live_len(), expected.len(), "live values, as stored");
        let stored = expected.clone();
        expected.retain(|&older| !stored.iter().any(|&newer| self.is_duplicate(older, newer)));
        expected.sort_by_key(|&event| std::cmp::Reverse(self.events[event].dot));
        let expected: Vec<(Dot, &Value)> = expected
            .iter()
            .map(|&event| &self.events[event])
            .map(|event| (event.dot, event.value.as_ref().expect("live events have values")))
            .collect();
        assert_eq!(record.live(UnixMillis(0)), expected, "live values, as shown");
        assert_eq!(record.copies(), self.copies(known));

        for (index, event) in self.events.iter().enumerate() {
            let covers = match self.policy {
                ConflictPolicy::Siblings => known.contains(&index),
                ConflictPolicy::LastWriteWins => event.dot <= self.events[self.winner(known)].dot,
            };
            assert_eq!(record.covers(event.dot), covers, "{:?}", event.dot);
        }
        let mut out = BytesMut::new();
        record.encode(&mut out);
        assert_eq!(out.len(), record.encoded_len());
        assert_eq!(Record::decode(&mut out.freeze()).as_ref(), Ok(record));
    }
}

fn merged(left: &Record, right: &Record) -> Record {
    let mut record = left.clone();
    record.merge(right);
    record
}

/// Every law of the join over some of the states of a history.
fn check_laws(world: &World, picks: &[Index]) {
    if world.sent.is_empty() {
        return;
    }
    let records: Vec<&Record> = picks.iter().map(|pick| &pick.get(&world.sent).record).collect();
    for &a in &records {
        assert_eq!(&merged(a, a), a, "idempotent");
        assert_ne!(a.digest(), VersionDigest::ABSENT);
        for &b in &records {
            let both = merged(a, b);
            assert_eq!(both, merged(b, a), "commutative");
            assert_eq!(merged(&both, b), both, "absorbing");
            assert!(both.dominates(a) && both.dominates(b));
            let outcome = a.clone().merge(b);
            assert_eq!(outcome.changed, both != *a);
            assert_eq!(a.dominates(b), !outcome.changed);
            assert_eq!(
                outcome.discarded_concurrent,
                b.clone().merge(a).discarded_concurrent,
                "both sides count"
            );
            assert_eq!(a.digest() == b.digest(), a == b);
            for &c in &records {
                assert_eq!(merged(&both, c), merged(a, &merged(b, c)), "associative");
            }
        }
    }
}

/// Replicas that exchange everything, each in another order, end up with one digest.
fn check_convergence(world: &World, orders: &[Vec<usize>]) {
    let states: Vec<&State> = world.replicas.iter().filter_map(|replica| replica.state.as_ref()).collect();
    let joined = |order: &Vec<usize>| {
        let mut ranked: Vec<usize> = (0..states.len()).collect();
        ranked.sort_by_key(|&state| order[state]);
        let records: Vec<Record> = ranked.iter().map(|&state| states[state].record.clone()).collect();
        let joined = records.into_iter().reduce(|left, right| merged(&left, &right))?;
        Some(joined.digest())
    };
    let digests: BTreeSet<Option<VersionDigest>> = orders.iter().map(joined).collect();
    assert_eq!(digests.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn siblings_equal_the_model_and_the_join_is_one(
        steps in steps(60),
        picks in prop::collection::vec(any::<Index>(), 6),
        orders in prop::collection::vec(Just((0..REPLICAS).collect::<Vec<_>>()).prop_shuffle(), 3),
    ) {
        let world = World::run(ConflictPolicy::Siblings, &steps);
        check_laws(&world, &picks);
        check_convergence(&world, &orders);
    }

    #[test]
    fn lww_equals_the_model_and_the_join_is_one(
        steps in steps(60),
        picks in prop::collection::vec(any::<Index>(), 6),
        orders in prop::collection::vec(Just((0..REPLICAS).collect::<Vec<_>>()).prop_shuffle(), 3),
    ) {
        let world = World::run(ConflictPolicy::LastWriteWins, &steps);
        check_laws(&world, &picks);
        check_convergence(&world, &orders);
    }
}
