//! New certificates without a restart.
//!
//! The files are read anew when somebody asks for it, and when they have changed: whoever replaces them has nothing else to
//! do. What was read is checked as at a start, and only what is good is taken into use, for connections from then on; those
//! that exist stay as they are, since nothing about them has become worse. What is not good is said, counted and tried again,
//! and the node goes on with what it has: files are replaced one after the other, and a key that is not the certificate's is
//! usual for a moment.
//!
//! Authorities are exchanged the same way, with the certificates of the old and of the new one in one file meanwhile.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use client::{Role, tls::Material};
use tokio::{sync::mpsc, task, time};
use tracing::{info, warn};

use super::server::{Papers, StartError};

/// How long files stay as they are before they are read: whoever replaces them may not have come to the last.
const SETTLES_AFTER: Duration = Duration::from_millis(200);

/// What a node shows and trusts: its authorities' certificates, its own and its key, as PEM files.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What is known of the certificates in use, for whoever looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CertificateState {
    /// When the node's own ends, in seconds of Unix time.
    pub(crate) expires_unix_s: u64,
    /// When the first of the authorities ends that it trusts.
    pub(crate) ca_expires_unix_s: u64,
    /// How often others were taken into use.
    pub(crate) renewed: u64,
    /// How often what the files have could not be used.
    pub(crate) refused: u64,
    /// Whether that was so the last time.
    pub(crate) is_refused: bool,
}

/// By what it is seen that a file is another.
type Stamp = Option<(SystemTime, u64)>;

/// By what it is seen that any of them is.
pub(crate) type Stamps = [Stamp; 3];

impl CertificateFiles {
    /// Reads and checks them, for a node.
    pub(crate) fn load(&self) -> Result<Material, StartError> {
        let material = Material::load(&self.ca, &self.certificate, &self.key)?;
        match material.role() {
            Role::Node => Ok(material),
            role @ Role::Client(_) => {
                Err(StartError::Role { certificate: self.certificate.clone(), role: role.clone() })
            }
        }
    }

    /// How they are now. Taken before they are read, so that what changes meanwhile is seen the next time.
    pub(crate) fn stamps(&self) -> Stamps {
        [&self.ca, &self.certificate, &self.key].map(|path| stamp(path))
    }

    /// Reads them if they are not as they were, and once they stay as they are: half of a file of authorities may look like
    /// all of it. Returns how they were when they were read, and whether they are good.
    fn look(&self, known: Option<Stamps>) -> Option<(Stamps, Result<Material, StartError>)> {
        let mut stamps = self.stamps();
        if known == Some(stamps) {
            return None;
        }
        loop {
            thread::sleep(SETTLES_AFTER);
            let before = std::mem::replace(&mut stamps, self.stamps());
            if before != stamps {
                continue;
            }
            let loaded = self.load();
            if self.stamps() == stamps {
                return Some((stamps, loaded));
            }
        }
    }
}

/// A file that is replaced by renaming, or whose link is, has another time or another length.
fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

impl CertificateState {
    pub(crate) fn of(material: &Material) -> CertificateState {
        CertificateState {
            expires_unix_s: material.expires_unix_s(),
            ca_expires_unix_s: material.ca_expires_unix_s(),
            ..CertificateState::default()
        }
    }
}

/// What is in use when this begins.
pub(crate) struct InUse {
    pub(crate) files: CertificateFiles,
    /// How they were when they were read.
    pub(crate) stamps: Stamps,
    /// See [`Material::stale_unix_s`].
    pub(crate) stale_unix_s: u64,
}

/// Looks at the files every so often, and at once when it is asked to.
pub(crate) async fn follow(
    in_use: InUse,
    interval: Duration,
    mut asked: mpsc::UnboundedReceiver<()>,
    papers: Papers,
    state: Rc<Cell<CertificateState>>,
) {
    let InUse { files, stamps, mut stale_unix_s } = in_use;
    let mut read = Some(stamps);
    loop {
        tokio::select! {
            // Nobody can ask any more if there is none.
            Some(()) = asked.recv() => read = None,
            () = time::sleep(interval) => {}
        }
        let now_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if now_unix_s >= stale_unix_s {
            read = None;
        }
        let (looking, known) = (files.clone(), read);
        let looked = task::spawn_blocking(move || looking.look(known)).await;
        let Some((stamps, loaded)) = looked.expect("reading files does not panic") else { continue };
        let mut now = state.get();
        match loaded {
            Ok(material) => {
                papers.renew(&material);
                (read, stale_unix_s) = (Some(stamps), material.stale_unix_s());
                now = CertificateState {
                    renewed: now.renewed + 1,
                    refused: now.refused,
                    ..CertificateState::of(&material)
                };
                info!(
                    expires_unix_s = now.expires_unix_s,
                    ca_expires_unix_s = now.ca_expires_unix_s,
                    "new connections use the certificates that were read anew"
                );
            }
            Err(error) => {
                // It may be good later as it is: a certificate that is not valid yet.
                read = None;
                now.refused += 1;
                now.is_refused = true;
                warn!(%error, "the certificates cannot be used, and the node goes on with those that it has");
            }
        }
        state.set(now);
    }
}
