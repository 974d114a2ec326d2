//! The configuration as text: the default file, the page docs/configuration.md, and what is in force.

use std::fmt::Write as _;

use super::decode;
use super::fields::{Absent, FIELDS, Field, Kind, Section};
use super::source::{Origin, Raw, Written};
use super::value::{format_bytes, format_duration, shown};

/// A key as TOML writes it: in quotes where it has a dot.
pub(super) fn toml_key(key: &str) -> String {
    let bare = key
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare && !key.is_empty() {
        key.to_owned()
    } else {
        toml_text(key)
    }
}

/// A text as TOML writes it.
pub(super) fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A field's default as TOML writes it.
fn default_text(field: &Field) -> Option<String> {
    let Absent::Default(default) = field.absent else {
        return None;
    };
    Some(match field.kind {
        Kind::Switch | Kind::Integer { .. } => default.to_owned(),
        _ => toml_text(default),
    })
}

/// What a field takes, in words.
fn takes(field: &Field) -> String {
    let millis = |ms| format_duration(std::time::Duration::from_millis(ms));
    match field.kind {
        Kind::Text => "text".to_owned(),
        Kind::TextOrEmpty => "text, may be empty".to_owned(),
        Kind::Choice(choices) => choices
            .iter()
            .map(|c| format!("`{c}`"))
            .collect::<Vec<_>>()
            .join(" or "),
        Kind::List => "list of texts".to_owned(),
        Kind::Duration { min, max } => {
            format!(
                "duration (`ms`, `s`, `m`, `h`, `d`), {} to {}",
                millis(min),
                millis(max)
            )
        }
        Kind::Bytes { min, max } => format!(
            "size (`KiB`, `MiB`, `GiB`), {} to {}",
            format_bytes(min),
            format_bytes(max)
        ),
        Kind::Integer { min, max } => format!("whole number, {min} to {max}"),
        Kind::Switch => "`true` or `false`".to_owned(),
    }
}

/// What more there is to know of a field. Bounds have a small and a large side; switches and texts just have a remark.
fn remarks(field: &Field) -> impl Iterator<Item = (Option<&'static str>, &'static str)> {
    let bounded = matches!(
        field.kind,
        Kind::Duration { .. } | Kind::Bytes { .. } | Kind::Integer { .. }
    );
    [
        ("Too small", field.too_small),
        ("Too large", field.too_large),
    ]
    .into_iter()
    .filter(|(_, more)| !more.is_empty())
    .map(move |(label, more)| (bounded.then_some(label), more))
}

/// A whole commented file: what has a default stands as a comment, what has none as an example to change.
pub(crate) fn default_file() -> String {
    let mut out = String::from(
        "# everlog's configuration. Keys behind a # show their default, or an example where there is none.\n\
         # Every key can be set by a variable as well: EVERLOG_<SECTION>__<KEY>, for instance\n\
         # EVERLOG_ARCHIVE__COMMIT_INTERVAL=5s or EVERLOG_KAFKA__BOOTSTRAP_SERVERS=broker:9092.\n\
         # `everlog config check` checks it, `everlog config print` shows what is in force.\n",
    );
    for section in Section::ALL {
        let _ = writeln!(out, "\n[{}]", section.name());
        comment(&mut out, section.about());
        for field in FIELDS.iter().filter(|f| f.section == section) {
            out.push('\n');
            comment(&mut out, field.what);
            for (label, more) in remarks(field) {
                match label {
                    Some(label) => comment(&mut out, &format!("{label}: {more}")),
                    None => comment(&mut out, more),
                }
            }
            let key = toml_key(field.key);
            match field.absent {
                Absent::Required(_) => {
                    let _ = writeln!(out, "{key} = {}", field.example);
                }
                Absent::Means(what) => {
                    comment(&mut out, &format!("Without it: {what}."));
                    let _ = writeln!(out, "# {key} = {}", field.example);
                }
                Absent::Default(_) => {
                    let _ = writeln!(out, "# {key} = {}", default_text(field).unwrap_or_default());
                }
            }
        }
        if section == Section::Catalog {
            out.push('\n');
            comment(
                &mut out,
                "An S3-compatible store, where the catalog does not vend credentials:",
            );
            for line in [
                "\"s3.endpoint\" = \"http://127.0.0.1:9000\"",
                "\"s3.region\" = \"us-east-1\"",
                "\"s3.access-key-id\" = \"…\"",
                "\"s3.secret-access-key\" = \"…\"",
                "\"s3.path-style-access\" = true",
            ] {
                let _ = writeln!(out, "# {line}");
            }
        }
    }
    out.push('\n');
    comment(&mut out, decode::ABOUT);
    for line in decode::EXAMPLE.lines() {
        let _ = writeln!(out, "# {line}");
    }
    out
}

