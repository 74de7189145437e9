//! One simulated machine: a disk, a clock, and at times a process that runs a node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use antientropy::version::UnixMillis;
use node::{Input, Node, Now, storage::MemoryEngine};
use ring::{ClusterDocument, DatacenterId, NodeId};

use crate::schedule::Moment;

/// A machine.
pub(crate) struct Host {
    pub(crate) node: NodeId,
    pub(crate) datacenter: DatacenterId,
    /// Outlives the process.
    pub(crate) disk: MemoryEngine,
    pub(crate) process: Option<Process>,
    /// Counts processes; the present one's number, or that of the last.
    pub(crate) incarnation: u32,
    /// The highest incarnation of each host that this process has heard: older connections are closed.
    pub(crate) heard: Vec<u32>,
    /// How far its wall clock is off.
    pub(crate) skew_ms: i64,
    /// An older image of the disk, to be restored.
    pub(crate) image: Option<MemoryEngine>,
    /// Synced data was damaged at some time.
    pub(crate) is_damaged: bool,
    /// The present store went back in time at some time.
    pub(crate) went_back: bool,
    /// A process of the present store could not read what the ones before it had promised, and knows no more of it than one
    /// whose store went back.
    pub(crate) has_forgotten_promises: bool,
    /// The document that its process was last seen to have.
    pub(crate) document: Option<Arc<ClusterDocument>>,
}

/// A running process.
pub(crate) struct Process {
    pub(crate) node: Node<MemoryEngine>,
    pub(crate) started: Moment,
    /// What arrived since the last turn.
    pub(crate) inbox: Vec<Input>,
    pub(crate) is_turn_due: bool,
    pub(crate) is_sync_under_way: bool,
    /// The earliest wake-up that is scheduled.
    pub(crate) wake_at: Moment,
    /// Whether it stands still.
    pub(crate) is_paused: bool,
    /// Whether it was told to stop in good order.
    pub(crate) is_stopping: bool,
    /// Whether the inbox says that a batch failed.
    pub(crate) has_failure: bool,
    /// The peers whose welcome of this process has arrived.
    pub(crate) welcomed: BTreeSet<NodeId>,
}

impl Host {
    pub(crate) fn new(node: NodeId, datacenter: DatacenterId, disk: MemoryEngine, hosts: usize) -> Host {
        Host {
            node,
            datacenter,
            disk,
            process: None,
            incarnation: 0,
            heard: vec![0; hosts],
            skew_ms: 0,
            image: None,
            is_damaged: false,
            went_back: false,
            has_forgotten_promises: false,
            document: None,
        }
    }

    /// What the machine's clocks say at a true moment. The monotonic one begins with the process.
    pub(crate) fn now(&self, moment: Moment) -> Now {
        let started = self.process.as_ref().map_or(moment, |process| process.started);
        let wall = moment.wall_ms().saturating_add_signed(self.skew_ms);
        Now { monotonic: moment.since(started), wall: UnixMillis(wall) }
    }

    /// Starts a process with the node that `open` makes.
    pub(crate) fn start(&mut self, now: Moment, open: impl FnOnce(Now) -> Node<MemoryEngine>) {
        self.incarnation += 1;
        self.heard.fill(0);
        let monotonic = Duration::ZERO;
        let node = open(Now { monotonic, ..self.now(now) });
        self.has_forgotten_promises |= !node.knows_its_promises();
        self.process = Some(Process {
            node,
            started: now,
            inbox: Vec::new(),
            is_turn_due: false,
            is_sync_under_way: false,
            wake_at: Moment::NEVER,
            is_paused: false,
            is_stopping: false,
            has_failure: false,
            welcomed: BTreeSet::new(),
        });
    }

    /// Whether a message from a process reaches the present one: on a connection that both still hold.
    pub(crate) fn accepts(&mut self, from: usize, from_incarnation: u32, to_incarnation: u32) -> bool {
        if to_incarnation != self.incarnation || from_incarnation < self.heard[from] {
            return false;
        }
        self.heard[from] = from_incarnation;
        true
    }
}

impl Process {
    /// The true moment of a deadline of the process: the first whole microsecond that is not before it.
    pub(crate) fn moment(&self, deadline: Duration) -> Moment {
        self.started.after(deadline + Duration::from_nanos(999))
    }
}
