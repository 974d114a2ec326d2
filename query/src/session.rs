//! A session: one analyst's door to a lake.
//!
//! ```text
//!   caller's threads: names, catalog, manifests, requests ◄──────────────┐
//!   session's threads: parse ─► check ─► plan ─► check ─► run ─► 2 batches ─► caller
//!                      (large stacks)                     memory pool, spill folder
//! ```
//!
//! The session's threads have large stacks, since a statement may be nested deep, and compute only: requests are made where
//! the session was opened, so that nobody waits for a thread that decodes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::execution::context::SessionContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::TrackConsumersPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionConfig};
use datafusion::sql::parser::Statement as PlannedStatement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use futures::StreamExt;
use object_store::memory::InMemory;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::catalog::{Met, Tables, Wanted};
use crate::failure::DOES_NOT_FIT;
use crate::guard::{self, Asked, Named, Parsed, Shares};
use crate::names::{self, quoted};
use crate::spill::Spill;
use crate::table::{LakeOrder, STORE};
use crate::travel::{self, Given};
use crate::{
    Answer, AsOf, Lake, Limits, NamedFile, Progress, QueryError, SessionOptions, TableKind,
    TableName, sql_types,
};

/// Bytes of a thread's stack: an address range, of which only what is used costs memory. What may be nested is bounded so that
/// it fits, also where nothing is optimised.
const STACK_BYTES: usize = 512 << 20;
/// Batches between the query and who reads its answer.
const QUEUED_BATCHES: usize = 2;
/// How long the end of a session waits for queries that do not yield.
const END_MAX: Duration = Duration::from_secs(60);
/// How many consumers an error of exhausted memory names.
const NAMED_CONSUMERS: NonZeroUsize = NonZeroUsize::MIN;

/// What the threads that queries run on are called.
pub const THREAD_NAME: &str = "everlog-sql";

/// One analyst's door to a lake. Queries of a session may run at the same time; they share its limits of memory and disk.
#[derive(Debug)]
pub struct Session {
    engine: Arc<Engine>,
    tables: Tables,
    namespace: String,
    limits: Limits,
}

/// What runs queries: lives as long as the session or any answer of its.
struct Engine {
    /// None after its end: a runtime must not wait for its threads where others are served.
    runtime: Option<Runtime>,
    state: SessionState,
    /// Removed with the engine.
    spill: Option<Spill>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let (Some(runtime), Some(spill)) = (self.runtime.take(), self.spill.take()) else {
            return;
        };
        let folder = spill.path().to_owned();
        if spill.close().is_ok() && !folder.exists() {
            runtime.shutdown_background();
            return;
        }
        // A query that is still on its way put a file there meanwhile. It may be waited for on a thread of its own alone.
        let removed = std::thread::Builder::new().spawn(move || {
            runtime.shutdown_timeout(END_MAX);
            std::fs::remove_dir_all(&folder)
        });
        drop(removed);
    }
}

impl Engine {
    fn handle(&self) -> Result<&Handle, QueryError> {
        let runtime = self.runtime.as_ref();
        runtime.map(Runtime::handle).ok_or(QueryError::Cancelled)
    }

    /// Runs a piece of work on the engine's threads; dropped, it ends.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, QueryError>> + Send + 'static,
    ) -> Result<T, QueryError> {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(work, self.handle()?);
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) if error.is_panic() => Err(panicked()),
            _ => Err(QueryError::Cancelled),
        }
    }
}

/// A value that is nested deep: dropped on the engine's threads wherever it is let go, since dropping it goes as deep.
struct Deep<T: Send + 'static> {
    value: Option<T>,
    engine: Handle,
}

impl<T: Send + 'static> Deep<T> {
    /// On the engine's threads.
    fn here(value: T) -> Self {
        Self {
            value: Some(value),
            engine: Handle::current(),
        }
    }

    /// To be called on the engine's threads alone.
    fn take(mut self) -> Option<T> {
        self.value.take()
    }
}

impl<T: Send + 'static> Drop for Deep<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            drop(self.engine.spawn_blocking(move || drop(value)));
        }
    }
}

fn panicked() -> QueryError {
    QueryError::Failed(
        "the engine came upon a state that it does not know (a panic) and gave the query up; please report the statement"
            .to_owned(),
    )
}

