//! How DataFusion's Parquet source gets at a table's files: through the table's own storage, checked like a replay's.
//!
//! * Footers are checked (their seal, their size, where they point, rows and bounds against the manifest) and remembered.
//! * Column chunks of files that everlog wrote are held against their checksums before anything is decoded.
//! * The page index is never read: it is the one part of a file that no checksum covers, and a flipped bit in it would make
//!   rows of a filtered query disappear. Row groups are pruned by the footer, which is sealed.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use datafusion::common::{DataFusionError, Result as PlanResult};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use everlog_table::files::PlannedFile;
use everlog_table::scan::{self, PlainFooter, ScanError};
use everlog_table::storage::Storage;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::ARROW_SCHEMA_META_KEY;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::basic::{LogicalType, Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaData, ParquetMetaDataBuilder, RowGroupMetaData,
};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::Progress;

/// Footers that are remembered between queries: a few megabytes of them.
const FOOTERS_MAX: usize = 1024;

/// The footers that a session has read. Files never change, so they stay right.
#[derive(Debug, Default)]
pub(crate) struct Footers {
    inner: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    by_path: HashMap<String, Arc<Checked>>,
    order: VecDeque<String>,
}

/// A footer that was checked.
#[derive(Debug)]
struct Checked {
    parquet: Arc<ParquetMetaData>,
    /// Start of each column chunk → its length and checksum; none where another engine wrote the file.
    chunks: Option<HashMap<u64, (u64, u64)>>,
}

impl Footers {
    fn get(&self, path: &str) -> Option<Arc<Checked>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.by_path.get(path).cloned()
    }

    fn put(&self, path: &str, footer: Arc<Checked>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.by_path.insert(path.to_owned(), footer).is_none() {
            inner.order.push_back(path.to_owned());
        }
        while inner.order.len() > FOOTERS_MAX {
            if let Some(oldest) = inner.order.pop_front() {
                inner.by_path.remove(&oldest);
            }
        }
    }
}

impl Checked {
    fn new(footer: PlainFooter) -> Result<Self, ParquetError> {
        let PlainFooter { parquet, checksums } = footer;
        let groups = parquet.row_groups();
        let columns = groups.iter().flat_map(RowGroupMetaData::columns);
        let chunks = checksums.map(|checksums| {
            columns
                .zip(checksums)
                .map(|(column, checksum)| {
                    let (start, len) = column.byte_range();
                    (start, (len, checksum))
                })
                .collect()
        });
        Ok(Self {
            parquet: Arc::new(plain(&parquet)?),
            chunks,
        })
    }

    /// Whether fetched bytes are what was written. Reads are of whole column chunks, since without a page index nobody
    /// knows where pages begin.
    fn check(&self, range: &Range<u64>, bytes: &[u8]) -> Result<(), String> {
        let Some(chunks) = &self.chunks else {
            return Ok(());
        };
        let (start, end) = (range.start, range.end);
        match chunks.get(&start) {
            Some((len, checksum)) if start + len == end => {
                if scan::is_intact(bytes, *checksum) {
                    Ok(())
                } else {
                    Err(format!(
                        "column chunk at {start} to {end} does not match its checksum"
                    ))
                }
            }
            _ => Err(format!("bytes {start} to {end} are no whole column chunk")),
        }
    }
}

/// What queries go by. The file's own Arrow schema has types that its writer chose; Parquet's are the same for every writer, and
/// come with ids. Bounds of floats leave out NaN, which is a value like others to a filter.
fn plain(parquet: &ParquetMetaData) -> Result<ParquetMetaData, ParquetError> {
    let file = parquet.file_metadata();
    let pairs = file.key_value_metadata().map(|pairs| {
        let kept = pairs.iter().filter(|kv| kv.key != ARROW_SCHEMA_META_KEY);
        kept.cloned().collect()
    });
    let plain = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        pairs,
        file.schema_descr_ptr(),
        file.column_orders().cloned(),
    );
    let groups = parquet.row_groups().iter().map(without_bounds_of_floats);
    let groups = groups.collect::<Result<_, ParquetError>>()?;
    let whole = ParquetMetaDataBuilder::new(plain).set_row_groups(groups);
    Ok(whole.build())
}

fn without_bounds_of_floats(group: &RowGroupMetaData) -> Result<RowGroupMetaData, ParquetError> {
    let is_float = |column: &ColumnChunkMetaData| {
        let short = column.column_descr().logical_type_ref() == Some(&LogicalType::Float16);
        short || matches!(column.column_type(), Type::FLOAT | Type::DOUBLE)
    };
    if !group.columns().iter().any(is_float) {
        return Ok(group.clone());
    }
    let columns = group.columns().iter().map(|column| {
        if !is_float(column) {
            return Ok(column.clone());
        }
        column.clone().into_builder().clear_statistics().build()
    });
    let columns = columns.collect::<Result<_, ParquetError>>()?;
    let group = group.clone().into_builder();
    group.set_column_metadata(columns).build()
}

/// Reads the files of one plan.
#[derive(Debug)]
pub(crate) struct Reader {
    /// The plan's files, under the paths that the plan knows them by.
    pub(crate) files: Arc<HashMap<String, PlannedFile>>,
    pub(crate) storage: Storage,
    /// Whose rows they must be, where they are an archive's.
    pub(crate) topic: Option<String>,
    pub(crate) footers: Arc<Footers>,
    pub(crate) progress: Arc<Progress>,
    /// Where requests are made: not on the threads that compute.
    pub(crate) io: Handle,
}

