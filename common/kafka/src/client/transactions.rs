//! A producer whose records are committed by transactions, one at a time. Its calls block.
//!
//! One process at a time has a transactional id: [`TransactionalProducer::open`] takes it over, aborts what the process before left open,
//! completes what it had begun to commit, and from then on whatever that one does fails with [`TransactionError::Fenced`].

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::{BrokerWatch, for_other_clients};

/// How long one attempt at a request that may be repeated takes: then the client is looked after. It is less than the time
/// after which the client gives records up, and more than what it may need to notice that it knows no broker.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12);
/// How often a request is repeated that the client calls retriable.
const ATTEMPTS: usize = 25;
/// Bound of requests that are not repeated.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// What the producer's queue may hold, where nothing else is configured.
const QUEUE_KBYTES: &str = "32768";
/// Records as large as the target allows, where nothing else is configured.
const MESSAGE_BYTES: &str = "1000000000";

/// Why a transaction failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError {
    /// Another process has the transactional id now.
    #[error("cannot {doing}: another process took the transactional id over ({detail})")]
    Fenced {
        /// What was to be done.
        doing: &'static str,
        /// What the client said.
        detail: String,
    },
    /// Nothing of the transaction is committed, and it can be begun again.
    #[error("cannot {doing}: {detail}; the transaction was aborted")]
    Aborted {
        /// What was to be done.
        doing: &'static str,
        /// What the client said.
        detail: String,
    },
    /// Whether the transaction is, or will be, committed is not known before [`TransactionalProducer::open`] was called again.
    #[error("cannot {doing}: {detail}")]
    Unknown {
        /// What was to be done.
        doing: &'static str,
        /// What the client said.
        detail: String,
    },
}

impl TransactionError {
    /// What was to be done, and what the client said.
    pub fn into_parts(self) -> (&'static str, String) {
        match self {
            Self::Fenced { doing, detail }
            | Self::Aborted { doing, detail }
            | Self::Unknown { doing, detail } => (doing, detail),
        }
    }
}

/// The first delivery that failed; all further ones follow from it.
#[derive(Debug, Default)]
struct Deliveries {
    failed: Mutex<Option<String>>,
}

impl ClientContext for Deliveries {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "kafka producer");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka producer");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| error.to_string());
        }
    }
}

/// See the module's text.
pub struct TransactionalProducer {
    producer: BaseProducer<Deliveries>,
    watch: BrokerWatch,
}

impl std::fmt::Debug for TransactionalProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionalProducer")
            .finish_non_exhaustive()
    }
}

impl TransactionalProducer {
    /// Takes the transactional id over. `user` are librdkafka's properties; `defaults` hold where `user` says nothing else.
    pub fn open(
        user: &BTreeMap<String, String>,
        transactional_id: &str,
        defaults: &[(&str, &str)],
    ) -> Result<Self, TransactionError> {
        let unknown = |doing| move |detail: String| TransactionError::Unknown { doing, detail };
        let mut config = ClientConfig::new();
        for (key, value) in for_other_clients(user) {
            config.set(key, value);
        }
        let ours = [
            ("queue.buffering.max.kbytes", QUEUE_KBYTES),
            ("message.max.bytes", MESSAGE_BYTES),
            ("linger.ms", "5"),
        ];
        for (key, value) in ours.iter().chain(defaults) {
            if !user.contains_key(*key) {
                config.set(*key, *value);
            }
        }
        config
            .set("transactional.id", transactional_id)
            .set("enable.idempotence", "true");
        let made = config.create_with_context(Deliveries::default());
        let producer: BaseProducer<Deliveries> =
            made.map_err(|e| unknown("make a producer")(e.to_string()))?;
        let watch =
            BrokerWatch::new(user).map_err(|e| unknown("make a producer")(e.to_string()))?;
        let opened = Self { producer, watch };
        opened.retrying("initialise transactions", || {
            opened.producer.init_transactions(ATTEMPT_TIMEOUT)
        })?;
        Ok(opened)
    }

    /// How many partitions a topic has; none: there is no such topic.
    pub fn partitions(&self, topic: &str) -> Result<Option<i32>, TransactionError> {
        let client = self.producer.client();
        let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        let metadata = metadata.map_err(|e| TransactionError::Unknown {
            doing: "read the topic's partitions",
            detail: e.to_string(),
        })?;
        let found = metadata.topics().iter().find(|t| t.name() == topic);
        let count = found.map_or(0, |t| t.partitions().len());
        Ok((count > 0).then(|| i32::try_from(count).unwrap_or(i32::MAX)))
    }