impl Session {
    /// Opens a session. Nothing of the lake is read yet; named files are looked at.
    pub async fn open(lake: Lake, options: SessionOptions) -> Result<Self, QueryError> {
        let SessionOptions {
            as_of,
            live,
            files,
            limits,
        } = options;
        if live && as_of.is_some() {
            return Err(QueryError::Refused(
                "the live tail is about now, and AS OF about then: ask for one of them".to_owned(),
            ));
        }
        let engine = Arc::new(engine(&limits)?);
        let mut named = BTreeMap::new();
        for file in files {
            let state = engine.state.clone();
            let name = file.name.clone();
            let provider = engine
                .run(async move { opened(state, &file).await })
                .await?;
            if named.insert(name.clone(), provider).is_some() {
                return Err(QueryError::File(format!(
                    "--table {name}: the name is given twice"
                )));
            }
        }
        let namespace = lake.namespace.clone();
        Ok(Self {
            engine,
            tables: Tables::new(lake, as_of, live, named, Handle::current()),
            namespace,
            limits,
        })
    }

    /// Runs one statement: a query, `SHOW TABLES`, `SHOW COLUMNS FROM t`, `DESCRIBE t`, `EXPLAIN`.
    pub async fn query(&self, sql: &str) -> Result<Answer, QueryError> {
        let deadline = self
            .limits
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        let started = Box::pin(self.start(sql, deadline));
        match deadline {
            None => started.await,
            Some(deadline) => match tokio::time::timeout_at(deadline, started).await {
                Ok(answer) => answer,
                Err(_) => Err(timed_out(self.limits.timeout)),
            },
        }
    }

    async fn start(&self, sql: &str, deadline: Option<Instant>) -> Result<Answer, QueryError> {
        let progress = Arc::new(Progress::default());
        let text = sql.to_owned();
        let asked = self
            .engine
            .run(async move { guard::parse(&text).map(Pieces::of) })
            .await?;
        let pieces = match asked {
            Pieces::Query(pieces) => pieces,
            Pieces::Tables(pattern) => {
                let batch = shown_tables(&self.tables().await?, pattern.as_deref())?;
                return Ok(at_hand(batch, progress));
            }
            Pieces::Columns(name) => {
                let schema = self.columns(&name).await?;
                return Ok(at_hand(shown_columns(&schema)?, progress));
            }
        };
        let (statement, tables, with, columns) = pieces;
        let state = self.state(&progress);
        let mut found = Vec::with_capacity(tables.len());
        let mut met = Met::by(&progress);
        for table in tables {
            let wanted = self.wanted(&table, &state).await?;
            match self.tables.find(&wanted, &mut met).await {
                Ok(provider) => found.push((table.alias, provider)),
                // then it is what WITH calls so, or the planner says that there is none
                Err(QueryError::UnknownTable(_)) if with.contains(&wanted.name) => {}
                Err(error) => return Err(error),
            }
        }
        let planned = self
            .engine
            .run(async move {
                let hints = Hints::of(&found, columns);
                let statement = statement.take().ok_or(QueryError::Cancelled)?;
                let planned = plan(state, statement, found).await;
                planned
                    .map(Deep::here)
                    .map_err(|error| hints.explain(error))
            })
            .await?;
        self.answer(planned, progress, deadline)
    }

    fn state(&self, progress: &Arc<Progress>) -> SessionState {
        let config = self.engine.state.config().clone();
        let config = config.with_extension(Arc::clone(progress));
        let mut state = SessionStateBuilder::new_from_existing(self.engine.state.clone())
            .with_config(config)
            .with_catalog_list(Arc::new(
                datafusion::catalog::MemoryCatalogProviderList::new(),
            ))
            .build();
        // what now() is, in the whole statement
        state.execution_props_mut().query_execution_start_time =
            chrono::DateTime::from_timestamp_millis(self.tables.now().0);
        state
    }

    /// What a query asks for, its moment worked out.
    async fn wanted(&self, table: &Named, state: &SessionState) -> Result<Wanted, QueryError> {
        if !table.namespace.is_empty() && table.namespace.join(".") != self.namespace {
            return Err(QueryError::UnknownTable(format!(
                "there is no table {}.{}: the namespace is {}, and its tables need no name before theirs",
                table.namespace.join("."),
                quoted(&table.name),
                self.namespace
            )));
        }
        let as_of = match &table.at {
            None => None,
            Some(Given::At(as_of)) => Some(as_of.clone()),
            Some(Given::Time(expr)) => {
                let (state, expr) = (state.clone(), expr.clone());
                let time = self
                    .engine
                    .run(async move { travel::time_of(&state, &expr) });
                Some(AsOf::Time(time.await?))
            }
        };
        Ok(Wanted {
            name: table.name.clone(),
            is_qualified: !table.namespace.is_empty(),
            as_of,
        })
    }

