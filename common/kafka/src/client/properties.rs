//! From the user's librdkafka properties to those of each client: what would break the guarantees is refused, the rest is
//! passed through. Values are never repeated in errors: some are secrets.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Isolation, LogError, Membership};

/// How long a request to the cluster may take; `everlog.request.timeout.ms` changes it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest response that a client takes, so that a single record of any size Kafka allows passes.
const RESPONSE_BYTES_MAX: usize = 1_000_000_000;
/// Who fetches for readers that are alone: everlog, where it knows all other properties, or librdkafka.
const FETCH_CLIENT: &str = "everlog.fetch.client";
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Properties with only one value under which no record is lost or doubled, and why.
const FIXED: &[(&str, &[&str], &str)] = &[
    (
        "enable.auto.commit",
        &["false"],
        "positions are kept with the data, never by the group",
    ),
    (
        "enable.auto.offset.store",
        &["false"],
        "positions are kept with the data, never by the group",
    ),
    (
        "auto.offset.reset",
        &["error"],
        "where to start is never guessed",
    ),
    (
        "enable.partition.eof",
        &["true"],
        "the end of a partition is how control records at the end are passed",
    ),
    (
        "check.crcs",
        &["true"],
        "damaged records must not be archived",
    ),
    (
        "partition.assignment.strategy",
        &["cooperative-sticky"],
        "partitions are added and taken one by one",
    ),
    (
        "group.protocol",
        &["classic", "consumer"],
        "there is no other",
    ),
    ("log.queue", &["false"], "log lines go to everlog's own log"),
    (
        "enabled_events",
        &[],
        "everlog chooses how the client reports",
    ),
];

/// Properties of group members, which other clients must not have.
const GROUP_ONLY: &[&str] = &[
    "group.id",
    "group.instance.id",
    "group.protocol",
    "group.protocol.type",
    "group.remote.assignor",
    "partition.assignment.strategy",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "coordinator.query.interval.ms",
];

/// The user's properties, checked.
#[derive(Debug, Clone)]
pub(super) struct ClientProperties {
    user: BTreeMap<String, String>,
    pub(super) request_timeout: Duration,
    /// Whether readers alone fetch by themselves, without librdkafka.
    pub(super) fetches_itself: bool,
}

/// A property that everlog sets although the user gave another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Override {
    pub(super) key: &'static str,
    pub(super) why: &'static str,
}

impl ClientProperties {
    pub(super) fn parse(properties: &BTreeMap<String, String>) -> Result<Self, LogError> {
        let mut user = properties.clone();
        let mut problems = Vec::new();
        for (key, allowed, why) in FIXED {
            if let Some(value) = user.get(*key)
                && !allowed.contains(&value.trim().to_ascii_lowercase().as_str())
            {
                problems.push((key, format!("{}: {why}", must_be(allowed))));
            }
        }
        if let Some((key, detail)) = problems.first() {
            let others: Vec<_> = problems[1..].iter().map(|(key, _)| **key).collect();
            let detail = if others.is_empty() {
                detail.clone()
            } else {
                format!("{detail} (also refused: {})", others.join(", "))
            };
            return Err(invalid(key, detail));
        }
        if !user.contains_key("bootstrap.servers") && !user.contains_key("metadata.broker.list") {
            return Err(invalid(
                "bootstrap.servers",
                "is missing: name at least one broker as host:port".into(),
            ));
        }
        check_oauth(&user)?;
        let request_timeout = match user.remove("everlog.request.timeout.ms") {
            None => REQUEST_TIMEOUT,
            Some(value) => parse_timeout(&value)?,
        };
        let fetches_itself = match user.remove(FETCH_CLIENT).as_deref().map(str::trim) {
            None | Some("everlog") => true,
            Some("librdkafka") => false,
            Some(_) => {
                let detail = "must be everlog or librdkafka".into();
                return Err(invalid(FETCH_CLIENT, detail));
            }
        };
        if let Some(key) = user.keys().find(|k| k.starts_with("everlog.")) {
            return Err(invalid(
                key,
                format!("is not known (everlog.request.timeout.ms and {FETCH_CLIENT} are)"),
            ));
        }
        Ok(Self {
            user,
            request_timeout,
            fetches_itself,
        })
    }

    /// Whether mirroring has a group to go to.
    pub(super) fn group(&self) -> Option<&str> {
        self.user.get("group.id").map(String::as_str)
    }

    fn base(&self) -> BTreeMap<String, String> {
        let mut all = self.user.clone();
        default(&mut all, "client.id", "everlog");
        default(&mut all, "socket.keepalive.enable", "true");
        // KIP-714: with it the client takes a lock and counts in a histogram at each message that it hands over, which is a
        // seventh of what archiving takes
        default(&mut all, "enable.metrics.push", "false");
        find_authorities(&mut all);
        all
    }

