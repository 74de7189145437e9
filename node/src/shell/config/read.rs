//! Reading a table of settings: every fault is collected, none ends the reading.

use std::{fmt, time::Duration};

use thiserror::Error;
use toml::{Table, Value};

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key}: {}", sentence(.value, .reason))]
pub struct ConfigFault {
    /// The key, with its section, as it stands in the file.
    pub key: String,
    /// What stands there, if anything does.
    pub value: Option<String>,
    /// What is wrong with it.
    pub reason: FaultReason,
}

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FaultReason {
    /// The key is none that is known.
    #[error("unknown key")]
    Unknown,
    /// It has to be given and is not.
    #[error("must be given: {0}")]
    Missing(&'static str),
    /// The value is of another kind.
    #[error("must be {0}")]
    Kind(&'static str),
    /// The number is out of range.
    #[error("must be from {0} to {1}")]
    Range(u64, u64),
    /// The value makes no sense together with others, or with the machine.
    #[error("{0}")]
    Unfit(String),
}

/// What is wrong, with the value where the reason leaves a place for it. An unknown key's value is not at fault.
fn sentence(value: &Option<String>, reason: &FaultReason) -> String {
    match (reason, value) {
        (FaultReason::Kind(_) | FaultReason::Range(..), Some(value)) => format!("{reason}, not {value}"),
        (FaultReason::Unfit(_), Some(value)) => format!("{value}: {reason}"),
        (FaultReason::Unknown | FaultReason::Missing(_), _) | (_, None) => reason.to_string(),
    }
}

/// What a key means, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHelp {
    /// The key with its section.
    pub key: String,
    /// What it may be.
    pub kind: ValueKind,
    /// What it has if it is not given; none if it has to be.
    pub default: Option<String>,
    /// Its meaning, its unit, and what raising it costs.
    pub help: &'static str,
    /// What the configuration that was read gives it, as TOML; none if nothing.
    pub given: Option<String>,
}

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A text, which is not empty.
    Text,
    /// A whole number from the one to the other.
    Number(u64, u64),
    /// `true` or `false`.
    Switch,
    /// A list of tables, whose keys are settings of their own.
    Tables,
    /// A table of whole numbers from the one to the other.
    Numbers(u64, u64),
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueKind::Text => f.write_str("text"),
            ValueKind::Number(low, high) => write!(f, "{low} to {high}"),
            ValueKind::Switch => f.write_str("true or false"),
            ValueKind::Tables => f.write_str("tables"),
            ValueKind::Numbers(low, high) => write!(f, "table of numbers, {low} to {high}"),
        }
    }
}

/// A section of a configuration, from which keys are taken one by one. What is left at the end is unknown.
pub(super) struct Section<'a> {
    name: String,
    table: Table,
    faults: &'a mut Vec<ConfigFault>,
    help: &'a mut Vec<KeyHelp>,
}

impl<'a> Section<'a> {
    /// A section of this name with these entries.
    pub(super) fn new(
        name: &str,
        table: Table,
        faults: &'a mut Vec<ConfigFault>,
        help: &'a mut Vec<KeyHelp>,
    ) -> Section<'a> {
        Section { name: name.to_owned(), table, faults, help }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// Notes a fault of one of the section's keys.
    pub(super) fn fault(&mut self, key: &str, value: Option<String>, reason: FaultReason) {
        let key = self.full(key);
        self.faults.push(ConfigFault { key, value, reason });
    }

    /// Whether a fault of one of the section's keys was noted.
    pub(super) fn is_at_fault(&self, key: &str) -> bool {
        let key = self.full(key);
        self.faults.iter().any(|fault| fault.key == key)
    }

