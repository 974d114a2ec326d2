//! Which piece of which file to read next, and how far each partition may be emitted meanwhile.
//!
//! A *node* is a file that was not opened yet, or a row group of an opened one. What is known of its contents is its
//! [`Extent`]: from the manifest's bounds at first, from the footer after opening. Neither names nor the order of files
//! nor any layout is trusted: a node is read when it is its turn by [`Hint`] or when a partition needs it, and a
//! partition is emitted only below its *barrier*, the lowest offset that any node not read yet may hold of it.
//!
//! ```text
//!   manifest bounds ──► file node ──open──► row group nodes ──decode──► rows, read once for all partitions
//!                            │                     │
//!                            └──── barrier(p) ◄────┘   rows of p below it are complete
//! ```
//!
//! Invariants
//! - A node blocks from the moment it is known until its rows are handed over ([`Planner::decoded`]).
//! - `barrier(p)` never passes an offset that a blocking node may hold, so emitting below it can neither skip nor
//!   reorder, whatever the layout. The hint decides speed and memory alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use everlog_common::mutants::Mutant;
use everlog_common::{Offset, OffsetRange, Partition};

/// Offsets that are wanted of one partition: half-open, possibly empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First wanted offset.
    pub from: Offset,
    /// First offset that is not wanted any more.
    pub until: Offset,
}

impl Window {
    /// Whether nothing is wanted.
    pub fn is_empty(self) -> bool {
        self.from >= self.until
    }

    /// Whether the inclusive span `[low, high]` holds a wanted offset.
    fn meets(self, low: Offset, high: Offset) -> bool {
        !self.is_empty()
            && low < self.until
            && self.from <= high
            && !(Mutant::FilePruned.is_planted() && self.from == low && low > Offset::ZERO)
    }
}

/// What is known of where rows lie. It may promise too much, never too little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// Anything may be in there.
    Unknown,
    /// Bounds, both ends inclusive.
    Bounds {
        /// Lowest and highest partition.
        partitions: (Partition, Partition),
        /// Lowest and highest offset, over all of these partitions.
        offsets: (Offset, Offset),
    },
    /// Per partition; several ranges of one partition are possible.
    Ranges(Vec<(Partition, OffsetRange)>),
}

impl Extent {
    /// Whether rows `[first, last]` of `partition` may be in there.
    pub fn admits(&self, partition: Partition, first: Offset, last: Offset) -> bool {
        match self {
            Self::Unknown => true,
            Self::Bounds {
                partitions,
                offsets,
            } => {
                partitions.0 <= partition
                    && partition <= partitions.1
                    && offsets.0 <= first
                    && last <= offsets.1
            }
            Self::Ranges(ranges) => ranges
                .iter()
                .any(|(p, r)| *p == partition && r.contains(first) && r.contains(last)),
        }
    }

    /// Lowest offset that may be in there, over all partitions.
    pub fn lowest(&self) -> Offset {
        match self {
            Self::Unknown => Offset::ZERO,
            Self::Bounds { offsets, .. } => offsets.0,
            Self::Ranges(ranges) => ranges
                .iter()
                .map(|(_, r)| r.start())
                .min()
                .unwrap_or_default(),
        }
    }
}

/// When something was probably written. Only a hint: a wrong one costs time or memory, never order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// Lowest `archived_at`, microseconds: survives rewrites.
    pub archived_at: i64,
    /// Iceberg's sequence number.
    pub sequence: i64,
    /// Lowest offset.
    pub lowest: Offset,
}

impl Hint {
    /// After everything that was not read yet; of several, the lowest offset first. In any other order a lane that is held back
    /// again and again could lose what it does not need yet each time, and never come to what it needs.
    const fn last(lowest: Offset) -> Self {
        Self {
            archived_at: i64::MAX,
            sequence: i64::MAX,
            lowest,
        }
    }

    const fn is_last(self) -> bool {
        self.archived_at == i64::MAX && self.sequence == i64::MAX
    }
}