    /// For a client that only asks.
    pub(super) fn for_requests(&self) -> BTreeMap<String, String> {
        let mut all = self.base();
        for key in GROUP_ONLY {
            all.remove(*key);
        }
        all
    }

    /// For the client that asks where epochs ended: it assigns, but reads nothing.
    pub(super) fn for_probe(&self) -> BTreeMap<String, String> {
        let mut all = self.for_requests();
        guarantees(&mut all);
        all.insert("group.id".into(), "everlog-alone".into());
        all.insert("enable.partition.eof".into(), "false".into());
        all
    }

    /// For a reader, with what had to be overridden.
    pub(super) fn for_reader(
        &self,
        membership: &Membership,
        isolation: Isolation,
        memory: &MemoryPlan,
    ) -> (BTreeMap<String, String>, Vec<Override>) {
        let mut all = self.base();
        let mut overrides = Vec::new();
        guarantees(&mut all);
        let before = all.insert("isolation.level".into(), isolation.as_str().into());
        if before.is_some_and(|b| b != isolation.as_str()) {
            overrides.push(Override {
                key: "isolation.level",
                why: "the reader's isolation decides",
            });
        }
        match membership {
            Membership::Alone => {
                for key in GROUP_ONLY.iter().filter(|k| **k != "group.id") {
                    all.remove(*key);
                }
                // without a group id the client has no assignment; with one it joins nothing unless it subscribes
                default(&mut all, "group.id", "everlog-alone");
            }
            Membership::Group { group, .. } => {
                let before = all.insert("group.id".into(), group.clone());
                if before.is_some_and(|b| b != *group) {
                    overrides.push(Override {
                        key: "group.id",
                        why: "the reader's group decides",
                    });
                }
                // in any case, as the client takes it
                if all
                    .get("group.protocol")
                    .is_some_and(|p| p.eq_ignore_ascii_case("consumer"))
                {
                    // the broker assigns; the client refuses a strategy of its own
                    all.remove("partition.assignment.strategy");
                    default(&mut all, "max.poll.interval.ms", RECONCILED_WITHIN);
                } else {
                    all.insert(
                        "partition.assignment.strategy".into(),
                        "cooperative-sticky".into(),
                    );
                }
                // how soon new topics and partitions are noticed
                default(&mut all, "topic.metadata.refresh.interval.ms", "10000");
            }
        }
        memory.apply(&mut all);
        (all, overrides)
    }
}

/// The user's properties for clients of librdkafka that others make, such as producers: those of everlog's own left out, and
/// with what every client of this build needs.
pub fn for_other_clients(user: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = |key: &String| key.starts_with("everlog.");
    let given = user.iter().filter(|(key, _)| !own(key));
    let mut all = given.map(|(k, v)| (k.clone(), v.clone())).collect();
    find_authorities(&mut all);
    all
}

/// The OpenSSL that is built in does not know where this system keeps its certificates.
fn find_authorities(all: &mut BTreeMap<String, String>) {
    let chosen = all.keys().any(|k| k.starts_with("ssl.ca."));
    let tls = all
        .get("security.protocol")
        .is_some_and(|p| p.to_ascii_lowercase().contains("ssl"));
    if tls && !chosen {
        all.insert("ssl.ca.location".into(), "probe".into());
    }
}

/// A member that has not given back within this time what the coordinator wants is thrown out of a KIP-848 group, and joins
/// it anew. librdkafka 2.12.1 never hears again what was in the reply to a heartbeat that timed out: it repeats that request
/// as it was, without what would make the coordinator repeat its answer. Its 5 minutes would be how long partitions that
/// were to move are read by nobody. The archiver answers within 10 s.
const RECONCILED_WITHIN: &str = "30000";

fn guarantees(all: &mut BTreeMap<String, String>) {
    for (key, value) in [
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "true"),
        ("check.crcs", "true"),
    ] {
        all.insert(key.into(), value.into());
    }
}

fn default(all: &mut BTreeMap<String, String>, key: &str, value: &str) {
    all.entry(key.to_owned()).or_insert_with(|| value.into());
}

/// Without a way to get tokens the client would wait for one for ever.
fn check_oauth(user: &BTreeMap<String, String>) -> Result<(), LogError> {
    let mechanism = ["sasl.mechanism", "sasl.mechanisms"];
    let is_oauth = |key: &str| {
        user.get(key)
            .is_some_and(|m| m.eq_ignore_ascii_case("OAUTHBEARER"))
    };
    let unsecured = user
        .get("enable.sasl.oauthbearer.unsecure.jwt")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    match mechanism.into_iter().find(|key| is_oauth(key)) {
        Some(key) if !unsecured => Err(invalid(
            key,
            "OAUTHBEARER gets tokens of an identity provider (OIDC) in no build of everlog yet: use SCRAM-SHA-512, PLAIN or a \
             client certificate, all over TLS; enable.sasl.oauthbearer.unsecure.jwt = true is for tests"
                .into(),
        )),
        _ => Ok(()),
    }
}

