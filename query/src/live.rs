//! `NAME$live`: an archive, and Kafka's tail from exactly its ledger.
//!
//! ```text
//!   pinned snapshot ─────────────► rows ──┐
//!     its ledger: every partition's next  ├──► union
//!   replay from there to the end now ─────┘
//! ```
//!
//! - Each record comes once: the snapshot holds what lies below its ledger's next offsets, and the replay begins there. It is
//!   the replayer's own: it checks whose log it reads, passes recorded gaps, goes on in a newer snapshot where Kafka has
//!   deleted what follows, and fails where neither tier has it.
//! - All scans of one query end at the same offsets: those that the first one saw.
//! - The columns are the archive's. `archived_at` is null in the tail: these records are not in the snapshot that is read.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use everlog_common::{EventBatch, Gap, Ledger, Millis, Position, Positions, TopicName};
use everlog_replayer::handoff::Incarnation;
use everlog_replayer::history::lanes::Stops;
use everlog_replayer::{Components, EventStream, ReplayRequest};
use everlog_table::archive::{Archive, ArchiveDeps};
use everlog_table::codec::{RowContext, encode};
use everlog_table::schema::{Column, ColumnMap};
use everlog_table::snapshot::LeaseMode;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

use crate::error::chain;
use crate::table::LakeTable;
use crate::{Lake, Progress, QueryError};

/// Batches between the reader and the query.
const QUEUED_BATCHES: usize = 2;
/// What the reader may hold, where the query's memory is not bounded.
const MEMORY_MAX: usize = 64 << 20;
/// What it needs to get on.
const MEMORY_MIN: usize = 4 << 20;
/// How long the cluster may take to say who it is: a query is asked by somebody who waits.
const CLUSTER_PATIENCE: Duration = Duration::from_secs(10);
/// Rows of a batch: those of a reader may be far more.
const BATCH_ROWS: usize = 8_192;

/// The archive's newest snapshot with what Kafka holds beyond it, up to its end now.
pub(crate) fn over(table: Arc<LakeTable>, tail: Arc<Tail>) -> Arc<dyn TableProvider> {
    Arc::new(LiveTable {
        schema: schema_of(&table.schema(), &tail.columns),
        archive: table,
        tail,
    })
}

/// Where every partition goes on behind what the ledger holds: in the last generation that has it, at its next offset. A
/// later one is then read from its beginning.
fn ends_of(ledger: &Ledger) -> Positions {
    let mut ends = Positions::new();
    for (generation, era) in &ledger.generations {
        for (partition, entry) in &era.partitions {
            let position = Position {
                generation: *generation,
                offset: entry.next,
            };
            ends.insert(*partition, position);
        }
    }
    ends
}

/// The archive's columns; what a record has only once it is archived may be null.
fn schema_of(archive: &Schema, columns: &ColumnMap) -> SchemaRef {
    let fields: Vec<Arc<Field>> = archive
        .fields()
        .iter()
        .map(|field| {
            let is_live = Column::ALL
                .into_iter()
                .any(|c| c != Column::ArchivedAt && columns.name(c) == field.name());
            if is_live {
                Arc::clone(field)
            } else {
                Arc::new(field.as_ref().clone().with_nullable(true))
            }
        })
        .collect();
    Arc::new(Schema::new_with_metadata(
        fields,
        archive.metadata().clone(),
    ))
}

/// See the module's text.
#[derive(Debug)]
struct LiveTable {
    schema: SchemaRef,
    archive: Arc<LakeTable>,
    tail: Arc<Tail>,
}

#[async_trait]
impl TableProvider for LiveTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// The archive prunes by a filter; the tail gives everything, so that the filter is looked at again above both.
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        let of_archive = self.archive.supports_filters_pushdown(filters)?;
        let inexact = of_archive.into_iter().map(|pushed| match pushed {
            TableProviderFilterPushDown::Unsupported => TableProviderFilterPushDown::Unsupported,
            _ => TableProviderFilterPushDown::Inexact,
        });
        Ok(inexact.collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let archive = self.archive.scan(state, projection, filters, limit).await?;
        let schema = match projection {
            None => SchemaRef::clone(&self.schema),
            Some(columns) => Arc::new(self.schema.project(columns)?),
        };
        let tail = TailExec::new(Arc::clone(&self.tail), schema);
        UnionExec::try_new(vec![archive, Arc::new(tail)])
    }
}

/// What Kafka holds of a topic beyond a snapshot. All of a query's scans of it end together.
#[derive(Debug)]
pub(crate) struct Tail {
    topic: TopicName,
    components: Components,
    starts: Positions,
    incarnation: Option<Incarnation>,
    /// Those that the snapshot records: the tail tells of later ones.
    gaps: Vec<Gap>,
    columns: ColumnMap,
    /// Where the query's first scan ends, and every other one with it.
    stops: OnceCell<Stops>,
    progress: Arc<Progress>,
    /// Where requests are made: queries have threads that compute alone.
    io: Handle,
}

