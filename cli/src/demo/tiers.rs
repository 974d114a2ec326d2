//! Silver and Gold: jobs over what the archive keeps, each tier replayed from the one before; then the business changes its
//! mind, and version 2 is replayed beside version 1, compared and promoted.
//!
//! ```text
//!   clickstream.raw ──► [clean v1] ──► clickstream.clean.v1 ──┬─► [sessions v1] ──► branch v1 ─┐
//!       (Bronze)                            (Silver)          └─► [sessions v2] ──► branch v2 ─┴─► main (Gold)
//! ```
//!
//! Both topics are archived by the same archiver, so every job reads history from a table and then goes on live.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use everlog_common::{Partition, Positions, TopicName};
use everlog_processor::registry::{Live, Phase};
use everlog_processor::state::{EpochLog, Header, JobId};
use everlog_table::job::{JobState, JobTable};
use everlog_table::storage::Storage;
use futures::TryStreamExt as _;

use super::child;
use super::clickstream::LATE_MS;
use super::lake::{GOLD_V1, GOLD_V2, SILVER};
use super::story::{
    ALL, BESIDE, BESIDE_PACE, BRONZE, LIVE_PACE, Story, TOPIC, detail, failed, unproven,
};
use super::witness::{CleanSum, CleanTally, Session, SessionRules};
use crate::components;
use crate::failure::{Failure, Status};
use crate::job::facts::of_table;
use crate::text;

/// Silver's topic: what the job names, with the version.
pub(super) const CLEAN_TOPIC: &str = "clickstream.clean.v1";
/// Gold's job, and its table.
const SESSIONS: &str = "sessions";
const V1: &str = "v1";
const V2: &str = "v2";
/// Gap of sessions in minutes, before and after the business changed its mind.
const GAP_V1: i64 = 30;
const GAP_V2: i64 = 20;
/// How much longer sessions take records, in minutes: of both versions alike, so that both count the same events.
const LATENESS: i64 = 30;
/// Of all events, what a replay takes in a second: that it can be killed in its middle, and that it leaves others their share.
const REPLAY_RATE: u64 = 60_000;
/// What Silver takes in a second: its topic is as forgetful as Bronze's, and the archiver has to keep up.
const CLEAN_RATE: u64 = 30_000;
/// What counts as having caught up.
const CAUGHT_UP: u64 = 10_000;
/// How long a tier may take.
const PATIENCE: Duration = Duration::from_mins(2);

fn minutes(minutes: i64) -> i64 {
    minutes * 60_000
}

/// The job from Bronze to Silver.
fn silver(location: &str, dead_letters: &str) -> String {
    let (location, dead) = (
        quoted(location.to_owned()),
        quoted(format!("jsonl:{dead_letters}")),
    );
    format!(
        "# written by `everlog demo`: from Bronze to Silver, clean and without copies\n\
         [job]\n\
         name = \"clean\"\n\
         version = \"v1\"\n\
         \n\
         [source]\n\
         topic = \"{TOPIC}\"\n\
         format = \"json\"\n\
         columns = {{ event_id = \"STRING NOT NULL\", user_id = \"STRING NOT NULL\", product_id = \"STRING NOT NULL\", event_type = \"STRING NOT NULL\", timestamp_ms = \"BIGINT NOT NULL\" }}\n\
         event_time = \"to_timestamp_millis(timestamp_ms)\"\n\
         out_of_orderness = \"{LATE_MS}ms\"\n\
         deduplicate = {{ by = [\"event_id\"], within = \"10m\" }}\n\
         \n\
         [query]\n\
         sql = \"\"\"\n\
         {SILVER_SQL}\"\"\"\n\
         \n\
         [sink]\n\
         type = \"kafka\"\n\
         topic = \"clickstream.clean\"            # the version is added: {CLEAN_TOPIC}\n\
         key = [\"user_id\"]\n\
         dead_letter = {dead}\n\
         \n\
         [checkpoint]\n\
         interval = \"1s\"\n\
         location = {location}\n\
         \n\
         [limits]\n\
         memory = \"256MiB\"\n\
         rate = {CLEAN_RATE}\n"
    )
}

const SILVER_SQL: &str = "\
SELECT event_id, user_id, product_id, lower(event_type) AS event_type, timestamp_ms
FROM clickstream_raw";

