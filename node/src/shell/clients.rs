//! Connections of clients: requests in, replies out, many under way at once on one stream.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use client::{
    Access, GetError, Grant, Limit, Operation, Refusal, Reply, Request, WriteError,
    wire::{
        ClientMessage, ControlError, ControlReply, ControlRequest, DecodeError, FrameReader,
        MESSAGE_BYTES_MAX, ServerMessage, ServerWelcome, negotiate,
    },
};
use quinn::{Connection, RecvStream};
use ring::{ClusterDocument, Epoch, KeyspaceId, NodeId};
use tokio::{task, time};

use super::{
    closing::Closing,
    mailbox::{Mail, Mailbox},
    outbox::{NotSent, Outbox},
};

/// How long a client may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// After so many refused requests a reader lets others have their turn.
const REFUSED_AT_ONCE: u32 = 256;

/// One client's connection.
pub(crate) struct ClientConnection {
    connection: Connection,
    outbox: Outbox,
    grant: Grant,
    document: SharedDocument,
    requests_max: usize,
    under_way: Cell<usize>,
}

/// Why a request is refused before it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Objection {
    /// The certificate does not have this access.
    Access(Access),
    /// It has it for other keyspaces.
    OtherKeyspaces,
    /// The node does not know the keyspace.
    UnknownKeyspace,
    /// The node knows none yet.
    NoDocument,
}

impl From<Objection> for Refusal {
    fn from(objection: Objection) -> Refusal {
        match objection {
            Objection::Access(needs) => Refusal::Forbidden { needs },
            Objection::OtherKeyspaces => Refusal::OtherKeyspaces,
            Objection::UnknownKeyspace => Refusal::UnknownKeyspace,
            Objection::NoDocument => Refusal::NotReady,
        }
    }
}

impl From<Objection> for ControlError {
    fn from(objection: Objection) -> ControlError {
        match objection {
            Objection::Access(needs) => ControlError::Forbidden { needs },
            Objection::OtherKeyspaces => ControlError::OtherKeyspaces,
            Objection::UnknownKeyspace => ControlError::UnknownKeyspace,
            Objection::NoDocument => ControlError::NotReady,
        }
    }
}

/// The document that counts at the node, once it has one.
pub(crate) type SharedDocument = Rc<RefCell<Option<Arc<ClusterDocument>>>>;

/// What a welcome says, and what a connection may have.
pub(crate) struct Greeting {
    pub(crate) node: NodeId,
    pub(crate) grant: Grant,
    pub(crate) document: SharedDocument,
    pub(crate) requests_max: usize,
    pub(crate) outgoing_bytes_max: usize,
}

impl ClientConnection {
    /// Replies to a request of the data path.
    pub(crate) fn reply(&self, id: u64, epoch: Epoch, reply: Reply) {
        self.under_way.set(self.under_way.get().saturating_sub(1));
        self.send(&ServerMessage::Reply { id, epoch, reply });
    }

    /// Replies to a control request.
    pub(crate) fn reply_control(&self, id: u64, epoch: Epoch, reply: Result<ControlReply, ControlError>) {
        self.under_way.set(self.under_way.get().saturating_sub(1));
        self.send(&ServerMessage::Control { id, epoch, reply });
    }

    /// A client that lets its replies pile up is cut off: it would never know which of them it missed.
    fn send(&self, message: &ServerMessage) {
        if self.outbox.push(|out| message.encode(out)) == Err(NotSent) && !self.outbox.is_closed() {
            self.outbox.close();
            Closing::TooSlow.close(&self.connection);
        }
    }

