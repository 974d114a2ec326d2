//! What happens, step by step, and the proofs: the log that becomes a table, and is one log again. Silver and Gold are in
//! `tiers`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use everlog_common::{
    EventBatch, Ledger, LogBounds, Offset, Partition, Position, Positions, Source, TopicName,
    TopicPartition,
};
use everlog_kafka::{
    Isolation, Log, LogError, Membership, PartitionFault, ReaderEvent, ReaderOptions, StartAt,
};
use everlog_processor::sink::kafka::MARKERS;
use everlog_replayer::request::{ReplayRequest, Until};
use everlog_replayer::{Components, EventStream};
use everlog_table::archive::{Archive, SnapshotInfo, TableState};
use everlog_table::catalog::Catalog;
use everlog_table::snapshot::SnapshotSelector;
use tokio_util::sync::CancellationToken;

use super::DemoArgs;
use super::broker::Broker;
use super::child::Process;
use super::lake::{ARCHIVER, GOLD_V1, GOLD_V2, Lake, SILVER};
use super::tiers::CLEAN_TOPIC;
use super::witness::{CLEAN_PARTITIONS, Sum, Tally, sums_of_ledger};
use crate::components;
use crate::failure::{Failure, Status};
use crate::replay::of_replay;
use crate::settings::Settings;
use crate::text;

pub(super) const TOPIC: &str = "clickstream.raw";
const PARTITIONS: i32 = 4;
/// Events before the replay: about twice what the broker keeps.
const HISTORY: u64 = 240_000;
/// Events that are produced while the replay runs.
const LIVE: u64 = 40_000;
/// Events that Silver finds in the table.
pub(super) const BRONZE: u64 = HISTORY + LIVE;
/// Events that are produced while both versions of Gold run, and then once more.
pub(super) const BESIDE: u64 = BRONZE + 40_000;
pub(super) const ALL: u64 = BESIDE + 20_000;
/// Events per second, before the replay and during it.
const PACE: u64 = 30_000;
pub(super) const LIVE_PACE: u64 = 12_000;
/// What goes on by itself while versions are replayed.
pub(super) const BESIDE_PACE: u64 = 1_500;
/// With `--keep`, afterwards.
const IDLE_PACE: u64 = 200;
/// How far the producer may run ahead of the archive: well below what the broker keeps.
const AHEAD: u64 = 80_000;
/// When the archiver is killed: after so many archived events.
const KILL_AT: u64 = 80_000;
/// And so many more that it has read, or is writing.
const IN_HAND: u64 = 12_000;
/// How long any single thing may take.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// A finished story: what still runs, until it is dropped.
#[derive(Debug)]
pub(super) struct Told {
    story: Story,
}

