//! What one seed decides: which faults, in which mixture, for how long.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

/// A connection that a proxy stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// To the object store.
    Store,
    /// To the catalog.
    Catalog,
    /// To a broker, from clients and from the other brokers.
    Broker(u16),
}

/// How a line is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Toxic {
    /// Toxiproxy's word.
    pub kind: &'static str,
    /// Its attributes, as JSON.
    pub attributes: &'static str,
    /// `downstream` (answers) or `upstream` (requests).
    pub stream: &'static str,
}

/// Something that goes wrong, and ends when it is healed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The archiver of this number is stopped (SIGSTOP), and comes back as a zombie.
    FreezeArchiver(usize),
    /// The replay of this number is stopped, and goes on.
    FreezeReplay(usize),
    /// A broker is killed with SIGKILL, and started again.
    KillBroker(u16),
    /// A broker shuts down in order, and is started again.
    StopBroker(u16),
    /// A broker hangs.
    FreezeBroker(u16),
    /// Leaders go back to where they belong.
    Elect,
    /// The catalog answers the next commits so: the query of `catalog.sh fault`.
    Catalog(&'static str),
    /// The object store hangs.
    FreezeStore,
    /// The object store is killed with SIGKILL, and started again.
    KillStore,
    /// The network.
    Network(Line, Toxic),
    /// Kafka deletes this share (in percent) of what is archived.
    Trim(u8),
    /// Kafka deletes what is not archived, while the archivers hang.
    Overtake,
    /// No space is left for the local warehouse and its catalog.
    FillDisk,
}

impl Fault {
    /// The row of the report that it counts in.
    pub fn kind(&self) -> String {
        match self {
            Self::FreezeArchiver(_) => "archiver: SIGSTOP".to_owned(),
            Self::FreezeReplay(_) => "replay: SIGSTOP".to_owned(),
            Self::KillBroker(_) => "broker: kill -9".to_owned(),
            Self::StopBroker(_) => "broker: restart".to_owned(),
            Self::FreezeBroker(_) => "broker: SIGSTOP".to_owned(),
            Self::Elect => "broker: election".to_owned(),
            Self::Catalog(query) => {
                let mode = query.split('&').next().unwrap_or(query);
                format!("catalog: {}", mode.trim_start_matches("mode="))
            }
            Self::FreezeStore => "store: SIGSTOP".to_owned(),
            Self::KillStore => "store: kill -9".to_owned(),
            Self::Network(line, toxic) => {
                let to = match line {
                    Line::Store => "store",
                    Line::Catalog => "catalog",
                    Line::Broker(_) => "broker",
                };
                format!("network to {to}: {}", toxic.kind)
            }
            Self::Trim(_) => "kafka: delete-records behind the archive".to_owned(),
            Self::Overtake => "kafka: delete-records ahead of the archive".to_owned(),
            Self::FillDisk => "disk: full".to_owned(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind())?;
        match self {
            Self::FreezeArchiver(n) | Self::FreezeReplay(n) => write!(f, " #{n}"),
            Self::KillBroker(n) | Self::StopBroker(n) | Self::FreezeBroker(n) => {
                write!(f, " #{n}")
            }
            Self::Catalog(query) => write!(f, " ({query})"),
            Self::Network(line, toxic) => {
                if let Line::Broker(n) = line {
                    write!(f, " #{n}")?;
                }
                write!(f, " {} {}", toxic.attributes, toxic.stream)
            }
            Self::Trim(percent) => write!(f, " {percent} %"),
            _ => Ok(()),
        }
    }
}

/// Faults at the same time, and how long they last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// In the order in which they begin; they end in the opposite order.
    pub faults: Vec<Fault>,
    /// From the last one's beginning to the first one's end.
    pub hold: Duration,
}

/// What there is to be disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets {
    /// Archivers.
    pub archivers: usize,
    /// Replays.
    pub replays: usize,
    /// Brokers.
    pub brokers: u16,
    /// Whether there is a disk of its own that can be filled.
    pub disk: bool,
}

const CATALOG: [&str; 14] = [
    "mode=before&count=2&status=503",
    "mode=before&count=3&status=500",
    "mode=before&count=1&status=504",
    "mode=after&count=1&status=503",
    "mode=after&count=3&status=500",
    "mode=after&count=2&status=502",
    "mode=conflict&count=1",
    "mode=conflict&count=4",
    "mode=drop&count=2",
    "mode=drop-before&count=2",
    "mode=delay&count=2&ms=3000",
    "mode=late&count=2&ms=3000",
    "mode=page&count=2&status=404",
    "mode=page-after&count=2&status=200",
];

