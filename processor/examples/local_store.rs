//! What docs/adr/0007 measured: what a job's local state costs in fjall and in redb, with a state of ten times the memory that the store is given.
//!
//! ```text
//! cargo run --release -p everlog-processor --example local_store -- fjall|redb FOLDER [--memory-mib 64] [--times 10] [--epochs 60] [--updates 50000]
//! ```
//!
//! One process measures one store, since memory is measured by the process. The workload is a job of sessions: a key of 26
//! bytes (shard, user, start), a value of 120 bytes, and a timer per session in an ordered space of its own.
//!
//! 1. load: as many sessions as fill `times` the memory, users in random order, an atomic batch per 50,000.
//! 2. epochs: per epoch `updates` sessions of random users are read in chunks of 4,096 (sorted keys), changed, and their timers
//!    moved; the 2,000 oldest timers are scanned in pages of 500 and their sessions replaced; one atomic batch without a
//!    sync. Every tenth epoch is synced.
//! 3. a snapshot is scanned as for a base image.
//! 4. the store is opened again by a new process: `reopen` as the first word.

#![allow(
    clippy::print_stdout,
    clippy::exit,
    reason = "a program to be read on a terminal"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

type Error = Box<dyn std::error::Error>;
type Change = (usize, Vec<u8>, Option<Vec<u8>>);

const VALUE_BYTES: usize = 120;
const KEY_BYTES: usize = 26;
const CHUNK: usize = 4_096;
const FIRED: usize = 2_000;
const PAGE: usize = 500;
const WINDOWS: usize = 0;
const TIMERS: usize = 1;

trait Store {
    fn get(
        &self,
        space: usize,
        keys: &[Vec<u8>],
        out: &mut Vec<Option<Vec<u8>>>,
    ) -> Result<(), Error>;
    fn range(&self, space: usize, from: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, Error>;
    fn apply(&self, changes: Vec<Change>, sync: bool) -> Result<(), Error>;
    /// Rows and bytes of a consistent scan of everything.
    fn scan(&self) -> Result<(u64, u64), Error>;
}

struct Fjall {
    db: fjall::Database,
    spaces: Vec<fjall::Keyspace>,
}

impl Fjall {
    fn open(folder: &Path, memory: u64) -> Result<Self, Error> {
        use fjall::config::{CompressionPolicy, PartitioningPolicy, PinningPolicy};
        let db = fjall::Database::builder(folder)
            .cache_size(memory / 2)
            .max_journaling_size((memory * 2).max(64 << 20))
            .worker_threads(2)
            .open()?;
        let options = || {
            fjall::KeyspaceCreateOptions::default()
                .max_memtable_size((memory / 24).max(1 << 20))
                .data_block_compression_policy(CompressionPolicy::disabled())
                .expect_point_read_hits(true)
                .index_block_pinning_policy(PinningPolicy::all(false))
                .filter_block_pinning_policy(PinningPolicy::all(false))
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
                .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        };
        let spaces = ["windows", "timers"]
            .into_iter()
            .map(|name| db.keyspace(name, options))
            .collect::<Result<_, _>>()?;
        Ok(Self { db, spaces })
    }
}

impl Store for Fjall {
    fn get(
        &self,
        space: usize,
        keys: &[Vec<u8>],
        out: &mut Vec<Option<Vec<u8>>>,
    ) -> Result<(), Error> {
        for key in keys {
            out.push(self.spaces[space].get(key)?.map(|v| v.to_vec()));
        }
        Ok(())
    }

