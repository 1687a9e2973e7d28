//! Connections to the controller and to the daemon.

use anyhow::Result;
use clap::Args;
use tonic::transport::Channel;
use weft_proto::transport::{MAX_MESSAGE, connect};
use weft_proto::v1::intent_client::IntentClient;
use weft_proto::v1::node_client::NodeClient;

/// Whom to ask.
#[derive(Debug, Args)]
pub(crate) struct Targets {
    /// The controller: http://HOST:PORT or unix:/path.
    #[arg(
        long,
        global = true,
        env = "WEFT_CONTROLLER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7470"
    )]
    controller: String,
    /// The daemon of the host: unix:/path or http://HOST:PORT.
    #[arg(
        long,
        global = true,
        env = "WEFT_NODE",
        value_name = "URL",
        default_value = "unix:/run/weft/weftd.sock"
    )]
    node: String,
}

impl Targets {
    pub(crate) async fn intent(&self) -> Result<IntentClient<Channel>> {
        let channel = connect(&self.controller).await?;
        Ok(IntentClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    pub(crate) async fn node(&self) -> Result<NodeClient<Channel>> {
        let channel = connect(&self.node).await?;
        Ok(NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }
}
