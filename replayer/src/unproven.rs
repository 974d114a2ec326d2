//! Live events wait here until it is proved of which incarnation of the topic they are.
//!
//! Kafka's fetch does not tell: a reader of a topic that is deleted and created anew goes on in the new one, silently, once that
//! is long enough. But an incarnation's id never comes back. So a look at the topic's id that *began after* an event was
//! fetched, and that still found the id, proves that the event is of that incarnation.
//!
//! ```text
//!   fetched ──► waiting ──a look begins──► asked ──it found the same id──► handed on, in order
//!                  ▲                         │
//!                  └────── no answer ────────┘
//! ```
//!
//! One look proves everything that was fetched before it began, so the cost is one small request in [`LOOK_INTERVAL`] however
//! fast events come (more only where they fill the memory that they may wait in), and the delay is that interval plus the
//! request. After a pause the look begins at once.

use std::collections::VecDeque;
use std::time::Duration;

use everlog_common::Partition;

use crate::live::TailEvent;

/// From the beginning of one look to that of the next, at least, while there is room for events.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// From a look without an answer to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Unproven {
    events: VecDeque<(TailEvent, usize)>,
    /// So many of the first ones were fetched before the present look began; none while no look is under way.
    asked: Option<usize>,
    bytes: usize,
    bytes_max: usize,
    next_look: Duration,
    /// The last look had no answer.
    unanswered: bool,
}

impl Unproven {
    /// Beyond about `bytes_max` bytes no more events are to be fetched.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            events: VecDeque::new(),
            asked: None,
            bytes: 0,
            bytes_max,
            next_look: Duration::ZERO,
            unanswered: false,
        }
    }

    /// Events that were fetched.
    pub(crate) fn put(&mut self, events: Vec<TailEvent>) {
        for event in events {
            let bytes = match &event {
                TailEvent::Batch(batch) => batch.columns.bytes(),
                TailEvent::Lost(..) => 0,
            };
            self.bytes += bytes;
            self.events.push_back((event, bytes));
        }
    }

    /// Drops everything of `partition`, which is going to be read again.
    pub(crate) fn forget(&mut self, partition: Partition) {
        let of_it = |event: &TailEvent| match event {
            TailEvent::Batch(batch) => batch.partition == partition,
            TailEvent::Lost(lost, _) => *lost == partition,
        };
        let first = self.asked.unwrap_or_default();
        let gone = self.events.iter().take(first);
        let gone = gone.filter(|(event, _)| of_it(event)).count();
        self.asked = self.asked.map(|asked| asked - gone);
        self.events.retain(|(event, _)| !of_it(event));
        self.bytes = self.events.iter().map(|(_, bytes)| bytes).sum();
    }

    /// Whether nothing more is to be fetched for now.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// Whether a look is under way.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// When the next look is to begin; none while one is under way, or nothing waits.
    pub(crate) fn look_at(&self) -> Option<Duration> {
        if self.asked.is_some() || self.events.is_empty() {
            return None;
        }
        // With no room left, waiting for more events to share the look would be waiting for nothing.
        let at_once = self.is_full() && !self.unanswered;
        Some(if at_once {
            Duration::ZERO
        } else {
            self.next_look
        })
    }

    /// A look begins at `now`.
    pub(crate) fn look_began(&mut self, now: Duration) {
        self.asked = Some(self.events.len());
        self.next_look = now + LOOK_INTERVAL;
    }

    /// The look found the same incarnation: what it proves, in order.
    pub(crate) fn proved(&mut self) -> Vec<TailEvent> {
        self.unanswered = false;
        let asked = self.asked.take().unwrap_or_default();
        let proved: Vec<_> = self.events.drain(..asked).collect();
        self.bytes -= proved.iter().map(|(_, bytes)| bytes).sum::<usize>();
        proved.into_iter().map(|(event, _)| event).collect()
    }

    /// Nothing needs to wait any more: all of it, in order, also what was fetched after the look began.
    pub(crate) fn everything(&mut self) -> Vec<TailEvent> {
        self.unanswered = false;
        self.asked = None;
        self.bytes = 0;
        self.events.drain(..).map(|(event, _)| event).collect()
    }

    /// The look had no answer: everything goes on waiting.
    pub(crate) fn unanswered(&mut self, now: Duration) {
        self.unanswered = true;
        self.asked = None;
        self.next_look = now + LOOK_AGAIN;
    }
}

#[cfg(test)]
mod tests {
    use everlog_common::{
        EventBatch, EventColumnsBuilder, Generation, Offset, OffsetRange, Partition, Source,
        TimestampType, TopicName,
    };
    use proptest::prelude::*;

