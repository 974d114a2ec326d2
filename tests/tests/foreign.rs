//! Others at work on the tables and on the log: compaction, expiry, foreign commits, another cluster, a log cut short. Right
//! results or an error that says what is wrong, never silence.

use std::sync::OnceLock;

use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{Log, assert_same, count};
use everlog_tests::engines::{self, foreign};
use everlog_tests::everlog::{Everlog, Piped, Setup, eventually, parse};
use everlog_tests::services::Kafka;
use serde_json::Value;

fn kafka() -> &'static Kafka {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    KAFKA.get_or_init(Kafka::start)
}

fn broker() -> Broker {
    Broker::new(&kafka().bootstrap)
}

/// The head of main.
fn head(everlog: &Everlog, table: &str) -> String {
    foreign(everlog, table, &["snapshots"])["current"].to_string()
}

/// Snapshot ids, oldest first.
fn snapshots(everlog: &Everlog, table: &str) -> Vec<String> {
    let all = foreign(everlog, table, &["snapshots"]);
    let list = all["snapshots"].as_array().expect("a list");
    list.iter().map(|s| s["id"].to_string()).collect()
}

/// `everlog status --json`; null before the archiver has made the catalog.
fn status(everlog: &Everlog) -> Value {
    let output = everlog.run(&["status", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Names of leases.
fn leases(everlog: &Everlog, table: &str) -> Vec<String> {
    let all = foreign(everlog, table, &["snapshots"]);
    let refs = all["refs"].as_object().expect("an object");
    refs.keys()
        .filter(|name| name.starts_with("everlog-lease-") && *name != "everlog-lease-guard")
        .cloned()
        .collect()
}

/// Every engine reads what the log holds.
#[track_caller]
fn assert_engines_agree(everlog: &Everlog, table: &str, log: &Log) {
    for engine in ["pyiceberg", "duckdb"] {
        let reading = engines::read(everlog, engine, table, None);
        assert_eq!(
            (reading.rows, reading.sha256),
            engines::digest(log),
            "{engine}"
        );
    }
}

/// 40 MB in four commits, and a reader that holds at most 16 of them.
async fn large(topic: &str) -> (Broker, Everlog) {
    let broker = broker();
    broker.create(topic, 3, &[]).await;
    let feed = broker.producer(&[]);
    let everlog =
        Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]).replay("memory = \"16MiB\""));
    for _ in 0..4 {
        feed.fill_noise(topic, 3, 102, 100_000);
        everlog.archive();
    }
    (broker, everlog)
}

fn reader(everlog: &Everlog, topic: &str, args: &[&str]) -> (Piped, Vec<String>) {
    let all = ["replay", topic, "--encoding", "base64"];
    let mut reader = everlog.piped(&[&all[..], args].concat(), "");
    let begun = reader.lines(20);
    assert_eq!(begun.len(), 20, "{}", reader.rest().2);
    (reader, begun)
}

