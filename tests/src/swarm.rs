//! The shape of a run: what the seed decides before anything happens.
//!
//! Swarm testing: instead of every fault at a middling rate in every run, each run has only some faults, at rates of
//! its own, with levels, keyspaces and limits of its own. Faults hide each other, and a bug often needs the absence of
//! one as much as the presence of another.

use std::{collections::BTreeMap, time::Duration};

use antientropy::version::ContextKey;
use client::{Level, ReadRepair};
use node::Settings;
use ring::{ConflictPolicy, DatacenterId, Durability, Keyspace, KeyspaceId};

use crate::random::{Random, Stream};

/// The cluster's secret in every run.
pub const SECRET: [u8; 32] = [7; 32];

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Swarm {
    /// Nodes.
    pub nodes: usize,
    /// Datacenters, over which the nodes are spread in turn.
    pub datacenters: usize,
    /// Partitions.
    pub partitions: u32,
    /// The keyspaces.
    pub keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    /// Keys, spread over the keyspaces.
    pub keys: usize,
    /// What clients do.
    pub clients: Clients,
    /// What the network does.
    pub network: Network,
    /// What disks do.
    pub disks: Disks,
    /// Which faults happen.
    pub faults: Faults,
    /// How the cluster is founded, and how its document changes.
    pub documents: Documents,
    /// The nodes' settings.
    pub settings: Settings,
    /// Time from an input's arrival to the turn that handles it; what arrives meanwhile joins the turn.
    pub turn_delay: Duration,
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Concurrent sessions.
    pub sessions: usize,
    /// Operations in all.
    pub operations: usize,
    /// The longest that a session waits between two operations.
    pub think_max: Duration,
    /// Reads, in a thousand.
    pub read_permille: u32,
    /// Deletes, of the writes.
    pub delete_permille: u32,
    /// Writes that carry the context the session has, if it has one.
    pub context_permille: u32,
    /// Writes that carry another key's context. They have to be refused.
    pub foreign_permille: u32,
    /// In-doubt writes that are tried again under their id.
    pub retry_permille: u32,
    /// Puts whose value ends soon.
    pub expiry_permille: u32,
    /// Writes without an id.
    pub nameless_permille: u32,
    /// Requests with an n of their own.
    pub n_permille: u32,
    /// Writes with a durability of their own.
    pub durability_permille: u32,
    /// Writes for which nodes that stand in for replicas count.
    pub sloppy_permille: u32,
    /// The levels to choose from.
    pub levels: Vec<Level>,
    /// The read-repair modes to choose from.
    pub repairs: Vec<Option<ReadRepair>>,
    /// The timeouts to choose from.
    pub timeouts: Vec<Duration>,
    /// Requests and replies that are lost between client and node.
    pub loss_permille: u32,
}

/// What the network does.
#[derive(Clone, Debug)]
pub struct Network {
    /// The shortest time that a message takes.
    pub latency_min: Duration,
    /// The longest, but for the slow ones.
    pub latency_max: Duration,
    /// Messages that take up to ten times as long and more.
    pub slow_permille: u32,
    /// Messages that are lost.
    pub loss_permille: u32,
    /// Messages that arrive twice.
    pub duplicate_permille: u32,
}

/// What disks do.
#[derive(Clone, Debug)]
pub struct Disks {
    /// The shortest sync.
    pub sync_min: Duration,
    /// The longest.
    pub sync_max: Duration,
    /// Syncs that take all that waits, and not just one batch.
    pub joined_permille: u32,
    /// Batches that are refused, as by a full disk.
    pub fail_permille: u32,
}

/// How the cluster is founded, and how its document changes.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Whether the founders form the cluster. If not, they are handed its first document.
    pub is_formed: bool,
    /// The longest that a founder waits before it starts for the first time.
    pub start_max: Duration,
    /// Keyspaces that are created in the run.
    pub keyspaces: usize,
    /// The longest time between two of them.
    pub create_every: Duration,
    /// Changes that are asked of two nodes at once.
    pub twice_permille: u32,
    /// Of those, the ones of which the second asks for a keyspace of that name with other properties.
    pub rival_permille: u32,
    /// How long a node may try.
    pub timeouts: Vec<Duration>,
}

