//! Coordinating a get.
//!
//! The coordinator asks as many replicas as the level requires, those that answered fastest of late: one for the
//! record and the others for its digest. One that is silent for a while is replaced by the next, within the first n; so is,
//! for a few reads in a hundred, one that takes longer than it usually does ([`hedge`](client::hedge)).
//! Where digests differ it fetches, joins, answers and repairs. A *blocking* read answers only when enough replicas
//! are known to hold durably what it says, so that no later read of the same kind goes back.
//!
//! The file is longer than most: gathering, settling and holding are phases of one state machine and share its state.

use std::{sync::Arc, time::Duration};

use antientropy::version::{Counter, Dot, Record, VersionDigest};
use client::{
    Freshness, GetError, GetReply, Level, Operation, ReadRepair, Refusal, Reply, ReturnedValue, Version,
};
use ring::{Durability, NodeId};
use smallvec::SmallVec;

use super::{
    Requester, Step,
    admit::{Located, WritePlan},
    spread::Spread,
    tally::{Tally, Verdict, Vote},
};
use crate::{
    local::{Event, Local, pruned},
    message::{MergePath, Message, ReadAnswer, ReadKind, Tag},
    placement::Owners,
    planted::PlantedBug,
    storage::Store,
    waiting::Waiting,
};

/// How often a read begins anew because its result was read under a watermark that others have left behind.
const BEHIND_MAX: u32 = 2;

/// A get under way, or the read of a delete that came without a context.
#[derive(Debug)]
pub(crate) struct ReadOperation {
    operation: u64,
    /// Counts the times that the operation began anew: answers to an earlier attempt are not listened to.
    question: u32,
    purpose: Purpose,
    located: Located,
    level: Level,
    tally: Tally,
    repair: ReadRepair,
    asked: Vec<Asked>,
    phase: Phase,
    /// How often it began anew because a replica was at a higher watermark than what was to be written back.
    was_behind: u32,
    /// Set once the result is known, if there are any and they are to be mended.
    stale: Option<Stale>,
    deadline: Duration,
    timer: Duration,
}

/// What the read is for.
#[derive(Debug)]
enum Purpose {
    /// A client waits for it.
    Get(Requester),
    /// A delete waits to know what it deletes.
    Delete(Requester, Box<WritePlan>),
    /// The answer is given.
    Answered,
}

/// How far it is.
#[derive(Debug)]
enum Phase {
    /// Waiting for answers.
    Gathering,
    /// Waiting for enough replicas to hold the result.
    Holding {
        result: Arc<Record>,
        freshness: Freshness,
        holders: Tally,
        holding: Vec<NodeId>,
        spread: Spread,
    },
    /// Answered; stale replicas are being mended.
    Repairing { spread: Spread },
}

/// The replicas that a read found stale.
#[derive(Debug)]
struct Stale {
    nodes: SmallVec<[NodeId; 2]>,
    /// How old the newest version of the result was then, in milliseconds.
    age_ms: u64,
}

/// One replica that was asked.
#[derive(Clone, Debug)]
struct Asked {
    node: NodeId,
    kind: ReadKind,
    at: Duration,
    /// It was silent for too long and another was asked instead. It may answer yet.
    is_replaced: bool,
    answer: Option<Answer>,
}

/// What it said.
#[derive(Clone, Debug)]
enum Answer {
    Digest(VersionDigest),
    /// With the watermark under which it was read.
    Data(Option<Arc<Record>>, VersionDigest, Counter),
    /// Nothing that counts.
    Void,
}

/// The digest of what a watermark will leave of a record.
fn compared(record: Option<&Arc<Record>>, watermark: Counter) -> VersionDigest {
    let left = record.and_then(|record| pruned(Arc::clone(record), watermark));
    left.map_or(VersionDigest::ABSENT, |record| record.digest())
}

/// Whether an answer has a record, or says that there is none.
fn is_data(answer: &mut Answer) -> bool {
    matches!(answer, Answer::Data(..))
}