    fn range(&self, space: usize, from: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, Error> {
        let range = self.spaces[space].range(from..);
        range
            .take(limit)
            .map(|guard| Ok(guard.key()?.to_vec()))
            .collect()
    }

    fn apply(&self, changes: Vec<Change>, sync: bool) -> Result<(), Error> {
        // Changes are whole values, so that applying an epoch twice does no harm: it need not be one batch.
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let mut batch = self.db.batch();
            for (space, key, value) in changes.by_ref().take(2_048) {
                match value {
                    Some(value) => batch.insert(&self.spaces[space], key, value),
                    None => batch.remove(&self.spaces[space], key),
                }
            }
            batch.commit()?;
            // The store itself would let four of them wait, per space.
            while self.spaces.iter().any(|s| s.sealed_memtable_count() > 1) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if sync {
            self.db.persist(fjall::PersistMode::SyncAll)?;
        }
        Ok(())
    }

    fn scan(&self) -> Result<(u64, u64), Error> {
        use fjall::Readable as _;
        let snapshot = self.db.snapshot();
        let (mut rows, mut bytes) = (0, 0);
        for space in &self.spaces {
            for guard in snapshot.iter(space) {
                let (key, value) = guard.into_inner()?;
                rows += 1;
                bytes += (key.len() + value.len()) as u64;
            }
        }
        Ok((rows, bytes))
    }
}

const TABLES: [redb::TableDefinition<'static, &[u8], &[u8]>; 2] = [
    redb::TableDefinition::new("windows"),
    redb::TableDefinition::new("timers"),
];

struct Redb {
    db: redb::Database,
}

impl Redb {
    fn open(folder: &Path, memory: u64) -> Result<Self, Error> {
        std::fs::create_dir_all(folder)?;
        let db = redb::Builder::new()
            .set_cache_size(usize::try_from(memory * 3 / 4)?)
            .create(folder.join("state.redb"))?;
        let txn = db.begin_write()?;
        for table in TABLES {
            txn.open_table(table)?;
        }
        txn.commit()?;
        Ok(Self { db })
    }
}

impl Store for Redb {
    fn get(
        &self,
        space: usize,
        keys: &[Vec<u8>],
        out: &mut Vec<Option<Vec<u8>>>,
    ) -> Result<(), Error> {
        use redb::ReadableDatabase as _;
        let txn = self.db.begin_read()?;
        let table = txn.open_table(TABLES[space])?;
        for key in keys {
            out.push(table.get(key.as_slice())?.map(|v| v.value().to_vec()));
        }
        Ok(())
    }

    fn range(&self, space: usize, from: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, Error> {
        use redb::ReadableDatabase as _;
        let txn = self.db.begin_read()?;
        let table = txn.open_table(TABLES[space])?;
        let range = table.range::<&[u8]>(from..)?;
        range
            .take(limit)
            .map(|entry| Ok(entry?.0.value().to_vec()))
            .collect()
    }

    fn apply(&self, changes: Vec<Change>, sync: bool) -> Result<(), Error> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(if sync {
            redb::Durability::Immediate
        } else {
            redb::Durability::None
        })?;
        {
            let mut tables = [txn.open_table(TABLES[0])?, txn.open_table(TABLES[1])?];
            for (space, key, value) in changes {
                match value {
                    Some(value) => drop(tables[space].insert(key.as_slice(), value.as_slice())?),
                    None => drop(tables[space].remove(key.as_slice())?),
                }
            }
        }
        txn.commit()?;
        Ok(())
    }

    fn scan(&self) -> Result<(u64, u64), Error> {
        use redb::{ReadableDatabase as _, ReadableTable as _};
        let txn = self.db.begin_read()?;
        let (mut rows, mut bytes) = (0, 0);
        for table in TABLES {
            for entry in txn.open_table(table)?.iter()? {
                let (key, value) = entry?;
                rows += 1;
                bytes += (key.value().len() + value.value().len()) as u64;
            }
        }
        Ok((rows, bytes))
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn key(user: u64) -> Vec<u8> {
    let hash = mix(user ^ 0x5eed);
    let mut key = Vec::with_capacity(KEY_BYTES);
    key.extend_from_slice(&u16::try_from(hash % 128).unwrap_or(0).to_be_bytes());
    key.extend_from_slice(&hash.to_be_bytes());
    key.extend_from_slice(&user.to_be_bytes());
    key.extend_from_slice(&0u64.to_be_bytes());
    key
}

fn timer(at: u64, key: &[u8]) -> Vec<u8> {
    let mut timer = at.to_be_bytes().to_vec();
    timer.extend_from_slice(&key[..18]);
    timer
}

/// The time, then bytes that do not compress well.
fn value(at: u64, random: &mut Random) -> Vec<u8> {
    let mut value = at.to_be_bytes().to_vec();
    while value.len() < VALUE_BYTES / 2 {
        value.extend_from_slice(&random.next().to_be_bytes());
    }
    value.resize(VALUE_BYTES, 7);
    value
}

fn at_of(value: &[u8]) -> u64 {
    value
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name))
        .unwrap_or_default();
    line.trim_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap_or(0)
}

fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("wchar: "))
        .unwrap_or_default();
    line.parse().unwrap_or(0)
}

