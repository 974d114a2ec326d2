//! What a record is, as Arrow columns, loss-free in both directions.
//!
//! Hot paths move [`EventColumns`], never single events; [`EventRef`] is one row of it, borrowed.
//! Null and empty keys, values and header values stay distinct; headers keep order and duplicates; header keys are
//! bytes, since Kafka does not promise UTF-8 (H19).

use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, BinaryBuilder, Int8Builder, Int32Builder, Int64Builder};
use arrow_array::{
    Array, ArrayRef, BinaryArray, Int8Array, Int32Array, Int64Array, ListArray, StructArray,
};
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, Fields};
use twox_hash::XxHash3_64;

use crate::position::{Generation, Offset, OffsetRange, Partition, TopicName};

/// Kafka's timestamp types, by the numbers that the table stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimestampType {
    /// The record carries no timestamp (-1).
    None,
    /// Set by the producer (0).
    Create,
    /// Set by the broker on append (1).
    LogAppend,
}

impl TimestampType {
    /// The stored number.
    pub const fn code(self) -> i8 {
        match self {
            Self::None => -1,
            Self::Create => 0,
            Self::LogAppend => 1,
        }
    }

    /// The type that `code` stands for.
    pub const fn from_code(code: i8) -> Option<Self> {
        match code {
            -1 => Some(Self::None),
            0 => Some(Self::Create),
            1 => Some(Self::LogAppend),
            _ => None,
        }
    }
}

/// One header: its key, and its value, where null and empty differ.
pub type HeaderRef<'a> = (&'a [u8], Option<&'a [u8]>);

/// One record, borrowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRef<'a> {
    /// Kafka offset.
    pub offset: Offset,
    /// Kafka's milliseconds as they are in the log; meaningless where `timestamp_type` is none.
    pub timestamp_ms: i64,
    /// Where the timestamp comes from.
    pub timestamp_type: TimestampType,
    /// Null and empty differ.
    pub key: Option<&'a [u8]>,
    /// Null is a tombstone and differs from empty.
    pub value: Option<&'a [u8]>,
    /// In log order, duplicates kept.
    pub headers: Vec<HeaderRef<'a>>,
    /// Where the client reports it.
    pub leader_epoch: Option<i32>,
}

/// The running hash over one partition's records in offset order: XXH3-64 of the previous hash (8 bytes, little
/// endian) followed by the record's canonical bytes. It starts at 0.
#[derive(Debug, Clone)]
pub struct RunningHash {
    value: u64,
    scratch: Vec<u8>,
}

impl RunningHash {
    /// Goes on from `value` (0 at a partition's first record).
    pub const fn from(value: u64) -> Self {
        Self {
            value,
            scratch: Vec::new(),
        }
    }

    /// Takes in every row of `columns`, in order. The canonical bytes (docs/table-format.md, *Continuity hash*) are
    /// everything that the log itself fixes, so not the leader epoch, which not every client reports.
    pub fn update(&mut self, columns: &EventColumns) {
        // The archiver spends this on every record: the columns are read as they lie, not row by row as `EventRef`.
        let (offsets, timestamps) = (columns.offsets.values(), columns.timestamps.values());
        let kinds = columns.timestamp_types.values();
        let (keys, values) = (Cells::of(&columns.keys), Cells::of(&columns.values));
        let headers = Headers::of(&columns.headers);
        for (row, ((offset, timestamp), kind)) in
            offsets.iter().zip(timestamps).zip(kinds).enumerate()
        {
            let none = *kind == TimestampType::None.code();
            let timestamp = if none { -1 } else { *timestamp };
            let mut fixed = [0; 25];
            fixed[..8].copy_from_slice(&self.value.to_le_bytes());
            fixed[8..16].copy_from_slice(&offset.to_le_bytes());
            fixed[16..24].copy_from_slice(&timestamp.to_le_bytes());
            fixed[24] = kind.to_le_bytes()[0];
            self.scratch.clear();
            self.scratch.extend_from_slice(&fixed);
            put_bytes(&mut self.scratch, keys.get(row));
            put_bytes(&mut self.scratch, values.get(row));
            headers.put(row, &mut self.scratch);
            self.value = XxHash3_64::oneshot(&self.scratch);
        }
    }

    /// The hash so far.
    pub const fn value(&self) -> u64 {
        self.value
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => out.extend_from_slice(&(-1_i32).to_le_bytes()),
        Some(b) => {
            out.extend_from_slice(&i32::try_from(b.len()).unwrap_or(i32::MAX).to_le_bytes());
            out.extend_from_slice(b);
        }
    }
}

