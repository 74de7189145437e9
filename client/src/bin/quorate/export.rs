//! `export`: every record of a keyspace becomes a line.
//!
//! Keys are listed partition by partition and read at the level, many at once; lines come in the order of the keys'
//! tokens. A file appears under its name when the export is complete: one that was interrupted cannot be taken for a
//! whole one.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use client::{Found, GetBuilder, KeyspaceHandle, ReadFailure};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::{
    arguments::{Export, Global},
    failure::{CommandError, Exit},
    output::Output,
    progress::Progress,
    record::Record,
    session::Session,
};

/// How long one request may take unless told otherwise: an export that runs for minutes should not stop because a
/// node is restarted.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What `export` prints if the records go to a file.
#[derive(Serialize)]
struct Summary<'a> {
    file: &'a Path,
    records: u64,
    siblings: u64,
    seconds: f64,
}

/// Where the lines go.
enum Sink {
    Stdout(BufWriter<io::Stdout>),
    File { partial: Partial, path: PathBuf, file: BufWriter<File> },
}

/// A file that is removed unless it is completed.
struct Partial {
    path: PathBuf,
    is_complete: bool,
}

/// What is counted while it runs.
#[derive(Default)]
struct Counts {
    records: u64,
    /// Records with several concurrent values.
    siblings: u64,
}

type Reading = (Bytes, JoinHandle<Result<Found, ReadFailure>>);

/// Exports a keyspace.
pub(crate) async fn run(export: Export, global: &Global, output: &Output) -> Result<Exit, CommandError> {
    let session = Session::open(global).await?;
    let keyspace = session.keyspace()?;
    let timeout = session.timeout_or(REQUEST_TIMEOUT);
    let mut sink = Sink::open(export.output.as_deref())?;
    let mut counts = Counts::default();
    let mut progress =
        Progress::begin("exported", Some(u64::from(session.client.document().partitions.count())));
    let mut keys = keyspace.keys().timeout(timeout);
    if let Some(level) = export.r {
        keys = keys.r(level);
    }
    let mut readings: VecDeque<Reading> = VecDeque::new();
    loop {
        let key = keys.next().await.map_err(|failure| CommandError::keys(failure, keyspace.name()))?;
        let is_last = key.is_none();
        if let Some(key) = key {
            let reading = tokio::spawn(get(&keyspace, key.clone(), &export, timeout).send());
            readings.push_back((key, reading));
        }
        while readings.len() >= usize::from(export.concurrency) || (is_last && !readings.is_empty()) {
            let (key, reading) = readings.pop_front().expect("there is one");
            let found = reading.await.expect("nothing aborts it, and it does not panic");
            let found = found.map_err(|failure| CommandError::read(failure, keyspace.name()))?;
            write(&mut sink, &mut counts, key, &found, export.key_field.as_deref())?;
        }
        progress.show(u64::from(keys.progress().0), counts.records, "");
        if is_last {
            break;
        }
    }
    sink.finish()?;
    let seconds = progress.elapsed().as_secs_f64();
    progress.end(counts.records, &remark(&counts));
    if let Some(file) = &export.output
        && output.is_json()
    {
        let summary = Summary { file, records: counts.records, siblings: counts.siblings, seconds };
        output.print(&summary, |_| {})?;
    }
    session.close().await;
    Ok(Exit::Done)
}

fn get(keyspace: &KeyspaceHandle, key: Bytes, export: &Export, timeout: Duration) -> GetBuilder {
    let get = keyspace.get(key).timeout(timeout);
    match export.r {
        Some(level) => get.r(level),
        None => get,
    }
}

fn write(
    sink: &mut Sink,
    counts: &mut Counts,
    key: Bytes,
    found: &Found,
    key_field: Option<&str>,
) -> Result<(), CommandError> {
    // It was deleted, or ended, since it was listed.
    if found.values.is_empty() {
        return Ok(());
    }
    counts.records += 1;
    counts.siblings += u64::from(found.values.len() > 1);
    let mut line = Record::of(key, &found.values).line(key_field);
    line.push(b'\n');
    sink.write(&line)
}

fn remark(counts: &Counts) -> String {
    match counts.siblings {
        0 => String::new(),
        siblings => format!(", {siblings} of them with concurrent values"),
    }
}

impl Sink {
    fn open(path: Option<&Path>) -> Result<Sink, CommandError> {
        let Some(path) = path else { return Ok(Sink::Stdout(BufWriter::new(io::stdout()))) };
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file =
            File::create(&partial).map_err(|error| CommandError::File { path: partial.clone(), error })?;
        let partial = Partial { path: partial, is_complete: false };
        Ok(Sink::File { partial, path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    fn write(&mut self, line: &[u8]) -> Result<(), CommandError> {
        match self {
            Sink::Stdout(stdout) => stdout.write_all(line).map_err(CommandError::Stdout),
            Sink::File { partial, file, .. } => {
                file.write_all(line).map_err(|error| CommandError::File { path: partial.path.clone(), error })
            }
        }
    }

    fn finish(self) -> Result<(), CommandError> {
        match self {
            Sink::Stdout(mut stdout) => stdout.flush().map_err(CommandError::Stdout),
            Sink::File { mut partial, path, mut file } => {
                let written = file.flush().and_then(|()| file.get_ref().sync_all());
                written
                    .and_then(|()| fs::rename(&partial.path, &path))
                    .map_err(|error| CommandError::File { path, error })?;
                partial.is_complete = true;
                Ok(())
            }
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_complete {
            // If it cannot be removed it is overwritten by the next export.
            let _ = fs::remove_file(&self.path);
        }
    }
}
