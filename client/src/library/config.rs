//! The client's configuration: `client.toml`.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use toml::{Table, Value};

/// How long [`Client::connect`](crate::Client::connect) goes on when nothing answers.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The keyspace that is meant when none is named.
const KEYSPACE_DEFAULT: &str = "default";

/// What a client needs to know before it can ask the cluster for the rest.
///
/// As a file, `client.toml`; paths in it are relative to the file:
///
/// ```toml
/// seeds = ["127.0.0.1:7401", "127.0.0.1:7402"]   # any members; one that answers is enough
/// ca = "ca.pem"                                  # the cluster's authority
/// certificate = "admin.pem"                      # this client's certificate, and
/// key = "admin-key.pem"                          # its key
/// keyspace = "default"                           # what is meant when a command names none (optional)
/// datacenter = "ams"                             # whose nodes to prefer (optional)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// Members of the cluster, as `host:port`. They are only asked for the cluster document, so not all need be named.
    pub seeds: Vec<String>,
    /// The certificate of the cluster's authority, in PEM.
    pub ca: PathBuf,
    /// This client's certificate, in PEM. Its role says what the client may do.
    pub certificate: PathBuf,
    /// The key of that certificate, in PEM.
    pub key: PathBuf,
    /// The keyspace that [`Client::default_keyspace`](crate::Client::default_keyspace) means.
    pub keyspace: String,
    /// The datacenter whose nodes are preferred, by its name; without it, those that answer fastest.
    pub datacenter: Option<String>,
    /// How long to go on when no seed answers: 5 seconds, unless changed. Not in the file.
    pub connect_timeout: Duration,
}

/// Why a configuration file cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not TOML.
    #[error("{}: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and what is wrong there.
        error: Box<toml::de::Error>,
    },
    /// What it says cannot be.
    #[error("{}: {}", path.display(), listed(faults))]
    Faults {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it.
        faults: Vec<ConfigFault>,
    },
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigFault {
    /// A key that has no meaning.
    #[error("`{key}` is unknown; known are seeds, ca, certificate, key, keyspace and datacenter")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key that has to be there.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value of another type.
    #[error("`{key}` must be {expected}, and is {found}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// No seeds at all.
    #[error("`seeds` is empty: name at least one member")]
    NoSeeds,
    /// A seed that is no address.
    #[error("`seeds` has `{seed}`, which is not of the form host:port")]
    BadSeed {
        /// The seed.
        seed: String,
    },
    /// A name that can be no keyspace's or datacenter's.
    #[error("`{key}` is `{value}`, which can be no name: letters, digits, `-`, `_` and `.`, at most 64")]
    BadName {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A file that cannot be read.
    #[error("`{key}` is {}, which cannot be read: {reason}", path.display())]
    UnreadableFile {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::ErrorKind,
    },
}

impl ClientConfig {
    /// A configuration with the defaults for all that can have one.
    #[must_use]
    pub fn new(
        seeds: impl IntoIterator<Item = String>,
        ca: impl Into<PathBuf>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> ClientConfig {
        ClientConfig {
            seeds: seeds.into_iter().collect(),
            ca: ca.into(),
            certificate: certificate.into(),
            key: key.into(),
            keyspace: KEYSPACE_DEFAULT.to_owned(),
            datacenter: None,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// If it cannot be read or understood; otherwise all of its faults at once, files that it names and that cannot
    /// be read among them.
    pub fn load(path: impl AsRef<Path>) -> Result<ClientConfig, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        let table = text
            .parse::<Table>()
            .map_err(|error| ConfigError::Syntax { path: path.to_owned(), error: Box::new(error) })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut reader = Reader { table, folder, faults: Vec::new() };
        let config = reader.config();
        if reader.faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Faults { path: path.to_owned(), faults: reader.faults })
        }
    }
}

/// Takes keys off a table and keeps what is wrong with them.
struct Reader<'a> {
    table: Table,
    folder: &'a Path,
    faults: Vec<ConfigFault>,
}

