//! Which snapshots and leases go, decided from exactly the metadata that is swapped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use everlog_common::Millis;
use iceberg::spec::{MAIN_BRANCH, SnapshotRef, SnapshotReference, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

use super::ExpirySettings;
use crate::lease::{self, GUARD};
use crate::summary::{LEDGER, LEDGER_SNAPSHOT_ID, ancestry};

/// Snapshots of main that stay even where the metadata is larger than it should be.
pub(crate) const COUNT_FLOOR: usize = 5;
/// At most so many snapshots go in one swap: the others go in the next.
const EXPIRE_AT_ONCE: usize = 256;
/// What belongs to no branch is somebody's work in progress, or what a rolled-back main left behind: it stays as long as
/// Iceberg's own default.
pub(crate) const LOOSE_AGE_MAX: Duration = Duration::from_hours(120);

/// What one swap expires.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpiryPlan {
    /// Snapshots, oldest first.
    pub snapshots: Vec<i64>,
    /// Tags of leases whose deadline has passed; the guard among them where nothing is leased any more.
    pub tags: Vec<String>,
    /// Where the guard was when this was planned.
    pub guard: Option<i64>,
    /// Where every branch and tag was when this was planned.
    refs: BTreeMap<String, i64>,
    /// Statistics files of the snapshots.
    statistics: Vec<i64>,
    partition_statistics: Vec<i64>,
}

