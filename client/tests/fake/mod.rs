//! A cluster of nodes that speak the public protocol and do what a script says: on the wire they are real, QUIC and
//! certificates and all, and behind it is one map that all of them share.

// Each test binary uses its own part of this, and in a test a panic is a finding.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod cli;
mod store;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use client::{
    Access, Client, ClientConfig, DoubtCause, GetError, Refusal, Reply, Request, Role, WriteError,
    certificates::{Authority, DAYS_DEFAULT, Request as CertificateRequest},
    tls::{self, Material},
    wire::{
        ALPN_CLIENT, ClientMessage, ControlError, ControlReply, ControlRequest, FrameReader,
        MESSAGE_BYTES_MAX, PROTOCOL_VERSION, ServerMessage, ServerWelcome,
    },
};
use ring::{
    ClusterDocument, ClusterId, ConflictPolicy, Datacenter, DatacenterId, Durability, Epoch, Keyspace,
    KeyspaceId, Member, NodeId, Partitions, RackId, StoreId,
};
pub use store::Store;
use tokio::sync::mpsc;

/// What a node does with a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// What a node does.
    Serve,
    /// Answers this.
    Reply(Reply),
    /// Answers this, under another document.
    ReplyUnder(Epoch, Reply),
    /// Answers a control request.
    Control(Result<ControlReply, ControlError>),
    /// Does it after some time.
    Later(Duration, Box<Act>),
    /// Does it, and says nothing of it.
    ServeInSilence,
    /// Says nothing.
    Silence,
    /// Ends the connection.
    Close,
}

/// What a node was asked.
#[derive(Clone, Debug)]
pub enum Asked {
    Data(Request),
    Control(ControlRequest),
}

type Script = Box<dyn FnMut(&Asked) -> Act + Send>;

/// The cluster. Its files go with it.
pub struct FakeCluster {
    pub folder: Folder,
    pub nodes: Vec<FakeNode>,
    pub shared: Arc<Shared>,
}

/// What its nodes share.
pub struct Shared {
    pub document: Mutex<ClusterDocument>,
    pub store: Mutex<Store>,
}

/// One node.
pub struct FakeNode {
    pub id: NodeId,
    pub address: SocketAddr,
    endpoint: quinn::Endpoint,
    pub state: Arc<NodeState>,
}

/// What a node remembers.
pub struct NodeState {
    id: NodeId,
    script: Mutex<Script>,
    heard: Mutex<Vec<Asked>>,
    connections: Mutex<Vec<quinn::Connection>>,
    shared: Arc<Shared>,
    pub accepted: AtomicU64,
}

/// A folder of its own for a test, removed with it.
pub struct Folder(PathBuf);

/// The keyspace that keeps siblings.
pub const DEFAULT: KeyspaceId = KeyspaceId(1);
/// The keyspace that keeps the last write.
pub const LWW: KeyspaceId = KeyspaceId(2);

impl FakeCluster {
    /// A cluster of `count` nodes, ids from 1, in one datacenter.
    pub async fn start(count: u32) -> FakeCluster {
        FakeCluster::start_in(count, |_| 0).await
    }

