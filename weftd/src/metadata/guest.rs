//! The task of one port: drives the port's stack, and serves its connections.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use smoltcp::iface::SocketHandle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::stack::Stack;
use super::stream::{Shared, Stream};
use super::{Identity, Service, Tally, WAITING};
use weft_dataplane::packet::{DropReason, Family};

/// How long a port without connections keeps its stack.
const IDLE: Duration = Duration::from_secs(30);
/// How long a stack that has nothing to send is left alone, if nothing comes.
const TICK: Duration = Duration::from_millis(1);
/// How long a guest may take to send the head of a request, the time between two requests included.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection takes requests.
const LIFE: Duration = Duration::from_secs(60);
/// How long what is under way may take after that.
const REST: Duration = Duration::from_secs(30);
/// Bytes of the head of a request, and lines of it.
const HEAD_SIZE: usize = 16 * 1024;
const HEAD_LINES: usize = 64;

/// Drives the stack of a port until the port is silent, or is no longer the one that it was.
pub(super) async fn run(
    service: Arc<Service>,
    mut identity: Identity,
    mut packets: mpsc::Receiver<Vec<u8>>,
) {
    let index = identity.index;
    let stack = Stack::new(identity.clone(), Arc::clone(&service.shared));
    let shared = Arc::new(Shared::new(stack));
    // They end with this task.
    let mut connections = JoinSet::new();
    let mut last = Instant::now();
    let mut generation = 0;
    let mut arrived: Vec<Vec<u8>> = Vec::new();
    loop {
        // A packet is looked at by a snapshot that is not older than the worker's.
        let snapshot = service.injector.snapshot();
        if snapshot.generation != generation {
            generation = snapshot.generation;
            match Identity::of(&snapshot, index).filter(|now| now.is_same_port(&identity)) {
                Some(now) if now != identity => {
                    shared.stack().rename(now.clone());
                    identity = now;
                }
                Some(_) => {}
                None => return,
            }
        }
        drop(snapshot);
        let now = Instant::now();
        if !arrived.is_empty() {
            last = now;
        }
        let (turn, refused, idle) = {
            let mut stack = shared.stack();
            let mut refused = 0;
            for packet in arrived.drain(..) {
                refused += u64::from(!stack.receive(&packet, now));
            }
            (stack.turn(now), refused, stack.is_idle())
        };
        for _ in 0..refused {
            service.injector.count_drop(index, DropReason::MetadataFull);
        }
        Tally::add(&service.tally.refused, refused + turn.given_up);
        Tally::add(&service.tally.connections, turn.accepted.len() as u64);
        service.injector.send(index, &turn.frames);
        for (handle, family) in turn.accepted {
            let way = (Arc::clone(&shared), handle, family);
            connections.spawn(serve(Arc::clone(&service), identity.clone(), way));
        }
        if idle && last.elapsed() >= IDLE {
            return;
        }
        let mut wait = turn.wait.unwrap_or(IDLE).min(IDLE);
        if turn.frames.is_empty() {
            // Whatever is due at once, nothing came of it.
            wait = wait.max(TICK);
        } else if wait.is_zero() {
            // There is more to send, but others come first.
            tokio::task::yield_now().await;
        }
        tokio::select! {
            count = packets.recv_many(&mut arrived, WAITING) => if count == 0 { return },
            () = shared.work.notified() => {}
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = sleep(wait) => {}
        }
    }
}

/// Serves a connection to its end, which comes in time whatever the guest does.
async fn serve(
    service: Arc<Service>,
    identity: Identity,
    (shared, handle, family): (Arc<Shared>, SocketHandle, Family),
) {
    let stream = TokioIo::new(Stream::new(shared, handle));
    let proxy = &service.proxy;
    let identity = &identity;
    let answer = service_fn(move |request| async move {
        Ok::<_, Infallible>(proxy.answer(identity, family, request).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_header_size(HEAD_SIZE)
        .max_headers(HEAD_LINES)
        .half_close(true)
        .serve_connection(stream, answer);
    let mut connection = pin!(connection);
    let ended = timeout(LIFE, connection.as_mut()).await;
    if ended.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(REST, connection).await;
    }
}
