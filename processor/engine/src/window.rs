//! Windows: tumbling, hopping and session, and how they are cut into panes.

use serde::{Deserialize, Serialize};

/// A query's window. All lengths are milliseconds and positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Window {
    /// Windows of `size` one after the other, aligned to 1970-01-01 in UTC.
    Tumble {
        /// The length of a window.
        size: i64,
    },
    /// A window of `size` begins at each multiple of `slide`.
    Hop {
        /// The distance between the starts of two windows.
        slide: i64,
        /// The length of a window, a multiple of `slide`.
        size: i64,
    },
    /// Records of a key whose times differ by at most `gap` belong together; the window ends `gap` after the last.
    Session {
        /// The longest pause within a session.
        gap: i64,
    },
}

impl Window {
    /// The function's name in SQL.
    pub fn name(&self) -> &'static str {
        match self {
            Window::Tumble { .. } => "tumble",
            Window::Hop { .. } => "hop",
            Window::Session { .. } => "session",
        }
    }

    /// Its length: the size, or the gap.
    pub fn length(&self) -> i64 {
        match *self {
            Window::Tumble { size } | Window::Hop { size, .. } => size,
            Window::Session { gap } => gap,
        }
    }

    /// The lateness that holds where the job says none: a session takes what is up to a gap late, because it would
    /// otherwise lose records that still lie within an open session.
    pub fn default_lateness(&self) -> i64 {
        match *self {
            Window::Session { gap } => gap,
            _ => 0,
        }
    }

    /// Tumbling and hopping windows as panes; `None` for sessions.
    pub fn panes(&self) -> Option<Panes> {
        match *self {
            Window::Tumble { size } => Some(Panes { slide: size, size }),
            Window::Hop { slide, size } => Some(Panes { slide, size }),
            Window::Session { .. } => None,
        }
    }
}

/// Windows that begin at each multiple of `slide` and are `size` long, cut into panes of `slide`.
///
/// The size is a multiple of the slide (Flink demands that too), so a pane is as long as the slide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panes {
    /// The distance between two starts, and the length of a pane.
    pub slide: i64,
    /// The length of a window.
    pub size: i64,
}

impl Panes {
    /// The pane that `time` lies in, by its start: also the start of the last window that holds `time`.
    #[inline]
    pub fn pane(&self, time: i64) -> i64 {
        time.div_euclid(self.slide) * self.slide
    }

    /// The start of the first window that holds the pane.
    #[inline]
    pub fn first_window(&self, pane: i64) -> i64 {
        pane + self.slide - self.size
    }

    /// The starts of all windows that hold `pane` and begin at or after `from`.
    pub fn windows(&self, pane: i64, from: i64) -> impl Iterator<Item = i64> + use<> {
        let slide = self.slide;
        let first = self.first_window(pane).max(from);
        let count = if first > pane {
            0
        } else {
            (pane - first) / slide + 1
        };
        (0..count).map(move |i| first + i * slide)
    }

    /// The starts of the panes of the window that begins at `start`.
    pub fn of_window(&self, start: i64) -> impl Iterator<Item = i64> + use<> {
        let slide = self.slide;
        (0..self.size / slide).map(move |i| start + i * slide)
    }
}
