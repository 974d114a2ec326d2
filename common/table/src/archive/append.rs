//! One commit: derive it, store what it needs, swap once, and find out what became of it.

use std::time::Duration;

use everlog_common::mutants::Mutant;
use everlog_common::{Ledger, Millis};
use iceberg::spec::{ManifestFile, TableMetadata};
use uuid::Uuid;

use super::parent::{Parent, Prepared, after_commit, metadata_folder};
use super::{
    AppendRequest, Archive, ArchiveError, ArchiveErrorKind, CommitOutcome, OpenCommit,
    PendingCommit,
};
use crate::catalog::{CatalogError, CatalogErrorKind, CommitReply, LoadedTable, commit_key};
use crate::commit::{self, Added, Decision, Proposal, Totals, Verdict};
use crate::maintain::plan::{self, ExpiryPlan};
use crate::maintain::{Expired, MaintenanceReport};
use crate::manifests::{self, Target};

/// Attempts of one append, each on a new parent.
const ATTEMPTS_MAX: u32 = 24;
/// Reads of the table to learn what became of an attempt, per call.
const SETTLE_ROUNDS: u32 = 7;
/// So many reads find the table unmoved before a neutral commit moves it.
const NEUTRAL_AFTER: u32 = 3;
/// Files are checked to be there when they are this old: orphan removal may have met them.
const CHECK_FILES_AFTER: Duration = Duration::from_hours(1);
/// Older files are not committed: orphan removal may take them between the check and the swap.
const FILES_AGE_MAX: Duration = Duration::from_hours(20);
/// What was prepared for a swap is not used after so long a pause of the whole process.
const PREPARED_AGE_MAX: Duration = Duration::from_mins(10);
/// Expiry rides on a commit when so many snapshots are due.
const EXPIRY_BATCH: usize = 16;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) commit_id: Uuid,
    pub(super) request: AppendRequest,
    /// Attempts so far; also part of every file name, so that no name is used twice.
    pub(super) attempts: u32,
    /// Attempts that this call may still make.
    attempts_left: u32,
    /// The attempt whose outcome is open. While there is one, nothing is sent (P6).
    unresolved: Option<Sent>,
    /// Refusals met on a state that had just been read.
    refused: u32,
    /// Why the last attempt was refused, where it was not for another commit.
    last: Option<CatalogError>,
    /// Counts this as an open commit while `unresolved` is set: nothing is deleted meanwhile (P7).
    open: Option<OpenCommit>,
}

/// An attempt that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// The head of main that its swap requires; none: that there is none.
    parent: Option<i64>,
}

/// What became of an attempt whose reply was lost.
enum Settled {
    Landed {
        snapshot_id: i64,
        table: LoadedTable,
    },
    Dead,
    Open,
}

/// Whether an attempt that was sent has no outcome yet, and the error says no more than that it could not be found out
/// now. Such a commit is neither lost nor made: whoever proposed it again would be fenced by it.
fn is_open_after(operation: &Operation, error: &ArchiveError) -> bool {
    operation.unresolved.is_some()
        && matches!(
            error.kind(),
            ArchiveErrorKind::Transient | ArchiveErrorKind::Denied
        )
}

/// What one attempt came to.
enum Attempt {
    Done(CommitOutcome),
    Again,
    Unknown,
}

