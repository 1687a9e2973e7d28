//! Forwards a guest's request to the backend with headers that identify the port, and the backend's answer to the guest.
//!
//! Headers of the guest's request that name a port, or could be taken to, are removed.

use std::error::Error;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, Mac};
use http_body_util::{Either, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Identity, Tally};
use weft_dataplane::packet::Family;

/// How long the backend may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// How long it may take to begin its answer, the guest's sending of the request included.
const ANSWER: Duration = Duration::from_secs(20);
/// Bytes of a request's body.
const BODY: u64 = 1 << 20;
/// Bytes of the head of the backend's answer.
const HEAD_SIZE: usize = 64 * 1024;

/// Headers that concern one connection alone (RFC 9110 §7.6.1), besides those that `Connection` names; `Expect`, which is answered here;
/// and `Trailer`, without which no trailers are passed on: nobody looks into them.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What a backend may take for a statement of who asks: names, and what names begin with. A guest's are not passed on.
const CLAIMS: [&str; 5] = [
    "forwarded",
    "x-real-ip",
    "x-instance-id",
    "x-tenant-id",
    "via",
];
const CLAIM_PREFIXES: [&str; 7] = [
    "x-weft-",
    "x-forwarded-",
    "x-instance-id-",
    "x-metadata-provider",
    "x-neutron-",
    "x-ovn-",
    "x-original-",
];

/// An answer to a guest.
pub(super) type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Backend {
    authority: HeaderValue,
    host: String,
    port: u16,
    secret: Option<Vec<u8>>,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = || format!("'{text}' is not http://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| rule())?;
        let authority = uri.authority().ok_or_else(rule)?;
        let plain = uri.scheme_str() == Some("http")
            && uri.query().is_none()
            && matches!(uri.path(), "" | "/")
            && !authority.as_str().contains('@')
            && !authority.host().is_empty();
        if !plain {
            return Err(rule());
        }
        let host = authority.host();
        Ok(Self {
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| rule())?,
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: authority.port_u16().unwrap_or(80),
            secret: None,
        })
    }
}

impl Backend {
    /// Signs the headers for the backend with the secret in a file, without surrounding blanks.
    ///
    /// # Errors
    /// The file cannot be read, or holds nothing.
    pub fn signing(mut self, file: &Path) -> std::io::Result<Self> {
        let secret = std::fs::read(file)?.trim_ascii().to_vec();
        if secret.is_empty() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "the secret is empty",
            ));
        }
        self.secret = Some(secret);
        Ok(self)
    }

    /// The signature of a port's id, its VPC's id and its address, a line each without an end to the last: HMAC (RFC 2104) with SHA-256,
    /// in hexadecimal.
    fn sign(&self, parts: [&str; 3]) -> Option<String> {
        // A key may have any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_deref()?).ok()?;
        mac.update(parts.join("\n").as_bytes());
        let bytes = mac.finalize().into_bytes();
        Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The client of the backend.
#[derive(Debug)]
pub struct Proxy {
    backend: Backend,
    tally: Arc<Tally>,
}

impl Proxy {
    /// A proxy that counts what it does.
    pub(super) fn new(backend: Backend, tally: Arc<Tally>) -> Self {
        Self { backend, tally }
    }

    /// The backend's answer to a guest's request, or the refusal that stands for it.
    pub(super) async fn answer(
        &self,
        identity: &Identity,
        family: Family,
        request: Request<Incoming>,
    ) -> Answer {
        Tally::add(&self.tally.requests, 1);
        match self.forward(identity, family, request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                if refusal.status.is_server_error() {
                    Tally::add(&self.tally.backend_errors, 1);
                    tracing::debug!(
                        port = identity.port,
                        why = refusal.why,
                        "metadata request failed"
                    );
                }
                refusal.into()
            }
        }
    }

    async fn forward(
        &self,
        identity: &Identity,
        family: Family,
        request: Request<Incoming>,
    ) -> Result<Answer, Refusal> {
        let (head, body) = request.into_parts();
        if head.method == Method::CONNECT {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no tunnels"));
        }
        if body.size_hint().lower() > BODY {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request is too long",
            ));
        }
        let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let mut headers = head.headers;
        clean(&mut headers, true);
        self.introduce(identity, family, &mut headers);
        let mut outgoing = Request::new(Limited::new(body, BODY as usize));
        *outgoing.method_mut() = head.method;
        *outgoing.uri_mut() = path
            .parse()
            .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "no such path"))?;
        *outgoing.headers_mut() = headers;
        let answer = timeout(ANSWER, self.ask(outgoing)).await;
        let answer = answer
            .map_err(|_| Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the backend is too slow"))?;
        let mut answer = answer?;
        if answer.status().is_informational() {
            return Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                "the backend uses another protocol",
            ));
        }
        clean(answer.headers_mut(), false);
        Ok(answer.map(Either::Left))
    }

    /// A connection for each request: requests share no state, so a restart of the backend has no further effect.
    async fn ask(
        &self,
        request: Request<Limited<Incoming>>,
    ) -> Result<Response<Incoming>, Refusal> {
        let unreachable = |_| Refusal::new(StatusCode::BAD_GATEWAY, "the backend does not answer");
        let way = (self.backend.host.as_str(), self.backend.port);
        let stream = timeout(CONNECT, TcpStream::connect(way)).await;
        let stream = stream
            .map_err(|_| Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the backend does not answer"))?
            .map_err(unreachable)?;
        let (mut sender, connection) = http1::Builder::new()
            .max_header_size(HEAD_SIZE)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|_| Refusal::new(StatusCode::BAD_GATEWAY, "the backend does not answer"))?;
        // It ends with the answer, or when nobody wants that any more.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| {
            if is_too_long(&error) {
                Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long")
            } else {
                Refusal::new(StatusCode::BAD_GATEWAY, "the backend broke off")
            }
        })
    }

    /// Adds the headers that identify the port.
    fn introduce(&self, identity: &Identity, family: Family, headers: &mut HeaderMap) {
        let address = match family {
            Family::Ipv4 => identity.ipv4.as_deref().or(identity.ipv6.as_deref()),
            Family::Ipv6 => identity.ipv6.as_deref().or(identity.ipv4.as_deref()),
        };
        let address = address.unwrap_or_default();
        let signature = self.backend.sign([&identity.port, &identity.vpc, address]);
        let said = [
            ("x-weft-port", Some(identity.port.as_str())),
            ("x-weft-vpc", Some(&identity.vpc)),
            ("x-weft-subnet", Some(&identity.subnet)),
            (
                "x-forwarded-for",
                Some(address).filter(|address| !address.is_empty()),
            ),
            ("x-weft-signature", signature.as_deref()),
        ];
        for (name, value) in said {
            if let Some(Ok(value)) = value.map(HeaderValue::from_str) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers.insert(HOST, self.backend.authority.clone());
    }
}

