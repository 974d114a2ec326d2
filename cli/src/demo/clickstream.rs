//! A seeded clickstream: shoppers who look, put into the cart and sometimes buy. The same seed gives the same events.
//!
//! It is as raw as such streams are: senders that get no answer send again, old apps write event types in capitals, and now
//! and then a record is cut off.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Shoppers; each always in the same partition.
const SHOPPERS: u32 = 5_000;
/// Sessions that go on at the same time.
const SESSIONS: usize = 400;
/// Products; a few are looked at much more than most.
const PRODUCTS: u32 = 2_000;
/// Time of the first event: 2026-01-01T00:00:00Z.
const START_MS: i64 = 1_767_225_600_000;
/// Time between two events, at most; half of it on average, so that the demo's events span about a day.
const STEP_MS: i64 = 600;
/// How late a phone reports, at most.
pub(super) const LATE_MS: i64 = 30_000;
/// Of a hundred events so many are sent twice.
const SENT_TWICE: u32 = 2;
/// A copy comes so many events later, at most.
const COPY_AFTER: u64 = 60;
/// Of a thousand records so many are cut off.
const CUT_OFF: u32 = 1;
/// What is left of them: neither JSON nor a whole user.
const CUT_AT: usize = 40;

/// What a shopper did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Looked at a product.
    View,
    /// Put one into the cart.
    AddToCart,
    /// Bought one.
    Purchase,
}

impl Action {
    /// As the events write it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::AddToCart => "add_to_cart",
            Self::Purchase => "purchase",
        }
    }

    /// As old apps write it.
    const fn in_capitals(self) -> &'static str {
        match self {
            Self::View => "VIEW",
            Self::AddToCart => "ADD_TO_CART",
            Self::Purchase => "PURCHASE",
        }
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Nothing.
    None,
    /// It was there before: a sender got no answer and sent it again.
    Copy,
    /// It is cut off.
    CutOff,
}

/// One event, as it is produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Click {
    /// Its partition, by its key as Java clients choose it.
    pub(super) partition: i32,
    /// The shopper.
    pub(super) key: String,
    /// JSON, unless it is cut off.
    pub(super) value: String,
    /// The same in order: how a clean event is written.
    pub(super) clean: String,
    /// When it happened: mostly in order, some devices report late.
    pub(super) timestamp_ms: i64,
    /// The device it came from, sent as header `source`.
    pub(super) device: &'static str,
    /// The shopper's number.
    pub(super) shopper: u32,
    /// What happened.
    pub(super) action: Action,
    /// What is wrong with it.
    pub(super) flaw: Flaw,
}

impl Click {
    /// Whether its bytes say that something was bought.
    pub(super) fn says_purchase(&self) -> bool {
        self.action == Action::Purchase && self.flaw != Flaw::CutOff
    }
}

/// Where a key belongs in a topic of so many partitions, as Java clients have it: so that all records of a shopper are in
/// one partition of every topic that has the key.
pub(super) fn partition_of(key: &str, partitions: i32) -> i32 {
    let positive = i32::try_from(murmur2(key.as_bytes()) & 0x7fff_ffff).unwrap_or(0);
    positive % partitions.max(1)
}

fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(M);
        word ^= word >> 24;
        hash = hash.wrapping_mul(M) ^ word.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[derive(Debug, Clone)]
struct Session {
    shopper: u32,
    device: &'static str,
    /// The product in view, and whether it is in the cart.
    product: u32,
    in_cart: bool,
}

/// Makes events, without end.
#[derive(Debug)]
pub(super) struct Clickstream {
    random: StdRng,
    partitions: i32,
    now_ms: i64,
    sessions: Vec<Session>,
    /// Records so far, copies among them.
    made: u64,
    /// Events so far.
    events: u64,
    /// What is sent again, and when.
    again: VecDeque<(u64, Click)>,
}

