//! How people write durations and sizes, wherever a file or an option has one.

use std::time::Duration;

/// Reads `500ms`, `10s`, `1h30m`, `5d`: numbers with units, largest first or not, no spaces needed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || {
        format!("{text:?} is not a duration: write a number with ms, s, m, h or d, like \"10s\"")
    };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(refused());
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, unit, tail) = number_and_unit(rest).ok_or_else(refused)?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(refused()),
        };
        total = number
            .checked_mul(millis)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(refused)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total))
}

/// Reads `512MiB`, `64 KiB`, `2GB`, `100B`: a whole number and a unit (binary with `i`, else decimal).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let refused = || {
        format!("{text:?} is not a size: write a number with B, KiB, MiB or GiB, like \"512MiB\"")
    };
    let (number, unit, tail) = number_and_unit(text.trim()).ok_or_else(refused)?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(refused()),
    };
    if !tail.is_empty() {
        return Err(refused());
    }
    number.checked_mul(factor).ok_or_else(refused)
}

/// Splits `12 MiB rest` into 12, `MiB` and `rest`.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(digits)?;
    let rest = rest.trim_start();
    let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (unit, tail) = rest.split_at_checked(letters)?;
    Some((number.parse().ok()?, unit, tail.trim_start()))
}

/// The shortest exact way to write a duration that [`parse_duration`] reads back.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if millis >= size && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

/// The shortest exact way to write a size that [`parse_bytes`] reads back.
pub fn format_bytes(bytes: u64) -> String {
    for (unit, size) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_units_and_written_back() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5 m", 300_000),
            ("1h30m", 5_400_000),
            ("5d", 432_000_000),
            ("0s", 0),
        ] {
            let read = parse_duration(text).unwrap();
            assert_eq!(read, Duration::from_millis(millis), "{text}");
            assert_eq!(parse_duration(&format_duration(read)), Ok(read), "{text}");
        }
        for wrong in [
            "",
            "10",
            "s",
            "-1s",
            "1.5s",
            "10 parsecs",
            "99999999999999999999s",
            "9999999999999999d",
            "1ü",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_with_units_and_written_back() {
        for (text, bytes) in [
            ("512MiB", 512 << 20),
            ("1 GiB", 1 << 30),
            ("64KiB", 65_536),
            ("2MB", 2_000_000),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes), "{text}");
        }
        for wrong in ["", "512", "MiB", "1.5GiB", "1GiB2", "-1B", "99999999999TiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
