//! A log and a catalog that count what is asked of them: work, where a clock would measure the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use everlog_common::{LogBounds, Millis, Offset, TopicName, TopicPartition};
use everlog_kafka::{
    Isolation, Log, LogError, LogReader, OffsetAtTime, ReaderOptions, TopicConfig, TopicInfo,
};
use everlog_table::catalog::{
    Catalog, CatalogError, CommitReply, CreateReply, LoadedTable, NewTable,
};
use everlog_table::storage::Storage;
use iceberg::{NamespaceIdent, TableIdent, TableRequirement, TableUpdate};

/// Something, with the number of requests to it by name.
pub struct Counted<T: ?Sized> {
    inner: Arc<T>,
    calls: Mutex<BTreeMap<&'static str, usize>>,
}

impl<T: ?Sized> fmt::Debug for Counted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.calls.fmt(f)
    }
}

impl<T: ?Sized> Counted<T> {
    pub fn new(inner: Arc<T>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            calls: Mutex::default(),
        })
    }

    /// The calls since this was asked last.
    pub fn take(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn count(&self, name: &'static str) -> &T {
        *self.calls.lock().unwrap().entry(name).or_default() += 1;
        &self.inner
    }
}

#[async_trait]
impl Log for Counted<dyn Log> {
    async fn cluster_id(&self) -> Result<Option<String>, LogError> {
        self.count("cluster_id").cluster_id().await
    }

    async fn topics(&self) -> Result<Vec<TopicInfo>, LogError> {
        self.count("topics").topics().await
    }

    async fn describe(
        &self,
        topics: &[TopicName],
    ) -> Result<BTreeMap<TopicName, Result<TopicInfo, LogError>>, LogError> {
        self.count("describe").describe(topics).await
    }

    async fn bounds(
        &self,
        partitions: &[TopicPartition],
        isolation: Isolation,
    ) -> Result<BTreeMap<TopicPartition, LogBounds>, LogError> {
        self.count("bounds").bounds(partitions, isolation).await
    }

    async fn offsets_at(
        &self,
        partitions: &[TopicPartition],
        at: Millis,
    ) -> Result<BTreeMap<TopicPartition, OffsetAtTime>, LogError> {
        self.count("offsets_at").offsets_at(partitions, at).await
    }

    async fn epoch_ends(
        &self,
        partitions: &[(TopicPartition, i32)],
    ) -> Result<BTreeMap<TopicPartition, Option<Offset>>, LogError> {
        self.count("epoch_ends").epoch_ends(partitions).await
    }

    async fn topic_config(&self, topic: &TopicName) -> Result<TopicConfig, LogError> {
        self.count("topic_config").topic_config(topic).await
    }

    async fn open(&self, options: ReaderOptions) -> Result<Box<dyn LogReader>, LogError> {
        self.count("open").open(options).await
    }
}

#[async_trait]
impl Catalog for Counted<dyn Catalog> {
    async fn ensure_namespace(&self, namespace: &NamespaceIdent) -> Result<(), CatalogError> {
        let inner = self.count("ensure_namespace");
        inner.ensure_namespace(namespace).await
    }

    async fn list_tables(&self, namespace: &NamespaceIdent) -> Result<Vec<String>, CatalogError> {
        self.count("list_tables").list_tables(namespace).await
    }

    async fn load(&self, table: &TableIdent) -> Result<Option<LoadedTable>, CatalogError> {
        self.count("load").load(table).await
    }

    async fn create(&self, table: NewTable) -> Result<CreateReply, CatalogError> {
        self.count("create").create(table).await
    }

    async fn commit(
        &self,
        base: &LoadedTable,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
        idempotency_key: uuid::Uuid,
    ) -> CommitReply {
        let inner = self.count("commit");
        inner
            .commit(base, requirements, updates, idempotency_key)
            .await
    }

    fn storage_for(&self, table: &LoadedTable) -> Result<Storage, CatalogError> {
        self.inner.storage_for(table)
    }

    fn server_time(&self) -> Option<Millis> {
        self.inner.server_time()
    }
}
