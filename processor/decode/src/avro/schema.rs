//! Avro schemas as a registry gives them, parsed into a table of types that refer to each other by place, so that a type
//! which contains itself is no special case.
//!
//! What does not decide how bytes are read (docs, aliases of writers, properties that nobody knows, a logical type that does
//! not fit its type) is passed over, as the specification asks.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::fault::clipped;

/// Types that one schema, with everything it refers to, may have.
const TYPES_MAX: usize = 20_000;

/// Types may nest so deep in their text.
const NESTING_MAX: usize = 100;

/// What is wrong with a schema; one line, however long its names are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Avro schema cannot be used: {}", clipped(.0, 300))]
pub struct SchemaError(pub(super) String);

/// A place in [`Schema::types`].
pub(super) type Id = usize;

#[derive(Debug, Clone)]
pub(super) struct Schema {
    types: Vec<Type>,
    named: HashMap<Id, Named>,
    pub(super) root: Id,
}

/// What a record, an enum or a fixed is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) full: String,
    pub(super) aliases: Vec<String>,
    /// The symbol that stands for those that a reader does not know.
    pub(super) default_symbol: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Type {
    pub(super) shape: Shape,
    pub(super) logical: Option<Logical>,
}

#[derive(Debug, Clone)]
pub(super) enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Array(Id),
    Map(Id),
    Union(Vec<Id>),
    Record {
        name: String,
        fields: Vec<Field>,
    },
    Enum {
        symbols: Vec<String>,
    },
    Fixed {
        size: usize,
    },
    /// Named, and not defined yet.
    Pending,
}

#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    pub(super) of: Id,
    pub(super) default: Option<Value>,
}

/// What the numbers or bytes of a type mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Logical {
    Decimal { precision: u8, scale: u8 },
    Uuid,
    Date,
    TimeMillis,
    TimeMicros,
    TimestampMillis,
    TimestampMicros,
    TimestampNanos,
    LocalTimestampMillis,
    LocalTimestampMicros,
    LocalTimestampNanos,
}

impl Schema {
    /// Parses a schema; `references` are parsed before it, in this order, and define names that it uses.
    pub(super) fn parse(text: &str, references: &[String]) -> Result<Self, SchemaError> {
        let mut parser = Parser::default();
        for reference in references {
            parser.schema(reference)?;
        }
        let root = parser.schema(text)?;
        if let Some((name, _)) = parser.pending.iter().min_by(|(a, _), (b, _)| a.cmp(b)) {
            return Err(SchemaError(format!(
                "it refers to {name}, which neither it nor its references define"
            )));
        }
        Ok(Self {
            types: parser.types,
            named: parser.infos,
            root,
        })
    }

    /// What a type is called, if it has a name.
    pub(super) fn named(&self, id: Id) -> Option<&Named> {
        self.named.get(&id)
    }

    pub(super) fn get(&self, id: Id) -> &Type {
        const NOTHING: &Type = &Type {
            shape: Shape::Null,
            logical: None,
        };
        self.types.get(id).unwrap_or(NOTHING)
    }

    /// What a type is called in messages.
    pub(super) fn name(&self, id: Id) -> String {
        let of = self.get(id);
        let shape = match &of.shape {
            Shape::Null => "null",
            Shape::Boolean => "boolean",
            Shape::Int => "int",
            Shape::Long => "long",
            Shape::Float => "float",
            Shape::Double => "double",
            Shape::Bytes => "bytes",
            Shape::String => "string",
            Shape::Array(_) => "array",
            Shape::Map(_) => "map",
            Shape::Union(_) => "union",
            Shape::Record { name, .. } => return format!("record {name}"),
            Shape::Enum { .. } => "enum",
            Shape::Fixed { .. } => "fixed",
            Shape::Pending => "undefined",
        };
        match of.logical {
            None => shape.to_owned(),
            Some(logical) => format!("{shape} ({logical:?})"),
        }
    }
}

#[derive(Default)]
struct Parser {
    types: Vec<Type>,
    named: HashMap<String, Id>,
    infos: HashMap<Id, Named>,
    /// Used before they are defined: in a reference that comes too early, or in a type inside itself.
    pending: HashMap<String, Id>,
}

fn wrong<T>(what: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError(what.into()))
}