/// A binary column as it lies in memory.
struct Cells<'a> {
    offsets: &'a [i32],
    bytes: &'a [u8],
    nulls: Option<&'a NullBuffer>,
}

impl<'a> Cells<'a> {
    fn of(array: &'a BinaryArray) -> Self {
        Self {
            offsets: array.value_offsets(),
            bytes: array.value_data(),
            nulls: array.nulls(),
        }
    }

    fn get(&self, row: usize) -> Option<&'a [u8]> {
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        Some(&self.bytes[index(self.offsets[row])..index(self.offsets[row + 1])])
    }
}

/// A column of headers as it lies in memory.
struct Headers<'a> {
    offsets: &'a [i32],
    entries: Option<(Cells<'a>, Cells<'a>)>,
}

impl<'a> Headers<'a> {
    fn of(array: &'a ListArray) -> Self {
        let entries = array.values().as_any().downcast_ref::<StructArray>();
        let column = |c: usize| Some(Cells::of(entries?.column(c).as_any().downcast_ref()?));
        Self {
            offsets: array.value_offsets(),
            entries: column(0).zip(column(1)),
        }
    }

    fn put(&self, row: usize, out: &mut Vec<u8>) {
        let (from, to) = (self.offsets[row], self.offsets[row + 1]);
        out.extend_from_slice(&(to - from).to_le_bytes());
        let Some((keys, values)) = self.entries.as_ref().filter(|_| from < to) else {
            return;
        };
        for entry in index(from)..index(to) {
            put_bytes(out, keys.get(entry));
            put_bytes(out, values.get(entry));
        }
    }
}

/// Rows of one partition as Arrow columns, offsets strictly increasing.
#[derive(Debug, Clone)]
pub struct EventColumns {
    /// Kafka offsets.
    pub offsets: Int64Array,
    /// Milliseconds as in the log.
    pub timestamps: Int64Array,
    /// [`TimestampType::code`].
    pub timestamp_types: Int8Array,
    /// Keys.
    pub keys: BinaryArray,
    /// Values.
    pub values: BinaryArray,
    /// `list<struct<key: binary, value: binary nullable>>`, never null itself.
    pub headers: ListArray,
    /// Null where unknown.
    pub leader_epochs: Int32Array,
}

/// Bytes that a row costs besides its key, value and headers (offset, timestamp, type, epoch, list and value offsets).
pub const ROW_OVERHEAD_BYTES: usize = 40;

impl EventColumns {
    /// No rows.
    pub fn empty() -> Self {
        EventColumnsBuilder::new().finish()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the rows weigh in memory, by payload (a slice counts only its own rows).
    pub fn bytes(&self) -> usize {
        let header_rows = self.headers.value_offsets();
        let (from, to) = (index(header_rows[0]), index(header_rows[self.len()]));
        let entries = self.headers.values().as_any().downcast_ref::<StructArray>();
        let header_bytes = entries.map_or(0, |s| {
            (0..2)
                .filter_map(|c| s.column(c).as_any().downcast_ref::<BinaryArray>())
                .map(|a| span(a, from, to) + 8 * (to - from))
                .sum()
        });
        span(&self.keys, 0, self.len())
            + span(&self.values, 0, self.len())
            + header_bytes
            + ROW_OVERHEAD_BYTES * self.len()
    }

    /// First row's offset.
    pub fn first_offset(&self) -> Option<Offset> {
        self.offsets
            .values()
            .first()
            .and_then(|&o| Offset::new(o).ok())
    }

    /// Last row's offset.
    pub fn last_offset(&self) -> Option<Offset> {
        self.offsets
            .values()
            .last()
            .and_then(|&o| Offset::new(o).ok())
    }

    /// Rows `from..from + len`, without copying.
    pub fn slice(&self, from: usize, len: usize) -> Self {
        Self {
            offsets: self.offsets.slice(from, len),
            timestamps: self.timestamps.slice(from, len),
            timestamp_types: self.timestamp_types.slice(from, len),
            keys: self.keys.slice(from, len),
            values: self.values.slice(from, len),
            headers: self.headers.slice(from, len),
            leader_epochs: self.leader_epochs.slice(from, len),
        }
    }

    /// The rows whose offsets lie in `[start, end)`; needs increasing offsets. Without copying.
    pub fn slice_offsets(&self, start: Offset, end: Offset) -> Self {
        let offsets = self.offsets.values();
        let from = offsets.partition_point(|&o| o < start.get());
        let to = offsets.partition_point(|&o| o < end.get()).max(from);
        self.slice(from, to - from)
    }

    /// The columns in declaration order, for Arrow's kernels; [`EventColumns::from_arrays`] is the way back.
    pub fn arrays(&self) -> [ArrayRef; 7] {
        [
            Arc::new(self.offsets.clone()),
            Arc::new(self.timestamps.clone()),
            Arc::new(self.timestamp_types.clone()),
            Arc::new(self.keys.clone()),
            Arc::new(self.values.clone()),
            Arc::new(self.headers.clone()),
            Arc::new(self.leader_epochs.clone()),
        ]
    }

    /// Rebuilds columns from [`EventColumns::arrays`]' order and types.
    pub fn from_arrays(arrays: &[ArrayRef]) -> Result<Self, ArrowError> {
        fn cast<T: Clone + 'static>(arrays: &[ArrayRef], i: usize) -> Result<T, ArrowError> {
            arrays
                .get(i)
                .and_then(|a| a.as_any().downcast_ref::<T>())
                .cloned()
                .ok_or_else(|| {
                    ArrowError::SchemaError(format!("event column {i} has another type"))
                })
        }
        let columns = Self {
            offsets: cast(arrays, 0)?,
            timestamps: cast(arrays, 1)?,
            timestamp_types: cast(arrays, 2)?,
            keys: cast(arrays, 3)?,
            values: cast(arrays, 4)?,
            headers: cast(arrays, 5)?,
            leader_epochs: cast(arrays, 6)?,
        };
        let len = columns.offsets.len();
        if arrays.iter().any(|a| a.len() != len) {
            return Err(ArrowError::SchemaError(
                "event columns differ in length".to_owned(),
            ));
        }
        Ok(columns)
    }

