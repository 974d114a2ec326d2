//! Events as JSON lines, in kcat's form with two keys more:
//!
//! ```json
//! {"topic":"orders","partition":0,"offset":7,"tstype":"create","ts":1700000000000,"key":"k","payload":"v",
//!  "headers":["name","value"],"generation":0,"source":"archive"}
//! ```
//!
//! - One line per event, keys always all there and in this order; no headers are `[]`.
//! - `tstype` is `create`, `logappend` or `none`; with `none`, `ts` is -1.
//! - Null stays null and differs from `""`, for key, payload and header values.
//! - [`Encoding::Text`] writes bytes as the UTF-8 they are. Bytes that are not UTF-8 are an error, since every way to
//!   squeeze them into a JSON string would alter them silently. [`Encoding::Base64`] writes key, payload and header values
//!   in standard base64 with padding; header keys stay text in both, but for one that is not UTF-8: under
//!   [`Encoding::Base64`] it is `{"base64":"…"}`.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use everlog_common::{EventBatch, EventRef, Source, TimestampType};

use super::OutputError;

/// How bytes become JSON strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// As the UTF-8 text that they are; anything else is an error.
    #[default]
    Text,
    /// As base64.
    Base64,
}

impl FromStr for Encoding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "base64" => Ok(Self::Base64),
            _ => Err(format!("--encoding {text}: not one of text, base64")),
        }
    }
}

/// Writes events as lines. Holds what is the same for a whole batch.
#[derive(Debug, Clone)]
pub struct JsonLines {
    encoding: Encoding,
    start: Vec<u8>,
    end: Vec<u8>,
}

impl JsonLines {
    /// With this encoding.
    pub fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            start: Vec::new(),
            end: Vec::new(),
        }
    }

    /// Appends rows `from..to` of `batch`. After an error `out` ends with the last whole line.
    pub fn append(
        &mut self,
        batch: &EventBatch,
        (from, to): (usize, usize),
        out: &mut Vec<u8>,
    ) -> Result<(), OutputError> {
        self.begin(batch);
        for row in from..to {
            let event = batch.columns.row(row);
            let line = out.len();
            if let Err(part) = self.event(&event, out) {
                out.truncate(line);
                return Err(OutputError::NotText {
                    partition: batch.partition,
                    offset: event.offset,
                    part,
                });
            }
        }
        Ok(())
    }

    fn begin(&mut self, batch: &EventBatch) {
        // A topic's name needs no escapes by Kafka's rule.
        self.start.clear();
        self.start.extend_from_slice(b"{\"topic\":\"");
        self.start
            .extend_from_slice(batch.topic.as_str().as_bytes());
        self.start.extend_from_slice(b"\",\"partition\":");
        put_number(batch.partition.get(), &mut self.start);
        self.start.extend_from_slice(b",\"offset\":");
        self.end.clear();
        self.end.extend_from_slice(b"],\"generation\":");
        put_number(batch.generation.0, &mut self.end);
        self.end.extend_from_slice(match batch.source {
            Source::Archive => b",\"source\":\"archive\"}\n",
            Source::Live => b",\"source\":\"live\"}\n".as_slice(),
        });
    }

    fn event(&self, event: &EventRef<'_>, out: &mut Vec<u8>) -> Result<(), &'static str> {
        out.extend_from_slice(&self.start);
        put_number(event.offset.get(), out);
        let (kind, ts) = match event.timestamp_type {
            TimestampType::Create => (
                b",\"tstype\":\"create\",\"ts\":".as_slice(),
                event.timestamp_ms,
            ),
            TimestampType::LogAppend => (
                b",\"tstype\":\"logappend\",\"ts\":".as_slice(),
                event.timestamp_ms,
            ),
            TimestampType::None => (b",\"tstype\":\"none\",\"ts\":".as_slice(), -1),
        };
        out.extend_from_slice(kind);
        put_number(ts, out);
        out.extend_from_slice(b",\"key\":");
        self.bytes(event.key, out).map_err(|()| "key")?;
        out.extend_from_slice(b",\"payload\":");
        self.bytes(event.value, out).map_err(|()| "payload")?;
        out.extend_from_slice(b",\"headers\":[");
        for (i, (key, value)) in event.headers.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            self.header_key(key, out).map_err(|()| "header")?;
            out.push(b',');
            self.bytes(*value, out).map_err(|()| "header")?;
        }
        out.extend_from_slice(&self.end);
        Ok(())
    }

    /// Text in both encodings, as kcat's readers expect; what is no text has a form of its own under base64, so that a
    /// record with such a key can be replayed at all.
    fn header_key(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), ()> {
        let at = out.len();
        if put_text(key, out).is_ok() {
            return Ok(());
        }
        if self.encoding == Encoding::Text {
            return Err(());
        }
        out.truncate(at);
        out.extend_from_slice(b"{\"base64\":");
        put_base64(key, out);
        out.push(b'}');
        Ok(())
    }

    fn bytes(&self, bytes: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), ()> {
        match (bytes, self.encoding) {
            (None, _) => {
                out.extend_from_slice(b"null");
                Ok(())
            }
            (Some(bytes), Encoding::Text) => put_text(bytes, out),
            (Some(bytes), Encoding::Base64) => {
                put_base64(bytes, out);
                Ok(())
            }
        }
    }
}

fn put_number(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn put_base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let at = out.len();
    out.resize(at + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[at..]).unwrap_or(0);
    out.truncate(at + written);
    out.push(b'"');
}

/// What follows the backslash, for bytes that JSON does not allow in a string; 0 for all others.
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

