//! Faults: what strikes, whom and when.
//!
//! # The fault model
//!
//! - A **crash** loses what was not synced, or keeps some of it although nobody was told, and may tear the batch after.
//! - A **stop** in good order waits for the last sync.
//! - A **pause** lets inputs queue up, and then time has jumped.
//! - A **partition** cuts one node or several off, both ways or one way.
//! - **Clocks** are off, by more or less than nodes tolerate, and jump either way.
//! - **Disks** are wiped (a new store, readmitted by the administrator), lose or garble the end of their synced log, go
//!   back to older images, rot under their checksums, fail to read for a while, and refuse batches.
//!
//! Unless a run is drawn to go beyond the promises, synced data is damaged on one machine at a time: the next waits
//! until every copy of the last is whole again. A disk goes back in time only while its copies are whole, so that what
//! it forgets is exactly what it held.

use std::time::Duration;

use node::{Input, storage::CrashDamage};
use ring::StoreId;

use crate::{
    damage::DiskFault,
    formation::draw_skew,
    history::KeyId,
    world::{Event, World},
};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    Stop,
    Pause,
    Partition,
    Clock,
    Wipe,
    Truncate,
    Restore,
    Rot,
    Unreadable,
}

impl Fault {
    const ALL: [Fault; 10] = [
        Fault::Crash,
        Fault::Stop,
        Fault::Pause,
        Fault::Partition,
        Fault::Clock,
        Fault::Wipe,
        Fault::Truncate,
        Fault::Restore,
        Fault::Rot,
        Fault::Unreadable,
    ];

    fn name(self) -> &'static str {
        match self {
            Fault::Crash => "crash",
            Fault::Stop => "stop",
            Fault::Pause => "pause",
            Fault::Partition => "partition",
            Fault::Clock => "clock jump",
            Fault::Wipe => "wiped disk",
            Fault::Truncate => "damaged log",
            Fault::Restore => "restored disk",
            Fault::Rot => "rotten record",
            Fault::Unreadable => "unreadable disk",
        }
    }
}

impl World {
    /// Schedules the first fault of each kind that this run has.
    pub(crate) fn schedule_faults(&mut self) {
        for fault in Fault::ALL {
            self.schedule_fault(fault);
        }
    }

    fn schedule_fault(&mut self, fault: Fault) {
        let faults = &self.swarm.faults;
        let longest = match fault {
            Fault::Crash => faults.crash,
            Fault::Stop => faults.stop,
            Fault::Pause => faults.pause,
            Fault::Partition => faults.partition,
            Fault::Clock => faults.clock,
            Fault::Wipe => faults.wipe,
            Fault::Truncate => faults.truncate,
            Fault::Restore => faults.restore,
            Fault::Rot => faults.rot,
            Fault::Unreadable => faults.unreadable,
        };
        if let Some(longest) = longest {
            let wait = self.fault_random.duration(Duration::from_millis(1), longest);
            self.schedule.after(wait, Event::Fault(fault));
        }
    }

    /// A fault strikes, if it may.
    pub(crate) fn strike(&mut self, fault: Fault) {
        if self.is_quiet {
            return;
        }
        let host = self.fault_random.below(self.hosts.len());
        let struck = match fault {
            Fault::Crash => self.strike_crash(host),
            Fault::Stop => self.stop(host),
            Fault::Pause => self.strike_pause(host),
            Fault::Partition => self.strike_partition(),
            Fault::Clock => self.strike_clock(host),
            Fault::Wipe => self.may_damage() && self.strike_wipe(host),
            Fault::Truncate => self.may_damage() && self.strike_truncate(host),
            Fault::Restore => self.strike_restore(host),
            Fault::Rot => self.may_damage() && self.strike_rot(host),
            Fault::Unreadable => self.strike_unreadable(host),
        };
        if struck {
            self.counts.add(fault.name());
            self.hash(&[4, fault as u64, host as u64]);
        }
        self.schedule_fault(fault);
    }

    /// Whether synced data may be damaged now.
    fn may_damage(&self) -> bool {
        self.swarm.faults.beyond_the_promise || (0..self.hosts.len()).all(|host| self.has_recovered(host))
    }

    fn strike_crash(&mut self, host: usize) -> bool {
        if self.hosts[host].process.is_none() {
            return false;
        }
        self.crash_with(host, &DiskFault::None);
        true
    }

    /// The power goes, something happens to the disk, and later the machine starts again.
    fn crash_with(&mut self, host: usize, fault: &DiskFault) {
        let random = &mut self.fault_random;
        let pending = self.hosts[host].disk.pending();
        let damage = CrashDamage {
            batches_kept: if random.chance(500) { random.between(0, pending) } else { 0 },
            bytes_torn: if random.chance(500) { random.below(400) } else { 0 },
        };
        let down = random.duration(Duration::from_millis(1), self.swarm.faults.down_max);
        self.note_host(host, || format!("crashes: {damage:?}, {fault:?}"));
        self.crash(host, damage, fault);
        self.schedule.after(down, Event::Start { host });
    }