impl Archive {
    /// Commits files and ledger in one swap, rebasing over other commits as long as the fence holds.
    ///
    /// An error means that nothing of it was applied, and nothing will be, unless the table itself is not ours to write any
    /// more (replaced, a foreign change, corrupt).
    ///
    /// Not cancel-safe: dropping the future leaves the outcome unknown; go on from [`Archive::state`].
    pub async fn append(&self, request: AppendRequest) -> Result<CommitOutcome, ArchiveError> {
        commit::check_request(&request.advances, &request.files).map_err(|(partition, what)| {
            match partition {
                Some(partition) => ArchiveError::Inconsistent {
                    table: self.table_name(),
                    partition,
                    what,
                },
                None => self.invalid(what),
            }
        })?;
        let mut operation = Operation {
            commit_id: self.inner.deps.ids.uuid(),
            request,
            attempts: 0,
            attempts_left: ATTEMPTS_MAX,
            unresolved: None,
            refused: 0,
            last: None,
            open: None,
        };
        let mut turn = self.inner.turn.lock().await;
        match self.drive(&mut turn, &mut operation).await {
            Ok(driven) => {
                if let (Some(CommitOutcome::Committed { .. }), Some(parent)) = (&driven, &*turn) {
                    self.expire_apart(&parent.table.metadata).await;
                }
                Ok(driven.unwrap_or(CommitOutcome::Unknown(PendingCommit { operation })))
            }
            Err(error) if is_open_after(&operation, &error) => {
                tracing::warn!(
                    table = %self.inner.ident, commit_id = %operation.commit_id, %error,
                    "an attempt may have landed, and the table cannot be read"
                );
                Ok(CommitOutcome::Unknown(PendingCommit { operation }))
            }
            Err(error) => Err(error),
        }
    }

    /// One bounded round of finding out: reads the table back, and moves a quiet table on by a ledger-neutral commit.
    /// Where the attempt proves dead, the append goes on. What may pass is no error here: it gives the commit back as it
    /// is.
    ///
    /// Not cancel-safe, as [`Archive::append`].
    pub async fn resolve(&self, pending: PendingCommit) -> Result<CommitOutcome, ArchiveError> {
        let mut operation = pending.operation;
        let mut turn = self.inner.turn.lock().await;
        match self.drive(&mut turn, &mut operation).await {
            Ok(Some(outcome)) => Ok(outcome),
            Ok(None) => Ok(CommitOutcome::Unknown(PendingCommit { operation })),
            Err(error)
                if error.kind() == ArchiveErrorKind::Transient
                    || is_open_after(&operation, &error) =>
            {
                tracing::warn!(
                    table = %self.inner.ident, commit_id = %operation.commit_id, %error,
                    "commit not resolved yet"
                );
                operation.attempts_left = ATTEMPTS_MAX;
                Ok(CommitOutcome::Unknown(PendingCommit { operation }))
            }
            Err(error) => Err(error),
        }
    }

    /// Goes on until the outcome is known; none where that takes too long.
    async fn drive(
        &self,
        turn: &mut Option<Parent>,
        operation: &mut Operation,
    ) -> Result<Option<CommitOutcome>, ArchiveError> {
        loop {
            if let Some(Sent { parent }) = operation.unresolved {
                *turn = None;
                match self.settle(operation.commit_id, parent).await? {
                    Settled::Landed { snapshot_id, table } => {
                        return self.landed(operation, snapshot_id, &table).await.map(Some);
                    }
                    Settled::Open => return Ok(None),
                    Settled::Dead => {
                        operation.unresolved = None;
                        operation.open = None;
                    }
                }
            }
            if operation.attempts_left == 0 {
                return Err(ArchiveError::Contended {
                    table: self.table_name(),
                    attempts: operation.attempts,
                    last: operation.last.take(),
                });
            }
            let parent = match turn.take() {
                // Expiry must know every tag there is now, also those that others made since our last commit.
                Some(parent) if !self.expiry_rides(&parent.table.metadata) => parent,
                _ => self.load_parent().await?,
            };
            self.check_clock(operation.request.reference_time).await?;
            match self.attempt(turn, operation, parent).await? {
                Attempt::Done(outcome) => return Ok(Some(outcome)),
                Attempt::Again => self.back_off(operation.attempts).await,
                Attempt::Unknown => {}
            }
        }
    }

