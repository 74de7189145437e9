//! `import`: each line of a file becomes a record.
//!
//! A reader thread cuts the file into lines and parses them. Records of the same key go to the same worker, in the
//! order of the file, so that the last of them counts. Each worker reads the key first: what is there already is left
//! alone, which makes a second run change nothing; what is different is replaced with the context of that read, which
//! leaves no sibling. A write in doubt is sent again under its id.
//!
//! When anything fails, no further line is begun, those under way are finished, and the error names the line. What was
//! stored is skipped by the next run.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use client::{Context, KeyspaceHandle, Level};
use ring::ConflictPolicy;
use serde::Serialize;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::interval,
};

use crate::{
    arguments::{Global, Import},
    failure::{CommandError, Exit},
    interrupt::Interrupt,
    lines::{Counts, Line, read_in_thread},
    output::{Output, now_unix_ms},
    progress::Progress,
    record::{Record, RecordValue},
    session::Session,
};

/// Bytes of records that were handed out, in KiB: what bounds memory where records are large.
const KIB_UNDER_WAY_MAX: u32 = 64 << 10;
/// Records that wait for one worker. More would only use memory.
const QUEUE_MAX: usize = 2;
/// How long one request may take unless told otherwise: an import that runs for minutes should not stop because a
/// node is restarted.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the progress is shown.
const SHOW_INTERVAL: Duration = Duration::from_millis(200);

/// What `import` prints.
#[derive(Serialize)]
struct Summary {
    lines: u64,
    written: u64,
    skipped: u64,
    expired: u64,
    bad: u64,
    seconds: f64,
}

/// A line that was handed out. Its room is given back when it is stored.
struct Job {
    line: Line,
    _room: OwnedSemaphorePermit,
}

/// How a worker ended: with the line at which it failed, and why.
type WorkerEnd = Result<(), (u64, CommandError)>;

/// What every worker needs.
#[derive(Clone)]
struct Target {
    keyspace: KeyspaceHandle,
    level: Option<Level>,
    timeout: Duration,
    has_siblings: bool,
    counts: Arc<Counts>,
}

/// Imports a file.
pub(crate) async fn run(
    import: Import,
    global: &Global,
    output: &Output,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let (input, size_bytes) = open(&import.file)?;
    let session = interrupt.may_end(Session::open(global)).await?;
    let keyspace = session.keyspace()?;
    let document = session.client.refresh(session.timeout()).await;
    let Some((_, definition)) = document.keyspace_named(keyspace.name()) else {
        return Err(CommandError::NoSuchKeyspace(keyspace.name().to_owned()));
    };
    let counts = Arc::new(Counts::default());
    let target = Target {
        keyspace,
        level: import.w,
        timeout: session.timeout_or(REQUEST_TIMEOUT),
        has_siblings: definition.conflict == ConflictPolicy::Siblings,
        counts: counts.clone(),
    };
    let mut lines = read_in_thread(input, &import, counts.clone());
    let mut progress = Progress::begin("imported", size_bytes);
    let ended = distribute(&mut lines, &target, import.concurrency, interrupt, &mut progress).await;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let summary = Summary {
        lines: count(&counts.lines),
        written: count(&counts.written),
        skipped: count(&counts.skipped),
        expired: count(&counts.expired),
        bad: count(&counts.bad),
        seconds: progress.elapsed().as_secs_f64(),
    };
    progress.end(summary.written + summary.skipped, &remark(&counts));
    name_bad(&counts);
    if output.is_json() {
        output.print(&summary, |_| {})?;
    }
    session.close().await;
    ended.map(|()| Exit::Done)
}

/// Names the first of the bad lines that were skipped.
fn name_bad(counts: &Counts) {
    let named = counts.bad_named.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = named.iter().fold(String::new(), |text, line| text + line + "\n");
    let bad = counts.bad.load(Ordering::Relaxed);
    match bad - named.len() as u64 {
        0 => {}
        more => text.push_str(&format!("and {more} more bad lines\n")),
    }
    // Where stderr is closed there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// What a progress says beside the number of records.
fn remark(counts: &Counts) -> String {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut remark =
        format!(": {} written, {} there already", count(&counts.written), count(&counts.skipped));
    for (counter, what) in [(&counts.expired, "expired"), (&counts.bad, "bad lines")] {
        if count(counter) > 0 {
            remark.push_str(&format!(", {} {what}", count(counter)));
        }
    }
    remark
}

/// The file, and its size if it has one.
fn open(path: &PathBuf) -> Result<(Box<dyn Read + Send>, Option<u64>), CommandError> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(io::stdin()), None));
    }
    let failed = |error| CommandError::File { path: path.clone(), error };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    // Opening one is no error, and reading it is.
    if metadata.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Hands each record to the worker of its key, until the file ends or something fails; then waits for the workers.
