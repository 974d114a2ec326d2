//! What every [`Catalog`] must do, as small cases that are run against each of them: the fake is honest because the real
//! ones pass the same.
//!
//! Each case makes a table of its own, so they can run in any order, and again on a catalog that is in use. A case that
//! does not hold panics with what it saw.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use everlog_common::{Clock, Ids};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{
    MAIN_BRANCH, ManifestListWriter, NestedField, Operation, PrimitiveType, Schema, Snapshot,
    SnapshotReference, SnapshotRetention, Summary, Transform, Type, UnboundPartitionSpec,
};
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};

use super::{
    Catalog, CatalogErrorKind, CommitReply, CreateReply, LoadedTable, NewTable, parse_namespace,
};

/// Writers in the race of [`concurrent_writers_all_land_once`].
const WRITERS: usize = 4;
/// What each of them appends.
const APPENDS: usize = 5;
/// Conflicts that one append may meet: each is another's success, so there cannot be more.
const CONFLICTS_MAX: usize = WRITERS * APPENDS;

/// A catalog under test.
#[derive(Debug, Clone)]
pub struct Subject {
    /// One handle.
    pub catalog: Arc<dyn Catalog>,
    /// Another on the same catalog, with connections of its own.
    pub other: Arc<dyn Catalog>,
    /// A namespace that may be made and filled.
    pub namespace: NamespaceIdent,
    /// Names and ids.
    pub ids: Arc<dyn Ids>,
    /// Time of snapshots.
    pub clock: Arc<dyn Clock>,
}

/// Runs every case.
pub async fn all(subject: &Subject) {
    namespaces_are_made_once(subject).await;
    what_is_not_there_is_none_and_not_an_error(subject).await;
    a_created_table_is_loaded_as_created(subject).await;
    a_name_is_given_once(subject).await;
    tables_are_listed_in_order(subject).await;
    properties_are_set_and_removed(subject).await;
    snapshots_are_added_and_read_back(subject).await;
    tags_are_set_and_removed(subject).await;
    snapshots_are_removed(subject).await;
    a_column_is_added(subject).await;
    a_changed_parent_is_a_conflict(subject).await;
    another_table_of_the_name_is_a_conflict(subject).await;
    a_reference_that_should_not_exist_is_a_conflict(subject).await;
    updates_land_on_a_newer_state_where_requirements_hold(subject).await;
    a_tag_made_meanwhile_keeps_its_snapshot(subject).await;
    a_senseless_update_is_refused_and_changes_nothing(subject).await;
    a_commit_to_no_table_is_refused(subject).await;
    files_of_a_table_are_reached_by_its_storage(subject).await;
    concurrent_writers_all_land_once(subject).await;
}

/// A namespace can be made again, and nested ones exist with their parents.
pub async fn namespaces_are_made_once(subject: &Subject) {
    subject
        .catalog
        .ensure_namespace(&subject.namespace)
        .await
        .expect("make");
    subject
        .catalog
        .ensure_namespace(&subject.namespace)
        .await
        .expect("make again");
    subject
        .other
        .ensure_namespace(&subject.namespace)
        .await
        .expect("make by another");
    let nested = format!("{}.inner", subject.namespace);
    let nested = parse_namespace(&nested).expect("namespace");
    subject
        .catalog
        .ensure_namespace(&nested)
        .await
        .expect("make nested");
    let table = subject.create_in(&nested).await;
    let listed = subject.other.list_tables(&nested).await.expect("list");
    assert_eq!(listed, [table.ident.name()]);
}

/// Absence is an answer.
pub async fn what_is_not_there_is_none_and_not_an_error(subject: &Subject) {
    subject.make_namespace().await;
    let missing = subject.new_ident();
    assert!(
        subject
            .catalog
            .load(&missing)
            .await
            .expect("load")
            .is_none()
    );
    let nowhere = TableIdent::new(NamespaceIdent::new(subject.fresh("nowhere")), "t".into());
    assert!(
        subject
            .catalog
            .load(&nowhere)
            .await
            .expect("load")
            .is_none()
    );
    let listed = subject
        .catalog
        .list_tables(nowhere.namespace())
        .await
        .expect("list");
    assert!(listed.is_empty(), "{listed:?}");
}