    /// One attempt on one parent. Whatever goes wrong before the swap is a plain error: nothing was sent.
    async fn attempt(
        &self,
        turn: &mut Option<Parent>,
        operation: &mut Operation,
        parent: Parent,
    ) -> Result<Attempt, ArchiveError> {
        let decision = commit::decide(
            &parent.table.metadata,
            &parent.ledger,
            operation.commit_id,
            &operation.request.advances,
        );
        let ledger = match decision {
            Decision::Proceed { ledger } => ledger,
            // A fence is a verdict about now: a state that we only remember is not enough for it.
            Decision::Fenced { .. } if !parent.fresh => return Ok(Attempt::Again),
            Decision::Fenced { refusals } => {
                let ledger = parent.ledger.clone();
                *turn = Some(parent.remembered());
                return Ok(Attempt::Done(CommitOutcome::Fenced { refusals, ledger }));
            }
            Decision::AlreadyLanded { snapshot_id } => {
                // until its ledger was read as well, giving it up would be to forget a commit
                operation.unresolved = Some(Sent {
                    parent: parent.head,
                });
                let outcome = self.landed(operation, snapshot_id, &parent.table).await?;
                *turn = Some(parent.remembered());
                return Ok(Attempt::Done(outcome));
            }
            Decision::Malformed { partition, what } => {
                return Err(ArchiveError::Inconsistent {
                    table: self.table_name(),
                    partition,
                    what,
                });
            }
        };
        self.check_files(&operation.request).await?;
        operation.attempts += 1;
        operation.attempts_left = operation.attempts_left.saturating_sub(1);
        let began = self.inner.deps.clock.elapsed();
        let added = Added::of(&operation.request.files);
        let mut proposal = self.propose(&parent, operation.commit_id, ledger, added);
        let name = format!("{}-{}", operation.commit_id, operation.attempts);
        let list = self
            .store(&parent, &mut proposal, &name, &operation.request)
            .await?;
        let now = self.inner.deps.clock.elapsed();
        if now.saturating_sub(began) > PREPARED_AGE_MAX {
            return Ok(Attempt::Again);
        }
        let prepared = Prepared {
            snapshot_id: proposal.snapshot_id,
            ledger: proposal.ledger.clone(),
            list,
            totals: proposal.totals,
        };
        let expiry = self.expiry_for(&parent)?;
        fail::fail_point!("commit::before_swap");
        let reply = self.swap(&parent, &proposal, &expiry).await;
        fail::fail_point!("commit::after_swap_before_reply");
        let retention = parent.retention.clone();
        match reply {
            CommitReply::Committed(table) => {
                fail::fail_point!("commit::after_reply");
                let outcome = CommitOutcome::Committed {
                    snapshot_id: prepared.snapshot_id,
                    ledger: prepared.ledger.clone(),
                    attempts: operation.attempts,
                };
                *turn = after_commit(table, prepared, retention);
                Ok(Attempt::Done(outcome))
            }
            CommitReply::Conflict => {
                if Mutant::DeleteOnConflict.is_planted() {
                    let storage = self.store_of_files();
                    drop(storage.delete(&proposal.manifest_list).await);
                }
                operation.last = None;
                Ok(Attempt::Again)
            }
            CommitReply::Refused(error) => self.refused(operation, &parent, error),
            CommitReply::Unknown(error) => {
                if Mutant::DeleteOnUnknown.is_planted() {
                    for file in &operation.request.files {
                        let storage = self.store_of_files();
                        drop(storage.delete(file.data_file.file_path()).await);
                    }
                }
                tracing::warn!(
                    table = %self.inner.ident, commit_id = %operation.commit_id, %error,
                    "commit outcome unknown, reading the table back"
                );
                operation.unresolved = Some(Sent {
                    parent: parent.head,
                });
                operation.open = Some(OpenCommit::new(&self.inner.open_commits));
                Ok(Attempt::Unknown)
            }
        }
    }

