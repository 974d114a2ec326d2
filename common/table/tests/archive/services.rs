//! The decisive cases once more on real catalogs: SQLite over a local folder, and Iceberg's own REST server.

use std::sync::Arc;
use std::time::Duration;

use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::{Ledger, TopicName};
use everlog_table::archive::{
    Archive, ArchiveDeps, ArchiveErrorKind, ArchiveOptions, CommitOutcome,
};
use everlog_table::catalog::{Catalog, connect};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::scan;
use everlog_table::schema::TableSettings;
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{committed, rows, topic, written};
use crate::support::{Properties, Service, properties, s3, with};

/// Processes on one real table.
struct Lake {
    properties: Properties,
    topic: TopicName,
}

impl Lake {
    async fn process(&self) -> Archive {
        let catalog: Arc<dyn Catalog> = connect(&self.properties).await.expect("a catalog");
        let deps = ArchiveDeps {
            catalog,
            clock: Arc::new(SystemClock::default()),
            ids: Arc::new(RandomIds),
        };
        let settings = TableSettings::default();
        Archive::open_or_create(deps, "everlog", &self.topic, &settings)
            .await
            .expect("an archive")
            .with_options(ArchiveOptions {
                expiry: Some(ExpirySettings {
                    age_max: Duration::from_millis(1),
                    count_min: 5,
                    ..ExpirySettings::default()
                }),
                ..ArchiveOptions::default()
            })
    }

    async fn append(&self, archive: &Archive, number: i32, count: i64) -> Ledger {
        let ledger = archive.state().await.expect("a state").ledger;
        let request = written(archive, &ledger, number, count, &SystemClock::default()).await;
        committed(archive.append(request).await)
    }

    /// Every offset once, in every partition, as a reader gets them.
    async fn check(&self, ledger: &Ledger) {
        let archive = self.process().await;
        let pinned = archive
            .pin(&SnapshotSelector::Current, LeaseMode::Auto)
            .await
            .expect("a pin");
        assert_eq!(&pinned.ledger, ledger);
        assert!(pinned.lease.is_some());
        let mut offsets: std::collections::BTreeMap<i32, Vec<i64>> =
            std::collections::BTreeMap::new();
        for file in pinned.files().await.expect("files") {
            let footer = scan::read_footer(pinned.storage(), &file)
                .await
                .expect("a footer");
            for group in &footer.row_groups {
                let runs = scan::read_row_group(
                    pinned.storage(),
                    &file,
                    &footer,
                    group.index,
                    &self.topic,
                )
                .await
                .expect("rows");
                for run in runs {
                    let held = offsets.entry(run.partition.get()).or_default();
                    held.extend(run.columns.offsets.values());
                }
            }
        }
        for (number, count) in rows(ledger) {
            let held = offsets.remove(&number).unwrap_or_default();
            let all: Vec<i64> = (0..i64::try_from(count).expect("few")).collect();
            assert_eq!(held, all, "partition {number}");
        }
        pinned.release().await;
    }
}

