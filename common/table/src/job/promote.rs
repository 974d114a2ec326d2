//! Who writes main: promotion, rollback, and the end of a version.

use std::collections::HashMap;

use iceberg::spec::{SnapshotReference, SnapshotRetention};
use iceberg::{TableRequirement, TableUpdate};

use super::commit::{set_main, unmoved};
use super::{
    JobError, JobState, JobTable, PROPERTY_ACTIVE, PROPERTY_PREVIOUS, PROPERTY_PROMOTION,
    PROPERTY_VERSION,
};
use crate::catalog::{CatalogErrorKind, CommitReply};

/// Attempts, each on a state that was just read: the versions commit all the time.
const ATTEMPTS_MAX: u32 = 32;
/// Followed by the version that main was moved to: main's head before that.
const TAG: &str = "before-";

/// Which version shall write main from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    /// The version.
    pub version: String,
    /// Only as long as this one is active: what was compared and decided was about the two of them.
    pub from: String,
}

/// Main after it was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedMain {
    /// Where main is now.
    pub snapshot_id: i64,
    /// Where it was; none where it was nowhere.
    pub before: Option<i64>,
    /// The tag that is there now.
    pub tag: Option<String>,
    /// The version that writes main.
    pub active: String,
    /// The version that did before.
    pub previous: Option<String>,
    /// Attempts it took; none where there was nothing to do.
    pub attempts: u32,
}

