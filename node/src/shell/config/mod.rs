//! The configuration of one node: a TOML file, with overrides from the environment.
//!
//! `[cluster]` has to be the same on all nodes; `[node]` is this one's own, and `[limits]` may differ. Every key of
//! `[node]`, `[cluster]` and `[limits]` that is a single value can be overridden by an environment variable, such as
//! `QUORATE_NODE_LISTEN` for `node.listen`. All faults are reported at once, those of the files that it names among
//! them, and an unknown key is one. Variables of no section are left alone: others use the prefix too, such as
//! Kubernetes for a service that is called `quorate`.

mod files;
mod limits;
mod read;
mod reference;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use client::wire::NewKeyspace;
use read::Section;
use ring::{
    ConflictPolicy, DatacenterId, Durability, NodeId, Partitions, REPLICAS_MAX, RackId, name_is_valid,
};
use thiserror::Error;
use toml::{Table, Value};

pub use limits::Limits;
pub use read::{ConfigFault, ConfigFaults, FaultReason, KeyHelp, ValueKind};
pub use reference::reference;

use crate::{Formation, Founder};

/// What environment variables that override settings begin with.
const ENVIRONMENT_PREFIX: &str = "QUORATE_";

/// A node's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node.
    pub id: NodeId,
    /// Where it listens for QUIC.
    pub listen: SocketAddr,
    /// Where it listens for HTTP: metrics and health, in plain text.
    pub http: SocketAddr,
    /// Its storage directory.
    pub data: PathBuf,
    /// The certificate authority's certificate, the node's own and its key, as PEM files.
    pub ca: PathBuf,
    /// See [`Config::ca`].
    pub certificate: PathBuf,
    /// See [`Config::ca`].
    pub key: PathBuf,
    /// Where the process writes its id, if anywhere.
    pub pid_file: Option<PathBuf>,
    /// Whether a damaged store is salvaged at the start.
    pub salvage: bool,
    /// Largest UDP payload that is sent.
    pub mtu: u16,
    /// The cluster's secret.
    pub secret: [u8; 32],
    /// The cluster as it is founded.
    pub formation: Formation,
    /// Everything that has a limit.
    pub limits: Limits,
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is no TOML.
    #[error("{}: {}", path.display(), .error.to_string().trim_end())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// It says what makes no sense.
    #[error("{}: {} {}\n{faults}", path.display(), faults.0.len(), if faults.0.len() == 1 { "fault" } else { "faults" })]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: ConfigFaults,
    },
}