    fn answer(
        &self,
        planned: Deep<Planned>,
        progress: Arc<Progress>,
        deadline: Option<Instant>,
    ) -> Result<Answer, QueryError> {
        let plan = planned.value.as_ref().ok_or(QueryError::Cancelled)?;
        let schema = plan.plan.schema();
        let (sender, receiver) = mpsc::channel(QUEUED_BATCHES);
        let mut tasks = JoinSet::new();
        tasks.spawn_on(produce(planned, sender), self.engine.handle()?);
        let reading = Reading {
            receiver,
            tasks,
            deadline,
            timeout: self.limits.timeout,
            rows_left: self.limits.max_rows,
            rows_max: self.limits.max_rows,
            over: false,
            _engine: Arc::clone(&self.engine),
        };
        let batches = futures::stream::unfold(reading, |mut reading| async move {
            let next = reading.next().await?;
            Some((next.map_err(Into::into), reading))
        });
        Ok(Answer {
            schema: Arc::clone(&schema),
            batches: Box::pin(RecordBatchStreamAdapter::new(schema, batches)),
            progress,
        })
    }

    /// What can be asked for: archives, jobs' tables, views, named files; sorted by name.
    pub async fn tables(&self) -> Result<Vec<TableName>, QueryError> {
        self.tables.list().await
    }

    /// The columns of a table, a view, or a `$` table.
    pub async fn columns(&self, table: &str) -> Result<SchemaRef, QueryError> {
        let wanted = Wanted {
            name: table.to_owned(),
            is_qualified: false,
            as_of: None,
        };
        let found = self.tables.find(&wanted, &mut Met::default()).await?;
        Ok(found.schema())
    }
}

/// A statement in pieces that may leave the engine's threads.
enum Pieces {
    Query((Deep<SqlStatement>, Vec<Named>, Vec<String>, Vec<String>)),
    Tables(Option<String>),
    Columns(String),
}

impl Pieces {
    /// On the engine's threads.
    fn of(asked: Asked) -> Self {
        match asked {
            Asked::Query(Parsed {
                statement,
                tables,
                with,
                columns,
            }) => Self::Query((Deep::here(statement), tables, with, columns)),
            Asked::Tables(pattern) => Self::Tables(pattern),
            Asked::Columns(name) => Self::Columns(name),
        }
    }
}

/// A query that may run.
struct Planned {
    plan: Arc<dyn ExecutionPlan>,
    state: SessionState,
}

async fn plan(
    state: SessionState,
    statement: SqlStatement,
    tables: Vec<(String, Arc<dyn TableProvider>)>,
) -> Result<Planned, QueryError> {
    let now = state.execution_props().query_execution_start_time;
    let context = SessionContext::new_with_state(state);
    for (name, provider) in tables {
        let reference = datafusion::sql::TableReference::bare(name);
        context
            .register_table(reference, provider)
            .map_err(QueryError::of)?;
    }
    let mut state = context.state();
    // the context took the system's time
    state.execution_props_mut().query_execution_start_time = now;
    let statement = PlannedStatement::Statement(Box::new(statement));
    let logical = state
        .statement_to_plan(statement)
        .await
        .map_err(QueryError::of)?;
    let logical = guard::allowed(logical)?;
    let optimized = state.optimize(&logical).map_err(QueryError::of)?;
    let plan = state
        .query_planner()
        .create_physical_plan(&optimized, &state)
        .await;
    Ok(Planned {
        plan: plan.map_err(QueryError::of)?,
        state,
    })
}

/// Runs a query on the engine's threads; ends when nobody wants its rows any more.
async fn produce(planned: Deep<Planned>, sender: mpsc::Sender<Result<RecordBatch, QueryError>>) {
    let Some(Planned { plan, state }) = planned.take() else {
        return;
    };
    let mut stream = match execute_stream(plan, state.task_ctx()) {
        Ok(stream) => stream,
        Err(error) => {
            // nobody may be there to hear it
            let _ = sender.send(Err(QueryError::of(error))).await;
            return;
        }
    };
    while let Some(batch) = stream.next().await {
        let failed = batch.is_err();
        let sent = sender.send(batch.map_err(QueryError::of)).await;
        if failed || sent.is_err() {
            return;
        }
    }
}

