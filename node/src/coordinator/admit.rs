//! Everything that can be refused is refused here, before anything is minted: what stands after this is acknowledged
//! or in doubt.

use std::sync::Arc;

use antientropy::version::{Context, CopyCount, Counter, Record, RequestId, UnixMillis, Value};
use bytes::Bytes;
use client::{
    Delete, KEY_BYTES_MAX, Level, Limit, Operation, Put, Refusal, Request, VALUE_BYTES_MAX, WriteOptions,
};
use ring::{ConflictPolicy, Durability, KeyspaceId, NodeId, PartitionId};
use smallvec::SmallVec;

use super::{
    stand_ins::spares,
    tally::{Tally, Verdict, Vote},
};
use crate::{
    local::Local, placement::OwnerAt, placement::Owners, planted::PlantedBug, replica::Mint,
    storage::ObjectKey, storage::Store,
};

/// Where a request's object is, and under which rules.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) object: ObjectKey,
    pub(crate) partition: PartitionId,
    pub(crate) owners: Owners,
    pub(crate) n: Option<u8>,
    pub(crate) conflict: ConflictPolicy,
    /// The keyspace's own durability.
    pub(crate) durability: Durability,
}

impl Located {
    /// For how many copies the request asks.
    pub(crate) fn copies(&self) -> CopyCount {
        self.n.map_or(CopyCount::DEFAULT, CopyCount::explicit)
    }
}

/// A write that has only to be minted.
#[derive(Clone, Debug)]
pub(crate) struct WritePlan {
    pub(crate) located: Located,
    pub(crate) tally: Tally,
    pub(crate) level: Level,
    pub(crate) durability: Durability,
    pub(crate) context: Context,
    pub(crate) seen: Counter,
    pub(crate) value: Option<Value>,
    pub(crate) is_delete: bool,
    pub(crate) request: RequestId,
    /// Whether nodes that stand in for replicas count.
    pub(crate) is_sloppy: bool,
    /// The replica in whose place this node coordinates, if it is none itself.
    pub(crate) in_place_of: Option<NodeId>,
}

/// Finds a request's object and its replicas.
///
/// # Errors
///
/// What is wrong with the keyspace, the key or the n.
pub(crate) fn locate<S: Store>(local: &Local<S>, request: &Request) -> Result<Located, Refusal> {
    let (keyspace, key, n) = match request {
        Request::Put(put) => (put.keyspace, &put.key, put.options.n),
        Request::Delete(delete) => (delete.keyspace, &delete.key, delete.options.n),
        Request::Get(get) => (get.keyspace, &get.key, get.options.n),
    };
    let document = local.document.as_ref().ok_or(Refusal::NotReady)?;
    let rules = document.keyspaces.get(&keyspace).ok_or(Refusal::UnknownKeyspace)?;
    if key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Refusal::TooLarge { size_bytes: key.len(), limit_bytes: KEY_BYTES_MAX });
    }
    if let Some(asked) = n {
        let nodes = |datacenter: &ring::DatacenterId| {
            let list = document.preference_list(*datacenter, PartitionId(0));
            list.len().min(ring::REPLICAS_MAX)
        };
        let possible = rules.replication.keys().map(nodes).min().unwrap_or(0);
        let possible = u8::try_from(possible).expect("at most seven copies in each datacenter");
        if asked == 0 || asked > possible {
            return Err(Refusal::BadCopies { asked, possible });
        }
    }
    let object = ObjectKey::new(keyspace, key);
    let partition = object.partition(document.partitions);
    let owners = Owners::of(document, keyspace, partition, n).ok_or(Refusal::UnknownKeyspace)?;
    Ok(Located { object, partition, owners, n, conflict: rules.conflict, durability: rules.durability })
}

