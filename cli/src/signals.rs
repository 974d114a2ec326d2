//! SIGTERM and Ctrl-C: the first asks for an orderly end, the second does not ask.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::failure::{Failure, Status};

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
