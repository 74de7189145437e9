//! What `quorated dev` puts into its directory: certificates, a secret, one folder a node and the client's
//! configuration. Made once; a later start finds it and goes on with the same cluster.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use client::{
    Access, Role,
    certificates::{self, Authority, CertificateError},
};
use ring::name_is_valid;
use thiserror::Error;

use crate::shell::disk;

/// What says that a directory was made here, and what for. Nothing is ever removed from one without it.
const MARKER: &str = "quorate-dev.toml";
/// A node's store, in its folder.
const DATA: &str = "data";
/// More nodes than a machine is good for.
pub const NODES_MAX: u32 = 32;

/// What a development cluster looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevOptions {
    /// How many nodes.
    pub nodes: u32,
    /// Where everything is kept.
    pub directory: PathBuf,
    /// Node i listens on this port + i - 1 for QUIC.
    pub base_port: u16,
    /// And on this port + i - 1 for HTTP.
    pub http_base_port: u16,
    /// Datacenters, to which the nodes are dealt in turn.
    pub datacenters: Vec<String>,
    /// Whether to begin anew.
    pub fresh: bool,
}

/// Why a development cluster's directory cannot be used.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// An option makes no sense.
    #[error("{0}")]
    Options(String),
    /// Something else is there.
    #[error("{}: not empty, and not made by `quorated dev`: name another directory with --dir", .0.display())]
    Foreign(PathBuf),
    /// It is in use, and neither to be used twice nor to be removed.
    #[error("{}: a cluster is running there already: stop it first, or name another directory with --dir", .0.display())]
    Running(PathBuf),
    /// The cluster that is there looks different.
    #[error(
        "{}: holds a cluster with other options ({found}): start it with those, or begin anew with --fresh, which \
         removes its data", directory.display()
    )]
    Different {
        /// The directory.
        directory: PathBuf,
        /// What was found.
        found: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A certificate cannot be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The machine has no random numbers.
    #[error("the machine gives no random numbers: {0}")]
    Random(String),
}

/// What is in the directory.
enum Found {
    Nothing,
    /// A cluster like this one.
    Same,
    /// A cluster that is to be begun anew.
    ToBegin,
}

impl DevOptions {
    /// The folder of a node, numbered from 1.
    #[must_use]
    pub fn node_directory(&self, node: u32) -> PathBuf {
        self.directory.join(format!("node-{node}"))
    }

    /// The configuration of a node.
    #[must_use]
    pub fn node_config(&self, node: u32) -> PathBuf {
        self.node_directory(node).join("node.toml")
    }

    /// Where a node that is a process writes its id.
    #[must_use]
    pub fn pid_file(&self, node: u32) -> PathBuf {
        self.node_directory(node).join("pid")
    }

    /// The client's configuration.
    #[must_use]
    pub fn client_config(&self) -> PathBuf {
        self.directory.join("client.toml")
    }

    /// The port of a node for QUIC.
    #[must_use]
    pub fn port(&self, node: u32) -> u16 {
        offset(self.base_port, node)
    }

    /// The port of a node for HTTP.
    #[must_use]
    pub fn http_port(&self, node: u32) -> u16 {
        offset(self.http_base_port, node)
    }

    fn check(&self) -> Result<(), LayoutError> {
        let bad = |text: String| Err(LayoutError::Options(text));
        if self.nodes == 0 || self.nodes > NODES_MAX {
            return bad(format!("--nodes {}: from 1 to {NODES_MAX}", self.nodes));
        }
        for (flag, base) in [("--base-port", self.base_port), ("--http-base-port", self.http_base_port)] {
            if base == 0 || u32::from(base) + self.nodes > 65_536 {
                return bad(format!(
                    "{flag} {base}: {} ports from there on must be from 1 to 65535",
                    self.nodes
                ));
            }
        }
        if let Some(name) = self.datacenters.iter().find(|name| !name_is_valid(name)) {
            return bad(format!("--datacenters: {name:?} is no name: letters, digits, `-`, `_` and `.`"));
        }
        let names: std::collections::BTreeSet<&String> = self.datacenters.iter().collect();
        if names.len() != self.datacenters.len() || names.len() > self.nodes as usize {
            return bad("--datacenters: each name once, and at least one node for each".to_owned());
        }
        Ok(())
    }

    /// What the marker says of a cluster like this.
    fn described(&self) -> String {
        format!(
            "nodes = {}\nbase_port = {}\nhttp_base_port = {}\ndatacenters = {:?}\n",
            self.nodes, self.base_port, self.http_base_port, self.datacenters
        )
    }

    /// Looks whether the directory can be made, or used as it is. Touches nothing.
    ///
    /// # Errors
    ///
    /// [`LayoutError`].
    pub fn inspect(&self) -> Result<(), LayoutError> {
        self.found().map(|_| ())
    }

