//! Shipped code on a node: fetched and compiled once, however many tasks ask for it at the same time, and kept while
//! there is room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{OnceCell, Semaphore};

use super::work::Desk;
use crate::client::{DatasetError, ShipError};
use crate::compute::{Executable, ProgramError};
use crate::wasm::{Runtime, Shipped};
use crate::wire::{Site, WorkError};

/// Most programs that a node keeps compiled.
const MAX_KEPT: usize = 64;
/// Most bytes of code that they have together.
const MAX_KEPT_BYTES: usize = 256 * 1024 * 1024;

/// The shipped code that a node has.
#[derive(Debug)]
pub(super) struct ShippedCode {
    /// Made when it is needed; `None`: there can be none on this machine.
    runtime: OnceLock<Option<Arc<Runtime>>>,
    /// Components are compiled one after the other: it takes a processor, and much memory.
    compiling: Arc<Semaphore>,
    /// Also of what is no program: it would not become one.
    shelf: Shelf<Result<Arc<Shipped>, ProgramError>>,
}

impl ShippedCode {
    pub(super) fn new() -> Self {
        Self {
            runtime: OnceLock::new(),
            compiling: Arc::new(Semaphore::new(1)),
            shelf: Shelf::new(MAX_KEPT, MAX_KEPT_BYTES),
        }
    }

    /// The program of that hash, ready to run.
    pub(super) async fn find(&self, sha256: [u8; 32], desk: &Desk) -> Result<Arc<dyn Executable>, WorkError> {
        let runtime = self.runtime.get_or_init(|| {
            Runtime::new().inspect_err(|error| tracing::warn!(%error, "shipped code is not run here")).ok()
        });
        let Some(runtime) = runtime.clone() else { return Err(WorkError::NoProgram) };
        let load = async move {
            let component = match desk.client.shipped(&sha256).await {
                Ok(component) => component,
                Err(ShipError::Program(error)) => return Ok((Err(error), 0)),
                Err(ShipError::Dataset(DatasetError::NotFound)) => return Err(WorkError::NoProgram),
                Err(error) => {
                    return Err(WorkError::Refused(format!("the program could not be fetched: {error}")));
                }
            };
            let turn = Arc::clone(&self.compiling).acquire_owned().await.map_err(|_| WorkError::Ended)?;
            let load = move || {
                let loaded = runtime.load(&component);
                // Not before it is done, whether somebody still waits for it or not.
                drop(turn);
                loaded
            };
            let loaded = desk.compute(load).await?;
            let bytes = loaded.as_ref().map_or(0, Shipped::code_bytes);
            Ok((loaded.map(Arc::new).map_err(ProgramError::from), bytes))
        };
        match self.shelf.get(sha256, load).await? {
            Ok(program) => Ok(program),
            Err(error) => Err(WorkError::Program { site: Site::Start, error }),
        }
    }
}

/// Values by a hash. Each is made once, however many ask for it at the same time; those that were asked for last are
/// kept.
struct Shelf<T> {
    most: usize,
    most_bytes: usize,
    kept: Mutex<Kept<T>>,
}

struct Kept<T> {
    values: BTreeMap<[u8; 32], Value<T>>,
    /// How often something was asked for.
    asked: u64,
}

struct Value<T> {
    /// With its bytes; empty while it is made.
    cell: Arc<OnceCell<(T, usize)>>,
    /// When it was asked for last.
    asked: u64,
}

impl<T: Clone> Shelf<T> {
    fn new(most: usize, most_bytes: usize) -> Self {
        Self { most, most_bytes, kept: Mutex::new(Kept { values: BTreeMap::new(), asked: 0 }) }
    }

    /// The value of that hash, with its bytes made by `make` if there is none and nobody else makes it. An error is
    /// not kept.
    async fn get<E>(
        &self,
        hash: [u8; 32],
        make: impl Future<Output = Result<(T, usize), E>>,
    ) -> Result<T, E> {
        let cell = self.kept().ask(hash, None);
        let made = cell.get_or_try_init(|| make).await.map(|(value, _)| value.clone());
        let mut kept = self.kept();
        if made.is_ok() {
            // It may have had to go meanwhile.
            kept.ask(hash, Some(cell));
            kept.cut(self.most, self.most_bytes);
        } else {
            kept.values.retain(|other, value| *other != hash || value.cell.initialized());
        }
        made
    }

    fn kept(&self) -> MutexGuard<'_, Kept<T>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Kept<T> {
    /// What there is of that hash, or this, or an empty one.
    fn ask(&mut self, hash: [u8; 32], cell: Option<Arc<OnceCell<(T, usize)>>>) -> Arc<OnceCell<(T, usize)>> {
        self.asked += 1;
        let new = || Value { cell: cell.unwrap_or_default(), asked: 0 };
        let value = self.values.entry(hash).or_insert_with(new);
        value.asked = self.asked;
        Arc::clone(&value.cell)
    }

    /// Lets go what was asked for longest ago, but never the last.
    fn cut(&mut self, most: usize, most_bytes: usize) {
        loop {
            let bytes: usize =
                self.values.values().filter_map(|value| value.cell.get()).map(|(_, bytes)| bytes).sum();
            if self.values.len() <= 1 || (self.values.len() <= most && bytes <= most_bytes) {
                return;
            }
            let oldest = self.values.iter().min_by_key(|(_, value)| value.asked).map(|(hash, _)| *hash);
            oldest.map(|hash| self.values.remove(&hash));
        }
    }
}

impl<T> std::fmt::Debug for Shelf<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::ready;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;

    const fn hash(number: u8) -> [u8; 32] {
        [number; 32]
    }

    /// Whether a value is there: it is not made again.
    async fn has(shelf: &Shelf<u8>, number: u8) -> bool {
        shelf.get(hash(number), ready(Err(()))).await.is_ok()
    }

    #[tokio::test]
    async fn a_value_is_made_once_however_many_ask() {
        let shelf = Shelf::new(4, 100);
        let made = AtomicUsize::new(0);
        let ask = || {
            shelf.get(hash(1), async {
                tokio::task::yield_now().await;
                made.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Infallible>((7, 10))
            })
        };
        assert_eq!(join_all((0..20).map(|_| ask())).await, vec![Ok(7); 20]);
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn who_is_not_successful_leaves_it_to_the_next() {
        let shelf = Shelf::new(4, 100);
        let failing = shelf.get(hash(1), async {
            tokio::task::yield_now().await;
            Err(())
        });
        let (failed, made) = tokio::join!(failing, shelf.get(hash(1), ready(Ok::<_, ()>((7, 10)))));
        assert_eq!((failed, made), (Err(()), Ok(7)));
        assert!(has(&shelf, 1).await && !has(&shelf, 2).await);
        assert_eq!(shelf.kept().values.len(), 1);
    }

    #[tokio::test]
    async fn what_was_asked_for_last_is_kept() {
        let shelf = Shelf::new(3, 100);
        for number in 1..=3 {
            shelf.get(hash(number), ready(Ok::<_, ()>((number, 10)))).await.unwrap();
        }
        assert!(has(&shelf, 1).await);
        shelf.get(hash(4), ready(Ok::<_, ()>((4, 10)))).await.unwrap();
        assert!(!has(&shelf, 2).await && has(&shelf, 1).await);
        // By bytes: all others have to go, and it is kept although it is too large itself.
        shelf.get(hash(5), ready(Ok::<_, ()>((5, 1000)))).await.unwrap();
        assert!(has(&shelf, 5).await && !has(&shelf, 1).await && !has(&shelf, 4).await);
    }
}
