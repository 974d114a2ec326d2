//! An epoch: everything that changed since the one before, as one durable unit, and its form as a file.
//!
//! ```text
//! "everlogE" | header length u32 | header, JSON | checksum of all before u64 | sections | checksum of all before u64
//! ```
//!
//! - Numbers are little-endian; checksums are XXH3-64. The header can be read and verified alone, and so can the progress,
//!   whose checksum is in the header (from form 2 on; files of form 1 are read as well).
//! - Sections, with their lengths in the header: changes, progress, rows, late, dead. Each is an Arrow IPC stream whose
//!   buffers are zstd-compressed; an empty one has no bytes.
//! - Changes are rows of (space: uint8, key: large binary, value: large binary, null: removed), in order.
//! - The file is read strictly: another form, a wrong checksum or an unknown key is an error, never a guess.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow_array::builder::{LargeBinaryBuilder, UInt8Builder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::UInt8Type;
use arrow_array::{Array as _, ArrayRef, RecordBatch};
use arrow_ipc::CompressionType;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use everlog_common::{Partition, Position, Positions};
use everlog_engine::Space;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;
use uuid::Uuid;

use super::changes::Changes;

const MAGIC: &[u8; 8] = b"everlogE";
/// The form of the files. Form 1, which has no checksum of the progress alone, is read too; others are refused.
const FORMAT: u32 = 2;
/// The first form with it.
const FORMAT_PROGRESS_CHECKSUM: u32 = 2;
/// Rows of changes that are encoded at a time: bounds what is held twice.
const CHANGES_PER_BATCH: usize = 8_192;
/// A header is never longer.
const HEADER_BYTES_MAX: usize = 64 << 20;

/// A job and its version. They name state, outputs and transactional ids; no version touches another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId {
    /// The job.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl JobId {
    /// Checks that both can be part of a path, a topic's name and a key: 1 to 100 characters of `[A-Za-z0-9._-]`, no dot first.
    pub fn new(name: &str, version: &str) -> Result<Self, String> {
        for (what, text) in [("name", name), ("version", version)] {
            let fine = (1..=100).contains(&text.len())
                && !text.starts_with('.')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if !fine {
                return Err(format!(
                    "job.{what} {text:?}: not 1 to 100 characters of [A-Za-z0-9._-] with no dot first"
                ));
            }
        }
        Ok(Self {
            name: name.to_owned(),
            version: version.to_owned(),
        })
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.name, self.version)
    }
}

/// Rows so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// The query's rows.
    pub rows: u64,
    /// Late records.
    pub late: u64,
    /// Dead letters.
    pub dead: u64,
}

/// Everything that changed since the epoch before.
#[derive(Debug, Clone)]
pub struct Epoch {
    /// Counts from 1 without a hole.
    pub number: u64,
    /// Whose it is.
    pub job: JobId,
    /// Of the query: state of another one is refused.
    pub fingerprint: u64,
    /// What computed it: state of another one is refused.
    pub engine: String,
    /// Changed keys; a removed one has no value.
    pub changes: Arc<Changes>,
    /// The engine's progress, as JSON: watermarks, decisions, counters. Empty before there is any.
    pub progress: Vec<u8>,
    /// Where the job is in its source.
    pub positions: Positions,
    /// Rows of the query before this epoch.
    pub rows_before: u64,
    /// Late records before it.
    pub late_before: u64,
    /// Dead letters before it.
    pub dead_before: u64,
    /// The query's rows.
    pub rows: RecordBatch,
    /// Records that came too late.
    pub late: RecordBatch,
    /// Dead letters.
    pub dead: RecordBatch,
}

impl Epoch {
    /// Rows before it.
    pub fn before(&self) -> Counts {
        Counts {
            rows: self.rows_before,
            late: self.late_before,
            dead: self.dead_before,
        }
    }

    /// Rows after it.
    pub fn after(&self) -> Counts {
        Counts {
            rows: self.rows_before + self.rows.num_rows() as u64,
            late: self.late_before + self.late.num_rows() as u64,
            dead: self.dead_before + self.dead.num_rows() as u64,
        }
    }
}

