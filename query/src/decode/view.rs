//! The view as a table of DataFusion's.

use std::any::Any;
use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{Column, Result, project_schema};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use everlog_decode::ValueFormat;

use super::asking::Asking;
use super::columns::{Source, ViewColumns};
use super::exec::{DecodeExec, Decoding};
use crate::QueryError;

/// An archive's table with its values decoded.
#[derive(Debug)]
pub(super) struct DecodedTable {
    table: Arc<dyn TableProvider>,
    columns: ViewColumns,
    format: ValueFormat,
    registry: Option<Asking>,
}

impl DecodedTable {
    pub(super) fn new(
        table: Arc<dyn TableProvider>,
        format: ValueFormat,
        registry: Option<Asking>,
    ) -> std::result::Result<Self, QueryError> {
        let decoded = format
            .columns()
            .map_err(|error| QueryError::Failed(error.to_string()))?;
        let columns = ViewColumns::new(&table.schema(), &decoded)?;
        Ok(Self {
            table,
            columns,
            format,
            registry,
        })
    }
}

/// A filter as the archive's table understands it; none where it asks for more than Kafka's columns.
fn in_archive(filter: &Expr) -> Option<Expr> {
    let is_kafkas = filter
        .column_refs()
        .iter()
        .all(|column| ViewColumns::in_archive(&column.name).is_some());
    if !is_kafkas || filter.column_refs().is_empty() {
        return None;
    }
    let renamed = filter.clone().transform(|expr| {
        Ok(match expr {
            Expr::Column(column) => match ViewColumns::in_archive(&column.name) {
                Some(name) => Transformed::yes(Expr::Column(Column::new_unqualified(name))),
                None => Transformed::no(Expr::Column(column)),
            },
            other => Transformed::no(other),
        })
    });
    renamed.ok().map(|renamed| renamed.data)
}

#[async_trait]
impl TableProvider for DecodedTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = project_schema(&self.columns.schema, projection)?;
        let wanted: Vec<usize> = match projection {
            Some(places) => places.clone(),
            None => (0..self.columns.sources.len()).collect(),
        };
        // where each wanted column comes to stand before they are put in order: what passes through, what is decoded, the error
        let mut passing: Vec<usize> = Vec::new();
        let mut decoded: Vec<usize> = Vec::new();
        let mut errors = None;
        for at in &wanted {
            match self.columns.sources.get(*at) {
                Some(Source::Archive(column)) => passing.push(*column),
                Some(Source::Value(column)) => decoded.push(*column),
                Some(Source::Error) => errors = Some(*at),
                None => {}
            }
        }
        let decodes = !decoded.is_empty() || errors.is_some();
        let mut read = passing.clone();
        if decodes {
            read.push(self.columns.value);
        }
        let filters: Vec<Expr> = filters.iter().filter_map(in_archive).collect();
        let input = self.table.scan(state, Some(&read), &filters, limit).await?;
        let (mut next_passing, mut next_decoded) = (0, passing.len());
        let places: Vec<usize> = wanted
            .iter()
            .map(|at| match self.columns.sources.get(*at) {
                Some(Source::Archive(_)) => {
                    next_passing += 1;
                    next_passing - 1
                }
                Some(Source::Value(_)) => {
                    next_decoded += 1;
                    next_decoded - 1
                }
                Some(Source::Error) | None => passing.len() + decoded.len(),
            })
            .collect();
        let plan: Arc<dyn ExecutionPlan> = if decodes {
            let mut fields = vec![None; wanted.len()];
            for (place, field) in places.iter().zip(schema.fields()) {
                if let Some(entry) = fields.get_mut(*place) {
                    *entry = Some(Arc::clone(field));
                }
            }
            let fields: Vec<_> = fields.into_iter().flatten().collect();
            let decoding = Decoding {
                format: self.format.clone(),
                projection: decoded,
                errors: errors.is_some(),
                registry: self.registry.clone(),
            };
            let given = Arc::new(Schema::new(fields));
            Arc::new(DecodeExec::new(input, Arc::new(decoding), given)?)
        } else {
            input
        };
        let is_done = decodes && places.iter().enumerate().all(|(at, place)| at == *place);
        if is_done {
            return Ok(plan);
        }
        let given = plan.schema();
        let named = places
            .iter()
            .zip(schema.fields())
            .filter_map(|(place, field)| {
                let name = given.fields().get(*place)?.name();
                let column: Arc<dyn PhysicalExpr> = Arc::new(PhysicalColumn::new(name, *place));
                Some((column, field.name().clone()))
            });
        let named: Vec<(Arc<dyn PhysicalExpr>, String)> = named.collect();
        Ok(Arc::new(ProjectionExec::try_new(named, plan)?))
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        filters
            .iter()
            .map(|filter| match in_archive(filter) {
                None => Ok(TableProviderFilterPushDown::Unsupported),
                Some(renamed) => Ok(self
                    .table
                    .supports_filters_pushdown(&[&renamed])?
                    .pop()
                    .unwrap_or(TableProviderFilterPushDown::Unsupported)),
            })
            .collect()
    }
}
