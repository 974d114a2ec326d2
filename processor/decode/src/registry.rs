//! Schemas by number, from a registry that speaks Confluent's protocol. What it answers is kept on disk: a schema's number never
//! means another schema, so each is asked for once in a lifetime, and a replay of years needs the registry only for schemas
//! that nobody here has met yet.
//!
//! ```text
//!   Decoder::unlearned ──► Registry::teach ──► cache? ──yes──► Decoder::learn
//!                                                └─no──► GET /schemas/ids/N, its references, kept, ──► Decoder::learn
//! ```
//!
//! - A registry that cannot be reached, or that refuses us, is an error after bounded attempts: nothing is decoded then, and
//!   nothing becomes a dead letter for it.
//! - A number that the registry says it does not know makes dead letters of the records that name it, and that answer is kept
//!   too, so that a restart and a replay give the same. (To take it back, delete the file.) [`UNKNOWN_MAX`] of them are an
//!   error: then it is another registry that the records speak of, or they are not Avro.
//! - The newest schema of a subject, which a job without declared columns reads by, is asked for once per job and version and
//!   pinned: otherwise the job's columns would change under its state.
//!
//! Failure modes of the cache: files are written whole under another name, synced, and renamed; one that does not read back is
//! as good as none and is fetched again.

mod answer;
mod cache;
mod client;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use everlog_common::{Clock, EventColumns, Ids};
use futures::{StreamExt as _, TryStreamExt as _};

use self::answer::{Found, Judged, Listed, Reply, Subject};
use self::cache::{Cache, Kept};
use self::client::{Client, Got};
use crate::{Decoder, RegisteredSchema, SchemaId};

/// Requests under way at once.
const CONCURRENT: usize = 8;

/// Numbers that the registry does not know, before it is taken for another registry.
pub const UNKNOWN_MAX: usize = 10_000;

/// Schemas that one schema may refer to, directly and through others.
const REFERENCES_MAX: usize = 1_000;

/// A transient failure is tried so often in all: 0.2 s, 0.4 s … 3.2 s apart.
const ATTEMPTS: u32 = 6;

/// The same for a number that is not known: a follower of the registry may be late by a moment.
const ATTEMPTS_UNKNOWN: u32 = 3;

/// Where a registry is, and who we are to it.
#[derive(Clone)]
pub struct RegistrySettings {
    /// `http://` or `https://`, up to where `/schemas` and `/subjects` follow.
    pub url: String,
    /// Credentials.
    pub auth: Auth,
    /// For one request.
    pub timeout: Duration,
}

impl std::fmt::Debug for RegistrySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistrySettings")
            .field("url", &self.url)
            .field("auth", &self.auth)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Whether a registry can be at this address; nobody is asked. The error says what is wrong with it.
pub fn check_address(url: &str) -> Result<(), String> {
    match client::address(url) {
        Ok(_) => Ok(()),
        Err(RegistryError::Address { url, why }) => Err(format!(
            "{url:?} {why}; write it like \"http://127.0.0.1:8081\""
        )),
        Err(other) => Err(other.to_string()),
    }
}

/// Credentials; shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// None.
    None,
    /// A user and a password.
    Basic {
        /// The user, or key.
        user: String,
        /// The password, or secret.
        password: String,
    },
    /// A token.
    Bearer(String),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic",
            Self::Bearer(_) => "Bearer",
        })
    }
}

