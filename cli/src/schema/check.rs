//! `everlog schema check`: whether every value of an archive can be read by the newest schema of its subject.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;

use clap::Args;
use everlog_common::TopicName;
use everlog_decode::registry::{Pinned, Registry};
use everlog_decode::{Misfit, RegisteredSchema, SchemaId, misfits, schema_id};
use everlog_query::TopicFormat;
use everlog_replayer::From;

use super::read::{self, Rows};
use crate::failure::{Failure, Status};
use crate::settings::Settings;
use crate::text;

/// Check whether every value in the archive can be read by the newest schema of the topic's subject
///
/// Reads every version from the registry and the schema id of every archived value. Says of each version whether the newest
/// one reads it (all of them: BACKWARD_TRANSITIVE) and whether it reads the newest one (both: FULL_TRANSITIVE), which fields are in the way, and
/// where in the archive it was in use. Ends with 1 where the newest cannot read something that is in the archive.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// The topic
    topic: TopicName,

    /// The subject of the topic's values [default: what decode says of it, else TOPIC-value]
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,

    /// End with 1 too where some version cannot read what the newest writes
    #[arg(long)]
    full: bool,
}

const EXAMPLES: &str = "\
Examples:
  everlog schema check orders
  everlog schema check orders --subject shop.Order --full
";

/// Runs it.
pub(super) async fn run(args: &CheckArgs, settings: &Settings) -> Result<(), Failure> {
    let subject = subject(args, settings)?;
    let Some(registry) = super::registry(settings)? else {
        return Err(Failure::usage(
            "schemas are checked by the registry that has them: add [registry] with its url to the configuration",
        ));
    };
    let versions = versions(&registry, &subject).await?;
    let used = if read::has_archive(settings, &args.topic).await? {
        let mut used = Used::default();
        let visit = |rows: Rows<'_>| {
            used.add(rows);
            ControlFlow::Continue(())
        };
        read::archive(settings, &args.topic, From::Beginning, visit).await?;
        Some(used)
    } else {
        None
    };
    let others = others(&registry, &versions, used.as_ref()).await?;
    let checked = Checked::new(&versions, others, used.as_ref());
    let mut out = std::io::stdout().lock();
    write!(out, "{}", checked.tell(&args.topic, &subject))?;
    out.flush()?;
    match checked.verdict(args.full) {
        None => Ok(()),
        Some(why) => Err(Failure::new(Status::Failed, why)),
    }
}

fn subject(args: &CheckArgs, settings: &Settings) -> Result<String, Failure> {
    if let Some(subject) = &args.subject {
        return Ok(subject.clone());
    }
    let declared = settings
        .decode
        .iter()
        .find(|(topic, _)| *topic == args.topic);
    match declared {
        Some((_, TopicFormat::Avro { subject, .. })) => Ok(subject.clone()),
        None => Ok(format!("{}-value", args.topic)),
        Some((_, TopicFormat::Json(_) | TopicFormat::Text)) => Err(Failure::usage(format!(
            "the values of topic {} are not Avro, by [decode.\"{}\"]: only schemas of a registry can be checked",
            args.topic, args.topic
        ))),
    }
}

/// Every version of the subject, ascending.
async fn versions(registry: &Registry, subject: &str) -> Result<Vec<Pinned>, Failure> {
    let of = |error| super::of_registry(&error);
    let numbers = registry.versions(subject).await.map_err(of)?;
    let mut versions = Vec::new();
    for number in numbers.into_iter().flatten() {
        // one that was deleted for good since is in no list any more
        versions.extend(registry.version(subject, number).await.map_err(of)?);
    }
    if versions.is_empty() {
        return Err(Failure::usage(format!(
            "the registry has no subject {subject}: name the one of the topic's values with --subject"
        )));
    }
    Ok(versions)
}

/// The schemas of values that no version of the subject is, or why there is none.
async fn others(
    registry: &Registry,
    versions: &[Pinned],
    used: Option<&Used>,
) -> Result<Vec<(SchemaId, Result<RegisteredSchema, String>)>, Failure> {
    let mut others = Vec::new();
    for id in used.iter().flat_map(|used| used.schemas.keys()) {
        if !versions.iter().any(|version| version.id == *id) {
            let schema = registry.schema(*id).await;
            others.push((*id, schema.map_err(|error| super::of_registry(&error))?));
        }
    }
    Ok(others)
}

/// Offsets between which a schema was in use in a partition, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: i64,
    last: i64,
    values: u64,
}

type Ranges = BTreeMap<(u32, i32), Range>;

/// Which schemas values of an archive name, and where.
#[derive(Debug, Default)]
struct Used {
    schemas: BTreeMap<SchemaId, Ranges>,
    /// Values that name none.
    without: Ranges,
    tombstones: u64,
}

