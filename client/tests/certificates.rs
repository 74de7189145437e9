//! The authority and what it issues, and what is found out about certificates before anything is connected.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use client::{
    Access, Role,
    certificates::{AUTHORITY_DAYS, Authority, CertificateError, DAYS_DEFAULT, Issued, Request},
    tls::{Material, RoleError, TlsError, expires_unix_s, role_of},
};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR_S: u64 = 3_600;
const WRITER: Role = Role::client(Access::Write);

/// A directory of its own for each test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let name = format!("certificates-{name}-{}", std::process::id());
        Directory(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        fs::write(self.path(name), contents).expect("a directory of our own");
        self.path(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn request(role: Role) -> Request {
    Request { role, name: "tester".to_owned(), hosts: Vec::new(), days: DAYS_DEFAULT }
}

fn issue(authority: &Authority, role: Role) -> Issued {
    authority.issue(&request(role)).expect("a good request")
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// The names, the uses and the dates of a certificate, as people would read them.
fn described(certificate: &CertificateDer<'_>) -> (Vec<String>, Vec<&'static str>, [i64; 2]) {
    let (_, parsed) = X509Certificate::from_der(certificate).expect("a certificate");
    let names = parsed.subject_alternative_name().expect("no damage").map_or(Vec::new(), |extension| {
        extension.value.general_names.iter().map(ToString::to_string).collect()
    });
    let usage = parsed.extended_key_usage().expect("no damage").map(|extension| extension.value.clone());
    let uses = usage.map_or(Vec::new(), |usage| {
        [(usage.server_auth, "server"), (usage.client_auth, "client"), (usage.any, "any")]
            .into_iter()
            .filter_map(|(is_set, name)| is_set.then_some(name))
            .collect()
    });
    let validity = parsed.validity();
    (names, uses, [validity.not_before.timestamp(), validity.not_after.timestamp()])
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn an_authority_is_written_once_with_a_key_for_its_owner_alone() {
    let dir = Directory::new("once");
    let authority = Authority::create(&dir.0).unwrap();
    assert_eq!(mode(&dir.path("ca-key.pem")), 0o600);
    assert_eq!(mode(&dir.path("ca.pem")) & 0o022, 0, "nobody else may write it");
    let before = fs::read(dir.path("ca-key.pem")).unwrap();
    let again = Authority::create(&dir.0).unwrap_err();
    assert!(matches!(again, CertificateError::Exists { .. }), "{again}");
    // Nor if only half of it is there.
    fs::remove_file(dir.path("ca-key.pem")).unwrap();
    let again = Authority::create(&dir.0).unwrap_err().to_string();
    assert!(again.contains("ca.pem: exists already"), "{again}");
    assert!(!dir.path("ca-key.pem").exists());
    fs::write(dir.path("ca-key.pem"), before).unwrap();
    assert_eq!(Authority::open(&dir.0).unwrap().certificate_pem(), authority.certificate_pem());
}

#[test]
fn an_authority_may_issue_certificates_and_nothing_else_for_ten_years() {
    let dir = Directory::new("authority");
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let authority = Authority::create_at(&dir.0, now).unwrap();
    let certificate = der(authority.certificate_pem());
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0), "no authorities below it");
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    let (_, _, [from, to]) = described(&certificate);
    assert_eq!(from, 1_800_000_000 - 3_600);
    assert_eq!(to, 1_800_000_000 + i64::from(AUTHORITY_DAYS) * 86_400);
}

#[test]
fn an_authority_without_its_own_key_is_none() {
    let (dir, other) = (Directory::new("keyless"), Directory::new("keyless-2"));
    Authority::create(&dir.0).unwrap();
    Authority::create(&other.0).unwrap();
    fs::copy(other.path("ca-key.pem"), dir.path("ca-key.pem")).unwrap();
    let mixed = Authority::open(&dir.0).unwrap_err();
    assert!(matches!(mixed, CertificateError::NotAnAuthority { .. }), "{mixed}");
    // A certificate that it issued is no authority either.
    let issued = issue(&Authority::open(&other.0).unwrap(), WRITER);
    other.write("ca.pem", &issued.certificate_pem);
    other.write("ca-key.pem", &issued.key_pem);
    let leaf = Authority::open(&other.0).unwrap_err();
    assert!(matches!(leaf, CertificateError::NotAnAuthority { .. }), "{leaf}");
    let missing = Authority::open(&dir.path("nowhere")).unwrap_err().to_string();
    assert!(missing.contains("nowhere/ca.pem: No such file"), "{missing}");
}

#[test]
fn a_node_is_a_server_and_a_client_under_the_name_of_all_nodes_and_its_own() {
    let dir = Directory::new("node");
    let now = SystemTime::now();
    let authority = Authority::create_at(&dir.0, now).unwrap();
    let hosts = vec!["db1.example.org".to_owned(), "10.0.0.7".to_owned(), "fd00::7".to_owned()];
    let issued = authority.issue_at(&Request { hosts, days: 30, ..request(Role::Node) }, now).unwrap();
    let certificate = der(&issued.certificate_pem);
    let (names, uses, [from, to]) = described(&certificate);
    let expected = [
        "URI(quorate:node)",
        "DNSName(node.quorate)",
        "DNSName(db1.example.org)",
        "IPAddress(0a:00:00:07)",
        "IPAddress(fd:00:00:00:00:00:00:00:00:00:00:00:00:00:00:07)",
    ];
    assert_eq!(names, expected);
    assert_eq!(uses, ["server", "client"]);
    let now_unix_s = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(u64::try_from(from).unwrap(), now_unix_s - HOUR_S, "for clocks that are behind");
    assert_eq!(u64::try_from(to).unwrap(), now_unix_s + 30 * 24 * HOUR_S);
    assert_eq!(role_of(std::slice::from_ref(&certificate)), Ok(Role::Node));
    assert_eq!(expires_unix_s(std::slice::from_ref(&certificate)), u64::try_from(to).ok());
    let (_, parsed) = X509Certificate::from_der(&certificate).unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert_eq!(parsed.subject().to_string(), "CN=tester");
}

#[test]
fn a_client_is_a_client_alone_and_has_no_name_of_a_host() {
    let dir = Directory::new("client");
    let authority = Authority::create(&dir.0).unwrap();
    for access in [Access::Read, Access::Write, Access::Admin] {
        let role = Role::client(access);
        let certificate = der(&issue(&authority, role.clone()).certificate_pem);
        let (names, uses, _) = described(&certificate);
        assert_eq!(names, [format!("URI({role})")]);
        assert_eq!(uses, ["client"]);
        assert_eq!(role_of(&[certificate]), Ok(role));
    }
    let with_host = Request { hosts: vec!["node.quorate".to_owned()], ..request(WRITER) };
    let refused = authority.issue(&with_host).unwrap_err();
    assert!(matches!(refused, CertificateError::HostOfClient(host) if host == "node.quorate"));
}

#[test]
fn requests_that_make_no_good_certificate_are_refused() {
    let dir = Directory::new("requests");
    let now = SystemTime::now();
    let authority = Authority::create_at(&dir.0, now).unwrap();
    let issue = |request: &Request| authority.issue_at(request, now);
    for name in ["", "a\nb", "a/b", "ä", &"x".repeat(65), "..", ".hidden", " x", "x "] {
        let refused = issue(&Request { name: name.to_owned(), ..request(WRITER) });
        assert!(matches!(refused, Err(CertificateError::BadName(_))), "{name:?}");
        let refused = Issued { certificate_pem: String::new(), key_pem: String::new() }.write(&dir.0, name);
        assert!(matches!(refused, Err(CertificateError::BadName(_))), "{name:?} as a file");
    }
    let before = (fs::read(dir.path("ca.pem")).unwrap(), fs::read(dir.path("ca-key.pem")).unwrap());
    for name in ["ca", "Ca", "ca-key", "CA-KEY"] {
        let issued = issue(&request(WRITER)).unwrap();
        for refused in [issued.write(&dir.0, name), issued.replace(&dir.0, name)] {
            assert!(matches!(refused, Err(CertificateError::AuthoritysName(_))), "{name:?}");
        }
    }
    assert_eq!((fs::read(dir.path("ca.pem")).unwrap(), fs::read(dir.path("ca-key.pem")).unwrap()), before);
    for host in ["", "a b", "*.quorate", "10.0.0.7:80", "http://a", "-a", "1.2.3.4.5.", "[::1]"] {
        let refused = issue(&Request { hosts: vec![host.to_owned()], ..request(Role::Node) });
        assert!(matches!(refused, Err(CertificateError::BadHost(_))), "{host:?}: {refused:?}");
    }
    assert!(matches!(issue(&Request { days: 0, ..request(WRITER) }), Err(CertificateError::NoDays)));
}

#[test]
fn a_certificate_never_outlives_its_authority() {
    let dir = Directory::new("outlives");
    let now = SystemTime::now();
    let authority = Authority::create_at(&dir.0, now).unwrap();
    let issue = |days, now| authority.issue_at(&Request { days, ..request(WRITER) }, now);
    assert!(issue(AUTHORITY_DAYS, now).is_ok());
    let refused = issue(AUTHORITY_DAYS + 1, now).unwrap_err().to_string();
    assert_eq!(
        refused,
        "3653 days are more than the authority has left, which is 3652: make a new authority"
    );
    let late = now + DAY * (AUTHORITY_DAYS - 10);
    assert!(issue(10, late).is_ok());
    assert!(matches!(issue(11, late), Err(CertificateError::OutlivesAuthority { days: 11, left_days: 10 })));
    let over = now + DAY * (AUTHORITY_DAYS + 10);
    assert!(matches!(issue(1, over), Err(CertificateError::OutlivesAuthority { days: 1, left_days: 0 })));
}

#[test]
fn nothing_is_overwritten_unless_it_is_to_be_replaced() {
    let dir = Directory::new("replace");
    let authority = Authority::create(&dir.0).unwrap();
    let (first, second) = (issue(&authority, WRITER), issue(&authority, WRITER));
    let files = first.write(&dir.0, "app").unwrap();
    assert_eq!(
        (files.certificate.clone(), files.key.clone()),
        (dir.path("app.pem"), dir.path("app-key.pem"))
    );
    assert_eq!(mode(&files.key), 0o600);
    let refused = second.write(&dir.0, "app").unwrap_err();
    assert!(matches!(refused, CertificateError::Exists { .. }), "{refused}");
    assert_eq!(fs::read_to_string(&files.key).unwrap(), first.key_pem);
    // Not even what points to nowhere.
    std::os::unix::fs::symlink(dir.path("nowhere"), dir.path("link-key.pem")).unwrap();
    assert!(matches!(second.write(&dir.0, "link"), Err(CertificateError::Exists { .. })));
    // What an attempt before may have left behind is not in the way, and its mode is not taken over.
    fs::write(dir.path("app-key.pem.next"), "half a k").unwrap();
    second.replace(&dir.0, "app").unwrap();
    assert_eq!(fs::read_to_string(&files.key).unwrap(), second.key_pem);
    assert_eq!(fs::read_to_string(&files.certificate).unwrap(), second.certificate_pem);
    assert_eq!(mode(&files.key), 0o600);
    let left: Vec<_> = fs::read_dir(&dir.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".next")), "{left:?}");
    let nowhere = first.write(&dir.path("nowhere"), "app").unwrap_err().to_string();
    assert!(nowhere.contains("app-key.pem: No such file"), "{nowhere}");
}