    /// A cluster of `count` nodes, each in the datacenter that the function says: `ams` or `fra`.
    pub async fn start_in(count: u32, datacenter: impl Fn(u32) -> u16) -> FakeCluster {
        let folder = Folder::new();
        let authority = Authority::create(folder.path()).unwrap();
        issue(&authority, folder.path(), "node", Role::Node);
        for (name, access) in [("admin", Access::Admin), ("writer", Access::Write), ("reader", Access::Read)]
        {
            issue(&authority, folder.path(), name, Role::client(access));
        }
        let endpoints: Vec<_> = (1..=count).map(|_| listen(folder.path())).collect();
        let mut members = BTreeMap::new();
        for (id, endpoint) in (1..).zip(&endpoints) {
            let address = endpoint.local_addr().unwrap().to_string();
            let (datacenter, rack) = (DatacenterId(datacenter(id)), RackId(0));
            let member = Member::new(StoreId(u64::from(id)), address, datacenter, rack, 100);
            members.insert(NodeId(id), member);
        }
        let copies = |datacenter| members.values().filter(|member| member.datacenter == datacenter).count();
        let names = ["ams", "fra"].into_iter().zip([0, 1].map(|index| copies(DatacenterId(index))));
        let datacenters: Vec<_> =
            names.filter(|(_, count)| *count > 0).map(|(name, _)| Datacenter::new(name, ["a"])).collect();
        let replication: BTreeMap<_, _> =
            (0..datacenters.len()).map(|index| (DatacenterId(u16::try_from(index).unwrap()), 3)).collect();
        let keyspace = |name: &str, conflict| Keyspace {
            replication: replication.clone(),
            ..Keyspace::new(name, 3, conflict, Durability::Disk)
        };
        let keyspaces = BTreeMap::from([
            (DEFAULT, keyspace("default", ConflictPolicy::Siblings)),
            (LWW, keyspace("lww", ConflictPolicy::LastWriteWins)),
        ]);
        let document =
            ClusterDocument::founding(ClusterId(7), Partitions::CLUSTER_MIN, datacenters, members, keyspaces)
                .unwrap();
        let shared = Arc::new(Shared { document: Mutex::new(document), store: Mutex::default() });
        let nodes = (1..).map(NodeId).zip(endpoints);
        let nodes = nodes.map(|(id, endpoint)| FakeNode::start(id, endpoint, shared.clone())).collect();
        FakeCluster { folder, nodes, shared }
    }

    /// A configuration for an administrator, with every node as a seed.
    pub fn config(&self) -> ClientConfig {
        self.config_of("admin")
    }

    pub fn config_of(&self, name: &str) -> ClientConfig {
        let path = |file: String| self.folder.path().join(file);
        let seeds = self.nodes.iter().map(|node| node.address.to_string());
        ClientConfig::new(
            seeds,
            path("ca.pem".into()),
            path(format!("{name}.pem")),
            path(format!("{name}-key.pem")),
        )
    }

    /// A connected client.
    pub async fn client(&self) -> Client {
        Client::connect(self.config()).await.unwrap()
    }

    /// The file that says what [`FakeCluster::config`] does.
    pub fn config_file(&self) -> PathBuf {
        let seeds: Vec<_> = self.nodes.iter().map(|node| format!("\"{}\"", node.address)).collect();
        let path = self.folder.path().join("client.toml");
        let rest = "ca = 'ca.pem'\ncertificate = 'admin.pem'\nkey = 'admin-key.pem'\n";
        std::fs::write(&path, format!("seeds = [{}]\n{rest}", seeds.join(", "))).unwrap();
        path
    }

    pub fn node(&self, id: NodeId) -> &FakeNode {
        self.nodes.iter().find(|node| node.id == id).unwrap()
    }

    /// Every node follows this script.
    pub fn script(&self, script: impl FnMut(&Asked) -> Act + Send + Clone + 'static) {
        for node in &self.nodes {
            node.script(script.clone());
        }
    }

    /// Writes with their ids that any node heard, and who.
    pub fn writes(&self) -> Vec<(NodeId, client::RequestId)> {
        let of_node = |node: &FakeNode| {
            let requests = node.requests().into_iter();
            let id = node.id;
            requests.filter_map(move |request| match request {
                Request::Put(put) => Some((id, put.options.request)),
                Request::Delete(delete) => Some((id, delete.options.request)),
                Request::Get(_) => None,
            })
        };
        self.nodes.iter().flat_map(of_node).collect()
    }

    /// Requests of the data path that any node heard.
    pub fn asked(&self) -> usize {
        self.nodes.iter().map(|node| node.requests().len()).sum()
    }