#[tokio::test]
async fn h31_h32_b13_files_rewritten_and_snapshots_expired_by_another_engine_under_readers() {
    let (topic, table) = ("foreign.rewritten", "foreign_rewritten");
    let (broker, everlog) = large(topic).await;
    let log = broker.dump(topic);
    let pinned = head(&everlog, table);
    let now = reader(&everlog, topic, &["--until", "snapshot"]);
    let by_time = reader(&everlog, topic, &["--until", "snapshot", "--order", "time"]);
    let unleased = reader(&everlog, topic, &["--lease", "off"]);
    let named = reader(&everlog, topic, &["--snapshot", &pinned, "--lease", "off"]);
    assert_eq!(leases(&everlog, table).len(), 2, "two readers hold a lease");

    // compaction: the same rows in other files, and a commit of ours on top; then an expiry that takes no account of leases,
    // nor of anybody who reads
    foreign(&everlog, table, &["rewrite"]);
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "rewritten",
    );
    let by_time_args = ["--until", "snapshot", "--order", "time"];
    assert_same(
        &log,
        &everlog.replay(topic, &by_time_args),
        "rewritten, by time",
    );
    assert_engines_agree(&everlog, table, &log);
    broker.producer(&[]).fill(topic, 3, 0..300);
    everlog.archive();
    let new_log = broker.dump(topic);
    let new = head(&everlog, table);
    let old = snapshots(&everlog, table);
    foreign(&everlog, table, &["untag", "everlog-lease-"]);
    let mut expire = vec!["expire"];
    expire.extend(old.iter().filter(|id| **id != new).map(String::as_str));
    foreign(&everlog, table, &expire);
    assert_eq!(snapshots(&everlog, table), [new]);

    // `--until now` ends where the log ended at the start, `--until snapshot` with the snapshot that is read last
    for (what, expected, (reader, mut lines)) in [
        ("leased", &new_log, now),
        ("by time", &new_log, by_time),
        ("unleased", &log, unleased),
    ] {
        let (rest, status, said) = reader.rest();
        assert_eq!(status, Some(0), "{what}: {said}");
        lines.extend(rest);
        assert_same(expected, &parse(&lines.concat()), what);
        assert!(said.contains("a file is gone"), "{what}: {said}");
    }
    // the one that asked for that very snapshot: what it was given is right, and it says why there is no more
    let (named, mut lines) = named;
    let (rest, status, said) = named.rest();
    assert!(matches!(status, Some(1 | 4)), "{status:?} {said}");
    lines.extend(rest);
    let partial = parse(&lines.concat());
    assert!(count(&partial) < count(&log), "nothing was missing");
    for (partition, records) in &partial {
        assert_eq!(records[..], log[partition][..records.len()], "a prefix");
    }
    let error = everlog.fails(&["replay", topic, "--snapshot", &pinned], 2);
    assert!(error.contains(&pinned), "{error}");

    // and the archiver goes on, from files of which none is as it wrote it
    broker.producer(&[]).fill(topic, 3, 300..600);
    everlog.archive();
    let log = broker.dump(topic);
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "gone on",
    );
    assert_engines_agree(&everlog, table, &log);
}

#[tokio::test]
async fn h31_our_own_expiry_leaves_a_leased_snapshot_alone() {
    let (topic, table) = ("foreign.leased", "foreign_leased");
    let (broker, everlog) = large(topic).await;
    let log = broker.dump(topic);
    let pinned = head(&everlog, table);
    let (reading, mut lines) = reader(&everlog, topic, &["--snapshot", &pinned]);
    let tight = everlog.beside(
        &Setup::new(&kafka().bootstrap, &[topic])
            .archive("snapshots_max = 2")
            .archive("snapshots_min = 1"),
    );
    let feed = broker.producer(&[]);
    for round in 0..4 {
        feed.fill(topic, 3, round * 30..(round + 1) * 30);
        tight.archive();
    }
    tight.ok(&["maintain", topic]);
    let left = snapshots(&everlog, table);
    assert!(left.contains(&pinned), "{pinned} has expired: {left:?}");
    assert!(left.len() <= 4, "nothing expires: {left:?}");
    assert_eq!(
        status(&everlog)["topics"][0]["leases"][0]["snapshot_id"].to_string(),
        pinned
    );
    let (rest, code, said) = reading.rest();
    assert_eq!(code, Some(0), "{said}");
    lines.extend(rest);
    assert_same(&log, &parse(&lines.concat()), "the leased snapshot");
    // the lease is given back, so nothing but its age keeps the snapshot now
    assert_eq!(leases(&everlog, table), Vec::<String>::new());
    assert_same(
        &broker.dump(topic),
        &everlog.replay(topic, &["--until", "snapshot"]),
        "after expiry",
    );
}

#[tokio::test]
async fn h35_a_partition_spec_that_somebody_changed() {
    let (broker, topic, table) = (broker(), "foreign.spec", "foreign_spec");
    broker.create(topic, 3, &[]).await;
    let feed = broker.producer(&[]);
    let everlog = Everlog::local(&Setup::new(&kafka().bootstrap, &[topic]));
    for round in 0..3 {
        feed.fill(topic, 3, round * 700..(round + 1) * 700);
        everlog.archive();
    }
    // some files of the old spec, some of the new one, and a commit of ours under each
    foreign(&everlog, table, &["repartition"]);
    feed.fill(topic, 3, 2_100..2_800);
    everlog.archive();
    let log = broker.dump(topic);
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "replay",
    );
    assert_engines_agree(&everlog, table, &log);
}

