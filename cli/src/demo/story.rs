//! What happens, step by step, and the proofs.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use everlog_common::{
    Ledger, LogBounds, Offset, Partition, Position, Positions, Source, TopicName, TopicPartition,
};
use everlog_kafka::{
    Isolation, Log, LogError, Membership, PartitionFault, ReaderEvent, ReaderOptions, StartAt,
};
use everlog_replayer::request::{ReplayRequest, Until};
use everlog_replayer::{Components, EventStream};
use everlog_table::archive::{Archive, SnapshotInfo, TableState};
use everlog_table::catalog::Catalog;
use everlog_table::snapshot::SnapshotSelector;
use tokio_util::sync::CancellationToken;

use super::DemoArgs;
use super::broker::Broker;
use super::child::ArchiverProcess;
use super::lake::Lake;
use super::witness::{Sum, Tally, sums_of_ledger};
use crate::components;
use crate::failure::{Failure, Status};
use crate::replay::of_replay;
use crate::settings::Settings;
use crate::text;

const TOPIC: &str = "clickstream.raw";
const PARTITIONS: i32 = 4;
/// Events before the replay: about twice what the broker keeps.
const HISTORY: u64 = 240_000;
/// Events that are produced while the replay runs.
const LIVE: u64 = 40_000;
/// Events per second, before the replay and during it.
const PACE: u64 = 30_000;
const LIVE_PACE: u64 = 12_000;
/// With `--keep`, afterwards.
const IDLE_PACE: u64 = 200;
/// How far the producer may run ahead of the archive: well below what the broker keeps.
const AHEAD: u64 = 80_000;
/// When the archiver is killed: after so many archived events.
const KILL_AT: u64 = 80_000;
/// And so many more that it has read, or is writing.
const IN_HAND: u64 = 12_000;
/// How long any single thing may take.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(100);

/// A finished story: what still runs, until it is dropped.
#[derive(Debug)]
pub(super) struct Told {
    broker: Broker,
    lake: Lake,
    archiver: Option<ArchiverProcess>,
}

