//! The committer: one thread that writes batches in their order, joins those that wait into one write and one sync, and
//! reports.
//!
//! Whoever submits never waits: a queue that is full refuses. Nor does the committer wait to see whether more comes; what
//! arrives while one sync is under way goes with the next, so that a sync carries the more the slower it is. But batches
//! that nobody waits for, those of writes that are acknowledged from memory, wait a few milliseconds for company.
//!
//! **Refused** is a batch of which nothing was written: the file system has too little room or is read-only, or a key is
//! longer than the engine can store. With it go all that were handed over
//! before its refusal was heard of; later ones may be taken.
//!
//! **Failed** is the end: a write or a sync failed, or the engine came across damage. What was written and not synced is
//! in doubt, and the engine takes nothing more; the process has to end, and the next start finds out.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use thiserror::Error;

use super::{
    DiskOptions, Open,
    ahead::Ahead,
    counted::{CommitterCounters, Counted},
    engine::{SyncError, Writer},
    link::LINK_KEY,
    reaper::Reaper,
};
use crate::storage::{Batch, Sequence};

/// Bytes of batches that go into one sync. A queue that has grown long is worked off in several, so that its head is
/// reported before its tail is written.
const JOINED_BYTES_MAX: usize = 8 << 20;
/// The longest key that the engine can store.
const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// How long batches that nobody waits for are kept for others to join. More syncs less often; less loses less of what was
/// acknowledged from memory when the machine fails.
const COMPANY_WAIT: Duration = Duration::from_millis(10);
/// How old what is known of the file system's free space may be.
const ROOM_AGE_MAX: Duration = Duration::from_millis(10);
/// How often it is looked whether an engine that is behind with its tables has caught up.
const BEHIND_WAIT: Duration = Duration::from_millis(2);
/// How often bytes on disk are counted.
const USAGE_INTERVAL: Duration = Duration::from_secs(1);

/// What became of batches.
#[derive(Debug)]
pub enum CommitEvent {
    /// The batch with this number is durable, and so are all before it that were not refused.
    Committed(Sequence),
    /// Nothing of the batch with this number was applied, nor of any that was handed over after it. Nothing more is
    /// committed until [`CommitterHandle::resume`]: a batch that was made in the belief that those before it would be
    /// taken must not be taken without them.
    Refused(Sequence, CommitRefusal),
    /// Nothing more will be taken, and what was not reported is in doubt. The process has to end. Said once, last.
    Failed(CommitFailure),
}

/// Why a batch was not taken. Later ones may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommitRefusal {
    /// The file system is too full.
    #[error("{free_bytes} bytes are free on the store's file system, and {needed_bytes} have to be")]
    NoSpace {
        /// What is free.
        free_bytes: u64,
        /// What would have to be.
        needed_bytes: u64,
    },
    /// The file system is mounted read-only.
    #[error("the store's file system is read-only")]
    ReadOnly,
    /// A key is longer than the engine can store.
    #[error("a key of {key_bytes} bytes is longer than {limit_bytes}")]
    KeyTooLong {
        /// Its length.
        key_bytes: usize,
        /// The longest.
        limit_bytes: usize,
    },
}

