//! From librdkafka's properties to what this client does by them.
//!
//! Users configure Kafka by librdkafka's properties, and everything else in everlog goes on through it. So a property that
//! this client does not know, or a value that it cannot do, is no error: such a reader is librdkafka's.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::LogError;

use super::security::{Refused, Security};

/// Properties that change nothing about how records are fetched here: of groups, producers and librdkafka's own insides.
/// Those that give guarantees (`check.crcs` and so on) have been checked before, and hold.
const WITHOUT_EFFECT: &[&str] = &[
    "allow.auto.create.topics",
    "api.version.fallback.ms",
    "api.version.request",
    "api.version.request.timeout.ms",
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "broker.address.ttl",
    "broker.version.fallback",
    "check.crcs",
    "connections.max.idle.ms",
    "coordinator.query.interval.ms",
    "debug",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.metrics.push",
    "enable.partition.eof",
    "enable.random.seed",
    "fetch.error.backoff.ms",
    "fetch.queue.backoff.ms",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.protocol.type",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "internal.termination.signal",
    "isolation.level",
    "log.connection.close",
    "log.thread.name",
    "log_level",
    "max.poll.interval.ms",
    "partition.assignment.strategy",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "session.timeout.ms",
    "socket.max.fails",
    "socket.nagle.disable",
    "statistics.interval.ms",
    "topic.blacklist",
    "topic.metadata.propagation.max.ms",
    "topic.metadata.refresh.fast.interval.ms",
    "topic.metadata.refresh.sparse",
    // of producers
    "acks",
    "batch.num.messages",
    "batch.size",
    "compression.codec",
    "compression.level",
    "compression.type",
    "delivery.timeout.ms",
    "enable.idempotence",
    "linger.ms",
    "max.in.flight.requests.per.connection",
    "message.max.bytes",
    "message.send.max.retries",
    "message.timeout.ms",
    "partitioner",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "request.required.acks",
    "request.timeout.ms",
    "retries",
    "sticky.partitioning.linger.ms",
    "transaction.timeout.ms",
    "transactional.id",
];

/// A broker's host and port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Everything about connections and requests.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) bootstrap: Vec<Address>,
    pub(super) client_id: String,
    pub(super) security: Security,
    pub(super) keepalive: bool,
    pub(super) receive_buffer: Option<usize>,
    /// An answer takes at most so long, besides what the broker was asked to wait.
    pub(super) request_timeout: Duration,
    pub(super) connect_timeout: Duration,
    /// Between attempts, at first and at most.
    pub(super) backoff: (Duration, Duration),
    /// Leaders are looked up anew at least so often.
    pub(super) refresh: Duration,
    /// How long a broker waits for records where there are none.
    pub(super) fetch_wait: Duration,
    pub(super) fetch_min: i32,
    pub(super) fetch_max: i32,
    pub(super) partition_max: i32,
    /// The largest response that is taken.
    pub(super) response_max: usize,
}

/// Why a reader is not this client's.
#[derive(Debug)]
pub(super) enum NotOurs {
    /// A property that only librdkafka knows.
    Property(String),
    /// One that nobody can work with.
    Invalid(LogError),
}

impl Settings {
    /// `properties` are those of a reader alone, defaults included.
    pub(super) fn of(properties: &BTreeMap<String, String>) -> Result<Self, NotOurs> {
        let not_ours = |key: &str| NotOurs::Property(key.to_owned());
        let mut bootstrap = Vec::new();
        let mut settings = Self {
            bootstrap: Vec::new(),
            client_id: "everlog".into(),
            security: Security::of(properties).map_err(|refused| match refused {
                Refused::NotOurs { key } => NotOurs::Property(key),
                Refused::Invalid(error) => NotOurs::Invalid(error),
            })?,
            keepalive: false,
            receive_buffer: None,
            request_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
            refresh: Duration::from_secs(300),
            fetch_wait: Duration::from_millis(500),
            fetch_min: 1,
            fetch_max: 50 << 20,
            partition_max: 1 << 20,
            response_max: 1_000_000_000,
        };
        for (key, value) in properties {
            let value = value.trim();
            let bytes = || value.parse::<u31>().map_err(|()| not_ours(key));
            let millis = || {
                let ms = value.parse().map_err(|_| not_ours(key))?;
                Ok(Duration::from_millis(ms))
            };
            match key.as_str() {
                // both names are one property; librdkafka takes what was set last, and the map does not know that
                "bootstrap.servers" | "metadata.broker.list" => {
                    bootstrap.push(addresses(value).ok_or_else(|| not_ours(key))?);
                }
                "client.id" => value.clone_into(&mut settings.client_id),
                "socket.keepalive.enable" => {
                    settings.keepalive = boolean(value).ok_or_else(|| not_ours(key))?;
                }
                "socket.receive.buffer.bytes" => {
                    let bytes = bytes()?.0;
                    settings.receive_buffer = usize::try_from(bytes).ok().filter(|b| *b > 0);
                }
                "socket.timeout.ms" => settings.request_timeout = millis()?,
                "socket.connection.setup.timeout.ms" => settings.connect_timeout = millis()?,
                "reconnect.backoff.ms" => settings.backoff.0 = millis()?,
                "reconnect.backoff.max.ms" => settings.backoff.1 = millis()?,
                "topic.metadata.refresh.interval.ms" => {
                    // -1 switches it off
                    settings.refresh = if value == "-1" {
                        Duration::MAX
                    } else {
                        millis()?
                    };
                }
                "metadata.max.age.ms" => {}
                "fetch.wait.max.ms" => settings.fetch_wait = millis()?,
                "fetch.min.bytes" => settings.fetch_min = bytes()?.0.max(1),
                "fetch.max.bytes" => settings.fetch_max = bytes()?.0,
                "fetch.message.max.bytes" | "max.partition.fetch.bytes" => {
                    settings.partition_max = bytes()?.0.max(1);
                }
                "receive.message.max.bytes" => {
                    settings.response_max = usize::try_from(bytes()?.0).unwrap_or(usize::MAX);
                }
                "client.dns.lookup" if value == "use_all_dns_ips" => {}
                "broker.address.family" if value == "any" => {}
                "client.rack" if value.is_empty() => {}
                "security.protocol" => {}
                _ if of_security(key) => {}
                _ if WITHOUT_EFFECT.contains(&key.as_str()) => {}
                _ => return Err(not_ours(key)),
            }
        }
        match <[_; 1]>::try_from(bootstrap) {
            Ok([one]) if !one.is_empty() => settings.bootstrap = one,
            _ => return Err(not_ours("bootstrap.servers")),
        }
        // never in a hurry, whatever the properties say
        settings.backoff.0 = settings.backoff.0.max(Duration::from_millis(10));
        settings.backoff.1 = settings.backoff.1.max(settings.backoff.0);
        settings.request_timeout = settings.request_timeout.max(Duration::from_secs(1));
        settings.connect_timeout = settings.connect_timeout.max(Duration::from_millis(100));
        settings.refresh = settings.refresh.max(Duration::from_secs(1));
        Ok(settings)
    }
}

