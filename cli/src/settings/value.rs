//! How values are written: what must not be printed; durations and sizes are [`everlog_common::units`].

use std::fmt;

pub(crate) use everlog_common::units::{
    format_bytes, format_duration, parse_bytes, parse_duration,
};

/// Whether a property's value is a secret, judged by its name. Rather too often than too rarely.
pub(crate) fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let names_a_place = [".location", ".file", ".url", "-uri", ".path"]
        .iter()
        .any(|suffix| key.ends_with(suffix));
    if names_a_place {
        return false;
    }
    let words = [
        "password",
        "passphrase",
        "secret",
        "token",
        "credential",
        "authorization",
        "connection-string",
        "private",
        "sasl.jaas",
        "sasl.oauthbearer.config",
    ];
    // what a header says is between its two ends
    key.starts_with("header.")
        || words.iter().any(|word| key.contains(word))
        || key.ends_with("key")
        || key.ends_with("key.pem")
        || key.ends_with("_key")
}

/// What stands in the place of a secret.
pub(crate) const REDACTED: &str = "<redacted>";

/// A value as it may be shown: a secret is replaced, and so is the password inside a URL.
pub(crate) fn shown(key: &str, value: &str) -> String {
    if is_secret(key) {
        return REDACTED.to_owned();
    }
    redact_url(value)
}

/// Replaces the password of `scheme://user:password@host`, and the value of query parameters that look secret.
fn redact_url(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return value.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    // The last @ ends the user's part: a password may itself hold one.
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:{REDACTED}@{host}"),
            None => format!("{user}@{host}"),
        },
        None => authority.to_owned(),
    };
    let tail = match tail.split_once('?') {
        Some((path, query)) => {
            let query: Vec<String> = query
                .split('&')
                .map(|pair| match pair.split_once('=') {
                    Some((name, _)) if is_secret(name) => format!("{name}={REDACTED}"),
                    _ => pair.to_owned(),
                })
                .collect();
            format!("{path}?{}", query.join("&"))
        }
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}

/// Pass-through properties. Their secrets appear in no `Debug` output and no log.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Properties(std::collections::BTreeMap<String, String>);

impl Properties {
    /// One property's value.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets one.
    pub(crate) fn insert(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }

    /// Everything, secrets included: for the client that needs them.
    pub(crate) const fn reveal(&self) -> &std::collections::BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.iter().map(|(k, v)| (k, shown(k, v))))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_their_names() {
        for secret in [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "s3.secret-access-key",
            "s3.session-token",
            "token",
            "credential",
            "adls.account-key",
            "gcs.credentials-json",
            "header.Authorization",
            "header.X-Tenant",
            "sasl.oauthbearer.client.secret",
        ] {
            assert!(is_secret(secret), "{secret}");
        }
        for open in [
            "bootstrap.servers",
            "sasl.username",
            "ssl.key.location",
            "ssl.ca.location",
            "s3.endpoint",
            "s3.access-key-id",
            "uri",
            "sasl.oauthbearer.token.endpoint.url",
            "oauth2-server-uri",
        ] {
            assert!(!is_secret(open), "{open}");
        }
    }

    #[test]
    fn a_password_inside_a_url_is_not_shown() {
        assert_eq!(
            shown("uri", "postgres://ann:s3cret@db:5432/lake?sslmode=require"),
            "postgres://ann:<redacted>@db:5432/lake?sslmode=require"
        );
        assert_eq!(
            shown("uri", "postgres://ann:p@ss@db/lake?password=x&a=b"),
            "postgres://ann:<redacted>@db/lake?password=<redacted>&a=b"
        );
        assert_eq!(
            shown("uri", "sqlite://lake/catalog.db"),
            "sqlite://lake/catalog.db"
        );
        let mut properties = Properties::default();
        properties.insert("s3.secret-access-key", "hunter2".to_owned());
        assert!(!format!("{properties:?}").contains("hunter2"));
    }
}
