//! The side that asks.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};

use bytes::Bytes;
use ring::{KeyspaceId, PartitionId, Token};
use thiserror::Error;

use super::{
    Entry, Object, Replica, Span, TreeId,
    entries::{Entries, entries_at, highest, position_of_key, sum_of},
    follower::{
        CELLS_AT_FIRST, CELLS_MAX, GROUP_KEYS_MAX, GROUPS_MAX, OBJECTS_BYTES_MAX, SUMS_MAX, at_position,
        digest_of_roots, entries_of, group_salt,
    },
    message::{ASKS_MAX, Ask, Interval, Levels, Outcome, Request, Response, Undecodable},
    plan::{Plan, union},
};
use crate::{
    hash_tree::{HashTree, Sum},
    residue::Residue,
    sketch::{Cell, Decoder, Sketch, Survey, cells_for},
};

/// Questions that wait for an answer at the same time, at most.
const WINDOW: usize = GROUPS_MAX / 2;
/// Keys of one group, roughly.
const GROUP_KEYS: u64 = 512;
/// Intervals of one group at most.
const GROUP_INTERVALS_MAX: usize = 512;
/// From which share of differing trees on, one in so many, all are gone into.
const NARROWED_TO: u64 = 3;
/// From which share of differing buckets on, one in so many, the list of their sums is asked for.
const LISTED_FROM: u64 = 3;
/// By how many bits the buckets of that list are larger.
const LISTED_COARSER_BY: u8 = 2;
/// A tree that has so many times fewer keys on one side is moved as a whole.
const MOVED_FROM: u64 = 4;
/// Buckets that are fetched together at most.
const FETCHED_TOGETHER: u64 = 16;
/// Differences that are found and not resolved, from which on no more are looked for.
const UNRESOLVED_MAX: usize = 8192;
/// How often the peer is told what is held of one key instead of what it has sent: records are joined after the first time,
/// and where each side refuses what the other holds, no number of times would help.
const RETURNS_MAX: u8 = 3;

/// An exchange, on the side that leads it.
#[derive(Debug)]
pub struct Exchange {
    salt: u64,
    plan: Plan,
    left_out: Vec<PartitionId>,
    /// How fine this side's trees were when it began.
    levels: Levels,
    /// Of the trees and then of the buckets, until it is known which differ.
    buckets: Option<Decoder>,
    /// Whether it is known which trees differ.
    is_narrow: bool,
    /// How many keys this side had when it began.
    keys: u64,
    /// How many of their cells are likely to suffice.
    sought: usize,
    /// The next tree whose sums are to be asked for, if a list is.
    listing: Option<usize>,
    /// Buckets with several keys that differ.
    several: BTreeSet<u64>,
    groups: BTreeMap<u64, Group>,
    next_group: u64,
    /// How many keys in one differ, as far as groups have told.
    rate: Option<f64>,
    /// Buckets to be fetched.
    fetches: BTreeSet<u64>,
    /// The rest of some that were cut off.
    rests: VecDeque<(Interval, Token)>,
    /// Positions to be asked for.
    asks: BTreeMap<(KeyspaceId, u64), Sought>,
    /// Positions whose objects are to be sent, and what to ask for anew if they have gone meanwhile; and buckets.
    pushes: BTreeMap<(KeyspaceId, u64), Option<Found>>,
    pushed_spans: VecDeque<(TreeId, Span)>,
    /// Keys of which the peer is to be told what is held here instead of what it has sent.
    returns: BTreeSet<(KeyspaceId, Bytes)>,
    /// How often it was told.
    returned: BTreeMap<(KeyspaceId, Bytes), u8>,
    awaiting: BTreeMap<u32, Awaited>,
    next_question: u32,
    has_failed: bool,
    /// The partitions of buckets that differ.
    differing: BTreeSet<PartitionId>,
    report: Report,
}

/// What an exchange has found and moved, and what that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Questions, of which each has an answer.
    pub messages: u64,
    /// How many of them had to wait for each other.
    pub round_trips: u32,
    /// Bytes of all messages, both ways.
    pub bytes: u64,
    /// Bytes of the keys and records among these.
    pub payload_bytes: u64,
    /// Objects that came.
    pub objects_received: u64,
    /// Objects that were sent.
    pub objects_sent: u64,
    /// Keys of which both sides had a record, and another.
    pub updated: u64,
    /// Keys that one side lacked.
    pub missing: u64,
}

/// Why an exchange ended early. What it has moved is moved; another will find the rest.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExchangeError<E> {
    /// The replica here cannot go on.
    #[error(transparent)]
    Replica(E),
    /// The peer's answer makes no sense.
    #[error("an answer that makes no sense")]
    Senseless,
    /// The peer has forgotten the exchange, or there is a new kind of tree since it began: it is to begin anew.
    #[error("the exchange has to begin anew")]
    Forgotten,
}

/// A question that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Comes back with the answer.
    pub number: u32,
    /// For [`Follower::answer`](super::Follower::answer).
    pub message: Bytes,
}

/// Where a position was found, and by how much the sides differ there.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// None if it was pushed, and the answer had no room to say what is held there instead.
    difference: Option<Sum>,
    /// If it follows from the sum of a whole bucket that only one key of it differs.
    bucket: Option<u64>,
    /// Whether it is in the report.
    is_counted: bool,
}

#[derive(Debug)]
struct Group {
    keyspace: KeyspaceId,
    intervals: Vec<Interval>,
    decoder: Decoder,
    /// What its keys are here.
    entries: Entries,
    /// Until the first answer has come.
    survey: Option<Survey>,
    /// How many cells are likely to suffice.
    sought: usize,
    /// How many keys there are at the peer.
    theirs: u64,
}