/// An answer on its way to who asked.
struct Reading {
    receiver: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    /// Dropped with the answer, which ends the query.
    tasks: JoinSet<()>,
    deadline: Option<Instant>,
    timeout: Option<Duration>,
    rows_left: Option<u64>,
    rows_max: Option<u64>,
    over: bool,
    _engine: Arc<Engine>,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        if self.over {
            return None;
        }
        let received = match self.deadline {
            None => self.receiver.recv().await,
            Some(deadline) => {
                // In this order: rows that are there after the deadline are late.
                match tokio::time::timeout_at(deadline, self.receiver.recv()).await {
                    Ok(received) => received,
                    Err(_) => Some(Err(timed_out(self.timeout))),
                }
            }
        };
        let next = match received {
            Some(Ok(batch)) => self.counted(batch),
            Some(Err(error)) => Err(error),
            // The end of the rows, or of a task that did not come to it.
            None => match self.tasks.join_next().await {
                Some(Ok(())) | None => {
                    self.over = true;
                    return None;
                }
                Some(Err(error)) if error.is_panic() => Err(panicked()),
                Some(Err(_)) => Err(QueryError::Cancelled),
            },
        };
        if next.is_err() {
            self.over = true;
            self.tasks.abort_all();
        }
        Some(next)
    }

    fn counted(&mut self, batch: RecordBatch) -> Result<RecordBatch, QueryError> {
        let Some(left) = self.rows_left else {
            return Ok(batch);
        };
        let rows = batch.num_rows() as u64;
        match left.checked_sub(rows) {
            Some(left) => {
                self.rows_left = Some(left);
                Ok(batch)
            }
            None => Err(QueryError::Limit(format!(
                "the answer has more than {} rows: add LIMIT, or raise --max-rows",
                self.rows_max.unwrap_or_default()
            ))),
        }
    }
}

fn timed_out(timeout: Option<Duration>) -> QueryError {
    QueryError::Limit(format!(
        "the query took longer than {}: narrow it by partition, offset or timestamp, or raise --timeout",
        timeout.map_or_else(String::new, |timeout| format!("{timeout:?}"))
    ))
}

fn engine(limits: &Limits) -> Result<Engine, QueryError> {
    let spill = Spill::within(&limits.spill).map_err(|error| {
        QueryError::File(format!(
            "no temporary folder can be made in {}: {error}; set TMPDIR to another one",
            limits.spill.display()
        ))
    })?;
    let threads = limits.threads.max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(THREAD_NAME)
        .thread_stack_size(STACK_BYTES)
        .enable_time()
        .build()
        .map_err(|error| QueryError::Failed(format!("threads for queries: {error}")))?;
    let env = environment(limits, spill.path()).map_err(QueryError::of)?;
    Ok(Engine {
        runtime: Some(runtime),
        state: base_state(threads, limits.memory, env).map_err(QueryError::of)?,
        spill: Some(spill),
    })
}

fn environment(
    limits: &Limits,
    spill: &std::path::Path,
) -> datafusion::error::Result<Arc<RuntimeEnv>> {
    let memory = usize::try_from(limits.memory).unwrap_or(usize::MAX);
    let pool = TrackConsumersPool::new(Shares::new(memory), NAMED_CONSUMERS);
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![spill.to_owned()]))
        .with_max_temp_directory_size(limits.spill_bytes);
    let env = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    let store = ObjectStoreUrl::parse(STORE)?;
    env.register_object_store(store.as_ref(), Arc::new(InMemory::new()));
    Ok(env)
}

fn base_state(
    threads: usize,
    memory: u64,
    env: Arc<RuntimeEnv>,
) -> datafusion::error::Result<SessionState> {
    let mut config = SessionConfig::new()
        .with_target_partitions(threads)
        .with_information_schema(false);
    let options = config.options_mut();
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.enable_page_index = false;
    options.execution.parquet.bloom_filter_on_read = false;
    // Of named files bounds are not used: they leave out NaN, and filters may convert what they bound. Tables of the lake take
    // care of both.
    options.execution.parquet.pruning = false;
    options.execution.collect_statistics = false;
    // Each thread's sort sets as much aside for its merges, used or not. What they need more, the pool keeps for them.
    let merges = usize::try_from(memory).unwrap_or(usize::MAX) / threads / 16;
    let aside = &mut options.execution.sort_spill_reservation_bytes;
    *aside = (*aside).min(merges);
    // now() is an instant, and not a time of a place that is not said
    options.execution.time_zone = Some("UTC".to_owned());
    // an order that a scan gives is kept rather than made again
    options.optimizer.prefer_existing_sort = true;
    let mut rules = PhysicalOptimizer::new().rules;
    rules.insert(0, Arc::new(LakeOrder));
    rules.push(Arc::new(guard::SortKeys));
    rules.push(Arc::new(guard::CountWindows));
    rules.push(Arc::new(guard::Yielding));
    let mut state = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(env)
        .with_physical_optimizer_rules(rules)
        .build();
    crate::json::register(&mut state)?;
    crate::lengths::register(&mut state)?;
    let functions: Vec<_> = state.scalar_functions().values().cloned().collect();
    for function in functions {
        if let Some(bounded) = guard::bounded(&function) {
            datafusion::execution::FunctionRegistry::register_udf(&mut state, Arc::new(bounded))?;
        }
    }
    Ok(state)
}

