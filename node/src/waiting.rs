//! What waits for batches to be synced: acknowledgements above all.

use std::{collections::VecDeque, sync::Arc};

use ring::{ClusterDocument, NodeId};

use crate::{
    local::Event,
    message::{AgreementMessage, MergeOutcome, MergeRefusal, Message, ReadAnswer, Tag},
    storage::Sequence,
};

/// What waits, by the batch that releases it.
pub(crate) struct WaitingRoom {
    /// In ascending order of sequence.
    by_batch: VecDeque<(Sequence, Vec<Waiting>)>,
    /// Lists that are empty again: a batch comes every few microseconds, and each would allocate its own.
    spare: Vec<Vec<Waiting>>,
}

/// What is to happen when a batch is synced.
pub(crate) enum Waiting {
    /// A message is sent.
    Message { to: NodeId, message: Message },
    /// An operation of this node hears of it.
    Event { tag: Tag, event: Event },
    /// The document that the batch carries is adopted.
    Document(Arc<ClusterDocument>),
    /// A vote about a document, or a founder's consent, that the batch carries is sent; one of the node's own is
    /// counted.
    Cast { to: NodeId, message: Box<AgreementMessage> },
    /// A vote counts that was heard: the batch has written down from which point of the voter's store on it may not
    /// be forgotten.
    Count { from: NodeId, message: Box<AgreementMessage> },
}

impl Waiting {
    /// What happens instead if the batch is refused, if anything does: nobody is told what did not come true.
    pub(crate) fn refused(self) -> Option<Waiting> {
        match self {
            Waiting::Message { to, message } => {
                Some(Waiting::Message { to, message: refused_message(message) })
            }
            Waiting::Event { tag, event } => Some(Waiting::Event { tag, event: refused_event(event) }),
            Waiting::Document(_) | Waiting::Cast { .. } | Waiting::Count { .. } => None,
        }
    }
}

fn refused_message(message: Message) -> Message {
    match message {
        Message::Merged { tag, .. } => {
            Message::Merged { tag, outcome: MergeOutcome::Refused(MergeRefusal::StorageFailed) }
        }
        Message::Answer { tag, .. } => Message::Answer { tag, answer: ReadAnswer::Refused },
        Message::ExchangeAnswer { tag, .. } => Message::Declined { tag },
        other => other,
    }
}

fn refused_event(event: Event) -> Event {
    match event {
        Event::Merged { from, store, .. } => {
            Event::Merged { from, store, outcome: MergeOutcome::Refused(MergeRefusal::StorageFailed) }
        }
        Event::Answered { from, store, .. } => Event::Answered { from, store, answer: ReadAnswer::Refused },
        Event::Synced => Event::SyncFailed,
        other => other,
    }
}

impl WaitingRoom {
    /// How many empty lists are kept.
    const SPARE_MAX: usize = 16;

    /// Nobody waits.
    pub(crate) fn new() -> WaitingRoom {
        WaitingRoom { by_batch: VecDeque::new(), spare: Vec::new() }
    }

    /// Lets something wait for a batch.
    pub(crate) fn add(&mut self, sequence: Sequence, waiting: Waiting) {
        let at = self.by_batch.partition_point(|(batch, _)| *batch < sequence);
        if self.by_batch.get(at).is_none_or(|(batch, _)| *batch != sequence) {
            let list = self.spare.pop().unwrap_or_default();
            self.by_batch.insert(at, (sequence, list));
        }
        self.by_batch[at].1.push(waiting);
    }

    /// Takes out what waited for the first batch up to `sequence`; none if nothing did.
    pub(crate) fn take_through(&mut self, sequence: Sequence) -> Option<Vec<Waiting>> {
        self.by_batch.pop_front_if(|(batch, _)| *batch <= sequence).map(|(_, list)| list)
    }

    /// Takes out what waited for just this batch.
    pub(crate) fn take(&mut self, sequence: Sequence) -> Vec<Waiting> {
        let at = self.by_batch.iter().position(|(batch, _)| *batch == sequence);
        at.and_then(|at| self.by_batch.remove(at)).map(|(_, list)| list).unwrap_or_default()
    }

    /// A batch was refused: whatever was to be told in an exchange may not be so, whichever batch it waits for.
    pub(crate) fn decline_exchanges(&mut self) {
        for waiting in self.by_batch.iter_mut().flat_map(|(_, list)| list) {
            if let Waiting::Message { message: message @ Message::ExchangeAnswer { .. }, .. } = waiting {
                let answer = std::mem::replace(message, Message::DocumentRequest);
                *message = refused_message(answer);
            }
        }
    }

    /// Keeps an empty list for later.
    pub(crate) fn recycle(&mut self, list: Vec<Waiting>) {
        debug_assert!(list.is_empty(), "what waited was released");
        if self.spare.len() < WaitingRoom::SPARE_MAX {
            self.spare.push(list);
        }
    }
}
