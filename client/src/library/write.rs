//! Puts and deletes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ring::{Durability, NodeId};
use tokio::time::Instant;

use super::{
    attempts::{ATTEMPTS_MAX, Kind},
    context::Context,
    failure::WriteFailure,
    keyspace::{KeyspaceHandle, Resolved, check_key},
    operation::Operation,
    overlap::Overlap,
};
use crate::{Delete, Level, Preset, Put, Refusal, Request, VALUE_BYTES_MAX, Version, WriteOptions};

/// A put that has yet to be sent.
///
/// ```no_run
/// # async fn example(client: client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use client::{Level, WriteFailure};
///
/// let carts = client.keyspace("carts")?;
/// let found = carts.get("cart:42").send().await?;
/// // Replaces what was read, and nothing that somebody else writes meanwhile.
/// let put = carts.put("cart:42", r#"{"items": ["book"]}"#).context(found.context).w(Level::Quorum);
/// match put.send().await {
///     Ok(written) => println!("on {} replicas", written.acknowledged),
///     Err(WriteFailure::InDoubt(doubt)) => println!("it may have happened, or may yet: {doubt}"),
///     Err(failure) => println!("it did not happen and never will: {failure}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is written before `send`"]
pub struct PutBuilder {
    value: Bytes,
    expires: Expiry,
    write: Write,
}

/// A delete that has yet to be sent. Without a context it deletes what a read at the same level finds.
///
/// ```no_run
/// # async fn example(client: client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// client.keyspace("carts")?.delete("cart:42").send().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is deleted before `send`"]
pub struct DeleteBuilder {
    write: Write,
}

/// An acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The version it was given; none for a delete that found nothing to delete.
    pub version: Option<Version>,
    /// A context that covers the write; none if something that its writer had not seen stands beside it.
    pub context: Option<Context>,
    /// How many replicas had to acknowledge.
    pub required: u8,
    /// How many had when the reply was made.
    pub acknowledged: u8,
    /// How many of these stood in for a replica that was down or silent: see [`PutBuilder::sloppy`].
    pub stood_in: u8,
    /// Whether reads of the level that was assumed are sure to meet the write, and by which numbers. They are not if
    /// nodes stood in for replicas.
    pub overlap: Overlap,
    /// Who coordinated it.
    pub coordinator: NodeId,
}

/// What puts and deletes have in common.
#[derive(Clone, Debug)]
struct Write {
    keyspace: KeyspaceHandle,
    key: Bytes,
    options: WriteOptions,
    retry_in_doubt: bool,
    readers: Level,
    attempts_max: u32,
}

/// When a value ends.
#[derive(Clone, Copy, Debug)]
enum Expiry {
    Never,
    After(Duration),
    At { unix_ms: u64 },
}

/// The setters that both builders have.
macro_rules! write_setters {
    ($builder:ident) => {
        impl $builder {
            /// How many replicas must acknowledge: a quorum, unless told otherwise.
            pub fn w(mut self, level: Level) -> $builder {
                self.write.options.level = level;
                self
            }

            /// Copies in each of the keyspace's datacenters, if not as many as the keyspace says.
            pub fn n(mut self, copies: u8) -> $builder {
                self.write.options.n = Some(copies);
                self
            }

            /// When a replica may acknowledge, if not as the keyspace says.
            pub fn durability(mut self, durability: Durability) -> $builder {
                self.write.options.durability = Some(durability);
                self
            }

            /// Whether other nodes may stand in for replicas that are down or silent, and count (a sloppy quorum, section
            /// 4.6 of the Dynamo paper); not, unless told so. The level `any` always lets them.
            ///
            /// Such a write is as durable as any other, and is handed over when the replicas are back. Until then reads may
            /// miss it, whatever their level: [`Written::stood_in`] and [`Written::overlap`] say so.
            pub fn sloppy(mut self, is_sloppy: bool) -> $builder {
                self.write.options.is_sloppy = is_sloppy;
                self
            }

            /// The context of the read that this write follows: exactly what that read saw is replaced.
            pub fn context(mut self, context: Context) -> $builder {
                self.write.options.context = Some(context.into_bytes());
                self
            }

            /// The n and w of a well-known choice, and its r for [`Written::overlap`].
            pub fn preset(self, preset: Preset) -> $builder {
                self.n(preset.n).w(Level::Count(preset.w)).readers_use(Level::Count(preset.r))
            }

            /// The level at which this keyspace's readers read, for [`Written::overlap`] alone: a quorum, unless told
            /// otherwise.
            pub fn readers_use(mut self, level: Level) -> $builder {
                self.write.readers = level;
                self
            }

            /// How long it may take, retries and all: [`TIMEOUT_DEFAULT`](crate::TIMEOUT_DEFAULT), unless told
            /// otherwise.
            pub fn timeout(mut self, timeout: Duration) -> $builder {
                self.write.options.timeout = timeout;
                self
            }

            /// The most attempts, whatever time is left: 16, unless told otherwise. With one, what the first node says
            /// stands.
            pub fn attempts(mut self, attempts_max: u32) -> $builder {
                self.write.attempts_max = attempts_max;
                self
            }

            /// Whether it may be sent again, under the same request id, after an attempt that may have happened; not,
            /// unless told so.
            ///
            /// A coordinator that knows the id brings the first attempt to its level instead of writing again. One that
            /// does not may store the value twice: that shows once, and the next write drops one of the two. In a
            /// last-write-wins keyspace, and after a delete in between, a late duplicate can win over what was written
            /// meanwhile.
            pub fn retry_in_doubt(mut self, retry: bool) -> $builder {
                self.write.retry_in_doubt = retry;
                self
            }
        }
    };
}