impl Clickstream {
    /// From a seed, for a topic of so many partitions.
    pub(super) fn new(seed: u64, partitions: i32) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            partitions,
            now_ms: START_MS,
            sessions: Vec::new(),
            made: 0,
            events: 0,
            again: VecDeque::new(),
        }
    }

    fn begin(&mut self) -> Session {
        let device = match self.random.random_range(0..10) {
            0..=4 => "web",
            5..=7 => "android",
            _ => "ios",
        };
        Session {
            shopper: self.random.random_range(0..SHOPPERS),
            device,
            product: self.product(),
            in_cart: false,
        }
    }

    /// The square of an even draw: a tenth of the products gets about a third of the looks.
    fn product(&mut self) -> u32 {
        let draw = u64::from(self.random.random_range(0..PRODUCTS));
        u32::try_from(draw * draw / u64::from(PRODUCTS)).unwrap_or(0)
    }

    /// Somebody does something.
    fn event(&mut self) -> Option<Click> {
        self.now_ms += self.random.random_range(0..STEP_MS);
        while self.sessions.len() < SESSIONS {
            let session = self.begin();
            self.sessions.push(session);
        }
        let at = self.random.random_range(0..self.sessions.len());
        let roll = self.random.random_range(0..1000);
        let other = self.product();
        let session = self.sessions.get_mut(at)?;
        let action = match (session.in_cart, roll) {
            (true, 0..=349) => Action::Purchase,
            (false, 0..=119) => Action::AddToCart,
            _ => {
                session.product = other;
                Action::View
            }
        };
        session.in_cart = action == Action::AddToCart;
        let ended = action == Action::Purchase || roll >= 920;
        let (shopper, product, device) = (session.shopper, session.product, session.device);
        if ended {
            self.sessions.swap_remove(at);
        }
        // Some phones report what happened a while ago.
        let late_ms = if self.random.random_range(0..100) == 0 {
            self.random.random_range(0..LATE_MS)
        } else {
            0
        };
        let timestamp_ms = self.now_ms - late_ms;
        let (key, event) = (format!("user-{shopper:04}"), self.events);
        self.events += 1;
        let written = |event_type: &str| {
            format!(
                r#"{{"event_id":"e{event:08}","user_id":"{key}","product_id":"product-{product:04}","event_type":"{event_type}","timestamp_ms":{timestamp_ms}}}"#
            )
        };
        let clean = written(action.as_str());
        let value = match device {
            "ios" => written(action.in_capitals()),
            _ => clean.clone(),
        };
        Some(Click {
            partition: partition_of(&key, self.partitions),
            key,
            value,
            clean,
            timestamp_ms,
            device,
            shopper,
            action,
            flaw: Flaw::None,
        })
    }
}

impl Iterator for Clickstream {
    type Item = Click;

    fn next(&mut self) -> Option<Click> {
        self.made += 1;
        if self.again.front().is_some_and(|(due, _)| *due <= self.made) {
            return self.again.pop_front().map(|(_, click)| click);
        }
        let mut click = self.event()?;
        if self.random.random_range(0..1000) < CUT_OFF {
            click.value.truncate(CUT_AT);
            click.flaw = Flaw::CutOff;
        } else if self.random.random_range(0..100) < SENT_TWICE {
            let copy = Click {
                flaw: Flaw::Copy,
                ..click.clone()
            };
            let due = self.made + 1 + self.random.random_range(0..COPY_AFTER);
            self.again.push_back((due, copy));
        }
        Some(click)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_events() {
        let a: Vec<Click> = Clickstream::new(7, 4).take(5_000).collect();
        let b: Vec<Click> = Clickstream::new(7, 4).take(5_000).collect();
        let c: Vec<Click> = Clickstream::new(8, 4).take(5_000).collect();
        assert_eq!(a, b);
        assert_ne!(a, c);
    }

    #[test]
    fn shoppers_look_more_than_they_put_and_put_more_than_they_buy() {
        let mut counts = BTreeMap::new();
        let mut partitions = BTreeMap::new();
        let mut of_key = BTreeMap::new();
        for click in Clickstream::new(1, 4).take(40_000) {
            *counts.entry(click.action.as_str()).or_insert(0_u32) += 1;
            *partitions.entry(click.partition).or_insert(0_u32) += 1;
            assert_eq!(
                *of_key.entry(click.key.clone()).or_insert(click.partition),
                click.partition
            );
            let json: serde_json::Value = serde_json::from_str(&click.clean).unwrap();
            assert_eq!(json["event_type"], click.action.as_str());
            assert_eq!(json["timestamp_ms"], click.timestamp_ms);
            assert_eq!(json["user_id"], click.key.as_str());
        }
        assert!(counts["view"] > 4 * counts["add_to_cart"], "{counts:?}");
        assert!(counts["add_to_cart"] > counts["purchase"], "{counts:?}");
        assert!(counts["purchase"] > 500, "{counts:?}");
        assert_eq!(partitions.len(), 4);
        assert!(partitions.values().all(|n| *n > 8_000), "{partitions:?}");
    }

    #[test]
    fn some_are_sent_twice_some_cut_off_and_some_shout() {
        let (mut ids, mut copies, mut cut, mut loud) = (BTreeSet::new(), 0, 0, 0);
        for click in Clickstream::new(1, 4).take(40_000) {
            let json: Result<serde_json::Value, _> = serde_json::from_str(&click.value);
            if click.flaw == Flaw::CutOff {
                cut += 1;
                assert!(json.is_err() && !click.says_purchase());
                continue;
            }
            let json = json.unwrap();
            let is_new = ids.insert(json["event_id"].as_str().unwrap().to_owned());
            assert_eq!(is_new, click.flaw == Flaw::None);
            copies += i32::from(!is_new);
            loud += i32::from(click.value != click.clean);
            assert_eq!(
                click.value.to_lowercase(),
                click.clean,
                "the type alone differs"
            );
        }
        assert!(copies > 500 && cut > 10 && loud > 4_000);
    }

    #[test]
    fn keys_go_where_java_clients_put_them() {
        // librdkafka's own test has these
        for (key, hash) in [
            ("kafka", 0xd067_cf64),
            ("giberish123456789", 0x8f55_2b0c),
            ("1234", 0x9fc9_7b14),
            ("234", 0xe7c0_09ca),
            ("34", 0x8739_30da),
            ("4", 0x5a4b_5ca1),
            ("", 0x106e_08d9),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
        assert_eq!(partition_of("kafka", 8), 0x64 % 8);
    }
}
