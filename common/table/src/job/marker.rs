//! What a version's commit says of itself, in its snapshot's summary.

use std::collections::HashMap;

use iceberg::spec::SnapshotRef;

use super::PROPERTY_JOB;

const VERSION: &str = "everlog.job.version";
const EPOCH: &str = "everlog.job.epoch";
const ROWS: &str = "everlog.job.rows";
const POSITIONS: &str = "everlog.job.positions";
const WATERMARK: &str = "everlog.job.watermark";
const ENGINE: &str = "everlog.job.engine";

/// How far a version's output has come, with the epoch that brought it there.
///
/// * Of one version, two markers of one epoch that are equal stand for the same rows: rows are a function of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The job's name.
    pub job: String,
    /// The version.
    pub version: String,
    /// The epoch.
    pub epoch: u64,
    /// Rows that the version has put out, this epoch's included.
    pub rows: u64,
    /// Where the job will read on, as the job writes it.
    pub positions: String,
    /// The event time that the output is complete up to, in milliseconds; none before there is one.
    pub watermark: Option<i64>,
    /// Which engine made the rows.
    pub engine: String,
}

impl Marker {
    /// What goes into the snapshot's summary.
    pub(super) fn to_summary(&self) -> HashMap<String, String> {
        let mut entries = HashMap::from([
            (PROPERTY_JOB.to_owned(), self.job.clone()),
            (VERSION.to_owned(), self.version.clone()),
            (EPOCH.to_owned(), self.epoch.to_string()),
            (ROWS.to_owned(), self.rows.to_string()),
            (POSITIONS.to_owned(), self.positions.clone()),
            (ENGINE.to_owned(), self.engine.clone()),
        ]);
        if let Some(ms) = self.watermark {
            entries.insert(WATERMARK.to_owned(), ms.to_string());
        }
        entries
    }

    /// The marker of a snapshot; none where it is not a job's. What is there and cannot be read is an error.
    pub fn of(snapshot: &SnapshotRef) -> Result<Option<Self>, String> {
        let entries = &snapshot.summary().additional_properties;
        let Some(job) = entries.get(PROPERTY_JOB) else {
            return Ok(None);
        };
        let text = |key: &str| {
            entries.get(key).cloned().ok_or_else(|| {
                format!(
                    "snapshot {} has no {key} in its summary",
                    snapshot.snapshot_id()
                )
            })
        };
        let bad = |key: &str| {
            format!(
                "snapshot {} has a {key} in its summary that is no number",
                snapshot.snapshot_id()
            )
        };
        Ok(Some(Self {
            job: job.clone(),
            version: text(VERSION)?,
            epoch: text(EPOCH)?.parse().map_err(|_| bad(EPOCH))?,
            rows: text(ROWS)?.parse().map_err(|_| bad(ROWS))?,
            positions: text(POSITIONS)?,
            watermark: match entries.get(WATERMARK) {
                Some(ms) => Some(ms.parse().map_err(|_| bad(WATERMARK))?),
                None => None,
            },
            engine: text(ENGINE)?,
        }))
    }
}
