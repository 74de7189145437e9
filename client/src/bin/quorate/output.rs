//! Printing: for people, or as one JSON document.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use client::Version;
use serde::{Serialize, Serializer};

use crate::failure::CommandError;

/// Where a command prints.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    is_json: bool,
}

/// Bytes in JSON: a string if they are UTF-8, else `{"base64": "..."}`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonBytes<'a>(pub(crate) &'a [u8]);

/// A version in JSON and for people: `milliseconds.count@actor`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShownVersion(pub(crate) Version);

/// A table for people: columns as wide as what is in them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Output {
    /// Prints as the command line says.
    pub(crate) fn new(is_json: bool) -> Output {
        Output { is_json }
    }

    /// Whether one JSON document is asked for.
    pub(crate) fn is_json(self) -> bool {
        self.is_json
    }

    /// Prints the document, or else what the function writes for people.
    pub(crate) fn print<J: Serialize>(
        self,
        document: &J,
        for_people: impl FnOnce(&mut String),
    ) -> Result<(), CommandError> {
        let mut text = String::new();
        if self.is_json {
            text = serde_json::to_string_pretty(document)
                .expect("keys are strings, and nothing fails by itself");
            text.push('\n');
        } else {
            for_people(&mut text);
        }
        self.bytes(text.as_bytes())
    }

    /// Prints bytes as they are.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), CommandError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(CommandError::Stdout)
    }

    /// Prints a line beside the result, which is not part of it.
    pub(crate) fn aside(self, line: &str) {
        if !self.is_json {
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

impl Serialize for JsonBytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Base64 {
            base64: String,
        }
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Base64 { base64: BASE64_STANDARD.encode(self.0) }.serialize(serializer),
        }
    }
}

impl std::fmt::Display for ShownVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Version { counter, actor } = self.0;
        write!(f, "{}.{}@{actor:016x}", counter >> 16, counter & 0xffff)
    }
}

impl Serialize for ShownVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Table {
    /// A table with these names above its columns.
    pub(crate) fn new(names: &[&str]) -> Table {
        Table { rows: vec![names.iter().map(|name| (*name).to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes it, each row a line.
    pub(crate) fn write(&self, out: &mut String) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// Bytes for a person's terminal: text as it is, but for what would control the terminal; anything else escaped.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.chars().fold(String::new(), |mut line, character| {
            if character.is_control() {
                line.extend(character.escape_default());
            } else {
                line.push(character);
            }
            line
        }),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// Text of several lines, of which each is [`escaped`].
pub(crate) fn escaped_lines(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.split('\n').map(|line| escaped(line.as_bytes())).collect::<Vec<_>>().join("\n"),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// Whether a person reads stdout.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Now, in milliseconds of Unix time.
pub(crate) fn now_unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// How long ago a version was written, by the clock of whoever minted it and by this machine's.
pub(crate) fn age(version: Version, now_unix_ms: u64) -> String {
    ago(version.counter >> 16, now_unix_ms)
}

/// How long ago something was.
pub(crate) fn ago(at_unix_ms: u64, now_unix_ms: u64) -> String {
    format!("{} ago", span(now_unix_ms.saturating_sub(at_unix_ms)))
}

/// A span of time in its largest unit.
pub(crate) fn span(span_ms: u64) -> String {
    match span_ms {
        0..1_000 => format!("{span_ms}ms"),
        1_000..60_000 => format!("{}s", span_ms / 1_000),
        60_000..3_600_000 => format!("{}m", span_ms / 60_000),
        3_600_000..86_400_000 => format!("{}h", span_ms / 3_600_000),
        _ => format!("{}d", span_ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_base64_in_json_and_escaped_for_people() {
        assert_eq!(serde_json::to_string(&JsonBytes(b"k\xc3\xa4se")).unwrap(), "\"käse\"");
        assert_eq!(serde_json::to_string(&JsonBytes(&[0xff, 0])).unwrap(), r#"{"base64":"/wA="}"#);
        assert_eq!(escaped("käse".as_bytes()), "käse");
        assert_eq!(escaped(&[0xff, b'a']), r"\xffa");
    }

    #[test]
    fn what_would_control_a_terminal_is_escaped() {
        assert_eq!(escaped(b"\x1b[2Jx\ny"), r"\u{1b}[2Jx\ny");
        assert_eq!(escaped_lines(b"\x1b[2Jx\ny"), "\\u{1b}[2Jx\ny");
    }

    #[test]
    fn a_version_shows_its_time_and_its_actor() {
        let version = Version { counter: (1_764_000_000_123 << 16) | 5, actor: 0xab };
        assert_eq!(ShownVersion(version).to_string(), "1764000000123.5@00000000000000ab");
        assert_eq!(age(version, 1_764_000_123_123), "2m ago");
        assert_eq!(age(version, 0), "0ms ago", "a clock that is behind");
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let mut table = Table::new(&["node", "state"]);
        table.row(["node-10".to_owned(), "up".to_owned()]);
        let mut text = String::new();
        table.write(&mut text);
        assert_eq!(text, "node     state\nnode-10  up\n");
    }
}