fn invalid(key: &str, detail: String) -> LogError {
    LogError::Invalid {
        what: format!("Kafka property {key}"),
        detail,
    }
}

fn must_be(allowed: &[&str]) -> String {
    match allowed {
        [] => "cannot be set".into(),
        [one] => format!("must be {one}"),
        many => format!("must be one of {}", many.join(", ")),
    }
}

fn parse_timeout(value: &str) -> Result<Duration, LogError> {
    match value.trim().parse::<u64>() {
        Ok(ms @ 100..=600_000) => Ok(Duration::from_millis(ms)),
        _ => Err(invalid(
            "everlog.request.timeout.ms",
            "must be a number from 100 to 600000".into(),
        )),
    }
}

/// How a reader's memory is shared out.
///
/// The client checks its queue's bound *before* a fetch, and hands over a whole queue at once, so the worst case is about
/// twice `queue` plus one fetch per broker (times the compression ratio) plus `own`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryPlan {
    /// The client's queue.
    pub(super) queue: usize,
    /// One broker's response.
    pub(super) fetch: usize,
    /// One partition's part of it: not below what producers write at once, or only one partition moves per response.
    pub(super) partition: usize,
    /// Batches that wait to be taken.
    pub(super) own: usize,
    /// A batch is handed over at this size.
    pub(super) batch: usize,
}

impl MemoryPlan {
    pub(super) fn new(memory_bytes: usize, brokers: usize) -> Self {
        let brokers = brokers.max(1);
        let fetch = (memory_bytes / 32 / brokers).clamp(MIB, 50 * MIB);
        Self {
            queue: (memory_bytes / 8).clamp(MIB, 1024 * MIB),
            fetch,
            partition: fetch.min(MIB),
            own: (memory_bytes / 4).max(MIB),
            batch: (memory_bytes / 32).clamp(64 * KIB, 8 * MIB),
        }
    }

    /// For a reader that fetches by itself: one answer per broker in hand, a batch of its rows, and what waits to be taken. There
    /// is no queue besides. (Larger batches cost more, not less: they do not fit into a core's cache.)
    pub(super) fn of_fetcher(memory_bytes: usize, brokers: usize) -> Self {
        let share = memory_bytes / 16 / brokers.max(1);
        let fetch = share.clamp(MIB, 50 * MIB);
        Self {
            fetch,
            partition: (fetch / 4).max(MIB),
            own: (memory_bytes / 4).max(MIB),
            batch: (share / 2).clamp(64 * KIB, 4 * MIB),
            ..Self::new(memory_bytes, brokers)
        }
    }

