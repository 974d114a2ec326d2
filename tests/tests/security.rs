//! Doors: TLS and SASL against a real broker, TLS and OAuth2 against a REST catalog, with what is right and with what is wrong;
//! metadata that leads elsewhere; and that no secret is ever seen outside.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use everlog_tests::broker::{Broker, PATIENCE};
use everlog_tests::compare::{assert_same, count};
use everlog_tests::everlog::{Everlog, Setup, eventually, failure, get};
use everlog_tests::services::{Certificates, Kafka, Postgres, RestCatalog, S3, Tls, free_ports};

/// Whatever is wrong is told within this.
const SOON: Duration = Duration::from_secs(45);
/// Listeners of a secure broker, by their distance from the plain one.
const TLS: u16 = 2;
const SASL: u16 = 3;
const ELSEWHERE: u16 = 4;
const EXPIRED: u16 = 5;

struct Secure {
    certificates: Certificates,
    kafka: Kafka,
}

impl Secure {
    fn broker(&self) -> Broker {
        Broker::new(&self.kafka.bootstrap)
    }

    /// A setup for one of its listeners. Later lines win over earlier ones of the same key.
    fn setup(&self, topic: &str, listener: u16, lines: &[(&str, &str)]) -> Setup {
        let protocol = if listener == SASL { "SASL_SSL" } else { "SSL" };
        let ca = self.certificates.file("ca.pem");
        let mut properties = BTreeMap::from([
            ("security.protocol", protocol),
            ("ssl.ca.location", ca.as_str()),
            ("everlog.request.timeout.ms", "6000"),
        ]);
        properties.extend(lines.iter().copied());
        let mut setup = Setup::new(&self.kafka.listener(listener), &[topic]);
        for (key, value) in properties
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
        {
            setup = setup.kafka(&format!("{key:?} = {value:?}"));
        }
        setup.archive("http = \"\"")
    }

    fn alice<'a>(&'a self, mechanism: &'a str) -> [(&'a str, &'a str); 3] {
        [
            ("sasl.mechanism", mechanism),
            ("sasl.username", "alice"),
            ("sasl.password", &self.certificates.password),
        ]
    }
}

fn secure() -> &'static Secure {
    static SECURE: OnceLock<Secure> = OnceLock::new();
    SECURE.get_or_init(|| {
        let certificates = Certificates::make();
        let kafka = Kafka::start_secure(&certificates);
        Secure {
            certificates,
            kafka,
        }
    })
}

#[tokio::test]
async fn tls_and_every_sasl_mechanism_archive_replay_and_write_to_a_topic() {
    let secure = secure();
    let broker = secure.broker();
    let (cert, key) = (
        secure.certificates.file("client.pem"),
        secure.certificates.file("client.locked.key"),
    );
    let client = [
        ("ssl.certificate.location", cert.as_str()),
        ("ssl.key.location", &key),
        ("ssl.key.password", &secure.certificates.password),
    ];
    let token = [
        ("sasl.mechanism", "OAUTHBEARER"),
        ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ("sasl.oauthbearer.config", "principal=alice"),
    ];
    let ways: [(&str, u16, &[(&str, &str)]); 5] = [
        ("secure.plain", SASL, &secure.alice("PLAIN")),
        ("secure.scram256", SASL, &secure.alice("SCRAM-SHA-256")),
        ("secure.scram512", SASL, &secure.alice("SCRAM-SHA-512")),
        ("secure.token", SASL, &token),
        ("secure.certificate", TLS, &client),
    ];
    for (topic, listener, lines) in ways {
        broker.create(topic, 2, &[]).await;
        let feed = broker.producer(&[]);
        feed.fill(topic, 2, 0..500);
        let everlog = Everlog::local(&secure.setup(topic, listener, lines));
        everlog.archive();
        feed.fill(topic, 2, 500..600);
        // history, and then the live log over the same door
        assert_same(&broker.dump(topic), &everlog.replay(topic, &[]), topic);
        if topic == "secure.scram512" {
            broker.create("secure.copy", 2, &[]).await;
            let position = everlog.dir().join("copy.json").display().to_string();
            let copy = [
                "replay",
                topic,
                "--output",
                "kafka:secure.copy",
                "--resume",
                &position,
            ];
            everlog.ok(&copy);
            assert_eq!(count(&broker.dump("secure.copy")), 600);
            everlog.ok(&["verify", topic]);
        }
    }
}

