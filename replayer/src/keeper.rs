//! Keeps a snapshot's lease while it is being read: renewed at two thirds by a task of its own, given back at the end.

use std::sync::Arc;
use std::time::Duration;

use everlog_common::Clock;
use everlog_table::archive::ArchiveErrorKind;
use everlog_table::snapshot::PinnedSnapshot;
use tokio::sync::oneshot;

use crate::task::OwnedTask;

/// Between attempts to renew that failed for a reason that may pass.
const RETRY: Duration = Duration::from_secs(30);
/// Giving a lease back is worth this much waiting; its deadline ends it too.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module's text. Dropping it leaves the lease to its deadline.
#[derive(Debug)]
pub(crate) struct Keeper {
    stop: oneshot::Sender<()>,
    task: OwnedTask<()>,
}

impl Keeper {
    pub(crate) fn new(pinned: PinnedSnapshot, clock: Arc<dyn Clock>) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self {
            stop,
            task: OwnedTask::spawn("keeping the lease", keep(pinned, clock, stopped)),
        }
    }

    /// Gives the lease back.
    pub(crate) async fn release(mut self) {
        // The task is gone only with the runtime.
        let _ = self.stop.send(());
        if tokio::time::timeout(RELEASE_TIMEOUT, self.task.join())
            .await
            .is_err()
        {
            tracing::warn!("the lease could not be given back in time; its deadline ends it");
        }
    }
}

async fn keep(
    mut pinned: PinnedSnapshot,
    clock: Arc<dyn Clock>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut retry = None;
    while let Some(at) = pinned.renew_at() {
        let wait = retry.take().unwrap_or_else(|| at.since(clock.now()));
        tokio::select! {
            _ = &mut stopped => return pinned.release().await,
            () = clock.sleep(wait) => {}
        }
        match pinned.renew().await {
            Ok(()) => tracing::debug!(snapshot_id = pinned.snapshot_id, "lease renewed"),
            Err(error) if error.kind() == ArchiveErrorKind::Transient => {
                tracing::warn!(%error, "the lease could not be renewed, trying again");
                retry = Some(RETRY);
            }
            Err(error) => {
                tracing::warn!(%error, "the lease is lost; reading goes on as long as the files are there");
                break;
            }
        }
    }
    // Without a lease there is nothing to do but to wait for the end.
    let _ = stopped.await;
    pinned.release().await;
}
