//! How founders agree on the first document, of which there can be only one.
//!
//! 1. The founder with the lowest id, the *leader*, asks all others what formation they have accepted. Whoever holds a
//!    document answers with that instead, and nothing is formed.
//! 2. When all have answered, the leader proposes what was accepted before, or else makes a document with the stores
//!    that it hears and a cluster id that it draws. It accepts that itself, synced, before anyone else hears of it.
//! 3. Every founder accepts one formation, synced, if it holds no document and is configured alike. When all have, the
//!    leader adopts the document, and the others learn of it as of any other.
//!
//! # Why there is only one
//!
//! Only the leader adopts a first document by counting, and it counts all founders. So once it has adopted one, every
//! founder's store remembers that formation, and whoever leads later asks all founders and hears of it from all whose
//! disks are what they were. Founders that have accepted nothing, because their disks are new, agree to it too: it
//! records the stores that they had, and a change readmits them afterwards.
//!
//! If most of the stores that an accepted formation records are gone, nothing could ever be changed under it, and it is
//! *void*: the leader proposes another over it. That is safe as long as no document of it is left; the leader has heard
//! from all founders that they hold none, each since it heard of the leader's present process and so no longer listens
//! to an earlier one. What is then still possible is that the former leader adopted it, told nobody, and was lost
//! together with at least half of the founders; its disk, if it is ever put back, belongs to another cluster, which the
//! handshake refuses.
//!
//! A store that has a document that cannot be read any more has been part of a cluster. It takes no part in forming
//! one: the others have the document.
//!
//! # What can get stuck
//!
//! Formation waits for every founder, for ever if one never comes: whoever runs the cluster takes it out of the
//! configuration *of all founders*. A founder whose configuration changed forgets the formation that it accepted under
//! the former one; so the disk of a leader that was taken out must not be put back.
//!
//! With two founders, of which one lost its disk while they were forming, the formation is void and another is made.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, Bytes};
use rand_core::Rng;
use ring::{ClusterDocument, ClusterId, NodeId, StoreId};

use super::{changes::Introduced, message::AgreementMessage};
use crate::{
    formation::Formation,
    local::Local,
    message::Message,
    planted::PlantedBug,
    recovery::DOCUMENT,
    storage::{Store, Table, open_stored, seal_stored},
    waiting::Waiting,
};

/// Where it is stored what formation this founder has accepted.
const FORMATION: &[u8] = b"formation";
/// How long the leader waits before it asks again.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// A founder without a document. See the module's documentation.
pub(crate) struct Forming {
    node: NodeId,
    formation: Formation,
    /// The digest of the configuration.
    configuration: [u8; 32],
    memory: Memory,
    /// What the other founders have told the leader.
    told: BTreeMap<NodeId, Told>,
    proposed: Option<Proposed>,
    /// When the leader asks again, and whoever could not read its store tries to.
    ask_at: Duration,
    /// Founders that are configured otherwise.
    differing: BTreeSet<NodeId>,
}

/// What this founder's store remembers.
enum Memory {
    /// It could not be read yet.
    Unread,
    /// No document was ever held here. What formation was accepted, if one was.
    Open(Option<Arc<ClusterDocument>>),
    /// A document was held here.
    Void,
}

/// What a founder told.
struct Told {
    introduced: Introduced,
    accepted: Option<Arc<ClusterDocument>>,
}

/// What the leader has proposed.
struct Proposed {
    document: Arc<ClusterDocument>,
    over: Vec<ClusterId>,
    consents: BTreeSet<NodeId>,
}

impl Forming {
    /// The forming of a cluster, as far as this node has a part in it: if it is a founder, soundly configured.
    pub(crate) fn new(node: NodeId, formation: Formation) -> Option<Forming> {
        let configuration = formation.digest().filter(|_| formation.founders.contains_key(&node))?;
        Some(Forming {
            node,
            formation,
            configuration,
            memory: Memory::Unread,
            told: BTreeMap::new(),
            proposed: None,
            ask_at: Duration::ZERO,
            differing: BTreeSet::new(),
        })
    }

