//! JSON objects into columns, in one pass over the bytes: docs/decoding.md says what each type takes.
//!
//! Each value is parsed straight into the column that it is for. What no column is for is checked to be JSON, and skipped.
//! Nothing here recurses deeper than declared types nest.

pub(crate) mod path;

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::column::{Budget, Builder, Kind, Row, Values, out_of_range};
use crate::fault::{Fault, shown_bytes};
use crate::number::{self, Misfit};
use crate::time::{self, Zone};

/// What no column is for may nest so deep.
const SKIPPED_NESTING_MAX: u32 = 128;

/// Parses one record into the row `len` of the columns. On an error the columns hold parts of it: they are to be truncated.
pub(crate) fn record(
    text: &[u8],
    row: &mut Row,
    len: usize,
    scratch: &mut Vec<u8>,
) -> Result<(), Fault> {
    let mut reader = Reader::of_object(text, scratch)?;
    reader.members(row, len)?;
    reader.end()
}

/// The same, where what is wrong with a column costs only that column: it is null then. The first such thing is returned;
/// `required` says which columns are declared NOT NULL. An error is of a value that is no JSON object: as for [`record`].
///
/// What a column gets depends on nothing but the value and the column, and whether the value is a JSON object at all does not
/// depend on the columns: any projection gives the same.
pub(crate) fn columns(
    text: &[u8],
    row: &mut Row,
    len: usize,
    required: &[bool],
    scratch: &mut Vec<u8>,
) -> Result<Option<Fault>, Fault> {
    let mut reader = Reader::of_object(text, scratch)?;
    reader.counts_all = true;
    let mut first = None;
    let mut guess = 0;
    if !reader.is_empty(b'}') {
        loop {
            if let Some(i) = reader.name(row, guess)? {
                guess = i + 1;
                let fault = reader.column(row, i, len, required)?;
                first = first.or(fault);
            } else {
                reader.skip()?;
            }
            if !reader.another(b'}', "',' or '}'")? {
                break;
            }
        }
    }
    reader.end()?;
    Ok(first.or(row.fill(len, required)))
}

pub(crate) struct Reader<'a> {
    /// UTF-8.
    text: &'a [u8],
    at: usize,
    /// What a string with escapes says.
    scratch: &'a mut Vec<u8>,
    budget: Budget,
    /// Arrays and objects around the reader that were read into a column.
    open: u32,
    /// Whether these count where nesting is bounded: then a value is skipped exactly if it can be skipped as a whole.
    counts_all: bool,
}

/// A string's content.
pub(crate) enum Text<'a> {
    /// As it stands between the quotes.
    Plain(&'a [u8]),
    /// Had escapes; its content is in the scratch.
    Escaped,
}

impl<'a> Reader<'a> {
    /// Of any text.
    pub(crate) fn new(text: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<Self, Fault> {
        if let Err(error) = std::str::from_utf8(text) {
            return Err(Fault::new(format!(
                "the value is no JSON: it is not UTF-8 at byte {}",
                error.valid_up_to()
            )));
        }
        Ok(Self {
            text,
            at: 0,
            scratch,
            budget: Budget::of(text.len()),
            open: 0,
            counts_all: false,
        })
    }

    /// After the brace of an object.
    pub(crate) fn of_object(text: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<Self, Fault> {
        let mut reader = Self::new(text, scratch)?;
        reader.space();
        if reader.byte() != Some(b'{') {
            return Err(reader.unexpected("an object with the columns"));
        }
        reader.at += 1;
        Ok(reader)
    }

    /// Nothing follows.
    pub(crate) fn end(&mut self) -> Result<(), Fault> {
        self.space();
        match self.byte() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("the end of the value")),
        }
    }

