//! A catalog behind Iceberg's REST protocol.
//!
//! The client is ours because of one question that general clients answer too roughly: *was this commit applied?*
//!
//! | what came back | reply |
//! |---|---|
//! | 2xx with the new metadata | `Committed` |
//! | 409 | `Conflict` |
//! | no connection; 4xx by the catalog's own word, a 401 after one renewal of the token | `Refused` |
//! | 5xx, 408, 499, any other answer that is not the catalog's (a proxy's page), no answer in time, connection lost, answer cut off or not understood | `Unknown` |
//!
//! A commit is sent once. The one exception is an expired token: 401 (or 419) says that the request was not looked at, so
//! it is sent again with a new token. The HTTP library's own repetitions are off, redirects are not followed, and idle
//! connections are dropped early, since a request that meets a connection closed by the server is an `Unknown`.

mod auth;
mod client;
mod protocol;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use everlog_common::Millis;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};
use reqwest::Method;
use uuid::Uuid;

use super::{
    Catalog, CatalogError, CatalogErrorKind, CommitReply, CreateReply, LoadedTable, NewTable,
};
use crate::storage::{CredentialSource, Storage, StorageError};

use client::{Answer, Client, Request};
use protocol::{CommitTable, CreateNamespace, CreateTable, ListTables, LoadTable};

/// Storages kept for tables with their own properties; beyond that many, they are made anew.
const STORAGES_MAX: usize = 4096;
/// Pages of a table list; more is a server that does not stop.
const PAGES_MAX: usize = 10_000;
/// Credentials that expire, and so are asked for again.
const VENDED: [&str; 3] = ["s3.access-key-id", "gcs.oauth2.token", "adls.sas-token"];

/// A catalog behind Iceberg's REST protocol.
///
/// Properties: `uri`, `warehouse` (sent to the server, which knows what it means), `token`, or `credential`
/// (`ID:SECRET`) with `oauth2-server-uri`, `scope`, `audience` and `resource`; `header.NAME`;
/// `everlog.catalog.connect-timeout` (5s) and `everlog.catalog.request-timeout` (30s); and those of [`Storage`], for
/// servers that vend no credentials. What the server's `/v1/config` gives as defaults and overrides is applied around them.
#[derive(Debug)]
pub struct RestCatalog {
    client: Arc<Client>,
    /// For tables without properties of their own.
    storage: Storage,
    storages: Mutex<BTreeMap<StorageKey, Storage>>,
}

/// A storage is kept for a table, not for a credential: it renews those by itself.
type StorageKey = (Uuid, BTreeMap<String, String>);

impl RestCatalog {
    /// Asks the server for its configuration.
    pub async fn connect(properties: &BTreeMap<String, String>) -> Result<Self, CatalogError> {
        let client = Arc::new(Client::connect(properties).await?);
        let storage = Storage::from_properties(client.properties()).map_err(no_storage)?;
        Ok(Self {
            client,
            storage,
            storages: Mutex::default(),
        })
    }

    /// Everything that is wrong with the properties and can be told without asking the server.
    pub(super) fn check(properties: &BTreeMap<String, String>) -> Vec<CatalogError> {
        let mut found = Client::check(properties);
        found.extend(
            Storage::from_properties(properties)
                .map_err(no_storage)
                .err(),
        );
        found
    }

    fn table_path(&self, table: &TableIdent) -> Vec<String> {
        let mut path = self.tables_path(table.namespace());
        path.push(table.name().to_owned());
        path
    }

    fn tables_path(&self, namespace: &NamespaceIdent) -> Vec<String> {
        vec![
            "namespaces".into(),
            self.client.joined(namespace),
            "tables".into(),
        ]
    }

