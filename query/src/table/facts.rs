//! What manifests say of a table's files, in the shape that DataFusion plans by.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, UInt64Array};
use arrow_schema::{DataType, TimeUnit};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, ScalarValue, Statistics};
use everlog_table::files::PlannedFile;
use everlog_table::schema::Column as Archived;
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral};

use super::fields::Columns;

/// A live file of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct LiveFile {
    /// Where it is, its size, and its rows.
    pub(crate) planned: PlannedFile,
    /// Its manifest's entry, where that says more than `planned` does: in tables that are no archives.
    pub(crate) entry: Option<Arc<DataFile>>,
}

/// What is known of one column in one file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Range {
    /// Lowest and highest value; none where no row has one.
    pub(crate) bounds: Option<(ScalarValue, ScalarValue)>,
    /// Rows without a value, where known.
    pub(crate) nulls: Option<u64>,
    /// Whether rows have exactly these bounds, rather than lie within them.
    pub(crate) exact: bool,
}

/// Knows a table's files column by column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) columns: &'a Columns,
    /// The topic of all rows, where the table is an archive.
    pub(crate) topic: Option<&'a str>,
}

impl Facts<'_> {
    /// What is known of a column, by its place; none: nothing.
    pub(crate) fn of(&self, file: &LiveFile, place: usize) -> Option<Range> {
        let id = *self.columns.ids.get(place)?;
        let field = self.columns.schema.fields().get(place)?;
        match self.topic {
            Some(topic) => archived(&file.planned, id, topic),
            None => {
                let entry = file.entry.as_ref()?;
                let range = listed(entry, id, field.data_type());
                range.map(|range| Range {
                    nulls: range.nulls.or((!field.is_nullable()).then_some(0)),
                    ..range
                })
            }
        }
    }

    /// The same of every column of one file, as DataFusion has it.
    pub(crate) fn statistics(&self, file: &LiveFile) -> Statistics {
        let columns = 0..self.columns.ids.len();
        let column_statistics = columns
            .map(|place| match self.of(file, place) {
                Some(range) => range.statistics(),
                None => ColumnStatistics::new_unknown(),
            })
            .collect();
        Statistics {
            num_rows: rows(file.planned.rows),
            total_byte_size: Precision::Absent,
            column_statistics,
        }
    }

    /// The same of all files together: exact where every file's is.
    pub(crate) fn total(&self, files: &[&LiveFile]) -> Statistics {
        let all = files
            .iter()
            .map(|f| f.planned.rows)
            .fold(0, u64::saturating_add);
        let filled: Vec<&&LiveFile> = files.iter().filter(|f| f.planned.rows > 0).collect();
        let column_statistics = (0..self.columns.ids.len())
            .map(|place| {
                let mut sum: Option<Range> = None;
                for file in &filled {
                    let Some(range) = self.of(file, place) else {
                        return ColumnStatistics::new_unknown();
                    };
                    sum = match sum {
                        None => Some(range),
                        Some(sum) => sum.and(range),
                    };
                    if sum.is_none() {
                        return ColumnStatistics::new_unknown();
                    }
                }
                sum.map_or_else(ColumnStatistics::new_unknown, Range::statistics)
            })
            .collect();
        let bytes = files.iter().map(|f| f.planned.size_bytes);
        let bytes = bytes.fold(0, u64::saturating_add);
        Statistics {
            num_rows: rows(all),
            total_byte_size: usize::try_from(bytes).map_or(Precision::Absent, Precision::Inexact),
            column_statistics,
        }
    }
}

fn rows(rows: u64) -> Precision<usize> {
    usize::try_from(rows).map_or(Precision::Absent, Precision::Exact)
}

