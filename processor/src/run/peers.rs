//! Decisions that other versions of the job have made: time passes a partition in all versions at the same place.
//!
//! The entries are in every version's newest epoch. They are read when a version starts, and before it would make one of
//! its own; of each epoch only the engine's progress is read, and that once. A version that was already past an entry when another made it has other rows there; that is told, and
//! `everlog compare` shows it.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::TopicName;
use everlog_engine::Decision;
use everlog_table::storage::Storage;
use uuid::Uuid;

use super::error::RunError;
use super::work::Stored;
use crate::registry::Registry;
use crate::state::{EpochLog, JobId};

/// Where they are.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    pub(super) registry: Registry,
    pub(super) storage: Storage,
    pub(super) location: String,
    pub(super) id: JobId,
    pub(super) topic: TopicName,
    /// What was read last of each version that there is.
    pub(super) read: BTreeMap<String, Read>,
}

/// The decisions that are in one epoch.
#[derive(Debug, Clone)]
pub(super) struct Read {
    epoch: u64,
    writer: Uuid,
    decisions: Vec<Decision>,
}

impl Peers {
    /// The decisions of all other versions that read the topic, ascending. State that cannot be read is another version's
    /// trouble: it is told, and passed.
    pub(super) async fn decisions(&mut self) -> Result<BTreeSet<Decision>, RunError> {
        let registered = self.registry.read().await?;
        let versions = registered.map_or_else(BTreeMap::new, |registered| registered.versions);
        let topic = self.topic.as_str();
        let others = versions.iter().filter(|(_, known)| known.topic == topic);
        let others: Vec<&String> = others
            .map(|(version, _)| version)
            .filter(|version| **version != self.id.version)
            .collect();
        self.read.retain(|version, _| others.contains(&version));
        let mut all = BTreeSet::new();
        for version in others {
            let id = JobId {
                name: self.id.name.clone(),
                version: version.clone(),
            };
            if let Err(error) = self.look_at(&id).await {
                tracing::warn!(job = %id, %error, "the decisions of another version cannot be read: where it let time pass a partition, rows may differ");
            }
            let read = self.read.get(version);
            all.extend(
                read.into_iter()
                    .flat_map(|read| read.decisions.iter().copied()),
            );
        }
        Ok(all)
    }

    /// Reads what is new of a version.
    async fn look_at(&mut self, id: &JobId) -> Result<(), RunError> {
        let known = self.read.get(&id.version);
        let known = known.map(|read| (read.epoch, read.writer));
        let newest = EpochLog::newest_progress(&self.storage, &self.location, id, known).await?;
        let Some(newest) = newest else {
            self.read.remove(&id.version);
            return Ok(());
        };
        let Some(progress) = newest.progress else {
            return Ok(());
        };
        let decisions = if progress.is_empty() {
            Vec::new()
        } else {
            Stored::read(&progress, &id.to_string())?.engine.decisions
        };
        let read = Read {
            epoch: newest.epoch,
            writer: newest.writer,
            decisions,
        };
        self.read.insert(id.version.clone(), read);
        Ok(())
    }
}
