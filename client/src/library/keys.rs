//! Listing keys: for each partition, what R of its replicas know together.
//!
//! One replica may lack a key that was acknowledged elsewhere, so each partition is listed at as many replicas as a
//! read at the same level would ask, and their lists are merged. Replicas list keys in the order of their tokens, in
//! pages; merging needs one page of each, whatever the size of the partition. A replica that may not know every key,
//! because its copy is filling, does not count: another is asked in its place.
//!
//! A key that is written or deleted while the listing goes on may or may not be in it.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use ring::{DatacenterId, KeyspaceId, NodeId, PartitionId, Replica, Token};
use thiserror::Error;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    attempts::Kind,
    cluster::{CONTROL_SLICE, member},
    failure::ControlFailure,
    keyspace::KeyspaceHandle,
    overlap::copies,
    routing::replicas_of,
};
use crate::{
    Level, Operation, Refusal, Required, TIMEOUT_DEFAULT,
    wire::{ControlError, ControlReply, ControlRequest, KeysPage},
};

/// Keys in a page.
const PAGE_KEYS: u32 = 512;
/// Partitions whose first pages are fetched ahead.
const AHEAD: usize = 16;
/// The wait before a partition that too few replicas can list is tried again.
const AGAIN_WAIT: Duration = Duration::from_millis(100);

/// A listing of all keys that have a value.
///
/// ```no_run
/// # async fn example(client: client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut keys = client.keyspace("carts")?.keys();
/// while let Some(key) = keys.next().await? {
///     println!("{key:?}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct KeyScan {
    keyspace: KeyspaceHandle,
    level: Level,
    timeout: Duration,
    /// Partitions, once the first key was asked for.
    total: u32,
    /// How many of them are listed to the end.
    listed: u32,
    /// The next to be opened.
    next: u32,
    opening: VecDeque<JoinHandle<Result<Partition, KeysFailure>>>,
    open: Option<Partition>,
}

/// Why a listing did not come to its end. Beginning again is always safe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeysFailure {
    /// The listing is refused.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// Too few replicas could list a partition.
    #[error("{partition}: {able} of {required} replicas could list it{}", because(cause))]
    TooFewReplicas {
        /// The partition.
        partition: PartitionId,
        /// How many have to.
        required: u8,
        /// How many could.
        able: u8,
        /// Why the last one that could not did not; none if its copy is filling.
        cause: Option<ControlFailure>,
    },
    /// The program is ending.
    #[error("the listing was interrupted")]
    Interrupted,
}

/// One partition under way.
#[derive(Debug)]
struct Partition {
    keyspace: KeyspaceHandle,
    id: PartitionId,
    keyspace_id: KeyspaceId,
    timeout: Duration,
    required: u8,
    /// Whether the level asks for so many in each datacenter.
    is_per_datacenter: bool,
    sources: Vec<Source>,
    /// Replicas that were not needed yet.
    spares: Vec<Replica>,
    /// How often a replica was replaced.
    replaced: usize,
    /// The last key that was listed.
    last: Option<Place>,
}

/// A replica whose list is merged.
#[derive(Debug)]
struct Source {
    replica: Replica,
    page: VecDeque<Bytes>,
    next: Cursor,
}

/// Where a replica's list goes on.
#[derive(Debug)]
enum Cursor {
    Start,
    After(Bytes),
    End,
}

/// Where a key stands in a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    token: Token,
    key: Bytes,
}

impl KeyScan {
    pub(crate) fn new(keyspace: KeyspaceHandle) -> KeyScan {
        KeyScan {
            keyspace,
            level: Level::Quorum,
            timeout: TIMEOUT_DEFAULT,
            total: 0,
            listed: 0,
            next: 0,
            opening: VecDeque::new(),
            open: None,
        }
    }

    /// How many replicas must list each partition: a quorum, unless told otherwise.
    #[must_use]
    pub fn r(mut self, level: Level) -> KeyScan {
        self.level = level;
        self
    }

