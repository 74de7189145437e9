//! Sealed contexts: what a client holds between a read and the write that answers it.
//!
//! A context covers values, and a write drops what its context covers; so whoever can make up a context can erase
//! data that was never read. Contexts therefore leave the cluster sealed: opaque to the client, authenticated
//! with a key that only nodes hold, and bound to one key of one keyspace. Any node opens what any other sealed.
//!
//! Version 1, all numbers big-endian:
//!
//! ```text
//! offset    bytes      what
//! 0         1          format version: 1
//! 1         1          copies, as in `CopyCount`
//! 2         16 k       k entries, strictly ascending by actor: actor (8), counter (8)
//! 2 + 16 k  16         tag
//! ```
//!
//! k follows from the length. The tag is the first 128 bits of keyed BLAKE3 over: keyspace (4), length of the key
//! (8), the key, and everything before the tag. The key of the hash is derived from the cluster's secret for this
//! use alone, which separates it from everything else that is hashed under that secret. Two sealed contexts are
//! equal if and only if what they seal is.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use ring::KeyspaceId;
use thiserror::Error;

use super::{Actor, Context, CopyCount, Counter};

/// The most entries that a sealed context may have, which makes it at most 256 KiB long.
///
/// Far above what a record should ever hold: an entry is left behind by each restart of a copy and by each write
/// of a non-replica, until the watermark passes them.
pub const CONTEXT_ENTRIES_MAX: usize = 16_384;

const FORMAT_VERSION: u8 = 1;
const HEADER_LEN: usize = 2;
const ENTRY_LEN: usize = 16;
const TAG_LEN: usize = 16;

/// Separates the key of the tags from every other use of the cluster's secret.
const KEY_DERIVATION: &str = "quorate: tag of a sealed causal context, version 1";

/// Separates the key of hash trees from the key of the tags.
const TREE_KEY_DERIVATION: &str = "quorate: weights of records in hash trees, version 1";

/// Why a sealed context was refused. The request had no effect; reading the key again gives a good context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ContextError {
    /// A format that this node does not know: of a newer cluster, or not a context at all.
    #[error("a causal context of the unknown format version {0}")]
    UnknownVersion(u8),
    /// Cut short, too long, or not in canonical form.
    #[error("not a causal context: cut short, too long or not canonical")]
    Malformed,
    /// Not sealed by this cluster for this key of this keyspace, or changed since.
    #[error("a causal context that was not sealed by this cluster for this key")]
    NotAuthentic,
}

/// The key that contexts are sealed with: derived from the cluster's secret, the same on every node.
#[derive(Clone)]
pub struct ContextKey([u8; 32]);

impl ContextKey {
    /// The key for a cluster's secret.
    pub fn new(cluster_secret: [u8; 32]) -> ContextKey {
        ContextKey(blake3::derive_key(KEY_DERIVATION, &cluster_secret))
    }

    /// The key under which hash trees weigh records: another of the same secret.
    #[must_use]
    pub fn tree_key(&self) -> [u8; 32] {
        blake3::derive_key(TREE_KEY_DERIVATION, &self.0)
    }

    /// Seals a context for one key of one keyspace.
    ///
    /// Of more than [`CONTEXT_ENTRIES_MAX`] entries those with the highest counters are kept. A context with less
    /// in it covers less, so the client's write then leaves values standing that it could have replaced; it
    /// never drops one that it should not.
    pub fn seal(&self, keyspace: KeyspaceId, key: &[u8], context: &Context) -> Bytes {
        let kept;
        let entries = if context.entries().len() <= CONTEXT_ENTRIES_MAX {
            context.entries()
        } else {
            kept = newest_entries(context);
            &kept
        };
        let mut sealed = BytesMut::with_capacity(HEADER_LEN + entries.len() * ENTRY_LEN + TAG_LEN);
        sealed.put_u8(FORMAT_VERSION);
        sealed.put_u8(context.copies().to_byte());
        for &(actor, counter) in entries {
            sealed.put_u64(actor.0);
            sealed.put_u64(counter.0);
        }
        let tag = self.tag(keyspace, key, &sealed);
        sealed.put_slice(&tag);
        sealed.freeze()
    }

    /// Opens a context that [`ContextKey::seal`] made for the same key of the same keyspace.
    ///
    /// Takes the same time whatever the tag, and nothing is believed before the tag is.
    ///
    /// # Errors
    ///
    /// See [`ContextError`]: an answer for the client, never a reason to go on with an empty context, which
    /// would turn its update into a sibling.
    pub fn open(&self, keyspace: KeyspaceId, key: &[u8], sealed: &[u8]) -> Result<Context, ContextError> {
        let (body, tag) = split(sealed)?;
        if !constant_time_eq(self.tag(keyspace, key, body), tag) {
            return Err(ContextError::NotAuthentic);
        }
        decode(body)
    }

