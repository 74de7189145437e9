//! From the command line to a connected client.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use client::{Client, ClientConfig, KeyspaceHandle, TIMEOUT_DEFAULT};

use crate::{arguments::Global, failure::CommandError};

/// Where the configuration is looked for when none is named.
const CONFIGS: [&str; 2] = ["client.toml", "quorate-dev/client.toml"];
/// How long a change of the cluster may take unless told otherwise: it is an agreement of the members, and waits
/// until every live one has it.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connected client, and what the command line says for every command.
pub(crate) struct Session {
    pub(crate) client: Client,
    timeout: Option<Duration>,
    keyspace: String,
}

impl Session {
    /// Reads the configuration and connects.
    pub(crate) async fn open(global: &Global) -> Result<Session, CommandError> {
        let mut config = ClientConfig::load(config_path(global)?)?;
        if let Some(timeout) = global.timeout {
            config.connect_timeout = timeout;
        }
        let keyspace = global.keyspace.clone().unwrap_or_else(|| config.keyspace.clone());
        let client = Client::connect(config)
            .await
            .map_err(|error| CommandError::connect(error, global.config.is_some()))?;
        Ok(Session { client, timeout: global.timeout, keyspace })
    }

    /// The keyspace that the command means.
    pub(crate) fn keyspace(&self) -> Result<KeyspaceHandle, CommandError> {
        Ok(self.client.keyspace(&self.keyspace)?)
    }

    /// The name of that keyspace.
    pub(crate) fn keyspace_name(&self) -> &str {
        &self.keyspace
    }

    /// How long one request may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout_or(TIMEOUT_DEFAULT)
    }

    /// How long a change of the cluster may take.
    pub(crate) fn change_timeout(&self) -> Duration {
        self.timeout_or(CHANGE_TIMEOUT)
    }

    /// What the command line says, or this.
    pub(crate) fn timeout_or(&self, default: Duration) -> Duration {
        self.timeout.unwrap_or(default)
    }

    /// Says goodbye, so that the nodes need not find out.
    pub(crate) async fn close(self) {
        self.client.close().await;
    }
}

fn config_path(global: &Global) -> Result<PathBuf, CommandError> {
    match &global.config {
        Some(path) => Ok(path.clone()),
        None => {
            let found = CONFIGS.iter().map(Path::new).find(|path| path.exists());
            found.map(Path::to_path_buf).ok_or(CommandError::NoConfig)
        }
    }
}
