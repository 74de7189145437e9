//! The administrator: asks nodes for changes of the cluster document, as people do, and mends what machines cannot.
//!
//! Keyspaces are created while the run goes on, some at two nodes at once, and are used as soon as that is answered. A
//! node whose store is not the recorded one, or went back in time, is readmitted; the administrator sees that, and who
//! is running, as from a dashboard. Whatever was not answered as done is asked for again.
//!
//! A scenario may hand out documents instead, without anybody's agreement.

use std::{sync::Arc, time::Duration};

use client::wire::{ControlError, ControlReply};
use node::{Change, ClientTag, Input, storage::Store};
use ring::{ClusterDocument, Keyspace, KeyspaceId, NodeId, VoterId};

use crate::{
    formation::{key_of, new_keyspace},
    history::{ChangeOutcome, ChangeRequest, SeenDocument},
    schedule::Moment,
    swarm::draw_keyspace,
    world::{Event, World},
};

/// How often the administrator looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How much longer than its timeout a change may take before the administrator gives up on it.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often the creation of one keyspace is asked for.
const ATTEMPTS_MAX: u32 = 30;

/// A keyspace that is being created.
#[derive(Clone, Debug)]
pub(crate) struct Creation {
    keyspace: Keyspace,
    /// The request that is under way.
    request: Option<usize>,
    attempts: u32,
    is_over: bool,
}

impl World {
    /// Schedules what the administrator does of its own accord.
    pub(crate) fn start_administrator(&mut self) {
        if !self.is_administered {
            self.is_administered = true;
            self.schedule.after(LOOK_EVERY, Event::Administer);
        }
        self.schedule_creation();
    }

    fn schedule_creation(&mut self) {
        if self.creations.len() < self.swarm.documents.keyspaces && !self.is_quiet {
            let wait =
                self.admin_random.duration(Duration::from_millis(1), self.swarm.documents.create_every);
            self.schedule.after(wait, Event::Create);
        }
    }

    /// Another keyspace is to be.
    pub(crate) fn begin_creation(&mut self) {
        if self.is_quiet || self.creations.len() >= self.swarm.documents.keyspaces {
            return;
        }
        let (datacenters, nodes) = (self.swarm.datacenters, self.hosts.len());
        let name = format!("made-{}", self.creations.len());
        let keyspace = draw_keyspace(&mut self.admin_random, name, datacenters, nodes);
        let creation = Creation { keyspace: keyspace.clone(), request: None, attempts: 0, is_over: false };
        self.creations.push(creation);
        self.create(self.creations.len() - 1);
        if self.admin_random.chance(self.swarm.documents.twice_permille) {
            let mut rival = keyspace;
            if self.admin_random.chance(self.swarm.documents.rival_permille) {
                rival.durability = match rival.durability {
                    ring::Durability::Disk => ring::Durability::Memory,
                    ring::Durability::Memory => ring::Durability::Disk,
                };
            }
            let host = self.admin_random.below(self.hosts.len());
            self.ask_for(host, Change::CreateKeyspace(new_keyspace(&rival)));
        }
        self.schedule_creation();
    }

    /// Asks some node for a keyspace.
    fn create(&mut self, index: usize) {
        let change = Change::CreateKeyspace(new_keyspace(&self.creations[index].keyspace));
        let host = self.admin_random.below(self.hosts.len());
        let request = self.ask_for(host, change);
        let creation = &mut self.creations[index];
        (creation.request, creation.attempts) = (Some(request), creation.attempts + 1);
    }

    /// Looks after the cluster.
    pub(crate) fn administer(&mut self) {
        self.schedule.after(LOOK_EVERY, Event::Administer);
        for index in 0..self.creations.len() {
            let creation = &self.creations[index];
            if !creation.is_over && creation.request.is_none() && creation.attempts < ATTEMPTS_MAX {
                self.create(index);
            }
        }
        let outdated: Vec<NodeId> = self
            .hosts
            .iter()
            .filter(|host| host.process.as_ref().is_some_and(|process| process.node.needs_readmission()))
            .map(|host| host.node)
            .collect();
        for node in outdated {
            let change = Change::Readmit { node };
            let is_under_way = self
                .history
                .changes
                .iter()
                .any(|request| request.change == change && request.ended == Moment::NEVER);
            if !is_under_way {
                let host = self.admin_random.below(self.hosts.len());
                self.ask_for(host, change.clone());
                if self.admin_random.chance(self.swarm.documents.twice_permille) {
                    let host = self.admin_random.below(self.hosts.len());
                    self.ask_for(host, change);
                }
            }
        }
    }

