//! One request and what its answer means.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use everlog_common::Millis;
use iceberg::NamespaceIdent;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::{DATE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use uuid::Uuid;

use super::super::CatalogError;
use super::super::properties::{duration, optional, required, wrong};
use super::super::server_time::ServerTime;
use super::auth::Auth;
use super::protocol::{self, Config, ErrorBody};

const CONNECT_TIMEOUT: &str = "everlog.catalog.connect-timeout";
const REQUEST_TIMEOUT: &str = "everlog.catalog.request-timeout";
/// Idle connections are closed by us before servers and proxies close them under our next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// An answer longer than this is no catalog's.
const ANSWER_BYTES_MAX: usize = 1 << 28;
/// What is shown of an error answer that is not the protocol's.
const SHOWN_CHARS: usize = 200;
/// Everything but RFC 3986's unreserved characters.
const PATH_PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A connection to one catalog of one server. Its properties hold secrets and are never printed.
pub(super) struct Client {
    http: reqwest::Client,
    auth: Auth,
    /// Ours with the server's defaults below and its overrides on top.
    properties: BTreeMap<String, String>,
    /// `{uri}/v1` and the server's prefix.
    base: String,
    /// Between the levels of a namespace.
    separator: String,
    /// Whether the server recognises repeated requests.
    idempotency: bool,
    time: ServerTime,
}

impl Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("base", &shown(&self.base))
            .field("auth", &self.auth)
            .field("properties", &self.properties.keys())
            .field("idempotency", &self.idempotency)
            .finish_non_exhaustive()
    }
}

/// A request to be sent.
#[derive(Debug)]
pub(super) struct Request<'a> {
    method: Method,
    path: &'a [String],
    query: Vec<(&'a str, &'a str)>,
    body: Option<Bytes>,
    what: &'a str,
    idempotency_key: Option<Uuid>,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: Method, path: &'a [String], what: &'a str) -> Self {
        Self {
            method,
            path,
            query: Vec::new(),
            body: None,
            what,
            idempotency_key: None,
        }
    }

    pub(super) fn query(mut self, key: &'a str, value: &'a str) -> Self {
        self.query.push((key, value));
        self
    }

    pub(super) fn json(mut self, body: &impl Serialize) -> Result<Self, CatalogError> {
        let json = serde_json::to_vec(body).map_err(|error| CatalogError::Refused {
            what: self.what.to_owned(),
            message: "the request cannot be written as JSON".into(),
            source: Some(Box::new(error)),
        })?;
        self.body = Some(json.into());
        Ok(self)
    }

    /// Marks the request for servers that recognise repeated ones.
    pub(super) fn idempotency_key(mut self, key: Uuid) -> Self {
        self.idempotency_key = Some(key);
        self
    }
}

/// What came back.
#[derive(Debug)]
pub(super) enum Answer {
    /// Success.
    Body(Bytes),
    /// Any other status. `protocol` is false where the body is not the protocol's: a proxy, or no catalog at all.
    Status {
        status: u16,
        message: String,
        protocol: bool,
    },
    /// The request did not leave, or was not made.
    NotSent(CatalogError),
    /// It may have arrived; what came back, if anything, is no answer.
    Lost(super::super::Cause),
}

impl Answer {
    /// For the first request to a server: an answer that is not the protocol's tells of a wrong address.
    pub(super) fn into_first_read(self, what: &str) -> Result<Bytes, CatalogError> {
        match self {
            Self::Status {
                status: 300..=399 | 404 | 405 | 410,
                message,
                protocol: false,
            } => Err(CatalogError::Refused {
                what: what.to_owned(),
                message: format!("there is no Iceberg REST catalog: {message}"),
                source: None,
            }),
            answer => answer.into_read(what),
        }
    }

