//! Which part the output's columns play.

use std::time::Duration;

use everlog_engine::{EventTime, Roles, Window};

use crate::log::try_query;

fn roles(sql: &str) -> Roles {
    let query = try_query(sql, EventTime::default());
    query.expect(sql).roles()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn keys_window_and_what_adds_up_are_found_by_the_names_of_the_output() {
    let found = roles(
        "SELECT count(*) FILTER (WHERE kind = 'view') AS views, SESSION_END(ts, INTERVAL '30' MINUTE) AS till, upper(user_id) AS who, \
         sum(price) AS spent, sum(amount) AS pieces, count(amount) AS known, SESSION_START(ts, INTERVAL '30' MINUTE) AS since, kind \
         FROM clicks GROUP BY kind, upper(user_id), SESSION(ts, INTERVAL '30' MINUTE)",
    );
    assert_eq!(
        found,
        Roles {
            keys: names(&["who", "kind"]),
            window: Some(Window::Session { gap: 30 * 60_000 }),
            start: Some("since".to_owned()),
            end: Some("till".to_owned()),
            conserved: names(&["views", "spent", "pieces", "known"]),
            // a session's default
            lateness_ms: 30 * 60_000,
        }
    );
}

#[test]
fn what_does_not_add_up_is_no_measure() {
    let found = roles(
        "SELECT user_id, TUMBLE_START(ts, INTERVAL '1' HOUR) AS hour, TUMBLE_END(ts, INTERVAL '1' HOUR) AS till, \
         avg(amount) AS mean, max(amount) AS most, count(DISTINCT kind) AS kinds, count(*) + 1 AS more, count(*) AS n, \
         TUMBLE_ROWTIME(ts, INTERVAL '1' HOUR) AS last \
         FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '1' HOUR)",
    );
    assert_eq!(found.keys, names(&["user_id"]));
    assert_eq!(found.start.as_deref(), Some("hour"));
    assert_eq!(found.end.as_deref(), Some("till"));
    assert_eq!(found.conserved, names(&["n"]));
    assert_eq!(found.window, Some(Window::Tumble { size: 3_600_000 }));
    assert_eq!(found.lateness_ms, 0);
}

#[test]
fn having_leaves_windows_out_so_that_nothing_adds_up() {
    let sql = "SELECT user_id, TUMBLE_START(ts, INTERVAL '1' HOUR) AS a, TUMBLE_END(ts, INTERVAL '1' HOUR) AS b, count(*) AS n \
               FROM clicks GROUP BY user_id, TUMBLE(ts, INTERVAL '1' HOUR)";
    assert_eq!(roles(sql).conserved, names(&["n"]));
    assert!(
        roles(&format!("{sql} HAVING count(*) > 2"))
            .conserved
            .is_empty()
    );
}

#[test]
fn an_edge_that_is_not_put_out_has_no_column() {
    let found = roles(
        "SELECT TUMBLE_START(ts, INTERVAL '1' HOUR) AS a, count(*) AS n FROM clicks GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)",
    );
    assert_eq!((found.start.as_deref(), found.end), (Some("a"), None));
    assert_eq!(found.keys, names(&[]));
    assert_eq!(found.window, Some(Window::Tumble { size: 3_600_000 }));
    // each record gives its row: there is nothing to sum
    assert_eq!(
        roles("SELECT user_id, amount FROM clicks"),
        Roles::default()
    );
}

#[test]
fn the_lateness_is_what_the_job_says() {
    let event_time = EventTime {
        lateness: Some(Duration::from_mins(5)),
        ..EventTime::default()
    };
    let sql = "SELECT user_id, count(*) AS n FROM clicks GROUP BY user_id, SESSION(ts, INTERVAL '10' MINUTE)";
    let found = try_query(sql, event_time).expect(sql).roles();
    assert_eq!(found.window, Some(Window::Session { gap: 600_000 }));
    assert_eq!(found.lateness_ms, 300_000);
    let kept = serde_json::to_string(&found).expect("JSON");
    assert_eq!(serde_json::from_str::<Roles>(&kept).expect("roles"), found);
}
