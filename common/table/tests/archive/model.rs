//! Random writers, faults and maintenance against a model: a set of rows per partition.
//!
//! Whatever happens, at the end every row that a writer was told to be committed is in the table once, nothing is in it
//! that nobody committed, ledger and data agree in every snapshot, and every file that a snapshot names exists.

use std::collections::BTreeMap;
use std::time::Duration;

use everlog_common::{Ids, Ledger};
use everlog_table::archive::{Archive, ArchiveErrorKind, ArchiveOptions, CommitOutcome};
use everlog_table::catalog::memory::{Call, Fault};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings};
use everlog_table::manifests::MergeSettings;
use everlog_table::snapshot::{LeaseMode, PinnedSnapshot, SnapshotSelector};
use iceberg::spec::Operation;

use crate::rig::{Foreign, Rig};

struct Writer {
    archive: Archive,
    ledger: Ledger,
    open: Option<everlog_table::archive::PendingCommit>,
}

struct World {
    rig: Rig,
    writers: Vec<Writer>,
    pins: Vec<(PinnedSnapshot, Vec<String>)>,
    landed: u64,
    unknown: u64,
    fenced: u64,
}

fn options() -> ArchiveOptions {
    ArchiveOptions {
        expiry: Some(ExpirySettings {
            age_max: Duration::from_mins(10),
            count_min: 3,
            ..ExpirySettings::default()
        }),
        merge: MergeSettings {
            fan_in: 4,
            ..MergeSettings::default()
        },
    }
}

