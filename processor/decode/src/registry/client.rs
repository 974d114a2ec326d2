//! One request to a registry. The I/O of this crate, and nothing else.

use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderValue};

use super::{Auth, RegistryError, RegistrySettings};

/// An answer longer than this is no registry's.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Idle connections are closed by us before servers and proxies close them under our next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    base: reqwest::Url,
    auth: Auth,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("url", &self.url)
            .field("auth", &self.auth)
            .finish_non_exhaustive()
    }
}

/// What came of a request.
pub(super) enum Got {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    /// No answer.
    Lost(String),
}

/// An address, if it is one.
pub(super) fn address(url: &str) -> Result<reqwest::Url, RegistryError> {
    let refused = |why: &str, shown: &str| {
        Err(RegistryError::Address {
            url: shown.to_owned(),
            why: why.to_owned(),
        })
    };
    let parsed = match reqwest::Url::parse(url.trim_end_matches('/')) {
        Ok(parsed) => parsed,
        // what cannot be taken apart may have a password in it
        Err(_) if url.contains('@') => return refused("is no address", "(not shown)"),
        Err(error) => return refused(&format!("is no address ({error})"), url),
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        let host = parsed.host_str().unwrap_or_default();
        return refused(
            "has a user or a password in it: give them by registry_user and registry_password, or user and password in [registry]",
            host,
        );
    }
    if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
        return refused("is no http:// or https:// address", url);
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return refused(
            "has a ? or # in it, which an address to ask at has not",
            url,
        );
    }
    Ok(parsed)
}

impl Client {
    pub(super) fn new(settings: &RegistrySettings) -> Result<Self, RegistryError> {
        let base = address(&settings.url)?;
        let http = reqwest::Client::builder()
            .connect_timeout(settings.timeout)
            .timeout(settings.timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("everlog/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| RegistryError::Address {
                url: settings.url.clone(),
                why: format!("a client cannot be made: {error}"),
            })?;
        Ok(Self {
            http,
            url: base.as_str().trim_end_matches('/').to_owned(),
            base,
            auth: settings.auth.clone(),
        })
    }

    /// Without a slash at its end.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Asks for a path below the address. A version that is deleted for new readers is there for old records; the newest one
    /// is the newest that is not deleted.
    pub(super) async fn get(&self, path: &[String]) -> Got {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty().extend(path);
        }
        // subjects/NAME/versions and subjects/NAME/versions/N
        let is_version = (3..=4).contains(&path.len())
            && path.first().is_some_and(|first| first == "subjects")
            && path.last().is_some_and(|last| last != "latest");
        if is_version {
            url.query_pairs_mut().append_pair("deleted", "true");
        }
        let request = self.http.get(url).header(
            ACCEPT,
            HeaderValue::from_static("application/vnd.schemaregistry.v1+json, application/json"),
        );
        let request = match &self.auth {
            Auth::None => request,
            Auth::Basic { user, password } => request.basic_auth(user, Some(password)),
            Auth::Bearer(token) => request.bearer_auth(token),
        };
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Got::Lost(cause(&error)),
        };
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        loop {
            match answer.chunk().await {
                Ok(None) => return Got::Answer { status, body },
                Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_BYTES_MAX => {
                    body.extend_from_slice(&chunk);
                }
                Ok(Some(_)) => {
                    return Got::Lost(format!(
                        "an answer of more than {} MiB",
                        ANSWER_BYTES_MAX >> 20
                    ));
                }
                Err(error) => return Got::Lost(cause(&error)),
            }
        }
    }
}

/// The innermost reason, without the address: that stands in the message already.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}
