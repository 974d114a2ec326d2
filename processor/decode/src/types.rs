//! The types of a job's columns, as SQL names them, and what they are in Arrow.
//!
//! The names are those that Flink's DDL and standard SQL share, so that a column is declared once for both engines.
//! [`SqlType`]'s text form is read back as the same type, and is what Flink parses.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// Types may nest so deep.
pub const NESTING_MAX: usize = 16;

/// Digits of a DECIMAL.
pub const PRECISION_MAX: u8 = 38;

/// Digits after the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precision {
    /// None.
    Seconds,
    /// Three.
    Millis,
    /// Six.
    Micros,
    /// Nine.
    Nanos,
}

impl Precision {
    /// How many digits.
    pub const fn digits(self) -> u32 {
        match self {
            Self::Seconds => 0,
            Self::Millis => 3,
            Self::Micros => 6,
            Self::Nanos => 9,
        }
    }

    const fn of_digits(digits: u32) -> Option<Self> {
        match digits {
            0 => Some(Self::Seconds),
            3 => Some(Self::Millis),
            6 => Some(Self::Micros),
            9 => Some(Self::Nanos),
            _ => None,
        }
    }

    /// How many of it make a second.
    pub const fn per_second(self) -> i64 {
        10_i64.pow(self.digits())
    }

    const fn unit(self) -> TimeUnit {
        match self {
            Self::Seconds => TimeUnit::Second,
            Self::Millis => TimeUnit::Millisecond,
            Self::Micros => TimeUnit::Microsecond,
            Self::Nanos => TimeUnit::Nanosecond,
        }
    }
}

/// A type, without whether it may be null.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SqlType {
    /// `BOOLEAN`
    Boolean,
    /// `TINYINT`, 8 bits.
    TinyInt,
    /// `SMALLINT`, 16 bits.
    SmallInt,
    /// `INT`, 32 bits.
    Int,
    /// `BIGINT`, 64 bits.
    BigInt,
    /// `FLOAT`, 32 bits.
    Float,
    /// `DOUBLE`, 64 bits.
    Double,
    /// `DECIMAL(precision, scale)`: so many digits, so many of them after the point.
    Decimal {
        /// All digits, 1 to 38.
        precision: u8,
        /// Digits after the point, at most `precision`.
        scale: u8,
    },
    /// `STRING`: UTF-8.
    String,
    /// `BYTES`
    Bytes,
    /// `DATE`
    Date,
    /// `TIME(3)` or `TIME(6)`: of day.
    Time(Precision),
    /// `TIMESTAMP(p)`: a date and a time of day, of no time zone.
    Timestamp(Precision),
    /// `TIMESTAMP_LTZ(p)`: an instant.
    TimestampLtz(Precision),
    /// `ARRAY<T>`
    Array(Box<ColumnType>),
    /// `MAP<STRING, T>`
    Map(Box<ColumnType>),
    /// `ROW<name T, …>`
    Row(Vec<Column>),
}

/// A type, and whether it may be null.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnType {
    /// The type.
    pub sql: SqlType,
    /// False for `NOT NULL`.
    pub nullable: bool,
}

/// A named column, or a field of a `ROW`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Column {
    /// Case counts.
    pub name: String,
    /// What it holds.
    pub of: ColumnType,
}

/// The columns of a source: at least one, no name twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Columns(Vec<Column>);

/// A declaration that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TypeError {
    /// Not a type.
    #[error("{text:?} is not a column type: {what}")]
    Syntax {
        /// What was written.
        text: String,
        /// What is wrong with it, and what would be right.
        what: String,
    },
    /// A source without columns says nothing.
    #[error("there are no columns: name at least one, like user_id = \"STRING NOT NULL\"")]
    NoColumns,
    /// Two columns of one name.
    #[error("column {0} is declared twice: remove one")]
    Twice(String),
    /// A column without a name.
    #[error("a column has an empty name: give it the name of the field")]
    Unnamed,
}

impl Columns {
    /// Checks that there are some, with names, none of them twice.
    pub fn new(columns: Vec<Column>) -> Result<Self, TypeError> {
        if columns.is_empty() {
            return Err(TypeError::NoColumns);
        }
        if let Some(name) = name_twice(&columns) {
            return Err(TypeError::Twice(name));
        }
        if columns.iter().any(|c| c.name.is_empty()) {
            return Err(TypeError::Unnamed);
        }
        Ok(Self(columns))
    }

    /// Columns that nobody declares: some, with names that differ.
    pub(crate) fn own<const N: usize>(columns: [Column; N]) -> Self {
        Self(columns.into())
    }