/// How a read ended for whoever drives it.
pub(crate) enum Ended {
    /// Nothing more is to be done.
    Step(Step),
    /// A delete's read is complete: this context covers what it saw.
    Delete { requester: Requester, plan: Box<WritePlan>, deadline: Duration },
}

impl Asked {
    /// Whether it has neither answered nor been replaced.
    fn is_awaited(&self) -> bool {
        self.answer.is_none() && !self.is_replaced
    }
}

impl ReadOperation {
    /// Begins a client's get.
    pub(crate) fn get<S: Store>(
        local: &mut Local<S>,
        requester: Requester,
        located: Located,
        tally: Tally,
        options: &client::ReadOptions,
        deadline: Duration,
    ) -> ReadOperation {
        let n = located.owners.copies().total();
        let is_majority = 2 * tally.required() > n;
        let by_default = if is_majority { ReadRepair::Blocking } else { ReadRepair::Background };
        let repair = options.read_repair.unwrap_or(by_default);
        let purpose = Purpose::Get(requester);
        ReadOperation::begin(local, purpose, located, options.level, tally, repair, deadline)
    }

    /// Begins the read of a delete that came without a context.
    pub(crate) fn before_delete<S: Store>(
        local: &mut Local<S>,
        requester: Requester,
        plan: WritePlan,
        deadline: Duration,
    ) -> ReadOperation {
        let (located, tally) = (plan.located.clone(), plan.tally.clone());
        let level = if plan.level == Level::Any { Level::One } else { plan.level };
        let purpose = Purpose::Delete(requester, Box::new(plan));
        ReadOperation::begin(local, purpose, located, level, tally, ReadRepair::Off, deadline)
    }

    fn begin<S: Store>(
        local: &mut Local<S>,
        purpose: Purpose,
        located: Located,
        level: Level,
        tally: Tally,
        repair: ReadRepair,
        deadline: Duration,
    ) -> ReadOperation {
        let operation = local.numbers.take();
        local.hedges.asked();
        let mut read = ReadOperation {
            operation,
            question: 0,
            purpose,
            located,
            level,
            tally,
            repair,
            asked: Vec::with_capacity(3),
            phase: Phase::Gathering,
            was_behind: 0,
            stale: None,
            deadline,
            timer: deadline,
        };
        read.ask_more(local);
        // With nobody to ask there is the deadline.
        if read.asked.is_empty() {
            read.look_again(local);
        }
        read
    }

    /// Its number.
    pub(crate) fn operation(&self) -> u64 {
        self.operation
    }

    /// Something happened.
    pub(crate) fn on_event<S: Store>(&mut self, local: &mut Local<S>, question: u32, event: Event) -> Ended {
        if question != self.question {
            return Ended::Step(Step::Continue);
        }
        match (&mut self.phase, event) {
            (Phase::Gathering, Event::Answered { from, store, answer }) => {
                // A store that the document does not record is no replica, whatever it holds.
                let is_recorded = local.recorded_store(from) == Some(store);
                self.note_delay(local, from);
                self.note(from, if is_recorded { answer } else { ReadAnswer::NotOwner });
                self.evaluate(local)
            }
            (
                Phase::Holding { spread, .. } | Phase::Repairing { spread },
                Event::Merged { from, store, outcome },
            ) => {
                spread.merged(local, from, store, outcome);
                self.evaluate(local)
            }
            _ => Ended::Step(Step::Continue),
        }
    }

    /// The document has changed: what was heard was heard under another, so the read begins anew.
    pub(crate) fn on_document<S: Store>(&mut self, local: &mut Local<S>) -> Ended {
        if let Phase::Repairing { .. } = self.phase {
            return self.finish(local);
        }
        let document = local.document.clone().expect("it has just changed");
        let Located { object, partition, n, .. } = &self.located;
        let owners = Owners::of(&document, object.keyspace(), *partition, *n);
        let tally =
            owners.as_ref().map(|owners| super::admit::tally(local, Operation::Read, self.level, owners));
        match (owners, tally) {
            (Some(owners), Some(Ok(tally))) => {
                self.located.owners = owners;
                self.tally = tally;
                self.begin_anew(local)
            }
            (_, Some(Err(refusal))) => self.fail(local, GetError::Refused(refusal)),
            (_, None) => self.fail(local, GetError::Refused(Refusal::UnknownKeyspace)),
            (None, Some(_)) => unreachable!("without owners there is no tally"),
        }
    }