/// Which faults happen: for each the longest time between two, or none.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A node's power goes.
    pub crash: Option<Duration>,
    /// A node is stopped in good order.
    pub stop: Option<Duration>,
    /// A process stands still, and time jumps for it.
    pub pause: Option<Duration>,
    /// Some nodes are cut off from others, in both directions or in one.
    pub partition: Option<Duration>,
    /// A clock jumps.
    pub clock: Option<Duration>,
    /// A disk is replaced by an empty one.
    pub wipe: Option<Duration>,
    /// A disk forgets the end of its synced log, or a bit of it flips.
    pub truncate: Option<Duration>,
    /// A disk goes back to an older image.
    pub restore: Option<Duration>,
    /// A bit of a stored record flips.
    pub rot: Option<Duration>,
    /// A device fails to read for a while.
    pub unreadable: Option<Duration>,
    /// The longest that a node is down.
    pub down_max: Duration,
    /// The longest that a node stands still.
    pub pause_max: Duration,
    /// The longest that a partition lasts.
    pub partition_max: Duration,
    /// The furthest that a clock is off.
    pub skew_ms_max: i64,
    /// Whether only the first machine's clock ever is.
    pub one_clock_alone: bool,
    /// Whether disks are damaged while others have not recovered from damage: more than the promises cover.
    pub beyond_the_promise: bool,
}

/// A kind of run that makes certain circumstances likely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Whatever the seed says.
    #[default]
    Any,
    /// Records rot, and writes often carry no context.
    Rot,
    /// Batches fail, and writes often carry no context.
    FailingDisks,
    /// Disks are wiped, and reads and writes overlap.
    Wipes,
    /// Reads block, by quorums, and nodes are slow and cut off.
    Blocking,
    /// Last write wins, on clocks that differ.
    Skew,
    /// One machine's clock jumps far, and nodes mind their clocks.
    OneClock,
    /// Requests ask for fewer copies than the keyspace keeps.
    FewerCopies,
    /// Clients send contexts of other keys.
    ForeignContexts,
    /// Requests time out.
    ShortTimeouts,
    /// Founders form their cluster, while disks are wiped and the network is cut.
    Forming,
    /// The document changes often, at several nodes at once, while syncs are slow and nodes crash.
    Changes,
    /// The same, while disks are wiped.
    ChangesAndWipes,
    /// The same, while disks forget what they synced last.
    ChangesAndAmnesia,
    /// Exchanges are hours apart and nothing is lost from disks: what a replica has missed it gets by hints.
    HintsAlone,
    /// Tombstones go soon, while disks are lost, damaged and set back.
    Tombstones,
    /// Writes count nodes that stand in for replicas, which are down or cut off for long; hints that are not counted
    /// expire soon.
    StandIns,
    /// Nothing goes wrong: every request that can be met has to be.
    Calm,
}

impl Profile {
    /// All of them.
    pub const ALL: [Profile; 18] = [
        Profile::Any,
        Profile::Rot,
        Profile::FailingDisks,
        Profile::Wipes,
        Profile::Blocking,
        Profile::Skew,
        Profile::OneClock,
        Profile::FewerCopies,
        Profile::ForeignContexts,
        Profile::ShortTimeouts,
        Profile::Forming,
        Profile::Changes,
        Profile::ChangesAndWipes,
        Profile::ChangesAndAmnesia,
        Profile::HintsAlone,
        Profile::Tombstones,
        Profile::StandIns,
        Profile::Calm,
    ];
}

/// Milliseconds as a duration.
const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

