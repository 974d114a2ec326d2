//! Who we are to the server: a token as given, or tokens got for a credential and renewed in time.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::CatalogError;
use super::super::properties::{optional, wrong};
use super::client::{advised, read_body, shown};
use super::protocol::{self, Token};

/// Asked for where no `scope` is given.
const DEFAULT_SCOPE: &str = "catalog";
/// After an early renewal that failed, the next is tried this much later; meanwhile the old token is used.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// An answer longer than this is no token's.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A token is renewed when this much of its life is over, of eight parts.
const RENEW_AFTER_EIGHTHS: u32 = 6;

/// How requests are authenticated.
pub(super) enum Auth {
    /// They are not.
    None,
    /// With a token that cannot be renewed.
    Token(String),
    /// With tokens for a credential.
    Credential(Credential),
}

impl Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Token(_) => "Token",
            Self::Credential(_) => "Credential",
        })
    }
}

pub(super) struct Credential {
    token_uri: String,
    form: Vec<(&'static str, String)>,
    current: Mutex<Option<Current>>,
}

struct Current {
    token: String,
    /// When to get the next one, if the server said how long this one lives.
    renew_at: Option<Instant>,
}

impl Auth {
    /// What the properties ask for. A credential goes before a token: it can be renewed.
    pub(super) fn from_properties(
        properties: &BTreeMap<String, String>,
        uri: &str,
    ) -> Result<Self, CatalogError> {
        if optional(properties, "rest.sigv4-enabled") == Some("true") {
            return Err(wrong("rest.sigv4-enabled", NO_SIGV4));
        }
        match optional(properties, "rest.auth.type") {
            None | Some("oauth2") => {}
            Some("none") => return Ok(Self::None),
            Some("sigv4") => return Err(wrong("rest.auth.type", NO_SIGV4)),
            Some(other) => {
                let message = format!("`{other}` is not supported, give none or oauth2");
                return Err(wrong("rest.auth.type", message));
            }
        }
        let Some(credential) = optional(properties, "credential") else {
            return Ok(match optional(properties, "token") {
                Some(token) => Self::Token(token.to_owned()),
                None => Self::None,
            });
        };
        let mut form = vec![("grant_type", "client_credentials".to_owned())];
        match credential.split_once(':') {
            Some((id, secret)) => {
                form.push(("client_id", id.to_owned()));
                form.push(("client_secret", secret.to_owned()));
            }
            None => form.push(("client_secret", credential.to_owned())),
        }
        form.push((
            "scope",
            optional(properties, "scope")
                .unwrap_or(DEFAULT_SCOPE)
                .to_owned(),
        ));
        for key in ["audience", "resource"] {
            if let Some(value) = optional(properties, key) {
                form.push((key, value.to_owned()));
            }
        }
        let token_uri = match optional(properties, "oauth2-server-uri") {
            // Relative to the catalog's, as its own documentation allows.
            Some(given) if !given.contains("://") => {
                format!("{uri}/{}", given.trim_start_matches('/'))
            }
            Some(given) => given.to_owned(),
            None => format!("{uri}/v1/oauth/tokens"),
        };
        Ok(Self::Credential(Credential {
            token_uri,
            form,
            current: Mutex::new(None),
        }))
    }

    /// The token to send now. Gets one where there is none, or it is about to expire.
    pub(super) async fn token(
        &self,
        http: &reqwest::Client,
    ) -> Result<Option<String>, CatalogError> {
        match self {
            Self::None => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::Credential(credential) => credential.token(http, None).await.map(Some),
        }
    }

    /// Another token after `refused` was not accepted; `None` where there cannot be one.
    pub(super) async fn renew(
        &self,
        http: &reqwest::Client,
        refused: Option<&str>,
    ) -> Result<Option<String>, CatalogError> {
        match self {
            Self::None | Self::Token(_) => Ok(None),
            Self::Credential(credential) => credential.token(http, refused).await.map(Some),
        }
    }
}

const NO_SIGV4: &str = "requests signed with SigV4 are not supported; use a catalog that takes OAuth2 or bearer tokens";

impl Credential {
    /// One renewal at a time: who waited for another's takes that.
    async fn token(
        &self,
        http: &reqwest::Client,
        refused: Option<&str>,
    ) -> Result<String, CatalogError> {
        let mut current = self.current.lock().await;
        if let Some(Current { token, renew_at }) = &*current
            && refused != Some(token)
            && renew_at.is_none_or(|at| Instant::now() < at)
        {
            return Ok(token.clone());
        }
        let asked_at = Instant::now();
        match self.fetch(http, current.is_some()).await {
            Ok(fetched) => {
                let life = fetched.expires_in.map(Duration::from_secs);
                let renew_at = life.map(|life| asked_at + life * RENEW_AFTER_EIGHTHS / 8);
                let token = fetched.value.clone();
                *current = Some(Current {
                    token: fetched.value,
                    renew_at,
                });
                Ok(token)
            }
            Err(error) => match &mut *current {
                // Early renewal failed: the old one has a quarter of its life left, and a 401 would tell.
                Some(Current { token, renew_at }) if refused != Some(token) => {
                    tracing::warn!(%error, "catalog token not renewed, using the old one");
                    *renew_at = Some(Instant::now() + RETRY_AFTER);
                    Ok(token.clone())
                }
                _ => Err(error),
            },
        }
    }

