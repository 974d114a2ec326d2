//! Clients that know no broker any more.
//!
//! librdkafka 2.12.1 takes a metadata response that names topics but no broker at its word (`rdkafka_metadata.c:888`, `905`):
//! it decommissions every broker it knows, the configured ones too. A cluster says so while its only broker is fenced, say
//! after a pause. The last broker's end asks for a new start from the bootstrap list (`rdkafka_broker.c:380`), but that is
//! a timer (`rdkafka.c:2854`), and the same response stops it where it is quick enough to be started by then
//! (`rdkafka_request.c:2627`). `rk_rebootstrap_in_progress` then stays set, so nothing asks again; and the timer that a
//! metadata request would start (`rdkafka_request.c:2916`) takes a broker to send one to. With
//! `metadata.recovery.strategy=none` no race is needed. Such a client is silent for ever. No property helps;
//! `rd_kafka_brokers_add` does: it adds the configured brokers where they are missing, and connects.

use std::time::{Duration, Instant};

/// A client that has known no broker for so long will not help itself: it takes milliseconds for that. Nor is it one that
/// has yet to connect for the first time.
const PATIENCE: Duration = Duration::from_secs(10);
/// A cluster that is away leaves a new client without a broker too. librdkafka keeps each list that it is given, so it gets
/// them more and more seldom.
const PATIENCE_MAX: Duration = Duration::from_mins(5);

/// Since when a client has known no broker.
#[derive(Debug, Default)]
pub(super) struct Brokerless(Option<(Instant, Duration)>);

impl Brokerless {
    /// Whether the bootstrap brokers have to be added again now.
    pub(super) fn is_lost(&mut self, known: usize, now: Instant) -> bool {
        if known > 0 {
            self.0 = None;
            return false;
        }
        let (since, patience) = *self.0.get_or_insert((now, PATIENCE));
        if now.saturating_duration_since(since) < patience {
            return false;
        }
        self.0 = Some((now, (2 * patience).min(PATIENCE_MAX)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_lost_after_a_while_without_brokers_and_told_so_ever_more_seldom() {
        let mut state = Brokerless::default();
        let began = Instant::now();
        let mut lost = Vec::new();
        for second in 0..2000 {
            if state.is_lost(0, began + Duration::from_secs(second)) {
                lost.push(second);
            }
        }
        assert_eq!(lost, [10, 30, 70, 150, 310, 610, 910, 1210, 1510, 1810]);
    }

    #[test]
    fn a_known_broker_ends_it() {
        let mut state = Brokerless::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        assert!(!state.is_lost(0, at(0)));
        assert!(!state.is_lost(1, at(9)));
        assert!(!state.is_lost(0, at(11)));
        assert!(!state.is_lost(0, at(20)));
        assert!(state.is_lost(0, at(22)));
    }
}