#[tokio::test]
async fn wrong_certificates_and_passwords_end_soon_with_one_line_that_says_what_to_do() {
    let secure = secure();
    secure.broker().create("secure.wrong", 1, &[]).await;
    let stranger = secure.certificates.file("stranger.pem");
    let wrong = |mechanism| {
        [
            ("sasl.mechanism", mechanism),
            ("sasl.username", "alice"),
            ("sasl.password", "hunter2-hunter2"),
        ]
    };
    let cases: [(&str, u16, &[(&str, &str)], &[&str]); 8] = [
        (
            "an unknown authority",
            SASL,
            &[
                &secure.alice("PLAIN")[..],
                &[("ssl.ca.location", &stranger)],
            ]
            .concat(),
            &["ssl.ca.location", "authority"],
        ),
        (
            "another host's certificate",
            ELSEWHERE,
            &[],
            &["certificate verify failed", "host name"],
        ),
        (
            "an expired certificate",
            EXPIRED,
            &[],
            &["certificate verify failed", "not expired"],
        ),
        (
            "no certificate of our own",
            TLS,
            &[],
            &["ssl.certificate.location"],
        ),
        (
            "a wrong password, PLAIN",
            SASL,
            &wrong("PLAIN"),
            &["sasl.password", "Authentication failed"],
        ),
        (
            "a wrong password, SCRAM-SHA-256",
            SASL,
            &wrong("SCRAM-SHA-256"),
            &["sasl.password", "Authentication failed"],
        ),
        (
            "a wrong password, SCRAM-SHA-512",
            SASL,
            &wrong("SCRAM-SHA-512"),
            &["sasl.password", "Authentication failed"],
        ),
        (
            "a mechanism that the broker has not",
            SASL,
            &[("sasl.mechanism", "GSSAPI")],
            &["GSSAPI"],
        ),
    ];
    // each waits for the client's patience: side by side
    std::thread::scope(|scope| {
        for (what, listener, lines, words) in cases {
            scope.spawn(move || {
                let everlog = Everlog::local(&secure.setup("secure.wrong", listener, lines));
                let began = Instant::now();
                let run = everlog.measured(&["archive", "--until-caught-up"], 2 * SOON);
                let errors: Vec<&str> = run
                    .stderr
                    .lines()
                    .filter(|l| l.starts_with("error: "))
                    .collect();
                let [error] = errors[..] else {
                    panic!("{what}: {}", run.stderr);
                };
                let expected = if what.contains("mechanism") {
                    Some(2)
                } else {
                    Some(1)
                };
                assert_eq!(run.code, expected, "{what}: {error}");
                assert!(
                    words.iter().all(|word| error.contains(word)),
                    "{what}: {error}"
                );
                assert!(!run.stderr.contains("hunter2"), "{what}: {}", run.stderr);
                assert!(began.elapsed() < SOON, "{what}: {:?}", began.elapsed());
            });
        }
    });
    // what could never come is refused at once
    let oidc = [("sasl.mechanism", "OAUTHBEARER")];
    let everlog = Everlog::local(&secure.setup("secure.wrong", SASL, &oidc));
    let line = everlog.fails(&["archive", "--until-caught-up"], 2);
    assert!(line.contains("OIDC") && line.contains("SCRAM"), "{line}");
}

/// The `[catalog]` section for a REST catalog behind TLS.
fn rest<'a>(uri: &'a str, s3: &'a S3, who: (&'a str, &'a str)) -> Vec<(&'a str, &'a str)> {
    vec![
        ("type", "rest"),
        ("uri", uri),
        ("warehouse", "s3://warehouse/lake"),
        who,
        ("s3.endpoint", &s3.endpoint),
        ("s3.access-key-id", everlog_tests::services::S3_ACCESS_KEY),
        (
            "s3.secret-access-key",
            everlog_tests::services::S3_SECRET_KEY,
        ),
        ("s3.region", "us-east-1"),
        ("s3.path-style-access", "true"),
    ]
}

fn port_of(uri: &str) -> u16 {
    let port = uri.rsplit(':').next().unwrap_or_default();
    port.parse().expect("a port")
}

const CREDENTIAL: &str = "everlog:canary-credential-4711";

