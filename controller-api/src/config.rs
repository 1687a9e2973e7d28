//! The controller's configuration file: TOML, in which an unknown field is an error.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use weft_process::tls::TlsFiles;

use crate::admission::AdmissionConfig;
use crate::store::{Etcd, HistoryBounds, StoreError};

/// What `weft-controller --config FILE` reads.
///
/// ```
/// let config: weft_controller::config::Config = toml::from_str(r#"
///     listen = "127.0.0.1:7470"
///     store = { kind = "embedded", path = "/var/lib/weft-controller/intent.redb" }
/// "#).unwrap();
/// assert_eq!(config.listen, "127.0.0.1:7470");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `HOST:PORT`, or `unix:/path`.
    pub listen: String,
    /// The address that clients reach this controller at, where several share a store: `https://HOST:PORT`, `http://HOST:PORT` or
    /// `unix:/path`. By default made of `listen`.
    pub advertise: Option<String>,
    /// Where the intent is kept.
    pub store: StoreConfig,
    /// By what certificates callers over TCP are known; without, everybody who reaches the port may do everything.
    pub tls: Option<TlsFiles>,
    /// For how many seconds the old host of a moved port forwards packets to the new one: 0 to 3600, 30 by default. The hosts
    /// hear of a move within milliseconds; this is for those that the controller does not reach at the time.
    #[serde(default = "default_move_grace")]
    pub move_grace_seconds: u32,
    /// In a VPC with more ports than these that live somewhere, hosts are not told all of them: each asks for those that it needs. 20,000 by default;
    /// 0: hosts are always told all. It holds for hosts that can learn; others are told all.
    #[serde(default = "default_learn_above")]
    pub learn_above: u32,
    /// How much is kept of what changed when: what `weftctl history` and `undo` know, and from where a watch can go on.
    #[serde(default)]
    pub history: HistoryConfig,
    /// How much each caller may ask for at a time.
    #[serde(default)]
    pub admission: AdmissionConfig,
}

/// How much of the history is kept; the oldest changes go first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryConfig {
    /// The most changes: 1 to 10,000,000, 10,000 by default.
    pub changes: u64,
    /// The most that they take in the store, in MiB: 1 to 65,536, 256 by default.
    pub mebibytes: u64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            changes: 10_000,
            mebibytes: 256,
        }
    }
}

impl HistoryConfig {
    const CHANGES: std::ops::RangeInclusive<u64> = 1..=10_000_000;
    const MEBIBYTES: std::ops::RangeInclusive<u64> = 1..=65_536;

    /// The same in the store's terms.
    pub fn bounds(&self) -> HistoryBounds {
        HistoryBounds {
            changes: self.changes,
            bytes: self.mebibytes << 20,
        }
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        for (name, value, range) in [
            ("changes", self.changes, Self::CHANGES),
            ("mebibytes", self.mebibytes, Self::MEBIBYTES),
        ] {
            if !range.contains(&value) {
                let (first, last) = range.into_inner();
                return Err(ConfigError::Range {
                    path: path.to_owned(),
                    name: format!("history.{name}"),
                    value,
                    first,
                    last,
                });
            }
        }
        Ok(())
    }
}

/// The longest grace time of a move, in seconds.
const MAX_MOVE_GRACE: u32 = 3600;

fn default_move_grace() -> u32 {
    30
}

fn default_learn_above() -> u32 {
    20_000
}

/// Where the intent is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreConfig {
    /// A database file of the controller's own.
    Embedded {
        /// The file. It and its directory are made when they do not exist.
        path: PathBuf,
    },
    /// etcd 3.4 or newer, which several controllers may share.
    Etcd(EtcdConfig),
}

/// Where the intent is in etcd.
///
/// ```
/// let store: weft_controller::config::StoreConfig = toml::from_str(r#"
///     kind = "etcd"
///     endpoints = ["http://192.0.2.1:2379", "http://192.0.2.2:2379", "http://192.0.2.3:2379"]
/// "#).unwrap();
/// let weft_controller::config::StoreConfig::Etcd(etcd) = store else { unreachable!() };
/// assert_eq!(etcd.prefix, "weft/");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// The members' client URLs: `http://HOST:PORT`, or `https://HOST:PORT` with `tls`.
    pub endpoints: Vec<String>,
    /// What the names of all keys begin with: 1 to 128 characters of A-Z a-z 0-9 . _ - /, the last one a slash.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// The authority of the members' certificates, and the certificate and the key that the controller shows them.
    pub tls: Option<TlsFiles>,
}

