//! What is wrong with a record, and where in it: one line, however large the record is.

use std::fmt;

/// Characters of a value that a message shows.
const SHOWN_CHARS: usize = 40;

/// Characters of a message, without the way to the field: what it cites may be of any length.
const MESSAGE_CHARS: usize = 400;

/// Names of the way to a field that a message shows.
const PATH_PARTS: usize = 8;

/// Why a record cannot be decoded. The way to the field is put together while the error travels outwards.
#[derive(Debug)]
pub(crate) struct Fault {
    what: String,
    /// From the inside to the outside.
    path: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Name(String),
    Index(usize),
    Key(String),
}

impl Fault {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        Self {
            what: if what.len() > MESSAGE_CHARS || what.contains(char::is_control) {
                clipped(&what, MESSAGE_CHARS)
            } else {
                what
            },
            path: Vec::new(),
        }
    }

    /// It happened in the field of this name.
    pub(crate) fn in_field(self, name: &str) -> Self {
        self.within(|| Part::Name(shown(name)))
    }

    /// It happened in this element of an array.
    pub(crate) fn in_element(self, index: usize) -> Self {
        self.within(|| Part::Index(index))
    }

    /// It happened in the value of this key of a map.
    pub(crate) fn in_key(self, key: &[u8]) -> Self {
        self.within(|| Part::Key(shown_bytes(key)))
    }

    fn within(mut self, part: impl FnOnce() -> Part) -> Self {
        if self.path.len() < PATH_PARTS {
            self.path.push(part());
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.path.iter().rev().enumerate() {
            match part {
                Part::Name(name) if i == 0 => f.write_str(name)?,
                Part::Name(name) => write!(f, ".{name}")?,
                Part::Index(index) => write!(f, "[{index}]")?,
                Part::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        if !self.path.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.what)
    }
}

/// The beginning of a value, without what would break a line or a terminal.
pub(crate) fn shown(text: &str) -> String {
    clipped(text, SHOWN_CHARS)
}

/// So many characters of a text.
pub(crate) fn clipped(text: &str, chars: usize) -> String {
    let mut out: String = text
        .chars()
        .take(chars)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(chars).is_some() {
        out.push('…');
    }
    out
}

/// The same of bytes.
pub(crate) fn shown_bytes(bytes: &[u8]) -> String {
    // no character is longer than four bytes
    let head = bytes.get(..4 * SHOWN_CHARS + 4).unwrap_or(bytes);
    shown(&String::from_utf8_lossy(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_where_and_stays_short() {
        let fault = Fault::new("is missing")
            .in_field("price")
            .in_element(3)
            .in_field("items");
        assert_eq!(fault.to_string(), "items[3].price: is missing");
        assert_eq!(
            Fault::new("x").in_key(b"a\nb").in_field("m").to_string(),
            "m[\"a\u{fffd}b\"]: x"
        );
        let mut fault = Fault::new("x");
        for _ in 0..1_000 {
            fault = fault.in_field(&"y".repeat(1_000));
        }
        assert!(fault.to_string().len() < 500);
        let long = Fault::new("z\n".repeat(10_000)).to_string();
        assert!(long.chars().count() <= MESSAGE_CHARS + 1 && !long.contains('\n'));
    }
}