/// What a level requires of a request's replicas, whoever is up.
///
/// # Errors
///
/// `Unsatisfiable` if no number of live replicas could meet it.
pub(crate) fn required<S: Store>(
    local: &Local<S>,
    operation: Operation,
    level: Level,
    owners: &Owners,
) -> Result<Tally, Refusal> {
    let document = local.document.as_ref().ok_or(Refusal::NotReady)?;
    let member = document.members.get(&local.node).ok_or(Refusal::NotReady)?;
    let required = level.required(operation, &owners.copies(), member.datacenter)?;
    Ok(Tally::new(&required, owners))
}

/// What a level requires of a request's replicas, if they can meet it.
///
/// # Errors
///
/// `Unsatisfiable` if no number of live replicas could; `Unavailable` if too few are up.
pub(crate) fn tally<S: Store>(
    local: &Local<S>,
    operation: Operation,
    level: Level,
    owners: &Owners,
) -> Result<Tally, Refusal> {
    let tally = required(local, operation, level, owners)?;
    let vote = |node| if local.is_up(node) { Vote::Yes } else { Vote::No };
    match tally.verdict(vote) {
        Verdict::Met => Ok(tally),
        Verdict::Pending | Verdict::Impossible => {
            let alive = tally.count(vote, Vote::Yes);
            Err(Refusal::Unavailable { required: tally.required(), alive })
        }
    }
}

/// What a sloppy write's level requires of its replicas, if they and those that can stand in for them can meet it.
///
/// # Errors
///
/// As for [`tally`].
fn sloppy_tally<S: Store>(local: &Local<S>, level: Level, located: &Located) -> Result<Tally, Refusal> {
    let tally = required(local, Operation::Write, level, &located.owners)?;
    let document = local.document.as_ref().ok_or(Refusal::NotReady)?;
    let mut used: SmallVec<[NodeId; 8]> = SmallVec::new();
    let mut votes: SmallVec<[(NodeId, Vote); 8]> = SmallVec::new();
    for owner in located.owners.iter() {
        let is_free = |node: &NodeId| local.is_up(*node) && !used.contains(node);
        let stand_in = || spares(document, located, owner).find(is_free);
        let node = if local.is_up(owner.node) { Some(owner.node) } else { stand_in() };
        used.extend(node);
        votes.push((owner.node, if node.is_some() { Vote::Yes } else { Vote::No }));
    }
    let vote = |node| votes.iter().find(|(owner, _)| *owner == node).map_or(Vote::No, |(_, vote)| *vote);
    if tally.verdict(vote) == Verdict::Met {
        return Ok(tally);
    }
    Err(Refusal::Unavailable { required: tally.required(), alive: tally.count(vote, Vote::Yes) })
}

/// For which replica this node would stand in, if it coordinated a request that it is no replica for: one that is down, if
/// there is one. None if it is not of the partition's preference list.
pub(crate) fn in_place_of<S: Store>(local: &Local<S>, located: &Located) -> Option<NodeId> {
    let document = local.document.as_ref()?;
    let can = |owner: &&OwnerAt| spares(document, located, owner).any(|spare| spare == local.node);
    let owners = || located.owners.iter().filter(can);
    owners().find(|owner| !local.is_up(owner.node)).or_else(|| owners().next()).map(|owner| owner.node)
}

/// Plans a put.
///
/// # Errors
///
/// Whatever can be known to be wrong with it, or to stand in its way, before it is minted.
pub(crate) fn plan_put<S: Store>(
    local: &Local<S>,
    located: Located,
    put: &Put,
) -> Result<WritePlan, Refusal> {
    if put.value.len() > VALUE_BYTES_MAX {
        return Err(Refusal::TooLarge { size_bytes: put.value.len(), limit_bytes: VALUE_BYTES_MAX });
    }
    let value = Value {
        bytes: put.value.clone(),
        expires: put.expires_unix_ms.map(UnixMillis),
        request: RequestId(put.options.request.0),
    };
    plan(local, located, &put.options, Some(value))
}