impl World {
    async fn new(seed: u64) -> Self {
        let rig = Rig::new(seed);
        let mut writers = Vec::new();
        for _ in 0..2 {
            writers.push(Writer {
                archive: rig.process_with(options()).await,
                ledger: Ledger::default(),
                open: None,
            });
        }
        Self {
            rig,
            writers,
            pins: Vec::new(),
            landed: 0,
            unknown: 0,
            fenced: 0,
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.rig.ids.below(bound)
    }

    async fn step(&mut self) {
        match self.below(100) {
            0..55 => self.write().await,
            55..80 => {
                self.rig.memory.land().await;
            }
            80..84 => self.crash().await,
            84..88 => self.pin().await,
            88..92 => self.unpin().await,
            92..95 => self.maintain().await,
            95..97 => self.replace().await,
            _ => self
                .rig
                .clock
                .advance(Duration::from_secs(self.below(7200))),
        }
    }

    /// What may happen to the next commit, and to the looks for what became of it.
    fn fault(&self) {
        let faults = [
            Fault::LostBefore,
            Fault::LostAfter,
            Fault::Late,
            Fault::Conflict,
            Fault::Unavailable,
        ];
        let place = usize::try_from(self.below(5)).unwrap_or(0);
        self.rig.memory.inject(Call::Commit, faults[place]);
        if self.below(3) == 0 {
            for _ in 0..self.below(12) {
                self.rig.memory.inject(Call::Load, Fault::Unavailable);
            }
        }
    }

    async fn write(&mut self) {
        let who = usize::try_from(self.below(2)).unwrap_or(0);
        let outcome = if let Some(pending) = self.writers[who].open.take() {
            self.writers[who].archive.resolve(pending).await
        } else {
            let rows: Vec<(i32, u64)> = (0..3)
                .filter(|_| self.below(2) == 0)
                .map(|p| (p, self.below(4)))
                .collect();
            if rows.is_empty() {
                return;
            }
            self.calm().await;
            let request = self.rig.request(&self.writers[who].ledger, &rows).await;
            if self.below(3) == 0 {
                self.fault();
            }
            self.writers[who].archive.append(request).await
        };
        let writer = &mut self.writers[who];
        match outcome {
            Ok(CommitOutcome::Committed { ledger, .. }) => {
                self.landed += 1;
                writer.ledger = ledger;
            }
            Ok(CommitOutcome::Fenced { ledger, .. }) => {
                self.fenced += 1;
                writer.ledger = ledger;
            }
            Ok(CommitOutcome::Unknown(pending)) => {
                self.unknown += 1;
                writer.open = Some(pending);
            }
            Err(error) => {
                assert_eq!(error.kind(), ArchiveErrorKind::Transient, "{error:?}");
            }
        }
    }

    /// A process dies, whatever it was waiting for, and starts again from the ledger.
    async fn crash(&mut self) {
        let who = usize::try_from(self.below(2)).unwrap_or(0);
        self.calm().await;
        let archive = self.rig.process_with(options()).await;
        let ledger = archive.state().await.expect("a state").ledger;
        self.writers[who] = Writer {
            archive,
            ledger,
            open: None,
        };
    }

    /// Uses up the faults that wait for reads.
    async fn calm(&self) {
        for _ in 0..500 {
            if self.rig.catalog.load(&self.rig.ident()).await.is_ok() {
                return;
            }
        }
        panic!("more faults than that were not injected");
    }

    async fn pin(&mut self) {
        if self.pins.len() > 4 {
            return;
        }
        let archive = &self.writers[0].archive;
        if let Ok(pinned) = archive
            .pin(&SnapshotSelector::Current, LeaseMode::Auto)
            .await
        {
            let files = pinned.files().await.expect("files");
            let paths = files.into_iter().map(|f| f.path).collect();
            self.pins.push((pinned, paths));
        }
    }

    async fn unpin(&mut self) {
        if let Some((pinned, paths)) = self.pins.pop() {
            // R8: the same files, whatever was committed, expired and deleted meanwhile, within the lease.
            let leased = pinned
                .lease
                .as_ref()
                .is_some_and(|l| everlog_common::Clock::now(&*self.rig.clock) < l.deadline);
            if leased {
                let files = pinned.files().await.expect("files");
                let now: Vec<String> = files.into_iter().map(|f| f.path).collect();
                assert_eq!(now, paths);
            }
            pinned.release().await;
        }
    }

    async fn maintain(&mut self) {
        self.rig.stamp_files();
        let settings = MaintenanceSettings {
            expiry: options().expiry.unwrap_or_default(),
            orphan_interval: Duration::ZERO,
            ..MaintenanceSettings::default()
        };
        let who = usize::try_from(self.below(2)).unwrap_or(0);
        if let Err(error) = self.writers[who].archive.maintain(&settings).await {
            assert_eq!(error.kind(), ArchiveErrorKind::Transient, "{error:?}");
        }
    }

    async fn replace(&mut self) {
        self.calm().await;
        if self
            .rig
            .load()
            .await
            .metadata
            .current_snapshot_id()
            .is_some()
        {
            self.rig.memory.clear_faults();
            self.rig.foreign(Foreign::of(Operation::Replace, 0)).await;
        }
    }

    /// What every state must be, and what the writers were told.
    async fn check(&self) {
        self.rig.memory.clear_faults();
        self.rig.check().await;
        let archive = self.rig.process().await;
        let ledger = archive.state().await.expect("a state").ledger;
        for writer in &self.writers {
            assert!(
                ledger.descends_from(&writer.ledger),
                "what was told is there"
            );
        }
        let told: BTreeMap<_, _> = crate::rig::rows(&ledger);
        assert!(told.values().sum::<u64>() == ledger.rows());
    }
}

#[tokio::test]
async fn no_row_is_lost_or_doubled_whatever_happens() {
    let (mut landed, mut unknown, mut fenced) = (0, 0, 0);
    for seed in 0..8 {
        let mut world = World::new(1000 + seed).await;
        for _ in 0..150 {
            world.step().await;
        }
        world.check().await;
        landed += world.landed;
        unknown += world.unknown;
        fenced += world.fenced;
    }
    // Not vacuous: all of it happened.
    assert!(
        landed > 200 && unknown > 5 && fenced > 20,
        "{landed} {unknown} {fenced}"
    );
}
