//! Rows into a table, on the version's branch: one commit per epoch.
//!
//! The marker goes into the snapshot's summary with the rows, so that the branch's head is the whole truth; what the
//! commit requires of its parent is the fence. How that is done, and what happens to a lost reply, is
//! [`everlog_table::job`]'s.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{Generation, Offset, Partition, Position, Positions};
use everlog_table::archive::ArchiveDeps;
use everlog_table::job::{
    CommitEpoch, JobError, JobErrorKind, JobOutcome, JobRows, JobTable, JobTableSpec,
    Marker as TableMarker, Refusal as JobRefusal,
};

use super::{Channel, Marker, Sink, SinkError, Step, next_step};
use crate::state::Epoch;

/// For so long a table that cannot be reached is waited for, before the job ends.
const PATIENCE: Duration = Duration::from_mins(10);
/// First wait; doubles.
const WAIT_FIRST: Duration = Duration::from_millis(500);
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A branch of a table as the output of one version of a job.
#[derive(Debug)]
pub struct IcebergSink {
    table: JobTable,
    deps: ArchiveDeps,
    job: String,
    version: String,
    patience: Duration,
    /// What the branch holds, once it was read.
    held: Option<Option<Marker>>,
}

impl IcebergSink {
    /// Opens the table, and makes it where there is none: then this version writes main, too.
    pub async fn open(
        deps: ArchiveDeps,
        namespace: &str,
        spec: &JobTableSpec,
    ) -> Result<Self, SinkError> {
        let target = format!("iceberg:{namespace}.{}", spec.table);
        let table = JobTable::open_or_create(deps.clone(), namespace, spec)
            .await
            .map_err(|error| of_table(&target, &spec.job, &spec.version, error))?;
        Ok(Self {
            table,
            deps,
            job: spec.job.clone(),
            version: spec.version.clone(),
            patience: PATIENCE,
            held: None,
        })
    }

    /// The same, giving up earlier or later.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The table.
    pub fn table(&self) -> &JobTable {
        &self.table
    }

    fn failed(&self, error: JobError) -> SinkError {
        of_table(&self.target(), &self.job, &self.version, error)
    }

    fn marker_of(&self, found: TableMarker) -> Result<Marker, SinkError> {
        Ok(Marker {
            positions: parse_positions(&found.positions).ok_or_else(|| SinkError::Target {
                target: self.target(),
                what: format!(
                    "the positions of epoch {} on branch {} cannot be read ({}); was it written by a newer everlog?",
                    found.epoch, self.version, found.positions
                ),
            })?,
            job: found.job,
            version: found.version,
            epoch: found.epoch,
            rows: found.rows,
            engine: found.engine,
        })
    }

    /// Reads the branch's head.
    async fn read_back(&mut self) -> Result<Option<Marker>, JobError> {
        let found = self.table.committed(&self.version).await?;
        let marker = match found {
            // what cannot be read is said where an error can be shown
            Some(found) => match self.marker_of(found) {
                Ok(marker) => Some(marker),
                Err(error) => {
                    return Err(JobError::Foreign {
                        table: self.table.table().to_string(),
                        what: error.to_string(),
                    });
                }
            },
            None => None,
        };
        self.held = Some(marker.clone());
        Ok(marker)
    }

    async fn try_commit(
        &mut self,
        epoch: &Epoch,
        files: &mut Option<CommitEpoch>,
    ) -> Result<(), JobError> {
        let marker = Marker::after(epoch, Channel::Rows);
        let commit = match files.take() {
            Some(commit) => commit,
            None => {
                let state = self.table.state().await?;
                let rows = JobRows {
                    table: &state.table,
                    rows: &epoch.rows,
                };
                CommitEpoch {
                    marker: TableMarker {
                        job: marker.job.clone(),
                        version: marker.version.clone(),
                        epoch: marker.epoch,
                        rows: marker.rows,
                        positions: write_positions(&marker.positions),
                        watermark: watermark_of(&epoch.progress),
                        engine: marker.engine.clone(),
                    },
                    rows_before: epoch.rows_before,
                    files: self.table.write(rows).await?,
                }
            }
        };
        match self.table.commit(&commit).await {
            Ok(JobOutcome::Committed { .. }) => {
                self.held = Some(Some(marker));
                Ok(())
            }
            Ok(JobOutcome::AlreadyCommitted { .. }) => self.read_back().await.map(drop),
            Err(error) => {
                // the same files go in with the next attempt
                *files = Some(commit);
                Err(error)
            }
        }
    }

