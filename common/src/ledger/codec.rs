//! The ledger's stored form (docs/table-format.md, *Ledger*): JSON whose bulky part, the partitions, is packed.
//!
//! `{"v":1,"generations":[{"generation":0,"cluster_id":…,"topic_id":…,"partitions":"<base64>"}],"gaps":[…]}`
//!
//! The packed bytes hold, per partition in ascending order, LEB128 varints of
//! `partition − previous − 1` (the first: `partition`), `first`, `next − first`, `(next − first) − rows`,
//! `leader_epoch + 1`, and then the running hash as 8 bytes, little endian. About 16 bytes a partition.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Entry, Gap, GenerationLedger, Identity, Ledger};
use crate::position::{Generation, Offset, Partition};

/// The version that this code writes.
const VERSION: u32 = 1;

/// Why a stored ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerFormatError {
    /// Not the JSON that it should be.
    #[error("the ledger is not valid JSON of its format")]
    Json(#[source] serde_json::Error),
    /// Written by a newer everlog.
    #[error("the ledger has version {0}, this everlog reads version 1: update everlog")]
    Version(u32),
    /// The packed part is broken.
    #[error("the ledger's packed partitions of generation {generation} are broken: {what}")]
    Packed {
        /// Which era.
        generation: Generation,
        /// What is wrong.
        what: &'static str,
    },
    /// A rule of [`super::Ledger`] does not hold.
    #[error("the ledger contradicts itself: {0}")]
    Invalid(String),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    generations: Vec<StoredGeneration>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gaps: Vec<Gap>,
}

#[derive(Serialize, Deserialize)]
struct StoredGeneration {
    generation: Generation,
    #[serde(flatten)]
    identity: Identity,
    partitions: String,
}

impl Ledger {
    /// The stored form.
    pub fn encode(&self) -> String {
        let stored = Stored {
            v: VERSION,
            generations: self
                .generations
                .iter()
                .map(|(number, g)| StoredGeneration {
                    generation: *number,
                    identity: g.identity.clone(),
                    partitions: STANDARD_NO_PAD.encode(pack(&g.partitions)),
                })
                .collect(),
            gaps: self.gaps.clone(),
        };
        serde_json::to_string(&stored).expect("strings, numbers and lists always serialise")
    }

    /// Reads the stored form and checks its rules.
    pub fn decode(text: &str) -> Result<Self, LedgerFormatError> {
        #[derive(Deserialize)]
        struct Version {
            v: u32,
        }
        let Version { v } = serde_json::from_str(text).map_err(LedgerFormatError::Json)?;
        if v != VERSION {
            return Err(LedgerFormatError::Version(v));
        }
        let stored: Stored = serde_json::from_str(text).map_err(LedgerFormatError::Json)?;
        let mut ledger = Self {
            generations: BTreeMap::new(),
            gaps: stored.gaps,
        };
        for (i, g) in stored.generations.into_iter().enumerate() {
            if u32::try_from(i).ok() != Some(g.generation.0) {
                return Err(LedgerFormatError::Invalid(format!(
                    "generation {} at place {i}",
                    g.generation
                )));
            }
            let packed =
                STANDARD_NO_PAD
                    .decode(&g.partitions)
                    .map_err(|_| LedgerFormatError::Packed {
                        generation: g.generation,
                        what: "not base64",
                    })?;
            let partitions = unpack(&packed).map_err(|what| LedgerFormatError::Packed {
                generation: g.generation,
                what,
            })?;
            ledger.generations.insert(
                g.generation,
                GenerationLedger {
                    identity: g.identity,
                    partitions,
                },
            );
        }
        // so that nobody who adds them up has to fear an overflow
        let rows = ledger
            .generations
            .values()
            .flat_map(|g| g.partitions.values())
            .try_fold(0_u64, |sum, entry| sum.checked_add(entry.rows));
        if rows.is_none_or(|rows| i64::try_from(rows).is_err()) {
            let what = "it counts more rows than there can be".to_owned();
            return Err(LedgerFormatError::Invalid(what));
        }
        if let Some(gap) = ledger
            .gaps
            .iter()
            .find(|g| g.end.is_some_and(|end| end <= g.start))
        {
            return Err(LedgerFormatError::Invalid(format!("empty gap {gap}")));
        }
        Ok(ledger)
    }
}

fn pack(partitions: &BTreeMap<Partition, Entry>) -> Vec<u8> {
    let mut out = Vec::with_capacity(partitions.len() * 18);
    let mut previous = -1_i64;
    for (partition, e) in partitions {
        let number = i64::from(partition.get());
        put_varint(&mut out, (number - previous - 1).unsigned_abs());
        previous = number;
        let covered = e.next.since(e.first);
        put_varint(&mut out, e.first.get().unsigned_abs());
        put_varint(&mut out, covered);
        put_varint(&mut out, covered.saturating_sub(e.rows));
        let epoch = e
            .leader_epoch
            .map_or(0, |epoch| i64::from(epoch.max(0)) + 1);
        put_varint(&mut out, epoch.unsigned_abs());
        out.extend_from_slice(&e.hash.to_le_bytes());
    }
    out
}

fn unpack(mut bytes: &[u8]) -> Result<BTreeMap<Partition, Entry>, &'static str> {
    let mut partitions = BTreeMap::new();
    let mut previous = -1_i64;
    while !bytes.is_empty() {
        let step = i64::try_from(take_varint(&mut bytes)?).map_err(|_| "partition out of range")?;
        let number = previous.checked_add(1).and_then(|p| p.checked_add(step));
        let number = number.ok_or("partition out of range")?;
        previous = number;
        let partition = i32::try_from(number)
            .ok()
            .and_then(|p| Partition::new(p).ok())
            .ok_or("partition out of range")?;
        let offset = |v: u64| {
            i64::try_from(v)
                .ok()
                .and_then(|v| Offset::new(v).ok())
                .ok_or("offset out of range")
        };
        let first = take_varint(&mut bytes)?;
        let covered = take_varint(&mut bytes)?;
        let holes = take_varint(&mut bytes)?;
        let epoch = take_varint(&mut bytes)?;
        let (hash, rest) = bytes
            .split_first_chunk::<8>()
            .ok_or("ends inside an entry")?;
        bytes = rest;
        let entry = Entry {
            first: offset(first)?,
            next: offset(first.checked_add(covered).ok_or("offset out of range")?)?,
            leader_epoch: match epoch {
                0 => None,
                e => Some(i32::try_from(e - 1).map_err(|_| "leader epoch out of range")?),
            },
            rows: covered
                .checked_sub(holes)
                .ok_or("more holes than offsets")?,
            hash: u64::from_le_bytes(*hash),
        };
        partitions.insert(partition, entry);
    }
    Ok(partitions)
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v.to_le_bytes()[0] | 0x80);
        v >>= 7;
    }
    out.push(v.to_le_bytes()[0]);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("ends inside a number")?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err("a number is too large");
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is too long")
}