impl JobTable {
    /// Moves main to the head of a version's branch and makes the version the active one, in one swap. What main was before
    /// gets a tag. For a version that is active already, main is set back to where its branch is.
    ///
    /// This is a replace, not a fast-forward: the new head does not descend from the old one.
    pub async fn promote(&self, promotion: &Promotion) -> Result<MovedMain, JobError> {
        let id = self.handle().deps().ids.uuid().to_string();
        let version = &promotion.version;
        let mut unknown = None;
        for attempt in 1..=ATTEMPTS_MAX {
            if attempt > 1 {
                self.handle().back_off((attempt - 1).min(4)).await;
            }
            let table = match self.handle().load().await {
                Ok(table) => table,
                Err(error) if unknown.is_some() => {
                    unknown = Some(error.to_string());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let state = self.state_of(&table)?;
            let properties = table.metadata.properties();
            let tag = free_tag(&state, version);
            if properties.get(PROPERTY_PROMOTION) == Some(&id) {
                // ours, of an attempt whose reply was lost
                let (tag, before) = last_tag(&state, version);
                return Ok(MovedMain {
                    snapshot_id: state.main.unwrap_or_default(),
                    before,
                    tag,
                    active: version.clone(),
                    previous: state.previous.clone(),
                    attempts: attempt - 1,
                });
            }
            let head = self.head_of(&state, version)?;
            if state.active != promotion.from && state.active != *version {
                return Err(JobError::Refused {
                    table: self.handle().table_name(),
                    what: format!(
                        "version {} became active meanwhile; look at it, and promote {version} again",
                        state.active
                    ),
                });
            }
            if state.active == *version && state.main == Some(head) {
                return Ok(MovedMain {
                    snapshot_id: head,
                    before: Some(head),
                    tag: None,
                    active: version.clone(),
                    previous: state.previous.clone(),
                    attempts: 0,
                });
            }
            self.handle().check_clock(None).await?;
            let mut requirements = unmoved(&state);
            let mut updates = vec![set_main(&state, head)];
            if let Some(before) = state.main {
                requirements.push(TableRequirement::RefSnapshotIdMatch {
                    r#ref: tag.clone(),
                    snapshot_id: None,
                });
                updates.push(TableUpdate::SetSnapshotRef {
                    ref_name: tag.clone(),
                    reference: SnapshotReference::new(
                        before,
                        SnapshotRetention::Tag {
                            max_ref_age_ms: Some(i64::MAX),
                        },
                    ),
                });
            }
            let previous = if state.active == *version {
                state.previous.clone()
            } else {
                Some(state.active.clone())
            };
            let mut properties = HashMap::from([
                (PROPERTY_ACTIVE.to_owned(), version.clone()),
                (PROPERTY_PROMOTION.to_owned(), id.clone()),
            ]);
            properties.extend(previous.clone().map(|v| (PROPERTY_PREVIOUS.to_owned(), v)));
            updates.push(TableUpdate::SetProperties {
                updates: properties,
            });
            fail::fail_point!("job::before_promote");
            match self.swap(&table, requirements, updates).await {
                CommitReply::Committed(_) => {
                    return Ok(MovedMain {
                        snapshot_id: head,
                        before: state.main,
                        tag: state.main.map(|_| tag),
                        active: version.clone(),
                        previous,
                        attempts: attempt,
                    });
                }
                CommitReply::Conflict => {}
                CommitReply::Unknown(error) => unknown = Some(error.to_string()),
                CommitReply::Refused(error) if error.kind() == CatalogErrorKind::Transient => {}
                CommitReply::Refused(error) => {
                    return Err(self
                        .handle()
                        .catalog_error("cannot move main", error)
                        .into());
                }
            }
        }
        Err(match unknown {
            Some(why) => JobError::Refused {
                table: self.handle().table_name(),
                what: format!(
                    "whether {version} is active now is not known yet ({why}); `everlog job show` tells"
                ),
            },
            None => self.contended(ATTEMPTS_MAX, None),
        })
    }

    /// Makes the version active again that was before. Main is where that version's branch is: as fresh as the version is
    /// kept running, and back in time where it is not.
    pub async fn rollback(&self) -> Result<MovedMain, JobError> {
        let state = self.state().await?;
        let refused = |what: String| JobError::Refused {
            table: self.handle().table_name(),
            what,
        };
        let Some(previous) = state.previous.clone() else {
            return Err(refused(format!(
                "nothing was promoted yet: {} is active from the start",
                state.active
            )));
        };
        if state
            .versions
            .get(&previous)
            .is_none_or(|found| found.head.is_none())
        {
            let tags: Vec<&str> = state
                .refs
                .keys()
                .filter(|name| name.starts_with(TAG))
                .map(String::as_str)
                .collect();
            return Err(refused(format!(
                "version {previous}, which was active before, was dropped; what main was then can be read under the tags {}; to write it again, run the old logic as a new version and promote that",
                tags.join(", ")
            )));
        }
        self.promote(&Promotion {
            version: previous,
            from: state.active,
        })
        .await
    }

    /// Ends a version: its branch goes, and what is known of it. Its rows stay readable under tags, and its files go with
    /// maintenance. The active version cannot be dropped. Returns the branch's head, where it had one.
    pub async fn drop_version(&self, version: &str) -> Result<Option<i64>, JobError> {
        let mut sent = None;
        for attempt in 1..=ATTEMPTS_MAX {
            if attempt > 1 {
                self.handle().back_off((attempt - 1).min(4)).await;
            }
            let table = self.handle().load().await?;
            let state = self.state_of(&table)?;
            let Some(found) = state.versions.get(version) else {
                return match sent {
                    // an attempt whose reply was lost
                    Some(head) => Ok(head),
                    None => Err(self.no_version(&state, version)),
                };
            };
            if state.active == version {
                return Err(JobError::Refused {
                    table: self.handle().table_name(),
                    what: format!(
                        "version {version} is active and cannot be dropped; promote another first, or drop the table in the catalog"
                    ),
                });
            }
            let mut removals = vec![format!("{PROPERTY_VERSION}{version}")];
            if state.previous.as_deref() == Some(version) {
                removals.push(PROPERTY_PREVIOUS.to_owned());
            }
            let mut updates = vec![TableUpdate::RemoveProperties { removals }];
            if found.head.is_some() {
                updates.insert(
                    0,
                    TableUpdate::RemoveSnapshotRef {
                        ref_name: version.to_owned(),
                    },
                );
            }
            let mut requirements = unmoved(&state);
            if found.head.is_none() {
                requirements.push(TableRequirement::RefSnapshotIdMatch {
                    r#ref: version.to_owned(),
                    snapshot_id: None,
                });
            }
            let head = found.head;
            match self.swap(&table, requirements, updates).await {
                CommitReply::Committed(_) => return Ok(head),
                CommitReply::Conflict => {}
                CommitReply::Unknown(_) => sent = Some(head),
                CommitReply::Refused(error) if error.kind() == CatalogErrorKind::Transient => {}
                CommitReply::Refused(error) => {
                    return Err(self
                        .handle()
                        .catalog_error("cannot drop the version", error)
                        .into());
                }
            }
        }
        Err(self.contended(ATTEMPTS_MAX, None))
    }

    fn no_version(&self, state: &JobState, version: &str) -> JobError {
        JobError::NoVersion {
            table: self.handle().table_name(),
            version: version.to_owned(),
            known: state.names(),
        }
    }

    fn head_of(&self, state: &JobState, version: &str) -> Result<i64, JobError> {
        let Some(found) = state.versions.get(version) else {
            return Err(self.no_version(state, version));
        };
        if let Some(what) = &found.problem {
            return Err(self.foreign(what.clone()));
        }
        found.head.ok_or_else(|| JobError::Refused {
            table: self.handle().table_name(),
            what: format!(
                "version {version} has committed nothing yet; run it with `everlog process` first"
            ),
        })
    }
}

/// The names of the tags that promotions over a version make, one after the other.
fn tags(version: &str) -> impl Iterator<Item = String> {
    let first = format!("{TAG}{version}");
    let next = first.clone();
    std::iter::once(first).chain((2..u64::MAX).map(move |n| format!("{next}-{n}")))
}

/// A name for what main is, when a version takes over: every promotion has a tag of its own.
fn free_tag(state: &JobState, version: &str) -> String {
    tags(version)
        .find(|tag| !state.refs.contains_key(tag))
        .unwrap_or_else(|| format!("{TAG}{version}"))
}

/// The newest of the tags that promotions of a version made, and where it points.
fn last_tag(state: &JobState, version: &str) -> (Option<String>, Option<i64>) {
    let last = tags(version)
        .take_while(|tag| state.refs.contains_key(tag))
        .last();
    let at = last
        .as_ref()
        .and_then(|tag| state.refs.get(tag))
        .map(|reference| reference.snapshot_id);
    (last, at)
}
