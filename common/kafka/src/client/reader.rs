//! The caller's side of a reader: commands in, events out, and the wake-ups between both sides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use everlog_common::{Offset, TopicName, TopicPartition};
use tokio::sync::{Notify, oneshot};

use super::ffi::Queue;
use super::properties::MemoryPlan;
use super::worker::Worker;
use crate::{LogError, LogReader, ReaderEvent, ReaderOptions, StartAt};

/// Closing takes at most so long: leaving the group, and ending the client's threads.
const CLOSE_LIMIT: Duration = Duration::from_secs(15);

static READERS: AtomicU64 = AtomicU64::new(0);

/// What a caller asks of the worker. `answers`: it is the answer to the rebalance that the caller was told of.
#[derive(Debug)]
pub(super) enum Request {
    Assign {
        partitions: Vec<(TopicPartition, StartAt)>,
        answers: bool,
    },
    Unassign {
        partitions: Vec<TopicPartition>,
        answers: bool,
    },
    Subscribe(Vec<TopicName>),
    Pause(Vec<TopicPartition>),
    Resume(Vec<TopicPartition>),
    Mirror(Vec<(TopicPartition, Offset)>),
}

#[derive(Debug)]
pub(super) struct Command {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Result<(), LogError>>,
}

/// What the worker has to tell.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) events: VecDeque<ReaderEvent>,
    /// Bytes of the rows in `events`.
    pub(super) bytes: usize,
    /// Told once, after the events before it.
    pub(super) error: Option<LogError>,
    /// The worker ended; why.
    pub(super) ended: Option<String>,
}

/// Between both sides.
#[derive(Debug)]
pub(super) struct Shared {
    outbox: Mutex<Outbox>,
    ready: Notify,
    commands: Mutex<VecDeque<Command>>,
    bell: Condvar,
    /// The queue that the worker may be waiting on.
    queue: Mutex<Option<Arc<Queue>>>,
    pub(super) stop: AtomicBool,
    /// As the worker last counted them.
    pub(super) held: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            outbox: Mutex::default(),
            ready: Notify::new(),
            commands: Mutex::default(),
            bell: Condvar::new(),
            queue: Mutex::default(),
            stop: AtomicBool::new(false),
            held: AtomicUsize::new(0),
        }
    }

    pub(super) fn attach(&self, queue: Option<Arc<Queue>>) {
        *lock(&self.queue) = queue;
    }

    pub(super) fn outbox_bytes(&self) -> usize {
        lock(&self.outbox).bytes
    }

    /// Changes the outbox and tells the caller.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Outbox)) {
        change(&mut lock(&self.outbox));
        self.ready.notify_one();
    }

    /// Takes back rows and faults of partitions that nobody has taken yet.
    pub(super) fn withdraw(&self, partitions: &[TopicPartition]) {
        let mut outbox = lock(&self.outbox);
        let mut bytes = 0;
        outbox.events.retain(|event| match event {
            ReaderEvent::Fetched(f) if partitions.contains(&f.source) => {
                bytes += f.columns.bytes();
                false
            }
            ReaderEvent::Fault { partition, .. } => !partitions.contains(partition),
            _ => true,
        });
        outbox.bytes = outbox.bytes.saturating_sub(bytes);
    }

    /// All commands that wait; without any, and if `idle` is given, waits so long for one (or for room).
    pub(super) fn commands(&self, idle: Option<Duration>) -> VecDeque<Command> {
        let mut commands = lock(&self.commands);
        if let Some(wait) = idle
            && commands.is_empty()
            && !self.stop.load(Ordering::SeqCst)
        {
            commands = self
                .bell
                .wait_timeout(commands, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        std::mem::take(&mut *commands)
    }

    /// Wakes the worker wherever it waits.
    fn ring(&self) {
        self.bell.notify_all();
        if let Some(queue) = lock(&self.queue).as_ref() {
            queue.wake();
        }
    }
}

/// Says that the worker ended, also when it panicked: nobody waits for it any more.
struct LastWords(Arc<Shared>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.tell(|outbox| {
            outbox
                .ended
                .get_or_insert_with(|| "the reader's thread panicked".into());
        });
        // commands that came too late are dropped, which tells their callers
        drop(self.0.commands(None));
    }
}

/// Ends the worker when dropped. Its thread leaves the group and frees the client by itself, in bounded time.
#[derive(Debug)]
pub(super) struct KafkaReader {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    ended: Option<oneshot::Receiver<()>>,
    /// Rebalances that the caller was told of and has not answered: true for assigned, false for revoked.
    questions: VecDeque<bool>,
    mirrors: bool,
    own_max: usize,
}