/// A data file as the manifest shows it.
#[derive(Debug, Clone)]
pub struct FileFacts {
    /// The caller's number of it.
    pub file: usize,
    /// Where its rows lie.
    pub extent: Extent,
    /// When it was probably written.
    pub hint: Hint,
}

/// A row group as the footer shows it.
#[derive(Debug, Clone)]
pub struct GroupFacts {
    /// Its number in the file.
    pub row_group: usize,
    /// What it will weigh while it is decoded: as it was fetched, and as rows.
    pub bytes: usize,
    /// Where its rows lie.
    pub extent: Extent,
    /// When it was probably written.
    pub hint: Hint,
}

/// Names a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(u64);

/// A row group, wherever its rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The caller's number of the file.
    pub file: usize,
    /// Its number in the file.
    pub row_group: usize,
    /// What it weighs while it is decoded.
    pub bytes: usize,
}

/// A row group to decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The node, for [`Planner::decoded`].
    pub node: NodeId,
    /// What to decode.
    pub origin: Origin,
    /// Where its rows must lie.
    pub extent: Extent,
    /// Decoded before; only the rows within `extent` are asked for this time.
    pub again: bool,
}

/// The order in which nodes are read where nothing else decides; a file precedes its row groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    hint: Hint,
    file: usize,
    group: Option<(Hint, usize)>,
}

#[derive(Debug)]
struct Node {
    turn: Turn,
    kind: Kind,
    extent: Extent,
    taken: bool,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    File(usize),
    Group { origin: Origin, again: bool },
}

/// What is to be read of one generation, and what may be emitted. See the module's text.
#[derive(Debug)]
pub struct Planner {
    lanes: Vec<(Partition, Window)>,
    nodes: BTreeMap<NodeId, Node>,
    /// Nodes nobody took yet, in turn.
    files: BTreeSet<(Turn, NodeId)>,
    groups: BTreeSet<(Turn, NodeId)>,
    /// Files that are being opened: no row group that comes after one in turn is taken meanwhile.
    opening: BTreeSet<(Turn, NodeId)>,
    /// Of `groups`, those that were never decoded.
    fresh_groups: usize,
    /// Per lane whether it is held back; empty while none is.
    held: Vec<bool>,
    /// Nodes that nobody took yet, and that block nobody but lanes that are held back: neither in `files` nor in `groups`.
    parked: BTreeSet<(Turn, NodeId)>,
    blockers: Blockers,
    next_id: u64,
}

impl Planner {
    /// Plans the files that may hold wanted rows.
    pub fn new(
        wanted: &BTreeMap<Partition, Window>,
        files: impl IntoIterator<Item = FileFacts>,
    ) -> Self {
        let lanes: Vec<(Partition, Window)> = wanted.iter().map(|(p, w)| (*p, *w)).collect();
        let mut planner = Self {
            blockers: Blockers::new(lanes.len()),
            lanes,
            nodes: BTreeMap::new(),
            files: BTreeSet::new(),
            groups: BTreeSet::new(),
            opening: BTreeSet::new(),
            fresh_groups: 0,
            held: Vec::new(),
            parked: BTreeSet::new(),
            next_id: 0,
        };
        for facts in files {
            let turn = Turn {
                hint: facts.hint,
                file: facts.file,
                group: None,
            };
            planner.add(turn, Kind::File(facts.file), facts.extent);
        }
        planner
    }

    /// The lowest offset that a node not handed over yet may hold of `partition`; none when there is no such node.
    pub fn barrier(&self, partition: Partition) -> Option<Offset> {
        self.blockers.lowest(self.lane(partition)?)
    }