/// The job from Silver to Gold.
fn gold(location: &str, version: &str, gap: i64) -> String {
    let location = quoted(location.to_owned());
    let sql = gold_sql(gap);
    format!(
        "# written by `everlog demo`: from Silver to Gold, sessions of each user with a gap of {gap} minutes\n\
         [job]\n\
         name = \"{SESSIONS}\"\n\
         version = \"{version}\"\n\
         \n\
         [source]\n\
         topic = \"{CLEAN_TOPIC}\"\n\
         format = \"json\"\n\
         columns = {{ user_id = \"STRING NOT NULL\", event_type = \"STRING NOT NULL\", timestamp_ms = \"BIGINT NOT NULL\" }}\n\
         event_time = \"to_timestamp_millis(timestamp_ms)\"\n\
         out_of_orderness = \"{LATE_MS}ms\"\n\
         allowed_lateness = \"{LATENESS}m\"                # the same in all versions, so that they count the same events\n\
         \n\
         [query]\n\
         sql = \"\"\"\n\
         {sql}\"\"\"\n\
         \n\
         [sink]\n\
         type = \"iceberg\"\n\
         table = \"{SESSIONS}\"\n\
         output = \"branch\"                       # each version its own, of one table\n\
         \n\
         [checkpoint]\n\
         interval = \"500ms\"\n\
         location = {location}\n\
         \n\
         [limits]\n\
         memory = \"256MiB\"\n\
         rate = {REPLAY_RATE}\n"
    )
}

fn gold_sql(gap: i64) -> String {
    format!(
        "SELECT user_id,\n\
         \x20      SESSION_START(ts, INTERVAL '{gap}' MINUTE) AS session_start, SESSION_END(ts, INTERVAL '{gap}' MINUTE) AS session_end,\n\
         \x20      count(*) AS clicks,\n\
         \x20      count(*) FILTER (WHERE event_type = 'view') AS views, count(*) FILTER (WHERE event_type = 'purchase') AS purchases\n\
         FROM clickstream_clean_v1\n\
         GROUP BY user_id, SESSION(ts, INTERVAL '{gap}' MINUTE)"
    )
}

/// A path may hold anything, so TOML quotes it.
fn quoted(text: String) -> String {
    toml::Value::String(text).to_string()
}

fn id(version: &str) -> JobId {
    JobId {
        name: SESSIONS.to_owned(),
        version: version.to_owned(),
    }
}

/// Records that are behind these positions.
fn behind(positions: &Positions) -> u64 {
    let offsets = positions.values().map(|at| at.offset.get());
    offsets.filter_map(|at| u64::try_from(at).ok()).sum()
}

impl Story {
    /// From Bronze to Gold, and from version 1 to version 2.
    pub(super) async fn tell_of_tiers(&mut self) -> Result<(), Failure> {
        self.silver().await?;
        self.gold().await?;
        self.second_version().await?;
        let [old, new] = self.sessions_are_right().await?;
        self.compare_and_promote().await?;
        self.travel_in_gold(&old, &new).await
    }

    /// Cleans what Bronze has, the part too that Kafka has forgotten.
    async fn silver(&mut self) -> Result<(), Failure> {
        let dead_letters = self.lake.dead_letters();
        let job = silver(&self.lake.location(), &dead_letters.display().to_string());
        self.lake.write_job(SILVER, &job)?;
        let pid = self.start(SILVER)?;
        self.say(&format!(
            "Silver: `everlog process {SILVER}.toml` (process {pid}) cleans Bronze, the raw table, from offset 0 on: no copies, nothing broken"
        ))?;
        detail(SILVER_SQL)?;
        detail(&format!(
            "its rows go to topic {CLEAN_TOPIC}, which the same archiver keeps: so Gold can be replayed, too"
        ))?;

        let topic = TopicName::new(CLEAN_TOPIC).map_err(failed)?;
        let (due, clean, copies, cut_off) = {
            let witness = self.broker.shared.witness();
            let sums = witness.clean_sums();
            (sums, witness.clean(), witness.copies(), witness.cut_off())
        };
        let began = Instant::now();
        let archived = loop {
            let state = self.state_of(&topic).await?;
            if let Some(state) = state.filter(|state| state.ledger.rows() >= clean) {
                break state;
            }
            self.wait_for("a clean copy of all events", began + PATIENCE)
                .await?;
        };
        let mut tally = CleanTally::default();
        self.read_topic(&topic, archived.snapshot_id, |batch| {
            for value in batch.columns.values.iter().map(Option::unwrap_or_default) {
                tally.add(batch.partition, value);
            }
        })
        .await?;
        same_events(&due, &tally.sums())?;
        let broken = loop {
            let lines = std::fs::read(&dead_letters).unwrap_or_default();
            let lines = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            if lines >= cut_off {
                break lines;
            }
            self.wait_for("a dead letter for each broken record", began + PATIENCE)
                .await?;
        };
        if broken != cut_off {
            return Err(unproven(format!(
                "{broken} dead letters, where {cut_off} records are broken"
            )));
        }
        self.say(&format!(
            "proof: Silver has all {} clean events, each once and in order, byte for byte as they have to be",
            text::count(clean)
        ))?;
        detail(&format!(
            "left out of {}: {} that were sent twice, and {} that are cut off: those are dead letters, with offset, error and bytes",
            text::count(BRONZE),
            text::count(copies),
            text::count(cut_off)
        ))
    }