    async fn ensure_level(&self, levels: &[String]) -> Result<(), CatalogError> {
        let namespace =
            NamespaceIdent::from_strs(levels).map_err(|error| CatalogError::Refused {
                what: "make namespace".into(),
                message: error.to_string(),
                source: None,
            })?;
        let what = format!("make namespace {namespace}");
        let path = vec!["namespaces".into(), self.client.joined(&namespace)];
        let found = self
            .client
            .send(Request::new(Method::GET, &path, &what))
            .await;
        match found.into_read(&what) {
            Ok(_) => return Ok(()),
            Err(CatalogError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let body = CreateNamespace {
            namespace: levels,
            properties: BTreeMap::new(),
        };
        let path = vec!["namespaces".into()];
        let request = Request::new(Method::POST, &path, &what).json(&body)?;
        match self.client.send(request).await {
            Answer::Status { status: 409, .. } => Ok(()),
            // To make a namespace twice does no harm, so whatever became of it: the caller may call again.
            answer => answer.into_read(&what).map(drop),
        }
    }
}

fn no_storage(source: StorageError) -> CatalogError {
    CatalogError::storage("open the catalog's storage", source)
}

#[async_trait]
impl Catalog for RestCatalog {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        let levels: &[String] = namespace;
        for depth in 1..=levels.len() {
            self.ensure_level(levels.get(..depth).unwrap_or(levels))
                .await?;
        }
        Ok(())
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        let what = format!("list tables of {namespace}");
        let path = self.tables_path(namespace);
        let mut names = Vec::new();
        let mut page: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut request = Request::new(Method::GET, &path, &what);
            if let Some(token) = &page {
                request = request.query("pageToken", token);
            }
            let listed: ListTables = match self.client.send(request).await.into_read(&what) {
                Ok(body) => protocol::decode(&body, &what)?,
                Err(CatalogError::NotFound { .. }) if page.is_none() => return Ok(names),
                Err(error) => return Err(error),
            };
            names.extend(listed.identifiers.into_iter().map(|table| table.name));
            page = listed.next_page_token.filter(|token| !token.is_empty());
            if page.is_none() {
                names.sort();
                return Ok(names);
            }
        }
        Err(CatalogError::Unreadable {
            what,
            source: "the list of pages does not end".into(),
        })
    }

    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        let what = format!("load {table}");
        let path = self.table_path(table);
        let request = Request::new(Method::GET, &path, &what).query("snapshots", "all");
        match self.client.send(request).await.into_read(&what) {
            Ok(body) => Ok(Some(
                protocol::decode::<LoadTable>(&body, &what)?.into_loaded(table)?,
            )),
            Err(CatalogError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        let ident = table.ident.clone();
        let what = format!("create {ident}");
        let path = self.tables_path(ident.namespace());
        let request = Request::new(Method::POST, &path, &what).json(&CreateTable::from(table))?;
        match self.client.send(request).await {
            Answer::Body(body) => protocol::decode::<LoadTable>(&body, &what)
                .and_then(|created| created.into_loaded(&ident))
                .map(CreateReply::Created)
                .map_err(|error| unknown(&what, error)),
            Answer::Status { status: 409, .. } => Ok(CreateReply::Exists),
            answer => Err(answer.into_failure(&what)),
        }
    }

    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        idempotency_key: Uuid,
    ) -> CommitReply {
        let what = format!("commit to {}", base.ident);
        let path = self.table_path(&base.ident);
        let body = CommitTable {
            identifier: (&base.ident).into(),
            requirements,
            updates,
        };
        let request = match Request::new(Method::POST, &path, &what).json(&body) {
            Ok(request) => request.idempotency_key(idempotency_key),
            Err(error) => return CommitReply::Refused(error),
        };
        match self.client.send(request).await {
            Answer::Body(body) => {
                let committed = protocol::decode::<LoadTable>(&body, &what)
                    .and_then(|committed| committed.into_loaded(&base.ident));
                match committed {
                    // The answer to a commit carries no credentials; those at hand stay good.
                    Ok(table) => CommitReply::Committed(LoadedTable {
                        config: base.config.clone(),
                        ..table
                    }),
                    Err(error) => CommitReply::Unknown(unknown(&what, error)),
                }
            }
            Answer::Status { status: 409, .. } => CommitReply::Conflict,
            answer => match answer.into_failure(&what) {
                error @ CatalogError::OutcomeUnknown { .. } => CommitReply::Unknown(error),
                error => CommitReply::Refused(error),
            },
        }
    }

    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError> {
        if table.config.is_empty() {
            return Ok(self.storage.clone());
        }
        let vended = is_vended(&table.config);
        let kept = table.config.iter().filter(|(key, _)| !is_credential(key));
        let key = (
            table.metadata.uuid(),
            kept.map(|(k, v)| (k.clone(), v.clone())).collect(),
        );
        let mut storages = self.storages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(storage) = storages.get(&key) {
            return Ok(storage.clone());
        }
        let properties = overlay(self.client.properties(), &table.config);
        let storage = if vended {
            let source = VendedCredentials {
                client: Arc::clone(&self.client),
                table: table.ident.clone(),
                path: self.table_path(&table.ident),
            };
            Storage::with_credentials(&properties, Arc::new(source))
        } else {
            Storage::from_properties(&properties)
        };
        let storage = storage.map_err(no_storage)?;
        if storages.len() >= STORAGES_MAX {
            storages.clear();
        }
        storages.insert(key, storage.clone());
        Ok(storage)
    }

