//! Dates and times as text, exactly. Years 0001 to 9999 of the Gregorian calendar, no leap seconds.

use crate::fault::{Fault, shown_bytes};
use crate::types::Precision;

/// A date and a time of day as text has them.
struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    /// So many digits, as a number.
    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.rest.split_at_checked(count)?;
        let number = digits.iter().try_fold(0_i64, |number, byte| {
            byte.is_ascii_digit()
                .then(|| number * 10 + i64::from(byte - b'0'))
        })?;
        self.rest = rest;
        Some(number)
    }

    fn sign(&mut self, signs: &[u8]) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        if !signs.contains(first) {
            return None;
        }
        self.rest = rest;
        Some(*first)
    }

    /// Days since 1970-01-01.
    fn date(&mut self) -> Option<i64> {
        let year = self.digits(4)?;
        self.sign(b"-")?;
        let month = self.digits(2)?;
        self.sign(b"-")?;
        let day = self.digits(2)?;
        let right =
            year >= 1 && (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
        right.then(|| days_from_civil(year, month, day))
    }

    /// Seconds since midnight, and nanoseconds.
    fn time(&mut self) -> Option<(i64, i64)> {
        let hour = self.digits(2)?;
        self.sign(b":")?;
        let minute = self.digits(2)?;
        self.sign(b":")?;
        let second = self.digits(2)?;
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let mut nanos = 0;
        if self.sign(b".").is_some() {
            let mut unit = 100_000_000;
            let mut any = false;
            while let Some(digit) = self.digits(1) {
                // a tenth digit is beyond every type; zeros say nothing
                if unit == 0 && digit != 0 {
                    return None;
                }
                nanos += digit * unit;
                unit /= 10;
                any = true;
            }
            if !any {
                return None;
            }
        }
        Some((hour * 3_600 + minute * 60 + second, nanos))
    }

    /// Seconds east of Greenwich: `Z`, `+02:00`, `+0200`, `+02`. `Some(None)` where the text ends without.
    fn zone(&mut self) -> Option<Option<i64>> {
        if self.rest.is_empty() {
            return Some(None);
        }
        let east = match self.sign(b"Zz+-")? {
            b'+' => 1,
            b'-' => -1,
            _ => return self.rest.is_empty().then_some(Some(0)),
        };
        let hours = self.digits(2)?;
        let minutes = if self.rest.is_empty() {
            0
        } else {
            self.sign(b":");
            self.digits(2)?
        };
        (self.rest.is_empty() && hours <= 23 && minutes <= 59)
            .then_some(Some(east * (hours * 3_600 + minutes * 60)))
    }
}

const fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Howard Hinnant's `days_from_civil`, for years from 1.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let of_era = year - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Whether a text must, or must not, say how far it is from Greenwich.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    /// An instant.
    Given,
    /// A wall clock's.
    None,
}

/// `2026-01-31` as days since 1970.
pub(crate) fn date(text: &[u8]) -> Result<i64, Fault> {
    let mut reader = Reader { rest: text };
    match reader.date() {
        Some(days) if reader.rest.is_empty() => Ok(days),
        _ => Err(Fault::new(format!(
            "\"{}\" is not a date like 2026-01-31",
            shown_bytes(text)
        ))),
    }
}

/// `08:00:00.123` as units since midnight.
pub(crate) fn time_of_day(text: &[u8], precision: Precision) -> Result<i64, Fault> {
    let mut reader = Reader { rest: text };
    match reader.time() {
        Some((seconds, nanos)) if reader.rest.is_empty() => {
            units(seconds, nanos, precision, text, "TIME")
        }
        _ => Err(Fault::new(format!(
            "\"{}\" is not a time of day like 08:00:00.123",
            shown_bytes(text)
        ))),
    }
}

