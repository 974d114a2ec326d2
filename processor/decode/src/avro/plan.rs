//! How what one schema wrote becomes the columns: decided once per schema, carried out per record.
//!
//! The rules are those of Avro's schema resolution (fields by name, numbers widened, unions by the branch that is there),
//! with the conversions to SQL types of docs/decoding.md. What cannot be converted costs only the records in which it occurs:
//! a union may have a branch that no column takes, as long as nobody writes it.

use serde_json::Value;

use super::schema::{Field, Id, Logical, Schema, SchemaError, Shape};
use crate::types::{Column, ColumnType, Columns, NESTING_MAX, PRECISION_MAX, Precision, SqlType};

/// Steps that the plan of one schema may have; a union inside a union inside a union multiplies them.
const STEPS_MAX: usize = 50_000;

/// What is to be filled.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) of: ColumnType,
    /// Of a ROW.
    pub(super) fields: Vec<TargetField>,
    /// Of an ARRAY or a MAP.
    pub(super) item: Option<Box<Target>>,
}

/// A field, and what else the reader's schema says of it.
#[derive(Debug, Clone)]
pub(super) struct TargetField {
    pub(super) name: String,
    pub(super) aliases: Vec<String>,
    pub(super) default: Option<Value>,
    pub(super) target: Target,
}

impl TargetField {
    fn declared(column: &Column) -> Self {
        Self {
            name: column.name.clone(),
            aliases: Vec::new(),
            default: None,
            target: Target::declared(&column.of),
        }
    }
}

impl Target {
    fn declared(of: &ColumnType) -> Self {
        let (fields, item) = match &of.sql {
            SqlType::Row(columns) => (columns.iter().map(TargetField::declared).collect(), None),
            SqlType::Array(item) | SqlType::Map(item) => {
                (Vec::new(), Some(Box::new(Self::declared(item))))
            }
            _ => (Vec::new(), None),
        };
        Self {
            of: of.clone(),
            fields,
            item,
        }
    }
}

/// The fields to be filled, as a job declares them.
pub(super) fn declared(columns: &Columns) -> Vec<TargetField> {
    columns.iter().map(TargetField::declared).collect()
}

/// The columns and fields that the reader's schema is, with its aliases and defaults.
pub(super) fn of_schema(schema: &Schema) -> Result<(Columns, Vec<TargetField>), SchemaError> {
    let Shape::Record { fields, .. } = &schema.get(schema.root).shape else {
        return Err(SchemaError(format!(
            "it is a {}, not a record: declare `columns`",
            schema.name(schema.root)
        )));
    };
    let fields = fields_of(schema, fields, "", 0)?;
    let columns = fields.iter().map(column).collect();
    let columns = Columns::new(columns).map_err(|error| SchemaError(error.to_string()))?;
    Ok((columns, fields))
}

fn column(field: &TargetField) -> Column {
    Column {
        name: field.name.clone(),
        of: field.target.of.clone(),
    }
}

fn fields_of(
    schema: &Schema,
    fields: &[Field],
    path: &str,
    depth: usize,
) -> Result<Vec<TargetField>, SchemaError> {
    fields
        .iter()
        .map(|field| {
            let path = if path.is_empty() {
                field.name.clone()
            } else {
                format!("{path}.{}", field.name)
            };
            Ok(TargetField {
                name: field.name.clone(),
                aliases: field.aliases.clone(),
                default: field.default.clone(),
                target: target_of(schema, field.of, &path, depth)?,
            })
        })
        .collect()
}