impl ExpiryPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.tags.is_empty()
    }

    pub(crate) fn nothing(guard: Option<i64>) -> Self {
        Self {
            guard,
            ..Self::default()
        }
    }

    /// The oldest of these snapshots go, as many as one swap takes, and these tags.
    pub(crate) fn of(
        metadata: &TableMetadata,
        refs: &BTreeMap<String, SnapshotReference>,
        snapshots: &[&SnapshotRef],
        tags: Vec<String>,
        guard: Option<i64>,
    ) -> Self {
        let ids: Vec<i64> = snapshots
            .iter()
            .take(EXPIRE_AT_ONCE)
            .map(|s| s.snapshot_id())
            .collect();
        let having = |id: &i64| ids.contains(id);
        Self {
            statistics: metadata
                .statistics_iter()
                .map(|file| file.snapshot_id)
                .filter(having)
                .collect(),
            partition_statistics: metadata
                .partition_statistics_iter()
                .map(|file| file.snapshot_id)
                .filter(having)
                .collect(),
            snapshots: ids,
            tags,
            guard,
            refs: refs
                .iter()
                .map(|(name, reference)| (name.clone(), reference.snapshot_id))
                .collect(),
        }
    }

    /// What the swap requires, beside the table's identity and main: that every branch and tag is where it was, and that
    /// there is no other guard. That there is no other tag is no requirement that the protocol has (see
    /// [`crate::catalog::Catalog::removes_exactly`]).
    pub fn requirements(&self) -> Vec<TableRequirement> {
        if self.is_empty() {
            return Vec::new();
        }
        let guard = (GUARD.to_owned(), self.guard);
        let moved_by_none = self.refs.iter().filter(|(name, _)| *name != GUARD);
        let refs = moved_by_none.map(|(name, id)| (name.clone(), Some(*id)));
        std::iter::once(guard)
            .chain(refs)
            .map(|(r#ref, snapshot_id)| TableRequirement::RefSnapshotIdMatch { r#ref, snapshot_id })
            .collect()
    }

    /// What the swap does.
    pub fn updates(&self) -> Vec<TableUpdate> {
        let mut updates: Vec<TableUpdate> = self
            .tags
            .iter()
            .map(|tag| TableUpdate::RemoveSnapshotRef {
                ref_name: tag.clone(),
            })
            .collect();
        let remove = |snapshot_id: &i64| TableUpdate::RemoveStatistics {
            snapshot_id: *snapshot_id,
        };
        updates.extend(self.statistics.iter().map(remove));
        let remove = |snapshot_id: &i64| TableUpdate::RemovePartitionStatistics {
            snapshot_id: *snapshot_id,
        };
        updates.extend(self.partition_statistics.iter().map(remove));
        // One by one: servers before Iceberg 1.9 take no more in one update.
        updates.extend(
            self.snapshots
                .iter()
                .map(|id| TableUpdate::RemoveSnapshots {
                    snapshot_ids: vec![*id],
                }),
        );
        updates
    }
}

/// Whether expiry is due at all, without looking at branches and tags: cheap enough for every commit.
pub fn expiry_is_due(
    metadata: &TableMetadata,
    now: Millis,
    settings: &ExpirySettings,
    batch: usize,
) -> bool {
    let count = metadata.snapshots().len();
    if count <= settings.count_min.max(1) {
        return size_over(metadata, settings) && count > COUNT_FLOOR;
    }
    if count > settings.count_max + batch || size_over(metadata, settings) {
        return true;
    }
    let old = metadata
        .snapshots()
        .filter(|s| now.since(Millis(s.timestamp_ms())) > settings.age_max)
        .count();
    old.min(count - settings.count_min.max(1)) >= batch
}

/// Plans what expires.
///
/// * The head of main stays, and whatever a branch or tag points at, except a lease past its deadline.
/// * So does the snapshot that the ledger's property names, and the history of branches other than main.
/// * `gc.enabled=false` on the table means that nothing expires.
pub fn plan_expiry(
    metadata: &TableMetadata,
    refs: &BTreeMap<String, SnapshotReference>,
    now: Millis,
    settings: &ExpirySettings,
) -> ExpiryPlan {
    let guard = refs.get(GUARD).map(|reference| reference.snapshot_id);
    if is_off(metadata) {
        return ExpiryPlan::nothing(guard);
    }
    let tags = lapsed(refs, now);
    let kept = protected(metadata, refs, &tags);
    let mut snapshots = of_main(metadata, &kept, now, settings);
    snapshots.extend(loose(metadata, &kept, now, settings));
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    ExpiryPlan::of(metadata, refs, &snapshots, tags, guard)
}

/// Whether the table says that nothing expires.
pub(crate) fn is_off(metadata: &TableMetadata) -> bool {
    metadata
        .properties()
        .get("gc.enabled")
        .is_some_and(|enabled| enabled.eq_ignore_ascii_case("false"))
}

/// Leases whose deadline has passed. The guard goes in a swap of its own time, when no lease is left: its snapshot is
/// protected in that swap, since a new lease may rest on nothing but the guard.
pub(crate) fn lapsed(refs: &BTreeMap<String, SnapshotReference>, now: Millis) -> Vec<String> {
    let mut tags: Vec<String> = refs
        .keys()
        .filter(|tag| lease::deadline_of(tag).is_some_and(|deadline| deadline < now))
        .cloned()
        .collect();
    let held = refs.keys().any(|tag| lease::deadline_of(tag).is_some());
    if !held && refs.contains_key(GUARD) {
        tags.push(GUARD.to_owned());
    }
    tags
}

fn protected(
    metadata: &TableMetadata,
    refs: &BTreeMap<String, SnapshotReference>,
    lapsed: &[String],
) -> BTreeSet<i64> {
    let main: BTreeSet<i64> = ancestry(metadata, metadata.current_snapshot_id())
        .map(|s| s.snapshot_id())
        .collect();
    let mut kept: BTreeSet<i64> = metadata.current_snapshot_id().into_iter().collect();
    for (name, reference) in refs {
        if lapsed.contains(name) && name != GUARD {
            continue;
        }
        kept.insert(reference.snapshot_id);
        if reference.is_branch() && name != MAIN_BRANCH {
            let own = ancestry(metadata, Some(reference.snapshot_id))
                .map(|s| s.snapshot_id())
                .take_while(|id| !main.contains(id));
            kept.extend(own);
        }
    }
    let ledger = metadata.properties().get(LEDGER_SNAPSHOT_ID);
    kept.extend(ledger.and_then(|id| id.parse::<i64>().ok()));
    kept
}

fn of_main<'a>(
    metadata: &'a TableMetadata,
    kept: &BTreeSet<i64>,
    now: Millis,
    settings: &ExpirySettings,
) -> Vec<&'a SnapshotRef> {
    let history: Vec<&SnapshotRef> = ancestry(metadata, metadata.current_snapshot_id()).collect();
    let mut bytes = base_bytes(metadata);
    let mut expired = Vec::new();
    for (place, snapshot) in history.into_iter().enumerate() {
        bytes += snapshot_bytes(snapshot);
        let large = place >= COUNT_FLOOR && bytes > settings.metadata_bytes_max;
        let many = place >= settings.count_max.max(1);
        let old = place >= settings.count_min.max(1)
            && now.since(Millis(snapshot.timestamp_ms())) > settings.age_max;
        if (large || many || old) && !kept.contains(&snapshot.snapshot_id()) {
            expired.push(snapshot);
        }
    }
    expired
}

