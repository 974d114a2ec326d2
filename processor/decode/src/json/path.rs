//! One place inside a JSON text, for functions over raw values: the same JSON as the columns', to the last byte.

use std::borrow::Cow;

use super::{Reader, Text, short_integer};
use crate::fault::Fault;
use crate::number;

/// One step of the way to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathPart<'a> {
    /// The member of an object.
    Key(&'a str),
    /// The element of an array, from 0.
    Index(u64),
}

/// A value inside a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonValue<'a>(&'a str);

/// The value at a place. None where the text is no JSON (RFC 8259, nested at most 128 deep beyond the path), where there is
/// nothing at the place, and where a key on the way stands twice in its object, since JSON does not say which one holds.
pub fn find<'a>(
    text: &'a [u8],
    path: &[PathPart<'_>],
    scratch: &mut Vec<u8>,
) -> Option<JsonValue<'a>> {
    let mut reader = Reader::new(text, scratch).ok()?;
    let found = reader.at_path(path).ok()?;
    reader.end().ok()?;
    let (from, to) = found?;
    std::str::from_utf8(text.get(from..to)?).ok().map(JsonValue)
}

impl Reader<'_> {
    /// Reads one value to its end; where the value at the path stands in it.
    fn at_path(&mut self, path: &[PathPart<'_>]) -> Result<Option<(usize, usize)>, Fault> {
        self.space();
        let start = self.at;
        let Some((part, rest)) = path.split_first() else {
            self.skip()?;
            return Ok(Some((start, self.at)));
        };
        match (part, self.byte()) {
            (PathPart::Key(key), Some(b'{')) => self.member(key, rest),
            (PathPart::Index(index), Some(b'[')) => self.element(*index, rest),
            _ => {
                self.skip()?;
                Ok(None)
            }
        }
    }

    fn member(
        &mut self,
        key: &str,
        rest: &[PathPart<'_>],
    ) -> Result<Option<(usize, usize)>, Fault> {
        self.at += 1;
        let mut found = None;
        let mut times = 0;
        if self.is_empty(b'}') {
            return Ok(None);
        }
        loop {
            self.sign(b'"', "the name of a field in quotes")?;
            let is_it = match self.string()? {
                Text::Plain(name) => name == key.as_bytes(),
                Text::Escaped => self.scratch.as_slice() == key.as_bytes(),
            };
            self.sign(b':', "':'")?;
            if is_it {
                times += 1;
                found = self.at_path(rest)?;
            } else {
                self.skip()?;
            }
            if !self.another(b'}', "',' or '}'")? {
                return Ok(found.filter(|_| times == 1));
            }
        }
    }

    fn element(
        &mut self,
        index: u64,
        rest: &[PathPart<'_>],
    ) -> Result<Option<(usize, usize)>, Fault> {
        self.at += 1;
        let mut found = None;
        if self.is_empty(b']') {
            return Ok(None);
        }
        for at in 0_u64.. {
            if at == index {
                found = self.at_path(rest)?;
            } else {
                self.skip()?;
            }
            if !self.another(b']', "',' or ']'")? {
                break;
            }
        }
        Ok(found)
    }

    /// The members or elements of the container that begins here.
    fn count(&mut self) -> Result<Option<u64>, Fault> {
        self.space();
        let end = match self.byte() {
            Some(b'{') => b'}',
            Some(b'[') => b']',
            _ => return Ok(None),
        };
        self.at += 1;
        let mut count = 0;
        if !self.is_empty(end) {
            loop {
                if end == b'}' {
                    self.skip_name()?;
                }
                self.skip()?;
                count += 1;
                if !self.another(end, "',' or the end")? {
                    break;
                }
            }
        }
        Ok(Some(count))
    }
}

impl<'a> JsonValue<'a> {
    /// Its JSON, as it stands in the text.
    pub const fn json(self) -> &'a str {
        self.0
    }

    /// What a string says; none of anything else.
    pub fn string(self, scratch: &mut Vec<u8>) -> Option<Cow<'a, str>> {
        let inside = self.0.strip_prefix('"')?.strip_suffix('"')?;
        if !inside.contains('\\') {
            return Some(Cow::Borrowed(inside));
        }
        let mut reader = Reader::new(self.0.as_bytes(), scratch).ok()?;
        reader.at = 1;
        reader.string().ok()?;
        let text = std::str::from_utf8(scratch).ok()?;
        Some(Cow::Owned(text.to_owned()))
    }

    /// What a string says, the JSON of anything else; none of null.
    pub fn text(self, scratch: &mut Vec<u8>) -> Option<Cow<'a, str>> {
        match self.0 {
            "null" => None,
            json if json.starts_with('"') => self.string(scratch),
            json => Some(Cow::Borrowed(json)),
        }
    }

    /// A number whose value is whole and has 64 bits at most, however it is written.
    pub fn integer(self) -> Option<i64> {
        let text = self.number()?;
        match short_integer(text) {
            Some((value, _)) => Some(value),
            None => i64::try_from(number::exact(text, 0).ok()?).ok(),
        }
    }

    /// The nearest double to a number; none where it is larger than the largest.
    pub fn float(self) -> Option<f64> {
        self.number()?;
        self.0.parse().ok().filter(|value: &f64| value.is_finite())
    }

    /// True or false.
    pub fn boolean(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// How many members an object or elements an array has.
    pub fn len(self, scratch: &mut Vec<u8>) -> Option<u64> {
        Reader::new(self.0.as_bytes(), scratch)
            .ok()?
            .count()
            .ok()
            .flatten()
    }

    fn number(self) -> Option<&'a [u8]> {
        let text = self.0.as_bytes();
        (number::scan(text) == Some(text.len())).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use PathPart::{Index, Key};

    fn at<'a>(text: &'a str, path: &[PathPart<'_>]) -> Option<&'a str> {
        find(text.as_bytes(), path, &mut Vec::new()).map(JsonValue::json)
    }

    #[test]
    fn a_place_is_found_in_json_and_in_nothing_else() {
        let text = r#" {"a": [1, {"b\u0041": "x\ny"}, null], "c": {}, "d": -12} "#;
        assert_eq!(at(text, &[Key("a"), Index(0)]), Some("1"));
        assert_eq!(
            at(text, &[Key("a"), Index(1), Key("bA")]),
            Some(r#""x\ny""#)
        );
        assert_eq!(at(text, &[Key("a"), Index(2)]), Some("null"));
        assert_eq!(at(text, &[Key("c")]), Some("{}"));
        assert_eq!(at(text, &[]), Some(text.trim()));
        for nothing in [
            &[Key("x")][..],
            &[Index(0)],
            &[Key("a"), Index(3)],
            &[Key("a"), Key("b")],
            &[Key("d"), Index(0)],
            &[Key("c"), Key("x")],
        ] {
            assert_eq!(at(text, nothing), None, "{nothing:?}");
        }
        for broken in [
            "",
            "{",
            r#"{"a":1"#,
            r#"{"a":1}}"#,
            r#"{"a":1,"b":}"#,
            r#"{"a":1,}"#,
            r#"{"a":1,"b":"\ud83d"}"#,
            r#"{"a":1,"a":1}"#,
            "{'a':1}",
        ] {
            assert_eq!(at(broken, &[Key("a")]), None, "{broken}");
        }
        assert_eq!(find(b"{\"a\":\"\xff\"}", &[], &mut Vec::new()), None);
    }

    #[test]
    fn what_is_there_is_told_by_its_kind() {
        let scratch = &mut Vec::new();
        let value = JsonValue;
        assert_eq!(
            value(r#""a\"\u00e4""#).string(scratch).as_deref(),
            Some("a\"ä")
        );
        assert_eq!(value("1").string(scratch), None);
        assert_eq!(value("null").text(scratch), None);
        assert_eq!(value("[1, 2]").text(scratch).as_deref(), Some("[1, 2]"));
        for (text, integer) in [
            ("-5", Some(-5)),
            ("17.0", Some(17)),
            ("1.7e1", Some(17)),
            ("1.5", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("\"17\"", None),
            ("true", None),
        ] {
            assert_eq!(value(text).integer(), integer, "{text}");
        }
        assert_eq!(value("-0.5").float(), Some(-0.5));
        assert_eq!(value("1e999").float(), None);
        assert_eq!(value("\"1\"").float(), None);
        assert_eq!(value("false").boolean(), Some(false));
        assert_eq!(value("0").boolean(), None);
        assert_eq!(value("[1, [2, 3], {}]").len(scratch), Some(3));
        assert_eq!(value(r#"{"a": 1, "b": [2]}"#).len(scratch), Some(2));
        assert_eq!(value("{ }").len(scratch), Some(0));
        assert_eq!(value("7").len(scratch), None);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c\"\\\\ä]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_serde_finds(
            json in any_json(),
            path in proptest::collection::vec(prop_oneof!["[a-c]".prop_map(Ok), (0_u64..4).prop_map(Err)], 0..4),
            pretty in any::<bool>(),
        ) {
            let text = if pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) }.unwrap();
            let parts: Vec<_> = path.iter().map(|p| match p { Ok(key) => Key(key), Err(index) => Index(*index) }).collect();
            let pointer: String = path.iter().map(|p| match p { Ok(key) => format!("/{key}"), Err(index) => format!("/{index}") }).collect();
            let scratch = &mut Vec::new();
            let ours = find(text.as_bytes(), &parts, scratch);
            let theirs = json.pointer(&pointer);
            let value = ours.map(|v| serde_json::from_str::<Value>(v.json()).unwrap());
            prop_assert_eq!(value.as_ref(), theirs);
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let string = ours.string(scratch);
                prop_assert_eq!(string.as_deref(), theirs.as_str());
                prop_assert_eq!(ours.integer(), theirs.as_i64());
                prop_assert_eq!(ours.boolean(), theirs.as_bool());
                let len = theirs.as_array().map(Vec::len).or(theirs.as_object().map(serde_json::Map::len));
                prop_assert_eq!(ours.len(scratch), len.map(|n| n as u64));
            }
        }
    }
}
