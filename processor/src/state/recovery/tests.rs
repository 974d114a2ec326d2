//! A model of checkpoints with crashes between every two steps, by several processes at once, against the decision.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Everything that outlives a process. A row is its number; an epoch's file holds a range of them per output.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    files: BTreeMap<u64, File>,
    /// With the writer of the epoch.
    bases: BTreeMap<u64, u32>,
    /// Per machine: the epoch and its writer.
    local: [Option<(u64, u32)>; 2],
    /// Rows in each output, as they were appended, and the marker.
    outputs: [Output; 3],
    /// Who may write to the outputs: the last one that took them over.
    owner: [u32; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    before: Counts,
    after: Counts,
    writer: u32,
    parent: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Output {
    rows: Vec<u64>,
    marker: Option<(u64, u64)>,
}

impl PartialOrd for Counts {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Counts {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.rows, self.late, self.dead).cmp(&(other.rows, other.late, other.dead))
    }
}

impl World {
    fn head(&self) -> u64 {
        self.files.keys().next_back().copied().unwrap_or(0)
    }

    fn total(&self) -> Counts {
        self.files
            .values()
            .next_back()
            .map(|f| f.after)
            .unwrap_or_default()
    }

    /// As they are gathered: what does not lead to the head without a hole is left out.
    fn facts(&self, machine: usize) -> Facts {
        let head = self.head();
        let mut first = head;
        while first > 1
            && self
                .files
                .get(&(first - 1))
                .is_some_and(|before| before.writer == self.files[&first].parent)
        {
            first -= 1;
        }
        let files: Vec<_> = self.files.range(first..).collect();
        Facts {
            head,
            epochs: files.iter().map(|(n, _)| **n).collect(),
            bases: self.bases.keys().copied().collect(),
            local: self.local[machine]
                .filter(|(n, writer)| self.files.get(n).is_none_or(|file| file.writer == *writer))
                .map(|(n, _)| n),
            recent: files
                .iter()
                .map(|(n, file)| EpochCounts {
                    epoch: **n,
                    before: file.before,
                    after: file.after,
                })
                .collect(),
            outputs: Channel::ALL
                .into_iter()
                .zip(&self.outputs)
                .map(|(channel, output)| OutputFacts {
                    channel,
                    held: output.marker,
                })
                .collect(),
        }
    }

    /// A commit of an output: rows and marker as one, or nothing.
    fn commit(&mut self, epoch: u64, file: File, channel: Channel) {
        let output = &mut self.outputs[channel as usize];
        let held = output.marker.map_or(0, |m| m.1);
        let (before, after) = (file.before.of(channel), file.after.of(channel));
        if held >= after {
            return;
        }
        assert_eq!(held, before, "an output never skips or repeats rows");
        output.rows.extend(before..after);
        output.marker = Some((epoch, after));
    }
}

/// What a process is about to do; it may be killed before each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    List,
    /// The file that takes the job over, after that newest epoch of that writer and with those counts.
    Claim(u64, u32, Counts),
    /// That the file before is still there, and that writer's.
    VerifyClaim(u64, u32),
    /// Outputs are taken over one by one, after the files are.
    TakeOutput(usize),
    Recover,
    Write,
    Verify(u64),
    Commit(u64, File, Channel),
    /// Rebuilding begins with what an image holds.
    Load(Option<u64>),
    Apply(u64),
    Base,
    Prune(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    id: u32,
    machine: usize,
    /// The newest file that it wrote, and its counts.
    head: u64,
    counts: Counts,
    todo: Vec<Work>,
    dead: bool,
}

impl Process {
    fn new(id: u32, machine: usize) -> Self {
        let mut todo = vec![Work::Recover];
        todo.extend((0..3).rev().map(Work::TakeOutput));
        todo.push(Work::List);
        Self {
            id,
            machine,
            head: 0,
            counts: Counts::default(),
            todo,
            dead: false,
        }
    }

    /// The file before an epoch is there, and who wrote it.
    fn verify(world: &World, number: u64, writer: u32) -> bool {
        number == 1
            || world
                .files
                .get(&(number - 1))
                .is_some_and(|file| file.writer == writer)
    }