/// Why a schema could not be had. Never about a record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Not an address.
    #[error("schema registry {url}: {why}; write it like http://127.0.0.1:8081")]
    Address {
        /// As given.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// It did not answer, or could not.
    #[error(
        "schema registry {url} cannot be asked for {what} ({attempts} attempts): {why}; it is needed until the schema is on disk"
    )]
    Unavailable {
        /// Where.
        url: String,
        /// What was asked for.
        what: String,
        /// How often.
        attempts: u32,
        /// What happened last.
        why: String,
    },
    /// It does not let us in.
    #[error(
        "schema registry {url} refuses {what}: {why}; check registry_user, registry_password or registry_token of the job, or user, password or token in [registry]"
    )]
    Unauthorized {
        /// Where.
        url: String,
        /// What was asked for.
        what: String,
        /// What it said.
        why: String,
    },
    /// It answers, but not as a registry does.
    #[error("{url} is no schema registry: asked for {what}, it answered {why}; check its address")]
    Protocol {
        /// Where.
        url: String,
        /// What was asked for.
        what: String,
        /// What it said.
        why: String,
    },
    /// There is no such subject.
    #[error(
        "schema registry {url} has no subject {subject}: set `subject` to the one of the topic's values, or declare `columns`"
    )]
    NoSubject {
        /// Where.
        url: String,
        /// Which.
        subject: String,
    },
    /// Too many numbers that it does not know.
    #[error(
        "schema registry {url} does not know {UNKNOWN_MAX} schema ids that records name: is it the one that they were written with?"
    )]
    TooManyUnknown {
        /// Where.
        url: String,
    },
    /// The cache cannot be used.
    #[error("the registry's cache {path}: {doing}")]
    Cache {
        /// The file or folder.
        path: String,
        /// What was to be done.
        doing: &'static str,
        /// Why it could not.
        #[source]
        source: std::io::Error,
    },
}

/// The newest schema of a subject, as it was when the job first asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Its number.
    pub id: SchemaId,
    /// Its version in the subject.
    pub version: i64,
    /// Itself.
    pub schema: RegisteredSchema,
}

/// A registry and what is known of it.
#[derive(Debug)]
pub struct Registry {
    client: Client,
    cache: Cache,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn Ids>,
}

impl Registry {
    /// Opens the folder for its answers, which several jobs may share; no request is sent.
    pub fn open(
        settings: &RegistrySettings,
        folder: &Path,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
    ) -> Result<Self, RegistryError> {
        let client = Client::new(settings)?;
        let cache = Cache::open(folder, client.url())?;
        Ok(Self {
            client,
            cache,
            clock,
            ids,
        })
    }

    /// Tells the decoder of every schema that it needs for these rows.
    pub async fn teach(
        &self,
        decoder: &mut Decoder,
        rows: &EventColumns,
    ) -> Result<(), RegistryError> {
        for (id, answer) in self.schemas(decoder.unlearned(rows)).await? {
            decoder.learn(id, answer.as_ref().map_err(String::as_str));
        }
        Ok(())
    }

    /// The schemas of numbers, or why there is none, in their order.
    pub async fn schemas(
        &self,
        ids: Vec<SchemaId>,
    ) -> Result<Vec<(SchemaId, Result<RegisteredSchema, String>)>, RegistryError> {
        futures::stream::iter(ids)
            .map(|id| async move { Ok((id, self.schema(id).await?)) })
            .buffered(CONCURRENT)
            .try_collect()
            .await
    }

    /// The schema of a number; the inner error is the registry's word that there is none.
    pub async fn schema(
        &self,
        id: SchemaId,
    ) -> Result<Result<RegisteredSchema, String>, RegistryError> {
        if let Some(kept) = self.cache.schema(id)? {
            return Ok(match kept {
                Kept::Schema(schema) => Ok(schema),
                Kept::Unknown(why) => Err(why),
            });
        }
        let what = format!("schema {id}");
        let path = ["schemas", "ids", &id.to_string()].map(str::to_owned);
        let kept = match self.found(&path, &what).await? {
            Reply::Found(found) => match self.complete(found).await? {
                Ok(schema) => Kept::Schema(schema),
                Err(why) => Kept::Unknown(why),
            },
            Reply::Missing(why) => Kept::Unknown(format!("the registry does not know it: {why}")),
        };
        if matches!(kept, Kept::Unknown(_)) && self.cache.unknown()? >= UNKNOWN_MAX {
            return Err(RegistryError::TooManyUnknown {
                url: self.client.url().to_owned(),
            });
        }
        self.cache.keep(id, &kept, self.ids.uuid())?;
        tracing::info!(
            schema = id.0,
            known = matches!(kept, Kept::Schema(_)),
            "schema asked for and kept"
        );
        Ok(match kept {
            Kept::Schema(schema) => Ok(schema),
            Kept::Unknown(why) => Err(why),
        })
    }

