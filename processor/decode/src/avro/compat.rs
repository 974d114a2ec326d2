//! Whether what one schema wrote can be read by another, by the rules of Avro's schema resolution. Pure.

use std::collections::HashSet;
use std::fmt;

use super::RegisteredSchema;
use super::schema::{Field, Id, Logical, Schema, SchemaError, Shape};

/// What is found beyond so much is not told.
const MISFITS_MAX: usize = 20;

/// Types may nest so deep.
const DEPTH_MAX: usize = 100;

/// Pairs of types that are compared; unions inside unions multiply them.
const STEPS_MAX: usize = 50_000;

/// A place where a reader's schema cannot read what a writer's schema writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The way to the field, names with dots between; empty for the whole record.
    pub field: String,
    /// Why it cannot be read.
    pub why: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.why)
        } else {
            write!(f, "{}: {}", self.field, self.why)
        }
    }
}

/// What keeps `reader` from reading everything that `writer` writes; nothing where it can. At most 20 places are told.
pub fn misfits(
    reader: &RegisteredSchema,
    writer: &RegisteredSchema,
) -> Result<Vec<Misfit>, SchemaError> {
    let (reader, writer) = (reader.parse()?, writer.parse()?);
    let mut comparison = Comparison {
        reader: &reader,
        writer: &writer,
        open: HashSet::new(),
        steps: 0,
    };
    let mut found = comparison.of(reader.root, writer.root, "", 0);
    found.truncate(MISFITS_MAX);
    Ok(found)
}

struct Comparison<'a> {
    reader: &'a Schema,
    writer: &'a Schema,
    /// Pairs that are being compared: a type inside itself fits as its outside does.
    open: HashSet<(Id, Id)>,
    steps: usize,
}

fn one(field: &str, why: impl Into<String>) -> Vec<Misfit> {
    vec![Misfit {
        field: field.to_owned(),
        why: why.into(),
    }]
}