impl KafkaReader {
    pub(super) fn start(
        properties: &BTreeMap<String, String>,
        options: ReaderOptions,
        plan: MemoryPlan,
        mirrors: bool,
    ) -> Result<Self, LogError> {
        let shared = Arc::new(Shared::new());
        let worker = Worker::new(properties, options, plan, Arc::clone(&shared))?;
        let (done, ended) = oneshot::channel();
        let words_for = Arc::clone(&shared);
        let number = READERS.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::Builder::new()
            .name(format!("everlog-ingest-{number}"))
            .spawn(move || {
                let last_words = LastWords(words_for);
                worker.run();
                drop(last_words);
                // a caller that went away does not wait
                done.send(()).ok();
            })
            .map_err(|e| LogError::Unavailable {
                what: "start a reader's thread".into(),
                detail: e.to_string(),
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            ended: Some(ended),
            questions: VecDeque::new(),
            mirrors,
            own_max: plan.own,
        })
    }

    async fn command(&mut self, request: Request) -> Result<(), LogError> {
        let (reply, answer) = oneshot::channel();
        lock(&self.shared.commands).push_back(Command { request, reply });
        // the worker drops what waits after it said that it ended, so a command is either answered or dropped
        if lock(&self.shared.outbox).ended.is_some() {
            return Err(self.ended_error());
        }
        self.shared.ring();
        answer.await.unwrap_or_else(|_| Err(self.ended_error()))
    }

    fn ended_error(&self) -> LogError {
        let ended = lock(&self.shared.outbox).ended.clone();
        LogError::Closed(ended.unwrap_or_else(|| "the reader ended".into()))
    }

    /// What is there now.
    fn take(&mut self) -> Result<Vec<ReaderEvent>, LogError> {
        let mut outbox = lock(&self.shared.outbox);
        if outbox.events.is_empty() {
            if let Some(error) = outbox.error.take() {
                return Err(error);
            }
            if let Some(why) = &outbox.ended {
                return Err(LogError::Closed(why.clone()));
            }
        }
        let was_full = outbox.bytes >= self.own_max;
        outbox.bytes = 0;
        let events: Vec<_> = std::mem::take(&mut outbox.events).into();
        drop(outbox);
        if was_full {
            self.shared.ring();
        }
        for event in &events {
            match event {
                ReaderEvent::Assigned(_) => self.questions.push_back(true),
                ReaderEvent::Revoked { .. } => self.questions.push_back(false),
                ReaderEvent::Fetched(_) | ReaderEvent::Fault { .. } => {}
            }
        }
        Ok(events)
    }

    fn answers(&mut self, assigned: bool) -> bool {
        let answers = self.questions.front() == Some(&assigned);
        if answers {
            self.questions.pop_front();
        }
        answers
    }

    fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.ring();
    }
}

#[async_trait]
impl LogReader for KafkaReader {
    async fn poll(&mut self, wait: Duration) -> Result<Vec<ReaderEvent>, LogError> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let events = self.take()?;
            if !events.is_empty() || wait.is_zero() {
                return Ok(events);
            }
            // a notification between `take` and here is kept for us
            let ready = self.shared.ready.notified();
            if tokio::time::timeout_at(until, ready).await.is_err() {
                return self.take();
            }
        }
    }

    async fn assign(&mut self, partitions: &[(TopicPartition, StartAt)]) -> Result<(), LogError> {
        let answers = self.answers(true);
        let partitions = partitions.to_vec();
        self.command(Request::Assign {
            partitions,
            answers,
        })
        .await
    }

    async fn subscribe(&mut self, topics: &[TopicName]) -> Result<(), LogError> {
        self.command(Request::Subscribe(topics.to_vec())).await
    }

    async fn unassign(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        let answers = self.answers(false);
        let partitions = partitions.to_vec();
        self.command(Request::Unassign {
            partitions,
            answers,
        })
        .await
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.command(Request::Pause(partitions.to_vec())).await
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), LogError> {
        self.command(Request::Resume(partitions.to_vec())).await
    }

    async fn mirror(&mut self, positions: &[(TopicPartition, Offset)]) -> Result<(), LogError> {
        if !self.mirrors || positions.is_empty() {
            return Ok(());
        }
        self.command(Request::Mirror(positions.to_vec())).await
    }

    fn held_bytes(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    async fn close(mut self: Box<Self>) -> Result<(), LogError> {
        self.stop();
        let late = || LogError::Closed(format!("the client did not end within {CLOSE_LIMIT:?}"));
        if let Some(ended) = self.ended.take() {
            // an error means that the thread is gone already
            match tokio::time::timeout(CLOSE_LIMIT, ended).await {
                Ok(_) => {}
                Err(_) => return Err(late()),
            }
        }
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Err(_)) => Err(LogError::Closed("the reader's thread panicked".into())),
            _ => Ok(()),
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.stop();
    }
}
