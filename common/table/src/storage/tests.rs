use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutResult, path::Path,
};

use super::*;

const MIB: usize = 1024 * 1024;

fn local() -> Storage {
    Storage::from_properties(&BTreeMap::new()).expect("storage")
}

async fn uris(storage: &Storage, prefix: &str) -> BTreeSet<String> {
    let listed = storage
        .list(prefix)
        .expect("list")
        .map_ok(|object| object.uri);
    listed.try_collect().await.expect("list")
}

#[tokio::test]
async fn names_with_spaces_percent_signs_and_unicode_come_back_as_written() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().to_str().expect("utf-8");
    for base in [
        root.to_owned(),
        format!("file://{root}"),
        format!("file:{root}"),
    ] {
        let storage = local();
        let names = [
            "plain",
            "a b",
            "50%",
            "x%20y",
            "ä/日本",
            "q?x=1&y",
            "hash#tag",
            "plus+~^`{}[]|",
        ];
        let written: BTreeSet<String> = names
            .iter()
            .map(|name| format!("{base}/t {}/{name}/f.json", base.len()))
            .collect();
        for uri in &written {
            storage.put(uri, Bytes::from(uri.clone())).await.expect(uri);
        }
        for uri in &written {
            assert_eq!(storage.get(uri).await.expect(uri), uri.as_bytes());
            assert_eq!(storage.size(uri).await.expect(uri), uri.len() as u64);
        }
        assert_eq!(
            uris(&storage, &format!("{base}/t {}", base.len())).await,
            written
        );
    }
    let literal = folder
        .path()
        .join(format!("t {}", root.len()))
        .join("x%20y/f.json");
    assert!(
        literal.is_file(),
        "nothing is decoded on the way to the disk"
    );
}

#[tokio::test]
async fn of_many_that_create_an_object_one_does_and_it_stays_whole() {
    let folder = tempfile::tempdir().expect("folder");
    let uri = format!("{}/new/folder/0001.epoch", folder.path().display());
    for storage in [local(), Storage::from_store(Arc::new(InMemory::new()))] {
        let ask = |n: u8| {
            let (storage, uri) = (storage.clone(), uri.clone());
            async move {
                let bytes = Bytes::from(vec![n; MIB]);
                storage.create(&uri, bytes).await.expect("create")
            }
        };
        let created = futures::future::join_all((0..16).map(ask)).await;
        assert_eq!(created.iter().filter(|is_new| **is_new).count(), 1);
        let winner = created.iter().position(|is_new| *is_new).expect("one");
        let there = storage.get(&uri).await.expect("there");
        assert!(there.len() == MIB && there.iter().all(|b| usize::from(*b) == winner));
        let listed = uris(&storage, &format!("{}/new", folder.path().display())).await;
        assert_eq!(
            listed,
            BTreeSet::from([uri.clone()]),
            "nothing else is left"
        );
    }
    let left = std::fs::read_dir(folder.path().join("new/folder")).expect("folder");
    assert_eq!(left.count(), 1);
}

