//! Every key of the configuration, once: its kind, its default, and what to know about it. Reading, checking, the
//! default file and docs/configuration.md all come from here.

/// A table of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// The client's properties, passed through.
    Kafka,
    /// The catalog's and the object store's properties, passed through.
    Catalog,
    /// The archiver.
    Archive,
    /// The replayer.
    Replay,
    /// The schema registry.
    Registry,
}

impl Section {
    /// All of them, in the order of the file.
    pub(crate) const ALL: [Self; 5] = [
        Self::Kafka,
        Self::Catalog,
        Self::Archive,
        Self::Replay,
        Self::Registry,
    ];

    /// Its name in the file.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Catalog => "catalog",
            Self::Archive => "archive",
            Self::Replay => "replay",
            Self::Registry => "registry",
        }
    }

    /// Whether keys that everlog does not know go to the client behind it.
    pub(crate) const fn passes_through(self) -> bool {
        matches!(self, Self::Kafka | Self::Catalog)
    }

    /// What the section is about, for the default file and the docs.
    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Kafka => {
                "The Kafka client. Every property of librdkafka may stand here under its own name and is passed through; \
                 those that decide where reading starts are set by everlog and refused."
            }
            Self::Catalog => {
                "The Iceberg catalog and the object store, by Iceberg's standard property names. Names with a dot \
                 (s3.…, gcs.…, adls.…, rest.…, header.…) are passed through."
            }
            Self::Archive => "The archiver, `everlog archive`.",
            Self::Replay => "The replayer, `everlog replay`.",
            Self::Registry => {
                "The schema registry (Confluent's protocol: Confluent, Apicurio, Karapace, Redpanda) of Avro values, for \
                 `everlog sql` and `everlog schema`. Jobs name theirs in their own files."
            }
        }
    }

    /// The section of that name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// What a value is, and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any text that is not empty.
    Text,
    /// Text that may be empty.
    TextOrEmpty,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A list of texts, at least one.
    List,
    /// A duration with a unit; bounds in milliseconds.
    Duration {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A size with a unit; bounds in bytes.
    Bytes {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A whole number.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// `true` or `false`.
    Switch,
}

/// What holds where a key is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It must be given where it is needed; the text says when.
    Required(&'static str),
    /// Nothing; the text says what that means.
    Means(&'static str),
    /// This value.
    Default(&'static str),
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    /// Its table.
    pub(crate) section: Section,
    /// Its name.
    pub(crate) key: &'static str,
    /// What it holds.
    pub(crate) kind: Kind,
    /// What holds without it.
    pub(crate) absent: Absent,
    /// A value as the file would hold it, where there is no default to show.
    pub(crate) example: &'static str,
    /// What it does.
    pub(crate) what: &'static str,
    /// What a value that is too small, or missing, does; empty where that means nothing.
    pub(crate) too_small: &'static str,
    /// What a value that is too large does.
    pub(crate) too_large: &'static str,
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Every key that everlog reads itself.
pub(crate) const FIELDS: &[Field] = &[
    Field {
        section: Section::Kafka,
        key: "bootstrap.servers",
        kind: Kind::Text,
        absent: Absent::Required("wherever Kafka is read"),
        example: "\"127.0.0.1:9092\"",
        what: "The brokers to begin with, `host:port`, separated by commas.",
        too_small: "One broker is enough to find the others, unless it is down when everlog starts: name two or three.",
        too_large: "",
    },
    Field {
        section: Section::Catalog,
        key: "type",
        kind: Kind::Choice(&["sql", "rest"]),
        absent: Absent::Required("always"),
        example: "\"sql\"",
        what: "The kind of catalog: `sql` (SQLite or PostgreSQL) or `rest` (Iceberg's REST protocol).",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Catalog,
        key: "name",
        kind: Kind::Text,
        absent: Absent::Default("everlog"),
        example: "\"everlog\"",
        what: "The catalog's name, where its layout keeps one: other engines must use the same to see a `sql` catalog's tables.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Catalog,
        key: "uri",
        kind: Kind::Text,
        absent: Absent::Required("always"),
        example: "\"sqlite://lake/catalog.db\"",
        what: "Where the catalog is: `sqlite://FILE` or `postgres://…` for `sql`, `http(s)://…` for `rest`.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Catalog,
        key: "warehouse",
        kind: Kind::Text,
        absent: Absent::Required("by `type = \"sql\"`; a REST catalog may know its own"),
        example: "\"file:///var/lib/everlog\"",
        what: "Where tables are stored: `file:///…`, `s3://bucket/prefix`, `gs://…`, `abfss://…`; for some REST catalogs a name.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Catalog,
        key: "namespace",
        kind: Kind::Text,
        absent: Absent::Default("everlog"),
        example: "\"everlog\"",
        what: "The namespace of the tables, one table per topic; levels are separated by dots.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "topics",
        kind: Kind::List,
        absent: Absent::Required("by `everlog archive`"),
        example: "[\"clickstream.raw\", \"^orders\\\\..*\"]",
        what: "The topics to archive: names, or regular expressions that begin with `^`, in the language of Rust's `regex` crate, with a group too; Kafka's internal topics never match. Topics that appear later are found while it runs.",
        too_small: "",
        too_large: "An expression that matches more than meant makes a table for each match.",
    },
    Field {
        section: Section::Archive,
        key: "commit_interval",
        kind: Kind::Duration {
            min: 100,
            max: HOUR,
        },
        absent: Absent::Default("10s"),
        example: "",
        what: "How often what was read becomes a snapshot, and so how far the archive may lie behind Kafka.",
        too_small: "More snapshots and smaller files, so slower planning and more requests to the object store.",
        too_large: "More to read again after a crash, memory fills sooner than the interval ends, and a larger step between archive and live tail.",
    },
    Field {
        section: Section::Archive,
        key: "isolation",
        kind: Kind::Choice(&["read_committed", "read_uncommitted"]),
        absent: Absent::Default("read_committed"),
        example: "",
        what: "Which records are archived: those of committed transactions only, or all. Recorded in the table; it cannot change later.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "on_gap",
        kind: Kind::Choice(&["stop", "record"]),
        absent: Absent::Default("stop"),
        example: "",
        what: "What to do where Kafka deleted records before they were archived: `stop` that partition (the others go on, health fails, exit status 3 at the end), or `record` the gap in the ledger and go on.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "accept_cluster",
        kind: Kind::Text,
        absent: Absent::Means("a cluster other than the table's is refused"),
        example: "\"MkU3OEVBNTcwNTJENDM2Qk\"",
        what: "The id of a cluster to accept although the table was written from another: after a migration. Its topics start a new generation.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "group",
        kind: Kind::Text,
        absent: Absent::Means("this process reads every partition itself"),
        example: "\"everlog-archive\"",
        what: "The consumer group through which several archivers share the work. Its offsets are only a mirror for lag tools. Set `group.protocol` to `consumer` in `[kafka]` to use the protocol of KIP-848 (brokers from 4.0 on); session and heartbeat are the brokers' settings then, and refused here, and `max.poll.interval.ms`, within which the coordinator has a partition given back, is 30 s unless you set it.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "memory",
        kind: Kind::Bytes {
            min: 64 * MIB,
            max: 1024 * GIB,
        },
        absent: Absent::Default("512MiB"),
        example: "",
        what: "Bound of the records held in memory, the client's queues included; one record larger than that still passes.",
        too_small: "Commits come before their interval ends and files get small; reading pauses while a commit is written.",
        too_large: "The process may be ended by the system when a backlog is read.",
    },
    Field {
        section: Section::Archive,
        key: "discovery_interval",
        kind: Kind::Duration {
            min: 100,
            max: HOUR,
        },
        absent: Absent::Default("10s"),
        example: "",
        what: "How often new topics, new partitions and re-created topics are looked for.",
        too_small: "More metadata requests to the brokers.",
        too_large: "A new topic may lose records to retention before it is found.",
    },
    Field {
        section: Section::Archive,
        key: "partition_by",
        kind: Kind::Text,
        absent: Absent::Default("day(archived_at)"),
        example: "",
        what: "How new tables are partitioned: `none`, or terms with commas between: `year`, `month`, `day` or `hour` of `archived_at`; `identity`, `bucket(N, …)` or `truncate(N, …)` of `generation` or `partition`. Tables that exist keep theirs.",
        too_small: "",
        too_large: "More terms make more and smaller files.",
    },
    Field {
        section: Section::Archive,
        key: "http",
        kind: Kind::TextOrEmpty,
        absent: Absent::Default("127.0.0.1:9464"),
        example: "",
        what: "Address of `/healthz`, `/readyz` and `/metrics`. Empty: none; port 0: any free one, which the log names. Without it, where the default is in use already, another free port is taken; an address that is written here is taken or is an error.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "maintenance",
        kind: Kind::Switch,
        absent: Absent::Default("true"),
        example: "",
        what: "Whether the archiver expires snapshots and removes the files that nothing needs any more.",
        too_small: "With `false` every commit's snapshot stays, until `everlog maintain` runs elsewhere.",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "delete_files",
        kind: Kind::Switch,
        absent: Absent::Default("true"),
        example: "",
        what: "Whether maintenance deletes objects: set it to `false` where the archiver's credentials may not. Snapshots still expire.",
        too_small: "With `false` the files of expired snapshots stay until `everlog maintain` runs with credentials that may delete.",
        too_large: "",
    },
    Field {
        section: Section::Archive,
        key: "snapshot_age",
        kind: Kind::Duration {
            min: MINUTE,
            max: 3650 * DAY,
        },
        absent: Absent::Default("5d"),
        example: "",
        what: "Snapshots older than this expire; leased and tagged ones stay, and so does the data itself: only the way back to an old state goes.",
        too_small: "Time travel reaches less far back.",
        too_large: "Metadata grows and every commit gets slower.",
    },
    Field {
        section: Section::Archive,
        key: "snapshots_min",
        kind: Kind::Integer {
            min: 1,
            max: 100_000,
        },
        absent: Absent::Default("20"),
        example: "",
        what: "So many of the newest snapshots stay whatever their age; fewer, down to 5, where the table's metadata would grow beyond 4 MiB (thousands of partitions).",
        too_small: "A quiet table keeps no way back.",
        too_large: "As `snapshot_age`.",
    },
    Field {
        section: Section::Archive,
        key: "snapshots_max",
        kind: Kind::Integer {
            min: 2,
            max: 100_000,
        },
        absent: Absent::Default("500"),
        example: "",
        what: "More than so many snapshots are not kept, even young ones: this keeps commits fast. Tag the ones to keep.",
        too_small: "Time travel reaches less far back than `snapshot_age` says.",
        too_large: "Metadata grows and every commit gets slower.",
    },
    Field {
        section: Section::Replay,
        key: "memory",
        kind: Kind::Bytes {
            min: 16 * MIB,
            max: 1024 * GIB,
        },
        absent: Absent::Default("256MiB"),
        example: "",
        what: "Bound of what a replay reads ahead; one row group larger than that still passes.",
        too_small: "Less read-ahead, so slower from a remote object store.",
        too_large: "The process may be ended by the system.",
    },
    Field {
        section: Section::Replay,
        key: "threads",
        kind: Kind::Integer { min: 1, max: 256 },
        absent: Absent::Means("one per core"),
        example: "2",
        what: "Threads that decode files.",
        too_small: "A slower replay.",
        too_large: "More memory per partition in flight, no more speed.",
    },
    Field {
        section: Section::Registry,
        key: "url",
        kind: Kind::Text,
        absent: Absent::Means("there is no registry, and Avro values are bytes"),
        example: "\"http://127.0.0.1:8081\"",
        what: "Where the registry is, up to where `/schemas` and `/subjects` follow.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Registry,
        key: "user",
        kind: Kind::Text,
        absent: Absent::Means("no user is given"),
        example: "\"everlog\"",
        what: "The user, or key, beside `password`.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Registry,
        key: "password",
        kind: Kind::Text,
        absent: Absent::Means("no password is given"),
        example: "\"env:REGISTRY_PASSWORD\"",
        what: "The password, or secret: `env:NAME` is that variable's value, `file:PATH` what stands in that file, anything else the password itself.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Registry,
        key: "token",
        kind: Kind::Text,
        absent: Absent::Means("no token is given"),
        example: "\"env:REGISTRY_TOKEN\"",
        what: "A bearer token, written like `password`, instead of user and password.",
        too_small: "",
        too_large: "",
    },
    Field {
        section: Section::Registry,
        key: "timeout",
        kind: Kind::Duration {
            min: 100,
            max: MINUTE,
        },
        absent: Absent::Default("5s"),
        example: "",
        what: "How long one request may take; what fails for a moment is tried six times.",
        too_small: "A registry that is slow for a moment is taken for one that does not answer.",
        too_large: "A query waits long for a registry that is gone.",
    },
    Field {
        section: Section::Registry,
        key: "cache",
        kind: Kind::Text,
        absent: Absent::Means("`everlog/schemas` in the user's cache folder, which jobs use too"),
        example: "\"/var/cache/everlog/schemas\"",
        what: "The folder in which schemas are kept once they were asked for: their numbers never change their meaning.",
        too_small: "",
        too_large: "",
    },
];

/// The field, if everlog knows it.
pub(crate) fn find(section: Section, key: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|f| f.section == section && f.key == key)
}

/// Properties of librdkafka that everlog sets itself, with the reason to give.
pub(crate) const KAFKA_RESERVED: &[(&str, &str)] = &[
    (
        "auto.offset.reset",
        "the ledger alone decides where reading starts",
    ),
    (
        "enable.auto.commit",
        "group offsets are only a mirror of the ledger",
    ),
    (
        "enable.auto.offset.store",
        "group offsets are only a mirror of the ledger",
    ),
    (
        "enable.partition.eof",
        "everlog learns the end of a partition by it",
    ),
    ("group.id", "set `group` in [archive]"),
    ("isolation.level", "set `isolation` in [archive]"),
    (
        "transactional.id",
        "a resumed replay to a topic derives its own",
    ),
    (
        "enable.idempotence",
        "a resumed replay to a topic relies on it",
    ),
];

/// The one property in `[kafka]` that is everlog's own.
pub(crate) const KAFKA_OWN: &str = "everlog.request.timeout.ms";

/// Properties of librdkafka that users set, to suggest the right one for a wrong one.
pub(crate) const KAFKA_COMMON: &[&str] = &[
    "bootstrap.servers",
    "broker.address.family",
    "broker.address.ttl",
    "check.crcs",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "debug",
    KAFKA_OWN,
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "group.instance.id",
    "group.protocol",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
    "message.max.bytes",
    "metadata.max.age.ms",
    "partition.assignment.strategy",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.nagle.disable",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "topic.metadata.refresh.interval.ms",
];

/// Properties of catalogs and stores that users set: the names without a dot are all there are, the others serve to map
/// environment variables and to suggest.
pub(crate) const CATALOG_COMMON: &[&str] = &[
    "adls.account-key",
    "adls.account-name",
    "adls.client-id",
    "adls.client-secret",
    "adls.connection-string",
    "adls.endpoint",
    "adls.sas-token",
    "adls.tenant-id",
    "audience",
    "client.region",
    "credential",
    "everlog.catalog.connect-timeout",
    "everlog.catalog.request-timeout",
    "everlog.storage.allowed-locations",
    "everlog.storage.connect-timeout",
    "everlog.storage.max-retries",
    "everlog.storage.request-timeout",
    "everlog.storage.retry-timeout",
    "gcs.credentials-json",
    "gcs.no-auth",
    "gcs.oauth2.token",
    "gcs.project-id",
    "gcs.service-account-path",
    "gcs.service.host",
    "gcs.user-project",
    "name",
    "namespace",
    "oauth2-server-uri",
    "prefix",
    "resource",
    "s3.access-key-id",
    "s3.allow-anonymous",
    "s3.anonymous",
    "s3.endpoint",
    "s3.path-style-access",
    "s3.region",
    "s3.remote-signing-enabled",
    "s3.role-arn",
    "s3.secret-access-key",
    "s3.session-token",
    "s3.sse.key",
    "s3.sse.md5",
    "s3.sse.type",
    "scope",
    "token",
    "type",
    "uri",
    "warehouse",
];

/// The candidate that a mistyped name most likely meant.
pub(crate) fn did_you_mean<'a>(
    wrong: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(wrong, c), c))
        .filter(|(distance, c)| *distance <= (c.len() / 4).max(2))
        .min_by_key(|(distance, c)| (*distance, *c))
        .map(|(_, c)| c)
}

/// A known name that differs by one slip of the fingers.
pub(crate) fn near_miss<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .find(|k| strsim::osa_distance(name, k) == 1)
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_says_what_it_does_and_its_default_is_valid() {
        for field in FIELDS {
            assert!(field.what.ends_with('.'), "{}", field.key);
            if !matches!(field.absent, Absent::Default(_)) {
                assert!(!field.example.is_empty(), "{} needs an example", field.key);
            }
        }
    }

    #[test]
    fn a_near_miss_is_recognised_and_a_stranger_is_not() {
        let known = ["commit_interval", "topics", "on_gap"];
        assert_eq!(
            did_you_mean("comit_interval", known),
            Some("commit_interval")
        );
        assert_eq!(
            did_you_mean("commit-interval", known),
            Some("commit_interval")
        );
        assert_eq!(did_you_mean("colour", known), None);
    }
}