fn target_of(schema: &Schema, id: Id, path: &str, depth: usize) -> Result<Target, SchemaError> {
    let refused = |what: String| {
        Err(SchemaError(format!(
            "field {path} {what}: declare `columns`, without it or with another type"
        )))
    };
    if depth >= NESTING_MAX {
        return refused(format!(
            "contains itself, or nests more than {NESTING_MAX} deep"
        ));
    }
    let of = schema.get(id);
    let item = |inner: Id| target_of(schema, inner, path, depth + 1);
    let plain = |sql| {
        Ok(Target {
            of: ColumnType {
                sql,
                nullable: false,
            },
            fields: Vec::new(),
            item: None,
        })
    };
    match (&of.shape, of.logical) {
        (_, Some(Logical::Decimal { precision, scale })) => {
            if precision > PRECISION_MAX {
                return refused(format!(
                    "has {precision} digits, more than the {PRECISION_MAX} of a DECIMAL"
                ));
            }
            plain(SqlType::Decimal { precision, scale })
        }
        (_, Some(Logical::Uuid)) => plain(SqlType::String),
        (_, Some(Logical::Date)) => plain(SqlType::Date),
        (_, Some(logical)) => plain(match time_of(logical) {
            Some(Time::OfDay(p)) => SqlType::Time(p),
            Some(Time::Wall(p)) => SqlType::Timestamp(p),
            Some(Time::Instant(p)) => SqlType::TimestampLtz(p),
            None => return refused("has a logical type without a SQL type".to_owned()),
        }),
        (Shape::Boolean, None) => plain(SqlType::Boolean),
        (Shape::Int, None) => plain(SqlType::Int),
        (Shape::Long, None) => plain(SqlType::BigInt),
        (Shape::Float, None) => plain(SqlType::Float),
        (Shape::Double, None) => plain(SqlType::Double),
        (Shape::Bytes | Shape::Fixed { .. }, None) => plain(SqlType::Bytes),
        (Shape::String | Shape::Enum { .. }, None) => plain(SqlType::String),
        (Shape::Array(inner), None) => {
            let inner = item(*inner)?;
            Ok(Target {
                of: ColumnType {
                    sql: SqlType::Array(Box::new(inner.of.clone())),
                    nullable: false,
                },
                fields: Vec::new(),
                item: Some(Box::new(inner)),
            })
        }
        (Shape::Map(inner), None) => {
            let inner = item(*inner)?;
            Ok(Target {
                of: ColumnType {
                    sql: SqlType::Map(Box::new(inner.of.clone())),
                    nullable: false,
                },
                fields: Vec::new(),
                item: Some(Box::new(inner)),
            })
        }
        (Shape::Record { fields, .. }, None) => {
            let fields = fields_of(schema, fields, path, depth + 1)?;
            if fields.is_empty() {
                return refused("is a record without fields".to_owned());
            }
            Ok(Target {
                of: ColumnType {
                    sql: SqlType::Row(fields.iter().map(column).collect()),
                    nullable: false,
                },
                fields,
                item: None,
            })
        }
        (Shape::Union(branches), None) => {
            let is_null = |id: &&Id| matches!(schema.get(**id).shape, Shape::Null);
            let others: Vec<&Id> = branches.iter().filter(|id| !is_null(id)).collect();
            let [one] = others.as_slice() else {
                let names: Vec<String> = branches.iter().map(|id| schema.name(*id)).collect();
                return refused(format!("is a union of {}", names.join(", ")));
            };
            let mut target = target_of(schema, **one, path, depth + 1)?;
            target.of.nullable |= others.len() < branches.len();
            Ok(target)
        }
        (Shape::Null | Shape::Pending, None) => refused("is always null".to_owned()),
    }
}

/// A logical type that is a time.
enum Time {
    OfDay(Precision),
    Wall(Precision),
    Instant(Precision),
}

const fn time_of(logical: Logical) -> Option<Time> {
    Some(match logical {
        Logical::TimeMillis => Time::OfDay(Precision::Millis),
        Logical::TimeMicros => Time::OfDay(Precision::Micros),
        Logical::TimestampMillis => Time::Instant(Precision::Millis),
        Logical::TimestampMicros => Time::Instant(Precision::Micros),
        Logical::TimestampNanos => Time::Instant(Precision::Nanos),
        Logical::LocalTimestampMillis => Time::Wall(Precision::Millis),
        Logical::LocalTimestampMicros => Time::Wall(Precision::Micros),
        Logical::LocalTimestampNanos => Time::Wall(Precision::Nanos),
        Logical::Decimal { .. } | Logical::Uuid | Logical::Date => return None,
    })
}