impl Swarm {
    /// The shape of the run with this seed.
    #[must_use]
    pub fn draw(seed: u64, profile: Profile, operations: usize) -> Swarm {
        let random = &mut Random::new(seed, Stream::Swarm);
        let datacenters = if random.chance(200) { 2 } else { 1 };
        let nodes = if random.chance(500) { 5 } else { random.between(3, 6) };
        let faults = draw_faults(random);
        let mut swarm = Swarm {
            nodes,
            datacenters,
            partitions: *random.pick(&[1, 4, 8]),
            keyspaces: draw_keyspaces(random, datacenters, nodes),
            keys: random.between(3, 8),
            clients: draw_clients(random, datacenters, operations),
            network: draw_network(random),
            disks: draw_disks(random),
            settings: draw_settings(random, &faults),
            faults,
            turn_delay: Duration::from_micros(*random.pick(&[1, 20, 200])),
            documents: draw_documents(random),
        };
        // From another sequence: earlier seeds tell the same stories.
        swarm.draw_watermarks(&mut Random::new(seed ^ 0x7761_7465_726d, Stream::Swarm));
        swarm.lean_towards(profile, random);
        swarm
    }

    /// How soon what is settled is promised: mostly so soon that tombstones go while faults strike.
    fn draw_watermarks(&mut self, random: &mut Random) {
        self.settings.settled_after = ms(*random.pick(&[100, 300, 2000, 15_000]));
        self.settings.watermark_interval = ms(*random.pick(&[200, 1000, 2000, 60_000]));
        if random.chance(80) {
            self.settings.prunable_max = 1;
        }
    }

    /// A run in which nothing happens but what a scenario does: one datacenter, a keyspace of three copies that keeps
    /// siblings and one in which the last write wins, a quick network without faults.
    #[must_use]
    pub fn calm(nodes: usize) -> Swarm {
        let keyspace = |name, conflict| Keyspace::new(name, 3, conflict, Durability::Disk);
        let keyspaces = BTreeMap::from([
            (KeyspaceId(1), keyspace("carts", ConflictPolicy::Siblings)),
            (KeyspaceId(2), keyspace("stock", ConflictPolicy::LastWriteWins)),
        ]);
        let mut swarm = Swarm::draw(0, Profile::Any, 0);
        swarm.nodes = nodes;
        swarm.datacenters = 1;
        swarm.partitions = 1;
        swarm.keyspaces = keyspaces;
        swarm.keys = 2;
        swarm.network = Network {
            latency_min: ms(1),
            latency_max: ms(1),
            slow_permille: 0,
            loss_permille: 0,
            duplicate_permille: 0,
        };
        swarm.disks = Disks { sync_min: ms(1), sync_max: ms(1), joined_permille: 1000, fail_permille: 0 };
        swarm.calm_down();
        // A production cluster compares whole copies every ten minutes; a scenario should not have to wait for that.
        swarm.settings = Settings { exchange_interval: ms(2000), ..settings() };
        swarm.turn_delay = Duration::from_micros(1);
        swarm.documents = Documents { is_formed: false, keyspaces: 0, ..swarm.documents };
        swarm
    }

