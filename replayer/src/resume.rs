//! The positions file: where a replay is, so that a run killed at any instant goes on exactly there.
//!
//! ```json
//! {"version":1,"run_id":"…","topic":"orders","output":{"kind":"file","path":"/data/orders.jsonl","length":1234},
//!  "positions":{"0":{"generation":0,"offset":17}},"events":17,
//!  "incarnation":{"generation":0,"cluster_id":"…","topic_id":"…"}}
//! ```
//!
//! - It is written before the first record, so the run id exists before anything that is named after it.
//! - It is replaced as a whole: a temporary file beside it, synced, renamed, and the folder synced. A reader sees the old
//!   or the new one.
//! - It is read strictly: an unknown version, key or value is an error. A replay never goes on from a guess.
//!
//! What it means for each output: with standard output it is written after a flush, so a kill in between repeats records
//! (at least once). With a file it also has the file's length; what lies behind it is cut off before going on (exactly
//! once). With a topic the positions travel in the transactions, and those win over the file's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use everlog_common::{
    Generation, Identity, Offset, Partition, Position, Positions, TopicId, TopicName,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::handoff::Incarnation;
use crate::output::json::Encoding;
use crate::request::{From, Order, ReplayRequest};

const VERSION: u32 = 1;

/// Why a positions file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// It cannot be read or written.
    #[error("positions file {}: {doing}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was to be done.
        doing: &'static str,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// It is not what this everlog writes.
    #[error("positions file {}: {what}; remove it to begin anew", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Another process goes on from it.
    #[error(
        "positions file {}: another replay uses it right now; wait for its end, or give each replay a file of its own", path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It is another replay's.
    #[error(
        "positions file {}: it belongs to {its}, this replay is {ours}; give each replay a file of its own", path.display()
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// What it was written for.
        its: String,
        /// What was asked for now.
        ours: String,
    },
}

impl ResumeError {
    /// The exit status that stands for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Io { .. } | Self::Format { .. } | Self::InUse { .. } => 1,
            Self::Other { .. } => 2,
        }
    }
}

/// What the output needs besides the positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OutputState {
    /// JSON lines on standard output.
    Stdout {},
    /// JSON lines in a file.
    File {
        /// Which.
        path: PathBuf,
        /// Its length at the positions.
        length: u64,
    },
    /// Only counted.
    Count {
        /// Payload bytes (keys, values, headers) so far.
        bytes: u64,
    },
    /// A Kafka topic.
    Topic {
        /// Its name.
        topic: String,
    },
}

impl OutputState {
    /// What it writes to, without how far it is.
    fn target(&self) -> String {
        match self {
            Self::Stdout {} => "jsonl".to_owned(),
            Self::File { path, .. } => format!("jsonl:{}", path.display()),
            Self::Count { .. } => "count".to_owned(),
            Self::Topic { topic } => format!("kafka:{topic}"),
        }
    }
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeState {
    /// Names the run; drawn once, kept over all resumptions.
    pub run_id: Uuid,
    /// The topic.
    pub topic: TopicName,
    /// The snapshot that was being read, so that `--order time` merges the same rows again where it is still there.
    pub snapshot_id: Option<i64>,
    /// Whose log the positions of the newest generation count.
    pub incarnation: Option<Incarnation>,
    /// Where each partition is.
    pub positions: Positions,
    /// Events emitted so far.
    pub events: u64,
    /// What the output needs.
    pub output: OutputState,
    /// What decides which events come in which form; none in files of before it was written.
    pub asked: Option<Asked>,
}

/// The options that a resumed replay must not change: other events, or the same in another form, would be mixed with what
/// was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Where it began.
    pub from: String,
    /// Which partitions; none: all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub partitions: Option<BTreeSet<i32>>,
    /// In which order.
    pub order: String,
    /// How bytes become text.
    pub encoding: String,
}

