//! Whoever knocks at a node's door with the wrong certificate, the wrong protocol or nonsense is turned away, and the
//! node goes on serving everybody else.

// Tests of running programs deal with the world.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

mod running;
mod settings;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use client::{
    Access, Client, ClientConfig, Grant, KeysFailure, Level, ReadFailure, Refusal, Role, WriteFailure,
    certificates::{Authority, Request},
    tls::{self, Material},
    wire::{
        ALPN_CLIENT, ALPN_PEER, ClientHello, ClientMessage, ControlError, FrameReader, MESSAGE_BYTES_MAX,
        NewKeyspace, PROTOCOL_VERSION, ServerMessage, put_frame,
    },
};
use quinn::{
    Connection, ConnectionError, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig,
};
use running::Running;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// Long enough for a handshake on a busy machine, short enough for a test that expects silence.
const PATIENCE: Duration = Duration::from_secs(5);

/// Certificates beside those of the cluster.
struct Papers {
    directory: PathBuf,
    ca: PathBuf,
}

impl Papers {
    /// Issued by the cluster's own authority.
    fn of(running: &Running) -> Papers {
        let ca = running.options.directory.join("ca.pem");
        Papers { directory: running.options.directory.clone(), ca }
    }

    /// Issued by another authority, although the bearer knows the cluster's.
    fn foreign(running: &Running) -> Papers {
        let directory = running.options.directory.join("foreign");
        Authority::create(&directory).unwrap();
        Papers { directory, ca: running.options.directory.join("ca.pem") }
    }

    fn issue(&self, role: Role, stem: &str) -> (PathBuf, PathBuf) {
        let authority = Authority::open(&self.directory).unwrap();
        let request = Request { role, name: stem.to_owned(), hosts: Vec::new(), days: 1 };
        let files = authority.issue(&request).unwrap().write(&self.directory, stem).unwrap();
        (files.certificate, files.key)
    }

    fn material(&self, role: Role, stem: &str) -> Material {
        let (certificate, key) = self.issue(role, stem);
        Material::load(&self.ca, &certificate, &key).unwrap()
    }

    /// A bearer who trusts the cluster and shows a certificate of this authority, whatever it is worth. (What is
    /// worthless is not even loaded by the library.)
    fn tls(&self, role: Role, stem: &str, protocol: &[u8]) -> quinn::ClientConfig {
        let (certificate, key) = self.issue(role, stem);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(certificate).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
    }

    fn client_config(&self, running: &Running, role: Role, stem: &str) -> ClientConfig {
        let (certificate, key) = self.issue(role, stem);
        ClientConfig { ca: self.ca.clone(), certificate, key, ..running.client_config() }
    }
}

fn address(running: &Running) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], running.options.port(1)))
}

async fn dial(
    running: &Running,
    material: &Material,
    protocol: &[u8],
) -> Result<Connection, ConnectionError> {
    dial_with(running, tls::client_config(material, protocol).unwrap()).await
}

async fn dial_with(running: &Running, config: quinn::ClientConfig) -> Result<Connection, ConnectionError> {
    let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let connecting = endpoint.connect_with(config, address(running), tls::SERVER_NAME).unwrap();
    tokio::time::timeout(PATIENCE, connecting).await.expect("a handshake ends")
}

/// Speaks on a new stream and listens. What was answered before the connection or the stream ended.
async fn say(connection: &Connection, bytes: &[u8]) -> Vec<u8> {
    let speaking = async {
        let Ok((mut sender, mut receiver)) = connection.open_bi().await else { return Vec::new() };
        if sender.write_all(bytes).await.is_err() {
            return Vec::new();
        }
        let mut answer = Vec::new();
        while let Ok(Some(chunk)) = receiver.read_chunk(usize::MAX, true).await {
            answer.extend_from_slice(&chunk.bytes);
        }
        answer
    };
    tokio::time::timeout(PATIENCE * 2, speaking).await.expect("the node ends what it does not understand")
}