    /// From pairs of name and type, as a job file has them.
    pub fn parse<'a>(
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, TypeError> {
        let columns = pairs
            .into_iter()
            .map(|(name, text)| {
                Ok(Column {
                    name: name.to_owned(),
                    of: text.parse()?,
                })
            })
            .collect::<Result<_, TypeError>>()?;
        Self::new(columns)
    }

    /// In the order of declaration.
    pub fn as_slice(&self) -> &[Column] {
        &self.0
    }

    /// In the order of declaration.
    pub fn iter(&self) -> std::slice::Iter<'_, Column> {
        self.0.iter()
    }

    /// The Arrow schema of what is decoded.
    pub fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(
            self.0.iter().map(Column::field).collect::<Vec<_>>(),
        ))
    }
}

impl<'a> IntoIterator for &'a Columns {
    type Item = &'a Column;
    type IntoIter = std::slice::Iter<'a, Column>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.0)
    }
}

fn name_twice(columns: &[Column]) -> Option<String> {
    let mut names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    names
        .windows(2)
        .find(|pair| pair[0] == pair[1])
        .map(|pair| pair[0].to_owned())
}

impl Column {
    /// The Arrow field.
    pub fn field(&self) -> Field {
        Field::new(&self.name, self.of.sql.arrow(), self.of.nullable)
    }
}

impl ColumnType {
    fn named(&self, name: &str) -> Arc<Field> {
        Arc::new(Field::new(name, self.sql.arrow(), self.nullable))
    }
}

impl SqlType {
    /// What it is in Arrow.
    pub fn arrow(&self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::TinyInt => DataType::Int8,
            Self::SmallInt => DataType::Int16,
            Self::Int => DataType::Int32,
            Self::BigInt => DataType::Int64,
            Self::Float => DataType::Float32,
            Self::Double => DataType::Float64,
            Self::Decimal { precision, scale } => {
                DataType::Decimal128(*precision, i8::try_from(*scale).unwrap_or(i8::MAX))
            }
            Self::String => DataType::Utf8,
            Self::Bytes => DataType::Binary,
            Self::Date => DataType::Date32,
            Self::Time(precision) if *precision <= Precision::Millis => {
                DataType::Time32(precision.unit())
            }
            Self::Time(precision) => DataType::Time64(precision.unit()),
            Self::Timestamp(precision) => DataType::Timestamp(precision.unit(), None),
            Self::TimestampLtz(precision) => {
                DataType::Timestamp(precision.unit(), Some("UTC".into()))
            }
            Self::Array(item) => DataType::List(item.named("item")),
            Self::Map(value) => DataType::Map(map_entries(value), false),
            Self::Row(fields) => DataType::Struct(fields.iter().map(Column::field).collect()),
        }
    }
}

/// The struct of key and value that an Arrow map is a list of.
pub(crate) fn map_entries(value: &ColumnType) -> Arc<Field> {
    let key = Arc::new(Field::new("key", DataType::Utf8, false));
    let entries = DataType::Struct(vec![key, value.named("value")].into());
    Arc::new(Field::new("entries", entries, false))
}

fn list(f: &mut fmt::Formatter<'_>, columns: &[Column]) -> fmt::Result {
    for (i, column) in columns.iter().enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        write!(f, "{comma}{} {}", Quoted(&column.name), column.of)?;
    }
    Ok(())
}

/// A name as SQL has it: in backquotes, a backquote doubled.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0.replace('`', "``"))
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sql.fmt(f)?;
        if self.nullable {
            Ok(())
        } else {
            f.write_str(" NOT NULL")
        }
    }
}

impl fmt::Display for SqlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::TinyInt => f.write_str("TINYINT"),
            Self::SmallInt => f.write_str("SMALLINT"),
            Self::Int => f.write_str("INT"),
            Self::BigInt => f.write_str("BIGINT"),
            Self::Float => f.write_str("FLOAT"),
            Self::Double => f.write_str("DOUBLE"),
            Self::Decimal { precision, scale } => write!(f, "DECIMAL({precision}, {scale})"),
            Self::String => f.write_str("STRING"),
            Self::Bytes => f.write_str("BYTES"),
            Self::Date => f.write_str("DATE"),
            Self::Time(p) => write!(f, "TIME({})", p.digits()),
            Self::Timestamp(p) => write!(f, "TIMESTAMP({})", p.digits()),
            Self::TimestampLtz(p) => write!(f, "TIMESTAMP_LTZ({})", p.digits()),
            Self::Array(item) => write!(f, "ARRAY<{item}>"),
            Self::Map(value) => write!(f, "MAP<STRING NOT NULL, {value}>"),
            Self::Row(fields) => {
                f.write_str("ROW<")?;
                list(f, fields)?;
                f.write_str(">")
            }
        }
    }
}