    /// Whether nobody reads the replies any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.outbox.is_closed()
    }

    /// What stands against a request that needs this access, to keys of this keyspace if it is about keys.
    fn objection(&self, needs: Access, keyspace: Option<KeyspaceId>) -> Option<Objection> {
        if self.grant.access < needs {
            return Some(Objection::Access(needs));
        }
        let (granted, asked) = self.grant.keyspaces.as_ref().zip(keyspace)?;
        match self.document.borrow().as_ref().map(|document| document.keyspaces.get(&asked)) {
            Some(Some(keyspace)) if granted.contains(&keyspace.name) => None,
            Some(Some(_)) => Some(Objection::OtherKeyspaces),
            // It may be one that the certificate has, and the node's document an old one.
            Some(None) => Some(Objection::UnknownKeyspace),
            None => Some(Objection::NoDocument),
        }
    }

    /// The epoch that counts at the node.
    fn epoch(&self) -> Epoch {
        self.document.borrow().as_ref().map_or(Epoch(0), |document| document.epoch)
    }

    /// Refuses a request before it costs anything.
    fn refuse(&self, mailbox: &Mailbox, id: u64, operation: Operation, refusal: Refusal) {
        self.under_way.set(self.under_way.get() + 1);
        mailbox.refused(&refusal);
        let reply = match operation {
            Operation::Read => Reply::Get(Err(GetError::Refused(refusal))),
            Operation::Write => Reply::Write(Err(WriteError::Refused(refusal))),
        };
        self.reply(id, self.epoch(), reply);
    }

    /// Hands a request on, or answers it at once if it is not allowed. Returns whether it handed it on.
    async fn on_request(self: &Rc<Self>, mailbox: &Mailbox, id: u64, request: Request) -> bool {
        let (operation, needs, keyspace) = match &request {
            Request::Get(get) => (Operation::Read, Access::Read, get.keyspace),
            Request::Put(put) => (Operation::Write, Access::Write, put.keyspace),
            Request::Delete(delete) => (Operation::Write, Access::Write, delete.keyspace),
        };
        if let Some(objection) = self.objection(needs, Some(keyspace)) {
            self.refuse(mailbox, id, operation, objection.into());
            return false;
        }
        self.under_way.set(self.under_way.get() + 1);
        let arrived = Instant::now();
        mailbox.put_patiently(Mail::Request { from: Rc::clone(self), id, request, arrived }).await;
        true
    }

    /// Whether the node takes one more request. If not, this one is refused before it costs anything.
    fn admits(&self, mailbox: &Mailbox, id: u64, operation: Operation) -> bool {
        let admits = self.under_way.get() < self.requests_max && mailbox.admits_request();
        if !admits {
            self.refuse(mailbox, id, operation, Refusal::Overloaded(Limit::Requests));
        }
        admits
    }

    /// As [`ClientConnection::on_request`].
    async fn on_control(self: &Rc<Self>, mailbox: &Mailbox, id: u64, request: ControlRequest) -> bool {
        let (needs, keyspace) = match &request {
            ControlRequest::Document | ControlRequest::Status | ControlRequest::Vitals => {
                (Access::Read, None)
            }
            ControlRequest::Explain { keyspace, .. } | ControlRequest::Keys { keyspace, .. } => {
                (Access::Read, Some(*keyspace))
            }
            ControlRequest::CreateKeyspace(_)
            | ControlRequest::Readmit { .. }
            | ControlRequest::Repair { .. } => (Access::Admin, None),
        };
        let refusal = match self.objection(needs, keyspace) {
            Some(objection) => Some(objection.into()),
            None if self.under_way.get() >= self.requests_max => Some(ControlError::Overloaded),
            None => None,
        };
        self.under_way.set(self.under_way.get() + 1);
        match refusal {
            Some(refusal) => {
                self.reply_control(id, self.epoch(), Err(refusal));
                false
            }
            None => {
                mailbox.put_patiently(Mail::Control { from: Rc::clone(self), id, request }).await;
                true
            }
        }
    }
}

/// Serves a client's connection until it ends.
pub(crate) async fn serve(connection: Connection, greeting: Greeting, mailbox: Rc<Mailbox>) {
    let closing = match greet(&connection, greeting).await {
        Ok((client, mut receiver, frames)) => {
            let closing = read(&client, &mut receiver, frames, &mailbox).await;
            client.outbox.close();
            closing
        }
        Err(closing) => closing,
    };
    closing.close(&connection);
}

