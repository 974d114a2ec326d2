//! A query's expressions as Flink writes them.
//!
//! Names are quoted (`views` is a word of Flink's own), windows' lengths are written so that Flink takes them, and sums and
//! averages are computed in the types that ours have: Flink's SUM(INT) and AVG(INT) are INT. What Flink calls otherwise gets its
//! name; what it does not have, or answers otherwise, is refused: a program that runs and gives other rows is worse than none.

use std::ops::ControlFlow;
use std::time::Duration;

use arrow_schema::{DataType, TimeUnit};
use datafusion::sql::sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, CeilFloorKind, DataType as SqlType, DateTimeField,
    ExactNumberInfo, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr,
    Ident, Select, SelectItem, SetExpr, Statement, Subscript, TableFactor, TimezoneInfo,
    TrimWhereField, TypedString, UnaryOperator, Value, VisitMut, VisitorMut, visit_expressions_mut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::Refusal;
use super::flink::sql_type;
use super::functions::{WINDOWS, edge};
use super::plan::{EVENT_TIME, GENERATION, type_of};
use super::text::{function_name, parse_expression};
use crate::query::Query;
use crate::window::Window;

/// Scalar functions that are the same in Flink, with as many arguments.
const SAME: [(&str, usize); 31] = [
    ("abs", 1),
    ("acos", 1),
    ("asin", 1),
    ("atan", 1),
    ("atan2", 2),
    ("ceil", 1),
    ("cos", 1),
    ("cosh", 1),
    ("cot", 1),
    ("degrees", 1),
    ("exp", 1),
    ("floor", 1),
    ("ln", 1),
    ("log10", 1),
    ("log2", 1),
    ("lower", 1),
    ("ltrim", 1),
    ("nullif", 2),
    ("pi", 0),
    ("power", 2),
    ("radians", 1),
    ("repeat", 2),
    ("replace", 3),
    ("reverse", 1),
    ("rtrim", 1),
    ("sin", 1),
    ("sinh", 1),
    ("sqrt", 1),
    ("tan", 1),
    ("tanh", 1),
    ("upper", 1),
];

/// Those that have another name there.
const RENAMED: [(&str, usize, &str); 9] = [
    ("btrim", 1, "TRIM"),
    ("char_length", 1, "CHAR_LENGTH"),
    ("character_length", 1, "CHAR_LENGTH"),
    ("instr", 2, "INSTR"),
    ("length", 1, "CHAR_LENGTH"),
    ("pow", 2, "POWER"),
    ("strpos", 2, "INSTR"),
    ("position", 2, "INSTR"),
    ("trim", 1, "TRIM"),
];

/// Units of time that EXTRACT and FLOOR count alike in both.
const UNITS: [&str; 7] = [
    "year", "quarter", "month", "day", "hour", "minute", "second",
];

/// Text as it is, where an expression stands.
fn raw(text: impl Into<String>) -> Expr {
    Expr::Identifier(Ident::new(text))
}

fn quoted(name: impl Into<String>) -> Ident {
    Ident::with_quote('`', name)
}

/// An interval that Flink reads: of one field it takes two digits, three if told so, and of days no more than three.
pub(super) fn interval(duration: Duration) -> String {
    let ms = duration.as_millis();
    let (seconds, rest) = (ms / 1000, ms % 1000);
    let units = [
        (86_400_000, "DAY"),
        (3_600_000, "HOUR"),
        (60_000, "MINUTE"),
        (1000, "SECOND"),
    ];
    let whole = units
        .into_iter()
        .find(|(unit, _)| ms > 0 && ms.is_multiple_of(*unit) && ms / unit < 100);
    if let Some((unit, name)) = whole {
        return format!("INTERVAL '{}' {name}", ms / unit);
    }
    let digits = |number: u128| number.to_string().len().max(2);
    if seconds < 1000 {
        let digits = digits(seconds);
        return format!("INTERVAL '{seconds}.{rest:03}' SECOND({digits}, 3)");
    }
    let days = seconds / 86_400;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!(
        "INTERVAL '{days} {hours:02}:{minutes:02}:{:02}.{rest:03}' DAY({}) TO SECOND(3)",
        seconds % 60,
        digits(days)
    )
}

