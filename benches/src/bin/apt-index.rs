//! Turns Debian's package index into lines that `quorate import` reads: some 60,000 records of 0.3 to 4 KB.
//!
//! ```text
//! apt-cache dumpavail | cargo run --release -p quorate-benches --bin apt-index > packages.ndjson
//! quorate import packages.ndjson --key-field key
//! ```
//!
//! The index is a list of paragraphs (Debian Policy, section 5.1): `Field: value` lines, continued by lines that begin
//! with a space or a tab. Each paragraph becomes one JSON object of its fields and one more, `key`, made of package,
//! version and architecture, which name a package together. A paragraph without these, or one that is no paragraph, is
//! left out and counted.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufWriter, Write},
    process::ExitCode,
};

use clap::Parser;
use serde_json::{Map, Value};

/// Turns Debian's package index on the standard input into one JSON object a line.
#[derive(Debug, Parser)]
#[command(name = "apt-index")]
struct Arguments {
    /// Stops after so many records.
    #[arg(long)]
    limit: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (input, output) = (io::stdin().lock(), io::stdout().lock());
    match convert(input, BufWriter::new(output), arguments.limit.unwrap_or(usize::MAX)) {
        Ok(Converted { records, left_out }) => {
            drop(writeln!(io::stderr(), "{records} records, {left_out} paragraphs left out"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            drop(writeln!(io::stderr(), "apt-index: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What a conversion came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Converted {
    records: usize,
    left_out: usize,
}

fn convert(input: impl BufRead, mut output: impl Write, limit: usize) -> io::Result<Converted> {
    let mut known = BTreeSet::new();
    let (mut records, mut left_out) = (0, 0);
    let mut paragraph = Paragraph::default();
    for line in input.lines().map(Some).chain([None]) {
        let line = line.transpose()?;
        if let Some(line) = line.as_deref().filter(|line| !line.trim().is_empty()) {
            paragraph.add(line);
            continue;
        }
        let ended = std::mem::take(&mut paragraph);
        if ended.fields.is_empty() && ended.is_sound {
            continue;
        }
        // One package may be listed by several sources: the first stands, so that a key names one record.
        match ended.record().filter(|(key, _)| known.insert(key.clone())) {
            Some((_, record)) => {
                serde_json::to_writer(&mut output, &record)?;
                output.write_all(b"\n")?;
                records += 1;
            }
            None => left_out += 1,
        }
        if records == limit {
            break;
        }
    }
    output.flush()?;
    Ok(Converted { records, left_out })
}

/// One paragraph: its fields in their order.
struct Paragraph {
    fields: Vec<(String, String)>,
    /// Whether every line was a field or continued one.
    is_sound: bool,
}

impl Default for Paragraph {
    fn default() -> Paragraph {
        Paragraph { fields: Vec::new(), is_sound: true }
    }
}

impl Paragraph {
    fn add(&mut self, line: &str) {
        if let Some(continued) = line.strip_prefix([' ', '\t']) {
            match self.fields.last_mut() {
                Some((_, value)) => {
                    value.push('\n');
                    value.push_str(continued);
                }
                None => self.is_sound = false,
            }
            return;
        }
        match line.split_once(':') {
            Some((name, value)) => self.fields.push((name.to_owned(), value.trim().to_owned())),
            None => self.is_sound = false,
        }
    }

    fn field(&self, wanted: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    fn record(&self) -> Option<(String, Map<String, Value>)> {
        let (package, version) = (self.field("Package")?, self.field("Version")?);
        let key = format!("{package}_{version}_{}", self.field("Architecture")?);
        let mut record = Map::from_iter([("key".to_owned(), Value::from(key.clone()))]);
        for (name, value) in &self.fields {
            record.insert(name.clone(), Value::from(value.as_str()));
        }
        self.is_sound.then_some((key, record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(input: &str, limit: usize) -> (Vec<Value>, Converted) {
        let mut output = Vec::new();
        let counts = convert(input.as_bytes(), &mut output, limit).unwrap();
        let lines = String::from_utf8(output).unwrap();
        (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), counts)
    }

    const TWO: &str = "Package: a\nVersion: 1:2\nArchitecture: all\nDescription: short\n long, with \"quotes\"\n .\n\
                       \nPackage: b\nVersion: 3\nArchitecture: amd64\n";

    #[test]
    fn a_paragraph_becomes_an_object_with_its_key_and_its_continued_lines() {
        let (records, counts) = converted(TWO, usize::MAX);
        assert_eq!(counts, Converted { records: 2, left_out: 0 });
        assert_eq!(records[0]["key"], "a_1:2_all");
        assert_eq!(records[0]["Description"], "short\nlong, with \"quotes\"\n.");
        assert_eq!(records[1]["key"], "b_3_amd64");
    }

    #[test]
    fn what_names_no_package_and_what_comes_twice_is_left_out() {
        let input = format!("{TWO}\n\n{TWO}\nno field\n\n continued\n\nPackage: c\nVersion: 1\n");
        let (records, counts) = converted(&input, usize::MAX);
        assert_eq!((records.len(), counts.left_out), (2, 5));
        assert_eq!(converted(TWO, 1).1.records, 1);
    }
}