    fn begin_anew<S: Store>(&mut self, local: &mut Local<S>) -> Ended {
        self.question += 1;
        self.asked.clear();
        self.phase = Phase::Gathering;
        self.ask_more(local);
        self.evaluate(local)
    }

    /// A replica has been silent for too long, or the time is up.
    pub(crate) fn on_timer<S: Store>(&mut self, local: &mut Local<S>) -> Ended {
        if local.now.monotonic >= self.deadline {
            let (required, answered) = (self.tally.required(), self.answered());
            return match &self.phase {
                Phase::Repairing { .. } => self.finish(local),
                Phase::Gathering | Phase::Holding { .. } => {
                    self.fail(local, GetError::TimedOut { required, answered })
                }
            };
        }
        if let Phase::Gathering = self.phase {
            self.replace_late(local);
            self.ask_more(local);
        }
        self.look_again(local);
        self.evaluate(local)
    }

    /// Gives up waiting for those that are silent for too long; and, if there are others, for those that take longer than
    /// they usually do, as far as the budget goes or if they say nothing to anybody here.
    fn replace_late<S: Store>(&mut self, local: &mut Local<S>) {
        let (now, most) = (local.now.monotonic, local.settings.read_retry_after);
        let is_asked = |node: NodeId| self.asked.iter().any(|asked| asked.node == node);
        // Those in whose place another could be asked.
        let mut replaceable: Vec<NodeId> = Vec::new();
        for group in self.tally.groups() {
            let free = group.members.iter().filter(|node| !is_asked(**node) && local.is_up(**node)).count();
            let awaited =
                self.asked.iter().filter(|asked| asked.is_awaited() && group.members.contains(&asked.node));
            replaceable.extend(awaited.map(|asked| asked.node).take(free));
        }
        for asked in self.asked.iter_mut().filter(|asked| asked.is_awaited()) {
            let waited = now.saturating_sub(asked.at);
            if waited >= local.peers.silent_after(asked.node, most) {
                asked.is_replaced = true;
                local.counters.replicas_replaced += 1;
                local.missed(asked.node);
            } else if replaceable.contains(&asked.node)
                && waited >= local.peers.patience(asked.node, most)
                && (local.peers.is_overdue(local.now, asked.node) || local.hedges.take())
            {
                asked.is_replaced = true;
                local.counters.reads_hedged += 1;
            }
        }
    }

    /// Sets the timer to when the next of those that are awaited is late.
    fn look_again<S: Store>(&mut self, local: &mut Local<S>) {
        let (now, most) = (local.now.monotonic, local.settings.read_retry_after);
        let late = |asked: &Asked| {
            let early = asked.at + local.peers.patience(asked.node, most);
            if early > now {
                return early;
            }
            // It is late already and was not replaced: there is no budget, or nobody else.
            let overdue = local.peers.overdue_at(asked.node).filter(|at| *at > now);
            let silent = asked.at + local.peers.silent_after(asked.node, most);
            overdue.map_or(silent, |at| at.min(silent))
        };
        let awaited = self.asked.iter().filter(|asked| asked.is_awaited());
        let next = awaited.map(late).filter(|at| *at > now).min();
        self.set_timer(local, next.unwrap_or(now + most));
    }

    /// The read goes on without those that were replaced: they have taken so long at least.
    fn note_silence<S: Store>(&self, local: &mut Local<S>) {
        for asked in self.asked.iter().filter(|asked| asked.is_replaced && asked.answer.is_none()) {
            let took = local.now.monotonic.saturating_sub(asked.at);
            local.peers.answered(asked.node, took, &local.settings);
        }
    }

