//! What replays gave, against the log and the archive.

use std::collections::{BTreeMap, BTreeSet};

use everlog_common::{Generation, Partition};

use super::log::Brokers;
use super::table::{Tables, log_of};
use super::{Emission, Findings, Rule, is_gap};

#[derive(Debug, Default)]
struct Run {
    topic: String,
    /// Per partition, generation and next offset.
    at: BTreeMap<i32, (u32, i64)>,
    rows: BTreeMap<(u32, i32), BTreeMap<i64, u64>>,
    /// Offsets that it said are missing.
    passed: BTreeMap<(u32, i32), Vec<(i64, i64)>>,
    /// What was archived, of each era, when it was opened.
    known: BTreeSet<(u32, i32)>,
    /// Whose records those of an era are that the ledger did not know when they came.
    live: BTreeMap<u32, u128>,
}

#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: BTreeMap<u64, Run>,
}

impl Runs {
    pub(super) fn open(&mut self, run: u64, topic: String, tables: &Tables) {
        let ledger = tables.ledger(&topic);
        let eras = ledger.into_iter().flat_map(|l| &l.generations);
        let fresh = Run {
            known: eras
                .flat_map(|(g, era)| era.partitions.keys().map(|p| (g.0, p.get())))
                .collect(),
            topic,
            ..Run::default()
        };
        self.runs.insert(run, fresh);
    }

    pub(super) fn resume(
        &mut self,
        run: u64,
        positions: &BTreeMap<i32, (u32, i64)>,
        tables: &Tables,
        findings: &mut Findings,
    ) {
        let Some(state) = self.runs.get_mut(&run) else {
            return;
        };
        for (partition, to) in positions {
            // A position may be ahead of the last batch where nothing lies between: a gap, an era that holds nothing.
            let came_to = state.at.get(partition).copied();
            let at = came_to.unwrap_or((0, 0));
            let skipped = (at.0..=to.0).find_map(|generation| {
                // what was not archived when it was opened begins at the log's start for it: see `take`
                if came_to.is_none() && !state.known.contains(&(generation, *partition)) {
                    return None;
                }
                let archived = tables.archived(&state.topic, (generation, *partition))?;
                let mut rows = archived.rows.keys().map(|offset| (generation, *offset));
                rows.find(|place| at <= *place && place < to)
            });
            findings.check(Rule::R9, skipped.is_none(), || {
                format!("run {run} resumes partition {partition} at {to:?}, it had come to {at:?}, {skipped:?} was not given")
            });
        }
        state
            .rows
            .retain(|(_, partition), _| positions.contains_key(partition));
        for ((generation, partition), rows) in &mut state.rows {
            if let Some((at, offset)) = positions.get(partition) {
                rows.retain(|o, _| generation < at || (generation == at && o < offset));
            }
        }
        state.at.clone_from(positions);
        let newest = positions.values().map(|(generation, _)| *generation).max();
        state
            .live
            .retain(|generation, _| newest.is_some_and(|newest| *generation <= newest));
    }

    /// R14: what it says is missing is not archived.
    pub(super) fn pass(
        &mut self,
        run: u64,
        (generation, partition, (start, end)): (u32, i32, (i64, Option<i64>)),
        tables: &Tables,
        findings: &mut Findings,
    ) {
        let Some(state) = self.runs.get_mut(&run) else {
            return;
        };
        let end = end.unwrap_or(i64::MAX);
        let archived = tables.archived(&state.topic, (generation, partition));
        let inside = archived.and_then(|a| a.rows.range(start..end.max(start)).next());
        findings.check(Rule::R14, inside.is_none(), || {
            format!("run {run} passes [{start}, {end}) of partition {partition}, and {inside:?} is archived")
        });
        state
            .passed
            .entry((generation, partition))
            .or_default()
            .push((start, end));
    }