#[test]
fn private_keys_are_not_printed() {
    let dir = Directory::new("debug");
    let authority = Authority::create(&dir.0).unwrap();
    let issued = issue(&authority, WRITER);
    let files = issued.write(&dir.0, "app").unwrap();
    let material = Material::load(&dir.path("ca.pem"), &files.certificate, &files.key).unwrap();
    let printed = format!("{authority:?} {issued:?} {material:?}");
    for pem in [&issued.key_pem, &fs::read_to_string(dir.path("ca-key.pem")).unwrap()] {
        let line = pem.lines().nth(1).unwrap();
        assert!(!printed.contains(line));
    }
    assert!(!printed.contains("PRIVATE"));
}

/// A certificate with the given names, by the authority in a directory.
fn issue_by_hand(dir: &Directory, uris: &[&str]) -> Issued {
    let key_pem = fs::read_to_string(dir.path("ca-key.pem")).expect("an authority");
    let ca_pem = fs::read_to_string(dir.path("ca.pem")).expect("an authority");
    let authority_key = KeyPair::from_pem(&key_pem).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, authority_key).expect("an authority");
    let mut params = CertificateParams::default();
    params.subject_alt_names =
        uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
}

#[test]
fn a_certificate_has_one_role_that_is_known_or_none() {
    let dir = Directory::new("roles");
    Authority::create(&dir.0).unwrap();
    let role = |uris: &[&str]| role_of(&[der(&issue_by_hand(&dir, uris).certificate_pem)]);
    assert_eq!(role(&["spiffe://example.org/db", "quorate:client/read"]), Ok(Role::client(Access::Read)));
    assert_eq!(role(&[]), Err(RoleError::NoRole));
    assert_eq!(role(&["spiffe://example.org/db"]), Err(RoleError::NoRole));
    assert_eq!(role(&["QUORATE:node"]), Err(RoleError::NoRole));
    let both = ["quorate:client/read", "quorate:node"];
    assert_eq!(role(&both), Err(RoleError::SeveralRoles(both.map(str::to_owned).to_vec())));
    assert!(matches!(role(&["quorate:node", "quorate:node"]), Err(RoleError::SeveralRoles(_))), "or twice");
    for unknown in ["quorate:", "quorate:client", "quorate:client/root", "quorate:node/", "quorate:node "] {
        assert!(matches!(role(&[unknown]), Err(RoleError::UnknownRole(_))), "{unknown}");
    }
    assert_eq!(role_of(&[]), Err(RoleError::NoCertificate));
    assert_eq!(role_of(&[vec![0x30, 0].into()]), Err(RoleError::Unreadable));
    assert_eq!(expires_unix_s(&[]), None);
    assert_eq!(expires_unix_s(&[vec![0x30, 0].into()]), None);
}

