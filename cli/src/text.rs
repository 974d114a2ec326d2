//! Numbers for people.

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use everlog_common::Millis;

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Line breaks and other control characters as `\n`, `\u{1b}`: what is quoted from input neither breaks a message's one
/// line nor steers the terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// `1 snapshot`, `2 snapshots`.
pub(crate) fn things(number: u64, one: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {one}{plural}", count(number))
}

/// `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" {
                format!("{bytes} B")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `3 d 4 h`, `4 min 10 s`, `0.8 s`: two units at most.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds < 10 => format!("{:.1} s", duration.as_secs_f64()),
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {} s", seconds % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

/// Seconds as a number in JSON: with three digits, not what binary fractions make of them.
pub(crate) fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// `340,000/s`, from how many in how long.
pub(crate) fn rate(number: u64, elapsed: Duration) -> String {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown with three digits"
    )]
    let per_second = (number as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
    let unit = 10_u64.pow(per_second.checked_ilog10().unwrap_or(0).saturating_sub(2));
    format!("{}/s", count(per_second / unit * unit))
}

/// RFC 3339 in UTC, to the millisecond; the bare number where the calendar ends.
pub(crate) fn time(at: Millis) -> String {
    DateTime::from_timestamp_millis(at.0).map_or_else(
        || format!("{} ms", at.0),
        |t| t.to_rfc3339_opts(SecondsFormat::Millis, true),
    )
}

/// Lines of a table: the first row is the head; columns whose index is in `right` are flush right.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|r| r.get(c))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let width = widths.get(c).copied().unwrap_or(0);
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            if right.contains(&c) {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_stays_on_its_line() {
        assert_eq!(printable("día\n\x1b[2J\t."), "día\\n\\u{1b}[2J\\t.");
        assert!(matches!(printable("as it is"), Cow::Borrowed("as it is")));
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_572_864), "1.5 MiB");
        assert_eq!(duration(Duration::from_millis(840)), "0.8 s");
        assert_eq!(duration(Duration::from_secs(250)), "4 min 10 s");
        assert_eq!(duration(Duration::from_hours(76)), "3 d 4 h");
        assert_eq!(
            serde_json::json!(seconds(Duration::from_nanos(1_132_000_001))).to_string(),
            "1.132"
        );
        assert_eq!(rate(123_456, Duration::from_secs(1)), "123,000/s");
        assert_eq!(rate(7, Duration::from_secs(1)), "7/s");
        assert_eq!(rate(0, Duration::ZERO), "0/s");
        assert_eq!(time(Millis(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(Millis(i64::MAX)), format!("{} ms", i64::MAX));
        assert_eq!(things(1, "snapshot"), "1 snapshot");
        assert_eq!(things(2, "snapshot"), "2 snapshots");
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [
            vec!["NAME".to_owned(), "N".to_owned()],
            vec!["a".to_owned(), "100".to_owned()],
        ];
        assert_eq!(table(&rows, &[1]), "NAME    N\na     100\n");
    }
}
