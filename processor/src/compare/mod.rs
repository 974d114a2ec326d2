//! Two versions' rows, compared: what gives trust in a replay before a version takes over.
//!
//! ```text
//!   snapshot ─ scan ─ sample by key ─ external sort by (key, start, end) ─┐
//!                                                                         ├─ one sweep ─► report
//!   snapshot ─ scan ─ sample by key ─ external sort by (key, start, end) ─┘
//! ```
//!
//! Memory is bounded by [`Settings::memory`], whatever the outputs' size: the sorts spill to disk, and the sweep holds one row of
//! each side, one group of overlapping windows as sums, and some examples.
//!
//! Two ways to compare, for two questions:
//!
//! - **The same logic** ([`Mode::Same`]; a version against its own replay): every row must be there on both sides, in all its
//!   columns.
//! - **Changed logic** ([`Mode::Changed`]): rows are not equal by intent. Windows that overlap, of both sides, form a group; what both
//!   versions must count alike (events, amounts: the *measures*) is summed by group, and by key and day of the group's beginning,
//!   and must be equal. How windows became others (split, merged, moved) is counted and shown.
//!
//! Only windows count that lie wholly in the event time that both outputs cover. A window at the border of it, whose counterpart
//! may be cut off or still open, is counted apart and decides nothing:
//!
//! - at the beginning: a row that overlaps one which begins before (the version began in mid-stream);
//! - at the end: windows of one side alone, from which windows of the same key, each no further than
//!   [`Settings::horizon`] from the next, lead to the end: the other side's window may still be open. The last part of the way may
//!   be a window that is open on both sides, and so in neither output: it is taken to be no longer than the longest that is there,
//!   and no longer than a day.

mod report;
mod rows;
mod sweep;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use everlog_engine::{Roles, Window};
use everlog_table::job::{JobError, JobTable};

pub use report::{
    Example, Groups, MeasureReport, Report, ReportedRow, Rows as ReportedRows, SameRows, SideReport,
};

use rows::Sorted;

/// How two versions are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Row by row.
    Same,
    /// By what is conserved.
    Changed,
}

/// Which keys are compared. It is a function of the key alone, so that a key's rows are compared together or not at all, and
/// the same ones every time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    /// All of them.
    All,
    /// This share of them, above 0 and at most 1.
    Share(f64),
    /// As many as about so many rows need.
    Rows(u64),
}

/// Where a window's beginning and end stand in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edges {
    /// Each in a column.
    Both {
        /// The beginning.
        start: String,
        /// The end.
        end: String,
    },
    /// The beginning in a column; the end is [`Side::length_ms`] later.
    Start(String),
    /// The end in a column; the beginning is [`Side::length_ms`] earlier.
    End(String),
}

impl Edges {
    /// Where they stand in the rows of a query; none where that does not tell a window's beginning and end.
    pub fn of(roles: &Roles) -> Option<Self> {
        let fixed = match roles.window? {
            Window::Tumble { .. } | Window::Hop { .. } => true,
            Window::Session { .. } => false,
        };
        match (&roles.start, &roles.end) {
            (Some(start), Some(end)) => Some(Self::Both {
                start: start.clone(),
                end: end.clone(),
            }),
            (Some(start), None) if fixed => Some(Self::Start(start.clone())),
            (None, Some(end)) if fixed => Some(Self::End(end.clone())),
            _ => None,
        }
    }

    /// Their columns.
    pub fn columns(&self) -> impl Iterator<Item = &String> {
        let (one, other) = match self {
            Self::Both { start, end } => (start, Some(end)),
            Self::Start(edge) | Self::End(edge) => (edge, None),
        };
        std::iter::once(one).chain(other)
    }
}

/// What is compared, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The way.
    pub mode: Mode,
    /// The columns of the key; none: the whole is one key.
    pub keys: Vec<String>,
    /// Where a window's beginning and end stand; none for rows without windows, which only [`Mode::Same`] compares.
    pub window: Option<Edges>,
    /// Columns that both versions must count alike, for [`Mode::Changed`].
    pub measures: Vec<String>,
    /// Which keys.
    pub sample: Sample,
    /// How far a window that is still open may reach back: the larger of both versions' gaps or sizes, and their lateness.
    pub horizon: Duration,
    /// By which share floating-point numbers may differ.
    pub tolerance: f64,
    /// How many examples are shown.
    pub examples: usize,
    /// Memory of the sorts, in bytes.
    pub memory: usize,
    /// Where the sorts put what does not fit; the system's folder for such things where none.
    pub folder: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Same,
            keys: Vec::new(),
            window: None,
            measures: Vec::new(),
            sample: Sample::All,
            horizon: Duration::from_hours(1),
            tolerance: 1e-9,
            examples: 20,
            memory: 256 << 20,
            folder: None,
        }
    }
}