/// Writes a comment, wrapped.
fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > 110 {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

/// docs/configuration.md.
pub(crate) fn reference() -> String {
    let mut out = String::from(
        "<!-- Generated by `everlog config docs`; a test compares. Change cli/src/settings/fields.rs instead. -->\n\
         # Configuration\n\n\
         everlog reads one TOML file: `everlog.toml` in the working directory, or the one that `--config` names. \
         Keys that it does not know are errors, and all problems are reported at once by their key.\n\n\
         - `everlog config check` checks the file and the environment, and asks no server.\n\
         - `everlog config print` shows what is in force and where each value comes from; secrets are replaced.\n\
         - `everlog config print --default` writes a commented file to begin with.\n\n",
    );
    out.push_str(ENVIRONMENT);
    for section in Section::ALL {
        let _ = write!(
            out,
            "\n## `[{}]`\n\n{}\n\n",
            section.name(),
            section.about()
        );
        out.push_str("| key | takes | without it | what it does |\n|---|---|---|---|\n");
        for field in FIELDS.iter().filter(|f| f.section == section) {
            let absent = match field.absent {
                Absent::Required(when) => format!("needed {when}"),
                Absent::Means(what) => what.to_owned(),
                Absent::Default(_) => format!("`{}`", default_text(field).unwrap_or_default()),
            };
            let mut what = field.what.to_owned();
            for (label, more) in remarks(field) {
                match label {
                    Some(label) => {
                        let _ = write!(what, " *{label}:* {more}");
                    }
                    None => {
                        let _ = write!(what, " {more}");
                    }
                }
            }
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} |",
                toml_key(field.key),
                cell(&takes(field)),
                cell(&absent),
                cell(&what)
            );
        }
        out.push_str(match section {
            Section::Kafka => KAFKA_NOTES,
            Section::Catalog => CATALOG_NOTES,
            Section::Registry => REGISTRY_NOTES,
            Section::Archive | Section::Replay => "",
        });
    }
    out.push_str(decode::REFERENCE);
    out
}

/// A text inside a table of Markdown.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

const ENVIRONMENT: &str = "\
## Environment

`EVERLOG_<SECTION>__<KEY>` sets any value and wins over the file. Section and key are in capitals.

| in the variable | stands for |
|---|---|
| `_` | `_`, `.` or `-` in the key |
| `__` after the section | `.` in the key |

The keys that can be meant are those that stand in the file and those that everlog knows. Exactly one must fit: a variable
that fits two is an error. Where none fits, `[kafka]` reads every `_` as a `.` (all of librdkafka's names are of that
form), and `[catalog]` wants it literally: `__` for `.`, `_` for `-`.

| variable | key |
|---|---|
| `EVERLOG_ARCHIVE__COMMIT_INTERVAL=5s` | `commit_interval` in `[archive]` |
| `EVERLOG_ARCHIVE__TOPICS=a,b` or `EVERLOG_ARCHIVE__TOPICS=[\"^a{1,2}\", \"b\"]` | `topics` in `[archive]` |
| `EVERLOG_KAFKA__BOOTSTRAP_SERVERS=broker:9092` | `\"bootstrap.servers\"` in `[kafka]` |
| `EVERLOG_CATALOG__S3_ACCESS_KEY_ID=…` | `\"s3.access-key-id\"` in `[catalog]` |
| `EVERLOG_CATALOG__HEADER__X_TENANT=…` | `\"header.x-tenant\"` in `[catalog]` |

Variables without `__` after their first word are not read as configuration; neither is anything that does not begin with
`EVERLOG_`. The level of the log is `--log-level` or `RUST_LOG`.
";

const KAFKA_NOTES: &str = "
Set by everlog itself and refused here: `auto.offset.reset`, `enable.auto.commit`, `enable.auto.offset.store`,
`enable.partition.eof`, `enable.idempotence`, `transactional.id`, and `group.id` and `isolation.level`, which are `group` and
`isolation` in `[archive]`. Two properties are everlog's own: `everlog.request.timeout.ms` (default 10000) bounds each request
to the cluster. `everlog.fetch.client` says who fetches records outside of consumer groups: `everlog` (the default), or `librdkafka`, as in groups. everlog's own client takes several
times less CPU time per record and obeys librdkafka's properties; where one is set that it does not know (`client.rack`, Kerberos, OAUTHBEARER, keystores …) librdkafka reads, and the log says at level info for which. A cluster with TLS and SASL needs, for instance:

