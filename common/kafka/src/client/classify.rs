//! librdkafka's errors as what the caller must do. Pure.

use everlog_common::Offset;

use super::ffi::{Code, Failure};
use crate::{LogError, PartitionFault};

/// What a failed request means. `last` is what the client logged last: a timeout alone never says why.
pub(super) fn request(what: &str, failure: &Failure, last: Option<String>) -> LogError {
    let what = what.to_owned();
    let last = last.filter(|_| waited_in_vain(failure.code));
    let detail = match &last {
        Some(line) => format!("{} ({line})", failure.text),
        None => failure.text.clone(),
    };
    if let Some(advice) = last.as_deref().and_then(not_let_in) {
        // first what to do: the client's own words may be cut off
        let detail = format!("{advice}: {detail}");
        return LogError::Denied { what, detail };
    }
    if denied(failure.code) {
        return LogError::Denied { what, detail };
    }
    match failure.code {
        Code::INVALID_ARG
        | Code::UNSUPPORTED_FEATURE
        | Code::CONFLICT
        | Code::UNSUPPORTED_VERSION
        | Code::INVALID_REQUEST
        | Code::INVALID_GROUP_ID
        | Code::INCONSISTENT_GROUP_PROTOCOL => LogError::Invalid { what, detail },
        Code::FATAL | Code::DESTROY | Code::FENCED => LogError::Closed(format!("{what}: {detail}")),
        _ => LogError::Unavailable { what, detail },
    }
}

fn waited_in_vain(code: Code) -> bool {
    matches!(
        code,
        Code::TIMED_OUT | Code::TRANSPORT | Code::ALL_BROKERS_DOWN
    )
}

/// Whether a line of the client tells of a door that stays shut, of this side or of theirs, and then what to look at.
fn not_let_in(line: &str) -> Option<&'static str> {
    let line = line.to_ascii_lowercase();
    let tells = |words: &[&str]| words.iter().any(|word| line.contains(word));
    if tells(&["certificate verify failed"]) {
        return Some(
            "the broker's certificate must be of an authority in ssl.ca.location, for the host name by which the broker is \
             called, and not expired",
        );
    }
    if tells(&[
        "alert bad certificate",
        "alert certificate required",
        "alert unknown ca",
        "alert certificate unknown",
        "alert certificate expired",
    ]) {
        return Some(
            "the broker wants another certificate of this client, or one at all: look at ssl.certificate.location and \
             ssl.key.location",
        );
    }
    tells(&["authentication"]).then_some("look at sasl.mechanism, sasl.username and sasl.password")
}

pub(super) fn denied(code: Code) -> bool {
    matches!(
        code,
        Code::AUTHENTICATION
            | Code::TOPIC_AUTHORIZATION_FAILED
            | Code::GROUP_AUTHORIZATION_FAILED
            | Code::CLUSTER_AUTHORIZATION_FAILED
            | Code::SASL_AUTHENTICATION_FAILED
    )
}

/// Whether the topic or partition is not there (any more).
pub(super) fn gone(code: Code) -> bool {
    matches!(
        code,
        Code::UNKNOWN_TOPIC_OR_PART
            | Code::UNKNOWN_TOPIC_ID
            | Code::INCONSISTENT_TOPIC_ID
            | Code::NO_SUCH_TOPIC
            | Code::NO_SUCH_PARTITION
    )
}

/// What the client mends by itself: reconnecting, another leader, a coordinator.
pub(super) fn mends_itself(code: Code) -> bool {
    matches!(
        code,
        Code::TRANSPORT
            | Code::RESOLVE
            | Code::ALL_BROKERS_DOWN
            | Code::TIMED_OUT
            | Code::WAIT_COORD
            | Code::MAX_POLL_EXCEEDED
    )
}

