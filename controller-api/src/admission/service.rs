//! The intent's service with admission before it: who calls is found out, and whether they may, before anything of the request's body is read.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use http_body_util::{BodyExt, BodyStream, StreamBody};
use tokio_stream::StreamExt;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use weft_process::tls::Role;

use super::{Admission, Kind, Permit};
use crate::caller::Caller;

/// A call that was admitted, and whose it is. It counts as long as anything of this is held.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    pub(crate) permit: Permit,
}

/// A service whose calls are admitted, or refused.
#[derive(Debug, Clone)]
pub(crate) struct Admitting<S> {
    inner: S,
    admission: Arc<Admission>,
}

impl<S> Admitting<S> {
    pub(crate) fn new(inner: S, admission: Arc<Admission>) -> Self {
        Self { inner, admission }
    }

    fn admit(&self, request: &http::Request<Body>) -> Result<Arc<Admitted>, Status> {
        let caller = Caller::of(request.extensions())?;
        let path = request.uri().path();
        let (kind, role) = kind(path.rsplit('/').next().unwrap_or_default());
        caller.needs_some(role)?;
        let admitted = self
            .admission
            .admit(&caller.account(), kind, Instant::now());
        let permit = admitted.map_err(|refused| refused.status())?;
        Ok(Arc::new(Admitted { caller, permit }))
    }
}

/// What a method does, and what its caller has to be allowed for it.
fn kind(method: &str) -> (Kind, Role) {
    match method {
        "Create" | "Apply" | "Delete" | "ChangePeering" | "Undo" => (Kind::Change, Role::Operate),
        "Watch" | "WatchPortConditions" => (Kind::Watch, Role::Read),
        _ => (Kind::Read, Role::Read),
    }
}

/// A request's body, of which no more is taken than the caller may send.
fn counted(body: Body, admitted: Arc<Admitted>) -> Body {
    let frames = BodyStream::new(body).map(move |frame| {
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            let heard = admitted.permit.hear(data.len(), Instant::now());
            heard.map_err(|refused| refused.status())?;
        }
        Ok::<_, Status>(frame)
    });
    Body::new(StreamBody::new(frames))
}

impl<S: NamedService> NamedService for Admitting<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Admitting<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let admitted = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        request.extensions_mut().insert(Arc::clone(&admitted));
        let request = request.map(|body| counted(body, Arc::clone(&admitted)));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let Ok(answer) = answer.await;
            Ok(answer.map(|body| {
                // In flight until the answer is sent, or not wanted any more.
                Body::new(body.map_frame(move |frame| {
                    let _in_flight = &admitted;
                    frame
                }))
            }))
        })
    }
}
