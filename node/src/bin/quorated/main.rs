//! `quorated`: runs a node, or a whole cluster for development.

// A program's `main` deals with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod health;

use std::{
    fmt,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use node::shell::{
    config::{Config, reference},
    dev::{DevCluster, DevError, DevOptions, LayoutError, Mode, NODES_MAX, pasteable},
    server::Server,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Names the filter of the log, in the form of `tracing`'s directives.
const LOG_VARIABLE: &str = "QUORATE_LOG";
/// How often a running cluster is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);

const EXIT_CODES: &str = "\
Exit codes: 0 stopped in good order, or healthy; 1 could not go on, or not healthy; 2 wrong usage or an
unusable configuration; 3 could not start.";

/// A node of Quorate.
#[derive(Debug, Parser)]
#[command(name = "quorated", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Writes the log as JSON, one object a line.
    #[arg(long, global = true)]
    json_logs: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one node until it is told to stop (SIGTERM or Ctrl-C). SIGHUP has it read its certificates anew.
    Run(Run),
    /// Checks a configuration and reports all of its faults.
    CheckConfig {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Prints every setting of a configuration, with its default and its meaning, as Markdown.
    ConfigReference,
    /// Asks the node of a configuration, on this machine, whether it is alive.
    Health(Health),
    /// Runs a cluster on this machine, for development.
    ///
    /// Makes certificates and configurations in a directory of its own, starts the nodes and prints a line with the
    /// word `ready` when all of them can coordinate requests. A later start goes on with the same data. Ctrl-C stops
    /// everything in good order.
    Dev(Dev),
}

#[derive(Debug, Args)]
struct Run {
    /// The node's configuration.
    #[arg(long)]
    config: PathBuf,
    /// Stops when the standard input closes: whoever started this has ended.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

#[derive(Debug, Args)]
struct Health {
    /// The node's configuration.
    #[arg(long)]
    config: PathBuf,
    /// Asks whether it can serve requests, instead.
    #[arg(long)]
    ready: bool,
    /// Milliseconds to wait for an answer.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout_ms: u64,
}

#[derive(Debug, Args)]
struct Dev {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=i64::from(NODES_MAX)))]
    nodes: u32,
    /// Where everything is kept.
    #[arg(long, default_value = "./quorate-dev")]
    dir: PathBuf,
    /// Node i listens on this port + i - 1 for QUIC.
    #[arg(long, default_value_t = 7400)]
    base_port: u16,
    /// Node i listens on this port + i - 1 for HTTP.
    #[arg(long, default_value_t = 7500)]
    http_base_port: u16,
    /// Each node a process of its own, which can be killed. Its id is in DIR/node-i/pid.
    #[arg(long)]
    processes: bool,
    /// Datacenters, separated by commas, to which the nodes are dealt in turn.
    #[arg(long, value_delimiter = ',', default_value = "local")]
    datacenters: Vec<String>,
    /// Begins anew: removes what an earlier run left in the directory.
    #[arg(long)]
    fresh: bool,
}

/// How the program ends badly.
#[derive(Debug)]
enum Failure {
    /// A configuration or an option cannot be used.
    Usage(String),
    /// It could not start.
    Start(String),
    /// It could not go on.
    Running(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Running(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Start(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) | Failure::Start(text) | Failure::Running(text) => f.write_str(text),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::Run(run) => {
            start_log("info", arguments.json_logs);
            raise_open_files();
            run_node(&run)
        }
        Command::CheckConfig { config } => check_config(&config),
        Command::ConfigReference => print_reference(),
        Command::Health(health) => ask_health(&health),
        Command::Dev(dev) => {
            start_log("warn", arguments.json_logs);
            raise_open_files();
            run_dev(dev)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to tell if the error stream is closed.
            drop(writeln!(io::stderr(), "quorated: {failure}"));
            ExitCode::from(failure.code())
        }
    }
}

fn start_log(default: &str, as_json: bool) {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if as_json {
        log.json().init();
    } else {
        log.with_ansi(io::stderr().is_terminal()).init();
    }
}

/// Lets the process open as many files as it may have at all. Usual is a lower limit for programs that cannot deal with
/// many; a node needs one for each table, and a node without descriptors has to end.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        let current = limit.current.unwrap_or(u64::MAX);
        tracing::warn!(%error, current, "the limit of open files cannot be raised");
    }
}

/// What signals ask the program for.
struct Asked {
    /// To stop.
    stop: watch::Receiver<bool>,
    /// To read its certificates anew, by being changed.
    renew: watch::Receiver<()>,
}

/// What SIGHUP means.
#[derive(Clone, Copy)]
enum HangUp {
    /// That certificates are to be read anew; but a program that has lost its terminal stops.
    Renew,
    /// That the program is to stop.
    Stop,
}