    /// For requests that change nothing, or may be repeated: there is no unknown outcome.
    pub(super) fn into_read(self, what: &str) -> Result<Bytes, CatalogError> {
        match self {
            Self::Body(body) => Ok(body),
            answer => Err(match answer.into_failure(what) {
                CatalogError::OutcomeUnknown { what, source } => {
                    CatalogError::Unavailable { what, source }
                }
                error => error,
            }),
        }
    }

    /// The error of a request that changes something. A success does not get here.
    pub(super) fn into_failure(self, what: &str) -> CatalogError {
        let what = what.to_owned();
        let (status, message, protocol) = match self {
            Self::Status {
                status,
                message,
                protocol,
            } => (status, message, protocol),
            Self::NotSent(error) => return error,
            Self::Lost(source) => return CatalogError::OutcomeUnknown { what, source },
            Self::Body(_) => (200, "success".into(), true),
        };
        match status {
            401 | 403 | 419 => CatalogError::Unauthorized { what, message },
            404 if protocol => CatalogError::NotFound { what, message },
            // Refused before it was looked at, because of too many requests.
            429 => CatalogError::Unavailable {
                what,
                source: message.into(),
            },
            // 408 and 499 tell of a request that something before the server gave up on.
            408 | 499 => CatalogError::OutcomeUnknown {
                what,
                source: message.into(),
            },
            // Not the catalog's own word: a proxy, a gateway that knows no server for the moment, a page to log in at. It
            // passes, and does not tell what became of the request.
            300..=499 if !protocol => CatalogError::OutcomeUnknown {
                what,
                source: format!("an answer that is not the catalog's: {message}").into(),
            },
            300..=499 => CatalogError::Refused {
                what,
                message,
                source: None,
            },
            _ => CatalogError::OutcomeUnknown {
                what,
                source: message.into(),
            },
        }
    }
}

/// The server's address, without a slash at its end.
fn address(properties: &BTreeMap<String, String>) -> Result<String, CatalogError> {
    let given = required(properties, "uri", "https://catalog.example.com")?;
    let uri = given.trim_end_matches('/');
    // as it was written, so that whoever shows this finds it there and can leave out a password
    let refused = |why: String| Err(wrong("uri", format!("`{given}` {why}")));
    match reqwest::Url::parse(uri) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(uri.to_owned()),
        Err(error) if uri.starts_with("http://") || uri.starts_with("https://") => {
            refused(format!("is no address: {error}"))
        }
        _ => refused("is not a http:// or https:// address".into()),
    }
}

fn connect_timeout(properties: &BTreeMap<String, String>) -> Result<Duration, CatalogError> {
    duration(properties, CONNECT_TIMEOUT, Duration::from_secs(5))
}

fn request_timeout(properties: &BTreeMap<String, String>) -> Result<Duration, CatalogError> {
    duration(properties, REQUEST_TIMEOUT, Duration::from_secs(30))
}

impl Client {
    pub(super) async fn connect(
        properties: &BTreeMap<String, String>,
    ) -> Result<Self, CatalogError> {
        let first = Self::with_properties(properties.clone())?;
        let what = format!("read the configuration of {}", shown(&first.base));
        let path = ["config".to_owned()];
        let mut request = Request::new(Method::GET, &path, &what);
        if let Some(warehouse) = optional(properties, "warehouse") {
            request = request.query("warehouse", warehouse);
        }
        let body = first.send(request).await.into_first_read(&what)?;
        let config: Config = protocol::decode(&body, &what)?;
        let mut merged = protocol::given(config.defaults);
        merged.extend(properties.iter().map(|(k, v)| (k.clone(), v.clone())));
        merged.extend(protocol::given(config.overrides));
        let mut client = Self::with_properties(merged)?;
        if let Some(prefix) = optional(&client.properties, "prefix") {
            client.base = format!("{}/{}", client.base, prefix.trim_matches('/'));
        }
        client.idempotency = config.idempotency_key_lifetime.is_some();
        Ok(client)
    }