    /// Reads what the store remembers, if it could not be read before.
    pub(crate) fn read<S: Store>(&mut self, store: &S) {
        if !matches!(self.memory, Memory::Unread) {
            return;
        }
        let documents = store.get(Table::Meta, DOCUMENT);
        let (Ok(held), Ok(stored)) = (documents, store.get(Table::Meta, FORMATION)) else { return };
        // What cannot be read any more is forgotten, as by a new disk. Whoever configures the founders anew takes back
        // what they had agreed on.
        let accepted = stored.and_then(|stored| decode(&stored));
        let accepted = accepted.filter(|document| self.formation.makes(document));
        self.memory = if held.is_some() { Memory::Void } else { Memory::Open(accepted.map(Arc::new)) };
    }

    /// Whether the store never held a document, as far as can be known.
    pub(crate) fn is_unformed(&self) -> bool {
        matches!(self.memory, Memory::Open(_))
    }

    /// The founders that are configured otherwise.
    pub(crate) fn differing(&self) -> impl Iterator<Item = NodeId> {
        self.differing.iter().copied()
    }

    /// A founder's process is another: what its former one told is to be asked for again.
    pub(crate) fn restarted(&mut self, node: NodeId) {
        self.told.remove(&node);
    }

    /// When something is to be done again.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let is_due = match self.memory {
            Memory::Unread => true,
            Memory::Open(_) => self.leads(),
            Memory::Void => false,
        };
        is_due.then_some(self.ask_at)
    }

    fn leads(&self) -> bool {
        self.formation.leader() == Some(self.node)
    }

    fn others(&self) -> impl Iterator<Item = NodeId> {
        self.formation.founders.keys().copied().filter(|node| *node != self.node)
    }

    /// How many founders have to agree.
    fn required<S: Store>(&self, local: &Local<S>) -> usize {
        let founders = self.formation.founders.len();
        if local.planted == Some(PlantedBug::FormedByMajority) { founders / 2 + 1 } else { founders }
    }

    /// Asks, and asks again, if it is time to. Returns the document that all have agreed on.
    pub(crate) fn tick<S: Store>(&mut self, local: &mut Local<S>) -> Option<Arc<ClusterDocument>> {
        if local.now.monotonic < self.ask_at {
            return None;
        }
        self.ask_at = local.now.monotonic + RETRY_AFTER;
        self.read(local.replica.store());
        if !self.leads() || !self.is_unformed() {
            return None;
        }
        match &self.proposed {
            None => {
                let configuration = self.configuration;
                for node in self.others().filter(|node| !self.told.contains_key(node)).collect::<Vec<_>>() {
                    say(local, node, AgreementMessage::Ask { configuration });
                }
                self.choose(local);
            }
            // The batch with it may have been refused.
            Some(proposed) if !proposed.consents.contains(&self.node) => {
                let document = Arc::clone(&proposed.document);
                self.accept(local, self.node, document);
            }
            Some(_) => self.propose(local),
        }
        self.agreed(local)
    }

    /// A founder asks what was accepted here.
    pub(crate) fn on_ask<S: Store>(&mut self, local: &mut Local<S>, from: NodeId, configuration: [u8; 32]) {
        self.compare(local, from, configuration);
        self.read(local.replica.store());
        if let Memory::Open(accepted) = &self.memory {
            let accepted = accepted.as_ref().map(|document| Box::new(ClusterDocument::clone(document)));
            say(local, from, AgreementMessage::Tell { configuration: self.configuration, accepted });
        }
    }

    /// A founder tells the leader what it has accepted.
    pub(crate) fn on_tell<S: Store>(
        &mut self,
        local: &mut Local<S>,
        from: NodeId,
        configuration: [u8; 32],
        accepted: Option<Box<ClusterDocument>>,
    ) {
        let is_founder = self.formation.founders.contains_key(&from);
        if !self.compare(local, from, configuration) || !is_founder {
            return;
        }
        let accepted: Option<Arc<_>> =
            accepted.filter(|document| self.formation.makes(document)).map(Arc::from);
        if let Some(proposed) = &self.proposed {
            if !accepted.as_ref().is_some_and(|accepted| proposed.ignores(accepted)) {
                return;
            }
            // It has accepted something that was not known when this was proposed, and refuses: all are asked anew.
            self.proposed = None;
            self.told.clear();
        }
        if let Some(introduced) = local.peers.introduced(from) {
            self.told.insert(from, Told { introduced, accepted });
            self.choose(local);
        }
    }

    /// Whether a founder is configured as this one is. If not, people have to know.
    fn compare<S: Store>(&mut self, local: &mut Local<S>, from: NodeId, configuration: [u8; 32]) -> bool {
        if configuration == self.configuration {
            self.differing.remove(&from);
            return true;
        }
        local.counters.configurations_differing += 1;
        if self.formation.founders.contains_key(&from) {
            self.differing.insert(from);
        }
        false
    }

    /// The leader proposes, if all have told: what was accepted before, or a document of its own.
    fn choose<S: Store>(&mut self, local: &mut Local<S>) {
        let Memory::Open(own) = &self.memory else { return };
        let Some(voter) = local.voter() else { return };
        if !self.leads() || self.proposed.is_some() || self.told.len() + 1 < self.required(local) {
            return;
        }
        let here = Told { introduced: (local.store_id(), voter), accepted: own.clone() };
        let told: Vec<(NodeId, &Told)> =
            self.told.iter().map(|(node, told)| (*node, told)).chain([(self.node, &here)]).collect();
        let mut accepted: Vec<Accepted> = Vec::new();
        for (node, document) in told.iter().filter_map(|(node, told)| Some((*node, told.accepted.as_ref()?)))
        {
            match accepted.iter_mut().find(|known| *known.document == *document) {
                Some(known) => known.note(node == self.node),
                None => accepted.push(Accepted::new(document, node == self.node)),
            }
        }
        let stores: BTreeMap<NodeId, Introduced> =
            told.iter().map(|(node, told)| (*node, told.introduced)).collect();
        let alive = |accepted: &&Accepted| {
            let members = accepted.document.members.iter();
            let alive = members
                .filter(|(node, member)| stores.get(node).is_some_and(|(store, _)| *store == member.store));
            alive.count() > accepted.document.members.len() / 2
        };
        let best = accepted.iter().filter(alive).max_by_key(|accepted| accepted.rank());
        let document = match best {
            Some(accepted) => Arc::clone(accepted.document),
            None => {
                let cluster = ClusterId(local.rng.next_u64());
                let of = |node: NodeId| {
                    // With the bug planted, founders that were not heard are guessed at.
                    let guess = || (StoreId(u64::from(node.0)), voter);
                    Some(
                        stores
                            .get(&node)
                            .copied()
                            .or_else(|| local.peers.introduced(node))
                            .unwrap_or_else(guess),
                    )
                };
                let Ok(document) = self.formation.document(cluster, of) else { return };
                Arc::new(document)
            }
        };
        let over = accepted.iter().map(|accepted| accepted.document.cluster);
        let over = over.filter(|cluster| *cluster != document.cluster).collect();
        self.proposed = Some(Proposed { document: Arc::clone(&document), over, consents: BTreeSet::new() });
        self.accept(local, self.node, document);
    }

    /// The leader asks those that have not agreed yet.
    fn propose<S: Store>(&self, local: &mut Local<S>) {
        let Some(proposed) = &self.proposed else { return };
        for node in self.others().filter(|node| !proposed.consents.contains(node)) {
            let (document, over) = (Arc::clone(&proposed.document), proposed.over.clone());
            say(local, node, AgreementMessage::Propose { document, over });
        }
    }

    /// The leader asks this founder to accept a formation.
    pub(crate) fn on_propose<S: Store>(
        &mut self,
        local: &mut Local<S>,
        from: NodeId,
        document: Arc<ClusterDocument>,
        over: &[ClusterId],
    ) {
        self.read(local.replica.store());
        let Memory::Open(accepted) = &self.memory else { return };
        let may = accepted.as_ref().is_none_or(|known| *known == document || over.contains(&known.cluster));
        if !may || self.formation.leader() != Some(from) || !self.formation.makes(&document) {
            local.counters.formations_refused += 1;
            if !may {
                // The leader does not know of it.
                let accepted = accepted.as_ref().map(|document| Box::new(ClusterDocument::clone(document)));
                let configuration = self.configuration;
                say(local, from, AgreementMessage::Tell { configuration, accepted });
            }
            return;
        }
        self.accept(local, from, document);
    }

    /// Accepts a formation, and says so to the leader once that is synced.
    fn accept<S: Store>(&mut self, local: &mut Local<S>, leader: NodeId, document: Arc<ClusterDocument>) {
        let cluster = document.cluster;
        let sequence = local.replica.put_meta(encode(&document));
        self.memory = Memory::Open(Some(document));
        let message = Box::new(AgreementMessage::Consent { cluster });
        local.when_synced(Some(sequence), Waiting::Cast { to: leader, message });
    }

    /// A founder has agreed, the leader itself first of all. Returns the document that all have agreed on.
    pub(crate) fn on_consent<S: Store>(
        &mut self,
        local: &mut Local<S>,
        from: NodeId,
        cluster: ClusterId,
    ) -> Option<Arc<ClusterDocument>> {
        let is_founder = self.formation.founders.contains_key(&from);
        let proposed = self.proposed.as_mut().filter(|proposed| proposed.document.cluster == cluster)?;
        if is_founder && proposed.consents.insert(from) && from == self.node {
            self.propose(local);
        }
        self.agreed(local)
    }

    fn agreed<S: Store>(&self, local: &Local<S>) -> Option<Arc<ClusterDocument>> {
        let proposed = self.proposed.as_ref()?;
        let is_agreed = proposed.consents.len() >= self.required(local);
        is_agreed.then(|| Arc::clone(&proposed.document))
    }
}