    /// Begins a transaction.
    pub fn begin(&self) -> Result<(), TransactionError> {
        self.producer
            .begin_transaction()
            .map_err(|e| self.failed("begin a transaction", e))
    }

    /// Hands a record over, into the transaction. Waits while the client's queue is full.
    pub fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), TransactionError> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    self.producer.poll(Duration::from_millis(100));
                    self.watch.keep_a_broker(self.producer.client());
                    self.check_deliveries("deliver records")?;
                    record = back;
                }
                Err((error, _)) => return Err(self.failed("produce", error)),
            }
        }
    }

    /// Serves the client: call it every so many records.
    pub fn poll(&self) -> Result<(), TransactionError> {
        self.producer.poll(Duration::ZERO);
        self.check_deliveries("deliver records")
    }

    /// Adds a consumer group's offsets to the transaction.
    pub fn add_offsets(
        &self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), TransactionError> {
        self.retrying("add positions to the transaction", || {
            self.producer
                .send_offsets_to_transaction(offsets, group, ATTEMPT_TIMEOUT)
        })
    }

    /// Commits. After [`TransactionError::Unknown`] make another producer of the same id, and look what is there.
    pub fn commit(&self) -> Result<(), TransactionError> {
        self.retrying("commit the transaction", || {
            self.producer.commit_transaction(ATTEMPT_TIMEOUT)
        })?;
        self.check_deliveries("deliver records")
    }

    fn check_deliveries(&self, doing: &'static str) -> Result<(), TransactionError> {
        let failed = &self.producer.context().failed;
        let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failed {
            None => Ok(()),
            Some(detail) => Err(self.abort(doing, detail)),
        }
    }

    /// Repeats what the client calls retriable.
    fn retrying(
        &self,
        doing: &'static str,
        mut attempt: impl FnMut() -> Result<(), KafkaError>,
    ) -> Result<(), TransactionError> {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            self.watch.keep_a_broker(self.producer.client());
            match attempt() {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error)) if error.is_retriable() && left > 0 => {
                    tracing::warn!(doing, %error, "trying again");
                }
                Err(error) => return Err(self.failed(doing, error)),
            }
        }
    }

    fn failed(&self, doing: &'static str, error: KafkaError) -> TransactionError {
        let fatal = self.producer.client().fatal_error();
        let code = match (&fatal, &error) {
            (Some((code, _)), _) => Some(*code),
            (None, KafkaError::Transaction(error)) => Some(error.code()),
            (None, error) => error.rdkafka_error_code(),
        };
        let detail = match fatal {
            Some((_, text)) => text,
            None => error.to_string(),
        };
        if matches!(
            code,
            Some(
                RDKafkaErrorCode::Fenced
                    | RDKafkaErrorCode::ProducerFenced
                    | RDKafkaErrorCode::InvalidProducerEpoch
            )
        ) {
            return TransactionError::Fenced { doing, detail };
        }
        match &error {
            KafkaError::Transaction(error) if error.txn_requires_abort() => {
                self.abort(doing, detail)
            }
            _ => TransactionError::Unknown { doing, detail },
        }
    }

    /// Aborts, so that the transaction can be begun again.
    fn abort(&self, doing: &'static str, detail: String) -> TransactionError {
        if let Some((code, text)) = self.producer.client().fatal_error() {
            let detail = format!("{detail}: {text}");
            return match code {
                RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch => {
                    TransactionError::Fenced { doing, detail }
                }
                _ => TransactionError::Unknown { doing, detail },
            };
        }
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            self.watch.keep_a_broker(self.producer.client());
            match self.producer.abort_transaction(ATTEMPT_TIMEOUT) {
                Ok(()) => {
                    // What was purged with it says nothing of the next one.
                    self.producer.poll(Duration::ZERO);
                    let failed = &self.producer.context().failed;
                    failed.lock().unwrap_or_else(PoisonError::into_inner).take();
                    return TransactionError::Aborted { doing, detail };
                }
                Err(KafkaError::Transaction(error)) if error.is_retriable() && left > 0 => {
                    tracing::warn!(doing = "abort the transaction", %error, "trying again");
                }
                Err(error) => {
                    return TransactionError::Unknown {
                        doing,
                        detail: format!("{detail}; and it cannot be aborted: {error}"),
                    };
                }
            }
        }
    }
}