/// Columns, ids, partitions, properties and format version are as asked, for everybody.
pub async fn a_created_table_is_loaded_as_created(subject: &Subject) {
    let created = subject.create().await;
    let loaded = subject.load(&created.ident).await;
    assert_eq!(loaded.metadata_location, created.metadata_location);
    assert_eq!(loaded.metadata, created.metadata);
    let metadata = &loaded.metadata;
    assert_eq!(metadata.format_version(), iceberg::spec::FormatVersion::V2);
    assert_eq!(
        metadata.properties().get("purpose").map(String::as_str),
        Some("conformance")
    );
    let names: Vec<_> = metadata
        .current_schema()
        .as_struct()
        .fields()
        .iter()
        .map(|field| (field.id, field.name.clone()))
        .collect();
    assert_eq!(
        names,
        [(1, "topic".to_owned()), (2, "archived_at".to_owned())]
    );
    let spec = metadata.default_partition_spec();
    assert_eq!(spec.fields().len(), 1);
    assert_eq!(spec.fields()[0].transform, Transform::Day);
    assert!(metadata.current_snapshot().is_none());
}

/// The second creation is told so and changes nothing.
pub async fn a_name_is_given_once(subject: &Subject) {
    let created = subject.create().await;
    let again = new_table(created.ident.clone());
    let reply = subject.other.create(again).await.expect("create");
    assert!(matches!(reply, CreateReply::Exists), "{reply:?}");
    assert_eq!(
        subject.load(&created.ident).await.metadata.uuid(),
        created.metadata.uuid()
    );
}

/// No namespace is made on the side. Not among [`all`]: behind REST it is the server's affair, and some make it.
pub async fn a_table_needs_its_namespace(subject: &Subject) {
    let nowhere = TableIdent::new(NamespaceIdent::new(subject.fresh("nowhere")), "t".into());
    let refused = subject
        .catalog
        .create(new_table(nowhere))
        .await
        .expect_err("refused");
    assert_eq!(refused.kind(), CatalogErrorKind::NotFound, "{refused}");
}

/// Lists are sorted and complete.
pub async fn tables_are_listed_in_order(subject: &Subject) {
    let namespace = NamespaceIdent::new(subject.fresh("listed"));
    subject
        .catalog
        .ensure_namespace(&namespace)
        .await
        .expect("namespace");
    for name in ["b", "a_1", "B2", "a"] {
        let ident = TableIdent::new(namespace.clone(), name.to_owned());
        let reply = subject
            .catalog
            .create(new_table(ident))
            .await
            .expect("create");
        assert!(matches!(reply, CreateReply::Created(_)), "{reply:?}");
    }
    let listed = subject.other.list_tables(&namespace).await.expect("list");
    assert_eq!(listed, ["B2", "a", "a_1", "b"]);
}

/// The reply shows the table after the commit, and so does a load.
pub async fn properties_are_set_and_removed(subject: &Subject) {
    let table = subject.create().await;
    let value = "{\"ü\":[1,2]} '%\" \\ x=y";
    let set = subject
        .commit(&table, vec![], vec![set_property("everlog.ledger", value)])
        .await;
    assert_eq!(property(&set, "everlog.ledger"), Some(value));
    assert_ne!(set.metadata_location, table.metadata_location);
    let loaded = subject.load(&table.ident).await;
    assert_eq!(loaded.metadata_location, set.metadata_location);
    assert_eq!(property(&loaded, "everlog.ledger"), Some(value));
    let removal = TableUpdate::RemoveProperties {
        removals: vec!["everlog.ledger".into(), "absent".into()],
    };
    let removed = subject.commit(&set, vec![], vec![removal]).await;
    assert_eq!(property(&removed, "everlog.ledger"), None);
    assert_eq!(
        property(&subject.load(&table.ident).await, "purpose"),
        Some("conformance")
    );
}