    /// How long a page may take before the listing fails: [`TIMEOUT_DEFAULT`], unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> KeyScan {
        self.timeout = timeout;
        self
    }

    /// Partitions that are listed to the end, and all of them: 0 of 0 before the first key was asked for.
    #[must_use]
    pub fn progress(&self) -> (u32, u32) {
        (self.listed, self.total)
    }

    /// The next key; none after the last. Keys come in the order of their tokens.
    ///
    /// # Errors
    ///
    /// See [`KeysFailure`]. The listing cannot go on after one.
    pub async fn next(&mut self) -> Result<Option<Bytes>, KeysFailure> {
        loop {
            if let Some(partition) = &mut self.open {
                if let Some(key) = partition.next().await? {
                    return Ok(Some(key));
                }
                self.open = None;
                self.listed += 1;
            }
            self.open_ahead().await?;
            let Some(opening) = self.opening.pop_front() else { return Ok(None) };
            self.open = Some(opening.await.map_err(|_| KeysFailure::Interrupted)??);
        }
    }

    /// Keeps the first pages of the next partitions on their way.
    async fn open_ahead(&mut self) -> Result<(), KeysFailure> {
        if self.total == 0 {
            let resolved = self.keyspace.resolve(Instant::now() + self.timeout).await?;
            self.total = resolved.view.document.partitions.count();
        }
        while self.next < self.total && self.opening.len() < AHEAD {
            let id = PartitionId(u16::try_from(self.next).expect("at most 65,536 partitions"));
            let opening = Partition::open(self.keyspace.clone(), id, self.level, self.timeout);
            self.opening.push_back(tokio::spawn(opening));
            self.next += 1;
        }
        Ok(())
    }
}

impl Drop for KeyScan {
    fn drop(&mut self) {
        for opening in &self.opening {
            opening.abort();
        }
    }
}

impl Partition {
    /// Finds enough replicas, and fetches the first page of each.
    async fn open(
        keyspace: KeyspaceHandle,
        id: PartitionId,
        level: Level,
        timeout: Duration,
    ) -> Result<Partition, KeysFailure> {
        let resolved = keyspace.resolve(Instant::now() + timeout).await?;
        let (view, rules) = (&resolved.view, &resolved.view.document.keyspaces[&resolved.id]);
        let mut replicas = replicas_of(&view.document, view, rules, id, None);
        let local = replicas.first().map_or(DatacenterId(0), |replica| replica.datacenter);
        let required = level
            .required(Operation::Read, &copies(&view.document, rules, None), local)
            .map_err(Refusal::Unsatisfiable)?;
        // A node that failed lately is asked if the others do not suffice: each partition would wait for it anew.
        let (nodes, now) = (&keyspace.cluster().nodes, Instant::now());
        let is_resting =
            |id: NodeId| nodes.get(id).is_none_or(|node| node.condition(Kind::Read, now).failures > 0);
        replicas.sort_by_key(|replica| is_resting(replica.owner.node));
        let (chosen, spares) = split(replicas, &required);
        let mut partition = Partition {
            keyspace,
            id,
            keyspace_id: resolved.id,
            timeout,
            required: required.total(),
            is_per_datacenter: matches!(required, Required::In(_)),
            sources: chosen.into_iter().map(Source::new).collect(),
            spares,
            replaced: 0,
            last: None,
        };
        partition.fill().await?;
        Ok(partition)
    }

    /// The next key of all lists together.
    async fn next(&mut self) -> Result<Option<Bytes>, KeysFailure> {
        self.fill().await?;
        let Some(next) = self.sources.iter().filter_map(Source::place).min() else { return Ok(None) };
        for source in &mut self.sources {
            if source.page.front() == Some(&next.key) {
                source.page.pop_front();
            }
        }
        let key = next.key.clone();
        self.last = Some(next);
        Ok(Some(key))
    }

    /// Sees that every list that has not ended has a key to compare, replacing replicas that cannot go on.
    async fn fill(&mut self) -> Result<(), KeysFailure> {
        let deadline = Instant::now() + self.timeout;
        let mut index = 0;
        while index < self.sources.len() {
            if !self.sources[index].needs_a_page() {
                index += 1;
                continue;
            }
            let Err(cause) = self.fetch(index, deadline).await else { continue };
            match cause {
                Some(ControlFailure::Refused(ControlError::Forbidden { needs })) => {
                    return Err(Refusal::Forbidden { needs }.into());
                }
                Some(ControlFailure::Refused(ControlError::OtherKeyspaces)) => {
                    return Err(Refusal::OtherKeyspaces.into());
                }
                _ => {}
            }
            if Instant::now() >= deadline {
                let able = u8::try_from(index).expect("at most as many sources as replicas");
                return Err(KeysFailure::TooFewReplicas {
                    partition: self.id,
                    required: self.required,
                    able,
                    cause,
                });
            }
            let is_new = self.replace(index);
            sleep(if is_new { Duration::ZERO } else { AGAIN_WAIT }).await;
        }
        Ok(())
    }

