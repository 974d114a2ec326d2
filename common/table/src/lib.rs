//! The Iceberg table as archive: docs/table-format.md in code.
//!
//! - [`schema`]: columns, partition spec, sort order, properties, names
//! - [`files`]: data files as values
//! - [`writer`]: rows into data files
//! - [`scan`]: data files into runs of rows
//! - [`catalog`]: who names a table's current metadata, and swaps it
//! - [`storage`]: objects by full URI

pub mod catalog;
pub mod files;
pub mod scan;
pub mod schema;
pub mod storage;
pub mod writer;
