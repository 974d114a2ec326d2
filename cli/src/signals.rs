//! SIGTERM and Ctrl-C: the first asks for an orderly end, the second does not ask.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::{Failure, Status};

/// A second signal counts only after this: `timeout` and process groups send the first one twice.
const SAME_REQUEST: Duration = Duration::from_secs(1);

/// What a shell calls ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// The token that the first signal cancels; the listening task ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Signals {
    token: CancellationToken,
    _listener: JoinSet<()>,
}

impl Signals {
    /// Begins to listen.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let mut terminate = on(SignalKind::terminate())?;
        let mut interrupt = on(SignalKind::interrupt())?;
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let mut listener = JoinSet::new();
        listener.spawn(async move {
            next(&mut terminate, &mut interrupt).await;
            info!("ending in order; a second signal ends at once");
            cancelled.cancel();
            let began = Instant::now();
            while began.elapsed() < SAME_REQUEST {
                let rest = SAME_REQUEST.saturating_sub(began.elapsed());
                let again = next(&mut terminate, &mut interrupt);
                // What comes within that time is the same request.
                let _same = tokio::time::timeout(rest, again).await;
            }
            next(&mut terminate, &mut interrupt).await;
            #[allow(
                clippy::exit,
                reason = "the second signal asks for exactly this; whatever is killed here resumes exactly"
            )]
            std::process::exit(INTERRUPTED);
        });
        Ok(Self {
            token,
            _listener: listener,
        })
    }

    /// Cancelled by the first signal.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn on(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| {
        Failure::new(
            Status::Failed,
            format!("cannot listen for signals: {error}"),
        )
    })
}