/// Appends `bytes` as a JSON string, if they are UTF-8.
fn put_text(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ()> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    std::str::from_utf8(bytes).map_err(|_| ())?;
    out.push(b'"');
    let mut plain = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let escape = ESCAPES[usize::from(*byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[plain..i]);
        plain = i + 1;
        out.extend_from_slice(&[b'\\', escape]);
        if escape == b'u' {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'0', b'0', HEX[high], HEX[low]]);
        }
    }
    out.extend_from_slice(&bytes[plain..]);
    out.push(b'"');
    Ok(())
}

#[cfg(test)]
mod tests {
    use everlog_common::{
        EventColumnsBuilder, Generation, Offset, OffsetRange, Partition, TopicName,
    };
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    type Parts<'a> = (
        Option<&'a [u8]>,
        Option<&'a [u8]>,
        Vec<(&'a [u8], Option<&'a [u8]>)>,
    );

    fn batch(
        (key, value, headers): &Parts<'_>,
        ts: (i64, TimestampType),
        source: Source,
    ) -> EventBatch {
        let mut b = EventColumnsBuilder::new();
        let offset = Offset::new(5_000_000_000).unwrap();
        b.push(offset, ts, *key, *value, headers.iter().copied(), None);
        EventBatch {
            topic: TopicName::new("clickstream.raw").unwrap(),
            generation: Generation(2),
            partition: Partition::new(13).unwrap(),
            range: OffsetRange::new(offset, offset.next()).unwrap(),
            columns: b.finish(),
            source,
        }
    }

    fn line(parts: &Parts<'_>, encoding: Encoding) -> Result<String, OutputError> {
        let batch = batch(
            parts,
            (1_700_000_000_123, TimestampType::Create),
            Source::Archive,
        );
        let mut out = Vec::new();
        JsonLines::new(encoding).append(&batch, (0, 1), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_line_is_kcats_with_generation_and_source() {
        let parts: Parts<'_> = (
            Some(b"k"),
            Some(b"v"),
            vec![(b"h", Some(b"1")), (b"h", None)],
        );
        assert_eq!(
            line(&parts, Encoding::Text).unwrap(),
            concat!(
                r#"{"topic":"clickstream.raw","partition":13,"offset":5000000000,"tstype":"create","ts":1700000000123,"#,
                r#""key":"k","payload":"v","headers":["h","1","h",null],"generation":2,"source":"archive"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn h19_null_and_empty_stay_apart() {
        let value = |parts: &Parts<'_>| -> Value {
            serde_json::from_str(&line(parts, Encoding::Text).unwrap()).unwrap()
        };
        let null = value(&(None, None, vec![]));
        assert_eq!(
            (&null["key"], &null["payload"], &null["headers"]),
            (&Value::Null, &Value::Null, &json!([]))
        );
        let empty = value(&(Some(b""), Some(b""), vec![(b"", Some(b""))]));
        assert_eq!(
            (&empty["key"], &empty["payload"], &empty["headers"]),
            (&json!(""), &json!(""), &json!(["", ""]))
        );
    }

    #[test]
    fn h18_timestamp_types_are_told_apart() {
        for (kind, name, ts) in [
            (TimestampType::Create, "create", -5),
            (TimestampType::LogAppend, "logappend", -5),
            (TimestampType::None, "none", -1),
        ] {
            let batch = batch(&(None, None, vec![]), (-5, kind), Source::Live);
            let mut out = Vec::new();
            JsonLines::new(Encoding::Text)
                .append(&batch, (0, 1), &mut out)
                .unwrap();
            let value: Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(
                (&value["tstype"], &value["ts"], &value["source"]),
                (&json!(name), &json!(ts), &json!("live"))
            );
        }
    }

    #[test]
    fn h19_bytes_that_are_no_text_are_an_error_that_names_the_record() {
        let error = line(&(None, Some(b"\xff"), vec![]), Encoding::Text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "partition 13 offset 5000000000: the payload is not UTF-8: use --encoding base64"
        );
        assert!(line(&(Some(b"\xc3"), None, vec![]), Encoding::Text).is_err());
        assert!(line(&(None, None, vec![(b"\xff", None)]), Encoding::Text).is_err());
        let odd_key = line(&(None, None, vec![(b"\xff", None)]), Encoding::Base64).unwrap();
        assert!(
            odd_key.contains(r#""headers":[{"base64":"/w=="},null]"#),
            "{odd_key}"
        );
        assert!(
            line(&(Some(b"\xff"), None, vec![]), Encoding::Base64)
                .unwrap()
                .contains(r#""key":"/w==""#)
        );
    }

    proptest! {
        /// Another JSON reader gets back exactly what went in.
        #[test]
        fn text_and_base64_are_read_back(key in prop::option::of(".*"), value in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)), header in ".*") {
            let text: Parts<'_> = (key.as_deref().map(str::as_bytes), None, vec![(header.as_bytes(), None)]);
            let read: Value = serde_json::from_str(&line(&text, Encoding::Text).unwrap()).unwrap();
            prop_assert_eq!(read["key"].as_str(), key.as_deref());
            prop_assert_eq!(read["headers"][0].as_str(), Some(header.as_str()));
            let bytes: Parts<'_> = (None, value.as_deref(), vec![(b"h", value.as_deref())]);
            let read: Value = serde_json::from_str(&line(&bytes, Encoding::Base64).unwrap()).unwrap();
            let decoded = read["payload"].as_str().map(|s| STANDARD.decode(s).unwrap());
            prop_assert_eq!(decoded, value.clone());
            prop_assert_eq!(read["headers"][1].as_str().map(|s| STANDARD.decode(s).unwrap()), value);
        }
    }
}
