//! What a registry's answers mean. Pure.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::SchemaId;

/// Characters of an answer that a message shows.
const SHOWN_CHARS: usize = 160;

/// A schema as one answer has it: what it refers to is named, not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: String,
    pub(super) text: String,
    pub(super) references: Vec<Subject>,
    /// Where it was asked for by subject.
    pub(super) id: Option<SchemaId>,
    pub(super) version: Option<i64>,
}

/// A version of a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) version: i64,
}

/// A list, of versions or of subjects; an empty one may be either.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Listed {
    Numbers(Vec<i64>),
    Names(Vec<String>),
}

/// What was found in the end.
#[derive(Debug)]
pub(super) enum Reply<T> {
    Found(T),
    /// It is not there, by the registry's own word.
    Missing(String),
}

/// What one answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged<T> {
    Found(T),
    /// The registry's own word that there is no such thing.
    Missing(String),
    Unauthorized(String),
    /// To be asked again.
    Transient(String),
    /// No registry says such a thing.
    Strange(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SchemaBody {
    schema: String,
    schema_type: Option<String>,
    #[serde(default)]
    references: Option<Vec<ReferenceBody>>,
    id: Option<u32>,
    version: Option<i64>,
}

#[derive(Deserialize)]
struct ReferenceBody {
    subject: String,
    version: i64,
}

#[derive(Deserialize)]
struct ErrorBody {
    error_code: i64,
    #[serde(default)]
    message: String,
}

/// Judges an answer. A missing thing is told by the protocol's error body, never by the status alone: a proxy, or another
/// server at that address, says 404 as well, and every record would become a dead letter for it.
pub(super) fn judge(status: u16, body: &[u8]) -> Judged<Found> {
    judge_as(status, body, |body: SchemaBody| Found {
        kind: body.schema_type.unwrap_or_else(|| "AVRO".to_owned()),
        text: body.schema,
        references: body
            .references
            .unwrap_or_default()
            .into_iter()
            .map(|r| Subject {
                name: r.subject,
                version: r.version,
            })
            .collect(),
        id: body.id.map(SchemaId),
        version: body.version,
    })
}

/// The same of a list.
pub(super) fn judge_list(status: u16, body: &[u8]) -> Judged<Listed> {
    judge_as(status, body, |list| list)
}

fn judge_as<B: DeserializeOwned, T>(
    status: u16,
    body: &[u8],
    read: impl FnOnce(B) -> T,
) -> Judged<T> {
    let error = serde_json::from_slice::<ErrorBody>(body).ok();
    let said = match &error {
        Some(error) if !error.message.is_empty() => {
            format!("{} (error {})", line(&error.message), error.error_code)
        }
        Some(error) => format!("error {}", error.error_code),
        None => format!("status {status}: {}", line(&String::from_utf8_lossy(body))),
    };
    match (status, error) {
        (200..=299, _) => match serde_json::from_slice(body) {
            Ok(body) => Judged::Found(read(body)),
            Err(error) => Judged::Strange(format!("{said} ({error})")),
        },
        (401 | 403, _) => Judged::Unauthorized(said),
        (404, Some(error)) if (40_400..40_500).contains(&error.error_code) => Judged::Missing(said),
        (408 | 425 | 429 | 500..=599, _) => Judged::Transient(said),
        _ => Judged::Strange(said),
    }
}

fn line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(SHOWN_CHARS)
        .collect();
    if line.is_empty() {
        "nothing".to_owned()
    } else {
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_the_protocol_says() {
        let found = judge(
            200,
            br#"{"schema":"\"string\"","references":[{"name":"a.B","subject":"b","version":3}],"id":7,"version":2,"more":1}"#,
        );
        assert_eq!(
            found,
            Judged::Found(Found {
                kind: "AVRO".to_owned(),
                text: "\"string\"".to_owned(),
                references: vec![Subject {
                    name: "b".to_owned(),
                    version: 3
                }],
                id: Some(SchemaId(7)),
                version: Some(2),
            })
        );
        let proto = judge(
            200,
            br#"{"schema":"x","schemaType":"PROTOBUF","references":null}"#,
        );
        assert!(matches!(proto, Judged::Found(f) if f.kind == "PROTOBUF"));
        assert_eq!(
            judge(
                404,
                br#"{"error_code":40403,"message":"Schema 7\nnot found"}"#
            ),
            Judged::Missing("Schema 7 not found (error 40403)".to_owned())
        );
        for (status, body) in [
            (404, "<html>not here</html>"),
            (404, "{\"error_code\":404}"),
            (302, ""),
            (200, "{}"),
            (400, ""),
        ] {
            assert!(
                matches!(judge(status, body.as_bytes()), Judged::Strange(_)),
                "{status} {body}"
            );
        }
        assert_eq!(
            judge_list(200, b"[2, 1]"),
            Judged::Found(Listed::Numbers(vec![2, 1]))
        );
        assert_eq!(
            judge_list(200, br#"["a-value"]"#),
            Judged::Found(Listed::Names(vec!["a-value".to_owned()]))
        );
        assert!(matches!(judge_list(200, b"{}"), Judged::Strange(_)));
        for status in [429, 500, 502, 503, 504] {
            assert!(matches!(judge(status, b""), Judged::Transient(_)));
        }
        assert!(
            matches!(judge(401, b""), Judged::Unauthorized(why) if why == "status 401: nothing")
        );
    }
}
