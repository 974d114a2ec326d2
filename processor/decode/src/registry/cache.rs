//! A registry's answers on disk.
//!
//! ```text
//!   FOLDER/<host and path of the registry>-<hash>/ids/7.json                      schema 7, or that there is none
//!                                                /pins/<subject>-<pin>-<hash>.json  the newest schema, as pinned
//! ```
//!
//! A registry of another address has another folder: numbers mean nothing elsewhere.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;
use uuid::Uuid;

use super::{Pinned, RegistryError};
use crate::{RegisteredSchema, SchemaId};

#[derive(Debug)]
pub(super) struct Cache {
    ids: PathBuf,
    pins: PathBuf,
    /// Answers that there is no such schema; counted when it is first asked for.
    unknown: Mutex<Option<usize>>,
}

/// What is known of a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kept {
    Schema(RegisteredSchema),
    /// By the registry's word there is none.
    Unknown(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    id: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema: Option<Schema>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Schema {
    kind: String,
    text: String,
    references: Vec<String>,
}

const FORMAT: u32 = 1;

impl Stored {
    fn of(id: SchemaId, kept: &Kept) -> Self {
        let mut stored = Self {
            format: FORMAT,
            id: id.0,
            subject: None,
            pin: None,
            version: None,
            unknown: None,
            schema: None,
        };
        match kept {
            Kept::Schema(schema) => {
                stored.schema = Some(Schema {
                    kind: schema.kind.clone(),
                    text: schema.text.clone(),
                    references: schema.references.clone(),
                });
            }
            Kept::Unknown(why) => stored.unknown = Some(why.clone()),
        }
        stored
    }

    fn registered(schema: Schema) -> RegisteredSchema {
        RegisteredSchema {
            kind: schema.kind,
            text: schema.text,
            references: schema.references,
        }
    }
}

/// What a file says of a number, if it is whole and says anything of that.
fn read_schema(bytes: &[u8], id: SchemaId) -> Option<Kept> {
    let stored: Stored = serde_json::from_slice(bytes).ok()?;
    if stored.format != FORMAT || stored.id != id.0 {
        return None;
    }
    match (stored.schema, stored.unknown) {
        (Some(schema), None) => Some(Kept::Schema(Stored::registered(schema))),
        (None, Some(why)) => Some(Kept::Unknown(why)),
        _ => None,
    }
}

fn read_pin(bytes: &[u8], subject: &str, pin: &str) -> Option<Pinned> {
    let stored: Stored = serde_json::from_slice(bytes).ok()?;
    let is_it = stored.format == FORMAT
        && stored.subject.as_deref() == Some(subject)
        && stored.pin.as_deref() == Some(pin);
    if !is_it {
        return None;
    }
    Some(Pinned {
        id: SchemaId(stored.id),
        version: stored.version?,
        schema: Stored::registered(stored.schema?),
    })
}

/// A name for a file that anything can be said by: readable, and distinct by its hash.
fn file_name(text: &str) -> String {
    let readable: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                c
            } else {
                '_'
            }
        })
        .take(80)
        .collect();
    let hash = XxHash3_64::oneshot(text.as_bytes());
    format!("{}-{hash:016x}", readable.trim_start_matches('.'))
}

fn failed(path: &Path, doing: &'static str) -> impl Fn(std::io::Error) -> RegistryError {
    let path = path.display().to_string();
    move |source| RegistryError::Cache {
        path: path.clone(),
        doing,
        source,
    }
}

impl Cache {
    pub(super) fn open(folder: &Path, url: &str) -> Result<Self, RegistryError> {
        let without_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
        let folder = folder.join(file_name(without_scheme));
        let (ids, pins) = (folder.join("ids"), folder.join("pins"));
        for folder in [&ids, &pins] {
            std::fs::create_dir_all(folder).map_err(failed(folder, "it cannot be made"))?;
        }
        Ok(Self {
            ids,
            pins,
            unknown: Mutex::new(None),
        })
    }

    fn id_path(&self, id: SchemaId) -> PathBuf {
        self.ids.join(format!("{id}.json"))
    }

    fn pin_path(&self, subject: &str, pin: &str) -> PathBuf {
        self.pins
            .join(format!("{}.json", file_name(&format!("{subject}/{pin}"))))
    }

    pub(super) fn schema(&self, id: SchemaId) -> Result<Option<Kept>, RegistryError> {
        let path = self.id_path(id);
        Ok(read(&path)?.and_then(|bytes| read_schema(&bytes, id)))
    }

    pub(super) fn keep(&self, id: SchemaId, kept: &Kept, temp: Uuid) -> Result<(), RegistryError> {
        write(&self.id_path(id), &Stored::of(id, kept), temp)?;
        if matches!(kept, Kept::Unknown(_))
            && let Ok(mut unknown) = self.unknown.lock()
            && let Some(count) = unknown.as_mut()
        {
            *count += 1;
        }
        Ok(())
    }

