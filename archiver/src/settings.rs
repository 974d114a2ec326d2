//! What the archiver is told: values that are parsed, checked and complete. Components are arguments, never settings.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use everlog_common::TopicName;
use everlog_kafka::Isolation;

/// What happens to a partition of which Kafka deleted records before they were archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnGap {
    /// It stops; the others go on, health fails, the process ends with 3.
    Stop,
    /// The interval goes into the ledger as a gap, and reading goes on behind it.
    Record,
}

/// What a compiled expression may take, in bytes: a name has 249 characters, so that a longer expression is a mistake.
const REGEX_BYTES_MAX: usize = 256 << 10;

/// A topic by name, or topics by a regular expression.
#[derive(Clone)]
pub enum TopicPattern {
    /// Exactly this one.
    Name(TopicName),
    /// Every topic that matches; written with a leading `^`.
    Regex(regex::Regex),
}

/// Why a `topics` value is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicPatternError {
    /// No name that a topic can have.
    #[error("{detail}{}", if looks_like_regex(.text) { "; a regular expression begins with ^" } else { "" })]
    Name {
        /// As written.
        text: String,
        /// What is wrong with it; it has the text.
        detail: String,
    },
    /// No expression.
    #[error("{text:?} is not a regular expression: {detail}")]
    Regex {
        /// As written.
        text: String,
        /// What is wrong with it.
        detail: String,
    },
}

fn looks_like_regex(text: &str) -> bool {
    text.contains(['*', '\\', '[', '(', '$', '|', '+', '?'])
}

impl TopicPattern {
    /// Reads a name, or an expression that begins with `^`.
    pub fn parse(text: &str) -> Result<Self, TopicPatternError> {
        let owned = text.to_owned();
        if text.starts_with('^') {
            regex::RegexBuilder::new(text)
                .size_limit(REGEX_BYTES_MAX)
                .build()
                .map(Self::Regex)
                .map_err(|error| TopicPatternError::Regex {
                    text: owned,
                    detail: why(&error),
                })
        } else {
            TopicName::new(text)
                .map(Self::Name)
                .map_err(|error| TopicPatternError::Name {
                    text: owned,
                    detail: error.to_string(),
                })
        }
    }

    /// Whether `topic` is meant.
    pub fn matches(&self, topic: &TopicName) -> bool {
        match self {
            Self::Name(name) => name == topic,
            Self::Regex(regex) => regex.is_match(topic.as_str()),
        }
    }

    /// As configuration writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Name(name) => name.as_str(),
            Self::Regex(regex) => regex.as_str(),
        }
    }
}

/// The reason alone, without the drawing of where.
fn why(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => {
            "it becomes too large, write a shorter one, or several".to_owned()
        }
        error => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        }
    }
}

impl fmt::Debug for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything that the archiver is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The tables' namespace.
    pub namespace: String,
    /// What to archive.
    pub topics: Vec<TopicPattern>,
    /// How often what was read becomes a snapshot.
    pub commit_interval: Duration,
    /// Which records are archived; recorded in the table at its creation.
    pub isolation: Isolation,
    /// What happens where Kafka was faster.
    pub on_gap: OnGap,
    /// A cluster id to accept although a table was written from another.
    pub accept_cluster: Option<String>,
    /// A snapshot of a foreign writer to take as the new ground (`archive --accept`).
    pub accept: Option<i64>,
    /// The consumer group to share the work in; none: this process reads every partition itself.
    pub group: Option<String>,
    /// Bound of the records held in memory, the client's queues included, in bytes.
    pub memory: usize,
    /// How often new topics, new partitions, re-created topics and the log's bounds are looked at.
    pub discovery_interval: Duration,
    /// How long a position may move without rows before that alone makes a commit.
    pub idle_commit_interval: Duration,
    /// End once every partition has reached the end seen at the start.
    pub until_caught_up: bool,
    /// Expiry and clean-up; none: somebody else does it.
    pub maintenance: Option<Maintenance>,
    /// How tables are created.
    pub table: everlog_table::schema::TableSettings,
}

/// What the maintenance task does, and how often.
#[derive(Debug, Clone)]
pub struct Maintenance {
    /// Time between two rounds over all tables.
    pub interval: Duration,
    /// What is kept and what goes.
    pub settings: everlog_table::maintain::MaintenanceSettings,
}

impl Settings {
    /// Defaults for `topics`: what an empty `[archive]` section means.
    pub fn new(namespace: &str, topics: Vec<TopicPattern>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            topics,
            commit_interval: Duration::from_secs(10),
            isolation: Isolation::ReadCommitted,
            on_gap: OnGap::Stop,
            accept_cluster: None,
            accept: None,
            group: None,
            memory: 512 << 20,
            discovery_interval: Duration::from_secs(10),
            idle_commit_interval: Duration::from_secs(300),
            until_caught_up: false,
            maintenance: None,
            table: everlog_table::schema::TableSettings::default(),
        }
    }

    /// Whether `topic` is to be archived.
    pub fn wants(&self, topic: &TopicName) -> bool {
        self.topics.iter().any(|p| p.matches(topic))
    }

    /// The topics given by name.
    pub fn named(&self) -> Vec<TopicName> {
        let mut names: Vec<TopicName> = self
            .topics
            .iter()
            .filter_map(|p| match p {
                TopicPattern::Name(name) => Some(name.clone()),
                TopicPattern::Regex(_) => None,
            })
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether every topic is given by name.
    pub fn only_named(&self) -> bool {
        self.topics
            .iter()
            .all(|p| matches!(p, TopicPattern::Name(_)))
    }

    /// How long offsets may stand still, with something to read, before health fails.
    pub fn patience(&self) -> Duration {
        (self.commit_interval * 6).max(Duration::from_secs(60))
    }

    /// For the start-up log line.
    pub fn describe(&self) -> BTreeMap<&'static str, String> {
        let topics: Vec<&str> = self.topics.iter().map(TopicPattern::as_str).collect();
        BTreeMap::from([
            ("namespace", self.namespace.clone()),
            ("topics", topics.join(", ")),
            (
                "commit_interval_ms",
                self.commit_interval.as_millis().to_string(),
            ),
            ("isolation", self.isolation.as_str().to_owned()),
            ("memory_bytes", self.memory.to_string()),
            (
                "group",
                self.group.clone().unwrap_or_else(|| "none".to_owned()),
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_begins_with_a_caret() {
        let orders = TopicName::new("orders.eu").expect("valid");
        assert!(TopicPattern::parse("orders.eu").unwrap().matches(&orders));
        assert!(!TopicPattern::parse("orders").unwrap().matches(&orders));
        assert!(
            TopicPattern::parse("^orders\\..*")
                .unwrap()
                .matches(&orders)
        );
        assert!(!TopicPattern::parse("^xorders").unwrap().matches(&orders));
        assert!(TopicPattern::parse("or ders").is_err());
        assert!(TopicPattern::parse("^(").is_err());
    }
}
