//! Bounds of a row group, from Parquet's own statistics.

use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;

use super::columns::Projection;
use crate::files::{FileBounds, RawBounds};
use crate::schema::Column;

/// None where there are no statistics for it; what contradicts itself is an error.
pub(super) fn of_row_group(
    row_group: &RowGroupMetaData,
    single: &dyn Fn(Column) -> Option<Projection>,
) -> Result<Option<FileBounds>, String> {
    let statistics = |column: Column| {
        let projection = single(column)?;
        let [leaf] = projection.leaves[..] else {
            return None;
        };
        row_group.columns().get(leaf)?.statistics()
    };
    let pair = |column: Column| match statistics(column)? {
        Statistics::Int32(s) => Some((i64::from(*s.min_opt()?), i64::from(*s.max_opt()?))),
        Statistics::Int64(s) => Some((*s.min_opt()?, *s.max_opt()?)),
        _ => None,
    };
    let (Some(generation), Some(partition), Some(offset)) = (
        pair(Column::Generation),
        pair(Column::Partition),
        pair(Column::Offset),
    ) else {
        return Ok(None);
    };
    let rows = u64::try_from(row_group.num_rows()).ok();
    let all_null = |column: Column| {
        single(column).is_none() || statistics(column).and_then(Statistics::null_count_opt) == rows
    };
    let timestamp_us = pair(Column::Timestamp);
    RawBounds {
        generation,
        partition,
        offset,
        timestamp_us,
        timestamps_known: (timestamp_us.is_some() || all_null(Column::Timestamp))
            && all_null(Column::TimestampRaw),
        archived_at_us: pair(Column::ArchivedAt),
    }
    .checked()
    .map(Some)
}
