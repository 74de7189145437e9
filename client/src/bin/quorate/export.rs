//! `export`: every record of a keyspace becomes a line.
//!
//! Keys are listed partition by partition and read at the level, many at once; lines come in the order of the keys'
//! tokens. A file appears under its name when the export is complete: one that was interrupted cannot be taken for a
//! whole one. What is no file, such as a device or a pipe, is written to as it is, and never replaced.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
    process,
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

/// Names of what a process has open already. Behind them may be a file that others write to as well, such as the one
/// that a shell redirects to.
const DESCRIPTORS: [&str; 4] = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc/self/fd"];
/// How many names are tried for an unfinished file: those before may be left of exports that were killed.
const PARTIAL_NAMES: u32 = 1_000;

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
    /// Something that is no file, or not this program's alone.
    Direct {
        path: PathBuf,
        file: BufWriter<File>,
    },
    File {
        partial: Partial,
        path: PathBuf,
        file: BufWriter<File>,
    },
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
    let mut sink = Sink::open(export.output.as_deref()).await?;
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
    async fn open(path: Option<&Path>) -> Result<Sink, CommandError> {
        let Some(path) = path else { return Ok(Sink::Stdout(BufWriter::new(io::stdout()))) };
        let failed = |error| CommandError::File { path: path.to_path_buf(), error };
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() || names_descriptor(path) => {
                let file = open_direct(path.to_path_buf()).await.map_err(failed)?;
                Ok(Sink::Direct { path: path.to_path_buf(), file: BufWriter::new(file) })
            }
            // The file itself, wherever links to it are.
            Ok(metadata) => {
                let path = fs::canonicalize(path).map_err(failed)?;
                Sink::open_file(path, Some(metadata.permissions()))
            }
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
            Err(_) if fs::symlink_metadata(path).is_ok() => {
                Err(failed(io::Error::new(ErrorKind::NotFound, "a link to what is not there")))
            }
            Err(_) => Sink::open_file(path.to_path_buf(), None),
        }
    }

    /// A file that is to appear at `path`, or to replace the one that is there and has these permissions.
    fn open_file(path: PathBuf, permissions: Option<Permissions>) -> Result<Sink, CommandError> {
        let (partial, file) = Partial::create(&path)?;
        if let Some(permissions) = permissions {
            let set = file.set_permissions(permissions);
            set.map_err(|error| CommandError::File { path: partial.path.clone(), error })?;
        }
        Ok(Sink::File { partial, path, file: BufWriter::new(file) })
    }

    fn write(&mut self, line: &[u8]) -> Result<(), CommandError> {
        match self {
            Sink::Stdout(stdout) => stdout.write_all(line).map_err(CommandError::Stdout),
            Sink::Direct { path, file } => {
                file.write_all(line).map_err(|error| CommandError::File { path: path.clone(), error })
            }
            Sink::File { partial, file, .. } => {
                file.write_all(line).map_err(|error| CommandError::File { path: partial.path.clone(), error })
            }
        }
    }

    fn finish(self) -> Result<(), CommandError> {
        match self {
            Sink::Stdout(mut stdout) => stdout.flush().map_err(CommandError::Stdout),
            Sink::Direct { path, mut file } => {
                file.flush().map_err(|error| CommandError::File { path, error })
            }
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

/// Whether a path names an open descriptor of a process.
fn names_descriptor(path: &Path) -> bool {
    DESCRIPTORS.iter().any(|descriptor| path.starts_with(descriptor))
}

/// Opens what is there. A pipe opens when somebody reads it, which must not keep an interruption from being heard.
async fn open_direct(path: PathBuf) -> io::Result<File> {
    // Behind a descriptor may be a file with something in it already.
    let opened = tokio::task::spawn_blocking(move || OpenOptions::new().append(true).open(path));
    opened.await.expect("nothing aborts it, and it does not panic")
}

impl Partial {
    /// A new file beside `path`: none that was there is touched.
    fn create(path: &Path) -> Result<(Partial, File), CommandError> {
        let mut number = 0;
        loop {
            let mut name = path.as_os_str().to_owned();
            name.push(match number {
                0 => format!(".{}.partial", process::id()),
                number => format!(".{}-{number}.partial", process::id()),
            });
            let partial = PathBuf::from(name);
            match OpenOptions::new().write(true).create_new(true).open(&partial) {
                Ok(file) => return Ok((Partial { path: partial, is_complete: false }, file)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists && number < PARTIAL_NAMES => {
                    number += 1;
                }
                Err(error) => return Err(CommandError::File { path: partial, error }),
            }
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_complete {
            // If it cannot be removed it is in nobody's way.
            let _ = fs::remove_file(&self.path);
        }
    }
}