impl Range {
    /// What is known of two files together; none where their values cannot be compared.
    fn and(self, other: Self) -> Option<Self> {
        let bounds = match (self.bounds, other.bounds) {
            (None, bounds) | (bounds, None) => bounds,
            (Some((low, high)), Some((lower, higher))) => Some((
                if lower.partial_cmp(&low)?.is_lt() {
                    lower
                } else {
                    low
                },
                if higher.partial_cmp(&high)?.is_gt() {
                    higher
                } else {
                    high
                },
            )),
        };
        Some(Self {
            bounds,
            nulls: self
                .nulls
                .zip(other.nulls)
                .map(|(a, b)| a.saturating_add(b)),
            exact: self.exact && other.exact,
        })
    }

    fn statistics(self) -> ColumnStatistics {
        let precise = |value: ScalarValue| {
            if self.exact {
                Precision::Exact(value)
            } else {
                Precision::Inexact(value)
            }
        };
        let mut statistics = ColumnStatistics::new_unknown();
        if let Some((low, high)) = self.bounds {
            statistics.min_value = precise(low);
            statistics.max_value = precise(high);
        }
        if let Some(nulls) = self.nulls.and_then(|nulls| usize::try_from(nulls).ok()) {
            statistics.null_count = if self.exact {
                Precision::Exact(nulls)
            } else {
                Precision::Inexact(nulls)
            };
        }
        statistics
    }
}

/// What an archive's manifest says: exact where everlog wrote the file.
fn archived(file: &PlannedFile, id: i32, topic: &str) -> Option<Range> {
    let exact = is_own(&file.path);
    let known = |low: ScalarValue, high: ScalarValue| Range {
        bounds: Some((low, high)),
        nulls: Some(0),
        exact,
    };
    if id == Archived::Topic.id() {
        let topic = ScalarValue::Utf8View(Some(topic.to_owned()));
        return Some(known(topic.clone(), topic));
    }
    let bounds = file.bounds.as_ref()?;
    let int = |value: i32| ScalarValue::Int32(Some(value));
    let long = |value: i64| ScalarValue::Int64(Some(value));
    let time = |us: i64| ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into()));
    if id == Archived::Generation.id() {
        let (low, high) = bounds.generation;
        Some(known(int(low.as_i32()), int(high.as_i32())))
    } else if id == Archived::Partition.id() {
        let (low, high) = bounds.partition;
        Some(known(int(low.get()), int(high.get())))
    } else if id == Archived::Offset.id() {
        let (low, high) = bounds.offset;
        Some(known(long(low.get()), long(high.get())))
    } else if id == Archived::ArchivedAt.id() {
        let (low, high) = bounds.archived_at_us?;
        Some(known(time(low), time(high)))
    } else if id == Archived::Timestamp.id() {
        match bounds.timestamp_us {
            Some((low, high)) => Some(Range {
                bounds: Some((time(low), time(high))),
                nulls: None,
                exact,
            }),
            // then no row has one
            None if bounds.timestamps_known => Some(Range {
                bounds: None,
                nulls: Some(file.rows),
                exact,
            }),
            None => None,
        }
    } else {
        None
    }
}

/// Whether everlog's archiver wrote a file, by its name: a random UUID (version 4) and nothing else. Of other engines those that
/// name files by a bare UUID take one that begins with the time (version 7).
pub(super) fn is_own(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(stem) = name.strip_suffix(".parquet") else {
        return false;
    };
    stem.len() == 36
        && stem.as_bytes()[14] == b'4'
        && stem.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// What another table's manifest says: bounds that rows lie within. Of floats nothing: bounds leave out NaN.
fn listed(file: &DataFile, id: i32, kind: &DataType) -> Option<Range> {
    let nulls = file.null_value_counts().get(&id).copied();
    if nulls == Some(file.record_count()) {
        return Some(Range {
            bounds: None,
            nulls,
            exact: false,
        });
    }
    let low = scalar(file.lower_bounds().get(&id)?, kind)?;
    let high = scalar(file.upper_bounds().get(&id)?, kind)?;
    Some(Range {
        bounds: Some((low, high)),
        nulls,
        exact: false,
    })
}

/// A bound as a value of the column's type.
fn scalar(datum: &Datum, kind: &DataType) -> Option<ScalarValue> {
    let wide = match datum.literal() {
        PrimitiveLiteral::Int(value) => i64::from(*value),
        PrimitiveLiteral::Long(value) => *value,
        PrimitiveLiteral::String(text) if *kind == DataType::Utf8View => {
            return Some(ScalarValue::Utf8View(Some(text.clone())));
        }
        _ => return None,
    };
    Some(match kind {
        DataType::Int32 => ScalarValue::Int32(Some(i32::try_from(wide).ok()?)),
        DataType::Int64 => ScalarValue::Int64(Some(wide)),
        DataType::Date32 => ScalarValue::Date32(Some(i32::try_from(wide).ok()?)),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            ScalarValue::TimestampMicrosecond(Some(wide), zone.clone())
        }
        _ => return None,
    })
}