    fn apply(&self, all: &mut BTreeMap<String, String>) {
        default(
            all,
            "queued.max.messages.kbytes",
            &(self.queue / KIB).to_string(),
        );
        // the bound is bytes alone
        default(all, "queued.min.messages", "1000000");
        default(all, "fetch.queue.backoff.ms", "5");
        default(all, "fetch.max.bytes", &self.fetch.to_string());
        if !all.contains_key("max.partition.fetch.bytes") {
            default(all, "fetch.message.max.bytes", &self.partition.to_string());
        }
        default(
            all,
            "receive.message.max.bytes",
            &RESPONSE_BYTES_MAX.to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from([("bootstrap.servers".to_owned(), "h:1".to_owned())]);
        all.extend(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())));
        all
    }

    fn reader(pairs: &[(&str, &str)], membership: &Membership) -> BTreeMap<String, String> {
        ClientProperties::parse(&properties(pairs))
            .unwrap()
            .for_reader(
                membership,
                Isolation::ReadCommitted,
                &MemoryPlan::new(128 << 20, 1),
            )
            .0
    }

    #[test]
    fn properties_that_would_lose_or_double_records_are_refused_by_name() {
        for (key, value) in [
            ("enable.auto.commit", "true"),
            ("enable.auto.offset.store", "true"),
            ("auto.offset.reset", "latest"),
            ("enable.partition.eof", "false"),
            ("check.crcs", "false"),
            ("partition.assignment.strategy", "range,roundrobin"),
            ("enabled_events", "255"),
            ("everlog.nonsense", "1"),
            ("everlog.request.timeout.ms", "soon"),
            ("everlog.fetch.client", "kcat"),
        ] {
            let refused = ClientProperties::parse(&properties(&[(key, value)])).unwrap_err();
            let text = refused.to_string();
            assert!(matches!(refused, LogError::Invalid { .. }), "{text}");
            assert!(text.contains(key) && !text.contains(value), "{text}");
        }
        let none = ClientProperties::parse(&BTreeMap::new()).unwrap_err();
        assert!(none.to_string().contains("bootstrap.servers"));
        // the right values, in any case, are fine
        ClientProperties::parse(&properties(&[
            ("enable.auto.commit", "False"),
            ("auto.offset.reset", "error"),
            ("check.crcs", "true"),
            ("sasl.password", "s3cret"),
        ]))
        .unwrap();
    }

    #[test]
    fn a_mechanism_that_would_wait_for_tokens_for_ever_is_refused() {
        let parse = |pairs: &[(&str, &str)]| ClientProperties::parse(&properties(pairs));
        let refused = parse(&[("sasl.mechanisms", "oauthbearer")]).unwrap_err();
        assert!(refused.to_string().contains("SCRAM-SHA-512"), "{refused}");
        parse(&[
            ("sasl.mechanism", "OAUTHBEARER"),
            ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ])
        .unwrap();
        parse(&[("sasl.mechanism", "SCRAM-SHA-256")]).unwrap();
    }

    #[test]
    fn readers_get_the_guarantees_whatever_the_user_says() {
        let group = Membership::Group {
            group: "g".into(),
            topics: vec![everlog_common::TopicName::new("t").unwrap()],
        };
        let given = [("isolation.level", "read_uncommitted"), ("group.id", "x")];
        let all = reader(&given, &group);
        assert_eq!(all["isolation.level"], "read_committed");
        assert_eq!(all["auto.offset.reset"], "error");
        assert_eq!(all["group.id"], "g");
        assert_eq!(all["partition.assignment.strategy"], "cooperative-sticky");
        let (_, overrides) = ClientProperties::parse(&properties(&given))
            .unwrap()
            .for_reader(&group, Isolation::ReadCommitted, &MemoryPlan::new(1, 1));
        let keys: Vec<_> = overrides.iter().map(|o| o.key).collect();
        assert_eq!(keys, ["isolation.level", "group.id"]);

        for name in ["consumer", "CONSUMER"] {
            let all = reader(&[("group.protocol", name)], &group);
            assert!(!all.contains_key("partition.assignment.strategy"));
            assert_eq!(all["max.poll.interval.ms"], "30000");
        }
        let chosen = [
            ("group.protocol", "consumer"),
            ("max.poll.interval.ms", "90000"),
        ];
        assert_eq!(reader(&chosen, &group)["max.poll.interval.ms"], "90000");
        let all = reader(&[("group.protocol", "consumer")], &Membership::Alone);
        assert!(!all.contains_key("group.protocol"));
    }

    #[test]
    fn memory_follows_what_was_measured_at_128_mib() {
        let plan = MemoryPlan::new(128 << 20, 1);
        assert_eq!((plan.queue, plan.fetch), (16 << 20, 4 << 20));
        assert_eq!(plan.partition, 1 << 20);
        assert_eq!(MemoryPlan::new(128 << 20, 3).fetch, (4 << 20) / 3);
        let ours = MemoryPlan::of_fetcher(128 << 20, 2);
        assert_eq!(
            (ours.fetch, ours.partition, ours.own, ours.batch),
            (4 << 20, 1 << 20, 32 << 20, 2 << 20)
        );
        // nothing falls below what works
        let small = MemoryPlan::of_fetcher(1, 100);
        assert_eq!((small.fetch, small.own, small.batch), (MIB, MIB, 64 * KIB));
        let tiny = MemoryPlan::new(1, 100);
        assert_eq!((tiny.queue, tiny.fetch, tiny.own), (MIB, MIB, MIB));
        let all = reader(&[("fetch.max.bytes", "7000000")], &Membership::Alone);
        assert_eq!(all["fetch.max.bytes"], "7000000");
        assert_eq!(all["fetch.queue.backoff.ms"], "5");
    }

    #[test]
    fn tls_looks_for_the_systems_certificates_unless_told_where_they_are() {
        let of = |pairs: &[(&str, &str)]| {
            ClientProperties::parse(&properties(pairs))
                .unwrap()
                .for_requests()
                .get("ssl.ca.location")
                .cloned()
        };
        assert_eq!(of(&[]), None);
        let tls = ("security.protocol", "SASL_SSL");
        assert_eq!(of(&[tls]).as_deref(), Some("probe"));
        assert_eq!(of(&[tls, ("ssl.ca.pem", "x")]), None);
        let other = for_other_clients(&properties(&[tls, ("everlog.request.timeout.ms", "6000")]));
        assert_eq!(other["ssl.ca.location"], "probe");
        assert!(
            !other.keys().any(|key| key.starts_with("everlog.")),
            "{other:?}"
        );
    }
}