    /// Makes the circumstances of a profile likely.
    fn lean_towards(&mut self, profile: Profile, random: &mut Random) {
        let clients = &mut self.clients;
        match profile {
            Profile::Any => {}
            Profile::Rot => {
                self.faults.rot = Some(ms(150));
                self.set_conflict(ConflictPolicy::Siblings);
                self.clients.context_permille = 300;
                self.settings.record_cache_bytes = 0;
                self.keys = 3;
            }
            Profile::FailingDisks => {
                self.disks.fail_permille = 60;
                self.set_conflict(ConflictPolicy::Siblings);
                self.clients.context_permille = 300;
                self.keys = 3;
            }
            Profile::Wipes => {
                clients.levels = vec![Level::Quorum];
                clients.n_permille = 0;
                clients.read_permille = 600;
                clients.think_max = ms(1);
                // A disk is wiped when the one before is filled again: that has to be soon, but no moment. Some replica
                // has to miss some writes.
                self.faults = Faults { wipe: Some(ms(100)), down_max: ms(20), ..Faults::default() };
                self.disks =
                    Disks { sync_min: ms(1), sync_max: ms(4), joined_permille: 1000, fail_permille: 0 };
                self.network.loss_permille = 200;
                self.documents.is_formed = false;
                self.partitions = 8;
            }
            Profile::Blocking => {
                clients.levels = vec![Level::Quorum];
                clients.repairs = vec![None, Some(ReadRepair::Blocking)];
                clients.n_permille = 0;
                clients.read_permille = 700;
                clients.timeouts = vec![ms(30), ms(1000)];
                self.keys = 3;
                self.network.loss_permille = 50;
                self.faults.partition = Some(ms(300));
            }
            Profile::Skew => {
                self.set_conflict(ConflictPolicy::LastWriteWins);
                self.faults.clock = Some(ms(100));
                self.faults.skew_ms_max = *random.pick(&[200, 400]);
                self.keys = 3;
            }
            Profile::OneClock => {
                clients.levels = vec![Level::Quorum];
                self.faults = Faults { clock: Some(ms(300)), one_clock_alone: true, ..self.faults.clone() };
                self.faults.skew_ms_max = *random.pick(&[20_000, 4_000_000]);
                self.settings.clock_drift_max = ms(500);
            }
            Profile::FewerCopies => {
                clients.n_permille = 500;
                clients.levels = vec![Level::Quorum, Level::All, Level::One];
                for keyspace in self.keyspaces.values_mut() {
                    keyspace.durability = Durability::Disk;
                }
            }
            Profile::Forming => {
                self.documents = Documents { is_formed: true, start_max: ms(200), ..self.documents.clone() };
                self.faults.wipe = Some(ms(150));
                self.faults.partition = Some(ms(200));
                self.faults.down_max = ms(20);
                self.clients.operations = 40;
            }
            Profile::Changes => self.change_often(),
            Profile::ChangesAndWipes => {
                self.change_often();
                self.faults.wipe = Some(ms(300));
            }
            Profile::ChangesAndAmnesia => {
                self.change_often();
                self.faults.truncate = Some(ms(200));
            }
            Profile::HintsAlone => {
                self.settings.exchange_interval = Duration::from_secs(86_400);
                self.settings.exchange_on_suspicion = false;
                self.settings.hints_per_peer_max = 1000;
                self.settings.clock_drift_max = Duration::from_secs(1_000_000);
                self.faults = Faults {
                    stop: Some(ms(200)),
                    pause: self.faults.pause.and(Some(ms(300))),
                    partition: Some(ms(200)),
                    skew_ms_max: 0,
                    beyond_the_promise: false,
                    ..Faults::default()
                };
                (self.faults.down_max, self.faults.pause_max) = (ms(300), ms(400));
                self.faults.partition_max = ms(600);
                self.disks.fail_permille = 0;
                for keyspace in self.keyspaces.values_mut() {
                    keyspace.durability = Durability::Disk;
                }
                clients.repairs = vec![Some(ReadRepair::Off)];
                clients.read_permille = 200;
                // A request for more copies than before leaves what there was to exchanges.
                clients.n_permille = 0;
                self.documents.is_formed = false;
            }
            Profile::StandIns => {
                (self.nodes, self.datacenters) = (random.between(4, 6), 1);
                for keyspace in self.keyspaces.values_mut() {
                    keyspace.replication = BTreeMap::from([(DatacenterId(0), 3)]);
                    keyspace.durability = Durability::Disk;
                }
                self.faults = Faults {
                    crash: Some(ms(150)),
                    stop: self.faults.stop.and(Some(ms(300))),
                    partition: Some(ms(200)),
                    skew_ms_max: 0,
                    beyond_the_promise: false,
                    ..Faults::default()
                };
                (self.faults.down_max, self.faults.partition_max) = (ms(1500), ms(2000));
                self.settings.hint_age_max = ms(*random.pick(&[100, 1000]));
                self.settings.clock_drift_max = Duration::from_secs(1_000_000);
                self.documents.is_formed = false;
                let clients = &mut self.clients;
                clients.levels = vec![Level::Quorum, Level::Quorum, Level::Any, Level::All];
                (clients.sloppy_permille, clients.n_permille, clients.durability_permille) = (500, 0, 0);
                clients.read_permille = 300;
                clients.timeouts = vec![ms(300), ms(1000)];
            }
            Profile::Tombstones => {
                self.settings.settled_after = ms(*random.pick(&[50, 200]));
                self.settings.watermark_interval = ms(*random.pick(&[100, 400]));
                self.settings.exchange_interval = ms(*random.pick(&[200, 500]));
                self.settings.exchange_silent_after = ms(200);
                self.keys = random.between(3, 8);
                self.partitions = 1;
                clients.delete_permille = 400;
                clients.context_permille = 700;
                // A value has to be settled before it is deleted.
                clients.think_max = ms(*random.pick(&[100, 500, 1500]));
                self.faults.restore = Some(ms(600));
                self.faults.wipe = self.faults.wipe.and(Some(ms(1000)));
                self.faults.crash = Some(ms(300));
                self.faults.partition = Some(ms(400));
                (self.faults.partition_max, self.faults.down_max) = (ms(1500), ms(1000));
                clients.expiry_permille = *random.pick(&[0, 200]);
                self.faults.beyond_the_promise = false;
            }
            Profile::Calm => self.calm_down(),
            Profile::ForeignContexts => clients.foreign_permille = 200,
            Profile::ShortTimeouts => {
                clients.timeouts = vec![ms(3), ms(10), ms(30)];
                self.faults.partition = Some(ms(300));
            }
        }
    }