/// That the node goes on serving.
async fn assert_serving(running: &Running) {
    let client = running.client().await;
    let keyspace = client.default_keyspace().unwrap();
    keyspace.put("alive", "yes").w(Level::All).send().await.unwrap();
    client.close().await;
}

fn hello() -> BytesMut {
    let mut out = BytesMut::new();
    ClientMessage::Hello(ClientHello { version: PROTOCOL_VERSION, features: 0 }).encode(&mut out);
    out
}

/// A keyspace to be, with the defaults.
fn keyspace_called(name: &str) -> NewKeyspace {
    NewKeyspace {
        name: name.to_owned(),
        replication: BTreeMap::new(),
        conflict: ring::ConflictPolicy::Siblings,
        durability: ring::Durability::Disk,
    }
}

#[tokio::test]
async fn certificates_that_are_not_for_it_open_no_door() {
    let running = Running::threads(1);
    let (own, foreign) = (Papers::of(&running), Papers::foreign(&running));
    let admin = Role::client(Access::Admin);
    let cases = [
        ("a foreign authority's client", foreign.tls(admin.clone(), "stranger", ALPN_CLIENT)),
        ("a foreign authority's node", foreign.tls(Role::Node, "impostor", ALPN_PEER)),
        ("a client among nodes", own.tls(admin.clone(), "climber", ALPN_PEER)),
        ("a node among clients", own.tls(Role::Node, "node-9", ALPN_CLIENT)),
        ("a protocol that nobody speaks", own.tls(admin, "tourist", b"h3")),
    ];
    for (who, config) in cases {
        // In TLS 1.3 a client may believe the handshake done before the server has refused its certificate: what counts
        // is that nothing is answered.
        if let Ok(connection) = dial_with(&running, config).await {
            assert_eq!(say(&connection, &hello()).await, b"", "{who} got an answer");
            let reason = connection.close_reason().unwrap_or_else(|| panic!("{who} is still connected"));
            println!("{who}: {reason}");
        }
    }
    assert_serving(&running).await;
}

#[tokio::test]
async fn a_role_allows_what_it_says_and_names_what_is_lacking() {
    let running = Running::threads(1);
    let papers = Papers::of(&running);
    let config = papers.client_config(&running, Role::client(Access::Read), "reader");
    let reader = Client::connect(config).await.unwrap();
    let keyspace = reader.default_keyspace().unwrap();
    assert!(keyspace.get("key").send().await.unwrap().values.is_empty());
    let refused = keyspace.put("key", "value").send().await.unwrap_err();
    assert_eq!(refused, WriteFailure::Refused(Refusal::Forbidden { needs: Access::Write }));
    let config = papers.client_config(&running, Role::client(Access::Write), "writer");
    let writer = Client::connect(config).await.unwrap();
    writer.default_keyspace().unwrap().put("key", "value").send().await.unwrap();
    let refused = writer.create_keyspace(keyspace_called("more"), PATIENCE).await.unwrap_err();
    assert_eq!(refused, ControlError::Forbidden { needs: Access::Admin }.into());
    assert!(refused.to_string().contains("quorate:client/admin"), "{refused}");
}