impl Proposed {
    /// Whether whoever has accepted this document cannot accept what is proposed.
    fn ignores(&self, accepted: &Arc<ClusterDocument>) -> bool {
        *accepted != self.document && !self.over.contains(&accepted.cluster)
    }
}

/// A formation that some founders have accepted.
struct Accepted<'a> {
    document: &'a Arc<ClusterDocument>,
    by: usize,
    by_another: bool,
}

impl<'a> Accepted<'a> {
    fn new(document: &'a Arc<ClusterDocument>, is_own: bool) -> Accepted<'a> {
        Accepted { document, by: 1, by_another: !is_own }
    }

    fn note(&mut self, is_own: bool) {
        self.by += 1;
        self.by_another |= !is_own;
    }

    /// What the most have accepted may have been adopted. Of two founders that remember different formations, the
    /// leader knows that it has not adopted its own, unless its store went back: the other's is right either way.
    fn rank(&self) -> (usize, bool, ClusterId) {
        (self.by, self.by_another, self.document.cluster)
    }
}

fn say<S: Store>(local: &mut Local<S>, to: NodeId, message: AgreementMessage) {
    local.send(to, Message::Agreement(Box::new(message)));
}

/// An accepted formation as it is stored: a key and a value.
fn encode(document: &ClusterDocument) -> (Bytes, Bytes) {
    let payload = postcard::to_allocvec(document).expect("a formation has nothing that cannot be encoded");
    let sealed = seal_stored(FORMATION, |out| out.put_slice(&payload), payload.len());
    (Bytes::from_static(FORMATION), sealed)
}

fn decode(stored: &Bytes) -> Option<ClusterDocument> {
    postcard::from_bytes(&open_stored(FORMATION, stored).ok()?).ok()
}
