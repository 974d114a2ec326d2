//! From settings to components: what talks to Kafka, the catalog and the clock.

use std::error::Error;
use std::sync::Arc;

use everlog_common::clock::{RandomIds, SystemClock};
use everlog_common::{Clock, Ids, TopicName};
use everlog_kafka::client::KafkaLog;
use everlog_kafka::{Log, LogError};
use everlog_table::archive::{ArchiveDeps, ArchiveError, ArchiveErrorKind};
use everlog_table::catalog::{
    Catalog, CatalogError, CatalogErrorKind, connect, connect_existing, parse_namespace,
};
use everlog_table::schema::PROPERTY_TOPIC;
use iceberg::TableIdent;

use crate::failure::{Failure, Status};
use crate::settings::Settings;

/// The machine's clock.
pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::default())
}

/// Identifiers that nobody else draws.
pub(crate) fn ids() -> Arc<dyn Ids> {
    Arc::new(RandomIds)
}

/// The cluster; it connects in the background.
pub(crate) fn log(settings: &Settings) -> Result<Arc<dyn Log>, Failure> {
    KafkaLog::connect(settings.kafka.reveal())
        .map(|log| -> Arc<dyn Log> { Arc::new(log) })
        .map_err(|error| of_log("kafka", &error))
}

/// The catalog, for a command that only looks or works on what is there: it makes none.
pub(crate) async fn catalog(settings: &Settings) -> Result<Arc<dyn Catalog>, Failure> {
    connect_existing(settings.catalog.properties.reveal())
        .await
        .map_err(|error| of_catalog(&error))
}

/// The catalog; it is made where it is a file that is not there.
pub(crate) async fn catalog_or_new(settings: &Settings) -> Result<Arc<dyn Catalog>, Failure> {
    connect(settings.catalog.properties.reveal())
        .await
        .map_err(|error| of_catalog(&error))
}

/// What archives are opened with.
pub(crate) fn deps(catalog: &Arc<dyn Catalog>) -> ArchiveDeps {
    ArchiveDeps {
        catalog: Arc::clone(catalog),
        clock: clock(),
        ids: ids(),
    }
}

/// The topics that have a table in the namespace, ascending.
pub(crate) async fn archived_topics(
    catalog: &dyn Catalog,
    namespace: &str,
) -> Result<Vec<TopicName>, Failure> {
    let namespace = parse_namespace(namespace).map_err(|e| of_catalog(&e))?;
    let tables = catalog
        .list_tables(&namespace)
        .await
        .map_err(|e| of_catalog(&e))?;
    let mut topics = Vec::new();
    for table in tables {
        let ident = TableIdent::new(namespace.clone(), table);
        let loaded = catalog.load(&ident).await.map_err(|e| of_catalog(&e))?;
        let topic = loaded.and_then(|t| {
            let name = t.metadata.properties().get(PROPERTY_TOPIC)?;
            TopicName::new(name).ok()
        });
        topics.extend(topic);
    }
    topics.sort();
    topics.dedup();
    Ok(topics)
}

/// A failure of the cluster.
pub(crate) fn of_log(what: &str, error: &LogError) -> Failure {
    let status = match error {
        LogError::Invalid { .. } => Status::Usage,
        _ => Status::Failed,
    };
    Failure::from_error(status, error).while_doing(what)
}

/// A failure of the catalog.
pub(crate) fn of_catalog(error: &CatalogError) -> Failure {
    let status = match error.kind() {
        CatalogErrorKind::Invalid => Status::Usage,
        CatalogErrorKind::Corrupt => Status::Corrupt,
        CatalogErrorKind::Transient
        | CatalogErrorKind::Unauthorized
        | CatalogErrorKind::NotFound
        | CatalogErrorKind::Unknown => Status::Failed,
    };
    Failure::from_error(status, error)
}

/// A failure of a topic's archive.
pub(crate) fn of_archive(error: &ArchiveError) -> Failure {
    of_archive_kind(error.kind(), error)
}

/// A failure about a table, by what its caller can do.
pub(crate) fn of_archive_kind(kind: ArchiveErrorKind, error: &(dyn Error + 'static)) -> Failure {
    let status = match kind {
        ArchiveErrorKind::ForeignChange => Status::OtherWriter,
        ArchiveErrorKind::Corrupt => Status::Corrupt,
        ArchiveErrorKind::Invalid | ArchiveErrorKind::NameClash => Status::Usage,
        ArchiveErrorKind::Transient | ArchiveErrorKind::Stale | ArchiveErrorKind::Denied => {
            Status::Failed
        }
    };
    Failure::from_error(status, error)
}
