//! One running node: its store, its sockets and its thread.
//!
//! Everything but the disk's committer runs on one thread with a runtime of its own: the QUIC endpoint, the
//! connections, the node. They share what they share without locks, and a turn of the node follows the packets that
//! caused it without a switch of threads.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use client::{
    Grant, Role,
    tls::{self, Material, TlsError},
    udp::QuietRuntime,
    wire::{ALPN_CLIENT, ALPN_PEER},
};
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt, crypto::rustls::HandshakeData,
};
use thiserror::Error;
use tokio::{
    runtime,
    sync::{mpsc, watch},
    task::{self, LocalSet},
    time,
};
use tracing::{debug, info, warn};

use super::{
    clients::{self, Greeting, SharedDocument},
    closing::Closing,
    config::Config,
    disk::{self, DiskOptions, DiskStore, OpenError, Opened, SalvageError},
    driver::{Clock, Driver, DriverError, Parts},
    http,
    links::{Dialler, Links},
    mailbox::Mailbox,
    metrics::Metrics,
    pid_file::PidFile,
    renewal::{self, CertificateFiles, CertificateState, InUse},
    resets,
};
use crate::{Identity, Node};

/// A connection on which nothing is heard for so long is dead.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a quiet connection says something.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one stream that may be on their way: what one long frame needs to get through at full speed.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// How long the last packets of a closed endpoint may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections beyond those of clients and peers that may be open: handshakes under way and those that are being closed.
const UNFINISHED_MAX: usize = 512;
/// Bytes of packets about who is up that may wait on a connection, either way; of more, the oldest are lost.
const DATAGRAMS_BYTES_MAX: usize = 64 << 10;
/// Questions of the HTTP listener that may wait.
const ASKS_MAX: usize = 64;