/// Translates what belongs to one query.
pub(super) struct Translation<'a> {
    query: &'a Query,
    /// What may stand before a column's name: the table's, or what the query calls it.
    qualifiers: Vec<String>,
}

impl<'a> Translation<'a> {
    pub(super) fn new(query: &'a Query) -> Self {
        Self {
            query,
            qualifiers: vec![query.table.clone()],
        }
    }

    /// The SELECT, which reads `table`.
    pub(super) fn select(mut self, table: &str) -> Result<String, Refusal> {
        let parsed = Parser::parse_sql(&GenericDialect {}, &self.query.sql);
        let Some(mut statement) = parsed.ok().and_then(|mut statements| statements.pop()) else {
            return Ok(self.query.sql.clone());
        };
        if let Statement::Query(query) = &mut statement
            && let SetExpr::Select(select) = query.body.as_mut()
        {
            self.outline(select, table);
        }
        self.walk(&mut statement)?;
        Ok(format!("{statement:#}"))
    }

    /// The event time, as a TIMESTAMP_LTZ(3).
    pub(super) fn event_time(&self) -> Result<String, Refusal> {
        let text = &self.query.event_time_text;
        let Ok(mut expression) = parse_expression(text) else {
            return Ok(text.clone());
        };
        let data_type = self.type_of(&expression);
        self.walk(&mut expression)?;
        let text = expression.to_string();
        let instant = matches!(
            data_type,
            Some(DataType::Timestamp(TimeUnit::Millisecond, Some(_)))
        );
        Ok(if instant || text.starts_with("TO_TIMESTAMP_LTZ(") {
            text
        } else {
            format!("CAST({text} AS TIMESTAMP_LTZ(3))")
        })
    }

