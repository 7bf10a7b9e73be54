//! A swarm's store as the node drives it: a queue in, events out, and the thread that writes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::Notify;

use super::writer::{Batch, Opened, Trouble, Writer};
use super::{DataDir, Progress, Recovered, StoreConfig, StoreError, StoreStats};
use crate::id::{PartitionId, SwarmId};
use crate::replication::Write;

/// Batches of so many bytes together are one record, unless a single one is longer.
const RECORD_BYTES: usize = 4 * 1024 * 1024;
/// What a write takes beside its data, in bytes; a round figure.
const WRITE_OVERHEAD_BYTES: usize = 64;
/// What an entry takes beside its data, in bytes; a round figure.
const ENTRY_OVERHEAD_BYTES: usize = 16;

/// What a store has to tell.
#[derive(Debug, Clone)]
pub enum Event {
    /// This batch and all before it are on the disk. Only the latest is told.
    Persisted(u64),
    /// The disk is full, or so nearly that the reserve is being used up: no more data should be accepted. What
    /// was submitted is kept and tried again.
    Full,
    /// There is room again.
    Room,
    /// Fresh states of these partitions, with `replaces_log: false`, would allow the log to be cut. Entries that
    /// the state does not cover still hold it back: they should be appended once more, behind the state.
    WantState(Vec<PartitionId>),
    /// A write or sync failed, so it is not known what is on the disk. Nothing is taken any more, and what was
    /// not reported as persisted may or may not be there: the node must end.
    Failed(Arc<io::Error>),
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Too much waits already: [`Store::has_room`] said no. The writes are given back.
    #[error("too much waits to be written")]
    Busy(Vec<Write>),
    /// The store has failed or is being closed. What it did not report as persisted may or may not be kept.
    #[error("the store takes nothing any more")]
    Closed,
}

/// Keeps what a driver wants kept, for one swarm.
///
/// - [`open`](Self::open) reads what is there (blocking).
/// - [`submit`](Self::submit) takes a batch and returns at once; ask [`has_room`](Self::has_room) before the
///   driver is made to produce one.
/// - [`next_event`](Self::next_event) tells what became of them.
/// - [`close`](Self::close) waits until all of it is on the disk. A store that is dropped finishes what it is
///   writing (which may block for as long as one sync) and forgets what waits, as a crash would.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    config: StoreConfig,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Keeps the directory locked as long as the thread may write.
    _dir: DataDir,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something for the thread to do.
    work: Condvar,
    /// Something for the node to hear.
    event: Notify,
    /// The thread has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    queue: VecDeque<Batch>,
    /// Batches and bytes submitted and not persisted, also those that are being written.
    waiting: usize,
    waiting_bytes: usize,
    full: bool,
    failed: Option<Arc<io::Error>>,
    stats: StoreStats,
    news: News,
}

/// How far a store is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Phase {
    #[default]
    Open,
    /// No more is taken; what waits is written.
    Closing,
    /// What waits is not written.
    Abandoned,
    /// The thread has ended.
    Ended,
}