/// A local file as a table.
async fn opened(
    state: SessionState,
    file: &NamedFile,
) -> Result<Arc<dyn TableProvider>, QueryError> {
    let place = file.path.display();
    let bad = |what: String| QueryError::File(format!("--table {}={place}: {what}", file.name));
    let metadata = std::fs::metadata(&file.path).map_err(|error| bad(error.to_string()))?;
    if !metadata.is_file() {
        return Err(bad("it is not a file".to_owned()));
    }
    let path = std::path::absolute(&file.path).map_err(|error| bad(error.to_string()))?;
    let Some(path) = path.to_str() else {
        return Err(bad("its name is not UTF-8".to_owned()));
    };
    let ending = file
        .path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let url = url_of(path);
    let context = SessionContext::new_with_state(state);
    let read = match ending.to_ascii_lowercase().as_str() {
        "csv" => {
            let options = CsvReadOptions::new().file_extension(ending);
            context.read_csv(url, options).await
        }
        "tsv" => {
            let options = CsvReadOptions::new()
                .file_extension(ending)
                .delimiter(b'\t');
            context.read_csv(url, options).await
        }
        "json" | "jsonl" | "ndjson" => {
            let options = JsonReadOptions::default().file_extension(ending);
            context.read_json(url, options).await
        }
        "parquet" => {
            let options = ParquetReadOptions {
                file_extension: ending,
                ..ParquetReadOptions::default()
            };
            context.read_parquet(url, options).await
        }
        _ => {
            return Err(bad(
                "what it is must show from the end of its name: .csv, .tsv, .json, .jsonl, .ndjson or .parquet".to_owned(),
            ));
        }
    };
    let frame = read.map_err(|error| bad(crate::error::one_line(&error.strip_backtrace())))?;
    Ok(frame.into_view())
}

/// A path as a URL, so that no character of it means more than itself.
fn url_of(path: &str) -> String {
    let mut url = "file://".to_owned();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            // writing to a String cannot fail
            let _ = write!(url, "%{byte:02X}");
        }
    }
    url
}

/// An answer that is there already.
fn at_hand(batch: RecordBatch, progress: Arc<Progress>) -> Answer {
    let schema = batch.schema();
    let rows = futures::stream::iter([Ok(batch)]);
    let batches: SendableRecordBatchStream =
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), rows));
    Answer {
        schema,
        batches,
        progress,
    }
}

fn text_columns(names: &[&str], columns: Vec<Vec<String>>) -> Result<RecordBatch, QueryError> {
    let fields: Vec<Field> = names
        .iter()
        .map(|name| Field::new(*name, DataType::Utf8, false))
        .collect();
    let arrays = columns
        .into_iter()
        .map(|values| Arc::new(StringArray::from(values)) as _);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays.collect())
        .map_err(|error| QueryError::Failed(error.to_string()))
}

fn shown_tables(tables: &[TableName], pattern: Option<&str>) -> Result<RecordBatch, QueryError> {
    let (mut names, mut kinds, mut of) = (Vec::new(), Vec::new(), Vec::new());
    for table in tables
        .iter()
        .filter(|t| pattern.is_none_or(|p| is_like(&t.name, p)))
    {
        let (kind, whose) = match &table.kind {
            TableKind::Archive { topic } => ("archive", topic.as_str()),
            TableKind::Job { job } => ("job", job.as_str()),
            TableKind::View { topic } => ("view", topic.as_str()),
            TableKind::Other => ("other", ""),
            TableKind::File => ("file", ""),
        };
        names.push(table.name.clone());
        kinds.push(kind.to_owned());
        of.push(whose.to_owned());
    }
    text_columns(&["table_name", "kind", "of"], vec![names, kinds, of])
}