/// Why a guest gets no answer of the backend.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    why: &'static str,
}

impl Refusal {
    fn new(status: StatusCode, why: &'static str) -> Self {
        Self { status, why }
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let text = format!("{}: {}\n", refusal.status, refusal.why);
        let mut answer = Response::new(Either::Right(Full::new(text.into())));
        *answer.status_mut() = refusal.status;
        let plain = HeaderValue::from_static("text/plain");
        answer.headers_mut().insert(CONTENT_TYPE, plain);
        answer
    }
}

/// Removes headers that concern one connection alone, and of a guest's what it claims to be.
fn clean(headers: &mut HeaderMap, of_guest: bool) {
    let named: Vec<String> = headers
        .get_all("connection")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let goes = |name: &HeaderName| {
        // Gateway interfaces (RFC 3875 §4.1.18) make the same variable of "_" and "-".
        let plain = name.as_str().replace('_', "-");
        let claims = CLAIMS.contains(&plain.as_str())
            || CLAIM_PREFIXES
                .iter()
                .any(|prefix| plain.starts_with(prefix));
        HOP_BY_HOP.contains(&plain.as_str())
            || named.iter().any(|named| named == name.as_str()) && *name != CONTENT_LENGTH
            || of_guest && claims
    };
    let gone: Vec<HeaderName> = headers.keys().filter(|name| goes(name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

fn is_too_long(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if error.is::<LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_plain_http_to_a_host_and_port() {
        for (text, host, port) in [
            ("http://127.0.0.1:8775", "127.0.0.1", 8775),
            ("http://[2001:db8::1]:80/", "2001:db8::1", 80),
            ("http://nova.example", "nova.example", 80),
        ] {
            let backend: Backend = text.parse().unwrap();
            assert_eq!((backend.host.as_str(), backend.port), (host, port));
        }
        for text in [
            "127.0.0.1:8775",
            "https://127.0.0.1:8775",
            "http://127.0.0.1:8775/path",
            "http://127.0.0.1:8775/?query",
            "http://name@127.0.0.1",
            "http://",
            "unix:/run/backend",
        ] {
            assert!(text.parse::<Backend>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_guest_claims_nothing_however_it_spells_it() {
        let mut headers = HeaderMap::new();
        for name in [
            "X-Weft-Port",
            "x_weft_port",
            "X-WEFT_anything",
            "Forwarded",
            "X-Forwarded-For",
            "X_Forwarded-Host",
            "X-Instance-ID",
            "X-Instance-ID-Signature",
            "X_Tenant_ID",
            "X-Neutron-Network-ID",
            "X-Metadata-Provider-Signature",
            "Connection",
            "Transfer-Encoding",
            "X-Named",
            "X-aws-ec2-metadata-token",
            "Metadata-Flavor",
            "Content-Length",
        ] {
            let value = "close, X-Named, content-length";
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_static(value),
            );
        }
        let mut of_backend = headers.clone();
        clean(&mut headers, true);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        let kept = [
            "content-length",
            "metadata-flavor",
            "x-aws-ec2-metadata-token",
        ];
        assert_eq!(left, kept);
        clean(&mut of_backend, false);
        assert!(
            of_backend.contains_key("x-forwarded-for"),
            "a backend is believed"
        );
        assert!(!of_backend.contains_key("connection"));
    }

    #[test]
    fn signatures_cover_who_asks() {
        let mut backend: Backend = "http://h".parse().unwrap();
        assert_eq!(backend.sign(["port-1", "blue", "10.0.0.1"]), None);
        backend.secret = Some(b"Jefe".to_vec());
        // printf 'port-1\nblue\n10.0.0.1' | openssl dgst -sha256 -hmac Jefe
        assert_eq!(
            backend.sign(["port-1", "blue", "10.0.0.1"]).unwrap(),
            "3f4f3e5f1bdb2f8e7f02b4320ca8659b9d4195aab8925b1a76cf18a36a90d1e7"
        );
    }

    #[test]
    fn a_secret_is_read_without_the_blanks_around_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        let backend: Backend = "http://h".parse().unwrap();
        assert!(backend.clone().signing(&file).is_err());
        std::fs::write(&file, " \n").unwrap();
        assert!(backend.clone().signing(&file).is_err(), "nothing in it");
        std::fs::write(&file, "s3cret\n").unwrap();
        let backend = backend.signing(&file).unwrap();
        assert_eq!(backend.secret.as_deref(), Some(&b"s3cret"[..]));
    }
}
