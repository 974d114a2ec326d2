//! The SQL catalog on SQLite and PostgreSQL, and beside pyiceberg on the same database.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use everlog_common::Ids;
use everlog_common::clock::RandomIds;
use everlog_table::catalog::conformance::{self, Subject, property, set_property};
use everlog_table::catalog::{CatalogErrorKind, CommitReply, CreateReply, NewTable, connect};
use iceberg::TableRequirement;
use sqlx::{Connection, Executor};
use support::{Properties, Service, chain, properties, python, subject, with};

fn sqlite(folder: &tempfile::TempDir) -> Properties {
    let path = folder.path().display();
    properties(&[
        ("type", "sql"),
        ("uri", &format!("sqlite://{path}/lake/catalog.db")),
        ("warehouse", &format!("file://{path}/ware house")),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    let folder = tempfile::tempdir().expect("folder");
    let properties = sqlite(&folder);
    let subject = subject(&properties, &properties).await;
    conformance::all(&subject).await;
    conformance::a_table_needs_its_namespace(&subject).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms_with_its_tables_in_s3() {
    let folder = tempfile::tempdir().expect("folder");
    let (_s3, reach) = support::s3();
    let all = with(sqlite(&folder), &[("warehouse", "s3://warehouse/a b/lake")]);
    let all: Properties = all.into_iter().chain(reach).collect();
    conformance::all(&subject(&all, &all).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_open_one_new_sqlite_file_at_once() {
    let folder = tempfile::tempdir().expect("folder");
    let properties = sqlite(&folder);
    let opened = futures::future::join_all((0..8).map(|_| connect(&properties))).await;
    for catalog in opened {
        catalog.expect("opened");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_names_are_two_catalogs_in_one_file() {
    let folder = tempfile::tempdir().expect("folder");
    let one = sqlite(&folder);
    let another = with(one.clone(), &[("name", "another")]);
    let subject = subject(&one, &another).await;
    let table = subject.create().await;
    assert!(
        subject
            .other
            .load(&table.ident)
            .await
            .expect("load")
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_sqlite_file_is_a_definite_no() {
    let folder = tempfile::tempdir().expect("folder");
    let properties = with(
        sqlite(&folder),
        &[("everlog.catalog.request-timeout", "2s")],
    );
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    let mut rival = sqlx::SqliteConnection::connect(&properties["uri"])
        .await
        .expect("connect");
    rival.execute("BEGIN IMMEDIATE").await.expect("lock");
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    let CommitReply::Refused(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(
        error.kind(),
        CatalogErrorKind::Transient,
        "{}",
        chain(&error)
    );
    rival.execute("ROLLBACK").await.expect("unlock");
    let loaded = subject.load(&table.ident).await;
    assert_eq!(loaded.metadata_location, table.metadata_location);
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_without_the_type_column_is_used_as_it_is() {
    let folder = tempfile::tempdir().expect("folder");
    let properties = sqlite(&folder);
    let file = folder.path().join("lake/catalog.db");
    std::fs::create_dir_all(folder.path().join("lake")).expect("folder");
    let uri = format!("sqlite://{}?mode=rwc", file.display());
    let mut old = sqlx::SqliteConnection::connect(&uri)
        .await
        .expect("connect");
    old.execute(
        "CREATE TABLE iceberg_tables (catalog_name VARCHAR(255) NOT NULL, table_namespace VARCHAR(255) NOT NULL, \
         table_name VARCHAR(255) NOT NULL, metadata_location VARCHAR(1000), \
         previous_metadata_location VARCHAR(1000), PRIMARY KEY (catalog_name, table_namespace, table_name))",
    )
    .await
    .expect("old layout");
    old.close().await.expect("close");
    conformance::all(&subject(&properties, &properties).await).await;
}

/// Makes tables and namespaces of its own, reads ours, and appends to ours: prints one line per thing it saw.
const READER: &str = r"
import sys
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
uri, warehouse, name = sys.argv[1:]
catalog = SqlCatalog('everlog', uri=uri, warehouse=warehouse)
table = catalog.load_table(name)
print(table.properties['everlog.ledger'])
print(len(table.metadata.snapshots), table.metadata.table_uuid)
rows = pa.table({'topic': ['orders'], 'archived_at': pa.array([0], pa.timestamp('us', 'UTC'))},
                schema=table.schema().as_arrow())
table.append(rows)
print(table.scan().to_arrow().to_pydict()['topic'])
catalog.create_table(name + '_theirs', table.schema())
";

#[tokio::test(flavor = "multi_thread")]
async fn pyiceberg_reads_and_appends_to_our_tables_and_we_read_its() {
    let folder = tempfile::tempdir().expect("folder");
    let properties = sqlite(&folder);
    let subject = subject(&properties, &properties).await;
    subject
        .catalog
        .ensure_namespace(&subject.namespace)
        .await
        .expect("namespace");
    // pyiceberg writes partitions by day only with a library that it does not bring along
    let flat = NewTable {
        partition_spec: None,
        ..conformance::new_table(subject.new_ident())
    };
    let CreateReply::Created(table) = subject.catalog.create(flat).await.expect("create") else {
        unreachable!("a fresh name is taken")
    };
    let (requirements, mut updates) = subject.append(&table).await;
    updates.push(set_property("everlog.ledger", "v1 ü"));
    let reply = subject.try_commit(&table, requirements, updates).await;
    let CommitReply::Committed(ours) = reply else {
        unreachable!("got {reply:?}")
    };
    let name = ours.ident.to_string();
    let output = python(
        READER,
        &[&alchemy(&properties), &properties["warehouse"], &name],
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let expected = format!("v1 ü\n1 {}\n['orders']\n", ours.metadata.uuid());
    assert_eq!(printed, expected);
    let appended = subject.load(&ours.ident).await;
    assert_eq!(appended.metadata.snapshots().count(), 2);
    assert_eq!(property(&appended, "everlog.ledger"), Some("v1 ü"));
    let reply = subject
        .try_commit(&appended, vec![], vec![set_property("a", "1")])
        .await;
    assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
    let listed = subject
        .catalog
        .list_tables(&subject.namespace)
        .await
        .expect("list");
    assert_eq!(
        listed,
        [
            ours.ident.name().to_owned(),
            format!("{}_theirs", ours.ident.name())
        ]
    );
}

/// The database as SQLAlchemy names it: one slash more.
fn alchemy(properties: &Properties) -> String {
    properties["uri"].replace("sqlite://", "sqlite:///")
}

/// Commits one property after the other, each until it landed.
const WRITER: &str = r"
import sys
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
uri, warehouse, name, count = sys.argv[1:]
catalog = SqlCatalog('everlog', uri=uri, warehouse=warehouse)
for i in range(int(count)):
    for attempt in range(1000):
        table = catalog.load_table(name)
        try:
            with table.transaction() as change:
                change.set_properties({f'theirs.{i}': 'x'})
            break
        except CommitFailedException:
            pass
    else:
        sys.exit('never landed')
";

#[tokio::test(flavor = "multi_thread")]
async fn h28_two_processes_on_one_sqlite_file_lose_no_commit() {
    const EACH: usize = 40;
    let folder = tempfile::tempdir().expect("folder");
    let properties = sqlite(&folder);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    let arguments = [
        alchemy(&properties),
        properties["warehouse"].clone(),
        table.ident.to_string(),
        EACH.to_string(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let conflicts = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| python(WRITER, &arguments));
        let runtime = tokio::runtime::Handle::current();
        let conflicts = tokio::task::block_in_place(|| {
            // our share of the race begins once theirs is under way, and is spread over it
            runtime.block_on(commit_beside(&subject, &table.ident, EACH))
        });
        let output = theirs.join().expect("thread");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        conflicts
    });
    let end = subject.load(&table.ident).await;
    for i in 0..EACH {
        assert_eq!(
            property(&end, &format!("theirs.{i}")),
            Some("x"),
            "theirs.{i}"
        );
        assert_eq!(property(&end, &format!("ours.{i}")), Some("x"), "ours.{i}");
    }
    eprintln!("{conflicts} conflicts");
}

async fn commit_beside(subject: &Subject, table: &iceberg::TableIdent, count: usize) -> usize {
    let mut conflicts = 0;
    let waited = tokio::time::timeout(Duration::from_mins(1), async {
        while property(&subject.load(table).await, "theirs.0").is_none() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.expect("they never began");
    for i in 0..count {
        loop {
            let base = subject.load(table).await;
            let same = TableRequirement::UuidMatch {
                uuid: base.metadata.uuid(),
            };
            let update = set_property(&format!("ours.{i}"), "x");
            let key = RandomIds.uuid();
            match subject
                .catalog
                .commit(&base, vec![same], vec![update], key)
                .await
            {
                CommitReply::Committed(_) => break,
                CommitReply::Conflict => conflicts += 1,
                CommitReply::Refused(error) if error.kind() == CatalogErrorKind::Transient => {
                    conflicts += 1;
                }
                reply => unreachable!("got {reply:?}"),
            }
            assert!(conflicts < 10_000, "no progress");
        }
    }
    conflicts
}

fn postgres(service: &Service, folder: &tempfile::TempDir) -> Properties {
    properties(&[
        ("type", "sql"),
        ("uri", &service.said),
        (
            "warehouse",
            &format!("file://{}/lake", folder.path().display()),
        ),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    let folder = tempfile::tempdir().expect("folder");
    let service = Service::start("postgres.sh", &[]);
    let properties = postgres(&service, &folder);
    let (one, two) = tokio::join!(connect(&properties), connect(&properties));
    one.and(two).expect("both make the tables");
    conformance::all(&subject(&properties, &properties).await).await;
    support::tells_the_time(&properties).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms_encrypted_and_with_the_certificate_verified() {
    let folder = tempfile::tempdir().expect("folder");
    let service = Service::start("postgres.sh", &["--tls"]);
    let authority = service.folder.path().join("tls/ca.crt");
    let plain = with(postgres(&service, &folder), &[]);
    let verified = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        plain["uri"],
        authority.display()
    );
    let verified = with(plain.clone(), &[("uri", &verified)]);
    conformance::all(&subject(&verified, &verified).await).await;
    let unencrypted = with(
        plain.clone(),
        &[("uri", &format!("{}?sslmode=disable", plain["uri"]))],
    );
    connect(&unencrypted)
        .await
        .expect_err("the server takes no plain connection");
    let untrusted = with(
        plain.clone(),
        &[("uri", &format!("{}?sslmode=verify-full", plain["uri"]))],
    );
    connect(&untrusted)
        .await
        .expect_err("nobody we trust signed the certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn h26_a_postgres_that_does_not_answer_leaves_the_outcome_unknown_and_may_land_late() {
    let folder = tempfile::tempdir().expect("folder");
    let service = Service::start("postgres.sh", &[]);
    let patient = postgres(&service, &folder);
    let hasty = with(
        patient.clone(),
        &[("everlog.catalog.request-timeout", "2s")],
    );
    let subject = subject(&hasty, &patient).await;
    let table = subject.create().await;
    // somebody holds the row
    let mut rival = sqlx::PgConnection::connect(&service.said)
        .await
        .expect("connect");
    rival
        .execute("BEGIN; SELECT * FROM iceberg_tables FOR UPDATE")
        .await
        .expect("lock");
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("late", "1")])
        .await;
    let CommitReply::Unknown(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(error.kind(), CatalogErrorKind::Unknown, "{}", chain(&error));
    let unchanged = subject.load(&table.ident).await;
    assert_eq!(unchanged.metadata_location, table.metadata_location);
    // and lets it go: the statement, whose client is gone, goes on
    rival.execute("ROLLBACK").await.expect("unlock");
    let landed = tokio::time::timeout(Duration::from_secs(20), async {
        while property(&subject.load(&table.ident).await, "late").is_none() {
            tokio::task::yield_now().await;
        }
    });
    landed
        .await
        .expect("it lands late, which is why the outcome was unknown");
    // the swap on the state before it is dead now
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("next", "1")])
        .await;
    let CommitReply::Committed(next) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(property(&next, "late"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_gone_refuses_and_one_that_is_back_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    let service = Service::start("postgres.sh", &[]);
    let properties = with(
        postgres(&service, &folder),
        &[("everlog.catalog.request-timeout", "5s")],
    );
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    service.run("kill", &[]);
    let error = subject.catalog.load(&table.ident).await.expect_err("gone");
    assert_eq!(
        error.kind(),
        CatalogErrorKind::Transient,
        "{}",
        chain(&error)
    );
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    let CommitReply::Refused(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(
        error.kind(),
        CatalogErrorKind::Transient,
        "{}",
        chain(&error)
    );
    service.restart(&[]);
    let reply = subject
        .try_commit(&table, vec![], vec![set_property("a", "1")])
        .await;
    assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_dies_in_mid_statement_leaves_the_outcome_unknown() {
    let folder = tempfile::tempdir().expect("folder");
    let service = Service::start("postgres.sh", &[]);
    let properties = postgres(&service, &folder);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    let mut rival = sqlx::PgConnection::connect(&service.said)
        .await
        .expect("connect");
    rival
        .execute("BEGIN; SELECT * FROM iceberg_tables FOR UPDATE")
        .await
        .expect("lock");
    let committing = subject.try_commit(&table, vec![], vec![set_property("a", "1")]);
    let killing = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let mut waiters = 0_i64;
        while waiters == 0 {
            waiters = sqlx::query_scalar(waiting)
                .fetch_one(&mut rival)
                .await
                .expect("activity");
        }
        service.run("kill", &[]);
    };
    let (reply, ()) = tokio::join!(committing, killing);
    let CommitReply::Unknown(error) = reply else {
        unreachable!("got {reply:?}")
    };
    assert_eq!(error.kind(), CatalogErrorKind::Unknown, "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_uris_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("folder");
    for uri in ["mysql://x", "catalog.db", "sqlite::memory:", ""] {
        let properties = with(sqlite(&folder), &[("uri", uri)]);
        let error = connect(&properties).await.expect_err(uri);
        assert_eq!(error.kind(), CatalogErrorKind::Invalid, "{}", chain(&error));
        assert!(error.to_string().contains("[catalog] uri"), "{error}");
    }
    let mut properties = sqlite(&folder);
    properties.remove("warehouse");
    let error = connect(&properties).await.expect_err("no warehouse");
    assert!(error.to_string().contains("[catalog] warehouse"), "{error}");
    // a file that is no database
    let file = folder.path().join("text.db");
    std::fs::write(
        &file,
        "this is no database, and long enough to be taken for one".repeat(20),
    )
    .expect("file");
    let uri = format!("sqlite://{}", file.display());
    connect(&with(sqlite(&folder), &[("uri", &uri)]))
        .await
        .expect_err("no database");
}

/// What a writer killed between the metadata file and the swap leaves: a file nobody names, and a table that goes on.
#[tokio::test(flavor = "multi_thread")]
async fn h29_a_writer_killed_at_any_moment_leaves_a_readable_table() {
    let folder = tempfile::tempdir().expect("folder");
    let properties = sqlite(&folder);
    let subject = subject(&properties, &properties).await;
    let table = subject.create().await;
    for _ in 0..3 {
        let mut child = Command::new(support::python_program())
            .args([
                "-c",
                WRITER,
                &alchemy(&properties),
                &properties["warehouse"],
            ])
            .args([table.ident.to_string(), "1000".to_owned()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python");
        let before = subject.load(&table.ident).await.metadata_location;
        let began = tokio::time::timeout(Duration::from_mins(1), async {
            while subject.load(&table.ident).await.metadata_location == before {
                tokio::task::yield_now().await;
            }
        });
        began.await.expect("it never committed");
        child.kill().expect("kill -9");
        child.wait().expect("gone");
        let loaded = subject.load(&table.ident).await;
        let reply = subject
            .try_commit(&loaded, vec![], vec![set_property("a", "1")])
            .await;
        assert!(matches!(reply, CommitReply::Committed(_)), "{reply:?}");
    }
}