/// One version's output.
#[derive(Debug, Clone)]
pub struct Side {
    /// The version.
    pub version: String,
    /// Its table.
    pub table: JobTable,
    /// The snapshot that is compared; none: there are no rows yet.
    pub snapshot_id: Option<i64>,
    /// The columns that it puts out.
    pub columns: Vec<String>,
    /// How long its windows are, in milliseconds, where one of their edges alone is put out.
    pub length_ms: i64,
    /// The event time that the version began at, in milliseconds; none: at the beginning of all.
    pub from_ms: Option<i64>,
    /// The event time that its output is complete up to (its watermark less its lateness), in milliseconds; none: not known, and
    /// then taken from the rows.
    pub to_ms: Option<i64>,
}

/// Why versions cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// A table could not be read.
    #[error(transparent)]
    Table(#[from] JobError),
    /// The request makes no sense.
    #[error("versions {left} and {right} cannot be compared: {what}")]
    Settings {
        /// One version.
        left: String,
        /// The other.
        right: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Sorting failed, for instance because the disk is full.
    #[error("version {version} cannot be compared: {what}")]
    Sort {
        /// The version.
        version: String,
        /// What went wrong.
        what: String,
    },
}

impl CompareError {
    /// The exit status that stands for it. (Versions that differ are no error: see [`Report::exit_status`].)
    pub fn exit_status(&self) -> u8 {
        use everlog_table::job::JobErrorKind as Kind;
        match self {
            Self::Table(error) => match error.kind() {
                Kind::Corrupt => 4,
                Kind::Fenced => 5,
                Kind::Invalid => 2,
                Kind::Transient | Kind::Denied => 1,
            },
            Self::Settings { .. } => 2,
            Self::Sort { .. } => 1,
        }
    }
}

/// Compares two versions of a job.
pub async fn compare(
    left: &Side,
    right: &Side,
    settings: &Settings,
) -> Result<Report, CompareError> {
    let refused = |what: String| CompareError::Settings {
        left: left.version.clone(),
        right: right.version.clone(),
        what,
    };
    let mut columns = columns(left, right, settings).map_err(refused)?;
    same_types(left, right, &mut columns)
        .await
        .map_err(|error| match error {
            Problem::Refused(what) => refused(what),
            Problem::Failed(error) => error,
        })?;
    let share = share(left, right, settings)
        .await
        .map_err(|error| match error {
            Problem::Refused(what) => refused(what),
            Problem::Failed(error) => error,
        })?;
    let (from, to) = range(left, right, settings).await?;
    let facts = sweep::Facts {
        mode: settings.mode,
        from,
        to,
        horizon: i64::try_from(settings.horizon.as_millis()).unwrap_or(i64::MAX),
        tolerance: settings.tolerance,
        examples: settings.examples,
    };
    let columns = Arc::new(columns);
    let mut one = Sorted::open(left, &columns, share, settings).await?;
    let mut other = Sorted::open(right, &columns, share, settings).await?;
    let found = sweep::run(&mut one, &mut other, &columns, &facts).await?;
    tracing::debug!(
        left = one.spills(),
        right = other.spills(),
        "sorted, so often by way of the disk"
    );
    let side = |side: &Side, sorted: &Sorted| SideReport {
        version: side.version.clone(),
        table: side.table.table().to_string(),
        snapshot_id: side.snapshot_id,
        rows: sorted.rows,
        from_ms: side.from_ms,
        to_ms: side.to_ms,
    };
    Ok(Report {
        job: left.table.job().to_owned(),
        mode: settings.mode,
        left: side(left, &one),
        right: side(right, &other),
        from_ms: (from != i64::MIN).then_some(from),
        to_ms: (to != i64::MAX).then_some(to),
        share,
        keys: settings.keys.clone(),
        columns: columns.compared.clone(),
        not_compared: columns.not_compared.clone(),
        rows: found.rows,
        same: found.same,
        groups: found.groups,
        measures: found.measures,
        examples: found.examples,
        first_ms: found.first_ms,
        last_ms: found.last_ms,
    })
}

/// Which columns play which part.
#[derive(Debug)]
struct Columns {
    keys: Vec<String>,
    window: Option<Edges>,
    measures: Vec<String>,
    /// All others that both versions put out.
    rest: Vec<String>,
    /// All that are compared, in one list.
    compared: Vec<String>,
    /// Those that one version alone puts out.
    not_compared: Vec<String>,
}

fn columns(left: &Side, right: &Side, settings: &Settings) -> Result<Columns, String> {
    if settings.mode == Mode::Changed && settings.window.is_none() {
        return Err(
            "rows without windows are compared row by row: leave out --changed, or compare the tables in SQL".to_owned(),
        );
    }
    if settings.mode == Mode::Changed && settings.measures.is_empty() {
        return Err(
            "changed logic is compared by what both count alike, and there is no such column; name some with --measures, for instance a count(*)".to_owned(),
        );
    }
    let both: Vec<String> = left
        .columns
        .iter()
        .filter(|column| right.columns.contains(column))
        .cloned()
        .collect();
    let window: Vec<&String> = settings.window.iter().flat_map(Edges::columns).collect();
    let named = settings.keys.iter().chain(window.iter().copied());
    if let Some(missing) = named
        .chain(&settings.measures)
        .find(|column| !both.contains(column))
    {
        return Err(format!(
            "column {missing} is not in both outputs; both have {}",
            both.join(", ")
        ));
    }
    let rest: Vec<String> = both
        .iter()
        .filter(|column| !settings.keys.contains(column) && !window.contains(column))
        .cloned()
        .collect();
    let not_compared = left
        .columns
        .iter()
        .chain(&right.columns)
        .filter(|column| !both.contains(column))
        .cloned()
        .collect();
    Ok(Columns {
        keys: settings.keys.clone(),
        window: settings.window.clone(),
        measures: match settings.mode {
            Mode::Same => Vec::new(),
            Mode::Changed => settings.measures.clone(),
        },
        rest,
        compared: both,
        not_compared,
    })
}

/// Of two tables, columns of one name may have two types.
async fn same_types(left: &Side, right: &Side, columns: &mut Columns) -> Result<(), Problem> {
    let scan = async |side: &Side| {
        side.table
            .scan(None, Some(&columns.compared))
            .await
            .map_err(|error| Problem::Failed(error.into()))
    };
    let (one, other) = (scan(left).await?.schema(), scan(right).await?.schema());
    let differing: Vec<String> = columns
        .compared
        .iter()
        .filter(|name| {
            let of = |schema: &arrow_schema::SchemaRef| {
                schema
                    .field_with_name(name)
                    .ok()
                    .map(|f| f.data_type().clone())
            };
            of(&one) != of(&other)
        })
        .cloned()
        .collect();
    let windowed = columns.window.iter().flat_map(Edges::columns);
    if let Some(column) = columns
        .keys
        .iter()
        .chain(windowed)
        .find(|column| differing.contains(column))
    {
        return Err(Problem::Refused(format!(
            "column {column} has another type in each of their tables"
        )));
    }
    columns.rest.retain(|column| !differing.contains(column));
    // a sum is a sum, of whatever type
    columns
        .compared
        .retain(|column| !differing.contains(column) || columns.measures.contains(column));
    columns.not_compared.extend(
        differing
            .into_iter()
            .filter(|column| !columns.measures.contains(column)),
    );
    Ok(())
}

enum Problem {
    Refused(String),
    Failed(CompareError),
}

/// The share of the keys that is compared.
async fn share(left: &Side, right: &Side, settings: &Settings) -> Result<f64, Problem> {
    match settings.sample {
        Sample::All => Ok(1.0),
        Sample::Share(share) if share > 0.0 && share <= 1.0 => Ok(share),
        Sample::Share(share) => Err(Problem::Refused(format!(
            "{share} is no share of the keys; give more than 0 and at most 1"
        ))),
        Sample::Rows(rows) => {
            let mut there = 0;
            for side in [left, right] {
                let scan = side
                    .table
                    .scan(side.snapshot_id, Some(&[]))
                    .await
                    .map_err(|error| Problem::Failed(error.into()))?;
                there += scan.rows();
            }
            if there <= rows || rows == 0 {
                Ok(1.0)
            } else {
                Ok(rows as f64 / there as f64)
            }
        }
    }
}

/// The event time that both outputs cover.
async fn range(left: &Side, right: &Side, settings: &Settings) -> Result<(i64, i64), CompareError> {
    let from = left.from_ms.max(right.from_ms).unwrap_or(i64::MIN);
    let Some(edges) = &settings.window else {
        return Ok((i64::MIN, i64::MAX));
    };
    let mut to = i64::MAX;
    for side in [left, right] {
        let own = match side.to_ms {
            Some(to) => to,
            // rows come in the order of their windows' ends, so that there are more of the last end alone
            None => rows::last(side, edges)
                .await?
                .map_or(i64::MIN, |last| last.saturating_sub(1)),
        };
        to = to.min(own);
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests;