impl Used {
    fn add(&mut self, rows: Rows<'_>) {
        let place = (
            rows.generation.map_or(0, |generation| generation.0),
            rows.partition.get(),
        );
        // neighbours mostly name the same
        let mut run: Option<(Option<SchemaId>, Range)> = None;
        for (row, value) in rows.values.iter().enumerate() {
            let Some(value) = value else {
                self.tombstones += 1;
                continue;
            };
            let offset = rows.offsets.value(row);
            let id = schema_id(value);
            match &mut run {
                Some((of, range)) if *of == id => {
                    range.last = offset;
                    range.values += 1;
                }
                other => {
                    let next = Range {
                        first: offset,
                        last: offset,
                        values: 1,
                    };
                    if let Some((of, range)) = other.replace((id, next)) {
                        self.put(of, place, range);
                    }
                }
            }
        }
        if let Some((of, range)) = run {
            self.put(of, place, range);
        }
    }

    fn put(&mut self, id: Option<SchemaId>, place: (u32, i32), range: Range) {
        let ranges = match id {
            Some(id) => self.schemas.entry(id).or_default(),
            None => &mut self.without,
        };
        ranges
            .entry(place)
            .and_modify(|known| {
                known.first = known.first.min(range.first);
                known.last = known.last.max(range.last);
                known.values += range.values;
            })
            .or_insert(range);
    }
}

/// One schema against the newest.
#[derive(Debug)]
struct Line {
    id: SchemaId,
    /// None: no version of the subject.
    version: Option<i64>,
    /// None: nobody looked, or nowhere.
    used: Option<Ranges>,
    /// What keeps the newest from reading it.
    backward: Result<Vec<Misfit>, String>,
    /// What keeps it from reading the newest.
    forward: Result<Vec<Misfit>, String>,
}

impl Line {
    fn is_read(&self) -> bool {
        self.backward.as_ref().is_ok_and(Vec::is_empty)
    }

    fn reads(&self) -> bool {
        self.forward.as_ref().is_ok_and(Vec::is_empty)
    }
}

/// What was found.
#[derive(Debug)]
struct Checked<'a> {
    lines: Vec<Line>,
    newest: Option<(SchemaId, i64)>,
    /// None: there is no archive.
    used: Option<&'a Used>,
}

impl<'a> Checked<'a> {
    fn new(
        versions: &[Pinned],
        others: Vec<(SchemaId, Result<RegisteredSchema, String>)>,
        used: Option<&'a Used>,
    ) -> Self {
        let newest = versions.last();
        let fits = |reader: Option<&RegisteredSchema>, writer: Option<&RegisteredSchema>| match (
            reader, writer,
        ) {
            (Some(reader), Some(writer)) => {
                misfits(reader, writer).map_err(|error| error.to_string())
            }
            _ => Ok(Vec::new()),
        };
        let reader = newest.map(|newest| &newest.schema);
        let ranges = |id: SchemaId| used.and_then(|used| used.schemas.get(&id)).cloned();
        let mut lines: Vec<Line> = versions
            .iter()
            .map(|version| Line {
                id: version.id,
                version: Some(version.version),
                used: ranges(version.id),
                backward: fits(reader, Some(&version.schema)),
                forward: fits(Some(&version.schema), reader),
            })
            .collect();
        lines.extend(others.into_iter().map(|(id, schema)| {
            let (backward, forward) = match schema {
                Ok(schema) => (fits(reader, Some(&schema)), fits(Some(&schema), reader)),
                Err(why) => (Err(why.clone()), Err(why)),
            };
            Line {
                id,
                version: None,
                used: ranges(id),
                backward,
                forward,
            }
        }));
        Self {
            lines,
            newest: newest.map(|newest| (newest.id, newest.version)),
            used,
        }
    }

