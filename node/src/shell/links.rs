//! Connections to peers: one to each, with one long-lived stream for requests and one for repair and movement, so that
//! bulk traffic never sits in front of a request.
//!
//! Of two nodes the one with the lower id dials, again and again until it gets through. The dialling node opens both
//! streams: the first begins with its hello and the other's, the second with an empty frame. Packets about who is up are
//! datagrams, which wait for nothing. What is to be sent while there is no connection is lost, as the core expects of a
//! network.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use client::{
    Role,
    tls::role_of_peer,
    wire::{FrameReader, put_frame},
};
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use ring::{ClusterId, NodeId};
use tokio::{net, task, time};
use tracing::{debug, info, warn};

use super::{
    clients::next_frame,
    closing::Closing,
    mailbox::{Mail, Mailbox},
    outbox::Outbox,
};
use crate::{
    Input,
    message::{Envelope, MergePath, Message, StartId},
    wire::{PEER_MESSAGE_BYTES_MAX, PEER_PROTOCOL_VERSION, PeerHello, PeerWelcome, negotiate},
};

/// How long the first frames of a connection may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The wait after a failed dial, at first and at most, doubling.
const DIAL_AGAIN_AFTER: Duration = Duration::from_millis(50);
const DIAL_AGAIN_AFTER_MAX: Duration = Duration::from_secs(2);

/// All links of a node.
pub(crate) struct Links {
    node: NodeId,
    start: StartId,
    cluster: Cell<Option<ClusterId>>,
    links: RefCell<BTreeMap<NodeId, Rc<Link>>>,
    mailbox: Rc<Mailbox>,
    outgoing_bytes_max: usize,
    /// Messages that found no connection, or no room.
    pub(crate) lost: Cell<u64>,
    /// Packets that found no connection.
    pub(crate) datagrams_lost: Cell<u64>,
}

/// The link to one peer.
struct Link {
    peer: NodeId,
    address: RefCell<String>,
    lanes: RefCell<Option<Lanes>>,
    /// Counts connections, so that the end of an old one does not take the lanes of a new one.
    generation: Cell<u64>,
    is_dialled: Cell<bool>,
}

/// Where messages to a connected peer go.
struct Lanes {
    requests: Outbox,
    repair: Outbox,
    connection: Connection,
}

impl Links {
    /// No links yet.
    pub(crate) fn new(
        node: NodeId,
        start: StartId,
        mailbox: Rc<Mailbox>,
        outgoing_bytes_max: usize,
    ) -> Links {
        Links {
            node,
            start,
            cluster: Cell::new(None),
            links: RefCell::new(BTreeMap::new()),
            mailbox,
            outgoing_bytes_max,
            lost: Cell::new(0),
            datagrams_lost: Cell::new(0),
        }
    }

