//! Faults that strike one after the other, and what the checkers have to know of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use antientropy::version::Record;
use client::Client;
use quorate_tests::{
    history::{Damage, History, KeyId, Regression},
    schedule::Moment,
};
use ring::NodeId;

use super::{Dice, Machine, Machines, network::Weather, recorder::records, run, text};

/// How long a fault lasts, at least and at most.
const LASTS: (Duration, Duration) = (Duration::from_millis(1000), Duration::from_millis(4000));
/// How long the cluster may take to be whole again after one.
const RECOVER_TIMEOUT: Duration = Duration::from_secs(90);
const TIMEOUT: Duration = Duration::from_secs(2);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A process is killed.
    Kill,
    /// A process is told to stop.
    Terminate,
    /// A process stands still.
    Pause,
    /// Ways between machines are cut, in both directions or in one.
    Partition,
    /// Packets are late, lost and repeated.
    Loss,
    /// A clock jumps by hours, or stands still.
    Clock,
    /// Machines lose their power, one or all at once.
    Power,
    /// Syncs fail.
    FailedSync,
    /// Syncs take 200 ms.
    SlowSync,
    /// All disks say that they have synced, and have not; then the power goes everywhere. No store can stand that: it is
    /// for finding out whether it would be found.
    Lie,
    /// A disk is full.
    Full,
    /// A file system becomes read-only.
    ReadOnly,
    /// A bit of a table flips.
    TableBit,
    /// A bit of the journal flips.
    JournalBit,
    /// The end of the journal was never written.
    Torn,
    /// A disk is replaced by an empty one.
    Wipe,
    /// A disk goes back to what it held a while ago.
    OldCopy,
    /// The same, to what it held after a stop in good order.
    CleanCopy,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Fault; 17] = [
        Fault::Kill,
        Fault::Terminate,
        Fault::Pause,
        Fault::Partition,
        Fault::Loss,
        Fault::Clock,
        Fault::Power,
        Fault::FailedSync,
        Fault::SlowSync,
        Fault::Full,
        Fault::ReadOnly,
        Fault::TableBit,
        Fault::JournalBit,
        Fault::Torn,
        Fault::Wipe,
        Fault::OldCopy,
        Fault::CleanCopy,
    ];

    /// The fault of this name.
    pub(crate) fn named(name: &str) -> Option<Fault> {
        Fault::ALL.into_iter().find(|fault| format!("{fault:?}").eq_ignore_ascii_case(name))
    }

    /// Whether it takes something of a disk that was synced.
    pub(crate) fn destroys(self) -> bool {
        matches!(
            self,
            Fault::TableBit
                | Fault::JournalBit
                | Fault::Torn
                | Fault::Wipe
                | Fault::OldCopy
                | Fault::CleanCopy
        )
    }

    /// Whether a store may answer afterwards as if nothing had happened, until a peer knows better.
    fn goes_back(self) -> bool {
        matches!(self, Fault::JournalBit | Fault::Torn | Fault::OldCopy | Fault::CleanCopy)
    }
}

/// What the cluster lacked of being whole, and from when on since a fault was over.
pub(crate) type Lacking = Vec<(Duration, String)>;

/// Of these, as many are kept.
const LACKING_MAX: usize = 40;

/// What the checkers have to know of the faults.
#[derive(Default)]
pub(crate) struct Noted {
    damages: Vec<Damage>,
    regressions: Vec<(NodeId, Moment, Moment, Vec<Option<Record>>)>,
    clocks_were_wrong: bool,
    /// How often each fault struck.
    pub(crate) struck: BTreeMap<Fault, u32>,
    /// The longest that the cluster took to be whole again, after what, and what was lacking meanwhile.
    pub(crate) slowest: Option<(Duration, Fault, Lacking)>,
    /// How many bits flipped in tables of records or of what nodes know of themselves.
    pub(crate) records_struck: u32,
    /// What did not become whole again.
    pub(crate) failures: Vec<String>,
}

impl Noted {
    /// Adds it to the history of one key.
    pub(crate) fn add_to(&self, history: &mut History) {
        history.damages.clone_from(&self.damages);
        history.clocks_are_right = !self.clocks_were_wrong;
        let object = history.key(KeyId(0)).object.clone();
        let position = super::recorder::objects(&history.document).iter().position(|other| *other == object);
        for (node, at, noticed, records) in &self.regressions {
            if let Some(before) = records[position.unwrap()].clone() {
                history.regressions.push(Regression {
                    node: *node,
                    key: KeyId(0),
                    at: *at,
                    before,
                    noticed: Some(*noticed),
                    noticed_with: node::storage::Sequence(0),
                });
            }
        }
    }
}

