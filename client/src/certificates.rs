//! Certificates for a cluster, without further tools: an authority, and what it issues to nodes and clients.
//!
//! Any other authority will do as well, a company's own or cert-manager, if its certificates have the same names:
//! nodes and clients know no difference. All keys are ECDSA on P-256, which every TLS library takes.
//!
//! | | node | client |
//! |---|---|---|
//! | URI | `quorate:node` | `quorate:client/read`, `.../write` or `.../admin`, see [`Role`] |
//! | DNS | [`SERVER_NAME`] and the hosts given | none |
//! | use | server and client: nodes connect to each other | client alone |
//!
//! A certificate begins an hour before it is issued, for machines whose clocks are behind. It never outlives its
//! authority: one that would is refused rather than cut short, because whoever asked for a year should hear that a
//! new authority is due, not find out when the certificate ends early.
//!
//! Private keys are written readable to their owner alone, and nothing is overwritten by accident.

use std::{
    fmt, fs,
    fs::OpenOptions,
    io,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, DnsName, pem::PemObject};
use thiserror::Error;

use crate::{
    Role,
    tls::{SERVER_NAME, expires_unix_s},
};

/// How long an authority lives: ten years.
pub const AUTHORITY_DAYS: u32 = 3_652;
/// How long a certificate lives when nobody says: a year.
pub const DAYS_DEFAULT: u32 = 365;
/// The longest name of a bearer, in bytes: that of a common name in X.520.
pub const NAME_BYTES_MAX: usize = 64;

/// How long before it is issued a certificate begins.
const BACKDATED: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

const AUTHORITY_STEM: &str = "ca";

/// Why a certificate was not made.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file could not be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// There is such a file already, and it was not to be replaced.
    #[error("{}: exists already, and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// What is in the files is not the certificate of an authority and its private key.
    #[error("{}: not an authority's certificate with its private key beside it", path.display())]
    NotAnAuthority {
        /// The file of the certificate.
        path: PathBuf,
    },
    /// The name of a bearer, or of its files, is empty, too long, or has characters that it may not have.
    #[error(
        "`{0}` is no name: 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.`, `@` and spaces, with neither `.` nor a \
         space at the beginning and no space at the end"
    )]
    BadName(String),
    /// The files of that name are the authority's own.
    #[error(
        "`{0}` is no name for a node or a client: {AUTHORITY_STEM}.pem and {AUTHORITY_STEM}-key.pem are the \
         authority's own"
    )]
    AuthoritysName(String),
    /// Neither the name of a host nor an address.
    #[error("`{0}` is neither the name of a host nor an IP address")]
    BadHost(String),
    /// A client's certificate is for no host: with the name of a node it could pass for one.
    #[error("a client's certificate is for no host, and `{0}` was given")]
    HostOfClient(String),
    /// The role is bound to keyspaces that can have no such names, or should be bound to none.
    #[error(
        "`{0}` is no role: reading and writing may be bound to keyspaces by their names, which are letters, digits, `-`, `_` \
         and `.`, at most 64; administration is of the whole cluster"
    )]
    BadRole(Role),
    /// It would have ended before it began.
    #[error("a certificate of no days")]
    NoDays,
    /// It would outlive its authority.
    #[error("{days} days are more than the authority has left, which is {left_days}: make a new authority")]
    OutlivesAuthority {
        /// What was asked for.
        days: u32,
        /// What is left.
        left_days: u64,
    },
    /// The certificate library failed.
    #[error("no certificate could be made: {0}")]
    Library(#[from] rcgen::Error),
}

/// What a certificate should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it allows its bearer.
    pub role: Role,
    /// Who bears it, for people: the common name.
    pub name: String,
    /// Names and addresses of a node, beside the name that all nodes share. None for a client.
    pub hosts: Vec<String>,
    /// How long it lives.
    pub days: u32,
}

/// Whoever issues the certificates of a cluster.
pub struct Authority {
    certificate_pem: String,
    ends_unix_s: u64,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// Where a certificate and its private key were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Files {
    /// The files of a node or a client in a directory: `stem.pem` and `stem-key.pem`.
    fn of(dir: &Path, stem: &str) -> Result<Files, CertificateError> {
        if !name_is_valid(stem) {
            return Err(CertificateError::BadName(stem.to_owned()));
        }
        // Some file systems take `CA.pem` for `ca.pem`.
        let lower = stem.to_ascii_lowercase();
        if lower.strip_suffix("-key").unwrap_or(&lower) == AUTHORITY_STEM {
            return Err(CertificateError::AuthoritysName(stem.to_owned()));
        }
        Ok(Files::at(dir, stem))
    }