    /// How many numbers the registry does not know, as far as it was asked.
    pub(super) fn unknown(&self) -> Result<usize, RegistryError> {
        let Ok(mut unknown) = self.unknown.lock() else {
            return Ok(0);
        };
        if let Some(count) = *unknown {
            return Ok(count);
        }
        let mut count = 0;
        let entries =
            std::fs::read_dir(&self.ids).map_err(failed(&self.ids, "it cannot be read"))?;
        for entry in entries.flatten() {
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            let stored = serde_json::from_slice::<Stored>(&bytes);
            count += usize::from(stored.is_ok_and(|stored| stored.unknown.is_some()));
        }
        *unknown = Some(count);
        Ok(count)
    }

    #[cfg(test)]
    pub(super) fn pretend_unknown(&self, count: usize) {
        *self.unknown.lock().unwrap() = Some(count);
    }

    pub(super) fn pinned(&self, subject: &str, pin: &str) -> Result<Option<Pinned>, RegistryError> {
        let path = self.pin_path(subject, pin);
        Ok(read(&path)?.and_then(|bytes| read_pin(&bytes, subject, pin)))
    }

    pub(super) fn pin(
        &self,
        subject: &str,
        pin: &str,
        pinned: &Pinned,
        temp: Uuid,
    ) -> Result<(), RegistryError> {
        let mut stored = Stored::of(pinned.id, &Kept::Schema(pinned.schema.clone()));
        stored.subject = Some(subject.to_owned());
        stored.pin = Some(pin.to_owned());
        stored.version = Some(pinned.version);
        write(&self.pin_path(subject, pin), &stored, temp)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, "it cannot be read")(error)),
    }
}

/// All of it, or nothing: another name, synced, renamed, and the folder synced. Two processes that write the same write the same.
fn write(path: &Path, stored: &Stored, temp: Uuid) -> Result<(), RegistryError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut json = serde_json::to_vec_pretty(stored).map_err(|error| {
        failed(path, "it cannot be written as JSON")(std::io::Error::other(error))
    })?;
    json.push(b'\n');
    let temporary = folder.join(format!(".{temp}.tmp"));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(&json)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    });
    written.map_err(|error| {
        // what is left of it is of no use, and if it stays it does no harm
        let _ = std::fs::remove_file(&temporary);
        failed(path, "it cannot be written")(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(text: &str) -> RegisteredSchema {
        RegisteredSchema {
            kind: "AVRO".to_owned(),
            text: text.to_owned(),
            references: vec!["{\"a\":1}".to_owned()],
        }
    }

    #[test]
    fn what_is_kept_is_read_back_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Cache::open(dir.path(), "http://registry:8081").unwrap();
        let cache = open();
        assert_eq!(cache.schema(SchemaId(7)).unwrap(), None);
        assert_eq!(cache.unknown().unwrap(), 0);
        let kept = Kept::Schema(schema("\"int\""));
        let unknown = Kept::Unknown("no".to_owned());
        cache.keep(SchemaId(7), &kept, Uuid::nil()).unwrap();
        cache.keep(SchemaId(8), &unknown, Uuid::nil()).unwrap();
        assert_eq!(cache.unknown().unwrap(), 1);
        let pinned = Pinned {
            id: SchemaId(9),
            version: 3,
            schema: schema("\"long\""),
        };
        cache.pin("a/b", "job-v1", &pinned, Uuid::nil()).unwrap();
        let again = open();
        assert_eq!(again.schema(SchemaId(7)).unwrap(), Some(kept));
        assert_eq!(again.schema(SchemaId(8)).unwrap(), Some(unknown));
        assert_eq!(again.unknown().unwrap(), 1);
        assert_eq!(again.pinned("a/b", "job-v1").unwrap(), Some(pinned));
        assert_eq!(again.pinned("a/b", "job-v2").unwrap(), None);
        assert_eq!(again.pinned("a_b", "job-v1").unwrap(), None);
        let elsewhere = Cache::open(dir.path(), "http://registry:8082").unwrap();
        assert_eq!(elsewhere.schema(SchemaId(7)).unwrap(), None);
    }

    #[test]
    fn a_torn_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), "http://r").unwrap();
        let kept = Kept::Schema(schema("\"int\""));
        cache.keep(SchemaId(7), &kept, Uuid::nil()).unwrap();
        let path = cache.id_path(SchemaId(7));
        let whole = std::fs::read(&path).unwrap();
        // the last byte is the line's end
        for cut in 0..whole.len() - 1 {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(cache.schema(SchemaId(7)).unwrap(), None, "cut at {cut}");
        }
        cache.keep(SchemaId(7), &kept, Uuid::nil()).unwrap();
        assert_eq!(cache.schema(SchemaId(7)).unwrap(), Some(kept));
        // under another number it is not about that one
        std::fs::copy(&path, cache.id_path(SchemaId(70))).unwrap();
        assert_eq!(cache.schema(SchemaId(70)).unwrap(), None);
    }
}