#[tokio::test]
async fn what_is_missing_is_not_found_and_can_be_deleted() {
    let folder = tempfile::tempdir().expect("folder");
    let uri = format!("{}/no/such/file", folder.path().display());
    let storage = local();
    let error = storage.get(&uri).await.expect_err("missing");
    assert_eq!(error.kind(), StorageErrorKind::NotFound, "{error}");
    assert!(!storage.exists(&uri).await.expect("exists"));
    storage.delete(&uri).await.expect("delete");
    assert!(uris(&storage, &uri).await.is_empty());
    let error = storage.get("file:///").await.expect_err("no object");
    assert_eq!(error.kind(), StorageErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn ranges_come_back_in_the_order_asked_and_empty_ones_empty() {
    let storage = Storage::from_store(Arc::new(InMemory::new()));
    storage
        .put("memory://b/f", "0123456789".into())
        .await
        .expect("put");
    let got = storage
        .get_ranges("memory://b/f", &[7..10, 3..3, 0..2])
        .await
        .expect("ranges");
    assert_eq!(got, ["789", "", "01"].map(Bytes::from));
    assert!(
        storage
            .get_range("memory://b/f", 4..4)
            .await
            .expect("empty")
            .is_empty()
    );
}

#[tokio::test]
async fn p13_a_range_answered_short_is_an_error() {
    let inner = InMemory::new();
    let storage = Storage::from_store(Arc::new(Faulty {
        inner,
        fault: Fault::ShortReads,
    }));
    storage
        .put("memory://b/f", "0123456789".into())
        .await
        .expect("put");
    let short = storage
        .get_range("memory://b/f", 2..8)
        .await
        .expect_err("short");
    assert_eq!(short.kind(), StorageErrorKind::Corrupt);
    assert!(
        short
            .to_string()
            .contains("got 5 bytes from position 2 where 6"),
        "{short}"
    );
    storage
        .get_ranges("memory://b/f", &[0..4, 5..10])
        .await
        .expect_err("short");
    storage.get("memory://b/f").await.expect_err("short");
    // beyond the end is short, too
    let honest = Storage::from_store(Arc::new(InMemory::new()));
    honest
        .put("memory://b/f", "0123456789".into())
        .await
        .expect("put");
    honest
        .get_range("memory://b/f", 8..12)
        .await
        .expect_err("beyond the end");
}

#[tokio::test]
async fn an_upload_of_any_size_is_whole_and_invisible_until_finished() {
    let folder = tempfile::tempdir().expect("folder");
    let places = [
        (local(), format!("file://{}", folder.path().display())),
        (
            Storage::from_store(Arc::new(InMemory::new())),
            "memory://b".to_owned(),
        ),
    ];
    for (storage, base) in places {
        for (name, sizes) in [
            ("empty", vec![]),
            ("small", vec![3, 5]),
            ("one part", vec![8 * MIB]),
            ("many", vec![1, 20 * MIB + 7, 3, 8 * MIB]),
        ] {
            let uri = format!("{base}/{name}");
            let mut upload = storage.writer(&uri).expect("writer");
            let mut expected = Vec::new();
            for (fill, size) in sizes.into_iter().enumerate() {
                let piece = Bytes::from(vec![u8::try_from(fill).unwrap_or(0); size]);
                expected.extend_from_slice(&piece);
                upload.write(piece).await.expect("write");
            }
            assert!(!storage.exists(&uri).await.expect("exists"), "{uri}");
            assert_eq!(
                upload.finish().await.expect("finish"),
                expected.len() as u64
            );
            assert!(storage.get(&uri).await.expect("get") == expected, "{uri}");
        }
        let uri = format!("{base}/given up");
        let mut upload = storage.writer(&uri).expect("writer");
        upload.write(vec![1; 9 * MIB].into()).await.expect("write");
        upload.abort().await.expect("abort");
        assert!(!storage.exists(&uri).await.expect("exists"), "{uri}");
    }
}

#[tokio::test]
async fn p10_an_upload_whose_completion_answer_is_lost_is_found_to_be_there() {
    let uri = "memory://b/f";
    for (fault, there) in [
        (Fault::LostCompletion, true),
        (Fault::FailedCompletion, false),
        (Fault::FailedParts, false),
    ] {
        let storage = Storage::from_store(Arc::new(Faulty {
            inner: InMemory::new(),
            fault,
        }));
        let mut upload = storage.writer(uri).expect("writer");
        let finished = match upload.write(vec![7; 17 * MIB].into()).await {
            Ok(()) => upload.finish().await,
            Err(error) => Err(error),
        };
        assert_eq!(finished.is_ok(), there, "{fault:?}: {finished:?}");
        assert_eq!(
            storage.exists(uri).await.expect("exists"),
            there,
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn iceberg_reads_and_writes_through_the_same_storage() {
    let storage = Storage::from_store(Arc::new(InMemory::new()));
    let io = storage.file_io();
    let output = io.new_output("memory://b/m.avro").expect("output");
    let mut writer = output.writer().await.expect("writer");
    writer.write("abc".into()).await.expect("write");
    writer.write("def".into()).await.expect("write");
    writer.close().await.expect("close");
    writer.close().await.expect_err("closed already");
    assert_eq!(
        storage.get("memory://b/m.avro").await.expect("get"),
        "abcdef"
    );
    let input = io.new_input("memory://b/m.avro").expect("input");
    assert_eq!(input.metadata().await.expect("metadata").size, 6);
    let reader = input.reader().await.expect("reader");
    assert_eq!(reader.read(1..4).await.expect("read"), "bcd");
    io.delete("memory://b/m.avro").await.expect("delete");
    assert!(!io.exists("memory://b/m.avro").await.expect("exists"));
}

#[test]
fn clients_of_every_store_are_made_from_icebergs_property_names() {
    let properties = |pairs: &[(&str, &str)]| {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Storage::from_properties(&pairs.collect()).expect("storage")
    };
    let s3 = properties(&[
        ("s3.endpoint", "http://127.0.0.1:9000"),
        ("s3.access-key-id", "k"),
        ("s3.secret-access-key", "s"),
        ("s3.region", "eu-west-1"),
    ]);
    s3.writer("s3://bucket/key").expect("s3");
    s3.writer("s3a://other/key").expect("s3a");
    properties(&[("gcs.oauth2.token", "t")])
        .writer("gs://bucket/key")
        .expect("gs");
    let sas = [("adls.sas-token.acc", "?sv=1&sig=a%2Bb")];
    properties(&sas)
        .writer("abfss://c@acc.dfs.core.windows.net/key")
        .expect("abfss");
    let key = [
        ("adls.account-name", "acc"),
        ("adls.account-key", "aGVsbG8="),
    ];
    properties(&key)
        .writer("abfss://c/key")
        .expect("abfss by account name");
}

/// A stand-in for Google's store that takes any object, and tells what it was asked.
async fn answers_anything() -> (String, tokio::task::JoinHandle<String>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut asked = Vec::new();
        while !asked.ends_with(b"rows") {
            let read = stream.read_buf(&mut asked).await.expect("a request");
            assert!(read > 0, "{}", String::from_utf8_lossy(&asked));
        }
        let answer =
            "HTTP/1.1 200 OK\r\netag: \"1\"\r\nx-goog-generation: 1\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("answered");
        String::from_utf8_lossy(&asked).to_lowercase()
    });
    (address, asked)
}

#[tokio::test]
async fn a_store_without_authentication_is_written_to_without_asking_anybody_for_a_token() {
    let (address, asked) = answers_anything().await;
    let properties = [
        ("gcs.service.host", address.as_str()),
        ("gcs.no-auth", "true"),
        // whoever asks for a token asks a machine of Google's cloud, where this is none
        ("everlog.storage.max-retries", "0"),
        ("everlog.storage.retry-timeout", "5s"),
        ("everlog.storage.connect-timeout", "2s"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()));
    let storage = Storage::from_properties(&properties.into()).expect("storage");
    let put = storage.put("gs://bucket/t/f", "rows".into());
    tokio::time::timeout(std::time::Duration::from_secs(30), put)
        .await
        .expect("in time")
        .expect("put");
    let asked = asked.await.expect("a request");
    assert!(asked.starts_with("put /bucket/t%2ff"), "{asked}");
    let secret = asked
        .lines()
        .find_map(|line| line.strip_prefix("authorization:"));
    let secret = secret.map(|value| value.trim().trim_start_matches("bearer").trim());
    assert!(secret.is_none_or(str::is_empty), "{asked}");
}

#[test]
fn wrong_properties_are_refused_by_name() {
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[("s3.access-key-id", "k")], "s3.secret-access-key"),
        (&[("s3.endpoint", "127.0.0.1:9000")], "s3.endpoint"),
        (&[("s3.path-style-access", "yes")], "s3.path-style-access"),
        (
            &[("s3.remote-signing-enabled", "true")],
            "s3.remote-signing-enabled",
        ),
        (&[("s3.sse.type", "kms")], "s3.sse.key"),
    ];
    for (pairs, name) in cases {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let storage = Storage::from_properties(&pairs.collect()).expect("storage");
        let error = storage.writer("s3://bucket/key").expect_err(name);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.kind(), StorageErrorKind::Invalid);
    }
}

