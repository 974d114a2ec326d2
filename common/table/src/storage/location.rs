//! From a URI, as table metadata holds it, to a store and a key in it.

use object_store::path::Path;

use super::StorageError;

/// The kind of store a URI belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scheme {
    /// Local files.
    File,
    /// S3 and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Data Lake Storage, Azure Blob Storage.
    Azure,
    /// Whatever an injected store stands for.
    Any,
}

/// A parsed URI.
///
/// * `base` + `key` is the URI again (up to doubled and trailing slashes of local paths).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) scheme: Scheme,
    /// Bucket, or `container@account-host`; empty for local files.
    pub(super) authority: String,
    pub(super) key: Path,
    base: String,
    /// How much of the key is the authority (injected stores only), with its slash.
    key_skip: usize,
}

impl Location {
    /// Reads the URI of a configured store.
    pub(super) fn parse(uri: &str) -> Result<Self, StorageError> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Self::parse_file(uri);
        };
        let scheme = match scheme {
            "file" => return Self::parse_file(uri),
            "s3" | "s3a" | "s3n" => Scheme::S3,
            "gs" | "gcs" => Scheme::Gcs,
            "abfss" | "abfs" | "wasbs" | "wasb" => Scheme::Azure,
            other => {
                let message =
                    format!("has the scheme `{other}`, which is none of file, s3, s3a, gs, abfss");
                return Err(refused(uri, message));
            }
        };
        let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() {
            return Err(refused(uri, "names no bucket".into()));
        }
        Ok(Self {
            scheme,
            authority: authority.to_owned(),
            key: parse_key(uri, key)?,
            base: prefix_of(uri, key),
            key_skip: 0,
        })
    }

    /// Reads a URI of any scheme, or none; the authority becomes the key's first part.
    pub(super) fn parse_any(uri: &str) -> Result<Self, StorageError> {
        let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
        let (authority, key) = rest.split_once('/').unwrap_or((rest, ""));
        let (whole, key_skip) = if authority.is_empty() {
            (key.to_owned(), 0)
        } else {
            (format!("{authority}/{key}"), authority.len() + 1)
        };
        Ok(Self {
            scheme: Scheme::Any,
            authority: authority.to_owned(),
            key: parse_key(uri, &whole)?,
            base: prefix_of(uri, key),
            key_skip,
        })
    }

    /// `file:///a/b`, `file:/a/b` (as Hadoop writes it) or `/a/b`.
    fn parse_file(uri: &str) -> Result<Self, StorageError> {
        let path = uri.strip_prefix("file:").unwrap_or(uri);
        let path = match path.strip_prefix("//") {
            None => path,
            Some(rest) if rest.starts_with('/') => rest,
            Some(rest) => rest
                .strip_prefix("localhost")
                .filter(|path| path.starts_with('/'))
                .ok_or_else(|| refused(uri, "names a host; write file:///path".into()))?,
        };
        if !path.starts_with('/') {
            return Err(refused(uri, "is neither a URI nor an absolute path".into()));
        }
        let kept: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let first = path.find(|c| c != '/').unwrap_or(path.len());
        let base = prefix_of(uri, path.get(first..).unwrap_or_default());
        Ok(Self {
            scheme: Scheme::File,
            authority: String::new(),
            key: parse_key(uri, &kept.join("/"))?,
            base,
            key_skip: 0,
        })
    }

    /// Whether `other` is this folder, or something below it.
    pub(super) fn contains(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && bucket(self) == bucket(other)
            && (self.key.is_root() || other.key.prefix_matches(&self.key))
    }

    /// The URI of another key of the same store, written like this one.
    pub(super) fn uri_of(&self, key: &Path) -> String {
        let key = key.as_ref().get(self.key_skip..).unwrap_or_default();
        let slash = if self.base.ends_with('/') { "" } else { "/" };
        format!("{}{slash}{key}", self.base)
    }
}

/// What stands before `key`, which ends the URI.
fn prefix_of(uri: &str, key: &str) -> String {
    uri.strip_suffix(key).unwrap_or(uri).to_owned()
}

/// One container has two names for its account's host, `….dfs.…` and `….blob.…`.
fn bucket(location: &Location) -> &str {
    let authority = location.authority.as_str();
    match (location.scheme, authority.split_once('@')) {
        (Scheme::Azure, Some((container, host))) => {
            let account = host.split('.').next().unwrap_or(host);
            authority
                .get(..container.len() + 1 + account.len())
                .unwrap_or(authority)
        }
        _ => authority,
    }
}

/// What a server, a proxy or a file system may take for `.` or `..` after decoding is no part of a name.
fn climbs(key: &str) -> bool {
    key.split('/')
        .filter(|part| part.contains('%'))
        .any(|part| {
            let decoded = percent_encoding::percent_decode_str(part).decode_utf8_lossy();
            decoded
                .split(['/', '\\'])
                .any(|part| matches!(part, "." | ".."))
        })
}

fn parse_key(uri: &str, key: &str) -> Result<Path, StorageError> {
    if climbs(key) {
        return Err(refused(
            uri,
            "has a part that decodes to `.` or `..`".into(),
        ));
    }
    Path::parse(key).map_err(|error| refused(uri, format!("is not usable: {error}")))
}