fn disk(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| match e.metadata() {
            Ok(m) if m.is_dir() => disk(&e.path()),
            Ok(m) => {
                use std::os::unix::fs::MetadataExt as _;
                m.blocks() * 512
            }
            Err(_) => 0,
        })
        .sum()
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

#[allow(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "a rate to be read"
)]
fn per_second(count: u64, time: Duration) -> u64 {
    (count as f64 / time.as_secs_f64().max(1e-9)) as u64
}

struct Asked {
    store: String,
    folder: PathBuf,
    reopen: bool,
    memory: u64,
    times: u64,
    epochs: u64,
    updates: u64,
}

fn asked() -> Result<Asked, Error> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let reopen = args.first().is_some_and(|a| a == "reopen");
    if reopen {
        args.remove(0);
    }
    let mut named = BTreeMap::new();
    let mut words = Vec::new();
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        match arg.strip_prefix("--") {
            Some(name) => {
                named.insert(
                    name.to_owned(),
                    rest.next().ok_or("a value is missing")?.parse::<u64>()?,
                );
            }
            None => words.push(arg),
        }
    }
    let [store, folder] = words.try_into().map_err(|_| "usage: local_store [reopen] fjall|redb FOLDER [--memory-mib N] [--times N] [--epochs N] [--updates N]")?;
    let named = |name: &str, default| named.get(name).copied().unwrap_or(default);
    Ok(Asked {
        store,
        folder: folder.into(),
        reopen,
        memory: named("memory-mib", 64) << 20,
        times: named("times", 10),
        epochs: named("epochs", 60),
        updates: named("updates", 50_000),
    })
}

fn open(asked: &Asked) -> Result<Box<dyn Store>, Error> {
    match asked.store.as_str() {
        "fjall" => Ok(Box::new(Fjall::open(&asked.folder, asked.memory)?)),
        "redb" => Ok(Box::new(Redb::open(&asked.folder, asked.memory)?)),
        other => Err(format!("{other} is neither fjall nor redb").into()),
    }
}

