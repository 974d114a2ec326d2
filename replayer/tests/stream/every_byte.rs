//! R15, exhaustively: every byte of every file of a small table is changed once, and every file is cut at every length. Each
//! time a replay gives the same records as before, or an error that says where, and nothing wrong before it.

use bytes::Bytes;
use everlog_common::Millis;
use everlog_replayer::{From, ReplayRequest, Until, one_line};
use everlog_table::catalog::LoadedTable;
use everlog_table::files::PlannedFile;
use everlog_table::manifests;
use everlog_table::snapshot::LeaseMode;
use everlog_table::storage::Storage;
use futures::TryStreamExt as _;
use iceberg::spec::{DataFile, DataFileBuilder, Datum, ManifestFile, Operation};

use crate::support::{Produced, Replayed, T, World, o, read_to_error, topic, until};

/// Milliseconds of the first record; each is a second after the one before.
const FIRST: i64 = 1_700_000_000_000;

/// Two commits of two partitions with five rows each: two data files, two manifests, two manifest lists.
struct Table {
    world: World,
    storage: Storage,
    /// What there is to ask for, and what it gives.
    asked: Vec<(ReplayRequest, Replayed)>,
    files: Vec<PlannedFile>,
}

impl Table {
    async fn new() -> Self {
        let (world, log, _) = World::in_memory();
        log.create_topic(&topic(T), 2);
        let mut produced = Produced::default();
        for n in 0..20 {
            produced.at(&log, &topic(T), n % 2, FIRST + i64::from(n) * 1000);
        }
        world.commit_all(&topic(T), 5).await;
        let mut asked = Vec::new();
        for from in [
            From::Beginning,
            From::Offset {
                generation: None,
                offset: o(7),
            },
            From::Timestamp(Millis(FIRST + 15_000)),
        ] {
            let request = ReplayRequest {
                from,
                lease: LeaseMode::Off,
                ..until(Until::Snapshot)
            };
            let whole = world.replay(request.clone()).await.unwrap();
            asked.push((request, whole));
        }
        let counts: Vec<usize> = asked.iter().map(|(_, whole)| whole.count()).collect();
        assert_eq!(counts, [20, 6, 5]);
        let files = world.head(&topic(T)).await.files().await.unwrap();
        assert_eq!(files.len(), 2);
        Self {
            storage: world.storage(&topic(T)).await,
            world,
            asked,
            files,
        }
    }

    /// The current metadata file, and the manifests and manifest lists that it leads to.
    async fn metadata_files(&self) -> Vec<String> {
        let table = self
            .world
            .archive(&topic(T))
            .await
            .state()
            .await
            .unwrap()
            .table;
        let folder = format!("{}/metadata", table.metadata.location());
        let all: Vec<String> = self
            .storage
            .list(&folder)
            .unwrap()
            .map_ok(|o| o.uri)
            .try_collect()
            .await
            .unwrap();
        let needed = |uri: &String| uri.contains(".avro") || *uri == table.metadata_location;
        let mut all: Vec<String> = all.into_iter().filter(needed).collect();
        // of the older snapshot a replay of the newest reads nothing but the manifest
        let old = table
            .metadata
            .snapshots()
            .min_by_key(|s| s.sequence_number())
            .unwrap();
        all.retain(|uri| uri != old.manifest_list());
        assert_eq!(all.len(), 4);
        all
    }