    /// Reads a sealed context without asking who sealed it, or for which key.
    ///
    /// For tools that show a context, and for tests that plant the bug of trusting one. A node that serves
    /// clients with this lets them erase what they never read.
    ///
    /// # Errors
    ///
    /// [`ContextError::UnknownVersion`] and [`ContextError::Malformed`].
    pub fn open_unchecked(sealed: &[u8]) -> Result<Context, ContextError> {
        split(sealed).and_then(|(body, _)| decode(body))
    }

    /// The tag over a body, for one key of one keyspace.
    fn tag(&self, keyspace: KeyspaceId, key: &[u8], body: &[u8]) -> [u8; TAG_LEN] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&keyspace.0.to_be_bytes());
        hasher.update(&(key.len() as u64).to_be_bytes());
        hasher.update(key);
        hasher.update(body);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LEN]);
        tag
    }
}

impl fmt::Debug for ContextKey {
    /// Shows nothing of the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContextKey(secret)")
    }
}

/// The entries with the highest counters, as many as may be sealed, again ascending by actor.
fn newest_entries(context: &Context) -> Vec<(Actor, Counter)> {
    let mut entries = context.entries().to_vec();
    entries.sort_unstable_by_key(|&(actor, counter)| std::cmp::Reverse((counter, actor)));
    entries.truncate(CONTEXT_ENTRIES_MAX);
    entries.sort_unstable_by_key(|entry| entry.0);
    entries
}

