//! Table metadata files: what catalogs that store them themselves (SQL, memory) do around the swap.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use iceberg::spec::{
    FormatVersion, SortOrder, TableMetadata, TableMetadataBuilder, UnboundPartitionSpec,
};
use iceberg::{ErrorKind, NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use uuid::Uuid;

use super::{CatalogError, NewTable};
use crate::storage::{Storage, StorageError};

/// Table property: where metadata files go, if not below the table's location.
const METADATA_PATH: &str = "write.metadata.path";
/// First bytes of a gzip stream.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// A metadata file unpacks to no more than this; a larger one is damage, or an attack.
const METADATA_BYTES_MAX: u64 = 1 << 30;

/// What a set of updates makes of a table, before anybody is asked to swap.
#[derive(Debug)]
pub(super) enum Applied {
    /// The metadata to swap in.
    Ready(Box<TableMetadata>),
    /// A requirement does not hold.
    Conflict,
    /// The updates make no valid table.
    Refused(CatalogError),
}

/// The first metadata of a table.
pub(super) fn first(
    table: NewTable,
    location: String,
    uuid: Uuid,
) -> Result<TableMetadata, CatalogError> {
    let what = format!("create {}", table.ident);
    let spec = table
        .partition_spec
        .unwrap_or_else(|| UnboundPartitionSpec::builder().build());
    let sort_order = table.sort_order.unwrap_or_else(SortOrder::unsorted_order);
    let properties: HashMap<String, String> = table.properties.into_iter().collect();
    TableMetadataBuilder::new(
        table.schema,
        spec,
        sort_order,
        location,
        FormatVersion::V2,
        properties,
    )
    .and_then(|builder| builder.assign_uuid(uuid).build())
    .map(|built| built.metadata)
    .map_err(|error| refused(what, error))
}

/// Checks the requirements against `current` and applies the updates to it.
pub(super) fn apply(
    table: &TableIdent,
    current: &TableMetadata,
    current_location: &str,
    requirements: &[TableRequirement],
    updates: Vec<TableUpdate>,
) -> Applied {
    let what = || format!("commit to {table}");
    for requirement in requirements {
        if let Err(error) = requirement.check(Some(current)) {
            return match error.kind() {
                ErrorKind::CatalogCommitConflicts => Applied::Conflict,
                _ => Applied::Refused(refused(what(), error)),
            };
        }
    }
    let builder = current
        .clone()
        .into_builder(Some(current_location.to_owned()));
    let built = updates
        .into_iter()
        .try_fold(builder, |builder, update| update.apply(builder))
        .and_then(TableMetadataBuilder::build);
    match built {
        Ok(built) => Applied::Ready(Box::new(built.metadata)),
        Err(error) => Applied::Refused(refused(what(), error)),
    }
}

/// Where a table's files go when its creator does not say.
pub(super) fn default_location(warehouse: &str, table: &TableIdent) -> String {
    let namespace = table.namespace().as_ref().join("/");
    format!(
        "{}/{namespace}/{}",
        warehouse.trim_end_matches('/'),
        table.name()
    )
}

/// The name of the metadata file that follows `previous`, which is `None` for a new table.
pub(super) fn next_location(
    metadata: &TableMetadata,
    previous: Option<&str>,
    file: Uuid,
) -> String {
    let version = previous.map_or(0, |previous| version_of(previous) + 1);
    let folder = match metadata.properties().get(METADATA_PATH) {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => format!("{}/metadata", metadata.location()),
    };
    format!("{folder}/{version:05}-{file}.metadata.json")
}

/// The number that a metadata file's name begins with; anybody's name, so it may have none.
fn version_of(location: &str) -> u64 {
    let name = location.rsplit('/').next().unwrap_or_default();
    name.split('-')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Stores a metadata file under a new name.
pub(super) async fn write(
    storage: &Storage,
    location: &str,
    metadata: &TableMetadata,
) -> Result<(), CatalogError> {
    let what = || format!("write {location}");
    let bytes = serde_json::to_vec(metadata).map_err(|error| CatalogError::Refused {
        what: what(),
        message: "the metadata cannot be written as JSON".into(),
        source: Some(Box::new(error)),
    })?;
    storage
        .put(location, Bytes::from(bytes))
        .await
        .map_err(|source| CatalogError::storage(what(), source))
}

/// Reads a metadata file, plain or gzip.
pub(super) async fn read(
    storage: &Storage,
    location: &str,
) -> Result<Arc<TableMetadata>, StorageOrParse> {
    let bytes = storage
        .get(location)
        .await
        .map_err(StorageOrParse::Storage)?;
    parse(&bytes).map(Arc::new).map_err(StorageOrParse::Parse)
}

/// Why a metadata file was not read; a catalog may look again at where it should be.
#[derive(Debug)]
pub(super) enum StorageOrParse {
    Storage(StorageError),
    Parse(super::Cause),
}

impl StorageOrParse {
    pub(super) fn into_catalog(self, location: &str) -> CatalogError {
        let what = format!("read {location}");
        match self {
            Self::Storage(source) => CatalogError::storage(what, source),
            Self::Parse(source) => CatalogError::Unreadable { what, source },
        }
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<TableMetadata, super::Cause> {
    if !bytes.starts_with(&GZIP_MAGIC) {
        return Ok(serde_json::from_slice(bytes)?);
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .take(METADATA_BYTES_MAX)
        .read_to_end(&mut plain)?;
    Ok(serde_json::from_slice(&plain)?)
}

/// How the SQL layout, and everybody who shares it, writes a namespace.
pub(super) fn dotted(namespace: &NamespaceIdent) -> String {
    namespace.as_ref().join(".")
}

fn refused(what: String, error: iceberg::Error) -> CatalogError {
    CatalogError::Refused {
        what,
        message: error.message().to_owned(),
        source: Some(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;

    use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};

    use super::*;

    fn metadata(properties: &[(&str, &str)]) -> TableMetadata {
        let field = NestedField::required(1, "topic", Type::Primitive(PrimitiveType::String));
        let table = NewTable {
            ident: TableIdent::from_strs(["lake", "t"]).expect("ident"),
            schema: Schema::builder()
                .with_fields([field.into()])
                .build()
                .expect("schema"),
            partition_spec: None,
            sort_order: None,
            properties: properties
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            location: None,
        };
        first(table, "s3://b/lake/t".into(), Uuid::from_u128(7)).expect("metadata")
    }

    #[test]
    fn metadata_files_count_on_from_whatever_name_came_before() {
        let table = metadata(&[]);
        let id = Uuid::from_u128(1);
        let first = next_location(&table, None, id);
        assert_eq!(
            first,
            format!("s3://b/lake/t/metadata/00000-{id}.metadata.json")
        );
        let next = next_location(&table, Some(&first), id);
        assert_eq!(
            next,
            format!("s3://b/lake/t/metadata/00001-{id}.metadata.json")
        );
        let foreign = next_location(&table, Some("s3://x/v3.gz.metadata.json"), id);
        assert_eq!(
            foreign,
            format!("s3://b/lake/t/metadata/00001-{id}.metadata.json")
        );
        let moved = metadata(&[(METADATA_PATH, "s3://meta/t/")]);
        assert_eq!(
            next_location(&moved, None, id),
            format!("s3://meta/t/00000-{id}.metadata.json")
        );
    }

    #[test]
    fn compressed_metadata_of_other_engines_is_read() {
        let table = metadata(&[("k", "v")]);
        let plain = serde_json::to_vec(&table).expect("json");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&plain).expect("gzip");
        let packed = packed.finish().expect("gzip");
        assert_eq!(parse(&plain).expect("plain"), table);
        assert_eq!(parse(&packed).expect("gzip"), table);
        parse(&packed[..packed.len() / 2]).expect_err("cut off");
    }

    #[test]
    fn an_unmet_requirement_is_a_conflict_and_a_bad_update_a_refusal() {
        let table = metadata(&[]);
        let ident = TableIdent::from_strs(["lake", "t"]).expect("ident");
        let apply = |requirements: &[TableRequirement], updates| {
            apply(
                &ident,
                &table,
                "s3://b/lake/t/metadata/0-x.metadata.json",
                requirements,
                updates,
            )
        };
        let other = TableRequirement::UuidMatch {
            uuid: Uuid::from_u128(8),
        };
        assert!(matches!(apply(&[other], vec![]), Applied::Conflict));
        let reserved = TableUpdate::SetProperties {
            updates: HashMap::from([("uuid".to_owned(), "x".to_owned())]),
        };
        assert!(matches!(apply(&[], vec![reserved]), Applied::Refused(_)));
        let same = TableRequirement::UuidMatch {
            uuid: Uuid::from_u128(7),
        };
        assert!(matches!(apply(&[same], vec![]), Applied::Ready(_)));
    }
}