/// The client's hello and the node's welcome.
async fn greet(
    connection: &Connection,
    greeting: Greeting,
) -> Result<(Rc<ClientConnection>, RecvStream, FrameReader), Closing> {
    let opening = async {
        let (sender, mut receiver) = connection.accept_bi().await.map_err(|_| Closing::Done)?;
        let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
        let first = next_frame(&mut receiver, &mut frames).await?.ok_or(Closing::Done)?;
        Ok((sender, receiver, frames, first))
    };
    let opened = time::timeout(HELLO_TIMEOUT, opening).await.map_err(|_| Closing::NoHello)?;
    let (mut sender, receiver, frames, first) = opened?;
    let version = match ClientMessage::decode(first).map_err(|_| Closing::Malformed)? {
        ClientMessage::Hello(hello) => negotiate(hello.version).map_err(|_| Closing::Version)?,
        ClientMessage::Request { .. } | ClientMessage::Control { .. } => return Err(Closing::NoHello),
    };
    let client = Rc::new(ClientConnection {
        connection: connection.clone(),
        outbox: Outbox::new(greeting.outgoing_bytes_max),
        grant: greeting.grant,
        document: greeting.document,
        requests_max: greeting.requests_max,
        under_way: Cell::new(0),
    });
    let cluster = client.document.borrow().as_ref().map(|document| document.cluster);
    client.send(&ServerMessage::Welcome(ServerWelcome {
        version,
        features: 0,
        node: greeting.node,
        cluster,
        epoch: client.epoch(),
        access: client.grant.access,
    }));
    let outbox = client.outbox.clone();
    task::spawn_local(async move {
        if outbox.write_to(&mut sender).await.is_ok() {
            // Nobody is left to tell if the stream is gone.
            drop(sender.finish());
        }
    });
    Ok((client, receiver, frames))
}

/// Reads requests until the connection ends.
async fn read(
    client: &Rc<ClientConnection>,
    receiver: &mut RecvStream,
    mut frames: FrameReader,
    mailbox: &Mailbox,
) -> Closing {
    let mut refused = 0_u32;
    loop {
        let body = match next_frame(receiver, &mut frames).await {
            Ok(Some(body)) => body,
            Ok(None) => return Closing::Done,
            Err(closing) => return closing,
        };
        let was_taken = match ClientMessage::peek_request(&body) {
            Some((id, operation)) if !client.admits(mailbox, id, operation) => false,
            _ => match ClientMessage::decode(body) {
                Ok(ClientMessage::Request { id, request }) => client.on_request(mailbox, id, request).await,
                Ok(ClientMessage::Control { id, request }) => client.on_control(mailbox, id, request).await,
                // What cannot be read of one request is no reason to give up the others.
                Err(DecodeError::Request { id, operation, .. }) => {
                    client.refuse(mailbox, id, operation, Refusal::Malformed);
                    false
                }
                Err(DecodeError::Control { id, .. }) => {
                    client.under_way.set(client.under_way.get() + 1);
                    client.reply_control(id, client.epoch(), Err(ControlError::Unsupported));
                    false
                }
                Ok(ClientMessage::Hello(_)) | Err(DecodeError::Frame(_)) => return Closing::Malformed,
            },
        };
        if !was_taken {
            refused += 1;
            if refused.is_multiple_of(REFUSED_AT_ONCE) {
                task::yield_now().await;
            }
        }
    }
}

/// The next frame's body; none at the end of the stream.
pub(crate) async fn next_frame(
    receiver: &mut RecvStream,
    frames: &mut FrameReader,
) -> Result<Option<Bytes>, Closing> {
    loop {
        if let Some(body) = frames.next().map_err(|_| Closing::Malformed)? {
            return Ok(Some(body));
        }
        match receiver.read_chunk(CHUNK_BYTES_MAX, true).await {
            Ok(Some(chunk)) => frames.push(chunk.bytes),
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

/// Bytes that are taken off a stream at a time.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