/// A cluster whose files are good, until a test damages one of them.
struct Files {
    dir: Directory,
    authority: Authority,
}

impl Files {
    fn new(name: &str) -> Files {
        let dir = Directory::new(name);
        let authority = Authority::create(&dir.0).expect("a new directory");
        issue(&authority, WRITER).write(&dir.0, "app").expect("a new directory");
        Files { dir, authority }
    }

    fn load(&self) -> Result<Material, TlsError> {
        self.load_at(SystemTime::now())
    }

    fn load_at(&self, now: SystemTime) -> Result<Material, TlsError> {
        let path = |name| self.dir.path(name);
        Material::load_at(&path("ca.pem"), &path("app.pem"), &path("app-key.pem"), now)
    }

    /// What loading says, which has to name the file.
    #[track_caller]
    fn refused(&self, file: &str) -> TlsError {
        let error = self.load().expect_err("refused");
        let named = self.dir.path(file).display().to_string();
        assert!(error.to_string().starts_with(&named), "{error}");
        error
    }
}

#[test]
fn good_files_are_good_and_say_when_they_end() {
    let files = Files::new("good");
    let material = files.load().unwrap();
    assert_eq!(*material.role(), WRITER);
    let certificate = der(&fs::read_to_string(files.dir.path("app.pem")).unwrap());
    assert_eq!(Some(material.expires_unix_s()), expires_unix_s(&[certificate]));
}

