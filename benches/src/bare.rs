//! Parts by themselves: librdkafka, the parquet crate, the continuity hash.

#![allow(
    unsafe_code,
    reason = "the bare drain calls librdkafka's batch interface directly"
)]

use std::fs::File;
use std::sync::Mutex;

use everlog_common::record::RunningHash;
use everlog_common::{EventColumnsBuilder, Offset as EventOffset, TimestampType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka_sys as sys;

/// Fetches and touches every message of the topic.
pub(crate) fn drain(bootstrap: &str, topic: &str, events: usize) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "drain")
        .set("enable.auto.commit", "false")
        .set("queued.min.messages", "1000000")
        .set("fetch.queue.backoff.ms", "5")
        .create()
        .expect("a consumer");
    let metadata = consumer
        .fetch_metadata(Some(topic), std::time::Duration::from_secs(10))
        .expect("metadata");
    let mut list = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning)
            .expect("an offset");
    }
    consumer.assign(&list).expect("assign");
    let rk = consumer.client().native_ptr();
    let mut batch = vec![std::ptr::null_mut(); 4096];
    let (mut seen, mut bytes) = (0_usize, 0_usize);
    // SAFETY: the queue lives until it is destroyed below, before the consumer; every message is destroyed once.
    unsafe {
        let queue = sys::rd_kafka_queue_get_consumer(rk);
        while seen < events {
            let n = sys::rd_kafka_consume_batch_queue(queue, 100, batch.as_mut_ptr(), batch.len());
            for &message in &batch[..usize::try_from(n).unwrap_or(0)] {
                if (*message).err == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                    seen += 1;
                    bytes += (*message).len + (*message).key_len;
                }
                sys::rd_kafka_message_destroy(message);
            }
        }
        sys::rd_kafka_queue_destroy(queue);
    }
    println!("{seen} events, {bytes} bytes");
}

/// Hashes `events` rows of `value_bytes`, as the archiver does before it commits them: their share of its CPU time.
pub(crate) fn hash(events: usize, value_bytes: usize) {
    const ROWS: usize = 16_384;
    let value = vec![b'v'; value_bytes];
    let mut builder = EventColumnsBuilder::new();
    for n in 0..ROWS {
        let n = i64::try_from(n).expect("a small number");
        builder.push(
            EventOffset::new(n).expect("an offset"),
            (1_760_000_000_000 + n, TimestampType::Create),
            Some(b"user-01234"),
            Some(&value),
            std::iter::empty(),
            Some(0),
        );
    }
    let columns = builder.finish();
    let mut hash = RunningHash::from(0);
    for _ in 0..events.div_ceil(ROWS) {
        hash.update(&columns);
    }
    println!("{:016x}", hash.value());
}

/// Decodes every column of `files` on `threads` threads.
pub(crate) fn decode(threads: usize, files: &[&str]) {
    let left = Mutex::new(files.to_vec());
    let rows = Mutex::new(0_usize);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(path) = left.lock().ok().and_then(|mut l| l.pop()) else {
                        return;
                    };
                    let file = File::open(path).unwrap_or_else(|e| panic!("{path}: {e}"));
                    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
                        .and_then(|b| b.with_batch_size(16_384).build())
                        .unwrap_or_else(|e| panic!("{path}: {e}"));
                    let mut seen = 0;
                    for batch in reader {
                        seen += batch.unwrap_or_else(|e| panic!("{path}: {e}")).num_rows();
                    }
                    if let Ok(mut rows) = rows.lock() {
                        *rows += seen;
                    }
                }
            });
        }
    });
    println!("{} rows", rows.lock().map_or(0, |r| *r));
}
