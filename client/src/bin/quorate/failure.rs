//! What went wrong with a command, what the caller of the program may conclude, and what a person can do about it.

use std::{io, path::PathBuf, process::ExitCode};

use client::{
    BadKeyspaceName, ConfigError, ConnectError, ControlFailure, DialError, KeysFailure, ReadFailure, Refusal,
    Unreachable, VALUE_BYTES_MAX, WriteFailure, certificates::CertificateError, wire::ControlError,
};
use thiserror::Error;

use crate::record::LineError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked for is done.
    Done,
    /// There is no such thing.
    NotFound,
    /// The command line or the configuration cannot be used.
    Usage,
    /// It did not happen and never will.
    Failed,
    /// It may have happened, or may yet.
    InDoubt,
    /// No node could be asked.
    Unreachable,
    /// The person at the keyboard ended it.
    Interrupted,
}

/// Why a command failed.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    #[error(
        "no configuration: neither ./client.toml nor ./quorate-dev/client.toml is there; name one with --config"
    )]
    NoConfig,
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("{0}; does the cluster run? `quorated dev` starts one on this machine")]
    NobodyThere(Unreachable),
    #[error("{0}")]
    KeyspaceName(#[from] BadKeyspaceName),
    #[error("no such keyspace: `{0}` (`quorate keyspace list` shows what there is)")]
    NoSuchKeyspace(String),
    #[error("no partition {number}: the cluster has {count}, from 0 on")]
    NoSuchPartition { number: u16, count: u32 },
    #[error("no keyspace is called `{0}` (`quorate keyspace list` shows what there is)")]
    NoKeyspaceToShow(String),
    #[error("{failure}{}", advice_on_read(failure))]
    Read { failure: ReadFailure },
    #[error("{failure}{}", advice_on_write(failure))]
    Write { failure: WriteFailure },
    #[error("{failure}{}", advice_on_control(failure))]
    Control { failure: ControlFailure },
    #[error(
        "the key has {0} concurrent values, and --raw prints a single one: get it without --raw, or with --json"
    )]
    SeveralValues(usize),
    #[error("{0}")]
    Keys(#[from] KeysFailure),
    #[error("{0}")]
    Certificate(#[from] CertificateError),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("stdin: {0}")]
    Stdin(io::Error),
    #[error("the value on stdin is too large: the limit is {VALUE_BYTES_MAX} bytes")]
    LongStdin,
    #[error("stdout: {0}")]
    Stdout(io::Error),
    #[error("line {line}: {error}; nothing after it was stored, and a second run goes on from here")]
    BadLine { line: u64, error: LineError },
    #[error("line {line}: {cause}; a second run goes on from here")]
    Line { line: u64, cause: Box<CommandError> },
    #[error("the keyspace keeps the last write alone, and the record has several concurrent values")]
    SiblingsInLastWriteWins,
    #[error("interrupted")]
    Interrupted,
    #[error("interrupted: it may have happened, or may yet")]
    InterruptedInDoubt,
    #[error("no runtime: {0}")]
    Runtime(io::Error),
}

impl CommandError {
    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            CommandError::NoConfig
            | CommandError::Config(_)
            | CommandError::KeyspaceName(_)
            | CommandError::Connect(
                ConnectError::Material(_) | ConnectError::NoSeeds | ConnectError::NoSuchDatacenter { .. },
            )
            | CommandError::Certificate(
                CertificateError::BadName(_)
                | CertificateError::AuthoritysName(_)
                | CertificateError::BadHost(_)
                | CertificateError::HostOfClient(_)
                | CertificateError::NoDays,
            ) => Exit::Usage,
            CommandError::Connect(ConnectError::Unreachable(_)) | CommandError::NobodyThere(_) => {
                Exit::Unreachable
            }
            CommandError::NoKeyspaceToShow(_) => Exit::NotFound,
            CommandError::Read { failure } => match failure {
                ReadFailure::Refused(_) | ReadFailure::TimedOut { .. } => Exit::Failed,
                ReadFailure::Silent { .. } | ReadFailure::Unreachable(_) => Exit::Unreachable,
            },
            CommandError::Write { failure } => match failure {
                WriteFailure::Refused(_) => Exit::Failed,
                WriteFailure::InDoubt(_) => Exit::InDoubt,
                WriteFailure::Unreachable(_) => Exit::Unreachable,
            },
            CommandError::Control { failure } if failure.is_in_doubt() => Exit::InDoubt,
            CommandError::Control { failure: ControlFailure::Unreachable(_) } => Exit::Unreachable,
            // Reading the end of a pipe that nobody reads any longer is no failure of this program's.
            CommandError::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            CommandError::Line { cause, .. } => cause.exit(),
            CommandError::Control { .. }
            | CommandError::NoSuchKeyspace(_)
            | CommandError::NoSuchPartition { .. }
            | CommandError::SeveralValues(_)
            | CommandError::LongStdin
            | CommandError::Keys(_)
            | CommandError::Certificate(_)
            | CommandError::File { .. }
            | CommandError::Stdin(_)
            | CommandError::Stdout(_)
            | CommandError::BadLine { .. }
            | CommandError::SiblingsInLastWriteWins
            | CommandError::Runtime(_) => Exit::Failed,
            CommandError::Interrupted => Exit::Interrupted,
            CommandError::InterruptedInDoubt => Exit::InDoubt,
        }
    }

    /// Why there is no connection. Where the configuration was found by itself and nobody answers, it may be of a cluster
    /// that does not run.
    pub(crate) fn connect(error: ConnectError, config_was_named: bool) -> CommandError {
        let is_silent = |unreachable: &Unreachable| {
            unreachable.tried.iter().all(|tried| matches!(tried.cause, DialError::Silent))
        };
        match error {
            ConnectError::Unreachable(unreachable) if !config_was_named && is_silent(&unreachable) => {
                CommandError::NobodyThere(unreachable)
            }
            error => CommandError::Connect(error),
        }
    }

    /// Whether there is nothing to say: whoever read the output has seen enough.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, CommandError::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// A get that failed in `keyspace`.
    pub(crate) fn read(failure: ReadFailure, keyspace: &str) -> CommandError {
        match failure {
            ReadFailure::Refused(Refusal::UnknownKeyspace) => {
                CommandError::NoSuchKeyspace(keyspace.to_owned())
            }
            failure => CommandError::Read { failure },
        }
    }

    /// A put or a delete that failed in `keyspace`.
    pub(crate) fn write(failure: WriteFailure, keyspace: &str) -> CommandError {
        match failure {
            WriteFailure::Refused(Refusal::UnknownKeyspace) => {
                CommandError::NoSuchKeyspace(keyspace.to_owned())
            }
            failure => CommandError::Write { failure },
        }
    }

    /// A listing that failed in `keyspace`.
    pub(crate) fn keys(failure: KeysFailure, keyspace: &str) -> CommandError {
        match failure {
            KeysFailure::Refused(Refusal::UnknownKeyspace) => {
                CommandError::NoSuchKeyspace(keyspace.to_owned())
            }
            failure => CommandError::Keys(failure),
        }
    }
}