    /// The swap was definitely not applied, and not for a competing commit.
    fn refused(
        &self,
        operation: &mut Operation,
        parent: &Parent,
        error: CatalogError,
    ) -> Result<Attempt, ArchiveError> {
        // What we remembered may have been refused for being old: sequence numbers, branches.
        if !parent.fresh || error.kind() == CatalogErrorKind::Transient {
            operation.last = Some(error);
            return Ok(Attempt::Again);
        }
        operation.refused += 1;
        if error.kind() == CatalogErrorKind::Invalid && operation.refused < 3 {
            operation.last = Some(error);
            return Ok(Attempt::Again);
        }
        // The next read says whether the table was dropped, which is another matter than a catalog that lost it.
        if error.kind() == CatalogErrorKind::NotFound && operation.refused < 2 {
            operation.last = Some(error);
            return Ok(Attempt::Again);
        }
        Err(self.catalog_error("cannot commit", error))
    }

    /// The outcome of an attempt that a read of the table showed in main's history.
    async fn landed(
        &self,
        operation: &Operation,
        snapshot_id: i64,
        table: &LoadedTable,
    ) -> Result<CommitOutcome, ArchiveError> {
        let found = self.find(table, Some(snapshot_id)).await?;
        Ok(CommitOutcome::Committed {
            snapshot_id,
            ledger: found.ledger,
            attempts: operation.attempts,
        })
    }

    pub(super) fn propose(
        &self,
        parent: &Parent,
        commit_id: Uuid,
        ledger: Ledger,
        added: Added,
    ) -> Proposal {
        let metadata = &parent.table.metadata;
        let snapshot_id = std::iter::repeat_with(|| self.inner.deps.ids.snapshot_id())
            .find(|id| metadata.snapshot_by_id(*id).is_none())
            .unwrap_or_default();
        Proposal {
            snapshot_id,
            parent: parent.head,
            // stored with a checksum at its end
            manifest_list: format!(
                "{}/snap-{snapshot_id}-{commit_id}",
                metadata_folder(metadata)
            ),
            now: self.inner.deps.clock.now(),
            commit_id,
            ledger,
            added,
            totals: Totals {
                files: parent.totals.files.saturating_add(added.files),
                rows: parent.totals.rows.saturating_add(added.rows),
                bytes: parent.totals.bytes.map(|b| b.saturating_add(added.bytes)),
            },
            isolation: metadata
                .properties()
                .get(crate::summary::ISOLATION)
                .cloned(),
            accepted: None,
            retention: parent.retention.clone(),
        }
    }

    /// Stores manifests and manifest list of a proposal, merging a group of old manifests where it is due; tells the proposal
    /// the list's name.
    pub(super) async fn store(
        &self,
        parent: &Parent,
        proposal: &mut Proposal,
        name: &str,
        request: &AppendRequest,
    ) -> Result<Vec<ManifestFile>, ArchiveError> {
        let storage = self.store_of_files();
        let target = Target {
            metadata: &parent.table.metadata,
            storage: &storage,
            snapshot_id: proposal.snapshot_id,
        };
        let failed = |problem| {
            let snapshot_id = parent.head.unwrap_or_default();
            ArchiveError::of_manifest(&self.table_name(), snapshot_id, problem)
        };
        let folder = metadata_folder(&parent.table.metadata);
        let prefix = format!("{folder}/{name}");
        let mut list = Vec::new();
        if !request.files.is_empty() {
            fail::fail_point!("commit::before_manifest");
            let files = request.files.iter();
            let files = files.map(|file| (file.partition_spec_id, file.data_file.clone()));
            let added = target.add_all(&prefix, files).await;
            list.extend(added.map_err(failed)?);
            fail::fail_point!("commit::after_manifest");
        }
        let old = parent.list.clone();
        let old = target.merge_due(&prefix, old, self.inner.options.merge);
        list.extend(old.await.map_err(failed)?);
        fail::fail_point!("commit::before_manifest_list");
        let (uri, list) = target
            .list(&proposal.manifest_list, parent.head, list)
            .await
            .map_err(failed)?;
        proposal.manifest_list = uri;
        fail::fail_point!("commit::after_manifest_list");
        self.check_rows(proposal, &list)?;
        Ok(list)
    }

