//! Which table a topic goes to.

use everlog_common::TopicName;

/// The table's name: the topic with every character outside `[A-Za-z0-9_]` as `_`. Several topics can share one; the
/// table property `everlog.topic` then decides.
pub fn table_name(topic: &TopicName) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() { c } else { '_' }
    };
    topic.as_str().chars().map(safe).collect()
}

/// The table's name as catalogs that fold case see it: two topics with one folded name clash.
pub fn folded_table_name(topic: &TopicName) -> String {
    table_name(topic).to_ascii_lowercase()
}
