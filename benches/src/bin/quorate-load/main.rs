//! `quorate-load`: what a running cluster can do, measured from outside.
//!
//! Closed loop: so many operations are under way at all times, each beginning when one ends. Open loop (`--rate`): so
//! many operations begin each second, whether or not earlier ones have ended, and an operation's latency counts from
//! when it should have begun. A server that stalls for a second is then seen to have stalled for everyone who would
//! have asked meanwhile.

mod cpu;
mod keys;
mod load;
mod report;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use client::{Client, ClientConfig, Level, wire::NewKeyspace};
use ring::{ConflictPolicy, Durability};
use tokio::runtime;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The keyspace that is used unless another is named.
const KEYSPACE: &str = "load";
/// How long the keyspace may take to be created.
const KEYSPACE_TIMEOUT: Duration = Duration::from_secs(15);

/// Puts load on a cluster and says how fast it is.
#[derive(Debug, Parser)]
#[command(name = "quorate-load", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one workload. Exit codes: 0 all operations succeeded, 1 some failed, 2 usage, 5 cannot reach the cluster.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// The client's configuration.
    #[arg(long, env = "QUORATE_CONFIG")]
    config: PathBuf,
    /// What to do: pure reads, pure writes, or YCSB's workload A, half of each.
    #[arg(long, value_enum)]
    workload: Workload,
    /// Operations under way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: u32,
    /// How long to measure, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Keys to choose from.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=4 << 20))]
    value_size: u32,
    /// Operations a second, begun whether or not earlier ones have ended.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// Chooses keys by Zipf's law with exponent 0.99 instead of evenly: some far more often than others.
    #[arg(long)]
    zipf: bool,
    /// Replicas that answer a read.
    #[arg(long, default_value = "quorum")]
    r: Level,
    /// Replicas that acknowledge a write.
    #[arg(long, default_value = "quorum")]
    w: Level,
    /// When a replica acknowledges, if not as the keyspace says.
    #[arg(long, value_enum)]
    durability: Option<DurabilityName>,
    /// The keyspace; created with last-write-wins if there is none of that name.
    #[arg(long, default_value = KEYSPACE)]
    keyspace: String,
    /// Leaves out writing the keys that reads are to find: they are known to be there.
    #[arg(long)]
    no_load: bool,
    /// Processes whose processor time is shared out over the operations: the servers'.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Prints one JSON document.
    #[arg(long)]
    json: bool,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Gets alone.
    Read,
    /// Puts alone.
    Write,
    /// YCSB A: half gets, half puts.
    A,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DurabilityName {
    Disk,
    Memory,
}

impl DurabilityName {
    fn durability(self) -> Durability {
        match self {
            DurabilityName::Disk => Durability::Disk,
            DurabilityName::Memory => Durability::Memory,
        }
    }
}

/// Why there is nothing to report.
enum Failure {
    Usage(String),
    Unreachable(String),
    Failed(String),
}

fn main() -> ExitCode {
    let Command::Run(run) = Arguments::parse().command;
    // One thread: with more, as much work is spent on passing wake-ups between them.
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(measure(&run)),
        Err(error) => Err(Failure::Failed(error.to_string())),
    };
    let (sentence, code) = match outcome {
        Ok(0) => return ExitCode::SUCCESS,
        Ok(errors) => (format!("{errors} operations failed"), 1),
        Err(Failure::Failed(sentence)) => (sentence, 1),
        Err(Failure::Usage(sentence)) => (sentence, 2),
        Err(Failure::Unreachable(sentence)) => (sentence, 5),
    };
    drop(writeln!(io::stderr(), "quorate-load: {sentence}"));
    ExitCode::from(code)
}

/// Runs the workload and prints what came of it. How many operations failed.
async fn measure(run: &Run) -> Result<u64, Failure> {
    let config = ClientConfig::load(&run.config).map_err(|error| Failure::Usage(error.to_string()))?;
    let client = Client::connect(config).await.map_err(|error| Failure::Unreachable(error.to_string()))?;
    create_keyspace(&client, &run.keyspace).await?;
    let plan = load::Plan {
        keyspace: client.keyspace(&run.keyspace).map_err(|error| Failure::Usage(error.to_string()))?,
        concurrency: run.concurrency,
        duration: Duration::from_secs(run.seconds),
        rate: run.rate,
        keys: keys::Keys { count: run.keys, is_zipf: run.zipf },
        value_bytes: run.value_size as usize,
        read: run.r,
        write: run.w,
        durability: run.durability.map(DurabilityName::durability),
        reads_percent: match run.workload {
            Workload::Read => 100,
            Workload::Write => 0,
            Workload::A => 50,
        },
    };
    if run.workload != Workload::Write && !run.no_load {
        load::fill(&plan).await.map_err(Failure::Failed)?;
    }
    let before = cpu::Sample::take(&run.pids).map_err(|error| Failure::Usage(error.to_string()))?;
    let measured = load::run(&plan).await;
    let after = cpu::Sample::take(&run.pids).map_err(|error| Failure::Failed(error.to_string()))?;
    let report = report::Report::new(&measured, &before, &after);
    let mut out = io::stdout().lock();
    let told = if run.json { report.write_json(&mut out) } else { report.write_text(&mut out) };
    told.map_err(|error| Failure::Failed(error.to_string()))?;
    client.close().await;
    Ok(report.errors())
}

/// Creates the keyspace if there is none of that name; one that exists is used as it is.
async fn create_keyspace(client: &Client, name: &str) -> Result<(), Failure> {
    if client.document().keyspace_named(name).is_some() {
        return Ok(());
    }
    let keyspace = NewKeyspace {
        name: name.to_owned(),
        replication: std::collections::BTreeMap::new(),
        conflict: ConflictPolicy::LastWriteWins,
        durability: Durability::Disk,
    };
    let created = client.create_keyspace(keyspace, KEYSPACE_TIMEOUT).await;
    created
        .map(drop)
        .map_err(|error| Failure::Failed(format!("cannot create the keyspace `{name}`: {error}")))
}
