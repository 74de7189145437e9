//! Who gets in (promise P10): real QUIC endpoints on loopback, good certificates and all kinds of bad ones.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use client::{
    Access, Role,
    certificates::{Authority, Request},
    tls::{Material, SERVER_NAME, client_config, role_of_peer, server_config},
    wire::{ALPN_CLIENT, ALPN_PEER},
};
use quinn::{ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

const DAY: Duration = Duration::from_secs(86_400);
/// For what should end at once and, if it does not, should fail and not hang.
const PATIENCE: Duration = Duration::from_secs(20);

const NODE: Role = Role::Node;
const WRITER: Role = Role::client(Access::Write);

/// TLS alerts, as QUIC carries them.
const CERTIFICATE_EXPIRED: u8 = 45;
const UNKNOWN_CA: u8 = 48;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// A directory of its own for each test, with an authority in it.
struct Cluster {
    dir: PathBuf,
    authority: Authority,
}

impl Cluster {
    fn new(name: &str) -> Cluster {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tls-{name}-{}", std::process::id()));
        let authority = Authority::create_at(&dir, SystemTime::now() - DAY * 800).expect("a new directory");
        Cluster { dir, authority }
    }

    fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate of this cluster's authority as it was issued so many days ago, for a year.
    fn material(&self, role: Role, days_ago: u32) -> Material {
        self.material_that_trusts(&self.ca(), role, days_ago)
    }

    fn material_that_trusts(&self, ca: &Path, role: Role, days_ago: u32) -> Material {
        let issued_at = SystemTime::now() - DAY * days_ago;
        let request = Request { role, name: "tester".to_owned(), hosts: Vec::new(), days: 365 };
        let issued = self.authority.issue_at(&request, issued_at).expect("a good request");
        let files = issued.replace(&self.dir, "tester").expect("a directory of our own");
        // Loaded as of then; who meets it looks at the date of today.
        Material::load_at(ca, &files.certificate, &files.key, issued_at).expect("it was good then")
    }

    /// A file that trusts this cluster's authority and another's.
    fn both(&self, other: &Cluster) -> PathBuf {
        let path = self.dir.join("both.pem");
        let both = [self.authority.certificate_pem(), other.authority.certificate_pem()].concat();
        fs::write(&path, both).expect("a directory of our own");
        path
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What came of one attempt to say something.
#[derive(Debug)]
struct Outcome {
    /// What the client heard in answer.
    heard: Result<Vec<u8>, ConnectionError>,
    /// Whom the server took the client for and what it was told, or why it did not take it.
    told: Result<(Role, Vec<u8>), ConnectionError>,
}

/// Connects, says "ping" and waits for an answer.
async fn attempt(server: quinn::ServerConfig, client: quinn::ClientConfig) -> Outcome {
    let server = Endpoint::server(server, "127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address = server.local_addr().expect("it is bound");
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    endpoint.set_default_client_config(client);
    let serving = async {
        let connection = server.accept().await.expect("the endpoint is open").await?;
        let (mut send, mut receive) = connection.accept_bi().await?;
        let told = receive.read_to_end(100).await.expect("a short request");
        let role = role_of_peer(&connection).expect("a verified certificate with a role");
        send.write_all(b"pong").await.expect("the client waits");
        send.finish().expect("it was not finished before");
        connection.closed().await;
        Ok((role, told))
    };
    let asking = async {
        let connection = endpoint.connect(address, SERVER_NAME).expect("a good name").await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        // A client that was not taken may only find out when it listens.
        let _ = send.write_all(b"ping").await;
        let _ = send.finish();
        match receive.read_to_end(100).await {
            Ok(heard) => Ok(heard),
            Err(_) => Err(connection.closed().await),
        }
    };
    // A client that refuses says so to the server, and the other way round, so both end.
    let both = async { tokio::join!(asking, serving) };
    let (heard, told) = tokio::time::timeout(PATIENCE, both).await.expect("both sides end");
    Outcome { heard, told }
}

fn run(server: quinn::ServerConfig, client: quinn::ClientConfig) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(attempt(server, client))
}

fn listening(material: &Material) -> quinn::ServerConfig {
    server_config(material, &[ALPN_CLIENT, ALPN_PEER]).expect("good material")
}

fn connecting(material: &Material) -> quinn::ClientConfig {
    client_config(material, ALPN_CLIENT).expect("good material")
}

/// The TLS alert with which the other side ended the connection, or with which this side did.
fn alert<T: std::fmt::Debug>(result: &Result<T, ConnectionError>) -> Option<u8> {
    let code = match result {
        Err(ConnectionError::ConnectionClosed(close)) => u64::from(close.error_code),
        Err(ConnectionError::TransportError(error)) => u64::from(error.code),
        _ => return None,
    };
    u8::try_from(code.checked_sub(0x100)?).ok()
}

/// Neither side took anything from the other.
#[track_caller]
fn assert_nothing_passed(outcome: &Outcome) {
    assert!(outcome.heard.is_err() && outcome.told.is_err(), "{outcome:?}");
}

#[test]
fn nodes_and_clients_of_one_authority_get_in_with_their_roles() {
    let cluster = Cluster::new("good");
    let node = cluster.material(NODE, 0);
    let roles = [NODE, WRITER, Role::client(Access::Read), Role::client(Access::Admin)];
    for role in roles {
        let caller = cluster.material(role.clone(), 0);
        assert_eq!(*caller.role(), role);
        let outcome = run(listening(&node), connecting(&caller));
        assert_eq!(outcome.heard.expect("it gets in"), b"pong");
        assert_eq!(outcome.told.expect("it gets in"), (role, b"ping".to_vec()));
    }
    let peer = client_config(&node, ALPN_PEER).expect("good material");
    assert!(run(listening(&node), peer).heard.is_ok(), "under the protocol of nodes too");
}

#[test]
fn a_client_of_another_authority_is_refused() {
    let (ours, theirs) = (Cluster::new("ours"), Cluster::new("theirs"));
    // It trusts our nodes, so that it is our node that refuses.
    let stranger = theirs.material_that_trusts(&theirs.both(&ours), WRITER, 0);
    let outcome = run(listening(&ours.material(NODE, 0)), connecting(&stranger));
    assert_nothing_passed(&outcome);
    assert_eq!(alert(&outcome.told), Some(UNKNOWN_CA), "{outcome:?}");
}

#[test]
fn a_node_of_another_authority_is_refused() {
    let (ours, theirs) = (Cluster::new("ours-2"), Cluster::new("theirs-2"));
    let stranger = theirs.material_that_trusts(&theirs.both(&ours), NODE, 0);
    let outcome = run(listening(&stranger), connecting(&ours.material(WRITER, 0)));
    assert_nothing_passed(&outcome);
    assert_eq!(alert(&outcome.heard), Some(UNKNOWN_CA), "{outcome:?}");
}

#[test]
fn whoever_trusts_two_authorities_takes_both_so_that_one_can_replace_the_other() {
    let (old, new) = (Cluster::new("old"), Cluster::new("new"));
    let both = old.both(&new);
    let node = old.material_that_trusts(&both, NODE, 0);
    let caller = new.material_that_trusts(&both, WRITER, 0);
    assert!(run(listening(&node), connecting(&caller)).heard.is_ok());
}

#[test]
fn an_expired_certificate_is_refused_on_either_side() {
    let cluster = Cluster::new("expired");
    let (node, caller) = (cluster.material(NODE, 0), cluster.material(WRITER, 0));
    let outcome = run(listening(&node), connecting(&cluster.material(WRITER, 400)));
    assert_nothing_passed(&outcome);
    assert_eq!(alert(&outcome.told), Some(CERTIFICATE_EXPIRED), "{outcome:?}");
    let outcome = run(listening(&cluster.material(NODE, 400)), connecting(&caller));
    assert_nothing_passed(&outcome);
    assert_eq!(alert(&outcome.heard), Some(CERTIFICATE_EXPIRED), "{outcome:?}");
    // Not because of its age alone.
    let old = cluster.material(WRITER, 360);
    assert!(run(listening(&node), connecting(&old)).heard.is_ok());
}

/// The settings of a client that does as it likes: it trusts our authority, and need not show a certificate.
fn by_hand(cluster: &Cluster, tickets: &Arc<Tickets>, shown: Option<(&Path, &Path)>) -> quinn::ClientConfig {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(cluster.authority.certificate_pem().as_bytes());
    roots.add(ca.expect("our own file")).expect("our own authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has TLS 1.3")
        .with_root_certificates(roots);
    let mut tls = match shown {
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_file(certificate).expect("our own file");
            let key = PrivateKeyDer::from_pem_file(key).expect("our own file");
            tls.with_client_auth_cert(vec![certificate], key).expect("a good key")
        }
        None => tls.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![ALPN_CLIENT.to_vec()];
    let tickets: Arc<Tickets> = Arc::clone(tickets);
    tls.resumption = rustls::client::Resumption::store(tickets);
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("a suite of QUIC")))
}

/// In TLS 1.3 such a client believes for a while that it is connected. Nothing that it says is heard.
#[test]
fn a_client_without_a_certificate_is_refused_before_it_is_heard() {
    let cluster = Cluster::new("none");
    let anonymous = by_hand(&cluster, &Arc::default(), None);
    let outcome = run(listening(&cluster.material(NODE, 0)), anonymous);
    assert_nothing_passed(&outcome);
    assert_eq!(alert(&outcome.told), Some(CERTIFICATE_REQUIRED), "{outcome:?}");
    assert_eq!(alert(&outcome.heard), Some(CERTIFICATE_REQUIRED), "{outcome:?}");
}

#[test]
fn an_unknown_protocol_is_refused() {
    let cluster = Cluster::new("alpn");
    let node = cluster.material(NODE, 0);
    let caller = client_config(&cluster.material(WRITER, 0), b"quorate/999").expect("good material");
    let outcome = run(listening(&node), caller);
    assert_nothing_passed(&outcome);
    assert_eq!(alert(&outcome.heard), Some(NO_APPLICATION_PROTOCOL), "{outcome:?}");
    // One that only other listeners speak, too.
    let for_clients = server_config(&node, &[ALPN_CLIENT]).expect("good material");
    let peer = client_config(&node, ALPN_PEER).expect("good material");
    let outcome = run(for_clients, peer);
    assert_nothing_passed(&outcome);
    assert_eq!(alert(&outcome.heard), Some(NO_APPLICATION_PROTOCOL), "{outcome:?}");
}

#[test]
fn a_client_cannot_pass_for_a_node() {
    let cluster = Cluster::new("impostor");
    let impostor = cluster.material(Role::client(Access::Admin), 0);
    let outcome = run(listening(&impostor), connecting(&cluster.material(WRITER, 0)));
    assert_nothing_passed(&outcome);
    let refused = outcome.heard.expect_err("refused").to_string();
    assert!(refused.contains("certificate"), "{refused}");
}

/// A certificate of our authority that may be a server's, but has not the name that all nodes share: from an
/// authority that serves more than this cluster.
#[test]
fn a_server_of_our_authority_that_is_no_node_is_refused_by_its_name() {
    let cluster = Cluster::new("name");
    let key_pem = fs::read_to_string(cluster.dir.join("ca-key.pem")).expect("our own file");
    let authority_key = KeyPair::from_pem(&key_pem).expect("our own file");
    let issuer = Issuer::from_ca_cert_pem(cluster.authority.certificate_pem(), authority_key);
    let issue = |name: &str| {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a good name");
        params.subject_alt_names.push(SanType::URI("quorate:client/read".try_into().expect("ASCII")));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate =
            params.signed_by(&key, issuer.as_ref().expect("our own file")).expect("a certificate");
        let paths = [cluster.dir.join("web.pem"), cluster.dir.join("web-key.pem")];
        fs::write(&paths[0], certificate.pem()).expect("a directory of our own");
        fs::write(&paths[1], key.serialize_pem()).expect("a directory of our own");
        Material::load(&cluster.ca(), &paths[0], &paths[1]).expect("good as a client")
    };
    let caller = cluster.material(WRITER, 0);
    let outcome = run(listening(&issue("www.example.org")), connecting(&caller));
    assert_nothing_passed(&outcome);
    let refused = outcome.heard.expect_err("refused").to_string();
    assert!(refused.contains("not valid for name"), "{refused}");
    // The name is all that it lacked.
    assert!(run(listening(&issue(SERVER_NAME)), connecting(&caller)).heard.is_ok());
}

/// As cert-manager does it: a root that is kept away, and an authority below it that issues.
#[test]
fn certificates_of_an_authority_between_are_shown_with_it() {
    let cluster = Cluster::new("between");
    let dir = &cluster.dir;
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().expect("a key"))
    };
    let (root, root_key) = authority("root");
    let root_pem = root.self_signed(&root_key).expect("a certificate").pem();
    let (between, between_key) = authority("between");
    let root = Issuer::new(root, root_key);
    let between_pem = between.signed_by(&between_key, &root).expect("a certificate").pem();
    let between = Issuer::new(between, between_key);
    let write = |name: &str, contents: &str| {
        fs::write(dir.join(name), contents).expect("a directory of our own");
        dir.join(name)
    };
    let ca = write("root.pem", &root_pem);
    let load = |uri: &str, chain: &[&str]| {
        let mut params = CertificateParams::new([SERVER_NAME.to_owned()]).expect("a good name");
        params.subject_alt_names.push(SanType::URI(uri.try_into().expect("ASCII")));
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &between).expect("a certificate").pem();
        let certificate = write("leaf.pem", &[&[leaf.as_str()], chain].concat().concat());
        Material::load(&ca, &certificate, &write("leaf-key.pem", &key.serialize_pem()))
    };
    let node = load("quorate:node", &[&between_pem]).expect("the chain is whole");
    let caller = load("quorate:client/read", &[&between_pem]).expect("the chain is whole");
    let outcome = run(listening(&node), connecting(&caller));
    assert_eq!(outcome.told.expect("it gets in").0, Role::client(Access::Read));
    let alone = load("quorate:node", &[]).expect_err("nobody could tell who issued it");
    assert!(alone.to_string().contains("UnknownIssuer"), "{alone}");
}

/// Counts what a server offers to resume a session by.
#[derive(Debug, Default)]
struct Tickets(AtomicU32);

impl rustls::client::ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: rustls::pki_types::ServerName<'static>, _: rustls::NamedGroup) {}

    fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls12ClientSessionValue,
    ) {
    }

    fn tls12_session(
        &self,
        _: &rustls::pki_types::ServerName<'_>,
    ) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'static>) {}

    fn insert_tls13_ticket(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls13ClientSessionValue,
    ) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(
        &self,
        _: &rustls::pki_types::ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        None
    }
}

/// A session that is resumed proves nothing anew: it would outlive its certificate.
#[test]
fn no_session_can_be_resumed() {
    let cluster = Cluster::new("tickets");
    let node = cluster.material(NODE, 0);
    cluster.material(WRITER, 0);
    let tickets = Arc::new(Tickets::default());
    let shown = [cluster.dir.join("tester.pem"), cluster.dir.join("tester-key.pem")];
    let eager = by_hand(&cluster, &tickets, Some((&shown[0], &shown[1])));
    assert_eq!(run(listening(&node), eager).heard.expect("it gets in"), b"pong");
    assert_eq!(tickets.0.load(Ordering::Relaxed), 0);
}