    /// Whether every node was handed over.
    pub fn is_done(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many nodes nobody took yet.
    pub fn waiting(&self) -> usize {
        self.files.len() + self.groups.len() + self.parked.len()
    }

    /// Row groups of opened files that nobody took yet.
    pub fn opened_groups(&self) -> usize {
        self.fresh_groups
    }

    /// The next file to open, by hint.
    pub fn take_file(&mut self) -> Option<(NodeId, usize)> {
        loop {
            self.park();
            let (turn, id) = self.files.pop_first()?;
            if self.drop_if_unwanted(id) {
                continue;
            }
            return Some((id, self.start_opening(turn, id)?));
        }
    }

    /// What nobody but these partitions waits for is not read any more, until a later call leaves one of them out.
    pub fn hold(&mut self, held: &BTreeSet<Partition>) {
        self.held.clear();
        if !held.is_empty() {
            let lanes = self.lanes.iter().map(|(p, _)| held.contains(p));
            self.held.extend(lanes);
        }
        for (turn, id) in std::mem::take(&mut self.parked) {
            match self.nodes.get(&id).map(|node| node.kind) {
                Some(Kind::File(_)) => {
                    self.files.insert((turn, id));
                }
                Some(Kind::Group { again, .. }) => {
                    self.fresh_groups += usize::from(!again);
                    self.groups.insert((turn, id));
                }
                None => {}
            }
        }
    }

    /// Takes nodes that only held lanes wait for out of the way. Only those whose turn it is: the others' turn may come
    /// after their lanes are released.
    fn park(&mut self) {
        if self.held.is_empty() {
            return;
        }
        while let Some((turn, id)) = self.files.first().copied()
            && self.blocks_held_lanes_alone(id)
        {
            self.files.remove(&(turn, id));
            self.parked.insert((turn, id));
        }
        while let Some((turn, id)) = self.groups.first().copied()
            && self.blocks_held_lanes_alone(id)
        {
            self.groups.remove(&(turn, id));
            let fresh = self.nodes.get(&id).map(|node| node.kind);
            let fresh = matches!(fresh, Some(Kind::Group { again: false, .. }));
            self.fresh_groups -= usize::from(fresh);
            self.parked.insert((turn, id));
        }
    }

    /// By what it blocks, and not by what it may hold: a lane is emitted only below its barrier.
    fn blocks_held_lanes_alone(&self, id: NodeId) -> bool {
        let Some(node) = self.nodes.get(&id) else {
            return false;
        };
        let waits = |lane: usize, low: Offset| {
            let is_held = self.held.get(lane).copied().unwrap_or_default();
            !is_held && low < self.lanes[lane].1.until
        };
        let mut places = self.places(&node.extent).into_iter();
        !places.any(|(mut lanes, low)| lanes.any(|lane| waits(lane, low)))
    }

    /// The next row group to decode, by hint; none while a file that comes before it is not opened yet, or if it weighs
    /// more than `bytes_max`. Those that were given up come last, and only where `again` says so.
    pub fn take_unit(&mut self, bytes_max: usize, again: bool) -> Option<Unit> {
        loop {
            self.park();
            let (turn, id) = self.groups.first().copied()?;
            if self.drop_if_unwanted(id) {
                continue;
            }
            let first_file = self
                .files
                .first()
                .into_iter()
                .chain(self.opening.first())
                .min();
            let given_up = turn.hint.is_last();
            if first_file.is_some_and(|file| *file < (turn, id)) || (given_up && !again) {
                return None;
            }
            return self.take_group(id, bytes_max);
        }
    }

    /// What `partition` waits for: the lowest node that nobody took yet. None when it is being read already, if it is a row
    /// group that weighs more than `bytes_max`, or when nothing is left.
    pub fn take_for(&mut self, partition: Partition, bytes_max: usize) -> Option<Needed> {
        let lane = self.lane(partition)?;
        loop {
            let (_, id) = self.blockers.lowest_entry(lane)?;
            let (turn, kind, taken) = self.nodes.get(&id).map(|n| (n.turn, n.kind, n.taken))?;
            if taken {
                return None;
            }
            if self.drop_if_unwanted(id) {
                continue;
            }
            return match kind {
                Kind::File(_) => {
                    self.files.remove(&(turn, id));
                    self.parked.remove(&(turn, id));
                    let file = self.start_opening(turn, id)?;
                    Some(Needed::File(id, file))
                }
                Kind::Group { .. } => self.take_group(id, bytes_max).map(Needed::Unit),
            };
        }
    }

    /// Replaces an opened file by its row groups. Gives how many of them may hold wanted rows.
    pub fn opened(&mut self, file: NodeId, groups: Vec<GroupFacts>) -> usize {
        let Some(node) = self.remove(file) else {
            return 0;
        };
        let Kind::File(number) = node.kind else {
            return 0;
        };
        let mut kept = 0;
        for facts in groups {
            let turn = Turn {
                hint: node.turn.hint,
                file: number,
                group: Some((facts.hint, facts.row_group)),
            };
            let origin = Origin {
                file: number,
                row_group: facts.row_group,
                bytes: facts.bytes,
            };
            let kind = Kind::Group {
                origin,
                again: false,
            };
            kept += usize::from(self.add(turn, kind, facts.extent));
        }
        kept
    }

    /// The node's rows were handed over: it blocks nobody any more.
    pub fn decoded(&mut self, node: NodeId) {
        self.remove(node);
    }

    /// Rows of `origin` that were decoded and given up for want of memory: they block again, and are read again when a
    /// partition needs them.
    pub fn put_back(&mut self, origin: Origin, ranges: Vec<(Partition, OffsetRange)>) {
        let extent = Extent::Ranges(ranges);
        let hint = Hint::last(extent.lowest());
        let turn = Turn {
            hint,
            file: origin.file,
            group: Some((hint, origin.row_group)),
        };
        let kind = Kind::Group {
            origin,
            again: true,
        };
        self.add(turn, kind, extent);
    }

    /// Nothing at or beyond `until` is wanted of `partition` any more. Nodes that nobody wants then block nobody; gives
    /// whether there were any, which may have been all that other partitions waited for.
    pub fn end_at(&mut self, partition: Partition, until: Offset) -> bool {
        let Some(lane) = self.lane(partition) else {
            return false;
        };
        let window = &mut self.lanes[lane].1;
        if window.until <= until {
            return false;
        }
        window.until = until;
        let nodes = self.nodes.iter().filter(|(_, node)| !node.taken);
        let unwanted = nodes.filter(|(_, node)| !self.wants(&node.extent));
        let unwanted: Vec<NodeId> = unwanted.map(|(id, _)| *id).collect();
        for id in &unwanted {
            self.remove(*id);
        }
        !unwanted.is_empty()
    }

    fn lane(&self, partition: Partition) -> Option<usize> {
        self.lanes
            .binary_search_by_key(&partition, |(p, _)| *p)
            .ok()
    }

    fn lanes_between(&self, low: Partition, high: Partition) -> Range<usize> {
        let from = self.lanes.partition_point(|(p, _)| *p < low);
        from..self.lanes.partition_point(|(p, _)| *p <= high).max(from)
    }

    fn wants(&self, extent: &Extent) -> bool {
        match extent {
            Extent::Unknown => self.lanes.iter().any(|(_, w)| !w.is_empty()),
            Extent::Bounds {
                partitions: (low, high),
                offsets,
            } => self.lanes[self.lanes_between(*low, *high)]
                .iter()
                .any(|(_, w)| w.meets(offsets.0, offsets.1)),
            Extent::Ranges(ranges) => ranges.iter().any(|(p, r)| {
                self.lane(*p).is_some_and(|lane| {
                    let w = self.lanes[lane].1;
                    !w.is_empty() && r.start() < w.until && w.from < r.end()
                })
            }),
        }
    }

    fn add(&mut self, turn: Turn, kind: Kind, extent: Extent) -> bool {
        if !self.wants(&extent) {
            return false;
        }
        let id = NodeId(self.next_id);
        self.next_id += 1;
        for (lanes, low) in self.places(&extent) {
            self.blockers.insert(lanes, (low, id));
        }
        match kind {
            Kind::File(_) => self.files.insert((turn, id)),
            Kind::Group { again, .. } => {
                self.fresh_groups += usize::from(!again);
                self.groups.insert((turn, id))
            }
        };
        let node = Node {
            turn,
            kind,
            extent,
            taken: false,
        };
        self.nodes.insert(id, node);
        true
    }

    fn remove(&mut self, id: NodeId) -> Option<Node> {
        let node = self.nodes.remove(&id)?;
        for (lanes, low) in self.places(&node.extent) {
            self.blockers.remove(lanes, (low, id));
        }
        self.opening.remove(&(node.turn, id));
        self.files.remove(&(node.turn, id));
        self.no_longer_waits(&node, id);
        Some(node)
    }

    /// The lanes that a node of this extent blocks, each with the lowest offset that it may hold of them.
    fn places(&self, extent: &Extent) -> Vec<(Range<usize>, Offset)> {
        match extent {
            Extent::Unknown => vec![(0..self.lanes.len(), Offset::ZERO)],
            Extent::Bounds {
                partitions: (low, high),
                offsets,
            } => vec![(self.lanes_between(*low, *high), offsets.0)],
            Extent::Ranges(ranges) => ranges
                .iter()
                .filter_map(|(p, r)| self.lane(*p).map(|lane| (lane..lane + 1, r.start())))
                .collect(),
        }
    }

    fn drop_if_unwanted(&mut self, id: NodeId) -> bool {
        let unwanted = self.nodes.get(&id).is_some_and(|n| !self.wants(&n.extent));
        if unwanted {
            self.remove(id);
        }
        unwanted
    }

    fn start_opening(&mut self, turn: Turn, id: NodeId) -> Option<usize> {
        let node = self.nodes.get_mut(&id)?;
        node.taken = true;
        self.opening.insert((turn, id));
        match node.kind {
            Kind::File(file) => Some(file),
            Kind::Group { .. } => None,
        }
    }

    fn no_longer_waits(&mut self, node: &Node, id: NodeId) {
        self.parked.remove(&(node.turn, id));
        let waited = self.groups.remove(&(node.turn, id));
        let fresh = matches!(node.kind, Kind::Group { again: false, .. });
        self.fresh_groups -= usize::from(waited && fresh);
    }

    fn take_group(&mut self, id: NodeId, bytes_max: usize) -> Option<Unit> {
        if let Kind::Group { origin, .. } = self.nodes.get(&id)?.kind
            && origin.bytes > bytes_max
        {
            return None;
        }
        let mut node = self.nodes.remove(&id)?;
        self.no_longer_waits(&node, id);
        node.taken = true;
        let node = self.nodes.entry(id).or_insert(node);
        match node.kind {
            Kind::Group { origin, again } => Some(Unit {
                node: id,
                origin,
                extent: node.extent.clone(),
                again,
            }),
            Kind::File(_) => None,
        }
    }
}

/// What a partition waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum Needed {
    /// A file has to be opened.
    File(NodeId, usize),
    /// A row group has to be decoded.
    Unit(Unit),
}

