//! The bodies of requests and answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use iceberg::spec::{Schema, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{TableIdent, TableRequirement, TableUpdate};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::{CatalogError, LoadedTable, NewTable};

/// `GET /v1/config`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Config {
    #[serde(default)]
    pub(super) defaults: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(super) overrides: BTreeMap<String, Option<String>>,
    /// There: the server recognises repeated requests by their key.
    #[serde(default)]
    pub(super) idempotency_key_lifetime: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct CreateNamespace<'a> {
    pub(super) namespace: &'a [String],
    pub(super) properties: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Identifier {
    pub(super) namespace: Vec<String>,
    pub(super) name: String,
}

impl From<&TableIdent> for Identifier {
    fn from(table: &TableIdent) -> Self {
        Self {
            namespace: table.namespace().as_ref().clone(),
            name: table.name().to_owned(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ListTables {
    #[serde(default)]
    pub(super) identifiers: Vec<Identifier>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CreateTable {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    schema: Schema,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition_spec: Option<UnboundPartitionSpec>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_order: Option<SortOrder>,
    stage_create: bool,
    properties: BTreeMap<String, String>,
}

impl From<NewTable> for CreateTable {
    fn from(table: NewTable) -> Self {
        let mut properties = table.properties;
        // The protocol has no field for it; servers take it from here, and some default to 1.
        properties
            .entry("format-version".into())
            .or_insert_with(|| "2".into());
        Self {
            name: table.ident.name().to_owned(),
            location: table.location,
            schema: table.schema,
            // Iceberg's own server takes none without an id.
            partition_spec: table.partition_spec.map(|spec| match spec.spec_id() {
                Some(_) => spec,
                None => spec.with_spec_id(0),
            }),
            write_order: table.sort_order,
            stage_create: false,
            properties,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct CommitTable {
    pub(super) identifier: Identifier,
    pub(super) requirements: Vec<TableRequirement>,
    pub(super) updates: Vec<TableUpdate>,
}

/// The answer to a load, a creation and (without `config`) a commit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LoadTable {
    #[serde(default)]
    metadata_location: Option<String>,
    metadata: TableMetadata,
    #[serde(default)]
    config: Option<BTreeMap<String, Option<String>>>,
    #[serde(default)]
    storage_credentials: Option<Vec<StorageCredential>>,
}

#[derive(Debug, Deserialize)]
struct StorageCredential {
    prefix: String,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

impl LoadTable {
    pub(super) fn into_loaded(self, table: &TableIdent) -> Result<LoadedTable, CatalogError> {
        let metadata_location = self
            .metadata_location
            .ok_or_else(|| CatalogError::Unreadable {
                what: format!("answer about {table}"),
                source: "it names no metadata-location".into(),
            })?;
        let mut config: BTreeMap<String, String> = given(self.config.unwrap_or_default());
        let credentials = self.storage_credentials.unwrap_or_default();
        config.extend(credentials_for(self.metadata.location(), credentials));
        Ok(LoadedTable {
            ident: table.clone(),
            metadata: Arc::new(self.metadata),
            metadata_location,
            config,
        })
    }
}

/// Of credentials for several prefixes, those for the longest one that the table is under.
fn credentials_for(
    location: &str,
    credentials: Vec<StorageCredential>,
) -> BTreeMap<String, String> {
    let fitting = credentials
        .into_iter()
        .filter(|c| location.starts_with(&c.prefix));
    fitting
        .max_by_key(|c| c.prefix.len())
        .map(|c| c.config)
        .unwrap_or_default()
}

/// Properties without those that are null.
pub(super) fn given(properties: BTreeMap<String, Option<String>>) -> BTreeMap<String, String> {
    properties
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
}

/// The body of an error answer.
#[derive(Debug, Deserialize)]
pub(super) struct ErrorBody {
    pub(super) error: ErrorModel,
}

#[derive(Debug, Deserialize)]
pub(super) struct ErrorModel {
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: Option<String>,
}

/// The answer of a token endpoint.
#[derive(Deserialize)]
pub(super) struct Token {
    #[serde(rename = "access_token")]
    pub(super) value: String,
    #[serde(default, rename = "token_type")]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) expires_in: Option<u64>,
}

/// Reads a successful answer. One that is not the protocol's at all (a page to log in at, a JSON answer of something in
/// between) passes; table metadata that cannot be read stays so.
pub(super) fn decode<T: DeserializeOwned>(body: &Bytes, what: &str) -> Result<T, CatalogError> {
    serde_json::from_slice(body).map_err(|error| {
        let what = format!("answer to {what}");
        let source = Box::new(error);
        let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        if json.is_some_and(|json| json.get("metadata").is_some()) {
            CatalogError::Unreadable { what, source }
        } else {
            CatalogError::Unavailable { what, source }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_of_the_location_gives_the_credentials() {
        let credential = |prefix: &str| StorageCredential {
            prefix: prefix.to_owned(),
            config: BTreeMap::from([("s3.access-key-id".to_owned(), prefix.to_owned())]),
        };
        let choose = |location: &str| {
            let all = vec![
                credential("s3://b/w"),
                credential("s3://b/w/t"),
                credential("s3://c"),
            ];
            credentials_for(location, all).remove("s3.access-key-id")
        };
        assert_eq!(choose("s3://b/w/t").as_deref(), Some("s3://b/w/t"));
        assert_eq!(choose("s3://b/w/u").as_deref(), Some("s3://b/w"));
        assert_eq!(choose("s3://d").as_deref(), None);
    }

    #[test]
    fn a_configuration_may_have_nulls_and_unknown_fields() {
        let body = Bytes::from_static(
            br#"{"defaults":{"a":null,"b":"1"},"overrides":{},"endpoints":["GET /v1/x"],"idempotency-key-lifetime":"PT30M"}"#,
        );
        let config: Config = decode(&body, "config").expect("config");
        assert_eq!(
            given(config.defaults),
            BTreeMap::from([("b".to_owned(), "1".to_owned())])
        );
        assert_eq!(config.idempotency_key_lifetime.as_deref(), Some("PT30M"));
    }

    #[test]
    fn a_page_instead_of_an_answer_passes_and_damaged_metadata_stays() {
        use super::super::super::CatalogErrorKind as Kind;
        let kind = |body: &'static [u8]| {
            let decoded = decode::<LoadTable>(&Bytes::from_static(body), "load");
            decoded.expect_err("no table").kind()
        };
        assert_eq!(kind(b"<html>please log in</html>"), Kind::Transient);
        assert_eq!(kind(b""), Kind::Transient);
        assert_eq!(kind(br#"{"status":"ok"}"#), Kind::Transient);
        assert_eq!(
            kind(br#"{"metadata-location":"s3://b/x","metadata":{"for"#),
            Kind::Transient
        );
        let hostile = br#"{"metadata-location":"s3://b/x","metadata":{"format-version":9}}"#;
        assert_eq!(kind(hostile), Kind::Corrupt);
    }
}
