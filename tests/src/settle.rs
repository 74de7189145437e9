//! The end of a run: the faults stop, and all copies have to become whole and equal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use antientropy::version::{CopyCount, Counter, Pruned, Record, UnixMillis, VersionDigest};
use node::{
    Input,
    storage::{read_document, read_record},
};
use ring::NodeId;

use crate::{
    history::{Ending, KeyId},
    host::Host,
    schedule::Moment,
    world::{Event, World},
};

/// How long the safety phase may take: the sessions' operations all end by themselves long before.
const SAFETY_MAX: Duration = Duration::from_secs(600);
/// How long founders may take to form their cluster while faults strike; they go on when the faults have stopped.
const FORMING_MAX: Duration = Duration::from_secs(20);
/// How long convergence may take once the faults have stopped. The slowest part is an exchange interval of ten
/// seconds, of which a pair of copies may need two; the rest is room for greetings and for retries of lost exchanges.
const CONVERGENCE_MAX: Duration = Duration::from_secs(60);
/// Where promises are made so often, tombstones have to be gone by then.
const QUICK_MAX: Duration = Duration::from_secs(2);
/// How long after that it may take until they are: every floor, every promise and the watermark are told in exchanges, of
/// which there is one in ten seconds.
const FORGETTING_MAX: Duration = Duration::from_secs(120);
/// How often to look whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl World {
    /// The whole run: the cluster forms, sessions and faults run until the operations are done, the faults stop, and
    /// the copies converge or do not.
    pub fn run(&mut self) {
        if self.swarm.documents.is_formed {
            self.schedule_faults();
            let end = self.now().after(FORMING_MAX);
            while self.history.documents.is_empty() && self.step(end) {}
            self.run_for(Duration::from_millis(100));
        } else {
            self.run_for(Duration::from_millis(100));
            // If every disk refused the founding document, nobody has it (one seed in some hundred thousand).
            while self.history.documents.is_empty() {
                for host in 0..self.hosts.len() {
                    self.input(host, Input::Document(Arc::clone(&self.document)));
                }
                self.run_for(Duration::from_millis(100));
            }
            self.schedule_faults();
        }
        self.start_sessions();
        self.start_administrator();
        let end = self.now().after(SAFETY_MAX);
        while !self.operations_are_over() && self.step(end) {}
        self.settle();
    }

    /// Whether every client knows how its last operation ended.
    fn operations_are_over(&self) -> bool {
        self.operations_left == 0 && self.calls.iter().rev().take(64).all(|call| call.is_over)
    }

    /// Ends all faults, waits for convergence, and notes what the disks hold then.
    pub fn settle(&mut self) {
        self.heal();
        self.start_administrator();
        let healed = self.now();
        self.healed = healed;
        let end = healed.after(CONVERGENCE_MAX);
        let mut ending = None;
        while ending.is_none() {
            self.run_for(LOOK_EVERY);
            ending = match self.divergence() {
                None => Some(Ending::Converged { after_micros: self.now().0 - healed.0 }),
                Some(why) if self.now() >= end => Some(Ending::Diverged { why }),
                Some(_) => None,
            };
        }
        let end = self.now().after(FORGETTING_MAX);
        while let Some(Ending::Converged { .. }) = ending
            && let Some(why) = (0..self.history.keys.len()).find_map(|key| self.superfluous(KeyId(key)))
        {
            self.run_for(LOOK_EVERY);
            if self.now() >= end {
                ending = Some(Ending::Diverged { why });
            }
        }
        self.history.ending = ending.unwrap_or_default();
        self.history.electorate_is_lost = self.electorate_is_lost();
        for index in 0..self.hosts.len() {
            if let Some(document) = read_document(&self.hosts[index].disk) {
                self.see_document(index, document);
            }
        }
        for index in 0..self.hosts.len() {
            self.note_counters(index);
        }
        self.note_finals();
    }

    /// Ends all faults: clocks are right, the network is whole, every machine runs.
    pub fn heal(&mut self) {
        self.is_quiet = true;
        self.network.is_healed = true;
        self.network.mend();
        self.note(|| "the faults are over".to_owned());
        for index in 0..self.hosts.len() {
            self.set_clock(index, 0);
            self.hosts[index].disk.fail_reads(false);
            let paused = self.hosts[index].process.as_ref().is_some_and(|process| process.is_paused);
            if paused {
                self.resume(index);
            }
            if self.hosts[index].process.is_none() {
                self.schedule.after(Duration::ZERO, Event::Start { host: index });
            }
        }
    }

    /// Why the cluster has not converged; none if it has.
    pub(crate) fn divergence(&self) -> Option<String> {
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(process) = &host.process else { return Some(format!("{} is down", host.node)) };
            if !process.node.is_idle() {
                return Some(format!("{} has requests under way", host.node));
            }
            if process.node.requests_under_way() > 0 {
                return Some(format!("{} counts requests that are over", host.node));
            }
            let (built, wanted, _) = process.node.trees();
            if built < wanted {
                return Some(format!("{} has {built} of {wanted} hash trees", host.node));
            }
            if host.disk.is_changing() {
                return Some(format!("{} has batches to sync", host.node));
            }
            // Seed 1000480: a disk could be read again, and the hint that was all there was of a write was not read yet.
            if process.node.hints_are_partly_unread() {
                return Some(format!("{} does not know all that it owes", host.node));
            }
            if process.node.hints_pending().iter().any(|hints| hints.counted > 0) {
                return Some(format!("{} owes writes that were counted", host.node));
            }
            if !process.node.votes() {
                return Some(format!("{} does not vote about documents", host.node));
            }
            if !self.copies_are_whole(index) {
                return Some(format!("{} has copies that are not whole", host.node));
            }
        }
        (0..self.history.keys.len()).find_map(|key| self.difference(KeyId(key)))
    }

    /// What a replica of a key has kept that is of no use to anybody since the faults stopped; none if there is nothing.
    fn superfluous(&self, key: KeyId) -> Option<String> {
        let settings = &self.swarm.settings;
        if settings.settled_after.max(settings.watermark_interval) > QUICK_MAX {
            return None;
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let due = self.durable_record(index, key).and_then(|record| record.prunable_at());
            if due.is_some_and(|due| due <= Counter::at(UnixMillis(self.healed.wall_ms())))
                && self.keepers(key).contains(&host.node)
            {
                return Some(format!("{} has not dropped what is superfluous of {key:?}", host.node));
            }
        }
        None
    }

    /// Whether no majority of the members could vote about documents, were all that are recorded as they are asked.
    fn electorate_is_lost(&self) -> bool {
        let newest = self.newest_document();
        let votes = |host: &&Host| host.process.as_ref().is_some_and(|process| process.node.votes());
        self.hosts.iter().filter(votes).count() <= newest.members.len() / 2
    }

    /// How the replicas of a key differ; none if they do not.
    fn difference(&self, key: KeyId) -> Option<String> {
        let mut first: Option<(NodeId, VersionDigest)> = None;
        let partition = self.history.key(key).partition;
        let processes = self.hosts.iter().filter_map(|host| host.process.as_ref());
        let watermark =
            processes.map(|process| process.node.watermark(partition)).max().unwrap_or(Counter::ZERO);
        for node in self.keepers(key) {
            let host = self.hosts.iter().find(|host| host.node == node)?;
            let Ok(record) = read_record(&host.disk, &self.history.key(key).object) else {
                return Some(format!("{node} has a damaged record of {key:?}"));
            };
            // One may have heard of a watermark that another has not.
            let left = record.and_then(|record| match record.prune(watermark) {
                Pruned::Same => Some(record),
                Pruned::Less(less) => Some(less),
                Pruned::Nothing => None,
            });
            let digest = left.map_or(VersionDigest::ABSENT, |record| record.digest());
            match first {
                None => first = Some((node, digest)),
                Some((_, same)) if same == digest => {}
                Some((other, _)) => return Some(format!("{other} and {node} differ at {key:?}")),
            }
        }
        None
    }

    /// The nodes that have to keep a key: the first n of each datacenter, by the most copies that any record asks for.
    fn keepers(&self, key: KeyId) -> Vec<NodeId> {
        let keyspace = &self.history.key(key).keyspace;
        let partition = self.history.key(key).partition;
        let records = (0..self.hosts.len()).filter_map(|host| self.durable_record(host, key));
        // Where nobody holds anything somebody may have to: all of it may have been forgotten, or lost.
        let copies = records.map(|record: Record| record.copies()).reduce(CopyCount::join);
        let copies = copies.unwrap_or(CopyCount::DEFAULT);
        let in_datacenter = |(&datacenter, &own): (&ring::DatacenterId, &u8)| {
            let count = usize::from(copies.in_datacenter(own));
            self.document.preference_list(datacenter, partition).iter().take(count).map(|owner| owner.node)
        };
        keyspace.replication.iter().flat_map(in_datacenter).collect()
    }

    /// Notes what every replica holds, and whoever else holds anything.
    fn note_finals(&mut self) {
        let keepers: Vec<_> = (0..self.history.keys.len()).map(|key| self.keepers(KeyId(key))).collect();
        let finals = keepers.iter().enumerate().map(|(key, keepers)| {
            let holdings = self.hosts.iter().enumerate().filter_map(|(index, host)| {
                let record = self.durable_record(index, KeyId(key));
                (record.is_some() || keepers.contains(&host.node)).then_some((host.node, record))
            });
            holdings.collect::<BTreeMap<_, _>>()
        });
        self.history.finals = finals.collect();
        for (key, holdings) in self.history.finals.clone().into_iter().enumerate() {
            self.note(|| format!("at the end of key {key}, kept by {:?}: {holdings:?}", keepers[key]));
        }
        self.history.keepers = keepers;
    }

    /// The end of the schedule, for scenarios that wait for something.
    #[must_use]
    pub fn deadline(&self, wait: Duration) -> Moment {
        self.now().after(wait)
    }
}