    fn found(&self) -> Result<Found, LayoutError> {
        self.check()?;
        let marker = self.directory.join(MARKER);
        let is_empty = match fs::read_dir(&self.directory) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(LayoutError::Io { path: self.directory.clone(), error }),
        };
        if is_empty {
            return Ok(Found::Nothing);
        }
        if !marker.exists() {
            return Err(LayoutError::Foreign(self.directory.clone()));
        }
        self.check_stopped()?;
        if self.fresh {
            return Ok(Found::ToBegin);
        }
        let found = at(&marker, fs::read_to_string(&marker))?;
        if found != self.described() {
            let found = found.trim_end().replace('\n', ", ");
            return Err(LayoutError::Different { directory: self.directory.clone(), found });
        }
        Ok(Found::Same)
    }

    /// Makes the directory, or finds that it is there already. Returns whether it was made.
    ///
    /// # Errors
    ///
    /// [`LayoutError`]; of what was to be made nothing stays.
    pub fn prepare(&self) -> Result<bool, LayoutError> {
        match self.found()? {
            Found::Same => return Ok(false),
            Found::ToBegin => self.remove()?,
            Found::Nothing => {}
        }
        let marker = self.directory.join(MARKER);
        // Last: a directory that was made only half is foreign, and nothing is lost by removing it by hand.
        let made = self.make().and_then(|()| at(&marker, fs::write(&marker, self.described())));
        if made.is_err() {
            // Nobody's but ours: it was empty. What went wrong says more than what goes wrong now.
            drop(self.remove());
        }
        made.map(|()| true)
    }

    /// Removes the directory and everything in it.
    pub(super) fn remove(&self) -> Result<(), LayoutError> {
        at(&self.directory, fs::remove_dir_all(&self.directory))
    }

    /// That no node that was made here runs, however many there are.
    fn check_stopped(&self) -> Result<(), LayoutError> {
        for entry in at(&self.directory, fs::read_dir(&self.directory))? {
            let store = at(&self.directory, entry)?.path().join(DATA);
            // Beside the folders of nodes there are files, in which nothing can be.
            if store.is_dir() && at(&store, disk::is_open(&store))? {
                return Err(LayoutError::Running(self.directory.clone()));
            }
        }
        Ok(())
    }

    fn make(&self) -> Result<(), LayoutError> {
        at(&self.directory, fs::create_dir_all(&self.directory))?;
        let authority = Authority::create(&self.directory)?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| LayoutError::Random(error.to_string()))?;
        let secret_path = self.directory.join("cluster.secret");
        write_private(&secret_path, &format!("{}\n", hex(&secret)))?;
        let issue = |role: Role, name: &str| {
            let (name, hosts, days) = (name.to_owned(), Vec::new(), certificates::DAYS_DEFAULT);
            authority.issue(&certificates::Request { role, name, hosts, days })
        };
        issue(Role::client(Access::Admin), "client")?.write(&self.directory, "client")?;
        for node in 1..=self.nodes {
            let directory = self.node_directory(node);
            at(&directory, fs::create_dir_all(&directory))?;
            issue(Role::Node, &format!("node-{node}"))?.write(&directory, "node")?;
            let path = self.node_config(node);
            at(&path, fs::write(&path, self.node_toml(node)))?;
        }
        let path = self.client_config();
        at(&path, fs::write(&path, self.client_toml()))
    }

    fn datacenter(&self, node: u32) -> &str {
        let index = (node as usize - 1) % self.datacenters.len();
        &self.datacenters[index]
    }

    fn node_toml(&self, node: u32) -> String {
        let mut out = format!(
            "# Made by `quorated dev`. Paths are relative to this file.\n\n[node]\nid = {node}\n\
             listen = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\ndata = \"{DATA}\"\nca = \"../ca.pem\"\n\
             certificate = \"node.pem\"\nkey = \"node-key.pem\"\npid_file = \"pid\"\n\n\
             # The same on all nodes.\n[cluster]\nsecret = \"../cluster.secret\"\n",
            self.port(node),
            self.http_port(node)
        );
        for founder in 1..=self.nodes {
            // Each node is a rack of its own: no two copies of a key lie on one.
            let _infallible = write!(
                out,
                "\n[[cluster.founders]]\nid = {founder}\naddress = \"127.0.0.1:{}\"\ndatacenter = \"{}\"\n\
                 rack = \"rack-{founder}\"\n",
                self.port(founder),
                self.datacenter(founder)
            );
        }
        out.push_str(
            "\n[[cluster.keyspaces]]\nname = \"default\"\nconflict = \"siblings\"\ndurability = \"disk\"\n",
        );
        out
    }

    fn client_toml(&self) -> String {
        let seeds: Vec<String> =
            (1..=self.nodes).map(|node| format!("\"127.0.0.1:{}\"", self.port(node))).collect();
        format!(
            "# Made by `quorated dev`. Paths are relative to this file.\nseeds = [{}]\nca = \"ca.pem\"\n\
             certificate = \"client.pem\"\nkey = \"client-key.pem\"\nkeyspace = \"default\"\n",
            seeds.join(", ")
        )
    }
}