impl Reader<'_> {
    /// What the table says, with something in the place of whatever is at fault.
    fn config(&mut self) -> ClientConfig {
        let seeds = self.seeds();
        let [ca, certificate, key] = ["ca", "certificate", "key"].map(|key| self.file(key));
        let mut config = ClientConfig::new(seeds, ca, certificate, key);
        if let Some(keyspace) = self.name("keyspace") {
            config.keyspace = keyspace;
        }
        config.datacenter = self.name("datacenter");
        let unknown = std::mem::take(&mut self.table).into_iter();
        self.faults.extend(unknown.map(|(key, _)| ConfigFault::UnknownKey { key }));
        config
    }

    fn seeds(&mut self) -> Vec<String> {
        let expected = "a list of strings";
        let seeds = match self.table.remove("seeds") {
            None => {
                self.faults.push(ConfigFault::Missing { key: "seeds" });
                return Vec::new();
            }
            Some(Value::Array(seeds)) => seeds,
            Some(other) => {
                let found = other.type_str();
                self.faults.push(ConfigFault::WrongType { key: "seeds", expected, found });
                return Vec::new();
            }
        };
        if seeds.is_empty() {
            self.faults.push(ConfigFault::NoSeeds);
        }
        let mut read = Vec::new();
        for seed in seeds {
            match seed {
                Value::String(seed) if is_address(&seed) => read.push(seed),
                Value::String(seed) => self.faults.push(ConfigFault::BadSeed { seed }),
                other => {
                    let found = other.type_str();
                    self.faults.push(ConfigFault::WrongType { key: "seeds", expected, found });
                }
            }
        }
        read
    }

    fn string(&mut self, key: &'static str) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(value) => Some(value),
            other => {
                let found = other.type_str();
                self.faults.push(ConfigFault::WrongType { key, expected: "a string", found });
                None
            }
        }
    }

    fn file(&mut self, key: &'static str) -> PathBuf {
        if !self.table.contains_key(key) {
            self.faults.push(ConfigFault::Missing { key });
        }
        let Some(value) = self.string(key) else { return PathBuf::new() };
        let path = self.folder.join(value);
        if let Err(error) = File::open(&path) {
            let fault = ConfigFault::UnreadableFile { key, path: path.clone(), reason: error.kind() };
            self.faults.push(fault);
        }
        path
    }

    fn name(&mut self, key: &'static str) -> Option<String> {
        let value = self.string(key)?;
        if !ring::name_is_valid(&value) {
            self.faults.push(ConfigFault::BadName { key, value: value.clone() });
        }
        Some(value)
    }
}

/// Whether it has the form `host:port`. Whether the host exists is known when it is asked.
pub(crate) fn is_address(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let host_is_plain = !host.is_empty() && (is_bracketed || !host.contains(':'));
    host_is_plain && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn listed(faults: &[ConfigFault]) -> String {
    faults.iter().map(ConfigFault::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own for a test, removed with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("quorate-config-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            for file in ["ca.pem", "me.pem", "me.key"] {
                std::fs::write(path.join(file), "").unwrap();
            }
            Folder(path)
        }

        fn load(&self, text: &str) -> Result<ClientConfig, ConfigError> {
            std::fs::write(self.0.join("client.toml"), text).unwrap();
            ClientConfig::load(self.0.join("client.toml"))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn paths_are_relative_to_the_file_and_the_rest_has_defaults() {
        let folder = Folder::new("relative");
        let config = folder
            .load("seeds = ['127.0.0.1:7401', '[::1]:7402']\nca = 'ca.pem'\ncertificate = 'me.pem'\nkey = 'me.key'")
            .unwrap();
        assert_eq!(config.seeds, ["127.0.0.1:7401", "[::1]:7402"]);
        assert_eq!(config.ca, folder.0.join("ca.pem"));
        assert_eq!((config.keyspace.as_str(), config.datacenter), ("default", None));
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let folder = Folder::new("faults");
        let error = folder
            .load("seeds = ['nowhere', 7]\nca = 'no.pem'\nkey = 3\nkeyspace = 'a b'\nkeyspaces = 'x'\n")
            .unwrap_err();
        let ConfigError::Faults { faults, .. } = error else { panic!("{error}") };
        let no_file = ConfigFault::UnreadableFile {
            key: "ca",
            path: folder.0.join("no.pem"),
            reason: io::ErrorKind::NotFound,
        };
        let integer = "integer";
        let expected = [
            ConfigFault::BadSeed { seed: "nowhere".to_owned() },
            ConfigFault::WrongType { key: "seeds", expected: "a list of strings", found: integer },
            no_file,
            ConfigFault::Missing { key: "certificate" },
            ConfigFault::WrongType { key: "key", expected: "a string", found: integer },
            ConfigFault::BadName { key: "keyspace", value: "a b".to_owned() },
            ConfigFault::UnknownKey { key: "keyspaces".to_owned() },
        ];
        assert_eq!(faults, expected);
    }

    #[test]
    fn a_file_that_is_not_there_or_not_toml_is_an_error_that_names_it() {
        let folder = Folder::new("syntax");
        let missing = ClientConfig::load(folder.0.join("none.toml")).unwrap_err();
        assert!(missing.to_string().contains("none.toml"), "{missing}");
        assert!(matches!(folder.load("seeds = [").unwrap_err(), ConfigError::Syntax { .. }));
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["localhost:1", "10.0.0.1:65535", "[::1]:7400", "quorate-0.quorate.svc:7400"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "host", "host:", ":7400", "host:0", "host:65536", "::1:7400", "host:port"] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