    /// Version 1: history, then live.
    async fn gold(&mut self) -> Result<(), Failure> {
        let job = gold(&self.lake.location(), V1, GAP_V1);
        self.lake.write_job(GOLD_V1, &job)?;
        let pid = self.start(GOLD_V1)?;
        self.say(&format!(
            "Gold: `everlog process {GOLD_V1}.toml` runs as process {pid}: sessions of each user, which end {GAP_V1} minutes after the last click"
        ))?;
        detail(&gold_sql(GAP_V1))?;
        self.broker.shared.produce_until(BESIDE, BESIDE_PACE);
        let began = Instant::now();
        let live = self.caught_up(V1).await?;
        detail(&format!(
            "{} later it has read all history from Silver's table and is live: {} sessions in table everlog.{SESSIONS} so far",
            text::duration(began.elapsed()),
            text::count(live.rows)
        ))
    }

    /// Version 2 beside it, killed in the middle of its replay.
    async fn second_version(&mut self) -> Result<(), Failure> {
        let job = gold(&self.lake.location(), V2, GAP_V2);
        self.lake.write_job(GOLD_V2, &job)?;
        let pid = self.start(GOLD_V2)?;
        self.say(&format!(
            "the business wants {GAP_V2} minutes: version 2 runs as process {pid}, over all history, beside version 1, which stays live"
        ))?;
        let began = Instant::now();
        while self.newest(V2).await?.is_none_or(|at| at.after.rows == 0) {
            self.wait_for("a session of version 2", began + PATIENCE)
                .await?;
        }
        self.kill(GOLD_V2).await?;
        let crashed = self
            .newest(V2)
            .await?
            .ok_or_else(|| unproven("version 2 has lost its checkpoints"))?;
        let done = behind(&crashed.positions);
        self.say(&format!(
            "kill -9 {pid}, in the middle of its replay: checkpoint {} is safe, with {} of {} events and {} sessions",
            crashed.epoch,
            text::count(done),
            text::count(self.broker.shared.witness().clean()),
            text::count(crashed.after.rows)
        ))?;

        let again = Instant::now();
        let pid = self.start(GOLD_V2)?;
        let resumed = loop {
            match self.newest(V2).await? {
                Some(at) if behind(&at.positions) > done => break at,
                _ => self.wait_for("version 2", again + PATIENCE).await?,
            }
        };
        let took = again.elapsed();
        if resumed.chain != crashed.chain || resumed.before.rows < crashed.after.rows {
            return Err(unproven(
                "version 2 did not go on from its last checkpoint, but began anew",
            ));
        }
        self.caught_up(V2).await?;
        let v1 = self.live(V1).await?;
        if v1.is_none_or(|live| live.phase != Phase::Live) {
            return Err(unproven("version 1 did not stay live beside the replay"));
        }
        self.say(&format!(
            "restarted as process {pid}: its next checkpoint came after {}, and it went on exactly from there; now it is live, as version 1 always was",
            text::duration(took)
        ))
    }