    pub(super) fn take(
        &mut self,
        emission: Emission,
        brokers: &Brokers,
        tables: &Tables,
        findings: &mut Findings,
    ) {
        let Emission {
            run,
            generation,
            partition,
            range: (start, end),
            rows,
            is_live,
        } = emission;
        let Some(state) = self.runs.get_mut(&run) else {
            findings.broken(Rule::R9, format!("run {run} was never opened"));
            return;
        };
        let topic = state.topic.clone();
        let name = format!("run {run} of {topic}-{partition} generation {generation}");
        let nothing = everlog_common::Ledger::default();
        let ledger = tables.ledger(&topic).unwrap_or(&nothing);
        let Ok(place) = Partition::new(partition) else {
            findings.broken(Rule::R9, format!("{name}: there is no such partition"));
            return;
        };
        let gaps = ledger.gaps_of(Generation(generation), place);
        let entry = ledger.entry(Generation(generation), place).copied();

        let log = incarnation(state, generation, (partition, &rows), ledger, brokers)
            .and_then(|topic_id| brokers.log((topic_id, partition)));
        let Some(log) = log else {
            findings.broken(Rule::R9, format!("{name}: is of no topic that ever was"));
            return;
        };
        // What an archiver had read, and not committed when the replay began, is nowhere to be had: the log's start is as
        // much of a beginning.
        let first = entry
            .map(|e| e.first.get())
            .filter(|_| state.known.contains(&(generation, partition)) || start > log.log_start());

        let passed = state.passed.get(&(generation, partition));
        let was_passed = |next: i64| {
            passed.is_some_and(|all| all.iter().any(|(a, b)| *a <= next && start <= *b))
        };
        // Where it has to begin.
        match state.at.get(&partition).copied() {
            Some((at, next)) if at == generation => {
                findings.check(
                    Rule::R9,
                    start == next
                        || (start > next && (is_gap(&gaps, next, start) || was_passed(next))),
                    || format!("{name}: goes on at {start}, it had come to {next}"),
                );
            }
            Some((at, next)) => {
                let left = tables
                    .archived(&topic, (at, partition))
                    .and_then(|archived| archived.rows.range(next..).next());
                findings.check(Rule::R9, at < generation && left.is_none(), || {
                    format!("{name}: follows generation {at}, which was given up to {next}, and holds {left:?}")
                });
                begins(&name, start, first, &gaps, findings);
            }
            None => begins(&name, start, first, &gaps, findings),
        }
        state.at.insert(partition, (generation, end));

        // What it has to hold.
        let given = state.rows.entry((generation, partition)).or_default();
        let mut last = None;
        for (offset, digest) in &rows {
            findings.check(
                Rule::R9,
                last.is_none_or(|last| last < *offset) && (start..end).contains(offset),
                || format!("{name}: offset {offset} comes after {last:?} in [{start}, {end})"),
            );
            last = Some(*offset);
            let versions = log.versions(*offset);
            let version = versions.iter().find(|v| v.digest == *digest);
            findings.check(
                Rule::R9,
                version.is_some_and(|v| log.is_committed(v)),
                || format!("{name}: offset {offset} is no record that a consumer sees"),
            );
            if given.insert(*offset, *digest).is_some() {
                findings.broken(Rule::R9, format!("{name}: offset {offset} comes twice"));
            }
        }
        if is_live {
            for (offset, version) in log.kept(start, end) {
                let was_cut = log.is_replacement(offset, version);
                findings.check(
                    Rule::R9,
                    was_cut || given.contains_key(&offset) || is_gap(&gaps, offset, offset + 1),
                    || format!("{name}: offset {offset} is left out of [{start}, {end}), live"),
                );
            }
        } else if let Some(archived) = tables.archived(&topic, (generation, partition)) {
            for (offset, digest) in archived.rows.range(start..end.max(start)) {
                findings.check(Rule::R9, given.get(offset) == Some(digest), || {
                    format!("{name}: offset {offset} is archived, and left out of [{start}, {end})")
                });
            }
        }
    }

