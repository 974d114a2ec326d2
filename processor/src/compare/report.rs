//! What a comparison found, for programs and for people.

use std::collections::BTreeMap;
use std::fmt;

use everlog_common::Millis;
use serde::Serialize;

use super::Mode;
use super::rows::Number;
use crate::registry::Compared;

/// Days on which a measure differs that are listed.
const DAYS_MAX: usize = 31;

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideReport {
    /// The version.
    pub version: String,
    /// Its table.
    pub table: String,
    /// The snapshot that was read.
    pub snapshot_id: Option<i64>,
    /// Rows in it, of all keys.
    pub rows: u64,
    /// The event time that the version began at, in milliseconds.
    pub from_ms: Option<i64>,
    /// The event time that its output is complete up to, in milliseconds.
    pub to_ms: Option<i64>,
}

/// Which rows were compared, of those of sampled keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rows {
    /// Compared, of the first version.
    pub left: u64,
    /// Compared, of the other.
    pub right: u64,
    /// Outside of the event time that both cover.
    pub outside_left: u64,
    /// The same of the other.
    pub outside_right: u64,
    /// Inside, but with a counterpart that is cut off or still open.
    pub border_left: u64,
    /// The same of the other.
    pub border_right: u64,
}

impl Rows {
    pub(super) fn outside(&mut self, left: bool) -> &mut u64 {
        if left {
            &mut self.outside_left
        } else {
            &mut self.outside_right
        }
    }

    pub(super) fn border(&mut self, left: bool) -> &mut u64 {
        if left {
            &mut self.border_left
        } else {
            &mut self.border_right
        }
    }
}

/// Rows, for the same logic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SameRows {
    /// On both sides, in all columns.
    pub equal: u64,
    /// The same key and window, other columns differ.
    pub different: u64,
    /// On the first side alone.
    pub only_left: u64,
    /// On the other alone.
    pub only_right: u64,
}

/// Groups of overlapping windows, for changed logic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Groups {
    /// One window on each side, the same.
    pub identical: u64,
    /// Of these, equal in all columns.
    pub equal_rows: u64,
    /// One window on each side, of other bounds.
    pub moved: u64,
    /// One window became several.
    pub split: u64,
    /// Several windows became one.
    pub merged: u64,
    /// Several became several others.
    pub mixed: u64,
    /// On the first side alone.
    pub only_left: u64,
    /// On the other alone.
    pub only_right: u64,
    /// Groups in which a measure differs.
    pub not_conserved: u64,
}

impl Groups {
    pub(super) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Identical | Kind::Different => &mut self.identical,
            Kind::Moved => &mut self.moved,
            Kind::Split => &mut self.split,
            Kind::Merged => &mut self.merged,
            Kind::Mixed => &mut self.mixed,
            Kind::OnlyLeft => &mut self.only_left,
            Kind::OnlyRight => &mut self.only_right,
        } += 1;
    }

    /// All groups.
    pub fn all(&self) -> u64 {
        self.identical
            + self.moved
            + self.split
            + self.merged
            + self.mixed
            + self.only_left
            + self.only_right
    }
}

/// How windows of both sides belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The same window, other columns.
    Different,
    /// The same window.
    Identical,
    /// A window of other bounds.
    Moved,
    /// One became several.
    Split,
    /// Several became one.
    Merged,
    /// Several became several.
    Mixed,
    /// On the first side alone.
    OnlyLeft,
    /// On the other alone.
    OnlyRight,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Different => "other values",
            Self::Identical => "same window",
            Self::Moved => "other bounds",
            Self::Split => "split",
            Self::Merged => "merged",
            Self::Mixed => "cut otherwise",
            Self::OnlyLeft => "in the first alone",
            Self::OnlyRight => "in the second alone",
        })
    }
}

/// What both versions must count alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasureReport {
    /// The column.
    pub column: String,
    /// Its sum on the first side.
    pub left: Number,
    /// Its sum on the other.
    pub right: Number,
    /// Pairs of key and day.
    pub key_days: u64,
    /// Of these, with equal sums.
    pub key_days_equal: u64,
    /// Days (`YYYY-MM-DD`, UTC) with differing sums, the first so many.
    pub days: BTreeMap<String, [Number; 2]>,
    /// Whether there are more such days.
    pub more_days: bool,
}

