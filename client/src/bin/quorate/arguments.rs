//! What can be said on the command line.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use client::{Access, Context, Level, LevelError, ReadRepair};
use ring::{ConflictPolicy, Durability, NodeId};

// The help is broken into lines here: to know a terminal's width takes a dependency.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 not found, 2 wrong usage or an unusable configuration,
3 definitely failed, 4 in doubt (it may have happened, or may yet),
5 the cluster cannot be reached, 130 interrupted.";

/// Talk to a Quorate cluster.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What goes with every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// The client's configuration [default: ./client.toml, then ./quorate-dev/client.toml].
    #[arg(long, global = true, env = "QUORATE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The keyspace [default: the one that the configuration names].
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) keyspace: Option<String>,
    /// Print one JSON document.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How long each request may take, such as 500ms, 2s or 1m [default: 2s; 10s for
    /// import, export and changes of the cluster; 1s for each node that status and
    /// explain ask]
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_duration, verbatim_doc_comment)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Store a value.
    Put(Put),
    /// Read a key: its value, or all of its concurrent values.
    Get(Get),
    /// Delete a key: what the context covers, or, without one, what a read at the same level finds.
    Delete(Delete),
    /// Create, list and show keyspaces.
    #[command(subcommand)]
    Keyspace(Keyspace),
    /// Store each line of a file of JSON objects under the key that one of its fields names
    ///
    /// The value is the line's text exactly as it is read, without the newline. A key
    /// that has that value already is skipped, and another value is replaced, so a
    /// second run changes nothing and an interrupted one is resumed by running it
    /// again. Of several lines with one key the last one counts.
    ///
    /// Lines that `quorate export` wrote are recognised by their `"$quorate"` field and
    /// restored exactly: key, bytes, expiry and all concurrent values, whatever
    /// --key-field says.
    #[command(verbatim_doc_comment)]
    Import(Import),
    /// Write every record of a keyspace as a line that `quorate import` reads
    ///
    /// Each line is `{"$quorate":"record","key":K,...}` with the value as one of
    ///
    ///   "value"         text
    ///   "value_json"    a JSON object or array on one line, verbatim
    ///   "value_base64"  anything else
    ///
    /// and "expires_unix_ms" if it ends. Concurrent values stand in "siblings", a list
    /// of such values, which import makes concurrent again. With --key-field, a value
    /// that is a one-line JSON object whose field holds its key is written as it is.
    ///
    /// Exporting, importing elsewhere and exporting again gives the same lines.
    #[command(verbatim_doc_comment)]
    Export(Export),
    /// Show the members and how they fare.
    Status,
    /// Watch what the members do: requests, latencies, lag, hints and repair
    ///
    /// On a terminal it goes on until Ctrl-C; elsewhere, or with --json, it prints what
    /// happened within one interval.
    #[command(verbatim_doc_comment)]
    Top(Top),
    /// Look for what is wrong with the cluster, or soon will be, and say what to do about it
    ///
    /// Ports, clocks, disks, certificates, configuration and data of all members. Exits
    /// with 3 if something is wrong now, and with 0 if there are only warnings.
    #[command(verbatim_doc_comment)]
    Doctor,
    /// Show how far behind the replicas may be: when which nodes were last in sync, and what is owed.
    Lag,
    /// Have all nodes compare what they share at once, and mend what differs
    ///
    /// They do that every few seconds by themselves. With --wait it ends when all
    /// replicas are known to be equal to what was acknowledged when it began.
    #[command(verbatim_doc_comment)]
    Repair(Repair),
    /// Show how partitions are spread over the nodes.
    Ring(Ring),
    /// Show where a key lives, what each replica holds of it, and why the winner wins.
    Explain(Explain),
    /// Record the present store of a node whose disk was replaced.
    Readmit(Readmit),
    /// Make the certificates of a cluster.
    #[command(subcommand)]
    Cert(Cert),
}