/// Why a partition stopped, from the error message that the client put into its queue.
pub(super) fn partition(code: Code, text: &str, offset: i64) -> PartitionFault {
    let text = text.to_owned();
    if gone(code) {
        return PartitionFault::Gone(text);
    }
    if denied(code) {
        return PartitionFault::Denied(text);
    }
    match code {
        Code::LOG_TRUNCATION => PartitionFault::Truncated(text),
        Code::AUTO_OFFSET_RESET | Code::OFFSET_OUT_OF_RANGE => {
            if speaks_of_truncation(&text) {
                PartitionFault::Truncated(text)
            } else {
                PartitionFault::OutOfRange {
                    offset: Offset::new(offset).ok(),
                    detail: text,
                }
            }
        }
        Code::BAD_MSG
        | Code::BAD_COMPRESSION
        | Code::NOT_IMPLEMENTED
        | Code::UNDERFLOW
        | Code::INVALID_MSG
        | Code::UNSUPPORTED_COMPRESSION_TYPE => PartitionFault::Corrupt(text),
        _ => PartitionFault::Other(text),
    }
}

/// The client reports truncation under the code of an offset reset; only its words tell (librdkafka 2.12.1, pinned).
fn speaks_of_truncation(text: &str) -> bool {
    text.contains("log truncation detected") || text.contains("No epoch found less or equal")
}

/// Where an epoch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EpochEnd {
    At(Offset),
    /// The broker does not know the epoch.
    Unknown,
}

/// The words of a truncation report; none when these are other words.
pub(super) fn epoch_end(text: &str) -> Option<EpochEnd> {
    if text.contains("No epoch found less or equal") {
        return Some(EpochEnd::Unknown);
    }
    let (_, rest) = text.split_once("broker end offset is ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let offset = digits.parse().ok().and_then(|o| Offset::new(o).ok())?;
    Some(EpochEnd::At(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUNCATED: &str = "fetch failed due to requested offset not available on the broker: Partition log truncation \
        detected at offset 500 (leader epoch 0): broker end offset is 110 (offset leader epoch 0). Reset to INVALID.";
    const UNKNOWN: &str =
        "No epoch found less or equal to offset 5 (leader epoch 7): broker end offset is -1";

    #[test]
    fn offset_resets_are_told_apart_by_their_words() {
        let reset = Code::AUTO_OFFSET_RESET;
        for text in [TRUNCATED, UNKNOWN] {
            let fault = partition(reset, text, -1001);
            assert!(matches!(fault, PartitionFault::Truncated(_)), "{fault:?}");
        }
        assert_eq!(
            partition(reset, "Broker: Offset out of range", 10),
            PartitionFault::OutOfRange {
                offset: Some(Offset::new(10).unwrap()),
                detail: "Broker: Offset out of range".into()
            }
        );
        let end = EpochEnd::At(Offset::new(110).unwrap());
        assert_eq!(epoch_end(TRUNCATED), Some(end));
        assert_eq!(epoch_end(UNKNOWN), Some(EpochEnd::Unknown));
        assert_eq!(epoch_end("Broker: Offset out of range"), None);
    }

    #[test]
    fn any_words_of_the_client_are_an_epochs_end_or_none() {
        everlog_hostile::feed_text("truncation report", &[TRUNCATED, UNKNOWN], |text| {
            let _ = epoch_end(text);
            let _ = partition(Code::AUTO_OFFSET_RESET, text, -1001);
        });
    }

    #[test]
    fn a_timeout_says_what_the_client_logged_and_bad_credentials_are_no_timeout() {
        let timeout = Failure::timed_out();
        let refused = request("bounds", &timeout, Some("Connect failed: refused".into()));
        assert!(refused.is_transient() && refused.to_string().contains("refused"));
        let denied = request(
            "bounds",
            &timeout,
            Some("SASL authentication error: Authentication failed".into()),
        );
        assert!(matches!(denied, LogError::Denied { .. }));
        assert!(denied.to_string().contains("sasl.password"), "{denied}");
    }

    #[test]
    fn a_certificate_that_is_not_accepted_is_no_timeout_on_either_side() {
        for (line, advice) in [
            (
                "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: x",
                "ssl.ca.location",
            ),
            (
                "Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL alert number 42",
                "ssl.certificate.location",
            ),
            (
                "error:0A00045C:SSL routines::tlsv13 alert certificate required",
                "ssl.certificate.location",
            ),
        ] {
            let denied = request("bounds", &Failure::timed_out(), Some(line.into()));
            assert!(matches!(denied, LogError::Denied { .. }), "{denied:?}");
            let text = denied.to_string();
            assert!(text.contains(advice) && text.contains(line), "{text}");
        }
        let reset = request("bounds", &Failure::timed_out(), Some("Disconnected".into()));
        assert!(reset.is_transient(), "{reset:?}");
    }
}
