//! Positions for lag tools, by a client that does nothing else, on a thread of its own: librdkafka waits where it is made and
//! freed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use everlog_common::{Offset, TopicPartition};
use tokio::sync::oneshot;

use super::ffi::{Client, Failure, PartitionList};

/// So many positions may wait; older ones are worth nothing once there are newer ones.
const WAITING_MAX: usize = 16;
/// The client is looked after so often.
const TICK: Duration = Duration::from_secs(1);
/// What was sent last gets so long to arrive.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

type Positions = Vec<(TopicPartition, Offset)>;

/// Sends positions to a consumer group, best effort.
#[derive(Debug)]
pub(crate) struct Mirror {
    properties: BTreeMap<String, String>,
    /// From the first positions on.
    thread: Option<(SyncSender<Positions>, oneshot::Receiver<()>)>,
}

impl Mirror {
    /// `properties` are those of a reader alone.
    pub(super) const fn new(properties: BTreeMap<String, String>) -> Self {
        Self {
            properties,
            thread: None,
        }
    }

    /// Sends them without waiting; what the group does not take is only logged.
    pub(crate) fn send(&mut self, positions: &[(TopicPartition, Offset)]) {
        if self.thread.is_none() {
            let (sender, receiver) = sync_channel(WAITING_MAX);
            let (done, ended) = oneshot::channel();
            let properties = self.properties.clone();
            let started = std::thread::Builder::new()
                .name("everlog-mirror".into())
                .spawn(move || {
                    if let Err(failure) = work(&properties, &receiver) {
                        tracing::debug!(
                            text = failure.text,
                            "offsets are not mirrored to the group"
                        );
                    }
                    done.send(()).ok();
                });
            match started {
                Ok(_detached) => self.thread = Some((sender, ended)),
                Err(error) => {
                    tracing::debug!(%error, "no thread to mirror offsets to the group");
                    return;
                }
            }
        }
        if let Some((sender, _)) = &self.thread
            && sender.try_send(positions.to_vec()).is_err()
        {
            tracing::debug!("offsets were not mirrored to the group: it does not take them");
        }
    }

    /// Lets what was sent arrive, for a few seconds at most.
    pub(crate) async fn close(self) {
        if let Some((sender, ended)) = self.thread {
            drop(sender);
            tokio::time::timeout(CLOSE_LIMIT, ended).await.ok();
        }
    }
}

/// Until nobody sends any more.
fn work(
    properties: &BTreeMap<String, String>,
    positions: &Receiver<Positions>,
) -> Result<(), Failure> {
    let client = Client::new(properties)?;
    client.poll_as_consumer()?;
    loop {
        client.keep_a_broker();
        client.serve(|report| tracing::debug!(text = report.text, "the client reports"));
        match positions.recv_timeout(TICK) {
            Ok(positions) => {
                if let Err(failure) = commit(&client, &positions) {
                    tracing::debug!(
                        text = failure.text,
                        "offsets were not mirrored to the group"
                    );
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                client.close(CLOSE_LIMIT);
                return Ok(());
            }
        }
    }
}

fn commit(client: &Arc<Client>, positions: &Positions) -> Result<(), Failure> {
    let mut list = PartitionList::with_capacity(positions.len());
    for (tp, offset) in positions {
        list.add_at(tp.topic.as_str(), tp.partition.get(), offset.get(), None)?;
    }
    client.commit_async(&list)
}