    /// How long an answer took, if it is the first to its question.
    fn note_delay<S: Store>(&self, local: &mut Local<S>, from: NodeId) {
        let asked = self.asked.iter().find(|asked| asked.node == from && asked.answer.is_none());
        if let Some(asked) = asked.filter(|asked| asked.node != local.node) {
            let took = local.now.monotonic.saturating_sub(asked.at);
            local.peers.answered(from, took, &local.settings);
        }
    }

    fn set_timer<S: Store>(&mut self, local: &mut Local<S>, at: Duration) {
        local.timers.remove(&(self.timer, self.operation));
        self.timer = at.min(self.deadline);
        local.timers.insert((self.timer, self.operation));
    }

    /// Asks as many more replicas as the level requires beside those that answered or may yet in time.
    fn ask_more<S: Store>(&mut self, local: &mut Local<S>) {
        let mut is_more = false;
        for group in self.tally.groups().to_vec() {
            let hopeful = |asked: &&Asked| {
                group.members.contains(&asked.node)
                    && match asked.answer {
                        None => !asked.is_replaced && local.is_up(asked.node),
                        Some(Answer::Digest(_) | Answer::Data(..)) => true,
                        Some(Answer::Void) => false,
                    }
            };
            let short = usize::from(group.required).saturating_sub(self.asked.iter().filter(hopeful).count());
            let candidates = self.candidates(local, &group.members);
            is_more |= short > 0 && !candidates.is_empty();
            for node in candidates.into_iter().take(short) {
                let wants_data = !self.asked.iter().any(|asked| {
                    matches!(asked.answer, Some(Answer::Data(..)))
                        || (asked.kind == ReadKind::Data && asked.answer.is_none() && !asked.is_replaced)
                });
                let kind = if wants_data { ReadKind::Data } else { ReadKind::Digest };
                let at = local.now.monotonic;
                self.asked.push(Asked { node, kind, at, is_replaced: false, answer: None });
                self.ask(local, node, kind);
            }
        }
        // They may be late before the others are.
        if is_more {
            self.look_again(local);
        }
    }

    /// Those of a group that are up and were not asked, this node first and then the quickest of late; those that missed
    /// a deadline come last.
    fn candidates<S: Store>(&self, local: &Local<S>, members: &[NodeId]) -> Vec<NodeId> {
        let fresh =
            |node: &&NodeId| local.is_up(**node) && !self.asked.iter().any(|asked| asked.node == **node);
        let mut candidates: Vec<NodeId> = members.iter().filter(fresh).copied().collect();
        candidates.sort_by_key(|node| (*node != local.node, local.peers.cost(local.now, *node)));
        candidates
    }

    fn ask<S: Store>(&self, local: &mut Local<S>, node: NodeId, kind: ReadKind) {
        let tag = Tag { operation: self.operation, question: self.question };
        // A delete that finds nothing is acknowledged on the strength of its read.
        let is_delete = matches!(self.purpose, Purpose::Delete(..));
        let durable = self.repair == ReadRepair::Blocking || is_delete;
        let (n, object) = (self.located.n, self.located.object.clone());
        if node == local.node {
            let (answer, after) = local.read(&object, kind, n, durable);
            let event = Event::Answered { from: node, store: local.store_id(), answer };
            local.when_synced(after, Waiting::Event { tag, event });
        } else {
            local.send(node, Message::Read { tag, object, kind, n, durable });
        }
    }

    fn note(&mut self, from: NodeId, answer: ReadAnswer) {
        let Some(asked) = self.asked.iter_mut().find(|asked| asked.node == from) else { return };
        match answer {
            // A digest that comes again after the record was fetched says nothing new.
            ReadAnswer::Digest(digest) if asked.kind == ReadKind::Digest => {
                asked.answer = Some(Answer::Digest(digest));
            }
            ReadAnswer::Digest(_) => {}
            ReadAnswer::Data(Some(record), _) if record.policy() != self.located.conflict => {
                asked.answer = Some(Answer::Void);
            }
            ReadAnswer::Data(record, under) => {
                let digest = record.as_ref().map_or(VersionDigest::ABSENT, |record| record.digest());
                asked.answer = Some(Answer::Data(record, digest, under));
            }
            ReadAnswer::Filling | ReadAnswer::Refused | ReadAnswer::NotOwner => {
                asked.answer = Some(Answer::Void)
            }
            // Ours is the older document: the read begins anew when its successor is here.
            ReadAnswer::StaleEpoch => {}
        }
    }