impl Config {
    /// Reads a file, with overrides from the environment.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, at once.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        Config::load_with(path, variables())
    }

    /// Where the node of a configuration listens for HTTP, whatever is wrong with the rest of it: a certificate that has
    /// expired since is no reason not to ask the node how it is.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or does not say so.
    pub fn http_listener(path: &Path) -> Result<SocketAddr, ConfigError> {
        let node = read_table(path)?.remove("node").and_then(|section| match section {
            Value::Table(section) => Some(section),
            _ => None,
        });
        let mut sections = BTreeMap::from([("node", node.unwrap_or_default())]);
        overlay(&mut sections, variables());
        let node = sections.remove("node").unwrap_or_default();
        let (mut faults, mut help) = (Vec::new(), Vec::new());
        // Faulty text has its default, at which another node may answer.
        match read_http(&mut Section::new("node", node, &mut faults, &mut help)) {
            Some(listener) if faults.is_empty() => Ok(listener),
            Some(_) | None => {
                Err(ConfigError::Faults { path: path.to_owned(), faults: ConfigFaults(faults) })
            }
        }
    }

    /// Reads a file, with overrides from these variables.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it, at once.
    pub fn load_with(
        path: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let table = read_table(path)?;
        let directory = path.parent().unwrap_or(Path::new("")).to_owned();
        let mut help = Vec::new();
        Config::from_table(table, &directory, environment, &mut help)
            .map_err(|faults| ConfigError::Faults { path: path.to_owned(), faults: ConfigFaults(faults) })
    }

    /// Every key that a configuration may have, with its default and its meaning.
    #[must_use]
    pub fn help() -> Vec<KeyHelp> {
        let mut help = Vec::new();
        // One of everything that there may be several of, to be described; that nothing is said of it is a fault.
        let one = |key: &str| (key.to_owned(), Value::Array(vec![Value::Table(Table::new())]));
        let cluster = Table::from_iter(["founders", "keyspaces"].map(one));
        let table = Table::from_iter([("cluster".to_owned(), Value::Table(cluster))]);
        let described = Config::from_table(table, Path::new(""), [], &mut help);
        debug_assert!(described.is_err(), "such a configuration says too little");
        help
    }

    fn from_table(
        mut table: Table,
        directory: &Path,
        environment: impl IntoIterator<Item = (String, String)>,
        help: &mut Vec<KeyHelp>,
    ) -> Result<Config, Vec<ConfigFault>> {
        let mut faults = Vec::new();
        let mut sections: BTreeMap<&str, Table> = BTreeMap::new();
        let mut no_sections = Vec::new();
        for name in ["node", "cluster", "limits"] {
            let section = match table.remove(name) {
                None => Table::new(),
                Some(Value::Table(section)) => section,
                Some(other) => {
                    no_sections.push(format!("{name}."));
                    faults.push(ConfigFault {
                        key: name.to_owned(),
                        value: Some(shortened(&other)),
                        reason: FaultReason::Kind("a table"),
                    });
                    Table::new()
                }
            };
            sections.insert(name, section);
        }
        for (key, value) in table {
            faults.push(ConfigFault { key, value: Some(shortened(&value)), reason: FaultReason::Unknown });
        }
        overlay(&mut sections, environment);
        let mut take = |name: &str| sections.remove(name).unwrap_or_default();
        let (node_table, cluster_table, limits_table) = (take("node"), take("cluster"), take("limits"));
        let node = read_node(Section::new("node", node_table, &mut faults, help), directory);
        let cluster = read_cluster(Section::new("cluster", cluster_table, &mut faults, help), directory);
        let mut limits = Limits::read(Section::new("limits", limits_table, &mut faults, help));
        let given =
            |help: &KeyHelp| Some((help.key.strip_prefix("limits.")?.to_owned(), help.given.clone()?));
        limits.given = help.iter().filter_map(given).collect();
        // What is no section at all was reported; that nothing is in it says no more.
        let is_missing = |fault: &ConfigFault| matches!(fault.reason, FaultReason::Missing(_));
        faults.retain(|fault| {
            !(is_missing(fault) && no_sections.iter().any(|name| fault.key.starts_with(name)))
        });
        if let (Some(id), Some(founders)) = (node.id, &cluster.founders)
            && !founders.is_empty()
            && !founders.contains(&id)
        {
            let names: Vec<String> = founders.iter().map(|id| id.0.to_string()).collect();
            let reason = format!("must be one of the founders ({})", names.join(", "));
            let value = Some(id.0.to_string());
            faults.push(ConfigFault { key: "node.id".to_owned(), value, reason: FaultReason::Unfit(reason) });
        }
        let config = node.complete(cluster, limits);
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            Some(_) | None => {
                assert!(!faults.is_empty(), "what is missing was noted as a fault");
                Err(faults)
            }
        }
    }

    /// A digest of what has to be the same on all nodes, whoever founded the cluster. It gives nothing of the secret away.
    pub(crate) fn cluster_digest(&self) -> u64 {
        let hash = blake3::derive_key(
            "quorate 2026-11 settings that all nodes of a cluster have to share",
            &self.secret,
        );
        u64::from_be_bytes(hash[..8].try_into().expect("eight of 32 bytes"))
    }

    /// The other founders, to be greeted before a document is known.
    #[must_use]
    pub fn seeds(&self) -> Vec<NodeId> {
        self.formation.founders.keys().copied().filter(|node| *node != self.id).collect()
    }
}

