//! `weftctl callers`: how much callers ask the controllers for.

use anyhow::Result;
use weft_proto::v1::{CallersReply, ListCallersRequest};

use crate::client::Targets;
use crate::output::{Format, Table, show};

/// Prints the limits of each caller that has asked the controller for anything, and what was refused.
pub(crate) async fn list(targets: &Targets, format: Format) -> Result<()> {
    let mut client = targets.intent().await?;
    let reply = client.list_callers(ListCallersRequest {}).await?;
    let reply = reply.into_inner();
    show(format, &reply, || text(&reply))
}

fn text(reply: &CallersReply) -> String {
    let mut table = Table::new(&["CALLER", "LIMIT", "MOST", "USED", "ADMITTED", "REFUSED"]);
    for it in &reply.uses {
        let most = match it.most {
            0 => "-".to_owned(),
            most => most.to_string(),
        };
        table.row([
            it.caller.clone(),
            it.limit.clone(),
            most,
            it.used.to_string(),
            it.admitted.to_string(),
            it.refused.to_string(),
        ]);
    }
    table.text()
}