    /// Lets both come to the end, and compares all that they put out with what is right. Gives the sessions of both.
    async fn sessions_are_right(&mut self) -> Result<[Vec<Session>; 2], Failure> {
        self.broker.shared.produce_until(ALL, LIVE_PACE);
        self.archived(ALL).await?;
        let began = Instant::now();
        let mut all: [Vec<Session>; 2] = Default::default();
        for (sessions, (version, gap)) in all.iter_mut().zip([(V1, GAP_V1), (V2, GAP_V2)]) {
            *sessions = self.broker.shared.witness().sessions(SessionRules {
                gap_ms: minutes(gap),
                lateness_ms: minutes(LATENESS),
                bound_ms: LATE_MS,
            });
            let due = sessions.len() as u64;
            let head = loop {
                let (_, state) = self.table().await?;
                let at = state.versions.get(version);
                let found = at.and_then(|v| v.rows).unwrap_or_default();
                if found >= due {
                    break at.and_then(|v| v.head);
                }
                let what = format!(
                    "{} sessions of {version}, of which there are {},",
                    text::count(due),
                    text::count(found)
                );
                self.wait_for(&what, began + PATIENCE).await?;
            };
            let found = self.sessions_in(head).await?;
            same_sessions(version, sessions, &found)?;
        }
        let [old, new] = &all;
        self.say(&format!(
            "proof: both have exactly the sessions that sorting all {} clean events and walking over them gives",
            text::count(self.broker.shared.witness().clean())
        ))?;
        detail(&format!(
            "v1 {}, v2 {}: every user, start, end, and all counts; {} more events came live, and those of the last hour are still open",
            text::count(old.len() as u64),
            text::count(new.len() as u64),
            text::count(ALL - BRONZE)
        ))?;
        Ok(all)
    }

    /// As a user does it.
    async fn compare_and_promote(&mut self) -> Result<(), Failure> {
        let job: OsString = self.lake.job(GOLD_V2).into();
        self.say(&format!(
            "`everlog compare {GOLD_V2}.toml {V1} {V2}`: what does the shorter gap change, and is anything lost?"
        ))?;
        let args = [
            "compare".into(),
            job.clone(),
            V1.into(),
            V2.into(),
            "--examples".into(),
            "1".into(),
        ];
        // It ends with 0 only where every click, view and purchase is in both, by user and day.
        detail(&child::told::<OsString>(&self.lake, &args).await?)?;
        let before = self.table().await?.1;
        self.say(&format!(
            "`everlog promote {GOLD_V2}.toml {V2}`: one commit, after which readers of the table see version 2"
        ))?;
        let args = ["promote".into(), job, V2.into()];
        detail(&child::told::<OsString>(&self.lake, &args).await?)?;
        let after = self.table().await?.1;
        let head = |state: &JobState, version: &str| state.versions.get(version)?.head;
        if before.active != V1 || before.main != head(&before, V1) {
            return Err(unproven("version 1 was not what readers saw before"));
        }
        if after.active != V2 || after.main != head(&after, V2) {
            return Err(unproven("version 2 is not what readers see now"));
        }
        Ok(())
    }

    /// The same question before and after.
    async fn travel_in_gold(&mut self, old: &[Session], new: &[Session]) -> Result<(), Failure> {
        let (_, state) = self.table().await?;
        let tag = format!("before-{V2}");
        let then = state
            .refs
            .get(&tag)
            .map(|there| there.snapshot_id)
            .ok_or_else(|| unproven(format!("there is no tag {tag}")))?;
        self.say(
            "time travel: sessions before and after, from the one table that everybody reads",
        )?;
        let found = self.sessions_in(Some(then)).await?;
        same_sessions(&tag, old, &found)?;
        detail(&format!(
            "before  {}   tag {tag}, snapshot {then}",
            numbers(&found)
        ))?;
        let found = self.sessions_in(state.main).await?;
        same_sessions("main", new, &found)?;
        let main = state.main.unwrap_or_default();
        detail(&format!(
            "now     {}   main, snapshot {main}",
            numbers(&found)
        ))
    }

    /// Waits until a version is live; gives what it says then.
    async fn caught_up(&mut self, version: &str) -> Result<Live, Failure> {
        let due = Instant::now() + PATIENCE;
        loop {
            if let Some(live) = self.live(version).await?
                && live.phase == Phase::Live
                && live.lag_records.is_some_and(|lag| lag <= CAUGHT_UP)
            {
                return Ok(live);
            }
            let what = format!("version {version}, which has to catch up,");
            self.wait_for(&what, due).await?;
        }
    }

    fn storage(&self) -> Result<Storage, Failure> {
        Storage::from_properties(self.settings.catalog.properties.reveal())
            .map_err(|error| Failure::from_error(Status::Usage, &error))
    }