    /// The last look before the swap: what goes in counts what its ledger counts.
    fn check_rows(&self, proposal: &Proposal, list: &[ManifestFile]) -> Result<(), ArchiveError> {
        let listed = manifests::totals(list).map(|totals| totals.rows);
        let counted = proposal.ledger.rows();
        // Manifests of old engines may have no counts; then their parent's were counted entry by entry.
        if listed.unwrap_or(proposal.totals.rows) == counted && proposal.totals.rows == counted {
            return Ok(());
        }
        Err(ArchiveError::Corrupt {
            table: self.table_name(),
            what: format!(
                "a commit would hold {listed:?} rows where its ledger counts {counted}; it was not made"
            ),
            source: None,
        })
    }

    fn expiry_for(&self, parent: &Parent) -> Result<ExpiryPlan, ArchiveError> {
        let metadata = &parent.table.metadata;
        match &self.inner.options.expiry {
            Some(settings) if self.expiry_rides(metadata) => {
                let refs = self.refs(metadata)?;
                let now = self.inner.deps.clock.now();
                Ok(plan::plan_expiry(metadata, &refs, now, settings))
            }
            _ => Ok(ExpiryPlan::default()),
        }
    }

    /// Whether expiry goes along with a commit: it is due, and no tag that is made meanwhile can be lost by it.
    fn expiry_rides(&self, metadata: &TableMetadata) -> bool {
        self.inner.deps.catalog.removes_exactly() && self.expiry_is_due(metadata)
    }

    /// Expiry after a commit, where it cannot go along: on a state that is read right before, so that a tag that somebody
    /// else makes has moments to be missed, not the time that a commit takes to store.
    async fn expire_apart(&self, metadata: &TableMetadata) {
        let Some(settings) = &self.inner.options.expiry else {
            return;
        };
        if self.inner.deps.catalog.removes_exactly() || !self.expiry_is_due(metadata) {
            return;
        }
        // The commit is done: what fails here is tried again after the next one, and by maintenance.
        match self
            .expire_once(settings, &mut MaintenanceReport::default())
            .await
        {
            Ok(Expired::Nothing | Expired::Some | Expired::Missed(None)) => {}
            Ok(Expired::Missed(Some(error))) => {
                tracing::warn!(table = %self.inner.ident, %error, "snapshots not expired yet");
            }
            Err(error) => {
                tracing::warn!(table = %self.inner.ident, %error, "snapshots not expired yet");
            }
        }
    }

    fn expiry_is_due(&self, metadata: &TableMetadata) -> bool {
        let now = self.inner.deps.clock.now();
        self.inner
            .options
            .expiry
            .as_ref()
            .is_some_and(|settings| plan::expiry_is_due(metadata, now, settings, EXPIRY_BATCH))
    }

    pub(super) async fn swap(
        &self,
        parent: &Parent,
        proposal: &Proposal,
        expiry: &ExpiryPlan,
    ) -> CommitReply {
        let metadata = &parent.table.metadata;
        let mut requirements = proposal.requirements(metadata);
        requirements.extend(expiry.requirements());
        let mut updates = proposal.updates(metadata);
        updates.extend(expiry.updates());
        let key = commit_key(&*self.inner.deps.ids, self.inner.deps.clock.now());
        self.inner
            .deps
            .catalog
            .commit(&parent.table, requirements, updates, key)
            .await
    }

    /// Finds out what became of an attempt on `parent`, within a bounded time.
    async fn settle(&self, commit_id: Uuid, parent: Option<i64>) -> Result<Settled, ArchiveError> {
        for round in 0..SETTLE_ROUNDS {
            if round > 0 {
                self.back_off(round).await;
            }
            let table = match self.load().await {
                Ok(table) => table,
                Err(error @ ArchiveError::Replaced { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        table = %self.inner.ident, %commit_id, %error,
                        "cannot read the table back yet"
                    );
                    continue;
                }
            };
            match commit::judge(&table.metadata, commit_id, parent) {
                Verdict::Landed { snapshot_id } => {
                    return Ok(Settled::Landed { snapshot_id, table });
                }
                Verdict::Dead => return Ok(Settled::Dead),
                Verdict::Open if round < NEUTRAL_AFTER => {}
                Verdict::Open => {
                    let base = match self.parent_of(table).await {
                        Ok(base) => base,
                        Err(error) if error.kind() == ArchiveErrorKind::ForeignChange => {
                            return Err(error);
                        }
                        Err(error) => {
                            tracing::warn!(table = %self.inner.ident, %error, "cannot settle yet");
                            continue;
                        }
                    };
                    if let Err(error) = self.check_clock(None).await {
                        tracing::warn!(table = %self.inner.ident, %error, "cannot settle yet");
                        continue;
                    }
                    if self.move_on(&base).await {
                        return Ok(Settled::Dead);
                    }
                }
            }
        }
        Ok(Settled::Open)
    }

