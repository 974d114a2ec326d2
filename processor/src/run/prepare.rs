//! A job made ready: its query checked, its decoder made, its outputs named. Nothing is taken over or written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow_schema::{DataType, Schema};
use everlog_common::{Clock, Ids, Millis};
use everlog_decode::Decoder;
use everlog_decode::registry::Registry;
use everlog_engine::{Flink, Query, Refusal};
use everlog_replayer::request::From;

use super::Environment;
use super::error::RunError;
use super::outputs::{output_of, side_output_of};
use super::source::Decoding;
use crate::job::{Avro, Format, Job, Side, Sink};
use crate::registry::{Output, ReaderSchema, Registry as Versions, Version};
use crate::state::JobId;

/// Which form of the run's own logic computes rows, besides the query: what becomes a dead letter, and when. State of another
/// one is refused.
const RUN: u32 = 1;

/// A job, ready to run.
#[derive(Debug)]
pub struct Prepared {
    job: Job,
    id: JobId,
    query: Arc<Query>,
    decoding: Decoding,
    /// What Avro is read by, where no columns are declared.
    schema: Option<ReaderSchema>,
}

impl Prepared {
    /// Checks the query against the source's columns. For Avro without declared columns these are the schema's that the
    /// registry of versions has; the schema registry is asked once in the life of a version.
    pub async fn new(job: Job, environment: &Environment) -> Result<Self, RunError> {
        let outside = (Arc::clone(&environment.clock), Arc::clone(&environment.ids));
        let known = known_schema(&job, environment).await?;
        Self::read_by(
            job,
            known,
            &environment.scratch,
            outside,
            environment.variable,
        )
        .await
    }

    /// The same where there is no environment yet: only what the schema registry needs. What Avro is read by is what this
    /// machine has met, else the newest.
    pub async fn checked(
        job: Job,
        scratch: &Path,
        outside: (Arc<dyn Clock>, Arc<dyn Ids>),
        variable: fn(&str) -> Option<String>,
    ) -> Result<Self, RunError> {
        Self::read_by(job, Known::Pinned, scratch, outside, variable).await
    }

    async fn read_by(
        job: Job,
        known: Known,
        scratch: &Path,
        (clock, ids): (Arc<dyn Clock>, Arc<dyn Ids>),
        variable: fn(&str) -> Option<String>,
    ) -> Result<Self, RunError> {
        let id = JobId::new(job.name.as_str(), job.version.as_str()).map_err(RunError::Name)?;
        let mut schema = None;
        let (decoder, registry) = match &job.source.format {
            Format::Json(columns) => (Decoder::json(columns.clone()), None),
            Format::Raw => (Decoder::raw(), None),
            Format::Avro(avro) => {
                let settings = avro.registry.settings(variable)?;
                let registry = Registry::open(&settings, &scratch.join("schemas"), clock, ids)?;
                let decoder = match &avro.columns {
                    Some(columns) => Decoder::avro(columns.clone()),
                    None => {
                        let reader = reader_schema(avro, known, &id, &registry).await?;
                        avro_decoder(schema.insert(reader))?
                    }
                };
                (decoder, Some(Arc::new(registry)))
            }
        };
        let query = query(&job, &decoder).map_err(|source| RunError::Query {
            job: id.to_string(),
            source,
        })?;
        columns_of_sink(&job, &id, &query.output_schema())?;
        Ok(Self {
            decoding: Decoding::new(decoder, registry, id.to_string()),
            query: Arc::new(query),
            schema,
            id,
            job,
        })
    }

    /// The job.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Its name and version.
    pub fn id(&self) -> JobId {
        self.id.clone()
    }

    /// Its query.
    pub fn query(&self) -> &Arc<Query> {
        &self.query
    }

    /// Of its logic, as text.
    pub fn fingerprint(&self) -> String {
        format!("{:016x}", self.query.fingerprint())
    }

    /// Where its rows go.
    pub fn output(&self) -> Output {
        output_of(&self.job)
    }

    /// The columns that make the key of its rows in a topic: those of the job's file, else those that the query groups by.
    pub fn key(&self) -> Vec<String> {
        match &self.job.sink {
            Sink::Kafka { key: Some(key), .. } => key.clone(),
            _ => self.query.roles().keys,
        }
    }