#[tokio::test]
async fn h33_b01_a_foreign_change_stops_the_archiver_until_it_is_accepted() {
    let (broker, topic, table) = (broker(), "foreign.accept", "foreign_accept");
    broker.create(topic, 2, &[]).await;
    let feed = broker.producer(&[]);
    // (pyiceberg cannot write into a partition by day without a library that the tests do without)
    let setup = Setup::new(&kafka().bootstrap, &[topic]).archive("partition_by = \"none\"");
    let everlog = Everlog::local(&setup);
    feed.fill(topic, 2, 0..1_000);
    everlog.archive();
    let mut sent = 1_000;
    let mut more = || {
        feed.fill(topic, 2, sent..sent + 200);
        sent += 200;
    };
    let archive = ["archive", "--until-caught-up"];
    // every command that relies on the ledger refuses, and names the snapshot and the way on
    let refused = |snapshot: &str| {
        let replay = ["replay", topic, "--until", "snapshot"];
        for args in [&archive[..], &replay, &["status"], &["maintain"]] {
            let error = everlog.fails(args, 5);
            let way = format!("everlog archive --accept {snapshot}");
            assert!(error.contains(&way), "{args:?}: {error}");
        }
        // what is not known is null, and no lag that nobody has
        let partition = &status(&everlog)["topics"][0]["partitions"][0];
        assert!(partition["lag_records"].is_null(), "{partition}");
        assert_eq!(partition["headroom"]["state"], "unknown");
    };
    let whole = |what: &str| {
        let log = broker.dump(topic);
        assert_same(&log, &everlog.replay(topic, &["--until", "snapshot"]), what);
        assert_engines_agree(&everlog, table, &log);
    };

    // every row written anew, by `delete` and `append`
    foreign(&everlog, table, &["overwrite"]);
    let snapshot = head(&everlog, table);
    refused(&snapshot);
    let error = everlog.fails(&["archive", "--until-caught-up", "--accept", "12345"], 5);
    assert!(error.contains(&snapshot), "{error}");
    more();
    everlog.ok(&["archive", "--until-caught-up", "--accept", &snapshot]);
    whole("accepted");
    more();
    everlog.archive();
    whole("gone on after accepting");

    // main rolled back: what was archived since is archived again
    let before = head(&everlog, table);
    more();
    everlog.archive();
    foreign(&everlog, table, &["rollback", &before]);
    refused(&before);
    everlog.ok(&["archive", "--until-caught-up", "--accept", &before]);
    whole("rolled back and archived again");

    // rows that the ledger does not know, and a row twice: refused for good, and rolled back
    for (verb, why) in [
        (&["append", "3"][..], "of which the ledger knows"),
        (&["double"], "are in two files"),
    ] {
        let good = head(&everlog, table);
        foreign(&everlog, table, verb);
        let bad = head(&everlog, table);
        refused(&bad);
        let error = everlog.fails(&["archive", "--until-caught-up", "--accept", &bad], 2);
        assert!(error.contains(why) && error.contains(&bad), "{error}");
        foreign(&everlog, table, &["rollback", &good]);
        more();
        everlog.archive();
        whole("after rolling a bad snapshot back");
    }

    // H40: rows deleted on purpose are gone from every replay, and no position moves
    foreign(&everlog, table, &["delete", "offset < 10"]);
    let snapshot = head(&everlog, table);
    refused(&snapshot);
    more();
    everlog.ok(&["archive", "--until-caught-up", "--accept", &snapshot]);
    let mut log = broker.dump(topic);
    for records in log.values_mut() {
        records.retain(|r| r.offset >= 10);
    }
    assert_same(
        &log,
        &everlog.replay(topic, &["--until", "snapshot"]),
        "redacted",
    );
    assert_engines_agree(&everlog, table, &log);
}