    /// R11: a replay of everything holds all that is archived, and all that the log has.
    pub(super) fn finish(
        &mut self,
        run: u64,
        full: &BTreeSet<i32>,
        brokers: &Brokers,
        tables: &Tables,
        findings: &mut Findings,
    ) {
        let Some(state) = self.runs.get(&run) else {
            return;
        };
        let topic = &state.topic;
        let Some(ledger) = tables.ledger(topic) else {
            return;
        };
        let nothing = BTreeMap::new();
        for (generation, era) in &ledger.generations {
            for partition in era.partitions.keys().filter(|p| full.contains(&p.get())) {
                let key = (generation.0, partition.get());
                let given = state.rows.get(&key).unwrap_or(&nothing);
                let archived = tables.archived(topic, key);
                for (offset, digest) in archived.into_iter().flat_map(|a| &a.rows) {
                    findings.check(Rule::R11, given.get(offset) == Some(digest), || {
                        format!("run {run}: {topic}-{partition} generation {generation} offset {offset} is archived, and was not given")
                    });
                }
            }
        }
        let Some(topic_id) = brokers.current(topic) else {
            return;
        };
        let generation = ledger
            .generations
            .iter()
            .find(|(_, era)| era.identity.topic_id.map(|id| id.0.as_u128()) == Some(topic_id))
            .map_or_else(
                || ledger.newest().map_or(0, |(newest, _)| newest.0 + 1),
                |(generation, _)| generation.0,
            );
        for (partition, log) in brokers.partitions(topic_id) {
            if !full.contains(&partition) {
                continue;
            }
            let given = state.rows.get(&(generation, partition)).unwrap_or(&nothing);
            let era = ledger.generations.get(&Generation(generation));
            let entry = era.and_then(|era| era.partitions.get(&Partition::new(partition).ok()?));
            for (offset, version) in log.visible(0, i64::MAX) {
                // Where what was cut off is archived or was given, what came in its place is not.
                let is_instead = !given.contains_key(&offset)
                    && (log.has_lost_one_of(given, offset)
                        || entry.is_some_and(|e| {
                            log.is_beyond_reach(offset, version, e.next.get(), e.leader_epoch)
                        }));
                let holds = is_instead || given.get(&offset) == Some(&version.digest);
                findings.check(Rule::R11, holds, || {
                    format!("run {run}: {topic}-{partition} offset {offset} is in the log, and was not given")
                });
            }
        }
    }
}

/// Which incarnation an era of a run is: the ledger's, or, where the ledger did not know the era when the run began, the one
/// whose records came first: what a run read live and was proved to be of one incarnation may come out after another one
/// was archived in its place. It stays with that one, and must not cross to the other.
fn incarnation(
    state: &mut Run,
    generation: u32,
    (partition, rows): (i32, &[(i64, u64)]),
    ledger: &everlog_common::Ledger,
    brokers: &Brokers,
) -> Option<u128> {
    if let Some(topic_id) = state.live.get(&generation) {
        return Some(*topic_id);
    }
    let held = log_of(ledger, generation, partition).map(|(topic_id, _)| topic_id);
    if held.is_some() && state.known.iter().any(|(known, _)| *known == generation) {
        return held;
    }
    let Some((offset, digest)) = rows.first() else {
        return held.or_else(|| brokers.current(&state.topic));
    };
    let found = brokers.incarnations(&state.topic).find(|topic_id| {
        let log = brokers.log((*topic_id, partition));
        log.is_some_and(|log| log.versions(*offset).iter().any(|v| v.digest == *digest))
    });
    if let Some(found) = found {
        state.live.insert(generation, found);
    }
    found.or(held)
}

/// The first batch of a partition in an era begins where archiving did, or behind a gap there.
fn begins(
    name: &str,
    start: i64,
    first: Option<i64>,
    gaps: &[everlog_common::Gap],
    findings: &mut Findings,
) {
    if let Some(first) = first {
        findings.check(
            Rule::R9,
            start == first || (start > first && is_gap(gaps, first, start)),
            || format!("{name}: begins at {start}, the archive begins at {first}"),
        );
    }
}