#[derive(Args, Debug)]
pub(crate) struct Top {
    /// How long to count before something is shown.
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) interval: Duration,
    /// How often to show it [default: until Ctrl-C on a terminal, once elsewhere].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Args, Debug)]
pub(crate) struct Put {
    /// The key, as text: 1 to 4096 bytes.
    pub(crate) key: String,
    /// The value, at most 4 MiB; `-` reads it from stdin, byte for byte.
    #[arg(allow_hyphen_values = true)]
    pub(crate) value: String,
    #[command(flatten)]
    pub(crate) write: Write,
    /// The context that a get printed: exactly what it saw is replaced.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) context: Option<Context>,
    /// When a replica may acknowledge [default: as the keyspace says].
    #[arg(long, value_enum)]
    pub(crate) durability: Option<DurabilityName>,
    /// When the value ends, counted from now, such as 30s, 10m or 7d.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) ttl: Option<Duration>,
}

/// What puts and deletes have in common.
#[derive(Args, Debug)]
pub(crate) struct Write {
    /// How many replicas must acknowledge: any, one, two, three, quorum, all,
    /// local_one, local_quorum, each_quorum or a number [default: quorum]
    #[arg(long, value_name = "LEVEL", value_parser = parse_write_level, verbatim_doc_comment)]
    pub(crate) w: Option<Level>,
    /// Copies in each of the keyspace's datacenters [default: as the keyspace says].
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) n: Option<u8>,
    /// Count nodes that stand in for replicas that are down; they hand over later.
    #[arg(long)]
    pub(crate) sloppy: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Get {
    /// The key, as text.
    pub(crate) key: String,
    /// How many replicas must answer: one, two, three, quorum, all, local_one,
    /// local_quorum, each_quorum or a number [default: quorum]
    #[arg(long, value_name = "LEVEL", value_parser = parse_read_level, verbatim_doc_comment)]
    pub(crate) r: Option<Level>,
    /// Copies in each of the keyspace's datacenters [default: as the keyspace says].
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) n: Option<u8>,
    /// What happens to stale replicas [default: blocking at a quorum, background below].
    #[arg(long, value_enum)]
    pub(crate) read_repair: Option<ReadRepairName>,
    /// Print a single value byte for byte, without a newline.
    #[arg(long, conflicts_with = "json")]
    pub(crate) raw: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    /// The key, as text.
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) write: Write,
    /// The context that a get printed: exactly what it saw is deleted.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) context: Option<Context>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keyspace {
    /// Create a keyspace. One that exists with the same properties is as good as new.
    Create {
        /// Its name: letters, digits, `-`, `_` and `.`.
        name: String,
        /// Copies in each datacenter, such as ams=3,fra=2 [default: 3 in each, or as many as there are nodes].
        #[arg(long, value_name = "DC=COPIES,...", value_parser = parse_replication)]
        replication: Option<BTreeMap<String, u8>>,
        /// What happens to concurrent writes: all are kept as siblings, or the last one wins. Never changes.
        #[arg(long, value_enum, default_value = "siblings")]
        conflict: ConflictName,
        /// The durability of writes that do not name one.
        #[arg(long, value_enum, default_value = "disk")]
        durability: DurabilityName,
    },
    /// List all keyspaces.
    List,
    /// Show one keyspace.
    Show {
        /// Its name.
        name: String,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// The file; `-` reads stdin.
    pub(crate) file: PathBuf,
    /// The field that holds each object's key: a string, or a whole number.
    #[arg(long, value_name = "FIELD")]
    pub(crate) key_field: String,
    /// How many replicas must acknowledge each write: any, one, two, three, quorum, all,
    /// local_one, local_quorum, each_quorum or a number [default: quorum]
    #[arg(long, value_name = "LEVEL", value_parser = parse_write_level, verbatim_doc_comment)]
    pub(crate) w: Option<Level>,
    /// Records under way at once.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) concurrency: u16,
    /// Go on after lines that cannot be read, and name them at the end, instead of stopping at the first.
    #[arg(long)]
    pub(crate) skip_bad: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// The file; it appears when the export is complete, but a device or a pipe is written to as it is [default: stdout].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How many replicas must answer: one, two, three, quorum, all, local_one,
    /// local_quorum, each_quorum or a number [default: quorum]
    #[arg(long, value_name = "LEVEL", value_parser = parse_read_level, verbatim_doc_comment)]
    pub(crate) r: Option<Level>,
    /// Write values that were imported with this --key-field as they are.
    #[arg(long, value_name = "FIELD")]
    pub(crate) key_field: Option<String>,
    /// Records under way at once.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) concurrency: u16,
}