    /// The cluster, once it is known: strangers are refused by it.
    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        self.cluster.set(Some(cluster));
    }

    /// Keeps links to these peers and to no others, and dials those that are to be dialled.
    pub(crate) fn set_peers(
        self: &Rc<Self>,
        peers: impl IntoIterator<Item = (NodeId, String)>,
        dialler: &Dialler,
    ) {
        let mut links = self.links.borrow_mut();
        let mut kept = BTreeMap::new();
        for (peer, address) in peers.into_iter().filter(|(peer, _)| *peer != self.node) {
            let link = links.remove(&peer).unwrap_or_else(|| Rc::new(Link::new(peer)));
            *link.address.borrow_mut() = address;
            if self.node < peer && !link.is_dialled.replace(true) {
                task::spawn_local(dial(Rc::clone(self), Rc::clone(&link), dialler.clone()));
            }
            kept.insert(peer, link);
        }
        for link in links.values() {
            link.is_dialled.set(false);
            link.disconnect(Closing::Stranger);
        }
        *links = kept;
    }

    /// Lets go of all peers: the node stops.
    pub(crate) fn close(&self) {
        for (_, link) in std::mem::take(&mut *self.links.borrow_mut()) {
            link.is_dialled.set(false);
            link.disconnect(Closing::Stopping);
        }
    }

    /// Sends a message to a peer, or loses it.
    pub(crate) fn send(&self, to: NodeId, envelope: &Envelope) {
        let links = self.links.borrow();
        let lanes = links.get(&to).map(|link| link.lanes.borrow());
        let sent = match lanes.as_ref().and_then(|lanes| lanes.as_ref()) {
            Some(lanes) => {
                let lane = if is_bulk(&envelope.message) { &lanes.repair } else { &lanes.requests };
                lane.push(|out| envelope.encode(out)).is_ok()
            }
            None => false,
        };
        if !sent {
            self.lost.set(self.lost.get() + 1);
        }
    }

    /// Sends a packet to a peer that may not wait, or loses it.
    pub(crate) fn send_datagram(&self, to: NodeId, packet: Bytes) {
        let links = self.links.borrow();
        let lanes = links.get(&to).map(|link| link.lanes.borrow());
        let lanes = lanes.as_ref().and_then(|lanes| lanes.as_ref());
        let is_sent = lanes.is_some_and(|lanes| lanes.connection.send_datagram(packet).is_ok());
        if !is_sent {
            self.datagrams_lost.set(self.datagrams_lost.get() + 1);
        }
    }

    /// Whether there is a connection to a peer, and how many bytes wait on it.
    pub(crate) fn census(&self) -> Vec<(NodeId, Option<LinkState>)> {
        let links = self.links.borrow();
        let state = |link: &Link| {
            link.lanes.borrow().as_ref().map(|lanes| LinkState {
                waiting_bytes: lanes.requests.waiting_bytes() + lanes.repair.waiting_bytes(),
                stats: lanes.connection.stats(),
            })
        };
        links.iter().map(|(peer, link)| (*peer, state(link))).collect()
    }

    fn hello(&self) -> PeerHello {
        let (cluster, node, start) = (self.cluster.get(), self.node, self.start);
        PeerHello { version: PEER_PROTOCOL_VERSION, features: 0, cluster, node, start }
    }

    /// The answer to a hello that was checked, in the version that was agreed on.
    fn welcome(&self, version: u16) -> PeerWelcome {
        let PeerHello { features, cluster, node, start, .. } = self.hello();
        PeerWelcome { version, features, cluster, node, start }
    }

    /// Whether a node that says this may be listened to, and in which version.
    fn check(&self, version: u16, cluster: Option<ClusterId>, node: NodeId) -> Result<u16, Closing> {
        let version = negotiate(version).map_err(|_| Closing::Version)?;
        let is_foreign = self.cluster.get().zip(cluster).is_some_and(|(ours, theirs)| ours != theirs);
        if is_foreign || node == self.node { Err(Closing::Stranger) } else { Ok(version) }
    }

    /// Takes a connection that a peer has dialled, until it ends.
    pub(crate) async fn accept(self: Rc<Self>, connection: Connection) {
        let opened = time::timeout(HELLO_TIMEOUT, self.open_accepted(&connection)).await;
        let ended = match opened.unwrap_or(Err(Closing::NoHello)) {
            Ok((link, streams)) => self.run(&link, &connection, streams).await,
            Err(closing) => closing,
        };
        closing_logged(ended, &connection);
    }

    async fn open_accepted(&self, connection: &Connection) -> Result<(Rc<Link>, Streams), Closing> {
        let (mut sender, mut receiver) = connection.accept_bi().await.map_err(|_| Closing::Done)?;
        let mut frames = FrameReader::new(PEER_MESSAGE_BYTES_MAX);
        let first = next_frame(&mut receiver, &mut frames).await?.ok_or(Closing::Done)?;
        let hello = PeerHello::decode(first).map_err(|_| Closing::Malformed)?;
        let version = self.check(hello.version, hello.cluster, hello.node)?;
        let link = self.links.borrow().get(&hello.node).cloned().ok_or(Closing::Stranger)?;
        if hello.node > self.node {
            // The lower id dials: this one has mistaken who it is.
            return Err(Closing::Stranger);
        }
        write_frames(&mut sender, |out| self.welcome(version).encode(out)).await?;
        let (repair_sender, mut repair_receiver) = connection.accept_bi().await.map_err(|_| Closing::Done)?;
        let mut repair_frames = FrameReader::new(PEER_MESSAGE_BYTES_MAX);
        let opening = next_frame(&mut repair_receiver, &mut repair_frames).await?;
        if opening.is_none_or(|frame| !frame.is_empty()) {
            return Err(Closing::Malformed);
        }
        let requests = (sender, receiver, frames);
        let repair = (repair_sender, repair_receiver, repair_frames);
        Ok((link, Streams { start: hello.start, requests, repair }))
    }

    /// Carries messages over an open connection until it ends.
    async fn run(&self, link: &Rc<Link>, connection: &Connection, streams: Streams) -> Closing {
        link.disconnect(Closing::Superseded);
        let generation = link.generation.get() + 1;
        link.generation.set(generation);
        let outbox = || Outbox::new(self.outgoing_bytes_max);
        let lanes = Lanes { requests: outbox(), repair: outbox(), connection: connection.clone() };
        let Streams { start, requests, repair } = streams;
        write_lane(lanes.requests.clone(), requests.0);
        write_lane(lanes.repair.clone(), repair.0);
        *link.lanes.borrow_mut() = Some(lanes);
        info!(peer = link.peer.0, address = %connection.remote_address(), "connected to a peer");
        self.mailbox.put(Mail::Input(Input::Connected(link.peer)));
        let closing = tokio::select! {
            closing = self.read_lane(link, generation, start, requests.1, requests.2) => closing,
            closing = self.read_lane(link, generation, start, repair.1, repair.2) => closing,
            closing = self.read_datagrams(link, generation, connection) => closing,
        };
        if link.generation.get() == generation {
            if Closing::is_goodbye(connection) {
                self.mailbox.put(Mail::Input(Input::Left(link.peer)));
            }
            info!(peer = link.peer.0, why = %ended(connection), "disconnected from a peer");
            link.disconnect(closing);
        }
        closing
    }

    /// Hands on what comes, for as long as no other connection has taken the place of this one: what is left of it
    /// then is the late word of a process that may be over.
    async fn read_lane(
        &self,
        link: &Link,
        generation: u64,
        start: StartId,
        mut receiver: RecvStream,
        mut frames: FrameReader,
    ) -> Closing {
        loop {
            let body = match next_frame(&mut receiver, &mut frames).await {
                Ok(Some(body)) => body,
                Ok(None) => return Closing::Done,
                Err(closing) => return closing,
            };
            match Envelope::decode(body) {
                _ if link.generation.get() != generation => return Closing::Superseded,
                // Who speaks was said at the beginning; nobody speaks for another, nor for another process.
                Ok(envelope) if envelope.header.from == link.peer && envelope.header.start == start => {
                    self.mailbox.put_patiently(Mail::Input(Input::Peer(envelope))).await;
                }
                Ok(_) | Err(_) => return Closing::Malformed,
            }
        }
    }

    /// The same for packets that are not part of a stream.
    async fn read_datagrams(&self, link: &Link, generation: u64, connection: &Connection) -> Closing {
        while let Ok(packet) = connection.read_datagram().await {
            if link.generation.get() != generation {
                return Closing::Superseded;
            }
            self.mailbox.put_patiently(Mail::Input(Input::Datagram { from: link.peer, packet })).await;
        }
        Closing::Done
    }
}