    pub(crate) fn byte(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    pub(crate) fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.byte() {
            self.at += 1;
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    #[cold]
    fn unexpected(&self, expected: &str) -> Fault {
        let rest = String::from_utf8_lossy(self.rest().get(..4).unwrap_or(self.rest()));
        Fault::new(match rest.chars().next() {
            Some(found) => format!(
                "the value is no JSON for these columns: {expected} is expected at byte {}, not {found:?}",
                self.at
            ),
            None => format!(
                "the value is no JSON for these columns: it ends at byte {}, where {expected} is expected",
                self.at
            ),
        })
    }

    /// Takes a sign, after space.
    pub(crate) fn sign(&mut self, sign: u8, expected: &str) -> Result<(), Fault> {
        self.space();
        if self.byte() == Some(sign) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    /// After a member or an element: whether another one follows.
    pub(crate) fn another(&mut self, end: u8, expected: &str) -> Result<bool, Fault> {
        self.space();
        match self.byte() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == end => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    /// After `{` or `[`: whether it is closed at once.
    pub(crate) fn is_empty(&mut self, end: u8) -> bool {
        self.space();
        let empty = self.byte() == Some(end);
        self.at += usize::from(empty);
        empty
    }

    /// The members of an object, after its brace.
    fn members(&mut self, row: &mut Row, len: usize) -> Result<(), Fault> {
        let mut guess = 0;
        if !self.is_empty(b'}') {
            loop {
                match self.name(row, guess)? {
                    Some(i) => {
                        guess = i + 1;
                        self.field(row, i, len)?;
                    }
                    None => self.skip()?,
                }
                if !self.another(b'}', "',' or '}'")? {
                    break;
                }
            }
        }
        row.complete(len)
    }

    /// The name of a member, and the sign behind it: which field it is.
    fn name(&mut self, row: &Row, guess: usize) -> Result<Option<usize>, Fault> {
        self.sign(b'"', "the name of a field in quotes")?;
        let field = match self.string()? {
            Text::Plain(name) => row.find(name, guess),
            Text::Escaped => row.find(self.scratch, guess),
        };
        self.sign(b':', "':'")?;
        Ok(field)
    }

    /// One member into its column; or null, and why.
    fn column(
        &mut self,
        row: &mut Row,
        i: usize,
        len: usize,
        required: &[bool],
    ) -> Result<Option<Fault>, Fault> {
        self.space();
        let start = self.at;
        self.budget = Budget::of(self.text.len());
        self.open = 0;
        let mut is_read = true;
        let fault = row.one(i, len, required, |field| {
            let done = if field.len() > len {
                Err(Fault::new("stands twice in the object"))
            } else {
                self.value(field)
            };
            is_read = done.is_ok();
            done
        })?;
        if !is_read {
            self.at = start;
            self.open = 0;
            self.skip()?;
        }
        Ok(fault)
    }

    fn field(&mut self, row: &mut Row, i: usize, len: usize) -> Result<(), Fault> {
        let Some(field) = row.fields.get_mut(i) else {
            return Ok(());
        };
        let done = if field.len() > len {
            Err(Fault::new("stands twice in the object"))
        } else {
            self.value(field)
        };
        done.map_err(|fault| fault.in_field(row.name(i)))
    }

    /// One value into a column.
    fn value(&mut self, into: &mut Builder) -> Result<(), Fault> {
        self.space();
        let Some(first) = self.byte() else {
            return Err(self.unexpected("a value"));
        };
        if first == b'n' {
            self.literal(b"null")?;
            return into.push_null();
        }
        match into.kind {
            Kind::String => self.text(first, into),
            Kind::Integer => self.integer(first, into),
            Kind::Boolean => match first {
                b't' => {
                    self.literal(b"true")?;
                    into.push_bool(true)
                }
                b'f' => {
                    self.literal(b"false")?;
                    into.push_bool(false)
                }
                _ => Err(self.another_kind(first, into)),
            },
            Kind::Double | Kind::Float => {
                let number = self.number(first, into)?;
                float(&number, into)
            }
            Kind::Decimal { scale } => {
                let number = self.number(first, into)?;
                match number::exact(&number, scale) {
                    Ok(unscaled) => into.push_decimal(unscaled),
                    Err(Misfit::Fraction) => Err(Fault::new(format!(
                        "{} has more digits after the point than {} holds",
                        shown_bytes(&number),
                        into.of.sql
                    ))),
                    Err(Misfit::Range) => Err(out_of_range(shown_bytes(&number), &into.of.sql)),
                }
            }
            Kind::Bytes => {
                let text = self.content(first, into)?;
                into.push_with(|data| {
                    STANDARD.decode_vec(&text, data).map_err(|error| {
                        Fault::new(format!(
                            "\"{}\" is not base64, which BYTES are in JSON: {error}",
                            shown_bytes(&text)
                        ))
                    })
                })
            }
            Kind::Date => {
                let text = self.content(first, into)?;
                into.push_integer(time::date(&text)?)
            }
            Kind::Time(precision) => {
                let text = self.content(first, into)?;
                into.push_integer(time::time_of_day(&text, precision)?)
            }
            Kind::Timestamp(precision) => {
                let text = self.content(first, into)?;
                into.push_integer(time::timestamp(&text, precision, Zone::None)?)
            }
            Kind::TimestampLtz(precision) => {
                let text = self.content(first, into)?;
                into.push_integer(time::timestamp(&text, precision, Zone::Given)?)
            }
            Kind::Array => self.array(first, into),
            Kind::Map => self.map(first, into),
            Kind::Row => {
                if first != b'{' {
                    return Err(self.another_kind(first, into));
                }
                self.at += 1;
                self.open += 1;
                let len = into.len();
                if let Values::Row(row) = &mut into.values {
                    self.members(row, len)?;
                }
                self.open -= 1;
                into.valid();
                Ok(())
            }
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Result<(), Fault> {
        if !self.rest().starts_with(literal) {
            return Err(self.unexpected("a value"));
        }
        self.at += literal.len();
        Ok(())
    }

    /// A value of a kind that the column does not take; or no value at all.
    #[cold]
    fn another_kind(&self, first: u8, into: &Builder) -> Fault {
        let found = match first {
            b'"' => "a string",
            b'{' => "an object",
            b'[' => "an array",
            b't' => "true",
            b'f' => "false",
            b'-' | b'0'..=b'9' => "a number",
            _ => return self.unexpected("a value"),
        };
        let hint = match (into.kind, first) {
            (Kind::Timestamp(_) | Kind::TimestampLtz(_), b'-' | b'0'..=b'9') => {
                ": declare it BIGINT, and convert it in SQL"
            }
            _ => "",
        };
        Fault::new(format!("{} is expected, not {found}{hint}", into.of.sql))
    }

    /// STRING: what a string says, or the text of anything else.
    fn text(&mut self, first: u8, into: &mut Builder) -> Result<(), Fault> {
        if first == b'"' {
            self.at += 1;
            return match self.string()? {
                Text::Plain(text) => into.push_bytes(text),
                Text::Escaped => into.push_bytes(self.scratch),
            };
        }
        let from = self.at;
        self.skip()?;
        into.push_bytes(self.text.get(from..self.at).unwrap_or_default())
    }

    fn integer(&mut self, first: u8, into: &mut Builder) -> Result<(), Fault> {
        if let Some((value, len)) = short_integer(self.rest()) {
            self.at += len;
            return into.push_integer(value);
        }
        let number = self.number(first, into)?;
        match number::exact(&number, 0) {
            Ok(value) => match i64::try_from(value) {
                Ok(value) => into.push_integer(value),
                Err(_) => Err(out_of_range(shown_bytes(&number), &into.of.sql)),
            },
            Err(Misfit::Range) => Err(out_of_range(shown_bytes(&number), &into.of.sql)),
            Err(Misfit::Fraction) => Err(Fault::new(format!(
                "{} is not a whole number, as {} is",
                shown_bytes(&number),
                into.of.sql
            ))),
        }
    }

    /// The text of a number, or of a string that holds nothing but one.
    fn number(&mut self, first: u8, into: &Builder) -> Result<Cow<'a, [u8]>, Fault> {
        match first {
            b'"' => {
                let text = self.content(first, into)?;
                if number::scan(&text) == Some(text.len()) {
                    Ok(text)
                } else {
                    Err(Fault::new(format!(
                        "\"{}\" is not a number, {} is expected",
                        shown_bytes(&text),
                        into.of.sql
                    )))
                }
            }
            b'-' | b'0'..=b'9' => {
                let rest = self.rest();
                let len = number::scan(rest).ok_or_else(|| self.unexpected("a number"))?;
                self.at += len;
                Ok(Cow::Borrowed(rest.get(..len).unwrap_or_default()))
            }
            _ => Err(self.another_kind(first, into)),
        }
    }

    /// What a string says.
    fn content(&mut self, first: u8, into: &Builder) -> Result<Cow<'a, [u8]>, Fault> {
        if first != b'"' {
            return Err(self.another_kind(first, into));
        }
        self.at += 1;
        Ok(match self.string()? {
            Text::Plain(text) => Cow::Borrowed(text),
            Text::Escaped => Cow::Owned(self.scratch.clone()),
        })
    }

    fn array(&mut self, first: u8, into: &mut Builder) -> Result<(), Fault> {
        if first != b'[' {
            return Err(self.another_kind(first, into));
        }
        self.at += 1;
        self.open += 1;
        if let Values::List(list) = &mut into.values
            && !self.is_empty(b']')
        {
            for index in 0.. {
                self.budget.take(list.items.width)?;
                self.value(&mut list.items)
                    .map_err(|fault| fault.in_element(index))?;
                if !self.another(b']', "',' or ']'")? {
                    break;
                }
            }
        }
        self.open -= 1;
        into.end_list()
    }

    fn map(&mut self, first: u8, into: &mut Builder) -> Result<(), Fault> {
        if first != b'{' {
            return Err(self.another_kind(first, into));
        }
        self.at += 1;
        self.open += 1;
        if let Values::List(list) = &mut into.values
            && let Some(keys) = &mut list.keys
            && !self.is_empty(b'}')
        {
            loop {
                // a key and a place in the order besides
                self.budget.take(list.items.width + keys.width + 4)?;
                self.sign(b'"', "a key in quotes")?;
                let from = self.at;
                match self.string()? {
                    Text::Plain(key) => keys.push_bytes(key)?,
                    Text::Escaped => keys.push_bytes(self.scratch)?,
                }
                let key = self.text.get(from..self.at.saturating_sub(1));
                self.sign(b':', "':'")?;
                self.value(&mut list.items)
                    .map_err(|fault| fault.in_key(key.unwrap_or_default()))?;
                if !self.another(b'}', "',' or '}'")? {
                    break;
                }
            }
        }
        self.open -= 1;
        into.end_map()
    }

    /// A string, after its first quote; the reader is behind its last one then.
    pub(crate) fn string(&mut self) -> Result<Text<'a>, Fault> {
        let from = self.at;
        self.plain();
        if self.byte() == Some(b'"') {
            let text = self.text.get(from..self.at).unwrap_or_default();
            self.at += 1;
            return Ok(Text::Plain(text));
        }
        self.scratch.clear();
        let mut from = from;
        loop {
            self.scratch
                .extend_from_slice(self.text.get(from..self.at).unwrap_or_default());
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Text::Escaped);
                }
                Some(b'\\') => self.escape()?,
                Some(_) => {
                    return Err(self.unexpected("no control character inside a string"));
                }
                None => return Err(self.unexpected("'\"'")),
            }
            from = self.at;
            self.plain();
        }
    }

