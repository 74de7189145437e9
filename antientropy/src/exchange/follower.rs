//! The side that answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use ring::{KeyspaceId, PartitionId};
use thiserror::Error;

use super::{
    Entry, Object, Replica, Span, Stretch, TreeId,
    entries::{Entries, position_of_key},
    message::{ASKS_MAX, Ask, Interval, Levels, Outcome, Request, Response, Undecodable},
    plan::{BUCKETS_LIMIT, Plan, trees_of, union},
};
use crate::{
    hash_tree::{HashTree, Sum},
    sketch::{Cell, Sketch, Survey},
};

/// Cells that come with the first answer: enough for some ten differences.
pub(super) const CELLS_AT_FIRST: usize = 16;
/// Cells of one answer at most.
pub(super) const CELLS_MAX: usize = 3000;
/// Sums of one answer at most, roughly.
pub(super) const SUMS_MAX: u64 = 4096;
/// Bytes of objects in one message at most, unless one alone is larger.
pub(super) const OBJECTS_BYTES_MAX: usize = 8 << 10;
/// Groups of keys that are sketched at the same time, at most.
pub(super) const GROUPS_MAX: usize = 8;
/// Messages' worth of objects that one position has at most.
const STRETCHES_MAX: usize = 64;
/// Keys of a group that begin like one that is asked for, at most: of more there is no end.
const ALIKE_MAX: usize = 16;
/// Records that are wanted at the same time, at most: more than a leader ever has unresolved.
const WANTED_MAX: usize = 1 << 14;
/// Keys of one group at most: of more, all are sent instead.
pub(super) const GROUP_KEYS_MAX: usize = 1 << 12;

/// What the following side of an exchange remembers. It may be dropped at any time: the leader then begins anew.
#[derive(Debug, Default)]
pub struct Follower {
    session: Option<Session>,
    /// The keys of which a newer record is wanted, by their positions.
    wanted: BTreeMap<(KeyspaceId, u64), Bytes>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FollowError<E> {
    /// The replica here cannot tell, or take what was sent.
    #[error(transparent)]
    Replica(E),
    /// The question makes no sense.
    #[error("a question that makes no sense")]
    Senseless,
    /// Something differs, and it is not to be gone into now.
    #[error("busy with another exchange")]
    Busy,
}

#[derive(Debug)]
struct Session {
    salt: u64,
    /// As it was agreed or narrowed, and as it is after a list of sums was asked for.
    agreed: Plan,
    plan: Plan,
    /// Of the trees, and later of the buckets, while their cells are being asked for.
    sketch: Option<Sketch>,
    groups: BTreeMap<u64, Group>,
}

#[derive(Debug)]
struct Group {
    sketch: Sketch,
    /// What its keys were: those that differ are asked for next.
    entries: Entries,
    /// The keyspace and the spans, in order, of which these were all keys that both sides keep; none if there may be others.
    of: Option<(KeyspaceId, Vec<Span>)>,
}

impl Follower {
    /// Remembers nothing.
    #[must_use]
    pub fn new() -> Follower {
        Follower::default()
    }

    /// Answers a question. If it may not engage, it answers whether all is equal, and is busy if not.
    ///
    /// # Errors
    ///
    /// [`FollowError`] if there is no answer: the question is refused.
    pub fn answer<R: Replica>(
        &mut self,
        replica: &mut R,
        message: Bytes,
        may_engage: bool,
    ) -> Result<Bytes, FollowError<R::Error>> {
        let request = Request::decode(message).map_err(|Undecodable| FollowError::Senseless)?;
        if !may_engage && !matches!(request, Request::Check { .. }) {
            return Err(FollowError::Busy);
        }
        let response = self.respond(replica, request, may_engage).map_err(FollowError::Replica)?;
        response.map(|response| response.encode()).ok_or(FollowError::Busy)
    }

    /// Whether an exchange has found that something differs.
    #[must_use]
    pub fn is_engaged(&self) -> bool {
        self.session.is_some()
    }