    fn server_time(&self) -> Option<Millis> {
        self.client.server_time()
    }
}

/// Reads bytes as every answer that there is.
#[cfg(test)]
pub(crate) fn read_every_answer(body: &bytes::Bytes, table: &TableIdent) {
    let _ = protocol::decode::<protocol::Config>(body, "config");
    let _ = protocol::decode::<ListTables>(body, "list");
    let _ = protocol::decode::<protocol::Token>(body, "token").is_ok();
    if let Ok(loaded) = protocol::decode::<LoadTable>(body, "load") {
        let _ = loaded.into_loaded(table);
    }
    let (line, _) = client::explain(404, body);
    assert!(!line.contains('\n'), "{line}");
    let _ = auth::oauth_message(body);
}

fn unknown(what: &str, source: CatalogError) -> CatalogError {
    CatalogError::OutcomeUnknown {
        what: what.to_owned(),
        source: Box::new(source),
    }
}

fn is_vended(config: &BTreeMap<String, String>) -> bool {
    config
        .keys()
        .any(|key| VENDED.iter().any(|vended| key.starts_with(vended)))
}

/// Whether a property changes from one load to the next.
fn is_credential(key: &str) -> bool {
    VENDED.iter().any(|vended| key.starts_with(vended))
        || ["s3.secret-access-key", "s3.session-token"]
            .iter()
            .any(|name| key.starts_with(name))
        || key.contains("expires-at")
}

/// The catalog's properties with the table's on top, which win. A session token belongs to its keys: ours is not mixed
/// with the table's.
fn overlay(
    catalog: &BTreeMap<String, String>,
    table: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut properties = catalog.clone();
    if table.contains_key("s3.access-key-id") {
        properties.remove("s3.session-token");
    }
    properties.extend(
        table
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    properties
}

/// A catalog that is away may come back; one that does not let us in is an operator's matter.
fn no_credentials(what: &str, error: CatalogError) -> StorageError {
    if error.kind() != CatalogErrorKind::Unauthorized {
        return StorageError::Credentials {
            source: Box::new(error),
        };
    }
    StorageError::Unauthorized {
        uri: what.to_owned(),
        doing: "ask for",
        source: Box::new(object_store::Error::Unauthenticated {
            path: what.to_owned(),
            source: Box::new(error),
        }),
    }
}

/// New credentials by loading the table again.
#[derive(Debug)]
struct VendedCredentials {
    client: Arc<Client>,
    table: TableIdent,
    path: Vec<String>,
}

#[async_trait]
impl CredentialSource for VendedCredentials {
    async fn fetch(&self) -> Result<BTreeMap<String, String>, StorageError> {
        let what = format!("credentials of {}", self.table);
        let request = Request::new(Method::GET, &self.path, &what).query("snapshots", "refs");
        let loaded = self
            .client
            .send(request)
            .await
            .into_read(&what)
            .and_then(|body| protocol::decode::<LoadTable>(&body, &what))
            .and_then(|loaded| loaded.into_loaded(&self.table))
            .map_err(|error| no_credentials(&what, error))?;
        Ok(overlay(self.client.properties(), &loaded.config))
    }
}
