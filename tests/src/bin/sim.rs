//! Explores seeds: runs the simulated cluster from one seed after the other until a checker finds a broken promise.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use node::PlantedBug;
use quorate_tests::{
    history::Ending,
    run::{OPERATIONS_DEFAULT, RunOptions, RunReport, profile_for, run},
    swarm::Profile,
};

/// Longest that a planted bug may stay hidden.
const PLANTED_TIME_MAX: Duration = Duration::from_secs(60);

/// Runs the simulated cluster from seeds, and checks what happened.
///
/// Each seed draws a cluster, its clients and its faults, and decides every detail of the run. A seed that breaks a
/// promise is printed with the one command that replays it. The exit code is 1 if any promise was broken.
#[derive(Clone, Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds to run, one after the other.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Client operations in each run.
    #[arg(long, default_value_t = OPERATIONS_DEFAULT)]
    operations: usize,
    /// Plants this bug in every node, and makes its circumstances likely.
    #[arg(long, value_parser = bug_named)]
    bug: Option<PlantedBug>,
    /// Makes the circumstances of this kind of run likely.
    #[arg(long, value_parser = profile_named, conflicts_with = "bug")]
    profile: Option<Profile>,
    /// Plants each bug in turn, and says how soon it is found.
    #[arg(long)]
    planted: bool,
    /// Goes on after a broken promise.
    #[arg(long)]
    keep_going: bool,
    /// Prints what happens in each run.
    #[arg(long)]
    trace: bool,
    /// Threads; each runs seeds of its own.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// What all runs together came to.
#[derive(Default)]
struct Totals {
    runs: u64,
    events: u64,
    converged_micros_max: u64,
    by_name: BTreeMap<&'static str, u64>,
    failures: Vec<RunReport>,
}

fn bug_named(name: &str) -> Result<PlantedBug, String> {
    let bugs = || PlantedBug::ALL.into_iter().chain(PlantedBug::SCRIPTED);
    let names: Vec<String> = bugs().map(|bug| format!("{bug:?}")).collect();
    let found = bugs().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("the bugs are {}", names.join(", ")))
}