    fn vote<S: Store>(&self, local: &Local<S>, node: NodeId) -> Vote {
        match self.asked.iter().find(|asked| asked.node == node).map(|asked| &asked.answer) {
            Some(Some(Answer::Digest(_) | Answer::Data(..))) => Vote::Yes,
            Some(Some(Answer::Void)) => Vote::No,
            Some(None) | None if local.is_up(node) => Vote::Pending,
            Some(None) | None => Vote::No,
        }
    }

    fn evaluate<S: Store>(&mut self, local: &mut Local<S>) -> Ended {
        match &self.phase {
            Phase::Gathering => match self.tally.verdict(|node| self.vote(local, node)) {
                Verdict::Met => {
                    self.note_silence(local);
                    self.settle(local)
                }
                Verdict::Pending => {
                    self.ask_more(local);
                    Ended::Step(Step::Continue)
                }
                Verdict::Impossible => {
                    let alive = self.tally.count(|node| self.vote(local, node), Vote::Yes);
                    let required = self.tally.required();
                    self.fail(local, GetError::Refused(Refusal::Unavailable { required, alive }))
                }
            },
            Phase::Holding { .. } => self.evaluate_holders(local),
            Phase::Repairing { spread } if spread.is_over() => self.finish(local),
            Phase::Repairing { .. } => Ended::Step(Step::Continue),
        }
    }

    /// Enough have answered: fetches the records whose digests nobody explained yet, or joins what there is.
    fn settle<S: Store>(&mut self, local: &mut Local<S>) -> Ended {
        let explained = |digest: &VersionDigest, asked: &[Asked]| {
            asked
                .iter()
                .any(|other| matches!(&other.answer, Some(Answer::Data(_, known, _)) if known == digest))
        };
        let mut is_fetching = false;
        let mut fetched: Vec<VersionDigest> = Vec::new();
        for at in 0..self.asked.len() {
            let Some(Answer::Digest(digest)) = self.asked[at].answer else { continue };
            if explained(&digest, &self.asked) {
                continue;
            }
            is_fetching = true;
            if !fetched.contains(&digest) {
                fetched.push(digest);
                let node = self.asked[at].node;
                self.asked[at] = Asked {
                    node,
                    kind: ReadKind::Data,
                    at: local.now.monotonic,
                    is_replaced: false,
                    answer: None,
                };
                self.ask(local, node, ReadKind::Data);
            }
        }
        if is_fetching {
            self.look_again(local);
            return Ended::Step(Step::Continue);
        }
        let mut result: Option<Arc<Record>> = None;
        let mut under = Counter(u64::MAX);
        let watermark = local.watermarks.of(self.located.partition);
        let mut promised = watermark;
        for at in 0..self.asked.len() {
            let Some(Answer::Data(record, digest, read_under)) = self.asked[at].answer.take_if(is_data)
            else {
                continue;
            };
            promised = promised.max(read_under);
            let (record, read_under) = self.as_known_here(local, record, read_under);
            under = under.min(read_under);
            match (&mut result, &record) {
                (None, record) => result.clone_from(record),
                (Some(result), Some(record)) => _ = Arc::make_mut(result).merge(record),
                (Some(_), None) => {}
            }
            self.asked[at].answer = Some(Answer::Data(record, digest, read_under));
        }
        // Who is to hold the answer before it is given has to hold all of it but for what everybody knows: what one has promised
        // is not enough. A delete that a second copy holds may delete what a third will be given by a fourth.
        let highest = if self.repair == ReadRepair::Blocking { watermark } else { promised };
        self.compare_at(highest);
        self.conclude(local, result, under, highest)
    }