    /// All rows of `parts`, one after the other (copies).
    pub fn concat(parts: &[Self]) -> Result<Self, ArrowError> {
        match parts {
            // arrow concatenates no empty list
            [] => return Ok(Self::empty()),
            [one] => return Ok(one.clone()),
            _ => {}
        }
        let split: Vec<[ArrayRef; 7]> = parts.iter().map(Self::arrays).collect();
        let joined: Vec<ArrayRef> = (0..7)
            .map(|c| {
                let column: Vec<&dyn Array> = split.iter().map(|p| p[c].as_ref()).collect();
                arrow_select::concat::concat(&column)
            })
            .collect::<Result<_, _>>()?;
        Self::from_arrays(&joined)
    }

    /// The rows at `indices`, in that order (copies).
    pub fn take(&self, indices: &arrow_array::UInt32Array) -> Result<Self, ArrowError> {
        let taken: Vec<ArrayRef> = self
            .arrays()
            .iter()
            .map(|a| arrow_select::take::take(a.as_ref(), indices, None))
            .collect::<Result<_, _>>()?;
        Self::from_arrays(&taken)
    }

    /// Row `i`; `i` must be below [`EventColumns::len`].
    pub fn row(&self, i: usize) -> EventRef<'_> {
        let headers = self.header_refs(i);
        EventRef {
            offset: Offset::new(self.offsets.value(i)).unwrap_or_default(),
            timestamp_ms: self.timestamps.value(i),
            timestamp_type: TimestampType::from_code(self.timestamp_types.value(i))
                .unwrap_or(TimestampType::None),
            key: self.keys.is_valid(i).then(|| self.keys.value(i)),
            value: self.values.is_valid(i).then(|| self.values.value(i)),
            headers,
            leader_epoch: self
                .leader_epochs
                .is_valid(i)
                .then(|| self.leader_epochs.value(i)),
        }
    }

    fn header_refs(&self, i: usize) -> Vec<HeaderRef<'_>> {
        let offsets = self.headers.value_offsets();
        let (from, to) = (index(offsets[i]), index(offsets[i + 1]));
        if from == to {
            return Vec::new();
        }
        let Some(entries) = self.headers.values().as_any().downcast_ref::<StructArray>() else {
            return Vec::new();
        };
        let column = |c: usize| entries.column(c).as_any().downcast_ref::<BinaryArray>();
        let (Some(keys), Some(values)) = (column(0), column(1)) else {
            return Vec::new();
        };
        (from..to)
            .map(|h| (keys.value(h), values.is_valid(h).then(|| values.value(h))))
            .collect()
    }
}

fn index(offset: i32) -> usize {
    usize::try_from(offset).unwrap_or(0)
}

