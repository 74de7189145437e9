//! Who may talk to whom: TLS settings for QUIC, the same on both sides.
//!
//! Every connection is TLS 1.3 and mutual. One authority, or a few while they are exchanged, issues the certificates
//! of a cluster; a node shows one with the name [`SERVER_NAME`], which all nodes share, and everybody's certificate
//! carries a [`Role`](crate::Role) as a URI among its alternative names. What a node's certificate does not say is
//! which node it is: that follows from the handshake of the protocol and from the cluster document, so that
//! certificates need not be issued per node.
//!
//! Connections live long, so sessions are not resumed: each new connection proves afresh that its certificate is
//! good *now*. For the same reason there is no early data, which an attacker could replay.
//!
//! [`Material`] reads and checks the files, [`role_of`] reads the role of whoever is at the other end. Renewed
//! certificates are taken into use by loading them again and handing the endpoint new settings; connections that
//! exist keep the old ones. Nothing here connects or listens.

mod material;
mod role;

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{client::Resumption, crypto::CryptoProvider, server::WebPkiClientVerifier};

pub use material::{Material, TlsError};
pub use role::{RoleError, expires_unix_s, role_of, role_of_peer};

/// The DNS name that the certificates of all nodes share, and that whoever connects to a node asks for. Not a name
/// that anybody looks up: where a node listens says the cluster document.
pub const SERVER_NAME: &str = "node.quorate";

/// The one provider of cryptography, named rather than found: a second one that some dependency brings in would make
/// the choice between them a panic at run time.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What a client, or a node that connects to another, tells quinn: under `alpn`, with this certificate, to whoever
/// has a certificate for the name that it asks for, which is [`SERVER_NAME`].
///
/// # Errors
///
/// [`TlsError::Unusable`]. [`Material`] has checked all that could be wrong.
pub fn client_config(material: &Material, alpn: &[u8]) -> Result<quinn::ClientConfig, TlsError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Unusable)?
        .with_root_certificates(material.roots())
        .with_client_cert_resolver(material.resolver());
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = Resumption::disabled();
    let quic = QuicClientConfig::try_from(tls).expect("the provider has the suite of QUIC's first packets");
    Ok(quinn::ClientConfig::new(Arc::new(quic)))
}

/// What a node that listens tells quinn: under any of `alpns`, with this certificate, for whoever has a certificate
/// of the authority. The connection's protocol and the [role](role_of) of its certificate say what it may be used
/// for.
///
/// Accept connections whole: what is sent on one taken by `into_0rtt` goes out before the other side's certificate
/// was seen.
///
/// # Errors
///
/// [`TlsError::Unusable`]. [`Material`] has checked all that could be wrong.
pub fn server_config(material: &Material, alpns: &[&[u8]]) -> Result<quinn::ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(material.roots(), provider())
        .build()
        .expect("the material has a root, and there are no revocation lists");
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Unusable)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(material.resolver());
    tls.alpn_protocols = alpns.iter().map(|alpn| alpn.to_vec()).collect();
    // Without a ticket there is nothing to resume a session with.
    tls.send_tls13_tickets = 0;
    tls.max_early_data_size = 0;
    let quic = QuicServerConfig::try_from(tls).expect("the provider has the suite of QUIC's first packets");
    Ok(quinn::ServerConfig::with_crypto(Arc::new(quic)))
}