fn sqlite(folder: &tempfile::TempDir) -> Lake {
    let path = folder.path().display();
    Lake {
        properties: properties(&[
            ("type", "sql"),
            ("uri", &format!("sqlite://{path}/catalog.db")),
            ("warehouse", &format!("file://{path}/warehouse")),
        ]),
        topic: topic(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_two_processes_commit_and_every_offset_is_there_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let lake = sqlite(&folder);
    let (one, two) = (lake.process().await, lake.process().await);
    lake.append(&one, 0, 10).await;
    lake.append(&two, 1, 10).await;
    let (left, right) = tokio::join!(
        async {
            for _ in 0..15 {
                lake.append(&one, 0, 7).await;
            }
        },
        async {
            for _ in 0..15 {
                lake.append(&two, 1, 3).await;
            }
        }
    );
    let ((), ()) = (left, right);
    let ledger = one.state().await.expect("a state").ledger;
    assert_eq!(rows(&ledger), [(0, 115), (1, 55)].into());
    let report = one
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(report.files_deleted, 0, "all of it is young");
    assert!(report.held_back.is_none(), "{report:?}");
    lake.check(&ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_rest_every_kind_of_lost_reply_leaves_every_offset_once() {
    let warehouse = tempfile::tempdir().expect("a folder");
    let location = format!("file://{}/lake", warehouse.path().display());
    let server = Service::start("catalog.sh", &[&location]);
    let lake = Lake {
        properties: properties(&[("type", "rest"), ("uri", &server.said)]),
        topic: topic(),
    };
    let archive = lake.process().await;
    let mut ledger = lake.append(&archive, 0, 10).await;
    for fault in [
        "mode=after&status=503",
        "mode=after&status=500",
        "mode=before&status=503",
        "mode=before&status=502",
        "mode=before&status=429",
        "mode=conflict",
        "mode=drop",
        "mode=drop-before",
    ] {
        let request = written(&archive, &ledger, 0, 5, &SystemClock::default()).await;
        server.run("fault", &[fault]);
        let mut outcome = archive.append(request).await.expect(fault);
        while let CommitOutcome::Unknown(pending) = outcome {
            outcome = archive.resolve(pending).await.expect(fault);
        }
        ledger = committed(Ok(outcome));
    }
    assert_eq!(rows(&ledger), [(0, 50)].into());
    // Another process goes on, with snapshots expiring along.
    let other = lake.process().await;
    for _ in 0..30 {
        ledger = lake.append(&other, 1, 2).await;
    }
    let left = other.snapshots().await.expect("snapshots").len();
    assert!(left < 25, "{left} snapshots");
    lake.check(&ledger).await;
}

/// A way to an S3 server on which objects whose key contains `old-` look two days old in listings. Nothing else is touched.
async fn aging(upstream: u16) -> (tokio::task::JoinSet<()>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", upstream)).await;
            let Ok(server) = server else { continue };
            connections.spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let requests =
                    async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
                let answers = async {
                    let (mut aged, mut buffer) = (Aged::default(), vec![0; 64 << 10]);
                    while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                        let passed = aged.pass(&buffer[..read]);
                        if to_client.write_all(&passed).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! { () = requests => {}, () = answers => {} }
            });
        }
    });
    (tasks, port)
}

/// What is read of an answer so far.
#[derive(Default)]
struct Aged {
    /// The end of what was passed on: tags may be cut by the end of a read.
    line: Vec<u8>,
    is_old: bool,
    /// Bytes of a date still to be put in place.
    date: std::collections::VecDeque<u8>,
}