fn refused(uri: &str, message: String) -> StorageError {
    StorageError::Location {
        uri: uri.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uri: &str, scheme: Scheme, authority: &str, key: &str) {
        let location = Location::parse(uri).expect(uri);
        assert_eq!(location.scheme, scheme, "{uri}");
        assert_eq!(location.authority, authority, "{uri}");
        assert_eq!(location.key.as_ref(), key, "{uri}");
    }

    #[test]
    fn uris_of_every_kind_are_read_without_decoding() {
        check("/a/b c/d%20e/ü", Scheme::File, "", "a/b c/d%20e/ü");
        check("file:///a/b", Scheme::File, "", "a/b");
        check("file:/a/b", Scheme::File, "", "a/b");
        check("file://localhost/a/b", Scheme::File, "", "a/b");
        check("/a//b/", Scheme::File, "", "a/b");
        check(
            "s3://bucket/k/a b/c%2Fd?x#y",
            Scheme::S3,
            "bucket",
            "k/a b/c%2Fd?x#y",
        );
        check("s3a://bucket/k", Scheme::S3, "bucket", "k");
        check("s3://bucket", Scheme::S3, "bucket", "");
        check("gs://bucket/k", Scheme::Gcs, "bucket", "k");
        check(
            "abfss://c@acc.dfs.core.windows.net/k",
            Scheme::Azure,
            "c@acc.dfs.core.windows.net",
            "k",
        );
    }

    #[test]
    fn what_is_no_location_is_refused_with_the_reason() {
        for uri in [
            "lake/x",
            "file://lake/x",
            "hdfs://n/x",
            "s3:///x",
            "s3://b/a//b",
            "/a/../b",
            "/a/./b",
            "s3://b/a/../../c/x",
            "s3://b/a/%2e%2e/x",
            "s3://b/a/%2E./x",
            "s3://b/a/..%2fx",
            "s3://b/a/x%5c..%5Cy",
            "file:///a/%2e%2e/%2e%2e/etc/passwd",
            "file:../x",
        ] {
            let error = Location::parse(uri).expect_err(uri);
            assert!(error.to_string().contains(uri), "{error}");
        }
    }

    #[test]
    fn a_folder_contains_itself_and_what_is_below_it_in_the_same_store() {
        let location = |uri: &str| Location::parse(uri).expect(uri);
        let cases = [
            (
                "s3://b/t",
                &["s3://b/t", "s3a://b/t/x", "s3n://b/t/x/y", "s3://b/t/"][..],
            ),
            ("s3://b", &["s3://b/x"]),
            (
                "file:///lake/t",
                &["/lake/t/x", "file:/lake/t/x", "file://localhost/lake//t/x"],
            ),
            (
                "abfss://c@a.dfs.core.windows.net/t",
                &["wasbs://c@a.blob.core.windows.net/t/x"],
            ),
        ];
        for (folder, inside) in cases {
            for uri in inside {
                assert!(location(folder).contains(&location(uri)), "{folder} {uri}");
            }
        }
        let cases = [
            (
                "s3://b/t",
                &[
                    "s3://b/t2/x",
                    "s3://b/x",
                    "s3://b",
                    "s3://c/t/x",
                    "gs://b/t/x",
                    "/b/t/x",
                ][..],
            ),
            (
                "file:///lake/t",
                &["/lake/t2/x", "/etc/passwd", "/lake", "s3://lake/t/x"],
            ),
            (
                "abfss://c@a.dfs.core.windows.net/t",
                &[
                    "abfss://c@other.dfs.core.windows.net/t/x",
                    "abfss://d@a.dfs.core.windows.net/t/x",
                ],
            ),
        ];
        for (folder, outside) in cases {
            for uri in outside {
                assert!(!location(folder).contains(&location(uri)), "{folder} {uri}");
            }
        }
    }

    #[test]
    fn listed_uris_are_written_like_the_prefix() {
        let key = Path::parse("a/b/c d").expect("path");
        let cases = [
            ("/a/b", "/a/b/c d"),
            ("file:///a/b/", "file:///a/b/c d"),
            ("file:/a", "file:/a/b/c d"),
            ("s3a://bucket/a", "s3a://bucket/a/b/c d"),
            ("s3://bucket", "s3://bucket/a/b/c d"),
            ("s3://bucket/", "s3://bucket/a/b/c d"),
        ];
        for (prefix, expected) in cases {
            assert_eq!(
                Location::parse(prefix).expect(prefix).uri_of(&key),
                expected,
                "{prefix}"
            );
        }
    }

    #[test]
    fn injected_stores_keep_the_authority_in_the_key() {
        let location = Location::parse_any("memory://lake/t/f").expect("uri");
        assert_eq!(location.key.as_ref(), "lake/t/f");
        let other = Path::parse("lake/t/g").expect("path");
        assert_eq!(location.uri_of(&other), "memory://lake/t/g");
        let rooted = Location::parse_any("memory:///t/f").expect("uri");
        assert_eq!(rooted.key.as_ref(), "t/f");
        assert_eq!(rooted.uri_of(&rooted.key), "memory:///t/f");
        assert_eq!(
            Location::parse_any("/t/f").expect("uri").key.as_ref(),
            "t/f"
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_listed_is_what_was_written(
            parts in proptest::collection::vec("[^/\\x00-\\x1f\\x7f]{1,8}", 1..5),
            base in proptest::sample::select(vec![
                "/", "file:///", "file:/", "s3://bucket/", "s3a://bucket/", "gs://bucket/",
                "abfss://c@a.dfs.core.windows.net/",
            ]),
        ) {
            proptest::prop_assume!(parts.iter().all(|part| part != "." && part != ".." && !climbs(part)));
            let uri = format!("{base}{}", parts.join("/"));
            let location = Location::parse(&uri).expect("uri");
            proptest::prop_assert_eq!(location.uri_of(&location.key), uri.clone());
            let prefix = Location::parse(base).expect("prefix");
            proptest::prop_assert_eq!(prefix.uri_of(&location.key), uri.clone());
            let any = Location::parse_any(&uri).expect("uri");
            if base.contains("://") {
                proptest::prop_assert_eq!(any.uri_of(&any.key), uri);
            }
        }
    }
}
