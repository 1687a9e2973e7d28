//! Notice of what others store. It only says that there may be something to read: that nothing is missed does not depend on it.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio_stream::StreamExt;
use tonic::Status;

use super::api::watch_request::RequestUnion;
use super::api::{WatchCreateRequest, WatchRequest};
use super::client::{Client, led};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Gives notice when one of these keys may have changed, until it is aborted.
pub(super) async fn watch(client: Arc<Client>, keys: Vec<Vec<u8>>, notice: SyncSender<()>) {
    loop {
        if let Err(status) = follow(&client, &keys, &notice).await {
            tracing::debug!(reason = status.message(), "the watch of etcd ended");
        }
        client.next_member();
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(client: &Client, keys: &[Vec<u8>], notice: &SyncSender<()>) -> Result<(), Status> {
    let requests: Vec<WatchRequest> = keys
        .iter()
        .map(|key| WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key: key.clone(),
                ..WatchCreateRequest::default()
            })),
        })
        .collect();
    // The stream stays open for as long as we do not end our side.
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let mut answers = client.watcher().watch(led(requests)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if answer.canceled {
            break;
        }
        // One that waits already says the same.
        let _ = notice.try_send(());
    }
    Ok(())
}