    /// Replaces the document by its successor with whatever the function changes.
    pub fn change_document(&self, change: impl FnOnce(&mut ClusterDocument)) -> Epoch {
        let mut document = self.shared.document.lock().unwrap();
        let mut next = document.successor();
        change(&mut next);
        *document = next;
        document.epoch
    }
}

impl FakeNode {
    fn start(id: NodeId, endpoint: quinn::Endpoint, shared: Arc<Shared>) -> FakeNode {
        let address = endpoint.local_addr().unwrap();
        let state = Arc::new(NodeState {
            id,
            script: Mutex::new(Box::new(|_| Act::Serve)),
            heard: Mutex::default(),
            connections: Mutex::default(),
            shared,
            accepted: AtomicU64::new(0),
        });
        tokio::spawn(accept(endpoint.clone(), state.clone()));
        FakeNode { id, address, endpoint, state }
    }

    /// What it does with each request from now on.
    pub fn script(&self, script: impl FnMut(&Asked) -> Act + Send + 'static) {
        *self.state.script.lock().unwrap() = Box::new(script);
    }

    /// What it did not do with requests of the data path, it does with these.
    pub fn script_data(&self, act: Act) {
        self.script(move |asked| match asked {
            Asked::Data(_) => act.clone(),
            Asked::Control(_) => Act::Serve,
        });
    }

    /// The requests of the data path that it heard.
    pub fn requests(&self) -> Vec<Request> {
        let heard = self.state.heard.lock().unwrap();
        let data = heard.iter().filter_map(|asked| match asked {
            Asked::Data(request) => Some(request.clone()),
            Asked::Control(_) => None,
        });
        data.collect()
    }

    /// The control requests that it heard.
    pub fn controls(&self) -> Vec<ControlRequest> {
        let heard = self.state.heard.lock().unwrap();
        let control = heard.iter().filter_map(|asked| match asked {
            Asked::Data(_) => None,
            Asked::Control(request) => Some(request.clone()),
        });
        control.collect()
    }

    /// Goes away as a killed process does: without a word, and nothing listens there any longer.
    pub fn kill(&self) {
        let elsewhere = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        self.endpoint.rebind(elsewhere).unwrap();
    }

    /// Its connections.
    pub fn connections(&self) -> Vec<quinn::Connection> {
        self.state.connections.lock().unwrap().clone()
    }
}

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("quorate-client-test-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An address where nothing answers, for as long as the socket is kept.
pub fn black_hole() -> (UdpSocket, String) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

/// A refusal of any request.
pub fn refuse(asked: &Asked, refusal: Refusal) -> Act {
    match asked {
        Asked::Data(Request::Put(_) | Request::Delete(_)) => Act::Reply(Reply::Write(Err(refusal.into()))),
        Asked::Data(Request::Get(_)) => Act::Reply(Reply::Get(Err(GetError::Refused(refusal)))),
        Asked::Control(_) => Act::Serve,
    }
}

/// A write whose coordinator says that it is in doubt.
pub fn doubtful() -> Act {
    let (required, acknowledged, cause) = (2, 1, DoubtCause::TimedOut);
    Act::Reply(Reply::Write(Err(WriteError::InDoubt { required, acknowledged, cause })))
}

fn issue(authority: &Authority, folder: &Path, name: &str, role: Role) {
    let request = CertificateRequest { role, name: name.to_owned(), hosts: Vec::new(), days: DAYS_DEFAULT };
    authority.issue(&request).unwrap().write(folder, name).unwrap();
}

fn listen(folder: &Path) -> quinn::Endpoint {
    let file = |name: &str| folder.join(name);
    let material = Material::load(&file("ca.pem"), &file("node.pem"), &file("node-key.pem")).unwrap();
    let config = tls::server_config(&material, &[ALPN_CLIENT]).unwrap();
    quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

async fn accept(endpoint: quinn::Endpoint, state: Arc<NodeState>) {
    while let Some(incoming) = endpoint.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            // A client whose certificate is refused, or that went away, is no concern of a test's node.
            if let Ok(connection) = incoming.await {
                state.accepted.fetch_add(1, Ordering::Relaxed);
                state.connections.lock().unwrap().push(connection.clone());
                let _ = serve(connection, state).await;
            }
        });
    }
}

