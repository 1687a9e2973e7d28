//! Authentication: both ends of a TCP connection present a certificate of an authority that the other trusts (TLS 1.2 and 1.3, RFC 8446),
//! and the client's certificate identifies it.
//!
//! Files are named by path and read again when they have changed, by a client for each connection and by a server for each that it accepts,
//! so that certificates are replaced without a restart. If the files cannot be read or used, a server continues with the previous ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The files of one end, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The authorities whose certificates the other end may show.
    pub ca: PathBuf,
    /// This end's certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TlsError {
    #[error("cannot read {path}: {reason}")]
    Read {
        path: PathBuf,
        reason: std::io::Error,
    },
    #[error("cannot parse {path}: {reason}")]
    Pem { path: PathBuf, reason: String },
    #[error("{0} contains no certificate")]
    Empty(PathBuf),
    #[error("cannot use certificate {certificate} with key {key}: {reason}")]
    Refused {
        certificate: PathBuf,
        key: PathBuf,
        reason: String,
    },
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|reason| TlsError::Read {
        path: path.to_owned(),
        reason,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(TlsError::Empty(path.to_owned())),
        Ok(all) => Ok(all),
        Err(reason) => Err(not_understood(path, &reason)),
    }
}

fn not_understood(path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Pem {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

impl TlsFiles {
    /// What a client needs, as the files are now.
    ///
    /// # Errors
    /// They cannot be read, or are not what they should be.
    pub fn client(&self) -> Result<ClientTlsConfig, TlsError> {
        // What the library would only say when it connects.
        self.server()?;
        Ok(ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&self.ca)?))
            .identity(Identity::from_pem(
                read(&self.certificate)?,
                read(&self.key)?,
            )))
    }

    /// What a server needs, as the files are now.
    fn server(&self) -> Result<ServerConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.ca)? {
            roots
                .add(authority)
                .map_err(|reason| not_understood(&self.ca, &reason))?;
        }
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|reason| not_understood(&self.key, &reason))?;
        let refused = |reason: String| TlsError::Refused {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            reason,
        };
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                .build()
                .map_err(|reason| refused(reason.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|reason| refused(reason.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|reason| refused(reason.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// When each file was last written, and how long it is.
    fn stamps(&self) -> Stamps {
        [&self.ca, &self.certificate, &self.key].map(|path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len()))
        })
    }
}

type Stamps = [Option<(SystemTime, u64)>; 3];

/// A server's side, as new as its files.
#[derive(Debug)]
pub struct ServerTls {
    files: TlsFiles,
    current: Mutex<(Stamps, Arc<ServerConfig>)>,
}

impl ServerTls {
    /// The server's side of these files.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let stamps = files.stamps();
        let config = Arc::new(files.server()?);
        Ok(Self {
            files,
            current: Mutex::new((stamps, config)),
        })
    }

    /// What the next connection is accepted by.
    pub fn current(&self) -> Arc<ServerConfig> {
        // What it guards is replaced whole.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = self.files.stamps();
        if stamps != current.0 {
            // Asked again when they change again.
            current.0 = stamps;
            match self.files.server() {
                Ok(config) => {
                    current.1 = Arc::new(config);
                    tracing::info!(certificate = %self.files.certificate.display(), "certificates taken up");
                }
                Err(error) => tracing::error!(%error, "the certificates stay as they were"),
            }
        }
        Arc::clone(&current.1)
    }
}

/// What a caller may do, each including what is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing of the intent.
    None,
    /// See everything.
    Read,
    /// Change what tenants have.
    Operate,
    /// Change hosts too.
    Admin,
}

/// Whom a certificate names, by its alternative names of the form `weft://host/ID`, `weft://role/read`, `operate` or `admin`, and
/// `weft://tenant/ID/read` or `operate` (RFC 5280, 4.2.1.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The subject, for people.
    pub subject: String,
    /// The hosts that it may attach as.
    pub hosts: Vec<String>,
    /// The highest role that it names.
    pub role: Role,
    /// The tenants that it names, with the highest role for the objects of each.
    pub tenants: BTreeMap<String, Role>,
}

impl Names {
    /// The names in a certificate.
    ///
    /// # Errors
    /// It is not understood.
    pub fn of(certificate: &[u8]) -> Result<Self, String> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let mut names = Self {
            subject: certificate.subject().to_string(),
            hosts: Vec::new(),
            role: Role::None,
            tenants: BTreeMap::new(),
        };
        let alternatives = certificate
            .subject_alternative_name()
            .map_err(|error| error.to_string())?;
        for name in alternatives
            .iter()
            .flat_map(|names| &names.value.general_names)
        {
            let GeneralName::URI(uri) = name else {
                continue;
            };
            if let Some(host) = uri.strip_prefix("weft://host/") {
                names.hosts.push(host.to_owned());
            }
            let role = match *uri {
                "weft://role/read" => Role::Read,
                "weft://role/operate" => Role::Operate,
                "weft://role/admin" => Role::Admin,
                _ => Role::None,
            };
            names.role = names.role.max(role);
            let tenant = uri.strip_prefix("weft://tenant/");
            let (tenant, role) = match tenant.and_then(|tenant| tenant.rsplit_once('/')) {
                Some((tenant, "read")) => (tenant, Role::Read),
                Some((tenant, "operate")) => (tenant, Role::Operate),
                _ => continue,
            };
            // An empty one would be the operator.
            if !tenant.is_empty() && !tenant.contains('/') {
                let known = names.tenants.entry(tenant.to_owned()).or_insert(role);
                *known = role.max(*known);
            }
        }
        Ok(names)
    }
}