impl Tail {
    /// Of an archive. Nothing of it is read yet.
    pub(crate) async fn of(
        lake: &Lake,
        table: &LakeTable,
        progress: Arc<Progress>,
    ) -> Result<Self, QueryError> {
        let (Some(topic), Some(ledger)) = (table.topic().cloned(), table.ledger().cloned()) else {
            return Err(QueryError::Refused(
                "only an archive has a live tail; ask the table without $live".to_owned(),
            ));
        };
        let Some(log) = lake.log.clone() else {
            return Err(QueryError::NoCluster);
        };
        let met = tokio::time::timeout(CLUSTER_PATIENCE, log.cluster_id()).await;
        let silent = match met {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some(format!("it does not answer within {CLUSTER_PATIENCE:?}")),
        };
        if let Some(why) = silent {
            return Err(QueryError::Failed(format!(
                "Kafka: {why}; without --live and $live the archive answers alone"
            )));
        }
        let deps = ArchiveDeps {
            catalog: Arc::clone(&lake.catalog),
            clock: Arc::clone(&lake.clock),
            ids: Arc::clone(&lake.ids),
        };
        let archive = Archive::open(deps, &lake.namespace, &topic).await?;
        let archive = archive.ok_or_else(|| {
            QueryError::UnknownTable(format!("topic {topic} has no archive any more; ask again"))
        })?;
        let state = archive.state().await?;
        let columns = ColumnMap::resolve(state.table.metadata.current_schema());
        let columns = columns.map_err(|error| {
            QueryError::Unsupported(format!("the archive of {topic} cannot be read: {error}"))
        })?;
        Ok(Self {
            topic,
            components: Components {
                log: Some(log),
                catalog: Arc::clone(&lake.catalog),
                clock: Arc::clone(&lake.clock),
                ids: Arc::clone(&lake.ids),
                namespace: lake.namespace.clone(),
            },
            starts: ends_of(&ledger),
            incarnation: Incarnation::newest(&ledger),
            gaps: ledger.gaps,
            columns,
            stops: OnceCell::new(),
            progress,
            io: table.io.clone(),
        })
    }

    pub(crate) fn topic(&self) -> &TopicName {
        &self.topic
    }

    async fn open(&self, memory_bytes: usize) -> Result<EventStream, QueryError> {
        let request = ReplayRequest {
            start: Some(self.starts.clone()),
            incarnation: self.incarnation.clone(),
            // the scan's end is no moment to wait for: a snapshot that vanishes is made up for by a newer one
            lease: LeaseMode::Off,
            memory_bytes,
            threads: 1,
            ..ReplayRequest::new(self.topic.clone())
        };
        let stream = EventStream::open(request, self.components.clone());
        stream.await.map_err(QueryError::Live)
    }

    /// Opens the replay. The first one says where all end: others are opened after it, so that they reach as far.
    async fn events(&self, memory_bytes: usize) -> Result<EventStream, QueryError> {
        let mut first = None;
        let opened = self.stops.get_or_try_init(|| async {
            let events = self.open(memory_bytes).await?;
            let stops = events.stops().clone();
            first = Some(events);
            Ok::<_, QueryError>(stops)
        });
        opened.await?;
        match first {
            Some(events) => Ok(events),
            None => self.open(memory_bytes).await,
        }
    }

    /// Tells of recorded gaps that were passed, behind those that were `told` of; says how many there are.
    fn tell_gaps(&self, passed: &[Gap], told: usize) -> usize {
        let new = passed.get(told..).unwrap_or_default();
        for gap in new.iter().filter(|gap| !self.gaps.contains(gap)) {
            tracing::warn!(topic = %self.topic, %gap, "gap passed");
        }
        passed.len()
    }

    /// The part of a batch that is before the query's end; none where nothing is.
    fn cut(&self, mut batch: EventBatch) -> Option<EventBatch> {
        let stops = self.stops.get()?;
        if let Some(stop) = stops.offset(batch.generation, batch.partition)
            && stop < batch.range.end()
        {
            batch.columns = batch
                .columns
                .slice_offsets(batch.range.start(), stop.max(batch.range.start()));
        }
        (!batch.columns.is_empty()).then_some(batch)
    }

    /// The rows as the archive's columns, under the plan's schema.
    fn rows(&self, batch: &EventBatch, schema: &SchemaRef) -> DataFusionResult<RecordBatch> {
        let context = RowContext {
            topic: &batch.topic,
            generation: batch.generation,
            partition: batch.partition,
            archived_at: Millis(0),
        };
        let stored = encode(&self.columns, context, &batch.columns).map_err(|error| {
            QueryError::Corrupt(format!("a record of {} in Kafka: {error}", self.topic))
        })?;
        let archived_at = self.columns.name(Column::ArchivedAt);
        let columns = schema.fields().iter().map(|field| {
            match stored.column_by_name(field.name()) {
                Some(column) if field.name() != archived_at => as_field(column, field),
                // not archived, or another engine's column
                _ => Ok(new_null_array(field.data_type(), stored.num_rows())),
            }
        });
        let columns = columns.collect::<DataFusionResult<Vec<ArrayRef>>>()?;
        let rows = RecordBatchOptions::new().with_row_count(Some(stored.num_rows()));
        let rows = RecordBatch::try_new_with_options(SchemaRef::clone(schema), columns, &rows);
        rows.map_err(DataFusionError::from)
    }
}

