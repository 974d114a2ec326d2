//! Reading single `[catalog]` properties.

use std::collections::BTreeMap;
use std::time::Duration;

use super::CatalogError;
use crate::storage::parse_duration;

/// A property that has to be there.
pub(super) fn required<'a>(
    properties: &'a BTreeMap<String, String>,
    key: &str,
    example: &str,
) -> Result<&'a str, CatalogError> {
    optional(properties, key)
        .ok_or_else(|| wrong(key, format!("missing, give something like `{example}`")))
}

/// A property that is there and not empty.
pub(super) fn optional<'a>(properties: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    properties
        .get(key)
        .map(String::as_str)
        .filter(|value| !value.trim().is_empty())
}

/// A duration with its unit.
pub(super) fn duration(
    properties: &BTreeMap<String, String>,
    key: &str,
    default: Duration,
) -> Result<Duration, CatalogError> {
    match optional(properties, key) {
        None => Ok(default),
        Some(value) => parse_duration(value).map_err(|message| wrong(key, message)),
    }
}

/// The error for a property's value.
pub(super) fn wrong(key: &str, message: impl Into<String>) -> CatalogError {
    CatalogError::Property {
        key: key.to_owned(),
        message: message.into(),
    }
}