#[test]
fn secrets_are_not_printed() {
    let pairs = [
        ("s3.access-key-id", "AKIA"),
        ("s3.secret-access-key", "s3cret"),
    ];
    let pairs = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let storage = Storage::from_properties(&pairs.collect()).expect("storage");
    let printed = format!("{storage:?}");
    assert!(
        printed.contains("s3.secret-access-key") && !printed.contains("s3cret"),
        "{printed}"
    );
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// Every read is answered one byte short.
    ShortReads,
    /// Parts are refused.
    FailedParts,
    /// The completion of an upload succeeds, and its answer is lost.
    LostCompletion,
    /// The completion of an upload fails.
    FailedCompletion,
}

/// A store in memory with one fault.
#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    fault: Fault,
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    fault: Fault,
}

fn injected() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "injected".into(),
    }
}

#[async_trait::async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> object_store::UploadPart {
        if self.fault == Fault::FailedParts {
            return Box::pin(async { Err(injected()) });
        }
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        if self.fault != Fault::FailedCompletion {
            self.inner.complete().await?;
        }
        Err(injected())
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.inner.abort().await
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultyUpload {
            inner,
            fault: self.fault,
        }))
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let head = options.head;
        let got = self.inner.get_opts(location, options).await?;
        if head || self.fault != Fault::ShortReads {
            return Ok(got);
        }
        let (meta, range, attributes) =
            (got.meta.clone(), got.range.clone(), got.attributes.clone());
        let bytes = got.bytes().await?;
        let short = bytes.slice(..bytes.len() - 1);
        let stream = futures::stream::once(async move { Ok(short) }).boxed();
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream),
            meta,
            range,
            attributes,
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn what_an_interrupted_write_left_beside_a_name_goes_by_age_and_nothing_else_does() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data/day=1");
    std::fs::create_dir_all(&data).expect("folders");
    let made = |name: &str, age_s: u64| {
        let path = data.join(name);
        std::fs::write(&path, b"half").expect("written");
        let file = std::fs::File::options().write(true).open(&path);
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 - age_s);
        file.and_then(|file| file.set_modified(at)).expect("aged");
        path
    };
    let left = [made("a.parquet#1", 100), made("b.metadata.json#12", 100)];
    let kept = [
        made("a.parquet", 100),
        made("young.parquet#1", 10),
        made("notes#1", 100),
        made("c.parquet#", 100),
        made("d.parquet#x", 100),
    ];
    let storage = local();
    let prefix = format!("file://{}/data", folder.path().display());
    assert!(
        !uris(&storage, &prefix)
            .await
            .iter()
            .any(|uri| uri.contains("#1")),
        "listings do not show them"
    );
    // the library's listing fails on it; removal does not follow it
    std::os::unix::fs::symlink(folder.path(), data.join("loop")).expect("a link");
    let before = Millis(1_700_000_000_000 - 50_000);
    let removed = storage
        .remove_staged(&prefix, before)
        .await
        .expect("removed");
    assert_eq!(removed, Removed { files: 2, bytes: 8 });
    assert!(left.iter().all(|path| !path.exists()));
    assert!(kept.iter().all(|path| path.exists()));
    let nowhere = format!("{prefix}/nowhere");
    let removed = storage
        .remove_staged(&nowhere, before)
        .await
        .expect("nothing there");
    assert_eq!(removed, Removed::default());
}

