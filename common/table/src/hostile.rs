//! Hostile input for the parsers of this crate: each gives a value or an error, and holds no more than its input allows.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use everlog_common::{Generation, Partition};
use everlog_hostile::{feed, feed_text};
use parquet::file::metadata::{FileMetaData, KeyValue};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::catalog::{check, parse_metadata, parse_namespace};
use crate::files::FileRange;
use crate::footer::{self, Marks};
use crate::schema::{PartitionBy, TableSettings};
use crate::storage::Storage;
use crate::test_table::{self, columns, range, rows};
use crate::{lease, manifests, sealed, summary};

fn marks() -> Marks {
    let range = |partition, start, end, rows| FileRange {
        generation: Generation::FIRST,
        partition: Partition::new(partition).unwrap(),
        range: range(start, end),
        rows,
    };
    Marks {
        topic: "orders.eu".to_owned(),
        ranges: vec![range(0, 0, 100, 90), range(7, 5, i64::MAX, 3)],
        checksums: (0..26).map(|n| n * 0x1234_5678_9abc).collect(),
    }
}

fn file_metadata(pairs: Vec<KeyValue>) -> FileMetaData {
    let schema = Type::group_type_builder("schema").build().unwrap();
    FileMetaData::new(
        2,
        1,
        Some(footer::created_by()),
        Some(pairs),
        std::sync::Arc::new(SchemaDescriptor::new(std::sync::Arc::new(schema))),
        None,
    )
}

#[test]
fn marks_of_a_footer_are_read_back_or_refused() {
    let pairs = marks().to_key_values();
    assert_eq!(Marks::of(&file_metadata(pairs.clone())), Ok(Some(marks())));
    for place in 0..pairs.len() {
        let good = pairs[place].value.clone().unwrap();
        feed_text(
            &pairs[place].key,
            &[good.as_str(), "[[0,0,0,1,1]]", ""],
            |text| {
                let mut pairs = pairs.clone();
                pairs[place].value = Some(text.to_owned());
                if let Ok(Some(read)) = Marks::of(&file_metadata(pairs)) {
                    let again = Marks::of(&file_metadata(read.to_key_values()));
                    assert_eq!(again, Ok(Some(read)));
                }
            },
        );
    }
    feed("checksums", &[&[0; 80], &[0xff; 7]], |bytes| {
        let mut pairs = pairs.clone();
        pairs[3].value = Some(STANDARD.encode(bytes));
        let whole = bytes.len() % 8 == 0;
        assert_eq!(Marks::of(&file_metadata(pairs)).is_ok(), whole);
    });
}

#[tokio::test]
async fn footers_are_sealed_or_refused_and_cost_what_they_are_long() {
    let storage = test_table::storage();
    let table = test_table::table(&TableSettings::default());
    let items = vec![rows(0, range(0, 50), vec![columns(0..50)])];
    let files = test_table::write(&table, &storage, items, 1 << 20)
        .await
        .unwrap();
    let planned = test_table::planned(&files[0]);
    let file = storage.get(&planned.path).await.unwrap();
    let tail = &file[file.len() - footer::TAIL_LEN..];
    let len = usize::try_from(u32::from_le_bytes(*tail.first_chunk().unwrap())).unwrap();
    let good = &file[file.len() - footer::TAIL_LEN - len..file.len() - footer::TAIL_LEN];
    assert_eq!(footer::sealed(good), Some(true));
    // by its size a file holds its footer: that was looked at before
    let sized = |bytes: &[u8]| crate::files::PlannedFile {
        size_bytes: planned.size_bytes + bytes.len() as u64,
        ..planned.clone()
    };
    feed("footer", &[good], |bytes| {
        let _ = crate::scan::check_footer(&sized(bytes), bytes);
        let sealed = footer::sealed(bytes) == Some(true);
        assert!(!sealed || bytes == good, "another footer has the seal");
    });
    // the same without a seal, as other engines write them: the parser itself has to notice
    let unsealed: Vec<u8> = good
        .iter()
        .map(|b| if *b == b'.' { b'_' } else { *b })
        .collect();
    feed("footer of another engine", &[&unsealed], |bytes| {
        let _ = crate::scan::check_footer(&sized(bytes), bytes);
    });
}

#[tokio::test]
async fn table_metadata_is_read_or_refused() {
    let table = test_table::table(&TableSettings::default());
    let json = serde_json::to_vec(&*table.metadata).unwrap();
    let uri = "memory://lake/t/metadata/v1.metadata.json";
    feed("metadata.json", &[&json], |bytes| {
        // what is packed is bounded for itself
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return;
        }
        if let Ok(metadata) = parse_metadata(uri, bytes) {
            let _ = summary::find_ledger(&metadata, None, &BTreeMap::new());
            let _ = summary::find_commit(&metadata, uuid::Uuid::nil());
            let _ = crate::schema::ColumnMap::resolve(metadata.current_schema());
        }
        let _ = crate::catalog::MetadataOwner::of(bytes);
    });
}