    /// One step. `sizes` are the rows that a next epoch would bring.
    fn step(&mut self, world: &mut World, sizes: [u64; 3], with_base: bool) {
        let Some(work) = self.todo.pop() else {
            self.todo.push(Work::Write);
            return;
        };
        let machine = self.machine;
        match work {
            Work::List => {
                let writer = world
                    .files
                    .values()
                    .next_back()
                    .map_or(0, |file| file.writer);
                self.todo
                    .push(Work::Claim(world.head(), writer, world.total()));
            }
            Work::Claim(head, parent, total) => {
                let number = head + 1;
                if world.files.contains_key(&number) {
                    self.todo.push(Work::List);
                    return;
                }
                let file = File {
                    before: total,
                    after: total,
                    writer: self.id,
                    parent,
                };
                world.files.insert(number, file);
                (self.head, self.counts) = (number, total);
                self.todo.push(Work::VerifyClaim(number, parent));
            }
            Work::VerifyClaim(number, parent) => {
                if !Self::verify(world, number, parent) {
                    world.files.remove(&number);
                    self.todo.push(Work::List);
                }
            }
            Work::TakeOutput(output) => world.owner[output] = self.id,
            Work::Recover => {
                // Between the taking over and this another process may have come: its file is there.
                if world.head() != self.head {
                    self.dead = true;
                    return;
                }
                let plan = decide(&world.facts(machine)).expect("nothing was removed by hand");
                let local = match plan.state {
                    StatePlan::Current => vec![],
                    StatePlan::Apply { from } => (from..=self.head).map(Work::Apply).collect(),
                    StatePlan::Rebuild { base, from } => {
                        let apply = (from..=self.head).map(Work::Apply);
                        std::iter::once(Work::Load(base)).chain(apply).collect()
                    }
                };
                let commits = plan
                    .commits
                    .into_iter()
                    .map(|(n, c)| Work::Commit(n, world.files[&n], c));
                self.todo = commits.chain(local).collect();
                self.todo.reverse();
            }
            Work::Write => {
                let number = self.head + 1;
                if world.files.contains_key(&number) {
                    self.dead = true;
                    return;
                }
                let before = self.counts;
                let after = Counts {
                    rows: before.rows + sizes[0],
                    late: before.late + sizes[1],
                    dead: before.dead + sizes[2],
                };
                let file = File {
                    before,
                    after,
                    writer: self.id,
                    parent: self.id,
                };
                world.files.insert(number, file);
                (self.head, self.counts) = (number, after);
                if with_base {
                    self.todo.push(Work::Base);
                }
                self.todo.push(Work::Apply(number));
                self.todo.extend(
                    Channel::ALL
                        .into_iter()
                        .rev()
                        .map(|c| Work::Commit(number, file, c)),
                );
                self.todo.push(Work::Verify(number));
            }
            Work::Verify(number) => {
                if !Self::verify(world, number, self.id) {
                    world.files.remove(&number);
                    self.dead = true;
                }
            }
            Work::Commit(number, file, channel) => {
                if world.owner[channel as usize] == self.id {
                    world.commit(number, file, channel);
                } else {
                    self.dead = true;
                }
            }
            // Two processes of one machine never have the local store at the same time: it is locked.
            _ if world.owner[0] != self.id => self.dead = true,
            Work::Load(None) => world.local[machine] = None,
            Work::Load(Some(base)) => match world.bases.get(&base) {
                Some(writer) => world.local[machine] = Some((base, *writer)),
                None => self.dead = true,
            },
            Work::Apply(number) => {
                let (at, writer) = world.local[machine].unwrap_or((0, 0));
                match world.files.get(&number) {
                    Some(file) if at + 1 == number && (number == 1 || file.parent == writer) => {
                        world.local[machine] = Some((number, file.writer));
                    }
                    // The files do not follow on what the store has: it is made anew.
                    Some(_) if self.todo.iter().all(|work| matches!(work, Work::Apply(_))) => {
                        world.local[machine] = None;
                        self.todo = vec![Work::Recover];
                    }
                    _ => self.dead = true,
                }
            }
            Work::Base => {
                if let Some((at, writer)) = world.local[machine] {
                    world.bases.insert(at, writer);
                    self.todo.insert(0, Work::Prune(at));
                }
            }
            Work::Prune(base) => {
                // One file at a time, the oldest first.
                let oldest = world.files.keys().next().copied();
                if let Some(oldest) = oldest.filter(|n| *n < base) {
                    world.files.remove(&oldest);
                    self.todo.push(Work::Prune(base));
                } else {
                    world.bases.retain(|n, _| *n >= base);
                }
            }
        }
    }
}

fn check(world: &World) {
    let total = world.total();
    for (channel, output) in Channel::ALL.into_iter().zip(&world.outputs) {
        let held = output.rows.len() as u64;
        assert!(
            output.rows.iter().copied().eq(0..held),
            "no row twice, none left out"
        );
        assert!(held <= total.of(channel));
    }
}

/// A new process that is let alone brings everything to the head.
fn settle(mut world: World, id: u32, machine: usize) {
    let mut process = Process::new(id, machine);
    while !process.todo.is_empty() {
        process.step(&mut world, [0; 3], false);
        assert!(!process.dead, "alone it always gets through: {world:?}");
        check(&world);
    }
    let total = world.total();
    for (channel, output) in Channel::ALL.into_iter().zip(&world.outputs) {
        assert_eq!(
            output.rows.len() as u64,
            total.of(channel),
            "{channel}: every row of every file"
        );
    }
    assert_eq!(world.local[machine].map(|(n, _)| n), Some(world.head()));
}