/// `2026-01-31T08:00:00.123Z`, or with a space for the `T`, as units since 1970 (UTC, or of the wall clock).
pub(crate) fn timestamp(text: &[u8], precision: Precision, zone: Zone) -> Result<i64, Fault> {
    let mut reader = Reader { rest: text };
    let read = reader.date().and_then(|days| {
        reader.sign(b"Tt ")?;
        let (seconds, nanos) = reader.time()?;
        Some((days * 86_400 + seconds, nanos, reader.zone()?))
    });
    let (seconds, nanos, offset) = match (read, zone) {
        (None, _) => {
            let z = if zone == Zone::Given { "Z" } else { "" };
            return Err(Fault::new(format!(
                "\"{}\" is not a time like 2026-01-31T08:00:00.123{z}",
                shown_bytes(text)
            )));
        }
        (Some((_, _, None)), Zone::Given) => {
            return Err(Fault::new(format!(
                "\"{}\" is no instant, since it has neither Z nor an offset: declare the column TIMESTAMP",
                shown_bytes(text)
            )));
        }
        (Some((_, _, Some(_))), Zone::None) => {
            return Err(Fault::new(format!(
                "\"{}\" is an instant, since it has Z or an offset: declare the column TIMESTAMP_LTZ",
                shown_bytes(text)
            )));
        }
        (Some((seconds, nanos, offset)), _) => (seconds, nanos, offset.unwrap_or(0)),
    };
    units(seconds - offset, nanos, precision, text, "TIMESTAMP")
}

fn units(
    seconds: i64,
    nanos: i64,
    precision: Precision,
    text: &[u8],
    name: &str,
) -> Result<i64, Fault> {
    let unit = 1_000_000_000 / precision.per_second();
    if nanos % unit != 0 {
        return Err(Fault::new(format!(
            "\"{}\" is finer than {name}({}) holds",
            shown_bytes(text),
            precision.digits()
        )));
    }
    seconds
        .checked_mul(precision.per_second())
        .and_then(|units| units.checked_add(nanos / unit))
        .ok_or_else(|| {
            Fault::new(format!(
                "\"{}\" is out of the range of {name}({})",
                shown_bytes(text),
                precision.digits()
            ))
        })
}