    /// Makes the document change often, and its rounds overlap.
    fn change_often(&mut self) {
        (self.nodes, self.datacenters, self.partitions) = (3, 1, 1);
        for keyspace in self.keyspaces.values_mut() {
            keyspace.replication = BTreeMap::from([(DatacenterId(0), 3)]);
        }
        let documents = &mut self.documents;
        (documents.is_formed, documents.keyspaces, documents.create_every) = (false, 40, ms(40));
        (documents.twice_permille, documents.rival_permille) = (800, 300);
        documents.timeouts = vec![ms(1000)];
        self.clients.operations = 60;
        self.clients.think_max = ms(200);
        (self.disks.sync_min, self.disks.sync_max) = (ms(10), ms(40));
        (self.network.loss_permille, self.network.slow_permille) = (150, 0);
        (self.network.latency_min, self.network.latency_max) =
            (Duration::from_micros(50), Duration::from_micros(200));
        self.faults = Faults { crash: Some(ms(80)), down_max: ms(2), ..Faults::default() };
        self.settings.round_timeout = ms(1000);
        self.settings.greeting_interval = ms(50);
        self.settings.exchange_interval = ms(10_000);
    }

    /// Takes away all faults, and all requests and limits that lead to refusals.
    fn calm_down(&mut self) {
        self.faults = Faults { down_max: ms(1), ..Faults::default() };
        // A disk that takes one batch at a time, however many wait, is overloaded by what the real committer joins; peers
        // that wait for it for half a second take its node for dead.
        (self.disks.joined_permille, self.disks.fail_permille) = (1000, 0);
        self.network.loss_permille = 0;
        self.network.slow_permille = 0;
        let usual = settings();
        self.settings =
            Settings { record_cache_bytes: self.settings.record_cache_bytes, siblings_max: 10_000, ..usual };
        // Whoever asks while the document changes may be told that it has; its client asks again, those here do not.
        self.documents.keyspaces = 0;
        let clients = &mut self.clients;
        (clients.loss_permille, clients.foreign_permille, clients.n_permille) = (0, 0, 0);
        clients.levels = vec![Level::Quorum, Level::One, Level::All, Level::EachQuorum];
        clients.timeouts = vec![ms(2000)];
    }

    fn set_conflict(&mut self, conflict: ConflictPolicy) {
        for keyspace in self.keyspaces.values_mut() {
            keyspace.conflict = conflict;
        }
    }
}

fn draw_keyspaces(random: &mut Random, datacenters: usize, nodes: usize) -> BTreeMap<KeyspaceId, Keyspace> {
    let count = random.between(1, 2);
    let draw_one = |index| {
        let name = format!("keyspace-{index}");
        (KeyspaceId(index), draw_keyspace(random, name, datacenters, nodes))
    };
    (1..=u32::try_from(count).expect("two")).map(draw_one).collect()
}

