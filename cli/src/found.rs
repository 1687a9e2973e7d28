//! What hosts find out and controllers know: which multicast groups ports have joined.

use std::collections::BTreeMap;

use anyhow::Result;
use tonic::Code;
use weft_proto::v1::{ListMulticastListenersRequest, MulticastListener, MulticastListenersReply};

use crate::client::Targets;
use crate::output::{Format, Table, show};

/// What the controllers know of multicast listeners in a VPC, or in all.
pub(crate) async fn list_listeners(targets: &Targets, format: Format, vpc: String) -> Result<()> {
    let request = ListMulticastListenersRequest { vpc };
    let mut all: BTreeMap<String, MulticastListener> = BTreeMap::new();
    for mut client in targets.each().await? {
        match client.list_multicast_listeners(request.clone()).await {
            Ok(reply) => {
                let told = reply.into_inner().multicast_listeners.into_iter();
                all.extend(told.map(|it| (it.id.clone(), it)));
            }
            Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => {}
            Err(status) => return Err(status.into()),
        }
    }
    let reply = MulticastListenersReply {
        multicast_listeners: all.into_values().collect(),
    };
    show(format, &reply, || {
        let mut rows = Table::new(&["VPC", "GROUP", "SUBNET", "HOST", "SOURCES"]);
        for it in &reply.multicast_listeners {
            let sources = it.sources.join(",");
            rows.row([
                it.vpc.clone(),
                it.group.clone(),
                it.subnet.clone(),
                it.host.clone(),
                match (it.exclude, sources.is_empty()) {
                    (true, true) => "all".to_owned(),
                    (true, false) => format!("all but {sources}"),
                    (false, _) => sources,
                },
            ]);
        }
        rows.text()
    })
}
