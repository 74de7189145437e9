//! Gets.

use std::time::Duration;

use bytes::Bytes;
use ring::NodeId;
use tokio::time::Instant;

use super::{
    attempts::{ATTEMPTS_MAX, Kind},
    context::Context,
    failure::ReadFailure,
    keyspace::{KeyspaceHandle, check_key},
    operation::Operation,
    overlap::Overlap,
};
use crate::{Freshness, Get, Level, Preset, ReadOptions, ReadRepair, Request, ReturnedValue};

/// A get that has yet to be sent.
///
/// ```no_run
/// # async fn example(client: client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use client::Level;
///
/// let found = client.keyspace("carts")?.get("cart:42").r(Level::One).send().await?;
/// for value in &found.values {
///     println!("{:?}", value.bytes);
/// }
/// if !found.overlap.is_sure {
///     println!("an acknowledged write may be missing: r + w is not more than n");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before `send`"]
pub struct GetBuilder {
    keyspace: KeyspaceHandle,
    key: Bytes,
    options: ReadOptions,
    writers: Level,
    attempts_max: u32,
}

/// What a get found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The values, newest first: none if the key has none; more than one if they are concurrent, and then a put with
    /// the context resolves them.
    pub values: Vec<ReturnedValue>,
    /// What a write that follows this read should carry.
    pub context: Context,
    /// How fresh it is.
    pub freshness: Freshness,
    /// Whether the read is sure to have met every acknowledged write, and by which numbers.
    pub overlap: Overlap,
    /// Who coordinated it.
    pub coordinator: NodeId,
}

impl GetBuilder {
    pub(crate) fn new(keyspace: KeyspaceHandle, key: Bytes) -> GetBuilder {
        let (options, writers) = (ReadOptions::default(), Level::Quorum);
        GetBuilder { keyspace, key, options, writers, attempts_max: ATTEMPTS_MAX }
    }

    /// How many replicas must answer: a quorum, unless told otherwise.
    pub fn r(mut self, level: Level) -> GetBuilder {
        self.options.level = level;
        self
    }

    /// Copies in each of the keyspace's datacenters to ask among, if not as many as the keyspace says.
    pub fn n(mut self, copies: u8) -> GetBuilder {
        self.options.n = Some(copies);
        self
    }

    /// What happens to stale replicas.
    pub fn read_repair(mut self, read_repair: ReadRepair) -> GetBuilder {
        self.options.read_repair = Some(read_repair);
        self
    }

    /// The level at which this keyspace's writers write, for [`Found::overlap`] alone: a quorum, unless told
    /// otherwise.
    pub fn writers_use(mut self, level: Level) -> GetBuilder {
        self.writers = level;
        self
    }

    /// The n and r of a well-known choice, and its w for [`Found::overlap`].
    pub fn preset(self, preset: Preset) -> GetBuilder {
        self.n(preset.n).r(Level::Count(preset.r)).writers_use(Level::Count(preset.w))
    }

    /// How long it may take, retries and all: [`TIMEOUT_DEFAULT`](crate::TIMEOUT_DEFAULT), unless told otherwise.
    pub fn timeout(mut self, timeout: Duration) -> GetBuilder {
        self.options.timeout = timeout;
        self
    }

    /// The most attempts, whatever time is left: 16, unless told otherwise. With one, what the first node says stands.
    pub fn attempts(mut self, attempts_max: u32) -> GetBuilder {
        self.attempts_max = attempts_max;
        self
    }

    /// Sends it, and asks another replica where one does not answer. A key without a value is found to have none,
    /// which is no failure.
    ///
    /// # Errors
    ///
    /// See [`ReadFailure`]. Trying again is always safe.
    pub async fn send(self) -> Result<Found, ReadFailure> {
        let begun = Instant::now();
        let deadline = begun + self.options.timeout;
        check_key(&self.key).map_err(ReadFailure::Refused)?;
        let resolved = self.keyspace.resolve(deadline).await.map_err(ReadFailure::Refused)?;
        let (n, level) = (self.options.n, self.options.level);
        let get = Get { keyspace: resolved.id, key: self.key, options: self.options };
        let cluster = self.keyspace.cluster();
        let (kind, request, attempts_max) = (Kind::Read, Request::Get(get), self.attempts_max);
        let operation = Operation { cluster, kind, request, attempts_max, begun, deadline };
        let reply = operation.get().await.map_err(|attempts| attempts.into_read_failure())?;
        if resolved.is_last_write_wins()
            && let Some(newest) = reply.values.iter().map(|value| value.version.counter).max()
        {
            cluster.saw(newest);
        }
        Ok(Found {
            overlap: resolved.overlap(n, level, self.writers, reply.coordinator),
            values: reply.values,
            context: Context::from_bytes(reply.context),
            freshness: reply.freshness,
            coordinator: reply.coordinator,
        })
    }
}

impl Found {
    /// The newest value; none if the key has none.
    #[must_use]
    pub fn newest(&self) -> Option<&Bytes> {
        self.values.first().map(|value| &value.bytes)
    }
}