/// How a value that a writer's type describes is read, and what becomes of it.
#[derive(Debug)]
pub(super) enum Read {
    Null,
    Boolean,
    /// A whole number as it is; dates and times in the column's unit too.
    Integer(Width),
    IntegerToDouble(Width),
    IntegerToFloat(Width),
    IntegerToDecimal(Width, u8),
    /// A number of one unit into another.
    Rescaled(Width, Precision, Precision),
    Float,
    Double,
    Bytes,
    /// To be checked to be UTF-8.
    Text,
    Fixed(usize),
    FixedUuid,
    Enum(Vec<String>),
    Decimal {
        /// Of a fixed type.
        size: Option<usize>,
        from: u8,
        to: u8,
    },
    Array(Box<Self>),
    Map(Box<Self>),
    Record {
        steps: Vec<Step>,
        /// Fields that the writer does not have, and their defaults.
        defaults: Vec<(usize, Value)>,
    },
    Union(Vec<Self>),
    /// There is no way: what a record with it is refused for.
    Never(String),
}

/// Bits of a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Int,
    Long,
}

/// One of the writer's fields.
#[derive(Debug)]
pub(super) enum Step {
    /// Into this field, from a value of that type.
    Field(usize, Read, Id),
    /// Of no use.
    Skip(Id),
}

/// The way from what `schema` writes to the fields.
pub(super) fn plan(schema: &Schema, fields: &[TargetField]) -> Result<Read, SchemaError> {
    let mut planner = Planner { schema, steps: 0 };
    let read = planner.root(schema.root, fields, 0);
    if planner.steps > STEPS_MAX {
        return Err(SchemaError(format!(
            "reading it takes more than {STEPS_MAX} steps"
        )));
    }
    Ok(read)
}

/// The same way to some of the fields alone: `place` says where each comes to stand. Which of the writer's fields goes into
/// which is decided by all of them, so that a projection gives what the whole gives.
pub(super) fn projected(read: Read, places: &[Option<usize>]) -> Read {
    let place = |at: usize| places.get(at).copied().flatten();
    match read {
        Read::Record { steps, defaults } => Read::Record {
            steps: steps
                .into_iter()
                .map(|step| match step {
                    Step::Field(at, read, of) => match place(at) {
                        Some(at) => Step::Field(at, read, of),
                        None => Step::Skip(of),
                    },
                    skip @ Step::Skip(_) => skip,
                })
                .collect(),
            defaults: defaults
                .into_iter()
                .filter_map(|(at, value)| Some((place(at)?, value)))
                .collect(),
        },
        // of the root alone: what is inside a field is read as a whole
        Read::Union(branches) => {
            let branches = branches.into_iter();
            Read::Union(branches.map(|read| projected(read, places)).collect())
        }
        other => other,
    }
}

struct Planner<'a> {
    schema: &'a Schema,
    steps: usize,
}

