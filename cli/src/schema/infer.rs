//! `everlog schema infer`: a sample of a topic's values as a table of the configuration.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;

use arrow_array::BinaryArray;
use clap::Args;
use everlog_common::{Partition, TopicName};
use everlog_decode::registry::Registry;
use everlog_decode::{Columns, Inference, ValueFormat, ValueReader, schema_id};
use everlog_query::{SchemaChoice, TopicFormat};
use everlog_replayer::From;

use super::read::{self, Rows};
use crate::failure::{Failure, Status};
use crate::settings::{Settings, table_text};
use crate::text;

/// Look at a sample of a topic's values, and print the configuration (decode) that reads them
///
/// JSON gives the columns of its fields, with types that hold for the whole sample; values of a schema registry give Avro; what
/// is neither gives text, where it is UTF-8. The archive is read, or Kafka where there is none.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct InferArgs {
    /// The topic
    topic: TopicName,

    /// So many values are looked at
    #[arg(long, value_name = "N", default_value = "10000", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    sample: u64,

    /// Where to begin: beginning, offset:N (of the newest generation), offset:GENERATION:N, timestamp:RFC3339
    #[arg(long, value_name = "WHERE", default_value = "beginning")]
    from: From,
}

const EXAMPLES: &str = "\
Examples:
  everlog schema infer orders >> everlog.toml                      the view orders_v from now on
  everlog schema infer orders --sample 100000
  everlog schema infer orders --from timestamp:2026-01-31T08:00:00Z
";

/// Bytes of values that are kept for a second look.
const KEPT_BYTES: usize = 256 << 20;

/// Runs it.
pub(super) async fn run(args: &InferArgs, settings: &Settings) -> Result<(), Failure> {
    let mut sample = Sample::new(args.sample);
    let visit = |rows: Rows<'_>| sample.add(rows);
    let is_archived = read::has_archive(settings, &args.topic).await?;
    if is_archived {
        read::archive(settings, &args.topic, args.from, visit).await?;
    } else if settings.kafka.get("bootstrap.servers").is_none() {
        return Err(Failure::new(
            Status::Failed,
            format!(
                "topic {} has no archive in {}, and no Kafka is configured to look at (kafka.\"bootstrap.servers\")",
                args.topic, settings.catalog.namespace
            ),
        ));
    } else if !read::kafka(settings, &args.topic, args.from, visit).await? {
        return Err(Failure::new(
            Status::Failed,
            format!(
                "there is no topic {}, neither archived nor in Kafka",
                args.topic
            ),
        ));
    }
    let registry = super::registry(settings)?;
    let subject = match &registry {
        Some(registry) => subject(registry, &args.topic).await?,
        None => Subject::NoRegistry,
    };
    let told =
        tell(&args.topic, &sample, subject).map_err(|what| Failure::new(Status::Failed, what))?;
    let mut out = std::io::stdout().lock();
    write!(out, "{told}")?;
    out.flush()?;
    Ok(())
}

/// What the registry says of the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    NoRegistry,
    Unknown,
    Known,
}

async fn subject(registry: &Registry, topic: &TopicName) -> Result<Subject, Failure> {
    let newest = registry.newest(&format!("{topic}-value")).await;
    Ok(match newest.map_err(|error| super::of_registry(&error))? {
        Some(_) => Subject::Known,
        None => Subject::Unknown,
    })
}

/// Values that were looked at.
#[derive(Debug)]
struct Sample {
    wanted: u64,
    seen: u64,
    tombstones: u64,
    /// Values that begin as those of a registry do.
    framed: u64,
    texts: u64,
    inference: Inference,
    objects: u64,
    kept: Vec<(Partition, i64, Vec<u8>)>,
    kept_bytes: usize,
}

impl Sample {
    fn new(wanted: u64) -> Self {
        Self {
            wanted,
            seen: 0,
            tombstones: 0,
            framed: 0,
            texts: 0,
            inference: Inference::new(),
            objects: 0,
            kept: Vec::new(),
            kept_bytes: 0,
        }
    }

