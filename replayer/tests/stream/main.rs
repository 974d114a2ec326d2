//! The stream over a cluster and a catalog in memory: real tables, real Parquet, every turn of the seam.

mod cancel;
mod damage;
mod every_byte;
mod generations;
mod hold;
mod leaderless;
mod leases;
mod locations;
mod order;
mod recreated;
mod session;
mod starts;
#[path = "../support/mod.rs"]
mod support;
mod tiers;
mod verified;