impl Planner<'_> {
    fn root(&mut self, id: Id, fields: &[TargetField], depth: usize) -> Read {
        match &self.schema.get(id).shape {
            Shape::Record { fields: its, .. } => self.record(its, fields),
            Shape::Union(branches) if depth == 0 => {
                let read = |branch: &Id| self.root(*branch, fields, depth + 1);
                Read::Union(branches.iter().map(read).collect())
            }
            Shape::Null => Read::Null,
            _ => Read::Never(format!(
                "the writer's schema is a {}, not a record",
                self.schema.name(id)
            )),
        }
    }

    fn record(&mut self, its: &[Field], fields: &[TargetField]) -> Read {
        let mut found = vec![false; fields.len()];
        let mut steps = Vec::with_capacity(its.len());
        for field in its {
            let by_name = fields.iter().position(|f| f.name == field.name);
            // by another name only where no field of the writer has the name itself
            let by_alias = || {
                fields.iter().position(|f| {
                    f.aliases.contains(&field.name) && !its.iter().any(|i| i.name == f.name)
                })
            };
            let at = by_name.or_else(by_alias).filter(|at| !found[*at]);
            steps.push(match at.and_then(|at| Some((at, fields.get(at)?))) {
                Some((at, target)) => {
                    found[at] = true;
                    Step::Field(at, self.value(field.of, &target.target), field.of)
                }
                None => Step::Skip(field.of),
            });
        }
        let defaults = fields
            .iter()
            .zip(&found)
            .enumerate()
            .filter(|(_, (_, found))| !**found)
            .filter_map(|(at, (field, _))| Some((at, field.default.clone()?)))
            .collect();
        Read::Record { steps, defaults }
    }

    fn value(&mut self, id: Id, target: &Target) -> Read {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Read::Never("too many steps".to_owned());
        }
        let of = self.schema.get(id);
        let sql = &target.of.sql;
        match (&of.shape, of.logical, sql) {
            (Shape::Union(branches), ..) => {
                let read = |branch: &Id| self.value(*branch, target);
                Read::Union(branches.iter().map(read).collect())
            }
            (Shape::Null, ..) => Read::Null,
            (Shape::Boolean, _, SqlType::Boolean) => Read::Boolean,
            (shape, Some(Logical::Decimal { scale, .. }), SqlType::Decimal { scale: to, .. }) => {
                Read::Decimal {
                    size: match shape {
                        Shape::Fixed { size } => Some(*size),
                        _ => None,
                    },
                    from: scale,
                    to: *to,
                }
            }
            (Shape::Fixed { .. }, Some(Logical::Uuid), SqlType::String) => Read::FixedUuid,
            (Shape::Int, Some(Logical::Date), SqlType::Date) => Read::Integer(Width::Int),
            (shape @ (Shape::Int | Shape::Long), logical, sql) => {
                self.number(id, width(shape), logical, sql)
            }
            (Shape::Float, _, SqlType::Float | SqlType::Double) => Read::Float,
            (Shape::Double, _, SqlType::Double) => Read::Double,
            // the bytes of a decimal say nothing without it
            (Shape::Bytes | Shape::String, None | Some(Logical::Uuid), SqlType::String) => {
                Read::Text
            }
            (Shape::Bytes | Shape::String, None | Some(Logical::Uuid), SqlType::Bytes) => {
                Read::Bytes
            }
            (Shape::Fixed { size }, None | Some(Logical::Uuid), SqlType::Bytes) => {
                Read::Fixed(*size)
            }
            (Shape::Enum { symbols, .. }, _, SqlType::String) => Read::Enum(symbols.clone()),
            (Shape::Array(inner), _, SqlType::Array(_)) => match &target.item {
                Some(item) => Read::Array(Box::new(self.value(*inner, item))),
                None => self.never(id, sql),
            },
            (Shape::Map(inner), _, SqlType::Map(_)) => match &target.item {
                Some(item) => Read::Map(Box::new(self.value(*inner, item))),
                None => self.never(id, sql),
            },
            (Shape::Record { fields, .. }, _, SqlType::Row(_)) => {
                self.record(fields, &target.fields)
            }
            _ => self.never(id, sql),
        }
    }

    /// What an int or a long becomes.
    fn number(&self, id: Id, width: Width, logical: Option<Logical>, sql: &SqlType) -> Read {
        match (sql, logical.and_then(time_of)) {
            (SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt, _) => {
                Read::Integer(width)
            }
            (SqlType::Time(to), Some(Time::OfDay(from)))
            | (SqlType::Timestamp(to), Some(Time::Wall(from) | Time::Instant(from)))
            | (SqlType::TimestampLtz(to), Some(Time::Instant(from))) => {
                if from == *to {
                    Read::Integer(width)
                } else {
                    Read::Rescaled(width, from, *to)
                }
            }
            (SqlType::Double, None) => Read::IntegerToDouble(width),
            (SqlType::Float, None) => Read::IntegerToFloat(width),
            (SqlType::Decimal { scale, .. }, None) => Read::IntegerToDecimal(width, *scale),
            _ => self.never(id, sql),
        }
    }

    fn never(&self, id: Id, sql: &SqlType) -> Read {
        Read::Never(format!(
            "the writer's {} cannot be read as {sql}",
            self.schema.name(id)
        ))
    }
}

const fn width(shape: &Shape) -> Width {
    match shape {
        Shape::Int => Width::Int,
        _ => Width::Long,
    }
}