/// A value as it is shown in a fault: not all of a long one.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// Puts what the environment says over what the file says. A key that a section does not know is a fault of the
/// section, wherever it was said.
fn overlay(sections: &mut BTreeMap<&str, Table>, environment: impl IntoIterator<Item = (String, String)>) {
    for (variable, text) in environment {
        let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let rest = rest.to_ascii_lowercase();
        let found = rest.split_once('_').and_then(|(section, key)| Some((sections.get_mut(section)?, key)));
        let Some((section, key)) = found else { continue };
        let value = text.parse::<i64>().map(Value::Integer);
        let value = value.or_else(|_| text.parse::<bool>().map(Value::Boolean));
        section.insert(key.to_owned(), value.unwrap_or(Value::String(text)));
    }
}

/// What `[cluster]` says, as far as it could be read.
struct ClusterSection {
    secret: Option<[u8; 32]>,
    /// The founders' ids, if all of them could be read.
    founders: Option<BTreeSet<NodeId>>,
    formation: Option<Formation>,
}

/// What `[node]` says, as far as it could be read.
struct NodeSection {
    id: Option<NodeId>,
    listen: Option<SocketAddr>,
    http: Option<SocketAddr>,
    data: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    salvage: bool,
    mtu: u16,
}

impl NodeSection {
    fn complete(self, cluster: ClusterSection, limits: Limits) -> Option<Config> {
        let (secret, formation) = (cluster.secret?, cluster.formation?);
        Some(Config {
            id: self.id?,
            listen: self.listen?,
            http: self.http?,
            data: self.data?,
            ca: self.ca?,
            certificate: self.certificate?,
            key: self.key?,
            pid_file: self.pid_file,
            salvage: self.salvage,
            mtu: self.mtu,
            secret,
            formation,
            limits,
        })
    }
}

fn read_table(path: &Path) -> Result<Table, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), error: Box::new(error) })
}

/// The environment. A variable that is not UTF-8 overrides nothing.
fn variables() -> impl Iterator<Item = (String, String)> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    std::env::vars_os().filter_map(text)
}

fn read_http(section: &mut Section<'_>) -> Option<SocketAddr> {
    let http = section.text(
        "http",
        "127.0.0.1:7500",
        "address and port for /metrics, /healthz and /readyz, in plain text",
    );
    address(section, "http", &http)
}

fn read_node(mut section: Section<'_>, directory: &Path) -> NodeSection {
    let path = |text: Option<String>| text.map(|text| directory.join(text));
    let id = section.required_number(
        "id",
        (1, u64::from(u32::MAX)),
        "the node's number, for as long as the cluster lives; never that of another node",
    );
    let listen =
        section.text("listen", "127.0.0.1:7400", "address and port for QUIC, clients and nodes alike");
    let listen = address(&mut section, "listen", &listen);
    let http = read_http(&mut section);
    let data = path(section.required_text("data", "the storage directory, relative to this file"));
    let ca = path(section.required_text("ca", "the certificate authority's certificate, a PEM file"));
    let certificate = path(section.required_text("certificate", "the node's certificate, a PEM file"));
    let key = path(section.required_text("key", "the certificate's key, a PEM file"));
    let pid_file =
        path(section.optional_text("pid_file", "where the process writes its id, relative to this file"));
    let salvage = section.switch(
        "salvage",
        true,
        "whether a store that is found damaged is replaced by a new one with whatever can still be read of it",
    );
    let mtu = section.number(
        "mtu",
        1452,
        (1200, 6500),
        "the largest UDP payload in bytes; more costs less for large values, where the network carries it",
    );
    files::check_material(&mut section, ca.as_deref(), certificate.as_deref(), key.as_deref());
    if let Some(data) = &data {
        files::check_directory(&mut section, "data", data);
    }
    if let Some(pid_file) = &pid_file {
        files::check_place(&mut section, "pid_file", pid_file);
    }
    section.finish();
    NodeSection {
        id: id.and_then(|id| u32::try_from(id).ok()).map(NodeId),
        listen,
        http,
        data,
        ca,
        certificate,
        key,
        pid_file,
        salvage,
        mtu: u16::try_from(mtu).unwrap_or(1452),
    }
}