fn span(array: &BinaryArray, from: usize, to: usize) -> usize {
    let offsets = array.value_offsets();
    index(offsets[to]) - index(offsets[from])
}

/// The Arrow fields of one header entry.
pub fn header_fields() -> Fields {
    Fields::from(vec![
        Field::new("key", DataType::Binary, false),
        Field::new("value", DataType::Binary, true),
    ])
}

/// Collects records into [`EventColumns`]. One call per record, no allocation per record.
#[derive(Debug)]
pub struct EventColumnsBuilder {
    offsets: Int64Builder,
    timestamps: Int64Builder,
    timestamp_types: Int8Builder,
    keys: BinaryBuilder,
    values: BinaryBuilder,
    header_ends: Vec<i32>,
    header_keys: BinaryBuilder,
    header_values: BinaryBuilder,
    leader_epochs: Int32Builder,
    payload_bytes: usize,
    expected: Expected,
}

/// How much comes, about: memory is taken for it with the first record, instead of ever more as they come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Expected {
    rows: usize,
    key_bytes: usize,
    value_bytes: usize,
}

impl Default for EventColumnsBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl EventColumnsBuilder {
    /// One batch may hold so many payload bytes; a record that would pass it starts the next batch. Far below what
    /// 32-bit Arrow offsets can address, so that even a record of the largest size Kafka allows fits beside it.
    pub const BATCH_BYTES_MAX: usize = 512 << 20;

    /// An empty builder; it allocates with the first record.
    pub fn new() -> Self {
        Self {
            offsets: Int64Builder::with_capacity(0),
            timestamps: Int64Builder::with_capacity(0),
            timestamp_types: Int8Builder::with_capacity(0),
            keys: BinaryBuilder::with_capacity(0, 0),
            values: BinaryBuilder::with_capacity(0, 0),
            header_ends: Vec::new(),
            header_keys: BinaryBuilder::with_capacity(0, 0),
            header_values: BinaryBuilder::with_capacity(0, 0),
            leader_epochs: Int32Builder::with_capacity(0),
            payload_bytes: 0,
            expected: Expected::default(),
        }
    }

    /// The next rows will be as many and as large as these, about.
    pub fn expect_like(&mut self, columns: &EventColumns) {
        let rows = columns.len();
        self.expected = Expected {
            rows,
            key_bytes: span(&columns.keys, 0, rows),
            value_bytes: span(&columns.values, 0, rows),
        };
    }

    #[cold]
    fn begin(&mut self) {
        let Expected {
            rows,
            key_bytes,
            value_bytes,
        } = std::mem::take(&mut self.expected);
        self.offsets = Int64Builder::with_capacity(rows);
        self.timestamps = Int64Builder::with_capacity(rows);
        self.timestamp_types = Int8Builder::with_capacity(rows);
        self.keys = BinaryBuilder::with_capacity(rows, key_bytes);
        self.values = BinaryBuilder::with_capacity(rows, value_bytes);
        self.header_ends = Vec::with_capacity(rows);
        self.leader_epochs = Int32Builder::with_capacity(rows);
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.header_ends.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.header_ends.is_empty()
    }