fn default_prefix() -> String {
    "weft/".to_owned()
}

/// Members of etcd that are named at most.
const MAX_ENDPOINTS: usize = 16;
/// The longest prefix of keys, in bytes.
const MAX_PREFIX: usize = 128;

impl EtcdConfig {
    /// What rule the settings break, if any.
    fn broken_rule(&self) -> Option<String> {
        let count = self.endpoints.len();
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if count == 0 || count > MAX_ENDPOINTS {
            return Some(format!(
                "store.endpoints: {count} are given; 1 to {MAX_ENDPOINTS} are possible"
            ));
        }
        let prefix = &self.prefix;
        if !prefix.ends_with('/') || prefix.len() > MAX_PREFIX || !prefix.bytes().all(known) {
            return Some(format!(
                "store.prefix = '{prefix}': 1 to {MAX_PREFIX} characters of A-Z a-z 0-9 . _ - /, the last one a slash, are possible"
            ));
        }
        None
    }

    /// The store that they name, which is not called yet.
    ///
    /// # Errors
    /// An endpoint is no address, or the certificates cannot be used.
    pub fn open(&self) -> Result<Etcd, StoreError> {
        Etcd::open(&self.endpoints, &self.prefix, self.tls.as_ref())
    }
}

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfigError {
    #[error("cannot read {path}: {reason}")]
    Read {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("{path}: {reason}")]
    Parse {
        path: PathBuf,
        reason: Box<toml::de::Error>,
    },
    #[error("{0}: move_grace_seconds = {1} is more than {MAX_MOVE_GRACE}")]
    MoveGrace(PathBuf, u32),
    #[error("{0}: {1}")]
    Rule(PathBuf, String),
    #[error("{path}: {name} = {value} is not within {first} to {last}")]
    Range {
        path: PathBuf,
        name: String,
        value: u64,
        first: u64,
        last: u64,
    },
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|reason| ConfigError::Read {
            path: path.to_owned(),
            reason,
        })?;
        let config: Self = toml::from_str(&text).map_err(|reason| ConfigError::Parse {
            path: path.to_owned(),
            reason: Box::new(reason),
        })?;
        if config.move_grace_seconds > MAX_MOVE_GRACE {
            return Err(ConfigError::MoveGrace(
                path.to_owned(),
                config.move_grace_seconds,
            ));
        }
        if let Some(rule) = config.broken_rule() {
            return Err(ConfigError::Rule(path.to_owned(), rule));
        }
        config.history.check(path)?;
        if let Some((name, value, range)) = config.admission.out_of_range() {
            let (first, last) = range.into_inner();
            return Err(ConfigError::Range {
                path: path.to_owned(),
                name: format!("admission.{name}"),
                value,
                first,
                last,
            });
        }
        Ok(config)
    }

    fn broken_rule(&self) -> Option<String> {
        let StoreConfig::Etcd(store) = &self.store else {
            return None;
        };
        store.broken_rule().or_else(|| match self.advertised() {
            Some(_) => None,
            None => Some(format!(
                "listen = '{}' is no address that others reach: set advertise to one",
                self.listen
            )),
        })
    }

    /// The address that clients and other controllers reach this one at; none when the configuration does not say.
    pub fn advertised(&self) -> Option<String> {
        if let Some(address) = &self.advertise {
            return Some(address.clone());
        }
        let is_any = ["0.0.0.0:", "[::]:"];
        if is_any.iter().any(|any| self.listen.starts_with(any)) || self.listen.ends_with(":0") {
            return None;
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match self.listen.starts_with("unix:") {
            true => Some(self.listen.clone()),
            false => Some(format!("{scheme}://{}", self.listen)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_has_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.toml");
        let read = |history: &str| {
            let store = "listen = '[::1]:1'\nstore = { kind = 'embedded', path = '/x' }";
            std::fs::write(&path, format!("{store}\n{history}")).unwrap();
            Config::read(&path)
        };
        let bounds = read("").unwrap().history.bounds();
        assert_eq!(bounds, HistoryBounds::default());
        assert_eq!(
            read("history = { changes = 7 }").unwrap().history.changes,
            7
        );
        for bad in ["changes = 0", "mebibytes = 0", "mebibytes = 65537"] {
            let refused = read(&format!("history = {{ {bad} }}")).unwrap_err();
            let (name, _) = bad.split_once(' ').unwrap();
            assert!(refused.to_string().contains(name), "{refused}");
        }
    }

    #[test]
    fn what_callers_may_ask_for_is_within_ranges() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.toml");
        let read = |admission: &str| {
            let store = "listen = '[::1]:1'\nstore = { kind = 'embedded', path = '/x' }";
            std::fs::write(&path, format!("{store}\n{admission}")).unwrap();
            Config::read(&path)
        };
        assert_eq!(read("").unwrap().admission, AdmissionConfig::default());
        let good = read("[admission.tenants]\nchanges_per_second = 0\nchanges_burst = 9").unwrap();
        assert_eq!(good.admission.tenants.changes_burst, Some(9));
        for section in ["tenants", "operators"] {
            for bad in [
                "changes_per_second = 1000001",
                "changes_burst = 0",
                "changes_burst = 10000001",
                "objects_per_second = 100000001",
                "objects_burst = 0",
                "changes_in_flight = 100001",
                "reads_in_flight = 1",
                "reads_in_flight = 100001",
                "watches = 4001",
                "mebibytes_in_flight = 255",
                "mebibytes_in_flight = 65537",
            ] {
                let refused = read(&format!("[admission.{section}]\n{bad}")).unwrap_err();
                let name = format!("admission.{section}.{bad} is not within");
                assert!(refused.to_string().contains(&name), "{refused}");
            }
        }
        for bad in [
            "[admission]\nhosts = {}",
            "[admission.tenants]\nwatches = -1",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_learn_in_large_vpcs_unless_told_otherwise() {
        let text = "listen = '[::1]:1'\nstore = { kind = 'embedded', path = '/x' }\n";
        let read = |more: &str| toml::from_str::<Config>(&format!("{text}{more}"));
        assert_eq!(read("").unwrap().learn_above, 20_000);
        assert_eq!(read("learn_above = 0").unwrap().learn_above, 0);
        assert!(read("learn_above = -1").is_err());
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        for text in [
            "listen = '[::1]:1'\nstore = { kind = 'embedded', path = '/x' }\nlisten_too = 1",
            "listen = '[::1]:1'\nstore = { kind = 'embedded', path = '/x', size = 1 }",
            "listen = '[::1]:1'\nstore = { kind = 'remote', path = '/x' }",
            "listen = '[::1]:1'",
        ] {
            assert!(toml::from_str::<Config>(text).is_err(), "{text}");
        }
    }
    #[test]
    fn a_store_in_etcd_names_its_members_and_where_this_controller_is_reached() {
        let read = |text: &str| toml::from_str::<Config>(text).unwrap();
        let etcd = "store = { kind = 'etcd', endpoints = ['http://192.0.2.1:2379'] }";
        let good = read(&format!("listen = '192.0.2.9:7470'\n{etcd}"));
        assert_eq!(good.broken_rule(), None);
        assert_eq!(good.advertised().unwrap(), "http://192.0.2.9:7470");
        let any = read(&format!("listen = '0.0.0.0:7470'\n{etcd}"));
        assert!(any.broken_rule().unwrap().contains("advertise"));
        let said = format!("listen = '[::]:7470'\nadvertise = 'https://c1:7470'\n{etcd}");
        assert_eq!(read(&said).advertised().unwrap(), "https://c1:7470");
        for (bad, field) in [
            ("endpoints = []", "store.endpoints"),
            ("endpoints = ['http://a'], prefix = 'weft'", "store.prefix"),
            (
                "endpoints = ['http://a'], prefix = 'we ft/'",
                "store.prefix",
            ),
        ] {
            let text = format!("listen = '192.0.2.9:1'\nstore = {{ kind = 'etcd', {bad} }}");
            assert!(read(&text).broken_rule().unwrap().contains(field), "{bad}");
        }
    }
}
