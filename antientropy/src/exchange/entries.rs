//! What a side holds of some keys, in short, by their positions.

use ring::{KeyspaceId, Token};

use super::{Entry, Object, Replica, Span, follower::at_position};
use crate::{
    hash_tree::{Element, Sum, position_of},
    residue::Residue,
    version::Counter,
};

/// What was held of the keys of a group when they were read.
#[derive(Debug, Default)]
pub(super) struct Entries(Vec<Entry>);

impl Entries {
    pub(super) fn new(mut entries: Vec<Entry>) -> Entries {
        entries.sort_by_key(position);
        Entries(entries)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn elements(&self) -> impl Iterator<Item = Element> {
        self.0.iter().map(|entry| entry.element)
    }

    /// Those in a span that is one of whole positions.
    pub(super) fn within(&self, span: Span) -> &[Entry] {
        let (first, last) = (position_of(span.first).get(), position_of(span.last).get());
        let begin = self.0.partition_point(|entry| position(entry) < first);
        let end = self.0.partition_point(|entry| position(entry) <= last);
        &self.0[begin..end.max(begin)]
    }
}

/// Where a key is.
pub(super) fn position_of_key(key: &[u8]) -> u64 {
    position_of(Token::of_key(key)).get()
}

fn position(entry: &Entry) -> u64 {
    entry.element.position().get()
}

/// What is held now of the keys of a position.
pub(super) fn entries_at<R: Replica>(
    replica: &mut R,
    keyspace: KeyspaceId,
    position: Residue,
) -> Result<Vec<Entry>, R::Error> {
    let found = at_position(replica, keyspace, Span::of_position(position))?;
    let entry = |Object { key, record, .. }: Object| {
        Some(Entry::new(replica.secret(), Token::of_key(&key), key, &*record?))
    };
    Ok(found.into_iter().filter_map(entry).collect())
}

/// The sum of some keys' elements.
pub(super) fn sum_of(entries: &[Entry]) -> Sum {
    let mut sum = Sum::ZERO;
    entries.iter().for_each(|entry| sum += entry.element);
    sum
}

/// The highest counter of some keys' records.
pub(super) fn highest(entries: &[Entry]) -> Option<Counter> {
    entries.iter().map(|entry| entry.highest).max()
}
