//! The clock of running programs: a thread that moves the engine's epoch while anything runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use wasmtime::Engine;

/// Time between two moves of the epoch: what the limit on time is measured in.
const TICK: Duration = Duration::from_millis(10);

/// Moves the epoch once a tick while a program runs, and sleeps otherwise. Its thread ends a tick after it, at most.
#[derive(Debug)]
pub(super) struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    ticks: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Calls into programs.
    running: usize,
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something runs; whether there will be anything.
    fn wait(&self) -> bool {
        let state = self.state();
        let is_idle = |state: &mut State| state.running == 0 && !state.ended;
        !self.changed.wait_while(state, is_idle).unwrap_or_else(PoisonError::into_inner).ended
    }
}

impl Ticker {
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(engine: Engine) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let ticking = Arc::clone(&shared);
        thread::Builder::new().name("roundtable-epoch".to_owned()).spawn(move || {
            while ticking.wait() {
                thread::sleep(TICK);
                engine.increment_epoch();
                ticking.ticks.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self { shared })
    }

    /// From now on time passes, until what is returned is dropped.
    pub(super) fn watch(&self) -> Watch<'_> {
        self.shared.state().running += 1;
        self.shared.changed.notify_one();
        Watch { shared: &self.shared, from: self.shared.ticks.load(Ordering::Relaxed) }
    }

    /// Ticks that are at least so long together.
    pub(super) fn ticks(milliseconds: u64) -> u64 {
        let tick = TICK.as_millis().try_into().unwrap_or(u64::MAX);
        // The first of them may be nearly over.
        milliseconds.div_ceil(tick).saturating_add(1)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_one();
    }
}

/// A program runs.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    shared: &'a Shared,
    from: u64,
}

impl Watch<'_> {
    /// Ticks since it began.
    pub(super) fn ticks(&self) -> u64 {
        self.shared.ticks.load(Ordering::Relaxed) - self.from
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.shared.state().running -= 1;
    }
}