    /// The files of the authority in a directory.
    fn of_authority(dir: &Path) -> Files {
        Files::at(dir, AUTHORITY_STEM)
    }

    fn at(dir: &Path, stem: &str) -> Files {
        Files { certificate: dir.join(format!("{stem}.pem")), key: dir.join(format!("{stem}-key.pem")) }
    }
}

impl Authority {
    /// A new authority, written to `ca.pem` and `ca-key.pem` in a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Exists`] if there is one, and [`CertificateError::File`].
    pub fn create(dir: &Path) -> Result<Authority, CertificateError> {
        Authority::create_at(dir, SystemTime::now())
    }

    /// As [`Authority::create`], as if it were `now`.
    ///
    /// # Errors
    ///
    /// As [`Authority::create`].
    pub fn create_at(dir: &Path, now: SystemTime) -> Result<Authority, CertificateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&authority_name(&key), now, AUTHORITY_DAYS)?;
        // It issues to bearers, not to other authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issued =
            Issued { certificate_pem: params.self_signed(&key)?.pem(), key_pem: key.serialize_pem() };
        fs::create_dir_all(dir).map_err(|cause| CertificateError::File { path: dir.to_path_buf(), cause })?;
        issued.write_files(Files::of_authority(dir))?;
        Authority::open(dir)
    }

    /// The authority in a directory.
    ///
    /// # Errors
    ///
    /// [`CertificateError::File`], and [`CertificateError::NotAnAuthority`] if the files are not what
    /// [`Authority::create`] wrote, or do not belong together.
    pub fn open(dir: &Path) -> Result<Authority, CertificateError> {
        let files = Files::of_authority(dir);
        let certificate_pem = read(&files.certificate)?;
        let key_pem = read(&files.key)?;
        Authority::from_pem(certificate_pem, &key_pem)
            .ok_or(CertificateError::NotAnAuthority { path: files.certificate })
    }

    fn from_pem(certificate_pem: String, key_pem: &str) -> Option<Authority> {
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
        let key = KeyPair::from_pem(key_pem).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let is_its_key = parsed.public_key().subject_public_key.data == key.public_key_raw();
        let ends_unix_s = expires_unix_s(std::slice::from_ref(&der))?;
        let issuer = Issuer::from_ca_cert_der(&der, key).ok()?;
        (parsed.is_ca() && is_its_key).then_some(Authority { certificate_pem, ends_unix_s, issuer })
    }

    /// Its certificate, in PEM: what everybody has to trust.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate for a new key.
    ///
    /// # Errors
    ///
    /// See [`CertificateError`].
    pub fn issue(&self, request: &Request) -> Result<Issued, CertificateError> {
        self.issue_at(request, SystemTime::now())
    }

    /// As [`Authority::issue`], as if it were `now`.
    ///
    /// # Errors
    ///
    /// As [`Authority::issue`].
    pub fn issue_at(&self, request: &Request, now: SystemTime) -> Result<Issued, CertificateError> {
        let now_unix_s = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let left_days = self.ends_unix_s.saturating_sub(now_unix_s) / DAY.as_secs();
        if request.days == 0 {
            return Err(CertificateError::NoDays);
        }
        if u64::from(request.days) > left_days {
            return Err(CertificateError::OutlivesAuthority { days: request.days, left_days });
        }
        let mut params = params(&request.name, now, request.days)?;
        params.subject_alt_names = alternative_names(request)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match request.role {
            Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Role::Client(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

impl fmt::Debug for Authority {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("ends_unix_s", &self.ends_unix_s).finish_non_exhaustive()
    }
}

impl Issued {
    /// Writes `stem.pem` and `stem-key.pem` into a directory, the key readable to its owner alone.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Exists`] if either is there, and then neither is written; [`CertificateError::BadName`] and
    /// [`CertificateError::AuthoritysName`] if the stem may not be; [`CertificateError::File`].
    pub fn write(&self, dir: &Path, stem: &str) -> Result<Files, CertificateError> {
        self.write_files(Files::of(dir, stem)?)
    }

    fn write_files(&self, files: Files) -> Result<Files, CertificateError> {
        for path in [&files.key, &files.certificate] {
            if path.symlink_metadata().is_ok() {
                return Err(CertificateError::Exists { path: path.clone() });
            }
        }
        write_new(&files.key, &self.key_pem, KEY_MODE)?;
        write_new(&files.certificate, &self.certificate_pem, CERTIFICATE_MODE).inspect_err(|_| {
            // A key without its certificate would only be in the way of the next attempt.
            let _ = fs::remove_file(&files.key);
        })?;
        Ok(files)
    }

    /// As [`Issued::write`], and what was there is replaced, one file after the other: whoever reads them in between
    /// finds a key that is not the certificate's, says so, and has to read again.
    ///
    /// # Errors
    ///
    /// [`CertificateError::BadName`] and [`CertificateError::AuthoritysName`] if the stem may not be;
    /// [`CertificateError::File`].
    pub fn replace(&self, dir: &Path, stem: &str) -> Result<Files, CertificateError> {
        let files = Files::of(dir, stem)?;
        replace(&files.key, &self.key_pem, KEY_MODE)?;
        replace(&files.certificate, &self.certificate_pem, CERTIFICATE_MODE)?;
        Ok(files)
    }
}

impl fmt::Debug for Issued {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// A name for the authority with this key. Two authorities of one name would be told apart by a signature that does not
/// fit, which sounds like damage; of different names the one is simply unknown where the other is trusted.
fn authority_name(key: &KeyPair) -> String {
    let public = key.public_key_raw();
    let tail: String = public[public.len() - 4..].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("Quorate authority {tail}")
}

/// What all certificates have: a name, a serial number and dates.
fn params(name: &str, now: SystemTime, days: u32) -> Result<CertificateParams, CertificateError> {
    if !name_is_valid(name) {
        return Err(CertificateError::BadName(name.to_owned()));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + DAY * days).into();
    Ok(params)
}

/// The role, and for a node the names that others may know it by.
fn alternative_names(request: &Request) -> Result<Vec<SanType>, CertificateError> {
    let mut names = vec![SanType::URI(request.role.to_string().try_into()?)];
    match &request.role {
        Role::Client(grant) if !grant.is_valid() => {
            return Err(CertificateError::BadRole(request.role.clone()));
        }
        Role::Client(_) => match request.hosts.first() {
            Some(host) => return Err(CertificateError::HostOfClient(host.clone())),
            None => return Ok(names),
        },
        Role::Node => names.push(SanType::DnsName(SERVER_NAME.try_into()?)),
    }
    for host in &request.hosts {
        names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if DnsName::try_from(host.as_str()).is_ok() => SanType::DnsName(host.as_str().try_into()?),
            Err(_) => return Err(CertificateError::BadHost(host.clone())),
        });
    }
    Ok(names)
}

/// Names go into certificates, and stems into paths.
fn name_is_valid(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@ ".contains(&byte);
    let is_length = (1..=NAME_BYTES_MAX).contains(&name.len());
    is_length && !name.starts_with(['.', ' ']) && !name.ends_with(' ') && name.bytes().all(is_allowed)
}

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

fn read(path: &Path) -> Result<String, CertificateError> {
    fs::read_to_string(path).map_err(|cause| CertificateError::File { path: path.to_path_buf(), cause })
}

/// Writes a file that is not there yet, and leaves none behind if that fails.
fn write_new(path: &Path, contents: &str, mode: u32) -> Result<(), CertificateError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let file = options.open(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => CertificateError::Exists { path: path.to_path_buf() },
        _ => CertificateError::File { path: path.to_path_buf(), cause },
    });
    let mut file = file?;
    file.write_all(contents.as_bytes()).and_then(|()| file.sync_all()).map_err(|cause| {
        // It was not there before, and half a file would be worse than none.
        let _ = fs::remove_file(path);
        CertificateError::File { path: path.to_path_buf(), cause }
    })
}

/// Puts a file in another's place, whole or not at all.
fn replace(path: &Path, contents: &str, mode: u32) -> Result<(), CertificateError> {
    let next = path.with_extension("pem.next");
    let failed = |path: &Path, cause| CertificateError::File { path: path.to_path_buf(), cause };
    match fs::remove_file(&next) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(&next, cause)),
        Ok(()) | Err(_) => {}
    }
    write_new(&next, contents, mode)?;
    fs::rename(&next, path).map_err(|cause| failed(path, cause))
}