    fn describe(&mut self, key: &str, kind: ValueKind, default: Option<String>, help: &'static str) {
        let given = self.table.get(key).map(Value::to_string);
        let key = self.full(key);
        self.help.push(KeyHelp { key, kind, default, help, given });
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    /// A text, or its default.
    pub(super) fn text(&mut self, key: &str, default: &str, help: &'static str) -> String {
        self.describe(key, ValueKind::Text, Some(format!("{default:?}")), help);
        match self.take(key) {
            None => default.to_owned(),
            Some(value) => self.as_text(key, value).unwrap_or_else(|| default.to_owned()),
        }
    }

    /// A text that has to be given.
    pub(super) fn required_text(&mut self, key: &str, help: &'static str) -> Option<String> {
        self.describe(key, ValueKind::Text, None, help);
        match self.take(key) {
            None => {
                self.fault(key, None, FaultReason::Missing(help));
                None
            }
            Some(value) => self.as_text(key, value),
        }
    }

    /// A text that may be missing.
    pub(super) fn optional_text(&mut self, key: &str, help: &'static str) -> Option<String> {
        self.describe(key, ValueKind::Text, Some("none".to_owned()), help);
        let value = self.take(key)?;
        self.as_text(key, value)
    }

    fn as_text(&mut self, key: &str, value: Value) -> Option<String> {
        match value {
            Value::String(text) if !text.is_empty() => Some(text),
            other => {
                self.fault(key, Some(other.to_string()), FaultReason::Kind("a text that is not empty"));
                None
            }
        }
    }

    /// A number from a range, or its default.
    pub(super) fn number(
        &mut self,
        key: &str,
        default: u64,
        (low, high): (u64, u64),
        help: &'static str,
    ) -> u64 {
        self.describe(key, ValueKind::Number(low, high), Some(default.to_string()), help);
        match self.take(key) {
            None => default,
            Some(value) => self.as_number(key, &value, (low, high)).unwrap_or(default),
        }
    }

    /// A number that has to be given.
    pub(super) fn required_number(
        &mut self,
        key: &str,
        range: (u64, u64),
        help: &'static str,
    ) -> Option<u64> {
        self.describe(key, ValueKind::Number(range.0, range.1), None, help);
        match self.take(key) {
            None => {
                self.fault(key, None, FaultReason::Missing(help));
                None
            }
            Some(value) => self.as_number(key, &value, range),
        }
    }

    fn as_number(&mut self, key: &str, value: &Value, (low, high): (u64, u64)) -> Option<u64> {
        let Some(number) = value.as_integer() else {
            self.fault(key, Some(value.to_string()), FaultReason::Kind("a whole number"));
            return None;
        };
        match u64::try_from(number).ok().filter(|number| (low..=high).contains(number)) {
            Some(number) => Some(number),
            None => {
                self.fault(key, Some(number.to_string()), FaultReason::Range(low, high));
                None
            }
        }
    }

    /// Milliseconds, or their default.
    pub(super) fn millis(&mut self, key: &str, default: Duration, help: &'static str) -> Duration {
        let default_ms = u64::try_from(default.as_millis()).unwrap_or(u64::MAX);
        // A day: whoever wants longer has mistaken the unit.
        Duration::from_millis(self.number(key, default_ms, (1, 86_400_000), help))
    }

    /// A count, or its default.
    pub(super) fn count(
        &mut self,
        key: &str,
        default: usize,
        (low, high): (usize, usize),
        help: &'static str,
    ) -> usize {
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let number = self.number(key, wide(default), (wide(low), wide(high)), help);
        usize::try_from(number).unwrap_or(default)
    }

    /// A switch, or its default.
    pub(super) fn switch(&mut self, key: &str, default: bool, help: &'static str) -> bool {
        self.describe(key, ValueKind::Switch, Some(default.to_string()), help);
        match self.take(key) {
            None => default,
            Some(Value::Boolean(value)) => value,
            Some(other) => {
                self.fault(key, Some(other.to_string()), FaultReason::Kind("true or false"));
                default
            }
        }
    }

    /// One of a few names, or the default.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        default: &'static str,
        choices: &[(&'static str, T)],
        (expected, help): (&'static str, &'static str),
    ) -> T {
        let name = self.text(key, default, help);
        let named = |wanted: &str| choices.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        named(&name).unwrap_or_else(|| {
            self.fault(key, Some(format!("{name:?}")), FaultReason::Kind(expected));
            named(default).expect("the default is one of the choices")
        })
    }

    /// A list of tables; empty if it is missing.
    pub(super) fn tables(&mut self, key: &str, help: &'static str) -> Vec<Table> {
        self.describe(key, ValueKind::Tables, Some("[]".to_owned()), help);
        let entries = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(other) => vec![other],
        };
        let mut tables = Vec::new();
        for entry in entries {
            match entry {
                Value::Table(table) => tables.push(table),
                other => self.fault(key, Some(other.to_string()), FaultReason::Kind("a list of tables")),
            }
        }
        tables
    }

    /// A table of small numbers by name; empty if it is missing.
    pub(super) fn numbers(&mut self, key: &str, range: (u64, u64), help: &'static str) -> Vec<(String, u64)> {
        self.describe(key, ValueKind::Numbers(range.0, range.1), Some("{}".to_owned()), help);
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Table(table)) => table
                .into_iter()
                .filter_map(|(name, value)| {
                    let number = self.as_number(&format!("{key}.{name}"), &value, range)?;
                    Some((name, number))
                })
                .collect(),
            Some(other) => {
                self.fault(key, Some(other.to_string()), FaultReason::Kind("a table of numbers"));
                Vec::new()
            }
        }
    }

    /// Reads a section of this one's faults and help, with entries of its own.
    pub(super) fn nested(&mut self, name: &str, table: Table) -> Section<'_> {
        let name = self.full(name);
        Section { name, table, faults: self.faults, help: self.help }
    }

    /// Every key that is left is unknown.
    pub(super) fn finish(self) {
        for (key, value) in self.table {
            let (key, value) = (format!("{}.{key}", self.name), Some(value.to_string()));
            self.faults.push(ConfigFault { key, value, reason: FaultReason::Unknown });
        }
    }
}

/// All faults of a configuration, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}
