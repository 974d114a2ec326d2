//! `everlog archive`: the archiver.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use clap::Args;
use everlog_archiver::{
    Archiver, ArchiverError, Components, Maintenance, OnGap, Settings as ArchiverSettings,
    TopicPattern, http,
};
use everlog_table::maintain::{ExpirySettings, MaintenanceSettings, Removal};
use everlog_table::schema::TableSettings;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::components;
use crate::failure::{Failure, Status};
use crate::settings::{self, Http, Settings};
use crate::signals::Signals;

/// Between two rounds of maintenance over all tables: a fraction of what it takes to reach the bounds.
const MAINTENANCE_INTERVAL: Duration = Duration::from_mins(2);

/// Archive topics into Iceberg tables, exactly once
///
/// Runs until SIGTERM or Ctrl-C, then ends after a last commit; killed at any instant, it resumes exactly. Topics,
/// commit interval and everything else are the configuration's (section archive). /healthz, /readyz and /metrics are served at
/// `http` (127.0.0.1:9464). Nothing is written to standard output.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ArchiveArgs {
    /// End with 0 once every partition has reached the end that was seen at the start
    #[arg(long)]
    until_caught_up: bool,

    /// Take a table as it is that somebody else changed: its head is this snapshot
    ///
    /// For one run only: after a foreign change the archiver stops with 5 and names the snapshot. Look at what was changed
    /// first: a row that the other writer removed is gone from every replay.
    #[arg(long, value_name = "SNAPSHOT", value_parser = crate::replay::snapshot_id)]
    accept: Option<i64>,
}

const EXAMPLES: &str = "\
Examples:
  everlog archive                                  run for months
  everlog archive --until-caught-up                a job: archive what is there, and end
  EVERLOG_ARCHIVE__GROUP=lake everlog archive      one of several that share the work
";

/// Runs it.
pub(crate) async fn run(args: &ArchiveArgs, settings: &Settings) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    info!(settings = ?settings, "configuration in force");
    let archiver = Archiver::new(
        archiver_settings(args, settings)?,
        Components {
            log: components::log(settings)?,
            catalog: components::catalog_or_new(settings).await?,
            clock: components::clock(),
            ids: components::ids(),
        },
    );

    // Health is served until the last commit is made.
    let served = CancellationToken::new();
    let mut server = JoinSet::new();
    if let Some(address) = settings.archive.http {
        let listener = bind(address).await?;
        info!(address = %listener.local_addr()?, "serving /healthz, /readyz and /metrics");
        server.spawn(http::serve(listener, archiver.status(), served.clone()));
    }
    let ended = archiver.run(signals.token()).await;
    served.cancel();
    server.shutdown().await;

    match ended {
        Ok(summary) => {
            info!(
                topics = summary.topics,
                commits = summary.commits,
                rows = summary.rows,
                gaps = summary.gaps.len(),
                "archiver ended"
            );
            Ok(())
        }
        Err(error) => Err(of_archiver(&error)),
    }
}

async fn bind(http: Http) -> Result<TcpListener, Failure> {
    let refused = |error: io::Error| {
        Failure::new(
            Status::Failed,
            format!(
                "archive.http: cannot listen at {}: {error}; set another address, port 0 for any free one, or an empty text for none",
                http.address
            ),
        )
    };
    match TcpListener::bind(http.address).await {
        Ok(listener) => Ok(listener),
        // The default is a convenience: a second archiver on this machine must not fail over it.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !http.is_chosen => {
            warn!(
                address = %http.address,
                "the default address of health and metrics is in use, taking another; set archive.http to choose"
            );
            TcpListener::bind((http.address.ip(), 0))
                .await
                .map_err(refused)
        }
        Err(error) => Err(refused(error)),
    }
}

fn archiver_settings(args: &ArchiveArgs, settings: &Settings) -> Result<ArchiverSettings, Failure> {
    let archive = &settings.archive;
    let (once, twice) = distinct(&archive.topics);
    for topic in twice {
        warn!(topic, "archive.topics names this twice: once is enough");
    }
    let topics = once
        .into_iter()
        .map(TopicPattern::parse)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::usage(format!("archive.topics: {error}")))?;
    Ok(ArchiverSettings {
        commit_interval: archive.commit_interval,
        isolation: archive.isolation,
        on_gap: match archive.on_gap {
            settings::OnGap::Stop => OnGap::Stop,
            settings::OnGap::Record => OnGap::Record,
        },
        accept_cluster: archive.accept_cluster.clone(),
        accept: args.accept,
        group: archive.group.clone(),
        memory: usize::try_from(archive.memory).unwrap_or(usize::MAX),
        discovery_interval: archive.discovery_interval,
        until_caught_up: args.until_caught_up,
        maintenance: archive.maintenance.then(|| Maintenance {
            interval: MAINTENANCE_INTERVAL,
            settings: maintenance_settings(settings),
        }),
        table: TableSettings {
            partition_by: archive.partition_by.clone(),
            ..TableSettings::default()
        },
        ..ArchiverSettings::new(&settings.catalog.namespace, topics)
    })
}

/// Each text once, in order, and those that came again.
fn distinct(texts: &[String]) -> (Vec<&str>, BTreeSet<&str>) {
    let (mut seen, mut once, mut twice) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
    for text in texts {
        if seen.insert(text.as_str()) {
            once.push(text.as_str());
        } else {
            twice.insert(text.as_str());
        }
    }
    (once, twice)
}

/// What maintenance keeps and removes, the same for the archiver and for `everlog maintain`.
pub(crate) fn maintenance_settings(settings: &Settings) -> MaintenanceSettings {
    let archive = &settings.archive;
    MaintenanceSettings {
        expiry: ExpirySettings {
            age_max: archive.snapshot_age,
            count_min: archive.snapshots_min,
            count_max: archive.snapshots_max,
            ..ExpirySettings::default()
        },
        removal: if archive.delete_files {
            Removal::Delete
        } else {
            Removal::Off
        },
        ..MaintenanceSettings::default()
    }
}

fn of_archiver(error: &ArchiverError) -> Failure {
    Failure::from_error(Status::from_code(error.exit_status()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_is_named_twice_is_archived_once() {
        let texts = ["b", "a", "b", "^x", "^x", "b"].map(str::to_owned);
        let (once, twice) = distinct(&texts);
        assert_eq!(once, ["b", "a", "^x"]);
        assert_eq!(twice, BTreeSet::from(["b", "^x"]));
    }
}