fn address(section: &mut Section<'_>, key: &str, text: &str) -> Option<SocketAddr> {
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            section.fault(key, Some(format!("{text:?}")), FaultReason::Kind("an IP address and a port"));
            None
        }
    }
}

fn read_cluster(mut section: Section<'_>, directory: &Path) -> ClusterSection {
    let secret = section.required_text(
        "secret",
        "a file with 64 hexadecimal digits, the same on all nodes, relative to this file",
    );
    let secret = secret.and_then(|file| read_secret(&mut section, &directory.join(file)));
    let partitions = section.number(
        "partitions",
        u64::from(Partitions::DEFAULT.count()),
        (u64::from(Partitions::CLUSTER_MIN.count()), u64::from(Partitions::MAX.count())),
        "how many parts the token circle is cut into, a power of two, fixed when the cluster is born; more \
         balance more nodes and cost each of them memory",
    );
    let count = Partitions::new(u32::try_from(partitions).unwrap_or(u32::MAX));
    if let Err(bad) = &count {
        // It names the number.
        section.fault("partitions", None, FaultReason::Unfit(bad.to_string()));
    }
    let founder_tables =
        section.tables("founders", "the nodes that found the cluster; the same list on all of them");
    if founder_tables.is_empty() && !section.is_at_fault("founders") {
        section.fault("founders", None, FaultReason::Missing("the nodes that found the cluster"));
    }
    let mut places = Places::default();
    let mut founders: BTreeMap<NodeId, Founder> = BTreeMap::new();
    let mut ids = Some(BTreeSet::new());
    for (index, table) in founder_tables.into_iter().enumerate() {
        let name = format!("founders[{index}]");
        let (id, founder) = read_founder(section.nested(&name, table), &mut places);
        let Some(id) = id else {
            ids = None;
            continue;
        };
        if let Some(ids) = &mut ids
            && !ids.insert(id)
        {
            let reason = FaultReason::Unfit("another founder has the same id".to_owned());
            section.fault(&format!("{name}.id"), Some(id.0.to_string()), reason);
        }
        let Some(founder) = founder else { continue };
        if founders.values().any(|other| other.address == founder.address) {
            let reason = FaultReason::Unfit("another founder has the same address".to_owned());
            section.fault(&format!("{name}.address"), Some(format!("{:?}", founder.address)), reason);
        }
        founders.insert(id, founder);
    }
    if section.is_at_fault("founders") {
        ids = None;
    }
    let keyspace_tables = section.tables("keyspaces", "the keyspaces that exist from the start");
    let mut keyspaces: Vec<NewKeyspace> = Vec::new();
    for (index, table) in keyspace_tables.into_iter().enumerate() {
        let name = format!("keyspaces[{index}]");
        let Some(keyspace) = read_keyspace(section.nested(&name, table), &places) else { continue };
        if keyspaces.iter().any(|other| other.name == keyspace.name) {
            let reason = FaultReason::Unfit("another keyspace has the same name".to_owned());
            section.fault(&format!("{name}.name"), Some(format!("{:?}", keyspace.name)), reason);
        }
        keyspaces.push(keyspace);
    }
    section.finish();
    let datacenters = places.datacenters;
    let formation = count.ok().map(|partitions| Formation { founders, datacenters, partitions, keyspaces });
    ClusterSection { secret, founders: ids, formation }
}

fn read_secret(section: &mut Section<'_>, path: &Path) -> Option<[u8; 32]> {
    let unfit = |reason: String| FaultReason::Unfit(reason);
    let shown = Some(path.display().to_string());
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            section.fault("secret", shown, unfit(format!("cannot be read: {error}")));
            return None;
        }
    };
    let secret = decode_hex(text.trim());
    if secret.is_none() {
        section.fault("secret", shown, FaultReason::Kind("a file with 64 hexadecimal digits"));
    }
    secret
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

