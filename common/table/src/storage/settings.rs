//! How long to wait for a store, and how often to try.

use std::collections::BTreeMap;
use std::time::Duration;

use super::StorageError;
use super::location::Location;

/// Bounds on every request to a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StorageSettings {
    /// For a connection to stand.
    pub(super) connect_timeout: Duration,
    /// For one request, body included.
    pub(super) request_timeout: Duration,
    /// For a request and all its repetitions.
    pub(super) retry_timeout: Duration,
    /// Repetitions of one request.
    pub(super) max_retries: usize,
    /// Where files may be besides a table's own folder.
    pub(super) allowed: Vec<String>,
}

impl Default for StorageSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_mins(1),
            retry_timeout: Duration::from_mins(2),
            max_retries: 8,
            allowed: Vec::new(),
        }
    }
}

impl StorageSettings {
    pub(super) fn parse(properties: &BTreeMap<String, String>) -> Result<Self, StorageError> {
        let default = Self::default();
        let duration = |key: &str, default| match properties.get(key) {
            None => Ok(default),
            Some(value) => parse_duration(value).map_err(|message| property(key, message)),
        };
        Ok(Self {
            connect_timeout: duration(CONNECT_TIMEOUT, default.connect_timeout)?,
            request_timeout: duration(REQUEST_TIMEOUT, default.request_timeout)?,
            retry_timeout: duration(RETRY_TIMEOUT, default.retry_timeout)?,
            max_retries: match properties.get(MAX_RETRIES) {
                None => default.max_retries,
                Some(value) => value
                    .parse()
                    .map_err(|_| property(MAX_RETRIES, format!("`{value}` is not a number")))?,
            },
            allowed: allowed(properties)?,
        })
    }
}

const CONNECT_TIMEOUT: &str = "everlog.storage.connect-timeout";
const REQUEST_TIMEOUT: &str = "everlog.storage.request-timeout";
const RETRY_TIMEOUT: &str = "everlog.storage.retry-timeout";
const MAX_RETRIES: &str = "everlog.storage.max-retries";

/// See [`StorageSettings::allowed`].
pub(super) const ALLOWED: &str = "everlog.storage.allowed-locations";

fn allowed(properties: &BTreeMap<String, String>) -> Result<Vec<String>, StorageError> {
    let listed = properties.get(ALLOWED).map_or("", String::as_str);
    let listed = listed
        .split(',')
        .map(str::trim)
        .filter(|uri| !uri.is_empty());
    let checked = |uri: &str| match Location::parse(uri) {
        Ok(_) => Ok(uri.to_owned()),
        Err(error) => Err(property(
            ALLOWED,
            format!("{error}; give URIs of folders, with commas in between"),
        )),
    };
    listed.map(checked).collect()
}

fn property(key: &str, message: String) -> StorageError {
    StorageError::Property {
        key: key.to_owned(),
        message,
    }
}

/// Reads `500ms`, `30s`, `5m` or `1h`; zero is refused, as no wait is free.
pub(crate) fn parse_duration(value: &str) -> Result<Duration, String> {
    let refused =
        || format!("`{value}` is not a duration, write it like `500ms`, `30s`, `5m` or `1h`");
    let unit_at = value
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(refused)?;
    let (number, unit) = value.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| refused())?;
    let millis = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(refused()),
    };
    match number.checked_mul(millis) {
        None | Some(0) => Err(refused()),
        Some(millis) => Ok(Duration::from_millis(millis)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("2 m"), Ok(Duration::from_mins(2)));
        for wrong in [
            "",
            "30",
            "s",
            "0s",
            "-1s",
            "1d",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn allowed_locations_are_a_list_of_folders() {
        let parse = |value: &str| {
            let properties = BTreeMap::from([(ALLOWED.to_owned(), value.to_owned())]);
            StorageSettings::parse(&properties).map(|settings| settings.allowed)
        };
        assert_eq!(parse("").expect("none"), Vec::<String>::new());
        assert_eq!(parse("s3://a/b, /c,").expect("two"), ["s3://a/b", "/c"]);
        for wrong in ["lake", "s3://a/../b", "ftp://x/y"] {
            let error = parse(wrong).expect_err(wrong).to_string();
            assert!(error.contains(ALLOWED) && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_wrong_bound_is_refused_by_name() {
        let properties = BTreeMap::from([(MAX_RETRIES.to_owned(), "many".to_owned())]);
        let error = StorageSettings::parse(&properties).expect_err("refused");
        assert!(error.to_string().contains(MAX_RETRIES), "{error}");
    }
}