/// How the link to a peer fares.
pub(crate) struct LinkState {
    pub(crate) waiting_bytes: usize,
    pub(crate) stats: quinn::ConnectionStats,
}

/// The streams of an open connection, with what was read of them too far.
struct Streams {
    /// The process at the other end.
    start: StartId,
    requests: (SendStream, RecvStream, FrameReader),
    repair: (SendStream, RecvStream, FrameReader),
}

/// What it takes to dial.
#[derive(Clone)]
pub(crate) struct Dialler {
    pub(crate) endpoint: Endpoint,
    /// Shared by all: certificates are renewed.
    pub(crate) config: Rc<RefCell<ClientConfig>>,
}

impl Link {
    fn new(peer: NodeId) -> Link {
        Link {
            peer,
            address: RefCell::new(String::new()),
            lanes: RefCell::new(None),
            generation: Cell::new(0),
            is_dialled: Cell::new(false),
        }
    }

    fn disconnect(&self, closing: Closing) {
        if let Some(lanes) = self.lanes.borrow_mut().take() {
            lanes.requests.close();
            lanes.repair.close();
            closing.close(&lanes.connection);
        }
    }
}

/// Dials a peer for as long as it is one.
async fn dial(links: Rc<Links>, link: Rc<Link>, dialler: Dialler) {
    let mut wait = DIAL_AGAIN_AFTER;
    let mut is_known_down = false;
    while link.is_dialled.get() {
        match open_dialled(&links, &link, &dialler).await {
            Ok((connection, streams)) => {
                (wait, is_known_down) = (DIAL_AGAIN_AFTER, false);
                let closing = links.run(&link, &connection, streams).await;
                closing.close(&connection);
            }
            Err(failure) => {
                // Once is enough: a peer that is down is dialled for as long as it takes.
                if !std::mem::replace(&mut is_known_down, true) {
                    warn!(peer = link.peer.0, address = %link.address.borrow(), %failure, "cannot reach a peer");
                } else {
                    debug!(peer = link.peer.0, %failure, "still cannot reach a peer");
                }
            }
        }
        time::sleep(wait).await;
        wait = (wait * 2).min(DIAL_AGAIN_AFTER_MAX);
    }
}

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Why a dial failed, for people.
type DialFailure = String;

async fn open_dialled(
    links: &Links,
    link: &Link,
    dialler: &Dialler,
) -> Result<(Connection, Streams), DialFailure> {
    let address = link.address.borrow().clone();
    let found = net::lookup_host(&address).await.map_err(|error| error.to_string())?;
    let mut failure = "the name has no address".to_owned();
    for address in found.take(ADDRESSES_MAX) {
        match open_at(links, link, dialler, address).await {
            Ok(opened) => return Ok(opened),
            Err(reason) => failure = format!("{address}: {reason}"),
        }
    }
    Err(failure)
}