    /// Commits nothing but a new head with the same ledger, so that no other attempt on the same parent can land. False
    /// where it is not known to have landed: the table's next read tells.
    async fn move_on(&self, base: &Parent) -> bool {
        let commit_id = self.inner.deps.ids.uuid();
        let mut proposal = self.propose(base, commit_id, base.ledger.clone(), Added::default());
        let request = AppendRequest {
            advances: Vec::new(),
            files: Vec::new(),
            archived_at: proposal.now,
            reference_time: None,
        };
        let name = format!("{commit_id}-1");
        if let Err(error) = self.store(base, &mut proposal, &name, &request).await {
            tracing::warn!(table = %self.inner.ident, %error, "cannot move the table on yet");
            return false;
        }
        let reply = self.swap(base, &proposal, &ExpiryPlan::default()).await;
        matches!(reply, CommitReply::Committed(_))
    }

    /// Refuses while this machine's clock is ahead, see [`crate::handle::Handle::check_clock`].
    pub(crate) async fn check_clock(&self, reference: Option<Millis>) -> Result<(), ArchiveError> {
        self.inner.check_clock(reference).await
    }

    /// H30: files that waited long, for instance through an outage of the catalog, may have met orphan removal.
    async fn check_files(&self, request: &AppendRequest) -> Result<(), ArchiveError> {
        let age = self.inner.deps.clock.now().since(request.archived_at);
        if age <= CHECK_FILES_AFTER {
            return Ok(());
        }
        let stale = |uri: &str| ArchiveError::Stale {
            table: self.table_name(),
            uri: uri.to_owned(),
            age_s: age.as_secs(),
        };
        let storage = self.store_of_files();
        for file in &request.files {
            let uri = file.data_file.file_path();
            if age > FILES_AGE_MAX {
                return Err(stale(uri));
            }
            let there = storage
                .exists(uri)
                .await
                .map_err(|source| ArchiveError::Storage {
                    table: self.table_name(),
                    doing: "cannot look for a data file",
                    source,
                })?;
            if !there {
                return Err(stale(uri));
            }
        }
        Ok(())
    }

    /// Waits before the next attempt.
    pub(crate) async fn back_off(&self, attempt: u32) {
        self.inner.back_off(attempt).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the caller takes for "not applied", it proposes again, and is fenced by itself.
    #[test]
    fn p08_an_attempt_without_an_outcome_is_open_whatever_cannot_be_read() {
        let contended = ArchiveError::Contended {
            table: "t".to_owned(),
            attempts: 1,
            last: None,
        };
        let corrupt = ArchiveError::Corrupt {
            table: "t".to_owned(),
            what: "ledger".to_owned(),
            source: None,
        };
        let mut operation = Operation {
            commit_id: Uuid::from_u128(1),
            request: AppendRequest {
                advances: Vec::new(),
                files: Vec::new(),
                archived_at: Millis(0),
                reference_time: None,
            },
            attempts: 1,
            attempts_left: 1,
            unresolved: None,
            refused: 0,
            open: None,
            last: None,
        };
        assert!(!is_open_after(&operation, &contended));
        operation.unresolved = Some(Sent { parent: None });
        assert!(is_open_after(&operation, &contended));
        // an operator decides: nothing goes on by itself
        assert!(!is_open_after(&operation, &corrupt));
    }
}