    /// Asks a node for a change. Gives the request's number.
    pub(crate) fn ask_for(&mut self, host: usize, change: Change) -> usize {
        let request = self.history.changes.len();
        let (node, sent, ended) = (self.hosts[host].node, self.now(), Moment::NEVER);
        self.note_host(host, || format!("is asked for change {request}: {change:?}"));
        self.counts.add("change asked for");
        let outcome = ChangeOutcome::Unknown;
        let timeout = *self.admin_random.pick(&self.swarm.documents.timeouts);
        self.history.changes.push(ChangeRequest { node, change, sent, ended, outcome });
        if !self.administrator_is_cut_off() {
            let latency = self.network.latency(&self.swarm.network);
            self.schedule.after(latency, Event::ChangeArrives { request, host, timeout });
        }
        self.schedule.after(timeout + PATIENCE, Event::ChangeEnds { request, outcome: None });
        request
    }

    /// A change arrives at its node, or finds nobody there.
    pub(crate) fn change_arrives(&mut self, request: usize, host: usize, timeout: Duration) {
        let change = self.history.changes[request].change.clone();
        if self.hosts[host].process.is_some() {
            self.input(host, Input::Change { client: ClientTag(request as u64), change, timeout });
        } else {
            self.change_ends(request, None);
        }
    }

    /// A node tells how a change ended.
    pub(crate) fn changed(
        &mut self,
        index: usize,
        client: ClientTag,
        outcome: Result<ControlReply, ControlError>,
    ) {
        let request = usize::try_from(client.0).expect("a request's number");
        self.note_host(index, || format!("ends change {request}: {outcome:?}"));
        self.hash(&[7, client.0, u64::from(outcome.is_ok())]);
        if let Ok(ControlReply::KeyspaceCreated { keyspace, .. }) = &outcome {
            self.look_for_keyspace(index, *keyspace);
        }
        if !self.administrator_is_cut_off() {
            let latency = self.network.latency(&self.swarm.network);
            let outcome = Some(Box::new(outcome));
            self.schedule.after(latency, Event::ChangeEnds { request, outcome });
        }
    }

    fn administrator_is_cut_off(&mut self) -> bool {
        !self.is_quiet && self.admin_random.chance(self.swarm.clients.loss_permille)
    }

    /// Looks whether all that are up in the eyes of the node that answers know a keyspace.
    fn look_for_keyspace(&mut self, index: usize, keyspace: KeyspaceId) {
        let Some(process) = &self.hosts[index].process else { return };
        let Some(document) = process.node.document().cloned() else { return };
        let mut live: Vec<NodeId> =
            process.node.peers_status().filter(|(_, is_up)| *is_up).map(|(node, _)| node).collect();
        live.push(self.hosts[index].node);
        for host in self.hosts.iter().filter(|host| live.contains(&host.node)) {
            let Some(process) = &host.process else { continue };
            let member = document.members.get(&host.node);
            let is_recorded = member.is_some_and(|member| member.store == host.disk.id());
            // What it knew went with the disk that it cannot read.
            let has_forgotten = process.node.counters().documents_given_up > 0;
            let is_sound = is_recorded && !host.went_back && !has_forgotten;
            let Some(known) = process.node.document().filter(|_| is_sound) else {
                continue;
            };
            if !known.keyspaces.contains_key(&keyspace) {
                let (node, asked) = (host.node, self.hosts[index].node);
                self.history.unusable.push(format!("{node} does not know {keyspace}, as {asked} says"));
            }
        }
    }

