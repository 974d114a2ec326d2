//! A query that has been checked against its source and can be run.

mod roles;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use arrow_schema::SchemaRef;
use everlog_common::units::format_duration;

use crate::aggregate::KeyCodec;
use crate::event_time::{EventTime, Scope, millis};
use crate::sql::{self, Dedup, Flink, Planned, Program, Refusal, sql_type};

pub use roles::Roles;

/// Changes whenever stored state of an older engine could be read wrongly, or could give other rows.
const FORMAT: u32 = 1;

/// Without a window, and without a `max_skew`, no partition is held back for less.
const SKEW_MIN: Duration = Duration::from_mins(1);

/// SQL over one source, checked: what it reads, what it gives, in which windows.
#[derive(Debug)]
pub struct Query {
    pub(crate) sql: String,
    pub(crate) table: String,
    pub(crate) schema: SchemaRef,
    pub(crate) event_time_text: String,
    pub(crate) event_time: EventTime,
    pub(crate) planned: Planned,
    pub(crate) dedup: Option<DedupPlan>,
}

/// Deduplication, ready to run over the full schema.
#[derive(Debug)]
pub(crate) struct DedupPlan {
    pub dedup: Dedup,
    pub columns: Vec<usize>,
    pub codec: KeyCodec,
}

impl Query {
    /// Plans `sql` over a source with the columns of `schema`, which SQL knows as `table`. `event_time_expr` is an SQL
    /// expression over these columns (and `_timestamp`, the Kafka timestamp); SQL knows its value as `ts`.
    ///
    /// Refuses, with the reason, what does not parse, what names no column, and whatever could not give the same rows in
    /// every replay.
    pub fn new(
        sql: &str,
        table: &str,
        schema: SchemaRef,
        event_time_expr: &str,
        event_time: EventTime,
    ) -> Result<Self, Refusal> {
        let planned = sql::plan(sql, table, &schema, event_time_expr)?;
        Ok(Self {
            sql: sql.trim().trim_end_matches(';').trim_end().to_owned(),
            table: table.to_owned(),
            schema,
            event_time_text: event_time_expr.trim().to_owned(),
            event_time,
            planned,
            dedup: None,
        })
    }

    /// Has duplicates dropped before the query sees them: of records of one partition with equal `by`, one is dropped if
    /// its event time differs by at most `within` from that of an earlier one that was kept. The first one is kept, and
    /// at once.
    ///
    /// A record that is so late that what it might repeat has been forgotten (its event time is more than `within`, or
    /// the allowed lateness where that is more, behind its partition's watermark) goes to the late output.
    pub fn deduplicate(mut self, by: &[String], within: Duration) -> Result<Self, Refusal> {
        if by.is_empty() {
            return Err(Refusal::new("deduplicate names no column")
                .instead("name the columns that make a record unique"));
        }
        if within.is_zero() {
            return Err(Refusal::new("deduplicate has no time bound")
                .instead("say how far apart two copies can be: within = \"10m\""));
        }
        let full = &self.planned.full;
        let mut columns = Vec::with_capacity(by.len());
        for name in by {
            let index = full.index_of(name).map_err(|_| {
                let known: Vec<&str> = full.fields().iter().map(|f| f.name().as_str()).collect();
                Refusal::new(format!(
                    "deduplicate names the column {name}, which is not one of {}",
                    known.join(", ")
                ))
            })?;
            columns.push(index);
        }
        let fields = columns
            .iter()
            .map(|i| Arc::clone(&full.fields()[*i]))
            .collect();
        self.dedup = Some(DedupPlan {
            dedup: Dedup {
                by: by.to_vec(),
                within: millis(within),
            },
            columns,
            codec: KeyCodec::new(fields)?,
        });
        Ok(self)
    }

    /// The columns that a batch must bring, by name: the source's, then `_generation`, `_partition`, `_offset`,
    /// `_timestamp`.
    pub fn input_schema(&self) -> SchemaRef {
        Arc::clone(&self.planned.base)
    }

    /// The columns of the rows that it gives.
    pub fn output_schema(&self) -> SchemaRef {
        Arc::clone(&self.planned.output)
    }

    /// Whether it groups by a window; if not, each record gives a row or none, at once.
    pub fn is_windowed(&self) -> bool {
        self.planned.windowed.is_some()
    }

    /// Its event time, as it was given.
    pub fn event_time(&self) -> &EventTime {
        &self.event_time
    }

    pub(crate) fn scope(&self) -> Scope {
        self.event_time.scope
    }

    pub(crate) fn lateness(&self) -> i64 {
        let default = || {
            self.planned
                .windowed
                .as_ref()
                .map_or(0, |w| w.window.default_lateness())
        };
        self.event_time.lateness.map_or_else(default, millis)
    }