/// Per lane the lowest offset that any blocking node may hold, where a node blocks whole ranges of lanes: a segment
/// tree whose every part keeps its nodes sorted. A file over a thousand partitions costs some twenty entries.
#[derive(Debug)]
struct Blockers {
    lanes: usize,
    parts: Vec<BTreeSet<(Offset, NodeId)>>,
}

impl Blockers {
    fn new(lanes: usize) -> Self {
        Self {
            lanes,
            parts: vec![BTreeSet::new(); 2 * lanes.max(1)],
        }
    }

    fn parts_of(&self, lanes: Range<usize>) -> Vec<usize> {
        let mut parts = Vec::new();
        let (mut low, mut high) = (lanes.start + self.lanes, lanes.end + self.lanes);
        while low < high {
            if low % 2 == 1 {
                parts.push(low);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                parts.push(high);
            }
            low /= 2;
            high /= 2;
        }
        parts
    }

    fn insert(&mut self, lanes: Range<usize>, entry: (Offset, NodeId)) {
        for part in self.parts_of(lanes) {
            self.parts[part].insert(entry);
        }
    }

    fn remove(&mut self, lanes: Range<usize>, entry: (Offset, NodeId)) {
        for part in self.parts_of(lanes) {
            self.parts[part].remove(&entry);
        }
    }