/// Snapshots that no branch leads to.
fn loose<'a>(
    metadata: &'a TableMetadata,
    kept: &BTreeSet<i64>,
    now: Millis,
    settings: &ExpirySettings,
) -> Vec<&'a SnapshotRef> {
    let main: BTreeSet<i64> = ancestry(metadata, metadata.current_snapshot_id())
        .map(|s| s.snapshot_id())
        .collect();
    // What hangs below an expired snapshot that a tag kept is our own old history, not somebody's work.
    let ours = |s: &SnapshotRef| s.summary().additional_properties.contains_key(LEDGER);
    let newest_sequence = metadata.last_sequence_number();
    metadata
        .snapshots()
        .filter(|s| !main.contains(&s.snapshot_id()) && !kept.contains(&s.snapshot_id()))
        .filter(|s| {
            let age = now.since(Millis(s.timestamp_ms()));
            let detached = ours(s)
                && s.sequence_number() < newest_sequence
                && oldest_of_main(metadata).is_some_and(|oldest| s.sequence_number() < oldest);
            age > if detached {
                settings.age_max
            } else {
                LOOSE_AGE_MAX.max(settings.age_max)
            }
        })
        .collect()
}

fn oldest_of_main(metadata: &TableMetadata) -> Option<i64> {
    ancestry(metadata, metadata.current_snapshot_id())
        .last()
        .map(|s| s.sequence_number())
}

fn size_over(metadata: &TableMetadata, settings: &ExpirySettings) -> bool {
    let bytes: u64 = metadata.snapshots().map(snapshot_bytes).sum();
    base_bytes(metadata) + bytes > settings.metadata_bytes_max
}

/// About how large a snapshot is in the metadata file, its line in the snapshot log included.
pub(crate) fn snapshot_bytes(snapshot: &SnapshotRef) -> u64 {
    let summary: usize = snapshot
        .summary()
        .additional_properties
        .iter()
        .map(|(key, value)| key.len() + escaped_len(value) + 6)
        .sum();
    (320 + snapshot.manifest_list().len() + summary) as u64
}

/// JSON inside JSON has its quotes escaped.
fn escaped_len(value: &str) -> usize {
    value.len() + value.bytes().filter(|b| *b == b'"' || *b == b'\\').count()
}

pub(crate) fn base_bytes(metadata: &TableMetadata) -> u64 {
    let properties: usize = metadata
        .properties()
        .iter()
        .map(|(key, value)| key.len() + escaped_len(value) + 6)
        .sum();
    (8_192 + properties + metadata.metadata_log().len() * 180) as u64
}

#[cfg(test)]
mod tests {
    use iceberg::spec::SnapshotRetention;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::summary::tests::Table;

    const HOUR_MS: i64 = 3_600_000;

    fn tag(snapshot_id: i64) -> SnapshotReference {
        SnapshotReference::new(
            snapshot_id,
            SnapshotRetention::Tag {
                max_ref_age_ms: None,
            },
        )
    }

    fn history(table: &Table) -> Vec<i64> {
        ancestry(&table.metadata, table.head())
            .map(|s| s.snapshot_id())
            .collect()
    }

    /// Snapshots a millisecond apart, seen `hours` later.
    fn aged(count: usize, hours: i64) -> (Table, Millis) {
        let mut table = Table::new();
        for _ in 0..count {
            table.append(1);
        }
        let now = Millis(table.metadata.last_updated_ms() + hours * HOUR_MS);
        (table, now)
    }

    #[test]
    fn the_newest_stay_whatever_their_age() {
        let (table, now) = aged(50, 100);
        let plan = plan_expiry(
            &table.metadata,
            &BTreeMap::new(),
            now,
            &ExpirySettings::default(),
        );
        let kept = &history(&table)[..20];
        assert_eq!(plan.snapshots.len(), 30);
        assert!(kept.iter().all(|id| !plan.snapshots.contains(id)));
        assert!(plan.snapshots.is_sorted(), "oldest first");
    }

    #[test]
    fn young_ones_stay_up_to_the_count() {
        let (table, _) = aged(520, 0);
        let now = Millis(table.metadata.last_updated_ms());
        let plan = plan_expiry(
            &table.metadata,
            &BTreeMap::new(),
            now,
            &ExpirySettings::default(),
        );
        assert_eq!(plan.snapshots.len(), 20);
    }

