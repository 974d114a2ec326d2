//! A job's outputs: where they are, and opening them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use everlog_common::TopicName;
use everlog_kafka::client::for_other_clients;
use everlog_table::archive::ArchiveDeps;
use everlog_table::job::{JobPartitioning, JobTableSpec};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::Environment;
use super::error::RunError;
use super::prepare::Prepared;
use crate::job::{Job, Output as TableOutput, Side, Sink as JobSink, version_topic};
use crate::registry::Output;
use crate::sink::file::FileSink;
use crate::sink::iceberg::IcebergSink;
use crate::sink::kafka::{KafkaSettings, KafkaSink, becomes_known};
use crate::sink::{Channel, Sink, SinkError};
use crate::state::{EpochLog, JobId};

/// How long an earlier process of the job is waited for where it holds a file: it ends at its next checkpoint, or within an
/// interval.
pub(super) const PATIENCE_MIN: Duration = Duration::from_mins(1);
/// Bound of a request to make a topic.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a topic that was just made may not be known.
const NEW_TOPIC_PATIENCE: Duration = Duration::from_secs(10);

/// Where the rows of a job's version go.
pub fn output_of(job: &Job) -> Output {
    match &job.sink {
        JobSink::Iceberg { table, output } => match output {
            TableOutput::Branch => Output::Branch {
                table: table.clone(),
            },
            TableOutput::Table => Output::Table {
                table: format!("{table}_{}", job.version),
            },
        },
        JobSink::Kafka { topic, .. } => Output::Kafka {
            topic: version_topic(topic, &job.version),
        },
        JobSink::Jsonl { path } => Output::Jsonl {
            path: path.display().to_string(),
        },
    }
}

/// Where late records or dead letters of a job's version go; none where they are counted alone.
pub(super) fn side_output_of(job: &Job, side: &Side) -> Option<Output> {
    match side {
        Side::Count => None,
        Side::Jsonl(path) => Some(Output::Jsonl {
            path: path.display().to_string(),
        }),
        Side::Kafka(topic) => Some(Output::Kafka {
            topic: version_topic(topic, &job.version),
        }),
    }
}

/// How long to wait for an earlier process.
pub(super) fn patience(job: &Job) -> Duration {
    PATIENCE_MIN.max(job.checkpoint.interval * 3)
}

/// Opens all outputs, which stops an earlier process there.
pub(super) async fn open(
    prepared: &Prepared,
    environment: &Environment,
    log: &EpochLog,
) -> Result<Vec<Box<dyn Sink>>, RunError> {
    let job = prepared.job();
    let opening = Opening {
        id: prepared.id(),
        patience: patience(job),
        kafka: client_properties(&environment.kafka, &prepared.id()),
        log,
    };
    let rows: Box<dyn Sink> = match output_of(job) {
        Output::Branch { table } | Output::Table { table } => {
            let spec = JobTableSpec {
                table,
                job: job.name.to_string(),
                version: job.version.to_string(),
                columns: prepared.query().output_schema(),
                fingerprint: prepared.fingerprint(),
                partitioning: JobPartitioning::None,
                properties: BTreeMap::new(),
                about: [
                    ("sql".to_owned(), job.sql.clone()),
                    ("topic".to_owned(), job.source.topic.to_string()),
                ]
                .into(),
            };
            let deps = ArchiveDeps {
                catalog: Arc::clone(&environment.catalog),
                clock: Arc::clone(&environment.clock),
                ids: Arc::clone(&environment.ids),
            };
            Box::new(IcebergSink::open(deps, &environment.namespace, &spec).await?)
        }
        Output::Kafka { topic } => {
            let form = (prepared.key(), prepared.timestamp());
            opening.kafka(&topic, form, Channel::Rows).await?
        }
        Output::Jsonl { path } => opening.file(path.into(), Channel::Rows).await?,
    };
    let mut sinks = vec![rows];
    for (side, channel) in [
        (&job.late, Channel::Late),
        (&job.dead_letter, Channel::Dead),
    ] {
        match side_output_of(job, side) {
            Some(Output::Jsonl { path }) => sinks.push(opening.file(path.into(), channel).await?),
            Some(Output::Kafka { topic }) => {
                let form = (Vec::new(), None);
                sinks.push(opening.kafka(&topic, form, channel).await?);
            }
            None | Some(Output::Branch { .. } | Output::Table { .. }) => {}
        }
    }
    Ok(sinks)
}

/// The properties of the job's own clients: brokers' quotas and logs can tell it from the rest.
pub(super) fn client_properties(
    kafka: &BTreeMap<String, String>,
    id: &JobId,
) -> BTreeMap<String, String> {
    let mut properties = kafka.clone();
    properties
        .entry("client.id".to_owned())
        .or_insert_with(|| client_id(id));
    properties
}

