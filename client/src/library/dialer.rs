//! From an address to a connection that was welcomed.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::BytesMut;
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use tokio::time::timeout;
use tracing::debug;

use super::{
    connection::{self, Connection, Listener},
    failure::DialError,
    race::race,
};
use crate::{
    Role,
    tls::{self, Material, TlsError},
    udp::QuietRuntime,
    wire::{
        ALPN_CLIENT, ClientHello, ClientMessage, FrameReader, PROTOCOL_VERSION, ServerMessage, ServerWelcome,
        negotiate,
    },
};

/// A node that says nothing at all for so long is gone: the connection ends, and what was sent on it is in doubt.
const IDLE_TIMEOUT_MS: u32 = 5_000;
/// How often an idle connection says that it is there. Several fit in the idle timeout, so that a few may be lost.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// What Ethernet carries, less the headers of IPv6 and UDP.
const MTU_BYTES: u16 = 1452;
/// A guess until a round trip was measured: the first packet is repeated after three of them.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(100);
/// How long a handshake, with the greetings, may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// One address of a name has this long before the next is tried too, as in RFC 8305.
const ADDRESS_HEAD_START: Duration = Duration::from_millis(100);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Makes connections. One UDP socket for each family of addresses, opened when it is first needed.
pub(crate) struct Dialer {
    config: Mutex<quinn::ClientConfig>,
    endpoint_v4: Mutex<Option<Endpoint>>,
    endpoint_v6: Mutex<Option<Endpoint>>,
    listener: Arc<dyn Listener>,
}

impl Dialer {
    /// A dialer that shows this certificate. The listener hears of every epoch that any node mentions.
    ///
    /// # Errors
    ///
    /// If TLS cannot be set up.
    pub(crate) fn new(material: &Material, listener: Arc<dyn Listener>) -> Result<Dialer, TlsError> {
        let config = Mutex::new(config(material)?);
        Ok(Dialer { config, endpoint_v4: Mutex::new(None), endpoint_v6: Mutex::new(None), listener })
    }

    /// Shows this certificate from now on.
    ///
    /// # Errors
    ///
    /// If TLS cannot be set up.
    pub(crate) fn renew(&self, material: &Material) -> Result<(), TlsError> {
        let config = config(material)?;
        *self.config.lock().expect("nothing panics while it holds this") = config;
        Ok(())
    }

    /// Connects to whoever listens at `address`, a `host:port`, and greets.
    ///
    /// # Errors
    ///
    /// What went wrong at the last of the addresses that the host has.
    pub(crate) async fn dial(
        self: &Arc<Dialer>,
        address: &str,
    ) -> Result<(ServerWelcome, Connection), DialError> {
        let resolved = tokio::net::lookup_host(address)
            .await
            .map_err(|error| DialError::Resolve { reason: error.to_string() })?;
        let attempts: Vec<_> = resolved
            .take(ADDRESSES_MAX)
            .map(|address| {
                let dialer = self.clone();
                async move {
                    let greeted = timeout(DIAL_TIMEOUT, dialer.connect(address)).await;
                    greeted.unwrap_or(Err(DialError::Silent))
                }
            })
            .collect();
        let connected = race(attempts, ADDRESS_HEAD_START).await.map_err(|mut failed| {
            let reason = "it has no address".to_owned();
            failed.pop().map_or(DialError::Resolve { reason }, |(_, cause)| cause)
        });
        match &connected {
            Ok((welcome, _)) => debug!(address, node = %welcome.node, epoch = %welcome.epoch, "connected"),
            Err(cause) => debug!(address, %cause, "not connected"),
        }
        connected
    }

    /// Closes everything, and waits a moment so that the nodes hear of it.
    pub(crate) async fn close(&self) {
        for endpoint in [&self.endpoint_v4, &self.endpoint_v6] {
            let endpoint = endpoint.lock().expect("nothing panics while it holds this").take();
            if let Some(endpoint) = endpoint {
                endpoint.close(VarInt::from_u32(0), b"");
                // The rest of the wait would only be for stray packets.
                let _ = timeout(Duration::from_millis(20), endpoint.wait_idle()).await;
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<(ServerWelcome, Connection), DialError> {
        let endpoint = self.endpoint(address).map_err(|error| DialError::Socket(error.kind()))?;
        let config = self.config.lock().expect("nothing panics while it holds this").clone();
        let connecting =
            endpoint.connect_with(config, address, tls::SERVER_NAME).map_err(DialError::Address)?;
        let quic = connecting.await.map_err(DialError::of_connection)?;
        match tls::role_of_peer(&quic) {
            Ok(Role::Node) => {}
            Ok(role) => return Err(DialError::NotTrusted { reason: format!("its role is {role}") }),
            Err(error) => return Err(DialError::NotTrusted { reason: error.to_string() }),
        }
        let (mut send, mut receive) = quic.open_bi().await.map_err(DialError::of_connection)?;
        let mut hello = BytesMut::new();
        ClientMessage::Hello(ClientHello { version: PROTOCOL_VERSION, features: 0 }).encode(&mut hello);
        send.write_chunk(hello.freeze()).await.map_err(|_| why_ended(&quic))?;
        let mut frames = connection::frames();
        let welcome = welcome(&mut receive, &mut frames, &quic).await?;
        let listener = self.listener.clone();
        let connection = Connection::start(&welcome, quic, (send, receive), frames, listener);
        Ok((welcome, connection))
    }

    /// The endpoint for addresses like this one.
    fn endpoint(&self, address: SocketAddr) -> io::Result<Endpoint> {
        let (endpoint, any): (_, SocketAddr) = match address {
            SocketAddr::V4(_) => (&self.endpoint_v4, (Ipv4Addr::UNSPECIFIED, 0).into()),
            SocketAddr::V6(_) => (&self.endpoint_v6, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        let mut endpoint = endpoint.lock().expect("nothing panics while it holds this");
        if let Some(endpoint) = &*endpoint {
            return Ok(endpoint.clone());
        }
        let socket = UdpSocket::bind(any)?;
        let opened = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(QuietRuntime))?;
        *endpoint = Some(opened.clone());
        Ok(opened)
    }
}

/// Reads the first frame of a node.
async fn welcome(
    receive: &mut quinn::RecvStream,
    frames: &mut FrameReader,
    quic: &quinn::Connection,
) -> Result<ServerWelcome, DialError> {
    loop {
        if let Some(body) = frames.next()? {
            let ServerMessage::Welcome(welcome) = ServerMessage::decode(body)? else {
                return Err(DialError::NoWelcome);
            };
            negotiate(welcome.version)?;
            return Ok(welcome);
        }
        match receive.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => frames.push(chunk.bytes),
            Ok(None) | Err(_) => return Err(why_ended(quic)),
        }
    }
}

/// Why a stream cannot be used.
fn why_ended(quic: &quinn::Connection) -> DialError {
    quic.close_reason().map_or(DialError::StreamEnded, DialError::of_connection)
}

/// How connections are made with this certificate.
fn config(material: &Material) -> Result<quinn::ClientConfig, TlsError> {
    let mut config = tls::client_config(material, ALPN_CLIENT)?;
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(ROUND_TRIP_GUESS)
        .initial_mtu(MTU_BYTES)
        // The path's packets have the size of the first; if they do not get through, quinn falls back to 1,200 bytes.
        .mtu_discovery_config(None)
        // Nodes open no streams to clients, and send no datagrams.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}