/// A position that is to be asked for.
#[derive(Debug)]
struct Sought {
    found: Found,
    /// What is here, if that was read already.
    ours: Option<Vec<Entry>>,
}

/// A position that was asked for.
#[derive(Debug)]
struct Asked {
    position: u64,
    found: Found,
    /// What was here, and whether the peer was told of it.
    ours: Vec<Entry>,
    is_told: bool,
}

/// A question that was asked.
#[derive(Debug)]
struct Awaited {
    /// How many round trips it is from the first.
    depth: u32,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Check,
    Narrow,
    Cells,
    Sums,
    KeyCells(u64),
    Asks(KeyspaceId, u8, Vec<Asked>),
    Fetch(Interval, Token),
    Push(KeyspaceId, Vec<Bytes>),
}

impl Exchange {
    /// Begins: the first question. The salt is to be a new random number.
    pub fn begin<R: Replica>(replica: &R, salt: u64) -> (Exchange, Question) {
        let unbuilt = replica.unbuilt();
        let levels = Levels::of(replica, &unbuilt);
        let mut exchange = Exchange {
            salt,
            plan: Plan::empty(replica.partition_bits()),
            left_out: unbuilt.clone(),
            levels: levels.clone(),
            buckets: None,
            is_narrow: false,
            keys: 0,
            sought: 0,
            listing: None,
            several: BTreeSet::new(),
            groups: BTreeMap::new(),
            next_group: 0,
            rate: None,
            fetches: BTreeSet::new(),
            rests: VecDeque::new(),
            asks: BTreeMap::new(),
            pushes: BTreeMap::new(),
            pushed_spans: VecDeque::new(),
            returns: BTreeSet::new(),
            returned: BTreeMap::new(),
            awaiting: BTreeMap::new(),
            next_question: 0,
            has_failed: false,
            differing: BTreeSet::new(),
            report: Report::default(),
        };
        let digest = digest_of_roots(replica, &unbuilt);
        let check = Request::Check { salt, digest, levels, unbuilt };
        let question = exchange.question(1, Kind::Check, &check);
        (exchange, question)
    }

    /// An answer came: what is to be asked next. Answers to what was not asked are ignored.
    ///
    /// # Errors
    ///
    /// [`ExchangeError`] if it cannot go on.
    pub fn answered<R: Replica>(
        &mut self,
        replica: &mut R,
        number: u32,
        message: Bytes,
    ) -> Result<Vec<Question>, ExchangeError<R::Error>> {
        let Some(awaited) = self.awaiting.remove(&number) else { return Ok(Vec::new()) };
        let next = self.on_answer(replica, awaited, message);
        self.has_failed |= next.is_err();
        next
    }

    fn on_answer<R: Replica>(
        &mut self,
        replica: &mut R,
        Awaited { depth, kind }: Awaited,
        message: Bytes,
    ) -> Result<Vec<Question>, ExchangeError<R::Error>> {
        self.report.bytes += message.len() as u64;
        let response = Response::decode(message).map_err(|Undecodable| ExchangeError::Senseless)?;
        match (kind, response) {
            (Kind::Check, Response::Equal) => {}
            (Kind::Check, Response::Differs { levels, unbuilt, survey, cells }) => {
                if levels.join(&self.levels) != levels {
                    return Err(ExchangeError::Senseless);
                }
                // Trees of this side may have gone since the check.
                let unbuilt = union(&unbuilt, &self.left_out);
                self.plan = Plan::new(replica, &unbuilt, &levels).ok_or(ExchangeError::Senseless)?;
                if self.plan.lacks_kinds(replica) {
                    return Err(ExchangeError::Forgotten);
                }
                let now = replica.unbuilt();
                self.left_out = union(&unbuilt, &self.plan.unknown(replica, &now));
                let sums = self.plan.of_roots().sums(replica, &now);
                let sketch = Sketch::of_buckets(self.salt, sums.into_iter());
                let differing = sketch.survey().differing(&survey);
                let trees = self.plan.trees().len() as u64;
                let of_trees = self.plan.trees().iter().filter_map(|planned| replica.tree(planned.tree));
                self.keys = of_trees.map(HashTree::len).sum();
                // Few are found out, and of many all are gone into.
                if differing > CELLS_AT_FIRST as u64 && differing * NARROWED_TO > trees {
                    let all = if trees > 0 { vec![Interval { first: 0, count: trees }] } else { Vec::new() };
                    return Ok(vec![self.narrow(depth, all)?]);
                }
                if let Some(question) = self.seek(replica, depth, sketch, differing, &cells)? {
                    return Ok(vec![question]);
                }
            }
            (Kind::Narrow, Response::Narrowed { unbuilt, survey, cells }) => {
                if self.plan.lacks_kinds(replica) {
                    return Err(ExchangeError::Forgotten);
                }
                let now = replica.unbuilt();
                self.left_out = union(&self.left_out, &self.plan.unknown(replica, &now));
                self.left_out = union(&self.left_out, &unbuilt);
                let sums = self.plan.sums(replica, &now);
                let held = sums.iter().filter(|sum| !sum.is_zero()).count() as u64;
                let sketch = Sketch::of_buckets(self.salt, sums.into_iter());
                let differing = sketch.survey().differing(&survey);
                if differing > 2 * CELLS_AT_FIRST as u64 && differing * LISTED_FROM > held {
                    self.plan = self.plan.coarser(LISTED_COARSER_BY);
                    self.listing = Some(0);
                } else if let Some(question) = self.seek(replica, depth, sketch, differing, &cells)? {
                    return Ok(vec![question]);
                }
            }
            (Kind::Cells, Response::Cells(cells)) => {
                if let Some(question) = self.bucket_cells(replica, depth, &cells)? {
                    return Ok(vec![question]);
                }
            }
            (Kind::Sums, Response::Sums(trees)) => self.compare_sums(replica, &trees)?,
            (Kind::KeyCells(group), Response::KeyCells { keys, survey, cells }) => {
                if let Some(question) = self.key_cells(depth, group, keys, survey, &cells)? {
                    return Ok(vec![question]);
                }
            }
            // Too many keys, perhaps: they are compared one by one.
            (Kind::KeyCells(group), Response::Forgotten) => {
                let group = self.groups.remove(&group).ok_or(ExchangeError::Senseless)?;
                self.fetch(&group.intervals);
            }
            (Kind::Asks(keyspace, shift, asks), Response::Asked { outcomes, objects }) => {
                self.asked(replica, keyspace, shift, asks, &outcomes, objects)?;
            }
            (Kind::Fetch(interval, begin), Response::Fetched { rest, objects }) => {
                self.fetched(replica, interval, begin, rest, &objects)?;
            }
            (Kind::Push(keyspace, keys), Response::Pushed { objects, others }) => {
                self.pushed(replica, keyspace, keys, &objects, &others)?;
            }
            (_, Response::Forgotten) => return Err(ExchangeError::Forgotten),
            _ => return Err(ExchangeError::Senseless),
        }
        self.go_on(replica, depth).map_err(ExchangeError::Replica)
    }

