//! Connections to the controller and to the daemon.

use std::path::PathBuf;
use std::sync::Once;

use anyhow::Result;
use clap::Args;
use tonic::transport::Channel;
use weft_process::controllers::Controllers;
use weft_process::services::intent_client::IntentClient;
use weft_process::services::node_client::NodeClient;
use weft_process::tls::TlsFiles;
use weft_process::transport::{MAX_MESSAGE, connect};

/// Addresses of the controller and of the daemon.
#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// Controllers, separated by commas: https://HOST:PORT, http://HOST:PORT or unix:/path. The first that answers is asked; a change goes to the one that
    /// writes.
    #[arg(
        long,
        global = true,
        help_heading = "Connection",
        env = "WEFT_CONTROLLER",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7470"
    )]
    controller: Vec<String>,
    /// Certificate authorities that the controller's certificate is checked against (PEM); for https.
    #[arg(long, global = true, help_heading = "Connection", env = "WEFT_TLS_CA", value_name = "FILE", requires_all = ["tls_certificate", "tls_key"])]
    tls_ca: Option<PathBuf>,
    /// Your certificate (PEM); names weft://role/read, weft://role/operate or weft://role/admin, or weft://tenant/ID/read or weft://tenant/ID/operate.
    #[arg(
        long,
        global = true,
        help_heading = "Connection",
        env = "WEFT_TLS_CERTIFICATE",
        value_name = "FILE",
        requires = "tls_ca"
    )]
    tls_certificate: Option<PathBuf>,
    /// Private key of your certificate (PEM).
    #[arg(
        long,
        global = true,
        help_heading = "Connection",
        env = "WEFT_TLS_KEY",
        value_name = "FILE",
        requires = "tls_ca"
    )]
    tls_key: Option<PathBuf>,
    /// Daemon of the host: unix:/path or http://HOST:PORT.
    #[arg(
        long,
        global = true,
        help_heading = "Connection",
        env = "WEFT_NODE",
        value_name = "URL",
        default_value = "unix:/run/weft/weftd.sock"
    )]
    node: String,
}

impl Targets {
    pub(crate) async fn intent(&self) -> Result<IntentClient<Controllers>> {
        self.client(self.controller.clone()).await
    }

    /// A client of each controller that answers; one at least.
    ///
    /// # Errors
    /// None answers.
    pub(crate) async fn each(&self) -> Result<Vec<IntentClient<Controllers>>> {
        let mut clients = Vec::new();
        let mut failure = None;
        for address in &self.controller {
            match self.client(vec![address.clone()]).await {
                Ok(client) => clients.push(client),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(failure) if clients.is_empty() => Err(failure),
            _ => Ok(clients),
        }
    }

    async fn client(&self, addresses: Vec<String>) -> Result<IntentClient<Controllers>> {
        let files = (&self.tls_ca, &self.tls_certificate, &self.tls_key);
        let tls = match files {
            (Some(ca), Some(certificate), Some(key)) => Some(TlsFiles {
                ca: ca.clone(),
                certificate: certificate.clone(),
                key: key.clone(),
            }),
            _ => None,
        };
        let controllers = Controllers::connect(addresses, tls).await?;
        let controllers = controllers.telling(say_wait);
        Ok(IntentClient::new(controllers).max_decoding_message_size(MAX_MESSAGE))
    }

    pub(crate) async fn node(&self) -> Result<NodeClient<Channel>> {
        let channel = connect(&self.node, None).await?;
        Ok(NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }
}

/// Says why a call waits, once.
fn say_wait(reason: &str) {
    static SAID: Once = Once::new();
    SAID.call_once(|| eprintln!("weftctl: {reason}; waiting"));
}