impl From<ControlFailure> for CommandError {
    fn from(failure: ControlFailure) -> CommandError {
        CommandError::Control { failure }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::NotFound => 1,
            Exit::Usage => 2,
            Exit::Failed => 3,
            Exit::InDoubt => 4,
            Exit::Unreachable => 5,
            // As shells report a process that SIGINT ended.
            Exit::Interrupted => 130,
        })
    }
}

/// Why one node did not answer, where it is plain which.
pub(crate) fn reason(failure: &ControlFailure) -> String {
    match failure {
        ControlFailure::Unreachable(unreachable) if unreachable.tried.len() == 1 => {
            unreachable.tried[0].cause.to_string()
        }
        ControlFailure::Silent { .. } => "no answer".to_owned(),
        other => other.to_string(),
    }
}

const FORBIDDEN: &str = "; use a certificate that `quorate cert client NAME --role ...` issued for it";
const OTHER_KEYSPACES: &str =
    "; use a certificate that `quorate cert client NAME --role ... --keyspaces ...` issued for this one";

/// What to do about a refusal, where that is not plain from it.
fn advice(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Unavailable { .. } => "; try again when more nodes are up, or ask for a lower level",
        Refusal::Overloaded(_) => "; try again a little later",
        Refusal::TooManySiblings { .. } => "; get the key and put with its --context to resolve them",
        Refusal::BadContext => "; get the key again for a context that fits",
        Refusal::Forbidden { .. } => FORBIDDEN,
        Refusal::OtherKeyspaces => OTHER_KEYSPACES,
        Refusal::ClockDrift { .. } => "; see to that node's clock",
        Refusal::NotReady => "; try again in a moment",
        Refusal::StaleEpoch { .. }
        | Refusal::Unsatisfiable(_)
        | Refusal::BadCopies { .. }
        | Refusal::EmptyKey
        | Refusal::TooLarge { .. }
        | Refusal::TooManyWriters { .. }
        | Refusal::UnknownKeyspace
        | Refusal::Malformed => "",
    }
}

fn advice_on_read(failure: &ReadFailure) -> &'static str {
    match failure {
        ReadFailure::Refused(refusal) => advice(refusal),
        ReadFailure::TimedOut { .. } | ReadFailure::Silent { .. } => {
            "; try again, or with a longer --timeout"
        }
        ReadFailure::Unreachable(_) => "",
    }
}

fn advice_on_write(failure: &WriteFailure) -> &'static str {
    match failure {
        WriteFailure::Refused(refusal) => advice(refusal),
        WriteFailure::InDoubt(_) => "; it may have happened, or may yet: get the key to find out",
        WriteFailure::Unreachable(_) => "; nothing was sent",
    }
}

fn advice_on_control(failure: &ControlFailure) -> &'static str {
    match failure {
        ControlFailure::Refused(ControlError::Forbidden { .. }) => FORBIDDEN,
        ControlFailure::Refused(ControlError::OtherKeyspaces) => OTHER_KEYSPACES,
        failure if failure.is_in_doubt() => "; it may have happened, or may yet: running it again is safe",
        _ => "",
    }
}