    /// Translates every expression in it, from the inside out.
    fn walk(&self, of: &mut impl VisitMut) -> Result<(), Refusal> {
        // The lengths of windows are written anew, however they were written.
        let _: ControlFlow<()> = visit_expressions_mut(of, |expression| {
            if let Expr::Function(function) = expression
                && is_window(&function_name(function))
                && let FunctionArguments::List(list) = &mut function.args
            {
                list.args.truncate(1);
            }
            ControlFlow::Continue(())
        });
        let mut walk = Walk {
            translation: self,
            types: Vec::new(),
        };
        match of.visit(&mut walk) {
            ControlFlow::Break(refusal) => Err(refusal),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    /// Names around the expressions.
    fn outline(&mut self, select: &mut Select, table: &str) {
        for from in &mut select.from {
            if let TableFactor::Table { name, alias, .. } = &mut from.relation {
                *name = vec![quoted(table)].into();
                self.qualifiers
                    .extend(alias.take().map(|alias| alias.name.value));
            }
        }
        let mut projection = Vec::with_capacity(select.projection.len());
        for item in std::mem::take(&mut select.projection) {
            match item {
                // Flink's has metadata columns, too
                SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..) => {
                    let fields = self.query.schema.fields().iter();
                    let mut names: Vec<&str> = fields.map(|field| field.name().as_str()).collect();
                    if !names.contains(&EVENT_TIME) {
                        names.push(EVENT_TIME);
                    }
                    let column = |name| SelectItem::UnnamedExpr(Expr::Identifier(Ident::new(name)));
                    projection.extend(names.into_iter().map(column));
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    let alias = quoted(alias.value);
                    projection.push(SelectItem::ExprWithAlias { expr, alias });
                }
                item @ SelectItem::UnnamedExpr(_) => projection.push(item),
            }
        }
        select.projection = projection;
        self.name_by_name(select);
    }

    /// Writes out what GROUP BY and HAVING say by a column's new name or place: Flink takes neither.
    fn name_by_name(&self, select: &mut Select) {
        let full = &self.query.planned.full;
        let named: Vec<(String, Expr)> = select
            .projection
            .iter()
            .filter_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } => {
                    Some((alias.value.clone(), expr.clone()))
                }
                _ => None,
            })
            .filter(|(name, _)| full.index_of(name).is_err())
            .collect();
        let by_name = |name: &Ident| {
            let mut all = named.iter();
            all.find(|(known, _)| *known == name.value)
                .map(|(_, expression)| expression.clone())
        };
        if let GroupByExpr::Expressions(keys, _) = &mut select.group_by {
            for key in keys {
                let found = match key {
                    Expr::Identifier(name) => by_name(name),
                    Expr::Value(value) => match &value.value {
                        Value::Number(place, _) => {
                            let place = place.parse().unwrap_or(0_usize);
                            let item = select.projection.get(place.wrapping_sub(1));
                            item.and_then(|item| match item {
                                SelectItem::ExprWithAlias { expr, .. }
                                | SelectItem::UnnamedExpr(expr) => Some(expr.clone()),
                                _ => None,
                            })
                        }
                        _ => None,
                    },
                    _ => None,
                };
                if let Some(found) = found {
                    *key = found;
                }
            }
        }
        if let Some(having) = &mut select.having {
            let _: ControlFlow<()> = visit_expressions_mut(having, |expression| {
                if let Expr::Identifier(name) = expression
                    && let Some(found) = by_name(name)
                {
                    *expression = Expr::Nested(Box::new(found));
                }
                ControlFlow::Continue(())
            });
        }
    }

    /// One expression; its parts have been translated before. `of` is its type before that, and `from` that of what it casts.
    fn translate(
        &self,
        expression: &mut Expr,
        of: Option<&DataType>,
        from: Option<&DataType>,
    ) -> Result<(), Refusal> {
        match expression {
            Expr::Identifier(name) => {
                known_column(name)?;
                *name = quoted(std::mem::take(&mut name.value));
            }
            Expr::CompoundIdentifier(names) => {
                if names.len() > 1 && self.qualifiers.contains(&names[0].value) {
                    names.remove(0);
                }
                names.first().map_or(Ok(()), known_column)?;
                for name in names.iter_mut() {
                    *name = quoted(std::mem::take(&mut name.value));
                }
                if let [name] = names.as_mut_slice() {
                    let name = std::mem::replace(name, Ident::new(""));
                    *expression = Expr::Identifier(name);
                }
            }
            Expr::Function(function) => {
                if let Some(other) = self.function(function, of)? {
                    *expression = other;
                }
            }
            Expr::Cast {
                kind,
                data_type,
                format,
                array: false,
                ..
            } if format.is_none() && *kind != CastKind::SafeCast => {
                if *kind == CastKind::DoubleColon {
                    *kind = CastKind::Cast;
                }
                if let (Some(of), Some(from)) = (of, from) {
                    check_cast(from, of)?;
                    *data_type = SqlType::Custom(vec![Ident::new(sql_type(of))].into(), Vec::new());
                }
            }
            Expr::Value(value) => match &mut value.value {
                // Ours are doubles, Flink's would be DECIMAL.
                Value::Number(number, _)
                    if number.contains('.') && !number.contains(['e', 'E']) =>
                {
                    number.push_str("E0");
                }
                Value::Number(..)
                | Value::SingleQuotedString(_)
                | Value::Boolean(_)
                | Value::Null => {}
                other => return Err(lacks(&format!("the literal {other}"))),
            },
            Expr::Extract { field, expr, .. } => {
                let text = part(&field.to_string(), expr, of)?;
                *expression = text;
            }
            Expr::Ceil { field, .. } | Expr::Floor { field, .. } => {
                if !matches!(
                    field,
                    CeilFloorKind::DateTimeField(DateTimeField::NoDateTime)
                ) {
                    return Err(lacks(&format!("{expression}")));
                }
                *expression = typed(std::mem::replace(expression, raw("")), of);
            }
            Expr::Trim {
                expr,
                trim_where,
                trim_what: None,
                trim_characters: None,
            } => {
                let name = match trim_where {
                    Some(TrimWhereField::Leading) => "LTRIM",
                    Some(TrimWhereField::Trailing) => "RTRIM",
                    Some(TrimWhereField::Both) | None => "TRIM",
                };
                *expression = raw(format!("{name}({expr})"));
            }
            Expr::Substring {
                expr,
                substring_from: Some(from),
                substring_for,
                ..
            } => *expression = substring(expr, from, substring_for.as_deref())?,
            Expr::Like {
                any: false,
                pattern,
                escape_char: None,
                ..
            } => no_escape(pattern)?,
            Expr::ILike {
                any: false,
                negated,
                expr,
                pattern,
                escape_char: None,
            } => {
                no_escape(pattern)?;
                let not = if *negated { "NOT " } else { "" };
                *expression = raw(format!("(LOWER({expr}) {not}LIKE LOWER({pattern}))"));
            }
            Expr::Interval(interval) if interval.leading_field.is_none() => {
                return Err(Refusal::new(format!("Flink does not read {interval}"))
                    .instead("write INTERVAL '1' HOUR"));
            }
            Expr::TypedString(TypedString {
                data_type:
                    SqlType::Date
                    | SqlType::Time(None, TimezoneInfo::None)
                    | SqlType::Timestamp(None, TimezoneInfo::None),
                ..
            }) => {}
            Expr::CompoundFieldAccess { root, access_chain } => {
                let of_row = matches!(self.type_of(root), None | Some(DataType::Struct(_)));
                let by_index = |access: &AccessExpr| {
                    matches!(access, AccessExpr::Subscript(Subscript::Index { .. }))
                };
                if of_row || !access_chain.iter().all(by_index) {
                    return Err(lacks(&format!("{expression}")));
                }
            }
            Expr::Array(array) => array.named = true,
            Expr::BinaryOp { op, .. } if is_common(op) => {}
            Expr::UnaryOp {
                op: UnaryOperator::Plus | UnaryOperator::Minus | UnaryOperator::Not,
                ..
            }
            | Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::InList { .. }
            | Expr::Between { .. }
            | Expr::Position { .. }
            | Expr::Nested(_)
            | Expr::Case { .. }
            | Expr::Interval(_) => {}
            other => return Err(lacks(&format!("{other}"))),
        }
        Ok(())
    }

    /// A function: renamed in place, or what stands for it.
    fn function(
        &self,
        function: &mut Function,
        of: Option<&DataType>,
    ) -> Result<Option<Expr>, Refusal> {
        let name = function_name(function);
        let FunctionArguments::List(list) = &mut function.args else {
            return Err(lacks(&name));
        };
        if is_window(&name) {
            let lengths = self.lengths().into_iter();
            list.args.extend(lengths.map(|text| argument(raw(text))));
            return Ok(None);
        }
        refuse_collecting(&name)?;
        if !list.clauses.is_empty() || !function.within_group.is_empty() {
            return Err(lacks(&format!("ORDER BY and the like within {name}(…)")));
        }
        if name == "count" {
            return Ok(None);
        }
        let mut arguments = Vec::with_capacity(list.args.len());
        for argument in &list.args {
            match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) => {
                    arguments.push(expression.clone());
                }
                _ => return Err(lacks(&name)),
            }
        }
        let renamed = |function: &mut Function, name: &str| {
            function.name = vec![Ident::new(name)].into();
        };
        match (name.as_str(), arguments.as_slice()) {
            ("min" | "max", [_]) => return Ok(None),
            ("sum" | "avg" | "mean", [first]) => {
                if let Some(data_type) = self.widened(&name, first) {
                    list.args = vec![argument(Expr::Cast {
                        kind: CastKind::Cast,
                        expr: Box::new(first.clone()),
                        data_type,
                        array: false,
                        format: None,
                    })];
                }
                if name == "mean" {
                    renamed(function, "avg");
                }
                return Ok(None);
            }
            ("bool_and" | "bool_or", [first]) => {
                let least = if name == "bool_and" { "MIN" } else { "MAX" };
                let filter = function.filter.as_ref();
                let filter = filter.map_or_else(String::new, |of| format!(" FILTER (WHERE {of})"));
                return Ok(Some(raw(format!(
                    "({least}(CASE WHEN {first} THEN 1 WHEN NOT ({first}) THEN 0 END){filter} = 1)"
                ))));
            }
            _ => {}
        }
        if function.filter.is_some() {
            return Err(lacks(&name));
        }
        let as_it_is = SAME
            .iter()
            .any(|(known, count)| *known == name && *count == arguments.len());
        let other = RENAMED
            .iter()
            .find(|(known, count, _)| *known == name && *count == arguments.len());
        if as_it_is || other.is_some() {
            if let Some((_, _, other)) = other {
                renamed(function, other);
            }
            return Ok(Some(typed(Expr::Function(function.clone()), of)));
        }
        let all = |arguments: &[Expr]| {
            let all: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            all.join(", ")
        };
        Ok(Some(match (name.as_str(), arguments.as_slice()) {
            ("coalesce", [_, ..]) | ("nvl" | "ifnull", [_, _]) => {
                raw(format!("COALESCE({})", all(&arguments)))
            }
            ("nvl2", [of, some, none]) => raw(format!(
                "CASE WHEN {of} IS NOT NULL THEN {some} ELSE {none} END"
            )),
            // Ours passes over NULLs, Flink's CONCAT does not, and its CONCAT_WS does.
            ("concat", [_, ..]) => raw(format!("CONCAT_WS('', {})", all(&arguments))),
            ("concat_ws", [_, _, ..]) => raw(format!("CONCAT_WS({})", all(&arguments))),
            ("signum", [x]) => raw(format!("SIGN({x})")),
            ("trunc", [x]) => typed(raw(format!("TRUNCATE({x}, 0)")), of),
            // With one argument Flink's LOG is the natural one.
            ("log", [x]) => raw(format!("LOG10({x})")),
            ("log", [base, x]) => raw(format!("LOG({base}, {x})")),
            ("round", [x]) => typed(raw(format!("ROUND({x}, 0)")), of),
            ("starts_with", [text, part]) => raw(format!("(INSTR({text}, {part}) = 1)")),
            ("ends_with", [text, part]) => {
                raw(format!("(RIGHT({text}, CHAR_LENGTH({part})) = {part})"))
            }
            ("contains", [text, part]) => raw(format!("(INSTR({text}, {part}) > 0)")),
            // With fewer than no characters they differ.
            ("left" | "right", [_, count]) if whole_from(count, 0) => {
                raw(format!("{}({})", name.to_uppercase(), all(&arguments)))
            }
            ("lpad" | "rpad", [text, count]) if whole_from(count, 0) => {
                raw(format!("{}({text}, {count}, ' ')", name.to_uppercase()))
            }
            ("lpad" | "rpad", [_, count, _]) if whole_from(count, 0) => {
                raw(format!("{}({})", name.to_uppercase(), all(&arguments)))
            }
            ("substr" | "substring", [text, from]) => substring(text, from, None)?,
            ("substr" | "substring", [text, from, count]) => substring(text, from, Some(count))?,
            ("date_part" | "datepart", [unit, time]) => part(text_of(unit)?, time, of)?,
            ("date_trunc" | "datetrunc", [unit, time]) => {
                let unit = unit_of(text_of(unit)?)?;
                raw(format!("FLOOR({time} TO {unit})"))
            }
            ("to_timestamp_seconds", [x]) => raw(format!("TO_TIMESTAMP_LTZ({x}, 0)")),
            ("to_timestamp_millis", [x]) => raw(format!("TO_TIMESTAMP_LTZ({x}, 3)")),
            ("to_timestamp_micros", [x]) => raw(format!("TO_TIMESTAMP_LTZ(({x}) / 1000, 3)")),
            ("to_timestamp", _) => {
                return Err(lacks("to_timestamp as it is here").instead(
                    "declare the column as TIMESTAMP_LTZ(3), or use to_timestamp_millis(number)",
                ));
            }
            _ => {
                return Err(lacks(&format!(
                    "{name} with {} arguments as it is here",
                    arguments.len()
                )));
            }
        }))
    }

    /// The lengths of the query's window, in the order of its arguments.
    fn lengths(&self) -> Vec<String> {
        let Some(windowed) = &self.query.planned.windowed else {
            return Vec::new();
        };
        let lengths = match windowed.window {
            Window::Tumble { size } => vec![size],
            Window::Hop { slide, size } => vec![slide, size],
            Window::Session { gap } => vec![gap],
        };
        let text = |ms: i64| interval(Duration::from_millis(ms.unsigned_abs()));
        lengths.into_iter().map(text).collect()
    }

    /// The type in which a sum or average must be told to compute, where Flink's own choice is a narrower one.
    fn widened(&self, name: &str, of: &Expr) -> Option<SqlType> {
        let data_type = self.type_of(of)?;
        let double = SqlType::Double(ExactNumberInfo::None);
        match (name, data_type) {
            (_, DataType::Float16 | DataType::Float32) => Some(double),
            ("sum", DataType::Int64 | DataType::UInt64) => None,
            ("sum", integer) if integer.is_integer() => Some(SqlType::BigInt(None)),
            ("avg" | "mean", integer) if integer.is_integer() => Some(double),
            _ => None,
        }
    }

    fn type_of(&self, expression: &Expr) -> Option<DataType> {
        type_of(
            &self.query.table,
            &self.query.planned.full,
            expression.clone(),
        )
    }
}