/// A number of one unit in another, where that is exact and fits.
pub(crate) fn rescale(value: i64, from: Precision, to: Precision) -> Result<i64, Fault> {
    let (from, to) = (from.per_second(), to.per_second());
    if to >= from {
        value
            .checked_mul(to / from)
            .ok_or_else(|| Fault::new(format!("{value} is out of range in the column's unit")))
    } else if value % (from / to) == 0 {
        Ok(value / (from / to))
    } else {
        Err(Fault::new(format!(
            "{value} is finer than the column's unit"
        )))
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, NaiveDate, NaiveDateTime};
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str, precision: Precision, zone: Zone) -> Result<i64, String> {
        timestamp(text.as_bytes(), precision, zone).map_err(|e| e.to_string())
    }

    #[test]
    fn times_are_read_exactly_or_refused() {
        use Precision::{Micros, Millis, Nanos, Seconds};
        use Zone::{Given, None};
        for (text, precision, zone, value) in [
            ("1970-01-01T00:00:00Z", Millis, Given, Ok(0)),
            ("1970-01-01 02:00:00.5+02:00", Millis, Given, Ok(500)),
            ("1970-01-01T00:00:00-0130", Seconds, Given, Ok(5_400)),
            ("1970-01-01t00:00:00+01", Seconds, Given, Ok(-3_600)),
            ("1969-12-31 23:59:59.999999", Micros, None, Ok(-1)),
            ("2024-02-29 00:00:00", Seconds, None, Ok(1_709_164_800)),
            ("1970-01-01 00:00:00.1230000000000", Millis, None, Ok(123)),
            (
                "1970-01-01 00:00:00.1231",
                Millis,
                None,
                Err("\"1970-01-01 00:00:00.1231\" is finer than TIMESTAMP(3) holds"),
            ),
            (
                "2300-01-01 00:00:00",
                Nanos,
                None,
                Err("\"2300-01-01 00:00:00\" is out of the range of TIMESTAMP(9)"),
            ),
            (
                "2026-01-31T08:00:00",
                Millis,
                Given,
                Err(
                    "\"2026-01-31T08:00:00\" is no instant, since it has neither Z nor an offset: declare the column TIMESTAMP",
                ),
            ),
            (
                "2026-01-31T08:00:00Z",
                Millis,
                None,
                Err(
                    "\"2026-01-31T08:00:00Z\" is an instant, since it has Z or an offset: declare the column TIMESTAMP_LTZ",
                ),
            ),
        ] {
            assert_eq!(
                at(text, precision, zone),
                value.map_err(str::to_owned),
                "{text}"
            );
        }
        for wrong in [
            "",
            "2026-01-31",
            "2026-13-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T23:59:60Z",
            "2026-01-31T08:00Z",
            "2026-01-31T08:00:00.Z",
            "2026-01-31T08:00:00.0000000001Z",
            "2026-01-31T08:00:00 Z",
            "2026-01-31T08:00:00Z ",
            "2026-01-31T08:00:00+2",
            "2026-01-31T08:00:00+24:00",
            "2026-01-31T08:00:00+02:60",
            "+026-01-31T08:00:00Z",
            "yesterday",
        ] {
            let error = at(wrong, Nanos, Given).unwrap_err();
            assert!(error.contains("is not a time like"), "{wrong}: {error}");
        }
    }

    #[test]
    fn dates_and_times_of_day_are_read() {
        assert_eq!(date(b"1970-01-02").unwrap(), 1);
        assert_eq!(date(b"0001-01-01").unwrap(), -719_162);
        assert_eq!(date(b"9999-12-31").unwrap(), 2_932_896);
        let error = date(b"2026-1-31").unwrap_err().to_string();
        assert_eq!(error, "\"2026-1-31\" is not a date like 2026-01-31");
        assert_eq!(
            time_of_day(b"00:00:01.5", Precision::Millis).unwrap(),
            1_500
        );
        let error = time_of_day(b"25:00:00", Precision::Millis).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"25:00:00\" is not a time of day like 08:00:00.123"
        );
    }

    #[test]
    fn units_are_changed_exactly_or_not_at_all() {
        use Precision::{Micros, Millis, Nanos};
        assert_eq!(rescale(-7, Millis, Micros).unwrap(), -7_000);
        assert_eq!(rescale(-7_000, Micros, Millis).unwrap(), -7);
        assert!(rescale(-7_001, Micros, Millis).is_err());
        assert!(rescale(i64::MAX, Millis, Nanos).is_err());
    }

    proptest! {
        #[test]
        fn the_calendar_is_chronos(millis in -62_135_596_800_000_i64..253_402_300_800_000, days in -719_162_i32..2_932_897) {
            let time = DateTime::from_timestamp_millis(millis).unwrap();
            let text = time.to_rfc3339();
            prop_assert_eq!(at(&text, Precision::Millis, Zone::Given), Ok(millis));
            let wall: NaiveDateTime = time.naive_utc();
            let text = wall.format("%Y-%m-%d %H:%M:%S%.f").to_string();
            prop_assert_eq!(at(&text, Precision::Millis, Zone::None), Ok(millis));
            let day = NaiveDate::from_epoch_days(days).unwrap();
            prop_assert_eq!(date(day.to_string().as_bytes()).unwrap(), i64::from(days));
        }

        #[test]
        fn any_text_is_a_time_or_refused(text in "[0-9TZ:.+ -]{0,40}") {
            let _ = at(&text, Precision::Nanos, Zone::Given);
            let _ = at(&text, Precision::Seconds, Zone::None);
            let _ = (date(text.as_bytes()).is_ok(), time_of_day(text.as_bytes(), Precision::Micros).is_ok());
        }
    }
}