/// Snapshot, reference and property change together; history and sequence numbers are kept.
pub async fn snapshots_are_added_and_read_back(subject: &Subject) {
    let mut table = subject.create().await;
    for round in 1..=3_i64 {
        let (requirements, mut updates) = subject.append(&table).await;
        updates.push(set_property("round", &round.to_string()));
        table = subject.commit(&table, requirements, updates).await;
        let loaded = subject.load(&table.ident).await;
        let snapshot = loaded
            .metadata
            .current_snapshot()
            .expect("current snapshot");
        assert_eq!(snapshot.sequence_number(), round);
        assert_eq!(
            snapshot.summary().additional_properties["everlog.test"],
            "yes"
        );
        assert_eq!(property(&loaded, "round"), Some(round.to_string().as_str()));
        assert_eq!(
            loaded.metadata.snapshots().count(),
            usize::try_from(round).unwrap_or(0)
        );
        let current = table.metadata.current_snapshot_id();
        assert_eq!(loaded.metadata.current_snapshot_id(), current);
    }
    assert_eq!(table.metadata.history().len(), 3);
}

/// A lease: a tag on a snapshot that is not current any more.
pub async fn tags_are_set_and_removed(subject: &Subject) {
    let table = subject.create().await;
    let first = subject.append_once(&table).await;
    let pinned = first.metadata.current_snapshot_id().expect("snapshot");
    let second = subject.append_once(&first).await;
    let retention = SnapshotRetention::Tag {
        max_ref_age_ms: Some(86_400_000),
    };
    let reference = SnapshotReference::new(pinned, retention);
    let set = TableUpdate::SetSnapshotRef {
        ref_name: "everlog-lease-1".into(),
        reference,
    };
    let absent = reference_is("everlog-lease-1", None);
    let tagged = subject
        .commit(&second, vec![absent.clone()], vec![set.clone()])
        .await;
    let found = tagged
        .metadata
        .snapshot_for_ref("everlog-lease-1")
        .expect("tag");
    assert_eq!(found.snapshot_id(), pinned);
    let current = tagged.metadata.current_snapshot_id();
    assert_eq!(current, second.metadata.current_snapshot_id());
    let loaded = subject.load(&table.ident).await;
    let refs = serde_json::to_value(&*loaded.metadata).expect("json");
    let tag = &refs["refs"]["everlog-lease-1"];
    assert_eq!(
        (&tag["type"], &tag["max-ref-age-ms"]),
        (&"tag".into(), &86_400_000.into())
    );
    let removal = TableUpdate::RemoveSnapshotRef {
        ref_name: "everlog-lease-1".into(),
    };
    let required = reference_is("everlog-lease-1", Some(pinned));
    let removed = subject.commit(&tagged, vec![required], vec![removal]).await;
    assert!(
        removed
            .metadata
            .snapshot_for_ref("everlog-lease-1")
            .is_none()
    );
}

/// Expiry: the metadata forgets a snapshot, and its file stays for whoever deletes files.
pub async fn snapshots_are_removed(subject: &Subject) {
    let table = subject.create().await;
    let first = subject.append_once(&table).await;
    let second = subject.append_once(&first).await;
    let expired = first.metadata.current_snapshot().expect("snapshot");
    let removal = TableUpdate::RemoveSnapshots {
        snapshot_ids: vec![expired.snapshot_id()],
    };
    let main = reference_is(MAIN_BRANCH, second.metadata.current_snapshot_id());
    let removed = subject.commit(&second, vec![main], vec![removal]).await;
    assert_eq!(removed.metadata.snapshots().count(), 1);
    assert!(
        removed
            .metadata
            .snapshot_by_id(expired.snapshot_id())
            .is_none()
    );
    let storage = subject.catalog.storage_for(&removed).expect("storage");
    assert!(
        storage
            .exists(expired.manifest_list())
            .await
            .expect("exists")
    );
}

