//! Table metadata files: what catalogs that store them themselves (SQL, memory) do around the swap.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use iceberg::spec::{
    FormatVersion, SortOrder, TableMetadata, TableMetadataBuilder, UnboundPartitionSpec,
};
use iceberg::{ErrorKind, NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use uuid::Uuid;

use super::{CatalogError, NewTable};
use crate::files::is_table_file;
use crate::schema::PROPERTY_TOPIC;
use crate::sealed;
use crate::storage::{Storage, StorageError, StorageErrorKind};

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

/// Whether updates hold for exactly the state they were derived from: what is removed must not have got a tag since, and
/// no requirement can say "no tag that I do not know".
pub(super) fn must_be_current(updates: &[TableUpdate]) -> bool {
    updates
        .iter()
        .any(|update| matches!(update, TableUpdate::RemoveSnapshots { .. }))
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

/// The name of the metadata file that follows `previous`, which is `None` for a new table. It tells what `bytes` it holds.
fn next_location(
    metadata: &TableMetadata,
    previous: Option<&str>,
    bytes: &[u8],
    chance: Uuid,
) -> String {
    let version = previous.map_or(0, |previous| version_of(previous).saturating_add(1));
    let folder = match metadata.properties().get(METADATA_PATH) {
        Some(path) => path.trim_end_matches('/').to_owned(),
        None => format!("{}/metadata", metadata.location()),
    };
    let file = sealed::metadata_uuid(&folder, bytes, chance);
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

/// Stores the metadata file that follows `previous`, which is `None` for a new table; gives its name, made unique by `chance`.
pub(super) async fn write(
    storage: &Storage,
    metadata: &TableMetadata,
    previous: Option<&str>,
    chance: Uuid,
) -> Result<String, CatalogError> {
    let bytes = serde_json::to_vec(metadata).map_err(|error| CatalogError::Refused {
        what: format!("write metadata of {}", metadata.location()),
        message: "the metadata cannot be written as JSON".into(),
        source: Some(Box::new(error)),
    })?;
    let location = next_location(metadata, previous, &bytes, chance);
    storage
        .put(&location, Bytes::from(bytes))
        .await
        .map_err(|source| CatalogError::storage(format!("write {location}"), source))?;
    Ok(location)
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
    parse_named(location, &bytes)
        .map(Arc::new)
        .map_err(StorageOrParse::Parse)
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

/// Reads the metadata file of this name.
pub(crate) fn parse_named(uri: &str, bytes: &[u8]) -> Result<TableMetadata, super::Cause> {
    if sealed::is_intact(uri, bytes) {
        parse(bytes)
    } else {
        Err(sealed::DAMAGED.into())
    }
}

fn parse(bytes: &[u8]) -> Result<TableMetadata, super::Cause> {
    let plain = unpack(bytes)?;
    // Anybody may have written them: that the library panics on some is no reason to end, but damage.
    std::panic::catch_unwind(|| serde_json::from_slice(&plain))
        .map_err(|_| "its parser met what it does not expect")?
        .map_err(Into::into)
}

fn unpack(bytes: &[u8]) -> std::io::Result<Cow<'_, [u8]>> {
    if !bytes.starts_with(&GZIP_MAGIC) {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .take(METADATA_BYTES_MAX)
        .read_to_end(&mut plain)?;
    Ok(Cow::Owned(plain))
}

/// Whose a metadata file is, of any table and any version of the format.
#[derive(Debug)]
pub(crate) struct MetadataOwner {
    /// The table's identity; version 1 may have none.
    pub(crate) table_uuid: Option<Uuid>,
    /// How many snapshots it has.
    pub(crate) snapshots: usize,
    /// Whether it never had one.
    never_written: bool,
    location: Option<String>,
    /// The topic that it is an archive of, where it is one.
    topic: Option<String>,
}

impl MetadataOwner {
    /// Whether this is what the creation of such a table leaves behind when it comes to nothing.
    fn is_nothing_like(&self, first: &TableMetadata) -> bool {
        self.snapshots == 0
            && self.never_written
            && self.location.as_deref() == Some(first.location())
            && self.topic.as_ref() == first.properties().get(PROPERTY_TOPIC)
    }

    pub(crate) fn of(bytes: &[u8]) -> Result<Self, super::Cause> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Head {
            table_uuid: Option<Uuid>,
            snapshots: Option<Vec<serde::de::IgnoredAny>>,
            last_sequence_number: Option<i64>,
            metadata_log: Option<Vec<serde::de::IgnoredAny>>,
            location: Option<String>,
            properties: Option<HashMap<String, serde_json::Value>>,
        }
        let head: Head = serde_json::from_slice(&unpack(bytes)?)?;
        let topic = head.properties.and_then(|all| {
            let topic = all.get(PROPERTY_TOPIC)?.as_str()?;
            Some(topic.to_owned())
        });
        Ok(Self {
            table_uuid: head.table_uuid,
            snapshots: head.snapshots.map_or(0, |all| all.len()),
            never_written: head.last_sequence_number.unwrap_or(0) == 0
                && head.metadata_log.is_none_or(|log| log.is_empty()),
            location: head.location,
            topic,
        })
    }
}

/// Refuses a folder that holds files of another table: the two would share it, and neither could tell which files the
/// other needs. What creations left there that came to nothing is no table.
pub(super) async fn check_free(
    storage: &Storage,
    table: &TableIdent,
    first: &TableMetadata,
) -> Result<(), CatalogError> {
    let location = first.location();
    let what = || format!("create {table}");
    let failed = |source| CatalogError::storage(what(), source);
    let mut listing = storage.list(location).map_err(failed)?;
    while let Some(object) = listing.next().await {
        let uri = match object {
            Ok(object) => object.uri,
            Err(error) if error.kind() == StorageErrorKind::Unauthorized => {
                // Then nothing can be listed for removal either.
                tracing::warn!(%table, %error, "cannot look whether the new table's folder is free");
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        };
        if !is_table_file(&uri) || is_leftover(storage, first, &uri).await.map_err(failed)? {
            continue;
        }
        return Err(CatalogError::Refused {
            what: what(),
            message: format!(
                "{location} holds files of a table that this catalog does not know ({uri}); if that is this archive, \
                 check catalog.uri and catalog.name, or register its newest metadata file in this catalog; if it was \
                 dropped, move its files away or delete them"
            ),
            source: None,
        });
    }
    Ok(())
}

/// The first metadata of a table like the one to be made, that has nothing: the catalog never took it, or nothing was ever
/// put into it. Other engines name theirs in the same way, so that what is in it decides.
async fn is_leftover(
    storage: &Storage,
    first: &TableMetadata,
    uri: &str,
) -> Result<bool, StorageError> {
    if !has_first_name(uri) {
        return Ok(false);
    }
    match storage.get(uri).await {
        Ok(bytes) => Ok(MetadataOwner::of(&bytes).is_ok_and(|owner| owner.is_nothing_like(first))),
        Err(error) if error.kind() == StorageErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether a name is like those that [`next_location`] gives to a first metadata file.
fn has_first_name(uri: &str) -> bool {
    let name = uri.rsplit('/').next().unwrap_or_default();
    name.strip_prefix("00000-")
        .and_then(|rest| rest.strip_suffix(".metadata.json"))
        .is_some_and(|id| Uuid::try_parse(id).is_ok())
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
        let named = |table: &TableMetadata, previous: Option<&str>, folder: &str, number: u32| {
            let name = next_location(table, previous, b"{}", Uuid::from_u128(1));
            let id = sealed::metadata_uuid(folder, b"{}", Uuid::from_u128(1));
            assert_eq!(name, format!("{folder}/{number:05}-{id}.metadata.json"));
            name
        };
        let folder = "s3://b/lake/t/metadata";
        let first = named(&table, None, folder, 0);
        named(&table, Some(&first), folder, 1);
        named(&table, Some("s3://x/v3.gz.metadata.json"), folder, 1);
        let moved = metadata(&[(METADATA_PATH, "s3://meta/t/")]);
        named(&moved, None, "s3://meta/t", 0);
    }

    #[test]
    fn any_name_has_a_version_and_a_successor() {
        let corpus = [
            "s3://b/t/metadata/00007-x.metadata.json",
            "v3.metadata.json",
            "",
        ];
        everlog_hostile::feed_text("metadata name", &corpus, |name| {
            let next = next_location(&metadata(&[]), Some(name), b"{}", Uuid::nil());
            assert!(next.starts_with("s3://b/lake/t/metadata/"), "{next}");
        });
    }

    #[test]
    fn a_metadata_file_with_a_changed_byte_is_not_read() {
        let bytes = serde_json::to_vec(&metadata(&[("k", "v")])).expect("json");
        let name = next_location(&metadata(&[]), None, &bytes, Uuid::from_u128(1));
        parse_named(&name, &bytes).expect("as it was written");
        let changed = String::from_utf8_lossy(&bytes).replace("\"v\"", "\"w\"");
        parse(changed.as_bytes()).expect("it is metadata all the same");
        let error = parse_named(&name, changed.as_bytes()).expect_err("changed");
        assert!(error.to_string().contains("checksum"), "{error}");
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

    /// What a creation that came to nothing leaves is no table; whatever else is named like it is one.
    #[tokio::test]
    async fn only_what_a_creation_of_the_same_table_left_behind_is_taken_for_nothing() {
        const NAME: &str = "00000-00000000-0000-0000-0000-000000000001.metadata.json";
        let ours = metadata(&[(PROPERTY_TOPIC, "orders")]);
        let ident = TableIdent::from_strs(["lake", "t"]).expect("ident");
        let changed = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut json = serde_json::to_value(&ours).expect("json");
            change(&mut json);
            serde_json::to_vec(&json).expect("json")
        };
        let set = |key: &'static str, value: serde_json::Value| {
            changed(&move |json: &mut serde_json::Value| json[key] = value.clone())
        };
        let left = changed(&|_| ());
        let cases = [
            (NAME, left.clone(), true),
            (
                "00001-00000000-0000-0000-0000-000000000001.metadata.json",
                left.clone(),
                false,
            ),
            ("00000-first.metadata.json", left.clone(), false),
            ("v1.metadata.json", left, false),
            // another engine's table that is empty, and another archive's
            (NAME, set("properties", serde_json::json!({})), false),
            (
                NAME,
                set("properties", serde_json::json!({PROPERTY_TOPIC: "clicks"})),
                false,
            ),
            (
                NAME,
                set("location", serde_json::json!("s3://b/lake/u")),
                false,
            ),
            // emptied: all of its snapshots have expired
            (
                NAME,
                set("last-sequence-number", serde_json::json!(7)),
                false,
            ),
            (
                NAME,
                set(
                    "metadata-log",
                    serde_json::json!([{"metadata-file": "x", "timestamp-ms": 1}]),
                ),
                false,
            ),
            (NAME, b"{".to_vec(), false),
        ];
        for (name, bytes, is_free) in cases {
            let storage = Storage::from_store(Arc::new(object_store::memory::InMemory::new()));
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            storage
                .put(&format!("s3://b/lake/t/metadata/{name}"), bytes.into())
                .await
                .expect("stored");
            let checked = check_free(&storage, &ident, &ours).await;
            assert_eq!(checked.is_ok(), is_free, "{name}: {shown}");
        }
    }
}