/// Every state that two processes on two machines can reach in so many steps of three epochs, in every order, each killed (and
/// followed by another) anywhere: all of them are visited.
#[test]
fn from_every_reachable_state_recovery_brings_every_row_once() {
    let first = (World::default(), vec![Process::new(1, 0)]);
    let mut seen = BTreeSet::from([first.clone()]);
    let mut open = vec![first];
    let mut settled = 0;
    while let Some((world, processes)) = open.pop() {
        check(&world);
        settle(world.clone(), 99, 0);
        settle(world.clone(), 99, 1);
        settled += 1;
        let mut push = |next: (World, Vec<Process>)| {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        };
        for n in 0..processes.len() {
            if processes[n].dead || world.head() >= 8 && processes[n].todo.is_empty() {
                continue;
            }
            let (mut world, mut processes) = (world.clone(), processes.clone());
            let sizes = [2, world.head() % 2, u64::from(world.head() == 2)];
            let with_base = matches!(processes[n].head, 2 | 4);
            processes[n].step(&mut world, sizes, with_base);
            push((world, processes));
        }
        // Another process comes; the one before lives on, or is dead for good, which is the same as never stepping again.
        if processes.len() < 2 {
            let mut processes = processes.clone();
            let machine = usize::from(processes.len() % 2 == 1);
            processes.push(Process::new(
                u32::try_from(processes.len()).unwrap() + 1,
                machine,
            ));
            push((world, processes));
        }
    }
    assert!(settled > 10_000, "{settled} states");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The same at random, with more processes, epochs, base images, and lost local stores.
    #[test]
    fn any_number_of_crashes_and_takeovers_bring_every_row_once(
        steps in prop::collection::vec((0u8..40, 0usize..4, [0u64..4, 0..3, 0..2], any::<bool>()), 1..300),
    ) {
        let mut world = World::default();
        let mut processes = vec![Process::new(1, 0)];
        for (what, which, sizes, with_base) in steps {
            match what {
                0 => {
                    let id = u32::try_from(processes.len()).unwrap() + 1;
                    processes.push(Process::new(id, which % 2));
                }
                1 => world.local[which % 2] = None,
                _ => {
                    let n = processes.len().saturating_sub(1 + which % 3);
                    let process = &mut processes[n];
                    if !process.dead {
                        process.step(&mut world, sizes, with_base && which == 0);
                    }
                }
            }
            check(&world);
        }
        settle(world.clone(), 9_999, 0);
        settle(world, 9_999, 1);
    }
}

fn counts(rows: u64) -> Counts {
    Counts {
        rows,
        late: 0,
        dead: 0,
    }
}

fn facts(epochs: &[u64], bases: &[u64], local: Option<u64>, held: Option<(u64, u64)>) -> Facts {
    let head = epochs.last().copied().unwrap_or(0);
    Facts {
        head,
        epochs: epochs.iter().copied().collect(),
        bases: bases.iter().copied().collect(),
        local,
        recent: epochs
            .iter()
            .map(|n| EpochCounts {
                epoch: *n,
                before: counts((n - 1) * 10),
                after: counts(n * 10),
            })
            .collect(),
        outputs: vec![OutputFacts {
            channel: Channel::Rows,
            held,
        }],
    }
}

#[test]
fn what_was_changed_by_hand_is_refused() {
    let rows = Channel::Rows;
    let all = &[4, 5, 6];
    let held = |rows| Some((rows / 10, rows));
    assert_eq!(
        decide(&facts(all, &[], Some(5), held(50))),
        Ok(Plan {
            state: StatePlan::Apply { from: 6 },
            commits: vec![(6, rows)]
        })
    );
    assert_eq!(
        decide(&facts(all, &[], None, held(60))),
        Err(Refusal::Missing { from: 1, to: 3 })
    );
    assert_eq!(
        decide(&facts(all, &[2], None, held(60))),
        Err(Refusal::Missing { from: 3, to: 3 })
    );
    assert_eq!(
        decide(&facts(all, &[3], Some(1), held(60))).unwrap().state,
        StatePlan::Rebuild {
            base: Some(3),
            from: 4
        }
    );
    assert_eq!(
        decide(&facts(&[4, 6], &[3], None, held(60))),
        Err(Refusal::Missing { from: 5, to: 5 })
    );
    assert_eq!(
        decide(&facts(all, &[3], Some(7), held(60))),
        Err(Refusal::LocalAhead { head: 6, local: 7 })
    );
    assert_eq!(
        decide(&facts(all, &[3], None, held(20))),
        Err(Refusal::OutputBehind {
            channel: rows,
            held: 20,
            first: 30
        })
    );
    assert!(matches!(
        decide(&facts(all, &[3], None, None)),
        Err(Refusal::OutputBehind { .. })
    ));
    assert!(matches!(
        decide(&facts(all, &[3], None, held(70))),
        Err(Refusal::OutputAhead { total: 60, .. })
    ));
    assert!(matches!(
        decide(&facts(all, &[3], None, Some((9, 60)))),
        Err(Refusal::OutputAhead { epoch: 9, .. })
    ));
    assert_eq!(
        decide(&facts(all, &[3], None, Some((5, 55)))),
        Err(Refusal::OutputTorn {
            channel: rows,
            held: 55,
            epoch: 6
        })
    );
}
