//! Questions by TCP (RFC 7766): each message after its length, one answered after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Service;
use super::answer::{Transport, Verdict};
use crate::guest::{Endpoint, Identity, Server, Stream};
use weft_dataplane::packet::{DropReason, Family};
use weft_dataplane::pipeline::dns::PORT;
use weft_dataplane::worker::service::Injector;

/// How long a guest may take to send a question, the time between two included.
const IDLE: Duration = Duration::from_secs(10);
/// How long a connection is served.
const LIFE: Duration = Duration::from_secs(60);
/// Bytes of a question.
const QUESTION: u16 = 2048;

impl Server for Service {
    fn injector(&self) -> &Injector {
        &self.injector
    }

    fn shared(&self) -> &Arc<Semaphore> {
        &self.shared
    }

    fn endpoint(&self, identity: &Identity) -> Endpoint {
        Endpoint {
            addresses: identity.gateways.clone(),
            port: PORT,
        }
    }

    fn full(&self) -> DropReason {
        DropReason::DnsFull
    }

    fn count(&self, _accepted: u64, _refused: u64) {}

    async fn serve(self: Arc<Self>, identity: Identity, stream: Stream, _: Family) {
        // The stream is closed when it goes, whatever has ended it.
        let _ = timeout(LIFE, self.converse(&identity, stream)).await;
    }
}

impl Service {
    /// Answers questions until there are no more.
    ///
    /// # Errors
    /// The guest sends no question, or takes no answer.
    async fn converse(&self, identity: &Identity, mut stream: Stream) -> io::Result<()> {
        loop {
            let len = timeout(IDLE, stream.read_u16()).await??;
            if len > QUESTION {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut question = vec![0; len.into()];
            timeout(IDLE, stream.read_exact(&mut question)).await??;
            let answer = match self.judge(identity, &question, Transport::Tcp) {
                Verdict::Silence => return Err(io::ErrorKind::InvalidData.into()),
                Verdict::Answer(answer) => answer,
                Verdict::Forward(pending) => match self.turn(identity) {
                    Some(turn) => self.forward(*pending, turn).await,
                    None => pending.answer(None),
                },
            };
            let len = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
            stream
                .write_all(&[&len.to_be_bytes()[..], &answer].concat())
                .await?;
        }
    }
}