    fn respond<R: Replica>(
        &mut self,
        replica: &mut R,
        request: Request,
        may_engage: bool,
    ) -> Result<Option<Response>, R::Error> {
        Ok(Some(match request {
            Request::Check { salt, digest, levels, unbuilt } => {
                self.wanted.clear();
                let unbuilt = union(&replica.unbuilt(), &unbuilt);
                if digest == digest_of_roots(replica, &unbuilt) {
                    self.session = None;
                    Response::Equal
                } else if may_engage {
                    self.begin(replica, salt, unbuilt, &levels)
                } else {
                    return Ok(None);
                }
            }
            Request::Narrow { salt, trees } => {
                let narrowed = self.session(salt).and_then(|session| session.narrow(replica, &trees));
                narrowed.unwrap_or(Response::Forgotten)
            }
            Request::Cells { salt, from, count } => {
                let cells = self.session(salt).and_then(|session| session.cells(from, count));
                cells.unwrap_or(Response::Forgotten)
            }
            Request::Sums { salt, coarser_by, from, trees } => match self.session(salt) {
                Some(session) if !session.plan.lacks_kinds(replica) => {
                    session.sums(replica, coarser_by, from, trees)
                }
                Some(_) | None => Response::Forgotten,
            },
            Request::KeyCells { salt, group, intervals, from, count } => match self.session(salt) {
                Some(session) => session.key_cells(replica, group, &intervals, from, count)?,
                None => Response::Forgotten,
            },
            Request::Ask { keyspace, shift, asks } => self.asked(replica, keyspace, shift, &asks)?,
            Request::Fetch { salt, interval, begin } => {
                let found = self.session(salt).and_then(|session| session.span(interval));
                match found.filter(|(_, span)| span.contains(begin)) {
                    Some((TreeId { kind, .. }, span)) => {
                        let (copies, span) = (Some(kind.copies), span.from(begin));
                        let found = replica.objects(kind.keyspace, copies, span, OBJECTS_BYTES_MAX)?;
                        Response::Fetched { rest: found.rest, objects: found.objects }
                    }
                    None => Response::Forgotten,
                }
            }
            Request::Push { keyspace, objects } => {
                let (mut instead, mut others, mut bytes) = (Vec::new(), Vec::new(), 0);
                for (place, object) in (0..).zip(&objects) {
                    let is_just_that = replica.merge(keyspace, object)?;
                    if self.wanted_another(keyspace, &object.key) {
                        others.push(place);
                        continue;
                    }
                    if is_just_that {
                        continue;
                    }
                    self.knows_no_names_around(keyspace, &object.key);
                    if bytes < OBJECTS_BYTES_MAX {
                        let held = replica.held(keyspace, &object.key)?;
                        bytes += held.encoded_len();
                        instead.push(held);
                    } else {
                        others.push(place);
                    }
                }
                Response::Pushed { objects: instead, others }
            }
        }))
    }

    fn session(&mut self, salt: u64) -> Option<&mut Session> {
        self.session.as_mut().filter(|session| session.salt == salt)
    }

    fn asked<R: Replica>(
        &mut self,
        replica: &mut R,
        keyspace: KeyspaceId,
        shift: u8,
        asks: &[Ask],
    ) -> Result<Response, R::Error> {
        let (mut outcomes, mut objects, mut bytes) = (Vec::new(), Vec::new(), 0);
        for ask in asks.iter().take(ASKS_MAX) {
            let found = self.objects_in(replica, keyspace, Span::of_positions(ask.prefix, shift))?;
            let newest = found.iter().filter_map(|object| Some(object.record.as_ref()?.highest())).max();
            let is_older = ask.counter.is_some_and(|theirs| newest.is_some_and(|ours| ours < theirs));
            // Of several the leader may lack one.
            if is_older
                && let [held] = &found[..]
                && self.wanted.len() < WANTED_MAX
            {
                // A slice would keep the block that it was read from.
                let position = position_of_key(&held.key);
                self.wanted.insert((keyspace, position), Bytes::copy_from_slice(&held.key));
                outcomes.push(Outcome::Wanted);
                continue;
            }
            bytes += found.iter().map(Object::encoded_len).sum::<usize>();
            if bytes > OBJECTS_BYTES_MAX && !objects.is_empty() {
                break;
            }
            outcomes.push(Outcome::Objects(found.len() as u64));
            objects.extend(found);
        }
        Ok(Response::Asked { outcomes, objects })
    }

    /// Whether the record that was wanted where this one is was another key's: keys are asked for by their positions, and the
    /// leader lacks it, then.
    fn wanted_another(&mut self, keyspace: KeyspaceId, key: &Bytes) -> bool {
        !self.wanted.is_empty()
            && self.wanted.remove(&(keyspace, position_of_key(key))).is_some_and(|wanted| wanted != key)
    }

    /// More is held of a key than was sent. If it is none of a group's, that group's keys are not all that both sides keep: what this
    /// side alone was to keep has become both sides' by what was sent.
    fn knows_no_names_around(&mut self, keyspace: KeyspaceId, key: &Bytes) {
        let span = Span::of_positions(position_of_key(key), 0);
        for group in self.session.iter_mut().flat_map(|session| session.groups.values_mut()) {
            if group.has_all_of(keyspace, span) && !group.entries.within(span).iter().any(|of| of.key == key)
            {
                group.of = None;
            }
        }
    }

