//! What a running version says of itself: for people and alarms, never for recovery.
//!
//! ```text
//! LOCATION/JOB/VERSION/status.json     put over with each epoch, and at least once an interval
//! ```

use bytes::Bytes;
use everlog_table::storage::{Storage, StorageError, StorageErrorKind};
use serde::{Deserialize, Serialize};

use crate::state::JobId;

/// The form of the file. What a later release adds is ignored by an earlier one.
const FORMAT: u32 = 1;
/// After so many intervals without a word a process is taken for gone.
const SILENT_INTERVALS: i64 = 3;
/// Or after so long, where that is longer: the clocks of two machines differ.
const SILENT_MS_MIN: i64 = 60_000;

/// What a version is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It reads the archive.
    History,
    /// It reads the live topic.
    Live,
    /// It ended in order.
    Ended,
}

impl Phase {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::History => "history",
            Self::Live => "live",
            Self::Ended => "ended",
        }
    }
}

/// The partition that holds time back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBy {
    /// The era of the topic that it is in.
    pub generation: i32,
    /// The partition.
    pub partition: i32,
    /// Its event time, in milliseconds since 1970; none before its first record.
    pub watermark_ms: Option<i64>,
}

/// What a running version says of itself. Times are milliseconds since 1970, by the process's clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// When this was said.
    pub at_ms: i64,
    /// When the process began.
    pub started_ms: i64,
    /// What it is doing.
    pub phase: Phase,
    /// The time between two checkpoints, in milliseconds.
    pub interval_ms: u64,
    /// The newest epoch that is committed.
    pub epoch: u64,
    /// When it was.
    pub epoch_ms: i64,
    /// The event time that it has reached; none before it has one.
    pub watermark_ms: Option<i64>,
    /// Who holds time back.
    pub held_by: Option<HeldBy>,
    /// Records from where it is to the end of the log, history included; none where that is not known.
    pub lag_records: Option<u64>,
    /// Records read since the process began.
    pub events: u64,
    /// Records a second, over the last minute or so.
    pub events_per_second: f64,
    /// Seconds until it is live; none where it is, or where that cannot be told.
    pub eta_s: Option<u64>,
    /// Bytes of its state on disk.
    pub state_bytes: u64,
    /// Rows since the version began.
    pub rows: u64,
    /// Late records since then.
    pub late: u64,
    /// Dead letters since then.
    pub dead: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    #[serde(flatten)]
    live: Live,
}

/// Why it could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The store failed.
    #[error("job {job}: cannot {doing} {uri}")]
    Storage {
        /// The job and its version.
        job: JobId,
        /// What was to be done.
        doing: &'static str,
        /// The file.
        uri: String,
        /// What went wrong.
        #[source]
        source: StorageError,
    },
    /// It cannot be written as JSON.
    #[error("job {job}: its live numbers cannot be written")]
    Encoding {
        /// The job and its version.
        job: JobId,
        /// What went wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl Live {
    /// Says it, in the place of what was said before.
    pub async fn write(
        &self,
        storage: &Storage,
        location: &str,
        job: &JobId,
    ) -> Result<(), LiveError> {
        let stored = Stored {
            format: FORMAT,
            live: self.clone(),
        };
        let text = serde_json::to_vec_pretty(&stored).map_err(|source| LiveError::Encoding {
            job: job.clone(),
            source,
        })?;
        let uri = uri(location, job);
        let put = storage.put(&uri, Bytes::from(text)).await;
        put.map_err(|source| LiveError::Storage {
            job: job.clone(),
            doing: "write",
            uri,
            source,
        })
    }

    /// What was said last; none where nothing was, or by a release that says it in another form.
    pub async fn read(
        storage: &Storage,
        location: &str,
        job: &JobId,
    ) -> Result<Option<Self>, LiveError> {
        let uri = uri(location, job);
        match storage.get(&uri).await {
            Ok(bytes) => {
                let stored: Option<Stored> = serde_json::from_slice(&bytes).ok();
                Ok(stored
                    .filter(|stored| stored.format == FORMAT)
                    .map(|stored| stored.live))
            }
            Err(error) if error.kind() == StorageErrorKind::NotFound => Ok(None),
            Err(source) => Err(LiveError::Storage {
                job: job.clone(),
                doing: "read",
                uri,
                source,
            }),
        }
    }

    /// Whether the process that said it runs, as far as can be told: it has not said that it ended, and not been silent for
    /// several intervals.
    pub fn is_running(&self, now_ms: i64) -> bool {
        let interval = i64::try_from(self.interval_ms).unwrap_or(i64::MAX);
        let silent = interval.saturating_mul(SILENT_INTERVALS).max(SILENT_MS_MIN);
        self.phase != Phase::Ended && now_ms.saturating_sub(self.at_ms) <= silent
    }
}

fn uri(location: &str, job: &JobId) -> String {
    format!(
        "{}/{}/{}/status.json",
        location.trim_end_matches('/'),
        job.name,
        job.version
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;

    fn live() -> Live {
        Live {
            at_ms: 1_000_000,
            started_ms: 900_000,
            phase: Phase::History,
            interval_ms: 30_000,
            epoch: 7,
            epoch_ms: 999_000,
            watermark_ms: Some(5),
            held_by: Some(HeldBy {
                generation: 0,
                partition: 3,
                watermark_ms: None,
            }),
            lag_records: None,
            events: 12,
            events_per_second: 1.5,
            eta_s: Some(4),
            state_bytes: 10,
            rows: 1,
            late: 2,
            dead: 3,
        }
    }

    #[tokio::test]
    async fn what_was_said_last_is_read() {
        let storage = Storage::from_store(Arc::new(InMemory::new()));
        let job = JobId::new("sessions", "v1").expect("a job");
        let read = async || Live::read(&storage, "lake://jobs/", &job).await;
        assert_eq!(read().await.expect("nothing yet"), None);
        live()
            .write(&storage, "lake://jobs", &job)
            .await
            .expect("said");
        let later = Live {
            phase: Phase::Live,
            ..live()
        };
        later
            .write(&storage, "lake://jobs/", &job)
            .await
            .expect("said again");
        assert_eq!(read().await.expect("read"), Some(later));
        let uri = "lake://jobs/sessions/v1/status.json";
        storage
            .put(uri, Bytes::from_static(b"{\"format\": 2}"))
            .await
            .expect("put");
        assert_eq!(read().await.expect("another form"), None);
    }

    #[test]
    fn who_is_silent_for_long_is_gone() {
        let live = live();
        assert!(live.is_running(live.at_ms + 90_000));
        assert!(!live.is_running(live.at_ms + 90_001));
        // another machine's clock is behind
        assert!(live.is_running(live.at_ms - 5_000));
        let quick = Live {
            interval_ms: 100,
            ..live.clone()
        };
        assert!(quick.is_running(live.at_ms + 60_000));
        let ended = Live {
            phase: Phase::Ended,
            ..live
        };
        assert!(!ended.is_running(ended.at_ms));
    }
}