/// Datacenters and their racks, numbered in the order in which the founders name them.
#[derive(Default)]
struct Places {
    datacenters: Vec<(String, Vec<String>)>,
}

impl Places {
    fn number(names: impl Iterator<Item = String>, name: &str) -> Result<u16, usize> {
        let mut count = 0;
        for (index, known) in names.enumerate() {
            if known == name {
                return Ok(u16::try_from(index).expect("as many founders name far fewer places"));
            }
            count = index + 1;
        }
        Err(count)
    }

    fn place(&mut self, datacenter: &str, rack: &str) -> (DatacenterId, RackId) {
        let names = self.datacenters.iter().map(|(name, _)| name.clone());
        let number = Places::number(names, datacenter).unwrap_or_else(|count| {
            self.datacenters.push((datacenter.to_owned(), Vec::new()));
            u16::try_from(count).expect("as many founders name far fewer places")
        });
        let racks = &mut self.datacenters[usize::from(number)].1;
        let rack = Places::number(racks.iter().cloned(), rack).unwrap_or_else(|count| {
            racks.push(rack.to_owned());
            u16::try_from(count).expect("as many founders name far fewer places")
        });
        (DatacenterId(number), RackId(rack))
    }
}

/// A founder and its id, each as far as it could be read.
fn read_founder(mut section: Section<'_>, places: &mut Places) -> (Option<NodeId>, Option<Founder>) {
    let id = section.required_number("id", (1, u64::from(u32::MAX)), "the node's number");
    let address = section.required_text("address", "where the others and clients reach it, as host:port");
    if let Some(address) = address.as_deref()
        && address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
    {
        section.fault(
            "address",
            Some(format!("{address:?}")),
            FaultReason::Kind("a host and a port, as host:port"),
        );
    }
    let datacenter = section.text("datacenter", "local", "the name of its datacenter");
    let rack = section.text("rack", "default", "the name of its rack; copies lie in different racks");
    for (key, name) in [("datacenter", &datacenter), ("rack", &rack)] {
        if !name_is_valid(name) {
            let expected = FaultReason::Kind("up to 64 letters, digits, `-`, `_` or `.`");
            section.fault(key, Some(format!("{name:?}")), expected);
        }
    }
    let weight = section.number(
        "weight",
        100,
        (1, 1_000_000),
        "its share of the copies, relative to the others'; 100 by convention",
    );
    section.finish();
    let (datacenter, rack) = places.place(&datacenter, &rack);
    let weight = u32::try_from(weight).unwrap_or(100);
    let id = id.and_then(|id| u32::try_from(id).ok()).map(NodeId);
    (id, address.map(|address| Founder { address, datacenter, rack, weight }))
}

