//! The batch reference: which records count, and what the rows are, written anew from the rules and nothing else.

use std::collections::BTreeMap;

use everlog_engine::Decision;

use crate::log::{Log, Outcome, Record, double};

/// A job's rules, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Hop { slide: i64, size: i64 },
    Session { gap: i64 },
}

#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub shape: Shape,
    pub bound: i64,
    pub lateness: i64,
    pub max_future: i64,
}

/// A record with its place, and the first window start from which it counts.
type Accepted<'a> = (&'a Record, i64, usize, usize, i64);

/// What the log's rows must be, whatever way it is read.
pub fn reference(log: &Log, rules: Rules, decisions: &[Decision]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut accepted: Vec<Accepted<'_>> = Vec::new();
    for (p, records) in log.iter().enumerate() {
        let mut highest: Option<i64> = None;
        for (o, r) in records.iter().enumerate() {
            let floors = decisions
                .iter()
                .filter(|d| d.partition == p as i32 && d.offset <= o as i64);
            let floor = floors.map(|d| d.floor).max();
            let w = highest
                .map(|h| h - rules.bound - 1)
                .max(floor)
                .unwrap_or(i64::MIN / 2);
            let Some(t) = r
                .time
                .filter(|t| r.kafka.is_none_or(|k| t - k <= rules.max_future))
            else {
                outcome.dead.push(format!("0|{p}|{o}"));
                continue;
            };
            highest = highest.max(Some(t));
            // Start of the first window that counts it, if there is one.
            let from = match rules.shape {
                Shape::Session { .. } => Some(t).filter(|t| *t > w - rules.lateness),
                Shape::Hop { slide, size } => (t - size + 1..=t)
                    .find(|s| s.rem_euclid(slide) == 0 && s + size - 1 + rules.lateness > w),
            };
            match from {
                Some(from) => accepted.push((r, t, p, o, from)),
                None => outcome.late.push(format!("0|{p}|{o}")),
            }
        }
    }
    let mut by_user: BTreeMap<&str, Vec<Accepted<'_>>> = BTreeMap::new();
    accepted.sort_by_key(|(_, t, p, o, _)| (*t, *p, *o));
    for record in accepted {
        by_user.entry(&record.0.user).or_default().push(record);
    }
    let mut rows: Vec<(i64, &str, i64, Vec<Accepted<'_>>)> = Vec::new();
    for (user, records) in by_user {
        match rules.shape {
            Shape::Session { gap } => {
                for session in records.chunk_by(|a, b| b.1 - a.1 <= gap) {
                    rows.push((
                        session[session.len() - 1].1 + gap,
                        user,
                        session[0].1,
                        session.to_vec(),
                    ));
                }
            }
            Shape::Hop { slide, size } => {
                let first = records[0].1 - size;
                for s in (first..=records[records.len() - 1].1).filter(|s| s.rem_euclid(slide) == 0)
                {
                    let inside = records
                        .iter()
                        .filter(|r| r.4 <= s && s <= r.1 && r.1 < s + size);
                    let inside: Vec<_> = inside.copied().collect();
                    if !inside.is_empty() {
                        rows.push((s + size, user, s, inside));
                    }
                }
            }
        }
    }
    rows.sort_by_key(|(end, user, start, _)| (*end, *user, *start));
    outcome.rows = rows
        .iter()
        .map(|(end, user, start, of)| row(user, *start, *end, of))
        .collect();
    outcome.late.sort();
    outcome.dead.sort();
    outcome
}

/// The aggregates that the property's query asks for.
fn row(user: &str, start: i64, end: i64, records: &[Accepted<'_>]) -> String {
    let text = |value: Option<i64>| value.map_or("null".to_owned(), |v| v.to_string());
    let amounts: Vec<i64> = records.iter().filter_map(|r| r.0.amount).collect();
    let exact: i128 = records
        .iter()
        .map(|r| (r.0.price * 2_f64.powi(60)) as i128)
        .sum();
    let price = exact as f64 / 2_f64.powi(60);
    let kinds: std::collections::BTreeSet<&str> = records.iter().map(|r| r.0.kind).collect();
    let all: Vec<String> = records.iter().map(|r| text(r.0.amount)).collect();
    [
        user.to_owned(),
        start.to_string(),
        end.to_string(),
        records.len().to_string(),
        records
            .iter()
            .filter(|r| r.0.kind == "view")
            .count()
            .to_string(),
        text((!amounts.is_empty()).then(|| amounts.iter().sum())),
        text(amounts.iter().min().copied()),
        text(amounts.iter().max().copied()),
        double(price),
        double(price / records.len() as f64),
        kinds.len().to_string(),
        records[0].0.kind.to_owned(),
        text(records[records.len() - 1].0.amount),
        all.join(","),
    ]
    .join("|")
}