    /// Whether everything that differed is on both sides.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.awaiting.is_empty() && !self.has_work() && !self.has_failed
    }

    fn has_work(&self) -> bool {
        let is_moving = !self.fetches.is_empty() || !self.rests.is_empty() || !self.asks.is_empty();
        let is_pushing = !self.pushes.is_empty() || !self.pushed_spans.is_empty() || !self.returns.is_empty();
        self.is_finding() || is_moving || is_pushing
    }

    fn is_finding(&self) -> bool {
        self.listing.is_some() || !self.several.is_empty() || !self.groups.is_empty()
    }

    /// Partitions about which it says nothing, because one of the sides has no trees for them yet.
    #[must_use]
    pub fn left_out(&self) -> &[PartitionId] {
        &self.left_out
    }

    /// In how many partitions it has found differences.
    #[must_use]
    pub fn differing(&self) -> usize {
        self.differing.len()
    }

    /// What it has found and moved so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report
    }

    fn question(&mut self, depth: u32, kind: Kind, request: &Request) -> Question {
        self.next_question += 1;
        self.awaiting.insert(self.next_question, Awaited { depth, kind });
        let message = request.encode();
        self.report.messages += 1;
        self.report.round_trips = self.report.round_trips.max(depth);
        self.report.bytes += message.len() as u64;
        Question { number: self.next_question, message }
    }

    /// Goes on with these trees alone.
    fn narrow<E>(&mut self, depth: u32, trees: Vec<Interval>) -> Result<Question, ExchangeError<E>> {
        self.plan = self.plan.of_trees(&trees).ok_or(ExchangeError::Senseless)?;
        self.is_narrow = true;
        let request = Request::Narrow { salt: self.salt, trees };
        Ok(self.question(depth + 1, Kind::Narrow, &request))
    }

    /// Begins to compare a sketch, in which about so many differ.
    fn seek<R: Replica>(
        &mut self,
        replica: &R,
        depth: u32,
        sketch: Sketch,
        differing: u64,
        cells: &[Cell],
    ) -> Result<Option<Question>, ExchangeError<R::Error>> {
        // The survey may be off by a third, and what is asked for in vain is lost.
        self.sought = cells_for(differing * 3 / 5);
        self.buckets = Some(Decoder::new(sketch));
        self.bucket_cells(replica, depth, cells)
    }

    /// Cells of the trees, or of the buckets.
    fn bucket_cells<R: Replica>(
        &mut self,
        replica: &R,
        depth: u32,
        cells: &[Cell],
    ) -> Result<Option<Question>, ExchangeError<R::Error>> {
        let mut decoder = self.buckets.take().ok_or(ExchangeError::Senseless)?;
        let sources = if self.is_narrow { self.plan.buckets() as usize } else { self.plan.trees().len() };
        let is_done = push_bounded(&mut decoder, cells, sources);
        if is_done.ok_or(ExchangeError::Senseless)? {
            if self.is_narrow {
                for difference in decoder.differences() {
                    self.found_bucket(replica, difference.id, difference.sum);
                }
                return Ok(None);
            }
            let trees = decoder.differences().into_iter().map(|difference| difference.id);
            let trees = self.plan.with_others_of_their_partitions(trees);
            return self.narrow(depth, trees).map(Some);
        }
        let compared = decoder.compared();
        self.buckets = Some(decoder);
        let (from, count) = (compared as u64, cells_after(compared, self.sought));
        let request = Request::Cells { salt: self.salt, from, count };
        Ok(Some(self.question(depth + 1, Kind::Cells, &request)))
    }

    /// This bucket differs, by this sum.
    fn found_bucket(&mut self, replica: &impl Replica, bucket: u64, difference: Sum) {
        let Some(planned) = self.plan.tree_of(bucket).copied() else { return };
        if self.left_out.binary_search(&planned.tree.partition).is_ok() {
            return;
        }
        self.differing.insert(planned.tree.partition);
        let span = self.plan.span(&planned, bucket, 1);
        let here = planned.sum(replica, bucket);
        let position =
            difference.position().filter(|position| span.contains(Span::of_position(*position).first));
        if let Some(position) = position {
            let found = Found { difference: Some(difference), bucket: Some(bucket), is_counted: false };
            self.ask(planned.tree.kind.keyspace, position.get(), found, None);
        } else if here.is_zero() {
            self.fetches.insert(bucket);
        } else if here == difference {
            self.pushed_spans.push_back((planned.tree, span));
        } else {
            self.several.insert(bucket);
        }
    }

    /// The peer's sums of the next trees.
    fn compare_sums<R: Replica>(
        &mut self,
        replica: &R,
        trees: &[Option<(u64, Vec<Sum>)>],
    ) -> Result<(), ExchangeError<R::Error>> {
        let next = self.listing.ok_or(ExchangeError::Senseless)?;
        let planned =
            self.plan.trees().get(next..next + trees.len()).ok_or(ExchangeError::Senseless)?.to_vec();
        if trees.is_empty() {
            return Err(ExchangeError::Senseless);
        }
        self.listing = Some(next + trees.len()).filter(|next| *next < self.plan.trees().len());
        if self.plan.lacks_kinds(replica) {
            return Err(ExchangeError::Forgotten);
        }
        let unbuilt = replica.unbuilt();
        for (planned, theirs) in planned.into_iter().zip(trees) {
            let mut ours = Vec::new();
            let here = planned.sums_into(replica, &unbuilt, &mut ours);
            let (Some(here), Some((there, theirs))) = (here, theirs) else {
                self.left_out = union(&self.left_out, &[planned.tree.partition]);
                continue;
            };
            if ours.len() != theirs.len() {
                return Err(ExchangeError::Senseless);
            }
            let is_moved = is_moved(here, *there);
            for (bucket, (ours, theirs)) in (planned.first..).zip(ours.into_iter().zip(theirs)) {
                let mut difference = ours;
                difference -= *theirs;
                if difference.is_zero() {
                    continue;
                }
                if is_moved && !theirs.is_zero() {
                    self.differing.insert(planned.tree.partition);
                    self.fetches.insert(bucket);
                } else {
                    self.found_bucket(replica, bucket, difference);
                }
            }
        }
        Ok(())
    }

    /// Cells of a group of keys.
    fn key_cells<E>(
        &mut self,
        depth: u32,
        number: u64,
        keys: u64,
        survey: Survey,
        cells: &[Cell],
    ) -> Result<Option<Question>, ExchangeError<E>> {
        let group = self.groups.get_mut(&number).ok_or(ExchangeError::Senseless)?;
        if let Some(ours) = group.survey.take() {
            // The first answer says how many differ.
            group.sought = cells_for(ours.differing(&survey) * 3 / 5);
            group.theirs = keys.min(1 << 32);
        }
        // With more cells than all keys need something else is wrong: they are compared one by one, as they are if one
        // side has hardly any.
        let here = group.entries.len() as u64;
        let limit = usize::try_from(2 * (here + group.theirs)).unwrap_or(usize::MAX);
        let pushed =
            if is_moved(here, group.theirs) { None } else { push_bounded(&mut group.decoder, cells, limit) };
        let Some(is_done) = pushed else {
            let group = self.groups.remove(&number).ok_or(ExchangeError::Senseless)?;
            self.fetch(&group.intervals);
            return Ok(None);
        };
        if !is_done {
            let compared = group.decoder.compared();
            let (from, count) = (compared as u64, cells_after(compared, group.sought));
            let request =
                Request::KeyCells { salt: self.salt, group: number, intervals: Vec::new(), from, count };
            return Ok(Some(self.question(depth + 1, Kind::KeyCells(number), &request)));
        }
        let group = self.groups.remove(&number).ok_or(ExchangeError::Senseless)?;
        let differences = group.decoder.differences();
        self.rate = Some(differences.len() as f64 / here.max(group.theirs).max(1) as f64);
        for difference in differences {
            let found = Found { difference: Some(difference.sum), bucket: None, is_counted: false };
            let span = Span::of_position(Residue::new(difference.id));
            self.ask(group.keyspace, difference.id, found, Some(group.entries.within(span).to_vec()));
        }
        Ok(None)
    }

    fn fetch(&mut self, intervals: &[Interval]) {
        for interval in intervals {
            self.fetches.extend(interval.first..interval.first + interval.count);
        }
    }

    fn ask(&mut self, keyspace: KeyspaceId, position: u64, found: Found, ours: Option<Vec<Entry>>) {
        match self.asks.entry((keyspace, position)) {
            btree_map::Entry::Vacant(place) => _ = place.insert(Sought { found, ours }),
            // What was found says more than that something was pushed. Of another kind of tree what is here may be less.
            btree_map::Entry::Occupied(mut place) if found.difference.is_some() => {
                place.insert(Sought { found, ours: None });
            }
            btree_map::Entry::Occupied(_) => {}
        }
    }

    /// What is at a position is to be sent. If it has gone by then, the peer may have something that is to be asked for.
    fn push(&mut self, keyspace: KeyspaceId, position: u64, wanted: Option<Found>) {
        let place = self.pushes.entry((keyspace, position)).or_default();
        *place = wanted.or(*place);
    }

    /// What became of asks.
    fn asked<R: Replica>(
        &mut self,
        replica: &mut R,
        keyspace: KeyspaceId,
        shift: u8,
        asks: Vec<Asked>,
        outcomes: &[Outcome],
        objects: Vec<Object>,
    ) -> Result<(), ExchangeError<R::Error>> {
        if outcomes.is_empty() || outcomes.len() > asks.len() {
            return Err(ExchangeError::Senseless);
        }
        let mut objects = objects.into_iter();
        let mut asks = asks.into_iter();
        for (outcome, Asked { position, found, ours, is_told }) in outcomes.iter().zip(&mut asks) {
            let span = Span::of_position(Residue::new(position));
            let count = match outcome {
                Outcome::Wanted if !is_told => return Err(ExchangeError::Senseless),
                Outcome::Wanted => 0,
                Outcome::Objects(count) => *count,
            };
            // Among them may be others whose positions begin with the same bits.
            let mut sent: Vec<Object> = (0..count).map_while(|_| objects.next()).collect();
            let asked = Span::of_positions(position >> shift, shift);
            if !sent.iter().all(|object| is_record_in(object, asked)) {
                return Err(ExchangeError::Senseless);
            }
            if found.difference.is_none() {
                // Others have nothing to do with what was pushed: there would be no end of it.
                sent.retain(|object| span.contains(Token::of_key(&object.key)));
            }
            let is_it = |object: &&Object| span.contains(Token::of_key(&object.key));
            let theirs: Vec<&Object> = sent.iter().filter(is_it).collect();
            let mut lacking = ours.iter().filter(|ours| !theirs.iter().any(|theirs| theirs.key == ours.key));
            if let Some(difference) = found.difference {
                let (is_here, is_there) =
                    (!ours.is_empty(), *outcome == Outcome::Wanted || !theirs.is_empty());
                self.report.updated += u64::from(!found.is_counted && is_here && is_there);
                self.report.missing += u64::from(!found.is_counted && is_here != is_there);
                // A bucket whose sum looks as if one key differed, and no such key: several do.
                if !is_there && sum_of(&ours) != difference {
                    self.several.extend(found.bucket);
                }
                if lacking.next().is_some() {
                    let wanted = Some(found).filter(|_| *outcome == Outcome::Wanted);
                    self.push(keyspace, position, wanted);
                }
            } else {
                // It was pushed, and is not there: it was refused.
                lacking.for_each(|ours| self.give_back(keyspace, &ours.key));
            }
            self.take(replica, keyspace, &sent)?;
        }
        // The answer had no room for the rest.
        asks.for_each(|asked| self.ask(keyspace, asked.position, asked.found, Some(asked.ours)));
        Ok(())
    }

    /// Objects of some buckets, from some token on.
    fn fetched<R: Replica>(
        &mut self,
        replica: &mut R,
        interval: Interval,
        begin: Token,
        rest: Option<Token>,
        objects: &[Object],
    ) -> Result<(), ExchangeError<R::Error>> {
        let planned = *self.plan.tree_of(interval.first).ok_or(ExchangeError::Senseless)?;
        let span = self.plan.span(&planned, interval.first, interval.count).from(begin);
        let compared = match rest {
            None => span,
            Some(rest) if rest > begin && span.contains(rest) => {
                Span { first: begin, last: Token(rest.0 - 1) }
            }
            Some(_) => return Err(ExchangeError::Senseless),
        };
        let keyspace = planned.tree.kind.keyspace;
        let tokens: BTreeSet<u64> = objects.iter().map(|object| position_of_key(&object.key)).collect();
        if !objects.iter().all(|object| is_record_in(object, compared)) {
            return Err(ExchangeError::Senseless);
        }
        if rest.is_some() && objects.is_empty() {
            return Err(ExchangeError::Senseless);
        }
        let ours = replica.entries(planned.tree, compared, GROUP_KEYS_MAX).map_err(ExchangeError::Replica)?;
        if ours.is_none() {
            // Far more than the peer has sent: it gets all of it, a message after the other.
            self.pushed_spans.push_back((planned.tree, compared));
        }
        let ours = Entries::new(ours.unwrap_or_default());
        let positions: BTreeSet<u64> = ours.elements().map(|element| element.position().get()).collect();
        self.report.missing += tokens.symmetric_difference(&positions).count() as u64;
        let is_lacking = |ours: &Entry| !objects.iter().any(|object| object.key == ours.key);
        for position in positions {
            let here = ours.within(Span::of_position(Residue::new(position)));
            if !tokens.contains(&position) || here.iter().any(is_lacking) {
                self.push(keyspace, position, None);
            }
        }
        self.take(replica, keyspace, objects)?;
        self.rests.extend(rest.map(|rest| (interval, rest)));
        Ok(())
    }

    /// What became of what was sent: of the keys of which the peer does not hold just that, it says what it holds.
    fn pushed<R: Replica>(
        &mut self,
        replica: &mut R,
        keyspace: KeyspaceId,
        keys: Vec<Bytes>,
        objects: &[Object],
        others: &[u64],
    ) -> Result<(), ExchangeError<R::Error>> {
        let (mut instead, mut places) = (objects.iter().peekable(), others.iter().peekable());
        for (place, key) in (0..).zip(keys) {
            if instead.next_if(|object| object.key == key).is_some() {
                continue;
            }
            if places.next_if_eq(&&place).is_some() {
                let pushed = Found { difference: None, bucket: None, is_counted: true };
                self.ask(keyspace, position_of_key(&key), pushed, None);
            }
        }
        // Of what was not sent nothing is said: there would be no end of it.
        if instead.next().is_some() || places.next().is_some() {
            return Err(ExchangeError::Senseless);
        }
        self.take(replica, keyspace, objects)
    }

    /// Joins what the peer has sent, and sees to it that it gets back what is held instead.
    fn take<R: Replica>(
        &mut self,
        replica: &mut R,
        keyspace: KeyspaceId,
        objects: &[Object],
    ) -> Result<(), ExchangeError<R::Error>> {
        for object in objects {
            self.report.objects_received += 1;
            self.report.payload_bytes += object.encoded_len() as u64;
            if !replica.merge(keyspace, object).map_err(ExchangeError::Replica)? {
                self.give_back(keyspace, &object.key);
            }
        }
        Ok(())
    }

    /// The peer is to be told what is held of a key, unless it was told so often that it must know.
    fn give_back(&mut self, keyspace: KeyspaceId, key: &Bytes) {
        // A slice would keep the whole message in which it came.
        let name = (keyspace, Bytes::copy_from_slice(key));
        let times = self.returned.entry(name.clone()).or_default();
        if *times < RETURNS_MAX && self.returns.insert(name) {
            *times += 1;
        }
    }

    /// What is to be asked next.
    fn go_on<R: Replica>(&mut self, replica: &mut R, depth: u32) -> Result<Vec<Question>, R::Error> {
        let mut questions = Vec::new();
        while self.awaiting.len() < WINDOW {
            let Some((kind, request)) = self.next(replica)? else { break };
            questions.push(self.question(depth + 1, kind, &request));
        }
        Ok(questions)
    }

    fn next<R: Replica>(&mut self, replica: &mut R) -> Result<Option<(Kind, Request)>, R::Error> {
        let is_finding = self.is_finding();
        let is_full = |waiting: usize| waiting > 0 && (waiting >= ASKS_MAX || !is_finding);
        let push = if is_full(self.pushes.len() + self.returns.len()) || !self.pushed_spans.is_empty() {
            self.next_push(replica)?
        } else {
            None
        };
        if push.is_some() {
            return Ok(push);
        }
        // Of what was to be sent instead all may have gone.
        if is_full(self.asks.len())
            && let Some(asked) = self.next_asks(replica)?
        {
            return Ok(Some(asked));
        }
        if let Some(fetch) = self.next_fetch() {
            return Ok(Some(fetch));
        }
        if self.asks.len() + self.pushes.len() + self.returns.len() > UNRESOLVED_MAX {
            return Ok(None);
        }
        if !self.several.is_empty() && (self.listing.is_none() || self.several.len() >= GROUP_INTERVALS_MAX) {
            return self.next_group(replica);
        }
        let is_listing = self.awaiting.values().any(|awaited| matches!(awaited.kind, Kind::Sums));
        if let Some(from) = self.listing.filter(|_| !is_listing) {
            let request = Request::Sums {
                salt: self.salt,
                coarser_by: LISTED_COARSER_BY,
                from: from as u64,
                trees: SUMS_MAX,
            };
            return Ok(Some((Kind::Sums, request)));
        }
        Ok(None)
    }

    /// Sends records.
    fn next_push<R: Replica>(&mut self, replica: &mut R) -> Result<Option<(Kind, Request)>, R::Error> {
        let (mut objects, mut bytes) = (Vec::new(), 0_usize);
        let mut of = None;
        while bytes < OBJECTS_BYTES_MAX
            && let Some((tree, span)) = self.pushed_spans.front().copied()
            && of.is_none_or(|of| of == tree.kind.keyspace)
        {
            self.pushed_spans.pop_front();
            let copies = Some(tree.kind.copies);
            let found = replica.objects(tree.kind.keyspace, copies, span, OBJECTS_BYTES_MAX - bytes)?;
            if !found.objects.is_empty() {
                of = Some(tree.kind.keyspace);
            }
            self.report.missing += found.objects.len() as u64;
            bytes += found.objects.iter().map(Object::encoded_len).sum::<usize>();
            objects.extend(found.objects);
            if let Some(rest) = found.rest {
                self.pushed_spans.push_front((tree, span.from(rest)));
            }
        }
        while bytes < OBJECTS_BYTES_MAX
            && let Some(place) = self.pushes.first_entry()
            && of.is_none_or(|of| of == place.key().0)
        {
            let ((keyspace, position), wanted) = place.remove_entry();
            let found = at_position(replica, keyspace, Span::of_position(Residue::new(position)))?;
            if !found.is_empty() {
                of = Some(keyspace);
            } else if let Some(wanted) = wanted {
                self.ask(keyspace, position, Found { is_counted: true, ..wanted }, None);
            }
            bytes += found.iter().map(Object::encoded_len).sum::<usize>();
            objects.extend(found);
        }
        while bytes < OBJECTS_BYTES_MAX
            && let Some((keyspace, key)) = self.returns.first().cloned()
            && of.is_none_or(|of| of == keyspace)
        {
            self.returns.pop_first();
            let held = replica.held(keyspace, &key)?;
            of = Some(keyspace);
            bytes += held.encoded_len();
            objects.push(held);
        }
        // What has gone meanwhile is passed over, so nothing else waits if nothing is found.
        let Some(keyspace) = of else { return Ok(None) };
        self.report.objects_sent += objects.len() as u64;
        self.report.payload_bytes += bytes as u64;
        let keys = objects.iter().map(|object| object.key.clone()).collect();
        Ok(Some((Kind::Push(keyspace, keys), Request::Push { keyspace, objects })))
    }

    /// Asks for records, and tells what is here.
    fn next_asks<R: Replica>(&mut self, replica: &mut R) -> Result<Option<(Kind, Request)>, R::Error> {
        let Some(((keyspace, _), _)) = self.asks.first_key_value() else { return Ok(None) };
        let keyspace = *keyspace;
        // One in some thousand asks then gets another key along.
        let shift = 56_u8.saturating_sub(12 + 64 - self.keys.leading_zeros() as u8);
        let (mut asked, mut asks) = (Vec::new(), Vec::new());
        // What is to be sent instead is found here, too.
        while asks.len() < ASKS_MAX
            && self.pushes.len() < 2 * ASKS_MAX
            && let Some(entry) = self.asks.first_entry().filter(|entry| entry.key().0 == keyspace)
        {
            let ((_, position), Sought { found, ours }) = entry.remove_entry();
            let ours = match ours {
                Some(ours) => ours,
                None => entries_at(replica, keyspace, Residue::new(position))?,
            };
            // The whole difference is what is here.
            if !ours.is_empty() && found.difference == Some(sum_of(&ours)) {
                self.report.missing += u64::from(!found.is_counted);
                self.push(keyspace, position, Some(found));
                continue;
            }
            // Where the peer holds something else it is to say what, and not to want this once more.
            let counter = highest(&ours).filter(|_| found.difference.is_some());
            asked.push(Asked { position, found, ours, is_told: counter.is_some() });
            asks.push(Ask { prefix: position >> shift, counter });
        }
        // All of them are to be sent; there may be others, of another keyspace.
        if asks.is_empty() {
            return match self.next_push(replica)? {
                None if !self.asks.is_empty() => self.next_asks(replica),
                push => Ok(push),
            };
        }
        Ok(Some((Kind::Asks(keyspace, shift, asked), Request::Ask { keyspace, shift, asks })))
    }

    fn next_fetch(&mut self) -> Option<(Kind, Request)> {
        let (interval, begin) = match self.rests.pop_front() {
            Some(rest) => rest,
            None => {
                let first = self.fetches.pop_first()?;
                let planned = *self.plan.tree_of(first)?;
                let mut end = first + 1;
                // Several at a time, rather than a long one.
                while end < planned.end().min(first + FETCHED_TOGETHER) && self.fetches.remove(&end) {
                    end += 1;
                }
                let interval = Interval { first, count: end - first };
                (interval, self.plan.span(&planned, first, interval.count).first)
            }
        };
        let request = Request::Fetch { salt: self.salt, interval, begin };
        Some((Kind::Fetch(interval, begin), request))
    }

    /// Compares the keys of some buckets.
    fn next_group<R: Replica>(&mut self, replica: &mut R) -> Result<Option<(Kind, Request)>, R::Error> {
        // The follower keeps the newest: one that was begun long ago and is not done would be forgotten.
        let oldest = self.groups.first_key_value().map_or(self.next_group, |(oldest, _)| *oldest);
        if self.next_group - oldest >= GROUPS_MAX as u64 {
            return Ok(None);
        }
        let (mut intervals, mut keys, mut buckets): (Vec<Interval>, u64, u64) = (Vec::new(), 0, 0);
        let mut of = None;
        while keys < GROUP_KEYS
            && intervals.len() < GROUP_INTERVALS_MAX
            && let Some(bucket) = self.several.first().copied()
            && let Some(planned) = self.plan.tree_of(bucket)
            // A position says where in a keyspace a key is, and not in which.
            && of.is_none_or(|of| of == planned.tree.kind.keyspace)
        {
            self.several.pop_first();
            of = Some(planned.tree.kind.keyspace);
            let of_tree = replica.tree(planned.tree).map_or(0, HashTree::len);
            keys += 1 + (of_tree >> planned.bits);
            buckets += 1;
            match intervals.last_mut() {
                Some(last) if last.first + last.count == bucket && bucket != planned.first => last.count += 1,
                _ => intervals.push(Interval { first: bucket, count: 1 }),
            }
        }
        let Some(keyspace) = of else { return Ok(None) };
        let Some(entries) = entries_of(replica, &self.plan, &intervals)? else {
            self.fetch(&intervals);
            return Ok(self.next_fetch());
        };
        let (number, keys) = (self.next_group, entries.len() as u64);
        self.next_group += 1;
        let expected = self.rate.map_or(2.2 * buckets as f64, |rate| 0.95 * rate * keys as f64);
        let sketch = Sketch::of_keys(group_salt(self.salt, number), entries.elements());
        let survey = Some(sketch.survey());
        let decoder = Decoder::new(sketch);
        let count = cells_for(expected as u64).min(CELLS_MAX) as u64;
        let request = Request::KeyCells {
            salt: self.salt,
            group: number,
            intervals: intervals.clone(),
            from: 0,
            count,
        };
        self.groups
            .insert(number, Group { keyspace, intervals, decoder, entries, survey, sought: 0, theirs: 0 });
        Ok(Some((Kind::KeyCells(number), request)))
    }
}

