//! A registry that answers as it is told: what is asked, how often, and what is made of it. (The real one is asked in
//! tests/services.)

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use everlog_common::Millis;
use everlog_common::clock::SeededIds;

use super::*;
use crate::Columns;
use crate::tests::rows;

/// Time that passes only by waiting for it.
#[derive(Debug, Default)]
struct Waiting(Mutex<Vec<Duration>>);

#[async_trait::async_trait]
impl Clock for Waiting {
    fn now(&self) -> Millis {
        Millis(0)
    }

    fn elapsed(&self) -> Duration {
        self.0.lock().unwrap().iter().sum()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.lock().unwrap().push(duration);
    }
}

/// Path to the answers that come one after the other; the last one stays.
type Script = Arc<Mutex<HashMap<String, Vec<(u16, String)>>>>;

struct Fake {
    url: String,
    script: Script,
    asked: Arc<Mutex<Vec<String>>>,
    clock: Arc<Waiting>,
    folder: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(
    State((script, asked)): State<(Script, Arc<Mutex<Vec<String>>>)>,
    request: Request,
) -> (StatusCode, String) {
    let path = request.uri().path().to_owned();
    let auth = request.headers().get("authorization");
    let auth = auth.map_or("", |value| value.to_str().unwrap());
    asked
        .lock()
        .unwrap()
        .push(format!("{path} {auth}").trim_end().to_owned());
    let mut script = script.lock().unwrap();
    let Some(answers) = script.get_mut(&path) else {
        let body = r#"{"error_code":40403,"message":"Schema not found"}"#;
        return (StatusCode::NOT_FOUND, body.to_owned());
    };
    let (status, body) = if answers.len() > 1 {
        answers.remove(0)
    } else {
        answers[0].clone()
    };
    (StatusCode::from_u16(status).unwrap(), body)
}

impl Fake {
    async fn start(script: &[(&str, &[(u16, &str)])]) -> Self {
        let script: Script = Arc::new(Mutex::new(
            script
                .iter()
                .map(|(path, answers)| {
                    let answers = answers.iter().map(|(s, b)| (*s, (*b).to_owned()));
                    ((*path).to_owned(), answers.collect())
                })
                .collect(),
        ));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let router = Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&script), Arc::clone(&asked)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        #[allow(clippy::disallowed_methods, reason = "the fake owns it")]
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            url,
            script,
            asked,
            clock: Arc::default(),
            folder: tempfile::tempdir().unwrap(),
            server,
        }
    }

    fn open(&self) -> Registry {
        self.open_as(Auth::None)
    }

    fn open_as(&self, auth: Auth) -> Registry {
        let settings = RegistrySettings {
            url: self.url.clone(),
            auth,
            timeout: Duration::from_secs(5),
        };
        let clock = Arc::clone(&self.clock);
        let ids = Arc::new(SeededIds::new(1));
        Registry::open(&settings, self.folder.path(), clock, ids).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

const OUTER: &str = r#"{"schema":"{\"type\":\"record\",\"name\":\"R\",\"fields\":[{\"name\":\"a\",\"type\":\"B\"},{\"name\":\"c\",\"type\":\"C\"}]}",
    "references":[{"name":"B","subject":"b","version":1},{"name":"C","subject":"c/d","version":2}]}"#;
const B: &str = r#"{"id":11,"version":1,"subject":"b","schema":"{\"type\":\"record\",\"name\":\"B\",\"fields\":[{\"name\":\"x\",\"type\":\"C\"}]}",
    "references":[{"name":"C","subject":"c/d","version":2}]}"#;
const C: &str = r#"{"id":12,"version":2,"subject":"c/d","schema":"{\"type\":\"enum\",\"name\":\"C\",\"symbols\":[\"ONE\",\"TWO\"]}"}"#;