    /// Goes to the next quote, backslash or control character, or to the end.
    fn plain(&mut self) {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = ONES << 7;
        let rest = self.rest();
        let mut done = 0;
        for chunk in rest.chunks_exact(8) {
            let word = chunk
                .first_chunk::<8>()
                .map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let zero_where = |x: u64| x.wrapping_sub(ONES) & !x & HIGH;
            let special = zero_where(word ^ (ONES * u64::from(b'"')))
                | zero_where(word ^ (ONES * u64::from(b'\\')))
                | (word.wrapping_sub(ONES * 0x20) & !word & HIGH);
            if special != 0 {
                // the lowest mark is exact: borrows only travel upwards
                self.at += done + usize::try_from(special.trailing_zeros() / 8).unwrap_or(0);
                return;
            }
            done += 8;
        }
        let tail = rest.get(done..).unwrap_or_default();
        self.at += done
            + tail
                .iter()
                .take_while(|b| !matches!(b, b'"' | b'\\' | ..0x20))
                .count();
    }

    /// One escape, from its backslash, into the scratch.
    fn escape(&mut self) -> Result<(), Fault> {
        self.at += 1;
        let byte = match self.byte() {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.unexpected("an escape like \\n or \\u00e4")),
        };
        self.at += 1;
        self.scratch.push(byte);
        Ok(())
    }

    /// `\uXXXX`, or two of them that are one character, from the `u`.
    fn unicode(&mut self) -> Result<(), Fault> {
        let mut code = self.hex()?;
        if (0xd800..0xdc00).contains(&code) && self.rest().starts_with(b"\\u") {
            self.at += 1;
            let low = self.hex()?;
            if (0xdc00..0xe000).contains(&low) {
                code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
        }
        let Some(character) = char::from_u32(code) else {
            return Err(Fault::new(format!(
                "half of a character, \\u{code:04x}, is no text (before byte {})",
                self.at
            )));
        };
        self.scratch
            .extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// Four hexadecimal digits behind the `u`.
    fn hex(&mut self) -> Result<u32, Fault> {
        self.at += 1;
        let mut code = 0;
        for _ in 0..4 {
            let digit = self
                .byte()
                .and_then(|b| char::from(b).to_digit(16))
                .ok_or_else(|| self.unexpected("a hexadecimal digit"))?;
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }

    /// What the last string with escapes says.
    pub(crate) fn scratch(&self) -> &[u8] {
        self.scratch
    }

    /// Takes the byte that is next.
    pub(crate) fn past_byte(&mut self) {
        self.at += usize::from(self.at < self.text.len());
    }

    /// Any value, to its end, as it stands there.
    pub(crate) fn skipped(&mut self) -> Result<&'a [u8], Fault> {
        self.space();
        let from = self.at;
        self.skip()?;
        Ok(self.text.get(from..self.at).unwrap_or_default())
    }

    /// Any value, to its end.
    pub(crate) fn skip(&mut self) -> Result<(), Fault> {
        // one bit for each container that is open: 1 for an object
        let mut objects: u128 = 0;
        let mut depth = 0;
        let around = if self.counts_all { self.open } else { 0 };
        let depth_max = SKIPPED_NESTING_MAX.saturating_sub(around);
        'values: loop {
            self.space();
            match self.byte() {
                Some(open @ (b'{' | b'[')) => {
                    let is_object = open == b'{';
                    self.at += 1;
                    if !self.is_empty(if is_object { b'}' } else { b']' }) {
                        if depth >= depth_max {
                            return Err(Fault::new(format!(
                                "nested more than {SKIPPED_NESTING_MAX} deep at byte {}",
                                self.at
                            )));
                        }
                        depth += 1;
                        objects = objects << 1 | u128::from(is_object);
                        if is_object {
                            self.skip_name()?;
                        }
                        continue 'values;
                    }
                }
                Some(b'"') => {
                    self.at += 1;
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => {
                    self.at +=
                        number::scan(self.rest()).ok_or_else(|| self.unexpected("a number"))?;
                }
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(self.unexpected("a value")),
            }
            while depth > 0 {
                let is_object = objects & 1 == 1;
                let another = if is_object {
                    self.another(b'}', "',' or '}'")?
                } else {
                    self.another(b']', "',' or ']'")?
                };
                if another {
                    if is_object {
                        self.skip_name()?;
                    }
                    continue 'values;
                }
                depth -= 1;
                objects >>= 1;
            }
            return Ok(());
        }
    }

    fn skip_name(&mut self) -> Result<(), Fault> {
        self.sign(b'"', "the name of a field in quotes")?;
        self.string()?;
        self.sign(b':', "':'")
    }
}

/// A whole number of at most 18 digits, and its length, where nothing of a longer number follows.
fn short_integer(text: &[u8]) -> Option<(i64, usize)> {
    let negative = text.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut value: i64 = 0;
    let mut at = start;
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        if at - start == 18 {
            return None;
        }
        value = value * 10 + i64::from(digit - b'0');
        at += 1;
    }
    let leading_zero = text.get(start) == Some(&b'0') && at > start + 1;
    if at == start || leading_zero || matches!(text.get(at), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    Some((if negative { -value } else { value }, at))
}

/// The nearest number that the column holds.
fn float(number: &[u8], into: &mut Builder) -> Result<(), Fault> {
    let text = std::str::from_utf8(number).unwrap_or_default();
    let pushed = if into.kind == Kind::Float {
        match text.parse::<f32>() {
            Ok(value) if value.is_finite() => Some(into.push_f32(value)),
            _ => None,
        }
    } else {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Some(into.push_f64(value)),
            _ => None,
        }
    };
    pushed.unwrap_or_else(|| Err(out_of_range(shown_bytes(number), &into.of.sql)))
}