/// A keyspace of this name.
pub(crate) fn draw_keyspace(random: &mut Random, name: String, datacenters: usize, nodes: usize) -> Keyspace {
    let conflict = *random.pick(&[ConflictPolicy::Siblings, ConflictPolicy::LastWriteWins]);
    let durability = if random.chance(250) { Durability::Memory } else { Durability::Disk };
    let most = nodes / datacenters;
    let copies_of = |random: &mut Random| match random.chance(600) {
        true => 3.min(most),
        false => random.between(1, most.min(5)),
    };
    let mut replication = BTreeMap::from([(DatacenterId(0), copies_of(random))]);
    if datacenters == 2 {
        replication.insert(DatacenterId(1), copies_of(random));
    }
    let replication =
        replication.into_iter().map(|(name, count)| (name, count.try_into().expect("at most 5")));
    Keyspace { name, replication: replication.collect(), conflict, durability }
}

fn draw_clients(random: &mut Random, datacenters: usize, operations: usize) -> Clients {
    let quorums = vec![Level::Quorum];
    let mut mixed = vec![Level::Quorum, Level::Quorum, Level::One, Level::Two, Level::All, Level::Count(1)];
    mixed.extend([
        Level::Three,
        Level::Count(2),
        Level::Any,
        Level::LocalOne,
        Level::LocalQuorum,
        Level::EachQuorum,
    ]);
    let levels = match random.below(4) {
        0 | 1 => quorums,
        2 if datacenters == 2 => vec![Level::LocalQuorum, Level::EachQuorum, Level::Quorum],
        2 => vec![Level::Quorum, Level::One, Level::All],
        _ => mixed,
    };
    let repairs = match random.below(4) {
        0 => vec![None],
        1 => vec![Some(ReadRepair::Blocking)],
        2 => vec![None, Some(ReadRepair::Off), Some(ReadRepair::Background), Some(ReadRepair::Blocking)],
        _ => vec![Some(ReadRepair::Off)],
    };
    let timeouts = match random.below(3) {
        0 => vec![ms(2000)],
        1 => vec![ms(300), ms(1000)],
        _ => vec![ms(5), ms(50), ms(300), ms(1000)],
    };
    Clients {
        sessions: random.between(4, 8),
        operations,
        think_max: ms(*random.pick(&[1, 10, 40])),
        read_permille: *random.pick(&[300, 450, 600]),
        delete_permille: *random.pick(&[0, 100, 250]),
        context_permille: *random.pick(&[300, 700, 950]),
        foreign_permille: *random.pick(&[0, 0, 10]),
        retry_permille: *random.pick(&[0, 300, 900]),
        expiry_permille: *random.pick(&[0, 0, 0, 200]),
        nameless_permille: *random.pick(&[0, 0, 200]),
        n_permille: *random.pick(&[0, 0, 200]),
        durability_permille: *random.pick(&[0, 0, 200]),
        sloppy_permille: *random.pick(&[0, 0, 100, 500]),
        levels,
        repairs,
        timeouts,
        loss_permille: *random.pick(&[0, 5, 30]),
    }
}

fn draw_network(random: &mut Random) -> Network {
    let latency_min = Duration::from_micros(*random.pick(&[50, 200, 1000]));
    Network {
        latency_min,
        latency_max: latency_min * *random.pick(&[1, 2, 10]),
        slow_permille: *random.pick(&[0, 5, 30]),
        loss_permille: *random.pick(&[0, 0, 5, 30, 100]),
        duplicate_permille: *random.pick(&[0, 0, 20, 100]),
    }
}

fn draw_disks(random: &mut Random) -> Disks {
    let sync_min = Duration::from_micros(*random.pick(&[20, 500, 2000]));
    Disks {
        sync_min,
        sync_max: sync_min * *random.pick(&[1, 4, 20]),
        joined_permille: *random.pick(&[0, 500, 1000]),
        fail_permille: *random.pick(&[0, 0, 0, 5, 40]),
    }
}