/// Plans a delete.
///
/// # Errors
///
/// As for [`plan_put`].
pub(crate) fn plan_delete<S: Store>(
    local: &Local<S>,
    located: Located,
    delete: &Delete,
) -> Result<WritePlan, Refusal> {
    plan(local, located, &delete.options, None)
}

fn plan<S: Store>(
    local: &Local<S>,
    located: Located,
    options: &WriteOptions,
    value: Option<Value>,
) -> Result<WritePlan, Refusal> {
    let is_sloppy = options.counts_stand_ins() || local.planted == Some(PlantedBug::StandInCountedAsStrict);
    let tally = if is_sloppy {
        sloppy_tally(local, options.level, &located)?
    } else {
        tally(local, Operation::Write, options.level, &located.owners)?
    };
    let context =
        open_context(local, located.object.keyspace(), located.object.key_bytes(), options.context.as_ref())?;
    let seen = check_clocks(local, located.conflict, options.seen)?;
    if local.replica.unsynced_bytes() > local.settings.unsynced_bytes_max {
        return Err(Refusal::Overloaded(Limit::Unsynced));
    }
    // Each refused batch retires its actors: a coordinator that went on would leave an entry of a new actor on every
    // replica with every write.
    if local.replica.is_refusing() {
        return Err(Refusal::NotReady);
    }
    Ok(WritePlan {
        tally,
        level: options.level,
        durability: options.durability.unwrap_or(located.durability),
        context,
        seen,
        is_delete: value.is_none(),
        value,
        request: RequestId(options.request.0),
        is_sloppy,
        in_place_of: None,
        located,
    })
}

/// The context that a client sent back.
fn open_context<S: Store>(
    local: &Local<S>,
    keyspace: KeyspaceId,
    key: &[u8],
    sealed: Option<&Bytes>,
) -> Result<Context, Refusal> {
    let Some(sealed) = sealed else { return Ok(Context::new()) };
    let opened = if local.planted == Some(PlantedBug::ForeignContextAccepted) {
        antientropy::version::ContextKey::open_unchecked(sealed)
    } else {
        local.settings.context_key.open(keyspace, key, sealed)
    };
    opened.map_err(|_| Refusal::BadContext)
}

/// A node whose clock is far from its peers' does not date writes, and no client's claim of what it has seen makes
/// it date them far ahead.
fn check_clocks<S: Store>(
    local: &Local<S>,
    conflict: ConflictPolicy,
    seen: Option<u64>,
) -> Result<Counter, Refusal> {
    if let Some(drift_ms) = local.drifted_ms()
        && local.planted != Some(PlantedBug::DriftIgnored)
    {
        return Err(Refusal::ClockDrift { drift_ms });
    }
    if conflict == ConflictPolicy::Siblings {
        return Ok(Counter::ZERO);
    }
    let seen = Counter(seen.unwrap_or(0));
    let ahead_ms = seen.millis().0.cast_signed() - local.now.wall.0.cast_signed();
    let max_ms = i64::try_from(local.settings.clock_drift_max.as_millis()).unwrap_or(i64::MAX);
    // Two nodes that may both write are at most twice the bound apart.
    if ahead_ms > max_ms.saturating_mul(2) {
        return Err(Refusal::ClockDrift { drift_ms: -ahead_ms });
    }
    Ok(seen)
}

impl WritePlan {
    /// What the replica has to mint: taken out of the plan, which is of no other use. It keeps the object or not, and what
    /// it holds is all that there is up to a watermark.
    pub(crate) fn mint(
        &mut self,
        held: Option<Arc<Record>>,
        copies: CopyCount,
        is_kept: bool,
        watermark: Counter,
    ) -> Mint {
        let context = std::mem::take(&mut self.context);
        let context = match self.located.conflict {
            ConflictPolicy::Siblings => context.without_forgotten(held.as_deref(), watermark),
            ConflictPolicy::LastWriteWins => context,
        };
        Mint {
            held,
            is_kept,
            conflict: self.located.conflict,
            context,
            seen: self.seen,
            value: self.value.take(),
            copies,
        }
    }
}