async fn open_at(
    links: &Links,
    link: &Link,
    dialler: &Dialler,
    address: SocketAddr,
) -> Result<(Connection, Streams), DialFailure> {
    let config = dialler.config.borrow().clone();
    let connecting = dialler
        .endpoint
        .connect_with(config, address, client::tls::SERVER_NAME)
        .map_err(|error| error.to_string())?;
    let connection = time::timeout(HELLO_TIMEOUT, connecting)
        .await
        .map_err(|_| "no answer".to_owned())?
        .map_err(|error| error.to_string())?;
    match role_of_peer(&connection) {
        Ok(Role::Node) => {}
        Ok(role) => return Err(turn_away(&connection, &format!("its role is {role}"))),
        Err(error) => return Err(turn_away(&connection, &error.to_string())),
    }
    let opening = time::timeout(HELLO_TIMEOUT, open_streams(links, link, &connection)).await;
    match opening.unwrap_or(Err(Closing::NoHello)) {
        Ok(streams) => Ok((connection, streams)),
        Err(closing) => {
            closing.close(&connection);
            Err(ended(&connection))
        }
    }
}

/// Ends a connection to whoever listens there and is no node.
fn turn_away(connection: &Connection, what: &str) -> DialFailure {
    Closing::Role("whoever listens at a node's address has to be a node").close(connection);
    format!("not a node: {what}")
}

async fn open_streams(links: &Links, link: &Link, connection: &Connection) -> Result<Streams, Closing> {
    let (mut sender, mut receiver) = connection.open_bi().await.map_err(|_| Closing::Done)?;
    write_frames(&mut sender, |out| links.hello().encode(out)).await?;
    let mut frames = FrameReader::new(PEER_MESSAGE_BYTES_MAX);
    let first = next_frame(&mut receiver, &mut frames).await?.ok_or(Closing::Done)?;
    let welcome = PeerWelcome::decode(first).map_err(|_| Closing::Malformed)?;
    links.check(welcome.version, welcome.cluster, welcome.node)?;
    if welcome.node != link.peer {
        return Err(Closing::Stranger);
    }
    let (mut repair_sender, repair_receiver) = connection.open_bi().await.map_err(|_| Closing::Done)?;
    write_frames(&mut repair_sender, |out| put_frame(out, |_| {})).await?;
    let repair = (repair_sender, repair_receiver, FrameReader::new(PEER_MESSAGE_BYTES_MAX));
    Ok(Streams { start: welcome.start, requests: (sender, receiver, frames), repair })
}

/// Writes the first frames of a stream, before it has an outbox.
async fn write_frames(sender: &mut SendStream, encode: impl FnOnce(&mut BytesMut)) -> Result<(), Closing> {
    let mut out = BytesMut::new();
    encode(&mut out);
    sender.write_chunk(out.freeze()).await.map_err(|_| Closing::Done)
}

fn write_lane(outbox: Outbox, mut sender: SendStream) {
    task::spawn_local(async move {
        // A stream that breaks takes its connection along; whoever reads it notices.
        drop(outbox.write_to(&mut sender).await);
    });
}

/// Why a connection ended, for people.
fn ended(connection: &Connection) -> String {
    connection.close_reason().map_or_else(|| "it was closed here".to_owned(), |reason| reason.to_string())
}

fn closing_logged(closing: Closing, connection: &Connection) {
    if closing != Closing::Done {
        debug!(?closing, address = %connection.remote_address(), "a peer's connection is closed");
    }
    closing.close(connection);
}

/// Whether a message is repair or movement.
fn is_bulk(message: &Message) -> bool {
    match message {
        Message::Merge { path, .. } => match path {
            MergePath::Hint | MergePath::AntiEntropy | MergePath::Movement => true,
            MergePath::Write | MergePath::StandIn { .. } | MergePath::ReadRepair => false,
        },
        Message::Exchange { .. }
        | Message::ExchangeAnswer { .. }
        | Message::ExchangeEnded { .. }
        | Message::HintOffer { .. } => true,
        Message::Hello { .. }
        | Message::Welcome { .. }
        | Message::DocumentRequest
        | Message::Document(_)
        | Message::Forward { .. }
        | Message::Forwarded { .. }
        | Message::Merged { .. }
        | Message::Read { .. }
        | Message::Answer { .. }
        | Message::Agreement(_)
        | Message::HintGrant { .. }
        | Message::Declined { .. } => false,
    }
}