#[test]
fn files_that_are_missing_or_empty_or_something_else_are_named() {
    for file in ["ca.pem", "app.pem", "app-key.pem"] {
        let files = Files::new(&format!("missing-{file}"));
        fs::remove_file(files.dir.path(file)).unwrap();
        let missing = files.refused(file);
        assert!(matches!(missing, TlsError::Read { .. }), "{missing}");
        assert!(missing.to_string().contains("No such file"), "{missing}");
        fs::create_dir(files.dir.path(file)).unwrap();
        assert!(matches!(files.refused(file), TlsError::Read { .. }), "a directory");
        fs::remove_dir(files.dir.path(file)).unwrap();
        let is_key = file == "app-key.pem";
        for contents in ["", "hello\n", "-----BEGIN NONSENSE-----\nAAAA\n-----END NONSENSE-----\n"] {
            files.dir.write(file, contents);
            let refused = files.refused(file);
            let expected = if is_key {
                matches!(refused, TlsError::NoKey { .. })
            } else {
                matches!(refused, TlsError::NoCertificate { .. })
            };
            assert!(expected, "{refused}");
        }
        let what = if is_key { "PRIVATE KEY" } else { "CERTIFICATE" };
        for damage in ["!!!!", "AAAA\n"] {
            files.dir.write(file, &format!("-----BEGIN {what}-----\n{damage}\n-----END {what}-----\n"));
            let refused = files.refused(file);
            let expected = matches!(
                refused,
                TlsError::NotPem { .. } | TlsError::BadCertificate { .. } | TlsError::BadKey { .. }
            );
            assert!(expected, "{refused}");
        }
        files.dir.write(file, &format!("-----BEGIN {what}-----\nAAAA\n"));
        assert!(matches!(files.refused(file), TlsError::NotPem { .. }), "cut short");
    }
    // The files in each other's places.
    let files = Files::new("swapped");
    fs::copy(files.dir.path("app-key.pem"), files.dir.path("app.pem")).unwrap();
    assert!(matches!(files.refused("app.pem"), TlsError::NoCertificate { .. }));
}