    use super::*;

    fn event(n: i64) -> TailEvent {
        let offset = Offset::new(n).unwrap();
        let mut columns = EventColumnsBuilder::new();
        let stamp = (0, TimestampType::Create);
        columns.push(offset, stamp, None, Some(b"v"), std::iter::empty(), None);
        TailEvent::Batch(EventBatch {
            topic: TopicName::new("t").unwrap(),
            generation: Generation::FIRST,
            partition: Partition::new(0).unwrap(),
            range: OffsetRange::new(offset, offset.next()).unwrap(),
            columns: columns.finish(),
            source: Source::Live,
        })
    }

    fn number(event: &TailEvent) -> i64 {
        match event {
            TailEvent::Batch(batch) => batch.range.start().get(),
            TailEvent::Lost(..) => panic!("none was put in"),
        }
    }

    #[test]
    fn what_came_after_the_look_began_does_not_stay_behind() {
        let mut unproven = Unproven::new(1 << 20);
        unproven.put(vec![event(0), event(1)]);
        unproven.look_began(Duration::ZERO);
        unproven.put(vec![event(2)]);
        let all: Vec<i64> = unproven.everything().iter().map(number).collect();
        assert_eq!(all, [0, 1, 2]);
        assert!(!unproven.is_asked() && unproven.look_at().is_none());
    }

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Fetch(u8),
        Pass(u64),
        Look,
        Answer(bool),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => (0_u8..5).prop_map(Act::Fetch),
            2 => (0_u64..200).prop_map(Act::Pass),
            3 => Just(Act::Look),
            3 => prop::bool::weighted(0.8).prop_map(Act::Answer),
        ];
        prop::collection::vec(act, 1..200)
    }

    proptest! {
        /// Nothing is handed on but by a look that began after it was fetched; nothing is lost, doubled or reordered; looks
        /// keep their distance, and a look comes as long as something waits.
        #[test]
        fn only_what_was_fetched_before_a_look_is_proved_by_it(acts in acts(), bytes_max in 1_usize..400) {
            let mut unproven = Unproven::new(bytes_max);
            let (mut now, mut fetched, mut handed_on) = (Duration::ZERO, 0, 0);
            let mut provable = None;
            let mut last_look: Option<Duration> = None;
            for act in acts {
                match act {
                    Act::Fetch(n) if !unproven.is_full() => {
                        unproven.put((0..i64::from(n)).map(|i| event(fetched + i)).collect());
                        fetched += i64::from(n);
                    }
                    Act::Fetch(_) => {}
                    Act::Pass(ms) => now += Duration::from_millis(ms),
                    Act::Look => {
                        let due = unproven.look_at();
                        prop_assert_eq!(due.is_some(), provable.is_none() && handed_on < fetched);
                        if due.is_some_and(|at| at <= now) {
                            let early = last_look.is_some_and(|last| now < last + LOOK_INTERVAL);
                            prop_assert!(!early || unproven.is_full());
                            unproven.look_began(now);
                            (provable, last_look) = (Some(fetched), Some(now));
                        }
                    }
                    Act::Answer(answered) => {
                        let Some(until) = provable.take() else { continue };
                        if !answered {
                            unproven.unanswered(now);
                            continue;
                        }
                        let events: Vec<i64> = unproven.proved().iter().map(number).collect();
                        prop_assert_eq!(events, (handed_on..until).collect::<Vec<_>>());
                        handed_on = until;
                    }
                }
            }
            prop_assert_eq!(unproven.bytes == 0, handed_on == fetched);
        }
    }

    #[test]
    fn after_a_pause_the_look_begins_at_once_and_a_full_store_does_not_wait() {
        let mut unproven = Unproven::new(1000);
        assert_eq!(unproven.look_at(), None, "nothing waits");
        let later = Duration::from_secs(7);
        unproven.put(vec![event(0)]);
        assert!(unproven.look_at().is_some_and(|at| at <= later));
        unproven.look_began(later);
        assert_eq!(unproven.look_at(), None, "one is under way");
        assert_eq!(unproven.proved().len(), 1);
        unproven.put(vec![event(1)]);
        assert_eq!(unproven.look_at(), Some(later + LOOK_INTERVAL));
        unproven.put((2..100).map(event).collect());
        assert!(unproven.is_full());
        assert!(unproven.look_at().is_some_and(|at| at <= later));
        unproven.look_began(later);
        unproven.unanswered(later);
        assert_eq!(
            unproven.look_at(),
            Some(later + LOOK_AGAIN),
            "no storm of looks"
        );
    }
}
