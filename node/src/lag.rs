//! How far behind the replicas may be, as this node knows.
//!
//! What a peer is owed by a hint is the hint's to say. What a hint was dropped for is here, until an exchange with the peer
//! is complete that began later. And when the last exchange began after which everything was equal that two nodes share says
//! what can be lacking at the most: what was written since.

use std::{collections::BTreeMap, time::Duration};

use antientropy::version::UnixMillis;
use ring::NodeId;

/// What peers lack that nobody owes them.
#[derive(Default)]
pub(crate) struct Lag {
    missed: BTreeMap<NodeId, Missed>,
}

/// What a peer lacks.
struct Missed {
    /// Since when the oldest of it is there.
    since: UnixMillis,
    /// When the last of it was noted.
    last: Duration,
}

/// What a node knows of how far a peer and it are in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSync {
    /// The peer.
    pub peer: NodeId,
    /// How long ago the last exchange began after which all was equal that both nodes are to keep. If there was none since
    /// this process began or since one of the two lost something, since then.
    pub age: Duration,
    /// Whether there was one.
    pub is_known: bool,
    /// In how many partitions it found differences.
    pub differed: u32,
}

impl Lag {
    /// A peer was owed something since then and is not any more, although it may lack it.
    pub(crate) fn missed(&mut self, peer: NodeId, since: UnixMillis, now: Duration) {
        let missed = self.missed.entry(peer).or_insert(Missed { since, last: now });
        missed.since = missed.since.min(since);
        missed.last = now;
    }

    /// All was equal here and at a peer that was here when an exchange began, at this wall clock.
    pub(crate) fn in_sync(&mut self, peer: NodeId, begun: Duration, wall: UnixMillis) {
        if let Some(missed) = self.missed.get_mut(&peer) {
            if missed.last < begun {
                self.missed.remove(&peer);
            } else {
                missed.since = missed.since.max(wall);
            }
        }
    }

    /// Only these are peers.
    pub(crate) fn keep(&mut self, is_peer: impl Fn(NodeId) -> bool) {
        self.missed.retain(|peer, _| is_peer(*peer));
    }

    /// Since when the oldest write is there that a peer is known to lack and that nobody owes it.
    pub(crate) fn oldest(&self) -> Option<UnixMillis> {
        self.missed.values().map(|missed| missed.since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_known_until_an_exchange_that_began_later() {
        let (mut lag, peer) = (Lag::default(), NodeId(1));
        let at = Duration::from_secs;
        assert_eq!(lag.oldest(), None);
        lag.missed(peer, UnixMillis(5_000), at(10));
        lag.missed(peer, UnixMillis(7_000), at(12));
        assert_eq!(lag.oldest(), Some(UnixMillis(5_000)));
        lag.in_sync(peer, at(11), UnixMillis(6_000));
        assert_eq!(
            lag.oldest(),
            Some(UnixMillis(6_000)),
            "what was missed after it began may be missing still"
        );
        lag.in_sync(NodeId(2), at(20), UnixMillis(15_000));
        assert_eq!(lag.oldest(), Some(UnixMillis(6_000)));
        lag.in_sync(peer, at(13), UnixMillis(8_000));
        assert_eq!(lag.oldest(), None);
    }
}
