//! `everlog demo`: the whole story on one machine, with nothing installed.
//!
//! ```text
//!   producer ──► embedded broker (forgets soon) ──► everlog archive ──► SQLite catalog, local warehouse
//!      │              │   kill -9, restart            (a process)              │
//!   witness           └──────── live ─────► replay from offset 0 ◄──── history ┘
//!      │                              │
//!      │          Bronze ─► [clean v1] ─► Silver ─► [sessions v1], kept live ──► main of Gold, until
//!      │             (everlog process)        └───► [sessions v2], kill -9 ────► compare, promote
//!      └────── compared by count and hash, event by event, session by session ──┘
//! ```
//!
//! Every claim it prints was checked right before; a proof that fails ends it with 1.

mod broker;
mod child;
mod clickstream;
mod lake;
mod story;
mod tiers;
mod witness;

use std::path::PathBuf;

use clap::Args;

use crate::failure::{Failure, Status};
use crate::signals::Signals;

/// Play the whole story on this machine, with nothing installed: archive, kill -9, replay, handoff, time travel, jobs
///
/// Produces a clickstream into an embedded Kafka broker that forgets quickly, archives it with `everlog archive` as a process
/// of its own, kills that one without warning, replays everything from offset 0 across the handoff to the live topic, and
/// proves by count and hash that nothing is missing, doubled, reordered or altered (Bronze). Then `everlog process` cleans it
/// (Silver) and makes sessions of it (Gold); version 2, with another gap, is replayed over all history beside version 1,
/// killed on its way, compared, and promoted. All sessions are checked against what was produced. Takes less than two
/// minutes. The tables and the jobs' files stay in the folder, with commands to try on them.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where catalog, tables, configuration, jobs and logs go; an earlier demo in it is replaced
    #[arg(long, value_name = "FOLDER", default_value = "everlog-demo")]
    dir: PathBuf,

    /// Keep broker, archiver, jobs and producer running at the end, until Ctrl-C, to try commands on live data
    #[arg(long)]
    keep: bool,

    /// The same seed produces the same events
    #[arg(long, value_name = "N", default_value_t = 7)]
    seed: u64,
}

/// Runs it.
pub(crate) async fn run(args: &DemoArgs) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let interrupted = signals.token();
    let told = tokio::select! {
        told = story::tell(args) => told?,
        () = interrupted.cancelled() => {
            return Err(Failure::new(Status::Failed, "demo: interrupted before its end"));
        }
    };
    if args.keep {
        told.keep_until(&interrupted).await?;
    }
    Ok(())
}
