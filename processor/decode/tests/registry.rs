//! A real registry: what is registered there is read here, with references and with what was deleted since; and then without it.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::Array as _;
use arrow_array::cast::AsArray as _;
use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::{EventColumns, EventColumnsBuilder, Offset, TimestampType};
use everlog_decode::registry::{Auth, Registry, RegistryError, RegistrySettings};
use everlog_decode::{Columns, Decoder, misfits};
use everlog_services::SchemaRegistry;

const KIND: &str = r#"{"type":"enum","namespace":"shop","name":"Kind","symbols":["VIEW","BUY"]}"#;
const ITEM: &str = r#"{"type":"record","namespace":"shop","name":"Item","fields":[
    {"name":"id","type":"long"},{"name":"kind","type":"shop.Kind"}]}"#;
const EVENT_1: &str = r#"{"type":"record","namespace":"shop","name":"Event","fields":[
    {"name":"user_id","type":"string"},{"name":"item","type":"shop.Item"}]}"#;
const EVENT_2: &str = r#"{"type":"record","namespace":"shop","name":"Event","fields":[
    {"name":"campaign","type":["null","string"],"default":null},
    {"name":"user_id","type":"string"},{"name":"item","type":"shop.Item"},
    {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"},"default":5}]}"#;

fn rows(values: &[Vec<u8>]) -> EventColumns {
    let mut builder = EventColumnsBuilder::new();
    for (offset, value) in (0..).zip(values) {
        builder.push(
            Offset::new(offset).unwrap(),
            (0, TimestampType::Create),
            None,
            Some(value),
            std::iter::empty(),
            None,
        );
    }
    builder.finish()
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], id.to_be_bytes().as_slice(), body].concat()
}

fn open(url: &str, folder: &std::path::Path) -> Registry {
    let settings = RegistrySettings {
        url: url.to_owned(),
        auth: Auth::None,
        timeout: Duration::from_secs(10),
    };
    let clock = Arc::new(SystemClock::default());
    Registry::open(&settings, folder, clock, Arc::new(RandomIds)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_all_schemas_are_read_and_later_without_the_registry() {
    let server = SchemaRegistry::start();
    server.register("kind", KIND, &[]);
    server.register("item", ITEM, &["shop.Kind=kind:1"]);
    let references = ["shop.Item=item:1"];
    let first = server.register("events-value", EVENT_1, &references);
    let second = server.register("events-value", EVENT_2, &references);
    assert_ne!(first, second);
    let unknown = first.max(second) + 1_000;
    let values = [
        framed(first, b"\x04u1\x0e\x02"),
        framed(second, b"\x02\x02c\x04u2\x10\x00\xd0\x0f"),
        framed(unknown, b"\x04u3\x12\x00"),
    ];
    let rows = rows(&values);
    let folder = tempfile::tempdir().unwrap();

    // by declared columns
    let columns = [
        ("user_id", "STRING NOT NULL"),
        ("item", "ROW<kind STRING, id INT>"),
        ("campaign", "STRING"),
    ];
    let declared = || Decoder::avro(Columns::parse(columns).unwrap());
    let mut decoder = declared();
    let registry = open(&server.url, folder.path());
    registry.teach(&mut decoder, &rows).await.unwrap();
    let live = decoder.decode(&rows).unwrap();
    assert_eq!(live.kept.values(), &[0, 1]);
    let kinds = live.columns.column(1).as_struct().column(0);
    let kinds: Vec<_> = kinds.as_string::<i32>().iter().collect();
    assert_eq!(kinds, [Some("BUY"), Some("VIEW")]);
    let campaigns: Vec<_> = live.columns.column(2).as_string::<i32>().iter().collect();
    assert_eq!(campaigns, [None, Some("c")]);
    let why = format!("schema {unknown}: the registry does not know it: ");
    assert!(
        live.dead[0].error.starts_with(&why),
        "{}",
        live.dead[0].error
    );

    // by the newest schema
    let pinned = registry.pinned("events-value", "job-v1").await.unwrap();
    assert_eq!((pinned.id.0, pinned.version), (second, 2));
    let mut newest = Decoder::avro_as(&pinned.schema).unwrap();
    registry.teach(&mut newest, &rows).await.unwrap();
    let decoded = newest.decode(&rows).unwrap();
    let at = decoded.columns.column(3);
    assert_eq!(at.len(), 2);
    assert_eq!(at.to_data().buffers()[0].typed_data::<i64>(), [5, 1_000]);
    let newest = registry.newest("events-value").await.unwrap().unwrap();
    assert_eq!(newest, pinned);
    assert_eq!(registry.newest("nobody-value").await.unwrap(), None);
    assert_eq!(
        registry.versions("events-value").await.unwrap(),
        Some(vec![1, 2])
    );
    assert_eq!(registry.versions("nobody-value").await.unwrap(), None);
    let old = registry.version("events-value", 1).await.unwrap().unwrap();
    assert_eq!(old.id.0, first);
    assert_eq!(old.schema.references.len(), 2);
    assert_eq!(registry.version("events-value", 9).await.unwrap(), None);
    assert_eq!(
        registry.subjects().await.unwrap(),
        ["events-value", "item", "kind"]
    );
    assert_eq!(misfits(&pinned.schema, &old.schema), Ok(Vec::new()));
    let error = registry.pinned("nobody-value", "job-v1").await.unwrap_err();
    assert!(matches!(error, RegistryError::NoSubject { .. }), "{error}");

    // what a path does not lead to is no registry
    let elsewhere = open(
        &server.url.replace("/apis/ccompat/v7", "/nowhere"),
        folder.path(),
    );
    let error = elsewhere.schema(pinned.id).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");

    // years later: the registry is gone, and the answers are the same
    server.control("kill", &[]);
    let registry = open(&server.url, folder.path());
    let mut decoder = declared();
    registry.teach(&mut decoder, &rows).await.unwrap();
    let replayed = decoder.decode(&rows).unwrap();
    assert_eq!(replayed.columns, live.columns);
    assert_eq!(replayed.dead, live.dead);
    assert_eq!(
        registry.pinned("events-value", "job-v1").await.unwrap(),
        pinned
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_for_new_readers_is_there_for_old_records() {
    let server = SchemaRegistry::start();
    let id = server.register("old-value", KIND, &[]);
    server.control("delete", &["old-value"]);
    let folder = tempfile::tempdir().unwrap();
    let registry = open(&server.url, folder.path());
    let schema = registry.schema(everlog_decode::SchemaId(id)).await.unwrap();
    assert!(schema.unwrap().text.contains("shop"));
}
