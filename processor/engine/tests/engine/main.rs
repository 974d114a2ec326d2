//! The engine from outside: SQL in, batches in any order of partitions, rows out.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::panic,
    reason = "numbers here are small, and a test may panic"
)]

mod dedup;
mod generations;
mod log;
mod property;
mod reference;
mod roles;
mod semantics;
mod sql;
