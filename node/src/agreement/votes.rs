//! How this store has voted: what an acceptor of a round has to remember, and for how long its memory is unbroken.
//!
//! All votes about the successor of one document are one record, which every vote writes whole with its turn's batch;
//! the vote is sent when that is synced. A refused batch takes its votes with it and nobody hears of them; memory then
//! remembers a vote that the disk does not, which only makes it refuse more.
//!
//! The memory has a name, the *voter*, which the document records and every vote carries. A store whose memory of votes
//! is broken, because it went back in time or cannot read it, draws another name and writes it down. No vote of that
//! name counts before a change records it, and by then the round of the forgotten votes is over.

use bytes::{Buf, BufMut, Bytes};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;
use ring::{Epoch, VoterId};
use serde::{Deserialize, Serialize};

use super::message::{Ballot, Proposal};
use crate::storage::{Store, Table, open_stored, seal_stored};

/// Where the votes are stored.
const VOTES: &[u8] = b"votes";
/// Where the voter's name is stored, if it is not the store's first.
const VOTER: &[u8] = b"voter";

/// See the module's documentation.
pub(crate) struct Votes {
    memory: Memory,
    /// Whether this process has drawn a voter.
    is_renewed: bool,
    /// Whether the name is still to be written down.
    is_unsaved: bool,
}

enum Memory {
    /// The store could not be read yet.
    Unread,
    Read {
        voter: VoterId,
        cast: Option<Cast>,
    },
}

/// The votes about one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cast {
    /// The epoch of the document that is to be agreed on.
    epoch: Epoch,
    /// Nothing is accepted under a lower ballot.
    promised: Ballot,
    /// What was accepted last.
    accepted: Option<Proposal>,
}

/// Why a vote is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Withheld {
    /// A higher ballot was promised.
    Outbid(Ballot),
    /// This store has voted about a later epoch, or cannot say: it holds less than it did.
    Forgotten,
}

impl Votes {
    /// The votes of a store that was just opened.
    pub(crate) fn open<S: Store>(store: &S, rng: &mut ChaCha8Rng) -> Votes {
        let mut votes = Votes { memory: Memory::Unread, is_renewed: false, is_unsaved: false };
        votes.read(store, rng);
        votes
    }

    /// Reads what is stored, if the store could not be read before.
    pub(crate) fn read<S: Store>(&mut self, store: &S, rng: &mut ChaCha8Rng) {
        if matches!(self.memory, Memory::Read { .. }) {
            return;
        }
        let (Ok(voter), Ok(votes)) = (store.get(Table::Meta, VOTER), store.get(Table::Meta, VOTES)) else {
            return;
        };
        let voter = voter.map_or(Some(VoterId::first_of(store.id())), |stored| decode_voter(&stored));
        let cast = votes.map_or(Some(None), |stored| decode_cast(&stored).map(Some));
        match (voter, cast) {
            (Some(voter), Some(cast)) => self.memory = Memory::Read { voter, cast },
            // Bytes that are not what was written: whatever they said is forgotten.
            (Some(voter), None) => {
                self.memory = Memory::Read { voter, cast: None };
                self.renew(rng.next_u64(), None);
            }
            (None, _) => self.renew(rng.next_u64(), None),
        }
    }

    /// The memory is broken: from now on it is another. Its name comes after the former one's and after the recorded one, so
    /// that what is said late of a former name is known as late: see [`is_later`].
    pub(crate) fn renew(&mut self, random: u64, recorded: Option<VoterId>) {
        // Many names that were never recorded must not come round half the circle.
        let step = 1 + random % (1 << 48);
        let voter = VoterId(match (self.voter(), recorded) {
            (None, None) => random,
            (Some(former), Some(recorded)) if is_later(former, recorded) => former.0.wrapping_add(step),
            (Some(former), None) => former.0.wrapping_add(step),
            (_, Some(recorded)) => recorded.0.wrapping_add(step),
        });
        self.memory = Memory::Read { voter, cast: None };
        (self.is_renewed, self.is_unsaved) = (true, true);
    }

    /// The name of this memory; none if the store could not be read yet.
    pub(crate) fn voter(&self) -> Option<VoterId> {
        match self.memory {
            Memory::Unread => None,
            Memory::Read { voter, .. } => Some(voter),
        }
    }

