//! JSON values as columns in another engine's SQL. Pure.
//!
//! Each column is one expression over the value's text, by the engine's own JSON functions, with a check before each
//! conversion that would round, cut or guess: what everlog refuses is null there. A column that an engine cannot give
//! exactly is left out, and the reason is told.

use std::fmt::Write as _;

use everlog_decode::{Column, ColumnType, Precision, SqlType};

/// Whose SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Engine {
    /// Apache Spark 4.0 and later.
    Spark,
    /// Trino.
    Trino,
    /// DuckDB 1.3 and later.
    #[value(name = "duckdb")]
    DuckDb,
}

use Engine::{DuckDb, Spark, Trino};

/// Digits that a double holds, whatever they are.
const DOUBLE_DIGITS: u8 = 15;

/// A number as JSON has it.
const NUMBER: &str = "^-?(?:0|[1-9][0-9]*)(?:[.][0-9]+)?(?:[eE][+-]?[0-9]+)?$";

/// Base64 with its padding.
const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";

const DAY: &str = "[0-9]{4}-[0-9]{2}-[0-9]{2}";
const TIME_OF_DAY: &str = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]";
const ZONE: &str = "(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)";

/// A place inside JSON: a path from an expression that is JSON text (of Trino and DuckDB inside arrays: JSON).
#[derive(Debug, Clone)]
pub(super) struct Place {
    source: String,
    path: Vec<String>,
    /// Arrays and maps around it, for the names of their elements.
    depth: usize,
}

impl Place {
    /// The whole of what an expression gives.
    pub(super) fn whole(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            path: Vec::new(),
            depth: 0,
        }
    }

    /// A field of the object there.
    pub(super) fn field(&self, name: &str) -> Self {
        let mut path = self.path.clone();
        path.push(name.to_owned());
        Self {
            path,
            ..self.clone()
        }
    }

    /// An element of the array or map there, by the variable that stands for it.
    fn element(&self, variable: &str) -> Self {
        Self {
            source: variable.to_owned(),
            path: Vec::new(),
            depth: self.depth + 1,
        }
    }
}