#[tokio::test]
async fn a_schema_is_asked_for_once_with_what_it_refers_to() {
    let fake = Fake::start(&[
        ("/schemas/ids/7", &[(200, OUTER)]),
        ("/subjects/b/versions/1", &[(200, B)]),
        ("/subjects/c%2Fd/versions/2", &[(200, C)]),
    ])
    .await;
    let mut decoder =
        Decoder::avro(Columns::parse([("a", "ROW<x STRING>"), ("c", "STRING")]).unwrap());
    let values: [&[u8]; 2] = [&[0, 0, 0, 0, 7, 2, 0], &[0, 0, 0, 0, 7, 0, 2]];
    let rows = rows(values.map(Some));
    assert!(matches!(
        decoder.decode(&rows),
        Err(crate::DecodeError::Unlearned(SchemaId(7)))
    ));
    fake.open().teach(&mut decoder, &rows).await.unwrap();
    assert_eq!(
        fake.asked(),
        [
            "/schemas/ids/7",
            "/subjects/b/versions/1",
            "/subjects/c%2Fd/versions/2"
        ]
    );
    let decoded = decoder.decode(&rows).unwrap();
    assert_eq!(decoded.dead, []);
    assert_eq!(decoded.kept.len(), 2);
    // another process, years later: the registry is gone
    fake.server.abort();
    let mut decoder = Decoder::avro(Columns::parse([("c", "STRING")]).unwrap());
    fake.open().teach(&mut decoder, &rows).await.unwrap();
    assert_eq!(decoder.decode(&rows).unwrap().kept.len(), 2);
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn what_passes_is_waited_for_and_what_does_not_ends_after_bounded_attempts() {
    let fake = Fake::start(&[
        (
            "/schemas/ids/1",
            &[(503, ""), (429, ""), (200, r#"{"schema":"\"int\""}"#)],
        ),
        (
            "/schemas/ids/2",
            &[(
                500,
                "{\"error_code\":50001,\"message\":\"store\\nis down\"}",
            )],
        ),
        ("/schemas/ids/3", &[(404, "<html>nothing here</html>")]),
    ])
    .await;
    let registry = fake.open();
    assert!(registry.schema(SchemaId(1)).await.unwrap().is_ok());
    assert_eq!(fake.asked().len(), 3);
    let waits = std::mem::take(&mut *fake.clock.0.lock().unwrap());
    assert_eq!(waits.len(), 2);
    let ms = Duration::from_millis;
    assert!((ms(100)..=ms(200)).contains(&waits[0]) && (ms(200)..=ms(400)).contains(&waits[1]));
    let error = registry.schema(SchemaId(2)).await.unwrap_err().to_string();
    let url = fake.url.trim_end_matches('/');
    assert_eq!(
        error,
        format!(
            "schema registry {url} cannot be asked for schema 2 (6 attempts): store is down (error 50001); it is needed until the schema is on disk"
        )
    );
    assert_eq!(fake.asked().len(), 6);
    let error = registry.schema(SchemaId(3)).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "{url} is no schema registry: asked for schema 3, it answered status 404: <html>nothing here</html>; check its address"
        )
    );
    assert_eq!(fake.asked().len(), 1);
    // none of it became an answer
    fake.script.lock().unwrap().insert(
        "/schemas/ids/2".to_owned(),
        vec![(200, r#"{"schema":"\"long\""}"#.to_owned())],
    );
    assert!(registry.schema(SchemaId(2)).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_number_without_schema_makes_dead_letters_now_and_ever() {
    let fake = Fake::start(&[(
        "/schemas/ids/6",
        &[(
            200,
            r#"{"schema":"\"int\"","references":[{"name":"x","subject":"gone","version":1}]}"#,
        )],
    )])
    .await;
    let mut decoder = Decoder::avro(Columns::parse([("a", "INT")]).unwrap());
    let values: [&[u8]; 2] = [&[0, 0, 0, 0, 5, 0], &[0, 0, 0, 0, 6, 0]];
    let rows = rows(values.map(Some));
    fake.open().teach(&mut decoder, &rows).await.unwrap();
    // a follower may be late: each is asked for three times
    assert_eq!(fake.asked().len(), 7);
    let dead = decoder.decode(&rows).unwrap().dead;
    assert_eq!(
        dead[0].error,
        "schema 5: the registry does not know it: Schema not found (error 40403)"
    );
    assert_eq!(
        dead[1].error,
        "schema 6: it refers to version 1 of subject gone, which is gone: Schema not found (error 40403)"
    );
    fake.server.abort();
    let mut again = Decoder::avro(Columns::parse([("a", "INT")]).unwrap());
    fake.open().teach(&mut again, &rows).await.unwrap();
    assert_eq!(again.decode(&rows).unwrap().dead, dead);
}

#[tokio::test]
async fn too_many_unknown_numbers_are_another_registry() {
    let fake = Fake::start(&[]).await;
    let registry = fake.open();
    assert!(registry.schema(SchemaId(3)).await.unwrap().is_err());
    registry.cache.pretend_unknown(UNKNOWN_MAX);
    let error = registry.schema(SchemaId(99_999)).await.unwrap_err();
    assert!(
        matches!(error, RegistryError::TooManyUnknown { .. }),
        "{error}"
    );
    assert!(registry.schema(SchemaId(3)).await.unwrap().is_err());
}

#[tokio::test]
async fn credentials_are_sent_and_their_refusal_ends_it() {
    let fake = Fake::start(&[
        ("/schemas/ids/1", &[(200, r#"{"schema":"\"int\""}"#)]),
        ("/schemas/ids/2", &[(403, "no")]),
    ])
    .await;
    let basic = Auth::Basic {
        user: "ann".to_owned(),
        password: "s3cret".to_owned(),
    };
    let registry = fake.open_as(basic);
    registry.schema(SchemaId(1)).await.unwrap().unwrap();
    assert_eq!(fake.asked(), ["/schemas/ids/1 Basic YW5uOnMzY3JldA=="]);
    assert!(!format!("{registry:?}").contains("s3cret"));
    let registry = fake.open_as(Auth::Bearer("t0ken".to_owned()));
    let error = registry.schema(SchemaId(2)).await.unwrap_err().to_string();
    assert_eq!(fake.asked(), ["/schemas/ids/2 Bearer t0ken"]);
    assert!(
        error.ends_with("refuses schema 2: status 403: no; check registry_user, registry_password or registry_token of the job, or user, password or token in [registry]"),
        "{error}"
    );
}

#[tokio::test]
async fn the_newest_schema_is_pinned() {
    let newest = |n: u32| {
        format!(
            r#"{{"id":{n},"version":{n},"subject":"t-value","schema":"{{\"type\":\"record\",\"name\":\"R\",\"fields\":[{{\"name\":\"f{n}\",\"type\":\"int\"}}]}}"}}"#
        )
    };
    let fake = Fake::start(&[(
        "/subjects/t-value/versions/latest",
        &[(200, &newest(1)), (200, &newest(2))],
    )])
    .await;
    let first = fake.open().pinned("t-value", "job-v1").await.unwrap();
    assert_eq!((first.id, first.version), (SchemaId(1), 1));
    assert_eq!(
        fake.open().pinned("t-value", "job-v1").await.unwrap(),
        first
    );
    let second = fake.open().pinned("t-value", "job-v2").await.unwrap();
    assert_eq!(second.id, SchemaId(2));
    let decoder = Decoder::avro_as(&second.schema).unwrap();
    assert_eq!(decoder.columns().to_string(), "`f2` INT NOT NULL");
    // anew under the old name
    let anew = fake.open().pin_newest("t-value", "job-v1").await.unwrap();
    assert_eq!(anew.id, second.id);
    assert_eq!(fake.open().pinned("t-value", "job-v1").await.unwrap(), anew);
    let error = fake.open().pinned("other", "job-v1").await.unwrap_err();
    assert!(matches!(error, RegistryError::NoSubject { .. }), "{error}");
}

#[test]
fn an_address_is_one_or_says_why_not() {
    for (url, why) in [
        (
            "registry:8081",
            "\"registry:8081\" is no http:// or https:// address",
        ),
        (
            "nowhere",
            "\"nowhere\" is no address (relative URL without a base)",
        ),
        (
            "http://ann:s3cret@r/",
            "\"r\" has a user or a password in it: give them by registry_user and registry_password, or user and password in [registry]",
        ),
        ("http://ann:s3cret@:x", "\"(not shown)\" is no address"),
        (
            "http://r/?a=b",
            "\"http://r/?a=b\" has a ? or # in it, which an address to ask at has not",
        ),
    ] {
        let error = check_address(url).unwrap_err();
        assert_eq!(
            error,
            format!("{why}; write it like \"http://127.0.0.1:8081\"")
        );
        assert!(!error.contains("s3cret"));
    }
    check_address("https://r:8081/apis/ccompat/v7/").unwrap();
}

#[test]
fn any_answer_is_judged() {
    let corpus = [
        OUTER,
        B,
        C,
        r#"{"error_code":40403,"message":"x"}"#,
        "<html>",
    ];
    everlog_hostile::feed_text("registry answer", &corpus, |text| {
        for status in [200, 404, 500] {
            let _ = answer::judge(status, text.as_bytes());
        }
    });
}

const SUBJECT: &str = "/subjects/events-value/versions";

#[tokio::test]
async fn subjects_and_versions_are_what_the_registry_lists() {
    let second = r#"{"subject":"events-value","id":9,"version":2,"schema":"\"long\""}"#;
    let fake = Fake::start(&[
        ("/subjects", &[(200, r#"["z","events-value"]"#)]),
        (SUBJECT, &[(503, ""), (200, "[2,1]")]),
        (&format!("{SUBJECT}/2"), &[(200, second)]),
        ("/subjects/strange/versions", &[(200, r#"["a"]"#)]),
        ("/subjects/empty/versions", &[(200, "[]")]),
    ])
    .await;
    let registry = fake.open();
    assert_eq!(registry.subjects().await.unwrap(), ["events-value", "z"]);
    assert_eq!(
        registry.versions("events-value").await.unwrap(),
        Some(vec![1, 2])
    );
    assert_eq!(registry.versions("nobody").await.unwrap(), None);
    assert_eq!(registry.versions("empty").await.unwrap(), Some(Vec::new()));
    let error = registry.versions("strange").await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
    let found = registry.version("events-value", 2).await.unwrap().unwrap();
    assert_eq!((found.id, found.version), (SchemaId(9), 2));
    assert_eq!(found.schema, RegisteredSchema::avro("\"long\""));
    assert_eq!(registry.version("events-value", 3).await.unwrap(), None);
}

#[tokio::test]
async fn the_newest_is_asked_for_each_time_and_the_last_one_seen_stands_in() {
    let of =
        |id: u32, version: u32| format!(r#"{{"id":{id},"version":{version},"schema":"\"long\""}}"#);
    let (first, second) = (of(1, 1), of(2, 2));
    let path = format!("{SUBJECT}/latest");
    let fake = Fake::start(&[(&path, &[(200, &first), (200, &second), (503, "")])]).await;
    let registry = fake.open();
    for version in [1, 2, 2] {
        let newest = registry.newest("events-value").await.unwrap().unwrap();
        assert_eq!(newest.version, version);
    }
    assert_eq!(registry.newest("nobody-value").await.unwrap(), None);
    // somebody else's folder has seen nothing
    let elsewhere = tempfile::tempdir().unwrap();
    let settings = RegistrySettings {
        url: fake.url.clone(),
        auth: Auth::None,
        timeout: Duration::from_secs(5),
    };
    let clock = Arc::clone(&fake.clock) as Arc<dyn Clock>;
    let blank = Registry::open(
        &settings,
        elsewhere.path(),
        clock,
        Arc::new(SeededIds::new(1)),
    );
    let error = blank.unwrap().newest("events-value").await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Unavailable { .. }),
        "{error}"
    );
}