fn profile_named(name: &str) -> Result<Profile, String> {
    let names = Profile::ALL.map(|profile| format!("{profile:?}"));
    let found = Profile::ALL.into_iter().find(|profile| format!("{profile:?}").eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("the profiles are {}", names.join(", ")))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = if arguments.planted { planted(&arguments) } else { explore(&arguments) };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        // Nobody is left to tell if the output is closed.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Runs the seeds. Whether no promise was broken.
fn explore(arguments: &Arguments) -> io::Result<bool> {
    let began = Instant::now();
    let options = options(arguments, arguments.bug);
    let totals = search(arguments, options, !arguments.keep_going, None);
    let mut out = io::stdout().lock();
    if arguments.trace {
        let reports = (0..arguments.seeds).map(|offset| run(arguments.seed + offset, options));
        for line in reports.flat_map(|report| report.trace) {
            writeln!(out, "{line}")?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let (runs, events) = (totals.runs, totals.events);
    writeln!(out, "{runs} runs in {seconds:.1} s: {:.1} a second, {} events", runs as f64 / seconds, events)?;
    writeln!(out, "convergence took {} ms at most", totals.converged_micros_max / 1000)?;
    for (name, count) in &totals.by_name {
        writeln!(out, "  {count:>10}  {name}")?;
    }
    for report in totals.failures.iter().take(20) {
        report_failure(&mut out, arguments, report)?;
    }
    if totals.failures.len() > 20 {
        writeln!(out, "and {} more", totals.failures.len() - 20)?;
    }
    Ok(totals.failures.is_empty())
}

fn report_failure(out: &mut impl Write, arguments: &Arguments, report: &RunReport) -> io::Result<()> {
    writeln!(out, "seed {} breaks {} promises:", report.seed, report.violations.len())?;
    for violation in report.violations.iter().take(5) {
        writeln!(out, "  {violation}")?;
    }
    let bug = arguments.bug.map_or(String::new(), |bug| format!(" --bug {bug:?}"));
    let profile = arguments.profile.map_or(String::new(), |profile| format!(" --profile {profile:?}"));
    let operations = match arguments.operations {
        OPERATIONS_DEFAULT => String::new(),
        other => format!(" --operations {other}"),
    };
    let seed = report.seed;
    writeln!(
        out,
        "  cargo run --release -p quorate-tests --bin sim -- --seed {seed}{bug}{profile}{operations} --trace"
    )
}

/// Plants each bug and searches for it. Whether all were found in time.
fn planted(arguments: &Arguments) -> io::Result<bool> {
    let mut all_found = true;
    writeln!(io::stdout(), "{:<30} {:>6} {:>9}  found by", "bug", "seeds", "seconds")?;
    for bug in PlantedBug::ALL {
        let began = Instant::now();
        let unbounded = Arguments { seeds: u64::MAX - arguments.seed, ..arguments.clone() };
        let totals = search(&unbounded, options(arguments, Some(bug)), true, Some(PLANTED_TIME_MAX));
        let seconds = began.elapsed().as_secs_f64();
        let mut out = io::stdout().lock();
        match totals.failures.first() {
            Some(report) => {
                let mut checkers: Vec<_> =
                    report.violations.iter().map(|found| format!("{:?}", found.checker)).collect();
                checkers.dedup();
                let checkers = checkers.join(", ");
                writeln!(out, "{:<30} {:>6} {seconds:>9.2}  {checkers}", format!("{bug:?}"), totals.runs)?;
            }
            None => {
                all_found = false;
                writeln!(out, "{:<30} {:>6} {seconds:>9.2}  NOT FOUND", format!("{bug:?}"), totals.runs)?;
            }
        }
    }
    Ok(all_found)
}

fn options(arguments: &Arguments, bug: Option<PlantedBug>) -> RunOptions {
    let profile = bug.map_or(arguments.profile.unwrap_or_default(), profile_for);
    RunOptions { bug, profile, operations: arguments.operations, traced: arguments.trace }
}

/// Runs seeds on all threads, until they are done, one broke a promise, or the time is up.
fn search(arguments: &Arguments, options: RunOptions, stops: bool, time: Option<Duration>) -> Totals {
    let (began, next, is_over) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    // The trace of a single run is printed from a run of its own; searching keeps none.
    let untraced = RunOptions { traced: false, ..options };
    thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let offset = next.fetch_add(1, Ordering::Relaxed);
                    if offset >= arguments.seeds || time.is_some_and(|time| began.elapsed() > time) {
                        break;
                    }
                    let report = run(arguments.seed + offset, untraced);
                    let mut totals = totals.lock().expect("no thread panics while it counts");
                    totals.add(report);
                    if totals.runs.is_multiple_of(1000) && time.is_none() {
                        progress(&totals, began);
                    }
                    if stops && !totals.failures.is_empty() {
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut totals = totals.into_inner().expect("no thread panics while it counts");
    totals.failures.sort_by_key(|report| report.seed);
    totals
}

fn progress(totals: &Totals, began: Instant) {
    let (runs, failures) = (totals.runs, totals.failures.len());
    let rate = runs as f64 / began.elapsed().as_secs_f64();
    drop(writeln!(io::stderr(), "{runs} runs, {rate:.0} a second, {failures} broke a promise"));
}

impl Totals {
    fn add(&mut self, report: RunReport) {
        self.runs += 1;
        self.events += report.counts.events;
        for (name, count) in &report.counts.by_name {
            *self.by_name.entry(name).or_default() += count;
        }
        if let Ending::Converged { after_micros } = report.ending {
            self.converged_micros_max = self.converged_micros_max.max(after_micros);
        }
        if !report.violations.is_empty() {
            self.failures.push(report);
        }
    }
}