    /// The objects of some positions. To look keys up whose names are known is several times faster than to look for those that
    /// are there; of a group that was compared the names are known. What was written since then is no matter of this exchange.
    fn objects_in<R: Replica>(
        &self,
        replica: &mut R,
        keyspace: KeyspaceId,
        span: Span,
    ) -> Result<Vec<Object>, R::Error> {
        let groups = self.session.iter().flat_map(|session| session.groups.values());
        let group = groups.rev().find(|group| group.has_all_of(keyspace, span));
        let entries = group.map(|group| group.entries.within(span));
        let Some(entries) = entries.filter(|entries| entries.len() <= ALIKE_MAX) else {
            return at_position(replica, keyspace, span);
        };
        let mut objects = Vec::new();
        for entry in entries {
            let held = replica.held(keyspace, &entry.key)?;
            objects.extend(Some(held).filter(|held| held.record.is_some()));
        }
        Ok(objects)
    }

    fn begin<R: Replica>(
        &mut self,
        replica: &R,
        salt: u64,
        unbuilt: Vec<PartitionId>,
        levels: &Levels,
    ) -> Response {
        let levels = Levels::of(replica, &unbuilt).join(levels);
        let Some(plan) = Plan::new(replica, &unbuilt, &levels) else { return Response::Forgotten };
        let (sketch, survey, cells) = sketched(salt, plan.of_roots().sums(replica, &unbuilt));
        self.session =
            Some(Session { salt, agreed: plan.clone(), plan, sketch: Some(sketch), groups: BTreeMap::new() });
        Response::Differs { levels, unbuilt, survey, cells }
    }
}

impl Session {
    fn narrow<R: Replica>(&mut self, replica: &R, trees: &[Interval]) -> Option<Response> {
        if self.plan.lacks_kinds(replica) {
            return None;
        }
        self.agreed = self.agreed.of_trees(trees).filter(|plan| plan.buckets() <= BUCKETS_LIMIT)?;
        self.plan = self.agreed.clone();
        // What it has nothing for now it does not know.
        let unbuilt = self.plan.unknown(replica, &replica.unbuilt());
        let (sketch, survey, cells) = sketched(self.salt, self.plan.sums(replica, &unbuilt));
        self.sketch = Some(sketch);
        Some(Response::Narrowed { unbuilt, survey, cells })
    }

    fn cells(&mut self, from: u64, count: u64) -> Option<Response> {
        let sketch = self.sketch.as_mut().filter(|sketch| sketch.made() as u64 == from)?;
        Some(Response::Cells(sketch.cells(bounded(count, CELLS_MAX))))
    }

    fn sums<R: Replica>(&mut self, replica: &R, coarser_by: u8, from: u64, trees: u64) -> Response {
        self.plan = self.agreed.coarser(coarser_by);
        self.sketch = None;
        let all = self.plan.trees();
        let from = bounded(from, all.len());
        let unbuilt = replica.unbuilt();
        let (mut out, mut sent) = (Vec::new(), 0);
        for planned in all[from..].iter().take(bounded(trees, usize::MAX)) {
            let mut sums = Vec::new();
            let keys = planned.sums_into(replica, &unbuilt, &mut sums);
            sent += 1 + sums.len() as u64;
            out.push(keys.map(|keys| (keys, sums)));
            if sent >= SUMS_MAX {
                break;
            }
        }
        Response::Sums(out)
    }

    fn key_cells<R: Replica>(
        &mut self,
        replica: &mut R,
        group: u64,
        intervals: &[Interval],
        from: u64,
        count: u64,
    ) -> Result<Response, R::Error> {
        let is_first = from == 0;
        if is_first {
            let entries = entries_of(replica, &self.plan, intervals)?;
            let Some(entries) = entries else { return Ok(Response::Forgotten) };
            let sketch = Sketch::of_keys(group_salt(self.salt, group), entries.elements());
            let of = self.all_keys_in(replica, intervals);
            self.groups.insert(group, Group { sketch, entries, of });
            while self.groups.len() > GROUPS_MAX {
                self.groups.pop_first();
            }
        }
        let Some(found) = self.groups.get_mut(&group).filter(|found| found.sketch.made() as u64 == from)
        else {
            return Ok(Response::Forgotten);
        };
        let survey = if is_first { found.sketch.survey() } else { Survey::default() };
        let cells = found.sketch.cells(bounded(count, CELLS_MAX));
        Ok(Response::KeyCells { keys: found.entries.len() as u64, survey, cells })
    }