impl Asked {
    /// Waits for signals, and for the end of the standard input if that is to stop it, too.
    fn wait(hang_up: HangUp, with_stdin: bool) -> Result<Asked, Failure> {
        let (tell_stop, stop) = watch::channel(false);
        let (tell_renew, renew) = watch::channel(());
        let machine = |error: io::Error| Failure::Start(format!("cannot wait for signals: {error}"));
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(machine)?;
        let guard = runtime.enter();
        let mut terminate = signal(SignalKind::terminate()).map_err(machine)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(machine)?;
        // Whoever started this with `nohup` wants it to go on without a terminal.
        let ends_with_terminal = !hang_ups_are_ignored();
        let had_terminal = io::stdin().is_terminal();
        let mut hung_up = signal(SignalKind::hangup()).map_err(machine)?;
        drop(guard);
        if with_stdin {
            let tell = tell_stop.clone();
            thread::spawn(move || {
                let mut nothing = [0; 64];
                while matches!(io::stdin().read(&mut nothing), Ok(count) if count > 0) {}
                _ = tell.send(true);
            });
        }
        thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = hung_up.recv() => {}
                        _ = terminate.recv() => break,
                        _ = interrupt.recv() => break,
                    }
                    match hang_up {
                        HangUp::Renew if had_terminal && ends_with_terminal && !io::stdin().is_terminal() => {
                            break;
                        }
                        HangUp::Renew => _ = tell_renew.send(()),
                        HangUp::Stop if ends_with_terminal => break,
                        HangUp::Stop => {}
                    }
                }
            });
            _ = tell_stop.send(true);
        });
        Ok(Asked { stop, renew })
    }
}

/// Whether whoever started this had SIGHUP ignored. Where the kernel does not say so, it is not.
fn hang_ups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    // The lowest bit is signal 1.
    ignored.is_some_and(|signals| signals & 1 == 1)
}

fn run_node(run: &Run) -> Result<(), Failure> {
    let Asked { stop, mut renew } = Asked::wait(HangUp::Renew, run.stop_with_stdin)?;
    let config = Config::load(&run.config).map_err(|error| Failure::Usage(error.to_string()))?;
    let server = Server::start(config).map_err(|error| Failure::Start(error.to_string()))?;
    while !*stop.borrow() && !server.is_finished() {
        if renew.has_changed().unwrap_or(false) {
            renew.mark_unchanged();
            server.renew_certificates();
        }
        thread::sleep(WATCH_INTERVAL / 4);
    }
    server.stop();
    server.join().map_err(|error| Failure::Running(error.to_string()))
}

fn check_config(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path).map_err(|error| Failure::Usage(error.to_string()))?;
    let founders = config.formation.founders.len();
    let told =
        writeln!(io::stdout(), "{}: good: node {}, one of {founders} founders", path.display(), config.id.0);
    told.map_err(|error| Failure::Running(error.to_string()))
}

fn print_reference() -> Result<(), Failure> {
    write!(io::stdout(), "{}", reference()).map_err(|error| Failure::Running(error.to_string()))
}

/// Says what the node says of itself. Whatever else is wrong with it is for others to find out.
fn ask_health(health: &Health) -> Result<(), Failure> {
    let listener =
        Config::http_listener(&health.config).map_err(|error| Failure::Usage(error.to_string()))?;
    let path = if health.ready { "/readyz" } else { "/healthz" };
    let (is_well, answer) = health::ask(listener, path, Duration::from_millis(health.timeout_ms))
        .map_err(|error| Failure::Running(format!("http://{listener}{path}: {error}")))?;
    if !is_well {
        return Err(Failure::Running(answer));
    }
    writeln!(io::stdout(), "{answer}").map_err(|error| Failure::Running(error.to_string()))
}

fn run_dev(dev: Dev) -> Result<(), Failure> {
    let began = Instant::now();
    let Asked { stop, .. } = Asked::wait(HangUp::Stop, false)?;
    let options = DevOptions {
        nodes: dev.nodes,
        directory: dev.dir,
        base_port: dev.base_port,
        http_base_port: dev.http_base_port,
        datacenters: dev.datacenters,
        fresh: dev.fresh,
    };
    let program = std::env::current_exe().map_err(|error| Failure::Start(error.to_string()))?;
    let (quorate, quorated) = (command_to_paste(&program), pasteable(&program));
    let mode = if dev.processes { Mode::Processes { program } } else { Mode::Threads };
    let nodes = options.nodes;
    let started = DevCluster::start(options, &mode, || *stop.borrow());
    let mut out = io::stdout();
    let mut cluster = match started {
        Ok(cluster) => cluster,
        Err(cancelled @ DevError::Cancelled) => {
            // It was asked for, whether or not somebody reads this.
            drop(writeln!(out, "{cancelled}"));
            return Ok(());
        }
        Err(error @ DevError::Layout(LayoutError::Options(_))) => {
            return Err(Failure::Usage(error.to_string()));
        }
        Err(error) => return Err(Failure::Start(error.to_string())),
    };
    let told = writeln!(out, "ready: {nodes} nodes in {:.2} s", began.elapsed().as_secs_f64())
        .and_then(|()| cluster.describe(&mut out, &quorate))
        .and_then(|()| writeln!(out, "Ctrl-C stops them."))
        .and_then(|()| out.flush());
    while told.is_ok() && !*stop.borrow() && !cluster.is_over() {
        for sentence in cluster.newly_ended(&quorated) {
            drop(writeln!(io::stdout(), "{sentence}"));
        }
        thread::sleep(WATCH_INTERVAL);
    }
    let ended_by_itself = cluster.is_over();
    cluster.stop();
    if ended_by_itself {
        return Err(Failure::Running("all nodes have ended".to_owned()));
    }
    // The terminal may be what has gone.
    drop(writeln!(io::stdout(), "stopped: all nodes have ended"));
    Ok(())
}

/// How the user calls the client program: by its path if it was built beside this one.
fn command_to_paste(program: &Path) -> String {
    let beside = program.with_file_name("quorate");
    if beside.exists() {
        return pasteable(&beside);
    }
    "cargo run --release --bin quorate --".to_owned()
}
