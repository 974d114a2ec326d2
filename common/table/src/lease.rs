//! Leases: tags that hold a snapshot for its readers until a deadline.
//!
//! A lease is a tag `everlog-lease-<deadline in ms>-<id>`. Expiry leaves tagged snapshots alone, ours and other engines';
//! the tag's own age limit (`max-ref-age-ms`, which Iceberg counts from the snapshot's time) ends it for other engines
//! when the deadline does for us.
//!
//! The readers of one process share the lease of a snapshot, and the last of them gives it back. Processes do not share:
//! nobody could tell the one that made the tag that another still reads.
//!
//! A catalog may apply a swap to newer metadata than it was derived from, as long as the swap's requirements hold. A lease
//! does not move main, so an expiry that is on its way could miss it. Hence the guard, one more tag: a new lease points it
//! at the leased snapshot, and every expiry requires it to be where the plan saw it, and leaves its snapshot alone.

use std::time::Duration;

use everlog_common::Millis;
use iceberg::spec::{SnapshotReference, SnapshotRetention, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};
use uuid::Uuid;

/// How long a lease holds.
pub const TERM: Duration = Duration::from_hours(24);
/// Names of leases begin with this.
pub const PREFIX: &str = "everlog-lease-";
/// The tag that new leases move and expiry requires.
pub const GUARD: &str = "everlog-lease-guard";

/// The tag of a lease.
pub fn tag_name(deadline: Millis, id: Uuid) -> String {
    format!("{PREFIX}{}-{}", deadline.0, id.simple())
}

/// The deadline in the tag of a lease; none for any other tag.
pub fn deadline_of(tag: &str) -> Option<Millis> {
    let (deadline, id) = tag.strip_prefix(PREFIX)?.split_once('-')?;
    Uuid::try_parse(id).ok()?;
    deadline.parse().ok().map(Millis)
}

/// When to renew a lease: at two thirds of its term.
pub fn renew_at(deadline: Millis) -> Millis {
    let third = i64::try_from(TERM.as_millis() / 3).unwrap_or(i64::MAX);
    Millis(deadline.0.saturating_sub(third))
}

/// Whether a lease that another reader took lasts long enough for a new one.
pub fn lasts(deadline: Millis, now: Millis) -> bool {
    deadline.since(now) >= TERM / 2
}

/// One swap that takes a lease, or renews the one of `old`.
#[derive(Debug, Clone)]
pub struct LeaseSwap {
    /// The tag to be.
    pub tag: String,
    /// What must hold.
    pub requirements: Vec<TableRequirement>,
    /// What is done.
    pub updates: Vec<TableUpdate>,
}

/// The swap that leases a snapshot until `deadline`; none where the table does not have it.
pub fn take(
    metadata: &TableMetadata,
    snapshot_id: i64,
    deadline: Millis,
    id: Uuid,
    old: Option<&str>,
) -> Option<LeaseSwap> {
    let snapshot = metadata.snapshot_by_id(snapshot_id)?;
    let age = deadline.0.saturating_sub(snapshot.timestamp_ms()).max(1);
    let reference = SnapshotReference::new(
        snapshot_id,
        SnapshotRetention::Tag {
            max_ref_age_ms: Some(age),
        },
    );
    let tag = tag_name(deadline, id);
    let mut requirements = vec![
        TableRequirement::UuidMatch {
            uuid: metadata.uuid(),
        },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: tag.clone(),
            snapshot_id: None,
        },
    ];
    let mut updates = vec![
        TableUpdate::SetSnapshotRef {
            ref_name: tag.clone(),
            reference: reference.clone(),
        },
        TableUpdate::SetSnapshotRef {
            ref_name: GUARD.to_owned(),
            reference,
        },
    ];
    if let Some(old) = old.filter(|old| metadata.snapshot_for_ref(old).is_some()) {
        requirements.push(TableRequirement::RefSnapshotIdMatch {
            r#ref: old.to_owned(),
            snapshot_id: Some(snapshot_id),
        });
        updates.push(TableUpdate::RemoveSnapshotRef {
            ref_name: old.to_owned(),
        });
    }
    Some(LeaseSwap {
        tag,
        requirements,
        updates,
    })
}

/// The swap that gives a lease back; none where it is gone already.
pub fn give_back(metadata: &TableMetadata, tag: &str) -> Option<LeaseSwap> {
    let snapshot = metadata.snapshot_for_ref(tag)?;
    Some(LeaseSwap {
        tag: tag.to_owned(),
        requirements: vec![
            TableRequirement::UuidMatch {
                uuid: metadata.uuid(),
            },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: tag.to_owned(),
                snapshot_id: Some(snapshot.snapshot_id()),
            },
        ],
        updates: vec![TableUpdate::RemoveSnapshotRef {
            ref_name: tag.to_owned(),
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_tags_are_leases() {
        let tag = tag_name(Millis(1_700_000_000_000), Uuid::from_u128(7));
        assert_eq!(
            tag,
            "everlog-lease-1700000000000-00000000000000000000000000000007"
        );
        assert_eq!(deadline_of(&tag), Some(Millis(1_700_000_000_000)));
        for other in [
            GUARD,
            "v1",
            "everlog-lease-",
            "everlog-lease-x-y",
            "everlog-lease-1-2",
        ] {
            assert_eq!(deadline_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_lease_is_renewed_at_two_thirds_of_its_term() {
        let now = Millis(1_000_000);
        let deadline = now.plus(TERM);
        assert_eq!(renew_at(deadline), now.plus(TERM / 3 * 2));
        assert!(lasts(deadline, now.plus(TERM / 2)));
        assert!(!lasts(
            deadline,
            now.plus(TERM / 2).plus(Duration::from_millis(1))
        ));
    }
}
