//! What a replay of a job would take: planned by the archive's newest snapshot, timed on a sample.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{EventBatch, TopicPartition};
use everlog_engine::{Engine, EngineError, MemoryState, Progress};
use everlog_kafka::Isolation;
use everlog_replayer::request::From;
use everlog_replayer::{Components, EventStream, ReplayError, ReplayRequest, Until};
use everlog_table::archive::{Archive, ArchiveDeps};
use everlog_table::files::PlannedFile;
use everlog_table::snapshot::{LeaseMode, PinError, SnapshotSelector};

use super::Environment;
use super::error::RunError;
use super::prepare::Prepared;
use super::source::{Decoding, Followed};

/// So much of the archive is read and processed to see how fast that is.
const SAMPLE_RECORDS: u64 = 200_000;
/// But not for longer than this.
const SAMPLE_TIME: Duration = Duration::from_secs(3);

/// What a replay would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    /// Data files of the archive's newest snapshot that hold something to read.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Their records: more than those to read, where the job begins in the midst of some.
    pub records: u64,
    /// Offsets of the live log behind the archive; none where Kafka was not asked.
    pub live: Option<u64>,
    /// What was read to see how fast that is.
    pub sample: Sample,
    /// For the records, at the sample's rate, or the job's limit where that is lower; none where nothing was read.
    pub time: Option<Duration>,
}

/// The first records, decoded and processed, and thrown away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    /// Records.
    pub records: u64,
    /// How long they took.
    pub took: Duration,
    /// Those that cannot be used.
    pub dead: u64,
    /// The first of them: where it is, and why.
    pub first_dead: Option<String>,
    /// Those that came too late.
    pub late: u64,
}

impl Prepared {
    /// Plans a replay from the job's beginning and times it on its first records. Reads only; nothing of the job is touched.
    pub async fn estimate(self, environment: &Environment) -> Result<Estimate, RunError> {
        let job = self.job().clone();
        let topic = job.source.topic.clone();
        let deps = ArchiveDeps {
            catalog: Arc::clone(&environment.catalog),
            clock: Arc::clone(&environment.clock),
            ids: Arc::clone(&environment.ids),
        };
        let archive = Archive::open(deps, &environment.namespace, &topic).await;
        let archive =
            archive
                .map_err(ReplayError::from)?
                .ok_or_else(|| ReplayError::NotArchived {
                    topic: topic.clone(),
                    namespace: environment.namespace.clone(),
                })?;
        let pinned = match archive
            .pin(&SnapshotSelector::Current, LeaseMode::Off)
            .await
        {
            Ok(pinned) => Some(pinned),
            Err(PinError::Empty { .. }) => None,
            Err(error) => return Err(ReplayError::from(error).into()),
        };
        let (files, cut) = match &pinned {
            Some(pinned) => {
                let files = pinned.files().await.map_err(ReplayError::from)?;
                (files, pinned.cut())
            }
            None => Default::default(),
        };
        let wanted = files.iter().filter(|file| may_hold(file, job.source.from));
        let (mut count, mut bytes, mut records) = (0, 0, 0);
        for file in wanted {
            count += 1;
            bytes += file.size_bytes;
            records += file.rows;
        }
        let mut live = None;
        if let Some(log) = &environment.log {
            let all: Vec<TopicPartition> = cut
                .keys()
                .map(|partition| TopicPartition::new(topic.clone(), *partition))
                .collect();
            // An estimate does not fail since a broker is away.
            if let Ok(bounds) = log.bounds(&all, Isolation::ReadCommitted).await {
                let behind = bounds.iter().map(|(tp, bounds)| {
                    let at = cut.get(&tp.partition).map(|at| at.offset);
                    bounds.end.since(at.unwrap_or_default())
                });
                live = Some(behind.sum());
            }
        }
        let sample = if records == 0 {
            Sample::default()
        } else {
            sample(self, environment).await?
        };
        Ok(Estimate {
            files: count,
            bytes,
            records,
            live,
            time: time(records, &sample, job.limits.rate.map(NonZero::get)),
            sample,
        })
    }
}

/// How long so many records take at a sample's rate, and at most `limit` a second.
fn time(records: u64, sample: &Sample, limit: Option<u64>) -> Option<Duration> {
    if sample.records == 0 {
        return None;
    }
    #[allow(clippy::cast_precision_loss, reason = "a time for people")]
    let (records, read) = (records as f64, sample.records as f64);
    let mut per_second = read / sample.took.as_secs_f64().max(1e-6);
    if let Some(limit) = limit {
        #[allow(clippy::cast_precision_loss, reason = "a time for people")]
        let limit = limit as f64;
        per_second = per_second.min(limit);
    }
    Duration::try_from_secs_f64(records / per_second).ok()
}