/// What was not told yet.
#[derive(Debug, Default)]
struct News {
    persisted: Option<u64>,
    failed: Option<Arc<io::Error>>,
    full: Option<bool>,
    wanted: Vec<PartitionId>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens the store of a swarm, making it if there is none, and reads back what was kept. Blocks; `progress`
    /// hears now and then how far it is.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(
        dir: &DataDir,
        swarm: SwarmId,
        config: StoreConfig,
        mut progress: impl FnMut(Progress),
    ) -> Result<(Self, Recovered), StoreError> {
        let path = dir.swarm_path(swarm);
        let Opened { writer, stored, findings, full } =
            Writer::open(dir.disk(), &path, config.clone(), rand::random(), &mut progress)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                stats: writer.stats(),
                full,
                news: News { full: full.then_some(true), ..News::default() },
                ..State::default()
            }),
            work: Condvar::new(),
            event: Notify::new(),
            ended: Notify::new(),
        });
        let worker = Worker { shared: Arc::clone(&shared), writer, config: config.clone() };
        let thread = std::thread::Builder::new()
            .name("storage".to_owned())
            .spawn(move || worker.run())
            .map_err(|source| StoreError::Io { path, source })?;
        let store = Self { shared, config, thread: Mutex::new(Some(thread)), _dir: dir.clone() };
        Ok((store, Recovered { stored, findings }))
    }

    /// Takes a batch to be written behind those before it. Numbers rise.
    ///
    /// # Errors
    /// If [`has_room`](Self::has_room) says no, or the store has failed or is closed.
    pub fn submit(&self, batch: u64, writes: Vec<Write>) -> Result<(), SubmitError> {
        let mut state = self.shared.state();
        if state.phase > Phase::Open || state.failed.is_some() {
            return Err(SubmitError::Closed);
        }
        if !self.fits(&state) {
            return Err(SubmitError::Busy(writes));
        }
        let bytes = writes.iter().map(weight).sum();
        state.waiting += 1;
        state.waiting_bytes += bytes;
        state.queue.push_back(Batch { number: batch, writes, bytes });
        // Before it is woken: it would only wait again, for the lock.
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Whether another batch would be taken. One that is, may be of any size.
    pub fn has_room(&self) -> bool {
        self.fits(&self.shared.state())
    }

    fn fits(&self, state: &State) -> bool {
        state.waiting < self.config.queue_batches && state.waiting_bytes < self.config.queue_bytes
    }

    /// What has happened. Nothing is lost if the future is dropped. After [`Event::Failed`], or when the store is
    /// closed and everything was told, it never resolves.
    pub async fn next_event(&self) -> Event {
        loop {
            let notified = self.shared.event.notified();
            if let Some(event) = self.shared.state().news.next() {
                return event;
            }
            notified.await;
        }
    }

    /// What was done and how much there is.
    pub fn stats(&self) -> StoreStats {
        self.shared.state().stats
    }

    /// Takes nothing any more, and waits until everything that was submitted is on the disk and nobody uses the
    /// files. The last events may still be asked for.
    ///
    /// # Errors
    /// If the disk failed or is full: what was not reported as persisted may or may not be kept.
    pub async fn close(&self) -> Result<(), Arc<io::Error>> {
        loop {
            let ended = self.shared.ended.notified();
            {
                let mut state = self.shared.state();
                state.phase = state.phase.max(Phase::Closing);
                self.shared.work.notify_one();
                if state.phase == Phase::Ended {
                    break;
                }
            }
            ended.await;
        }
        self.join();
        match &self.shared.state().failed {
            Some(error) => Err(Arc::clone(error)),
            None => Ok(()),
        }
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the storage thread panicked");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            state.phase = state.phase.max(Phase::Abandoned);
        }
        self.shared.work.notify_one();
        self.join();
    }
}

impl News {
    fn next(&mut self) -> Option<Event> {
        let persisted = self.persisted.take().map(Event::Persisted);
        persisted
            .or_else(|| self.failed.take().map(Event::Failed))
            .or_else(|| self.full.take().map(|full| if full { Event::Full } else { Event::Room }))
            .or_else(|| {
                let wanted = std::mem::take(&mut self.wanted);
                (!wanted.is_empty()).then_some(Event::WantState(wanted))
            })
    }
}

/// About how many bytes a write takes.
fn weight(write: &Write) -> usize {
    WRITE_OVERHEAD_BYTES
        + match write {
            Write::Append { entries, .. } => {
                entries.iter().map(|entry| ENTRY_OVERHEAD_BYTES + entry.data_bytes()).sum()
            }
            Write::State { state, .. } => state.header.len() + state.data.len(),
            Write::HardState { .. } | Write::Destroy { .. } => 0,
        }
}

/// The thread's side.
struct Worker {
    shared: Arc<Shared>,
    writer: Writer,
    config: StoreConfig,
}

/// Tells of the thread's end, however it comes about.
struct Ended {
    shared: Arc<Shared>,
    failed: Option<io::Error>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(error) = self.failed.take() {
            tracing::error!("the store has failed: {error}");
            let error = Arc::new(error);
            state.failed = Some(Arc::clone(&error));
            state.news.failed = Some(error);
        }
        state.queue.clear();
        state.phase = Phase::Ended;
        drop(state);
        self.shared.event.notify_one();
        self.shared.ended.notify_waiters();
    }
}

/// What to do next.
enum Turn {
    Write(Vec<Batch>),
    /// Nothing has come for a while.
    Idle,
    End,
}

impl Worker {
    fn run(mut self) {
        let mut end = Ended {
            shared: Arc::clone(&self.shared),
            failed: Some(io::Error::other("the storage thread panicked")),
        };
        end.failed = self.work().err();
        self.shared.state().stats = self.writer.stats();
        // The files are closed before anybody hears of the end.
        drop(self.writer);
        drop(end);
    }