#[tokio::test]
async fn h13_another_cluster_under_the_same_name_is_refused_until_it_is_accepted() {
    let (broker, topic) = (broker(), "foreign.cluster");
    broker.create(topic, 2, &[]).await;
    broker.producer(&[]).fill(topic, 2, 0..500);
    let setup = Setup::new(&kafka().bootstrap, &[topic]);
    let everlog = Everlog::local(&setup);
    everlog.archive();
    let old = broker.dump(topic);

    // longer than the old one: by offsets alone everything would seem in order
    let other = Kafka::start();
    let there = Broker::new(&other.bootstrap);
    there.create(topic, 2, &[]).await;
    there.producer(&[]).fill(topic, 2, 10_000..10_900);
    let setup = Setup::new(&other.bootstrap, &[topic]);
    let moved = everlog.beside(&setup);
    let error = moved.fails(&["archive", "--until-caught-up"], 2);
    assert!(error.contains("cluster"), "{error}");
    let id = error
        .split("accept_cluster = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap_or_else(|| panic!("no way on in {error}"))
        .to_owned();
    let error = moved.fails(&["replay", topic], 1);
    assert!(error.contains("cluster") && error.contains(&id), "{error}");
    // the archive itself can be read from anywhere
    assert_same(
        &old,
        &moved.replay(topic, &["--until", "snapshot"]),
        "refused",
    );

    let accepting = everlog.beside(&setup.archive(&format!("accept_cluster = {id:?}")));
    accepting.archive();
    let new = there.dump(topic);
    let text = moved.ok(&["replay", topic, "--encoding", "base64"]);
    let (first, second): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|l| l.contains(r#""generation":0"#));
    assert_same(&old, &parse(&first.join("\n")), "generation 0");
    assert_same(&new, &parse(&second.join("\n")), "generation 1");
    // and the old cluster is the foreign one now
    let error = everlog.fails(&["archive", "--until-caught-up"], 2);
    assert!(error.contains("cluster"), "{error}");
}

#[tokio::test]
async fn h10_p12_a_log_that_lost_its_end_is_an_error_that_says_so() {
    let cluster = Kafka::start();
    let broker = Broker::new(&cluster.bootstrap);
    let (cut, whole) = ("foreign.cut", "foreign.whole");
    for topic in [cut, whole] {
        broker.create(topic, 1, &[]).await;
    }
    let feed = broker.producer(&[]);
    feed.fill(cut, 1, 0..300);
    feed.fill(whole, 1, 0..300);
    let kept = std::fs::metadata(cluster.log_file(cut, 0))
        .expect("the log")
        .len();
    feed.fill(cut, 1, 300..500);
    let everlog = Everlog::local(&Setup::new(&cluster.bootstrap, &[cut, whole]));
    everlog.archive();
    let before = broker.dump(cut);

    // the broker dies and comes back without the end of its log, as after an unclean election
    let shorten = || {
        cluster.node("kill-node", 1);
        let log = std::fs::OpenOptions::new()
            .write(true)
            .open(cluster.log_file(cut, 0))
            .expect("the log");
        log.set_len(kept).expect("truncate");
        cluster.node("start-node", 1);
    };
    shorten();
    let refused = || {
        let error = everlog.fails(&["archive", "--until-caught-up"], 1);
        assert!(
            error.contains("truncated") && error.contains("500") && error.contains("300"),
            "{error}"
        );
        let error = everlog.fails(&["replay", cut, "--output", "count"], 1);
        assert!(
            error.contains("truncated") || error.contains("ends at"),
            "{error}"
        );
    };
    refused();
    // longer again than what is archived, with other records: by offsets alone it would go on as if nothing had happened
    let feed = broker.producer(&[]);
    feed.fill(cut, 1, 5_000..5_400);
    feed.fill(whole, 1, 300..400);
    assert_eq!(broker.bounds(cut, 0), (0, 700));
    refused();
    // the other topic goes on, and what is archived can be read
    assert_same(
        &broker.dump(whole),
        &everlog.replay(whole, &["--until", "snapshot"]),
        "the other topic",
    );
    assert_same(
        &before,
        &everlog.replay(cut, &["--until", "snapshot"]),
        "what was archived",
    );

    // under an archiver and a follower that run: the same
    let running = Everlog::local(
        &Setup::new(&cluster.bootstrap, &[cut]).archive("commit_interval = \"300ms\""),
    );
    let mut archiver = running.start(&["archive"], "");
    eventually("everything archived", PATIENCE, || {
        status(&running)["topics"][0]["table"]["rows"] == 700
    });
    let path = running.dir().join("out.jsonl");
    let output = format!("jsonl:{}", path.display());
    let mut follower = running.start(&["replay", cut, "--follow", "--output", &output], "");
    eventually("the follower reads", PATIENCE, || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() == 700)
    });
    shorten();
    broker.producer(&[]).fill(cut, 1, 6_000..6_050);
    eventually("the archiver gives up", 2 * PATIENCE, || {
        !archiver.is_running()
    });
    let said = archiver.log();
    assert_eq!(archiver.wait(PATIENCE), Some(1), "{said}");
    assert!(said.contains("truncated"), "{said}");
    eventually("the follower gives up", 2 * PATIENCE, || {
        !follower.is_running()
    });
    let said = follower.log();
    assert_eq!(follower.wait(PATIENCE), Some(1), "{said}");
    assert!(
        said.contains("truncated") || said.contains("ends at"),
        "{said}"
    );
}