async fn distribute(
    lines: &mut mpsc::Receiver<Result<Line, CommandError>>,
    target: &Target,
    concurrency: u16,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<(), CommandError> {
    let mut workers = JoinSet::new();
    let mut queues = Vec::new();
    for _ in 0..concurrency {
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        queues.push(queue);
        workers.spawn(work(target.clone(), queued));
    }
    let room = Arc::new(Semaphore::new(KIB_UNDER_WAY_MAX as usize));
    let mut ticks = interval(SHOW_INTERVAL);
    let mut ended = Ok(());
    loop {
        let line = tokio::select! {
            biased;
            () = interrupt.heard() => {
                ended = Err(CommandError::Interrupted);
                break;
            }
            _ = ticks.tick() => {
                show(progress, &target.counts);
                continue;
            }
            line = lines.recv() => line,
        };
        match line {
            Some(Ok(line)) => {
                let queue = &queues[worker_of(&line.record, queues.len())];
                let handed_out = tokio::select! {
                    handed_out = hand_out(line, queue, &room) => handed_out,
                    () = interrupt.heard() => continue,
                };
                // A worker that ended has failed, and says so below.
                if !handed_out || target.counts.is_stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
            Some(Err(error)) => {
                ended = Err(error);
                break;
            }
            None => break,
        }
    }
    // What stands before a bad line is stored; whoever interrupts wants an end.
    if matches!(ended, Err(CommandError::Interrupted)) {
        target.counts.is_stopped.store(true, Ordering::Relaxed);
    }
    // The workers end when their queues do, and the reader when nobody takes what it reads.
    drop(queues);
    lines.close();
    let finished = finish(workers, || show(progress, &target.counts)).await;
    finished.and(ended)
}

/// Waits for the workers. Of several failures the one that comes first in the file is reported.
async fn finish(mut workers: JoinSet<WorkerEnd>, mut show: impl FnMut()) -> Result<(), CommandError> {
    let mut ticks = interval(SHOW_INTERVAL);
    let mut failed: Option<(u64, CommandError)> = None;
    loop {
        tokio::select! {
            worker = workers.join_next() => match worker {
                None => break,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err((line, error)))) => {
                    if failed.as_ref().is_none_or(|(first, _)| line < *first) {
                        failed = Some((line, error));
                    }
                }
                // Only a panic ends a task otherwise, and a panic is a bug that must not hide here.
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            },
            _ = ticks.tick() => show(),
        }
    }
    failed.map_or(Ok(()), |(line, cause)| Err(CommandError::Line { line, cause: Box::new(cause) }))
}

/// Hands a line to its worker when there is room. False if the worker has ended.
async fn hand_out(line: Line, queue: &mpsc::Sender<Job>, room: &Arc<Semaphore>) -> bool {
    let room = room.clone().acquire_many_owned(line.kib).await.expect("nobody closes it");
    queue.send(Job { line, _room: room }).await.is_ok()
}

fn show(progress: &mut Progress, counts: &Counts) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let done = count(&counts.written) + count(&counts.skipped);
    progress.show(count(&counts.bytes), done, &remark(counts));
}

/// The same worker for the same key, so that its lines are stored in the order of the file.
fn worker_of(record: &Record, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    record.key.hash(&mut hasher);
    let index = hasher.finish() % workers as u64;
    usize::try_from(index).expect("below a usize")
}

/// Stores what is queued, in order, until something fails.
async fn work(target: Target, mut queued: mpsc::Receiver<Job>) -> WorkerEnd {
    while let Some(Job { line, _room }) = queued.recv().await {
        if target.counts.is_stopped.load(Ordering::Relaxed) {
            break;
        }
        if let Err(error) = target.store(&line.record).await {
            target.counts.is_stopped.store(true, Ordering::Relaxed);
            return Err((line.number, error));
        }
    }
    Ok(())
}

impl Target {
    /// Makes the key hold exactly this record, if it does not already.
    async fn store(&self, record: &Record) -> Result<(), CommandError> {
        let name = self.keyspace.name();
        let now_unix_ms = now_unix_ms();
        let is_alive =
            |value: &&RecordValue| value.expires_unix_ms.is_none_or(|expires| expires > now_unix_ms);
        let values: Vec<&RecordValue> = record.values.iter().filter(is_alive).collect();
        if values.is_empty() {
            self.counts.expired.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        if values.len() > 1 && !self.has_siblings {
            return Err(CommandError::SiblingsInLastWriteWins);
        }
        let get = self.keyspace.get(record.key.clone()).timeout(self.timeout);
        let found = get.send().await.map_err(|failure| CommandError::read(failure, name))?;
        let held = Record::of(record.key.clone(), &found.values);
        if held.values.iter().eq(values.iter().copied()) {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        // The first replaces what is there; the others stand beside it. The newest come first when they are read.
        let mut context = Some(found.context);
        for value in values {
            self.put(record, value, context.take()).await?;
        }
        self.counts.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn put(
        &self,
        record: &Record,
        value: &RecordValue,
        context: Option<Context>,
    ) -> Result<(), CommandError> {
        let put = self.keyspace.put(record.key.clone(), value.bytes.clone());
        let mut put = put.timeout(self.timeout).retry_in_doubt(true);
        if let Some(context) = context {
            put = put.context(context);
        }
        if let Some(level) = self.level {
            put = put.w(level);
        }
        if let Some(unix_ms) = value.expires_unix_ms {
            put = put.expires_unix_ms(unix_ms);
        }
        let written = put.send().await;
        written.map(|_| ()).map_err(|failure| CommandError::write(failure, self.keyspace.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_worker() {
        let record = |key: &str| Record::parse(format!("{{\"id\":\"{key}\"}}").as_bytes(), "id").unwrap();
        let workers: Vec<_> = (0..100).map(|index| worker_of(&record(&index.to_string()), 8)).collect();
        assert!((0..8).all(|worker| workers.contains(&worker)));
        assert_eq!(worker_of(&record("a"), 8), worker_of(&record("a"), 8));
    }
}
