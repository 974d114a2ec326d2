//! What the configuration and the registry say of topics' values.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use everlog_common::TopicName;
use everlog_decode::registry::Registry;
use everlog_decode::{Columns, RegisteredSchema, SchemaId, ValueFormat};
use tokio::sync::OnceCell;

use super::asking::Asking;
use super::view::DecodedTable;
use super::{ValueView, Values};
use crate::QueryError;

/// Which schema of a subject values are read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchemaChoice {
    /// The newest, as it is when a session first asks.
    #[default]
    Newest,
    /// This one.
    Id(SchemaId),
    /// This version of the subject.
    Version(i64),
}

/// How a topic's values are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicFormat {
    /// JSON objects with these fields.
    Json(Columns),
    /// Avro by the registry.
    Avro {
        /// What every value is read into; none: the fields of a schema.
        columns: Option<Columns>,
        /// Which schema, where there are no columns.
        schema: SchemaChoice,
        /// The subject of the values.
        subject: String,
    },
    /// UTF-8.
    Text,
}

/// What is known of topics' values: declared in the configuration, or found in the registry.
#[derive(Debug)]
pub struct TopicValues {
    declared: BTreeMap<TopicName, Arc<View>>,
    registry: Option<Asking>,
    found: OnceCell<Found>,
}

/// What a registry has subjects of, and the views on it as they are asked for.
#[derive(Debug, Default)]
struct Found {
    subjects: BTreeSet<String>,
    views: std::sync::Mutex<BTreeMap<TopicName, Arc<View>>>,
}

#[derive(Debug)]
struct View {
    topic: TopicName,
    format: TopicFormat,
    registry: Option<Asking>,
    /// As it was when it was first asked for: the columns of a session's tables do not change while it lasts.
    resolved: OnceCell<ValueFormat>,
}

impl TopicValues {
    /// These topics; of the others those whose subject, `TOPIC-value`, the registry has. It is asked from the runtime in which
    /// this is called.
    pub fn new(
        declared: impl IntoIterator<Item = (TopicName, TopicFormat)>,
        registry: Option<Arc<Registry>>,
    ) -> Self {
        let registry = registry.map(Asking::new);
        let declared = declared
            .into_iter()
            .map(|(topic, format)| {
                let view = View::new(&topic, format, registry.clone());
                (topic, Arc::new(view))
            })
            .collect();
        Self {
            declared,
            registry,
            found: OnceCell::new(),
        }
    }

    /// How a topic's values are read, looked up where that takes a registry; none where nobody says it.
    pub async fn format(&self, topic: &TopicName) -> Result<Option<ValueFormat>, QueryError> {
        if !self.declared.contains_key(topic) {
            self.find().await?;
        }
        match self.view(topic) {
            Some(view) => view.format().await.map(Some),
            None => Ok(None),
        }
    }

    fn view(&self, topic: &TopicName) -> Option<Arc<View>> {
        if let Some(declared) = self.declared.get(topic) {
            return Some(Arc::clone(declared));
        }
        let found = self.found.get()?;
        let subject = subject_of(topic);
        if !found.subjects.contains(&subject) {
            return None;
        }
        let mut views = found
            .views
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let view = views.entry(topic.clone()).or_insert_with(|| {
            let format = TopicFormat::Avro {
                columns: None,
                schema: SchemaChoice::Newest,
                subject,
            };
            Arc::new(View::new(topic, format, self.registry.clone()))
        });
        Some(Arc::clone(view))
    }
}

/// The subject that a topic's values have where nobody says another one.
fn subject_of(topic: &TopicName) -> String {
    format!("{topic}-value")
}

#[async_trait]
impl Values for TopicValues {
    async fn find(&self) -> Result<(), QueryError> {
        let Some(registry) = &self.registry else {
            return Ok(());
        };
        let found = self.found.get_or_try_init(|| async {
            Ok::<_, QueryError>(Found {
                subjects: registry.subjects().await?.into_iter().collect(),
                views: std::sync::Mutex::default(),
            })
        });
        found.await.map(|_| ())
    }

    fn of(&self, topic: &TopicName) -> Option<Arc<dyn ValueView>> {
        self.view(topic).map(|view| view as Arc<dyn ValueView>)
    }
}

impl View {
    fn new(topic: &TopicName, format: TopicFormat, registry: Option<Asking>) -> Self {
        let is_avro = matches!(format, TopicFormat::Avro { .. });
        Self {
            topic: topic.clone(),
            format,
            registry: registry.filter(|_| is_avro),
            resolved: OnceCell::new(),
        }
    }

    async fn format(&self) -> Result<ValueFormat, QueryError> {
        self.resolved
            .get_or_try_init(|| self.resolve())
            .await
            .cloned()
    }

    async fn resolve(&self) -> Result<ValueFormat, QueryError> {
        let (columns, choice, subject) = match &self.format {
            TopicFormat::Json(columns) => return Ok(ValueFormat::Json(columns.clone())),
            TopicFormat::Text => return Ok(ValueFormat::Text),
            TopicFormat::Avro {
                columns,
                schema,
                subject,
            } => (columns, *schema, subject),
        };
        let Some(registry) = &self.registry else {
            return Err(QueryError::Invalid(format!(
                "the values of topic {} are Avro, and there is no [registry] in the configuration to ask for their schemas",
                self.topic
            )));
        };
        if let Some(columns) = columns {
            return Ok(ValueFormat::Avro(columns.clone()));
        }
        let schema = reader(registry, subject, choice).await?;
        Ok(ValueFormat::AvroAs(schema))
    }
}

/// The schema that values are read by.
async fn reader(
    registry: &Asking,
    subject: &str,
    choice: SchemaChoice,
) -> Result<RegisteredSchema, QueryError> {
    let missing = |what: String| {
        QueryError::Invalid(format!(
            "the registry has no {what}: set `subject` or `schema` in [decode], or declare `columns`"
        ))
    };
    match choice {
        SchemaChoice::Newest => match registry.newest(subject).await? {
            Some(newest) => Ok(newest.schema),
            None => Err(missing(format!("subject {subject}"))),
        },
        SchemaChoice::Version(version) => match registry.version(subject, version).await? {
            Some(found) => Ok(found.schema),
            None => Err(missing(format!("version {version} of subject {subject}"))),
        },
        SchemaChoice::Id(id) => match registry.schemas(vec![id]).await?.pop() {
            Some((_, Ok(schema))) => Ok(schema),
            Some((_, Err(why))) => Err(missing(format!("schema {id} ({why})"))),
            None => Err(missing(format!("schema {id}"))),
        },
    }
}

#[async_trait]
impl ValueView for View {
    async fn over(
        &self,
        table: Arc<dyn TableProvider>,
    ) -> Result<Arc<dyn TableProvider>, QueryError> {
        let format = self.format().await.map_err(|error| match error {
            QueryError::Failed(why) | QueryError::Invalid(why) => QueryError::Failed(format!(
                "the values of topic {} cannot be shown as columns: {why}",
                self.topic
            )),
            other => other,
        })?;
        Ok(Arc::new(DecodedTable::new(
            table,
            format,
            self.registry.clone(),
        )?))
    }
}
