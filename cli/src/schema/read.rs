//! Reads a topic's values: from its archive, or from Kafka where it has none.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use arrow_array::{BinaryArray, Int64Array};
use everlog_common::{Generation, Millis, Offset, Partition, Source, TopicName, TopicPartition};
use everlog_kafka::{Isolation, Log, LogError, Membership, ReaderEvent, ReaderOptions, StartAt};
use everlog_replayer::{Components, EventStream, From, ReplayError, ReplayRequest, Until};
use everlog_table::archive::Archive;
use everlog_table::catalog::{CatalogErrorKind, connect_existing};

use crate::components;
use crate::failure::Failure;
use crate::replay::of_replay;
use crate::settings::Settings;

/// Kafka is asked for so long at most while nothing comes.
const SILENCE: Duration = Duration::from_secs(10);

/// What a reader of Kafka holds.
const KAFKA_MEMORY_BYTES: usize = 64 << 20;

/// Rows of one partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The era; none where Kafka was read.
    pub(super) generation: Option<Generation>,
    pub(super) partition: Partition,
    pub(super) offsets: &'a Int64Array,
    pub(super) values: &'a BinaryArray,
}

/// Whether a topic has an archive; where there is no catalog yet, none has.
pub(super) async fn has_archive(settings: &Settings, topic: &TopicName) -> Result<bool, Failure> {
    let catalog = match connect_existing(settings.catalog.properties.reveal()).await {
        Ok(catalog) => catalog,
        Err(error) if error.kind() == CatalogErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(components::of_catalog(&error)),
    };
    let archive = Archive::open(
        components::deps(&catalog),
        &settings.catalog.namespace,
        topic,
    )
    .await
    .map_err(|error| components::of_archive(&error))?;
    Ok(archive.is_some())
}

/// Reads the archive as it is now, until `visit` has enough.
pub(super) async fn archive(
    settings: &Settings,
    topic: &TopicName,
    from: From,
    mut visit: impl FnMut(Rows<'_>) -> ControlFlow<()>,
) -> Result<(), Failure> {
    let failed = |error: ReplayError| of_replay(&error);
    let components = Components {
        log: None,
        catalog: components::catalog(settings).await?,
        clock: components::clock(),
        ids: components::ids(),
        namespace: settings.catalog.namespace.clone(),
    };
    let request = ReplayRequest {
        from,
        until: Until::Snapshot,
        memory_bytes: usize::try_from(settings.replay.memory).unwrap_or(usize::MAX),
        threads: settings.replay.threads,
        ..ReplayRequest::new(topic.clone())
    };
    let mut stream = EventStream::open(request, components)
        .await
        .map_err(failed)?;
    let read = async {
        while let Some(batch) = stream.next().await? {
            debug_assert_eq!(batch.source, Source::Archive);
            let rows = Rows {
                generation: Some(batch.generation),
                partition: batch.partition,
                offsets: &batch.columns.offsets,
                values: &batch.columns.values,
            };
            if visit(rows).is_break() {
                break;
            }
        }
        Ok(())
    }
    .await;
    stream.close().await;
    read.map_err(failed)
}

/// Reads Kafka up to its end now, until `visit` has enough. False where there is no such topic.
pub(super) async fn kafka(
    settings: &Settings,
    topic: &TopicName,
    from: From,
    mut visit: impl FnMut(Rows<'_>) -> ControlFlow<()>,
) -> Result<bool, Failure> {
    let log = components::log(settings)?;
    let failed = |error: LogError| components::of_log("kafka", &error);
    let described = log
        .describe(std::slice::from_ref(topic))
        .await
        .map_err(failed)?;
    let info = match described.into_iter().next() {
        Some((_, info)) => info.map_err(failed)?,
        None => return Ok(false),
    };
    let partitions: Vec<TopicPartition> = info
        .partitions
        .into_iter()
        .map(|partition| TopicPartition {
            topic: topic.clone(),
            partition,
        })
        .collect();
    let starts = starts(log.as_ref(), &partitions, from)
        .await
        .map_err(failed)?;
    let mut open: BTreeSet<TopicPartition> = starts
        .iter()
        .map(|(partition, _)| partition.clone())
        .collect();
    let mut reader = log
        .open(ReaderOptions {
            membership: Membership::Alone,
            isolation: Isolation::ReadCommitted,
            memory_bytes: KAFKA_MEMORY_BYTES,
            linger: Duration::from_millis(50),
        })
        .await
        .map_err(failed)?;
    reader.assign(&starts).await.map_err(failed)?;
    let clock = components::clock();
    let mut due = clock.elapsed() + SILENCE;
    while !open.is_empty() && clock.elapsed() < due {
        for event in reader
            .poll(Duration::from_millis(100))
            .await
            .map_err(failed)?
        {
            match event {
                ReaderEvent::Fetched(fetched) => {
                    if fetched.at_end {
                        open.remove(&fetched.source);
                    }
                    due = clock.elapsed() + SILENCE;
                    let rows = Rows {
                        generation: None,
                        partition: fetched.source.partition,
                        offsets: &fetched.columns.offsets,
                        values: &fetched.columns.values,
                    };
                    if visit(rows).is_break() {
                        open.clear();
                        break;
                    }
                }
                ReaderEvent::Fault { partition, .. } => {
                    open.remove(&partition);
                }
                ReaderEvent::Assigned(_) | ReaderEvent::Revoked { .. } => {}
            }
        }
    }
    reader.close().await.map_err(failed)?;
    Ok(true)
}

/// Where each partition is begun with; none of what has nothing from there.
async fn starts(
    log: &dyn Log,
    partitions: &[TopicPartition],
    from: From,
) -> Result<Vec<(TopicPartition, StartAt)>, LogError> {
    let bounds = log.bounds(partitions, Isolation::ReadCommitted).await?;
    let at: BTreeMap<TopicPartition, Offset> = match from {
        From::Beginning => bounds
            .iter()
            .map(|(partition, bounds)| (partition.clone(), bounds.log_start))
            .collect(),
        From::Offset { offset, .. } => bounds
            .iter()
            .map(|(partition, bounds)| (partition.clone(), offset.max(bounds.log_start)))
            .collect(),
        From::Timestamp(at) => by_time(log, partitions, at).await?,
    };
    Ok(at
        .into_iter()
        .filter(|(partition, offset)| {
            bounds
                .get(partition)
                .is_some_and(|bounds| *offset < bounds.end)
        })
        .map(|(partition, offset)| {
            let start = StartAt {
                offset,
                leader_epoch: None,
            };
            (partition, start)
        })
        .collect())
}

async fn by_time(
    log: &dyn Log,
    partitions: &[TopicPartition],
    at: Millis,
) -> Result<BTreeMap<TopicPartition, Offset>, LogError> {
    let found = log.offsets_at(partitions, at).await?;
    Ok(found
        .into_iter()
        .map(|(partition, at)| (partition, at.offset))
        .collect())
}