impl ParquetFileReaderFactory for Reader {
    fn create_reader(
        &self,
        partition_index: usize,
        partitioned_file: PartitionedFile,
        _: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> PlanResult<Box<dyn AsyncFileReader + Send>> {
        let path = partitioned_file.object_meta.location.as_ref();
        let file = self.files.get(path).ok_or_else(|| {
            DataFusionError::Internal(format!("file {path} is not one of the plan's"))
        })?;
        Ok(Box::new(FileReader {
            file: file.clone(),
            storage: self.storage.clone(),
            topic: self.topic.clone(),
            footers: Arc::clone(&self.footers),
            footer: None,
            progress: Arc::clone(&self.progress),
            metrics: ParquetFileMetrics::new(partition_index, path, metrics),
            io: self.io.clone(),
        }))
    }
}

struct FileReader {
    file: PlannedFile,
    storage: Storage,
    topic: Option<String>,
    footers: Arc<Footers>,
    footer: Option<Arc<Checked>>,
    progress: Arc<Progress>,
    metrics: ParquetFileMetrics,
    io: Handle,
}

/// An error that says which file it is about, and keeps what kind it is.
fn external(error: ScanError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

fn corrupt(file: &PlannedFile, what: String) -> ParquetError {
    external(ScanError::Corrupt {
        path: file.path.clone(),
        what,
    })
}

/// Runs a request where requests are made; dropped, it ends.
async fn on<T: Send + 'static>(
    io: &Handle,
    file: &PlannedFile,
    request: impl Future<Output = Result<T, ScanError>> + Send + 'static,
) -> Result<T, ParquetError> {
    let mut tasks = JoinSet::new();
    tasks.spawn_on(request, io);
    match tasks.join_next().await {
        Some(Ok(reply)) => reply.map_err(external),
        _ => Err(external(ScanError::Stopped {
            path: file.path.clone(),
        })),
    }
}

impl FileReader {
    async fn footer(&mut self) -> Result<Arc<Checked>, ParquetError> {
        if let Some(footer) = &self.footer {
            return Ok(Arc::clone(footer));
        }
        let known = self.footers.get(&self.file.path);
        let footer = match known {
            Some(footer) => footer,
            None => {
                let (storage, file, topic) =
                    (self.storage.clone(), self.file.clone(), self.topic.clone());
                let plain = on(&self.io, &self.file, async move {
                    let Some(topic) = topic else {
                        return scan::read_plain_footer(&storage, &file).await;
                    };
                    let footer = scan::read_footer(&storage, &file).await?;
                    match footer.topic() {
                        Some(found) if found != topic => Err(ScanError::Corrupt {
                            path: file.path.clone(),
                            what: format!("it holds topic {found:?}, not {topic:?}"),
                        }),
                        _ => Ok(footer.into_plain()),
                    }
                })
                .await?;
                let checked = Arc::new(Checked::new(plain)?);
                self.footers.put(&self.file.path, Arc::clone(&checked));
                checked
            }
        };
        self.footer = Some(Arc::clone(&footer));
        Ok(footer)
    }

    async fn ranges(&mut self, ranges: Vec<Range<u64>>) -> Result<Vec<Bytes>, ParquetError> {
        let footer = self.footer().await?;
        let (storage, path, asked) = (self.storage.clone(), self.file.path.clone(), ranges.clone());
        let fetched = on(&self.io, &self.file, async move {
            let fetched = storage.get_ranges(&path, &asked).await;
            fetched.map_err(|source| ScanError::Storage { path, source })
        })
        .await?;
        let mut total = 0;
        for (range, bytes) in ranges.iter().zip(&fetched) {
            footer
                .check(range, bytes)
                .map_err(|what| corrupt(&self.file, what))?;
            total += bytes.len();
        }
        self.metrics.bytes_scanned.add(total);
        self.progress.read(total as u64);
        Ok(fetched)
    }
}

impl AsyncFileReader for FileReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            let mut fetched = self.ranges(vec![range]).await?;
            fetched
                .pop()
                .ok_or_else(|| corrupt(&self.file, "nothing was fetched".to_owned()))
        }
        .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        self.ranges(ranges).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move { Ok(Arc::clone(&self.footer().await?.parquet)) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
    use parquet::arrow::ArrowWriter;
    use parquet::file::reader::{FileReader as _, SerializedFileReader};

    use super::*;

    /// NaN is in no bound: a row group of 1 and NaN would be passed over where more than 100 is asked for.
    #[test]
    fn floats_have_no_bounds_and_others_keep_theirs() {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
        let batch = RecordBatch::try_from_iter([("n", numbers), ("f", floats)]).unwrap();
        let mut file = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let written = SerializedFileReader::new(Bytes::from(file)).unwrap();
        let group = written.metadata().row_group(0);
        assert!(group.column(1).statistics().is_some());
        let read = plain(written.metadata()).unwrap();
        let group = read.row_group(0);
        assert!(group.column(0).statistics().is_some());
        assert!(group.column(1).statistics().is_none());
        assert_eq!(read.file_metadata().num_rows(), 2);
    }
}