/// Strikes until it is over.
pub(crate) struct Nemesis<'a> {
    pub(crate) machines: &'a Machines,
    pub(crate) client: Client,
    pub(crate) began: Instant,
    pub(crate) faults: Vec<Fault>,
    pub(crate) dice: Dice,
    pub(crate) noted: Noted,
    /// A node whose store was put back in time by the last fault, and that has not said so yet.
    pub(crate) went_back: Option<NodeId>,
}

impl Nemesis<'_> {
    fn now(&self) -> Moment {
        Moment::default().after(self.began.elapsed())
    }

    /// Faults, one after the other, with the cluster whole in between.
    pub(crate) async fn rage(mut self, is_over: &AtomicBool) -> Noted {
        while !is_over.load(Ordering::Relaxed) {
            let fault = self.faults[self.dice.index(self.faults.len())];
            let struck = Instant::now();
            let at = self.now();
            self.strike(fault).await;
            let lacking = self.settle(fault).await;
            if let Some(node) = self.went_back.take() {
                self.noted.regressions.last_mut().unwrap().2 = self.now();
                // What is torn off the end of a journal may be what nobody has heard of.
                if matches!(fault, Fault::OldCopy | Fault::CleanCopy) {
                    let failure = format!("{fault:?} at {at}: {node} did not say that its store went back");
                    self.noted.failures.push(failure);
                }
            }
            *self.noted.struck.entry(fault).or_default() += 1;
            let took = struck.elapsed();
            if self.noted.slowest.as_ref().is_none_or(|(slowest, ..)| took > *slowest) {
                self.noted.slowest = Some((took, fault, lacking));
            }
            let pause = self.dice.time(Duration::from_millis(200), Duration::from_millis(1000));
            tokio::time::sleep(pause).await;
        }
        self.client.close().await;
        self.noted
    }

    fn draw(&mut self) -> usize {
        self.dice.index(self.machines.machines.len())
    }

    fn draw_time(&mut self) -> Duration {
        self.dice.time(LASTS.0, LASTS.1)
    }

    /// A machine's process is gone, and with it what was not synced.
    fn note_damage(&mut self, machine: usize, on_disk: bool) {
        let node = self.machines.machines[machine].lock().node;
        let at = self.now();
        self.noted.damages.push(Damage { node, at, on_disk });
    }

    async fn strike(&mut self, fault: Fault) {
        let (which, lasts) = (self.draw(), self.draw_time());
        let machine = &self.machines.machines[which];
        match fault {
            Fault::Kill | Fault::Terminate => {
                if fault == Fault::Kill {
                    machine.lock().kill();
                } else {
                    let mut machine = machine.lock();
                    machine.begin_stop();
                    machine.wait();
                }
                self.note_damage(which, false);
                tokio::time::sleep(lasts).await;
                machine.lock().start();
            }
            Fault::Pause => {
                machine.lock().signal("-STOP");
                tokio::time::sleep(lasts).await;
                machine.lock().signal("-CONT");
            }
            Fault::Partition | Fault::Loss => {
                let weather = if fault == Fault::Loss { self.storm() } else { self.cuts() };
                self.machines.switch.set(weather);
                tokio::time::sleep(lasts).await;
                self.machines.switch.set(Weather::default());
            }
            Fault::Clock => {
                self.noted.clocks_were_wrong = true;
                let to = ["+3600", "-3600", "+86400", "-7200", "+1", "-1", "2026-06-01 00:00:00"];
                let to = to[self.dice.index(to.len())];
                machine.lock().set_clock(to);
                tokio::time::sleep(lasts).await;
                machine.lock().set_clock("+0");
            }
            Fault::Power => self.cut_power(which, lasts).await,
            Fault::Lie => {
                for machine in &self.machines.machines {
                    machine.lock().set_syncs(Some("lie"));
                }
                tokio::time::sleep(lasts).await;
                self.cut_power_of((0..self.machines.machines.len()).collect(), lasts).await;
            }
            Fault::FailedSync | Fault::SlowSync => {
                let order = if fault == Fault::FailedSync { "fail" } else { "200" };
                machine.lock().set_syncs(Some(order));
                tokio::time::sleep(lasts).await;
                machine.lock().set_syncs(None);
                self.note_damage(which, false);
            }
            Fault::Full => {
                machine.lock().volume.fill(100 << 20);
                tokio::time::sleep(lasts).await;
                machine.lock().volume.make_room();
            }
            Fault::ReadOnly => {
                machine.lock().volume.make_read_only().unwrap();
                tokio::time::sleep(lasts).await;
                let mut machine = machine.lock();
                machine.kill();
                machine.volume.repair();
                machine.start();
                drop(machine);
                self.note_damage(which, false);
            }
            Fault::TableBit | Fault::JournalBit | Fault::Torn | Fault::Wipe => {
                machine.lock().kill();
                self.destroy(fault, which);
                machine.lock().start();
            }
            Fault::OldCopy | Fault::CleanCopy => {
                let copy = self.machines.options.directory.join("copy");
                {
                    let mut machine = machine.lock();
                    if fault == Fault::CleanCopy {
                        machine.begin_stop();
                        machine.wait();
                    } else {
                        machine.kill();
                    }
                    keep(&machine, &copy);
                    machine.start();
                }
                self.note_damage(which, false);
                tokio::time::sleep(Duration::from_secs(2) + lasts).await;
                machine.lock().kill();
                self.destroy(fault, which);
                machine.lock().start();
                fs::remove_dir_all(&copy).unwrap();
            }
        }
    }

    /// Some ways are cut.
    fn cuts(&mut self) -> Weather {
        let nodes = self.machines.machines.len();
        // Those on one side. Port 0 is the clients'.
        let mut side: Vec<usize> = (1..=nodes).collect();
        while side.len() > 2 {
            side.remove(self.dice.index(side.len()));
        }
        side.truncate(1 + self.dice.index(2));
        let (into, out_of) = match self.dice.below(4) {
            0 => (true, false),
            1 => (false, true),
            _ => (true, true),
        };
        let with_clients = self.dice.below(3) == 0;
        let mut cut = std::collections::BTreeSet::new();
        for port in usize::from(!with_clients)..=nodes {
            if side.contains(&port) {
                continue;
            }
            for inside in &side {
                if into {
                    cut.insert((port, *inside));
                }
                if out_of {
                    cut.insert((*inside, port));
                }
            }
        }
        Weather { cut, ..Weather::default() }
    }

    /// Everything is slow and unreliable.
    fn storm(&mut self) -> Weather {
        let least = self.dice.time(Duration::ZERO, Duration::from_millis(10));
        let most = least + self.dice.time(Duration::from_millis(1), Duration::from_millis(30));
        let lost_permille = self.dice.below(100);
        Weather { delay: (least, most), lost_permille, repeated_permille: 20, ..Weather::default() }
    }

    /// The power of some machines goes, at once as far as anybody can tell: their processes stand still first.
    async fn cut_power(&mut self, first: usize, lasts: Duration) {
        let all = self.machines.machines.len();
        let which: Vec<usize> = match self.dice.below(3) {
            0 => vec![first],
            1 => vec![first, (first + 1) % all],
            _ => (0..all).collect(),
        };
        self.cut_power_of(which, lasts).await;
    }

    async fn cut_power_of(&mut self, which: Vec<usize>, lasts: Duration) {
        for index in &which {
            self.machines.machines[*index].lock().signal("-STOP");
        }
        for index in &which {
            self.machines.machines[*index].lock().volume.shut_down();
        }
        for index in &which {
            self.machines.machines[*index].lock().kill();
            self.note_damage(*index, false);
        }
        tokio::time::sleep(lasts / 2).await;
        for index in &which {
            let mut machine = self.machines.machines[*index].lock();
            machine.volume.mount_again();
            machine.start();
        }
    }

    /// Takes something of the disk of a machine that is down.
    fn destroy(&mut self, fault: Fault, which: usize) {
        let at = self.now();
        let document = self.client.document();
        let machine = self.machines.machines[which].lock();
        let data = machine.data();
        let objects = super::recorder::objects(&document);
        let held = || records(machine.node, &data, &objects);
        let before = if fault.goes_back() { held() } else { None };
        match fault {
            Fault::TableBit => {
                let mut tables = files(&data, "tables");
                // Of the engine's own there are always some; the others take a while to come.
                let is_ours = |path: &PathBuf| !path.to_string_lossy().contains("/keyspaces/0/");
                if tables.iter().any(is_ours) {
                    tables.retain(is_ours);
                    self.noted.records_struck += 1;
                }
                flip(&mut self.dice, &tables);
            }
            Fault::JournalBit => flip(&mut self.dice, &files(&data, "jnl")),
            Fault::Torn => {
                if let Some(path) = files(&data, "jnl").last() {
                    tear(&mut self.dice, path);
                }
            }
            Fault::Wipe => machine.volume.replace(None),
            Fault::OldCopy | Fault::CleanCopy => {
                machine.volume.replace(Some(&self.machines.options.directory.join("copy")));
            }
            _ => unreachable!("it destroys nothing"),
        }
        let node = machine.node;
        // One that is not opened any more, as it is, becomes another store, which nobody believes.
        let after = if fault.goes_back() { held() } else { None };
        drop(machine);
        self.noted.damages.push(Damage { node, at, on_disk: true });
        if let (Some((store, before)), Some((same, after))) = (before, after)
            && store == same
        {
            let is_lost = |before: &Record, after: &Option<Record>| {
                !after.as_ref().is_some_and(|after| after.dominates(before))
            };
            let lost: Vec<Option<Record>> = before
                .into_iter()
                .zip(after)
                .map(|(before, after)| before.filter(|before| is_lost(before, &after)))
                .collect();
            if lost.iter().any(Option::is_some) {
                self.went_back = Some(node);
                self.noted.regressions.push((node, at, Moment::NEVER, lost));
            }
        }
    }

    /// Waits until all nodes are up, recorded, whole and voters again; readmits those that are not recorded.
    async fn settle(&mut self, fault: Fault) -> Lacking {
        let (began, mut lacked) = (Instant::now(), Lacking::new());
        loop {
            self.hear_of_loss();
            let Some(lacking) = self.what_lacks().await else { break };
            let kind = |text: &str| text.replace(|letter: char| letter.is_ascii_digit(), "");
            if lacked.len() < LACKING_MAX
                && lacked.last().is_none_or(|(_, last)| kind(last) != kind(&lacking))
            {
                lacked.push((began.elapsed(), lacking.clone()));
            }
            if began.elapsed() > RECOVER_TIMEOUT {
                self.noted.failures.push(format!("{fault:?} at {}: {lacking}", self.now()));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It may have been too busy to say so.
        for _ in 0..20 {
            if self.went_back.is_some() {
                self.hear_of_loss();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        lacked
    }

    /// Looks whether a node has noticed that its store went back: from then on it is not believed.
    fn hear_of_loss(&mut self) {
        let Some(node) = self.went_back else { return };
        if self.machines.metric(node, "quorate_store_went_back_total") == Some(1.0) {
            self.went_back = None;
            let noticed = self.now();
            self.noted.regressions.last_mut().unwrap().2 = noticed;
        }
    }

    async fn what_lacks(&self) -> Option<String> {
        let mut statuses = Vec::new();
        for machine in &self.machines.machines {
            let node = machine.lock().node;
            match self.client.status(node, TIMEOUT).await {
                Ok(status) => statuses.push(status),
                Err(error) => return Some(format!("{node} does not answer: {error}")),
            }
        }
        // First, for nothing is brought to a store that is not recorded.
        for status in &statuses {
            let node = status.node;
            if !status.is_recorded || !status.votes {
                let readmitted = self.client.readmit(node, Duration::from_secs(10)).await;
                return Some(format!("{node} is not recorded as it is: {readmitted:?}"));
            }
        }
        for status in &statuses {
            let node = status.node;
            if !status.is_ready {
                return Some(format!("{node} is not ready"));
            }
            if status.copies != status.copies_whole {
                return Some(format!("{node} has {} of {} copies whole", status.copies_whole, status.copies));
            }
            if status.hints_pending > 0 {
                return Some(format!("{node} owes {} hints", status.hints_pending));
            }
            if let Some(peer) = status.peers.iter().find(|peer| !peer.is_up) {
                return Some(format!("{node} takes {} for down", peer.node));
            }
        }
        None
    }
}

/// Copies a machine's data while nobody has it open.
fn keep(machine: &Machine, to: &Path) {
    fs::create_dir(to).unwrap();
    run("cp", &["-a", &format!("{}/.", text(&machine.data())), text(to)]).unwrap();
    drop(fs::remove_dir_all(to.join("lost+found")));
}

/// The files in a store that lie in a directory of this name or end in it, in the order of their names.
fn files(directory: &Path, what: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, what));
        } else if path.extension().is_some_and(|end| end == what)
            || path.parent().is_some_and(|parent| parent.ends_with(what))
        {
            found.push(path);
        }
    }
    found.retain(|path| {
        !path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("damaged-"))
    });
    found.sort();
    found
}

/// Flips a bit of what was written to one of some files.
fn flip(dice: &mut Dice, paths: &[PathBuf]) {
    let path = &paths[dice.index(paths.len())];
    let mut bytes = fs::read(path).unwrap();
    // Files may be long and empty at the end.
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if written > 0 {
        bytes[dice.index(written)] ^= 1 << dice.below(8);
        fs::write(path, bytes).unwrap();
    }
}

/// Zeroes the end of what was written to a file.
fn tear(dice: &mut Dice, path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let torn = dice.index(written.min(20_000) + 1);
    bytes[written - torn..written].fill(0);
    fs::write(path, bytes).unwrap();
}
