//! How a new table maps rows to table partitions.

use std::fmt;
use std::str::FromStr;

use iceberg::spec::{Transform, UnboundPartitionSpec};

use super::{Column, SchemaError};

/// How rows map to table partitions: `day(archived_at)` unless configured. Written as terms with commas between, or
/// `none`; a term is `identity`, `bucket(N, …)` or `truncate(N, …)` of `generation` or `partition`, or `year`, `month`,
/// `day` or `hour` of `archived_at`.
///
/// * Every term has one value for all rows of a Kafka partition in a commit, so that no run of offsets is ever split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionBy {
    terms: Vec<PartitionTerm>,
}

/// One field of the partition spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionTerm {
    /// Where the value comes from.
    pub column: Column,
    /// What is made of it.
    pub transform: Transform,
}

impl Default for PartitionBy {
    fn default() -> Self {
        Self {
            terms: vec![PartitionTerm {
                column: Column::ArchivedAt,
                transform: Transform::Day,
            }],
        }
    }
}

impl PartitionBy {
    /// An unpartitioned table.
    pub const NONE: Self = Self { terms: Vec::new() };

    /// The terms, in order.
    pub fn terms(&self) -> &[PartitionTerm] {
        &self.terms
    }

    /// None where the table is not partitioned.
    pub(super) fn to_spec(&self) -> Result<Option<UnboundPartitionSpec>, SchemaError> {
        if self.terms.is_empty() {
            return Ok(None);
        }
        let mut builder = UnboundPartitionSpec::builder();
        for term in &self.terms {
            builder =
                builder.add_partition_field(term.column.id(), term.field_name(), term.transform)?;
        }
        Ok(Some(builder.build()))
    }
}

impl PartitionTerm {
    /// The names that other engines choose.
    fn field_name(self) -> String {
        let column = self.column.name();
        match self.transform {
            Transform::Identity => column.to_owned(),
            Transform::Bucket(_) => format!("{column}_bucket"),
            Transform::Truncate(_) => format!("{column}_trunc"),
            other => format!("{column}_{other}"),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let known = "write day(archived_at), hour(archived_at), identity(partition), bucket(16, partition) …, or none";
        let (name, arguments) = text
            .strip_suffix(')')
            .and_then(|t| t.split_once('('))
            .ok_or_else(|| format!("`{text}` is no term: {known}"))?;
        let mut arguments: Vec<&str> = arguments.split(',').map(str::trim).collect();
        let column = arguments.pop().unwrap_or_default();
        let column = [Column::Generation, Column::Partition, Column::ArchivedAt]
            .into_iter()
            .find(|c| c.name() == column)
            .ok_or_else(|| {
                format!("`{column}` cannot be partitioned by, only generation, partition and archived_at can")
            })?;
        let number = |arguments: &[&str]| match arguments {
            [n] => n
                .parse()
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| format!("`{n}` in `{text}` is not a number above 0")),
            _ => Err(format!("`{text}` needs a number and a column")),
        };
        let time = column == Column::ArchivedAt;
        let transform = match (name.trim(), arguments.as_slice(), time) {
            ("identity", [], false) => Transform::Identity,
            ("bucket", n, false) => Transform::Bucket(number(n)?),
            ("truncate", n, false) => Transform::Truncate(number(n)?),
            ("year", [], true) => Transform::Year,
            ("month", [], true) => Transform::Month,
            ("day", [], true) => Transform::Day,
            ("hour", [], true) => Transform::Hour,
            _ => return Err(format!("`{text}` is no term: {known}")),
        };
        Ok(Self { column, transform })
    }
}

impl FromStr for PartitionBy {
    type Err = SchemaError;

    fn from_str(text: &str) -> Result<Self, SchemaError> {
        let refused = |message: String| SchemaError::PartitionBy {
            text: text.to_owned(),
            message,
        };
        if text.trim() == "none" {
            return Ok(Self::NONE);
        }
        let mut terms: Vec<PartitionTerm> = Vec::new();
        for term in split_terms(text) {
            let term = PartitionTerm::parse(term.trim()).map_err(refused)?;
            if terms.iter().any(|t| t.column == term.column) {
                return Err(refused(format!("`{}` occurs twice", term.column.name())));
            }
            terms.push(term);
        }
        Ok(Self { terms })
    }
}

/// Splits at the commas outside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut depth) = (0, 0_i32);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

impl fmt::Display for PartitionBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("none");
        }
        for (i, term) in self.terms.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            let column = term.column.name();
            match term.transform {
                Transform::Bucket(n) => write!(f, "bucket({n}, {column})")?,
                Transform::Truncate(n) => write!(f, "truncate({n}, {column})")?,
                other => write!(f, "{other}({column})")?,
            }
        }
        Ok(())
    }
}