impl Told {
    /// Goes on producing and archiving until told to end.
    pub(super) async fn keep_until(mut self, end: &CancellationToken) -> Result<(), Failure> {
        self.broker.shared.allow(u64::MAX);
        self.broker.shared.produce_until(u64::MAX, IDLE_PACE);
        while !end.is_cancelled() {
            self.broker.shared.check()?;
            if let Some(archiver) = &mut self.archiver {
                archiver.check(&self.lake)?;
            }
            tokio::select! {
                () = end.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        if let Some(archiver) = self.archiver.take() {
            archiver.stop(PATIENCE, &self.lake).await?;
        }
        Ok(())
    }
}

/// Everything up to the last proof, and the commands to try.
pub(super) async fn tell(args: &DemoArgs) -> Result<Told, Failure> {
    let mut story = Story::begin(args).await?;
    let (crashed, first) = story.archive_through_a_kill().await?;
    story.show_what_kafka_forgot().await?;
    story.replay_into_the_tail().await?;
    let last = story.end_the_archiver(args.keep).await?;
    story.reread(&last).await?;
    let mid = story.travel(&crashed, &first).await?;
    story.suggest(args, &last, mid)?;
    Ok(Told {
        broker: story.broker,
        lake: story.lake,
        archiver: story.archiver,
    })
}

struct Story {
    began: Instant,
    step: u32,
    topic: TopicName,
    broker: Broker,
    lake: Lake,
    settings: Settings,
    log: Arc<dyn Log>,
    catalog: Arc<dyn Catalog>,
    archiver: Option<ArchiverProcess>,
}

fn failed(what: impl std::fmt::Display) -> Failure {
    Failure::new(Status::Failed, format!("demo: {what}"))
}

/// More about a step.
fn detail(what: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for line in what.lines() {
        writeln!(out, "             {line}")?;
    }
    out.flush()?;
    Ok(())
}

/// A claim that did not hold.
fn unproven(what: impl std::fmt::Display) -> Failure {
    Failure::new(
        Status::Failed,
        format!("demo: a proof failed: {what}; please report it with the seed"),
    )
}

impl Story {
    async fn begin(args: &DemoArgs) -> Result<Self, Failure> {
        let began = Instant::now();
        let topic = TopicName::new(TOPIC).map_err(failed)?;
        let lake = Lake::prepare(&args.dir)?;
        let broker = Broker::start(TOPIC, PARTITIONS, args.seed)?;
        let settings = lake.configure(&broker.bootstrap, TOPIC)?;
        let log = components::log(&settings)?;
        let catalog = components::catalog_or_new(&settings).await?;
        let mut story = Self {
            began,
            step: 0,
            topic,
            broker,
            lake,
            settings,
            log,
            catalog,
            archiver: None,
        };
        story.say(&format!(
            "an embedded Kafka broker at {}: topic {TOPIC}, {PARTITIONS} partitions; it keeps 5 MB of each and forgets the rest",
            story.broker.bootstrap
        ))?;
        detail(&format!(
            "catalog (SQLite), warehouse (Parquet files) and configuration are in {}",
            story.lake.dir().display()
        ))?;
        Ok(story)
    }

    /// A new step.
    fn say(&mut self, what: &str) -> Result<(), Failure> {
        self.step += 1;
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{:>5.1} s  {:>2}. {what}",
            self.began.elapsed().as_secs_f64(),
            self.step
        )?;
        out.flush()?;
        Ok(())
    }

    fn start_archiver(&mut self) -> Result<u32, Failure> {
        let archiver = ArchiverProcess::start(&self.lake)?;
        let pid = archiver.pid();
        self.archiver = Some(archiver);
        Ok(pid)
    }

    /// Producer and archiver are fine, and the producer may go on as far as the archive allows.
    fn look_after(&mut self, archived: u64) -> Result<(), Failure> {
        self.broker.shared.allow(archived + AHEAD);
        self.broker.shared.check()?;
        match &mut self.archiver {
            Some(archiver) => archiver.check(&self.lake),
            None => Ok(()),
        }
    }

    async fn archive(&self) -> Result<Option<Archive>, Failure> {
        let namespace = &self.settings.catalog.namespace;
        Archive::open(components::deps(&self.catalog), namespace, &self.topic)
            .await
            .map_err(|e| components::of_archive(&e))
    }

    async fn state(&self) -> Result<Option<TableState>, Failure> {
        match self.archive().await? {
            None => Ok(None),
            Some(archive) => {
                let state = archive.state().await;
                state.map(Some).map_err(|e| components::of_archive(&e))
            }
        }
    }

    async fn ledger(&self) -> Result<Ledger, Failure> {
        Ok(self.state().await?.map(|s| s.ledger).unwrap_or_default())
    }

    /// Waits until so many rows are archived.
    async fn archived(&mut self, rows: u64) -> Result<Ledger, Failure> {
        let due = Instant::now() + PATIENCE;
        loop {
            let ledger = self.ledger().await?;
            self.look_after(ledger.rows())?;
            if ledger.rows() >= rows {
                return Ok(ledger);
            }
            if Instant::now() > due {
                return Err(failed(format!(
                    "{} of {} events were archived within {PATIENCE:?}; see {}",
                    text::count(ledger.rows()),
                    text::count(rows),
                    self.lake.log().display()
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Steps 2 to 4. Gives the ledgers right after the crash and at the end of history.
    async fn archive_through_a_kill(&mut self) -> Result<(Ledger, Ledger), Failure> {
        let pid = self.start_archiver()?;
        self.say(&format!(
            "`everlog archive` runs as process {pid}; {} clicks are produced, {} a second",
            text::count(HISTORY),
            text::count(PACE)
        ))?;
        self.broker.shared.allow(AHEAD);
        self.broker.shared.produce_until(HISTORY, PACE);
        self.archived(KILL_AT).await?;
        self.halfway().await?;

        let Some(archiver) = self.archiver.take() else {
            return Err(failed("the archiver is not there to be killed"));
        };
        archiver.kill().await?;
        let crashed = self.ledger().await?;
        let delivered = self.broker.shared.delivered();
        self.say(&format!(
            "kill -9 {pid}, in the middle of its work: {} archived, {} more in Kafka already",
            text::count(crashed.rows()),
            text::count(delivered.saturating_sub(crashed.rows()))
        ))?;

        let again = Instant::now();
        let pid = self.start_archiver()?;
        let resumed = self.archived(crashed.rows() + 1).await?;
        let took = again.elapsed();
        if !resumed.descends_from(&crashed) {
            return Err(unproven(
                "the restarted archiver did not go on from the ledger",
            ));
        }
        self.say(&format!(
            "restarted as process {pid}: its first commit came after {}, and it went on exactly at the ledger's offsets",
            text::duration(took)
        ))?;

        let full = self.archived(HISTORY).await?;
        let (snapshots, files, bytes) = self.size().await?;
        self.say(&format!(
            "all {} clicks are archived: {} of Parquet in {}, {}",
            text::count(full.rows()),
            text::bytes(bytes),
            text::things(files, "file"),
            text::things(snapshots, "snapshot")
        ))?;
        Ok((crashed, full))
    }

    /// Waits until the archiver has work in hand: a kill right after a commit would prove little.
    async fn halfway(&mut self) -> Result<(), Failure> {
        let archived = self.ledger().await?.rows();
        let due = Instant::now() + PATIENCE;
        while self.broker.shared.delivered() < archived + IN_HAND {
            self.look_after(archived)?;
            if Instant::now() > due {
                return Err(failed("the producer does not get on"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Snapshots, data files, and their bytes.
    async fn size(&self) -> Result<(u64, u64, u64), Failure> {
        let archive = self
            .archive()
            .await?
            .ok_or_else(|| failed("the table is gone"))?;
        let snapshots = archive
            .snapshots()
            .await
            .map_err(|e| components::of_archive(&e))?;
        let pinned = archive
            .pin(
                &SnapshotSelector::Current,
                everlog_table::snapshot::LeaseMode::Off,
            )
            .await
            .map_err(|e| components::of_archive_kind(e.kind(), &e))?;
        let files = pinned
            .files()
            .await
            .map_err(|e| components::of_archive_kind(e.kind(), &e))?;
        let bytes = files.iter().map(|f| f.size_bytes).sum();
        Ok((snapshots.len() as u64, files.len() as u64, bytes))
    }

    fn topic_partitions(&self) -> Vec<TopicPartition> {
        (0..PARTITIONS)
            .filter_map(|p| Partition::new(p).ok())
            .map(|p| TopicPartition::new(self.topic.clone(), p))
            .collect()
    }

    async fn bounds(&self) -> Result<BTreeMap<TopicPartition, LogBounds>, Failure> {
        self.log
            .bounds(&self.topic_partitions(), Isolation::ReadCommitted)
            .await
            .map_err(|e| components::of_log("demo: kafka", &e))
    }

    /// Step 6: the log's start has moved, and reading from 0 fails.
    async fn show_what_kafka_forgot(&mut self) -> Result<(), Failure> {
        let bounds = self.bounds().await?;
        let forgotten: u64 = bounds
            .values()
            .map(|b| b.log_start.since(Offset::ZERO))
            .sum();
        let end: u64 = bounds.values().map(|b| b.end.since(Offset::ZERO)).sum();
        if end != HISTORY {
            return Err(unproven(format!(
                "the broker counts {end} events, not {HISTORY}"
            )));
        }
        let Some((partition, first)) = bounds.iter().find(|(_, b)| b.log_start > Offset::ZERO)
        else {
            return Err(unproven("the broker forgot nothing"));
        };
        let refused = self
            .refusal_at_zero(partition)
            .await
            .map_err(|e| components::of_log("demo: kafka", &e))?
            .ok_or_else(|| unproven("the broker still delivers offset 0"))?;
        self.say(&format!(
            "Kafka has forgotten {} of them; only {} can still be consumed",
            text::count(forgotten),
            text::count(end - forgotten)
        ))?;
        detail(&format!(
            "partition {} begins at offset {} now; a consumer that asks for offset 0 gets: {refused}",
            partition.partition,
            text::count(first.log_start.since(Offset::ZERO))
        ))
    }

    /// What a plain consumer is told when it asks for offset 0; none if it gets records.
    async fn refusal_at_zero(
        &self,
        partition: &TopicPartition,
    ) -> Result<Option<String>, LogError> {
        let mut reader = self
            .log
            .open(ReaderOptions {
                membership: Membership::Alone,
                isolation: Isolation::ReadCommitted,
                memory_bytes: 8 << 20,
                linger: Duration::from_millis(10),
            })
            .await?;
        let start = StartAt {
            offset: Offset::ZERO,
            leader_epoch: None,
        };
        reader.assign(&[(partition.clone(), start)]).await?;
        let due = Instant::now() + PATIENCE;
        let mut told = None;
        'asked: while Instant::now() < due {
            for event in reader.poll(LOOK).await? {
                match event {
                    ReaderEvent::Fault {
                        fault: PartitionFault::OutOfRange { detail, .. },
                        ..
                    } => {
                        told = Some(detail);
                        break 'asked;
                    }
                    ReaderEvent::Fetched(fetched) if !fetched.columns.is_empty() => break 'asked,
                    _ => {}
                }
            }
        }
        reader.close().await?;
        Ok(told)
    }

    fn replay_components(&self) -> Components {
        Components {
            log: Some(Arc::clone(&self.log)),
            catalog: Arc::clone(&self.catalog),
            clock: components::clock(),
            ids: components::ids(),
            namespace: self.settings.catalog.namespace.clone(),
        }
    }

    /// Step 7 and 8: from offset 0 through history and the handoff into the live tail, compared with what was produced.
    async fn replay_into_the_tail(&mut self) -> Result<(), Failure> {
        self.broker.shared.produce_until(HISTORY + LIVE, LIVE_PACE);
        self.say(&format!(
            "`everlog replay {TOPIC} --from beginning --follow`, while {} more clicks are produced and archived",
            text::count(LIVE)
        ))?;
        let request = ReplayRequest {
            until: Until::Never,
            ..ReplayRequest::new(self.topic.clone())
        };
        let began = Instant::now();
        let mut stream = EventStream::open(request, self.replay_components())
            .await
            .map_err(|e| of_replay(&e))?;
        let mut tally = Tally::default();
        let mut seen = Seen::default();
        let due = Instant::now() + PATIENCE;
        while tally.count() < HISTORY + LIVE {
            let next = tokio::time::timeout(LOOK, stream.next()).await;
            if let Ok(next) = next {
                let batch = next
                    .map_err(|e| of_replay(&e))?
                    .ok_or_else(|| unproven("the replay that follows ended"))?;
                seen.take(&batch, began);
                tally.add(batch.partition, &batch.columns);
            } else if Instant::now() > due {
                return Err(unproven(format!(
                    "{} of {} events were replayed within {PATIENCE:?}",
                    text::count(tally.count()),
                    text::count(HISTORY + LIVE)
                )));
            }
            let archived = self.broker.shared.delivered();
            self.look_after(archived)?;
        }
        stream.close().await;
        detail(&seen.describe()?)?;

        let due = self.broker.shared.witness().sums();
        compare("the replay", &due, &tally.sums())?;
        self.say(&format!(
            "proof: all {} events came once, in order, bit for bit; count and running hash per partition, produced = replayed",
            text::count(tally.count())
        ))?;
        detail(&sums_table(&due))
    }

    /// Step 9: SIGTERM, a last commit, and the archive alone holds everything.
    async fn end_the_archiver(&mut self, keep: bool) -> Result<TableState, Failure> {
        self.archived(HISTORY + LIVE).await?;
        if !keep && let Some(archiver) = self.archiver.take() {
            archiver.stop(PATIENCE, &self.lake).await?;
        }
        self.state()
            .await?
            .ok_or_else(|| failed("the table is gone"))
    }

    /// Reads the files again, without Kafka.
    async fn reread(&mut self, last: &TableState) -> Result<(), Failure> {
        let due = self.broker.shared.witness().sums();
        let mut ledger = sums_of_ledger(&last.ledger);
        for (partition, sum) in &mut ledger {
            sum.purchases = due.get(partition).map_or(0, |s| s.purchases);
        }
        compare("the ledger", &due, &ledger)?;
        let began = Instant::now();
        let tally = self.read_snapshot(last.snapshot_id).await?;
        compare("the archive alone", &due, &tally.sums())?;
        self.say(&format!(
            "the archive alone holds them all: read again without Kafka, {} events, {}, same hashes",
            text::count(tally.count()),
            text::rate(tally.count(), began.elapsed())
        ))?;
        if cfg!(debug_assertions) {
            detail("(an unoptimised build: a release build is many times faster)")?;
        }
        Ok(())
    }

    async fn read_snapshot(&self, snapshot_id: Option<i64>) -> Result<Tally, Failure> {
        let id = snapshot_id.ok_or_else(|| failed("the table has no snapshot"))?;
        let request = ReplayRequest {
            selector: SnapshotSelector::Id(id),
            until: Until::Snapshot,
            ..ReplayRequest::new(self.topic.clone())
        };
        let mut stream = EventStream::open(request, self.replay_components())
            .await
            .map_err(|e| of_replay(&e))?;
        let mut tally = Tally::default();
        while let Some(batch) = stream.next().await.map_err(|e| of_replay(&e))? {
            tally.add(batch.partition, &batch.columns);
        }
        stream.close().await;
        Ok(tally)
    }

    /// Step 10: the same question at two snapshots. Gives the older one's id.
    async fn travel(&mut self, crashed: &Ledger, full: &Ledger) -> Result<i64, Failure> {
        let archive = self
            .archive()
            .await?
            .ok_or_else(|| failed("the table is gone"))?;
        let snapshots = archive
            .snapshots()
            .await
            .map_err(|e| components::of_archive(&e))?;
        let at = |ledger: &Ledger| -> Result<SnapshotInfo, Failure> {
            snapshots
                .iter()
                .rev()
                .find(|s| s.ledger.as_ref() == Some(ledger))
                .cloned()
                .ok_or_else(|| failed("a snapshot is not there any more"))
        };
        let (then, now) = (at(crashed)?, at(full)?);
        self.say("time travel: how many purchases were there?")?;
        for snapshot in [&then, &now] {
            let cut = snapshot
                .ledger
                .as_ref()
                .map(Ledger::cut)
                .unwrap_or_default();
            let due = self.broker.shared.witness().purchases_below(&cut);
            let tally = self.read_snapshot(Some(snapshot.snapshot_id)).await?;
            if tally.purchases() != due {
                return Err(unproven(format!(
                    "snapshot {} answers {} purchases, {due} were produced by then",
                    snapshot.snapshot_id,
                    tally.purchases()
                )));
            }
            detail(&format!(
                "{:>7} at snapshot {} ({}), out of {} events",
                text::count(due),
                snapshot.snapshot_id,
                text::time(snapshot.time),
                text::count(tally.count())
            ))?;
        }
        Ok(then.snapshot_id)
    }

    /// The last words: commands that work on what stays behind.
    fn suggest(
        &mut self,
        args: &DemoArgs,
        last: &TableState,
        snapshot: i64,
    ) -> Result<(), Failure> {
        let shown = |path: &std::path::Path| {
            std::env::current_dir()
                .ok()
                .and_then(|here| {
                    path.strip_prefix(here)
                        .ok()
                        .map(std::path::Path::to_path_buf)
                })
                .unwrap_or_else(|| path.to_path_buf())
        };
        let config = shown(&self.lake.config());
        let config = config.display();
        let dir = self.lake.dir().display().to_string();
        let metadata = last
            .table
            .metadata_location
            .trim_start_matches("file://")
            .to_owned();
        let everlog = std::env::current_exe().map_or_else(
            |_| "everlog".to_owned(),
            |path| shown(&path).display().to_string(),
        );
        self.say("done: every proof held. Try it yourself:")?;
        let live = if args.keep {
            format!(
                "# the broker goes on until Ctrl-C: {IDLE_PACE} clicks a second, archived every second\n\
                 {everlog} --config {config} status\n\
                 {everlog} --config {config} replay {TOPIC} --follow\n\n"
            )
        } else {
            String::new()
        };
        let text = format!(
            "{live}{everlog} --config {config} replay {TOPIC} --until snapshot | head -3\n\
             {everlog} --config {config} replay {TOPIC} --until snapshot --output count\n\
             {everlog} --config {config} replay {TOPIC} --snapshot {snapshot} --output count\n\
             {everlog} --config {config} replay {TOPIC} --from timestamp:2026-01-01T00:10:00Z --until snapshot --order time --partitions 0,2 | head -3\n\
             \n\
             # DuckDB\n\
             duckdb -c \"INSTALL iceberg; LOAD iceberg;\n\
             \x20 SELECT json_extract_string(decode(value), '$.event_type') AS event_type, count(*) AS events\n\
             \x20 FROM iceberg_scan('{metadata}') GROUP BY 1 ORDER BY 2 DESC\"\n\
             \n\
             # pyiceberg (pip install 'pyiceberg[sql-sqlite,pyarrow]')\n\
             python3 -c \"\n\
             from pyiceberg.catalog import load_catalog\n\
             lake = load_catalog('everlog', type='sql', uri='sqlite:///{dir}/catalog.db', warehouse='file://{dir}/warehouse')\n\
             table = lake.load_table('everlog.clickstream_raw')\n\
             print(table.scan().to_arrow().num_rows, 'rows now,', table.scan(snapshot_id={snapshot}).to_arrow().num_rows, 'then')\"\n",
        );
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{text}")?;
        out.flush()?;
        Ok(())
    }
}

/// What came from where, while it came.
#[derive(Debug, Default)]
struct Seen {
    history: u64,
    live: u64,
    history_took: Duration,
    cut: Positions,
}

impl Seen {
    fn take(&mut self, batch: &everlog_common::EventBatch, began: Instant) {
        let rows = batch.columns.len() as u64;
        match batch.source {
            // On a very slow machine also after the tail began: a reader that falls behind drops back to history.
            Source::Archive => {
                self.history += rows;
                self.history_took = began.elapsed();
            }
            Source::Live => {
                self.live += rows;
                self.cut.entry(batch.partition).or_insert(Position {
                    generation: batch.generation,
                    offset: batch.range.start(),
                });
            }
        }
    }

    fn describe(&self) -> Result<String, Failure> {
        if self.history == 0 || self.live == 0 {
            return Err(unproven(format!(
                "the replay did not cross the handoff: {} events from the archive, {} live",
                self.history, self.live
            )));
        }
        let cut: Vec<String> = self
            .cut
            .iter()
            .map(|(p, at)| format!("{p}:{}", at.offset))
            .collect();
        Ok(format!(
            "{} events from Iceberg ({}), handed off to Kafka at partition:offset {}, then {} live",
            text::count(self.history),
            text::rate(self.history, self.history_took),
            cut.join(" "),
            text::count(self.live)
        ))
    }
}

fn compare(
    what: &str,
    due: &BTreeMap<Partition, Sum>,
    found: &BTreeMap<Partition, Sum>,
) -> Result<(), Failure> {
    if due == found {
        return Ok(());
    }
    for partition in due.keys().chain(found.keys()) {
        let (due, found) = (due.get(partition), found.get(partition));
        if due != found {
            return Err(unproven(format!(
                "{what} differs in partition {partition}: produced {due:?}, found {found:?}"
            )));
        }
    }
    Ok(())
}

fn sums_table(sums: &BTreeMap<Partition, Sum>) -> String {
    let mut rows = vec![["partition", "events", "hash"].map(str::to_owned).to_vec()];
    rows.extend(sums.iter().map(|(partition, sum)| {
        vec![
            partition.to_string(),
            text::count(sum.count),
            format!("{:016x}", sum.hash),
        ]
    }));
    text::table(&rows, &[0, 1])
}
