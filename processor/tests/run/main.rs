//! The loop in a world of its own: a log and a catalog in memory, an archiver of few lines, real files for state and output.

mod behaviour;
mod generations;
mod same_rows;
mod waits;
mod world;
