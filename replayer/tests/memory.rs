//! What a replay needs of memory, measured on the process: a test binary of its own.

mod support;

use std::sync::Arc;

use everlog_common::Clock;
use everlog_common::clock::{SeededIds, SystemClock};
use everlog_kafka::memory::{MemoryLog, MemoryRecord};
use everlog_replayer::{EventStream, Order, ReplayRequest, Until};
use everlog_table::catalog::memory::MemoryCatalog;
use object_store::local::LocalFileSystem;

use support::{T, WAREHOUSE, World, topic, tp, until};

const MIB: usize = 1 << 20;
const LARGE: usize = 100 * MIB;

/// A figure of /proc/self/status, in bytes.
fn status(key: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|l| l.starts_with(key)).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// From now on the peak is counted anew.
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Bytes that compression does not make small.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[tokio::test]
async fn h20_records_of_100_mb_pass_within_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let store = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
    let ids = Arc::new(SeededIds::new(3));
    let catalog = MemoryCatalog::new(Arc::new(store), WAREHOUSE, Arc::clone(&clock), ids);
    let log = MemoryLog::new(Arc::clone(&clock));
    let mut world = World::new(Arc::clone(&clock), Arc::new(log.clone()), Arc::new(catalog));
    log.create_topic(&topic(T), 3);
    for i in 0..6_u64 {
        let partition = i32::try_from(i % 3).unwrap();
        for n in 0..500 {
            log.append(&tp(T, partition), MemoryRecord::value(noise(200, n + 1)));
        }
        log.append(&tp(T, partition), MemoryRecord::value(noise(LARGE, i + 1)));
        world.commit_all(&topic(T), 10_000).await;
        // the log need not keep it
        let end = 501 * (1 + i64::try_from(i / 3).unwrap());
        log.delete_records(&tp(T, partition), support::o(end));
    }
    world.log = Arc::new(MemoryLog::new(Arc::clone(&clock)));
    drop(log);
    for order in [Order::Partition, Order::Time] {
        let request = ReplayRequest {
            order,
            ..until(Until::Snapshot)
        };
        assert_eq!(request.memory_bytes, 256 * MIB);
        let before = status("VmRSS:");
        reset_peak();
        let (mut rows, mut bytes) = (0, 0);
        let mut stream = EventStream::open(request, world.components())
            .await
            .unwrap();
        while let Some(batch) = stream.next().await.unwrap() {
            rows += batch.columns.len();
            bytes += batch.columns.bytes();
        }
        stream.close().await;
        assert_eq!(rows, 6 * 501);
        assert!(bytes > 6 * LARGE);
        let used = status("VmHWM:").saturating_sub(before);
        // its budget, and one record on its way from file to caller
        let bound = 256 * MIB + LARGE + LARGE / 2;
        assert!(used < bound, "{order:?}: {} MiB", used / MIB);
    }
}