impl MeasureReport {
    pub(super) fn new(column: &str) -> Self {
        Self {
            column: column.to_owned(),
            left: Number::default(),
            right: Number::default(),
            key_days: 0,
            key_days_equal: 0,
            days: BTreeMap::new(),
            more_days: false,
        }
    }

    pub(super) fn add(&mut self, day: i64, left: Number, right: Number, tolerance: f64) {
        self.left = self.left.plus(left);
        self.right = self.right.plus(right);
        self.key_days += 1;
        if left.agrees(right, tolerance) {
            self.key_days_equal += 1;
            return;
        }
        let day = day_text(day);
        if let Some(sums) = self.days.get_mut(&day) {
            *sums = [sums[0].plus(left), sums[1].plus(right)];
        } else if self.days.len() < DAYS_MAX {
            self.days.insert(day, [left, right]);
        } else {
            self.more_days = true;
        }
    }

    /// Whether it is the same for every key on every day.
    pub fn is_conserved(&self) -> bool {
        self.key_days == self.key_days_equal
    }
}

/// A row, by column, in the order of the output.
pub type ReportedRow = Vec<(String, String)>;

/// Rows of both sides that belong together and differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    /// How.
    pub kind: Kind,
    /// Of the first side, the first ten.
    #[serde(serialize_with = "as_objects")]
    pub left: Vec<ReportedRow>,
    /// Of the other.
    #[serde(serialize_with = "as_objects")]
    pub right: Vec<ReportedRow>,
}

fn as_objects<S: serde::Serializer>(rows: &[ReportedRow], to: S) -> Result<S::Ok, S::Error> {
    let objects = rows.iter().map(|row| {
        row.iter()
            .map(|(name, value)| (name.clone(), serde_json::Value::String(value.clone())))
            .collect::<serde_json::Map<_, _>>()
    });
    to.collect_seq(objects)
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The job.
    pub job: String,
    /// How it was compared.
    pub mode: Mode,
    /// The first version.
    pub left: SideReport,
    /// The other.
    pub right: SideReport,
    /// The event time that both cover begins here, in milliseconds; none: with the first row.
    pub from_ms: Option<i64>,
    /// And ends here; none: with the last row.
    pub to_ms: Option<i64>,
    /// Which share of the keys was compared.
    pub share: f64,
    /// The columns of the key.
    pub keys: Vec<String>,
    /// The columns that were compared.
    pub columns: Vec<String>,
    /// Those that only one version has, or of another type.
    pub not_compared: Vec<String>,
    /// Which rows were compared.
    pub rows: Rows,
    /// For the same logic.
    pub same: Option<SameRows>,
    /// For changed logic.
    pub groups: Option<Groups>,
    /// For changed logic.
    pub measures: Vec<MeasureReport>,
    /// Rows side by side.
    pub examples: Vec<Example>,
    /// Where the first row that was compared begins, in milliseconds.
    pub first_ms: Option<i64>,
    /// Where the last one ends.
    pub last_ms: Option<i64>,
}

impl Report {
    /// Whether the versions agree. Where nothing could be compared, they do not.
    pub fn agrees(&self) -> bool {
        let same = self
            .same
            .is_none_or(|same| same.different == 0 && same.only_left == 0 && same.only_right == 0);
        let conserved = self.measures.iter().all(MeasureReport::is_conserved);
        self.rows.left > 0 && self.rows.right > 0 && same && conserved
    }

    /// 0 where the versions agree, 1 where they differ.
    pub fn exit_status(&self) -> u8 {
        u8::from(!self.agrees())
    }

