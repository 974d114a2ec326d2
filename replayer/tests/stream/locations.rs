//! What a manifest names outside of the table's folder is not read: neither replayed nor verified.

use everlog_replayer::verify::{Depth, VerifyRequest, verify};
use everlog_replayer::{Until, one_line};
use iceberg::spec::{DataFileBuilder, Operation};

use crate::support::{NAMESPACE, Produced, T, WAREHOUSE, World, topic, until};

#[tokio::test(start_paused = true)]
async fn a_data_file_outside_of_the_tables_folder_is_refused_by_its_name() {
    for place in [
        format!("{WAREHOUSE}/{NAMESPACE}/{T}2/data/stolen.parquet"),
        format!("{WAREHOUSE}/stolen.parquet"),
        "memory:///other/stolen.parquet".to_owned(),
        format!("{WAREHOUSE}/{NAMESPACE}/{T}/data/../../stolen.parquet"),
        format!("{WAREHOUSE}/{NAMESPACE}/{T}/data/%2e%2e/%2E%2E/stolen.parquet"),
        format!("{WAREHOUSE}/{NAMESPACE}/{T}/data/..%2f..%2fstolen.parquet"),
    ] {
        let (world, log, _) = World::in_memory();
        log.create_topic(&topic(T), 1);
        Produced::default().produce(&log, &topic(T), 0, 10);
        world.commit_all(&topic(T), 5).await;
        let mut files = world.data_files(&topic(T)).await;
        // a sound file of the right rows: nothing but its place is wrong
        let table = world.archive(&topic(T)).await.state().await.unwrap().table;
        let everywhere = world.catalog.storage_for(&table).unwrap();
        let bytes = everywhere.get(files[1].file_path()).await.unwrap();
        // some of these names no store takes; the file is not what is looked for then
        let _ = everywhere.put(&place, bytes).await;
        let mut moved = DataFileBuilder::default();
        moved
            .content(files[1].content_type())
            .file_path(place.clone())
            .file_format(files[1].file_format())
            .partition(files[1].partition().clone())
            .partition_spec_id(0)
            .record_count(files[1].record_count())
            .file_size_in_bytes(files[1].file_size_in_bytes())
            .lower_bounds(files[1].lower_bounds().clone())
            .upper_bounds(files[1].upper_bounds().clone());
        files[1] = moved.build().unwrap();
        world
            .replace(&topic(T), Operation::Replace, files, Vec::new())
            .await;

        let error = world.replay(until(Until::Snapshot)).await.unwrap_err();
        let line = one_line(&error);
        assert!(line.contains(&place), "{line}");
        assert!(
            line.contains("is outside of")
                || line.contains("decodes to")
                || line.contains("is not usable"),
            "{line}"
        );
        for depth in [Depth::Quick, Depth::Full] {
            let request = VerifyRequest {
                depth,
                ..VerifyRequest::new(topic(T))
            };
            let told = match verify(request, world.components(), &mut |_| {}).await {
                Ok(report) => {
                    assert!(!report.holds(), "{place}: {report:?}");
                    format!("{report:?}")
                }
                Err(error) => one_line(&error),
            };
            assert!(told.contains(&place), "{told}");
        }
    }
}