#[tokio::test]
async fn nothing_outside_of_a_folder_is_read_written_listed_or_deleted() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| format!("file://{}/{name}", folder.path().display());
    let properties =
        BTreeMap::from([("everlog.storage.allowed-locations".to_owned(), at("shared"))]);
    let everywhere = Storage::from_properties(&properties).expect("a storage");
    let bytes = || Bytes::from_static(b"rows");
    let outside = [
        at("other/x.parquet"),
        at("t2/x.parquet"),
        at("x.parquet"),
        format!("{}/t/../other/x.parquet", at("")),
        at("t/%2e%2e/other/x.parquet"),
        at("t/..%2Fother/x.parquet"),
        at("t/a%5c..%5c..%5cother/x.parquet"),
        "/etc/hostname".to_owned(),
        "file:/etc/hostname".to_owned(),
        "s3://bucket/t/x.parquet".to_owned(),
        "ftp://bucket/t/x.parquet".to_owned(),
    ];
    for uri in [at("other/x.parquet"), at("t2/x.parquet"), at("x.parquet")] {
        everywhere.put(&uri, bytes()).await.expect("stored");
    }
    let table = everywhere.within(&at("t")).expect("a folder");
    for uri in &outside {
        let refused = |error: StorageError| {
            assert_eq!(error.kind(), StorageErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains(uri.as_str()), "{error}");
        };
        refused(table.get(uri).await.expect_err(uri));
        refused(table.get_range(uri, 0..1).await.expect_err(uri));
        refused(table.get_ranges(uri, &[0..1, 2..3]).await.expect_err(uri));
        refused(table.size(uri).await.expect_err(uri));
        refused(table.exists(uri).await.expect_err(uri));
        refused(table.put(uri, bytes()).await.expect_err(uri));
        refused(table.writer(uri).expect_err(uri));
        refused(table.delete(uri).await.expect_err(uri));
        refused(table.list(uri).map(drop).expect_err(uri));
        refused(
            table
                .remove_staged(uri, Millis(i64::MAX))
                .await
                .expect_err(uri),
        );
        let io = table.file_io();
        assert!(
            io.new_input(uri).expect("a name").read().await.is_err(),
            "{uri}"
        );
    }
    table.list(&at("")).map(drop).expect_err("the folder above");
    for uri in [at("other/x.parquet"), at("t2/x.parquet"), at("x.parquet")] {
        assert_eq!(everywhere.get(&uri).await.expect("still there"), bytes());
    }
    for uri in [
        at("t/data/a.parquet"),
        at("shared/b.parquet"),
        format!("{}/t/c.parquet", folder.path().display()),
    ] {
        table.put(&uri, bytes()).await.expect("inside");
        assert_eq!(table.get(&uri).await.expect("inside"), bytes());
        table.delete(&uri).await.expect("inside");
    }
    // a folder within is as wide as both allow
    table.within(&at("t/data")).expect("inside");
    table.within(&at("shared/x")).expect("allowed");
    let error = table.within(&at("other")).map(drop).expect_err("outside");
    assert!(error.to_string().contains("allowed-locations"), "{error}");
}
