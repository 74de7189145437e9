//! One connection to one node: many requests in flight on one stream.
//!
//! Requests go through a bounded queue to one writer task, which takes whatever is queued, encodes it into one buffer
//! and writes that at once. One reader task cuts the stream into replies and hands each to whoever waits for its id,
//! in whatever order they come.
//!
//! The delicate part is what a lost connection means. A request that the writer had taken may have reached the node;
//! one that it had not taken cannot have. [`Exchange`] keeps the two apart, so that a request that never left this
//! process is not reported as in doubt.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::BytesMut;
use ring::{Epoch, NodeId};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::failure::DialError;
use crate::{
    Access, Reply, Request,
    wire::{
        ClientMessage, ControlError, ControlReply, ControlRequest, FrameReader, MESSAGE_BYTES_MAX,
        ServerMessage, ServerWelcome,
    },
};

/// Requests that wait for the writer. It takes all of them at once, so this many are a few milliseconds' worth.
const QUEUE_MAX: usize = 1024;
/// The most that the writer takes at once.
const BATCH_MAX: usize = 256;
/// The writer writes when it has encoded so much, though more may be queued: a buffer that grows with the queue would
/// be copied as it grows.
const WRITE_BYTES: usize = 256 << 10;
/// The most that the reader takes off the stream at once.
const READ_BYTES: usize = 1 << 20;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    /// On the data path.
    Data(Request),
    /// Anything else.
    Control(ControlRequest),
}

/// What a node answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// To a request of the data path.
    Data(Reply),
    /// To any other.
    Control(Result<ControlReply, ControlError>),
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The node answered, under the document of this epoch.
    Answer(Epoch, Answer),
    /// It was sent, and the connection ended.
    Lost,
    /// It was not sent, and will not be.
    Unsent,
}

/// Hears of every epoch that a node mentions.
pub(crate) trait Listener: Send + Sync + 'static {
    /// `node` answered under the document of `epoch`.
    fn heard(&self, node: NodeId, epoch: Epoch);
}

/// A connection. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Connection {
    node: NodeId,
    access: Access,
    quic: quinn::Connection,
    queue: mpsc::Sender<ClientMessage>,
    exchange: Arc<Exchange>,
    next_id: AtomicU64,
}

/// The requests of a connection that wait for their replies.
#[derive(Debug, Default)]
struct Exchange {
    /// Set under the lock, and read without it by whoever only chooses a connection.
    is_closed: AtomicBool,
    waiting: Mutex<HashMap<u64, Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    /// Whether the writer has taken it.
    is_sent: bool,
    sender: oneshot::Sender<Heard>,
}

/// A request whose reply is waited for: a future of what becomes of it. Dropping it gives the request up.
#[derive(Debug)]
pub(crate) struct Pending {
    id: u64,
    exchange: Arc<Exchange>,
    receiver: oneshot::Receiver<Heard>,
}

impl Connection {
    /// Begins on a stream that has greeted and was welcomed. Whatever `frames` holds came after the welcome.
    pub(crate) fn start(
        welcome: &ServerWelcome,
        quic: quinn::Connection,
        (send, receive): (quinn::SendStream, quinn::RecvStream),
        frames: FrameReader,
        listener: Arc<dyn Listener>,
    ) -> Connection {
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let exchange = Arc::new(Exchange::default());
        let node = welcome.node;
        tokio::spawn(write(send, queued, exchange.clone()));
        tokio::spawn(read(node, receive, frames, quic.clone(), exchange.clone(), listener));
        Connection { node, access: welcome.access, quic, queue, exchange, next_id: AtomicU64::new(1) }
    }

    /// The node at the other end.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// What this client's certificate allows, as the node says.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Whether requests can still be sent on it.
    pub(crate) fn is_open(&self) -> bool {
        !self.exchange.is_closed.load(Ordering::Relaxed)
    }

    /// Queues a request, waiting while the queue is full. Given up while it waits, it was not sent.
    ///
    /// # Errors
    ///
    /// If the connection has ended. The request was not sent.
    pub(crate) async fn begin(&self, question: impl FnOnce() -> Question) -> Result<Pending, DialError> {
        let Ok(permit) = self.queue.reserve().await else { return Err(self.why_closed()) };
        self.begin_with(permit, question).ok_or_else(|| self.why_closed())
    }

