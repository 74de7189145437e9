//! The files that a configuration names: whether a node could start with them.

use std::{fs, path::Path};

use client::{
    Role,
    tls::{Material, TlsError},
};

use super::read::{FaultReason, Section};

/// Checks what the node shows and trusts, as the node itself will: whatever it would refuse is a fault.
pub(super) fn check_material(
    section: &mut Section<'_>,
    ca: Option<&Path>,
    certificate: Option<&Path>,
    key: Option<&Path>,
) {
    let mut is_readable = |name: &str, path: &Path| match fs::read(path) {
        Ok(_) => true,
        Err(error) => {
            let reason = FaultReason::Unfit(format!("cannot be read: {error}"));
            section.fault(name, Some(path.display().to_string()), reason);
            false
        }
    };
    let mut check = |name: &str, path: Option<&Path>| path.is_some_and(|path| is_readable(name, path));
    let are_readable = [check("ca", ca), check("certificate", certificate), check("key", key)];
    let (true, Some(ca), Some(certificate), Some(key)) =
        (are_readable.iter().all(|is_readable| *is_readable), ca, certificate, key)
    else {
        return;
    };
    match Material::load(ca, certificate, key).map(|material| material.role().clone()) {
        Ok(Role::Node) => {}
        Ok(role @ Role::Client(_)) => {
            let reason = format!("its role is {role}, and a node needs {}", Role::Node);
            section.fault("certificate", Some(certificate.display().to_string()), FaultReason::Unfit(reason));
        }
        // It names the file.
        Err(error) => section.fault(at_fault(&error, ca, key), None, FaultReason::Unfit(error.to_string())),
    }
}

/// The setting whose file is at fault.
fn at_fault(error: &TlsError, ca: &Path, key: &Path) -> &'static str {
    match error {
        TlsError::Read { path, .. }
        | TlsError::NotPem { path }
        | TlsError::NoCertificate { path }
        | TlsError::BadCertificate { path }
        | TlsError::NoKey { path }
        | TlsError::BadKey { path }
        | TlsError::Expired { path, .. }
        | TlsError::NotYetValid { path, .. }
        | TlsError::NotAnAuthority { path }
        | TlsError::Role { path, .. } => match path {
            path if path == ca => "ca",
            path if path == key => "key",
            _ => "certificate",
        },
        TlsError::KeyMismatch { .. } => "key",
        TlsError::NotAcceptable { .. } | TlsError::Unusable(_) => "certificate",
    }
}

/// Checks that a directory is there or can be made: nothing on the way to it is something else.
pub(super) fn check_directory(section: &mut Section<'_>, name: &str, directory: &Path) {
    let found = directory.ancestors().find(|path| path.exists());
    if let Some(other) = found.filter(|path| !path.is_dir()) {
        let reason = FaultReason::Unfit("is not a directory".to_owned());
        section.fault(name, Some(other.display().to_string()), reason);
    }
}

/// Checks that a file can be written: its directory is there, and it is none itself.
pub(super) fn check_place(section: &mut Section<'_>, name: &str, path: &Path) {
    let reason = match path.parent() {
        _ if path.is_dir() => "is a directory",
        // A path without a directory is in the present one.
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => "there is no such directory",
        Some(_) | None => return,
    };
    section.fault(name, Some(path.display().to_string()), FaultReason::Unfit(reason.to_owned()));
}