/// SQL's LIKE, letters of either case: `%` any text, `_` any character.
fn is_like(text: &str, pattern: &str) -> bool {
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let pattern: Vec<char> = pattern.to_lowercase().chars().collect();
    let (mut at, mut in_pattern) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(in_pattern) {
            Some('%') => {
                back = Some((in_pattern, at));
                in_pattern += 1;
            }
            Some(c) if *c == '_' || *c == text[at] => {
                at += 1;
                in_pattern += 1;
            }
            _ => match back {
                Some((percent, taken)) => {
                    in_pattern = percent + 1;
                    at = taken + 1;
                    back = Some((percent, at));
                }
                None => return false,
            },
        }
    }
    pattern[in_pattern..].iter().all(|c| *c == '%')
}

fn shown_columns(schema: &SchemaRef) -> Result<RecordBatch, QueryError> {
    let fields = schema.fields();
    let names = fields.iter().map(|field| field.name().clone()).collect();
    let kinds = fields
        .iter()
        .map(|field| sql_types::name(field.data_type()))
        .collect();
    let nullable = fields.iter().map(|field| {
        let yes = if field.is_nullable() { "YES" } else { "NO" };
        yes.to_owned()
    });
    text_columns(
        &["column_name", "data_type", "is_nullable"],
        vec![names, kinds, nullable.collect()],
    )
}

/// What a message about a statement's columns and types can say.
struct Hints {
    /// Each table's columns with their types.
    columns: Vec<(String, String)>,
    /// The columns that the statement names.
    named: Vec<String>,
}

impl Hints {
    fn of(tables: &[(String, Arc<dyn TableProvider>)], named: Vec<String>) -> Self {
        let mut columns = Vec::new();
        for (_, table) in tables {
            for field in table.schema().fields() {
                let known = (field.name().clone(), sql_types::name(field.data_type()));
                if !columns.contains(&known) {
                    columns.push(known);
                }
            }
        }
        Self { columns, named }
    }

    /// The error with what would help: names that are near, the types of the columns.
    fn explain(&self, error: QueryError) -> QueryError {
        match error {
            QueryError::UnknownColumn(name) => {
                let (plain, wanted) = (name.rsplit('.').next().unwrap_or(&name), &name);
                let names = self.columns.iter().map(|(name, _)| name.as_str());
                let same = names
                    .clone()
                    .find(|known| known.eq_ignore_ascii_case(plain) && *known != plain);
                let is_raw = names.clone().any(|known| known == "value")
                    && names.clone().any(|known| known == "offset");
                let hint = match same {
                    Some(known) => format!("did you mean {}?", quoted(known)),
                    None if is_raw => format!(
                        "{}; what is inside of a value is a column of the view NAME_v, or value ->> '{plain}'",
                        names::hint("columns", plain, names)
                    ),
                    None => names::hint("columns", plain, names),
                };
                QueryError::UnknownColumn(format!("there is no column {wanted}; {hint}"))
            }
            QueryError::Invalid(what) if what.contains("require unique expression names") => {
                QueryError::Invalid(
                    "two columns of the answer would have one name: name them, like count(*) AS orders"
                        .to_owned(),
                )
            }
            QueryError::Invalid(what) if what.starts_with(DOES_NOT_FIT) => {
                let used: Vec<String> = self
                    .columns
                    .iter()
                    .filter(|(name, _)| self.named.contains(name))
                    .take(8)
                    .map(|(name, kind)| format!("{} is {kind}", quoted(name)))
                    .collect();
                if used.is_empty() {
                    QueryError::Invalid(what)
                } else {
                    QueryError::Invalid(format!("{what}; {}", used.join(", ")))
                }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_has_percent_and_underscore() {
        for (text, pattern, is) in [
            ("orders", "or%", true),
            ("orders", "%", true),
            ("orders", "o_ders", true),
            ("orders", "%d%s", true),
            ("ORDERS", "orders", true),
            ("orders", "order", false),
            ("orders", "_", false),
            ("", "", true),
            ("", "%%", true),
            ("aab", "%ab", true),
        ] {
            assert_eq!(is_like(text, pattern), is, "{text} LIKE {pattern}");
        }
    }

    #[test]
    fn a_path_is_a_url_of_itself() {
        assert_eq!(url_of("/a b/c%2F*.csv"), "file:///a%20b/c%252F%2A.csv");
    }
}
