//! `quorate`: the command line of a Quorate cluster.
//!
//! Each command is a thin layer over the client library: it reads its arguments, asks, and prints, for people or
//! (`--json`) as one JSON document on stdout. Errors are one line on stderr, and the exit code says what may be
//! concluded: see [`Exit`].

mod arguments;
mod certificate;
mod data;
mod doctor;
mod explain;
mod export;
mod failure;
mod import;
mod interrupt;
mod judgement;
mod keyspace;
mod layout;
mod lines;
mod output;
mod progress;
mod record;
mod session;
mod status;
mod sync;
mod top;

use std::{io::Write, process::ExitCode};

use clap::Parser;

use crate::{
    arguments::{Arguments, Command},
    failure::{CommandError, Exit},
    interrupt::Interrupt,
    output::Output,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&CommandError::Runtime(error)).into(),
    };
    let exit = runtime.block_on(async {
        let interrupt = Interrupt::listen();
        run(arguments, &interrupt).await.unwrap_or_else(|error| report(&error))
    });
    // A thread that waits for input would hold the process until a line comes.
    runtime.shutdown_background();
    exit.into()
}

async fn run(arguments: Arguments, interrupt: &Interrupt) -> Result<Exit, CommandError> {
    let Arguments { command, global } = arguments;
    let output = Output::new(global.json);
    match command {
        Command::Put(put) => data::put(put, &global, &output, interrupt).await,
        Command::Get(get) => interrupt.may_end(data::get(get, &global, &output)).await,
        Command::Delete(delete) => data::delete(delete, &global, &output, interrupt).await,
        Command::Keyspace(command) => keyspace::run(command, &global, &output, interrupt).await,
        Command::Import(import) => import::run(import, &global, &output, interrupt).await,
        Command::Export(export) => interrupt.may_end(export::run(export, &global, &output)).await,
        Command::Status => interrupt.may_end(status::run(&global, &output)).await,
        Command::Top(top) => top::run(top, &global, &output, interrupt).await,
        Command::Doctor => interrupt.may_end(doctor::run(&global, &output)).await,
        Command::Lag => interrupt.may_end(sync::lag(&global, &output)).await,
        Command::Repair(repair) => interrupt.may_end(sync::repair(repair, &global, &output)).await,
        Command::Ring(ring) => interrupt.may_end(layout::run(ring, &global, &output)).await,
        Command::Explain(explain) => interrupt.may_end(explain::run(explain, &global, &output)).await,
        Command::Readmit(readmit) => status::readmit(readmit, &global, &output, interrupt).await,
        Command::Cert(command) => certificate::run(command, &output),
    }
}

/// Says what went wrong, and what that means for the caller of this program.
fn report(error: &CommandError) -> Exit {
    if !error.is_silent() {
        // Where stderr is closed there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "quorate: {error}");
    }
    error.exit()
}
