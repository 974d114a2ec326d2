//! What manifests and footers say, in the planner's words.

use everlog_common::{Generation, OffsetRange, Partition};
use everlog_table::files::{FileBounds, FileRange, PlannedFile};
use everlog_table::scan::{FileFooter, RowGroupInfo};

use super::planner::{Extent, FileFacts, GroupFacts, Hint};

/// Arrow's own cost per row beside the values, about.
const ROW_BYTES: u64 = 40;

/// A file, unless it cannot hold what is looked for.
pub(super) fn of_file(
    number: usize,
    file: &PlannedFile,
    generation: Generation,
    only_from: Option<i64>,
) -> Option<FileFacts> {
    if file.rows == 0 {
        return None;
    }
    let extent = match &file.bounds {
        None => Extent::Unknown,
        Some(bounds) => of_bounds(bounds, generation, only_from)?,
    };
    Some(FileFacts {
        file: number,
        hint: hint(file.bounds.as_ref(), file.sequence_number, &extent),
        extent,
    })
}

/// The row groups of a file that may hold what is looked for.
pub(super) fn of_groups(
    file: &PlannedFile,
    footer: &FileFooter,
    generation: Generation,
    only_from: Option<i64>,
) -> Vec<GroupFacts> {
    // What the file says of its ranges counts only if it tells of every row.
    let ranges = footer
        .ranges
        .as_deref()
        .filter(|r| r.iter().map(|r| r.rows).sum::<u64>() == file.rows);
    let groups = footer.row_groups.iter().filter(|g| g.rows > 0);
    groups
        .filter_map(|group| of_group(file, group, ranges, generation, only_from))
        .collect()
}

fn of_group(
    file: &PlannedFile,
    group: &RowGroupInfo,
    ranges: Option<&[FileRange]>,
    generation: Generation,
    only_from: Option<i64>,
) -> Option<GroupFacts> {
    let extent = match &group.bounds {
        None => ranges.map_or(Extent::Unknown, |r| of_ranges(r, generation, None)),
        Some(bounds) => {
            let within = of_bounds(bounds, generation, only_from)?;
            match ranges.map(|r| of_ranges(r, generation, Some(bounds))) {
                // Ranges that leave nothing contradict the bounds: believe the wider statement.
                Some(Extent::Ranges(exact)) if !exact.is_empty() => Extent::Ranges(exact),
                _ => within,
            }
        }
    };
    // what was fetched is there until the last row is decoded
    let bytes = group
        .compressed_bytes
        .saturating_add(group.uncompressed_bytes)
        .saturating_add(ROW_BYTES.saturating_mul(group.rows));
    Some(GroupFacts {
        row_group: group.index,
        bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        hint: hint(group.bounds.as_ref(), file.sequence_number, &extent),
        extent,
    })
}

fn of_bounds(
    bounds: &FileBounds,
    generation: Generation,
    only_from: Option<i64>,
) -> Option<Extent> {
    let in_generation = bounds.generation.0 <= generation && generation <= bounds.generation.1;
    let in_time = only_from.is_none_or(|at| bounds.may_hold_timestamp_from(at));
    (in_generation && in_time).then_some(Extent::Bounds {
        partitions: bounds.partition,
        offsets: bounds.offset,
    })
}

fn of_ranges(ranges: &[FileRange], generation: Generation, bounds: Option<&FileBounds>) -> Extent {
    let within = |partition: Partition, range: OffsetRange| {
        let Some(bounds) = bounds else {
            return Some(range);
        };
        if partition < bounds.partition.0 || bounds.partition.1 < partition {
            return None;
        }
        let span = OffsetRange::new(bounds.offset.0, bounds.offset.1.next()).ok()?;
        range.intersection(span)
    };
    Extent::Ranges(
        ranges
            .iter()
            .filter(|r| r.generation == generation && r.rows > 0)
            .filter_map(|r| Some((r.partition, within(r.partition, r.range)?)))
            .collect(),
    )
}

fn hint(bounds: Option<&FileBounds>, sequence: i64, extent: &Extent) -> Hint {
    Hint {
        archived_at: bounds
            .and_then(|b| b.archived_at_us)
            .map_or(i64::MIN, |(low, _)| low),
        sequence,
        lowest: extent.lowest(),
    }
}

/// What a file holds, for people.
pub(crate) fn describe(file: &PlannedFile) -> String {
    let rows = file.rows;
    match &file.bounds {
        None => format!("{rows} rows of unknown offsets"),
        Some(b) => {
            let partitions = if b.partition.0 == b.partition.1 {
                format!("partition {}", b.partition.0)
            } else {
                format!("partitions {} to {}", b.partition.0, b.partition.1)
            };
            format!(
                "{rows} rows of {partitions}, offsets [{}, {}]",
                b.offset.0, b.offset.1
            )
        }
    }
}