    /// How far behind its partition's watermark a record can be and still be told from a duplicate.
    pub(crate) fn dedup_lateness(&self) -> i64 {
        self.dedup
            .as_ref()
            .map_or(0, |plan| plan.dedup.within.max(self.lateness()))
    }

    /// How far a partition may be read ahead; `None` where each partition has its own time. Without a window nothing is
    /// open that would grow, but the rows of a replay are then about as much in order as those of the live topic were: who
    /// windows them has a bound, too.
    pub(crate) fn max_skew(&self) -> Option<i64> {
        let default = || match &self.planned.windowed {
            Some(windowed) => windowed.window.length(),
            None => millis(self.event_time.bound.max(SKEW_MIN)),
        };
        match self.scope() {
            Scope::Partition => None,
            Scope::Global => Some(self.event_time.max_skew.map_or_else(default, millis)),
        }
    }

    /// The equivalent Flink SQL program: tables, watermark and query. What Flink does not have, or answers otherwise, is
    /// refused, with the reason.
    pub fn flink(&self, flink: &Flink) -> Result<String, Refusal> {
        Ok(Program::new(self, flink)?.to_string())
    }

    /// What it does, for people: event time, window, state, the plan.
    pub fn explain(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<14}{value}");
        };
        let ms = |ms: i64| format_duration(Duration::from_millis(ms.unsigned_abs()));
        line("source", self.table.clone());
        let time = &self.event_time;
        line(
            "event time",
            format!(
                "ts = {}, up to {} out of order",
                self.event_time_text,
                format_duration(time.bound)
            ),
        );
        if let Some(plan) = &self.dedup {
            line(
                "deduplicate",
                format!(
                    "by {} within {}",
                    plan.dedup.by.join(", "),
                    ms(plan.dedup.within)
                ),
            );
        }
        if let Some(filter) = &self.planned.filter_text {
            line("where", filter.clone());
        }
        match &self.planned.windowed {
            None => line(
                "window",
                "none: each record gives its row at once".to_owned(),
            ),
            Some(windowed) => {
                use crate::window::Window;
                let window = match windowed.window {
                    Window::Tumble { size } => format!("tumble, {} long", ms(size)),
                    Window::Hop { slide, size } => {
                        format!("hop, {} long, one each {}", ms(size), ms(slide))
                    }
                    Window::Session { gap } => {
                        format!("session, ends after a pause of {}", ms(gap))
                    }
                };
                line(
                    "window",
                    format!("{window}; takes records up to {} late", ms(self.lateness())),
                );
                let whose = match self.scope() {
                    Scope::Global => "the slowest partition's",
                    Scope::Partition => "each partition's own",
                };
                line("watermark", whose.to_owned());
            }
        }
        let columns: Vec<String> = self
            .planned
            .output
            .fields()
            .iter()
            .map(|field| {
                let null = if field.is_nullable() { "" } else { " NOT NULL" };
                format!("{} {}{null}", field.name(), sql_type(field.data_type()))
            })
            .collect();
        line("rows", columns.join(", "));
        for (i, plan) in readable(&self.planned.text).lines().enumerate() {
            line(if i == 0 { "plan" } else { "" }, plan.to_owned());
        }
        text
    }

    /// A number that differs where state or rows of another query, or of another engine, could differ.
    pub fn fingerprint(&self) -> u64 {
        let time = &self.event_time;
        let dedup = self.dedup.as_ref().map(|plan| &plan.dedup);
        let all = format!(
            "{FORMAT} {} {:?} {} {} {:?} {} {:?} {:?} {dedup:?}",
            datafusion::DATAFUSION_VERSION,
            self.planned.base,
            self.event_time_text,
            self.planned.text,
            time.bound,
            self.lateness(),
            time.scope,
            time.max_future,
        );
        // FNV-1a: the standard library's hashers promise no stability across releases.
        all.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }
}

/// A plan for people: DataFusion writes an interval as its fields, which says little and stands in every mention of a window.
fn readable(plan: &str) -> String {
    const INTERVAL: &str = "IntervalMonthDayNano(\"IntervalMonthDayNano { months: 0, days: ";
    let length = |text: &str| -> Option<Duration> {
        let (days, nanoseconds) = text.split_once(", nanoseconds: ")?;
        let days = Duration::from_secs(days.parse::<u32>().ok()?.into()) * 86_400;
        Some(days + Duration::from_nanos(nanoseconds.parse().ok()?))
    };
    let mut parts = plan.split(INTERVAL);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let interval = part
            .split_once(" }\")")
            .and_then(|(fields, rest)| Some((length(fields)?, rest)));
        match interval {
            Some((length, rest)) => {
                let _ = write!(text, "{length:?}{rest}");
            }
            None => {
                text.push_str(INTERVAL);
                text.push_str(part);
            }
        }
    }
    text
}