/// Why the committer ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CommitFailure {
    /// A write failed half-way.
    #[error("a write to the store failed: {0}")]
    Write(#[source] fjall::Error),
    /// A sync failed: what was written may never have reached the disk.
    #[error("a sync of the store failed: {0}")]
    Sync(#[source] io::Error),
    /// The engine gave up on its own: it found its files damaged, or failed to write a table.
    #[error("the engine has given up on the store: a table is damaged or could not be written")]
    Poisoned,
    /// The committer's thread panicked: a bug.
    #[error("the committer panicked")]
    Panicked,
}

impl CommitFailure {
    fn of_engine(error: fjall::Error) -> CommitFailure {
        match error {
            fjall::Error::Poisoned => CommitFailure::Poisoned,
            error => CommitFailure::Write(error),
        }
    }
}

/// Why a batch could not be handed over. Nothing of it was or will be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Too much waits already. Later batches may be taken.
    #[error("{batches} batches of {bytes} bytes wait for the disk")]
    QueueFull {
        /// Batches that wait.
        batches: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The committer has ended; it has said why.
    #[error("the committer has ended")]
    Ended,
}

/// A committer that is not running yet.
pub struct Committer {
    open: Arc<Open>,
    writer: Writer,
    free_bytes_min: u64,
    shared: Arc<Shared>,
}

/// A running committer. Dropped, it stops as by [`CommitterHandle::stop`].
pub struct CommitterHandle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the committer's thread and its handle share.
struct Shared {
    queue: Mutex<Queue>,
    /// The queue has something, or is to close.
    ready: Condvar,
    queue_bytes_max: usize,
    queue_batches_max: usize,
    counted: Counted,
}

struct Queue {
    batches: VecDeque<Batch>,
    /// Bytes and number of what waits or is being written.
    bytes: usize,
    count: usize,
    last: Sequence,
    phase: Phase,
    /// When the first of them is to be committed, if not at once.
    due: Option<Instant>,
    /// A batch was refused, and whoever hands them over has not heard of it yet.
    is_refusing: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Takes nothing more, and ends when it is empty.
    Closing,
    Ended,
}

impl Committer {
    pub(super) fn new(open: Arc<Open>, writer: Writer, options: &DiskOptions) -> Committer {
        let queue = Queue {
            batches: VecDeque::new(),
            bytes: 0,
            count: 0,
            last: writer.sequence(),
            phase: Phase::Open,
            due: None,
            is_refusing: false,
        };
        let shared = Shared {
            queue: Mutex::new(queue),
            ready: Condvar::new(),
            queue_bytes_max: options.queue_bytes_max,
            queue_batches_max: options.queue_batches_max,
            counted: Counted::default(),
        };
        Committer { open, writer, free_bytes_min: options.free_bytes_min, shared: Arc::new(shared) }
    }

    /// Starts the committer's thread, which calls `on_event`: that must not block, for nothing is committed meanwhile.
    ///
    /// # Panics
    ///
    /// If the system has no thread left.
    pub fn start(self, on_event: impl Fn(CommitEvent) + Send + 'static) -> CommitterHandle {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name("committer".to_owned()).spawn(move || {
            let shared = Arc::clone(&self.shared);
            let ahead = Ahead::new(&self.open.directory.engine());
            let mut thread = CommitThread {
                committer: self,
                reaper: Reaper::start(),
                on_event: &on_event,
                usage_at: None,
                room: None,
                ahead,
            };
            let ended = catch_unwind(AssertUnwindSafe(|| thread.run()));
            // Before it is opened again, which may be as soon as the thread has been waited for.
            if let Ok(Err(CommitFailure::Poisoned)) = ended {
                thread.committer.open.suspect();
            }
            drop(thread);
            shared.end();
            if let Err(failure) = ended.unwrap_or(Err(CommitFailure::Panicked)) {
                on_event(CommitEvent::Failed(failure));
            }
        });
        CommitterHandle { shared, thread: Some(thread.expect("a thread can be started")) }
    }
}

impl CommitterHandle {
    /// Hands over a batch. Never waits.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] if it was not taken. Nothing of it will be applied.
    ///
    /// # Panics
    ///
    /// If its sequence is not greater than that of every batch before it, or if it has a key that is this module's own.
    pub fn submit(&self, batch: Batch) -> Result<(), SubmitError> {
        self.enqueue(batch, None)
    }

    /// Hands over a batch that nobody waits for: it is committed within some milliseconds, and may be joined until then.
    ///
    /// # Errors
    ///
    /// As [`CommitterHandle::submit`].
    ///
    /// # Panics
    ///
    /// As [`CommitterHandle::submit`].
    pub fn submit_unhurried(&self, batch: Batch) -> Result<(), SubmitError> {
        self.enqueue(batch, Some(Instant::now() + COMPANY_WAIT))
    }

    /// Whoever hands over batches has heard that one was refused. Those that it has handed over since are dropped.
    pub fn resume(&self) {
        let mut queue = self.shared.lock();
        let dropped = std::mem::take(&mut queue.batches);
        queue.count -= dropped.len();
        queue.bytes -= dropped.iter().map(bytes_of).sum::<usize>();
        queue.is_refusing = false;
    }

    /// Somebody waits for what was handed over.
    pub fn hurry(&self) {
        let mut queue = self.shared.lock();
        if queue.due.take().is_some() {
            drop(queue);
            self.shared.ready.notify_one();
        }
    }