    /// The administrator knows how a change ended, or gives up on it.
    pub(crate) fn change_ends(
        &mut self,
        request: usize,
        outcome: Option<Box<Result<ControlReply, ControlError>>>,
    ) {
        if self.history.changes[request].ended != Moment::NEVER {
            return;
        }
        self.history.changes[request].ended = self.now();
        self.counts.add(match outcome.as_deref() {
            Some(Ok(_)) => "change done",
            Some(Err(ControlError::NotEverywhere { .. })) => "change not everywhere",
            Some(Err(ControlError::InDoubt)) => "change in doubt",
            Some(Err(_)) => "change refused",
            None => "change unanswered",
        });
        let creation = self.creations.iter().position(|creation| creation.request == Some(request));
        if let Some(index) = creation {
            self.creations[index].request = None;
        }
        self.history.changes[request].outcome = match outcome.map(|outcome| *outcome) {
            None => return,
            Some(Err(error)) => {
                if let (ControlError::KeyspaceExists, Some(index)) = (&error, creation) {
                    self.creations[index].is_over = true;
                }
                ChangeOutcome::Failed(error)
            }
            Some(Ok(reply)) => {
                if let (ControlReply::KeyspaceCreated { keyspace, .. }, Some(index)) = (&reply, creation) {
                    self.creations[index].is_over = true;
                    self.use_keyspace(*keyspace);
                }
                ChangeOutcome::Done(reply)
            }
        };
    }

    /// Sessions use a keyspace from now on.
    fn use_keyspace(&mut self, id: KeyspaceId) {
        let document = self.newest_document();
        let Some(keyspace) = document.keyspaces.get(&id) else { return };
        for number in 0..2 {
            let name = format!("{}-key-{number}", keyspace.name);
            self.history.keys.push(key_of(id, keyspace, &name, document.partitions));
        }
        self.remember_more_keys();
    }

    /// The newest document that any node holds at present; before there is any, the one that is expected.
    pub(crate) fn newest_document(&self) -> Arc<ClusterDocument> {
        let of_hosts = self.hosts.iter().filter_map(|host| host.process.as_ref()?.node.document());
        let newest = of_hosts.max_by_key(|document| document.epoch);
        Arc::clone(newest.unwrap_or(&self.document))
    }

    /// Notes which document a machine's process has adopted.
    pub(crate) fn note_document(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let Some(document) = host.process.as_ref().and_then(|process| process.node.document()) else {
            return;
        };
        if host.document.as_ref().is_some_and(|known| Arc::ptr_eq(known, document)) {
            return;
        }
        let document = Arc::clone(document);
        host.document = Some(Arc::clone(&document));
        self.see_document(index, document);
    }

    /// Notes a document that a machine has.
    pub(crate) fn see_document(&mut self, index: usize, document: Arc<ClusterDocument>) {
        let (node, at, digest) = (self.hosts[index].node, self.now(), document.digest());
        if !self.history.documents.iter().any(|seen| seen.digest == digest) {
            self.note_host(index, || format!("is the first to have {document:?}"));
            self.hash(&[8, document.epoch.0, document.cluster.0]);
            self.history.documents.push(SeenDocument { node, at, digest, document });
        }
    }

    /// The administrator of a scenario records the store of a machine whose disk was replaced, asking nobody, and sees
    /// to it that somebody knows the newest document.
    pub(crate) fn hand_out_documents(&mut self) {
        let newest = self.newest_document();
        if newest.epoch > self.document.epoch {
            self.document = newest;
        }
        let replaced = self.hosts.iter().find(|host| {
            let recorded = self.document.members.get(&host.node).map(|member| member.store);
            host.process.is_some() && recorded != Some(host.disk.id())
        });
        if let Some(host) = replaced {
            let (node, store) = (host.node, host.disk.id());
            self.document = Arc::new(self.document.readmit(node, store, VoterId::first_of(store)));
            self.note(|| format!("the administrator readmits {node} with {store}"));
            let (sent, ended, outcome) = (self.now(), self.now(), ChangeOutcome::Unknown);
            let change = Change::Readmit { node };
            self.history.changes.push(ChangeRequest { node, change, sent, ended, outcome });
        }
        let is_known = self.newest_document().epoch >= self.document.epoch;
        if !is_known {
            let host = self.admin_random.below(self.hosts.len());
            self.input(host, Input::Document(Arc::clone(&self.document)));
        }
    }
}