/// What an epoch's file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    format: u32,
    /// Its number.
    pub epoch: u64,
    /// The job.
    pub job: String,
    /// Its version.
    pub version: String,
    /// Of the query.
    #[serde(with = "hexadecimal")]
    pub fingerprint: u64,
    /// What computed it.
    pub engine: String,
    /// Drawn by the process that began the job; the same in all its epochs.
    pub chain: Uuid,
    /// Drawn by the process that wrote the file.
    pub writer: Uuid,
    /// Who wrote the epoch before: a file that does not follow on it is no part of the job.
    pub parent: Uuid,
    /// Whether it changes nothing and only takes the job over from an earlier process.
    pub takes_over: bool,
    /// Rows before it.
    pub before: Counts,
    /// Rows after it.
    pub after: Counts,
    /// Where the job is after it.
    #[serde(with = "positions")]
    pub positions: Positions,
    /// Changed keys.
    pub changes: u64,
    sections: Sections,
    /// Of the section of the progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress_checksum: Option<String>,
}

impl Header {
    /// Where in the file the progress is, if it can be verified alone; `extent` is the header's.
    pub(super) fn progress_range(&self, extent: usize) -> Option<std::ops::Range<u64>> {
        self.progress_checksum.as_ref()?;
        let start = (extent as u64).checked_add(self.sections.changes)?;
        Some(start..start.checked_add(self.sections.progress)?)
    }

    /// The progress, of its section alone.
    pub(super) fn progress(&self, section: &[u8]) -> Result<Vec<u8>, Broken> {
        if self.progress_checksum.as_ref() != Some(&checksum(section)) {
            return Err(Broken::is(
                "the checksum of its progress is wrong: it is damaged",
            ));
        }
        read_bytes(section)
    }
}

fn checksum(section: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(section))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    changes: u64,
    progress: u64,
    rows: u64,
    late: u64,
    dead: u64,
}

impl Sections {
    fn all(self) -> [u64; 5] {
        [self.changes, self.progress, self.rows, self.late, self.dead]
    }
}

/// JSON numbers of 64 bits are not safe with every reader.
mod hexadecimal {
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
    pub(super) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

/// Positions with partitions as text keys.
pub(crate) mod positions {
    use super::{BTreeMap, Deserialize as _, Partition, Position, Positions};
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Positions, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(value.iter().map(|(p, position)| (p.to_string(), position)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Positions, D::Error> {
        let stored = BTreeMap::<String, Position>::deserialize(from)?;
        let parsed = stored.into_iter().map(|(key, position)| {
            let partition = key.parse::<i32>().ok().and_then(|p| Partition::new(p).ok());
            let partition = partition.filter(|p| p.to_string() == key);
            let wrong = || serde::de::Error::custom(format!("{key:?} is not a partition"));
            Ok((partition.ok_or_else(wrong)?, position))
        });
        parsed.collect()
    }
}

/// Who writes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Writer {
    pub(super) chain: Uuid,
    pub(super) writer: Uuid,
    pub(super) parent: Uuid,
    pub(super) takes_over: bool,
}

/// The file of an epoch.
pub(super) fn encode(epoch: &Epoch, writer: Writer) -> Result<Vec<u8>, ArrowError> {
    let (mut body, mut progress) = (Vec::new(), Vec::new());
    write_bytes(&epoch.progress, &mut progress)?;
    let progress_checksum = Some(checksum(&progress));
    let sections = Sections {
        changes: append(&mut body, |out| write_changes(epoch.changes.iter(), out))?,
        progress: append(&mut body, |out| {
            out.append(&mut progress);
            Ok(())
        })?,
        rows: append(&mut body, |out| write_batch(&epoch.rows, out))?,
        late: append(&mut body, |out| write_batch(&epoch.late, out))?,
        dead: append(&mut body, |out| write_batch(&epoch.dead, out))?,
    };
    let header = Header {
        format: FORMAT,
        epoch: epoch.number,
        job: epoch.job.name.clone(),
        version: epoch.job.version.clone(),
        fingerprint: epoch.fingerprint,
        engine: epoch.engine.clone(),
        chain: writer.chain,
        writer: writer.writer,
        parent: writer.parent,
        takes_over: writer.takes_over,
        before: epoch.before(),
        after: epoch.after(),
        positions: epoch.positions.clone(),
        changes: epoch.changes.len() as u64,
        sections,
        progress_checksum,
    };
    let header = serde_json::to_vec(&header).map_err(|e| ArrowError::ExternalError(Box::new(e)))?;
    let header_bytes =
        u32::try_from(header.len()).map_err(|e| ArrowError::ExternalError(Box::new(e)))?;
    let mut file = Vec::with_capacity(header.len() + body.len() + 28);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&header_bytes.to_le_bytes());
    file.extend_from_slice(&header);
    let sum = XxHash3_64::oneshot(&file);
    file.extend_from_slice(&sum.to_le_bytes());
    file.append(&mut body);
    let sum = XxHash3_64::oneshot(&file);
    file.extend_from_slice(&sum.to_le_bytes());
    Ok(file)
}

fn append(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), ArrowError>,
) -> Result<u64, ArrowError> {
    let from = out.len();
    write(out)?;
    Ok((out.len() - from) as u64)
}