    /// Queues a request if there is room for it now.
    pub(crate) fn try_begin(&self, question: impl FnOnce() -> Question) -> Option<Pending> {
        self.begin_with(self.queue.try_reserve().ok()?, question)
    }

    fn begin_with(
        &self,
        permit: mpsc::Permit<'_, ClientMessage>,
        question: impl FnOnce() -> Question,
    ) -> Option<Pending> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let receiver = self.exchange.register(id)?;
        permit.send(match question() {
            Question::Data(request) => ClientMessage::Request { id, request },
            Question::Control(request) => ClientMessage::Control { id, request },
        });
        Some(Pending { id, exchange: self.exchange.clone(), receiver })
    }

    /// Closes it. What waits for replies hears that the connection ended.
    pub(crate) fn close(&self) {
        self.exchange.close();
        self.quic.close(quinn::VarInt::from_u32(0), b"");
    }

    fn why_closed(&self) -> DialError {
        self.quic.close_reason().map_or(DialError::StreamEnded, DialError::of_connection)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

impl Pending {
    /// Gives the request up. True if it may have been sent.
    pub(crate) fn abandon(self) -> bool {
        // Not there: it was answered, or the connection ended, in this very moment.
        self.exchange.lock().remove(&self.id).is_none_or(|waiter| waiter.is_sent)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.exchange.lock().remove(&self.id);
    }
}

impl Future for Pending {
    type Output = Heard;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Heard> {
        let heard = Pin::new(&mut self.receiver).poll(context);
        // Nothing drops a sender unused; if it did, the request might have been sent.
        heard.map(|heard| heard.unwrap_or(Heard::Lost))
    }
}

impl Exchange {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.waiting.lock().expect("nothing panics while it holds this")
    }

    /// Makes room for a reply; none if the connection has ended.
    fn register(&self, id: u64) -> Option<oneshot::Receiver<Heard>> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        if self.is_closed.load(Ordering::Relaxed) {
            return None;
        }
        waiting.insert(id, Waiter { is_sent: false, sender });
        Some(receiver)
    }

    /// Marks what the writer is about to write, and drops from its batch what nobody waits for any longer: that was
    /// reported as unsent, and must not be sent after all.
    fn take_for_writing(&self, batch: &mut Vec<ClientMessage>) {
        let mut waiting = self.lock();
        batch.retain(|message| match message {
            ClientMessage::Hello(_) => true,
            ClientMessage::Request { id, .. } | ClientMessage::Control { id, .. } => {
                let waiter = waiting.get_mut(id);
                waiter.map(|waiter| waiter.is_sent = true).is_some()
            }
        });
    }

    /// Hands a reply to whoever waits for it. One that nobody waits for came too late.
    fn answer(&self, id: u64, heard: Heard) {
        let waiter = self.lock().remove(&id);
        if let Some(waiter) = waiter {
            // The receiver may be gone in this very moment.
            let _ = waiter.sender.send(heard);
        }
    }

    /// No reply will come any more.
    fn close(&self) {
        let waiting = {
            let mut waiting = self.lock();
            self.is_closed.store(true, Ordering::Relaxed);
            std::mem::take(&mut *waiting)
        };
        for waiter in waiting.into_values() {
            let _ = waiter.sender.send(if waiter.is_sent { Heard::Lost } else { Heard::Unsent });
        }
    }
}

/// Writes what is queued until the connection is dropped or broken.
async fn write(
    mut stream: quinn::SendStream,
    mut queued: mpsc::Receiver<ClientMessage>,
    exchange: Arc<Exchange>,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut buffer = BytesMut::new();
    while queued.recv_many(&mut batch, BATCH_MAX).await > 0 {
        exchange.take_for_writing(&mut batch);
        let mut messages = batch.drain(..).peekable();
        while let Some(message) = messages.next() {
            message.encode(&mut buffer);
            let is_due = messages.peek().is_none() || buffer.len() >= WRITE_BYTES;
            if is_due && stream.write_chunk(buffer.split().freeze()).await.is_err() {
                // The reader hears of it too, and ends the exchange.
                return;
            }
        }
    }
}

