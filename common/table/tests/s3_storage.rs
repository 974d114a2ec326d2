//! Storage on a real S3 server.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use everlog_table::storage::{Storage, StorageErrorKind as Kind};
use futures::TryStreamExt;
use support::{chain, s3, with};

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_any_name_and_size_come_back_as_written() {
    let (_service, reach) = s3();
    let storage = Storage::from_properties(&reach).expect("storage");
    let names = [
        "plain",
        "a b",
        "50%",
        "x%20y",
        "ä/日本",
        "q?x=1&y",
        "hash#tag",
        "plus+~^`{}[]|",
        "a/b/c=d",
    ];
    let written: BTreeSet<String> = names
        .iter()
        .map(|name| format!("s3://warehouse/n/{name}"))
        .collect();
    for uri in &written {
        storage.put(uri, Bytes::from(uri.clone())).await.expect(uri);
        assert_eq!(storage.get(uri).await.expect(uri), uri.as_bytes());
    }
    let listed = storage.list("s3://warehouse/n/").expect("list");
    let listed: Vec<_> = listed.try_collect().await.expect("list");
    assert_eq!(
        listed
            .iter()
            .map(|o| o.uri.clone())
            .collect::<BTreeSet<_>>(),
        written
    );
    assert!(
        listed
            .iter()
            .all(|object| object.last_modified.0 > 1_700_000_000_000)
    );
    for uri in &written {
        storage.delete(uri).await.expect(uri);
        storage.delete(uri).await.expect(uri);
        assert!(!storage.exists(uri).await.expect(uri));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_objects_go_out_in_parts_and_are_invisible_until_finished() {
    let (_service, reach) = s3();
    let storage = Storage::from_properties(&reach).expect("storage");
    let uri = "s3://warehouse/big/f.parquet";
    let mut expected = Vec::new();
    let mut upload = storage.writer(uri).expect("writer");
    for (fill, size) in [(1, 5), (2, 45 * MIB + 3), (3, MIB)] {
        let piece = Bytes::from(vec![fill; size]);
        expected.extend_from_slice(&piece);
        upload.write(piece).await.expect("write");
    }
    assert!(!storage.exists(uri).await.expect("exists"));
    assert_eq!(
        upload.finish().await.expect("finish"),
        expected.len() as u64
    );
    assert_eq!(
        storage.size(uri).await.expect("size"),
        expected.len() as u64
    );
    assert!(storage.get(uri).await.expect("get") == expected);
    let across = 8 * MIB as u64 - 3..8 * MIB as u64 + 5;
    let ranges = [
        across.clone(),
        0..7,
        expected.len() as u64 - 4..expected.len() as u64,
    ];
    let got = storage.get_ranges(uri, &ranges).await.expect("ranges");
    for (range, bytes) in ranges.iter().zip(got) {
        let range = usize::try_from(range.start).expect("in memory")
            ..usize::try_from(range.end).expect("in memory");
        assert_eq!(bytes, expected[range]);
    }
    let end = expected.len() as u64;
    storage
        .get_range(uri, end - 2..end + 2)
        .await
        .expect_err("beyond the end");
    let mut given_up = storage.writer("s3://warehouse/big/none").expect("writer");
    given_up
        .write(vec![0; 17 * MIB].into())
        .await
        .expect("write");
    given_up.abort().await.expect("abort");
    assert!(
        !storage
            .exists("s3://warehouse/big/none")
            .await
            .expect("exists")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do_about_them() {
    let (_service, reach) = s3();
    let storage = Storage::from_properties(&reach).expect("storage");
    let error = storage
        .get("s3://warehouse/none")
        .await
        .expect_err("missing");
    assert_eq!(error.kind(), Kind::NotFound, "{}", chain(&error));
    let wrong = with(reach.clone(), &[("s3.secret-access-key", "wrong")]);
    let wrong = Storage::from_properties(&wrong).expect("storage");
    let error = wrong
        .put("s3://warehouse/x", "x".into())
        .await
        .expect_err("denied");
    assert_eq!(error.kind(), Kind::Unauthorized, "{}", chain(&error));
    let mut upload = wrong.writer("s3://warehouse/x").expect("writer");
    let error = upload
        .write(vec![0; 9 * MIB].into())
        .await
        .expect_err("denied");
    assert_eq!(error.kind(), Kind::Unauthorized, "{}", chain(&error));
    upload.write("x".into()).await.expect_err("failed before");
    upload.finish().await.expect_err("failed before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_or_is_gone_is_given_up_in_time_and_waited_for_within_it() {
    let (service, reach) = s3();
    let bounds = [
        ("everlog.storage.connect-timeout", "500ms"),
        ("everlog.storage.request-timeout", "1s"),
        ("everlog.storage.retry-timeout", "3s"),
    ];
    let storage = Storage::from_properties(&with(reach.clone(), &bounds)).expect("storage");
    storage
        .put("s3://warehouse/x", "x".into())
        .await
        .expect("put");
    service.run("pause", &[]);
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        // on a busy machine a stopped process may answer for a moment
        loop {
            if let Err(error) = storage.get("s3://warehouse/x").await {
                return error;
            }
        }
    });
    let error = waited.await.expect("bounded");
    assert_eq!(error.kind(), Kind::Transient, "{}", chain(&error));
    service.run("resume", &[]);
    assert_eq!(storage.get("s3://warehouse/x").await.expect("back"), "x");
    service.run("kill", &[]);
    let waited = tokio::time::timeout(Duration::from_secs(20), storage.get("s3://warehouse/x"));
    let error = waited.await.expect("bounded").expect_err("gone");
    assert_eq!(error.kind(), Kind::Transient, "{}", chain(&error));
    // one that comes back while we try is not noticed by the caller
    let patient = Storage::from_properties(&reach).expect("storage");
    let (got, ()) = tokio::join!(patient.get("s3://warehouse/x"), async {
        service.restart(&["warehouse"]);
    });
    assert_eq!(got.expect("waited for"), "x");
}
