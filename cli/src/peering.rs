//! What can be done with peerings: what can be done with any object, and how their states are changed.

use anyhow::Result;
use clap::{Args, Subcommand};
use weft_proto::v1::{self, ChangePeeringRequest};

use crate::client::Targets;
use crate::kinds;
use crate::objects::{Action, say_change};
use crate::output::Format;

/// What can be done with peerings.
#[derive(Debug, Subcommand)]
pub(crate) enum PeeringAction {
    #[command(flatten)]
    Any(Action<kinds::Peering>),
    /// Accept a peering that another tenant's VPC requests.
    Accept(Change),
    /// Reject a peering that another tenant's VPC requests.
    Reject(Change),
    /// Stop packets in both directions; end with activate.
    Freeze(Change),
    /// Let packets pass again.
    Activate(Change),
}

/// Which side of which peering.
#[derive(Debug, Args)]
pub(crate) struct Change {
    /// Id of the peering.
    id: String,
    /// VPC whose side acts [default: the accepter's to accept or reject, else both where one tenant owns both].
    #[arg(long, default_value = "", hide_default_value = true)]
    vpc: String,
}

impl PeeringAction {
    pub(crate) async fn run(self, targets: &Targets, format: Format) -> Result<()> {
        let (action, change) = match self {
            Self::Any(action) => return action.run(targets, format).await,
            Self::Accept(change) => (v1::PeeringAction::Accept, change),
            Self::Reject(change) => (v1::PeeringAction::Reject, change),
            Self::Freeze(change) => (v1::PeeringAction::Freeze, change),
            Self::Activate(change) => (v1::PeeringAction::Activate, change),
        };
        let request = ChangePeeringRequest {
            id: change.id,
            action: action.into(),
            vpc: change.vpc,
        };
        let mut client = targets.intent().await?;
        let reply = client.change_peering(request).await?.into_inner();
        say_change(format, &reply)
    }
}
