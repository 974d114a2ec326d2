//! JSON values that are hard to read as columns: of other types, out of range, with zones and without, broken.

/// The columns that are declared of them.
pub const COLUMNS: [(&str, &str); 10] = [
    ("s", "STRING"),
    ("n", "BIGINT"),
    ("b", "BOOLEAN"),
    ("d", "DOUBLE"),
    ("m", "DECIMAL(10, 2)"),
    ("day", "DATE"),
    ("at", "TIMESTAMP_LTZ(3)"),
    ("wall", "TIMESTAMP(6)"),
    ("raw", "BYTES"),
    ("odd/na~me", "INT"),
];

/// One field at a time, then whole values that are wrong.
pub fn values() -> Vec<Option<Vec<u8>>> {
    let fields: &[(&str, &[&str])] = &[
        (
            "s",
            &["\"ann\"", "\"b\\u00f6b\\n\"", "17", "true", "null", "\"\""],
        ),
        (
            "n",
            &[
                "1",
                "-5",
                "0",
                "17.0",
                "1.5",
                "\"42\"",
                "\"x\"",
                "9223372036854775807",
                "9223372036854775808",
                "true",
                "null",
                "[]",
                "\"017\"",
                "\"+1\"",
                "\" 1\"",
            ],
        ),
        ("b", &["true", "false", "\"true\"", "1", "null"]),
        (
            "d",
            &[
                "1.5", "-2", "\"2.5\"", "\"NaN\"", "\"inf\"", "\"x\"", "true", "0.1", "1e999",
            ],
        ),
        (
            "m",
            &[
                "19.99",
                "1.255",
                "1.250",
                "\"7\"",
                "-0.01",
                "99999999.99",
                "100000000",
                "\"\"",
            ],
        ),
        (
            "day",
            &[
                "\"2026-01-31\"",
                "\"2024-02-29\"",
                "\"2026-02-30\"",
                "\"2026-1-1\"",
                "\"2026-01-31T00:00:00\"",
                "20260131",
            ],
        ),
        (
            "at",
            &[
                "\"2026-01-31T08:00:00Z\"",
                "\"2026-01-31 08:00:00.123+02:00\"",
                "\"2026-01-31T08:00:00.1234Z\"",
                "\"2026-01-31T08:00:00.1230Z\"",
                "\"2026-01-31T08:00:00\"",
                "1769846400000",
            ],
        ),
        (
            "wall",
            &[
                "\"2026-01-31T08:00:00.123456\"",
                "\"2026-01-31 08:00:00\"",
                "\"2026-01-31T08:00:00Z\"",
                "\"2026-01-31\"",
                "\"2024-02-29\"",
            ],
        ),
        ("raw", &["\"aGk=\"", "\"\"", "\"%%\"", "\"aGk\""]),
        ("odd/na~me", &["3", "\"4\"", "4.5", "2147483648"]),
    ];
    let mut values: Vec<Option<Vec<u8>>> = Vec::new();
    for (name, all) in fields {
        for value in *all {
            values.push(Some(
                format!("{{\"{name}\":{value},\"other\":[1,{{}}]}}").into_bytes(),
            ));
        }
    }
    values.push(Some(b"{}".to_vec()));
    values.push(Some(b" { } ".to_vec()));
    values.push(None);
    for broken in [
        &b""[..],
        b"no json",
        b"\xff\xfe",
        b"[1]",
        b"17",
        b"{\"n\":1",
        b"{\"n\":1}x",
        b"{\"s\":\"\xff\"}",
    ] {
        values.push(Some(broken.to_vec()));
    }
    values
}