    /// As the registry remembers it.
    pub fn note(&self, now: Millis) -> Compared {
        Compared {
            left: self.left.version.clone(),
            right: self.right.version.clone(),
            from_ms: self.from_ms.or(self.first_ms).unwrap_or_default(),
            to_ms: self
                .to_ms
                .min(self.last_ms)
                .or(self.last_ms)
                .unwrap_or_default(),
            left_rows: self.rows.left,
            right_rows: self.rows.right,
            share: self.share,
            agree: self.agrees(),
            at_ms: now.0,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        if let Some(object) = json.as_object_mut() {
            object.insert("agree".to_owned(), self.agrees().into());
        }
        json
    }
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, right) = (&self.left.version, &self.right.version);
        writeln!(
            f,
            "job {}: {left} against {right}, {}",
            self.job,
            match self.mode {
                Mode::Same => "row by row",
                Mode::Changed => "by what is conserved",
            }
        )?;
        for side in [&self.left, &self.right] {
            let snapshot = side
                .snapshot_id
                .map_or_else(|| "none yet".to_owned(), |id| id.to_string());
            writeln!(
                f,
                "  {:<12} {} rows, snapshot {snapshot} of {}",
                side.version,
                grouped(side.rows),
                side.table
            )?;
        }
        let bound = |at: Option<i64>, else_: &str| at.map_or_else(|| else_.to_owned(), time_text);
        writeln!(
            f,
            "  event time   {} to {}",
            bound(self.from_ms, "the beginning"),
            bound(self.to_ms, "the end")
        )?;
        if self.share < 1.0 {
            writeln!(f, "  keys         a sample of {:.2} %", self.share * 100.0)?;
        }
        let rows = &self.rows;
        writeln!(
            f,
            "  compared     {} and {} rows; {} and {} outside, {} and {} at the border",
            grouped(rows.left),
            grouped(rows.right),
            grouped(rows.outside_left),
            grouped(rows.outside_right),
            grouped(rows.border_left),
            grouped(rows.border_right)
        )?;
        if !self.not_compared.is_empty() {
            writeln!(f, "  not compared {}", self.not_compared.join(", "))?;
        }
        if let Some(same) = &self.same {
            let all = same.equal + same.different + same.only_left + same.only_right;
            for (what, count) in [
                ("equal".to_owned(), same.equal),
                ("other values".to_owned(), same.different),
                (format!("only in {left}"), same.only_left),
                (format!("only in {right}"), same.only_right),
            ] {
                writeln!(
                    f,
                    "  {what:<20} {:>14}  {}",
                    grouped(count),
                    percent(count, all)
                )?;
            }
        }
        if let Some(groups) = &self.groups {
            let all = groups.all();
            for (what, count) in [
                ("same window".to_owned(), groups.identical),
                ("  equal in all".to_owned(), groups.equal_rows),
                ("other bounds".to_owned(), groups.moved),
                ("one became several".to_owned(), groups.split),
                ("several became one".to_owned(), groups.merged),
                ("cut otherwise".to_owned(), groups.mixed),
                (format!("only in {left}"), groups.only_left),
                (format!("only in {right}"), groups.only_right),
            ] {
                writeln!(
                    f,
                    "  {what:<20} {:>14}  {}",
                    grouped(count),
                    percent(count, all)
                )?;
            }
        }
        for measure in &self.measures {
            writeln!(
                f,
                "  {}: {} and {}; equal for {} of {} keys and days",
                measure.column,
                measure.left,
                measure.right,
                grouped(measure.key_days_equal),
                grouped(measure.key_days)
            )?;
            for (day, [one, other]) in measure.days.iter().take(5) {
                writeln!(f, "    {day}: {one} and {other} in the keys that differ")?;
            }
        }
        for example in &self.examples {
            writeln!(f, "  {}", example.kind)?;
            for (version, rows) in [(left, &example.left), (right, &example.right)] {
                for row in rows {
                    let values: Vec<String> = row.iter().map(|(n, v)| format!("{n}={v}")).collect();
                    writeln!(f, "    {version:<10} {}", values.join("  "))?;
                }
            }
        }
        let verdict = match (self.agrees(), rows.left == 0 || rows.right == 0) {
            (true, _) => match self.mode {
                Mode::Same => "they agree: every row is there, and equal",
                Mode::Changed => "they agree in everything that is conserved",
            },
            (false, true) => "there is nothing to compare: no event time is covered by both",
            (false, false) => "they differ",
        };
        write!(f, "{verdict}")
    }
}

fn percent(count: u64, all: u64) -> String {
    if all == 0 {
        return String::new();
    }
    format!("{:5.1} %", count as f64 * 100.0 / all as f64)
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn date_of(days: i64) -> (i64, i64, i64) {
    // Howard Hinnant's civil_from_days
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn day_text(days: i64) -> String {
    let (year, month, day) = date_of(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A time as RFC 3339 has it.
fn time_text(ms: i64) -> String {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    let (seconds, millis) = (of_day / 1_000, of_day % 1_000);
    format!(
        "{}T{:02}:{:02}:{:02}.{millis:03}Z",
        day_text(days),
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_are_readable() {
        assert_eq!(time_text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(time_text(1_709_164_799_999), "2024-02-28T23:59:59.999Z");
        assert_eq!(day_text(19_782), "2024-02-29");
        assert_eq!(day_text(-1), "1969-12-31");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
    }
}