/// Reads replies until the connection ends.
async fn read(
    node: NodeId,
    mut stream: quinn::RecvStream,
    mut frames: FrameReader,
    quic: quinn::Connection,
    exchange: Arc<Exchange>,
    listener: Arc<dyn Listener>,
) {
    let mut newest = Epoch(0);
    let cause = loop {
        match dispatch(&mut frames, &exchange) {
            Ok(epoch) if epoch > newest => {
                newest = epoch;
                listener.heard(node, epoch);
            }
            Ok(_) => {}
            Err(cause) => break cause,
        }
        match stream.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => frames.push(chunk.bytes),
            Ok(None) => break DialError::StreamEnded,
            Err(quinn::ReadError::ConnectionLost(error)) => break DialError::of_connection(error),
            Err(_) => break DialError::StreamEnded,
        }
    };
    debug!(%node, %cause, "connection ended");
    exchange.close();
    quic.close(quinn::VarInt::from_u32(0), b"");
}

/// Hands out every reply that has arrived whole. Returns the highest epoch among them.
fn dispatch(frames: &mut FrameReader, exchange: &Exchange) -> Result<Epoch, DialError> {
    let mut newest = Epoch(0);
    while let Some(body) = frames.next()? {
        let (id, epoch, answer) = match ServerMessage::decode(body)? {
            ServerMessage::Reply { id, epoch, reply } => (id, epoch, Answer::Data(reply)),
            ServerMessage::Control { id, epoch, reply } => (id, epoch, Answer::Control(reply)),
            ServerMessage::Welcome(_) => return Err(DialError::NoWelcome),
        };
        newest = newest.max(epoch);
        exchange.answer(id, Heard::Answer(epoch, answer));
    }
    Ok(newest)
}

/// A reader for the frames of a node.
pub(crate) fn frames() -> FrameReader {
    FrameReader::new(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Delete, WriteOptions};

    fn message(id: u64) -> ClientMessage {
        let key = Bytes::from_static(b"key");
        let delete = Delete { keyspace: ring::KeyspaceId(1), key, options: WriteOptions::default() };
        ClientMessage::Request { id, request: Request::Delete(delete) }
    }

    #[test]
    fn a_request_is_in_doubt_only_once_the_writer_took_it() {
        let exchange = Exchange::default();
        let [mut taken, mut queued] = [1, 2].map(|id| exchange.register(id).unwrap());
        exchange.take_for_writing(&mut vec![message(1)]);
        exchange.close();
        assert!(matches!(taken.try_recv(), Ok(Heard::Lost)));
        assert!(matches!(queued.try_recv(), Ok(Heard::Unsent)));
        assert!(exchange.register(3).is_none(), "a closed connection takes no more");
    }

    #[test]
    fn what_was_given_up_while_queued_is_not_written_after_all() {
        let exchange = Arc::new(Exchange::default());
        let pending = |id| {
            let receiver = exchange.register(id).unwrap();
            Pending { id, exchange: exchange.clone(), receiver }
        };
        let (given_up, kept) = (pending(1), pending(2));
        assert!(!given_up.abandon(), "it was never sent");
        let mut batch = vec![message(1), message(2)];
        exchange.take_for_writing(&mut batch);
        assert_eq!(batch, [message(2)]);
        assert!(kept.abandon(), "it may have been sent");
        assert!(exchange.lock().is_empty());
    }

    #[test]
    fn a_reply_goes_to_the_request_of_its_id() {
        let exchange = Exchange::default();
        let [mut first, mut second] = [1, 2].map(|id| exchange.register(id).unwrap());
        let reply = || Answer::Control(Err(ControlError::NotReady));
        exchange.answer(2, Heard::Answer(Epoch(7), reply()));
        exchange.answer(9, Heard::Answer(Epoch(7), reply()));
        assert!(matches!(second.try_recv(), Ok(Heard::Answer(Epoch(7), _))));
        assert!(first.try_recv().is_err(), "still waited for");
    }
}