#[tokio::test]
async fn tls_and_oauth2_against_a_rest_catalog_right_and_wrong() {
    let secure = secure();
    let topic = "secure.rest";
    let broker = secure.broker();
    broker.create(topic, 2, &[]).await;
    broker.producer(&[]).fill(topic, 2, 0..300);
    let s3 = S3::start();
    let catalog = RestCatalog::start_with(&s3, &["--credential", CREDENTIAL]);
    let upstream = port_of(&catalog.uri);
    let doors = ["server", "elsewhere", "expired"]
        .map(|name| Tls::start(upstream, &secure.certificates, name));
    let [right, elsewhere, expired] = &doors;
    let setup = Setup::new(&secure.kafka.bootstrap, &[topic]).archive("http = \"\"");
    let ca = secure.certificates.file("ca.pem");
    let stranger = secure.certificates.file("stranger.pem");
    let run = |everlog: &Everlog, ca: &str, args: &[&str]| -> Output {
        let mut command = everlog.command(args);
        command
            .env("SSL_CERT_FILE", ca)
            .output()
            .expect("run everlog")
    };
    let good = ("credential", CREDENTIAL);
    let everlog = Everlog::with_properties(&setup, &rest(&right.uri, &s3, good));
    for args in [
        &["archive", "--until-caught-up"][..],
        &["status"],
        &["verify", topic],
    ] {
        let output = run(&everlog, &ca, args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let output = run(&everlog, &ca, &["replay", topic, "--encoding", "base64"]);
    assert_same(
        &broker.dump(topic),
        &everlog_tests::everlog::parse(&String::from_utf8_lossy(&output.stdout)),
        "over TLS",
    );

    let plain = right.uri.replace("https", "http");
    let wrong = ("credential", "everlog:hunter2-hunter2");
    let token = ("token", "hunter2-hunter2");
    let cases = [
        (
            "an unknown authority",
            &right.uri,
            &stranger,
            good,
            "SSL_CERT_FILE",
        ),
        (
            "another host's certificate",
            &elsewhere.uri,
            &ca,
            good,
            "host name",
        ),
        ("an expired certificate", &expired.uri, &ca, good, "expired"),
        (
            "a wrong secret",
            &right.uri,
            &ca,
            wrong,
            "check the credentials in [catalog]",
        ),
        (
            "a wrong token",
            &right.uri,
            &ca,
            token,
            "check the credentials in [catalog]",
        ),
        (
            "no TLS where there should be",
            &plain,
            &ca,
            good,
            "not available",
        ),
    ];
    for (what, uri, ca, who, words) in cases {
        let everlog = Everlog::with_properties(&setup, &rest(uri, &s3, who));
        for args in [
            &["archive", "--until-caught-up"][..],
            &["status"],
            &["maintain", topic],
        ] {
            let began = Instant::now();
            let output = run(&everlog, ca, args);
            let line = failure(&output, what, 1);
            assert!(line.contains(words), "{what}: {line}");
            assert!(
                !line.contains("hunter2") && !line.contains("canary"),
                "{what}: {line}"
            );
            assert!(began.elapsed() < SOON, "{what}: {:?}", began.elapsed());
        }
    }
}

/// A table that lies where the configuration does not lead is not read, before the operator says that it is meant.
#[tokio::test]
async fn a_table_outside_of_the_warehouse_is_refused_until_it_is_allowed() {
    let secure = secure();
    let topic = "secure.outside";
    let broker = secure.broker();
    broker.create(topic, 1, &[]).await;
    broker.producer(&[]).fill(topic, 1, 0..100);
    let setup = Setup::new(&secure.kafka.bootstrap, &[topic]).archive("http = \"\"");
    let everlog = Everlog::local(&setup);
    everlog.archive();
    let old = everlog.catalog["warehouse"].clone();
    let moved = |more: &[(&str, &str)]| {
        let mut catalog = everlog.catalog.clone();
        catalog.insert("warehouse".to_owned(), format!("{old}-new"));
        catalog.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let properties: Vec<(&str, &str)> = catalog
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        Everlog::with_properties(&setup, &properties)
    };
    let elsewhere = moved(&[]);
    for args in [
        &["replay", topic, "--until", "snapshot", "--output", "count"][..],
        &["verify", topic],
        &["maintain", topic],
        &["archive", "--until-caught-up"],
    ] {
        let output = elsewhere.run(args);
        let line = failure(&output, &args.join(" "), 2);
        assert!(
            line.contains("is outside of") && line.contains("everlog.storage.allowed-locations"),
            "{line}"
        );
    }
    let allowed = moved(&[("everlog.storage.allowed-locations", &old)]);
    assert_eq!(count(&allowed.replay(topic, &["--until", "snapshot"])), 100);
    allowed.archive();
}

/// Every secret that is configured somewhere in this test, and a word for it.
struct Canaries(Vec<(&'static str, String)>);

impl Canaries {
    #[track_caller]
    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        for (what, secret) in &self.0 {
            assert!(secret.len() >= 7, "{what} is too short to look for");
            let found = bytes
                .windows(secret.len())
                .position(|window| window == secret.as_bytes());
            if let Some(at) = found {
                let shown = &bytes[at.saturating_sub(200)..(at + 60).min(bytes.len())];
                panic!("{what} in {place}: …{}…", String::from_utf8_lossy(shown));
            }
        }
    }

    /// Every file below a folder, but the configuration.
    #[track_caller]
    fn assert_absent_below(&self, folder: &Path) -> usize {
        let mut looked = 0;
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                looked += self.assert_absent_below(&path);
            } else if path.extension().is_none_or(|x| x != "toml") {
                let bytes = std::fs::read(&path).unwrap_or_default();
                self.assert_absent(&path.display().to_string(), &bytes);
                looked += 1;
            }
        }
        looked
    }
}

/// Command lines that read a configuration.
const COMMANDS: [&[&str]; 9] = [
    &["config", "check"],
    &["config", "print"],
    &["archive", "--until-caught-up"],
    &["status"],
    &["status", "--json"],
    &["verify", "secure.canary"],
    &[
        "replay",
        "secure.canary",
        "--output",
        "count",
        "--resume",
        "resume.json",
    ],
    &[
        "replay",
        "secure.canary",
        "--until",
        "snapshot",
        "--output",
        "jsonl:out.jsonl",
    ],
    &["maintain", "secure.canary"],
];

#[tokio::test]
async fn no_secret_is_seen_in_any_artifact() {
    let secure = secure();
    let topic = "secure.canary";
    let broker = secure.broker();
    broker.create(topic, 2, &[]).await;
    broker.producer(&[]).fill(topic, 2, 0..200);
    let s3 = S3::start();
    let catalog = RestCatalog::start_with(&s3, &["--credential", CREDENTIAL]);
    let postgres = Postgres::start();
    let (_, secret) = CREDENTIAL.split_once(':').expect("a secret");
    let canaries = Canaries(vec![
        (
            "the SASL and key password",
            secure.certificates.password.clone(),
        ),
        (
            "the S3 secret",
            everlog_tests::services::S3_SECRET_KEY.to_owned(),
        ),
        ("the session token", "canary-session-token".to_owned()),
        ("the OAuth2 client secret", secret.to_owned()),
        ("the REST token", "canary-rest-token".to_owned()),
        ("a header", "canary-header-value".to_owned()),
        ("a URL's password", "canary-url-password".to_owned()),
        (
            "a secret of the environment",
            "canary-from-environment".to_owned(),
        ),
        (
            "a cloud secret of the environment",
            "canary-aws-secret".to_owned(),
        ),
        ("an account key", "Y2FuYXJ5LWFjY291bnQta2V5".to_owned()),
        ("an issued token", "Bearer ".to_owned()),
    ]);
    let (cert, key) = (
        secure.certificates.file("client.pem"),
        secure.certificates.file("client.locked.key"),
    );
    let mut lines = secure.alice("SCRAM-SHA-512").to_vec();
    lines.extend([
        ("ssl.certificate.location", cert.as_str()),
        ("ssl.key.location", &key),
        ("ssl.key.password", &secure.certificates.password),
        // what the client library says of itself, too
        ("debug", "all"),
    ]);
    let right = secure.setup(topic, SASL, &lines);
    let mut wrong_lines = lines.clone();
    wrong_lines.retain(|(key, _)| *key != "sasl.username");
    wrong_lines.push(("sasl.username", "bob"));
    wrong_lines.push(("everlog.request.timeout.ms", "2500"));
    let wrong = secure.setup(topic, SASL, &wrong_lines);
    let nobody = format!("http://127.0.0.1:{}", free_ports(1));
    let with_password = |uri: &str| uri.replace("://", "://ann:canary-url-password@");
    let good = ("credential", CREDENTIAL);
    let mut plain = rest(&catalog.uri, &s3, good);
    plain.push(("header.X-Canary", "canary-header-value"));
    plain.push(("adls.account-key", "Y2FuYXJ5LWFjY291bnQta2V5"));
    let url = with_password(&catalog.uri);
    let url_of_nobody = with_password(&nobody);
    let postgres_url = with_password("postgres://127.0.0.1:1/lake");
    let real_postgres = postgres.uri.clone();
    let token = ("token", "canary-rest-token");
    let mut stale = rest(&catalog.uri, &s3, token);
    stale.push(("s3.session-token", "canary-session-token"));
    let sql = |uri: &'static str| {
        vec![
            ("type", "sql"),
            ("warehouse", "file://DIR/warehouse"),
            ("uri", uri),
        ]
    };
    let local = sql("sqlite://DIR/catalog.db");
    let mut unreachable_postgres = sql("");
    unreachable_postgres.pop();
    unreachable_postgres.push(("uri", &postgres_url));
    unreachable_postgres.push(("everlog.catalog.request-timeout", "2s"));
    let mut running_postgres = sql("");
    running_postgres.pop();
    running_postgres.push(("uri", &real_postgres));
    running_postgres.push(("token", "canary-rest-token"));
    let worlds: [(&str, &Setup, Vec<(&str, &str)>); 8] = [
        ("all is right", &right, plain.clone()),
        ("a local lake", &right, local.clone()),
        ("a wrong user", &wrong, local),
        ("a wrong token", &right, stale),
        ("a URL with a password", &right, rest(&url, &s3, good)),
        (
            "a catalog that is away",
            &right,
            rest(&url_of_nobody, &s3, good),
        ),
        ("a database that is away", &right, unreachable_postgres),
        ("a database", &right, running_postgres),
    ];
    let mut outcomes = BTreeMap::new();
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (n, (what, setup, properties)) in worlds.into_iter().enumerate() {
            let canaries = &canaries;
            running.push(scope.spawn(move || {
                let everlog = Everlog::with_properties(setup, &properties);
                let mut ended = Vec::new();
                for args in COMMANDS {
                    // every second one as JSON; all with everything that any library says
                    let format = if ended.len() % 2 == n % 2 {
                        "text"
                    } else {
                        "json"
                    };
                    let mut all = vec!["--log-format", format, "--log-level", "trace"];
                    all.extend(args);
                    let mut command = everlog.command(&all);
                    command
                        .current_dir(everlog.dir())
                        .env(
                            "EVERLOG_KAFKA__SSL_KEYSTORE_PASSWORD",
                            "canary-from-environment",
                        )
                        .env("AWS_SECRET_ACCESS_KEY", "canary-aws-secret");
                    let output = command.output().expect("run everlog");
                    let place = format!("{what}: everlog {}", args.join(" "));
                    canaries.assert_absent(&format!("{place}, standard output"), &output.stdout);
                    canaries.assert_absent(&format!("{place}, standard error"), &output.stderr);
                    ended.push(output.status.code());
                }
                let looked = canaries.assert_absent_below(everlog.dir());
                (what, ended, looked)
            }));
        }
        for world in running {
            let (what, ended, looked) = world.join().expect("a world");
            outcomes.insert(what, (ended, looked));
        }
    });
    // the rows above were really reached: all of it works in one world, and every other fails in its own way
    for what in ["all is right", "a local lake", "a database"] {
        let (ended, looked) = &outcomes[what];
        assert!(
            ended.iter().all(|code| *code == Some(0)),
            "{what}: {ended:?}"
        );
        assert!(*looked >= 2, "{what}: {looked}");
    }
    for what in [
        "a wrong user",
        "a wrong token",
        "a catalog that is away",
        "a database that is away",
    ] {
        let (ended, _) = &outcomes[what];
        assert_eq!(ended[0], Some(0), "{what}: the configuration is right");
        assert!(
            ended[2..].iter().all(|code| *code != Some(0)),
            "{what}: {ended:?}"
        );
    }
    // what the tables consist of
    let bucket = s3.folder().join("root").join("warehouse");
    let looked = canaries.assert_absent_below(&bucket);
    assert!(looked > 5, "{looked} files in {}", bucket.display());

    // what a running archiver shows of itself
    let port = free_ports(1);
    let served = right.archive(&format!("http = \"127.0.0.1:{port}\""));
    let everlog = Everlog::with_properties(&served, &plain);
    let archiver = everlog.start(&["--log-level", "trace", "archive"], "");
    eventually("it is ready", PATIENCE, || {
        get(port, "/readyz").is_some_and(|(status, _)| status == 200)
    });
    for path in ["/metrics", "/healthz", "/readyz", "/"] {
        let (_, body) = get(port, path).expect("an answer");
        canaries.assert_absent(path, body.as_bytes());
    }
    for file in ["cmdline", "comm", "status"] {
        let bytes = std::fs::read(format!("/proc/{}/{file}", archiver.pid())).expect("proc");
        canaries.assert_absent(file, &bytes);
    }
    let log = everlog.dir().to_owned();
    assert_eq!(archiver.stop(PATIENCE), Some(0));
    assert!(canaries.assert_absent_below(&log) >= 1);
}
