//! One value as text for people.

use std::borrow::Cow;
use std::fmt::Write as _;

use arrow_array::cast::AsArray as _;
use arrow_array::{Array, ArrayRef};
use arrow_cast::display::{
    ArrayFormatter, ArrayFormatterFactory, DisplayIndex, FormatOptions, FormatResult,
};
use arrow_schema::{ArrowError, DataType, Field};

use crate::moments;

/// How nothing is shown.
const NULL: &str = "NULL";

/// Control characters, and those that turn the direction of writing or break lines, as escapes: what is shown neither
/// steers the terminal nor looks like something else.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unprintable(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Bytes as text if they are UTF-8, else `\x` and hexadecimal digits.
fn write_bytes(bytes: &[u8], out: &mut dyn std::fmt::Write) -> std::fmt::Result {
    match std::str::from_utf8(bytes) {
        Ok(text) => out.write_str(text),
        Err(_) => {
            out.write_str("\\x")?;
            bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
        }
    }
}

/// Bytes by row, whatever the array.
#[derive(Debug)]
pub(super) enum Bytes<'a> {
    Small(&'a arrow_array::BinaryArray),
    Large(&'a arrow_array::LargeBinaryArray),
    View(&'a arrow_array::BinaryViewArray),
    Fixed(&'a arrow_array::FixedSizeBinaryArray),
}

impl<'a> Bytes<'a> {
    fn of(array: &'a dyn Array) -> Option<Self> {
        match array.data_type() {
            DataType::Binary => Some(Self::Small(array.as_binary())),
            DataType::LargeBinary => Some(Self::Large(array.as_binary())),
            DataType::BinaryView => Some(Self::View(array.as_binary_view())),
            DataType::FixedSizeBinary(_) => Some(Self::Fixed(array.as_fixed_size_binary())),
            _ => None,
        }
    }

    fn get(&self, row: usize) -> Option<&'a [u8]> {
        match self {
            Self::Small(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row)),
            Self::View(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Fixed(array) => array.is_valid(row).then(|| array.value(row)),
        }
    }
}

/// Bytes inside of lists and structures: quoted where they are text.
impl DisplayIndex for Bytes<'_> {
    fn write(&self, row: usize, out: &mut dyn std::fmt::Write) -> FormatResult {
        match self.get(row) {
            None => out.write_str(NULL)?,
            Some(bytes) if std::str::from_utf8(bytes).is_ok() => {
                out.write_char('"')?;
                write_bytes(bytes, out)?;
                out.write_char('"')?;
            }
            Some(bytes) => write_bytes(bytes, out)?,
        }
        Ok(())
    }
}

/// Times as Arrow shows them, and those that it has no calendar for.
struct Times<'a> {
    array: &'a dyn Array,
    inner: ArrayFormatter<'a>,
}

impl<'a> Times<'a> {
    fn of(array: &'a dyn Array) -> Result<Option<Self>, ArrowError> {
        if !matches!(
            array.data_type(),
            DataType::Timestamp(..) | DataType::Date32
        ) {
            return Ok(None);
        }
        let inner = ArrayFormatter::try_new(array, &PLAIN)?;
        Ok(Some(Self { array, inner }))
    }
}

impl DisplayIndex for Times<'_> {
    fn write(&self, row: usize, out: &mut dyn std::fmt::Write) -> FormatResult {
        Ok(out.write_str(&shown(self.array, &self.inner, row)?)?)
    }
}

/// A value that Arrow writes, or a time that it has no calendar for.
pub(super) fn shown(
    array: &dyn Array,
    formatter: &ArrayFormatter<'_>,
    row: usize,
) -> Result<String, ArrowError> {
    let text = formatter.value(row).try_to_string();
    text.or_else(|error| moments::text_at(array, row).ok_or(error))
}

/// As Arrow writes values, errors told.
pub(super) const PLAIN: FormatOptions<'static> = FormatOptions::new().with_display_error(false);

/// Makes formatters for what Arrow shows otherwise than we do.
#[derive(Debug)]
struct Ours;

impl ArrayFormatterFactory for Ours {
    fn create_array_formatter<'f>(
        &self,
        array: &'f dyn Array,
        options: &FormatOptions<'f>,
        _field: Option<&'f Field>,
    ) -> Result<Option<ArrayFormatter<'f>>, ArrowError> {
        let ours: Option<Box<dyn DisplayIndex + 'f>> = match Bytes::of(array) {
            Some(bytes) => Some(Box::new(bytes)),
            None => Times::of(array)?.map(|times| Box::new(times) as _),
        };
        Ok(ours.map(|ours| ArrayFormatter::new(ours, options.safe())))
    }
}

const OPTIONS: FormatOptions<'static> = FormatOptions::new()
    .with_null(NULL)
    .with_quoted_strings(true)
    .with_display_error(false)
    .with_formatter_factory(Some(&Ours));

/// The values of one column as text.
pub(super) enum Cells<'a> {
    Null,
    Bytes(Bytes<'a>),
    Small(&'a arrow_array::StringArray),
    Large(&'a arrow_array::LargeStringArray),
    View(&'a arrow_array::StringViewArray),
    Other(&'a dyn Array, ArrayFormatter<'a>),
}

impl<'a> Cells<'a> {
    /// Of a column without dictionary, its times in UTC ([`super::plain`]).
    pub(super) fn of(array: &'a ArrayRef) -> Result<Self, ArrowError> {
        let array = array.as_ref();
        if let Some(bytes) = Bytes::of(array) {
            return Ok(Self::Bytes(bytes));
        }
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::Utf8 => Self::Small(array.as_string()),
            DataType::LargeUtf8 => Self::Large(array.as_string()),
            DataType::Utf8View => Self::View(array.as_string_view()),
            _ => Self::Other(array, ArrayFormatter::try_new(array, &OPTIONS)?),
        })
    }

    /// The value of a row, printable.
    pub(super) fn text(&self, row: usize) -> Result<String, ArrowError> {
        let text = match self {
            Self::Null => None,
            Self::Bytes(bytes) => bytes.get(row).map(|bytes| {
                let mut out = String::new();
                // writing to a string does not fail
                let _ = write_bytes(bytes, &mut out);
                Cow::Owned(out)
            }),
            Self::Small(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::View(array) => array.is_valid(row).then(|| array.value(row).into()),
            Self::Other(array, _) if array.is_null(row) => None,
            Self::Other(_, formatter) => {
                let text = formatter.value(row).try_to_string()?;
                return Ok(printable(&text).into_owned());
            }
        };
        Ok(match text {
            None => NULL.to_owned(),
            // a text that would be taken for nothing
            Some(text) if text == NULL => format!("\"{NULL}\""),
            Some(text) => printable(&text).into_owned(),
        })
    }
}
