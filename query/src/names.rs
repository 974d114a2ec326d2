//! What tables are called in SQL.

use std::fmt;

/// The end of a table's name that asks for something about the table, or for more than it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suffix {
    /// Every snapshot that is still there.
    Snapshots,
    /// The live data files of the snapshot.
    Files,
    /// Which snapshot was current from when on.
    History,
    /// Per table partition, what it holds.
    Partitions,
    /// Branches and tags.
    Refs,
    /// Per Kafka partition, what the archive holds.
    Ledger,
    /// What is missing for good.
    Gaps,
    /// The archive and Kafka's tail.
    Live,
}

impl Suffix {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Snapshots,
        Self::Files,
        Self::History,
        Self::Partitions,
        Self::Refs,
        Self::Ledger,
        Self::Gaps,
        Self::Live,
    ];

    /// As it is written after the `$`.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Snapshots => "snapshots",
            Self::Files => "files",
            Self::History => "history",
            Self::Partitions => "partitions",
            Self::Refs => "refs",
            Self::Ledger => "ledger",
            Self::Gaps => "gaps",
            Self::Live => "live",
        }
    }

    /// Whether archives alone have it.
    pub(crate) const fn of_archives_only(self) -> bool {
        matches!(self, Self::Ledger | Self::Gaps | Self::Live)
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|suffix| suffix.text().eq_ignore_ascii_case(text))
    }
}

/// A table that can be asked for: an archive, a job's output, a view `NAME_v`, a named file; without its `$` tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    /// The name; quote it in SQL where it is not of letters, digits and `_` alone.
    pub name: String,
    /// What it is.
    pub kind: TableKind,
}

/// What a table is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableKind {
    /// The archive of a topic.
    Archive {
        /// The topic.
        topic: String,
    },
    /// The output of a job.
    Job {
        /// The job.
        job: String,
    },
    /// A table of somebody else's in the namespace.
    Other,
    /// An archive with its values decoded.
    View {
        /// The topic.
        topic: String,
    },
    /// A local file.
    File,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A name apart: the table's, and what follows its last `$` where that is one of ours.
pub(crate) fn split(name: &str) -> (&str, Option<Suffix>) {
    match name.rsplit_once('$') {
        Some((table, suffix)) if !table.is_empty() => match Suffix::parse(suffix) {
            Some(suffix) => (table, Some(suffix)),
            None => (name, None),
        },
        _ => (name, None),
    }
}

/// A name as SQL needs it written.
pub fn quoted(name: &str) -> String {
    let plain = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// The names most like one that is not there, the likest first; three at most.
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    /// Less alike than this is no help.
    const ALIKE: f64 = 0.7;
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(f64, &str)> = names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name))
        .filter(|(score, _)| *score >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// `did you mean a, b?`, or what there is, or that there is nothing.
pub(crate) fn hint<'a>(
    what: &str,
    wanted: &str,
    names: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    /// More names than this are not read.
    const SHOWN: usize = 12;
    let near = nearest(wanted, names.clone());
    if !near.is_empty() {
        let near: Vec<String> = near.into_iter().map(quoted).collect();
        return format!("did you mean {}?", near.join(" or "));
    }
    let mut all: Vec<&str> = names.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    if all.is_empty() {
        return format!("there are no {what}");
    }
    let more = all.len().saturating_sub(SHOWN);
    let shown: Vec<String> = all.into_iter().take(SHOWN).map(quoted).collect();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("there are {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_is_what_follows_the_last_dollar_and_is_known() {
        assert_eq!(
            split("orders$snapshots"),
            ("orders", Some(Suffix::Snapshots))
        );
        assert_eq!(split("a$b$FILES"), ("a$b", Some(Suffix::Files)));
        assert_eq!(split("orders$nothing"), ("orders$nothing", None));
        assert_eq!(split("$files"), ("$files", None));
        assert_eq!(split("orders"), ("orders", None));
    }

    #[test]
    fn the_nearest_names_come_first_and_strangers_not_at_all() {
        let names = ["orders", "orders_v", "clickstream_raw", "payments"];
        assert_eq!(nearest("order", names)[0], "orders");
        assert_eq!(nearest("ordesr", names)[0], "orders");
        assert!(nearest("xqz", names).is_empty());
        assert!(hint("tables", "xqz", names).starts_with("there are clickstream_raw, orders"));
        assert_eq!(hint("tables", "x", []), "there are no tables");
    }

    #[test]
    fn names_are_quoted_where_sql_would_read_them_otherwise() {
        assert_eq!(quoted("orders_v"), "orders_v");
        assert_eq!(quoted("Orders"), "\"Orders\"");
        assert_eq!(quoted("a\"b$files"), "\"a\"\"b$files\"");
        assert_eq!(quoted("1a"), "\"1a\"");
    }
}