    /// Replays what is asked; gives whether it was noticed that `uri` is damaged.
    async fn is_noticed(&self, uri: &str, asked: &(ReplayRequest, Replayed), what: &str) -> bool {
        let (request, whole) = asked;
        let mut replayed = Replayed::default();
        let error = match self.world.open(request.clone()).await {
            Err(error) => Some(error),
            Ok(mut stream) => loop {
                match stream.next().await {
                    Ok(Some(batch)) => replayed.take(&batch),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            },
        };
        let Some(error) = error else {
            assert_eq!(replayed.rows, whole.rows, "{what}: delivered");
            return false;
        };
        let line = one_line(&error);
        assert_eq!(error.exit_status(), 4, "{what}: {line}");
        assert!(line.contains(uri), "{what}: {line}");
        for (place, rows) in &replayed.rows {
            let all = &whole.rows[place];
            assert_eq!(
                rows[..],
                all[..rows.len()],
                "{what}: a wrong record before the error"
            );
        }
        if let Some(file) = self.files.iter().find(|file| file.path == uri) {
            let bounds = file.bounds.as_ref().unwrap();
            let (first, last) = (bounds.offset.0.get(), bounds.offset.1.get());
            assert!(
                line.contains(&format!("offsets [{first}, {last}]")),
                "{what}: {line}"
            );
            let affected = |(offset, _): &(i64, String)| (first..=last).contains(offset);
            assert!(
                !replayed.rows.values().flatten().any(affected),
                "{what}: a record of the damaged file came before"
            );
        }
        true
    }

    /// Damages a file in one way after the other; gives how often that was noticed, by request.
    async fn damage(
        &self,
        uri: &str,
        asked: usize,
        damages: impl Fn(&Bytes) -> Vec<(String, Vec<u8>)>,
    ) -> Vec<usize> {
        let good = self.storage.get(uri).await.unwrap();
        let mut noticed = vec![0; asked];
        for (what, bad) in damages(&good) {
            self.storage.put(uri, bad.into()).await.unwrap();
            for (asked, noticed) in self.asked.iter().zip(&mut noticed) {
                let what = format!("{uri} {what}");
                *noticed += usize::from(self.is_noticed(uri, asked, &what).await);
            }
        }
        self.storage.put(uri, good).await.unwrap();
        noticed
    }
}

fn flips(good: &Bytes, step: usize) -> Vec<(String, Vec<u8>)> {
    let flip = |at: usize| {
        let mut bad = good.to_vec();
        bad[at] ^= 1 << (at % 8);
        (format!("byte {at}"), bad)
    };
    (0..good.len()).step_by(step).map(flip).collect()
}

fn cuts(good: &Bytes, step: usize) -> Vec<(String, Vec<u8>)> {
    let cut = |len: usize| {
        (
            format!("{len} bytes of {}", good.len()),
            good[..len].to_vec(),
        )
    };
    (0..good.len()).step_by(step).map(cut).collect()
}

/// What of a file is read by everybody who reads it, and whether that is refused.
async fn is_refused(
    table: &Table,
    state: &LoadedTable,
    manifest: Option<&ManifestFile>,
    uri: &str,
) -> bool {
    let head = state.metadata.current_snapshot().unwrap();
    let version = state.metadata.format_version();
    let error = if let Some(manifest) = manifest {
        manifests::read_manifest(&table.storage, manifest)
            .await
            .err()
            .map(|e| e.to_string())
    } else if uri == state.metadata_location {
        let loaded = table.world.catalog.load(&state.ident).await;
        loaded.err().map(|e| e.to_string())
    } else {
        let read = manifests::read_list(&table.storage, head, version).await;
        read.err().map(|e| e.to_string())
    };
    if let Some(error) = &error {
        assert!(error.contains(uri), "{error}");
    }
    error.is_some()
}

/// Every byte and every length, by what all commands read metadata with. Data files: the same in `everlog-table`
/// (`no_flipped_byte_of_a_file_ever_gives_a_wrong_row`).
#[tokio::test(start_paused = true)]
async fn every_flipped_byte_and_every_cut_of_manifests_lists_and_metadata_is_refused() {
    let table = Table::new().await;
    let state = table
        .world
        .archive(&topic(T))
        .await
        .state()
        .await
        .unwrap()
        .table;
    let head = state.metadata.current_snapshot().unwrap();
    let list = manifests::read_list(&table.storage, head, state.metadata.format_version())
        .await
        .unwrap();
    let mut tried = 0;
    for uri in table.metadata_files().await {
        let manifest = list.iter().find(|file| file.manifest_path == uri);
        let good = table.storage.get(&uri).await.unwrap();
        for (what, bad) in flips(&good, 1).into_iter().chain(cuts(&good, 1)) {
            table.storage.put(&uri, bad.into()).await.unwrap();
            assert!(
                is_refused(&table, &state, manifest, &uri).await,
                "{uri} {what}"
            );
            tried += 1;
        }
        table.storage.put(&uri, good).await.unwrap();
        assert!(!is_refused(&table, &state, manifest, &uri).await, "{uri}");
    }
    assert!(tried > 20_000, "{tried}");
}

#[tokio::test(start_paused = true)]
async fn damaged_metadata_ends_a_replay_before_its_first_record() {
    let table = Table::new().await;
    for uri in table.metadata_files().await {
        let damages = |good: &Bytes| [flips(good, 211), cuts(good, 499)].concat();
        let due = damages(&table.storage.get(&uri).await.unwrap()).len();
        assert_eq!(table.damage(&uri, 1, damages).await, [due], "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_data_file_is_noticed_by_every_replay_that_reads_it() {
    let table = Table::new().await;
    let second = table.files[1].clone();
    let size = usize::try_from(second.size_bytes).unwrap();
    // the magic at the beginning, the topic's column and the page index are read by nobody
    for noticed in table.damage(&second.path, 3, |good| flips(good, 23)).await {
        let tried = size.div_ceil(23);
        assert!(
            noticed > tried / 2 && noticed < tried,
            "{noticed} of {tried}"
        );
    }
    assert_eq!(
        table.damage(&second.path, 1, |good| cuts(good, 71)).await,
        [size.div_ceil(71)]
    );
}

#[tokio::test(start_paused = true)]
async fn two_files_that_changed_places_are_noticed() {
    let table = Table::new().await;
    let mut uris = table.metadata_files().await;
    uris.extend(table.files.iter().map(|file| file.path.clone()));
    for (i, one) in uris.iter().enumerate() {
        for other in &uris[i + 1..] {
            let (a, b) = (
                table.storage.get(one).await.unwrap(),
                table.storage.get(other).await.unwrap(),
            );
            table.storage.put(one, b.clone()).await.unwrap();
            table.storage.put(other, a.clone()).await.unwrap();
            let mut noticed = 0;
            for (request, whole) in &table.asked {
                match table.world.replay(request.clone()).await {
                    Ok(replayed) => assert_eq!(replayed.rows, whole.rows, "{one} {other}"),
                    Err(error) => {
                        let line = one_line(&error);
                        assert!(line.contains(one) || line.contains(other), "{line}");
                        assert_eq!(error.exit_status(), 4, "{line}");
                        noticed += 1;
                    }
                }
            }
            assert!(noticed >= 1, "{one} {other}");
            table.storage.put(one, a).await.unwrap();
            table.storage.put(other, b).await.unwrap();
        }
    }
}

/// A manifest entry that says something else of its file.
fn lying(file: &DataFile, lie: impl FnOnce(&mut DataFileBuilder)) -> DataFile {
    let mut builder = DataFileBuilder::default();
    builder
        .content(file.content_type())
        .file_path(file.file_path().to_owned())
        .file_format(file.file_format())
        .partition(file.partition().clone())
        .partition_spec_id(0)
        .record_count(file.record_count())
        .file_size_in_bytes(file.file_size_in_bytes())
        .lower_bounds(file.lower_bounds().clone())
        .upper_bounds(file.upper_bounds().clone())
        .null_value_counts(file.null_value_counts().clone());
    lie(&mut builder);
    builder.build().unwrap()
}

fn bounds(builder: &mut DataFileBuilder, file: &DataFile, column: i32, lower: Datum, upper: Datum) {
    let (mut lowers, mut uppers) = (file.lower_bounds().clone(), file.upper_bounds().clone());
    lowers.insert(column, lower);
    uppers.insert(column, upper);
    builder.lower_bounds(lowers).upper_bounds(uppers);
}

/// What is said of a file that is not so.
type Lie = Box<dyn Fn(&mut DataFileBuilder, &DataFile)>;

/// What another engine's manifest, which has no checksum, may say of sound files.
#[tokio::test(start_paused = true)]
async fn lies_of_a_manifest_are_noticed_before_anything_is_emitted_or_without_effect() {
    let offsets = |low, high| {
        move |b: &mut DataFileBuilder, f: &DataFile| {
            bounds(b, f, 4, Datum::long(low), Datum::long(high));
        }
    };
    // of the second file, which has offsets 5 to 9 of both partitions: what is said, and whether that can do harm
    let lies: Vec<(&str, bool, Lie)> = vec![
        ("the first file's offsets", true, Box::new(offsets(0, 4))),
        ("too few offsets", true, Box::new(offsets(5, 6))),
        (
            "an offset too few at the end",
            true,
            Box::new(offsets(5, 8)),
        ),
        (
            "an offset too few at the beginning",
            true,
            Box::new(offsets(6, 9)),
        ),
        ("more offsets", false, Box::new(offsets(0, 9))),
        ("offsets beyond the ledger", true, Box::new(offsets(5, 10))),
        ("offsets the wrong way round", true, Box::new(offsets(9, 5))),
        ("negative offsets", true, Box::new(offsets(-5, 9))),
        (
            "one partition",
            true,
            Box::new(|b, f| bounds(b, f, 3, Datum::int(1), Datum::int(1))),
        ),
        (
            "another partition",
            true,
            Box::new(|b, f| bounds(b, f, 3, Datum::int(7), Datum::int(8))),
        ),
        (
            "another generation",
            true,
            Box::new(|b, f| bounds(b, f, 2, Datum::int(3), Datum::int(3))),
        ),
        (
            "earlier timestamps",
            true,
            Box::new(|b, f| {
                bounds(
                    b,
                    f,
                    5,
                    Datum::timestamptz_micros(0),
                    Datum::timestamptz_micros(1),
                );
            }),
        ),
        (
            "no bounds",
            false,
            Box::new(|b, _| {
                b.lower_bounds(Default::default())
                    .upper_bounds(Default::default());
            }),
        ),
        (
            "a row more",
            true,
            Box::new(|b, f| {
                b.record_count(f.record_count() + 1);
            }),
        ),
        (
            "rows without end",
            true,
            Box::new(|b, _| {
                b.record_count(u64::MAX / 4);
            }),
        ),
        (
            "no rows",
            true,
            Box::new(|b, _| {
                b.record_count(0);
            }),
        ),
        (
            "a longer file",
            true,
            Box::new(|b, f| {
                b.file_size_in_bytes(f.file_size_in_bytes() + 1);
            }),
        ),
        (
            "a shorter file",
            true,
            Box::new(|b, f| {
                b.file_size_in_bytes(f.file_size_in_bytes() - 1);
            }),
        ),
        (
            "an endless file",
            true,
            Box::new(|b, _| {
                b.file_size_in_bytes(u64::MAX / 4);
            }),
        ),
    ];
    for (what, harmful, lie) in lies {
        let table = Table::new().await;
        let mut files = table.world.data_files(&topic(T)).await;
        files[1] = lying(&files[1], |builder| lie(builder, &files[1]));
        table
            .world
            .replace(&topic(T), Operation::Replace, files, Vec::new())
            .await;
        let mut noticed = 0;
        // of what timestamps a file has nothing else tells: docs/security.md, what is not defended against
        let asked = if what.contains("timestamps") { 2 } else { 3 };
        for (request, whole) in &table.asked[..asked] {
            let mut replayed = Replayed::default();
            let error = match table.world.open(request.clone()).await {
                Err(error) => error,
                Ok(mut stream) if harmful => read_to_error(&mut stream, &mut replayed).await,
                Ok(_) => {
                    let read = table.world.replay(request.clone()).await.unwrap();
                    assert_eq!(read.rows, whole.rows, "{what}");
                    continue;
                }
            };
            // what came before is sound, and nothing of the file that is lied about
            let late = |(offset, _): &(i64, String)| *offset >= 5;
            assert!(
                !replayed.rows.values().flatten().any(late),
                "{what}: {}",
                one_line(&error)
            );
            assert!(
                matches!(error.exit_status(), 4 | 5),
                "{what}: {}",
                one_line(&error)
            );
            noticed += 1;
        }
        assert_eq!(noticed, if harmful { asked } else { 0 }, "{what}");
    }
}