fn options() -> Result<IpcWriteOptions, ArrowError> {
    IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD))
}

fn changes_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("space", DataType::UInt8, false),
        Field::new("key", DataType::LargeBinary, false),
        Field::new("value", DataType::LargeBinary, true),
    ]))
}

/// Changes as an IPC stream; nothing for none.
pub(super) fn write_changes<'a>(
    changes: impl Iterator<Item = (Space, &'a Vec<u8>, Option<&'a Vec<u8>>)>,
    out: &mut Vec<u8>,
) -> Result<(), ArrowError> {
    let mut changes = changes.peekable();
    if changes.peek().is_none() {
        return Ok(());
    }
    let schema = changes_schema();
    let mut writer = StreamWriter::try_new_with_options(out, &schema, options()?)?;
    while changes.peek().is_some() {
        let mut spaces = UInt8Builder::new();
        let mut keys = LargeBinaryBuilder::new();
        let mut values = LargeBinaryBuilder::new();
        for (space, key, value) in changes.by_ref().take(CHANGES_PER_BATCH) {
            spaces.append_value(space as u8);
            keys.append_value(key);
            values.append_option(value);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(spaces.finish()),
            Arc::new(keys.finish()),
            Arc::new(values.finish()),
        ];
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
    }
    writer.finish()
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ArrowError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let schema = Schema::new(vec![Field::new("bytes", DataType::LargeBinary, false)]);
    let mut column = LargeBinaryBuilder::new();
    column.append_value(bytes);
    write_batch(
        &RecordBatch::try_new(Arc::new(schema), vec![Arc::new(column.finish())])?,
        out,
    )
}

fn write_batch(batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    if batch.num_rows() == 0 {
        return Ok(());
    }
    let mut writer = StreamWriter::try_new_with_options(out, &batch.schema(), options()?)?;
    writer.write(batch)?;
    writer.finish()
}

/// Why a file is not an epoch's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken(pub(super) String);

impl Broken {
    fn is(what: impl fmt::Display) -> Self {
        Self(what.to_string())
    }
}

/// How many bytes the header takes with all that is around it, from the first twelve; `None`: fewer were given.
pub(super) fn header_extent(file: &[u8]) -> Result<Option<usize>, Broken> {
    let Some((magic, rest)) = file.split_first_chunk::<8>() else {
        return Ok(None);
    };
    if magic != MAGIC {
        return Err(Broken::is("it is not an epoch's file"));
    }
    let Some((length, _)) = rest.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > HEADER_BYTES_MAX {
        return Err(Broken::is("its header is damaged"));
    }
    Ok(Some(MAGIC.len() + 4 + length + 8))
}

/// The header, verified.
pub(super) fn decode_header(file: &[u8]) -> Result<(Header, usize), Broken> {
    #[derive(Deserialize)]
    struct Form {
        format: u32,
    }
    let cut = || Broken::is("it is cut off");
    let extent = header_extent(file)?.ok_or_else(cut)?;
    let whole = file.get(..extent).ok_or_else(cut)?;
    let text = checked(whole)?.get(12..).ok_or_else(cut)?;
    let broken = |e: serde_json::Error| Broken::is(format_args!("its header cannot be read ({e})"));
    let Form { format } = serde_json::from_slice(text).map_err(broken)?;
    if !(1..=FORMAT).contains(&format) {
        return Err(Broken::is(format_args!(
            "it has form {format}, this everlog reads forms 1 to {FORMAT}"
        )));
    }
    let header: Header = serde_json::from_slice(text).map_err(broken)?;
    if header.progress_checksum.is_some() != (format >= FORMAT_PROGRESS_CHECKSUM) {
        return Err(Broken::is("its header is not of its form"));
    }
    Ok((header, extent))
}