    /// Makes of each digest the one that is compared: that of what a watermark leaves, or will.
    /// One has forgotten already what another is about to, which is no difference.
    fn compare_at(&mut self, highest: Counter) {
        let mut explained: Vec<(VersionDigest, VersionDigest)> = Vec::new();
        for asked in &mut self.asked {
            if let Some(Answer::Data(record, digest, _)) = &mut asked.answer {
                let compared = compared(record.as_ref(), highest);
                let sent = std::mem::replace(digest, compared);
                if sent != compared {
                    explained.push((sent, compared));
                }
            }
        }
        for asked in &mut self.asked {
            if let Some(Answer::Digest(digest)) = &mut asked.answer
                && let Some((_, compared)) = explained.iter().find(|(sent, _)| sent == digest)
            {
                *digest = *compared;
            }
        }
    }

    /// What a replica answered, without what this node knows to be dead or superfluous: one that has promised less may hold
    /// what this node has seen deleted and has forgotten, and one at a lower watermark what others have pruned.
    fn as_known_here<S: Store>(
        &self,
        local: &mut Local<S>,
        record: Option<Arc<Record>>,
        under: Counter,
    ) -> (Option<Arc<Record>>, Counter) {
        let Located { object, partition, .. } = &self.located;
        let known = local.knows_all_below(object.keyspace(), *partition);
        let Some(answered) = record else { return (None, under) };
        if under < known
            && let Ok(held) = local.held(object, *partition)
            && Record::names_unknown(&answered, held.as_deref(), known)
        {
            let rest = answered.cut(held.as_deref(), known).rest;
            return (rest.map(Arc::new).and_then(|rest| pruned(rest, known)), known);
        }
        let watermark = local.watermarks.of(*partition);
        if under < watermark {
            return (Some(answered), under);
        }
        (pruned(answered, watermark), under)
    }

    /// The result is known: who holds it, who is stale, and whether it may be told already.
    fn conclude<S: Store>(
        &mut self,
        local: &mut Local<S>,
        result: Option<Arc<Record>>,
        under: Counter,
        highest: Counter,
    ) -> Ended {
        let mut result = result;
        let is_blocking = self.repair == ReadRepair::Blocking
            && local.planted != Some(PlantedBug::BlockingReadWithoutWriteBack);
        // As many are to hold it as are asked for, and whoever is to hold it keeps it.
        let wanted = self.located.copies();
        if let Some(result) = result.as_mut().filter(|_| is_blocking)
            && !result.copies().includes(wanted)
        {
            Arc::make_mut(result).raise_copies(wanted);
        }
        let digest = compared(result.as_ref(), highest);
        let (mut holding, mut stale) = (Vec::new(), Vec::new());
        let keepers = self.keepers(local, result.as_deref());
        for asked in &self.asked {
            match &asked.answer {
                Some(Answer::Digest(held) | Answer::Data(_, held, _)) if *held == digest => {
                    holding.push(asked.node)
                }
                // One that is not to keep it does not lack it.
                Some(Answer::Digest(_) | Answer::Data(..)) if keepers.contains(asked.node) => {
                    stale.push(asked.node);
                }
                Some(Answer::Digest(_) | Answer::Data(..)) => {}
                Some(Answer::Void) | None => {}
            }
        }
        let count = |nodes: usize| u8::try_from(nodes).expect("at most seven copies in each datacenter");
        local.counters.reads_diverged += u64::from(!stale.is_empty());
        let repaired = if self.repair == ReadRepair::Off { 0 } else { count(stale.len()) };
        let freshness = Freshness {
            asked: count(self.asked.len()),
            answered: self.answered(),
            agreed: stale.is_empty(),
            repaired,
        };
        let Some(result) = result else {
            return self.answer(local, None, freshness);
        };
        if self.repair != ReadRepair::Off && !stale.is_empty() {
            let age_ms = local.now.wall.0.saturating_sub(result.highest().millis().0);
            self.stale = Some(Stale { nodes: stale.iter().copied().collect(), age_ms });
        }
        if is_blocking {
            let keyspace = self.keyspace_copies(local);
            let holders = self.tally.holders(&keyspace);
            let members: Vec<NodeId> =
                holders.groups().iter().flat_map(|group| group.members.iter().copied()).collect();
            let vote = |node: NodeId| if holding.contains(&node) { Vote::Yes } else { Vote::No };
            if holders.verdict(vote) != Verdict::Met {
                let lacking = members.into_iter().filter(|node| !holding.contains(node)).collect::<Vec<_>>();
                let spread = self.spread(local, (&result, under), &lacking);
                self.phase = Phase::Holding { result, freshness, holders, holding, spread };
                return self.evaluate_holders(local);
            }
        }
        let ended = self.answer(local, Some(&result), freshness);
        if self.repair == ReadRepair::Off || stale.is_empty() {
            return ended;
        }
        let spread = self.spread(local, (&result, under), &stale);
        self.go_on_repairing(local, ended, spread)
    }