    /// Asks for a token. `known`: this endpoint gave one before, so it is one, whatever is in between says.
    async fn fetch(&self, http: &reqwest::Client, known: bool) -> Result<Token, CatalogError> {
        let what = format!("get a token from {}", shown(&self.token_uri));
        let unavailable = |error: reqwest::Error| CatalogError::Unavailable {
            what: what.clone(),
            source: advised(error.without_url()),
        };
        let sent = http.post(&self.token_uri).form(&self.form).send().await;
        let answer = sent.map_err(unavailable)?;
        let status = answer.status().as_u16();
        let body = match read_body(answer, ANSWER_BYTES_MAX).await {
            Ok(body) => body,
            Err(source) => return Err(CatalogError::Unavailable { what, source }),
        };
        match status {
            200..=299 => {}
            401 | 403 => return Err(denied(what, status, oauth_message(&body))),
            // Without a word of the protocol it comes from something in between, and passes.
            400 | 402 if oauth_message(&body).is_some() => {
                return Err(denied(what, status, oauth_message(&body)));
            }
            404 | 405 if !known => {
                let message = format!("{} is no token endpoint ({status})", shown(&self.token_uri));
                return Err(wrong("oauth2-server-uri", message));
            }
            _ => {
                return Err(CatalogError::Unavailable {
                    what,
                    source: format!("status {status}").into(),
                });
            }
        }
        let token: Token = protocol::decode(&body, &what)?;
        match &token.kind {
            Some(kind) if !kind.eq_ignore_ascii_case("bearer") => Err(CatalogError::Refused {
                what,
                message: format!(
                    "the server gives tokens of type {kind}, only bearer is supported"
                ),
                source: None,
            }),
            _ => Ok(token),
        }
    }
}

fn denied(what: String, status: u16, message: Option<String>) -> CatalogError {
    CatalogError::Unauthorized {
        what,
        message: format!("{status} {}", message.unwrap_or_default())
            .trim_end()
            .to_owned(),
    }
}

/// OAuth2 errors have `error` and `error_description`; nothing else of the body is shown, it might repeat the secret.
/// None where there is no `error`: a catalog's own token endpoint may answer with its own form of it, or something else.
pub(super) fn oauth_message(body: &Bytes) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |json: &serde_json::Value, key: &str| {
        let text = json.get(key).and_then(serde_json::Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let message = match json.get("error")? {
        own @ serde_json::Value::Object(_) => {
            format!("{} {}", text(own, "type"), text(own, "message"))
        }
        _ => format!(
            "{} {}",
            text(&json, "error"),
            text(&json, "error_description")
        ),
    };
    Some(message.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn sigv4_is_refused_by_name_whichever_way_it_is_asked_for() {
        for pairs in [
            [("rest.sigv4-enabled", "true")],
            [("rest.auth.type", "sigv4")],
        ] {
            let error =
                Auth::from_properties(&properties(&pairs), "http://c").expect_err("refused");
            assert!(error.to_string().contains("SigV4"), "{error}");
        }
    }

    #[test]
    fn a_credential_goes_before_a_token_and_is_never_printed() {
        let given = properties(&[("token", "t0ken"), ("credential", "me:s3cret")]);
        let auth = Auth::from_properties(&given, "http://c").expect("auth");
        assert_eq!(format!("{auth:?}"), "Credential");
        let Auth::Credential(credential) = auth else {
            unreachable!()
        };
        assert_eq!(credential.token_uri, "http://c/v1/oauth/tokens");
        assert!(
            credential
                .form
                .contains(&("client_secret", "s3cret".to_owned()))
        );
    }
}