/// What comes before the checksum, if that is right.
fn checked(bytes: &[u8]) -> Result<&[u8], Broken> {
    let (content, sum) = bytes
        .split_last_chunk::<8>()
        .ok_or_else(|| Broken::is("it is cut off"))?;
    if XxHash3_64::oneshot(content) == u64::from_le_bytes(*sum) {
        Ok(content)
    } else {
        Err(Broken::is("its checksum is wrong: it is damaged"))
    }
}

/// The whole epoch, verified.
pub(super) fn decode(file: &[u8]) -> Result<(Header, Epoch), Broken> {
    let content = checked(file)?;
    let (header, extent) = decode_header(file)?;
    let mut rest = content
        .get(extent..)
        .ok_or_else(|| Broken::is("it is cut off"))?;
    let mut sections = [[].as_slice(); 5];
    for (section, length) in sections.iter_mut().zip(header.sections.all()) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        (*section, rest) = rest
            .split_at_checked(length)
            .ok_or_else(|| Broken::is("its sections are longer than it is"))?;
    }
    if !rest.is_empty() {
        return Err(Broken::is("it has more bytes than sections"));
    }
    let [changes, progress, rows, late, dead] = sections;
    let mut all = Changes::default();
    read_changes(changes, |space, key, value| {
        all.set(space, key.to_vec(), value.map(<[u8]>::to_vec));
    })?;
    let epoch = Epoch {
        number: header.epoch,
        job: JobId {
            name: header.job.clone(),
            version: header.version.clone(),
        },
        fingerprint: header.fingerprint,
        engine: header.engine.clone(),
        changes: Arc::new(all),
        progress: read_bytes(progress)?,
        positions: header.positions.clone(),
        rows_before: header.before.rows,
        late_before: header.before.late,
        dead_before: header.before.dead,
        rows: read_batch(rows)?,
        late: read_batch(late)?,
        dead: read_batch(dead)?,
    };
    if epoch.after() != header.after || epoch.changes.len() as u64 != header.changes {
        return Err(Broken::is("its header counts other rows than it holds"));
    }
    Ok((header, epoch))
}

fn unreadable(error: ArrowError) -> Broken {
    Broken::is(format_args!("it cannot be read ({error})"))
}

/// Hands each change of an IPC stream over, in the order in which they were written.
pub(super) fn read_changes(
    stream: &[u8],
    mut each: impl FnMut(Space, &[u8], Option<&[u8]>),
) -> Result<(), Broken> {
    if stream.is_empty() {
        return Ok(());
    }
    let reader = StreamReader::try_new(stream, None).map_err(unreadable)?;
    if reader.schema() != changes_schema() {
        return Err(Broken::is("its changes have another form"));
    }
    for batch in reader {
        let batch = batch.map_err(unreadable)?;
        let spaces = batch.column(0).as_primitive::<UInt8Type>();
        let keys = batch.column(1).as_binary::<i64>();
        let values = batch.column(2).as_binary::<i64>();
        for row in 0..batch.num_rows() {
            let space = Space::ALL.get(usize::from(spaces.value(row)));
            let space = *space.ok_or_else(|| Broken::is("it has an unknown space"))?;
            let value = values.is_valid(row).then(|| values.value(row));
            each(space, keys.value(row), value);
        }
    }
    Ok(())
}

fn read_bytes(stream: &[u8]) -> Result<Vec<u8>, Broken> {
    let batch = read_batch(stream)?;
    if batch.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let column = batch
        .columns()
        .first()
        .and_then(|c| c.as_binary_opt::<i64>());
    let column = column.ok_or_else(|| Broken::is("its progress has another form"))?;
    Ok(column.value(0).to_vec())
}

/// The one batch of a stream; without columns where there are no rows.
fn read_batch(stream: &[u8]) -> Result<RecordBatch, Broken> {
    if stream.is_empty() {
        return Ok(RecordBatch::new_empty(Arc::new(Schema::empty())));
    }
    let mut reader = StreamReader::try_new(stream, None).map_err(unreadable)?;
    let batch = reader
        .next()
        .ok_or_else(|| Broken::is("rows are missing"))?;
    batch.map_err(unreadable)
}

/// No rows.
pub fn no_rows() -> RecordBatch {
    RecordBatch::new_empty(Arc::new(Schema::empty()))
}
