//! Measures parts of Quorate by themselves and prints what they cost.
//!
//! ```text
//! cargo run --release -p quorate-benches --bin quorate-bench -- antientropy
//! ```

mod antientropy;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// Measures parts of Quorate by themselves.
#[derive(Debug, Parser)]
#[command(name = "quorate-bench", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What it takes to bring two replicas in sync, by how much differs: bytes, round trips and processor time.
    Antientropy(antientropy::Options),
}

fn main() -> ExitCode {
    let What::Antientropy(options) = Arguments::parse().what;
    match antientropy::run(&options, io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(io::stderr(), "quorate-bench: {error}"));
            ExitCode::FAILURE
        }
    }
}
