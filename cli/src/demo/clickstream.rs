//! A seeded clickstream: shoppers who look, put into the cart and sometimes buy. The same seed gives the same events.

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
}

/// One event, as it is produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Click {
    /// Its partition.
    pub(super) partition: i32,
    /// The shopper.
    pub(super) key: String,
    /// JSON.
    pub(super) value: String,
    /// When it happened: mostly in order, some devices report late.
    pub(super) timestamp_ms: i64,
    /// The device it came from, sent as header `source`.
    pub(super) device: &'static str,
    /// What happened.
    pub(super) action: Action,
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
}

impl Clickstream {
    /// From a seed, for a topic of so many partitions.
    pub(super) fn new(seed: u64, partitions: i32) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            partitions,
            now_ms: START_MS,
            sessions: Vec::new(),
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
}

impl Iterator for Clickstream {
    type Item = Click;

    fn next(&mut self) -> Option<Click> {
        self.now_ms += self.random.random_range(0..40);
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
            self.random.random_range(0..30_000)
        } else {
            0
        };
        let timestamp_ms = self.now_ms - late_ms;
        Some(Click {
            partition: i32::try_from(shopper).unwrap_or(0) % self.partitions,
            key: format!("user-{shopper:04}"),
            value: format!(
                r#"{{"user_id":"user-{shopper:04}","product_id":"product-{product:04}","event_type":"{}","timestamp_ms":{timestamp_ms}}}"#,
                action.as_str()
            ),
            timestamp_ms,
            device,
            action,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
            let json: serde_json::Value = serde_json::from_str(&click.value).unwrap();
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
}
