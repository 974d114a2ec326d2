//! Times as text, all that 64 bits can say: a producer may give a record any timestamp, and no answer fails for it.

use arrow_array::Array;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Date32Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use arrow_schema::{DataType, TimeUnit};
use chrono::{DateTime, Datelike as _, SecondsFormat, Utc};

const DAY_SECONDS: i64 = 24 * 60 * 60;
/// The calendar comes again after 400 years.
const CYCLE_YEARS: i64 = 400;
const CYCLE_SECONDS: i64 = 146_097 * DAY_SECONDS;

/// How many there are of a unit in a second.
const fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// A moment by the calendar of ISO 8601: the year with a sign and all its digits where it has not four, as `+292277-01-09T04:00:54.775Z`.
/// `zoned`: whether it is an instant, which ends in `Z`.
pub(crate) fn text(value: i64, unit: TimeUnit, zoned: bool) -> String {
    let per_second = per_second(unit);
    let (seconds, part) = (value.div_euclid(per_second), value.rem_euclid(per_second));
    let nanos = part * (1_000_000_000 / per_second);
    let (cycles, within) = (
        seconds.div_euclid(CYCLE_SECONDS),
        seconds.rem_euclid(CYCLE_SECONDS),
    );
    // 1970 to 2370
    let moment = DateTime::<Utc>::from_timestamp(within, u32::try_from(nanos).unwrap_or_default());
    let moment = moment.unwrap_or_default();
    let year = i64::from(moment.year()) + cycles * CYCLE_YEARS;
    let rest = moment.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let rest = rest.get(4..).unwrap_or_default();
    let rest = if zoned {
        rest
    } else {
        rest.trim_end_matches('Z')
    };
    match year {
        0..=9_999 => format!("{year:04}{rest}"),
        _ => format!("{year:+05}{rest}"),
    }
}

/// A day by the same calendar, as days since 1970.
pub(crate) fn date(days: i32) -> String {
    let text = text(i64::from(days) * DAY_SECONDS, TimeUnit::Second, false);
    let (date, _) = text.split_once('T').unwrap_or((&text, ""));
    date.to_owned()
}

/// The same of a value of an array; none: it is not of times, or null.
pub(crate) fn text_at(array: &dyn Array, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    let (value, unit, zoned) = match array.data_type() {
        DataType::Timestamp(unit, zone) => {
            let value = match unit {
                TimeUnit::Second => array.as_primitive::<TimestampSecondType>().value(row),
                TimeUnit::Millisecond => {
                    array.as_primitive::<TimestampMillisecondType>().value(row)
                }
                TimeUnit::Microsecond => {
                    array.as_primitive::<TimestampMicrosecondType>().value(row)
                }
                TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().value(row),
            };
            (value, *unit, zone.is_some())
        }
        DataType::Date32 => {
            return Some(date(array.as_primitive::<Date32Type>().value(row)));
        }
        _ => return None,
    };
    Some(text(value, unit, zoned))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_moment_has_a_text() {
        for (value, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (253_402_300_800_000_000, "+10000-01-01T00:00:00Z"),
            (-62_167_219_200_000_001, "-0001-12-31T23:59:59.999999Z"),
            (i64::MAX, "+294247-01-10T04:00:54.775807Z"),
            (i64::MIN, "-290308-12-21T19:59:05.224192Z"),
        ] {
            assert_eq!(text(value, TimeUnit::Microsecond, true), expected);
        }
        let days = arrow_array::Date32Array::from(vec![i32::MAX, 0]);
        assert_eq!(text_at(&days, 0).unwrap(), "+5881580-07-11");
        assert_eq!(text_at(&days, 1).unwrap(), "1970-01-01");
    }

    proptest! {
        /// Where chrono has a calendar, it is the same.
        #[test]
        fn the_calendar_is_chronos(micros in -8_000_000_000_000_000_000_i64..8_000_000_000_000_000_000) {
            let known = DateTime::<Utc>::from_timestamp_micros(micros).unwrap();
            prop_assert_eq!(
                text(micros, TimeUnit::Microsecond, true),
                known.to_rfc3339_opts(SecondsFormat::AutoSi, true)
            );
        }
    }
}