/// Serves one connection until it ends.
async fn serve(connection: quinn::Connection, state: Arc<NodeState>) -> Option<()> {
    let Ok(Role::Client(client::Grant { access, .. })) = tls::role_of_peer(&connection) else { return None };
    let (send, mut receive) = connection.accept_bi().await.ok()?;
    let (replies, queued) = mpsc::unbounded_channel();
    tokio::spawn(write(send, queued));
    let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
    loop {
        while let Some(body) = frames.next().unwrap() {
            match ClientMessage::decode(body).unwrap() {
                ClientMessage::Hello(hello) => {
                    assert_eq!(hello.version, PROTOCOL_VERSION);
                    replies.send(state.welcome(access)).ok()?;
                }
                ClientMessage::Request { id, request } => {
                    state.clone().act(id, Asked::Data(request), &connection, &replies);
                }
                ClientMessage::Control { id, request } => {
                    state.clone().act(id, Asked::Control(request), &connection, &replies);
                }
            }
        }
        frames.push(receive.read_chunk(usize::MAX, true).await.ok()??.bytes);
    }
}

async fn write(
    mut send: quinn::SendStream,
    mut queued: mpsc::UnboundedReceiver<ServerMessage>,
) -> Option<()> {
    while let Some(message) = queued.recv().await {
        let mut buffer = BytesMut::new();
        message.encode(&mut buffer);
        send.write_chunk(buffer.freeze()).await.ok()?;
    }
    Some(())
}

impl NodeState {
    fn welcome(&self, access: Access) -> ServerMessage {
        let document = self.shared.document.lock().unwrap();
        ServerMessage::Welcome(ServerWelcome {
            version: PROTOCOL_VERSION,
            features: 0,
            node: self.id,
            cluster: Some(document.cluster),
            epoch: document.epoch,
            access,
        })
    }

    fn act(
        self: Arc<Self>,
        id: u64,
        asked: Asked,
        connection: &quinn::Connection,
        replies: &mpsc::UnboundedSender<ServerMessage>,
    ) {
        self.heard.lock().unwrap().push(asked.clone());
        let act = (self.script.lock().unwrap())(&asked);
        self.perform(id, asked, act, connection.clone(), replies.clone());
    }

    fn perform(
        self: Arc<Self>,
        id: u64,
        asked: Asked,
        act: Act,
        connection: quinn::Connection,
        replies: mpsc::UnboundedSender<ServerMessage>,
    ) {
        let epoch = self.shared.document.lock().unwrap().epoch;
        let message = match act {
            Act::Serve => match asked {
                Asked::Data(request) => {
                    ServerMessage::Reply { id, epoch, reply: self.shared.serve(self.id, request) }
                }
                Asked::Control(request) => {
                    ServerMessage::Control { id, epoch, reply: self.shared.control(self.id, request) }
                }
            },
            Act::Reply(reply) => ServerMessage::Reply { id, epoch, reply },
            Act::ReplyUnder(epoch, reply) => ServerMessage::Reply { id, epoch, reply },
            Act::Control(reply) => ServerMessage::Control { id, epoch, reply },
            Act::Later(wait, act) => {
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    self.perform(id, asked, *act, connection, replies);
                });
                return;
            }
            Act::ServeInSilence => {
                if let Asked::Data(request) = asked {
                    self.shared.serve(self.id, request);
                }
                return;
            }
            Act::Silence => return,
            Act::Close => return connection.close(quinn::VarInt::from_u32(0), b""),
        };
        let _ = replies.send(message);
    }
}
