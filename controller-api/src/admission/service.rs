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
use crate::api::to_status;
use crate::caller::Caller;
use crate::intent::Intent;

/// A call that was admitted, and whose it is. It counts as long as anything of this is held.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) caller: Caller,
    pub(crate) permit: Permit,
}

/// A service whose calls are admitted, or refused.
#[derive(Clone)]
pub(crate) struct Admitting<S> {
    inner: S,
    admission: Arc<Admission>,
    intent: Arc<Intent>,
}

impl<S> Admitting<S> {
    pub(crate) fn new(inner: S, admission: Arc<Admission>, intent: Arc<Intent>) -> Self {
        Self {
            inner,
            admission,
            intent,
        }
    }

    fn admit(&self, request: &http::Request<Body>) -> Result<Arc<Admitted>, Status> {
        let caller = Caller::of(request.extensions())?;
        let path = request.uri().path();
        let (kind, role) = kind(path.rsplit('/').next().unwrap_or_default());
        caller.needs_some(role)?;
        if kind == Kind::Change {
            // It counts where it can be made, and only there.
            let standing = self.intent.check_standing();
            standing.map_err(|error| to_status(&error))?;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::future::{Ready, ready};

    use tonic::transport::server::UdsConnectInfo;
    use weft_process::controllers::WRITER;

    use crate::intent::Standing;
    use crate::store::Embedded;

    /// Answers every call, and holds nothing of it.
    #[derive(Clone)]
    struct Answers;

    impl Service<http::Request<Body>> for Answers {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            ready(Ok(http::Response::new(Body::empty())))
        }
    }

    #[tokio::test]
    async fn a_change_counts_only_where_it_can_be_made() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("intent.redb")).unwrap();
        let intent = Arc::new(Intent::load_shared(Box::new(store)).unwrap());
        let text = "operators = { changes_per_second = 1, changes_burst = 1 }";
        let admission = Arc::new(Admission::new(&toml::from_str(text).unwrap()));
        let (known, standing) = (Arc::clone(&admission), Arc::clone(&intent));
        let mut service = Admitting::new(Answers, admission, intent);
        let mut call = async |method: &str| {
            let mut request = http::Request::new(Body::empty());
            *request.uri_mut() = format!("/weft.v1.Intent/{method}").parse().unwrap();
            request.extensions_mut().insert(UdsConnectInfo {
                peer_addr: None,
                peer_cred: None,
            });
            let Ok(answer) = service.call(request).await;
            let status = Status::from_header_map(answer.headers());
            let writer = answer.headers().get(WRITER);
            let writer = writer.map(|it| it.to_str().unwrap().to_owned());
            (status.map_or(tonic::Code::Ok, |it| it.code()), writer)
        };
        let writer = Some("http://other:1".to_owned());
        standing.set_standing(Standing::Follower(writer.clone()));
        for method in ["Create", "Apply", "Delete", "ChangePeering", "Undo"] {
            let answer = call(method).await;
            assert_eq!(answer, (tonic::Code::Unavailable, writer.clone()));
        }
        assert!(known.uses(Instant::now()).is_empty());
        assert_eq!(call("Get").await.0, tonic::Code::Ok);
        standing.set_standing(Standing::Writer);
        assert_eq!(call("Apply").await.0, tonic::Code::Ok);
        assert_eq!(call("Apply").await.0, tonic::Code::ResourceExhausted);
        let all = known.uses(Instant::now());
        let refused: HashMap<_, _> = all.iter().map(|it| (&*it.limit, it.refused)).collect();
        assert_eq!(refused["changes_per_second"], 1);
    }
}
