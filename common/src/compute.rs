//! Work that would hold up an async thread: where it runs.
//!
//! In production all of this is tokio's pool of blocking threads, and nothing else: [`spawn`] is
//! [`tokio::task::spawn_blocking`], a channel is a bounded [`mpsc`] channel that the worker blocks on.
//!
//! In a simulation the same work runs on the runtime's own thread, in an order that one seed decides; another thread would
//! finish whenever the machine likes. A simulation says so for its thread by [`Inline::here`]. That it is a property of
//! the thread, and not a value handed in beside clock and ids, has two reasons: encoding, decoding and hashing happen deep
//! below functions that have no other use for it, and where it runs is nothing that any of them may decide by. One flag of
//! the thread is read once per piece of work, which takes milliseconds.

use std::cell::Cell;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

thread_local! {
    static INLINE: Cell<bool> = const { Cell::new(false) };
}

/// What a simulation queues where a worker would block: more than any of its files has pieces.
const INLINE_PIECES: usize = 1 << 20;

/// Threads that a simulation pretends to have: the same on every machine.
const INLINE_THREADS: usize = 2;

/// While this lives, work of this thread's runtime runs on this thread. For simulations on a current-thread runtime.
#[derive(Debug)]
pub struct Inline {
    before: bool,
    /// Not `Send`: it is about this thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl Inline {
    /// From now on, on this thread.
    #[must_use]
    pub fn here() -> Self {
        Self {
            before: INLINE.replace(true),
            _here: std::marker::PhantomData,
        }
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        INLINE.set(self.before);
    }
}

fn is_inline() -> bool {
    INLINE.get()
}

/// Runs `work` where it may take its time. A panic in it is the handle's error; dropping the handle ends nothing.
#[allow(
    clippy::disallowed_methods,
    reason = "as with the pool of blocking threads, the handle is the owner"
)]
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    if is_inline() {
        tokio::spawn(async move { work() })
    } else {
        tokio::task::spawn_blocking(work)
    }
}

/// A channel from work that [`spawn`] runs to an async task: the work [`send`]s, and waits while `capacity` pieces are
/// not taken yet.
pub fn channel<T>(capacity: usize) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(if is_inline() { INLINE_PIECES } else { capacity })
}

/// Hands a piece over, from work that [`spawn`] runs; waits for room. Gives it back where nobody takes it any more.
pub fn send<T>(sender: &mpsc::Sender<T>, piece: T) -> Result<(), T> {
    match sender.try_send(piece) {
        Ok(()) => Ok(()),
        Err(mpsc::error::TrySendError::Closed(piece)) => Err(piece),
        Err(mpsc::error::TrySendError::Full(piece)) => {
            sender.blocking_send(piece).map_err(|unsent| unsent.0)
        }
    }
}

/// How many threads the machine has for this process; 1 where it does not tell.
pub fn threads() -> usize {
    if is_inline() {
        INLINE_THREADS
    } else {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> std::thread::ThreadId {
        std::thread::current().id()
    }

    #[tokio::test]
    async fn work_runs_beside_the_runtime_and_in_a_simulation_on_it() {
        assert_ne!(spawn(here).await.unwrap(), here());
        let inline = Inline::here();
        assert_eq!(spawn(here).await.unwrap(), here());
        assert!(spawn(|| panic!("on purpose")).await.unwrap_err().is_panic());
        drop(inline);
        assert_ne!(spawn(here).await.unwrap(), here());
    }

    #[tokio::test]
    async fn pieces_come_in_order_and_the_sender_learns_that_nobody_takes_them() {
        for inline in [false, true] {
            let _inline = inline.then(Inline::here);
            let (sender, mut receiver) = channel(2);
            let work = spawn(move || (0..100).all(|n| send(&sender, n).is_ok()));
            let mut next = 0;
            while let Some(n) = receiver.recv().await {
                assert_eq!(n, next);
                next += 1;
            }
            assert!(work.await.unwrap() && next == 100);

            let (sender, receiver) = channel(1);
            drop(receiver);
            assert_eq!(spawn(move || send(&sender, 7)).await.unwrap(), Err(7));
        }
    }
}