/// Walks from the inside out, with the types that expressions had before.
struct Walk<'a> {
    translation: &'a Translation<'a>,
    types: Vec<(Option<DataType>, Option<DataType>)>,
}

impl VisitorMut for Walk<'_> {
    type Break = Refusal;

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Refusal> {
        let type_of = |expression: &Expr| self.translation.type_of(expression);
        let types = match expression {
            Expr::Cast {
                expr, data_type, ..
            } => {
                // The target's type is that of any cast to it.
                let null = Expr::Cast {
                    kind: CastKind::Cast,
                    expr: Box::new(Expr::Value(Value::Null.into())),
                    data_type: data_type.clone(),
                    array: false,
                    format: None,
                };
                (type_of(&null), type_of(expr))
            }
            Expr::Function(_) | Expr::Extract { .. } | Expr::Ceil { .. } | Expr::Floor { .. } => {
                (type_of(expression), None)
            }
            _ => (None, None),
        };
        self.types.push(types);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Refusal> {
        let (of, from) = self.types.pop().unwrap_or_default();
        match self
            .translation
            .translate(expression, of.as_ref(), from.as_ref())
        {
            Ok(()) => ControlFlow::Continue(()),
            Err(refusal) => ControlFlow::Break(refusal),
        }
    }
}

fn lacks(what: &str) -> Refusal {
    Refusal::new(format!("Flink's SQL does not have {what}"))
}