fn below(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

impl Comparison<'_> {
    fn of(&mut self, reader: Id, writer: Id, path: &str, depth: usize) -> Vec<Misfit> {
        self.steps += 1;
        if depth > DEPTH_MAX || self.steps > STEPS_MAX {
            return one(path, "the types are nested too deep to be compared");
        }
        if !self.open.insert((reader, writer)) {
            return Vec::new();
        }
        let found = self.types(reader, writer, path, depth);
        self.open.remove(&(reader, writer));
        found
    }

    fn types(&mut self, reader: Id, writer: Id, path: &str, depth: usize) -> Vec<Misfit> {
        let (ours, theirs) = (self.reader.get(reader), self.writer.get(writer));
        if let Shape::Union(branches) = &theirs.shape {
            let mut found = Vec::new();
            for branch in branches {
                found.extend(self.of(reader, *branch, path, depth + 1));
                if found.len() >= MISFITS_MAX {
                    break;
                }
            }
            return found;
        }
        if let Shape::Union(branches) = &ours.shape {
            return self.of_union(branches, writer, path, depth);
        }
        let other = || {
            let (ours, theirs) = (self.reader.name(reader), self.writer.name(writer));
            one(path, format!("{theirs} was written, {ours} is read"))
        };
        if let (Some(ours), Some(theirs)) = (ours.logical, theirs.logical)
            && let (Logical::Decimal { .. }, Logical::Decimal { .. }) = (ours, theirs)
            && ours != theirs
        {
            return other();
        }
        match (&ours.shape, &theirs.shape) {
            (Shape::Null, Shape::Null)
            | (Shape::Boolean, Shape::Boolean)
            | (Shape::Int, Shape::Int)
            | (Shape::Long, Shape::Int | Shape::Long)
            | (Shape::Float, Shape::Int | Shape::Long | Shape::Float)
            | (Shape::Double, Shape::Int | Shape::Long | Shape::Float | Shape::Double)
            | (Shape::Bytes | Shape::String, Shape::Bytes | Shape::String) => Vec::new(),
            (Shape::Array(ours), Shape::Array(theirs)) | (Shape::Map(ours), Shape::Map(theirs)) => {
                self.of(*ours, *theirs, &format!("{path}[]"), depth + 1)
            }
            (Shape::Fixed { size: ours }, Shape::Fixed { size: theirs }) => {
                let renamed = self.renamed(reader, writer, path);
                if ours == theirs {
                    renamed
                } else {
                    one(
                        path,
                        format!("{theirs} bytes were written, {ours} are read"),
                    )
                }
            }
            (Shape::Enum { symbols: ours }, Shape::Enum { symbols: theirs }) => {
                let mut found = self.renamed(reader, writer, path);
                let has_default = self
                    .reader
                    .named(reader)
                    .is_some_and(|named| named.default_symbol.is_some());
                let unknown: Vec<&str> = theirs
                    .iter()
                    .filter(|symbol| !ours.contains(symbol))
                    .map(String::as_str)
                    .take(MISFITS_MAX)
                    .collect();
                if !unknown.is_empty() && !has_default {
                    let symbols = unknown.join(", ");
                    found.extend(one(
                        path,
                        format!("the enum that is read has no symbol {symbols}, and no default"),
                    ));
                }
                found
            }
            (Shape::Record { fields: ours, .. }, Shape::Record { fields: theirs, .. }) => {
                let mut found = self.renamed(reader, writer, path);
                for field in ours {
                    found.extend(self.field(field, theirs, path, depth));
                    if found.len() >= MISFITS_MAX {
                        break;
                    }
                }
                found
            }
            _ => other(),
        }
    }

    fn field(&mut self, field: &Field, theirs: &[Field], path: &str, depth: usize) -> Vec<Misfit> {
        let path = below(path, &field.name);
        let by_name = theirs.iter().find(|f| f.name == field.name);
        let written = by_name.or_else(|| theirs.iter().find(|f| field.aliases.contains(&f.name)));
        match written {
            Some(written) => self.of(field.of, written.of, &path, depth + 1),
            None if field.default.is_some() => Vec::new(),
            None => one(
                &path,
                "was not written, and has no default where it is read",
            ),
        }
    }

    fn of_union(&mut self, branches: &[Id], writer: Id, path: &str, depth: usize) -> Vec<Misfit> {
        let mut nearest: Vec<Vec<Misfit>> = Vec::new();
        for branch in branches {
            let found = self.of(*branch, writer, path, depth + 1);
            if found.is_empty() {
                return found;
            }
            if !matches!(self.reader.get(*branch).shape, Shape::Null) {
                nearest.push(found);
            }
        }
        // what is wrong with the one branch that could be meant says more than that there is none
        match <[_; 1]>::try_from(nearest) {
            Ok([only]) => only,
            Err(_) => {
                let theirs = self.writer.name(writer);
                one(
                    path,
                    format!("{theirs} was written, which no branch of the union reads"),
                )
            }
        }
    }

    /// Records, enums and fixed fit by their names without namespaces, or by an alias of the reader's.
    fn renamed(&self, reader: Id, writer: Id, path: &str) -> Vec<Misfit> {
        let simple = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        match (self.reader.named(reader), self.writer.named(writer)) {
            (Some(ours), Some(theirs)) => {
                let is_it = simple(&ours.full) == simple(&theirs.full)
                    || ours.aliases.iter().any(|alias| {
                        *alias == theirs.full || simple(alias) == simple(&theirs.full)
                    });
                if is_it {
                    Vec::new()
                } else {
                    one(
                        path,
                        format!(
                            "{} was written, {} is read, and has no such alias",
                            theirs.full, ours.full
                        ),
                    )
                }
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(reader: &str, writer: &str) -> Vec<String> {
        let avro = RegisteredSchema::avro;
        let found = misfits(&avro(reader), &avro(writer)).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    fn record(fields: &str) -> String {
        format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)
    }

    fn field(of: &str) -> String {
        record(&format!(r#"{{"name":"c","type":{of}}}"#))
    }

    #[test]
    fn types_fit_as_the_specification_says() {
        let e = |symbols: &str, more: &str| {
            format!(r#"{{"type":"enum","name":"E","symbols":[{symbols}]{more}}}"#)
        };
        let fixed = |size: u8| format!(r#"{{"type":"fixed","name":"F","size":{size}}}"#);
        let decimal = |scale: u8| {
            format!(r#"{{"type":"bytes","logicalType":"decimal","precision":10,"scale":{scale}}}"#)
        };
        let array = |of: &str| format!(r#"{{"type":"array","items":{of}}}"#);
        for (reader, writer, expected) in [
            ("\"long\"".to_owned(), "\"int\"".to_owned(), None),
            (
                "\"int\"".to_owned(),
                "\"long\"".to_owned(),
                Some("c: long was written, int is read"),
            ),
            ("\"double\"".to_owned(), "\"float\"".to_owned(), None),
            (
                "\"float\"".to_owned(),
                "\"double\"".to_owned(),
                Some("c: double was written, float is read"),
            ),
            ("\"string\"".to_owned(), "\"bytes\"".to_owned(), None),
            (
                "\"string\"".to_owned(),
                "\"int\"".to_owned(),
                Some("c: int was written, string is read"),
            ),
            (
                r#"["null","string"]"#.to_owned(),
                "\"string\"".to_owned(),
                None,
            ),
            (
                "\"string\"".to_owned(),
                r#"["null","string"]"#.to_owned(),
                Some("c: null was written, string is read"),
            ),
            (
                r#"["null","int"]"#.to_owned(),
                "\"string\"".to_owned(),
                Some("c: string was written, int is read"),
            ),
            (
                r#"["null","int","boolean"]"#.to_owned(),
                "\"string\"".to_owned(),
                Some("c: string was written, which no branch of the union reads"),
            ),
            (e("\"A\",\"B\"", ""), e("\"A\"", ""), None),
            (
                e("\"A\"", ""),
                e("\"A\",\"B\"", ""),
                Some("c: the enum that is read has no symbol B, and no default"),
            ),
            (e("\"A\"", ",\"default\":\"A\""), e("\"A\",\"B\"", ""), None),
            (
                fixed(4),
                fixed(8),
                Some("c: 8 bytes were written, 4 are read"),
            ),
            (decimal(2), decimal(2), None),
            (
                decimal(2),
                decimal(3),
                Some(
                    "c: bytes (Decimal { precision: 10, scale: 3 }) was written, bytes (Decimal { precision: 10, scale: 2 }) is read",
                ),
            ),
            (array("\"long\""), array("\"int\""), None),
            (
                array("\"int\""),
                array("\"long\""),
                Some("c[]: long was written, int is read"),
            ),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(
                found(&field(&reader), &field(&writer)),
                expected,
                "{reader} of {writer}"
            );
        }
    }

    #[test]
    fn fields_are_found_by_name_alias_or_default() {
        let old = record(r#"{"name":"a","type":"int"},{"name":"gone","type":"int"}"#);
        let new = record(
            r#"{"name":"b","type":"long","aliases":["a"]},{"name":"more","type":"int"},{"name":"rest","type":"int","default":0}"#,
        );
        assert_eq!(
            found(&new, &old),
            ["more: was not written, and has no default where it is read"]
        );
        assert_eq!(
            found(&old, &new),
            [
                "a: was not written, and has no default where it is read",
                "gone: was not written, and has no default where it is read"
            ]
        );
        let named = |name: &str, more: &str| {
            format!(r#"{{"type":"record","name":"{name}","fields":[]{more}}}"#)
        };
        assert_eq!(
            found(&named("x.A", ""), &named("y.B", "")),
            ["y.B was written, x.A is read, and has no such alias"]
        );
        assert!(found(&named("x.A", ""), &named("y.A", "")).is_empty());
        assert!(found(&named("x.A", r#","aliases":["y.B"]"#), &named("y.B", "")).is_empty());
    }

    #[test]
    fn a_type_inside_itself_is_compared_once() {
        let list = |of: &str| {
            format!(
                r#"{{"type":"record","name":"L","fields":[{{"name":"v","type":"{of}"}},{{"name":"next","type":["null","L"]}}]}}"#
            )
        };
        assert!(found(&list("long"), &list("int")).is_empty());
        assert_eq!(
            found(&list("int"), &list("long")),
            ["v: long was written, int is read"]
        );
    }

    #[test]
    fn what_fits_can_be_read_by_the_decoder() {
        use crate::{ValueFormat, ValueReader};
        let old = record(r#"{"name":"a","type":"int"},{"name":"s","type":["null","string"]}"#);
        let new = record(
            r#"{"name":"n","type":"long","default":9},{"name":"b","type":"double","aliases":["a"]},{"name":"s","type":["null","string"]}"#,
        );
        assert!(found(&new, &old).is_empty());
        let format = ValueFormat::AvroAs(RegisteredSchema::avro(&new));
        let mut reader = ValueReader::new(&format, &[0, 1, 2], true).unwrap();
        reader.learn(crate::SchemaId(1), Ok(&RegisteredSchema::avro(&old)));
        let value: &[u8] = &[0, 0, 0, 0, 1, 6, 2, 2, b'x'];
        let values = arrow_array::BinaryArray::from_iter_values([value]);
        let read = reader.read(&values).unwrap();
        let errors = read.errors.unwrap();
        assert_eq!(arrow_array::Array::null_count(&errors), 1);
    }
}
