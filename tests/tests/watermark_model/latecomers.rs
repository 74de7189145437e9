//! Histories told by hand of keys that are written with more copies than before: random ones hardly ever come upon them.
//!
//! Five copies. Requests for the key ask for two copies at first: n0 and n1 keep it, the others come to keep it later. Each history
//! is told twice: by nodes as they are, and then nothing is lost and nothing comes back; and with the mistake that it is about.

use crate::{
    cluster::{Cluster, Reading},
    node::{Body, Path},
    record::{Copies, Policy, Record},
    rules::Mistake,
};

/// The machine that has a disk of before in each history.
const LATECOMER: usize = 4;
const KEY: usize = 0;

/// Five copies that know each other, of keys with siblings.
fn cluster(mistake: Option<Mistake>) -> Cluster {
    let mut cluster = Cluster::new(0, 5, 5, mistake);
    (cluster.policies, cluster.copies) = ([Policy::Siblings; 2], [2; 2]);
    (cluster.documents[0].owners, cluster.others) = ((0..5).collect(), 100);
    for one in 0..5 {
        (0..one).for_each(|other| cluster.greet(one, other));
    }
    cluster
}

impl Cluster {
    fn sync_all(&mut self) {
        (0..5).for_each(|node| self.sync(node));
    }

    /// What has been sent since there were so many messages arrives, at these nodes.
    fn arrives(&mut self, before: usize, at: &[usize]) {
        for message in self.messages.split_off(before) {
            if at.contains(&message.to) {
                self.deliver(message);
            }
        }
        self.sync_all();
    }

    fn reads(&self, node: usize) -> Reading {
        let record = &self.nodes[node].held.records[KEY];
        let saw = record.live.iter().map(|(_, value)| value.write).collect();
        Reading { key: KEY, entries: record.entries.clone(), saw, copies: record.copies.most }
    }

    /// A put, or with a reading a delete of what was read, that these other nodes take, and that is over then.
    fn writes(&mut self, node: usize, copies: usize, reading: Option<Reading>, at: &[usize]) {
        let write = self.begins_to_write(node, copies, reading, at);
        self.is_over(write);
    }

    /// The same, and it is still under way. Returns which write it is.
    fn begins_to_write(
        &mut self,
        node: usize,
        copies: usize,
        reading: Option<Reading>,
        at: &[usize],
    ) -> usize {
        self.now += 5;
        let before = self.messages.len();
        let is_delete = reading.is_some();
        let blind = Reading { key: KEY, entries: Vec::new(), saw: Vec::new(), copies: 0 };
        self.mint(node, reading.unwrap_or(blind), copies, is_delete, 0, 1);
        self.arrives(before, at);
        self.writes.len() - 1
    }

    fn is_over(&mut self, write: usize) {
        self.writes[write].is_under_way = false;
    }

    /// A put that a node takes in place of the last of its four replicas.
    fn writes_with_stand_in(&mut self) {
        let write = self.begins_to_write(1, 4, None, &[0, 2]);
        let before = self.messages.len();
        self.stand_in(write, LATECOMER, 3);
        self.arrives(before, &[LATECOMER]);
        self.is_over(write);
    }

    /// A blocking read that asks for five copies, and of the two that have it hears this one.
    fn read_raises(&mut self, node: usize) {
        let mut record = self.nodes[node].held.records[KEY].clone();
        record.copies = Copies { most: 5, ..record.copies };
        let before = self.messages.len();
        self.send(2, node, Body::Merge { key: KEY, record, under: 0, path: Path::Repair });
        self.arrives(before, &[node]);
    }

    fn exchanges(&mut self, leader: usize, follower: usize) {
        self.now += 1;
        let before = self.messages.len();
        self.begin(leader, follower);
        for _ in 0..16 {
            while self.messages.len() > before {
                let message = self.messages.pop().expect("there is one");
                self.deliver(message);
            }
            self.sync(follower);
            self.sync(leader);
        }
    }

    /// An exchange that ends when both know how the other stands.
    fn breaks_off(&mut self, leader: usize, follower: usize) {
        let before = self.messages.len();
        self.begin(leader, follower);
        self.arrives(before, &[follower]);
        self.arrives(before, &[leader]);
        self.messages.truncate(before);
        self.end_exchanges(leader);
    }

    fn all_exchange(&mut self) {
        for one in 0..5 {
            (0..one).for_each(|other| self.exchanges(one, other));
        }
    }

    fn floors_rise(&mut self) {
        self.now += 5;
        (0..5).for_each(|node| self.raise_floor(node));
        self.sync_all();
    }

    /// Until the watermarks have passed all that was written.
    fn settle(&mut self) {
        for _ in 0..5 {
            self.floors_rise();
            self.all_exchange();
        }
    }

    fn backs_up(&mut self) {
        let disk = self.nodes[LATECOMER].synced.clone();
        self.nodes[LATECOMER].backups.push(disk);
    }

    fn goes_back(&mut self) {
        self.restore(LATECOMER, 0);
        self.sync_all();
    }

    fn is_forgotten(&self) -> bool {
        (0..5).all(|node| self.nodes[node].held.records[KEY] == Record::default())
    }
}

