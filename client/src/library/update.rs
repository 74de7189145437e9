//! Updates: read, merge, write with the context of the read, until nobody else wrote in between.

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::{
    failure::{ReadFailure, WriteFailure},
    keyspace::KeyspaceHandle,
    write::Written,
};
use crate::{Level, ReturnedValue, TIMEOUT_DEFAULT};

/// Rounds of an update unless told otherwise. Writers that meet wait for a random time, so each round of a few of
/// them lets at least one through.
const ROUNDS_DEFAULT: u32 = 10;
/// The longest wait after the first conflict; it doubles with each.
const CONFLICT_WAIT_FIRST: Duration = Duration::from_millis(4);

/// An update that has yet to be sent.
///
/// The function gets all concurrent values, none for a key that has none, and returns the one that takes their place.
/// It is a *merge*: it may be called again with its own earlier result among the values, because a write that met
/// another stands beside it until the next round resolves both. So applying it twice must do no more than applying
/// it once: adding an element to a set is such a function; adding one to a number is not.
///
/// ```no_run
/// # async fn example(client: client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::collections::BTreeSet;
///
/// let carts = client.keyspace("carts")?;
/// let add_book = |siblings: &[client::ReturnedValue]| {
///     let texts = siblings.iter().map(|value| String::from_utf8_lossy(&value.bytes).into_owned());
///     let mut items: BTreeSet<String> = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
///     items.insert("book".to_owned());
///     items.into_iter().collect::<Vec<_>>().join("\n")
/// };
/// carts.update("cart:42", add_book).send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is read or written before `send`"]
pub struct UpdateBuilder<M> {
    keyspace: KeyspaceHandle,
    key: Bytes,
    merge: M,
    read: Level,
    write: Level,
    n: Option<u8>,
    rounds: u32,
    retry_in_doubt: bool,
    timeout: Duration,
}

/// Why an update did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpdateFailure {
    /// The key could not be read. Nothing was written in this round.
    #[error("reading: {0}")]
    Read(#[from] ReadFailure),
    /// The merged value was not acknowledged.
    #[error("writing: {0}")]
    Write(#[from] WriteFailure),
    /// Others wrote in every round. The last merged value is stored, beside theirs.
    #[error("others wrote the key in each of {rounds} rounds; the value is stored beside theirs")]
    Conflicts {
        /// How many rounds there were.
        rounds: u32,
    },
    /// A last-write-wins keyspace does not tell that somebody else wrote, so the update would silently lose theirs.
    #[error(
        "a last-write-wins keyspace cannot be updated: what others write meanwhile would be lost unnoticed"
    )]
    LastWriteWins,
}

impl<M, V> UpdateBuilder<M>
where
    M: FnMut(&[ReturnedValue]) -> V,
    V: Into<Bytes>,
{
    pub(crate) fn new(keyspace: KeyspaceHandle, key: Bytes, merge: M) -> UpdateBuilder<M> {
        UpdateBuilder {
            keyspace,
            key,
            merge,
            read: Level::Quorum,
            write: Level::Quorum,
            n: None,
            rounds: ROUNDS_DEFAULT,
            retry_in_doubt: false,
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// How many replicas must answer the reads: a quorum, unless told otherwise.
    pub fn r(mut self, level: Level) -> UpdateBuilder<M> {
        self.read = level;
        self
    }

    /// How many replicas must acknowledge the writes: a quorum, unless told otherwise.
    pub fn w(mut self, level: Level) -> UpdateBuilder<M> {
        self.write = level;
        self
    }

    /// Copies in each of the keyspace's datacenters, if not as many as the keyspace says.
    pub fn n(mut self, copies: u8) -> UpdateBuilder<M> {
        self.n = Some(copies);
        self
    }

    /// The most rounds: 10, unless told otherwise.
    pub fn rounds(mut self, rounds: u32) -> UpdateBuilder<M> {
        self.rounds = rounds;
        self
    }

    /// Whether a write may be sent again after an attempt that may have happened, as in
    /// [`PutBuilder::retry_in_doubt`](crate::PutBuilder::retry_in_doubt).
    pub fn retry_in_doubt(mut self, retry: bool) -> UpdateBuilder<M> {
        self.retry_in_doubt = retry;
        self
    }

    /// How long all rounds together may take: [`TIMEOUT_DEFAULT`], unless told otherwise.
    pub fn timeout(mut self, timeout: Duration) -> UpdateBuilder<M> {
        self.timeout = timeout;
        self
    }

    /// Reads, merges and writes.
    ///
    /// # Errors
    ///
    /// See [`UpdateFailure`].
    pub async fn send(mut self) -> Result<Written, UpdateFailure> {
        let deadline = Instant::now() + self.timeout;
        let left = || deadline.saturating_duration_since(Instant::now());
        let resolved = self.keyspace.resolve(deadline).await.map_err(WriteFailure::Refused)?;
        if resolved.is_last_write_wins() {
            return Err(UpdateFailure::LastWriteWins);
        }
        let mut wait = CONFLICT_WAIT_FIRST;
        for _ in 0..self.rounds {
            let mut get = self.keyspace.get(self.key.clone()).r(self.read).timeout(left());
            if let Some(n) = self.n {
                get = get.n(n);
            }
            let found = get.send().await?;
            let value = (self.merge)(&found.values);
            let mut put = self.keyspace.put(self.key.clone(), value).w(self.write).context(found.context);
            if let Some(n) = self.n {
                put = put.n(n);
            }
            let written = put.retry_in_doubt(self.retry_in_doubt).timeout(left()).send().await?;
            // A context is given only if nothing stands beside the value.
            if written.context.is_some() {
                return Ok(written);
            }
            sleep(self.keyspace.cluster().random.jittered(wait)).await;
            wait = wait.saturating_mul(2).min(left());
        }
        Err(UpdateFailure::Conflicts { rounds: self.rounds })
    }
}