write_setters!(PutBuilder);
write_setters!(DeleteBuilder);

impl PutBuilder {
    pub(crate) fn new(keyspace: KeyspaceHandle, key: Bytes, value: Bytes) -> PutBuilder {
        PutBuilder { value, expires: Expiry::Never, write: Write::new(keyspace, key) }
    }

    /// When the value ends, counted from when it is sent, by this machine's clock.
    pub fn ttl(mut self, ttl: Duration) -> PutBuilder {
        self.expires = Expiry::After(ttl);
        self
    }

    /// When the value ends, in milliseconds of Unix time.
    pub fn expires_unix_ms(mut self, unix_ms: u64) -> PutBuilder {
        self.expires = Expiry::At { unix_ms };
        self
    }

    /// Sends it, and tries again where that is safe.
    ///
    /// # Errors
    ///
    /// See [`WriteFailure`], which tells what did not happen from what may have.
    pub async fn send(self) -> Result<Written, WriteFailure> {
        if self.value.len() > VALUE_BYTES_MAX {
            let (size_bytes, limit_bytes) = (self.value.len(), VALUE_BYTES_MAX);
            return Err(WriteFailure::Refused(Refusal::TooLarge { size_bytes, limit_bytes }));
        }
        let (value, expires_unix_ms) = (self.value, self.expires.unix_ms());
        self.write
            .send(|keyspace, key, options| {
                Request::Put(Put { keyspace, key, value, expires_unix_ms, options })
            })
            .await
    }
}

impl DeleteBuilder {
    pub(crate) fn new(keyspace: KeyspaceHandle, key: Bytes) -> DeleteBuilder {
        DeleteBuilder { write: Write::new(keyspace, key) }
    }

    /// Sends it, and tries again where that is safe.
    ///
    /// # Errors
    ///
    /// See [`WriteFailure`], which tells what did not happen from what may have.
    pub async fn send(self) -> Result<Written, WriteFailure> {
        self.write.send(|keyspace, key, options| Request::Delete(Delete { keyspace, key, options })).await
    }
}

impl Write {
    fn new(keyspace: KeyspaceHandle, key: Bytes) -> Write {
        let options = WriteOptions::default();
        let (retry_in_doubt, readers, attempts_max) = (false, Level::Quorum, ATTEMPTS_MAX);
        Write { keyspace, key, options, retry_in_doubt, readers, attempts_max }
    }

    async fn send(
        self,
        request: impl FnOnce(ring::KeyspaceId, Bytes, WriteOptions) -> Request,
    ) -> Result<Written, WriteFailure> {
        let begun = Instant::now();
        let deadline = begun + self.options.timeout;
        check_key(&self.key).map_err(WriteFailure::Refused)?;
        let resolved = self.keyspace.resolve(deadline).await.map_err(WriteFailure::Refused)?;
        let cluster = self.keyspace.cluster();
        let mut options = self.options;
        options.request = cluster.random.request_id();
        if resolved.is_last_write_wins() {
            options.seen = cluster.seen();
        }
        let (n, level) = (options.n, options.level);
        let kind = Kind::Write { retry_in_doubt: self.retry_in_doubt };
        let request = request(resolved.id, self.key, options);
        let operation =
            Operation { cluster, kind, request, attempts_max: self.attempts_max, begun, deadline };
        let reply = operation.write().await.map_err(|attempts| attempts.into_write_failure())?;
        saw(&resolved, cluster, reply.version);
        let mut overlap = resolved.overlap(n, self.readers, level, reply.coordinator);
        overlap.is_sure &= reply.stood_in == 0;
        Ok(Written {
            overlap,
            version: reply.version,
            context: reply.context.map(Context::from_bytes),
            required: reply.required,
            acknowledged: reply.acknowledged,
            stood_in: reply.stood_in,
            coordinator: reply.coordinator,
        })
    }
}

fn saw(resolved: &Resolved, cluster: &super::cluster::Cluster, version: Option<Version>) {
    if resolved.is_last_write_wins()
        && let Some(version) = version
    {
        cluster.saw(version.counter);
    }
}

impl Expiry {
    fn unix_ms(self) -> Option<u64> {
        match self {
            Expiry::Never => None,
            Expiry::At { unix_ms } => Some(unix_ms),
            Expiry::After(ttl) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Some(u64::try_from(now.saturating_add(ttl).as_millis()).unwrap_or(u64::MAX))
            }
        }
    }
}