    /// What is printed.
    fn tell(&self, topic: &TopicName, subject: &str) -> String {
        let mut out = String::new();
        let versions = self.lines.iter().filter(|line| line.version.is_some());
        let newest = self
            .newest
            .map(|(id, version)| format!(", the newest is v{version} (id {id})"))
            .unwrap_or_default();
        let count = text::things(versions.count() as u64, "version");
        let _ = writeln!(out, "subject {subject}: {count}{newest}");
        if self.used.is_none() {
            let _ = writeln!(
                out,
                "topic {topic} has no archive: versions alone are compared"
            );
        }
        let mut rows = vec![
            [
                "VERSION",
                "ID",
                "VALUES",
                "NEWEST READS IT",
                "IT READS NEWEST",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        for line in &self.lines {
            rows.push(vec![
                line.version
                    .map_or_else(|| "other".to_owned(), |version| format!("v{version}")),
                line.id.to_string(),
                match (&line.used, self.used) {
                    (_, None) => "?".to_owned(),
                    (None, _) => "0".to_owned(),
                    (Some(ranges), _) => text::count(ranges.values().map(|r| r.values).sum()),
                },
                yes(line.is_read()),
                yes(line.reads()),
            ]);
        }
        out.push_str(&text::table(&rows, &[2]));
        for line in &self.lines {
            let is_plain = line.is_read() && line.reads();
            if is_plain && line.used.is_none() {
                continue;
            }
            let name = match line.version {
                Some(version) => format!("v{version} (id {})", line.id),
                None => format!("id {} (of another subject)", line.id),
            };
            let _ = writeln!(out, "{name}");
            tell_ranges(&mut out, line.used.as_ref());
            for (what, found) in [
                ("the newest cannot read it", &line.backward),
                ("it cannot read the newest", &line.forward),
            ] {
                match found {
                    Ok(found) => {
                        for misfit in found {
                            let misfit = misfit.to_string();
                            let _ = writeln!(out, "  {what}: {}", text::printable(&misfit));
                        }
                    }
                    Err(why) => {
                        let _ = writeln!(out, "  {what}: {}", text::printable(why));
                    }
                }
            }
        }
        if let Some(used) = self.used
            && !used.without.is_empty()
        {
            out.push_str("values without a schema id, which are no Avro of a registry\n");
            tell_ranges(&mut out, Some(&used.without));
        }
        if let Some(used) = self.used
            && used.tombstones > 0
        {
            let _ = writeln!(out, "{}", text::things(used.tombstones, "tombstone"));
        }
        let _ = writeln!(
            out,
            "BACKWARD_TRANSITIVE: {}, FULL_TRANSITIVE: {}",
            yes(self.lines.iter().all(Line::is_read)),
            yes(self.lines.iter().all(|line| line.is_read() && line.reads()))
        );
        out
    }

    /// What is wrong; none where everything that is asked for holds.
    fn verdict(&self, full: bool) -> Option<String> {
        let is_there = |line: &&Line| self.used.is_none() || line.used.is_some();
        let unread: Vec<String> = self
            .lines
            .iter()
            .filter(is_there)
            .filter(|line| !line.is_read())
            .map(|line| line.id.to_string())
            .collect();
        if !unread.is_empty() {
            let whose = if self.used.is_some() {
                "values in the archive were"
            } else {
                "values may be"
            };
            return Some(format!(
                "{whose} written with schemas that the newest cannot read: id {}",
                unread.join(", ")
            ));
        }
        if self.used.is_some_and(|used| !used.without.is_empty()) {
            return Some("values in the archive have no schema id".to_owned());
        }
        let not_full = self.lines.iter().filter(|line| !line.reads());
        let not_full: Vec<String> = not_full.map(|line| line.id.to_string()).collect();
        if full && !not_full.is_empty() {
            return Some(format!(
                "schemas cannot read what the newest writes: id {}",
                not_full.join(", ")
            ));
        }
        None
    }
}

fn tell_ranges(out: &mut String, ranges: Option<&Ranges>) {
    for ((generation, partition), range) in ranges.into_iter().flatten() {
        let generation = if *generation == 0 {
            String::new()
        } else {
            format!("generation {generation}, ")
        };
        let _ = writeln!(
            out,
            "  in use in {generation}partition {partition}, offsets {} to {}: {}",
            range.first,
            range.last,
            text::things(range.values, "value")
        );
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{BinaryArray, Int64Array};
    use everlog_common::{Generation, Partition};
    use proptest::prelude::*;

    use super::*;

    fn record(fields: &str) -> RegisteredSchema {
        RegisteredSchema::avro(&format!(
            r#"{{"type":"record","name":"R","fields":[{fields}]}}"#
        ))
    }

    fn version(version: i64, id: u32, fields: &str) -> Pinned {
        Pinned {
            id: SchemaId(id),
            version,
            schema: record(fields),
        }
    }

    fn add(used: &mut Used, generation: u32, partition: i32, values: &[(i64, Option<&[u8]>)]) {
        let offsets = Int64Array::from_iter_values(values.iter().map(|(offset, _)| *offset));
        let array = BinaryArray::from_iter(values.iter().map(|(_, value)| *value));
        used.add(Rows {
            generation: Some(Generation(generation)),
            partition: Partition::new(partition).unwrap(),
            offsets: &offsets,
            values: &array,
        });
    }

    const A: &str = r#"{"name":"a","type":"int"}"#;
    const A_LONG: &str = r#"{"name":"a","type":"long"}"#;
    const A_TEXT: &str = r#"{"name":"a","type":"string"}"#;

    #[test]
    fn each_version_is_told_with_its_place_and_what_is_in_the_way() {
        let mut used = Used::default();
        add(
            &mut used,
            0,
            0,
            &[
                (3, Some(&[0, 0, 0, 0, 7, 2])),
                (4, None),
                (9, Some(&[0, 0, 0, 0, 7])),
            ],
        );
        add(
            &mut used,
            1,
            2,
            &[(0, Some(&[0, 0, 0, 0, 8])), (5, Some(&[0, 0, 0, 0, 99]))],
        );
        let versions = [
            version(1, 7, A_TEXT),
            version(2, 8, A),
            version(3, 9, A_LONG),
        ];
        let others = vec![(
            SchemaId(99),
            Err("the registry does not know it".to_owned()),
        )];
        let checked = Checked::new(&versions, others, Some(&used));
        let told = checked.tell(&TopicName::new("t").unwrap(), "t-value");
        assert_eq!(
            told,
            "subject t-value: 3 versions, the newest is v3 (id 9)\n\
             VERSION  ID  VALUES  NEWEST READS IT  IT READS NEWEST\n\
             v1       7        2  no               no\n\
             v2       8        1  yes              no\n\
             v3       9        0  yes              yes\n\
             other    99       1  no               no\n\
             v1 (id 7)\n  \
               in use in partition 0, offsets 3 to 9: 2 values\n  \
               the newest cannot read it: a: string was written, long is read\n  \
               it cannot read the newest: a: long was written, string is read\n\
             v2 (id 8)\n  \
               in use in generation 1, partition 2, offsets 0 to 0: 1 value\n  \
               it cannot read the newest: a: long was written, int is read\n\
             id 99 (of another subject)\n  \
               in use in generation 1, partition 2, offsets 5 to 5: 1 value\n  \
               the newest cannot read it: the registry does not know it\n  \
               it cannot read the newest: the registry does not know it\n\
             1 tombstone\n\
             BACKWARD_TRANSITIVE: no, FULL_TRANSITIVE: no\n"
        );
        assert_eq!(
            checked.verdict(false).as_deref(),
            Some(
                "values in the archive were written with schemas that the newest cannot read: id 7, 99"
            )
        );
    }

    #[test]
    fn what_is_not_in_the_archive_does_not_fail_it() {
        let versions = [
            version(1, 7, A_TEXT),
            version(2, 8, A),
            version(3, 9, A_LONG),
        ];
        let mut used = Used::default();
        add(&mut used, 0, 0, &[(0, Some(&[0, 0, 0, 0, 8]))]);
        let checked = Checked::new(&versions, Vec::new(), Some(&used));
        assert_eq!(checked.verdict(false), None);
        assert_eq!(
            checked.verdict(true).as_deref(),
            Some("schemas cannot read what the newest writes: id 7, 8")
        );
        let unarchived = Checked::new(&versions, Vec::new(), None);
        assert_eq!(
            unarchived.verdict(false).as_deref(),
            Some("values may be written with schemas that the newest cannot read: id 7")
        );
        add(&mut used, 0, 0, &[(1, Some(b"{}"))]);
        let checked = Checked::new(&versions[1..], Vec::new(), Some(&used));
        assert_eq!(
            checked.verdict(false).as_deref(),
            Some("values in the archive have no schema id")
        );
    }

    proptest! {
        /// The model goes through all values one by one.
        #[test]
        fn offsets_are_those_of_the_values(ids in proptest::collection::vec(proptest::option::of(0_u8..4), 0..40), cut in 0_usize..40) {
            let framed: Vec<Option<Vec<u8>>> = ids.iter().map(|id| id.map(|id| if id == 3 { b"x".to_vec() } else { vec![0, 0, 0, 0, id] })).collect();
            let rows: Vec<(i64, Option<&[u8]>)> = framed.iter().enumerate().map(|(i, v)| (i as i64 * 2, v.as_deref())).collect();
            let (first, second) = rows.split_at(cut.min(rows.len()));
            let mut used = Used::default();
            add(&mut used, 0, 0, first);
            add(&mut used, 0, 0, second);
            for id in 0_u8..4 {
                let of: Vec<i64> = rows.iter().zip(&ids).filter(|(_, i)| **i == Some(id)).map(|((offset, _), _)| *offset).collect();
                let ranges = if id == 3 { Some(&used.without) } else { used.schemas.get(&SchemaId(u32::from(id))) };
                let range = ranges.and_then(|ranges| ranges.get(&(0, 0))).copied();
                let expected = of.first().map(|first| Range { first: *first, last: of[of.len() - 1], values: of.len() as u64 });
                prop_assert_eq!(range, expected);
            }
            prop_assert_eq!(used.tombstones, ids.iter().filter(|id| id.is_none()).count() as u64);
        }
    }
}
