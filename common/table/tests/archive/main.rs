//! The archive against catalogs: what a commit does and what it survives, what maintenance takes away and what it leaves.
//!
//! Cases are named after docs of known failures: `p..`, `h..`, `b..`. The memory catalog produces the faults; SQL and REST
//! repeat the decisive ones for real.

#![allow(clippy::panic, reason = "a harness fails its test by panicking")]

mod accept;
mod append;
mod foreign;
mod jobs;
mod leases;
mod locations;
mod maintenance;
mod model;
mod rig;
mod services;
#[path = "../support/mod.rs"]
mod support;