    /// Everything that is wrong with the properties; no request is sent.
    pub(super) fn check(properties: &BTreeMap<String, String>) -> Vec<CatalogError> {
        let mut found: Vec<CatalogError> = [
            address(properties).err(),
            connect_timeout(properties).err(),
            request_timeout(properties).err(),
        ]
        .into_iter()
        .flatten()
        .collect();
        // the first of everything else
        if found.is_empty() {
            found.extend(Self::with_properties(properties.clone()).err());
        }
        found
    }

    fn with_properties(properties: BTreeMap<String, String>) -> Result<Self, CatalogError> {
        let uri = address(&properties)?;
        let http = reqwest::Client::builder()
            .connect_timeout(connect_timeout(&properties)?)
            .timeout(request_timeout(&properties)?)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("everlog/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers(&properties)?)
            .build()
            .map_err(|error| wrong("uri", format!("cannot make a client: {error}")))?;
        // The protocol's default is the unit separator; a server may name another, percent-encoded.
        let separator = optional(&properties, "namespace-separator").unwrap_or("%1F");
        let separator = percent_decode_str(separator)
            .decode_utf8_lossy()
            .into_owned();
        Ok(Self {
            http,
            auth: Auth::from_properties(&properties, &uri)?,
            base: format!("{uri}/v1"),
            separator,
            idempotency: false,
            time: ServerTime::default(),
            properties,
        })
    }

    /// What time it is at the server, as far as it told.
    pub(super) fn server_time(&self) -> Option<Millis> {
        self.time.at(Instant::now())
    }

    pub(super) fn properties(&self) -> &BTreeMap<String, String> {
        &self.properties
    }

    /// A namespace as one part of a path.
    pub(super) fn joined(&self, namespace: &NamespaceIdent) -> String {
        namespace.as_ref().join(&self.separator)
    }

    /// Sends a request once; once more where the token had expired, for then it was not looked at.
    pub(super) async fn send(&self, request: Request<'_>) -> Answer {
        let token = match self.auth.token(&self.http).await {
            Ok(token) => token,
            Err(error) => return Answer::NotSent(error),
        };
        let answer = self.send_once(&request, token.as_deref(), 0).await;
        if !matches!(
            answer,
            Answer::Status {
                status: 401 | 419,
                ..
            }
        ) {
            return answer;
        }
        match self.auth.renew(&self.http, token.as_deref()).await {
            Ok(Some(token)) => self.send_once(&request, Some(&token), 1).await,
            Ok(None) => answer,
            Err(error) => Answer::NotSent(error),
        }
    }

    async fn send_once(&self, request: &Request<'_>, token: Option<&str>, sent: u8) -> Answer {
        let mut url = self.base.clone();
        for part in request.path {
            url.push('/');
            url.extend(utf8_percent_encode(part, PATH_PART));
        }
        let mut builder = self
            .http
            .request(request.method.clone(), url)
            .query(&request.query);
        if let Some(token) = token {
            builder = builder.bearer_auth(token);
        }
        if let Some(body) = &request.body {
            builder = builder
                .header("content-type", "application/json")
                .body(body.clone());
        }
        if let Some(key) = request.idempotency_key.filter(|_| self.idempotency) {
            builder = builder.header("idempotency-key", idempotency_header(key, sent).to_string());
        }
        match builder.send().await {
            Ok(response) => {
                if let Some(Ok(date)) = response.headers().get(DATE).map(HeaderValue::to_str) {
                    self.time.saw_date(Instant::now(), date);
                }
                read_answer(response).await
            }
            Err(error) if error.is_builder() => Answer::NotSent(CatalogError::Refused {
                what: request.what.to_owned(),
                message: "no valid request".into(),
                source: Some(Box::new(error)),
            }),
            Err(error) if error.is_connect() => Answer::NotSent(CatalogError::Unavailable {
                what: request.what.to_owned(),
                source: advised(error),
            }),
            Err(error) => Answer::Lost(Box::new(error)),
        }
    }
}

/// The header's value for a caller's key. The protocol wants a UUID of version 7, as [`super::super::commit_key`] makes
/// them; any other becomes one, equal keys equal ones. The second sending after a 401 is another request to the server,
/// which may have kept that answer for the first.
fn idempotency_header(key: Uuid, sent: u8) -> Uuid {
    let mut bytes = key.into_bytes();
    if let Some(last) = bytes.last_mut() {
        *last ^= sent;
    }
    super::super::as_version_7(bytes)
}

/// No certificate of the other side is accepted but one that can be checked.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server's certificate must be of an authority that this system trusts (or that is in the file which SSL_CERT_FILE \
     names), for the host name in the address, and not expired"
)]
struct Untrusted {
    #[source]
    source: reqwest::Error,
}

