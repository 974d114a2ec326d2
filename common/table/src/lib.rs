//! placeholder

pub mod catalog;
pub mod storage;