impl Parser {
    fn schema(&mut self, text: &str) -> Result<Id, SchemaError> {
        match serde_json::from_str::<Value>(text) {
            Ok(value) => self.any(&value, "", 0),
            // a name alone, as some clients register it
            Err(_) if text.bytes().all(|b| b.is_ascii_alphanumeric()) && !text.is_empty() => {
                self.any(&Value::String(text.to_owned()), "", 0)
            }
            Err(error) => wrong(format!("it is no JSON: {error}")),
        }
    }

    fn add(&mut self, shape: Shape, logical: Option<Logical>) -> Result<Id, SchemaError> {
        if self.types.len() >= TYPES_MAX {
            return wrong(format!("it has more than {TYPES_MAX} types"));
        }
        self.types.push(Type { shape, logical });
        Ok(self.types.len() - 1)
    }

    fn any(&mut self, value: &Value, namespace: &str, depth: usize) -> Result<Id, SchemaError> {
        if depth > NESTING_MAX {
            return wrong(format!("its types nest more than {NESTING_MAX} deep"));
        }
        match value {
            Value::String(name) => self.by_name(name, namespace, None),
            Value::Array(branches) => {
                let ids = branches
                    .iter()
                    .map(|branch| self.any(branch, namespace, depth + 1))
                    .collect::<Result<Vec<_>, _>>()?;
                if ids.is_empty() {
                    return wrong("it has a union of nothing");
                }
                self.add(Shape::Union(ids), None)
            }
            Value::Object(object) => self.object(object, namespace, depth),
            other => wrong(format!("{other} is no type")),
        }
    }

    fn by_name(
        &mut self,
        name: &str,
        namespace: &str,
        properties: Option<&Map<String, Value>>,
    ) -> Result<Id, SchemaError> {
        let shape = match name {
            "null" => Shape::Null,
            "boolean" => Shape::Boolean,
            "int" => Shape::Int,
            "long" => Shape::Long,
            "float" => Shape::Float,
            "double" => Shape::Double,
            "bytes" => Shape::Bytes,
            "string" => Shape::String,
            _ => return self.reference(name, namespace),
        };
        let logical = properties.and_then(|properties| logical(&shape, properties));
        self.add(shape, logical)
    }

    fn reference(&mut self, name: &str, namespace: &str) -> Result<Id, SchemaError> {
        let full = full_name(name, namespace);
        if let Some(id) = self.named.get(&full).or_else(|| self.named.get(name)) {
            return Ok(*id);
        }
        if let Some(id) = self.pending.get(&full) {
            return Ok(*id);
        }
        let id = self.add(Shape::Pending, None)?;
        self.pending.insert(full, id);
        Ok(id)
    }

    /// The place of a name that is being defined.
    fn define(&mut self, full: &str) -> Result<Id, SchemaError> {
        if self.named.contains_key(full) {
            return wrong(format!("it defines {full} twice"));
        }
        let id = match self.pending.remove(full) {
            Some(id) => id,
            None => self.add(Shape::Pending, None)?,
        };
        self.named.insert(full.to_owned(), id);
        Ok(id)
    }

