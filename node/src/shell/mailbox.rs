//! What has arrived for the node and waits for its next turn.
//!
//! Connections put things here and go on reading; the driver takes everything at once. How much can wait is bounded by
//! what the connections' receive windows admit before the driver has had its turn: all of them run on one thread, and a
//! reader that has put in many yields to it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Instant,
};

use client::{Refusal, Request, wire::ControlRequest};
use tokio::sync::Notify;

use super::{clients::ClientConnection, metrics::refusal_label};
use crate::Input;

/// After so many pieces of mail a reader lets the driver have its turn.
const MAIL_MAX: usize = 1024;

/// Something that arrived. Moved, not boxed: a move of the largest costs less than an allocation of the smallest.
#[allow(clippy::large_enum_variant)]
pub(crate) enum Mail {
    /// For the core as it is.
    Input(Input),
    /// A client's request of the data path.
    Request { from: Rc<ClientConnection>, id: u64, request: Request, arrived: Instant },
    /// A client's other request.
    Control { from: Rc<ClientConnection>, id: u64, request: ControlRequest },
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Mailbox {
    waiting: RefCell<Vec<Mail>>,
    wake: Notify,
    /// How many requests may be put in before the next turn; what is beyond is refused where it arrives.
    room: Cell<usize>,
    /// Counts requests that were refused before they were put in, by reason.
    refused: RefCell<BTreeMap<&'static str, u64>>,
    /// Counts times that a reader had to wait.
    pub(crate) yields: Cell<u64>,
}

impl Mailbox {
    /// Puts something in.
    pub(crate) fn put(&self, mail: Mail) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(mail);
        if waiting.len() == 1 {
            self.wake.notify_one();
        }
    }

    /// Puts something in, and waits for the driver if much is there already.
    pub(crate) async fn put_patiently(&self, mail: Mail) {
        self.put(mail);
        if self.waiting.borrow().len() >= MAIL_MAX {
            self.yields.set(self.yields.get() + 1);
            tokio::task::yield_now().await;
        }
    }

    /// Whether one more request may be put in; it is counted as put in. Otherwise it is to be refused.
    pub(crate) fn admits_request(&self) -> bool {
        let left = self.room.get().checked_sub(1);
        if let Some(left) = left {
            self.room.set(left);
        }
        left.is_some()
    }

    /// Counts a request that was refused before it was put in.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        *self.refused.borrow_mut().entry(refusal_label(refusal)).or_default() += 1;
    }

    /// How many requests the node will take next. Returns how many were refused since the last time, by reason.
    pub(crate) fn set_room(&self, room: usize) -> BTreeMap<&'static str, u64> {
        self.room.set(room);
        self.refused.take()
    }

    /// Takes everything out, into an empty vector whose memory is used again.
    pub(crate) fn take_into(&self, taken: &mut Vec<Mail>) {
        debug_assert!(taken.is_empty(), "what was taken before was handled");
        std::mem::swap(&mut *self.waiting.borrow_mut(), taken);
    }

    /// Waits until there is something.
    pub(crate) async fn wait(&self) {
        if self.waiting.borrow().is_empty() {
            self.wake.notified().await;
        }
    }
}
