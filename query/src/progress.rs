//! How far a query's reading is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;

/// What a query has read of its tables so far, and what it planned to read. Numbers only grow; those of one query.
#[derive(Debug, Default)]
pub struct Progress {
    bytes_planned: AtomicU64,
    bytes_read: AtomicU64,
    rows_read: AtomicU64,
    /// What scans count for themselves.
    scans: Mutex<Vec<ExecutionPlanMetricsSet>>,
}

impl Progress {
    /// More bytes are going to be read.
    pub(crate) fn plan(&self, bytes: u64) {
        self.bytes_planned.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes came.
    pub(crate) fn read(&self, bytes: u64) {
        self.bytes_read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Rows came out of a table's scan.
    pub(crate) fn rows(&self, rows: u64) {
        self.rows_read.fetch_add(rows, Ordering::Relaxed);
    }

    /// A scan that counts its rows for itself.
    pub(crate) fn watch(&self, scan: ExecutionPlanMetricsSet) {
        let mut scans = self.scans.lock().unwrap_or_else(PoisonError::into_inner);
        scans.push(scan);
    }

    /// Bytes of the files that the plans name so far, an upper bound: columns that are not needed are not read.
    pub fn bytes_planned(&self) -> u64 {
        self.bytes_planned.load(Ordering::Relaxed)
    }

    /// Bytes fetched so far, footers included.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Rows that came out of the tables' scans so far, after the filters that were pushed into them.
    pub fn rows_read(&self) -> u64 {
        let scans = self.scans.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = scans
            .iter()
            .filter_map(|scan| scan.clone_inner().output_rows());
        let counted: u64 = counted.map(|rows| rows as u64).sum();
        counted.saturating_add(self.rows_read.load(Ordering::Relaxed))
    }
}
