//! The files: what to trust, and what to show.
//!
//! They are checked when they are read, with errors that name the file and the fault, because a handshake that fails
//! says little and says it on the other machine.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use thiserror::Error;
use x509_parser::time::ASN1Time;

use super::{RoleError, SERVER_NAME, expires_unix_s, provider, role::parse, role_of};
use crate::Role;

/// Why certificates cannot be used. Nothing was connected yet; a person has to mend it.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The file is missing or may not be read.
    #[error("{}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The file is no PEM file.
    #[error("{}: not a PEM file", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
    },
    /// The file has no certificate in it.
    #[error("{}: there is no certificate in it", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate in the file cannot be read.
    #[error("{}: a certificate in it cannot be read", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file has no private key in it.
    #[error("{}: there is no private key in it", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key is of a kind that is not supported, or damaged.
    #[error("{}: the private key is damaged or of an unknown kind", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key is not that of the certificate.
    #[error("{}: not the private key of the certificate in {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The certificate has ended.
    #[error("{}: expired since {}", path.display(), date(*since_unix_s))]
    Expired {
        /// The file.
        path: PathBuf,
        /// When it ended, in seconds of Unix time.
        since_unix_s: i64,
    },
    /// The certificate is for later, or this machine's clock is behind.
    #[error("{}: not valid before {}", path.display(), date(*from_unix_s))]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// When it begins, in seconds of Unix time.
        from_unix_s: i64,
    },
    /// A certificate in the file of the authority may not issue others.
    #[error("{}: not the certificate of an authority", path.display())]
    NotAnAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The certificate has no role, or no single one that is known.
    #[error("{}: {cause}", path.display())]
    Role {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: RoleError,
    },
    /// The other side would not take the certificate: it was issued by someone else, or not for this use.
    #[error("{}: not good under the authority in {}: {cause}", certificate.display(), ca.display())]
    NotAcceptable {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the authority.
        ca: PathBuf,
        /// What the check that the other side makes says.
        cause: rustls::Error,
    },
    /// The TLS library refuses the settings, which would be a bug.
    #[error("unusable TLS settings: {0}")]
    Unusable(rustls::Error),
}

/// What to trust and what to show: the authority's certificate, one's own, and its private key.
#[derive(Clone)]
pub struct Material {
    roots: Arc<RootCertStore>,
    own: Arc<CertifiedKey>,
    role: Role,
    expires_unix_s: u64,
    ca_expires_unix_s: u64,
    stale_unix_s: u64,
}

impl Material {
    /// Reads and checks three PEM files: the certificates of the authority, one or more; one's own certificate,
    /// followed by those between it and the authority, if any; and its private key.
    ///
    /// Of several authorities those that have expired, or are not valid yet, are left out.
    ///
    /// # Errors
    ///
    /// See [`TlsError`]; each names the file and what is wrong with it.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Material, TlsError> {
        Material::load_at(ca, certificate, key, SystemTime::now())
    }

    /// As [`Material::load`], as if it were `now`.
    ///
    /// # Errors
    ///
    /// As [`Material::load`].
    pub fn load_at(ca: &Path, certificate: &Path, key: &Path, now: SystemTime) -> Result<Material, TlsError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let Authorities { roots, ca_expires_unix_s, stale_unix_s } = load_roots(ca, now)?;
        let roots = Arc::new(roots);
        let chain = load_certificates(certificate)?;
        check_dates(&chain[0], certificate, now)?;
        let role =
            role_of(&chain).map_err(|cause| TlsError::Role { path: certificate.to_path_buf(), cause })?;
        check_acceptance(&roots, &chain, &role, now).map_err(|cause| {
            let (certificate, ca) = (certificate.to_path_buf(), ca.to_path_buf());
            TlsError::NotAcceptable { certificate, ca, cause }
        })?;
        let expires_unix_s = expires_unix_s(&chain).expect("it was read for its dates");
        let own = Arc::new(load_key(key, chain, certificate)?);
        Ok(Material { roots, own, role, expires_unix_s, ca_expires_unix_s, stale_unix_s })
    }

    /// The role in one's own certificate.
    #[must_use]
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// When one's own certificate ends, in seconds of Unix time.
    #[must_use]
    pub fn expires_unix_s(&self) -> u64 {
        self.expires_unix_s
    }

    /// When the first of the authorities ends that are trusted, in seconds of Unix time.
    #[must_use]
    pub fn ca_expires_unix_s(&self) -> u64 {
        self.ca_expires_unix_s
    }

    /// When the files would have to be read anew although they have not changed, in seconds of Unix time: the first moment at
    /// which one of the authorities in the file ends, or begins.
    #[must_use]
    pub fn stale_unix_s(&self) -> u64 {
        self.stale_unix_s
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// Shows one's own certificate, to whoever asks.
    pub(super) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(Arc::clone(&self.own)))
    }
}

