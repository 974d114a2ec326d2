//! A pinned snapshot as a table of DataFusion's: its files planned from manifests, read by DataFusion's Parquet source.
//!
//! ```text
//!   manifests ─► facts per file ─► files that may hold rows ─► groups ─► ParquetSource ─► reader ─► storage
//!                bounds, counts    (pruning predicate)          order      row groups,     checksums
//!                                                                          late columns
//! ```
//!
//! - [`facts`]: what manifests say, and how exact it is
//! - [`fields`]: columns by field id
//! - [`reader`]: footers and column chunks, checked
//! - [`source`], [`casts`]: which filters go into the Parquet source, and prune by bounds
//! - [`order`]: `ORDER BY partition, offset` without a sort

mod casts;
mod facts;
mod fields;
mod order;
mod reader;
mod source;

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::TableParquetOptions;
use datafusion::common::{DFSchema, Result as PlanResult};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use everlog_common::{Ledger, Millis, TopicName};
use everlog_table::storage::Storage;
use tokio::runtime::Handle;

pub(crate) use facts::LiveFile;
pub(crate) use fields::Columns;
pub(crate) use order::LakeOrder;
pub(crate) use reader::Footers;

use crate::Progress;
use casts::keeps_order;
use facts::{Facts, Prunable};
use order::Sorted;
use reader::Reader;
use source::LakeSource;

/// Under which all tables' files are known to DataFusion; nothing is ever fetched from there.
pub(crate) const STORE: &str = "everlog-lake://";

/// Which snapshot a table is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The snapshot.
    pub snapshot_id: i64,
    /// When it was made.
    pub time: Millis,
}

/// A table at one snapshot: an archive's, a job's, or another one of the namespace.
///
/// It is a [`TableProvider`]: its `scan` is an execution plan over exactly that snapshot's files.
#[derive(Debug)]
pub struct LakeTable {
    pub(crate) name: String,
    pub(crate) columns: Columns,
    pub(crate) files: Vec<LiveFile>,
    pub(crate) storage: Storage,
    pub(crate) moment: Option<Moment>,
    pub(crate) archive: Option<Archived>,
    pub(crate) footers: Arc<Footers>,
    pub(crate) io: Handle,
}

/// What only an archive has.
#[derive(Debug)]
pub(crate) struct Archived {
    pub(crate) topic: TopicName,
    pub(crate) ledger: Ledger,
    /// Places of generation, partition and offset among the columns.
    pub(crate) order: [usize; 3],
}

impl LakeTable {
    /// The table's name in the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its columns: strings and bytes as Arrow views, times in microseconds UTC.
    pub fn schema(&self) -> SchemaRef {
        SchemaRef::clone(&self.columns.schema)
    }

    /// Whose archive it is; none of other tables.
    pub fn topic(&self) -> Option<&TopicName> {
        self.archive.as_ref().map(|archive| &archive.topic)
    }

    /// What the snapshot holds, of archives: its cut is where Kafka goes on.
    pub fn ledger(&self) -> Option<&Ledger> {
        self.archive.as_ref().map(|archive| &archive.ledger)
    }

    /// The snapshot; none: nothing was committed yet.
    pub fn moment(&self) -> Option<Moment> {
        self.moment
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            columns: &self.columns,
            topic: self.topic().map(TopicName::as_str),
        }
    }

    /// The files that may hold rows for which all filters are true.
    fn pruned(&self, state: &dyn Session, filters: &[Expr]) -> PlanResult<Vec<&LiveFile>> {
        let schema = DFSchema::try_from(self.schema())?;
        let mut kept = vec![true; self.files.len()];
        for filter in filters {
            let predicate = state.create_physical_expr(filter.clone(), &schema)?;
            if !keeps_order(&predicate, &self.schema()) {
                continue;
            }
            let files = Prunable {
                facts: self.facts(),
                files: &self.files,
            };
            // A filter that says nothing about bounds, or cannot be worked out for them, keeps every file.
            let pruning = PruningPredicate::try_new(predicate, self.schema());
            if let Ok(may_pass) = pruning.and_then(|pruning| pruning.prune(&files)) {
                kept.iter_mut()
                    .zip(may_pass)
                    .for_each(|(kept, may_pass)| *kept &= may_pass);
            }
        }
        let files = self.files.iter().zip(kept);
        Ok(files
            .filter_map(|(file, kept)| kept.then_some(file))
            .filter(|file| file.planned.rows > 0)
            .collect())
    }
}