fn offset(base: u16, node: u32) -> u16 {
    u16::try_from(u32::from(base) + node - 1).expect("checked with the options")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, LayoutError> {
    result.map_err(|error| LayoutError::Io { path: path.to_owned(), error })
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> Result<(), LayoutError> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut options = fs::OpenOptions::new();
    let mut file = at(path, options.write(true).create_new(true).mode(0o600).open(path))?;
    at(path, file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::config::Config;

    fn options(directory: &Path) -> DevOptions {
        DevOptions {
            nodes: 3,
            directory: directory.join("dev"),
            base_port: 7400,
            http_base_port: 7500,
            datacenters: vec!["local".to_owned()],
            fresh: false,
        }
    }

    #[test]
    fn what_is_made_is_a_configuration_of_every_node_and_is_found_again() {
        let directory = crate::shell::scratch::Scratch::new();
        let options = options(directory.path());
        options.prepare().unwrap();
        options.prepare().unwrap();
        for node in 1..=3 {
            let config = Config::load_with(&options.node_config(node), []).unwrap();
            assert_eq!(config.id.0, node);
            assert_eq!(config.listen.port(), options.port(node));
            assert_eq!(config.formation.founders.len(), 3);
            assert_eq!(config.formation.keyspaces[0].name, "default");
        }
        let other = DevOptions { nodes: 5, ..options.clone() };
        assert!(matches!(other.prepare(), Err(LayoutError::Different { .. })));
        DevOptions { fresh: true, ..other }.prepare().unwrap();
        assert!(Config::load_with(&options.node_config(5), []).is_ok());
    }

    #[test]
    fn a_cluster_that_runs_is_not_removed() {
        let directory = crate::shell::scratch::Scratch::new();
        let options = DevOptions { fresh: true, ..options(directory.path()) };
        options.prepare().unwrap();
        let store = options.node_directory(2).join(DATA);
        let held = disk::DiskStore::open(&store, &disk::DiskOptions::new(ring::NodeId(2))).unwrap();
        assert!(matches!(options.prepare(), Err(LayoutError::Running(_))));
        let again = DevOptions { fresh: false, ..options.clone() };
        assert!(matches!(again.prepare(), Err(LayoutError::Running(_))));
        assert!(store.exists());
        drop(held);
        options.prepare().unwrap();
        assert!(!store.exists());
    }

    #[test]
    fn what_is_made_only_half_is_removed() {
        let scratch = crate::shell::scratch::Scratch::new();
        // The longest path that Linux takes has 4095 bytes: `/client-key.pem` fits, `/node-1/node-key.pem` does not.
        let mut directory = scratch.path().to_owned();
        while directory.as_os_str().len() < 3900 {
            directory.push("x".repeat(100));
        }
        directory.push("y".repeat(4078 - directory.as_os_str().len() - 1));
        let options = DevOptions { directory: directory.clone(), ..options(scratch.path()) };
        let refused = options.prepare().unwrap_err();
        assert!(refused.to_string().contains("node-key.pem"), "{refused}");
        assert!(!directory.exists() && directory.parent().unwrap().exists());
    }

    #[test]
    fn a_directory_of_something_else_is_never_touched() {
        let directory = crate::shell::scratch::Scratch::new();
        let options = DevOptions { fresh: true, ..options(directory.path()) };
        fs::create_dir_all(&options.directory).unwrap();
        fs::write(options.directory.join("precious"), "data").unwrap();
        assert!(matches!(options.prepare(), Err(LayoutError::Foreign(_))));
        assert!(options.directory.join("precious").exists());
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let directory = crate::shell::scratch::Scratch::new();
        let good = options(directory.path());
        for bad in [
            DevOptions { nodes: 0, ..good.clone() },
            DevOptions { nodes: NODES_MAX + 1, ..good.clone() },
            DevOptions { base_port: 65_534, ..good.clone() },
            DevOptions { datacenters: vec!["a b".to_owned()], ..good.clone() },
            DevOptions { datacenters: vec!["a".to_owned(), "a".to_owned()], ..good.clone() },
        ] {
            assert!(matches!(bad.prepare(), Err(LayoutError::Options(_))), "{bad:?}");
        }
        assert!(!good.directory.exists());
    }
}