fn may_hold(file: &PlannedFile, from: From) -> bool {
    let Some(bounds) = &file.bounds else {
        return true;
    };
    match from {
        From::Beginning => true,
        From::Timestamp(at) => bounds.may_hold_timestamp_from(at.0),
        From::Offset { generation, offset } => {
            let newest = bounds.generation.1;
            let generation = generation.unwrap_or(newest);
            newest > generation || newest == generation && bounds.offset.1 >= offset
        }
    }
}

async fn sample(prepared: Prepared, environment: &Environment) -> Result<Sample, RunError> {
    let job = prepared.id().to_string();
    let failed = |source: EngineError| RunError::Engine {
        job: job.clone(),
        source,
    };
    let query = Arc::clone(prepared.query());
    let request = ReplayRequest {
        from: prepared.job().source.from,
        until: Until::Snapshot,
        lease: LeaseMode::Off,
        ..ReplayRequest::new(prepared.job().source.topic.clone())
    };
    let components = Components {
        log: None,
        catalog: Arc::clone(&environment.catalog),
        clock: Arc::clone(&environment.clock),
        ids: Arc::clone(&environment.ids),
        namespace: environment.namespace.clone(),
    };
    let mut stream = EventStream::open(request, components).await?;
    let mut engine = Engine::new(query, Progress::default()).map_err(&failed)?;
    for (generation, partition) in stream.partitions().clone() {
        engine.assign(&[(generation.as_i32(), partition.get())]);
    }
    let (mut state, mut sample) = (MemoryState::default(), Sample::default());
    let mut decoding = Box::new(prepared.into_decoding());
    let began = environment.clock.elapsed();
    let read = async {
        while sample.records < SAMPLE_RECORDS
            && environment.clock.elapsed().saturating_sub(began) < SAMPLE_TIME
            && let Some(batch) = stream.next().await?
        {
            decoding = process(decoding, batch, &mut engine, &mut state, &mut sample)
                .await?
                .map_err(&failed)?;
        }
        Ok::<_, RunError>(())
    };
    let done = read.await;
    sample.took = environment.clock.elapsed().saturating_sub(began);
    stream.close().await;
    done?;
    Ok(sample)
}

/// One batch; the inner error is the engine's.
async fn process(
    decoding: Box<Decoding>,
    batch: EventBatch,
    engine: &mut Engine,
    state: &mut MemoryState,
    sample: &mut Sample,
) -> Result<Result<Box<Decoding>, EngineError>, RunError> {
    let pieces = Followed::default().pieces(batch, &std::collections::BTreeMap::new(), None);
    let (decoding, decoded, done) = decoding.decode(pieces).await?;
    done?;
    for decoded in decoded {
        let piece = &decoded.piece;
        sample.records += piece.columns.len() as u64;
        sample.dead += decoded.dead.len() as u64;
        let mut first = decoded.dead.first().map(|(row, why)| {
            let offset = piece.columns.offsets.values().get(*row);
            (offset.copied().unwrap_or_default(), why.clone())
        });
        if decoded.batch.num_rows() > 0 {
            let mut emitted = match engine.process(state, &decoded.batch) {
                Ok(emitted) => emitted,
                Err(error) => return Ok(Err(error)),
            };
            sample.late += emitted.late.num_rows() as u64;
            sample.dead += emitted.dead.num_rows() as u64;
            first = first.or_else(|| super::work::first_left_out(&emitted.dead));
            while emitted.more {
                emitted = match engine.fire(state) {
                    Ok(emitted) => emitted,
                    Err(error) => return Ok(Err(error)),
                };
            }
        }
        if let Some((offset, why)) = first {
            sample.first_dead.get_or_insert_with(|| {
                format!("partition {} offset {offset}: {why}", piece.partition)
            });
        }
    }
    Ok(Ok(decoding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_follows_from_the_sample_and_the_limit() {
        let sample = Sample {
            records: 100_000,
            took: Duration::from_secs(1),
            ..Sample::default()
        };
        let whole = |limit| time(1_000_000, &sample, limit);
        assert_eq!(whole(None), Some(Duration::from_secs(10)));
        assert_eq!(whole(Some(10_000)), Some(Duration::from_secs(100)));
        assert_eq!(whole(Some(10_000_000)), Some(Duration::from_secs(10)));
        assert_eq!(time(5, &Sample::default(), None), None);
    }
}