impl FromStr for ColumnType {
    type Err = TypeError;

    fn from_str(text: &str) -> Result<Self, TypeError> {
        let mut parser = Parser { rest: text };
        let read = parser.column_type(0).and_then(|read| {
            parser.space();
            match parser.rest {
                "" => Ok(read),
                rest => Err(format!("nothing is expected after the type, but {rest:?}")),
            }
        });
        read.map_err(|what| TypeError::Syntax {
            text: text.chars().take(200).collect(),
            what,
        })
    }
}

/// Every name that a type may have, for those that are mistyped.
const NAMES: [&str; 20] = [
    "ARRAY",
    "BIGINT",
    "BOOLEAN",
    "BYTES",
    "DATE",
    "DECIMAL",
    "DOUBLE",
    "FLOAT",
    "INT",
    "INTEGER",
    "MAP",
    "NUMERIC",
    "ROW",
    "SMALLINT",
    "STRING",
    "STRUCT",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMP_LTZ",
    "TINYINT",
];

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes a sign if it is next.
    fn sign(&mut self, sign: char) -> bool {
        self.space();
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn need(&mut self, sign: char) -> Result<(), String> {
        if self.sign(sign) {
            return Ok(());
        }
        Err(match self.rest.chars().next() {
            Some(_) => format!("{sign:?} is expected before {:?}", self.shown()),
            None => format!("{sign:?} is missing at its end"),
        })
    }

    fn shown(&self) -> String {
        self.rest.chars().take(30).collect()
    }

    /// A word of letters, digits and underscores; empty where there is none.
    fn word(&mut self) -> &'a str {
        self.space();
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// Takes the words if they are next, in any case.
    fn words(&mut self, words: &[&str]) -> bool {
        let before = self.rest;
        let all = words
            .iter()
            .all(|expected| self.word().eq_ignore_ascii_case(expected));
        if !all {
            self.rest = before;
        }
        all
    }

    fn column_type(&mut self, depth: usize) -> Result<ColumnType, String> {
        if depth >= NESTING_MAX {
            return Err(format!("types nest at most {NESTING_MAX} deep"));
        }
        let sql = self.sql_type(depth)?;
        let nullable = if self.words(&["NOT", "NULL"]) {
            false
        } else {
            self.words(&["NULL"]);
            true
        };
        Ok(ColumnType { sql, nullable })
    }

    fn sql_type(&mut self, depth: usize) -> Result<SqlType, String> {
        let word = self.word();
        let name = word.to_ascii_uppercase();
        Ok(match name.as_str() {
            "BOOLEAN" => SqlType::Boolean,
            "TINYINT" => SqlType::TinyInt,
            "SMALLINT" => SqlType::SmallInt,
            "INT" | "INTEGER" => SqlType::Int,
            "BIGINT" => SqlType::BigInt,
            "FLOAT" => SqlType::Float,
            "DOUBLE" => {
                self.words(&["PRECISION"]);
                SqlType::Double
            }
            "DECIMAL" | "NUMERIC" => self.decimal()?,
            "STRING" => SqlType::String,
            "BYTES" => SqlType::Bytes,
            "DATE" => SqlType::Date,
            "TIME" => match self.precision()? {
                Some(p @ (Precision::Millis | Precision::Micros)) => SqlType::Time(p),
                None => SqlType::Time(Precision::Millis),
                Some(_) => return Err("write TIME(3) or TIME(6)".to_owned()),
            },
            "TIMESTAMP_LTZ" => {
                SqlType::TimestampLtz(self.precision()?.unwrap_or(Precision::Micros))
            }
            "TIMESTAMP" => {
                let precision = self.precision()?.unwrap_or(Precision::Micros);
                if self.words(&["WITH", "LOCAL", "TIME", "ZONE"]) {
                    SqlType::TimestampLtz(precision)
                } else if self.words(&["WITHOUT", "TIME", "ZONE"]) {
                    SqlType::Timestamp(precision)
                } else if self.words(&["WITH"]) {
                    return Err("for an instant write TIMESTAMP_LTZ(3)".to_owned());
                } else {
                    SqlType::Timestamp(precision)
                }
            }
            "ARRAY" => {
                self.need('<')?;
                let item = self.column_type(depth + 1)?;
                self.need('>')?;
                SqlType::Array(Box::new(item))
            }
            "MAP" => {
                self.need('<')?;
                let key = self.column_type(depth + 1)?;
                if key.sql != SqlType::String {
                    return Err(format!(
                        "the keys of a MAP are STRING, not {}: write MAP<STRING, …>",
                        key.sql
                    ));
                }
                self.need(',')?;
                let value = self.column_type(depth + 1)?;
                self.need('>')?;
                SqlType::Map(Box::new(value))
            }
            "ROW" | "STRUCT" => self.row(depth)?,
            "" => {
                return Err(if self.rest.is_empty() {
                    "a type is missing".to_owned()
                } else {
                    format!("a type is expected before {:?}", self.shown())
                });
            }
            "CHAR" | "VARCHAR" | "TEXT" | "UUID" => return Err("text is STRING".to_owned()),
            "BINARY" | "VARBINARY" | "BLOB" | "BYTEA" => return Err("bytes are BYTES".to_owned()),
            "LONG" => return Err("write BIGINT".to_owned()),
            "REAL" => return Err("write FLOAT (32 bits) or DOUBLE (64 bits)".to_owned()),
            "BOOL" => return Err("write BOOLEAN".to_owned()),
            "DATETIME" => return Err("write TIMESTAMP".to_owned()),
            "TIMESTAMPTZ" => return Err("for an instant write TIMESTAMP_LTZ(3)".to_owned()),
            _ => return Err(unknown(word, &name)),
        })
    }

    fn number(&mut self) -> Option<u32> {
        self.word().parse().ok()
    }

    fn precision(&mut self) -> Result<Option<Precision>, String> {
        if !self.sign('(') {
            return Ok(None);
        }
        let precision = self.number().and_then(Precision::of_digits);
        let precision = precision.ok_or("the digits after the second are (0), (3), (6) or (9)")?;
        self.need(')')?;
        Ok(Some(precision))
    }

    fn decimal(&mut self) -> Result<SqlType, String> {
        let wrong = || {
            format!(
                "write DECIMAL(precision, scale) with 1 to {PRECISION_MAX} digits, and at most as many after the point"
            )
        };
        if !self.sign('(') {
            return Err(wrong());
        }
        let precision = self.number().ok_or_else(wrong)?;
        let scale = if self.sign(',') {
            self.number().ok_or_else(wrong)?
        } else {
            0
        };
        self.need(')')?;
        let (Ok(precision), Ok(scale)) = (u8::try_from(precision), u8::try_from(scale)) else {
            return Err(wrong());
        };
        if (1..=PRECISION_MAX).contains(&precision) && scale <= precision {
            Ok(SqlType::Decimal { precision, scale })
        } else {
            Err(wrong())
        }
    }

    fn row(&mut self, depth: usize) -> Result<SqlType, String> {
        self.need('<')?;
        let mut fields = Vec::new();
        loop {
            let name = self.name()?;
            self.sign(':');
            let of = self.column_type(depth + 1)?;
            fields.push(Column { name, of });
            if !self.sign(',') {
                break;
            }
        }
        self.need('>')?;
        match name_twice(&fields) {
            Some(name) => Err(format!("field {name} is declared twice: remove one")),
            None => Ok(SqlType::Row(fields)),
        }
    }

    fn name(&mut self) -> Result<String, String> {
        if !self.sign('`') {
            return match self.word() {
                "" => Err(format!(
                    "the name of a field is expected before {:?}, as in ROW<name STRING>",
                    self.shown()
                )),
                word => Ok(word.to_owned()),
            };
        }
        let mut name = String::new();
        loop {
            let Some((part, rest)) = self.rest.split_once('`') else {
                return Err("a name in backquotes has no end".to_owned());
            };
            name.push_str(part);
            self.rest = rest;
            match rest.strip_prefix('`') {
                Some(rest) => {
                    name.push('`');
                    self.rest = rest;
                }
                None if name.is_empty() => return Err("a field has an empty name".to_owned()),
                None => return Ok(name),
            }
        }
    }
}