/// A schema change by the same seam.
pub async fn a_column_is_added(subject: &Subject) {
    let table = subject.create().await;
    let schema = table.metadata.current_schema();
    let note = NestedField::optional(3, "note", Type::Primitive(PrimitiveType::String));
    let fields = schema
        .as_struct()
        .fields()
        .iter()
        .cloned()
        .chain([note.into()]);
    let wider = Schema::builder()
        .with_schema_id(schema.schema_id() + 1)
        .with_fields(fields)
        .build()
        .expect("schema");
    let requirements = vec![
        TableRequirement::CurrentSchemaIdMatch {
            current_schema_id: schema.schema_id(),
        },
        TableRequirement::LastAssignedFieldIdMatch {
            last_assigned_field_id: table.metadata.last_column_id(),
        },
    ];
    let updates = vec![
        TableUpdate::AddSchema { schema: wider },
        TableUpdate::SetCurrentSchema { schema_id: -1 },
    ];
    let changed = subject
        .commit(&table, requirements.clone(), updates.clone())
        .await;
    assert!(
        changed
            .metadata
            .current_schema()
            .field_by_name("note")
            .is_some()
    );
    let reply = subject.try_commit(&table, requirements, updates).await;
    assert!(matches!(reply, CommitReply::Conflict), "{reply:?}");
}

/// P7: whoever builds on an old parent does not land, and nothing of it is seen.
pub async fn a_changed_parent_is_a_conflict(subject: &Subject) {
    let table = subject.create().await;
    let (requirements, updates) = subject.append(&table).await;
    let (rival_requirements, rival_updates) = subject.append(&table).await;
    let key = subject.ids.uuid();
    let rival = subject
        .other
        .commit(&table, rival_requirements, rival_updates, key)
        .await;
    let CommitReply::Committed(rival) = rival else {
        unreachable!("rival was first, but got {rival:?}")
    };
    let reply = subject.try_commit(&table, requirements, updates).await;
    assert!(matches!(reply, CommitReply::Conflict), "{reply:?}");
    let loaded = subject.load(&table.ident).await;
    assert_eq!(loaded.metadata_location, rival.metadata_location);
    assert_eq!(loaded.metadata.snapshots().count(), 1);
}

/// A table that was dropped and made again is another table.
pub async fn another_table_of_the_name_is_a_conflict(subject: &Subject) {
    let table = subject.create().await;
    let requirements = vec![TableRequirement::UuidMatch {
        uuid: subject.ids.uuid(),
    }];
    let reply = subject
        .try_commit(&table, requirements, vec![set_property("a", "b")])
        .await;
    assert!(matches!(reply, CommitReply::Conflict), "{reply:?}");
    assert_eq!(property(&subject.load(&table.ident).await, "a"), None);
}

/// The first snapshot has a parent requirement, too: that there is none.
pub async fn a_reference_that_should_not_exist_is_a_conflict(subject: &Subject) {
    let table = subject.create().await;
    let appended = subject.append_once(&table).await;
    let absent = vec![reference_is(MAIN_BRANCH, None)];
    let reply = subject
        .try_commit(&appended, absent, vec![set_property("a", "b")])
        .await;
    assert!(matches!(reply, CommitReply::Conflict), "{reply:?}");
}