fn main() -> Result<(), Error> {
    let asked = asked()?;
    let base = status("VmRSS:");
    let began = Instant::now();
    let store = open(&asked)?;
    if asked.reopen {
        let mut out = Vec::new();
        store.get(WINDOWS, &[key(1)], &mut out)?;
        println!(
            "{}: opened again and read in {:?}, {} MiB resident",
            asked.store,
            began.elapsed(),
            (status("VmRSS:") - base) / 1024
        );
        return Ok(());
    }
    let per_session = (2 * KEY_BYTES + VALUE_BYTES) as u64;
    let users = asked.memory * asked.times / per_session;
    println!(
        "{}: {} MiB given, {users} sessions = {} MiB of keys and values",
        asked.store,
        mib(asked.memory),
        mib(users * per_session)
    );

    let mut random = Random(7);
    let began = Instant::now();
    // A permutation of the users: an odd factor modulo a power of two, skipping what is too large.
    let bits = users.next_power_of_two();
    let mut changes = Vec::new();
    for n in 0..bits {
        let user = (n.wrapping_mul(0x9e37_79b1) ^ 0x55) & (bits - 1);
        if user >= users {
            continue;
        }
        let key = key(user);
        let at = 1_000_000 + random.next() % 1_000_000;
        changes.push((TIMERS, timer(at, &key), Some(Vec::new())));
        changes.push((WINDOWS, key, Some(value(at, &mut random))));
        if changes.len() >= 100_000 {
            store.apply(std::mem::take(&mut changes), false)?;
        }
    }
    store.apply(std::mem::take(&mut changes), true)?;
    println!(
        "  load: {:?}, {} sessions/s, peak {} MiB, disk {} MiB, written {} MiB",
        began.elapsed(),
        per_second(users, began.elapsed()),
        (status("VmHWM:") - base) / 1024,
        mib(disk(&asked.folder)),
        mib(written())
    );

    let before = written();
    let (mut reading, mut scanning, mut applying, mut syncing) = (
        Duration::ZERO,
        Duration::ZERO,
        Duration::ZERO,
        Duration::ZERO,
    );
    let (mut reads, mut scanned, mut applied, mut slowest) = (0u64, 0u64, 0u64, Duration::ZERO);
    let all = Instant::now();
    for epoch in 1..=asked.epochs {
        // The dirty map of an epoch: the last change of a key counts.
        let mut dirty: BTreeMap<(usize, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
        let mut left = asked.updates;
        while left > 0 {
            let take = left.min(CHUNK as u64);
            left -= take;
            let mut keys: Vec<Vec<u8>> = (0..take).map(|_| key(random.next() % users)).collect();
            keys.sort_unstable();
            keys.dedup();
            let began = Instant::now();
            let mut found = Vec::with_capacity(keys.len());
            store.get(WINDOWS, &keys, &mut found)?;
            reading += began.elapsed();
            reads += keys.len() as u64;
            for (key, stored) in keys.into_iter().zip(found) {
                let known = dirty.get(&(WINDOWS, key.clone())).cloned().flatten();
                let old = known.or(stored).map_or(0, |v| at_of(&v));
                let at = 1_000_000 * (epoch + 1) + random.next() % 1_000_000;
                if old > 0 {
                    dirty.insert((TIMERS, timer(old, &key)), None);
                }
                dirty.insert((TIMERS, timer(at, &key)), Some(Vec::new()));
                dirty.insert((WINDOWS, key), Some(value(at, &mut random)));
            }
        }
        let began = Instant::now();
        let mut from = Vec::new();
        let mut due = Vec::new();
        while due.len() < FIRED {
            let page = store.range(TIMERS, &from, PAGE)?;
            let Some(last) = page.last() else { break };
            from = [last.as_slice(), &[0]].concat();
            due.extend(page);
        }
        scanning += began.elapsed();
        scanned += due.len() as u64;
        for timer_key in due {
            let mut session = timer_key[8..].to_vec();
            session.extend_from_slice(&0u64.to_be_bytes());
            let at = 1_000_000 * (epoch + 2) + random.next() % 1_000_000;
            dirty.insert((TIMERS, timer_key), None);
            if !dirty.contains_key(&(WINDOWS, session.clone())) {
                dirty.insert((TIMERS, timer(at, &session)), Some(Vec::new()));
                dirty.insert((WINDOWS, session), Some(value(at, &mut random)));
            }
        }
        let changes: Vec<Change> = dirty
            .into_iter()
            .map(|((space, key), value)| (space, key, value))
            .collect();
        applied += changes.len() as u64;
        let sync = epoch % 10 == 0;
        let began = Instant::now();
        store.apply(changes, sync)?;
        let took = began.elapsed();
        slowest = slowest.max(took);
        if sync {
            syncing += took;
        } else {
            applying += took;
        }
    }
    println!(
        "  epochs: {:?}; reads {}/s, timers scanned {}/s, changes applied {}/s (slowest batch {slowest:?}, synced ones {syncing:?} in all)",
        all.elapsed(),
        per_second(reads, reading),
        per_second(scanned, scanning),
        per_second(applied, applying + syncing)
    );
    println!(
        "  sessions updated {}/s of store time; peak {} MiB, now {} MiB; disk {} MiB; written {} MiB, {:.1} times the changes",
        per_second(reads, reading + scanning + applying + syncing),
        (status("VmHWM:") - base) / 1024,
        (status("VmRSS:") - base) / 1024,
        mib(disk(&asked.folder)),
        mib(written() - before),
        (written() - before) as f64 / (applied * per_session / 3) as f64
    );
    let began = Instant::now();
    let (rows, bytes) = store.scan()?;
    println!(
        "  scan of all: {:?}, {rows} rows, {} MiB, {} MiB/s; peak {} MiB",
        began.elapsed(),
        mib(bytes),
        mib(per_second(bytes, began.elapsed())),
        (status("VmHWM:") - base) / 1024
    );
    // As a kill would: nothing is closed.
    std::process::exit(0);
}