fn unknown(word: &str, upper: &str) -> String {
    let meant = NAMES
        .iter()
        .map(|name| (strsim::damerau_levenshtein(upper, name), *name))
        .filter(|(distance, _)| *distance <= 2)
        .min();
    let word: String = word.chars().take(40).collect();
    match meant {
        Some((_, name)) => format!("there is no type {word}; did you mean {name}?"),
        None => format!(
            "there is no type {word}; there are BOOLEAN, TINYINT, SMALLINT, INT, BIGINT, FLOAT, DOUBLE, DECIMAL(p, s), STRING, \
             BYTES, DATE, TIME(p), TIMESTAMP(p), TIMESTAMP_LTZ(p), ARRAY<T>, MAP<STRING, T> and ROW<name T, …>"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ColumnType {
        text.parse().unwrap()
    }

    #[test]
    fn types_are_read_in_any_case_and_written_as_flink_reads_them() {
        for (text, written) in [
            ("string not null", "STRING NOT NULL"),
            ("BIGINT", "BIGINT"),
            ("integer null", "INT"),
            ("Double Precision", "DOUBLE"),
            ("numeric(10)", "DECIMAL(10, 0)"),
            ("DECIMAL(38,10)", "DECIMAL(38, 10)"),
            ("TIMESTAMP", "TIMESTAMP(6)"),
            ("TIMESTAMP(3) WITHOUT TIME ZONE", "TIMESTAMP(3)"),
            (
                "TIMESTAMP(0) WITH LOCAL TIME ZONE NOT NULL",
                "TIMESTAMP_LTZ(0) NOT NULL",
            ),
            ("time", "TIME(3)"),
            (
                "ARRAY<ROW<a INT NOT NULL, `b``c` MAP<STRING, DOUBLE>>>",
                "ARRAY<ROW<`a` INT NOT NULL, `b``c` MAP<STRING NOT NULL, DOUBLE>>>",
            ),
            ("STRUCT<a: INT>", "ROW<`a` INT>"),
        ] {
            assert_eq!(read(text).to_string(), written);
            assert_eq!(read(written), read(text), "{text}");
        }
        let columns = Columns::parse([("user id", "STRING NOT NULL"), ("n", "INT")]).unwrap();
        assert_eq!(columns.to_string(), "`user id` STRING NOT NULL, `n` INT");
    }

    #[test]
    fn what_is_no_type_is_refused_with_what_would_be_right() {
        let nested = format!("{}INT{}", "ARRAY<".repeat(16), ">".repeat(16));
        for (text, what) in [
            ("", "a type is missing"),
            ("STRNG", "there is no type STRNG; did you mean STRING?"),
            (
                "GEOMETRY",
                "there is no type GEOMETRY; there are BOOLEAN, TINYINT,",
            ),
            ("VARCHAR(20)", "text is STRING"),
            ("LONG", "write BIGINT"),
            ("BOOL", "write BOOLEAN"),
            (
                "TIMESTAMP(2)",
                "the digits after the second are (0), (3), (6) or (9)",
            ),
            (
                "TIMESTAMP(3) WITH TIME ZONE",
                "for an instant write TIMESTAMP_LTZ(3)",
            ),
            ("TIME(9)", "write TIME(3) or TIME(6)"),
            ("DECIMAL", "write DECIMAL(precision, scale)"),
            (
                "DECIMAL(39, 2)",
                "write DECIMAL(precision, scale) with 1 to 38",
            ),
            ("DECIMAL(3, 4)", "write DECIMAL(precision, scale)"),
            ("ARRAY<INT", "'>' is missing at its end"),
            ("ARRAY INT", "'<' is expected before \"INT\""),
            ("MAP<INT, INT>", "the keys of a MAP are STRING, not INT"),
            ("ROW<>", "the name of a field is expected before \">\""),
            ("ROW<a INT, a INT>", "field a is declared twice: remove one"),
            ("ROW<`a INT>", "a name in backquotes has no end"),
            ("INT NOT", "nothing is expected after the type, but \"NOT\""),
            (&nested, "types nest at most 16 deep"),
        ] {
            let error = text.parse::<ColumnType>().unwrap_err().to_string();
            let expected = format!("{text:?} is not a column type: {what}");
            assert!(
                error.starts_with(&expected) || (text.len() > 60 && error.contains(what)),
                "{expected}\n{error}"
            );
        }
        let twice = Columns::parse([("a", "INT"), ("a", "INT")]).unwrap_err();
        assert_eq!(twice.to_string(), "column a is declared twice: remove one");
        assert_eq!(Columns::new(Vec::new()), Err(TypeError::NoColumns));
        assert_eq!(Columns::parse([("", "INT")]), Err(TypeError::Unnamed));
    }

    #[test]
    fn any_text_is_a_type_that_is_written_and_read_back_or_refused() {
        let corpus = [
            "STRING NOT NULL",
            "DECIMAL(38, 10)",
            "ARRAY<ROW<a INT NOT NULL, `b``c` MAP<STRING, TIMESTAMP_LTZ(3)>>>",
            "TIMESTAMP(3) WITH LOCAL TIME ZONE",
        ];
        everlog_hostile::feed_text("column type", &corpus, |text| {
            if let Ok(read) = text.parse::<ColumnType>() {
                assert_eq!(read.to_string().parse(), Ok(read.clone()));
                let _ = read.sql.arrow();
            }
        });
    }
}