fn draw_faults(random: &mut Random) -> Faults {
    let mut sometimes =
        |permille, longest_ms: &[u64]| random.chance(permille).then(|| ms(*random.pick(longest_ms)));
    let mut faults = Faults {
        crash: sometimes(500, &[200, 600, 2000]),
        stop: sometimes(250, &[300, 1000]),
        pause: sometimes(300, &[200, 800]),
        partition: sometimes(400, &[200, 600, 2000]),
        clock: sometimes(250, &[100, 500]),
        wipe: sometimes(200, &[500, 1500]),
        truncate: sometimes(150, &[300, 1000]),
        restore: sometimes(150, &[500, 1500]),
        rot: sometimes(200, &[200, 800]),
        unreadable: sometimes(120, &[300, 1000]),
        ..Faults::default()
    };
    faults.down_max = ms(*random.pick(&[20, 200, 1500]));
    faults.pause_max = ms(*random.pick(&[50, 400, 3000]));
    faults.partition_max = ms(*random.pick(&[100, 600, 2000]));
    faults.skew_ms_max = *random.pick(&[0, 50, 400, 20_000]);
    faults.beyond_the_promise = random.chance(60);
    faults
}

fn draw_documents(random: &mut Random) -> Documents {
    Documents {
        is_formed: random.chance(400),
        start_max: ms(*random.pick(&[0, 50, 500])),
        keyspaces: if random.chance(600) { random.between(1, 3) } else { 0 },
        create_every: ms(*random.pick(&[100, 500, 1500])),
        twice_permille: *random.pick(&[0, 300, 700]),
        rival_permille: *random.pick(&[0, 300]),
        timeouts: vec![ms(*random.pick(&[50, 300, 1000])), ms(2000)],
    }
}

/// The defaults, but for memory: a thousand starts have to be cheap.
fn settings() -> Settings {
    Settings { record_cache_bytes: 1 << 20, ..Settings::new(ContextKey::new(SECRET)) }
}

fn draw_settings(random: &mut Random, faults: &Faults) -> Settings {
    let rare =
        |random: &mut Random, usual: usize, small: usize| if random.chance(80) { small } else { usual };
    let usual = settings();
    let checks_drift = faults.skew_ms_max <= 400 || random.chance(200);
    Settings {
        read_retry_after: ms(*random.pick(&[10, 50])),
        hedge_window: *random.pick(&[2, 100]),
        forward_retry_after: ms(*random.pick(&[50, 250])),
        probe_interval: ms(*random.pick(&[150, 250])),
        suspicion: ms(*random.pick(&[300, 800])),
        peer_silent_after: ms(*random.pick(&[300, 1500])),
        greeting_interval: ms(*random.pick(&[50, 100])),
        greeting_interval_max: ms(*random.pick(&[200, 2000])),
        gossip_interval: ms(*random.pick(&[100, 1000])),
        exchange_interval: ms(*random.pick(&[500, 2000, 10_000])),
        exchange_silent_after: ms(*random.pick(&[200, 2000])),
        exchange_unsynced_max: rare(random, usual.exchange_unsynced_max, 1),
        scan_stretch_keys: rare(random, usual.scan_stretch_keys, 1),
        build_stretch_keys: rare(random, usual.build_stretch_keys, 1),
        scrub_interval: ms(*random.pick(&[2000, 20_000])),
        requests_max: rare(random, usual.requests_max, 3),
        unsynced_bytes_max: rare(random, usual.unsynced_bytes_max, 600),
        outcomes_max: rare(random, usual.outcomes_max, 4),
        siblings_max: rare(random, usual.siblings_max, 3),
        hints_per_peer_max: rare(random, usual.hints_per_peer_max, 2),
        hints_granted_max: rare(random, usual.hints_granted_max, 1),
        parked_max: rare(random, usual.parked_max, 2),
        changes_max: rare(random, usual.changes_max, 1),
        round_timeout: ms(*random.pick(&[100, 1000])),
        // A cache hides a rotten record until a restart; without one it is found by the next read.
        record_cache_bytes: *random.pick(&[0, 0, 512, 2048, 1 << 20]),
        clock_drift_max: if checks_drift { usual.clock_drift_max } else { Duration::from_secs(1_000_000) },
        ..usual
    }
}