    fn object(
        &mut self,
        object: &Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<Id, SchemaError> {
        let kind = match object.get("type") {
            Some(Value::String(kind)) => kind.as_str(),
            // {"type": {"type": "string"}}, which has no meaning of its own
            Some(inner) => return self.any(inner, namespace, depth + 1),
            None => return wrong("a type has no \"type\""),
        };
        match kind {
            "record" | "error" | "enum" | "fixed" => {
                self.named_type(kind, object, namespace, depth)
            }
            "array" => {
                let items = object.get("items");
                let items = items.map_or_else(
                    || wrong("an array has no \"items\""),
                    |items| self.any(items, namespace, depth + 1),
                )?;
                self.add(Shape::Array(items), None)
            }
            "map" => {
                let values = object.get("values");
                let values = values.map_or_else(
                    || wrong("a map has no \"values\""),
                    |values| self.any(values, namespace, depth + 1),
                )?;
                self.add(Shape::Map(values), None)
            }
            _ => self.by_name(kind, namespace, Some(object)),
        }
    }

    fn named_type(
        &mut self,
        kind: &str,
        object: &Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<Id, SchemaError> {
        let text = |key| object.get(key).and_then(Value::as_str);
        let Some(name) = text("name").filter(|name| !name.is_empty()) else {
            return wrong(format!("a {kind} has no name"));
        };
        let full = full_name(name, text("namespace").unwrap_or(namespace));
        let inner = full
            .rsplit_once('.')
            .map_or("", |(space, _)| space)
            .to_owned();
        let id = self.define(&full)?;
        let aliases = object.get("aliases").and_then(Value::as_array);
        let info = Named {
            full: full.clone(),
            aliases: aliases
                .into_iter()
                .flatten()
                .filter_map(|alias| alias.as_str().map(str::to_owned))
                .collect(),
            default_symbol: text("default").map(str::to_owned),
        };
        self.infos.insert(id, info);
        let (shape, logical) = match kind {
            "enum" => {
                let symbols = object.get("symbols").and_then(Value::as_array);
                let symbols = symbols.and_then(|symbols| {
                    symbols
                        .iter()
                        .map(|symbol| symbol.as_str().map(str::to_owned))
                        .collect::<Option<Vec<_>>>()
                });
                match symbols {
                    Some(symbols) if !symbols.is_empty() => (Shape::Enum { symbols }, None),
                    _ => return wrong(format!("enum {full} has no list of symbols")),
                }
            }
            "fixed" => {
                let size = object.get("size").and_then(Value::as_u64);
                let size = size
                    .and_then(|size| usize::try_from(size).ok())
                    .filter(|size| *size <= 1 << 24);
                match size {
                    Some(size) => {
                        let shape = Shape::Fixed { size };
                        let logical = logical(&shape, object);
                        (shape, logical)
                    }
                    None => return wrong(format!("fixed {full} has no size up to 16 MiB")),
                }
            }
            _ => {
                let Some(list) = object.get("fields").and_then(Value::as_array) else {
                    return wrong(format!("record {full} has no list of fields"));
                };
                let fields = list
                    .iter()
                    .map(|field| self.field(field, &full, &inner, depth))
                    .collect::<Result<Vec<_>, _>>()?;
                let mut names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
                names.sort_unstable();
                let twice = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b);
                if let Some((name, _)) = twice {
                    return wrong(format!("record {full} has the field {name} twice"));
                }
                (Shape::Record { name: full, fields }, None)
            }
        };
        if let Some(place) = self.types.get_mut(id) {
            *place = Type { shape, logical };
        }
        Ok(id)
    }

    fn field(
        &mut self,
        field: &Value,
        record: &str,
        namespace: &str,
        depth: usize,
    ) -> Result<Field, SchemaError> {
        let name = field.get("name").and_then(Value::as_str);
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return wrong(format!("a field of record {record} has no name"));
        };
        let Some(of) = field.get("type") else {
            return wrong(format!("field {name} of record {record} has no type"));
        };
        // {"name": "t", "type": "long", "logicalType": "timestamp-millis"} is wrong by the specification, and passed over
        let of = self.any(of, namespace, depth + 1)?;
        let aliases = field.get("aliases").and_then(Value::as_array);
        Ok(Field {
            name: name.to_owned(),
            aliases: aliases
                .into_iter()
                .flatten()
                .filter_map(|alias| alias.as_str().map(str::to_owned))
                .collect(),
            of,
            default: field.get("default").cloned(),
        })
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() {
        name.trim_start_matches('.').to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

/// The logical type, where it fits the shape.
fn logical(shape: &Shape, properties: &Map<String, Value>) -> Option<Logical> {
    let name = properties.get("logicalType")?.as_str()?;
    Some(match (name, shape) {
        ("decimal", Shape::Bytes | Shape::Fixed { .. }) => {
            let digits = |key, default| match properties.get(key) {
                None => default,
                Some(number) => number.as_u64().and_then(|n| u8::try_from(n).ok()),
            };
            let (precision, scale) = (digits("precision", None)?, digits("scale", Some(0))?);
            if precision == 0 || scale > precision {
                return None;
            }
            Logical::Decimal { precision, scale }
        }
        ("uuid", Shape::String | Shape::Fixed { size: 16 }) => Logical::Uuid,
        ("date", Shape::Int) => Logical::Date,
        ("time-millis", Shape::Int) => Logical::TimeMillis,
        ("time-micros", Shape::Long) => Logical::TimeMicros,
        ("timestamp-millis", Shape::Long) => Logical::TimestampMillis,
        ("timestamp-micros", Shape::Long) => Logical::TimestampMicros,
        ("timestamp-nanos", Shape::Long) => Logical::TimestampNanos,
        ("local-timestamp-millis", Shape::Long) => Logical::LocalTimestampMillis,
        ("local-timestamp-micros", Shape::Long) => Logical::LocalTimestampMicros,
        ("local-timestamp-nanos", Shape::Long) => Logical::LocalTimestampNanos,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Schema::parse(text, &[]).unwrap_err().to_string()
    }

    #[test]
    fn names_are_found_in_their_namespaces_and_inside_themselves() {
        let schema = Schema::parse(
            r#"{"type":"record","name":"Node","namespace":"a.b","fields":[
                {"name":"next","type":["null","Node"]},
                {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["X"]}},
                {"name":"again","type":"a.b.Kind"},
                {"name":"other","type":"c.Other"}]}"#,
            &[r#"{"type":"fixed","name":"c.Other","size":4}"#.to_owned()],
        )
        .unwrap();
        let Shape::Record { name, fields } = &schema.get(schema.root).shape else {
            panic!("no record");
        };
        assert_eq!(name, "a.b.Node");
        assert_eq!(fields[1].of, fields[2].of);
        let Shape::Union(branches) = &schema.get(fields[0].of).shape else {
            panic!("no union");
        };
        assert_eq!(branches[1], schema.root);
        assert_eq!(schema.name(fields[3].of), "fixed");
    }

    #[test]
    fn logical_types_that_do_not_fit_are_passed_over() {
        for (text, name) in [
            (
                r#"{"type":"long","logicalType":"timestamp-millis"}"#,
                "long (TimestampMillis)",
            ),
            (r#"{"type":"int","logicalType":"timestamp-millis"}"#, "int"),
            (
                r#"{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}"#,
                "bytes (Decimal { precision: 4, scale: 2 })",
            ),
            (
                r#"{"type":"bytes","logicalType":"decimal","precision":2,"scale":4}"#,
                "bytes",
            ),
            (r#"{"type":"string","logicalType":"money"}"#, "string"),
            (
                r#"{"type":{"type":"int","logicalType":"date"}}"#,
                "int (Date)",
            ),
            (r#""string""#, "string"),
            ("string", "string"),
        ] {
            let schema = Schema::parse(text, &[]).unwrap();
            assert_eq!(schema.name(schema.root), name);
        }
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (text, why) in [
            ("{", "it is no JSON: "),
            ("7", "7 is no type"),
            ("[]", "it has a union of nothing"),
            ("{}", "a type has no \"type\""),
            (
                r#""Strange""#,
                "it refers to Strange, which neither it nor its references define",
            ),
            (r#"{"type":"array"}"#, "an array has no \"items\""),
            (r#"{"type":"map"}"#, "a map has no \"values\""),
            (r#"{"type":"record","fields":[]}"#, "a record has no name"),
            (
                r#"{"type":"record","name":"R"}"#,
                "record R has no list of fields",
            ),
            (
                r#"{"type":"record","name":"R","fields":[{"name":"a"}]}"#,
                "field a of record R has no type",
            ),
            (
                r#"{"type":"record","name":"R","fields":[{"type":"int"}]}"#,
                "a field of record R has no name",
            ),
            (
                r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
                "record R has the field a twice",
            ),
            (
                r#"{"type":"enum","name":"E"}"#,
                "enum E has no list of symbols",
            ),
            (
                r#"{"type":"fixed","name":"F","size":-1}"#,
                "fixed F has no size up to 16 MiB",
            ),
            (
                r#"[{"type":"fixed","name":"F","size":1},{"type":"fixed","name":"F","size":1}]"#,
                "it defines F twice",
            ),
        ] {
            let message = refused(text);
            assert!(
                message.starts_with(&format!("the Avro schema cannot be used: {why}")),
                "{text}: {message}"
            );
        }
        let deep = format!(
            "{}\"int\"{}",
            r#"{"type":"array","items":"#.repeat(110),
            "}".repeat(110)
        );
        assert!(refused(&deep).contains("nest more than 100 deep"));
    }
}