impl fmt::Debug for Material {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Material");
        shown.field("role", &self.role).field("expires_unix_s", &self.expires_unix_s).finish_non_exhaustive()
    }
}

/// The authorities of a file that are valid now.
struct Authorities {
    roots: RootCertStore,
    /// When the first of them ends.
    ca_expires_unix_s: u64,
    /// When others of the file will be.
    stale_unix_s: u64,
}

fn load_roots(path: &Path, now: Duration) -> Result<Authorities, TlsError> {
    let mut roots = RootCertStore::empty();
    let (mut outdated, mut first_end, mut first_begin) = (None, u64::MAX, u64::MAX);
    for authority in load_certificates(path)? {
        let parsed =
            parse(&authority).ok_or_else(|| TlsError::BadCertificate { path: path.to_path_buf() })?;
        if !parsed.is_ca() {
            return Err(TlsError::NotAnAuthority { path: path.to_path_buf() });
        }
        match check_dates(&authority, path, now) {
            // The verifier does not look at the dates of what it trusts, so nobody else would.
            Err(error) => {
                if let TlsError::NotYetValid { from_unix_s, .. } = error {
                    first_begin = first_begin.min(u64::try_from(from_unix_s).unwrap_or(0));
                }
                outdated = Some(error);
            }
            Ok(()) => {
                let added = roots.add(authority.clone());
                added.map_err(|_| TlsError::BadCertificate { path: path.to_path_buf() })?;
                let end =
                    expires_unix_s(std::slice::from_ref(&authority)).expect("it was read for its dates");
                first_end = first_end.min(end);
            }
        }
    }
    match outdated {
        Some(error) if roots.is_empty() => Err(error),
        Some(_) | None => Ok(Authorities {
            roots,
            ca_expires_unix_s: first_end,
            stale_unix_s: first_begin.min(first_end.saturating_add(1)),
        }),
    }
}

/// The certificates of a file: one or more.
fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let contents = read(path)?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&contents).collect();
    let certificates = certificates.map_err(|_| TlsError::NotPem { path: path.to_path_buf() })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_path_buf() });
    }
    Ok(certificates)
}

/// The first private key of a file, which has to be that of the certificate.
fn load_key(
    path: &Path,
    chain: Vec<CertificateDer<'static>>,
    certificate: &Path,
) -> Result<CertifiedKey, TlsError> {
    let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey { path: path.to_path_buf() },
        _ => TlsError::NotPem { path: path.to_path_buf() },
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::KeyMismatch { key: path.to_path_buf(), certificate: certificate.to_path_buf() }
        }
        _ => TlsError::BadKey { path: path.to_path_buf() },
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|cause| TlsError::Read { path: path.to_path_buf(), cause })
}

/// Refuses a certificate that is not valid now.
fn check_dates(certificate: &CertificateDer<'_>, path: &Path, now: Duration) -> Result<(), TlsError> {
    let path = path.to_path_buf();
    let Some(parsed) = parse(certificate) else { return Err(TlsError::BadCertificate { path }) };
    let now_unix_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    let (from_unix_s, since_unix_s) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if now_unix_s < from_unix_s {
        return Err(TlsError::NotYetValid { path, from_unix_s });
    }
    if now_unix_s > since_unix_s {
        return Err(TlsError::Expired { path, since_unix_s });
    }
    Ok(())
}

/// Makes the checks that the other side will make: of everybody those of a server, and of a node, to which others
/// connect, those of a client as well.
fn check_acceptance(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    role: &Role,
    now: Duration,
) -> Result<(), rustls::Error> {
    let now = UnixTime::since_unix_epoch(now);
    let as_server = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .expect("there is a root, and there are no revocation lists");
    as_server.verify_client_cert(&chain[0], &chain[1..], now)?;
    if *role == Role::Node {
        let as_client = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider())
            .build()
            .expect("there is a root, and there are no revocation lists");
        let name = ServerName::try_from(SERVER_NAME).expect("a name in the form of DNS");
        as_client.verify_server_cert(&chain[0], &chain[1..], &name, &[], now)?;
    }
    Ok(())
}

/// A date for people.
fn date(unix_s: i64) -> String {
    let date = ASN1Time::from_timestamp(unix_s).ok().and_then(|date| date.to_rfc2822().ok());
    date.unwrap_or_else(|| format!("second {unix_s} of Unix time"))
}