/// The error of a request that was not sent, with what to do about it where that is known.
pub(super) fn advised(error: reqwest::Error) -> super::super::Cause {
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        if error.to_string().contains("invalid peer certificate") {
            break;
        }
        cause = error.source();
    }
    if cause.is_some() {
        Box::new(Untrusted { source: error })
    } else {
        Box::new(error)
    }
}

/// A URI as it may be shown: without a name and a password.
pub(super) fn shown(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
            format!("{scheme}://{host}{path}")
        }
        None => uri.to_owned(),
    }
}

/// A whole body of at most so many bytes.
pub(super) async fn read_body(
    mut response: reqwest::Response,
    bytes_max: usize,
) -> Result<Bytes, super::super::Cause> {
    let mut body = BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > bytes_max => {
                return Err("the answer does not end".into());
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            // An error status is an answer even if its explanation is cut off.
            Err(_) if !response.status().is_success() => return Ok(body.freeze()),
            Err(error) => return Err(Box::new(error.without_url())),
        }
    }
}

async fn read_answer(response: reqwest::Response) -> Answer {
    let (status, is_success) = (response.status().as_u16(), response.status().is_success());
    let body = match read_body(response, ANSWER_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => return Answer::Lost(error),
    };
    if is_success {
        return Answer::Body(body);
    }
    let (message, protocol) = explain(status, &body);
    Answer::Status {
        status,
        message,
        protocol,
    }
}

/// An error answer in one line, and whether it is the protocol's.
pub(super) fn explain(status: u16, body: &[u8]) -> (String, bool) {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { error }) => {
            let kind = error.kind.unwrap_or_default();
            let message = error.message.unwrap_or_default();
            (one_line(&format!("{status} {kind}: {message}")), true)
        }
        Err(_) => (
            one_line(&format!("{status} {}", String::from_utf8_lossy(body))),
            false,
        ),
    }
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN_CHARS).collect()
}

