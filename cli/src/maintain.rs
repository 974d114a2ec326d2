//! `everlog maintain`: expiry of snapshots and removal of files, once.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use everlog_common::TopicName;
use everlog_table::archive::Archive;
use everlog_table::catalog::Catalog;
use everlog_table::job::{JobTable, job_tables};
use everlog_table::maintain::{MaintenanceReport, MaintenanceSettings, Removal};

use crate::archive::maintenance_settings;
use crate::components;
use crate::failure::{Failure, Status};
use crate::job::facts::of_table;
use crate::job::first_of;
use crate::settings::Settings;
use crate::text;

/// Expire old snapshots, and remove files that nothing needs any more, once
///
/// What the archiver does by itself every few minutes; for a topic, or for every topic in the namespace and every table that
/// jobs write to. Leased and tagged snapshots stay, and so do the ledger and the heads of all versions' branches. With
/// `delete_files = false` nothing is deleted, only counted.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct MaintainArgs {
    /// The topic; without it all topics in the namespace, and all tables of jobs
    topic: Option<TopicName>,
}

const EXAMPLES: &str = "\
Examples:
  everlog maintain                                            every table, by the bounds of [archive]
  EVERLOG_ARCHIVE__SNAPSHOT_AGE=1h everlog maintain orders    one topic, by another bound
";

/// Runs it.
pub(crate) async fn run(args: &MaintainArgs, settings: &Settings) -> Result<(), Failure> {
    let catalog = components::catalog(settings).await?;
    let namespace = &settings.catalog.namespace;
    let (topics, jobs) = match &args.topic {
        Some(topic) => (vec![topic.clone()], BTreeMap::new()),
        None => (
            components::archived_topics(&*catalog, namespace).await?,
            job_tables(&*catalog, namespace)
                .await
                .map_err(|e| components::of_catalog(&e))?,
        ),
    };
    if topics.is_empty() && jobs.is_empty() {
        writeln!(
            std::io::stdout().lock(),
            "nothing is archived in namespace {namespace}"
        )?;
    }
    let mut maintenance = MaintenanceSettings {
        // Asked for by hand: folders are searched now, however lately that was done.
        orphan_interval: Duration::ZERO,
        // There may be no next round that remembers what this one has looked at.
        judged_max: usize::MAX,
        ..maintenance_settings(settings)
    };
    if maintenance.removal == Removal::Off {
        maintenance.removal = Removal::Count;
    }
    let deletes = maintenance.removal == Removal::Delete;
    let mut failed = Vec::new();
    for topic in &topics {
        let done = maintain(topic, &catalog, namespace, &maintenance).await;
        tell(topic.as_str(), done, deletes, &mut failed)?;
    }
    for (table, job) in &jobs {
        let done = maintain_job(table, job, &catalog, namespace, &maintenance).await;
        tell(&format!("{table} (job {job})"), done, deletes, &mut failed)?;
    }
    first_of(failed)
}

/// One table's trouble is none of the others'.
fn tell(
    what: &str,
    done: Result<Option<MaintenanceReport>, Failure>,
    deletes: bool,
    failed: &mut Vec<Failure>,
) -> Result<(), Failure> {
    match done {
        Ok(Some(report)) => {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", describe(what, &report, deletes))?;
            out.flush()?;
        }
        Ok(None) => {}
        Err(failure) => failed.push(failure),
    }
    Ok(())
}

/// None where the table was dropped since it was listed.
async fn maintain_job(
    table: &str,
    job: &str,
    catalog: &Arc<dyn Catalog>,
    namespace: &str,
    settings: &MaintenanceSettings,
) -> Result<Option<MaintenanceReport>, Failure> {
    let opened = JobTable::open(components::deps(catalog), namespace, table, job).await;
    let Some(opened) = opened.map_err(|e| of_table(&e))? else {
        return Ok(None);
    };
    let report = opened.maintain(settings).await.map_err(|e| of_table(&e))?;
    Ok(Some(report))
}

async fn maintain(
    topic: &TopicName,
    catalog: &Arc<dyn Catalog>,
    namespace: &str,
    settings: &MaintenanceSettings,
) -> Result<Option<MaintenanceReport>, Failure> {
    let archive = Archive::open(components::deps(catalog), namespace, topic)
        .await
        .map_err(|e| components::of_archive(&e))?
        .ok_or_else(|| not_archived(topic, namespace))?;
    archive
        .maintain(settings)
        .await
        .map(Some)
        .map_err(|e| components::of_archive(&e))
}

/// There is no table for a topic.
pub(crate) fn not_archived(topic: &TopicName, namespace: &str) -> Failure {
    Failure::new(
        Status::Failed,
        format!(
            "topic {topic} has no archive in namespace {namespace}; `everlog archive` makes it, `everlog status` lists those that are there"
        ),
    )
}

fn describe(what: &str, report: &MaintenanceReport, deletes: bool) -> String {
    let mut line = format!(
        "{what}: {} expired, {} left",
        text::things(report.snapshots_expired as u64, "snapshot"),
        text::count(report.snapshots_left as u64),
    );
    if report.leases_removed > 0 {
        let leases = text::things(report.leases_removed as u64, "lease");
        let _ = write!(line, ", {leases} past the deadline removed");
    }
    let verb = if deletes {
        "deleted"
    } else {
        "to delete (delete_files is off)"
    };
    let _ = write!(
        line,
        "; {} ({}) {verb}, {} ({}) not old enough yet",
        text::things(report.files_deleted as u64, "file"),
        text::bytes(report.bytes_deleted),
        text::count(report.files_waiting as u64),
        text::bytes(report.bytes_waiting),
    );
    if let Some(why) = report.held_back.as_ref().filter(|_| deletes) {
        let _ = write!(line, "; held back: {why}");
    }
    if let Some(why) = &report.not_searched {
        let _ = write!(line, "; not searched: {why}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line() {
        let report = MaintenanceReport {
            snapshots_expired: 3,
            leases_removed: 1,
            snapshots_left: 20,
            files_deleted: 1,
            bytes_deleted: 2048,
            files_waiting: 5,
            bytes_waiting: 10,
            ..MaintenanceReport::default()
        };
        assert_eq!(
            describe("orders", &report, true),
            "orders: 3 snapshots expired, 20 left, 1 lease past the deadline removed; 1 file (2.0 KiB) deleted, 5 (10 B) not old enough yet"
        );
        assert!(describe("orders", &report, false).contains("delete_files is off"));
        let held = MaintenanceReport {
            held_back: Some("the table has gc.enabled=false".to_owned()),
            not_searched: Some("s3://b/x is not below s3://b/t".to_owned()),
            ..report
        };
        assert!(describe("orders", &held, true).ends_with(
            "; held back: the table has gc.enabled=false; not searched: s3://b/x is not below s3://b/t"
        ));
    }
}