/// Why a node cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A socket cannot be had.
    #[error("cannot listen on {address} ({what}): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// For what.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is not a node's.
    #[error("{}: the certificate's role is {role}: a node needs {}", certificate.display(), Role::Node)]
    Role {
        /// The certificate.
        certificate: PathBuf,
        /// Whose it is.
        role: Role,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The store is damaged and cannot be salvaged.
    #[error(transparent)]
    Salvage(#[from] SalvageError),
    /// The process id cannot be written.
    #[error("{}: {error}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The machine does not give a thread, or random numbers.
    #[error("the machine does not give what a node needs: {0}")]
    Machine(String),
}

/// A running node. It stops when it is told to; dropping this does not stop it.
pub struct Server {
    thread: thread::JoinHandle<Result<(), DriverError>>,
    stop: watch::Sender<bool>,
    renew: mpsc::UnboundedSender<()>,
    ready: watch::Receiver<bool>,
    address: SocketAddr,
}

impl Server {
    /// Starts a node: opens its store, binds its sockets and begins to serve, on a thread of its own.
    ///
    /// # Errors
    ///
    /// Whatever stands in its way, before it has begun.
    pub fn start(config: Config) -> Result<Server, StartError> {
        let files = certificate_files(&config);
        let stamps = files.stamps();
        let material = files.load()?;
        let in_use = InUse { files, stamps, stale_unix_s: material.stale_unix_s() };
        let socket = UdpSocket::bind(config.listen).map_err(|error| StartError::Listen {
            address: config.listen,
            what: "QUIC",
            error,
        })?;
        let http = TcpListener::bind(config.http)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|error| StartError::Listen { address: config.http, what: "HTTP", error })?;
        let address = socket.local_addr().map_err(|error| StartError::Listen {
            address: config.listen,
            what: "QUIC",
            error,
        })?;
        let opened = open_store(&config)?;
        let pid_file = write_pid_file(&config)?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| StartError::Machine(error.to_string()))?;
        let (stop, told_to_stop) = watch::channel(false);
        let (tell_ready, ready) = watch::channel(false);
        let (renew, told_to_renew) = mpsc::unbounded_channel();
        let running = Running {
            config,
            material,
            in_use,
            socket,
            http,
            opened,
            seed,
            told_to_stop,
            told_to_renew,
            tell_ready,
            pid_file,
        };
        let thread = thread::Builder::new()
            .name(format!("node-{}", running.config.id.0))
            .spawn(move || running.run())
            .map_err(|error| StartError::Machine(error.to_string()))?;
        Ok(Server { thread, stop, renew, ready, address })
    }

    /// Has the node read its certificates anew now, rather than when it sees that they have changed. If they are good, new
    /// connections use them.
    pub fn renew_certificates(&self) {
        // A node that has ended needs none.
        _ = self.renew.send(());
    }

    /// Tells the node to stop in good order.
    pub fn stop(&self) {
        // A node that has ended needs no telling.
        _ = self.stop.send(true);
    }

    /// Whether the node has been in touch with most of the others since it began, and when it is.
    #[must_use]
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// Where it listens for QUIC.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    ///
    /// [`DriverError`] if it ended because it could not go on.
    ///
    /// # Panics
    ///
    /// If it panicked.
    pub fn join(self) -> Result<(), DriverError> {
        match self.thread.join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn certificate_files(config: &Config) -> CertificateFiles {
    let Config { ca, certificate, key, .. } = config;
    CertificateFiles { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() }
}

/// Opens the store. One that is damaged is salvaged if the configuration allows it.
fn open_store(config: &Config) -> Result<Opened, StartError> {
    let options = DiskOptions::new(config.id);
    match DiskStore::open(&config.data, &options) {
        Ok(opened) => Ok(opened),
        Err(error @ OpenError::Damaged { .. }) if config.salvage => {
            warn!(%error, "the store is damaged: what can be read of it goes into a new one");
            let report = disk::salvage(&config.data, &options)?;
            warn!(?report, "the store was salvaged: it is a new one, and has to be readmitted");
            Ok(DiskStore::open(&config.data, &options)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn write_pid_file(config: &Config) -> Result<Option<PidFile>, StartError> {
    let written = config.pid_file.as_deref().map(|path| {
        PidFile::write(path).map_err(|error| StartError::PidFile { path: path.to_owned(), error })
    });
    written.transpose()
}

/// What the node's thread begins with.
struct Running {
    config: Config,
    material: Material,
    in_use: InUse,
    socket: UdpSocket,
    http: TcpListener,
    opened: Opened,
    seed: [u8; 32],
    told_to_stop: watch::Receiver<bool>,
    told_to_renew: mpsc::UnboundedReceiver<()>,
    tell_ready: watch::Sender<bool>,
    pid_file: Option<PidFile>,
}

impl Running {
    fn run(self) -> Result<(), DriverError> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime needs a few file descriptors");
        let ended = LocalSet::new().block_on(&runtime, self.serve());
        // A file system that does not answer holds up whoever reads certificates, and nobody else.
        runtime.shutdown_timeout(CLOSE_TIMEOUT);
        ended
    }

    async fn serve(self) -> Result<(), DriverError> {
        let Running {
            config,
            material,
            in_use,
            socket,
            http,
            opened,
            seed,
            told_to_stop,
            told_to_renew,
            tell_ready,
            pid_file,
        } = self;
        // Held until the node has ended.
        let _pid_file = pid_file;
        let clock = Clock::start();
        let (endpoint, papers) = open_endpoint(&config, &material, socket);
        let dialler = papers.dialler.clone();
        let certificates = Rc::new(Cell::new(CertificateState::of(&material)));
        task::spawn_local(renewal::follow(
            in_use,
            config.limits.certificate_interval,
            told_to_renew,
            papers,
            Rc::clone(&certificates),
        ));
        let (tell_commit, commits) = mpsc::unbounded_channel();
        // The driver may have ended: then nobody needs to know.
        let committer = opened.committer.start(move |event| drop(tell_commit.send(event)));
        let identity = Identity {
            node: config.id,
            seeds: config.seeds(),
            seed,
            formation: Some(config.formation.clone()),
        };
        let settings = config.limits.settings(config.secret);
        let node = Node::open(identity, settings, opened.store, clock.now());
        let mailbox = Rc::new(Mailbox::default());
        let outgoing_bytes_max = config.limits.outgoing_bytes_max;
        let links = Rc::new(Links::new(config.id, node.start_id(), Rc::clone(&mailbox), outgoing_bytes_max));
        let founders = config.formation.founders.iter();
        links.set_peers(founders.map(|(node, founder)| (*node, founder.address.clone())), &dialler);
        let (asks_sender, asks) = mpsc::channel(ASKS_MAX);
        task::spawn_local(http::serve(http, asks_sender));
        let document = Rc::new(RefCell::new(None));
        let door = Door {
            endpoint: endpoint.clone(),
            config: Rc::new(config),
            links: Rc::clone(&links),
            mailbox: Rc::clone(&mailbox),
            document: Rc::clone(&document),
            clients: Rc::default(),
        };
        info!(node = door.config.id.0, address = %door.config.listen, "listening");
        let stop_timeout = door.config.limits.stop_timeout;
        let metrics = Metrics::new(&door.config, certificates);
        task::spawn_local(door.open());
        let parts = Parts {
            node,
            committer,
            commits,
            asks,
            stop: told_to_stop,
            ready: tell_ready,
            mailbox,
            links,
            dialler,
            document,
            metrics,
            clock,
            stop_timeout,
        };
        let links = Rc::clone(&parts.links);
        let ended = Driver::new(parts).run().await;
        links.close();
        endpoint.close(VarInt::from_u32(1), b"the node is stopping");
        // What is not said by then, the others find out by silence.
        drop(time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await);
        ended
    }
}

/// One UDP socket for everything: clients, peers that dial and peers that are dialled.
fn open_endpoint(config: &Config, material: &Material, socket: UdpSocket) -> (Endpoint, Papers) {
    let transport = Arc::new(transport(config.mtu));
    let (server, dialling) = quic_configs(material, &transport);
    let (reset_key, id_key) = resets::keys(&config.secret, config.id);
    let mut endpoint_config = EndpointConfig::new(Arc::new(reset_key));
    endpoint_config.cid_generator(move || Box::new(resets::connection_ids(id_key)));
    endpoint_config.max_udp_payload_size(config.mtu.max(1472)).expect("a payload of at least 1,200 bytes");
    let endpoint = Endpoint::new(endpoint_config, Some(server), socket, Arc::new(QuietRuntime))
        .expect("the socket is bound and the runtime is running");
    let dialler = Dialler { endpoint: endpoint.clone(), config: Rc::new(RefCell::new(dialling)) };
    (endpoint, Papers { dialler, transport })
}

/// How the node takes connections and makes them, with these certificates.
fn quic_configs(
    material: &Material,
    transport: &Arc<TransportConfig>,
) -> (quinn::ServerConfig, quinn::ClientConfig) {
    const CHECKED: &str = "the material was checked when it was loaded";
    let mut server = tls::server_config(material, &[ALPN_CLIENT, ALPN_PEER]).expect(CHECKED);
    server.transport_config(Arc::clone(transport));
    let mut dialling = tls::client_config(material, ALPN_PEER).expect(CHECKED);
    dialling.transport_config(Arc::clone(transport));
    (server, dialling)
}

/// Where the certificates in use are put into use.
pub(crate) struct Papers {
    dialler: Dialler,
    transport: Arc<TransportConfig>,
}

impl Papers {
    /// Uses others for all connections from now on.
    pub(crate) fn renew(&self, material: &Material) {
        let (server, dialling) = quic_configs(material, &self.transport);
        self.dialler.endpoint.set_server_config(Some(server));
        *self.dialler.config.borrow_mut() = dialling;
    }
}

fn transport(mtu: u16) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        // A peer has two streams and a client one. (Many allowed streams make each handshake dear.)
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("a few seconds")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(2 * STREAM_WINDOW_BYTES))
        .send_window(u64::from(2 * STREAM_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(DATAGRAMS_BYTES_MAX))
        .datagram_send_buffer_size(DATAGRAMS_BYTES_MAX)
        .initial_mtu(mtu)
        .mtu_discovery_config(None);
    transport
}

/// Takes connections and sends each where it belongs.
struct Door {
    endpoint: Endpoint,
    config: Rc<Config>,
    links: Rc<Links>,
    mailbox: Rc<Mailbox>,
    document: SharedDocument,
    /// Clients that are connected.
    clients: Rc<Cell<usize>>,
}

/// What is done with a connection before anything is known of who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reception {
    Accept,
    /// Whoever it is has to show first that it is where it says.
    Validate,
    Refuse,
}

/// With so many connections open, of at most so many. Above half of them none is begun for a forged address.
fn reception(open: usize, open_max: usize, is_validated: bool) -> Reception {
    if open >= open_max {
        Reception::Refuse
    } else if open > open_max / 2 && !is_validated {
        Reception::Validate
    } else {
        Reception::Accept
    }
}

/// A client's place among those that may be connected, free again when this is dropped.
struct Place(Rc<Cell<usize>>);

impl Place {
    /// None if all are taken.
    fn take(taken: &Rc<Cell<usize>>, places: usize) -> Option<Place> {
        if taken.get() >= places {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Place(Rc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Door {
    /// Connections that may be open at once. Well above what clients may have: they are counted when it is known that
    /// they are clients, so that peers come in however many clients there are.
    fn open_max(&self) -> usize {
        let peers_max = self.config.formation.founders.len() * 2;
        self.config.limits.client_connections_max + peers_max + UNFINISHED_MAX
    }

    async fn open(self) {
        let door = Rc::new(self);
        while let Some(incoming) = door.endpoint.accept().await {
            let open = door.endpoint.open_connections();
            match reception(open, door.open_max(), incoming.remote_address_validated()) {
                Reception::Accept => {}
                Reception::Validate => {
                    if let Err(error) = incoming.retry() {
                        debug!(%error, "an address cannot be validated");
                    }
                    continue;
                }
                Reception::Refuse => {
                    debug!(address = %incoming.remote_address(), "a connection is refused: there are too many");
                    incoming.refuse();
                    continue;
                }
            }
            match incoming.accept() {
                Ok(connecting) => {
                    let door = Rc::clone(&door);
                    task::spawn_local(async move {
                        match time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
                            Ok(Ok(connection)) => door.admit(connection).await,
                            Ok(Err(error)) => debug!(%error, "a handshake failed"),
                            Err(_) => debug!("a handshake took too long"),
                        }
                    });
                }
                Err(error) => debug!(%error, "a connection could not be accepted"),
            }
        }
    }

    /// Where a connection belongs is said by its protocol and its certificate's role, which have to fit.
    async fn admit(&self, connection: Connection) {
        let protocol = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        let role = tls::role_of_peer(&connection);
        match (protocol.as_deref(), role) {
            (Some(ALPN_PEER), Ok(Role::Node)) => Rc::clone(&self.links).accept(connection).await,
            (Some(ALPN_CLIENT), Ok(Role::Client(grant))) => self.admit_client(connection, grant).await,
            (Some(ALPN_PEER), Ok(Role::Client(_))) => {
                refuse(&connection, "a client's certificate is not for the nodes' protocol");
            }
            (Some(ALPN_CLIENT), Ok(Role::Node)) => {
                refuse(
                    &connection,
                    "a node's certificate is not for clients: ask for one with a client's role",
                );
            }
            (_, Err(error)) => {
                debug!(%error, "a certificate without a role");
                refuse(&connection, "the certificate has no role of Quorate's");
            }
            (_, Ok(_)) => refuse(&connection, "the protocol is not one of Quorate's"),
        }
    }

    async fn admit_client(&self, connection: Connection, grant: Grant) {
        let Some(_place) = Place::take(&self.clients, self.config.limits.client_connections_max) else {
            debug!(address = %connection.remote_address(), "a client is refused: there are too many");
            return Closing::TooMany.close(&connection);
        };
        let greeting = Greeting {
            node: self.config.id,
            grant,
            document: Rc::clone(&self.document),
            requests_max: self.config.limits.connection_requests_max,
            outgoing_bytes_max: self.config.limits.outgoing_bytes_max,
        };
        clients::serve(connection, greeting, Rc::clone(&self.mailbox)).await;
    }
}

fn refuse(connection: &Connection, sentence: &'static str) {
    warn!(address = %connection.remote_address(), why = sentence, "a connection is refused");
    Closing::Role(sentence).close(connection);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_validated_before_connections_are_refused() {
        assert_eq!(reception(50, 100, false), Reception::Accept);
        assert_eq!(reception(51, 100, false), Reception::Validate);
        assert_eq!(reception(51, 100, true), Reception::Accept);
        assert_eq!(reception(100, 100, true), Reception::Refuse);
    }

    #[test]
    fn a_place_is_free_again_when_its_client_is_gone() {
        let taken = Rc::default();
        let first = Place::take(&taken, 2).unwrap();
        let _second = Place::take(&taken, 2).unwrap();
        assert!(Place::take(&taken, 2).is_none());
        drop(first);
        assert!(Place::take(&taken, 2).is_some());
        assert_eq!(taken.get(), 1);
    }
}