#[test]
fn names_and_addresses_are_read_or_refused() {
    let corpus = [
        "s3://bucket/lake/t/metadata/00003-0b7f3a3e-5d0c-8c5e-9b6e-0123456789ab.metadata.json",
        "file:///var/lib/everlog/t/data/a.parquet",
        "abfss://c@a.dfs.core.windows.net/t/x-x0123450123456789abcdef.avro",
        "/a/b/../c",
    ];
    let storage = Storage::from_properties(&BTreeMap::new()).unwrap();
    let inside = storage.within("s3://bucket/lake/t").unwrap();
    feed_text("location", &corpus, |uri| {
        let _ = sealed::is_intact(uri, b"x");
        let _ = sealed::without_contents(uri);
        let _ = (
            crate::files::is_table_file(uri),
            crate::files::is_metadata_file(uri),
        );
        // whatever is inside by our judgement begins with the folder, and leads nowhere else
        if inside.allows(uri) {
            let (_, path) = uri.split_once("://").expect("a scheme");
            assert!(
                path == "bucket/lake/t" || path.starts_with("bucket/lake/t/"),
                "{uri}"
            );
            assert!(
                !path.split('/').any(|part| part == ".." || part == "."),
                "{uri}"
            );
        }
    });
    let deadline = lease::tag_name(everlog_common::Millis(1_760_000_000_000), uuid::Uuid::nil());
    feed_text("lease", &[&deadline, "everlog-lease-guard"], |tag| {
        let _ = lease::deadline_of(tag);
    });
    feed_text(
        "partition spec",
        &[
            "day(archived_at)",
            "bucket(16, partition), identity(generation)",
            "none",
        ],
        |text| {
            if let Ok(spec) = text.parse::<PartitionBy>() {
                assert_eq!(
                    spec.to_string().parse::<PartitionBy>().unwrap().to_string(),
                    spec.to_string()
                );
            }
        },
    );
    feed_text("namespace", &["lake.everlog", "a"], |text| {
        let _ = parse_namespace(text);
    });
}

#[test]
fn catalog_properties_are_right_or_refused() {
    let sql = "type=sql\nuri=sqlite:///lake/c.db\nwarehouse=file:///lake\neverlog.catalog.request-timeout=30s\n\
               everlog.storage.max-retries=8\neverlog.storage.allowed-locations=s3://a/b,/c";
    let postgres = "type=sql\nuri=postgres://ann:s3cret@db:5432/lake?sslmode=require\nwarehouse=s3://b/w\n\
                    s3.endpoint=http://127.0.0.1:9000\ns3.access-key-id=x\ns3.secret-access-key=y\ns3.region=z";
    let rest = "type=rest\nuri=https://catalog:8181\nwarehouse=w\ncredential=a:b\nscope=c\nheader.X-A=b\n\
                oauth2-server-uri=v1/oauth/tokens";
    feed_text("catalog properties", &[sql, postgres, rest], |text| {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let properties = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let _ = check(&properties);
    });
}

#[test]
fn answers_of_a_rest_catalog_are_read_or_refused() {
    let table = test_table::table(&TableSettings::default());
    let load = serde_json::json!({
        "metadata-location": "s3://b/x", "metadata": &*table.metadata, "config": {"s3.access-key-id": "x", "y": null},
        "storage-credentials": [{"prefix": "s3://b", "config": {"a": "b"}}],
    });
    let load = load.to_string();
    let corpus = [
        load.as_str(),
        r#"{"defaults":{"a":null,"b":"1"},"overrides":{"prefix":"p"},"idempotency-key-lifetime":"PT30M"}"#,
        r#"{"identifiers":[{"namespace":["a","b"],"name":"t"}],"next-page-token":"x"}"#,
        r#"{"access_token":"t0ken","token_type":"bearer","expires_in":3600}"#,
        r#"{"error":{"message":"no such table","type":"NoSuchTableException","code":404}}"#,
        r#"{"error":"invalid_client","error_description":"no"}"#,
        "<html>bad gateway</html>",
    ];
    feed_text("REST answer", &corpus, |text| {
        crate::catalog::rest::read_every_answer(
            &Bytes::copy_from_slice(text.as_bytes()),
            &table.ident,
        );
    });
}

/// The Avro parser is the library's, and bounds its own memory: what is ours is that nothing of it ends the process.
#[tokio::test]
async fn manifests_under_foreign_names_end_nothing() {
    let storage = test_table::storage();
    let table = test_table::table(&TableSettings::default());
    let items = vec![rows(0, range(0, 50), vec![columns(0..50)])];
    let files = test_table::write(&table, &storage, items, 1 << 20)
        .await
        .unwrap();
    let target = manifests::Target {
        metadata: &table.metadata,
        storage: &storage,
        snapshot_id: 7,
    };
    let data: Vec<_> = files.into_iter().map(|file| file.data_file).collect();
    let stem = "memory://lake/everlog/orders_eu/metadata/m";
    let file = target.add(stem, 0, data).await.unwrap();
    let good = storage.get(&file.manifest_path).await.unwrap();
    manifests::read_manifest(&storage, &file).await.unwrap();
    let foreign = format!("{stem}0.avro");
    let mut cases = Vec::new();
    {
        let cases = std::cell::RefCell::new(&mut cases);
        feed("manifest", &[&good], |bytes| {
            if cases.borrow().len() < 3_000 {
                cases.borrow_mut().push(Bytes::copy_from_slice(bytes));
            }
        });
    }
    for bytes in cases {
        let mut file = file.clone();
        file.manifest_path.clone_from(&foreign);
        file.manifest_length = i64::try_from(bytes.len()).unwrap();
        storage.put(&foreign, bytes).await.unwrap();
        let _ = manifests::read_manifest(&storage, &file).await;
    }
}
