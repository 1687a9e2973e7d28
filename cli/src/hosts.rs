//! How far each host has come, as the controller knows it.

use anyhow::Result;
use weft_proto::v1::ListHostStatusRequest;
use weft_proto::validate::describe;

use crate::client::Targets;
use crate::output::{Format, Table, show};

pub(crate) async fn run(targets: &Targets, format: Format) -> Result<()> {
    let mut client = targets.intent().await?;
    let reply = client
        .list_host_status(ListHostStatusRequest {})
        .await?
        .into_inner();
    show(format, &reply, || {
        let mut table = Table::new(&[
            "HOST",
            "ATTACHED",
            "SENT",
            "ACKNOWLEDGED",
            "INTENT",
            "EFFECT",
            "REFUSED",
        ]);
        for host in &reply.hosts {
            let refused: Vec<_> = host.violations.iter().map(describe).collect();
            table.row([
                host.host.clone(),
                if host.attached { "yes" } else { "no" }.to_owned(),
                host.sent_revision.to_string(),
                host.acknowledged_revision.to_string(),
                reply.revision.to_string(),
                format!("{} us", host.effect_microseconds),
                if refused.is_empty() {
                    "-".to_owned()
                } else {
                    refused.join("; ")
                },
            ]);
        }
        table.text()
    })
}