/// Parts the body from the tag, and checks version and length.
fn split(sealed: &[u8]) -> Result<(&[u8], [u8; TAG_LEN]), ContextError> {
    match sealed.first() {
        Some(&FORMAT_VERSION) => {}
        Some(&unknown) => return Err(ContextError::UnknownVersion(unknown)),
        None => return Err(ContextError::Malformed),
    }
    let (body, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(ContextError::Malformed)?;
    let entries_len = body.len().checked_sub(HEADER_LEN).ok_or(ContextError::Malformed)?;
    if !entries_len.is_multiple_of(ENTRY_LEN) || entries_len / ENTRY_LEN > CONTEXT_ENTRIES_MAX {
        return Err(ContextError::Malformed);
    }
    Ok((body, *tag))
}

/// Decodes a body whose length [`split`] has checked.
fn decode(body: &[u8]) -> Result<Context, ContextError> {
    let copies = CopyCount::from_byte(body[1]).ok_or(ContextError::Malformed)?;
    let mut rest = &body[HEADER_LEN..];
    let mut entries = Vec::with_capacity(rest.len() / ENTRY_LEN);
    while !rest.is_empty() {
        entries.push((Actor(rest.get_u64()), Counter(rest.get_u64())));
    }
    let ascending = entries.is_sorted_by(|a, b| a.0 < b.0);
    if !ascending || !entries.iter().all(|entry| entry.1.is_mintable()) {
        return Err(ContextError::Malformed);
    }
    Ok(Context::from_entries(copies, entries))
}

/// Compares two tags in a time that does not depend on them, so that a tag cannot be guessed byte by byte.
/// `blake3::Hash` promises this for its `==`; the tags are padded to its length.
fn constant_time_eq(left: [u8; TAG_LEN], right: [u8; TAG_LEN]) -> bool {
    let padded = |tag: [u8; TAG_LEN]| {
        let mut bytes = [0; blake3::OUT_LEN];
        bytes[..TAG_LEN].copy_from_slice(&tag);
        blake3::Hash::from_bytes(bytes)
    };
    padded(left) == padded(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYSPACE: KeyspaceId = KeyspaceId(3);

    fn secret() -> ContextKey {
        ContextKey::new([7; 32])
    }

    fn context(entries: impl IntoIterator<Item = (u64, u64)>) -> Context {
        let entries = entries.into_iter().map(|(actor, counter)| (Actor(actor), Counter(counter))).collect();
        Context::from_entries(CopyCount::DEFAULT, entries)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_sealed_context_is_pinned() {
        let sealed = secret().seal(KEYSPACE, b"key", &context([(1, 0x0203), (0xa0, 0x0101)]));
        let (body, tag) = sealed.split_at(HEADER_LEN + 2 * ENTRY_LEN);
        let expected = concat!(
            "0180",                             // version, copies: the keyspace's own
            "00000000000000010000000000000203", // actor, counter
            "00000000000000a00000000000000101",
        );
        assert_eq!(hex(body), expected);
        assert_eq!(hex(tag), "b41ceceb155bc9c4992b76483f064f2d");
    }

    #[test]
    fn a_sealed_context_opens_for_its_own_key_only() {
        let seen = context([(1, 2), (3, 4)]);
        let sealed = secret().seal(KEYSPACE, b"key", &seen);
        assert_eq!(secret().open(KEYSPACE, b"key", &sealed), Ok(seen.clone()));
        assert_eq!(secret().open(KEYSPACE, b"kez", &sealed), Err(ContextError::NotAuthentic));
        assert_eq!(secret().open(KEYSPACE, b"ke", &sealed), Err(ContextError::NotAuthentic));
        assert_eq!(secret().open(KeyspaceId(4), b"key", &sealed), Err(ContextError::NotAuthentic));
        let other_cluster = ContextKey::new([8; 32]);
        assert_eq!(other_cluster.open(KEYSPACE, b"key", &sealed), Err(ContextError::NotAuthentic));
        assert_eq!(ContextKey::open_unchecked(&sealed), Ok(seen));
    }

    #[test]
    fn the_border_between_key_and_context_cannot_be_moved() {
        // The key's length is in the tag, so bytes of the context cannot pass for the end of a longer key.
        let sealed = secret().seal(KEYSPACE, b"k", &context([(1, 2)]));
        let longer_key = [b"k".as_slice(), &sealed[..HEADER_LEN]].concat();
        assert_ne!(
            secret().tag(KEYSPACE, &longer_key, &sealed[HEADER_LEN..]),
            secret().tag(KEYSPACE, b"k", &sealed),
        );
    }

    #[test]
    fn every_flipped_bit_and_every_other_length_is_refused() {
        let sealed = secret().seal(KEYSPACE, b"key", &context([(1, 2), (3, 4)]));
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.to_vec();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(secret().open(KEYSPACE, b"key", &forged).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(secret().open(KEYSPACE, b"key", &sealed[..len]).is_err(), "cut to {len}");
        }
        for extra in [1, 15, 16, 17] {
            let longer = [sealed.to_vec(), vec![0; extra]].concat();
            assert!(secret().open(KEYSPACE, b"key", &longer).is_err(), "{extra} more");
        }
    }

    #[test]
    fn a_body_that_is_not_canonical_is_refused_even_with_a_good_tag() {
        let seal_body = |body: &[u8]| [body, &secret().tag(KEYSPACE, b"key", body)].concat();
        let entry = |actor: u64, counter: u64| [actor.to_be_bytes(), counter.to_be_bytes()].concat();
        let body = |copies: u8, entries: &[(u64, u64)]| {
            let entries: Vec<u8> =
                entries.iter().flat_map(|&(actor, counter)| entry(actor, counter)).collect();
            [vec![FORMAT_VERSION, copies], entries].concat()
        };
        let open = |body: &[u8]| secret().open(KEYSPACE, b"key", &seal_body(body));
        assert_eq!(open(&body(0x80, &[(1, 2), (3, 4)])), Ok(context([(1, 2), (3, 4)])));
        assert_eq!(open(&body(0x80, &[(3, 4), (1, 2)])), Err(ContextError::Malformed), "order");
        assert_eq!(open(&body(0x80, &[(1, 2), (1, 2)])), Err(ContextError::Malformed), "twice");
        assert_eq!(open(&body(0x80, &[(1, 0)])), Err(ContextError::Malformed), "zero");
        assert_eq!(open(&body(0x80, &[(1, u64::MAX)])), Err(ContextError::Malformed), "no successor");
        assert_eq!(open(&body(0x08, &[])), Err(ContextError::Malformed), "reserved bit");
        assert_eq!(open(&[2, 0x80]), Err(ContextError::UnknownVersion(2)));
        assert_eq!(secret().open(KEYSPACE, b"key", &[]), Err(ContextError::Malformed));
    }

    #[test]
    fn a_context_above_the_bound_is_sealed_without_its_oldest_entries() {
        let extra = 5;
        let count = CONTEXT_ENTRIES_MAX as u64 + extra;
        // The counters descend while the actors ascend, so the oldest entries are the last.
        let whole = context((0..count).map(|actor| (actor, count - actor)));
        let sealed = secret().seal(KEYSPACE, b"key", &whole);
        let opened = secret().open(KEYSPACE, b"key", &sealed).unwrap();
        assert_eq!(opened.entries(), &whole.entries()[..CONTEXT_ENTRIES_MAX]);
        assert!(whole.includes(&opened), "it covers less and nothing else");
        let longer = [&sealed[..HEADER_LEN], &[0xff; ENTRY_LEN], &sealed[HEADER_LEN..]].concat();
        assert_eq!(ContextKey::open_unchecked(&longer), Err(ContextError::Malformed));
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert_eq!(format!("{:?}", secret()), "ContextKey(secret)");
    }
}