/// `header.NAME` properties, and the one that asks for credentials.
fn headers(properties: &BTreeMap<String, String>) -> Result<HeaderMap, CatalogError> {
    let mut headers = HeaderMap::new();
    headers.insert(
        HeaderName::from_static("x-iceberg-access-delegation"),
        HeaderValue::from_static("vended-credentials"),
    );
    for (key, value) in properties {
        let Some(name) = key.strip_prefix("header.") else {
            continue;
        };
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|error| wrong(key, format!("`{name}` is no header's name: {error}")))?;
        let mut value = HeaderValue::from_str(value)
            .map_err(|error| wrong(key, format!("is no header's value: {error}")))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use everlog_common::Millis;
    use everlog_common::clock::RandomIds;

    use super::super::super::CatalogErrorKind as Kind;
    use super::*;

    fn status(status: u16, protocol: bool) -> Answer {
        Answer::Status {
            status,
            message: String::new(),
            protocol,
        }
    }

    #[test]
    fn p08_every_5xx_and_every_loss_leaves_the_outcome_unknown() {
        for code in [500, 501, 502, 503, 504, 507, 520, 599, 408, 499] {
            assert_eq!(
                status(code, true).into_failure("commit").kind(),
                Kind::Unknown,
                "{code}"
            );
        }
        let lost = Answer::Lost("reset".into()).into_failure("commit");
        assert_eq!(lost.kind(), Kind::Unknown);
    }

    #[test]
    fn an_answer_that_refuses_is_definite() {
        let cases = [
            (400, Kind::Invalid),
            (401, Kind::Unauthorized),
            (403, Kind::Unauthorized),
            (404, Kind::NotFound),
            (419, Kind::Unauthorized),
            (422, Kind::Invalid),
            (429, Kind::Transient),
            (307, Kind::Invalid),
        ];
        for (code, kind) in cases {
            assert_eq!(
                status(code, true).into_failure("commit").kind(),
                kind,
                "{code}"
            );
        }
    }

    #[test]
    fn a_page_of_something_in_between_passes_and_leaves_a_commit_open() {
        for code in [301, 302, 400, 404, 405, 410, 418, 422] {
            let commit = status(code, false).into_failure("commit");
            assert_eq!(commit.kind(), Kind::Unknown, "{code}");
            let read = status(code, false)
                .into_read("load")
                .expect_err("no answer");
            assert_eq!(read.kind(), Kind::Transient, "{code}");
        }
        for code in [307, 404] {
            let first = status(code, false).into_first_read("config");
            let error = first.expect_err("a wrong address");
            assert_eq!(error.kind(), Kind::Invalid, "{code}");
        }
        let first = status(404, true).into_first_read("config");
        assert_eq!(first.expect_err("no warehouse").kind(), Kind::NotFound);
    }

    #[test]
    fn a_read_has_no_unknown_outcome() {
        let error = status(503, true).into_read("load").expect_err("503");
        assert_eq!(error.kind(), Kind::Transient);
    }

    #[test]
    fn idempotency_keys_are_of_version_7_and_differ_after_a_renewed_token() {
        let key = Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef);
        let first = idempotency_header(key, 0);
        assert_eq!(first.get_version_num(), 7);
        assert_eq!(first, idempotency_header(key, 0));
        assert_ne!(first, idempotency_header(key, 1));
        let made = super::super::super::commit_key(&RandomIds, Millis(0x0199_aaaa_bbbb));
        assert_eq!(idempotency_header(made, 0), made);
        assert_eq!(made.as_u128() >> 80, 0x0199_aaaa_bbbb, "real milliseconds");
    }

    #[test]
    fn names_and_passwords_are_not_shown() {
        for (uri, plain) in [
            (
                "https://me:s3cret@host:8181/api/v1",
                "https://host:8181/api/v1",
            ),
            ("http://host/a@b", "http://host/a@b"),
            ("http://a@b@host", "http://host"),
            ("https://host?x=a@b", "https://host?x=a@b"),
        ] {
            assert_eq!(shown(uri), plain);
        }
    }

    #[test]
    fn headers_are_taken_over_and_checked() {
        let given = BTreeMap::from([
            (
                "header.X-Iceberg-Access-Delegation".to_owned(),
                "remote-signing".to_owned(),
            ),
            ("uri".to_owned(), "http://c".to_owned()),
        ]);
        let headers = headers(&given).expect("headers");
        assert_eq!(headers.len(), 1);
        assert_eq!(headers["x-iceberg-access-delegation"], "remote-signing");
        let wrong = BTreeMap::from([("header.a b".to_owned(), "x".to_owned())]);
        super::headers(&wrong).expect_err("no name");
    }

    #[test]
    fn error_answers_become_one_line() {
        let body =
            br#"{"error":{"message":"no\nsuch table","type":"NoSuchTableException","code":404}}"#;
        assert_eq!(
            explain(404, body),
            ("404 NoSuchTableException: no such table".to_owned(), true)
        );
        let (text, protocol) = explain(502, b"<html>bad gateway</html>");
        assert!(!protocol);
        assert_eq!(text, "502 <html>bad gateway</html>");
    }
}