fn is_window(name: &str) -> bool {
    WINDOWS.contains(&edge(name).map_or(name, |(window, _)| window))
}

fn known_column(name: &Ident) -> Result<(), Refusal> {
    if name.value == GENERATION {
        return Err(Refusal::new("Flink's Kafka connector knows no _generation")
            .instead("it reads one generation of a topic: leave the column out"));
    }
    Ok(())
}

/// Refuses aggregates that Flink does not have, or takes in the order of arrival.
fn refuse_collecting(name: &str) -> Result<(), Refusal> {
    match name {
        "first_value" | "last_value" | "array_agg" | "string_agg" => Err(Refusal::new(format!(
            "Flink's {} takes values in the order of arrival, and has no ORDER BY within",
            if name == "string_agg" {
                "LISTAGG".to_owned()
            } else {
                name.to_uppercase()
            }
        ))
        .instead("leave the column out for Flink, or take min, max or count")),
        "bit_and" | "bit_or" | "bit_xor" => {
            Err(lacks(&format!("the aggregate {name}")).instead("leave the column out for Flink"))
        }
        _ => Ok(()),
    }
}

/// Casts that give the same in both: what is written as text, and what a time is as a number, differ.
fn check_cast(from: &DataType, to: &DataType) -> Result<(), Refusal> {
    let text = |of: &DataType| {
        matches!(
            of,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
        )
    };
    let exact = |of: &DataType| of.is_integer() || of.is_decimal();
    let same = from == to
        || matches!(from, DataType::Null)
        || (from.is_numeric() && to.is_numeric())
        || (text(from)
            && (text(to) || to.is_numeric() || matches!(to, DataType::Boolean | DataType::Date32)))
        || (text(to) && (exact(from) || matches!(from, DataType::Date32)))
        || matches!(
            (from, to),
            (
                DataType::Timestamp(..) | DataType::Date32,
                DataType::Timestamp(..)
            ) | (DataType::Timestamp(..), DataType::Date32)
        );
    if same {
        return Ok(());
    }
    Err(Refusal::new(format!(
        "Flink casts {} to {} otherwise, or not at all",
        sql_type(from),
        sql_type(to)
    )))
}