    /// Memory of the rows so far, as [`EventColumns::bytes`] will count it.
    pub fn bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Appends one record. Offsets must increase from call to call.
    pub fn push<'a>(
        &mut self,
        offset: Offset,
        (timestamp_ms, timestamp_type): (i64, TimestampType),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl Iterator<Item = HeaderRef<'a>>,
        leader_epoch: Option<i32>,
    ) {
        if self.expected.rows > 0 && self.is_empty() {
            self.begin();
        }
        self.offsets.append_value(offset.get());
        self.timestamps.append_value(timestamp_ms);
        self.timestamp_types.append_value(timestamp_type.code());
        self.keys.append_option(key);
        self.values.append_option(value);
        let mut bytes =
            ROW_OVERHEAD_BYTES + key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        for (name, content) in headers {
            self.header_keys.append_value(name);
            self.header_values.append_option(content);
            bytes += name.len() + content.map_or(0, <[u8]>::len) + 16;
        }
        self.header_ends
            .push(i32::try_from(self.header_keys.len()).unwrap_or(i32::MAX));
        self.leader_epochs.append_option(leader_epoch);
        self.payload_bytes += bytes;
    }

    /// Appends `event`.
    pub fn push_event(&mut self, event: &EventRef<'_>) {
        self.push(
            event.offset,
            (event.timestamp_ms, event.timestamp_type),
            event.key,
            event.value,
            event.headers.iter().copied(),
            event.leader_epoch,
        );
    }

    /// The rows so far; the builder is empty afterwards. The columns take no more memory than they need: what a builder
    /// reserved while it grew, up to as much again, would be held as long as the rows are.
    pub fn finish(&mut self) -> EventColumns {
        self.payload_bytes = 0;
        let mut bounds = Vec::with_capacity(self.header_ends.len() + 1);
        bounds.push(0);
        bounds.append(&mut self.header_ends);
        let entries = StructArray::new(
            header_fields(),
            vec![
                Arc::new(shrunk(self.header_keys.finish())),
                Arc::new(shrunk(self.header_values.finish())),
            ],
            None,
        );
        let item = Arc::new(Field::new(
            "element",
            DataType::Struct(header_fields()),
            false,
        ));
        EventColumns {
            offsets: shrunk(self.offsets.finish()),
            timestamps: shrunk(self.timestamps.finish()),
            timestamp_types: shrunk(self.timestamp_types.finish()),
            keys: shrunk(self.keys.finish()),
            values: shrunk(self.values.finish()),
            headers: ListArray::new(
                item,
                OffsetBuffer::new(ScalarBuffer::from(bounds)),
                Arc::new(entries),
                None,
            ),
            leader_epochs: shrunk(self.leader_epochs.finish()),
        }
    }
}

fn shrunk<A: Array>(mut column: A) -> A {
    column.shrink_to_fit();
    column
}

/// Where an event was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// From the Iceberg table.
    Archive,
    /// From Kafka.
    Live,
}