/// So many more cells are compared than sources can account for: a few of them may share all of the first by chance.
const CELLS_SPARE: usize = 1024;

/// Compares more cells. None if there are more than so many sources could need.
fn push_bounded(decoder: &mut Decoder, cells: &[Cell], sources: usize) -> Option<bool> {
    if decoder.push(cells) {
        return Some(true);
    }
    (!cells.is_empty() && decoder.compared() <= 2 * sources + CELLS_SPARE).then_some(false)
}

/// How many cells to ask for after so many, if so many are likely to suffice.
fn cells_after(compared: usize, sought: usize) -> u64 {
    sought.saturating_sub(compared).max(4 + compared / 10).min(CELLS_MAX) as u64
}

/// Whether one side has so few keys that all are moved.
fn is_moved(here: u64, there: u64) -> bool {
    here.saturating_mul(MOVED_FROM) < there || there.saturating_mul(MOVED_FROM) < here
}

/// Whether an object is one that a scan of this span finds.
fn is_record_in(object: &Object, span: Span) -> bool {
    object.record.is_some() && span.contains(Token::of_key(&object.key))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use ring::Partitions;

    use super::{
        super::{Follower, memory::MemoryReplica},
        *,
    };
    use crate::version::{Actor, Context, CopyCount, Counter, Dot, LwwVersion, Record, Value};

    const KEYSPACE: KeyspaceId = KeyspaceId(1);
    const KEYS: u64 = 50;

    fn key(number: u64) -> Bytes {
        Bytes::from(format!("key-{number}"))
    }

    fn replica(keys: u64) -> MemoryReplica {
        let partitions = Partitions::new(4).expect("a power of two");
        let mut replica = MemoryReplica::new([9; 32], partitions, 16);
        put(&mut replica, KEYSPACE, 0..keys);
        replica
    }

    fn put(replica: &mut MemoryReplica, keyspace: KeyspaceId, keys: std::ops::Range<u64>) {
        for number in keys {
            let dot = Dot { counter: Counter(1 + number), actor: Actor(8) };
            let value = Some(Value::new("value"));
            let version = LwwVersion::write(dot, &Context::new(), value, CopyCount::DEFAULT);
            replica.set(keyspace, key(number), Some(Record::Lww(version).into()));
        }
    }

    /// Leads an exchange with a peer that answers some questions otherwise.
    fn run(
        leader: &mut MemoryReplica,
        follower: &mut MemoryReplica,
        mut otherwise: impl FnMut(Request) -> Option<Response>,
    ) -> Result<(), ExchangeError<Infallible>> {
        let mut other = Follower::new();
        let (mut exchange, question) = Exchange::begin(leader, 5);
        let mut open = vec![question];
        while let Some(Question { number, message }) = open.pop() {
            assert!(exchange.report().messages < 1000, "it does not end");
            let request = Request::decode(message.clone()).expect("a request");
            let answer = match otherwise(request) {
                Some(response) => response.encode(),
                None => other.answer(follower, message, true).expect("a question that makes sense"),
            };
            open.extend(exchange.answered(leader, number, answer)?);
        }
        assert!(exchange.is_complete());
        Ok(())
    }

    #[test]
    fn what_has_gone_before_it_was_sent_keeps_nothing_else_waiting() {
        const OTHER: KeyspaceId = KeyspaceId(2);
        let sides: [MemoryReplica; 2] = [KEYS + 20, KEYS].map(replica);
        let [mut here, mut there] = sides;
        put(&mut here, OTHER, 0..KEYS);
        put(&mut there, OTHER, 0..KEYS + 20);
        let mut other = Follower::new();
        let (mut exchange, question) = Exchange::begin(&here, 5);
        let (mut open, mut has_gone) = (VecDeque::from([question]), false);
        while let Some(Question { number, message }) = open.pop_front() {
            let request = Request::decode(message.clone()).expect("a request");
            let is_second = matches!(request, Request::KeyCells { group: 1, .. });
            if is_second && !open.is_empty() {
                open.push_back(Question { number, message });
                continue;
            }
            let answer = if is_second {
                // By the time that the second keyspace's keys have to be fetched, what is to be sent of the first has gone.
                has_gone = true;
                (KEYS..KEYS + 20).for_each(|number| here.set(KEYSPACE, key(number), None));
                Response::Forgotten.encode()
            } else {
                other.answer(&mut there, message, true).expect("a question that makes sense")
            };
            open.extend(exchange.answered(&mut here, number, answer).expect("an answer that makes sense"));
        }
        assert!(has_gone && exchange.is_complete());
        assert_eq!(here.len() as u64, KEYS + KEYS + 20);
    }

    #[test]
    fn a_peer_that_never_says_what_it_holds_instead_is_left_alone() {
        let (mut here, mut there) = (replica(KEYS), replica(0));
        let mut pushes = 0;
        run(&mut here, &mut there, |request| match request {
            Request::Push { objects, .. } => {
                pushes += objects.len() as u64;
                Some(Response::Pushed { objects: Vec::new(), others: (0..objects.len() as u64).collect() })
            }
            _ => None,
        })
        .unwrap();
        assert_eq!(pushes, KEYS * (1 + u64::from(RETURNS_MAX)));
        assert_eq!((here.len() as u64, there.len()), (KEYS, 0));
    }

    #[test]
    fn a_peer_that_holds_nothing_of_what_it_is_sent_is_left_alone() {
        let (mut here, mut there) = (replica(KEYS), replica(0));
        let mut pushes = 0;
        run(&mut here, &mut there, |request| match request {
            Request::Push { mut objects, .. } => {
                pushes += objects.len() as u64;
                objects.iter_mut().for_each(|object| object.record = None);
                Some(Response::Pushed { objects, others: Vec::new() })
            }
            _ => None,
        })
        .unwrap();
        assert_eq!(pushes, KEYS * (1 + u64::from(RETURNS_MAX)));
    }

    #[test]
    fn what_was_not_sent_or_not_told_is_not_to_be_answered() {
        let nothing = |number| Object { key: key(number), record: None, under: Counter::ZERO };
        for objects in [vec![nothing(KEYS)], vec![nothing(0), nothing(0)]] {
            let (mut here, mut there) = (replica(1), replica(0));
            let ended = run(&mut here, &mut there, |request| match request {
                Request::Push { .. } => {
                    Some(Response::Pushed { objects: objects.clone(), others: Vec::new() })
                }
                _ => None,
            });
            assert!(matches!(ended, Err(ExchangeError::Senseless)), "{objects:?}: {ended:?}");
        }
        for others in [vec![1], vec![0, 0]] {
            let (mut here, mut there) = (replica(1), replica(0));
            let ended = run(&mut here, &mut there, |request| match request {
                Request::Push { .. } => {
                    Some(Response::Pushed { objects: Vec::new(), others: others.clone() })
                }
                _ => None,
            });
            assert!(matches!(ended, Err(ExchangeError::Senseless)), "{others:?}: {ended:?}");
        }
        let (mut here, mut there) = (replica(0), replica(1));
        let answers = [
            Response::Asked { outcomes: vec![Outcome::Wanted], objects: Vec::new() },
            Response::Asked { outcomes: vec![Outcome::Objects(1)], objects: vec![nothing(0)] },
        ];
        for answer in answers {
            let ended = run(&mut here, &mut there, |request| match request {
                Request::Ask { .. } => Some(answer.clone()),
                _ => None,
            });
            assert!(matches!(ended, Err(ExchangeError::Senseless)), "{answer:?}: {ended:?}");
        }
    }
}
