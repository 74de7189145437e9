//! What a certificate says about its bearer: the role, and when it ends.

use rustls::pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::{Role, UnknownRole};

/// What all roles begin with, and nothing else may.
const SCHEME: &str = "quorate:";

/// Why a certificate gives no role. Its bearer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RoleError {
    /// The other side showed no certificate.
    #[error("no certificate was shown")]
    NoCertificate,
    /// The certificate, or the extension that would have the role, cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// No URI among its alternative names begins with `quorate:`.
    #[error("the certificate has no role: no URI among its alternative names begins with `quorate:`")]
    NoRole,
    /// More than one does, and which of them should count is anybody's guess.
    #[error("the certificate has more than one role: {}", .0.join(", "))]
    SeveralRoles(Vec<String>),
    /// One does, and is not a role.
    #[error("the certificate's role is unknown: {0}")]
    UnknownRole(#[from] UnknownRole),
}

/// The role of a certificate, the first of the chain that the other side showed.
///
/// Only for chains that were verified: anybody can write a certificate that says anything.
///
/// # Errors
///
/// See [`RoleError`].
pub fn role_of(chain: &[CertificateDer<'_>]) -> Result<Role, RoleError> {
    let leaf = chain.first().ok_or(RoleError::NoCertificate)?;
    let certificate = parse(leaf).ok_or(RoleError::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| RoleError::Unreadable)?;
    let names = names.as_ref().map_or(&[][..], |extension| &extension.value.general_names);
    let roles: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        })
        .collect();
    match roles.as_slice() {
        [] => Err(RoleError::NoRole),
        [role] => Ok(role.parse()?),
        several => Err(RoleError::SeveralRoles(several.iter().map(|role| (*role).to_owned()).collect())),
    }
}

/// The role of whoever is at the other end of a connection that is established.
///
/// # Errors
///
/// See [`RoleError`].
pub fn role_of_peer(connection: &quinn::Connection) -> Result<Role, RoleError> {
    let identity = connection.peer_identity().ok_or(RoleError::NoCertificate)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| RoleError::Unreadable)?;
    role_of(&chain)
}

/// When a certificate, the first of the chain, ends, in seconds of Unix time; none if there is none or it cannot be
/// read.
#[must_use]
pub fn expires_unix_s(chain: &[CertificateDer<'_>]) -> Option<u64> {
    let certificate = parse(chain.first()?)?;
    Some(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0))
}

/// A certificate that is all there is in its encoding.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    }
}