    /// All that are to keep the result; of nothing, those that were asked for it.
    fn keepers<S: Store>(&self, local: &Local<S>, result: Option<&Record>) -> Owners {
        let Located { object, partition, owners, .. } = &self.located;
        let keepers = result.zip(local.document.as_ref()).and_then(|(result, document)| {
            Owners::keepers(document, object.keyspace(), *partition, result.copies())
        });
        keepers.unwrap_or_else(|| owners.clone())
    }

    fn spread<S: Store>(
        &self,
        local: &mut Local<S>,
        (result, under): (&Arc<Record>, Counter),
        nodes: &[NodeId],
    ) -> Spread {
        let tag = Tag { operation: self.operation, question: self.question };
        let owners: Vec<_> =
            self.located.owners.iter().filter(|owner| nodes.contains(&owner.node)).copied().collect();
        Spread::start(
            local,
            tag,
            self.located.object.clone(),
            (Arc::clone(result), under),
            Durability::Disk,
            MergePath::ReadRepair,
            owners.into_iter(),
        )
    }

    fn evaluate_holders<S: Store>(&mut self, local: &mut Local<S>) -> Ended {
        let Phase::Holding { holders, holding, spread, .. } = &self.phase else {
            return Ended::Step(Step::Continue);
        };
        let document = local.document.clone().expect("a read has begun under a document");
        let vote = |node: NodeId| {
            if holding.contains(&node) {
                Vote::Yes
            } else {
                spread.vote(&document, &self.located.owners, node)
            }
        };
        match holders.verdict(vote) {
            Verdict::Pending => Ended::Step(Step::Continue),
            // This node has come up to that watermark, and knows better now.
            Verdict::Impossible if spread.was_behind() && self.was_behind < BEHIND_MAX => {
                self.was_behind += 1;
                self.begin_anew(local)
            }
            Verdict::Impossible => {
                let (required, alive) = (holders.required(), holders.count(vote, Vote::Yes));
                spread.leave_hints(local);
                self.fail(local, GetError::Refused(Refusal::Unavailable { required, alive }))
            }
            Verdict::Met => {
                let before = std::mem::replace(&mut self.phase, Phase::Gathering);
                let Phase::Holding { result, freshness, spread, .. } = before else {
                    unreachable!("it was holding a moment ago")
                };
                let ended = self.answer(local, Some(&result), freshness);
                self.go_on_repairing(local, ended, spread)
            }
        }
    }

    /// The answer is given, and the merges that are under way are waited for.
    fn go_on_repairing<S: Store>(&mut self, local: &mut Local<S>, ended: Ended, spread: Spread) -> Ended {
        match ended {
            Ended::Step(Step::Done) => {
                self.phase = Phase::Repairing { spread };
                self.set_timer(local, self.deadline);
                self.evaluate(local)
            }
            Ended::Step(Step::Continue) | Ended::Delete { .. } => ended,
        }
    }