    /// Whether to try again, after some waiting.
    async fn is_worth_waiting(
        &self,
        error: &JobError,
        since: Duration,
        wait: &mut Duration,
    ) -> bool {
        let waited = self.deps.clock.elapsed().saturating_sub(since);
        if error.kind() != JobErrorKind::Transient || waited >= self.patience {
            return false;
        }
        tracing::warn!(target = self.target(), %error, waited_s = waited.as_secs(), "waiting for the table");
        self.deps.clock.sleep(*wait).await;
        *wait = (*wait * 2).min(WAIT_MAX);
        true
    }
}

#[async_trait]
impl Sink for IcebergSink {
    fn target(&self) -> String {
        format!("iceberg:{}", self.table.table())
    }

    async fn committed(&mut self) -> Result<Option<Marker>, SinkError> {
        let (since, mut wait) = (self.deps.clock.elapsed(), WAIT_FIRST);
        loop {
            match self.read_back().await {
                Ok(marker) => return Ok(marker),
                Err(error) if self.is_worth_waiting(&error, since, &mut wait).await => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    async fn commit(&mut self, epoch: &Epoch) -> Result<(), SinkError> {
        let held = match &self.held {
            Some(held) => held.clone(),
            None => self.committed().await?,
        };
        if next_step(held.as_ref(), epoch, Channel::Rows)? == Step::Done {
            return Ok(());
        }
        let (since, mut wait) = (self.deps.clock.elapsed(), WAIT_FIRST);
        let mut files = None;
        loop {
            match self.try_commit(epoch, &mut files).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // files that waited too long are not committed any more
                    if matches!(
                        error,
                        JobError::Table(everlog_table::archive::ArchiveError::Stale { .. })
                    ) {
                        files = None;
                    }
                    if !self.is_worth_waiting(&error, since, &mut wait).await {
                        self.held = None;
                        return Err(self.failed(error));
                    }
                }
            }
        }
    }
}

fn of_table(target: &str, job: &str, version: &str, error: JobError) -> SinkError {
    let target = target.to_owned();
    // A version that was dropped was not taken over: its own words say what to do.
    let taken_over = matches!(
        &error,
        JobError::Fenced { refusal, .. } if *refusal != JobRefusal::Dropped
    );
    if taken_over {
        return SinkError::Fenced {
            target,
            job: job.to_owned(),
            version: version.to_owned(),
        };
    }
    SinkError::Table {
        target,
        status: match error.kind() {
            JobErrorKind::Transient | JobErrorKind::Denied => 1,
            JobErrorKind::Invalid => 2,
            JobErrorKind::Corrupt => 4,
            JobErrorKind::Fenced => 5,
        },
        source: Box::new(error),
    }
}

/// The event time that the engine had reached, of its progress; none before it has one.
fn watermark_of(progress: &[u8]) -> Option<i64> {
    #[derive(serde::Deserialize)]
    struct Head {
        watermark: i64,
    }
    let Head { watermark } = serde_json::from_slice(progress).ok()?;
    // before the first record there is none, after the last one of a drained job it is the end of time
    (watermark > i64::MIN / 2).then_some(watermark)
}

/// Positions as the snapshot's summary has them: JSON, per partition its generation and next offset.
pub fn write_positions(positions: &Positions) -> String {
    let entries: BTreeMap<i32, (u32, i64)> = positions
        .iter()
        .map(|(partition, at)| (partition.get(), (at.generation.0, at.offset.get())))
        .collect();
    serde_json::to_string(&entries).unwrap_or_default()
}

/// What [`write_positions`] wrote; none where it did not.
pub fn parse_positions(text: &str) -> Option<Positions> {
    let entries: BTreeMap<String, (u32, i64)> = serde_json::from_str(text).ok()?;
    entries
        .into_iter()
        .map(|(partition, (generation, offset))| {
            let partition = Partition::new(partition.parse().ok()?).ok()?;
            let position = Position {
                generation: Generation(generation),
                offset: Offset::new(offset).ok()?,
            };
            Some((partition, position))
        })
        .collect()
}

#[cfg(test)]
mod tests;