    #[test]
    fn p08_a_lease_past_its_deadline_goes_and_a_younger_one_stays_with_its_snapshot() {
        let (table, now) = aged(40, 100);
        let ids = history(&table);
        let lapsed = lease::tag_name(Millis(now.0 - 1), Uuid::from_u128(1));
        let held = lease::tag_name(Millis(now.0 + 1), Uuid::from_u128(2));
        let refs: BTreeMap<String, SnapshotReference> = [
            (lapsed.clone(), tag(ids[30])),
            (held, tag(ids[31])),
            (GUARD.to_owned(), tag(ids[32])),
            ("v1".to_owned(), tag(ids[33])),
        ]
        .into();
        let plan = plan_expiry(&table.metadata, &refs, now, &ExpirySettings::default());
        assert_eq!(plan.tags, [lapsed]);
        assert!(plan.snapshots.contains(&ids[30]));
        for kept in &ids[31..34] {
            assert!(!plan.snapshots.contains(kept));
        }
        assert_eq!(plan.guard, Some(ids[32]));
    }

    #[test]
    fn the_guard_goes_with_the_last_lease_and_its_snapshot_only_after_it() {
        let (table, now) = aged(40, 100);
        let ids = history(&table);
        let refs: BTreeMap<String, SnapshotReference> = [(GUARD.to_owned(), tag(ids[32]))].into();
        let plan = plan_expiry(&table.metadata, &refs, now, &ExpirySettings::default());
        assert_eq!(plan.tags, [GUARD]);
        assert!(!plan.snapshots.contains(&ids[32]));
        let plan = plan_expiry(
            &table.metadata,
            &BTreeMap::new(),
            now,
            &ExpirySettings::default(),
        );
        assert!(plan.snapshots.contains(&ids[32]));
        assert_eq!(plan.guard, None);
    }

    #[test]
    fn what_a_rollback_left_behind_stays_for_days() {
        let (mut table, _) = aged(30, 0);
        let ids = history(&table);
        let target = ids[5];
        table.change(|b| {
            let main = SnapshotReference::new(
                target,
                SnapshotRetention::Branch {
                    min_snapshots_to_keep: None,
                    max_snapshot_age_ms: None,
                    max_ref_age_ms: None,
                },
            );
            b.set_ref(MAIN_BRANCH, main)
        });
        let at = |hours: i64| Millis(table.metadata.last_updated_ms() + hours * HOUR_MS);
        let plan = |now| {
            plan_expiry(
                &table.metadata,
                &BTreeMap::new(),
                now,
                &ExpirySettings::default(),
            )
        };
        let left = &ids[..5];
        assert!(left.iter().all(|id| !plan(at(48)).snapshots.contains(id)));
        let later = plan(at(24 * 6)).snapshots;
        // The ledger's own snapshot is evidence as long as the property names it.
        assert!(!later.contains(&ids[0]));
        assert!(ids[1..5].iter().all(|id| later.contains(id)));
    }

    #[test]
    fn a_quiet_table_has_nothing_due() {
        let (table, now) = aged(20, 1000);
        let settings = ExpirySettings::default();
        assert!(!expiry_is_due(&table.metadata, now, &settings, 16));
        let (table, now) = aged(35, 1000);
        assert!(!expiry_is_due(&table.metadata, now, &settings, 16));
        let (table, now) = aged(36, 1000);
        assert!(expiry_is_due(&table.metadata, now, &settings, 16));
        assert!(!expiry_is_due(&table.metadata, Millis(0), &settings, 16));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is tagged, however old, however many: head and references stay.
        #[test]
        fn references_and_head_always_stay(
            count in 1_usize..60,
            hours in 0_i64..200,
            tagged in prop::collection::vec(0_usize..60, 0..5),
            count_min in 1_usize..30,
            count_max in 1_usize..40,
            bytes in 10_000_u64..60_000,
        ) {
            let (mut table, now) = aged(count, hours);
            let ids = history(&table);
            for (n, place) in tagged.iter().enumerate() {
                let reference = tag(ids[place % ids.len()]);
                table.change(|b| b.set_ref(&format!("tag-{n}"), reference));
            }
            let refs: BTreeMap<String, SnapshotReference> = tagged
                .iter()
                .enumerate()
                .map(|(n, place)| (format!("tag-{n}"), tag(ids[place % ids.len()])))
                .collect();
            let settings = ExpirySettings {
                count_min,
                count_max,
                metadata_bytes_max: bytes,
                ..ExpirySettings::default()
            };
            let plan = plan_expiry(&table.metadata, &refs, now, &settings);
            prop_assert!(!plan.snapshots.contains(&ids[0]));
            prop_assert!(refs.values().all(|r| !plan.snapshots.contains(&r.snapshot_id)));
            for update in plan.updates() {
                table.change(|b| update.apply(b));
            }
            prop_assert_eq!(table.head(), Some(ids[0]));
            for n in 0..tagged.len() {
                let name = format!("tag-{n}");
                prop_assert!(table.metadata.snapshot_for_ref(&name).is_some());
            }
        }
    }
}