    fn enqueue(&self, batch: Batch, due: Option<Instant>) -> Result<(), SubmitError> {
        let bytes = bytes_of(&batch);
        assert!(batch.changes.iter().all(|change| change.key != LINK_KEY), "the core has no such key");
        let mut queue = self.shared.lock();
        assert!(batch.sequence > queue.last, "{:?} was handed over after {:?}", batch.sequence, queue.last);
        if queue.phase != Phase::Open {
            return Err(SubmitError::Ended);
        }
        let is_over = queue.bytes + bytes > self.shared.queue_bytes_max && queue.count > 0;
        if is_over || queue.count >= self.shared.queue_batches_max {
            self.shared.counted.refused();
            return Err(SubmitError::QueueFull { batches: queue.count, bytes: queue.bytes });
        }
        queue.last = batch.sequence;
        queue.bytes += bytes;
        queue.count += 1;
        // The first batch's time counts, unless one of them cannot wait.
        let is_sooner = queue.batches.is_empty() || (queue.due.is_some() && due.is_none());
        if is_sooner {
            queue.due = due;
        }
        queue.batches.push_back(batch);
        drop(queue);
        if is_sooner {
            self.shared.ready.notify_one();
        }
        Ok(())
    }

    /// Takes nothing more, commits what waits, reports it, and ends the thread.
    pub fn stop(mut self) {
        self.close();
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> CommitterCounters {
        let (queued_batches, queued_bytes) = {
            let queue = self.shared.lock();
            (queue.count as u64, queue.bytes as u64)
        };
        self.shared.counted.counters(queued_batches, queued_bytes)
    }

    fn close(&mut self) {
        let mut queue = self.shared.lock();
        if queue.phase == Phase::Open {
            queue.phase = Phase::Closing;
        }
        drop(queue);
        self.shared.ready.notify_one();
        if let Some(thread) = self.thread.take() {
            // Its panics were caught and reported.
            let _ = thread.join();
        }
    }
}

impl Drop for CommitterHandle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// A panic elsewhere has not left the queue half-changed: nothing that panics happens while it is held.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for batches, and takes as many as go into one sync. None when there will be no more.
    fn take(&self) -> Option<Vec<Batch>> {
        let mut queue = self.lock();
        loop {
            let is_open = queue.phase == Phase::Open;
            if queue.batches.is_empty() || queue.is_refusing {
                if !is_open {
                    return None;
                }
                queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let wait = queue.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
            if wait.is_zero() || !is_open || queue.bytes >= JOINED_BYTES_MAX {
                break;
            }
            let waited = self.ready.wait_timeout(queue, wait);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut taken = Vec::with_capacity(queue.batches.len());
        let mut bytes = 0;
        while bytes < JOINED_BYTES_MAX
            && let Some(batch) = queue.batches.pop_front()
        {
            bytes += bytes_of(&batch);
            taken.push(batch);
        }
        Some(taken)
    }

    /// So many batches do not wait any more.
    fn done(&self, batches: usize, bytes: usize) {
        let mut queue = self.lock();
        queue.count -= batches;
        queue.bytes -= bytes;
    }

    fn end(&self) {
        let mut queue = self.lock();
        queue.phase = Phase::Ended;
        queue.batches.clear();
        (queue.count, queue.bytes) = (0, 0);
    }
}

/// What the committer's thread has.
struct CommitThread<'a> {
    reaper: Reaper,
    committer: Committer,
    on_event: &'a dyn Fn(CommitEvent),
    /// When bytes on disk were last counted.
    usage_at: Option<Instant>,
    /// What was last found, and when.
    room: Option<(Instant, Room)>,
    ahead: Ahead,
}

impl CommitThread<'_> {
    fn run(&mut self) -> Result<(), CommitFailure> {
        while let Some(batches) = self.committer.shared.take() {
            let (count, bytes) = (batches.len(), batches.iter().map(bytes_of).sum());
            self.commit(batches)?;
            self.reaper.note(self.committer.open.engine.memtables());
            self.committer.shared.done(count, bytes);
            self.count_usage();
        }
        Ok(())
    }