    /// The column of times that records of its topic get as theirs.
    pub fn timestamp(&self) -> Option<String> {
        match &self.job.sink {
            Sink::Kafka { timestamp, .. } => timestamp.clone(),
            _ => None,
        }
    }

    /// What the registry of versions has of it.
    pub fn version(&self, now: Millis) -> Version {
        let source = &self.job.source;
        Version {
            output: self.output(),
            fingerprint: self.fingerprint(),
            engine: engine_name(),
            created_ms: now.0,
            sql: self.job.sql.clone(),
            topic: source.topic.to_string(),
            late: side_output_of(&self.job, &self.job.late),
            dead_letter: side_output_of(&self.job, &self.job.dead_letter),
            from: (source.from != From::Beginning).then(|| source.from.to_string()),
            roles: Some(self.query.roles()),
            schema: self.schema.clone(),
        }
    }

    /// What it does, for people: source, query, plan, columns, outputs.
    pub fn explain(&self) -> String {
        let job = &self.job;
        let lines = [
            ("job", self.id.to_string()),
            (
                "topic",
                format!("{}, from {}", job.source.topic, job.source.from),
            ),
            ("output", self.output().to_string()),
            ("late", side(job, &job.late)),
            ("dead letters", side(job, &job.dead_letter)),
            ("checkpoints", job.checkpoint.location.clone()),
        ];
        let mut text = String::new();
        for (name, value) in lines {
            _ = writeln!(text, "{name:<14}{value}");
        }
        text.push_str(&self.query.explain());
        text
    }

    /// The equivalent Flink SQL program, reading the topic by Kafka properties; `bounded`: to the end that the topic has when
    /// it starts, where Flink fires all windows. Refused where Flink has nothing that says the same.
    pub fn flink(
        &self,
        kafka: &BTreeMap<String, String>,
        bounded: bool,
    ) -> Result<String, RunError> {
        let refused = |why: Refusal| RunError::Flink {
            job: self.id.to_string(),
            why,
        };
        let mut options = flink_options(&self.job, kafka);
        if bounded {
            let mode = ("scan.bounded.mode".to_owned(), "latest-offset".to_owned());
            options.source.push(mode);
        }
        self.query.flink(&options).map_err(refused)
    }

    /// Takes it apart for a run.
    pub(super) fn into_decoding(self) -> Decoding {
        self.decoding
    }
}

/// What computes rows: state and rows of another one are not gone on with.
pub(super) fn engine_name() -> String {
    format!(
        "everlog run {RUN}, datafusion {}",
        datafusion::DATAFUSION_VERSION
    )
}

fn side(job: &Job, side: &Side) -> String {
    side_output_of(job, side).map_or_else(|| "counted".to_owned(), |output| output.to_string())
}

/// What is known of the schema that a version reads Avro by.
enum Known {
    /// This one.
    Schema(ReaderSchema),
    /// What this machine has pinned, if anything: nobody else was asked, or an older everlog kept it here alone.
    Pinned,
    /// The version was never run, or was dropped since.
    Nothing,
}

/// What the registry of versions has of the schema that this one reads Avro by, if it was run before, wherever that was.
async fn known_schema(job: &Job, environment: &Environment) -> Result<Known, RunError> {
    if !matches!(&job.source.format, Format::Avro(avro) if avro.columns.is_none()) {
        return Ok(Known::Nothing);
    }
    let registry = Versions::new(
        environment.storage.clone(),
        &job.checkpoint.location,
        job.name.as_str(),
    );
    let known = registry.read().await?;
    let version = known.and_then(|mut known| known.versions.remove(job.version.as_str()));
    Ok(match version.map(|version| version.schema) {
        None => Known::Nothing,
        Some(None) => Known::Pinned,
        Some(Some(schema)) => Known::Schema(schema),
    })
}

/// The schema that the version reads by: the known one, else the subject's newest.
async fn reader_schema(
    avro: &Avro,
    known: Known,
    id: &JobId,
    registry: &Registry,
) -> Result<ReaderSchema, RunError> {
    let pin = format!("{}-{}", id.name, id.version);
    let pinned = match known {
        Known::Schema(schema) if schema.subject == avro.subject => return Ok(schema),
        Known::Schema(_) | Known::Pinned => registry.pinned(&avro.subject, &pin).await?,
        Known::Nothing => registry.pin_newest(&avro.subject, &pin).await?,
    };
    Ok(ReaderSchema::new(&avro.subject, pinned))
}