    /// The keyspace and the spans of some buckets, if they are of one keyspace which has one kind of tree: then what these
    /// trees have there is all that there is.
    fn all_keys_in(&self, replica: &impl Replica, intervals: &[Interval]) -> Option<(KeyspaceId, Vec<Span>)> {
        let kind = self.plan.tree_of(intervals.first()?.first)?.tree.kind;
        if !self.plan.is_only_kind(kind) || self.plan.lacks_kinds(replica) {
            return None;
        }
        let mut spans = Vec::with_capacity(intervals.len());
        for interval in intervals {
            let (_, span) = self.span(*interval).filter(|(tree, _)| tree.kind == kind)?;
            spans.push(span);
        }
        spans.is_sorted().then_some((kind.keyspace, spans))
    }

    /// The tree that buckets are of, and their tokens.
    fn span(&self, interval: Interval) -> Option<(TreeId, Span)> {
        let planned = self.plan.tree_of(interval.first)?;
        let fits = interval.count > 0 && interval.count <= planned.end() - interval.first;
        fits.then(|| (planned.tree, self.plan.span(planned, interval.first, interval.count)))
    }
}

impl Group {
    /// Whether its keys in a span were all that both sides keep there.
    fn has_all_of(&self, keyspace: KeyspaceId, span: Span) -> bool {
        self.of.as_ref().is_some_and(|(of, spans)| {
            let after = spans.partition_point(|covered| covered.first <= span.first);
            let covered = after.checked_sub(1).map(|before| spans[before]);
            *of == keyspace && covered.is_some_and(|covered| covered.contains(span.last))
        })
    }
}

/// A sketch of sums, and what of it is sent at first.
fn sketched(salt: u64, sums: Vec<Sum>) -> (Sketch, Survey, Vec<Cell>) {
    let mut sketch = Sketch::of_buckets(salt, sums.into_iter());
    let survey = sketch.survey();
    let cells = sketch.cells(CELLS_AT_FIRST);
    (sketch, survey, cells)
}

/// A number of a peer's, as far as it goes.
fn bounded(number: u64, limit: usize) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).min(limit)
}

/// The salt of the sketch of a group of keys.
pub(super) fn group_salt(salt: u64, group: u64) -> u64 {
    salt ^ group.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What is in some buckets; none if they make no sense, or if that is too much.
pub(super) fn entries_of<R: Replica>(
    replica: &mut R,
    plan: &Plan,
    intervals: &[Interval],
) -> Result<Option<Entries>, R::Error> {
    let mut entries = Vec::new();
    for interval in intervals {
        let Some(end) = interval.first.checked_add(interval.count).filter(|end| *end <= plan.buckets())
        else {
            return Ok(None);
        };
        let mut next = interval.first;
        while next < end {
            let Some(planned) = plan.tree_of(next) else { return Ok(None) };
            let count = end.min(planned.end()) - next;
            let span = plan.span(planned, next, count);
            match replica.entries(planned.tree, span, GROUP_KEYS_MAX - entries.len())? {
                // A slice would keep the block or the message that it is of for as long as the group is compared.
                Some(found) => entries
                    .extend(found.into_iter().map(|of| Entry { key: Bytes::copy_from_slice(&of.key), ..of })),
                None => return Ok(None),
            }
            next += count;
        }
    }
    Ok(Some(Entries::new(entries)))
}

/// The digest of the roots of all trees that are not empty, and of what is left out.
pub(super) fn digest_of_roots(replica: &impl Replica, unbuilt: &[PartitionId]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    unbuilt.iter().for_each(|partition| _ = hasher.update(&partition.0.to_be_bytes()));
    for tree in trees_of(replica, replica.kinds(), unbuilt) {
        let TreeId { kind, partition } = tree;
        let root = replica.tree(tree).map_or(Sum::ZERO, HashTree::root);
        if !root.is_zero() {
            let mut input = [0; 7 + 14];
            input[..4].copy_from_slice(&kind.keyspace.0.to_be_bytes());
            input[4] = kind.copies.to_byte();
            input[5..7].copy_from_slice(&partition.0.to_be_bytes());
            input[7..14].copy_from_slice(&root.weights.to_bytes());
            input[14..].copy_from_slice(&root.moments.to_bytes());
            hasher.update(&input);
        }
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

/// All objects of a position.
pub(super) fn at_position<R: Replica>(
    replica: &mut R,
    keyspace: KeyspaceId,
    span: Span,
) -> Result<Vec<Object>, R::Error> {
    let mut objects = Vec::new();
    let mut next = Some(span.first);
    // A span of more than a few objects is nobody's who means it.
    for _ in 0..STRETCHES_MAX {
        let Some(first) = next else { break };
        let found: Stretch = replica.objects(keyspace, None, span.from(first), OBJECTS_BYTES_MAX)?;
        objects.extend(found.objects);
        next = found.rest;
    }
    Ok(objects)
}

impl Object {
    /// How many bytes its key and its record take in a message.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.key.len() + self.record.as_ref().map_or(0, |record| record.encoded_len())
    }
}
