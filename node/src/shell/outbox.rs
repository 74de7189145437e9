//! What waits to be sent on one stream: frames, encoded into one buffer and written in as few pieces as there is time
//! for. A turn of the node puts all its frames for one peer here, and they leave together.
//!
//! The buffer is bounded. What finds no room is not sent; the sender decides what that means: a message between nodes
//! is lost, as a network may lose it, and a client that does not read its replies is disconnected.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::BytesMut;
use quinn::{SendStream, WriteError};
use tokio::sync::Notify;

/// The sending half: anyone may have one.
#[derive(Clone)]
pub(crate) struct Outbox {
    shared: Rc<Shared>,
}

struct Shared {
    buffer: RefCell<BytesMut>,
    /// Bytes that the writer has taken and not yet handed to the stream.
    writing_bytes: Cell<usize>,
    limit_bytes: usize,
    is_closed: Cell<bool>,
    wake: Notify,
}

/// There was no room, or nobody writes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotSent;

impl Outbox {
    /// An empty one that holds so many bytes, and a frame more.
    pub(crate) fn new(limit_bytes: usize) -> Outbox {
        let shared = Shared {
            buffer: RefCell::new(BytesMut::new()),
            writing_bytes: Cell::new(0),
            limit_bytes,
            is_closed: Cell::new(false),
            wake: Notify::new(),
        };
        Outbox { shared: Rc::new(shared) }
    }

    /// Adds the frames that `encode` writes.
    pub(crate) fn push(&self, encode: impl FnOnce(&mut BytesMut)) -> Result<(), NotSent> {
        let shared = &*self.shared;
        let mut buffer = shared.buffer.borrow_mut();
        if shared.is_closed.get() || buffer.len() + shared.writing_bytes.get() >= shared.limit_bytes {
            return Err(NotSent);
        }
        let was_empty = buffer.is_empty();
        encode(&mut buffer);
        if was_empty {
            shared.wake.notify_one();
        }
        Ok(())
    }

    /// Bytes that wait.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.shared.buffer.borrow().len() + self.shared.writing_bytes.get()
    }

    /// Nothing more is to be sent: the writer ends when it has written what is here.
    pub(crate) fn close(&self) {
        self.shared.is_closed.set(true);
        self.shared.wake.notify_one();
    }

    /// Whether nothing can be sent any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.is_closed.get()
    }

    /// Writes what comes, until the outbox is closed or the stream breaks. There is one writer.
    pub(crate) async fn write_to(&self, stream: &mut SendStream) -> Result<(), WriteError> {
        loop {
            let taken = self.shared.buffer.borrow_mut().split().freeze();
            if taken.is_empty() {
                if self.is_closed() {
                    return Ok(());
                }
                self.shared.wake.notified().await;
                continue;
            }
            self.shared.writing_bytes.set(taken.len());
            let written = stream.write_chunk(taken).await;
            self.shared.writing_bytes.set(0);
            if let Err(error) = written {
                self.shared.is_closed.set(true);
                return Err(error);
            }
        }
    }
}