/// The same expression with the type that it has here.
fn typed(expression: Expr, of: Option<&DataType>) -> Expr {
    match of {
        Some(of) if of.is_numeric() => raw(format!("CAST({expression} AS {})", sql_type(of))),
        _ => expression,
    }
}

fn is_common(op: &BinaryOperator) -> bool {
    matches!(
        op,
        BinaryOperator::Plus
            | BinaryOperator::Minus
            | BinaryOperator::Multiply
            | BinaryOperator::Divide
            | BinaryOperator::Modulo
            | BinaryOperator::StringConcat
            | BinaryOperator::Gt
            | BinaryOperator::Lt
            | BinaryOperator::GtEq
            | BinaryOperator::LtEq
            | BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::And
            | BinaryOperator::Or
    )
}

/// Whether it is a literal number of at least `least`.
fn whole_from(of: &Expr, least: u64) -> bool {
    let Expr::Value(value) = of else { return false };
    matches!(&value.value, Value::Number(text, _) if text.parse::<u64>().is_ok_and(|n| n >= least))
}

fn text_of(of: &Expr) -> Result<&str, Refusal> {
    match of {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Ok(text),
            other => Err(lacks(&format!("a unit of time called {other}"))),
        },
        other => Err(lacks(&format!("a unit of time called {other}"))),
    }
}

