//! The Iceberg table as archive: docs/table-format.md in code.
//!
//! - [`schema`]: columns, partition spec, sort order, properties, names
//! - [`codec`]: event columns to table columns and back
//! - [`files`]: data files as values
//! - [`writer`]: rows into data files
//! - [`scan`]: data files into runs of rows
//! - [`archive`]: the one door: state, append, pins, maintenance
//! - [`job`]: the output table of a job, each of its versions on a branch
//! - [`snapshot`]: a snapshot held for reading
//! - [`maintain`]: expiry, and removal of files
//! - [`commit`]: what a commit may do, decided from facts
//! - [`manifests`]: reading, writing and merging them
//! - [`summary`]: where the ledger is kept and how it is found
//! - [`catalog`]: who names a table's current metadata, and swaps it
//! - [`storage`]: objects by full URI

pub mod archive;
pub mod catalog;
pub mod codec;
pub mod commit;
pub mod files;
mod footer;
mod handle;
#[cfg(test)]
mod hostile;
pub mod job;
pub mod lease;
pub mod maintain;
pub mod manifests;
pub mod scan;
pub mod schema;
pub mod sealed;
pub mod snapshot;
pub mod storage;
pub mod summary;
#[cfg(test)]
mod test_table;
pub mod writer;