    /// Puts a spare in the place of a replica that cannot go on, which becomes the last of the spares. False if that
    /// was tried with every spare, and the same begin again.
    fn replace(&mut self, index: usize) -> bool {
        let failed = self.sources[index].replica;
        let may_stand_in = |spare: &Replica| !self.is_per_datacenter || spare.datacenter == failed.datacenter;
        let Some(spare) = self.spares.iter().position(may_stand_in) else { return false };
        let spare = self.spares.remove(spare);
        self.spares.push(failed);
        self.sources[index] = Source::new(spare);
        self.replaced += 1;
        !self.replaced.is_multiple_of(self.spares.len() + 1)
    }

    /// Fetches the next page of a list. What was listed already is left out.
    async fn fetch(&mut self, index: usize, deadline: Instant) -> Result<(), Option<ControlFailure>> {
        let source = &mut self.sources[index];
        let after = match &source.next {
            Cursor::Start => None,
            Cursor::After(cursor) => Some(cursor.clone()),
            Cursor::End => return Ok(()),
        };
        let request =
            ControlRequest::Keys { keyspace: self.keyspace_id, partition: self.id, after, limit: PAGE_KEYS };
        let page = page(&self.keyspace, source.replica.owner.node, request, deadline).await?;
        if !page.is_whole {
            return Err(None);
        }
        let is_new = |key: &Bytes| self.last.as_ref().is_none_or(|last| Place::of(key.clone()) > *last);
        source.page = page.keys.into_iter().filter(is_new).collect();
        source.next = page.next.map_or(Cursor::End, Cursor::After);
        Ok(())
    }
}

impl Source {
    fn new(replica: Replica) -> Source {
        Source { replica, page: VecDeque::new(), next: Cursor::Start }
    }

    /// Whether a page has to be fetched before its next key is known.
    fn needs_a_page(&self) -> bool {
        self.page.is_empty() && !matches!(self.next, Cursor::End)
    }

    fn place(&self) -> Option<Place> {
        self.page.front().map(|key| Place::of(key.clone()))
    }
}

impl Place {
    fn of(key: Bytes) -> Place {
        Place { token: Token::of_key(&key), key }
    }
}

/// Splits replicas into those that suffice for what a level requires, and the others.
fn split(replicas: Vec<Replica>, required: &Required) -> (Vec<Replica>, Vec<Replica>) {
    let (mut chosen, mut spares) = (Vec::new(), Vec::new());
    for replica in replicas {
        let of_datacenter =
            |chosen: &[Replica]| chosen.iter().filter(|other| other.datacenter == replica.datacenter).count();
        let has_room = match required {
            Required::Anywhere(count) => chosen.len() < usize::from(*count),
            Required::In(counts) => counts.iter().any(|(datacenter, count)| {
                *datacenter == replica.datacenter && of_datacenter(&chosen) < usize::from(*count)
            }),
        };
        if has_room { chosen.push(replica) } else { spares.push(replica) }
    }
    (chosen, spares)
}

/// Asks one node for a page.
async fn page(
    keyspace: &KeyspaceHandle,
    node: NodeId,
    request: ControlRequest,
    deadline: Instant,
) -> Result<KeysPage, ControlFailure> {
    let cluster = keyspace.cluster();
    let node = member(cluster, node)?;
    let deadline = deadline.min(Instant::now() + CONTROL_SLICE);
    match cluster.ask(&node, request, deadline).await? {
        ControlReply::Keys(page) => Ok(page),
        ControlReply::Document(_)
        | ControlReply::Status(_)
        | ControlReply::Explain(_)
        | ControlReply::KeyspaceCreated { .. }
        | ControlReply::Readmitted { .. }
        | ControlReply::RepairBegun { .. }
        | ControlReply::Vitals(_) => Err(ControlFailure::WrongKind { node: node.id() }),
    }
}

fn because(cause: &Option<ControlFailure>) -> String {
    match cause {
        Some(cause) => format!(": {cause}"),
        None => ": its copy is filling".to_owned(),
    }
}