fn unit_of(name: &str) -> Result<String, Refusal> {
    let name = name.to_lowercase();
    if UNITS.contains(&name.as_str()) {
        return Ok(name.to_uppercase());
    }
    Err(Refusal::new(format!(
        "Flink counts the unit {name} of a time otherwise, or not at all"
    ))
    .instead(format!("there are {}", UNITS.join(", "))))
}

/// A part of a time: a whole number here, BIGINT there.
fn part(unit: &str, time: &Expr, of: Option<&DataType>) -> Result<Expr, Refusal> {
    let unit = unit_of(unit)?;
    Ok(typed(raw(format!("EXTRACT({unit} FROM {time})")), of))
}

/// From the first character on both count alike.
fn substring(text: &Expr, from: &Expr, count: Option<&Expr>) -> Result<Expr, Refusal> {
    if !whole_from(from, 1) || !count.is_none_or(|count| whole_from(count, 0)) {
        return Err(Refusal::new(
            "Flink counts otherwise where SUBSTR begins before the first character",
        )
        .instead("write the beginning, from 1 on, and the length as numbers"));
    }
    let count = count.map_or_else(String::new, |count| format!(", {count}"));
    Ok(raw(format!("SUBSTR({text}, {from}{count})")))
}

/// In a pattern of ours a backslash takes the meaning from what follows, in Flink's it is itself.
fn no_escape(pattern: &Expr) -> Result<(), Refusal> {
    match pattern {
        Expr::Value(value) if !value.to_string().contains('\\') => Ok(()),
        _ => Err(lacks(
            "LIKE with a backslash, or with a pattern that is not written out, as it is here",
        )),
    }
}

fn argument(expression: Expr) -> FunctionArg {
    FunctionArg::Unnamed(FunctionArgExpr::Expr(expression))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_as_flink_takes_them() {
        for (ms, text) in [
            (1_800_000, "INTERVAL '30' MINUTE"),
            (1_200_000, "INTERVAL '20' MINUTE"),
            (5_400_000, "INTERVAL '90' MINUTE"),
            (86_400_000, "INTERVAL '1' DAY"),
            (20_000, "INTERVAL '20' SECOND"),
            (100_000, "INTERVAL '100.000' SECOND(3, 3)"),
            (8_001, "INTERVAL '8.001' SECOND(2, 3)"),
            (1, "INTERVAL '0.001' SECOND(2, 3)"),
            (0, "INTERVAL '0.000' SECOND(2, 3)"),
            (1_800_001, "INTERVAL '0 00:30:00.001' DAY(2) TO SECOND(3)"),
            (
                2_592_000_001 + 86_400_000 * 90 + 3_723_000,
                "INTERVAL '120 01:02:03.001' DAY(3) TO SECOND(3)",
            ),
        ] {
            assert_eq!(interval(Duration::from_millis(ms)), text);
        }
    }
}