#[derive(Args, Debug)]
pub(crate) struct Ring {
    /// Print the preference list of each partition, too.
    #[arg(long)]
    pub(crate) lists: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Explain {
    /// The key, as text.
    pub(crate) key: String,
    /// Copies in each of the keyspace's datacenters [default: as the keyspace says].
    #[arg(long, value_name = "COPIES", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) n: Option<u8>,
}

#[derive(Args, Debug)]
pub(crate) struct Repair {
    /// The nodes that have copies of this partition alone [default: all; with --keyspace, those
    /// of the keyspace's datacenters]
    #[arg(long, value_name = "NUMBER", verbatim_doc_comment)]
    pub(crate) partition: Option<u16>,
    /// Wait until they are in sync.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Readmit {
    /// The node: its number, or its name such as node-3.
    #[arg(value_parser = parse_node)]
    pub(crate) node: NodeId,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// Make an authority: ca.pem, and ca-key.pem, which is to be kept safe.
    Init {
        /// Where its files go.
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
    /// Issue a node's certificate: NAME.pem and NAME-key.pem.
    Node {
        /// Its name, for people and for its files; not `ca`, which is the authority's.
        name: String,
        /// A name or an address of it, for tools that check such names. Nodes and clients do not.
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        #[command(flatten)]
        issue: Issue,
    },
    /// Issue a client's certificate: NAME.pem and NAME-key.pem.
    Client {
        /// Its name, for people and for its files; not `ca`, which is the authority's.
        name: String,
        /// What it may do. Each role includes those before it.
        #[arg(long, value_enum)]
        role: RoleName,
        /// The keyspaces whose keys it may read or write, separated by commas [default: all].
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        keyspaces: Vec<String>,
        #[command(flatten)]
        issue: Issue,
    },
}

/// What goes with every certificate that is issued.
#[derive(Args, Debug)]
pub(crate) struct Issue {
    /// Where the authority's files are, and the new ones go.
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
    /// How many days it lives.
    #[arg(
        long,
        default_value_t = client::certificates::DAYS_DEFAULT,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub(crate) days: u32,
    /// Replace the files if they are there.
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DurabilityName {
    Disk,
    Memory,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ConflictName {
    Siblings,
    Lww,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ReadRepairName {
    Blocking,
    Background,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleName {
    Read,
    Write,
    Admin,
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Durability {
        match name {
            DurabilityName::Disk => Durability::Disk,
            DurabilityName::Memory => Durability::Memory,
        }
    }
}

impl From<ConflictName> for ConflictPolicy {
    fn from(name: ConflictName) -> ConflictPolicy {
        match name {
            ConflictName::Siblings => ConflictPolicy::Siblings,
            ConflictName::Lww => ConflictPolicy::LastWriteWins,
        }
    }
}

impl From<ReadRepairName> for ReadRepair {
    fn from(name: ReadRepairName) -> ReadRepair {
        match name {
            ReadRepairName::Blocking => ReadRepair::Blocking,
            ReadRepairName::Background => ReadRepair::Background,
            ReadRepairName::Off => ReadRepair::Off,
        }
    }
}

impl From<RoleName> for Access {
    fn from(name: RoleName) -> Access {
        match name {
            RoleName::Read => Access::Read,
            RoleName::Write => Access::Write,
            RoleName::Admin => Access::Admin,
        }
    }
}

/// A level that a write can have.
fn parse_write_level(text: &str) -> Result<Level, String> {
    match text.parse() {
        Ok(Level::Count(0)) => Err(LevelError::Zero.to_string()),
        Ok(level) => Ok(level),
        Err(unknown) => Err(client::UnknownLevel::to_string(&unknown)),
    }
}

/// A level that a read can have.
fn parse_read_level(text: &str) -> Result<Level, String> {
    match parse_write_level(text)? {
        Level::Any => Err(LevelError::AnyOnRead.to_string()),
        level => Ok(level),
    }
}

/// A positive duration: a number and its unit.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration such as 500ms, 2s, 1m, 3h or 7d".to_owned();
    let unit_at = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(unit_ms) {
        Some(0) => Err("a duration of nothing".to_owned()),
        Some(duration_ms) => Ok(Duration::from_millis(duration_ms)),
        None => Err(wrong()),
    }
}

fn parse_replication(text: &str) -> Result<BTreeMap<String, u8>, String> {
    let mut replication = BTreeMap::new();
    for part in text.split(',') {
        let (name, copies) =
            part.split_once('=').ok_or_else(|| format!("`{part}` is not of the form datacenter=copies"))?;
        let copies = copies.parse().map_err(|_| format!("`{copies}` is not a number of copies"))?;
        if replication.insert(name.to_owned(), copies).is_some() {
            return Err(format!("`{name}` is named twice"));
        }
    }
    Ok(replication)
}

/// A node by its number or its name.
fn parse_node(text: &str) -> Result<NodeId, String> {
    let number = text.strip_prefix("node-").unwrap_or(text);
    number.parse().map(NodeId).map_err(|_| "not a node: its number, or its name such as node-3".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    /// Help that is broken into lines by hand is printed as it is: a full stop after a default would be seen.
    #[test]
    fn no_full_stop_ends_a_line_of_help() {
        fn check(command: &mut clap::Command) {
            let help = command.render_help().to_string();
            let stray = help.lines().find(|line| line.ends_with("].") || line.ends_with("reads."));
            assert_eq!(stray, None, "{}", command.get_name());
            command.get_subcommands_mut().for_each(check);
        }
        let mut command = Arguments::command();
        command.build();
        check(&mut command);
        assert!(command.render_help().to_string().contains("Exit codes: 0 done"));
    }

    #[test]
    fn durations_have_units() {
        for (text, duration_ms) in
            [("500ms", 500), ("2s", 2_000), ("1m", 60_000), ("3h", 10_800_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(duration_ms)));
        }
        for bad in ["", "2", "s", "2 s", "-1s", "1.5s", "2x", "0ms", "18446744073709551615d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels_that_promise_nothing_are_refused() {
        assert_eq!(parse_write_level("any"), Ok(Level::Any));
        assert_eq!(parse_read_level("2"), Ok(Level::Count(2)));
        for bad in ["0", "most", "256"] {
            assert!(parse_write_level(bad).is_err() && parse_read_level(bad).is_err(), "{bad}");
        }
        assert!(parse_read_level("any").is_err());
    }

    #[test]
    fn replication_is_a_list_of_datacenters() {
        let expected = BTreeMap::from([("ams".to_owned(), 3), ("fra".to_owned(), 2)]);
        assert_eq!(parse_replication("ams=3,fra=2"), Ok(expected));
        for bad in ["ams", "ams=x", "ams=3,ams=2", "ams=300", ""] {
            assert!(parse_replication(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_is_a_number_or_its_name() {
        assert_eq!(parse_node("3"), Ok(NodeId(3)));
        assert_eq!(parse_node("node-3"), Ok(NodeId(3)));
        assert!(parse_node("three").is_err());
    }
}