/// Files as containers of rows that a predicate may pass over.
pub(crate) struct Prunable<'a> {
    pub(crate) facts: Facts<'a>,
    pub(crate) files: &'a [LiveFile],
}

impl Prunable<'_> {
    fn ranges(&self, column: &Column) -> Option<(Vec<Option<Range>>, &DataType)> {
        let schema = &self.facts.columns.schema;
        let place = schema.index_of(&column.name).ok()?;
        let ranges = self.files.iter().map(|file| self.facts.of(file, place));
        Some((ranges.collect(), schema.field(place).data_type()))
    }

    fn values(
        &self,
        column: &Column,
        pick: impl Fn((ScalarValue, ScalarValue)) -> ScalarValue,
    ) -> Option<ArrayRef> {
        let (ranges, kind) = self.ranges(column)?;
        let null = ScalarValue::try_new_null(kind).ok()?;
        let values = ranges.into_iter().map(|range| {
            let bounds = range.and_then(|range| range.bounds);
            bounds.map_or_else(|| null.clone(), &pick)
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

impl PruningStatistics for Prunable<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |(low, _)| low)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |(_, high)| high)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let (ranges, _) = self.ranges(column)?;
        let counts = ranges.into_iter().map(|range| range?.nulls);
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn row_counts(&self, _: &Column) -> Option<ArrayRef> {
        let counts = self.files.iter().map(|file| Some(file.planned.rows));
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_have_a_bare_random_uuid_for_a_name() {
        assert!(is_own(
            "s3://b/t/data/archived_at_day=2026-01-01/0194e1c0-0000-4000-8000-00000000000a.parquet"
        ));
        // version 7: another engine's
        assert!(!is_own(
            "s3://b/t/data/0194e1c0-0000-7000-8000-00000000000a.parquet"
        ));
        assert!(!is_own(
            "s3://b/t/data/00000-0-0194e1c0-0000-4000-8000-00000000000a-0-00001.parquet"
        ));
        assert!(!is_own(
            "s3://b/t/data/0194e1c0-0000-4000-8000-00000000000a.orc"
        ));
        assert!(!is_own("zzzzzzzz-0000-4000-8000-00000000000a.parquet"));
    }

    #[test]
    fn ranges_add_up_and_stay_exact_only_together() {
        let range = |low: i64, high: i64, nulls, exact| Range {
            bounds: Some((
                ScalarValue::Int64(Some(low)),
                ScalarValue::Int64(Some(high)),
            )),
            nulls,
            exact,
        };
        let sum = range(5, 9, Some(1), true).and(range(3, 4, Some(2), true));
        assert_eq!(sum, Some(range(3, 9, Some(3), true)));
        let sum = range(5, 9, Some(1), true).and(range(3, 10, None, false));
        assert_eq!(sum, Some(range(3, 10, None, false)));
        let empty = Range {
            bounds: None,
            nulls: Some(4),
            exact: true,
        };
        let sum = empty.and(range(1, 2, Some(0), true));
        assert_eq!(sum, Some(range(1, 2, Some(4), true)));
    }
}