    fn lowest_entry(&self, lane: usize) -> Option<(Offset, NodeId)> {
        let mut part = lane + self.lanes;
        let mut lowest = None;
        while part > 0 {
            lowest = [lowest, self.parts[part].first().copied()]
                .into_iter()
                .flatten()
                .min();
            part /= 2;
        }
        lowest
    }

    fn lowest(&self, lane: usize) -> Option<Offset> {
        self.lowest_entry(lane).map(|(offset, _)| offset)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offset(o: i64) -> Offset {
        Offset::new(o).unwrap()
    }

    fn partition(p: i32) -> Partition {
        Partition::new(p).unwrap()
    }

    fn bounds(p: (i32, i32), o: (i64, i64)) -> Extent {
        Extent::Bounds {
            partitions: (partition(p.0), partition(p.1)),
            offsets: (offset(o.0), offset(o.1)),
        }
    }

    fn file(file: usize, extent: Extent) -> FileFacts {
        let hint = Hint {
            archived_at: i64::try_from(file).unwrap(),
            sequence: 0,
            lowest: extent.lowest(),
        };
        FileFacts { file, extent, hint }
    }

    fn group(row_group: usize, extent: Extent) -> GroupFacts {
        let hint = Hint {
            archived_at: 0,
            sequence: 0,
            lowest: extent.lowest(),
        };
        GroupFacts {
            row_group,
            bytes: 1,
            extent,
            hint,
        }
    }

    fn all(partitions: i32, until: i64) -> BTreeMap<Partition, Window> {
        (0..partitions)
            .map(|p| {
                (
                    partition(p),
                    Window {
                        from: offset(0),
                        until: offset(until),
                    },
                )
            })
            .collect()
    }

    #[test]
    fn a_partition_waits_for_the_lowest_unread_file_that_may_hold_it() {
        let files = [
            file(0, bounds((0, 1), (0, 9))),
            file(1, bounds((0, 0), (10, 19))),
            file(
                2,
                Extent::Ranges(vec![(
                    partition(1),
                    OffsetRange::new(offset(12), offset(15)).unwrap(),
                )]),
            ),
        ];
        let mut planner = Planner::new(&all(3, 100), files);
        assert_eq!(planner.barrier(partition(0)), Some(offset(0)));
        assert_eq!(
            planner.barrier(partition(2)),
            None,
            "no file may hold partition 2"
        );
        let (node, number) = planner.take_file().unwrap();
        assert_eq!(number, 0);
        assert_eq!(
            planner.take_unit(usize::MAX, true),
            None,
            "nothing is opened yet"
        );
        assert_eq!(
            planner.opened(node, vec![group(0, bounds((0, 1), (0, 9)))]),
            1
        );
        let unit = planner.take_unit(usize::MAX, true).unwrap();
        assert_eq!(
            planner.barrier(partition(1)),
            Some(offset(0)),
            "taken is not handed over"
        );
        planner.decoded(unit.node);
        assert_eq!(planner.barrier(partition(0)), Some(offset(10)));
        assert_eq!(planner.barrier(partition(1)), Some(offset(12)));
    }

    #[test]
    fn files_without_wanted_offsets_are_never_opened() {
        let mut wanted = all(2, 100);
        wanted.insert(
            partition(1),
            Window {
                from: offset(50),
                until: offset(60),
            },
        );
        let files = [
            file(0, bounds((1, 1), (0, 49))),
            file(1, bounds((1, 1), (60, 70))),
            file(2, bounds((5, 9), (0, 70))),
            file(3, bounds((1, 3), (40, 50))),
            file(4, Extent::Unknown),
        ];
        let mut planner = Planner::new(&wanted, files);
        let opened: Vec<usize> = std::iter::from_fn(|| planner.take_file().map(|f| f.1)).collect();
        assert_eq!(opened, [3, 4]);
    }

    #[test]
    fn a_row_group_waits_for_files_that_come_before_it_unless_it_is_needed() {
        let files = [
            file(0, bounds((0, 0), (0, 9))),
            file(1, bounds((1, 1), (0, 9))),
        ];
        let mut planner = Planner::new(&all(2, 100), files);
        let (first, _) = planner.take_file().unwrap();
        let (second, _) = planner.take_file().unwrap();
        planner.opened(second, vec![group(0, bounds((1, 1), (0, 9)))]);
        assert_eq!(planner.take_unit(usize::MAX, true), None);
        assert!(
            matches!(planner.take_for(partition(1), usize::MAX), Some(Needed::Unit(u)) if u.origin.file == 1)
        );
        assert_eq!(
            planner.take_for(partition(0), usize::MAX),
            None,
            "it is being opened"
        );
        planner.opened(first, vec![]);
        assert!(
            planner.take_unit(usize::MAX, true).is_none()
                && planner.barrier(partition(0)).is_none()
        );
    }

    #[test]
    fn rows_given_up_block_again_and_come_last_by_hint() {
        let mut planner = Planner::new(
            &all(1, 100),
            [file(0, Extent::Unknown), file(1, bounds((0, 0), (50, 60)))],
        );
        let (node, _) = planner.take_file().unwrap();
        planner.opened(node, vec![group(0, Extent::Unknown)]);
        let unit = planner.take_unit(usize::MAX, true).unwrap();
        planner.decoded(unit.node);
        let range = OffsetRange::new(offset(20), offset(30)).unwrap();
        planner.put_back(unit.origin, vec![(partition(0), range)]);
        assert_eq!(planner.barrier(partition(0)), Some(offset(20)));
        let (node, number) = planner.take_file().unwrap();
        assert_eq!(number, 1);
        planner.opened(node, vec![group(0, bounds((0, 0), (50, 60)))]);
        assert_eq!(planner.take_unit(usize::MAX, true).unwrap().origin.file, 1);
        let again = planner.take_unit(usize::MAX, true).unwrap();
        assert!(again.again && again.origin == unit.origin);
    }

    #[test]
    fn a_partition_that_ended_early_takes_no_more_files() {
        let mut planner = Planner::new(
            &all(1, 100),
            [
                file(0, bounds((0, 0), (0, 9))),
                file(1, bounds((0, 0), (10, 19))),
            ],
        );
        assert!(planner.end_at(partition(0), offset(5)));
        assert_eq!(planner.barrier(partition(0)), Some(offset(0)));
        assert_eq!(planner.take_file().map(|f| f.1), Some(0));
        assert_eq!(planner.take_file(), None);
    }

    proptest! {
        /// The tree's answer is the minimum over every node that covers the lane.
        #[test]
        fn barriers_equal_a_linear_scan(
            lanes in 1_usize..20,
            entries in prop::collection::vec((0_usize..20, 0_usize..20, 0_i64..50), 0..30),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut tree = Blockers::new(lanes);
            let mut list = Vec::new();
            for (i, (a, b, low)) in entries.into_iter().enumerate() {
                let (a, b) = (a.min(lanes), b.min(lanes));
                let (range, entry) = (a.min(b)..a.max(b), (offset(low), NodeId(i as u64)));
                tree.insert(range.clone(), entry);
                list.push((range, entry));
            }
            for index in removed {
                if !list.is_empty() {
                    let (range, entry) = list.swap_remove(index.index(list.len()));
                    tree.remove(range, entry);
                }
            }
            for lane in 0..lanes {
                let expected = list.iter().filter(|(r, _)| r.contains(&lane)).map(|(_, e)| *e).min();
                prop_assert_eq!(tree.lowest_entry(lane), expected);
            }
        }
    }
}