#[async_trait]
impl TableProvider for LakeTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        self.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> PlanResult<Vec<TableProviderFilterPushDown>> {
        // They prune files here. The plan keeps them, and moves them into the Parquet source where that can hold them.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let files = self.pruned(state, filters)?;
        if files.is_empty() {
            let schema = match projection {
                Some(places) => Arc::new(self.schema().project(places)?),
                None => self.schema(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let facts = self.facts();
        let progress = state
            .config()
            .get_extension::<Progress>()
            .unwrap_or_default();
        let mut known = HashMap::with_capacity(files.len());
        let mut parts = Vec::with_capacity(files.len());
        for (number, file) in files.iter().enumerate() {
            let name = file.planned.path.rsplit('/').next().unwrap_or_default();
            let mut part =
                PartitionedFile::new(format!("{number}/{name}"), file.planned.size_bytes);
            part.statistics = Some(Arc::new(facts.statistics(file)));
            let places = self.archive.as_ref().map(|archive| archive.order);
            let sorted = places.and_then(|places| Sorted::of(&file.planned, places));
            part.extensions = sorted.map(|sorted| Arc::new(sorted) as _);
            progress.plan(file.planned.size_bytes);
            let path = part.object_meta.location.as_ref().to_owned();
            known.insert(path, file.planned.clone());
            parts.push(part);
        }
        let counted = Arc::clone(&progress);
        let reader = Reader {
            files: Arc::new(known),
            storage: self.storage.clone(),
            topic: self.topic().map(|topic| topic.as_str().to_owned()),
            footers: Arc::clone(&self.footers),
            progress,
            io: self.io.clone(),
        };
        let mut options = TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..TableParquetOptions::default()
        };
        options.global.pruning = true;
        options.global.pushdown_filters = true;
        // See the module `reader`: no checksum covers it, nor a filter of Bloom's.
        options.global.enable_page_index = false;
        options.global.bloom_filter_on_read = false;
        let source = ParquetSource::new(TableSchema::from_file_schema(self.schema()))
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(reader));
        counted.watch(source.metrics().clone());
        let groups = balanced(parts, state.config().target_partitions());
        let store = ObjectStoreUrl::parse(STORE)?;
        let config = FileScanConfigBuilder::new(store, LakeSource::over(Arc::new(source)))
            .with_file_groups(groups)
            .with_statistics(facts.total(&files))
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .with_expr_adapter(Some(self.columns.adapter()))
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// Files in so many groups of about the same size, each in the order that they came in.
fn balanced(files: Vec<PartitionedFile>, groups: usize) -> Vec<FileGroup> {
    let mut largest_first: Vec<(usize, PartitionedFile)> = files.into_iter().enumerate().collect();
    largest_first.sort_by_key(|(place, file)| (std::cmp::Reverse(file.object_meta.size), *place));
    let mut filled: Vec<(u64, Vec<(usize, PartitionedFile)>)> =
        vec![Default::default(); groups.clamp(1, largest_first.len().max(1))];
    for (place, file) in largest_first {
        if let Some((bytes, group)) = filled.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            *bytes += file.object_meta.size;
            group.push((place, file));
        }
    }
    filled
        .into_iter()
        .map(|(_, mut group)| {
            group.sort_by_key(|(place, _)| *place);
            FileGroup::new(group.into_iter().map(|(_, file)| file).collect())
        })
        .filter(|group| !group.is_empty())
        .collect()
}