/// Tells a history right, and with a mistake.
fn shows(mistake: Mistake, tell: impl Fn(&mut Cluster)) {
    for is_planted in [false, true] {
        let mut cluster = cluster(is_planted.then_some(mistake));
        cluster.log = Some(Vec::new());
        tell(&mut cluster);
        if cluster.violation.is_none() {
            cluster.heal();
            cluster.check();
        }
        let log = cluster.log.unwrap_or_default().join("\n");
        assert_eq!(cluster.violation.is_some(), is_planted, "{log}\n{mistake:?}: {:?}", cluster.violation);
    }
}

/// A delete has reached one of the two keepers. A read of five copies that does not hear it has the value kept by all five. The
/// last of them had exchanged with the one that knows of the delete, before it kept the key; the two had only heard how they stand.
#[test]
fn who_has_come_to_keep_a_record_does_not_say_that_it_is_alive() {
    shows(Mistake::LatecomerSpeaks, |cluster| {
        cluster.writes(0, 2, None, &[1]);
        let seen = cluster.reads(0);
        cluster.writes(0, 2, Some(seen), &[]);
        cluster.floors_rise();
        for _ in 0..2 {
            cluster.breaks_off(0, 1);
            for (leader, follower) in [(1, 2), (1, 3), (2, 3), (4, 2), (4, 3), (2, 0), (3, 0), (4, 0), (4, 1)]
            {
                cluster.exchanges(leader, follower);
            }
        }
        cluster.read_raises(1);
        for (leader, follower) in [(4, 1), (0, 1), (1, 2), (1, 3), (0, 2), (0, 3), (0, 1), (4, 0)] {
            cluster.exchanges(leader, follower);
        }
    });
}

/// A disk goes back to when it held a value that is deleted and forgotten. Of the two that know so, one is whole at each time, but
/// not the one that is asked.
#[test]
fn a_ghost_is_found_out_by_who_has_kept_the_record_since_its_first_write() {
    shows(Mistake::LatecomerSpeaks, |cluster| {
        cluster.writes(0, 2, None, &[1]);
        cluster.read_raises(1);
        cluster.settle();
        cluster.backs_up();
        let seen = cluster.reads(0);
        cluster.writes(0, 5, Some(seen), &[1, 2, 3, 4]);
        cluster.settle();
        assert!(cluster.is_forgotten());
        cluster.goes_back();
        cluster.fill(0, "by the script");
        cluster.sync_all();
        for follower in [0, 0] {
            cluster.exchanges(LATECOMER, follower);
        }
        [1, 2, 3].into_iter().for_each(|follower| cluster.exchanges(0, follower));
        cluster.fill(1, "by the script");
        cluster.sync_all();
        for follower in [1, 2, 3, 1, 2, 3, 0] {
            cluster.exchanges(LATECOMER, follower);
        }
    });
}

/// A node stands in for one that has come to keep the key, hands over, and its disk goes back to before that; it takes a newer
/// write in its place. Its target cannot tell what of the record is dead, and would refuse it for ever.
#[test]
fn what_is_owed_to_who_cannot_judge_it_is_owed_to_those_who_can() {
    shows(Mistake::HintStaysWithLatecomer, |cluster| {
        cluster.writes(0, 2, None, &[1]);
        cluster.all_exchange();
        let seen = cluster.reads(0);
        cluster.writes_with_stand_in();
        cluster.backs_up();
        let before = cluster.messages.len();
        cluster.replay(LATECOMER);
        cluster.arrives(before, &[3]);
        cluster.all_exchange();
        cluster.writes(0, 4, Some(seen), &[1, 2, 3]);
        cluster.settle();
        cluster.goes_back();
        cluster.writes_with_stand_in();
    });
}

/// A disk goes back to when the key was kept by five; it is kept by two since, and has another value. A write for five copies reaches
/// only that disk. Who is asked of the old value must not say that it holds nothing because its own record is kept by two.
#[test]
fn a_record_that_is_kept_by_fewer_is_not_nothing() {
    shows(Mistake::NothingSaidOfLess, |cluster| {
        cluster.writes(1, 5, None, &[0, 2, 3, 4]);
        cluster.all_exchange();
        cluster.backs_up();
        let seen = cluster.reads(1);
        cluster.writes(1, 5, Some(seen), &[0, 2, 3, 4]);
        cluster.settle();
        assert!(cluster.is_forgotten());
        cluster.writes(0, 2, None, &[1]);
        cluster.settle();
        cluster.goes_back();
        cluster.exchanges(LATECOMER, 2);
        cluster.now += 5;
        let before = cluster.messages.len();
        let blind = Reading { key: KEY, entries: Vec::new(), saw: Vec::new(), copies: 0 };
        cluster.mint(0, blind, 5, false, 0, 1);
        cluster.refuse_batch(0);
        cluster.arrives(before, &[LATECOMER]);
        let last = cluster.writes.len() - 1;
        assert!(cluster.writes[last].is_acknowledged);
        cluster.is_over(last);
        cluster.exchanges(LATECOMER, 1);
    });
}