```toml
[kafka]
\"bootstrap.servers\" = \"broker-1:9093,broker-2:9093\"
\"security.protocol\" = \"SASL_SSL\"
\"sasl.mechanism\" = \"SCRAM-SHA-512\"
\"sasl.username\" = \"everlog\"
# EVERLOG_KAFKA__SASL_PASSWORD in the environment
```
";

const REGISTRY_NOTES: &str = "
TLS trusts this system's authorities, or those in the file that the variable `SSL_CERT_FILE` names.
";

const CATALOG_NOTES: &str = "
Names without a dot are checked; besides the ones above these are known: `prefix`, `token`, `credential`, `scope`, `audience`,
`resource`, `oauth2-server-uri`. Object stores take Iceberg's names: `s3.endpoint`, `s3.region`, `s3.access-key-id`,
`s3.secret-access-key`, `s3.session-token`, `s3.path-style-access`, `gcs.…`, `adls.…`. Credentials that a REST catalog vends win
over these. Waiting is bounded by `everlog.catalog.connect-timeout` (of `rest`), `everlog.catalog.request-timeout`,
`everlog.storage.connect-timeout`, `everlog.storage.request-timeout`, `everlog.storage.retry-timeout` (durations) and `everlog.storage.max-retries`.

Only files in a table's own folder are touched, and with `type = \"sql\"` only tables in the warehouse. `everlog.storage.allowed-locations` lists
folders, as URIs with commas in between, where files may be besides: an older warehouse, a `write.data.path` elsewhere.
TLS trusts this system's authorities, or those in the file that the variable `SSL_CERT_FILE` names.
";

/// The configuration in force as TOML: each value with its place, secrets replaced.
pub(crate) fn effective(raw: &Raw) -> String {
    let mut out = String::new();
    for section in Section::ALL {
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = writeln!(out, "[{}]", section.name());
        for field in FIELDS.iter().filter(|f| f.section == section) {
            let key = toml_key(field.key);
            match (raw.get(section, field.key), field.absent) {
                (Some(located), _) => {
                    let value = value_text(field, &located.value);
                    let _ = writeln!(out, "{key} = {value}  # {}", origin(&located.origin));
                }
                (None, Absent::Default(_)) => {
                    let value = default_text(field).unwrap_or_default();
                    let _ = writeln!(out, "{key} = {value}  # default");
                }
                (None, Absent::Means(what)) => {
                    let _ = writeln!(out, "# {key} is not set: {what}");
                }
                (None, Absent::Required(when)) => {
                    let _ = writeln!(out, "# {key} is not set: needed {when}");
                }
            }
        }
        let others = raw
            .section(section)
            .filter(|(key, _)| super::fields::find(section, key).is_none());
        for (key, located) in others {
            let value = match &located.value {
                Written::Text(text) => toml_text(&shown(key, text)),
                Written::Integer(number) | Written::Float(number) => toml_raw(&shown(key, number)),
                Written::Switch(switch) => switch.to_string(),
                Written::List(_) | Written::Other(_) => continue,
            };
            let _ = writeln!(
                out,
                "{} = {value}  # {}",
                toml_key(key),
                origin(&located.origin)
            );
        }
    }
    out.push_str(&decode::effective(raw.decodes()));
    out
}

/// A number, unless it was replaced because its name looks secret.
fn toml_raw(text: &str) -> String {
    if text.parse::<f64>().is_ok() {
        text.to_owned()
    } else {
        toml_text(text)
    }
}

fn value_text(field: &Field, value: &Written) -> String {
    match value {
        Written::Text(text) => match field.kind {
            Kind::Switch | Kind::Integer { .. } => text.clone(),
            _ => toml_text(&shown(field.key, text)),
        },
        Written::Integer(text) | Written::Float(text) => text.clone(),
        Written::Switch(switch) => switch.to_string(),
        Written::List(items) => {
            let items: Vec<String> = items.iter().flatten().map(|i| toml_text(i)).collect();
            format!("[{}]", items.join(", "))
        }
        Written::Other(what) => toml_text(what),
    }
}

fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Line(line) => format!("line {line}"),
        Origin::Variable(name) => name.clone(),
    }
}