    /// The newest schema of a subject at the first time that this is asked for `pin` (a job and its version, say), for ever.
    pub async fn pinned(&self, subject: &str, pin: &str) -> Result<Pinned, RegistryError> {
        if let Some(pinned) = self.cache.pinned(subject, pin)? {
            return Ok(pinned);
        }
        self.pin_newest(subject, pin).await
    }

    /// The newest schema of a subject now, for who only asks; what was the newest when the registry last answered, where it does
    /// not answer now. None where it has no such subject.
    pub async fn newest(&self, subject: &str) -> Result<Option<Pinned>, RegistryError> {
        const PIN: &str = "newest-seen";
        match self.pin_newest(subject, PIN).await {
            Ok(newest) => Ok(Some(newest)),
            Err(RegistryError::NoSubject { .. }) => Ok(None),
            Err(error @ RegistryError::Unavailable { .. }) => {
                match self.cache.pinned(subject, PIN)? {
                    Some(seen) => {
                        tracing::warn!(
                            subject,
                            version = seen.version,
                            "the registry does not answer: values are read by the newest schema that was seen: {error}"
                        );
                        Ok(Some(seen))
                    }
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// One version of a subject, deleted or not; none where there is no such version.
    pub async fn version(
        &self,
        subject: &str,
        version: i64,
    ) -> Result<Option<Pinned>, RegistryError> {
        let what = format!("version {version} of subject {subject}");
        let path = ["subjects", subject, "versions", &version.to_string()].map(str::to_owned);
        match self.found(&path, &what).await? {
            Reply::Found(found) => Ok(Some(self.pinned_of(found, &what).await?)),
            Reply::Missing(_) => Ok(None),
        }
    }

    /// The numbers of a subject's versions, ascending, deleted ones included where the registry tells them; none where there is
    /// no such subject.
    pub async fn versions(&self, subject: &str) -> Result<Option<Vec<i64>>, RegistryError> {
        let what = format!("the versions of subject {subject}");
        let path = ["subjects", subject, "versions"].map(str::to_owned);
        match self.listed(&path, &what).await? {
            Reply::Found(Listed::Numbers(mut versions)) => {
                versions.sort_unstable();
                Ok(Some(versions))
            }
            Reply::Missing(_) => Ok(None),
            Reply::Found(Listed::Names(_)) => Err(self.protocol(&what, "names, not numbers")),
        }
    }

    /// The names of all subjects, ascending.
    pub async fn subjects(&self) -> Result<Vec<String>, RegistryError> {
        let what = "its subjects";
        match self.listed(&["subjects".to_owned()], what).await? {
            Reply::Found(Listed::Names(mut names)) => {
                names.sort_unstable();
                Ok(names)
            }
            Reply::Missing(_) => Ok(Vec::new()),
            Reply::Found(Listed::Numbers(numbers)) if numbers.is_empty() => Ok(Vec::new()),
            Reply::Found(Listed::Numbers(_)) => Err(self.protocol(what, "numbers, not names")),
        }
    }

    /// The newest schema of a subject now, which is what [`Registry::pinned`] gives for `pin` from here on: for a job that
    /// begins anew under an old name.
    pub async fn pin_newest(&self, subject: &str, pin: &str) -> Result<Pinned, RegistryError> {
        let what = format!("the newest schema of subject {subject}");
        let path = ["subjects", subject, "versions", "latest"].map(str::to_owned);
        let missing = || RegistryError::NoSubject {
            url: self.client.url().to_owned(),
            subject: subject.to_owned(),
        };
        let Reply::Found(found) = self.found(&path, &what).await? else {
            return Err(missing());
        };
        let pinned = self.pinned_of(found, &what).await?;
        self.cache.pin(subject, pin, &pinned, self.ids.uuid())?;
        Ok(pinned)
    }

    /// A schema that was asked for by subject, complete.
    async fn pinned_of(&self, found: Found, what: &str) -> Result<Pinned, RegistryError> {
        let (Some(id), Some(version)) = (found.id, found.version) else {
            return Err(self.protocol(what, "without the schema's id and version"));
        };
        match self.complete(found).await? {
            Ok(schema) => Ok(Pinned {
                id,
                version,
                schema,
            }),
            Err(why) => Err(self.protocol(what, &why)),
        }
    }

    fn protocol(&self, what: &str, why: &str) -> RegistryError {
        RegistryError::Protocol {
            url: self.client.url().to_owned(),
            what: what.to_owned(),
            why: why.to_owned(),
        }
    }

    /// A schema with all that it refers to, each before what needs it. The inner error is a reference that is gone.
    async fn complete(
        &self,
        found: Found,
    ) -> Result<Result<RegisteredSchema, String>, RegistryError> {
        let mut references: Vec<String> = Vec::new();
        // depth first, without recursion: what is opened is closed after everything that it refers to
        let mut seen: Vec<Subject> = Vec::new();
        let mut open: Vec<(Option<String>, std::vec::IntoIter<Subject>)> =
            vec![(None, found.references.into_iter())];
        while let Some((_, rest)) = open.last_mut() {
            let Some(subject) = rest.next() else {
                if let Some((Some(text), _)) = open.pop() {
                    references.push(text);
                }
                continue;
            };
            if seen.contains(&subject) {
                continue;
            }
            if seen.len() >= REFERENCES_MAX {
                return Ok(Err(format!(
                    "it refers to more than {REFERENCES_MAX} other schemas"
                )));
            }
            let what = format!("version {} of subject {}", subject.version, subject.name);
            let path = [
                "subjects",
                &subject.name,
                "versions",
                &subject.version.to_string(),
            ]
            .map(str::to_owned);
            match self.found(&path, &what).await? {
                Reply::Found(inner) => {
                    open.push((Some(inner.text), inner.references.into_iter()));
                }
                Reply::Missing(why) => {
                    return Ok(Err(format!("it refers to {what}, which is gone: {why}")));
                }
            }
            seen.push(subject);
        }
        Ok(Ok(RegisteredSchema {
            kind: found.kind,
            text: found.text,
            references,
        }))
    }

    async fn found(&self, path: &[String], what: &str) -> Result<Reply<Found>, RegistryError> {
        self.asked(path, what, answer::judge).await
    }

    async fn listed(&self, path: &[String], what: &str) -> Result<Reply<Listed>, RegistryError> {
        self.asked(path, what, answer::judge_list).await
    }

    /// Asks until there is an answer, or until it has been asked often enough.
    async fn asked<T>(
        &self,
        path: &[String],
        what: &str,
        judge: fn(u16, &[u8]) -> Judged<T>,
    ) -> Result<Reply<T>, RegistryError> {
        let url = || self.client.url().to_owned();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let why = match self.client.get(path).await {
                Got::Answer { status, body } => match judge(status, &body) {
                    Judged::Found(found) => return Ok(Reply::Found(found)),
                    Judged::Missing(why) => {
                        if attempt >= ATTEMPTS_UNKNOWN {
                            return Ok(Reply::Missing(why));
                        }
                        why
                    }
                    Judged::Unauthorized(why) => {
                        return Err(RegistryError::Unauthorized {
                            url: url(),
                            what: what.to_owned(),
                            why,
                        });
                    }
                    Judged::Strange(why) => return Err(self.protocol(what, &why)),
                    Judged::Transient(why) => why,
                },
                Got::Lost(why) => why,
            };
            if attempt >= ATTEMPTS {
                return Err(RegistryError::Unavailable {
                    url: url(),
                    what: what.to_owned(),
                    attempts: attempt,
                    why,
                });
            }
            let whole = 200_u64 << (attempt - 1).min(8);
            let wait = whole / 2 + self.ids.below(whole / 2 + 1);
            self.clock.sleep(Duration::from_millis(wait)).await;
        }
    }
}

#[cfg(test)]
mod tests;
