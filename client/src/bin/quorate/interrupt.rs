//! Ctrl-C: the first one ends a command in order, the second one at once.

use std::{future::Future, io, process};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::failure::CommandError;

/// Hears of SIGINT and SIGTERM.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    heard: watch::Receiver<bool>,
}

impl Interrupt {
    /// Listens from now on.
    pub(crate) fn listen() -> Interrupt {
        let (sender, heard) = watch::channel(false);
        tokio::spawn(async move {
            // Where signals cannot be heard they end the process, as they do by default.
            if first_signal().await.is_ok() {
                sender.send_replace(true);
                if first_signal().await.is_ok() {
                    process::exit(130);
                }
            }
            // Nobody hears of anything any more, but no interrupt was heard either.
            std::future::pending::<()>().await;
        });
        Interrupt { heard }
    }

    /// Waits for the first one.
    pub(crate) async fn heard(&self) {
        if self.heard.clone().wait_for(|is_heard| *is_heard).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Does something that changes nothing.
    pub(crate) async fn may_end<T>(
        &self,
        command: impl Future<Output = Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        self.or_end(command, CommandError::Interrupted).await
    }

    /// Does something that may have changed something when it is interrupted.
    pub(crate) async fn may_doubt<T>(
        &self,
        command: impl Future<Output = Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        self.or_end(command, CommandError::InterruptedInDoubt).await
    }

    async fn or_end<T>(
        &self,
        command: impl Future<Output = Result<T, CommandError>>,
        interrupted: CommandError,
    ) -> Result<T, CommandError> {
        tokio::select! {
            biased;
            ended = command => ended,
            () = self.heard() => Err(interrupted),
        }
    }
}

async fn first_signal() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