    /// Tells a node to stop in good order.
    pub(crate) fn stop(&mut self, host: usize) -> bool {
        let Some(process) = &mut self.hosts[host].process else { return false };
        if process.is_stopping || process.is_paused {
            return false;
        }
        self.note_host(host, || "is told to stop".to_owned());
        self.input(host, Input::Stop);
        self.turn(host);
        if let Some(process) = &mut self.hosts[host].process {
            process.is_stopping = true;
        }
        self.finish_stop(host);
        true
    }

    fn strike_pause(&mut self, host: usize) -> bool {
        let longest = self.swarm.faults.pause_max;
        let pause = self.fault_random.duration(Duration::from_millis(1), longest);
        self.pause(host, pause)
    }

    /// Lets a process stand still for so long. False if there is none, or if it does already.
    pub(crate) fn pause(&mut self, host: usize, pause: Duration) -> bool {
        let incarnation = self.hosts[host].incarnation;
        let Some(process) = &mut self.hosts[host].process else { return false };
        if process.is_paused {
            return false;
        }
        process.is_paused = true;
        self.note_host(host, || format!("stands still for {pause:?}"));
        self.schedule.after(pause, Event::Resume { host, incarnation });
        true
    }

    fn strike_partition(&mut self) -> bool {
        self.network.cut_somehow();
        let longest = self.swarm.faults.partition_max;
        let time = self.fault_random.duration(Duration::from_millis(1), longest);
        self.note(|| format!("the network is cut for {time:?}"));
        self.schedule.after(time, Event::Mend { generation: self.network.generation });
        true
    }

    fn strike_clock(&mut self, host: usize) -> bool {
        let skew_ms = draw_skew(&mut self.fault_random, self.swarm.faults.skew_ms_max);
        if self.swarm.faults.one_clock_alone && host > 0 {
            return false;
        }
        self.set_clock(host, skew_ms);
        self.note_host(host, || format!("has a clock that is off by {skew_ms} ms"));
        true
    }

    fn strike_wipe(&mut self, host: usize) -> bool {
        let store = StoreId(self.fault_random.bits());
        self.crash_with(host, &DiskFault::Wipe(store));
        true
    }

    fn strike_truncate(&mut self, host: usize) -> bool {
        let log_bytes = self.hosts[host].disk.log_bytes();
        if !self.copies_are_whole(host) || log_bytes == 0 {
            return false;
        }
        let random = &mut self.fault_random;
        // Mostly the last few batches, as a disk that lies about syncs would lose; sometimes anything.
        let reach = if random.chance(850) { log_bytes.min(600) } else { log_bytes };
        let back = random.between(1, reach);
        let fault = match random.chance(500) {
            true => DiskFault::Truncate(back),
            false => DiskFault::Flip {
                byte: log_bytes - back,
                bit: u8::try_from(random.below(8)).expect("below 8"),
            },
        };
        self.crash_with(host, &fault);
        true
    }

    /// Takes an image of a disk, or puts the one back that was taken before.
    fn strike_restore(&mut self, host: usize) -> bool {
        match self.hosts[host].image.take() {
            Some(image) if self.may_damage() && self.copies_are_whole(host) => {
                self.crash_with(host, &DiskFault::Restore(image));
                true
            }
            Some(image) => {
                self.hosts[host].image = Some(image);
                false
            }
            None => {
                self.hosts[host].image = Some(self.hosts[host].disk.image());
                false
            }
        }
    }

    fn strike_rot(&mut self, host: usize) -> bool {
        let random = &mut self.fault_random;
        let key = KeyId(random.below(self.history.keys.len()));
        let (byte, bit) = (random.below(100_000), u8::try_from(random.below(8)).expect("below 8"));
        let struck = self.rot(host, key, byte, bit);
        if struck {
            self.note_host(host, || format!("has a rotten record of {key:?}"));
        }
        struck
    }

    /// A device fails to read for a while, and forgets nothing.
    fn strike_unreadable(&mut self, host: usize) -> bool {
        if self.hosts[host].process.is_none() {
            return false;
        }
        let time = self.fault_random.duration(Duration::from_millis(1), self.swarm.faults.pause_max);
        self.hosts[host].disk.fail_reads(true);
        self.note_host(host, || format!("cannot read its disk for {time:?}"));
        self.schedule.after(time, Event::ReadsRecover { host });
        true
    }
}