impl Engine {
    /// As people write it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Spark => "Spark",
            Trino => "Trino",
            DuckDb => "DuckDB",
        }
    }

    /// An identifier.
    pub(super) fn quoted(self, name: &str) -> String {
        match self {
            Spark => format!("`{}`", name.replace('`', "``")),
            Trino | DuckDb => format!("\"{}\"", name.replace('"', "\"\"")),
        }
    }

    /// A text.
    pub(super) fn literal(self, text: &str) -> String {
        match self {
            Spark => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
            Trino | DuckDb => format!("'{}'", text.replace('\'', "''")),
        }
    }

    /// Bytes as text; null where they are not UTF-8.
    pub(super) fn text_of(self, bytes: &str) -> String {
        match self {
            Spark => {
                format!("if(is_valid_utf8(CAST({bytes} AS STRING)), CAST({bytes} AS STRING), NULL)")
            }
            Trino => format!(
                "CASE WHEN to_utf8(from_utf8({bytes})) = {bytes} THEN from_utf8({bytes}) END"
            ),
            DuckDb => format!("TRY(decode({bytes}))"),
        }
    }

    /// The text, where it is JSON. (What is no JSON gives null in each of Spark's functions; Trino's take what they need and
    /// look no further.)
    pub(super) fn json_of(self, bytes: &str) -> String {
        let text = self.text_of(bytes);
        match self {
            Spark => text,
            Trino => format!("CASE WHEN TRY(json_parse({text})) IS NOT NULL THEN {text} END"),
            DuckDb => format!("CASE WHEN json_valid({text}) THEN {text} END"),
        }
    }

    /// The path as the engine's functions take it.
    fn path(self, place: &Place) -> Result<String, String> {
        let mut path = String::new();
        match self {
            DuckDb if place.path.is_empty() => path.push('$'),
            DuckDb => {
                for name in &place.path {
                    let _ = write!(path, "/{}", name.replace('~', "~0").replace('/', "~1"));
                }
            }
            Trino => {
                path.push('$');
                for name in &place.path {
                    let name = name.replace('\\', "\\\\").replace('"', "\\\"");
                    let _ = write!(path, "[\"{name}\"]");
                }
            }
            Spark => {
                path.push('$');
                for name in &place.path {
                    if name.contains(['\'', '?', '\\']) {
                        return Err(format!("Spark's paths cannot name the field {name:?}"));
                    }
                    let _ = write!(path, "['{name}']");
                }
            }
        }
        Ok(self.literal(&path))
    }

    /// What a string says, the JSON of anything else; null of null.
    fn text(self, place: &Place) -> Result<String, String> {
        let source = &place.source;
        let path = self.path(place)?;
        Ok(match self {
            Spark if place.path.is_empty() => source.clone(),
            Spark => format!("get_json_object({source}, {path})"),
            Trino => format!(
                "COALESCE(json_extract_scalar({source}, {path}), NULLIF(json_format(json_extract({source}, {path})), 'null'))"
            ),
            DuckDb => format!("json_extract_string({source}, {path})"),
        })
    }

    /// What a string says, or the text of a number or a truth.
    fn scalar(self, place: &Place) -> Result<String, String> {
        match self {
            // get_json_object would write larger numbers with an exponent
            Spark if !place.path.is_empty() => Ok(format!(
                "try_variant_get(try_parse_json({}), {}, 'string')",
                place.source,
                self.path(place)?
            )),
            Trino => Ok(format!(
                "json_extract_scalar({}, {})",
                place.source,
                self.path(place)?
            )),
            Spark | DuckDb => self.text(place),
        }
    }

    /// The JSON there, as text.
    fn json(self, place: &Place) -> Result<String, String> {
        let source = &place.source;
        let path = self.path(place)?;
        Ok(match self {
            Spark => self.text(place)?,
            Trino => format!("json_format(json_extract({source}, {path}))"),
            DuckDb => format!("CAST(json_extract({source}, {path}) AS VARCHAR)"),
        })
    }

    fn matches(self, text: &str, pattern: &str) -> String {
        let pattern = self.literal(pattern);
        match self {
            Spark => format!("{text} RLIKE {pattern}"),
            Trino => format!("regexp_like({text}, {pattern})"),
            DuckDb => format!("regexp_matches({text}, {pattern})"),
        }
    }

    /// The value as a type, where its text is of this form.
    fn guarded(self, text: &str, pattern: &str, of: &str) -> String {
        format!(
            "CASE WHEN {} THEN TRY_CAST({text} AS {of}) END",
            self.matches(text, pattern)
        )
    }

    /// The value at a place, as a column's type; an error says what the engine cannot do.
    pub(super) fn value(self, place: &Place, of: &ColumnType) -> Result<String, String> {
        Ok(match &of.sql {
            SqlType::String => self.text(place)?,
            SqlType::Boolean if self == Spark && !place.path.is_empty() => {
                // only here a truth and the text of one are told apart
                let (source, path) = (&place.source, self.path(place)?);
                let get =
                    |of: &str| format!("try_variant_get(try_parse_json({source}), {path}, '{of}')");
                format!(
                    "CASE WHEN schema_of_variant({}) = 'BOOLEAN' THEN {} END",
                    get("variant"),
                    get("boolean")
                )
            }
            SqlType::Boolean => {
                let json = self.json(place)?;
                format!("CASE {json} WHEN 'true' THEN TRUE WHEN 'false' THEN FALSE END")
            }
            SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => {
                let text = self.scalar(place)?;
                let whole = self.literal("^(-?(?:0|[1-9][0-9]*))(?:[.]0+)?$");
                let cast =
                    |of: &str| format!("TRY_CAST(regexp_extract({text}, {whole}, 1) AS {of})");
                match (&of.sql, self) {
                    (SqlType::TinyInt, Trino) => format!("CAST({} AS INTEGER)", cast("TINYINT")),
                    (SqlType::SmallInt, Trino) => format!("CAST({} AS INTEGER)", cast("SMALLINT")),
                    (of, _) => cast(&self.type_name(of)?),
                }
            }
            SqlType::Float | SqlType::Double => {
                let text = self.scalar(place)?;
                let cast = format!("TRY_CAST({text} AS {})", self.type_name(&of.sql)?);
                // what is larger than the largest is infinite there
                let largest = if of.sql == SqlType::Float {
                    "3.4028235E38"
                } else {
                    "1.7976931348623157E308"
                };
                format!(
                    "CASE WHEN {} AND abs({cast}) <= {largest} THEN {cast} END",
                    self.matches(&text, NUMBER)
                )
            }
            SqlType::Decimal { scale, .. } => {
                let fraction = match scale {
                    0 => "(?:[.]0+)?".to_owned(),
                    scale => format!("(?:[.][0-9]{{1,{scale}}}0*)?"),
                };
                let pattern = format!("^-?(?:0|[1-9][0-9]*){fraction}$");
                self.guarded(&self.scalar(place)?, &pattern, &self.type_name(&of.sql)?)
            }
            SqlType::Bytes => {
                let text = self.scalar(place)?;
                // Spark and Trino would do without the padding
                let guarded = |of: &str| {
                    let is_base64 = self.matches(&text, BASE64);
                    format!("CASE WHEN {is_base64} THEN {of} END")
                };
                match self {
                    Spark => guarded(&format!("try_to_binary({text}, 'base64')")),
                    Trino => guarded(&format!("TRY(from_base64({text}))")),
                    DuckDb => format!("TRY(from_base64({text}))"),
                }
            }
            SqlType::Date => self.guarded(&self.scalar(place)?, &format!("^{DAY}$"), "DATE"),
            SqlType::Time(precision) => {
                let pattern = format!("^{TIME_OF_DAY}{}$", fraction(*precision));
                self.guarded(&self.scalar(place)?, &pattern, &self.type_name(&of.sql)?)
            }
            SqlType::Timestamp(precision) => {
                let pattern = format!("^{DAY}[T ]{TIME_OF_DAY}{}$", fraction(*precision));
                let text = self.scalar(place)?;
                let cast = format!(
                    "TRY_CAST(replace({text}, 'T', ' ') AS {})",
                    self.type_name(&of.sql)?
                );
                format!(
                    "CASE WHEN {} THEN {cast} END",
                    self.matches(&text, &pattern)
                )
            }
            SqlType::TimestampLtz(precision) => {
                let pattern = format!("^{DAY}[T ]{TIME_OF_DAY}{}{ZONE}$", fraction(*precision));
                let text = self.scalar(place)?;
                let of = self.type_name(&of.sql)?;
                let cast = match self {
                    Trino => format!(
                        "CAST(TRY(from_iso8601_timestamp_nanos(replace({text}, ' ', 'T'))) AS {of})"
                    ),
                    Spark | DuckDb => format!("TRY_CAST({text} AS {of})"),
                };
                format!(
                    "CASE WHEN {} THEN {cast} END",
                    self.matches(&text, &pattern)
                )
            }
            SqlType::Array(item) => self.array(place, item)?,
            SqlType::Map(item) => self.map(place, item)?,
            SqlType::Row(fields) => self.row(place, fields)?,
        })
    }

    fn array(self, place: &Place, item: &ColumnType) -> Result<String, String> {
        let variable = format!("e{}", place.depth);
        let element = self.value(&place.element(&variable), item)?;
        let json = self.json(place)?;
        let extracted = format!("json_extract({}, {})", place.source, self.path(place)?);
        Ok(match self {
            Spark => format!(
                "CASE WHEN {json} LIKE '[%' THEN transform(from_json({json}, 'ARRAY<STRING>'), {variable} -> {element}) END"
            ),
            Trino => {
                format!("transform(TRY_CAST({extracted} AS ARRAY(JSON)), {variable} -> {element})")
            }
            DuckDb => format!(
                "CASE WHEN {json} LIKE '[%' THEN list_transform(TRY_CAST({extracted} AS JSON[]), lambda {variable}: {element}) END"
            ),
        })
    }

    fn map(self, place: &Place, item: &ColumnType) -> Result<String, String> {
        let variable = format!("e{}", place.depth);
        let json = self.json(place)?;
        let extracted = format!("json_extract({}, {})", place.source, self.path(place)?);
        Ok(match self {
            Spark => {
                let value = self.value(&place.element(&variable), item)?;
                format!(
                    "CASE WHEN {json} LIKE '{{%' THEN transform_values(from_json({json}, 'MAP<STRING, STRING>'), (k{variable}, {variable}) -> {value}) END"
                )
            }
            Trino => {
                let value = self.value(&place.element(&variable), item)?;
                format!(
                    "transform_values(TRY_CAST({extracted} AS MAP(VARCHAR, JSON)), (k{variable}, {variable}) -> {value})"
                )
            }
            DuckDb => {
                let value = self.value(&place.element(&format!("{variable}.value")), item)?;
                format!(
                    "CASE WHEN {json} LIKE '{{%' THEN map_from_entries(list_transform(map_entries(TRY_CAST({extracted} AS MAP(VARCHAR, JSON))), lambda {variable}: {{'key': {variable}.key, 'value': {value}}})) END"
                )
            }
        })
    }

    fn row(self, place: &Place, fields: &[Column]) -> Result<String, String> {
        let values = fields
            .iter()
            .map(|field| self.value(&place.field(&field.name), &field.of))
            .collect::<Result<Vec<_>, _>>()?;
        let json = self.json(place)?;
        let named = |separator: &str, quote: fn(Self, &str) -> String| {
            let pairs = fields.iter().zip(&values);
            let pairs = pairs
                .map(|(field, value)| format!("{}{separator}{value}", quote(self, &field.name)));
            pairs.collect::<Vec<_>>().join(", ")
        };
        let built = match self {
            Spark => format!("named_struct({})", named(", ", Self::literal)),
            Trino => {
                let types = SqlType::Row(fields.to_vec());
                format!(
                    "CAST(ROW({}) AS {})",
                    values.join(", "),
                    self.type_name(&types)?
                )
            }
            DuckDb => format!("{{{}}}", named(": ", Self::literal)),
        };
        Ok(format!("CASE WHEN {json} LIKE '{{%' THEN {built} END"))
    }

    /// A type by its name in the engine; an error where it has none that holds the same.
    fn type_name(self, of: &SqlType) -> Result<String, String> {
        let no = |why: &str| Err(format!("{} {why}", self.name()));
        Ok(match (of, self) {
            (SqlType::Boolean, _) => "BOOLEAN".to_owned(),
            // Trino keeps the view beside the table: its columns are of Iceberg's types
            (SqlType::TinyInt | SqlType::SmallInt, Trino) => "INTEGER".to_owned(),
            (SqlType::TinyInt, _) => "TINYINT".to_owned(),
            (SqlType::SmallInt, _) => "SMALLINT".to_owned(),
            (SqlType::Int, Spark) => "INT".to_owned(),
            (SqlType::Int, _) => "INTEGER".to_owned(),
            (SqlType::BigInt, _) => "BIGINT".to_owned(),
            (SqlType::Float, Spark) => "FLOAT".to_owned(),
            (SqlType::Float, _) => "REAL".to_owned(),
            (SqlType::Double, _) => "DOUBLE".to_owned(),
            (SqlType::Decimal { precision, .. }, DuckDb) if *precision > DOUBLE_DIGITS => {
                return no(&format!(
                    "reads numbers in JSON as doubles, which hold {DOUBLE_DIGITS} digits, not {precision}: declare it STRING"
                ));
            }
            (SqlType::Decimal { precision, scale }, _) => format!("DECIMAL({precision}, {scale})"),
            (SqlType::String, Spark) => "STRING".to_owned(),
            (SqlType::String, _) => "VARCHAR".to_owned(),
            (SqlType::Bytes, Spark) => "BINARY".to_owned(),
            (SqlType::Bytes, Trino) => "VARBINARY".to_owned(),
            (SqlType::Bytes, DuckDb) => "BLOB".to_owned(),
            (SqlType::Date, _) => "DATE".to_owned(),
            (SqlType::Time(_), Spark) => {
                return no("has no type for a time of day: declare it STRING");
            }
            (
                SqlType::Time(Precision::Nanos)
                | SqlType::Timestamp(Precision::Nanos)
                | SqlType::TimestampLtz(Precision::Nanos),
                Trino,
            ) => {
                return no("has no nanoseconds in Iceberg's views: declare it with (6), or STRING");
            }
            (SqlType::Time(_), Trino) => "TIME(6)".to_owned(),
            (SqlType::Time(_), DuckDb) => "TIME".to_owned(),
            (SqlType::Timestamp(Precision::Nanos), Spark)
            | (SqlType::TimestampLtz(Precision::Nanos), Spark | DuckDb) => {
                return no("has no nanoseconds in this type: declare it with (6), or STRING");
            }
            (SqlType::Timestamp(_), Spark) => "TIMESTAMP_NTZ".to_owned(),
            (SqlType::Timestamp(_), Trino) => "TIMESTAMP(6)".to_owned(),
            (SqlType::Timestamp(Precision::Nanos), DuckDb) => "TIMESTAMP_NS".to_owned(),
            (SqlType::Timestamp(_), DuckDb) => "TIMESTAMP".to_owned(),
            (SqlType::TimestampLtz(_), Spark) => "TIMESTAMP".to_owned(),
            (SqlType::TimestampLtz(_), Trino) => "TIMESTAMP(6) WITH TIME ZONE".to_owned(),
            (SqlType::TimestampLtz(_), DuckDb) => "TIMESTAMPTZ".to_owned(),
            (SqlType::Array(item), Spark) => format!("ARRAY<{}>", self.type_name(&item.sql)?),
            (SqlType::Array(item), Trino) => format!("ARRAY({})", self.type_name(&item.sql)?),
            (SqlType::Array(item), DuckDb) => format!("{}[]", self.type_name(&item.sql)?),
            (SqlType::Map(item), Spark) => format!("MAP<STRING, {}>", self.type_name(&item.sql)?),
            (SqlType::Map(item), _) => format!("MAP(VARCHAR, {})", self.type_name(&item.sql)?),
            (SqlType::Row(fields), _) => {
                let fields = fields.iter().map(|field| {
                    let name = self.quoted(&field.name);
                    let of = self.type_name(&field.of.sql)?;
                    Ok(match self {
                        Spark => format!("{name}: {of}"),
                        Trino | DuckDb => format!("{name} {of}"),
                    })
                });
                let fields = fields.collect::<Result<Vec<_>, String>>()?.join(", ");
                match self {
                    Spark => format!("STRUCT<{fields}>"),
                    Trino => format!("ROW({fields})"),
                    DuckDb => format!("STRUCT({fields})"),
                }
            }
        })
    }
}

/// Digits after the second that the type holds, and zeros.
fn fraction(precision: Precision) -> String {
    match precision.digits() {
        0 => "(?:[.]0+)?".to_owned(),
        digits => format!("(?:[.][0-9]{{1,{digits}}}0*)?"),
    }
}
