//! A process' way to the catalog. What is sent is carried out by the server, whether or not the sender still lives; what is
//! answered may be lost, late, wrong by one change, or said twice.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{Clock, Millis};
use everlog_table::catalog::{
    Catalog, CatalogError, CommitReply, CreateReply, LoadedTable, NewTable,
};
use everlog_table::storage::Storage;
use everlog_tests::checker::Event;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::facts;
use crate::store::Client;
use crate::world::{Process, World};

/// The catalog, for one process.
#[derive(Debug)]
pub struct SimCatalog {
    process: Arc<Process>,
}

/// A request at the server.
struct Sent {
    base: LoadedTable,
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
    key: Uuid,
    attempt: u64,
}

impl SimCatalog {
    /// Of this process.
    pub fn new(process: Arc<Process>) -> Self {
        Self { process }
    }

    fn world(&self) -> &Arc<World> {
        &self.process.world
    }

    fn check(&self, what: &str) -> Result<(), CatalogError> {
        let faults = &self.world().plan.faults;
        if self.world().strikes(faults.catalog_away, "catalog away") {
            return Err(CatalogError::Unavailable {
                what: what.to_owned(),
                source: "injected".into(),
            });
        }
        if self.world().strikes(faults.denied, "catalog denies") {
            return Err(CatalogError::Unauthorized {
                what: what.to_owned(),
                message: "injected".to_owned(),
            });
        }
        Ok(())
    }
}

fn unknown(what: &str) -> CatalogError {
    CatalogError::OutcomeUnknown {
        what: what.to_owned(),
        source: "injected".into(),
    }
}

/// Carries a commit out, and tells the checker.
async fn carry_out(world: &World, sent: Sent) -> CommitReply {
    let reply = world
        .catalog
        .commit(&sent.base, sent.requirements, sent.updates, sent.key)
        .await;
    if let CommitReply::Committed(table) = &reply {
        world.swapped(table);
    }
    let settled = match &reply {
        CommitReply::Committed(_) => "committed",
        CommitReply::Conflict => "conflict",
        CommitReply::Refused(_) => "refused",
        CommitReply::Unknown(_) => "unknown",
    };
    world
        .recorder
        .note(&format!("commit {} {settled}", sent.attempt));
    world.recorder.record(Event::CommitSettled {
        attempt: sent.attempt,
    });
    reply
}

/// What a commit needs: the names of the snapshot's objects.
fn needs(world: &World, base: &LoadedTable, updates: &[TableUpdate]) -> Vec<String> {
    let mut names = Vec::new();
    for update in updates {
        if let TableUpdate::AddSnapshot { snapshot } = update {
            let snapshot = Arc::new(snapshot.clone());
            let version = base.metadata.format_version();
            let facts = facts::snapshot(&world.store, &snapshot, version);
            names.extend(facts.metadata);
            names.extend(facts.files.into_iter().map(|f| f.path));
        }
    }
    names
}

impl World {
    /// Hands a commit to the server, which carries it out after `delay`; the answer comes where anybody waits for it.
    fn send(self: &Arc<Self>, sent: Sent, delay: Duration) -> oneshot::Receiver<CommitReply> {
        let (reply, answer) = oneshot::channel();
        let world = Arc::clone(self);
        self.recorder.record(Event::CommitSent {
            attempt: sent.attempt,
            needs: needs(self, &sent.base, &sent.updates),
        });
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.spawn(async move {
            world.clock.sleep(delay).await;
            let answered = carry_out(&world, sent).await;
            drop(reply.send(answered));
        });
        while server.try_join_next().is_some() {}
        answer
    }
}

#[async_trait]
impl Catalog for SimCatalog {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        self.process.pass("namespace").await;
        self.check("namespace")?;
        self.world().catalog.ensure_namespace(namespace).await
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.process.pass("list tables").await;
        self.check("list tables")?;
        self.world().catalog.list_tables(namespace).await
    }

    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        self.process.pass("load").await;
        self.check("load")?;
        let world = self.world();
        let loaded = {
            let tables = world.tables.lock().unwrap_or_else(PoisonError::into_inner);
            let versions = tables.get(table.name());
            let before = versions
                .and_then(|versions| versions.stale(world.clock.elapsed()))
                .filter(|_| world.strikes(world.plan.faults.load_stale, "stale load"));
            before.or(versions.map(|versions| &versions.now)).cloned()
        };
        self.process.pass("loaded").await;
        Ok(loaded)
    }

    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        let world = self.world();
        self.process.pass("create").await;
        self.check("create")?;
        let faults = &world.plan.faults;
        if world.strikes(faults.commit_lost_before, "create lost before") {
            return Err(unknown("create"));
        }
        let made = world.catalog.create(table).await?;
        if let CreateReply::Created(table) = &made {
            world.swapped(table);
        }
        self.process.pass("created").await;
        if world.strikes(faults.commit_lost_after, "create lost after") {
            return Err(unknown("create"));
        }
        Ok(made)
    }

    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        idempotency_key: Uuid,
    ) -> CommitReply {
        let world = self.world();
        self.process.pass("commit").await;
        if let Err(error) = self.check("commit") {
            return CommitReply::Refused(error);
        }
        let faults = &world.plan.faults;
        if world.strikes(faults.commit_conflict, "conflict with nobody") {
            return CommitReply::Conflict;
        }
        if world.strikes(faults.commit_lost_before, "commit lost before") {
            return CommitReply::Unknown(unknown("commit"));
        }
        let sent = || Sent {
            base: base.clone(),
            requirements: requirements.clone(),
            updates: updates.clone(),
            key: idempotency_key,
            attempt: world.attempts.fetch_add(1, Ordering::SeqCst),
        };
        let first = sent();
        world.recorder.note(&format!(
            "{} sends commit {} to {}",
            self.process.name,
            first.attempt,
            base.ident.name()
        ));
        if world.strikes(faults.commit_late, "commit late") {
            let late = world.rng.millis(10, 90_000);
            drop(world.send(first, late));
            self.process.pass("commit unanswered").await;
            return CommitReply::Unknown(unknown("commit"));
        }
        let answer = world.send(first, Duration::from_micros(world.rng.between(0, 3_000)));
        if world.strikes(faults.commit_twice, "commit twice") {
            let late = world.rng.millis(0, 20_000);
            drop(world.send(sent(), late));
        }
        let reply = answer.await;
        self.process.pass("committed").await;
        let Ok(reply) = reply else {
            return CommitReply::Unknown(unknown("commit"));
        };
        if world.strikes(faults.commit_lost_after, "commit lost after") {
            return CommitReply::Unknown(unknown("commit"));
        }
        if matches!(reply, CommitReply::Committed(_))
            && world.strikes(faults.commit_conflict_with_self, "conflict with oneself")
        {
            return CommitReply::Conflict;
        }
        reply
    }

    fn removes_exactly(&self) -> bool {
        true
    }

    fn storage_for(&self, _table: &LoadedTable) -> Result<Storage, CatalogError> {
        let client = Client::new(Arc::clone(&self.process));
        Ok(Storage::from_store(Arc::new(client)))
    }

    fn server_time(&self) -> Option<Millis> {
        Some(self.world().clock.now())
    }
}
