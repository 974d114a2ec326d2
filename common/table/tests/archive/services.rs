//! The decisive cases once more on real catalogs: SQLite over a local folder, and Iceberg's own REST server.

use std::sync::Arc;
use std::time::Duration;

use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::{Ledger, TopicName};
use everlog_table::archive::{Archive, ArchiveDeps, ArchiveOptions, CommitOutcome};
use everlog_table::catalog::{Catalog, connect};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::scan;
use everlog_table::schema::TableSettings;
use everlog_table::snapshot::{LeaseMode, SnapshotSelector};

use crate::rig::{committed, rows, topic, written};
use crate::support::{Properties, Service, properties};

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