    /// What a version says of itself.
    async fn live(&self, version: &str) -> Result<Option<Live>, Failure> {
        Live::read(&self.storage()?, &self.lake.location(), &id(version))
            .await
            .map_err(|error| Failure::from_error(Status::Failed, &error))
    }

    /// A version's newest checkpoint.
    async fn newest(&self, version: &str) -> Result<Option<Header>, Failure> {
        EpochLog::newest(&self.storage()?, &self.lake.location(), &id(version))
            .await
            .map_err(|error| Failure::from_error(Status::Failed, &error))
    }

    async fn table(&self) -> Result<(JobTable, JobState), Failure> {
        let deps = components::deps(&self.catalog);
        let namespace = &self.settings.catalog.namespace;
        let table = JobTable::open(deps, namespace, SESSIONS, SESSIONS)
            .await
            .map_err(|error| of_table(&error))?
            .ok_or_else(|| failed("the table of sessions is gone"))?;
        let state = table.state().await.map_err(|error| of_table(&error))?;
        Ok((table, state))
    }

    /// The rows of a snapshot, by shopper and time.
    async fn sessions_in(&self, snapshot_id: Option<i64>) -> Result<Vec<Session>, Failure> {
        let (table, _) = self.table().await?;
        let scan = table
            .scan(snapshot_id, None)
            .await
            .map_err(|error| of_table(&error))?;
        let batches: Vec<RecordBatch> = scan
            .batches()
            .try_collect()
            .await
            .map_err(|error| of_table(&error))?;
        let mut sessions = Vec::new();
        for batch in &batches {
            let rows = sessions_of(batch)
                .ok_or_else(|| unproven("the table of sessions has other columns"))?;
            sessions.extend(rows);
        }
        sessions.sort_unstable();
        Ok(sessions)
    }
}

/// None where the columns are others.
fn sessions_of(batch: &RecordBatch) -> Option<Vec<Session>> {
    let users = batch.column_by_name("user_id")?.as_string_opt::<i32>()?;
    let time = |name: &str| {
        let column = batch.column_by_name(name)?;
        column.as_primitive_opt::<TimestampMicrosecondType>()
    };
    let number = |name: &str| batch.column_by_name(name)?.as_primitive_opt::<Int64Type>();
    let (starts, ends) = (time("session_start")?, time("session_end")?);
    let (clicks, views) = (number("clicks")?, number("views")?);
    let purchases = number("purchases")?;
    let row = |row: usize| {
        Some(Session {
            shopper: users.value(row).strip_prefix("user-")?.parse().ok()?,
            start_ms: starts.value(row) / 1_000,
            end_ms: ends.value(row) / 1_000,
            clicks: clicks.value(row),
            views: views.value(row),
            purchases: purchases.value(row),
        })
    };
    (0..batch.num_rows()).map(row).collect()
}

/// What the business asks.
fn numbers(sessions: &[Session]) -> String {
    let count = sessions.len().max(1) as f64;
    let clicks: i64 = sessions.iter().map(|s| s.clicks).sum();
    let bought = sessions.iter().filter(|s| s.purchases > 0).count();
    format!(
        "{:>7} sessions, {:.2} clicks each, {:.2} % with a purchase",
        text::count(sessions.len() as u64),
        clicks as f64 / count,
        100.0 * bought as f64 / count
    )
}

fn same_sessions(whose: &str, due: &[Session], found: &[Session]) -> Result<(), Failure> {
    if due == found {
        return Ok(());
    }
    let at = due.iter().zip(found).take_while(|(a, b)| a == b).count();
    Err(unproven(format!(
        "the sessions of {whose} are others: {} and not {}, the first that differs is {:?} and not {:?}",
        found.len(),
        due.len(),
        found.get(at),
        due.get(at)
    )))
}

fn same_events(
    due: &BTreeMap<Partition, CleanSum>,
    found: &BTreeMap<Partition, CleanSum>,
) -> Result<(), Failure> {
    if due == found {
        return Ok(());
    }
    let differs = due.iter().find(|(p, sum)| found.get(p) != Some(sum));
    let found_there = differs.and_then(|(p, _)| found.get(p));
    Err(unproven(format!(
        "Silver differs from what is clean: partition, count and hash {differs:?}, found {found_there:?}"
    )))
}