const TOXICS: [Toxic; 9] = [
    toxic("latency", r#"{"latency":400,"jitter":300}"#, "downstream"),
    toxic("latency", r#"{"latency":1500}"#, "upstream"),
    toxic("timeout", r#"{"timeout":0}"#, "downstream"),
    toxic("timeout", r#"{"timeout":0}"#, "upstream"),
    toxic("reset_peer", r#"{"timeout":0}"#, "downstream"),
    toxic("reset_peer", r#"{"timeout":30}"#, "upstream"),
    toxic("limit_data", r#"{"bytes":3000}"#, "upstream"),
    toxic("limit_data", r#"{"bytes":200}"#, "downstream"),
    toxic("bandwidth", r#"{"rate":20}"#, "upstream"),
];

const fn toxic(kind: &'static str, attributes: &'static str, stream: &'static str) -> Toxic {
    Toxic {
        kind,
        attributes,
        stream,
    }
}

/// The rounds of one seed, without an end.
#[derive(Debug)]
pub struct Plan {
    chance: StdRng,
    targets: Targets,
}

impl Plan {
    /// For this seed.
    pub fn new(seed: u64, targets: Targets) -> Self {
        Self {
            chance: StdRng::seed_from_u64(seed),
            targets,
        }
    }

    /// The next round: up to three families of faults, one fault of each.
    pub fn round(&mut self) -> Round {
        let rng = &mut self.chance;
        let of = self.targets;
        // deletions come first: they need every broker
        let mut families = vec![
            "archiver", "replay", "broker", "catalog", "store", "network",
        ];
        families.push("delete");
        if of.disk {
            families.push("disk");
        }
        families.shuffle(rng);
        families.truncate(rng.random_range(1..=3));
        families.sort_by_key(|family| *family != "delete");
        // one broker at a time
        let mut lines = vec![Line::Store, Line::Catalog];
        if !families.contains(&"broker") {
            lines.push(Line::Broker(rng.random_range(1..=of.brokers)));
        }
        let mut faults = Vec::new();
        for family in families {
            let node = rng.random_range(1..=of.brokers);
            let fault = match family {
                "archiver" => Fault::FreezeArchiver(rng.random_range(0..of.archivers)),
                "replay" => Fault::FreezeReplay(rng.random_range(0..of.replays)),
                "broker" => match rng.random_range(0..5) {
                    0 | 1 => Fault::KillBroker(node),
                    2 => Fault::StopBroker(node),
                    3 => Fault::FreezeBroker(node),
                    _ => Fault::Elect,
                },
                "catalog" => Fault::Catalog(pick(rng, &CATALOG)),
                "store" => match rng.random_range(0..2) {
                    0 => Fault::FreezeStore,
                    _ => Fault::KillStore,
                },
                "network" => {
                    let line = pick(rng, &lines);
                    Fault::Network(line, pick(rng, &TOXICS))
                }
                "delete" => match rng.random_range(0..3) {
                    0 => Fault::Overtake,
                    _ => Fault::Trim(rng.random_range(20..=100)),
                },
                _ => Fault::FillDisk,
            };
            faults.push(fault);
        }
        let hold = Duration::from_millis(rng.random_range(2_500..8_000));
        Round { faults, hold }
    }
}

fn pick<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
    *of.choose(rng).expect("a list that is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALL: Targets = Targets {
        archivers: 3,
        replays: 4,
        brokers: 3,
        disk: true,
    };

    fn rounds(seed: u64, targets: Targets, count: usize) -> Vec<Round> {
        let mut plan = Plan::new(seed, targets);
        (0..count).map(|_| plan.round()).collect()
    }

    #[test]
    fn a_seed_gives_the_same_rounds_and_another_seed_gives_others() {
        assert_eq!(rounds(7, ALL, 50), rounds(7, ALL, 50));
        assert_ne!(rounds(7, ALL, 50), rounds(8, ALL, 50));
    }

    #[test]
    fn a_round_disturbs_one_broker_at_most_and_deletes_before_it_does() {
        for round in rounds(1, ALL, 500) {
            let broker =
                |f: &Fault| f.kind().starts_with("broker") || f.kind().contains("to broker");
            let deletes = |f: &Fault| f.kind().starts_with("kafka");
            assert!((1..=3).contains(&round.faults.len()));
            assert!(round.faults.iter().filter(|f| broker(f)).count() <= 1);
            assert!(!round.faults.iter().skip(1).any(deletes));
        }
    }

    #[test]
    fn every_kind_of_fault_comes_and_the_disk_only_where_there_is_one() {
        let kinds = |targets| -> BTreeSet<String> {
            let all = rounds(3, targets, 2_000).into_iter();
            all.flat_map(|r| r.faults).map(|f| f.kind()).collect()
        };
        let with = kinds(ALL);
        let without = kinds(Targets { disk: false, ..ALL });
        // 4 of brokers, 2 of processes, 2 of the store, 2 deletions, the disk, 9 of the catalog, 5 on each of 3 lines
        assert_eq!(with.len(), 35, "{with:?}");
        let difference: Vec<_> = with.difference(&without).collect();
        assert_eq!(difference, ["disk: full"]);
    }
}
