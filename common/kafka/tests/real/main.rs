//! The Kafka client on real brokers. All tests here share one broker; those that disturb it start their own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail their test"
)]

mod brokerless;
mod cluster;
mod disturbed;
mod groups;
mod mock;
mod records;
mod support;

use support::Real;

everlog_kafka::conformance_tests!(Real::new());

/// Readers alone that are librdkafka's: what it alone can do is read by it.
mod librdkafka {
    use super::Real;

    everlog_kafka::conformance_tests!(Real::of_librdkafka() =>
        rows_come_once_and_in_order
        reading_starts_exactly_where_assigned
        every_part_of_a_record_comes_as_it_was_written
        h03_control_records_at_the_end_move_the_position
        h04_aborted_records_are_offsets_without_rows
        h05_an_open_transaction_holds_the_end_back
        h09_an_empty_partition_has_an_end
        resume_at_the_end_skips_nothing
        a_position_outside_of_the_log_is_a_fault_and_can_be_mended
        h10_an_epoch_that_the_log_does_not_know_is_a_truncation
        unassigned_partitions_are_silent
        nothing_of_an_unassigned_partition_is_handed_out_any_more
        assigning_again_moves_a_partition
    );
}