impl Told {
    /// Goes on producing, archiving and counting sessions until told to end.
    pub(super) async fn keep_until(mut self, end: &CancellationToken) -> Result<(), Failure> {
        let story = &mut self.story;
        story.broker.shared.allow(u64::MAX);
        story.broker.shared.produce_until(u64::MAX, IDLE_PACE);
        while !end.is_cancelled() {
            story.look_after(u64::MAX)?;
            tokio::select! {
                () = end.cancelled() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        story.end_processes().await
    }
}

/// Everything up to the last proof, and the commands to try.
pub(super) async fn tell(args: &DemoArgs) -> Result<Told, Failure> {
    let mut story = Story::begin(args).await?;
    let (crashed, first) = story.archive_through_a_kill().await?;
    story.show_what_kafka_forgot().await?;
    story.replay_into_the_tail().await?;
    story.archived(BRONZE).await?;
    story.reread().await?;
    let mid = story.travel(&crashed, &first).await?;
    story.tell_of_tiers().await?;
    if !args.keep {
        story.end_processes().await?;
    }
    story.suggest(args, mid).await?;
    Ok(Told { story })
}

#[derive(Debug)]
pub(super) struct Story {
    began: Instant,
    step: u32,
    topic: TopicName,
    pub(super) broker: Broker,
    pub(super) lake: Lake,
    pub(super) settings: Settings,
    log: Arc<dyn Log>,
    pub(super) catalog: Arc<dyn Catalog>,
    /// What runs, in the order in which it ends: who reads before who is read.
    processes: Vec<Process>,
}

pub(super) fn failed(what: impl std::fmt::Display) -> Failure {
    Failure::new(Status::Failed, format!("demo: {what}"))
}

/// More about a step.
pub(super) fn detail(what: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for line in what.lines() {
        writeln!(out, "             {line}")?;
    }
    out.flush()?;
    Ok(())
}

/// A claim that did not hold.
pub(super) fn unproven(what: impl std::fmt::Display) -> Failure {
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
        let others = [(CLEAN_TOPIC, CLEAN_PARTITIONS), (MARKERS, 1)];
        let broker = Broker::start((TOPIC, PARTITIONS), &others, args.seed)?;
        let settings = lake.configure(&broker.bootstrap, &[TOPIC, CLEAN_TOPIC])?;
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
            processes: Vec::new(),
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
    pub(super) fn say(&mut self, what: &str) -> Result<(), Failure> {
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

    /// Starts one of the story's processes; gives its id.
    pub(super) fn start(&mut self, name: &'static str) -> Result<u32, Failure> {
        let process = match name {
            ARCHIVER => Process::archiver(&self.lake)?,
            job => Process::job(&self.lake, job)?,
        };
        let pid = process.pid();
        self.processes.push(process);
        let order = [GOLD_V2, GOLD_V1, SILVER, ARCHIVER];
        self.processes
            .sort_by_key(|p| order.iter().position(|name| *name == p.name()));
        Ok(pid)
    }

    /// `kill -9`; gives the id it had.
    pub(super) async fn kill(&mut self, name: &str) -> Result<u32, Failure> {
        let place = self.processes.iter().position(|p| p.name() == name);
        let place = place.ok_or_else(|| failed(format!("{name} is not there to be killed")))?;
        let process = self.processes.remove(place);
        let pid = process.pid();
        process.kill().await?;
        Ok(pid)
    }

    /// SIGTERM to all, one after the other, and a last checkpoint or commit of each.
    async fn end_processes(&mut self) -> Result<(), Failure> {
        for process in std::mem::take(&mut self.processes) {
            process.stop(PATIENCE).await?;
        }
        Ok(())
    }

    /// Producer and processes are fine, and the producer may go on as far as the archive allows.
    fn look_after(&mut self, archived: u64) -> Result<(), Failure> {
        self.broker.shared.allow(archived.saturating_add(AHEAD));
        self.broker.shared.check()?;
        self.processes.iter_mut().try_for_each(Process::check)
    }

    /// Looks after everything, and waits a little for `what`, which must be there by `due`.
    pub(super) async fn wait_for(&mut self, what: &str, due: Instant) -> Result<(), Failure> {
        let ledger = self.ledger().await?;
        self.look_after(ledger.rows())?;
        if Instant::now() > due {
            return Err(failed(format!(
                "{what} did not come in time; see the logs in {}",
                self.lake.dir().display()
            )));
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }

    async fn archive_of(&self, topic: &TopicName) -> Result<Option<Archive>, Failure> {
        let namespace = &self.settings.catalog.namespace;
        Archive::open(components::deps(&self.catalog), namespace, topic)
            .await
            .map_err(|e| components::of_archive(&e))
    }

    async fn archive(&self) -> Result<Option<Archive>, Failure> {
        self.archive_of(&self.topic).await
    }

    /// A topic's table now; none before there is one.
    pub(super) async fn state_of(&self, topic: &TopicName) -> Result<Option<TableState>, Failure> {
        match self.archive_of(topic).await? {
            None => Ok(None),
            Some(archive) => {
                let state = archive.state().await;
                state.map(Some).map_err(|e| components::of_archive(&e))
            }
        }
    }

    async fn ledger(&self) -> Result<Ledger, Failure> {
        let state = self.state_of(&self.topic).await?;
        Ok(state.map(|s| s.ledger).unwrap_or_default())
    }

    /// Waits until so many rows are archived.
    pub(super) async fn archived(&mut self, rows: u64) -> Result<Ledger, Failure> {
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
                    self.lake.log(ARCHIVER).display()
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Steps 2 to 4. Gives the ledgers right after the crash and at the end of history.
    async fn archive_through_a_kill(&mut self) -> Result<(Ledger, Ledger), Failure> {
        let pid = self.start(ARCHIVER)?;
        self.say(&format!(
            "`everlog archive` runs as process {pid}; {} clicks are produced, {} a second",
            text::count(HISTORY),
            text::count(PACE)
        ))?;
        self.broker.shared.allow(AHEAD);
        self.broker.shared.produce_until(HISTORY, PACE);
        self.archived(KILL_AT).await?;
        self.halfway().await?;

        self.kill(ARCHIVER).await?;
        let crashed = self.ledger().await?;
        let delivered = self.broker.shared.delivered();
        self.say(&format!(
            "kill -9 {pid}, in the middle of its work: {} archived, {} more in Kafka already",
            text::count(crashed.rows()),
            text::count(delivered.saturating_sub(crashed.rows()))
        ))?;

        let again = Instant::now();
        let pid = self.start(ARCHIVER)?;
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
        self.broker.shared.produce_until(BRONZE, LIVE_PACE);
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
        while tally.count() < BRONZE {
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
                    text::count(BRONZE)
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

    /// Reads the files again, without Kafka.
    async fn reread(&mut self) -> Result<(), Failure> {
        let last = self
            .state_of(&self.topic)
            .await?
            .ok_or_else(|| failed("the table is gone"))?;
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
        let mut tally = Tally::default();
        self.read_topic(&self.topic, snapshot_id, |batch| {
            tally.add(batch.partition, &batch.columns);
        })
        .await?;
        Ok(tally)
    }

    /// Everything that a snapshot of a topic's table holds.
    pub(super) async fn read_topic(
        &self,
        topic: &TopicName,
        snapshot_id: Option<i64>,
        mut take: impl FnMut(&EventBatch),
    ) -> Result<(), Failure> {
        let id = snapshot_id.ok_or_else(|| failed("the table has no snapshot"))?;
        let request = ReplayRequest {
            selector: SnapshotSelector::Id(id),
            until: Until::Snapshot,
            ..ReplayRequest::new(topic.clone())
        };
        let mut stream = EventStream::open(request, self.replay_components())
            .await
            .map_err(|e| of_replay(&e))?;
        while let Some(batch) = stream.next().await.map_err(|e| of_replay(&e))? {
            take(&batch);
        }
        stream.close().await;
        Ok(())
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
    async fn suggest(&mut self, args: &DemoArgs, snapshot: i64) -> Result<(), Failure> {
        let last = self
            .state_of(&self.topic)
            .await?
            .ok_or_else(|| failed("the table is gone"))?;
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
        let gold = shown(&self.lake.job(GOLD_V2));
        let gold = gold.display();
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
        let jobs = self.lake.location();
        let live = if args.keep {
            format!(
                "# it goes on until Ctrl-C: {IDLE_PACE} clicks a second, archived, cleaned, and counted by both versions\n\
                 {everlog} --config {config} status\n\
                 {everlog} --config {config} job list --location {jobs}\n\
                 {everlog} --config {config} replay {CLEAN_TOPIC} --follow\n\n"
            )
        } else {
            String::new()
        };
        let text = format!(
            "{live}{everlog} --config {config} replay {TOPIC} --until snapshot | head -3\n\
             {everlog} --config {config} replay {TOPIC} --until snapshot --output count\n\
             {everlog} --config {config} replay {TOPIC} --snapshot {snapshot} --output count\n\
             {everlog} --config {config} replay {TOPIC} --from timestamp:2026-01-01T00:10:00Z --until snapshot --order time --partitions 0,2 | head -3\n\
             {everlog} --config {config} job show {gold}\n\
             {everlog} --config {config} process --flink {gold}\n\
             {everlog} --config {config} rollback {gold}\n\
             \n\
             # SQL: ten questions are in docs/analysts.md\n\
             {everlog} --config {config} sql\n\
             {everlog} --config {config} sql \"SELECT event_type, count(*) FROM clickstream_raw_v GROUP BY event_type\"\n\
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
             print(table.scan().to_arrow().num_rows, 'events now,', table.scan(snapshot_id={snapshot}).to_arrow().num_rows, 'then')\n\
             sessions = lake.load_table('everlog.sessions')\n\
             print(sessions.scan().to_arrow().num_rows, 'sessions by v2,', sessions.scan().use_ref('v1').to_arrow().num_rows, 'by v1')\"\n",
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
    fn take(&mut self, batch: &EventBatch, began: Instant) {
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
