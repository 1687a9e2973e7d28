//! What hosts find out and controllers know: which multicast groups ports have joined, and which ports hold virtual addresses.

use std::collections::BTreeMap;

use anyhow::Result;
use tonic::{Code, Response, Status};
use weft_proto::v1::{
    AddressHolder, AddressHoldersReply, ListAddressHoldersRequest, ListMulticastListenersRequest,
    MulticastListener, MulticastListenersReply,
};

use crate::client::Targets;
use crate::history::time;
use crate::output::{Format, Table, show};

/// A controller's answer; none from one that does not know of it, or cannot answer now.
fn answered<T>(reply: Result<Response<T>, Status>) -> Result<Option<T>> {
    match reply {
        Ok(reply) => Ok(Some(reply.into_inner())),
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// What the controllers know of multicast listeners in a VPC, or in all.
pub(crate) async fn list_listeners(targets: &Targets, format: Format, vpc: String) -> Result<()> {
    let request = ListMulticastListenersRequest { vpc };
    let mut all: BTreeMap<String, MulticastListener> = BTreeMap::new();
    for mut client in targets.each().await? {
        let reply = answered(client.list_multicast_listeners(request.clone()).await)?;
        let told = reply.map(|reply| reply.multicast_listeners);
        all.extend(told.into_iter().flatten().map(|it| (it.id.clone(), it)));
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

/// What the controllers know of who holds virtual addresses in a VPC, or in all.
pub(crate) async fn list_holders(targets: &Targets, format: Format, vpc: String) -> Result<()> {
    let request = ListAddressHoldersRequest { vpc };
    let mut all: BTreeMap<String, AddressHolder> = BTreeMap::new();
    for mut client in targets.each().await? {
        let reply = answered(client.list_address_holders(request.clone()).await)?;
        for holder in reply
            .map(|reply| reply.address_holders)
            .into_iter()
            .flatten()
        {
            let known = all.get(&holder.id);
            if known.is_none_or(|known| holder.outdoes(known)) {
                all.insert(holder.id.clone(), holder);
            }
        }
    }
    let reply = AddressHoldersReply {
        address_holders: all.into_values().collect(),
    };
    show(format, &reply, || {
        let mut rows = Table::new(&["VPC", "ADDRESS", "PORT", "MAC", "HOST", "SINCE", "MOVES"]);
        for it in &reply.address_holders {
            rows.row([
                it.vpc.clone(),
                it.address.clone(),
                it.port.clone(),
                it.mac.clone(),
                it.host.clone(),
                time(it.since_ms),
                it.moves.to_string(),
            ]);
        }
        rows.text()
    })
}