/// What a job calls itself to brokers, where the configuration names nothing.
pub fn client_id(id: &JobId) -> String {
    format!("everlog-job-{}-{}", id.name, id.version)
}

struct Opening<'a> {
    id: JobId,
    patience: Duration,
    kafka: BTreeMap<String, String>,
    log: &'a EpochLog,
}

impl Opening<'_> {
    async fn file(&self, path: PathBuf, channel: Channel) -> Result<Box<dyn Sink>, RunError> {
        let sink = FileSink::open(path, self.id.clone(), channel, self.patience).await?;
        Ok(Box::new(sink))
    }

    /// A topic, whose records have these columns as key, and this one as time.
    async fn kafka(
        &self,
        topic: &str,
        (key, timestamp): (Vec<String>, Option<String>),
        channel: Channel,
    ) -> Result<Box<dyn Sink>, RunError> {
        let topic = TopicName::new(topic).map_err(|error| SinkError::Target {
            target: format!("kafka:{topic}"),
            what: format!("{error}; give the topic or the version a shorter name"),
        })?;
        make_topic(&self.kafka, &topic).await?;
        let settings = KafkaSettings {
            properties: self.kafka.clone(),
            topic,
            key,
            timestamp,
            owner: Some(self.log.clone()),
        };
        Ok(Box::new(
            KafkaSink::open(settings, self.id.clone(), channel).await?,
        ))
    }
}

/// Makes an output's topic where it is not there, as the brokers make topics. Who may not make topics has to make it.
async fn make_topic(
    properties: &BTreeMap<String, String>,
    topic: &TopicName,
) -> Result<(), SinkError> {
    let failed = |doing: &'static str, detail: String| SinkError::Kafka {
        target: format!("kafka:{topic}"),
        doing,
        detail,
    };
    let mut config = ClientConfig::new();
    for (key, value) in for_other_clients(properties) {
        config.set(key, value);
    }
    let admin: AdminClient<DefaultClientContext> = config
        .create()
        .map_err(|e| failed("make a client", e.to_string()))?;
    let admin = Arc::new(admin);
    // One that is there takes no right to make topics, and no broker that can.
    if becomes_known(&admin, topic.as_str(), Duration::ZERO).await? {
        return Ok(());
    }
    let options = AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT));
    let new = NewTopic::new(topic.as_str(), -1, TopicReplication::Fixed(-1));
    let made = match admin.create_topics([&new], &options).await {
        // A broker that lets nobody make topics: it may be there all the same, too.
        Err(KafkaError::AdminOp(RDKafkaErrorCode::UnsupportedFeature)) => return Ok(()),
        made => made.map_err(|e| failed("make the topic", e.to_string()))?,
    };
    match made.into_iter().next() {
        // Brokers learn of it one after the other. Whoever opens it next says so where it is still not there.
        None | Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
            let known = becomes_known(&admin, topic.as_str(), NEW_TOPIC_PATIENCE).await;
            known.map(drop)
        }
        // It may be there all the same: the sink says so if not.
        Some(Err((
            _,
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ))) => Ok(()),
        Some(Err((_, code))) => Err(failed("make the topic", code.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"
[job]
name = "orders"
version = "v1"
[source]
topic = "orders"
format = "json"
columns = { at = "BIGINT NOT NULL" }
[query]
sql = "SELECT at FROM orders"
[sink]
type = "kafka"
topic = "clean"
late = "kafka:clean.late"
dead_letter = "jsonl:dead.jsonl"
"#;

    /// No topic of a version is another version's.
    #[test]
    fn every_topic_is_of_its_version() {
        let topics = |version: &str| {
            let text = JOB.replace("\"v1\"", &format!("\"{version}\""));
            let job = Job::parse(&text, "job.toml").unwrap_or_else(|e| panic!("{e}"));
            let sides = [&job.late, &job.dead_letter].map(|side| side_output_of(&job, side));
            let shown = sides.map(|side| side.map(|output| output.to_string()));
            (output_of(&job).to_string(), shown)
        };
        let dead = || Some("jsonl:dead.jsonl".to_owned());
        for version in ["v1", "v2"] {
            let late = Some(format!("kafka:clean.late.{version}"));
            let rows = format!("kafka:clean.{version}");
            assert_eq!(topics(version), (rows, [late, dead()]));
        }
        let counting = JOB.replace("late = \"kafka:clean.late\"", "");
        let job = Job::parse(&counting, "job.toml").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(side_output_of(&job, &job.late), None);
    }
}