#[tokio::test]
async fn a_role_is_bound_to_the_keyspaces_that_it_names() {
    let running = Running::threads(3);
    let papers = Papers::of(&running);
    let admin = running.client().await;
    for name in ["carts", "orders"] {
        admin.create_keyspace(keyspace_called(name), PATIENCE).await.unwrap();
    }
    let bound = |access, stem: &str| {
        let keyspaces = Some(["carts".to_owned(), "later".to_owned()].into());
        papers.client_config(&running, Role::Client(Grant { access, keyspaces }), stem)
    };
    let writer = Client::connect(bound(Access::Write, "writer")).await.unwrap();
    let [carts, orders] = ["carts", "orders"].map(|name| writer.keyspace(name).unwrap());
    carts.put("key", "value").send().await.unwrap();
    assert_eq!(carts.get("key").send().await.unwrap().values.len(), 1);
    let refused = orders.put("key", "value").send().await.unwrap_err();
    assert_eq!(refused, WriteFailure::Refused(Refusal::OtherKeyspaces));
    let refused = orders.delete("key").send().await.unwrap_err();
    assert_eq!(refused, WriteFailure::Refused(Refusal::OtherKeyspaces));
    let refused = orders.get("key").send().await.unwrap_err();
    assert_eq!(refused, ReadFailure::Refused(Refusal::OtherKeyspaces));
    let id = |name: &str| {
        let document = writer.document();
        document.keyspaces.iter().find(|(_, keyspace)| keyspace.name == name).map(|(id, _)| *id).unwrap()
    };
    let node = ring::NodeId(1);
    writer.explain(node, id("carts"), "key", PATIENCE).await.unwrap();
    let refused = writer.explain(node, id("orders"), "key", PATIENCE).await.unwrap_err();
    assert_eq!(refused, ControlError::OtherKeyspaces.into());
    assert!(carts.keys().next().await.unwrap().is_some());
    let refused = orders.keys().next().await.unwrap_err();
    assert_eq!(refused, KeysFailure::Refused(Refusal::OtherKeyspaces));
    let counted = "quorate_requests_refused_total{reason=\"other_keyspaces\"}";
    let counted: f64 = (1..=3).filter_map(|node| running.metric(node, counted)).sum();
    assert!(counted >= 3.0, "three requests for keys, at whichever nodes: {counted}");
    // What shows the cluster as a whole is everybody's.
    writer.status(node, PATIENCE).await.unwrap();

    // Bound, and of too low a role: what is lacking is the role.
    let reader = Client::connect(bound(Access::Read, "reader")).await.unwrap();
    let refused = reader.keyspace("carts").unwrap().put("key", "value").send().await.unwrap_err();
    assert_eq!(refused, WriteFailure::Refused(Refusal::Forbidden { needs: Access::Write }));

    // A keyspace that did not exist when the certificate was issued, nor when its bearer connected.
    admin.create_keyspace(keyspace_called("later"), PATIENCE).await.unwrap();
    writer.keyspace("later").unwrap().put("key", "value").send().await.unwrap();
    for client in [admin, writer, reader] {
        client.close().await;
    }
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_and_no_other() {
    let running = Running::threads(1);
    let material = Papers::of(&running).material(Role::client(Access::Admin), "noisy");
    let honest = running.client().await;
    let keyspace = honest.default_keyspace().unwrap();
    let frame = |body: &[u8]| {
        let mut out = BytesMut::new();
        put_frame(&mut out, |out| out.extend_from_slice(body));
        out.to_vec()
    };
    let after_hello = |bytes: &[u8]| [&hello()[..], bytes].concat();
    let cases: [(&str, Vec<u8>); 7] = [
        ("no hello", frame(&[2; 40])),
        ("an empty first frame", frame(&[])),
        ("a frame longer than any", u32::MAX.to_be_bytes().to_vec()),
        ("a frame of an unknown kind", after_hello(&frame(&[0xee; 12]))),
        ("an empty frame", after_hello(&frame(&[]))),
        ("a second hello", after_hello(&hello())),
        ("a frame too long, after a good one", after_hello(&(u32::MAX - 1).to_be_bytes())),
    ];
    for (what, bytes) in cases {
        let connection = dial(&running, &material, ALPN_CLIENT).await.unwrap();
        let answer = say(&connection, &bytes).await;
        assert!(answer.len() < 200, "{what}: at most a welcome is answered, not {} bytes", answer.len());
        let reason = connection.close_reason().unwrap_or_else(|| panic!("{what}: still connected"));
        assert!(matches!(reason, ConnectionError::ApplicationClosed(_)), "{what}: {reason}");
        keyspace.put("alive", what).send().await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_refused_and_the_next_is_served() {
    let running = Running::threads(1);
    let material = Papers::of(&running).material(Role::client(Access::Admin), "clumsy");
    let connection = dial(&running, &material, ALPN_CLIENT).await.unwrap();
    let (mut sender, mut receiver) = connection.open_bi().await.unwrap();
    let mut bytes = hello();
    put_frame(&mut bytes, |out| out.extend_from_slice(&request_body()[..20]));
    put_frame(&mut bytes, |out| out.extend_from_slice(&request_body()));
    sender.write_all(&bytes).await.unwrap();
    let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
    let mut replies = Vec::new();
    while replies.len() < 2 {
        match ServerMessage::decode(next(&mut receiver, &mut frames).await).unwrap() {
            ServerMessage::Welcome(_) => {}
            ServerMessage::Reply { id: 7, reply, .. } => replies.push(reply),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(replies[0], client::Reply::Write(Err(client::WriteError::Refused(Refusal::Malformed))));
    assert!(matches!(replies[1], client::Reply::Write(Ok(_))), "{:?}", replies[1]);
}

fn request_body() -> Vec<u8> {
    let put = client::Put {
        keyspace: ring::KeyspaceId(1),
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(b"value"),
        expires_unix_ms: None,
        options: client::WriteOptions::default(),
    };
    let mut out = BytesMut::new();
    ClientMessage::Request { id: 7, request: client::Request::Put(put) }.encode(&mut out);
    out[4..].to_vec()
}

#[tokio::test]
async fn frames_in_pieces_and_requests_out_of_order_are_understood() {
    let running = Running::threads(1);
    let material = Papers::of(&running).material(Role::client(Access::Admin), "slow");
    let connection = dial(&running, &material, ALPN_CLIENT).await.unwrap();
    let (mut sender, mut receiver) = connection.open_bi().await.unwrap();
    let mut bytes = hello();
    for id in [9, 3, 6] {
        let get = client::Get {
            keyspace: ring::KeyspaceId(1),
            key: Bytes::from_static(b"key"),
            options: client::ReadOptions::default(),
        };
        ClientMessage::Request { id, request: client::Request::Get(get) }.encode(&mut bytes);
    }
    trickle(&mut sender, &bytes).await;
    let mut answered = Vec::new();
    let mut frames = FrameReader::new(MESSAGE_BYTES_MAX);
    while answered.len() < 3 {
        match ServerMessage::decode(next(&mut receiver, &mut frames).await).unwrap() {
            ServerMessage::Welcome(welcome) => assert_eq!(welcome.access, Access::Admin),
            ServerMessage::Reply { id, reply, .. } => {
                assert!(matches!(reply, client::Reply::Get(Ok(_))), "{reply:?}");
                answered.push(id);
            }
            ServerMessage::Control { .. } => panic!("nobody asked"),
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, [3, 6, 9]);
}

/// One byte a packet, as far as the network stack lets us.
async fn trickle(sender: &mut SendStream, bytes: &[u8]) {
    for byte in bytes {
        sender.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

async fn next(receiver: &mut RecvStream, frames: &mut FrameReader) -> Bytes {
    loop {
        if let Some(frame) = frames.next().unwrap() {
            return frame;
        }
        let chunk = receiver.read_chunk(usize::MAX, true).await.unwrap().expect("the stream goes on");
        frames.push(chunk.bytes);
    }
}

#[tokio::test]
async fn junk_datagrams_are_shrugged_off() {
    let running = Running::threads(1);
    let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    let mut junk = vec![0_u8; 1200];
    for round in 0..2000_usize {
        getrandom::fill(&mut junk).unwrap();
        // Some look like the beginning of a handshake: a long header, version 1.
        if round.is_multiple_of(3) {
            let first = 0xc0 | junk[0] & 0x0f;
            junk[..5].copy_from_slice(&[first, 0, 0, 0, 1]);
        }
        socket.send_to(&junk[..1 + round % 1200], address(&running)).unwrap();
    }
    assert_serving(&running).await;
}

#[test]
fn what_stands_in_the_way_of_a_start_is_said_in_a_sentence() {
    let running = Running::threads(1);
    let quorated = |arguments: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_quorated")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let config = running.options.node_config(1);
    let run = |config: &Path| quorated(&["run", "--config", config.to_str().unwrap()]);
    let (code, error) = run(&config);
    assert_eq!(code, Some(3));
    assert!(error.contains(&format!("127.0.0.1:{}", running.options.port(1))), "{error}");
    let (code, error) = run(Path::new("/nowhere/node.toml"));
    assert_eq!(code, Some(2));
    assert!(error.contains("/nowhere/node.toml"), "{error}");

    // Five mistakes at once.
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text
        .replace("id = 1\nlisten", "id = \"one\"\nlisten")
        .replace("http = \"127.0.0.1:", "http = \"localhost:")
        .replace("pid_file = \"pid\"", "pidfile = \"pid\"")
        .replace("secret = \"../cluster.secret\"", "secret = \"../missing\"\npartitions = 100");
    let bad = running.options.node_directory(1).join("bad.toml");
    std::fs::write(&bad, text).unwrap();
    let (code, error) = quorated(&["check-config", "--config", bad.to_str().unwrap()]);
    assert_eq!(code, Some(2));
    for key in ["node.id", "node.http", "node.pidfile", "cluster.secret", "cluster.partitions"] {
        assert!(error.contains(key), "{key} is not reported in:\n{error}");
    }
    assert!(error.contains("5 faults"), "{error}");
    let (code, _) = quorated(&["check-config", "--config", config.to_str().unwrap()]);
    assert_eq!(code, Some(0));
}

/// What is replaced in a file, and by what.
type Replaced<'a> = &'a [(&'a str, &'a str)];

#[test]
fn a_configuration_is_good_only_if_a_node_can_start_with_it() {
    let running = Running::threads(2);
    let config = running.options.node_config(1);
    let folder = running.options.node_directory(1);
    let good = std::fs::read_to_string(&config).unwrap();
    // The file with this replaced, and what is said of it by both commands.
    let faults = |replaced: Replaced| {
        let text = replaced.iter().fold(good.clone(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let changed = folder.join("changed.toml");
        std::fs::write(&changed, text).unwrap();
        let said = ["check-config", "run"].map(|command| {
            let mut quorated = std::process::Command::new(env!("CARGO_BIN_EXE_quorated"));
            let output = quorated.args([command, "--config"]).arg(&changed).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        });
        assert_eq!(said[0], said[1]);
        said[0].clone()
    };
    std::fs::write(folder.join("file"), "").unwrap();
    let other = client::certificates::Authority::create(&folder.join("other")).unwrap();
    assert!(!other.certificate_pem().is_empty());
    let cases: [(Replaced, &[&str]); 6] = [
        (
            &[
                ("../ca.pem", "no-ca.pem"),
                ("\"node.pem\"", "\"no.pem\""),
                ("node-key.pem", "no-key.pem"),
                ("data = \"data\"", "data = \"file\""),
                ("pid_file = \"pid\"", "pid_file = \"nowhere/pid\""),
            ],
            &["node.ca: ", "node.certificate: ", "node.key: ", "node.data: ", "node.pid_file: ", "5 faults"],
        ),
        (
            &[("../ca.pem", "other/ca.pem")],
            &["node.certificate: ", "not good under the authority", "1 fault"],
        ),
        (
            &[("\"node.pem\"", "\"../client.pem\""), ("node-key.pem", "../client-key.pem")],
            &["node.certificate: ", "a node needs quorate:node", "1 fault"],
        ),
        (&[("node-key.pem", "../client-key.pem")], &["node.key: ", "not the private key of", "1 fault"]),
        (
            &[("[node]\nid = 1", "[node]\nid = 7")],
            &["node.id: 7: must be one of the founders (1, 2)", "1 fault"],
        ),
        (&[("node-key.pem", "file")], &["node.key: ", "no private key", "1 fault"]),
    ];
    for (replaced, expected) in cases {
        let said = faults(replaced);
        for expected in expected {
            assert!(said.contains(expected), "{expected} is not in:\n{said}");
        }
    }
}
