//! `everlog maintain`: expiry of snapshots and removal of files, once.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use everlog_common::TopicName;
use everlog_table::archive::Archive;
use everlog_table::maintain::{MaintenanceReport, MaintenanceSettings, Removal};

use crate::archive::maintenance_settings;
use crate::components;
use crate::failure::{Failure, Status};
use crate::settings::Settings;
use crate::text;

/// Expire old snapshots, and remove files that nothing needs any more, once
///
/// What the archiver does by itself every few minutes; for a topic, or for every topic in the namespace. Leased and tagged
/// snapshots stay, and so does the ledger. With `delete_files = false` nothing is deleted, only counted.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct MaintainArgs {
    /// The topic; all topics in the namespace without it
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
    let topics = match &args.topic {
        Some(topic) => vec![topic.clone()],
        None => components::archived_topics(&*catalog, namespace).await?,
    };
    if topics.is_empty() {
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
    let mut failed = Vec::new();
    for topic in &topics {
        let done = maintain(topic, &catalog, namespace, &maintenance).await;
        match done {
            Ok(report) => {
                let line = describe(topic, &report, maintenance.removal == Removal::Delete);
                let mut out = std::io::stdout().lock();
                writeln!(out, "{line}")?;
                out.flush()?;
            }
            // One topic's trouble is none of the others'.
            Err(failure) => failed.push(failure),
        }
    }
    let others = failed.len().saturating_sub(1);
    match failed.into_iter().next() {
        None => Ok(()),
        Some(first) if others == 0 => Err(first),
        Some(Failure::Reported { status, message }) => Err(Failure::new(
            status,
            format!("{message} (and {others} more topics failed)"),
        )),
        Some(first) => Err(first),
    }
}

async fn maintain(
    topic: &TopicName,
    catalog: &std::sync::Arc<dyn everlog_table::catalog::Catalog>,
    namespace: &str,
    settings: &MaintenanceSettings,
) -> Result<MaintenanceReport, Failure> {
    let archive = Archive::open(components::deps(catalog), namespace, topic)
        .await
        .map_err(|e| components::of_archive(&e))?
        .ok_or_else(|| not_archived(topic, namespace))?;
    archive
        .maintain(settings)
        .await
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

fn describe(topic: &TopicName, report: &MaintenanceReport, deletes: bool) -> String {
    let mut line = format!(
        "{topic}: {} expired, {} left",
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
        let topic = TopicName::new("orders").unwrap();
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
            describe(&topic, &report, true),
            "orders: 3 snapshots expired, 20 left, 1 lease past the deadline removed; 1 file (2.0 KiB) deleted, 5 (10 B) not old enough yet"
        );
        assert!(describe(&topic, &report, false).contains("delete_files is off"));
        let held = MaintenanceReport {
            held_back: Some("the table has gc.enabled=false".to_owned()),
            not_searched: Some("s3://b/x is not below s3://b/t".to_owned()),
            ..report
        };
        assert!(describe(&topic, &held, true).ends_with(
            "; held back: the table has gc.enabled=false; not searched: s3://b/x is not below s3://b/t"
        ));
    }
}