impl Asked {
    /// Of a request.
    pub fn of(request: &ReplayRequest, encoding: Encoding) -> Self {
        let partitions = request.partitions.as_ref();
        Self {
            from: match request.from {
                From::Beginning => "beginning".to_owned(),
                From::Offset {
                    generation: None,
                    offset,
                } => format!("offset:{offset}"),
                From::Offset {
                    generation: Some(generation),
                    offset,
                } => format!("offset:{generation}:{offset}"),
                From::Timestamp(at) => format!("timestamp:{}", at.0),
            },
            partitions: partitions.map(|all| all.iter().map(|p| p.get()).collect()),
            order: match request.order {
                Order::Partition => "partition",
                Order::Time => "time",
            }
            .to_owned(),
            encoding: match encoding {
                Encoding::Text => "text",
                Encoding::Base64 => "base64",
            }
            .to_owned(),
        }
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            from,
            order,
            encoding,
            ..
        } = self;
        write!(f, "--from {from} --order {order} --encoding {encoding}")?;
        if let Some(partitions) = &self.partitions {
            let all: Vec<String> = partitions.iter().map(i32::to_string).collect();
            write!(f, " --partitions {}", all.join(","))?;
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    run_id: Uuid,
    topic: TopicName,
    output: OutputState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    snapshot_id: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    incarnation: Option<StoredIncarnation>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    asked: Option<Asked>,
    events: u64,
    #[serde(deserialize_with = "unique_positions")]
    positions: BTreeMap<String, Position>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredIncarnation {
    generation: Generation,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    cluster_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    topic_id: Option<TopicId>,
}

/// A map that refuses a key given twice: JSON allows it, and the last would win silently.
fn unique_positions<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Position>, D::Error> {
    struct Unique;
    impl<'de> serde::de::Visitor<'de> for Unique {
        type Value = BTreeMap<String, Position>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("positions by partition")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut access: A,
        ) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = access.next_entry::<String, Position>()? {
                if map.insert(key.clone(), value).is_some() {
                    let what = format!("partition {key} is there twice");
                    return Err(serde::de::Error::custom(what));
                }
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Unique)
}

impl ResumeState {
    /// The stored form.
    pub fn encode(&self) -> String {
        let stored = Stored {
            version: VERSION,
            run_id: self.run_id,
            topic: self.topic.clone(),
            output: self.output.clone(),
            snapshot_id: self.snapshot_id,
            incarnation: self.incarnation.clone().map(|i| StoredIncarnation {
                generation: i.generation,
                cluster_id: i.identity.cluster_id,
                topic_id: i.identity.topic_id,
            }),
            asked: self.asked.clone(),
            events: self.events,
            positions: self
                .positions
                .iter()
                .map(|(p, position)| (p.to_string(), *position))
                .collect(),
        };
        serde_json::to_string(&stored).expect("strings and numbers always serialise")
    }

    /// Reads the stored form.
    pub fn decode(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let broken = |e: serde_json::Error| format!("it is not a whole positions file ({e})");
        let Version { version } = serde_json::from_str(text).map_err(broken)?;
        if version != VERSION {
            return Err(format!(
                "it has version {version}, this everlog reads version {VERSION}"
            ));
        }
        let stored: Stored = serde_json::from_str(text).map_err(broken)?;
        let mut positions = Positions::new();
        for (key, position) in stored.positions {
            let partition = key.parse::<i32>().ok().and_then(|p| Partition::new(p).ok());
            match partition.filter(|p| p.to_string() == key) {
                Some(partition) => positions.insert(partition, position),
                None => return Err(format!("{key:?} is not a partition")),
            };
        }
        Ok(Self {
            run_id: stored.run_id,
            topic: stored.topic,
            snapshot_id: stored.snapshot_id,
            incarnation: stored.incarnation.map(|i| Incarnation {
                generation: i.generation,
                identity: Identity {
                    cluster_id: i.cluster_id,
                    topic_id: i.topic_id,
                },
            }),
            positions,
            events: stored.events,
            output: stored.output,
            asked: stored.asked,
        })
    }
}

/// One positions file.
#[derive(Debug)]
pub struct ResumeFile {
    path: PathBuf,
    /// Held while this process uses it.
    lock: Mutex<Option<File>>,
}

impl ResumeFile {
    /// At `path`; the file need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            lock: Mutex::default(),
        }
    }

