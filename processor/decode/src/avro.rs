//! Avro by a schema registry: each value begins with a 0 and the four bytes of its schema's number, and is read with the
//! schema that it was written with.
//!
//! This module never asks a registry: [`Avro::unlearned`] says which schemas it has to be told of, [`Avro::learn`] tells it.

mod compat;
mod plan;
mod read;
mod schema;

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use arrow_array::BinaryArray;

pub use self::compat::{Misfit, misfits};
pub use self::schema::SchemaError;

use self::plan::{Read, TargetField};
use self::schema::Schema;
use crate::column::Row;
use crate::fault::Fault;
use crate::types::Columns;

/// A schema's number in its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SchemaId(pub u32);

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A schema as a registry has it, with everything that it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredSchema {
    /// `AVRO`, `PROTOBUF`, `JSON`.
    pub kind: String,
    /// Its text.
    pub text: String,
    /// The texts of the schemas that it refers to, and that those refer to: each before the first that needs it.
    pub references: Vec<String>,
}

impl RegisteredSchema {
    /// An Avro schema that refers to nothing.
    pub fn avro(text: &str) -> Self {
        Self {
            kind: "AVRO".to_owned(),
            text: text.to_owned(),
            references: Vec::new(),
        }
    }

    fn parse(&self) -> Result<Schema, SchemaError> {
        if self.kind != "AVRO" {
            return Err(SchemaError(format!("it is {}, not AVRO", self.kind)));
        }
        Schema::parse(&self.text, &self.references)
    }
}

/// The columns that a record schema is, for a job that declares none.
pub(crate) fn columns_of(reader: &RegisteredSchema) -> Result<(Columns, Avro), SchemaError> {
    let (columns, fields) = plan::of_schema(&reader.parse()?)?;
    Ok((columns, Avro::new(fields)))
}

/// Reads records, each with its writer's schema, into the same columns.
#[derive(Debug)]
pub(crate) struct Avro {
    fields: Vec<TargetField>,
    plans: HashMap<SchemaId, Result<Plan, String>>,
}

#[derive(Debug)]
struct Plan {
    schema: Schema,
    read: Read,
}

impl Avro {
    fn new(fields: Vec<TargetField>) -> Self {
        Self {
            fields,
            plans: HashMap::new(),
        }
    }

    pub(crate) fn declared(columns: &Columns) -> Self {
        Self::new(plan::declared(columns))
    }

    /// The schemas that these values name and that nothing is known of yet.
    pub(crate) fn unlearned(&self, values: &BinaryArray) -> Vec<SchemaId> {
        let mut before = None;
        let mut unknown = BTreeSet::new();
        for value in values.iter().flatten() {
            if let Ok((id, _)) = split(value)
                && before != Some(id)
            {
                before = Some(id);
                if !self.plans.contains_key(&id) {
                    unknown.insert(id);
                }
            }
        }
        unknown.into_iter().collect()
    }

    /// What the registry says of a schema: itself, or why there is none.
    pub(crate) fn learn(&mut self, id: SchemaId, answer: Result<&RegisteredSchema, &str>) {
        let plan = answer.map_err(str::to_owned).and_then(|registered| {
            registered
                .parse()
                .and_then(|schema| {
                    let read = plan::plan(&schema, &self.fields)?;
                    Ok(Plan { schema, read })
                })
                .map_err(|error| error.to_string())
        });
        self.plans.insert(id, plan);
    }

    /// Reads one value into the row `len`; the outer error is a schema that was not learned.
    pub(crate) fn record(
        &self,
        value: &[u8],
        row: &mut Row,
        len: usize,
    ) -> Result<Result<(), Fault>, SchemaId> {
        let (id, body) = match split(value) {
            Ok(parts) => parts,
            Err(fault) => return Ok(Err(fault)),
        };
        Ok(match self.plans.get(&id) {
            None => return Err(id),
            Some(Err(why)) => Err(Fault::new(format!("schema {id}: {why}"))),
            Some(Ok(plan)) => read::record(body, &plan.schema, &plan.read, row, len),
        })
    }
}

/// Reads records into some of the columns, each by itself: see [`read::columns`].
#[derive(Debug)]
pub(crate) struct AvroColumns {
    avro: Avro,
    /// Where each column comes to stand.
    places: Vec<Option<usize>>,
}

impl AvroColumns {
    pub(crate) fn new(avro: Avro, places: Vec<Option<usize>>) -> Self {
        Self { avro, places }
    }

    pub(crate) fn unlearned(&self, values: &BinaryArray) -> Vec<SchemaId> {
        self.avro.unlearned(values)
    }

    pub(crate) fn learn(&mut self, id: SchemaId, answer: Result<&RegisteredSchema, &str>) {
        self.avro.learn(id, answer);
        if let Some(Ok(plan)) = self.avro.plans.get_mut(&id) {
            let read = std::mem::replace(&mut plan.read, Read::Null);
            plan.read = plan::projected(read, &self.places);
        }
    }

    /// Reads one value into the row `len`; the outer error is a schema that was not learned.
    pub(crate) fn columns(
        &self,
        value: &[u8],
        row: &mut Row,
        len: usize,
        required: &[bool],
    ) -> Result<Result<Option<Fault>, Fault>, SchemaId> {
        let (id, body) = match split(value) {
            Ok(parts) => parts,
            Err(fault) => return Ok(Err(fault)),
        };
        Ok(match self.avro.plans.get(&id) {
            None => return Err(id),
            Some(Err(why)) => Err(Fault::new(format!("schema {id}: {why}"))),
            Some(Ok(plan)) => read::columns(body, &plan.schema, &plan.read, row, len, required),
        })
    }
}

/// The number of the schema that a value says it was written with; none of what is no such value.
pub fn schema_id(value: &[u8]) -> Option<SchemaId> {
    split(value).ok().map(|(id, _)| id)
}

/// The number of the schema, and what was written with it.
fn split(value: &[u8]) -> Result<(SchemaId, &[u8]), Fault> {
    match value.split_first() {
        None => Err(Fault::new("the value is empty")),
        Some((0, rest)) => match rest.split_first_chunk::<4>() {
            Some((id, body)) => Ok((SchemaId(u32::from_be_bytes(*id)), body)),
            None => Err(Fault::new(
                "the value is shorter than the number of a schema",
            )),
        },
        Some((first, _)) => Err(Fault::new(format!(
            "the value begins with byte {first:#04x}, not with the 0 of a schema registry's format"
        ))),
    }
}

#[cfg(test)]
mod tests;