    fn add(&mut self, rows: Rows<'_>) -> ControlFlow<()> {
        for (row, value) in rows.values.iter().enumerate() {
            if self.seen >= self.wanted {
                return ControlFlow::Break(());
            }
            self.seen += 1;
            let Some(value) = value else {
                self.tombstones += 1;
                continue;
            };
            let is_text = std::str::from_utf8(value).is_ok();
            self.texts += u64::from(is_text);
            // JSON never begins with a zero byte
            self.framed += u64::from(schema_id(value).is_some());
            self.objects += u64::from(self.inference.add(value).is_ok());
            self.kept_bytes += value.len();
            if self.kept_bytes <= KEPT_BYTES {
                let offset = if row < rows.offsets.len() {
                    rows.offsets.value(row)
                } else {
                    -1
                };
                self.kept.push((rows.partition, offset, value.to_vec()));
            } else {
                return ControlFlow::Break(());
            }
        }
        if self.seen >= self.wanted {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn values(&self) -> u64 {
        self.seen - self.tombstones
    }
}

/// What most of the values are. Pure.
fn kind(sample: &Sample) -> Kind {
    let most = |count: u64| count > 0 && count * 2 > sample.values();
    if most(sample.objects) {
        Kind::Json
    } else if most(sample.framed) {
        Kind::Avro
    } else if most(sample.texts) {
        Kind::Text
    } else {
        Kind::Bytes
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Avro,
    Text,
    Bytes,
}

/// The table, with what was seen in comments before it; or why there is none.
fn tell(topic: &TopicName, sample: &Sample, subject: Subject) -> Result<String, String> {
    if sample.values() == 0 {
        let tombstones = text::things(sample.tombstones, "tombstone");
        return Err(format!(
            "nothing can be inferred: there are no values there ({tombstones})"
        ));
    }
    let (format, failed) = match kind(sample) {
        Kind::Json => match sample.inference.columns() {
            Ok(columns) => json(sample, columns),
            Err(_) => {
                return Err(
                    "nothing can be inferred: every value is an object without fields".to_owned(),
                );
            }
        },
        Kind::Avro => (
            TopicFormat::Avro {
                columns: None,
                schema: SchemaChoice::Newest,
                subject: format!("{topic}-value"),
            },
            Failed {
                count: sample.values() - sample.framed,
                first: None,
            },
        ),
        Kind::Text => (
            TopicFormat::Text,
            Failed {
                count: sample.values() - sample.texts,
                first: None,
            },
        ),
        Kind::Bytes => {
            return Err(format!(
                "nothing can be inferred: most of {} are neither JSON objects, nor Avro of a registry, nor text",
                text::things(sample.values(), "value")
            ));
        }
    };
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# {}: {} seen, {}, {} failed",
        topic,
        text::things(sample.values(), "value"),
        text::things(sample.tombstones, "tombstone"),
        text::count(failed.count),
    );
    if let Some(first) = &failed.first {
        let _ = writeln!(out, "# the first that failed: {}", text::printable(first));
    }
    if matches!(format, TopicFormat::Json(_)) && sample.inference.is_cut() {
        out.push_str("# there are more fields than columns can be: those that came first\n");
    }
    if matches!(format, TopicFormat::Avro { .. }) {
        out.push_str(match subject {
            Subject::Known => "",
            Subject::Unknown => {
                "# the registry has no such subject: set the one of the topic's values\n"
            }
            Subject::NoRegistry => "# it needs [registry], with the url of the registry\n",
        });
    }
    out.push_str(&table_text(topic.as_str(), &format));
    Ok(out)
}

struct Failed {
    count: u64,
    first: Option<String>,
}

/// The columns, and what is wrong with values that are read by them: what the view would show.
fn json(sample: &Sample, columns: Columns) -> (TopicFormat, Failed) {
    let mut failed = Failed {
        count: 0,
        first: None,
    };
    let format = ValueFormat::Json(columns.clone());
    if let Ok(mut reader) = ValueReader::new(&format, &[], true) {
        for values in sample.kept.chunks(1_024) {
            let array = BinaryArray::from_iter_values(values.iter().map(|(_, _, value)| value));
            let Ok(read) = reader.read(&array) else {
                continue;
            };
            let errors = read.errors.iter().flat_map(|errors| errors.iter());
            for ((partition, offset, _), error) in values.iter().zip(errors) {
                if let Some(error) = error {
                    failed.count += 1;
                    failed.first.get_or_insert_with(|| {
                        format!("partition {}, offset {offset}: {error}", partition.get())
                    });
                }
            }
        }
    }
    (TopicFormat::Json(columns), failed)
}

#[cfg(test)]
mod tests {
    use arrow_array::Int64Array;

    use super::*;

    fn sample(wanted: u64, values: &[Option<&[u8]>]) -> Sample {
        let mut sample = Sample::new(wanted);
        let offsets = Int64Array::from_iter_values((100..).take(values.len()));
        let values = BinaryArray::from_iter(values.iter().copied());
        let rows = Rows {
            generation: None,
            partition: Partition::new(3).unwrap(),
            offsets: &offsets,
            values: &values,
        };
        let _ = sample.add(rows);
        sample
    }

    fn told(wanted: u64, values: &[Option<&[u8]>], subject: Subject) -> Result<String, String> {
        let topic = TopicName::new("a.b").unwrap();
        tell(&topic, &sample(wanted, values), subject)
    }

    #[test]
    fn json_gives_its_columns_and_says_what_failed() {
        let values: [Option<&[u8]>; 5] = [
            Some(br#"{"user id":"a","n":1}"#),
            None,
            Some(br#"{"n":2}"#),
            Some(b"broken\n"),
            Some(br#"{"n":"beyond the sample"}"#),
        ];
        assert_eq!(
            told(4, &values, Subject::NoRegistry).unwrap(),
            "# a.b: 3 values seen, 1 tombstone, 1 failed\n\
             # the first that failed: partition 3, offset 103: the value is no JSON for these columns: an object with the columns is expected at byte 0, not 'b'\n\
             [decode.\"a.b\"]\n\
             format = \"json\"\n\
             \n\
             [decode.\"a.b\".columns]\n\
             \"user id\" = \"STRING\"\n\
             n = \"BIGINT NOT NULL\"\n"
        );
    }

    #[test]
    fn what_is_no_json_is_avro_text_or_nothing() {
        let avro: [Option<&[u8]>; 2] = [Some(&[0, 0, 0, 0, 7, 2]), Some(&[0, 0, 0, 0, 8])];
        assert_eq!(
            told(10, &avro, Subject::Known).unwrap(),
            "# a.b: 2 values seen, 0 tombstones, 0 failed\n[decode.\"a.b\"]\nformat = \"avro\"\nschema = \"newest\"\nsubject = \"a.b-value\"\n"
        );
        let without = told(10, &avro, Subject::NoRegistry).unwrap();
        assert!(without.contains("# it needs [registry]"), "{without}");
        let text: [Option<&[u8]>; 3] = [Some(b"hello"), Some(b"17"), Some(b"\xff")];
        assert_eq!(
            told(10, &text, Subject::Unknown).unwrap(),
            "# a.b: 3 values seen, 0 tombstones, 1 failed\n[decode.\"a.b\"]\nformat = \"text\"\n"
        );
        let bytes: [Option<&[u8]>; 2] = [Some(b"\xff"), Some(b"\xfe")];
        assert!(told(10, &bytes, Subject::Unknown).is_err());
        let error = told(10, &[None, None], Subject::Unknown).unwrap_err();
        assert_eq!(
            error,
            "nothing can be inferred: there are no values there (2 tombstones)"
        );
    }
}