impl Aged {
    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut passed = Vec::with_capacity(bytes.len());
        for byte in bytes {
            passed.push(self.date.pop_front().unwrap_or(*byte));
            self.line.push(*byte);
            if self.line.ends_with(b"<Key>") {
                self.is_old = false;
                self.line.clear();
            } else if self.line.ends_with(b"old-") {
                self.is_old = true;
            } else if self.line.ends_with(b"<LastModified>") {
                if self.is_old {
                    let before = chrono::Utc::now() - chrono::Duration::days(2);
                    self.date = before.format("%Y-%m-%d").to_string().into_bytes().into();
                }
                self.line.clear();
            }
            if self.line.len() > 4096 {
                self.line.drain(..4000);
            }
        }
        passed
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_on_a_real_s3_server_go_page_after_page_and_live_files_stay() {
    let (service, reach) = s3();
    let (_proxy, port) = aging(service.port).await;
    let endpoint = format!("http://127.0.0.1:{port}");
    let folder = tempfile::tempdir().expect("a folder");
    let catalog = format!("sqlite://{}/catalog.db", folder.path().display());
    let own = [
        ("type", "sql"),
        ("uri", &catalog),
        ("warehouse", "s3://warehouse/lake"),
        ("s3.endpoint", &endpoint),
    ];
    let lake = Lake {
        properties: with(reach, &own),
        topic: topic(),
    };
    let archive = lake.process().await;
    for round in 0..3 {
        lake.append(&archive, round, 50).await;
    }
    let ledger = archive.state().await.expect("a state").ledger;
    let location = archive
        .state()
        .await
        .expect("a state")
        .table
        .metadata
        .location()
        .to_owned();
    // More than one page of a listing.
    let orphans: Vec<String> = (0..1_150)
        .map(|i| format!("{location}/data/day=1/old-{i}.parquet"))
        .chain((0..60).map(|i| format!("{location}/metadata/old-{i}.avro")))
        .collect();
    let kept = [
        format!("{location}/data/day=1/young.parquet"),
        format!("{location}/data/day=1/old-notes.txt"),
        format!("{location}-2/data/old-neighbour.parquet"),
    ];
    let table = archive.state().await.expect("a state").table;
    let catalog = crate::support::open(&lake.properties).await;
    let everywhere = catalog.storage_for(&table).expect("a store");
    let puts = orphans.iter().chain(&kept).map(|uri| {
        let storage = everywhere.clone();
        async move { storage.put(uri, "rows".into()).await.expect("stored") }
    });
    futures::stream::iter(puts)
        .buffer_unordered(16)
        .collect::<Vec<()>>()
        .await;
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(report.held_back, None);
    assert_eq!(report.files_deleted, orphans.len(), "{report:?}");
    for uri in [&orphans[0], &orphans[1_149], &orphans[1_209]] {
        assert!(!everywhere.exists(uri).await.expect("a store"), "{uri}");
    }
    for uri in &kept {
        assert!(everywhere.exists(uri).await.expect("a store"), "{uri}");
    }
    lake.check(&ledger).await;
}

#[tokio::test]
async fn d3_a_mount_that_is_away_passes_and_a_deleted_file_is_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let (at, away) = (folder.path().join("lake"), folder.path().join("away"));
    let lake = Lake {
        properties: properties(&[
            ("type", "sql"),
            (
                "uri",
                &format!("sqlite://{}/catalog.db", folder.path().display()),
            ),
            ("warehouse", &format!("file://{}", at.display())),
        ]),
        topic: topic(),
    };
    let archive = lake.process().await;
    let ledger = lake.append(&archive, 0, 5).await;
    std::fs::rename(&at, &away).expect("unmounted");
    std::fs::create_dir(&at).expect("an empty mount point");
    let error = archive.state().await.expect_err("nothing is there");
    assert_eq!(error.kind(), ArchiveErrorKind::Transient, "{error:?}");
    std::fs::remove_dir(&at).expect("removed");
    std::fs::rename(&away, &at).expect("mounted");
    let ledger = {
        let after = lake.append(&archive, 0, 5).await;
        assert!(after.rows() > ledger.rows());
        after
    };
    lake.check(&ledger).await;
    let current = archive
        .state()
        .await
        .expect("a state")
        .table
        .metadata_location;
    let path = current
        .strip_prefix("file://")
        .expect("a local file")
        .to_owned();
    std::fs::remove_file(path).expect("deleted");
    let error = archive.state().await.expect_err("it is gone");
    assert_eq!(error.kind(), ArchiveErrorKind::Corrupt, "{error:?}");
}

/// What kill -9 in the middle of a write leaves.
#[tokio::test]
async fn what_killed_writes_left_on_a_local_disk_goes_after_a_day() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path().display().to_string();
    let lake = Lake {
        properties: properties(&[
            ("type", "sql"),
            ("uri", &format!("sqlite://{at}/catalog.db")),
            ("warehouse", &format!("file://{at}/lake")),
        ]),
        topic: topic(),
    };
    let archive = lake.process().await;
    let ledger = lake.append(&archive, 0, 5).await;
    let location = archive
        .state()
        .await
        .expect("a state")
        .table
        .metadata
        .location()
        .to_owned();
    let location = location.strip_prefix("file://").expect("a local folder");
    let left = |name: &str, hours: u64| {
        let path = std::path::Path::new(location).join(name);
        std::fs::write(&path, b"half").expect("written");
        let file = std::fs::File::options().write(true).open(&path);
        let at = std::time::SystemTime::now() - Duration::from_hours(hours);
        file.and_then(|file| file.set_modified(at)).expect("aged");
        path
    };
    let old = [
        left("data/a.parquet#1", 25),
        left("metadata/b.metadata.json#3", 25),
    ];
    let young = left("data/c.parquet#1", 23);
    let report = archive
        .maintain(&MaintenanceSettings::default())
        .await
        .expect("maintained");
    assert_eq!(
        (report.files_deleted, report.bytes_deleted),
        (2, 8),
        "{report:?}"
    );
    assert!(old.iter().all(|path| !path.exists()) && young.exists());
    lake.check(&ledger).await;
}
