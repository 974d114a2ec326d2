//! librdkafka's log lines: to `tracing`, at most so many warnings a minute, and the last one kept for error messages.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WARNINGS_A_MINUTE: u32 = 10;
const MINUTE: Duration = Duration::from_mins(1);
/// A line older than this explains nothing any more.
const RECENT: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    window: Option<Instant>,
    written: u32,
    withheld: u32,
    last_error: Option<(Instant, String)>,
}

/// Where a client's log lines go.
#[derive(Debug, Default)]
pub(super) struct LogLines {
    state: Mutex<State>,
}

enum Verdict {
    Write { withheld: u32 },
    Withhold,
}

impl State {
    fn judge(&mut self, now: Instant) -> Verdict {
        let fresh = self.window.is_none_or(|began| now - began >= MINUTE);
        if fresh {
            self.window = Some(now);
            self.written = 0;
        }
        if self.written >= WARNINGS_A_MINUTE {
            self.withheld += 1;
            return Verdict::Withhold;
        }
        self.written += 1;
        Verdict::Write {
            withheld: std::mem::take(&mut self.withheld),
        }
    }
}

impl LogLines {
    /// Takes one line; `level` is syslog's.
    pub(super) fn line(&self, level: i32, facility: &str, text: &str) {
        let text = text.trim();
        // the client says everything again as an error of the whole client, and then how many brokers are down
        if level > 4 || (facility == "ERROR" && !text.contains("atal error")) {
            if level > 6 {
                tracing::trace!(target: "librdkafka", facility, "{text}");
            } else {
                tracing::debug!(target: "librdkafka", facility, "{text}");
            }
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if level <= 3 {
            state.last_error = Some((now, text.to_owned()));
        }
        let verdict = state.judge(now);
        drop(state);
        match verdict {
            Verdict::Write { withheld } => {
                tracing::warn!(target: "librdkafka", facility, withheld, "{text}");
            }
            Verdict::Withhold => tracing::debug!(target: "librdkafka", facility, "{text}"),
        }
    }

    /// The last error that the client logged, if it is recent.
    pub(super) fn last_error(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, text) = state.last_error.as_ref()?;
        (at.elapsed() < RECENT).then(|| text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded_and_the_withheld_are_counted() {
        let mut state = State::default();
        let now = Instant::now();
        let written = (0..25)
            .filter(|_| matches!(state.judge(now), Verdict::Write { .. }))
            .count();
        assert_eq!(written, 10);
        match state.judge(now + MINUTE) {
            Verdict::Write { withheld } => assert_eq!(withheld, 15),
            Verdict::Withhold => panic!("a new minute begins"),
        }
    }
}