    /// Makes sure that no other process goes on from the same file. Ends with this value, or with the process.
    pub fn lock(&self) -> Result<(), ResumeError> {
        let mut name = self.path.file_name().unwrap_or_default().to_os_string();
        name.push(".lock");
        let path = self.path.with_file_name(name);
        let file = File::create(&path).map_err(|e| self.io("cannot be locked", e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ResumeError::InUse {
                    path: self.path.clone(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(self.io("cannot be locked", error)),
        }
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is stored; none where there is no file. It must be of this topic and output.
    pub fn load(
        &self,
        topic: &TopicName,
        output: &OutputState,
        asked: &Asked,
    ) -> Result<Option<ResumeState>, ResumeError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.io("cannot be read", source)),
        };
        let state = ResumeState::decode(&text).map_err(|what| ResumeError::Format {
            path: self.path.clone(),
            what,
        })?;
        let (its, ours) = (state.output.target(), output.target());
        if state.topic != *topic || its != ours {
            return Err(ResumeError::Other {
                path: self.path.clone(),
                its: format!("topic {} with output {its}", state.topic),
                ours: format!("topic {topic} with output {ours}"),
            });
        }
        match &state.asked {
            Some(its) if its != asked => Err(ResumeError::Other {
                path: self.path.clone(),
                its: format!("a replay with {its}"),
                ours: format!("one with {asked}"),
            }),
            _ => Ok(Some(state)),
        }
    }

    /// Replaces what is stored. When it returns, the new state survives a power cut.
    pub fn save(&self, state: &ResumeState) -> Result<(), ResumeError> {
        let mut text = state.encode();
        text.push('\n');
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let mut name = self.path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let temporary = folder.join(name);
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(|e| self.io("cannot be written", e))?;
        std::fs::rename(&temporary, &self.path).map_err(|e| self.io("cannot be replaced", e))?;
        let sync = File::open(&folder).and_then(|f| f.sync_all());
        sync.map_err(|e| self.io("its folder cannot be synced", e))
    }

    fn io(&self, doing: &'static str, source: std::io::Error) -> ResumeError {
        ResumeError::Io {
            path: self.path.clone(),
            doing,
            source,
        }
    }
}

/// A partition's position as text: `generation:offset`. What travels in a topic's transactions.
pub(crate) fn parse_position(text: &str) -> Option<Position> {
    let (generation, offset) = text.split_once(':')?;
    let generation = Generation(generation.parse().ok()?);
    let offset = Offset::new(offset.parse().ok()?).ok()?;
    let position = Position { generation, offset };
    (position.to_string() == text).then_some(position)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn any_text_is_a_positions_file_that_is_written_the_same_again_or_refused() {
        let whole = r#"{"version":1,"run_id":"0b7f3a3e-5d0c-4c5e-9b6e-0123456789ab","topic":"orders","output":{"kind":"file",
            "path":"/data/orders.jsonl","length":1234},"positions":{"0":{"generation":0,"offset":17},"3":{"generation":1,
            "offset":5}},"events":17,"snapshot_id":7,"incarnation":{"generation":0,"cluster_id":"c","topic_id":
            "0b7f3a3e-5d0c-4c5e-9b6e-0123456789ab"},"asked":{"from":"beginning","order":"time","encoding":"text"}}"#;
        ResumeState::decode(whole).unwrap();
        everlog_hostile::feed_text("positions file", &[whole], |text| {
            if let Ok(state) = ResumeState::decode(text) {
                assert_eq!(ResumeState::decode(&state.encode()).as_ref(), Ok(&state));
            }
        });
        everlog_hostile::feed_text(
            "position",
            &["0:17", "4294967295:9223372036854775807"],
            |text| {
                if let Some(position) = parse_position(text) {
                    assert_eq!(position.to_string(), text);
                }
            },
        );
    }

    fn output() -> impl Strategy<Value = OutputState> {
        prop_oneof![
            Just(OutputState::Stdout {}),
            (".{1,20}", any::<u64>()).prop_map(|(path, length)| OutputState::File {
                path: path.into(),
                length
            }),
            any::<u64>().prop_map(|bytes| OutputState::Count { bytes }),
            "[a-z]{1,9}".prop_map(|topic| OutputState::Topic { topic }),
        ]
    }

    fn asked() -> impl Strategy<Value = Asked> {
        let partitions = prop::option::of(prop::collection::btree_set(0..i32::MAX, 1..5));
        (".{0,9}", partitions, any::<bool>()).prop_map(|(from, partitions, flag)| Asked {
            from,
            partitions,
            order: if flag { "time" } else { "partition" }.to_owned(),
            encoding: if flag { "text" } else { "base64" }.to_owned(),
        })
    }

    fn state() -> impl Strategy<Value = ResumeState> {
        let positions = prop::collection::btree_map(0..i32::MAX, (any::<u32>(), 0..i64::MAX), 0..9);
        let incarnation = (
            any::<u32>(),
            prop::option::of(".{0,9}"),
            prop::option::of(any::<u128>()),
        );
        (
            any::<u128>(),
            "[a-z.]{3,9}",
            prop::option::of(any::<i64>()),
            positions,
            any::<u64>(),
            output(),
            prop::option::of(incarnation),
            prop::option::of(asked()),
        )
            .prop_map(
                |(id, topic, snapshot_id, positions, events, output, incarnation, asked)| {
                    ResumeState {
                        asked,
                        run_id: Uuid::from_u128(id),
                        topic: TopicName::new(&format!("t{topic}")).unwrap(),
                        snapshot_id,
                        incarnation: incarnation.map(|(g, cluster_id, id)| Incarnation {
                            generation: Generation(g),
                            identity: Identity {
                                cluster_id,
                                topic_id: id.map(|id| TopicId(Uuid::from_u128(id))),
                            },
                        }),
                        positions: positions
                            .into_iter()
                            .map(|(p, (g, o))| {
                                let offset = Offset::new(o).unwrap();
                                (
                                    Partition::new(p).unwrap(),
                                    Position {
                                        generation: Generation(g),
                                        offset,
                                    },
                                )
                            })
                            .collect(),
                        events,
                        output,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(state in state()) {
            prop_assert_eq!(ResumeState::decode(&state.encode()), Ok(state));
        }

        /// A file cut anywhere (a torn write that the rename should have prevented) is never read as another state.
        #[test]
        fn a_torn_file_is_an_error(state in state(), at in any::<prop::sample::Index>()) {
            let text = state.encode();
            let cut = at.index(text.len());
            prop_assume!(text.is_char_boundary(cut));
            prop_assert!(ResumeState::decode(&text[..cut]).is_err());
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = (ResumeState::decode(&text), parse_position(&text));
        }

        #[test]
        fn positions_travel_as_text(generation in any::<u32>(), offset in 0..i64::MAX) {
            let position = Position { generation: Generation(generation), offset: Offset::new(offset).unwrap() };
            prop_assert_eq!(parse_position(&position.to_string()), Some(position));
        }
    }

    #[test]
    fn what_this_version_does_not_know_is_refused() {
        let good = r#"{"version":1,"run_id":"00000000-0000-0000-0000-000000000001","topic":"t","output":{"kind":"stdout"},"events":0,"positions":{"0":{"generation":0,"offset":5}}}"#;
        assert!(ResumeState::decode(good).is_ok());
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"events\":0", "\"events\":0,\"more\":1"),
            ("\"events\":0", "\"events\":-1"),
            ("\"events\":0", "\"events\":0,\"incarnation\":{}"),
            (
                "\"events\":0",
                "\"events\":0,\"incarnation\":{\"generation\":0,\"id\":1}",
            ),
            ("\"offset\":5", "\"offset\":-5"),
            ("\"0\":{", "\"-1\":{"),
            ("\"0\":{", "\"00\":{"),
            ("\"kind\":\"stdout\"", "\"kind\":\"pipe\""),
            ("}}}", "},\"0\":{\"generation\":0,\"offset\":6}}}"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(ResumeState::decode(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_another_topic_or_output_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = ResumeFile::new(folder.path().join("positions.json"));
        let topic = TopicName::new("orders").unwrap();
        let stdout = OutputState::Stdout {};
        let request = ReplayRequest::new(topic.clone());
        let asked = Asked::of(&request, Encoding::Text);
        assert_eq!(file.load(&topic, &stdout, &asked).unwrap(), None);
        let state = ResumeState {
            run_id: Uuid::from_u128(7),
            topic: topic.clone(),
            snapshot_id: None,
            incarnation: None,
            positions: Positions::new(),
            events: 0,
            output: stdout.clone(),
            asked: Some(asked.clone()),
        };
        file.save(&state).unwrap();
        file.save(&state).unwrap();
        assert_eq!(file.load(&topic, &stdout, &asked).unwrap(), Some(state));
        let other = TopicName::new("payments").unwrap();
        assert!(matches!(
            file.load(&other, &stdout, &asked),
            Err(ResumeError::Other { .. })
        ));
        let count = OutputState::Count { bytes: 0 };
        assert!(matches!(
            file.load(&topic, &count, &asked),
            Err(ResumeError::Other { .. })
        ));
        // Another part of the topic, another order or form would be mixed with what is there.
        let mut part = request.clone();
        part.partitions = Some([Partition::new(1).unwrap()].into());
        let mut by_time = request.clone();
        by_time.order = Order::Time;
        let mut later = request.clone();
        later.from = From::Timestamp(everlog_common::Millis(5));
        for other in [
            Asked::of(&part, Encoding::Text),
            Asked::of(&by_time, Encoding::Text),
            Asked::of(&later, Encoding::Text),
            Asked::of(&request, Encoding::Base64),
        ] {
            let refused = file.load(&topic, &stdout, &other).unwrap_err();
            assert!(matches!(refused, ResumeError::Other { .. }), "{refused}");
            assert_eq!(refused.exit_status(), 2);
        }
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays");
    }

    #[test]
    fn two_replays_do_not_go_on_from_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions.json");
        let (one, two) = (ResumeFile::new(&path), ResumeFile::new(&path));
        one.lock().unwrap();
        assert!(matches!(two.lock(), Err(ResumeError::InUse { .. })));
        drop(one);
        two.lock().unwrap();
    }
}
