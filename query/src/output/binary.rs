//! Parquet and Arrow IPC: what other tools load.

use arrow_array::RecordBatch;
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use arrow_schema::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::{OutputError, Rows, Sink, as_plain, plain};

/// A row group ends with so many bytes in memory, or with the writer's own bound of rows.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// A Parquet file, zstd, with names and types as the answer has them.
pub(super) struct Parquet {
    writer: ArrowWriter<Sink>,
    schema: SchemaRef,
}

impl std::fmt::Debug for Parquet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parquet")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl Parquet {
    pub(super) fn new(schema: &SchemaRef, sink: Sink) -> Result<Self, OutputError> {
        let schema = plain(schema);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_created_by(concat!("everlog ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let writer = ArrowWriter::try_new(sink, SchemaRef::clone(&schema), Some(properties));
        Ok(Self {
            writer: writer.map_err(OutputError::parquet)?,
            schema,
        })
    }
}

impl Rows for Parquet {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        let batch = as_plain(batch, &self.schema).map_err(|e| OutputError::arrow("Parquet", e))?;
        self.writer.write(&batch).map_err(OutputError::parquet)?;
        if self.writer.memory_size() >= ROW_GROUP_BYTES {
            self.writer.flush().map_err(OutputError::parquet)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), OutputError> {
        self.writer.finish().map_err(OutputError::parquet)?;
        std::io::Write::flush(self.writer.inner_mut())?;
        Ok(())
    }
}

fn options() -> Result<IpcWriteOptions, OutputError> {
    IpcWriteOptions::default()
        .try_with_compression(Some(CompressionType::ZSTD))
        .map_err(|e| OutputError::arrow("Arrow IPC", e))
}

/// Arrow IPC with a footer.
pub(super) struct ArrowFile {
    writer: FileWriter<Sink>,
    schema: SchemaRef,
}

impl std::fmt::Debug for ArrowFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrowFile")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl ArrowFile {
    pub(super) fn new(schema: &SchemaRef, sink: Sink) -> Result<Self, OutputError> {
        let schema = plain(schema);
        let writer = FileWriter::try_new_with_options(sink, &schema, options()?);
        Ok(Self {
            writer: writer.map_err(|e| OutputError::arrow("Arrow IPC", e))?,
            schema,
        })
    }
}

impl Rows for ArrowFile {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        let written = as_plain(batch, &self.schema).and_then(|batch| self.writer.write(&batch));
        written.map_err(|e| OutputError::arrow("Arrow IPC", e))
    }

    fn finish(&mut self) -> Result<(), OutputError> {
        let finished = self.writer.finish();
        finished.map_err(|e| OutputError::arrow("Arrow IPC", e))
    }
}

/// Arrow IPC without a footer.
pub(super) struct ArrowStream {
    writer: StreamWriter<Sink>,
    schema: SchemaRef,
}

impl std::fmt::Debug for ArrowStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArrowStream")
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl ArrowStream {
    pub(super) fn new(schema: &SchemaRef, sink: Sink) -> Result<Self, OutputError> {
        let schema = plain(schema);
        let writer = StreamWriter::try_new_with_options(sink, &schema, options()?);
        Ok(Self {
            writer: writer.map_err(|e| OutputError::arrow("Arrow IPC", e))?,
            schema,
        })
    }
}

impl Rows for ArrowStream {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), OutputError> {
        let written = as_plain(batch, &self.schema)
            .and_then(|batch| self.writer.write(&batch))
            .and_then(|()| self.writer.flush());
        written.map_err(|e| OutputError::arrow("Arrow IPC", e))
    }

    fn finish(&mut self) -> Result<(), OutputError> {
        let finished = self.writer.finish().and_then(|()| self.writer.flush());
        finished.map_err(|e| OutputError::arrow("Arrow IPC", e))
    }
}