/// What the requirements do not mention may have changed: a lease is set while the archiver commits.
pub async fn updates_land_on_a_newer_state_where_requirements_hold(subject: &Subject) {
    let table = subject.create().await;
    let uuid = TableRequirement::UuidMatch {
        uuid: table.metadata.uuid(),
    };
    let mine = subject
        .commit(&table, vec![uuid.clone()], vec![set_property("mine", "1")])
        .await;
    assert_eq!(property(&mine, "mine"), Some("1"));
    // by the other handle, from the state before
    let key = subject.ids.uuid();
    let theirs = vec![set_property("theirs", "2")];
    let reply = subject.other.commit(&table, vec![uuid], theirs, key).await;
    let CommitReply::Committed(theirs) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(property(&theirs, "theirs"), Some("2"));
    assert_eq!(property(&theirs, "mine"), Some("1"));
    assert_eq!(
        property(&subject.load(&table.ident).await, "mine"),
        Some("1")
    );
}

/// Removal holds for exactly the state that it was planned on, where the catalog says so: a tag may have come since.
pub async fn a_tag_made_meanwhile_keeps_its_snapshot(subject: &Subject) {
    if !subject.catalog.removes_exactly() {
        return;
    }
    let table = subject.create().await;
    let first = subject.append_once(&table).await;
    let second = subject.append_once(&first).await;
    let old = first.metadata.current_snapshot_id().expect("a snapshot");
    let reference = SnapshotReference::new(
        old,
        SnapshotRetention::Tag {
            max_ref_age_ms: None,
        },
    );
    let tag = TableUpdate::SetSnapshotRef {
        ref_name: "theirs".into(),
        reference,
    };
    subject.commit(&second, vec![], vec![tag]).await;
    let main = TableRequirement::RefSnapshotIdMatch {
        r#ref: MAIN_BRANCH.to_owned(),
        snapshot_id: second.metadata.current_snapshot_id(),
    };
    let removal = TableUpdate::RemoveSnapshots {
        snapshot_ids: vec![old],
    };
    let reply = subject.try_commit(&second, vec![main], vec![removal]).await;
    assert!(matches!(reply, CommitReply::Conflict), "{reply:?}");
    let now = subject.load(&table.ident).await;
    assert!(now.metadata.snapshot_for_ref("theirs").is_some());
}

/// Refused is definite.
pub async fn a_senseless_update_is_refused_and_changes_nothing(subject: &Subject) {
    let table = subject.create().await;
    let retention = SnapshotRetention::Tag {
        max_ref_age_ms: None,
    };
    let reference = SnapshotReference::new(4711, retention);
    let dangling = TableUpdate::SetSnapshotRef {
        ref_name: "x".into(),
        reference,
    };
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "b"), dangling])
        .await;
    let CommitReply::Refused(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(error.kind(), CatalogErrorKind::Invalid, "{error}");
    let loaded = subject.load(&table.ident).await;
    assert_eq!(loaded.metadata_location, table.metadata_location);
}