#[test]
fn a_key_that_is_not_the_certificates_is_refused() {
    let files = Files::new("mismatch");
    let other = issue(&files.authority, WRITER);
    files.dir.write("app-key.pem", &other.key_pem);
    let refused = files.refused("app-key.pem");
    assert!(matches!(refused, TlsError::KeyMismatch { .. }), "{refused}");
    assert!(refused.to_string().contains("app.pem"), "{refused}");
}

#[test]
fn a_certificate_out_of_its_time_is_refused_with_the_date() {
    let files = Files::new("dates");
    let issued_at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let issued = files.authority.issue_at(&Request { days: 1, ..request(WRITER) }, issued_at).unwrap();
    issued.replace(&files.dir.0, "app").unwrap();
    let expired = files.refused("app.pem");
    assert!(matches!(expired, TlsError::Expired { since_unix_s: 1_700_086_400, .. }), "{expired}");
    assert!(expired.to_string().ends_with("expired since Wed, 15 Nov 2023 22:13:20 +0000"), "{expired}");
    let early = files.authority.issue_at(&request(WRITER), SystemTime::now() + DAY).unwrap();
    early.replace(&files.dir.0, "app").unwrap();
    let refused = files.refused("app.pem");
    assert!(matches!(refused, TlsError::NotYetValid { .. }), "{refused}");
    assert!(refused.to_string().contains("not valid before"), "{refused}");
    assert!(files.load_at(SystemTime::now() + DAY).is_ok(), "tomorrow it is good");
}

#[test]
fn an_authority_that_has_expired_is_trusted_no_longer_even_beside_another() {
    let files = Files::new("old-authority");
    let old = Directory::new("old-authority-2");
    let long_ago = SystemTime::now() - DAY * (AUTHORITY_DAYS + 1);
    let old_authority = Authority::create_at(&old.0, long_ago).unwrap();
    // Alone it is the fault; beside a good one it is left out.
    fs::write(files.dir.path("ca.pem"), old_authority.certificate_pem()).unwrap();
    assert!(matches!(files.refused("ca.pem"), TlsError::Expired { .. }));
    let both = [old_authority.certificate_pem(), files.authority.certificate_pem()].concat();
    files.dir.write("ca.pem", &both);
    assert!(files.load().is_ok());
    let by_the_old = issue_by_hand(&old, &["quorate:client/write"]);
    by_the_old.replace(&files.dir.0, "app").unwrap();
    assert!(matches!(files.refused("app.pem"), TlsError::NotAcceptable { .. }));
}

#[test]
fn certificates_that_the_other_side_would_refuse_are_refused_at_once() {
    let files = Files::new("acceptance");
    let other = Files::new("acceptance-2");
    // Of another authority.
    issue(&other.authority, WRITER).replace(&files.dir.0, "app").unwrap();
    let refused = files.refused("app.pem");
    assert!(matches!(refused, TlsError::NotAcceptable { .. }), "{refused}");
    assert!(
        refused.to_string().contains("ca.pem") && refused.to_string().contains("UnknownIssuer"),
        "{refused}"
    );
    // A node to which nobody could connect, because it has not the name that they ask for.
    issue_by_hand(&files.dir, &["quorate:node"]).replace(&files.dir.0, "app").unwrap();
    let refused = files.refused("app.pem");
    assert!(matches!(refused, TlsError::NotAcceptable { .. }), "{refused}");
    assert!(refused.to_string().contains("node.quorate"), "{refused}");
    // Nobody in particular.
    issue_by_hand(&files.dir, &[]).replace(&files.dir.0, "app").unwrap();
    assert!(matches!(files.refused("app.pem"), TlsError::Role { cause: RoleError::NoRole, .. }));
    // A certificate where the authority's should be.
    issue(&files.authority, WRITER).replace(&files.dir.0, "app").unwrap();
    fs::copy(files.dir.path("app.pem"), files.dir.path("ca.pem")).unwrap();
    assert!(matches!(files.refused("ca.pem"), TlsError::NotAnAuthority { .. }));
}