    fn answer<S: Store>(
        &mut self,
        local: &mut Local<S>,
        result: Option<&Record>,
        freshness: Freshness,
    ) -> Ended {
        local.timers.remove(&(self.timer, self.operation));
        match std::mem::replace(&mut self.purpose, Purpose::Answered) {
            Purpose::Get(requester) => {
                let reply = self.reply(local, result, freshness);
                requester.reply(local, Reply::Get(Ok(reply)));
                Ended::Step(Step::Done)
            }
            Purpose::Delete(requester, mut plan) => {
                // Where the replicas do not agree, a value that is gone from the joined record is still shown by one of
                // them: it has to be deleted there too.
                let is_to_do =
                    |result: &&Record| !freshness.agreed || !result.live(local.now.wall).is_empty();
                plan.context = result.filter(is_to_do).map(Record::context).unwrap_or_default();
                Ended::Delete { requester, plan, deadline: self.deadline }
            }
            Purpose::Answered => Ended::Step(Step::Done),
        }
    }

    fn reply<S: Store>(
        &self,
        local: &mut Local<S>,
        result: Option<&Record>,
        freshness: Freshness,
    ) -> GetReply {
        let now = local.replica.clock().peek(local.now.wall).millis();
        let values = result.map(|record| record.live(now)).unwrap_or_default();
        let returned = |(dot, value): (Dot, &antientropy::version::Value)| ReturnedValue {
            bytes: value.bytes.clone(),
            version: Version { counter: dot.counter.0, actor: dot.actor.0 },
            expires_unix_ms: value.expires.map(|expires| expires.0),
        };
        let context = result.map(Record::context).unwrap_or_default();
        let object = &self.located.object;
        GetReply {
            values: values.into_iter().map(returned).collect(),
            context: local.settings.context_key.seal(object.keyspace(), object.key_bytes(), &context),
            freshness,
            coordinator: local.node,
        }
    }

    fn fail<S: Store>(&mut self, local: &mut Local<S>, error: GetError) -> Ended {
        match std::mem::replace(&mut self.purpose, Purpose::Answered) {
            Purpose::Get(requester) => requester.reply(local, Reply::Get(Err(error))),
            Purpose::Delete(requester, _) => {
                // Nothing was minted: whatever stopped the read, the delete has not happened and never will.
                let refusal = match error {
                    GetError::Refused(refusal) => refusal,
                    GetError::TimedOut { required, answered } => {
                        Refusal::Unavailable { required, alive: answered }
                    }
                };
                requester.reply(local, Reply::Write(Err(refusal.into())));
            }
            Purpose::Answered => {}
        }
        self.finish(local)
    }

    fn finish<S: Store>(&mut self, local: &mut Local<S>) -> Ended {
        if let Phase::Repairing { spread } | Phase::Holding { spread, .. } = &self.phase {
            spread.leave_hints(local);
            if let (Some(stale), Some(document)) = (self.stale.take(), local.document.clone()) {
                for node in stale.nodes.into_iter().filter(|node| spread.is_target(*node)) {
                    let is_merged = spread.vote(&document, &self.located.owners, node) == Vote::Yes;
                    local.counters.read_repaired(is_merged, stale.age_ms);
                }
            }
        }
        local.timers.remove(&(self.timer, self.operation));
        Ended::Step(Step::Done)
    }

    /// Whether the request is answered.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.purpose, Purpose::Answered)
    }

    /// It is answered, and has waited long enough for the replicas that it mends.
    pub(crate) fn cut_short<S: Store>(&mut self, local: &mut Local<S>) -> Step {
        let _ = self.finish(local);
        Step::Done
    }

    /// How many replicas gave an answer that counts.
    fn answered(&self) -> u8 {
        let counts = |asked: &&Asked| matches!(asked.answer, Some(Answer::Digest(_) | Answer::Data(..)));
        let count = self.asked.iter().filter(counts).count();
        u8::try_from(count).expect("at most seven copies in each datacenter")
    }

    /// The copies that the keyspace itself asks for.
    fn keyspace_copies<S: Store>(&self, local: &Local<S>) -> client::Copies {
        let Located { object, partition, owners, .. } = &self.located;
        let document = local.document.as_ref().expect("a read has begun under a document");
        Owners::of(document, object.keyspace(), *partition, None).as_ref().unwrap_or(owners).copies()
    }
}
