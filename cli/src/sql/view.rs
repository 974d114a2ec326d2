//! What people see while a query runs: nothing for a second, then a bar on standard error.

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use everlog_query::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use crate::{telemetry, text};

/// A query that is quicker shows no bar.
const QUICK: Duration = Duration::from_secs(1);
/// Between two changes of the bar.
const REDRAW: Duration = Duration::from_millis(200);

/// Hidden where standard error is no terminal. The last one that is dropped takes the bar away.
#[derive(Debug, Clone)]
pub(super) struct View {
    state: Arc<State>,
    _drawing: Arc<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    bar: Mutex<Bar>,
}

#[derive(Debug, Default)]
enum Bar {
    #[default]
    NotYet,
    Shown(ProgressBar),
    Over,
}

impl View {
    pub(super) fn new(progress: &Arc<Progress>) -> Self {
        let state = Arc::new(State::default());
        let mut drawing = JoinSet::new();
        if std::io::stderr().is_terminal() {
            drawing.spawn(draw(Arc::clone(&state), Arc::clone(progress)));
        }
        Self {
            state,
            _drawing: Arc::new(drawing),
        }
    }

    /// Takes the bar away, for good.
    pub(super) fn clear(&self) {
        self.state.clear();
    }
}

impl State {
    fn clear(&self) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Bar::Shown(shown) = std::mem::replace(&mut *bar, Bar::Over) {
            shown.finish_and_clear();
        }
    }

    /// Draws it; says whether there is more to draw.
    fn draw(&self, progress: &Progress, elapsed: Duration) -> bool {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*bar, Bar::NotYet) {
            let new = ProgressBar::new(1_000);
            if let Ok(style) = ProgressStyle::with_template("{bar:12} {percent:>3}%  {wide_msg}") {
                new.set_style(style);
            }
            *bar = Bar::Shown(telemetry::bars().add(new));
        }
        let Bar::Shown(shown) = &*bar else {
            return false;
        };
        let (read, planned) = (progress.bytes_read(), progress.bytes_planned());
        shown.set_position(share(read, planned));
        shown.set_message(message(read, planned, progress.rows_read(), elapsed));
        true
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.clear();
    }
}

async fn draw(state: Arc<State>, progress: Arc<Progress>) {
    let began = Instant::now();
    tokio::time::sleep(QUICK).await;
    while state.draw(&progress, began.elapsed()) {
        tokio::time::sleep(REDRAW).await;
    }
}

/// In thousandths. Columns that are not needed are not read: the end comes before the bar is full.
fn share(read: u64, planned: u64) -> u64 {
    let share = u128::from(read) * 1_000 / u128::from(planned.max(1));
    u64::try_from(share).unwrap_or(u64::MAX).min(1_000)
}

fn message(read: u64, planned: u64, rows: u64, elapsed: Duration) -> String {
    format!(
        "{} of {}  {} rows  {}",
        text::bytes(read),
        text::bytes(planned.max(read)),
        text::count(rows),
        text::duration(elapsed)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_says_how_much_of_how_much() {
        assert_eq!(share(0, 0), 0);
        assert_eq!(share(1, 2), 500);
        assert_eq!(share(3, 2), 1_000);
        assert_eq!(share(u64::MAX, u64::MAX), 1_000);
        assert_eq!(
            message(1_572_864, 3 << 20, 1_234, Duration::from_secs(12)),
            "1.5 MiB of 3.0 MiB  1,234 rows  12 s"
        );
    }
}