/// A number of bytes as the protocol knows them.
#[allow(
    non_camel_case_types,
    reason = "named as the number type that Rust has not got"
)]
struct u31(i32);

impl std::str::FromStr for u31 {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().ok().filter(|n| *n >= 0).map(Self).ok_or(())
    }
}

fn of_security(key: &str) -> bool {
    ["ssl.", "sasl.", "enable.ssl.", "enable.sasl."]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" => Some(true),
        "false" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// `host[:port]`, with commas between; a scheme before the host is a matter of librdkafka's.
fn addresses(list: &str) -> Option<Vec<Address>> {
    list.split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
        .map(address)
        .collect()
}

fn address(text: &str) -> Option<Address> {
    const PORT: u16 = 9092;
    let (host, port) = match text.strip_prefix('[') {
        // an IPv6 address, in brackets
        Some(inside) => {
            let (host, behind) = inside.split_once(']')?;
            let port = match behind.strip_prefix(':') {
                Some(port) => port.parse().ok()?,
                None if behind.is_empty() => PORT,
                None => return None,
            };
            (host, port)
        }
        None => match text.rsplit_once(':') {
            None => (text, PORT),
            Some((host, port)) if !host.contains([':', '/']) => (host, port.parse().ok()?),
            Some(_) => return None,
        },
    };
    (!host.is_empty() && port > 0).then(|| Address {
        host: host.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Result<Settings, NotOurs> {
        let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        Settings::of(&pairs.collect())
    }

    const ONE: (&str, &str) = ("bootstrap.servers", "h:1");

    #[test]
    fn what_only_librdkafka_knows_is_left_to_it() {
        for pair in [
            ("client.rack", "a"),
            ("broker.address.family", "v4"),
            ("test.mock.num.brokers", "3"),
            ("plugin.library.paths", "x"),
            ("fetch.wait.max.ms", "soon"),
            ("fetch.max.bytes", "-3"),
            ("security.protocol", "sasl_plaintext"),
            ("a.property.of.tomorrow", "1"),
            // which of both names was set last is not known any more
            ("metadata.broker.list", "h:2"),
        ] {
            assert!(
                matches!(settings(&[ONE, pair]), Err(NotOurs::Property(_))),
                "{pair:?}"
            );
        }
        for list in [
            "",
            " , ",
            "PLAINTEXT://h:1",
            "h:port",
            ":9",
            "a:b:c",
            "[::1",
            "[::1]9",
        ] {
            assert!(settings(&[("bootstrap.servers", list)]).is_err(), "{list}");
        }
    }

    #[test]
    fn properties_are_obeyed() {
        let all = settings(&[
            ("bootstrap.servers", " a , b:7,[::1]:8,[::2] "),
            ("fetch.wait.max.ms", "50"),
            ("fetch.message.max.bytes", "77"),
            ("topic.metadata.refresh.interval.ms", "-1"),
            ("reconnect.backoff.max.ms", "0"),
            ("socket.keepalive.enable", "True"),
            ("statistics.interval.ms", "1000"),
            ("acks", "all"),
        ])
        .unwrap();
        let names: Vec<_> = all.bootstrap.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a:9092", "b:7", "[::1]:8", "[::2]:9092"]);
        assert_eq!((all.fetch_wait.as_millis(), all.partition_max), (50, 77));
        assert_eq!(all.refresh, Duration::MAX);
        assert!(all.keepalive && all.backoff.1 >= all.backoff.0);
    }
}