/// A run of events of one partition: what processor, gateway and command line consume.
#[derive(Debug, Clone)]
pub struct EventBatch {
    /// The topic.
    pub topic: TopicName,
    /// The topic's era.
    pub generation: Generation,
    /// The partition.
    pub partition: Partition,
    /// What the batch covers: every offset in it that is not among the rows is not in the log for a reader of the
    /// recorded isolation. `range.end()` is the position after the batch.
    pub range: OffsetRange,
    /// The rows; may be none, where only the position moves.
    pub columns: EventColumns,
    /// The tier it was read from.
    pub source: Source,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (
        i64,
        i8,
        Option<Vec<u8>>,
        Option<Vec<u8>>,
        Vec<(Vec<u8>, Option<Vec<u8>>)>,
        Option<i32>,
    );

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..20)
    }

    fn record() -> impl Strategy<Value = Owned> {
        (
            any::<i64>(),
            -1_i8..=1,
            prop::option::of(bytes()),
            prop::option::of(bytes()),
            prop::collection::vec((bytes(), prop::option::of(bytes())), 0..4),
            prop::option::of(0_i32..100),
        )
    }

    fn build(records: &[Owned]) -> EventColumns {
        let mut b = EventColumnsBuilder::new();
        for (i, (ts, kind, key, value, headers, epoch)) in records.iter().enumerate() {
            b.push(
                Offset::new(i as i64 * 3).unwrap(),
                (*ts, TimestampType::from_code(*kind).unwrap()),
                key.as_deref(),
                value.as_deref(),
                headers.iter().map(|(k, v)| (k.as_slice(), v.as_deref())),
                *epoch,
            );
        }
        let expected = b.bytes();
        let columns = b.finish();
        assert_eq!(columns.bytes(), expected);
        assert!(b.is_empty() && b.bytes() == 0);
        columns
    }

    #[test]
    fn nothing_concatenated_is_nothing() {
        let nothing = EventColumns::concat(&[]).unwrap();
        assert_eq!(nothing.len(), 0);
    }

    #[test]
    fn finished_columns_hold_no_more_than_their_rows_need() {
        let mut b = EventColumnsBuilder::new();
        let value = [7_u8; 1_000];
        for offset in 0..1_100 {
            b.push(
                Offset::new(offset).unwrap(),
                (0, TimestampType::Create),
                None,
                Some(&value),
                std::iter::empty(),
                None,
            );
        }
        let columns = b.finish();
        let held = columns.values.get_buffer_memory_size();
        assert!(held < columns.bytes() + 10_000, "{held} bytes held");
    }

    /// The canonical bytes as docs/table-format.md writes them down, field by field.
    fn canonical_bytes(row: &EventRef<'_>) -> Vec<u8> {
        fn put(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
            let len = bytes.map_or(-1, |b| i32::try_from(b.len()).unwrap());
            out.extend(len.to_le_bytes());
            out.extend(bytes.unwrap_or_default());
        }
        let known = row.timestamp_type != TimestampType::None;
        let timestamp = if known { row.timestamp_ms } else { -1 };
        let mut out = [row.offset.get().to_le_bytes(), timestamp.to_le_bytes()].concat();
        out.extend(row.timestamp_type.code().to_le_bytes());
        put(&mut out, row.key);
        put(&mut out, row.value);
        out.extend(u32::try_from(row.headers.len()).unwrap().to_le_bytes());
        for (key, value) in &row.headers {
            put(&mut out, Some(key));
            put(&mut out, *value);
        }
        out
    }

    proptest! {
        /// The hash that the archiver computes is the one that is specified.
        #[test]
        fn running_hash_is_that_of_the_canonical_bytes(
            records in prop::collection::vec(record(), 0..40), from in 0_usize..40,
        ) {
            let columns = build(&records);
            let from = from.min(columns.len());
            let columns = columns.slice(from, columns.len() - from);
            let mut expected = 0_u64;
            for row in 0..columns.len() {
                let bytes = [&expected.to_le_bytes()[..], &canonical_bytes(&columns.row(row))].concat();
                expected = XxHash3_64::oneshot(&bytes);
            }
            let mut hash = RunningHash::from(0);
            hash.update(&columns);
            prop_assert_eq!(hash.value(), expected);
        }

        /// h19: null, empty, duplicate, unordered and non-UTF-8 parts come out as they went in.
        #[test]
        fn h19_columns_keep_every_record_bit_for_bit(records in prop::collection::vec(record(), 0..40)) {
            let columns = build(&records);
            prop_assert_eq!(columns.len(), records.len());
            for (i, (ts, kind, key, value, headers, epoch)) in records.iter().enumerate() {
                let row = columns.row(i);
                prop_assert_eq!(row.timestamp_ms, *ts);
                prop_assert_eq!(row.timestamp_type.code(), *kind);
                prop_assert_eq!(row.key, key.as_deref());
                prop_assert_eq!(row.value, value.as_deref());
                prop_assert_eq!(row.leader_epoch, *epoch);
                let expected: Vec<HeaderRef<'_>> =
                    headers.iter().map(|(k, v)| (k.as_slice(), v.as_deref())).collect();
                prop_assert_eq!(row.headers, expected);
            }
        }

        /// However a run is cut into batches, the running hash ends the same; any changed record changes it.
        #[test]
        fn running_hash_does_not_depend_on_batch_borders(
            records in prop::collection::vec(record(), 1..40), cut in 0_usize..40, touched in 0_usize..40,
        ) {
            let columns = build(&records);
            let cut = cut.min(columns.len());
            let mut whole = RunningHash::from(0);
            whole.update(&columns);
            let mut parts = RunningHash::from(0);
            parts.update(&columns.slice(0, cut));
            parts.update(&columns.slice(cut, columns.len() - cut));
            prop_assert_eq!(whole.value(), parts.value());

            let mut changed = records.clone();
            let touched = touched % changed.len();
            changed[touched].3 = match changed[touched].3.take() { None => Some(vec![]), Some(_) => None };
            let mut other = RunningHash::from(0);
            other.update(&build(&changed));
            prop_assert_ne!(whole.value(), other.value());
        }

        #[test]
        fn slices_concat_back(records in prop::collection::vec(record(), 0..30), cut in 0_usize..30) {
            let columns = build(&records);
            let cut = cut.min(columns.len());
            let (a, b) = (columns.slice(0, cut), columns.slice(cut, columns.len() - cut));
            prop_assert_eq!(a.bytes() + b.bytes(), columns.bytes());
            let joined = EventColumns::concat(&[a, b]).unwrap();
            let (mut x, mut y) = (RunningHash::from(0), RunningHash::from(0));
            x.update(&columns);
            y.update(&joined);
            prop_assert_eq!(x.value(), y.value());
        }
    }

    #[test]
    fn slice_by_offsets_takes_exactly_the_range() {
        let columns = build(&vec![(0, 0, None, None, vec![], None); 5]); // offsets 0 3 6 9 12
        let cut = |a, b| {
            let s = columns.slice_offsets(Offset::new(a).unwrap(), Offset::new(b).unwrap());
            s.offsets.values().to_vec()
        };
        assert_eq!(cut(3, 9), vec![3, 6]);
        assert_eq!(cut(4, 10), vec![6, 9]);
        assert_eq!(cut(13, 20), Vec::<i64>::new());
    }
}