fn as_field(column: &ArrayRef, field: &Field) -> DataFusionResult<ArrayRef> {
    if column.data_type() == field.data_type() {
        return Ok(Arc::clone(column));
    }
    Ok(arrow_cast::cast(column, field.data_type())?)
}

/// Reads it.
#[derive(Debug)]
struct TailExec {
    tail: Arc<Tail>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
}

impl TailExec {
    fn new(tail: Arc<Tail>, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(SchemaRef::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            tail,
            schema,
            properties: Arc::new(properties),
        }
    }
}

impl DisplayAs for TailExec {
    fn fmt_as(&self, kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match kind {
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                write!(f, "KafkaTailExec: topic={}", self.tail.topic)
            }
            DisplayFormatType::TreeRender => write!(f, "topic={}", self.tail.topic),
        }
    }
}

impl ExecutionPlan for TailExec {
    fn name(&self) -> &'static str {
        "KafkaTailExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    /// The reader is a task of the stream's: it ends with it, and waits while the query does not take what it has read.
    fn execute(
        &self,
        _partition: usize,
        context: Arc<TaskContext>,
    ) -> DataFusionResult<SendableRecordBatchStream> {
        let pool = context.memory_pool();
        let memory_bytes = memory_of(pool.as_ref());
        let held = MemoryConsumer::new("KafkaTailExec").register(pool);
        held.try_grow(memory_bytes)?;
        let schema = SchemaRef::clone(&self.schema);
        let tail = Arc::clone(&self.tail);
        let mut stream =
            RecordBatchReceiverStreamBuilder::new(SchemaRef::clone(&schema), QUEUED_BATCHES);
        let out = stream.tx();
        let io = tail.io.clone();
        let reading = async move {
            let _held = held;
            let mut events = tail.events(memory_bytes).await?;
            let mut told = 0;
            while let Some(batch) = events.next().await.map_err(QueryError::Live)? {
                told = tail.tell_gaps(events.gaps_passed(), told);
                let Some(batch) = tail.cut(batch) else {
                    continue;
                };
                let bytes = batch.columns.bytes() as u64;
                tail.progress.plan(bytes);
                tail.progress.read(bytes);
                tail.progress.rows(batch.columns.len() as u64);
                let rows = tail.rows(&batch, &schema)?;
                for from in (0..rows.num_rows()).step_by(BATCH_ROWS) {
                    let some = rows.slice(from, BATCH_ROWS.min(rows.num_rows() - from));
                    if out.send(Ok(some)).await.is_err() {
                        // nobody wants more
                        return Ok(());
                    }
                }
            }
            tail.tell_gaps(events.gaps_passed(), told);
            events.close().await;
            Ok(())
        };
        stream.spawn_on(reading, &io);
        Ok(stream.build())
    }
}

/// A quarter of what the query may use, within bounds.
fn memory_of(pool: &dyn MemoryPool) -> usize {
    match pool.memory_limit() {
        MemoryLimit::Finite(limit) => (limit / 4).clamp(MEMORY_MIN, MEMORY_MAX),
        MemoryLimit::Infinite | MemoryLimit::Unknown => MEMORY_MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use everlog_common::ledger::{Entry, GenerationLedger};
    use everlog_common::{Generation, Offset, Partition};

    use super::*;

    #[test]
    fn every_partition_goes_on_where_its_last_generation_ends() {
        let mut ledger = Ledger::default();
        for (generation, entries) in [(0, &[(0, 10), (1, 20), (4, 7)][..]), (1, &[(0, 3), (1, 0)])]
        {
            let mut era = GenerationLedger::default();
            for (partition, next) in entries {
                let entry = Entry {
                    first: Offset::ZERO,
                    next: Offset::new(*next).unwrap(),
                    leader_epoch: None,
                    rows: 0,
                    hash: 0,
                };
                era.partitions
                    .insert(Partition::new(*partition).unwrap(), entry);
            }
            ledger.generations.insert(Generation(generation), era);
        }
        let ends: BTreeMap<(u32, i32), i64> = ends_of(&ledger)
            .into_iter()
            .map(|(p, at)| ((at.generation.0, p.get()), at.offset.get()))
            .collect();
        // partition 4 is not in the newest generation: read there, if it comes, from its beginning
        assert_eq!(
            ends,
            BTreeMap::from([((0, 4), 7), ((1, 0), 3), ((1, 1), 0)])
        );
        assert_eq!(ends_of(&Ledger::default()), Positions::new());
    }
}