    /// Writes batches up to the first that is to be refused, syncs them all, and reports.
    fn commit(&mut self, mut batches: Vec<Batch>) -> Result<(), CommitFailure> {
        let Committer { open, free_bytes_min, writer, .. } = &self.committer;
        let known = self.room.take().filter(|(at, _)| at.elapsed() < ROOM_AGE_MAX);
        let (looked_at, mut room) =
            known.unwrap_or_else(|| (Instant::now(), Room::look(open.directory.path(), *free_bytes_min)));
        // Asked each time: once the engine has been given a batch that it cannot write, it has to be restarted.
        room.is_read_only |= writer.is_read_only();
        let refused = batches.iter().enumerate().find_map(|(at, batch)| {
            let refusal = fits(batch).and_then(|()| room.take(bytes_of(batch) as u64)).err()?;
            Some((at, batch.sequence, refusal))
        });
        self.room = Some((looked_at, room));
        let Some((at, sequence, refusal)) = refused else { return self.write(batches) };
        batches.drain(at..).for_each(|_| self.committer.shared.counted.refused());
        self.write(batches)?;
        self.committer.shared.lock().is_refusing = true;
        (self.on_event)(CommitEvent::Refused(sequence, refusal));
        Ok(())
    }

    /// Writes batches that were not refused, syncs them, and reports.
    fn write(&mut self, batches: Vec<Batch>) -> Result<(), CommitFailure> {
        if batches.is_empty() {
            return Ok(());
        }
        let Committer { open, writer, shared, .. } = &mut self.committer;
        let counted = &shared.counted;
        // The engine itself would hold the write up, and not notice that it has failed meanwhile.
        while open.engine.is_behind() {
            open.engine.check().map_err(CommitFailure::of_engine)?;
            thread::sleep(BEHIND_WAIT);
        }
        let (mut changes_written, mut bytes_written) = (0, 0);
        for batch in &batches {
            let (changes, bytes) = (batch.changes.len(), bytes_of(batch));
            counted.written(changes, bytes);
            changes_written += changes as u64 + 1;
            bytes_written += bytes as u64;
        }
        let started = Instant::now();
        open.engine.write(writer, batches).map_err(CommitFailure::of_engine)?;
        let written = Instant::now();
        open.engine.sync(writer).map_err(|error| match error {
            SyncError::Engine(error) => CommitFailure::of_engine(error),
            SyncError::System(error) => CommitFailure::Sync(error),
        })?;
        counted.synced(written - started, written.elapsed());
        counted.holds(open.engine.memory_bytes());
        (self.on_event)(CommitEvent::Committed(writer.sequence()));
        self.ahead.synced(changes_written, bytes_written);
        Ok(())
    }

    /// Counts bytes on disk, now and then. Here, because the engine waits for a sync to answer that.
    fn count_usage(&mut self) {
        if self.usage_at.is_some_and(|at| at.elapsed() < USAGE_INTERVAL) {
            return;
        }
        self.usage_at = Some(Instant::now());
        if let Ok((journal, tables)) = self.committer.open.engine.disk_bytes() {
            self.committer.shared.counted.used(journal, tables);
        }
    }
}

/// Room on the file system, as it was a few milliseconds ago, less what was written since.
struct Room {
    free_bytes: u64,
    needed_bytes: u64,
    is_read_only: bool,
}

impl Room {
    fn look(directory: &Path, needed_bytes: u64) -> Room {
        match rustix::fs::statvfs(directory) {
            Ok(found) => Room {
                free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
                needed_bytes,
                is_read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            },
            // Whoever cannot say so is not full: if it is, the write will fail.
            Err(_) => Room { free_bytes: u64::MAX, needed_bytes, is_read_only: false },
        }
    }

    /// Takes room for a batch.
    fn take(&mut self, bytes: u64) -> Result<(), CommitRefusal> {
        if self.is_read_only {
            return Err(CommitRefusal::ReadOnly);
        }
        let needed_bytes = self.needed_bytes.saturating_add(bytes);
        if self.free_bytes < needed_bytes {
            return Err(CommitRefusal::NoSpace { free_bytes: self.free_bytes, needed_bytes });
        }
        self.free_bytes -= bytes;
        Ok(())
    }
}

/// Whether the engine can store what is in a batch.
fn fits(batch: &Batch) -> Result<(), CommitRefusal> {
    let longest = batch.changes.iter().map(|change| change.key.len()).max().unwrap_or(0);
    if longest > KEY_BYTES_MAX {
        return Err(CommitRefusal::KeyTooLong { key_bytes: longest, limit_bytes: KEY_BYTES_MAX });
    }
    Ok(())
}

fn bytes_of(batch: &Batch) -> usize {
    batch.changes.iter().map(|change| change.key.len() + change.value.as_ref().map_or(0, Bytes::len)).sum()
}