    /// What is to be written of a memory that is another than it was: its name, and its votes, which take the place of
    /// what cannot be read or holds no longer. Keys and values.
    pub(crate) fn take_unsaved(&mut self) -> Option<[(Bytes, Option<Bytes>); 2]> {
        let voter = self.voter().filter(|_| std::mem::take(&mut self.is_unsaved))?;
        let name = seal_stored(VOTER, |out| out.put_u64(voter.0), 8);
        let has_voted = matches!(self.memory, Memory::Read { cast: Some(_), .. });
        let votes = has_voted.then(|| self.to_store().1);
        Some([(Bytes::from_static(VOTER), Some(name)), (Bytes::from_static(VOTES), votes)])
    }

    /// A batch was refused, which may have been the one with the name.
    pub(crate) fn save_failed(&mut self) {
        self.is_unsaved |= self.is_renewed;
    }

    /// Promises a ballot: what was accepted so far is told with it. To be written down before it is said.
    pub(crate) fn promise(&mut self, epoch: Epoch, ballot: Ballot) -> Result<Option<Proposal>, Withheld> {
        let cast = self.cast(epoch, ballot)?;
        cast.promised = ballot;
        Ok(cast.accepted.clone())
    }

    /// Accepts a document. To be written down before it is said.
    pub(crate) fn accept(&mut self, proposal: Proposal) -> Result<(), Withheld> {
        let cast = self.cast(proposal.document.epoch, proposal.ballot)?;
        cast.promised = proposal.ballot;
        cast.accepted = Some(proposal);
        Ok(())
    }

    /// The votes about an epoch, if one may be added under this ballot.
    fn cast(&mut self, epoch: Epoch, ballot: Ballot) -> Result<&mut Cast, Withheld> {
        let Memory::Read { cast, .. } = &mut self.memory else { return Err(Withheld::Forgotten) };
        let cast = cast.get_or_insert(Cast { epoch, promised: ballot, accepted: None });
        if cast.epoch > epoch {
            return Err(Withheld::Forgotten);
        }
        if cast.epoch < epoch {
            *cast = Cast { epoch, promised: ballot, accepted: None };
        }
        if cast.promised > ballot {
            return Err(Withheld::Outbid(cast.promised));
        }
        Ok(cast)
    }

    /// The votes as they are stored: a key and a value.
    pub(crate) fn to_store(&self) -> (Bytes, Bytes) {
        let Memory::Read { cast: Some(cast), .. } = &self.memory else {
            unreachable!("votes are stored after one was given")
        };
        let payload = postcard::to_allocvec(cast).expect("votes have nothing that cannot be encoded");
        (Bytes::from_static(VOTES), seal_stored(VOTES, |out| out.put_slice(&payload), payload.len()))
    }
}

/// Whether a store took this name for its memory of votes after that one. Names go round in a circle.
pub(crate) fn is_later(voter: VoterId, than: VoterId) -> bool {
    voter != than && voter.0.wrapping_sub(than.0) < 1 << 63
}

/// How a store has voted, as it stands on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredVotes {
    /// The epoch of the document that the votes are about.
    pub epoch: Epoch,
    /// Nothing is accepted under a lower ballot.
    pub promised: Ballot,
    /// The ballot under which a document was accepted last.
    pub accepted: Option<Ballot>,
}

/// How a store has voted, as far as it is committed; none if it has not, or if that cannot be read.
pub fn read_votes(store: &impl Store) -> Option<StoredVotes> {
    let cast = decode_cast(&store.get(Table::Meta, VOTES).ok().flatten()?)?;
    let accepted = cast.accepted.map(|proposal| proposal.ballot);
    Some(StoredVotes { epoch: cast.epoch, promised: cast.promised, accepted })
}

fn decode_voter(stored: &Bytes) -> Option<VoterId> {
    let mut payload = open_stored(VOTER, stored).ok().filter(|payload| payload.len() == 8)?;
    Some(VoterId(payload.get_u64()))
}

fn decode_cast(stored: &Bytes) -> Option<Cast> {
    postcard::from_bytes(&open_stored(VOTES, stored).ok()?).ok()
}