    fn work(&mut self) -> io::Result<()> {
        let mut idle = false;
        loop {
            match self.next_turn(idle) {
                Turn::End => return self.end(),
                Turn::Idle => idle = !self.rest()?,
                Turn::Write(batches) => {
                    idle = false;
                    if !self.write(&batches)? {
                        return Ok(());
                    }
                    self.maintain()?;
                }
            }
        }
    }

    /// Waits for something to do. `resting`: there is nothing to be done when nothing comes.
    fn next_turn(&self, resting: bool) -> Turn {
        let mut state = self.shared.state();
        loop {
            if state.phase == Phase::Abandoned {
                return Turn::End;
            }
            if !state.queue.is_empty() {
                let mut batches = Vec::new();
                let mut bytes = 0;
                while let Some(batch) = state.queue.pop_front() {
                    bytes += batch.bytes;
                    batches.push(batch);
                    if state.queue.front().is_none_or(|next| bytes + next.bytes > RECORD_BYTES) {
                        break;
                    }
                }
                return Turn::Write(batches);
            }
            if state.phase == Phase::Closing {
                return Turn::End;
            }
            let wait = if state.full { self.config.retry_after } else { self.config.seal_after };
            if resting && !state.full {
                state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (after, timeout) =
                self.shared.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
            state = after;
            if timeout.timed_out() && state.queue.is_empty() && state.phase == Phase::Open {
                return Turn::Idle;
            }
        }
    }

    /// Writes until it is written; `false`: the store is given up before.
    fn write(&mut self, batches: &[Batch]) -> io::Result<bool> {
        loop {
            match self.writer.commit(batches) {
                Ok(()) => break,
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Full(error)) => {
                    if !self.wait_for_room(&error)? {
                        return Ok(false);
                    }
                }
            }
        }
        let wanted = self.writer.want_states();
        let stats = self.writer.stats();
        let mut state = self.shared.state();
        state.waiting -= batches.len();
        state.waiting_bytes -= batches.iter().map(|batch| batch.bytes).sum::<usize>();
        state.news.persisted = batches.last().map(|batch| batch.number);
        state.news.wanted.extend(wanted);
        state.stats = stats;
        drop(state);
        self.shared.event.notify_one();
        Ok(true)
    }

    /// A write found no room: waits before it is tried again. `false`: it is not to be.
    fn wait_for_room(&self, error: &io::Error) -> io::Result<bool> {
        self.set_full(true);
        let state = self.shared.state();
        if state.phase == Phase::Closing {
            return Err(io::Error::new(error.kind(), "the disk is full"));
        }
        let (state, _) = self
            .shared
            .work
            .wait_timeout_while(state, self.config.retry_after, |state| state.phase == Phase::Open)
            .unwrap_or_else(PoisonError::into_inner);
        Ok(state.phase != Phase::Abandoned)
    }

    fn set_full(&self, full: bool) {
        let mut state = self.shared.state();
        if state.full != full {
            state.full = full;
            state.news.full = Some(full);
            drop(state);
            self.shared.event.notify_one();
        }
    }

    /// One step of what nobody waits for; whether there is more.
    fn maintain(&mut self) -> io::Result<bool> {
        let result = self.writer.maintain();
        self.shared.state().stats = self.writer.stats();
        match result {
            Ok(more) => {
                self.set_full(false);
                Ok(more)
            }
            Err(Trouble::Full(_)) => {
                self.set_full(true);
                Ok(false)
            }
            Err(Trouble::Failed(error)) => Err(error),
        }
    }

    /// Nothing has come for a while; whether there is more to do then.
    fn rest(&mut self) -> io::Result<bool> {
        let more = self.maintain()?;
        match self.writer.seal() {
            Err(Trouble::Failed(error)) => return Err(error),
            Err(Trouble::Full(_)) => self.set_full(true),
            Ok(()) => {}
        }
        self.shared.state().stats = self.writer.stats();
        Ok(more)
    }

    fn end(&mut self) -> io::Result<()> {
        if self.shared.state().phase == Phase::Abandoned {
            return Ok(());
        }
        match self.writer.seal() {
            // Everything that was submitted is there; only the proof of it is not.
            Ok(()) | Err(Trouble::Full(_)) => Ok(()),
            Err(Trouble::Failed(error)) => Err(error),
        }
    }
}