fn avro_decoder(schema: &ReaderSchema) -> Result<Decoder, RunError> {
    Decoder::avro_as(&schema.registered()).map_err(|source| RunError::Schema {
        subject: schema.subject.clone(),
        source,
    })
}

/// The columns that the job's file names for the sink are some that the query puts out.
fn columns_of_sink(job: &Job, id: &JobId, columns: &Schema) -> Result<(), RunError> {
    let Sink::Kafka { key, timestamp, .. } = &job.sink else {
        return Ok(());
    };
    let keys = key.iter().flatten().map(|name| ("key", name));
    for (option, name) in keys.chain(timestamp.iter().map(|name| ("timestamp", name))) {
        let Ok(field) = columns.field_with_name(name) else {
            let names: Vec<&str> = columns.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(RunError::Column {
                job: id.to_string(),
                option,
                name: name.clone(),
                what: format!(
                    "which the query does not put out; it has {}",
                    names.join(", ")
                ),
            });
        };
        if option == "timestamp" && !matches!(field.data_type(), DataType::Timestamp(..)) {
            return Err(RunError::Column {
                job: id.to_string(),
                option,
                name: name.clone(),
                what: "which is no time: name a column of a TIMESTAMP type".to_owned(),
            });
        }
    }
    Ok(())
}

fn query(job: &Job, decoder: &Decoder) -> Result<Query, Refusal> {
    let source = &job.source;
    let query = Query::new(
        &job.sql,
        &source.table(),
        Arc::clone(decoder.schema()),
        &source.event_time,
        source.time.clone(),
    )?;
    match &source.deduplicate {
        Some(deduplicate) => query.deduplicate(&deduplicate.by, deduplicate.within),
        None => Ok(query),
    }
}

/// How Flink reads the topic and writes the rows. Its watermarks are per record and per partition, as ours are.
fn flink_options(job: &Job, kafka: &BTreeMap<String, String>) -> Flink {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let brokers = ["bootstrap.servers", "metadata.broker.list"]
        .iter()
        .find_map(|key| kafka.get(*key))
        .map_or("localhost:9092", String::as_str);
    let topic = job.source.topic.as_str();
    let mut source = vec![
        pair("connector", "kafka"),
        pair("topic", topic),
        pair("properties.bootstrap.servers", brokers),
        pair("properties.isolation.level", "read_committed"),
    ];
    match job.source.from {
        From::Timestamp(at) => {
            source.push(pair("scan.startup.mode", "timestamp"));
            source.push(pair("scan.startup.timestamp-millis", &at.0.to_string()));
        }
        From::Beginning | From::Offset { .. } => {
            source.push(pair("scan.startup.mode", "earliest-offset"));
        }
    }
    source.push(pair("scan.watermark.emit.strategy", "on-event"));
    match &job.source.format {
        Format::Json(_) => {
            source.push(pair("format", "json"));
            source.push(pair("json.ignore-parse-errors", "true"));
        }
        Format::Avro(avro) => {
            source.push(pair("format", "avro-confluent"));
            source.push(pair("avro-confluent.url", &avro.registry.url));
        }
        Format::Raw => source.push(pair("format", "raw")),
    }
    let (sink_name, sink) = match output_of(job) {
        Output::Branch { table } | Output::Table { table } => {
            (table, vec![pair("connector", "print")])
        }
        Output::Kafka { topic } => (
            topic.clone(),
            vec![
                pair("connector", "kafka"),
                pair("topic", &topic),
                pair("properties.bootstrap.servers", brokers),
                pair("format", "json"),
                pair("json.timestamp-format.standard", "ISO-8601"),
                pair("sink.delivery-guarantee", "exactly-once"),
                pair("sink.transactional-id-prefix", &format!("flink-{topic}")),
            ],
        ),
        Output::Jsonl { path } => (
            format!("{}_{}", job.name, job.version),
            vec![
                pair("connector", "filesystem"),
                pair("path", &path),
                pair("format", "json"),
                pair("json.timestamp-format.standard", "ISO-8601"),
            ],
        ),
    };
    Flink {
        source,
        sink_name,
        sink,
        watermark: None,
    }
}