/// A dropped table does not come back by a commit.
pub async fn a_commit_to_no_table_is_refused(subject: &Subject) {
    let table = subject.create().await;
    let gone = LoadedTable {
        ident: subject.new_ident(),
        ..table
    };
    let uuid = TableRequirement::UuidMatch {
        uuid: gone.metadata.uuid(),
    };
    let reply = subject
        .try_commit(&gone, vec![uuid], vec![set_property("a", "b")])
        .await;
    let CommitReply::Refused(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(error.kind(), CatalogErrorKind::NotFound, "{error}");
    assert!(
        subject
            .catalog
            .load(&gone.ident)
            .await
            .expect("load")
            .is_none()
    );
}

/// What is written under the table's location is read, listed and deleted again.
pub async fn files_of_a_table_are_reached_by_its_storage(subject: &Subject) {
    let table = subject.append_once(&subject.create().await).await;
    let storage = subject.catalog.storage_for(&table).expect("storage");
    let uri = format!("{}/data/a b/ü%20-1.parquet", table.metadata.location());
    storage.put(&uri, "0123456789".into()).await.expect("put");
    assert_eq!(&storage.get(&uri).await.expect("get")[..], b"0123456789");
    assert_eq!(
        &storage.get_range(&uri, 2..5).await.expect("range")[..],
        b"234"
    );
    let through = subject
        .other
        .storage_for(&subject.load(&table.ident).await)
        .expect("storage");
    let listed: Vec<_> = through
        .list(table.metadata.location())
        .expect("list")
        .map(|object| object.map(|object| object.uri))
        .try_collect()
        .await
        .expect("list");
    let manifest_list = table
        .metadata
        .current_snapshot()
        .expect("snapshot")
        .manifest_list();
    assert!(listed.contains(&uri), "{listed:?}");
    assert!(
        listed.iter().any(|listed| listed == manifest_list),
        "{listed:?}"
    );
    storage.delete(&uri).await.expect("delete");
    storage.delete(&uri).await.expect("delete again");
    assert!(!through.exists(&uri).await.expect("exists"));
}

/// Many writers on two handles: every success is one snapshot, in one line of parents, and nothing else is.
pub async fn concurrent_writers_all_land_once(subject: &Subject) {
    let table = subject.create().await;
    let writers = (0..WRITERS).map(|writer| {
        let handle = if writer % 2 == 0 {
            &subject.catalog
        } else {
            &subject.other
        };
        append_many(subject, Arc::clone(handle), table.ident.clone())
    });
    let landed: Vec<i64> = join_all(writers).await.into_iter().flatten().collect();
    assert_eq!(landed.len(), WRITERS * APPENDS);
    let metadata = subject.load(&table.ident).await.metadata;
    let mut line = Vec::new();
    let mut next = metadata.current_snapshot_id();
    while let Some(id) = next {
        line.push(id);
        next = metadata
            .snapshot_by_id(id)
            .expect("parent")
            .parent_snapshot_id();
    }
    assert_eq!(line.len(), landed.len());
    assert_eq!(
        line.iter().collect::<BTreeSet<_>>(),
        landed.iter().collect::<BTreeSet<_>>()
    );
    let last = metadata.last_sequence_number();
    assert_eq!(last, i64::try_from(landed.len()).unwrap_or(i64::MAX));
}

async fn append_many(subject: &Subject, handle: Arc<dyn Catalog>, ident: TableIdent) -> Vec<i64> {
    let mut landed = Vec::new();
    for _ in 0..APPENDS {
        let mut conflicts = 0;
        landed.push(loop {
            let table = handle.load(&ident).await.expect("load").expect("table");
            let (requirements, updates) = subject.append(&table).await;
            match handle
                .commit(&table, requirements, updates, subject.ids.uuid())
                .await
            {
                CommitReply::Committed(table) => {
                    break table.metadata.current_snapshot_id().expect("snapshot");
                }
                CommitReply::Conflict => conflicts += 1,
                // busy: definitely not applied
                CommitReply::Refused(error) if error.kind() == CatalogErrorKind::Transient => {
                    conflicts += 1;
                }
                reply => unreachable!("a race ends in a success or a conflict, got {reply:?}"),
            }
            assert!(
                conflicts <= CONFLICTS_MAX,
                "more conflicts than others' successes"
            );
        });
    }
    landed
}

impl Subject {
    fn fresh(&self, word: &str) -> String {
        format!("{word}_{}", self.ids.uuid().simple())
    }

    /// A name that no table has.
    pub fn new_ident(&self) -> TableIdent {
        TableIdent::new(self.namespace.clone(), self.fresh("t"))
    }

    async fn make_namespace(&self) {
        self.catalog
            .ensure_namespace(&self.namespace)
            .await
            .expect("namespace");
    }

    /// A table of its own for one case.
    pub async fn create(&self) -> LoadedTable {
        self.make_namespace().await;
        self.create_in(&self.namespace).await
    }

    async fn create_in(&self, namespace: &NamespaceIdent) -> LoadedTable {
        let ident = TableIdent::new(namespace.clone(), self.fresh("t"));
        match self.catalog.create(new_table(ident)).await.expect("create") {
            CreateReply::Created(table) => table,
            CreateReply::Exists => unreachable!("a fresh name is taken"),
        }
    }

    /// The table as the other handle sees it.
    pub async fn load(&self, table: &TableIdent) -> LoadedTable {
        self.other.load(table).await.expect("load").expect("table")
    }

    /// One attempt.
    pub async fn try_commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> CommitReply {
        self.catalog
            .commit(base, requirements, updates, self.ids.uuid())
            .await
    }

    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> LoadedTable {
        match self.try_commit(base, requirements, updates).await {
            CommitReply::Committed(table) => table,
            reply => unreachable!("nobody else commits, got {reply:?}"),
        }
    }

    async fn append_once(&self, table: &LoadedTable) -> LoadedTable {
        let (requirements, updates) = self.append(table).await;
        self.commit(table, requirements, updates).await
    }

    /// What appends an empty snapshot to `table`, with its manifest list written.
    pub async fn append(&self, table: &LoadedTable) -> (Vec<TableRequirement>, Vec<TableUpdate>) {
        let metadata = &table.metadata;
        let parent = metadata.current_snapshot_id();
        let (id, sequence) = (self.ids.snapshot_id(), metadata.next_sequence_number());
        let list = format!("{}/metadata/snap-{id}.avro", metadata.location());
        let file_io = self.catalog.storage_for(table).expect("storage").file_io();
        let writer = file_io
            .new_output(&list)
            .expect("output")
            .writer()
            .await
            .expect("writer");
        let writer = ManifestListWriter::v2(writer, id, parent, sequence);
        writer.close().await.expect("manifest list");
        let properties = HashMap::from([("everlog.test".to_owned(), "yes".to_owned())]);
        let snapshot = Snapshot::builder()
            .with_snapshot_id(id)
            .with_parent_snapshot_id(parent)
            .with_sequence_number(sequence)
            .with_timestamp_ms(self.clock.now().0.max(metadata.last_updated_ms()))
            .with_manifest_list(list)
            .with_summary(Summary {
                operation: Operation::Append,
                additional_properties: properties,
            })
            .with_schema_id(metadata.current_schema_id())
            .build();
        let reference = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
        let requirements = vec![
            TableRequirement::UuidMatch {
                uuid: metadata.uuid(),
            },
            reference_is(MAIN_BRANCH, parent),
        ];
        let updates = vec![
            TableUpdate::AddSnapshot { snapshot },
            TableUpdate::SetSnapshotRef {
                ref_name: MAIN_BRANCH.into(),
                reference,
            },
        ];
        (requirements, updates)
    }
}

/// A table with two columns, partitioned by the day of one.
pub fn new_table(ident: TableIdent) -> NewTable {
    let topic = NestedField::required(1, "topic", Type::Primitive(PrimitiveType::String));
    let archived_at = NestedField::required(
        2,
        "archived_at",
        Type::Primitive(PrimitiveType::Timestamptz),
    );
    let spec = UnboundPartitionSpec::builder()
        .add_partition_field(2, "archived_at_day", Transform::Day)
        .expect("partition field")
        .build();
    let schema = Schema::builder().with_fields([topic.into(), archived_at.into()]);
    NewTable {
        ident,
        schema: schema.build().expect("schema"),
        partition_spec: Some(spec),
        sort_order: None,
        properties: BTreeMap::from([("purpose".to_owned(), "conformance".to_owned())]),
        location: None,
    }
}

fn reference_is(name: &str, snapshot_id: Option<i64>) -> TableRequirement {
    TableRequirement::RefSnapshotIdMatch {
        r#ref: name.to_owned(),
        snapshot_id,
    }
}

/// An update that sets one table property.
pub fn set_property(key: &str, value: &str) -> TableUpdate {
    TableUpdate::SetProperties {
        updates: HashMap::from([(key.to_owned(), value.to_owned())]),
    }
}

/// One table property.
pub fn property<'a>(table: &'a LoadedTable, key: &str) -> Option<&'a str> {
    table.metadata.properties().get(key).map(String::as_str)
}
