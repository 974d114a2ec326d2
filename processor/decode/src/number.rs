//! Numbers as text, exactly: what JSON writes with or without a point or an exponent, as a whole number of units. No float in
//! between, no rounding.

/// Why a number does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// It has digits other than 0 behind the last place that counts.
    Fraction,
    /// It is larger than 38 digits.
    Range,
}

/// How many bytes at the beginning of `text` are a JSON number; `None` where it does not begin with one. `1.` and `01` do
/// not: what follows the number that they begin with is for the caller to refuse.
pub(crate) fn scan(text: &[u8]) -> Option<usize> {
    let mut at = usize::from(text.first() == Some(&b'-'));
    match text.get(at)? {
        b'0' => at += 1,
        b'1'..=b'9' => at += digits(text, at),
        _ => return None,
    }
    if text.get(at) == Some(&b'.') {
        let fraction = digits(text, at + 1);
        if fraction == 0 {
            return None;
        }
        at += 1 + fraction;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits(text, at + 1 + sign);
        if exponent == 0 {
            return None;
        }
        at += 1 + sign + exponent;
    }
    Some(at)
}

fn digits(text: &[u8], from: usize) -> usize {
    text.get(from..)
        .unwrap_or_default()
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count()
}

/// The value of a JSON number (as [`scan`] accepts it, whole) times ten to the power of `scale`.
pub(crate) fn exact(text: &[u8], scale: u8) -> Result<i128, Misfit> {
    let (negative, text) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    let whole = digits(text, 0);
    let fraction = match text.get(whole) {
        Some(b'.') => digits(text, whole + 1),
        _ => 0,
    };
    let mantissa = whole + fraction + usize::from(fraction > 0);
    // an exponent too long for a number is as good as endless
    let exponent = match text.get(mantissa + 1..) {
        Some(digits) if !digits.is_empty() => exponent(digits),
        _ => 0,
    };
    let figures = || {
        text.get(..mantissa)
            .unwrap_or_default()
            .iter()
            .filter(|b| b.is_ascii_digit())
            .map(|b| b - b'0')
    };
    let leading = figures().take_while(|d| *d == 0).count();
    let significant = whole + fraction - leading;
    if significant == 0 {
        return Ok(0);
    }
    // value = figures × 10^(exponent − fraction); asked for is figures × 10^shift
    let shift = exponent - signed(fraction) + i64::from(scale);
    let kept = signed(significant) + shift.min(0);
    if kept > 39 || kept + shift.max(0) > 39 {
        // too large, unless it is too small and has a fraction on top: it is out of range first
        return Err(Misfit::Range);
    }
    let kept = usize::try_from(kept).unwrap_or(0);
    let mut figures = figures().skip(leading);
    let mut value: i128 = 0;
    for digit in figures.by_ref().take(kept) {
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(i128::from(digit)))
            .ok_or(Misfit::Range)?;
    }
    if figures.any(|digit| digit != 0) {
        return Err(Misfit::Fraction);
    }
    for _ in 0..shift.max(0) {
        value = value.checked_mul(10).ok_or(Misfit::Range)?;
    }
    Ok(if negative { -value } else { value })
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX / 4)
}

/// The number behind an `e`, with its sign, within bounds that are beyond every record's length.
fn exponent(text: &[u8]) -> i64 {
    const ENDLESS: i64 = 1 << 40;
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let value = digits.iter().fold(0_i64, |value, digit| {
        (value * 10 + i64::from(digit.wrapping_sub(b'0'))).min(ENDLESS)
    });
    if negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_numbers_are_recognised() {
        for (text, len) in [
            ("0", Some(1)),
            ("-0.0e-0", Some(7)),
            ("12.5,", Some(4)),
            ("1E+9}", Some(4)),
            ("01", Some(1)),
            ("-", None),
            ("1.", None),
            (".5", None),
            ("1e", None),
            ("1e+", None),
            ("+1", None),
            ("NaN", None),
            ("", None),
        ] {
            assert_eq!(scan(text.as_bytes()), len, "{text}");
        }
    }

    #[test]
    fn values_are_exact_or_refused() {
        use Misfit::{Fraction, Range};
        for (text, scale, value) in [
            ("0", 0, Ok(0)),
            ("-0.000", 0, Ok(0)),
            ("0e999999999999999999999", 5, Ok(0)),
            ("12.50", 2, Ok(1250)),
            ("12.5", 2, Ok(1250)),
            ("12.505", 2, Err(Fraction)),
            ("12.500", 0, Err(Fraction)),
            ("12.000", 0, Ok(12)),
            ("-1e3", 0, Ok(-1000)),
            ("1200e-2", 0, Ok(12)),
            ("1201e-2", 0, Err(Fraction)),
            ("1e-1", 0, Err(Fraction)),
            ("0.1e1", 0, Ok(1)),
            ("1e-99999999999999999999", 0, Err(Fraction)),
            ("1e99999999999999999999", 0, Err(Range)),
            ("1e38", 0, Ok(10_i128.pow(38))),
            ("1e40", 0, Err(Range)),
            ("170141183460469231731687303715884105727", 0, Ok(i128::MAX)),
            ("170141183460469231731687303715884105728", 0, Err(Range)),
            (
                "99999999999999999999999999999999999999",
                0,
                Ok(99_999_999_999_999_999_999_999_999_999_999_999_999),
            ),
            ("0.00000000000000000000000000000000000001", 38, Ok(1)),
        ] {
            assert_eq!(exact(text.as_bytes(), scale), value, "{text} at {scale}");
        }
        let long = format!("1{}.0{}", "0".repeat(5_000), "0".repeat(5_000));
        assert_eq!(exact(long.as_bytes(), 0), Err(Range));
        let long = format!("{long}e-5000");
        assert_eq!(exact(long.as_bytes(), 0), Ok(1));
    }

    proptest! {
        #[test]
        fn any_way_to_write_a_number_gives_it(value in -10_i128.pow(30)..10_i128.pow(30), scale in 0_u8..8, zeros in 0_usize..5, shift in -20_i32..20) {
            // value × 10^-shift, with an exponent that takes it back
            let digits = value.unsigned_abs().to_string();
            let sign = if value < 0 { "-" } else { "" };
            let zeros = "0".repeat(zeros);
            let text = if shift > 0 {
                let at = digits.len().saturating_sub(shift.unsigned_abs() as usize);
                let padded = format!("{}{digits}", "0".repeat((shift.unsigned_abs() as usize + 1).saturating_sub(digits.len())));
                let at = if at == 0 { padded.len() - shift.unsigned_abs() as usize } else { at };
                let (whole, fraction) = padded.split_at(at);
                format!("{sign}{whole}.{fraction}{zeros}e{shift}")
            } else {
                format!("{sign}{digits}{}e{shift}", "0".repeat(shift.unsigned_abs() as usize))
            };
            prop_assert_eq!(scan(text.as_bytes()), Some(text.len()));
            prop_assert_eq!(exact(text.as_bytes(), scale), Ok(value * 10_i128.pow(u32::from(scale))));
        }
    }
}
