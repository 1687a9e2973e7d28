//! The controller's configuration file: TOML, in which an unknown field is an error.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use weft_process::tls::TlsFiles;

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
    /// Where the intent is kept.
    pub store: StoreConfig,
    /// By what certificates callers over TCP are known; without, everybody who reaches the port may do everything.
    pub tls: Option<TlsFiles>,
    /// For how many seconds the old host of a moved port forwards packets to the new one: 0 to 3600, 30 by default. The hosts
    /// hear of a move within milliseconds; this is for those that the controller does not reach at the time.
    #[serde(default = "default_move_grace")]
    pub move_grace_seconds: u32,
}

/// The longest grace time of a move, in seconds.
const MAX_MOVE_GRACE: u32 = 3600;

fn default_move_grace() -> u32 {
    30
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
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