fn read_keyspace(mut section: Section<'_>, places: &Places) -> Option<NewKeyspace> {
    let name = section.required_text("name", "its name");
    if let Some(name) = name.as_deref().filter(|name| !name_is_valid(name)) {
        section.fault(
            "name",
            Some(format!("{name:?}")),
            FaultReason::Kind("up to 64 letters, digits, `-`, `_` or `.`"),
        );
    }
    let copies = (1, u64::try_from(REPLICAS_MAX).unwrap_or(1));
    let replication = section.numbers(
        "replication",
        copies,
        "copies in each datacenter, by name; if empty, 3 in each, or as many as it has nodes",
    );
    let known: BTreeSet<&str> = places.datacenters.iter().map(|(name, _)| name.as_str()).collect();
    for (datacenter, _) in replication.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        let reason = FaultReason::Unfit("no founder is in that datacenter".to_owned());
        section.fault(&format!("replication.{datacenter}"), None, reason);
    }
    let conflict = section.choice(
        "conflict",
        "siblings",
        &[("siblings", ConflictPolicy::Siblings), ("lww", ConflictPolicy::LastWriteWins)],
        ("siblings or lww", "what happens to concurrent writes: siblings keeps them all, lww the last"),
    );
    let durability = section.choice(
        "durability",
        "disk",
        &[("disk", Durability::Disk), ("memory", Durability::Memory)],
        ("disk or memory", "when a replica acknowledges a write that does not say"),
    );
    section.finish();
    let replication =
        replication.into_iter().filter_map(|(name, count)| Some((name, u8::try_from(count).ok()?))).collect();
    Some(NewKeyspace { name: name?, replication, conflict, durability })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_section_override_it_and_others_are_left_alone() {
        let mut sections = BTreeMap::from([("node", Table::new()), ("limits", Table::new())]);
        let variables = [
            ("QUORATE_NODE_HTTP", "127.0.0.1:1"),
            ("QUORATE_LIMITS_CLIENT_CONNECTIONS_MAX", "7"),
            ("QUORATE_SERVICE_HOST", "10.0.0.1"),
            ("QUORATE_PORT", "tcp://10.0.0.1:7400"),
            ("QUORATE_PORT_7400_UDP_ADDR", "10.0.0.1"),
            ("QUORATE_LOG", "debug"),
            ("QUORATE_NODE", "1"),
            ("PATH", "/bin"),
        ];
        overlay(&mut sections, variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let expected = [
            ("limits", Table::from_iter([("client_connections_max".to_owned(), Value::Integer(7))])),
            ("node", Table::from_iter([("http".to_owned(), Value::String("127.0.0.1:1".to_owned()))])),
        ];
        assert_eq!(sections, BTreeMap::from(expected));
    }

    /// The faults of this text, as they are shown.
    fn shown(text: &str) -> Vec<String> {
        let table: Table = toml::from_str(text).unwrap();
        let faults = Config::from_table(table, Path::new("/nowhere"), [], &mut Vec::new()).unwrap_err();
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_read_as_sentences_and_stand_there_once() {
        let faults = shown(
            "ca = 'ca.pem'\n[node]\nid = 7\ndata = 5\nca = 'ca.pem'\n[cluster]\nsecret = 'secret'\n\
             partitions = 100\n[[cluster.founders]]\nid = 1\naddress = 'a:1'\n[[cluster.founders]]\nid = 2\n\
             address = 'a:1'\n[limits]\nprobe_interval_ms = 0\n",
        );
        for expected in [
            "ca: unknown key",
            "node.data: must be a text that is not empty, not 5",
            "node.ca: /nowhere/ca.pem: cannot be read: No such file or directory (os error 2)",
            "node.id: 7: must be one of the founders (1, 2)",
            "cluster.secret: /nowhere/secret: cannot be read: No such file or directory (os error 2)",
            "cluster.partitions: 100 partitions: must be a power of two, at most 65536",
            "cluster.founders[1].address: \"a:1\": another founder has the same address",
        ] {
            assert!(faults.iter().any(|fault| fault == expected), "{expected} is not in {faults:#?}");
        }
        let of_data = faults.iter().filter(|fault| fault.starts_with("node.data"));
        assert_eq!(of_data.count(), 1, "{faults:#?}");
    }

    #[test]
    fn what_is_of_a_wrong_kind_is_not_missing_as_well() {
        let faults = shown("node = 5\n[cluster]\nfounders = 5\n");
        let expected = [
            "node: must be a table, not 5",
            "cluster.secret: must be given: a file with 64 hexadecimal digits, the same on all nodes, relative to \
             this file",
            "cluster.founders: must be a list of tables, not 5",
        ];
        assert_eq!(faults, expected);
    }

    #[test]
    fn a_variable_of_a_section_with_an_unknown_key_is_a_fault() {
        let variable = ("QUORATE_NODE_LISTENS".to_owned(), "127.0.0.1:1".to_owned());
        let faults =
            Config::from_table(Table::new(), Path::new(""), [variable], &mut Vec::new()).unwrap_err();
        let is_reported = |fault: &ConfigFault| fault.key == "node.listens";
        assert!(faults.iter().any(is_reported), "{faults:?}");
    }
}
