//! Readers that fetch by themselves: Kafka's protocol, spoken by everlog.
//!
//! ```text
//!   caller ── assign/pause … ──►  State (a mutex) ◄── leaders thread: metadata ── starts ──► one thread per broker
//!          ◄── poll: events ──   outbox (bounded) ◄───────── rows as columns ──────── Check, Fetch, Fetch …
//! ```
//!
//! Why, beside librdkafka: that hands over record by record, each an allocation, a lock and a look at the clock, which is more
//! than half of what a job spends on a record (docs/adr/0012). Here a record's bytes go from the broker's answer into Arrow
//! columns in one step, on the thread that received them.
//!
//! - `part` decides, per partition, what is to be asked next and what an answer means: no I/O, no clock of its own.
//! - `state` is what threads and caller share. One request is under way per partition; an answer for an assignment that is
//!   gone is dropped by its id.
//! - `settings` takes librdkafka's properties. A reader with a property that is not known here, a group's reader, and
//!   one with `everlog.fetch.client = "librdkafka"` is librdkafka's.
//!
//! What it does as librdkafka: one request at a time per broker, no fetch sessions, retries for ever with a growing pause, and
//! silence about a topic that is not there. What it does besides: it names topics by their ids (Kafka 3.1), so that a topic
//! that was created again is a [`PartitionFault::Gone`](crate::PartitionFault::Gone), and it reads on behind any damaged batch
//! of another partition. What it does not: message formats before Kafka 0.11, followers (`client.rack`), Kerberos.

mod answers;
mod backoff;
mod broker;
mod connection;
mod leaders;
mod part;
mod reader;
mod requests;
mod security;
mod settings;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::connection::{Connection, Sockets};
pub(crate) use self::reader::FetchReader;
use self::settings::{Address, NotOurs, Settings};
use self::state::{Bounds, Shared};
use crate::client::Mirror;
use crate::{LogError, ReaderOptions};

/// A reader alone by its properties, defaults included; none where they are librdkafka's to read.
pub(crate) fn open(
    properties: &BTreeMap<String, String>,
    options: &ReaderOptions,
    (outbox, batch): (usize, usize),
    mirror: impl FnOnce() -> Option<Mirror>,
) -> Result<Option<FetchReader>, LogError> {
    let settings = match Settings::of(properties) {
        Ok(settings) => settings,
        Err(NotOurs::Property(key)) => {
            tracing::info!(
                key,
                "this Kafka property is known to librdkafka alone, which reads here"
            );
            return Ok(None);
        }
        Err(NotOurs::Invalid(error)) => return Err(error),
    };
    if let Some(error) = stricter(&settings) {
        tracing::warn!(%error, "librdkafka reads instead, which looks at less");
        return Ok(None);
    }
    let bounds = Bounds { outbox, batch };
    let shared = Arc::new(Shared::new(settings, options.isolation, bounds));
    FetchReader::start(shared, mirror()).map(Some)
}

/// So many brokers are tried before the first read.
const TRIED_MAX: usize = 16;

/// Why brokers are not to be reached by rustls, where OpenSSL might: what worked before everlog fetched by itself must go on.
/// Properties do not tell, so the brokers are tried: those that are configured until one lets us in, and those that it names.
fn stricter(settings: &Settings) -> Option<LogError> {
    if !settings.security.is_tls() {
        return None;
    }
    let sockets = Sockets::default();
    let try_one = |address: &Address| match Connection::open(address, settings, &sockets) {
        Err(error) if security::is_stricter_than_openssl(&error) => Err(Some(error)),
        Err(LogError::Unavailable { .. }) => Ok(None),
        Ok(connection) => Ok(Some(connection)),
        // not let in, by what both look at: the reader will say so
        Err(_) => Err(None),
    };
    for address in &settings.bootstrap {
        match try_one(address) {
            Ok(None) => {}
            Ok(Some(mut connection)) => {
                let heard = requests::metadata(&mut connection, std::iter::empty()).ok()?;
                let others = heard.brokers.values().filter(|other| *other != address);
                return others
                    .take(TRIED_MAX)
                    .find_map(|other| try_one(other).err().flatten());
            }
            Err(why) => return why,
        }
    }
    None
}
