//! Lines of a file as records, read and parsed in a thread of their own.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use client::VALUE_BYTES_MAX;
use tokio::sync::mpsc;

use crate::{
    arguments::Import,
    failure::CommandError,
    record::{LineError, Record},
};

/// The longest line: an object that is full (8 MiB, which is twice a value), each byte of which takes two in JSON.
const LINE_BYTES_MAX: usize = 5 * VALUE_BYTES_MAX;
/// Lines that were read and wait to be handed out.
const READ_AHEAD: usize = 4;
/// How many bad lines are named.
pub(crate) const BAD_NAMED_MAX: usize = 20;

/// A record and where it stood.
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) record: Record,
    /// How much of the bytes under way it is.
    pub(crate) kib: u32,
}

/// What is counted while it runs.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) lines: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) skipped: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) bad: AtomicU64,
    /// What is wrong with the first bad lines that were skipped, each a sentence.
    pub(crate) bad_named: Mutex<Vec<String>>,
    /// No further line is to be begun.
    pub(crate) is_stopped: AtomicBool,
}

impl Counts {
    fn skip_bad(&self, line: u64, error: &LineError) {
        self.bad.fetch_add(1, Ordering::Relaxed);
        let mut named = self.bad_named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() < BAD_NAMED_MAX {
            named.push(format!("line {line}: {error}; skipped"));
        }
    }
}

/// Reads and parses in a thread of its own: files are read by blocking calls.
pub(crate) fn read_in_thread(
    input: Box<dyn Read + Send>,
    import: &Import,
    counts: Arc<Counts>,
) -> mpsc::Receiver<Result<Line, CommandError>> {
    let (sender, lines) = mpsc::channel(READ_AHEAD);
    let (field, skip_bad, path) = (import.key_field.clone(), import.skip_bad, import.file.clone());
    thread::spawn(move || {
        let mut input = BufReader::with_capacity(256 << 10, input);
        let mut number = 0;
        while !counts.is_stopped.load(Ordering::Relaxed) {
            let item = match next_line(&mut input) {
                Ok(None) => return,
                Ok(Some(line)) => {
                    number += 1;
                    counts.bytes.fetch_add(line.len() as u64, Ordering::Relaxed);
                    let line = trimmed(&line);
                    if line.iter().all(u8::is_ascii_whitespace) {
                        continue;
                    }
                    counts.lines.fetch_add(1, Ordering::Relaxed);
                    let parsed = if line.len() > LINE_BYTES_MAX {
                        Err(LineError::LongLine)
                    } else {
                        Record::parse(line, &field)
                    };
                    match parsed {
                        Ok(record) => {
                            let kib = u32::try_from(line.len() >> 10).expect("a line is bounded") + 1;
                            Ok(Line { number, record, kib })
                        }
                        Err(error) if skip_bad => {
                            counts.skip_bad(number, &error);
                            continue;
                        }
                        Err(error) => Err(CommandError::BadLine { line: number, error }),
                    }
                }
                Err(error) => Err(CommandError::File { path: path.clone(), error }),
            };
            let is_last = item.is_err();
            if sender.blocking_send(item).is_err() || is_last {
                return;
            }
        }
    });
    lines
}

/// The next line with its newline. Of one that is too long, so much as shows it; the rest is read past.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let limit = LINE_BYTES_MAX + 2;
    let mut line = Vec::new();
    if input.by_ref().take(limit as u64).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() == limit && line.last() != Some(&b'\n') {
        input.skip_until(b'\n')?;
    }
    Ok(Some(line))
}

/// A line without its newline.
fn trimmed(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_with_any_newline_or_with_the_file() {
        let mut input = &b"one\r\ntwo\n\nlast"[..];
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut input).unwrap() {
            lines.push(String::from_utf8(trimmed(&line).to_vec()).unwrap());
        }
        assert_eq!(lines, ["one", "two", "", "last"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_the_next_one_is_whole() {
        let mut input = vec![b'x'; LINE_BYTES_MAX + 1000];
        input.extend(b"\nnext\n");
        let mut input = &input[..];
        assert!(trimmed(&next_line(&mut input).unwrap().unwrap()).len() > LINE_BYTES_MAX);
        assert_eq!(next_line(&mut input).unwrap().unwrap(), b"next\n");
    }
}
