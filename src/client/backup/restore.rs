//! Puts a backup back.
//!
//! **Order.** The whole file is verified; then the swarm is looked at, so that one that holds something is refused
//! before anything is changed; then every partition's versions are raised; then every partition takes part 0,
//! which it does only if it holds nothing (it may have been written to since the look); then the parts follow,
//! in order for each partition. How a partition knows what it has already is told in `state_machine::import`.
//!
//! **Parts are always cut alike**: from the file's partitions in their order, and the end of each ends a part.
//! Nothing but the file and the number of partitions of the swarm decides.

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::io::{AsyncRead, AsyncSeek, AsyncSeekExt};

use super::super::call::{Action, Call, Outcome, Place, unexpected};
use super::super::router::partition_of;
use super::super::{Client, Error};
use super::file::{FileError, Reader};
use crate::id::{PartitionId, SwarmId, Version};
use crate::state_machine::{
    Answer, ImportState, Imported, MAX_FENCED, MAX_IMPORTED, MAX_IMPORTED_BYTES, MAX_RAISED, Operation,
    Query, Reply,
};
use crate::wire::{Rpc, SwarmView};

/// By how much versions and tokens of the new swarm begin above those in the backup: what the other swarm may have
/// handed out since then. A partition that writes 100,000 times a second needs four months for so many.
pub const RESTORE_LEAP: u64 = 1 << 40;

/// Partitions written to at the same time.
const CONCURRENT_PARTITIONS: usize = 16;
/// Bytes of keys and values that are read ahead, so that several partitions can be written to; the last of the
/// file's partitions may take it over that.
const AHEAD_BYTES: usize = 16 * 1024 * 1024;

/// How far a restore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RestoreProgress {
    /// Bytes of the file that were verified; nothing is changed until all are.
    pub verified: u64,
    /// Keys that the swarm has, or has had before this was begun again.
    pub keys: u64,
    /// Of so many; 0 until the file is verified.
    pub of: u64,
}

/// What was put back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreSummary {
    /// The swarm that the backup is of.
    pub swarm: SwarmId,
    /// Its name.
    pub name: String,
    /// Keys in the backup.
    pub keys: u64,
    /// Keys that an earlier, interrupted restore had put back.
    pub before: u64,
    /// Keys that were not put back, because they had been written meanwhile.
    pub kept: u64,
    /// Every version and token from now on is higher than this.
    pub above: Version,
}

/// Why a backup was not put back, and what the swarm holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The file is no backup, or damaged. Nothing was put back.
    #[error("{0}")]
    File(#[from] FileError),
    /// The swarm holds something else. Nothing was put back.
    #[error("the swarm holds keys or locks already")]
    NotEmpty,
    /// More tokens would come together in a partition than one remembers. Nothing was put back.
    #[error("partition {0} would have to remember too many tokens: restore into a swarm of more partitions")]
    TooManyFenced(PartitionId),
    /// The versions in the backup are too high for any others to be above them. Nothing was put back.
    #[error("the versions in the backup leave no room for higher ones")]
    Exhausted,
    /// The swarm could not be asked. Nothing was put back.
    #[error(transparent)]
    Store(#[from] Error),
    /// The swarm holds a part of the backup.
    #[error("interrupted after {keys} of {of} keys: {error}")]
    Interrupted {
        /// Keys that are known to be put back.
        keys: u64,
        /// Of so many.
        of: u64,
        /// Why; what it says of the swarm is not so.
        #[source]
        error: Box<RestoreError>,
    },
}

/// What the file says, all of it read.
struct Verified {
    /// Names the backup.
    backup: u128,
    keys: u64,
    above: Version,
}

pub(in crate::client) async fn restore<R: Rpc, F: AsyncRead + AsyncSeek + Unpin + Send>(
    client: &Client<R>,
    file: &mut F,
    mut progress: impl FnMut(RestoreProgress) + Send,
) -> Result<RestoreSummary, RestoreError> {
    let mut done = RestoreProgress::default();
    let begin = file.stream_position().await.map_err(FileError::Io)?;
    // Before the long work: whether there is a swarm at all.
    let view = client.known_view().await?;
    let verified = verify(file, &view, |bytes| {
        done.verified += bytes;
        progress(done);
    })
    .await?;
    done.of = verified.keys;
    let target = Target { client: client.clone(), swarm: view.swarm, backup: verified.backup };

    let (partitions, above) = (view.partitions, verified.above);
    let contents = target.all(partitions, Target::contents).await?;
    if contents
        .iter()
        .any(|(empty, import)| !empty && import.is_none_or(|import| import.backup != verified.backup))
    {
        return Err(RestoreError::NotEmpty);
    }
    target.all(partitions, move |target, place| target.raise(place, above)).await?;
    let begun = target.all(partitions, |target, place| target.import(place, 0, Vec::new())).await?;

    file.seek(SeekFrom::Start(begin)).await.map_err(FileError::Io)?;
    let mut reader = Reader::begin(file).await.map_err(|error| interrupted(error.into(), done))?;
    let header = reader.header().clone();
    let mut parts = Parts::new(Arc::clone(&view), &begun);
    let mut before = 0;
    loop {
        let next = reader.next().await.map_err(|error| interrupted(error.into(), done))?;
        let is_last = next.is_none();
        if let Some((_, state, _)) = next {
            for item in state.imports() {
                parts.push(item);
            }
            before += parts.end_partition();
        }
        if !is_last && parts.bytes < AHEAD_BYTES {
            continue;
        }
        done.keys = before + parts.put_back;
        progress(done);
        let sent = target.send(&mut parts).await;
        done.keys = before + parts.put_back;
        progress(done);
        sent.map_err(|error| interrupted(error, done))?;
        if is_last {
            break;
        }
    }
    let kept = parts.kept.values().sum();
    let (swarm, name, keys) = (header.swarm, header.name, verified.keys);
    Ok(RestoreSummary { swarm, name, keys, before, kept, above: verified.above })
}

/// What went wrong after the first part was put back, or could have been.
fn interrupted(error: RestoreError, done: RestoreProgress) -> RestoreError {
    RestoreError::Interrupted { keys: done.keys, of: done.of, error: Box::new(error) }
}

/// Reads the whole file once.
async fn verify<F: AsyncRead + Unpin + Send>(
    file: &mut F,
    view: &SwarmView,
    mut progress: impl FnMut(u64) + Send,
) -> Result<Verified, RestoreError> {
    let mut reader = Reader::begin(file).await?;
    let mut keys = 0;
    let mut highest = Version(0);
    let mut fences: BTreeMap<PartitionId, usize> = BTreeMap::new();
    while let Some((_, state, bytes)) = reader.next().await? {
        keys += state.len() as u64;
        highest = highest.max(state.highest());
        for item in state.imports() {
            if let Imported::Fence { key, token } = item {
                // Tokens that did not come from here count as well, if they leave room above.
                if token.0 <= MAX_RAISED - RESTORE_LEAP {
                    highest = highest.max(Version(token.0));
                }
                *fences.entry(partition_of(&key, view)).or_default() += 1;
            }
        }
        progress(bytes);
    }
    let checksum = reader.end().await?;
    if let Some((partition, _)) = fences.into_iter().find(|(_, count)| *count > MAX_FENCED) {
        return Err(RestoreError::TooManyFenced(partition));
    }
    let above = highest.0.checked_add(RESTORE_LEAP).filter(|above| *above <= MAX_RAISED);
    let above = Version(above.ok_or(RestoreError::Exhausted)?);
    let (name, _) = checksum.split_first_chunk().unwrap_or((&[0; 16], &[]));
    Ok(Verified { backup: u128::from_le_bytes(*name), keys, above })
}

/// Parts of a backup, by the partition that they are for.
struct Parts {
    view: Arc<SwarmView>,
    /// The part that each partition waits for.
    begun: Vec<u64>,
    /// Number of the part that is open or opened next, for each partition.
    numbers: Vec<u64>,
    /// Each with its bytes.
    open: BTreeMap<PartitionId, (usize, Vec<Imported>)>,
    closed: BTreeMap<PartitionId, Vec<(u64, Vec<Imported>)>>,
    /// Bytes of `open` and `closed`.
    bytes: usize,
    /// Keys that were put back, or would have been.
    put_back: u64,
    /// Of each partition, as it said last: keys that were there.
    kept: BTreeMap<PartitionId, u64>,
    /// Keys that an earlier restore put back, since the last look.
    skipped: u64,
}

impl Parts {
    fn new(view: Arc<SwarmView>, begun: &[ImportState]) -> Self {
        let kept = (0..).map(PartitionId).zip(begun.iter().map(|state| state.kept)).collect();
        Self {
            begun: begun.iter().map(|state| state.next).collect(),
            // Part 0 is the empty one that begins.
            numbers: vec![1; view.partitions as usize],
            view,
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            bytes: 0,
            put_back: 0,
            kept,
            skipped: 0,
        }
    }

    fn push(&mut self, item: Imported) {
        let partition = partition_of(item.key(), &self.view);
        let bytes = item.bytes();
        let (open_bytes, open) = self.open.entry(partition).or_default();
        let is_full = open.len() >= MAX_IMPORTED || *open_bytes + bytes > MAX_IMPORTED_BYTES;
        if is_full && !open.is_empty() {
            let items = std::mem::take(open);
            self.close(partition, items);
        }
        self.bytes += bytes;
        let (open_bytes, open) = self.open.entry(partition).or_default();
        *open_bytes = if open.is_empty() { bytes } else { *open_bytes + bytes };
        open.push(item);
    }

    /// Closes all parts; how many keys of those closed since the last time need not be sent.
    fn end_partition(&mut self) -> u64 {
        for (partition, (_, items)) in std::mem::take(&mut self.open) {
            self.close(partition, items);
        }
        std::mem::take(&mut self.skipped)
    }

    fn close(&mut self, partition: PartitionId, items: Vec<Imported>) {
        let at = partition.0 as usize;
        let number = self.numbers[at];
        self.numbers[at] += 1;
        if number < self.begun[at] {
            self.bytes -= items.iter().map(Imported::bytes).sum::<usize>();
            self.skipped += keys(&items);
        } else {
            self.closed.entry(partition).or_default().push((number, items));
        }
    }
}

fn keys(items: &[Imported]) -> u64 {
    items.iter().filter(|item| matches!(item, Imported::Key { .. })).count() as u64
}

/// The swarm that is written to, and what is.
struct Target<R> {
    client: Client<R>,
    swarm: SwarmId,
    backup: u128,
}

impl<R> Clone for Target<R> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), ..*self }
    }
}

impl<R: Rpc> Target<R> {
    /// Asks all partitions, several at a time; the answers are in order.
    async fn all<T, Asking>(
        &self,
        partitions: u32,
        ask: impl Fn(Self, Place) -> Asking,
    ) -> Result<Vec<T>, RestoreError>
    where
        Asking: Future<Output = Result<T, RestoreError>>,
    {
        stream::iter((0..partitions).map(PartitionId))
            .map(|partition| ask(self.clone(), Place { swarm: self.swarm, partition }))
            .buffered(CONCURRENT_PARTITIONS)
            .try_collect()
            .await
    }

    async fn contents(self, place: Place) -> Result<(bool, Option<ImportState>), RestoreError> {
        let query = Query::Contents;
        match Call::new(&self.client, Action::Scan { place, query }).run().await? {
            Outcome::Answer(Answer::Contents { empty, import }) => Ok((empty, import)),
            _ => Err(unexpected().into()),
        }
    }

    async fn raise(self, place: Place, above: Version) -> Result<(), RestoreError> {
        match self.write(place, Operation::Raise { above }).await? {
            Reply::Raised { highest } if highest >= above => Ok(()),
            Reply::Raised { .. } => Err(RestoreError::Exhausted),
            _ => Err(unexpected().into()),
        }
    }

    async fn import(
        self,
        place: Place,
        number: u64,
        items: Vec<Imported>,
    ) -> Result<ImportState, RestoreError> {
        let backup = self.backup;
        match self.write(place, Operation::Import { backup, number, items }).await? {
            Reply::Imported { state } if state.backup == backup && state.next > number => Ok(state),
            Reply::NotEmpty => Err(RestoreError::NotEmpty),
            Reply::TooManyFenced => Err(RestoreError::TooManyFenced(place.partition)),
            _ => Err(unexpected().into()),
        }
    }

    async fn write(&self, place: Place, operation: Operation) -> Result<Reply, Error> {
        match Call::new(&self.client, Action::WritePartition { place, operation }).run().await? {
            Outcome::Reply(reply) => Ok(reply),
            _ => Err(unexpected()),
        }
    }

    /// Sends all closed parts: those of one partition one after the other.
    async fn send(&self, parts: &mut Parts) -> Result<(), RestoreError> {
        parts.bytes = 0;
        let queues = std::mem::take(&mut parts.closed).into_iter().map(|(partition, queue)| {
            let (target, place) = (self.clone(), Place { swarm: self.swarm, partition });
            let send = move |(number, items): (u64, Vec<Imported>)| {
                let target = target.clone();
                async move {
                    let sent = keys(&items);
                    let state = target.import(place, number, items).await?;
                    Ok::<_, RestoreError>((partition, sent, state.kept))
                }
            };
            stream::iter(queue).then(send).boxed()
        });
        let mut sent = stream::iter(queues).flatten_unordered(CONCURRENT_PARTITIONS);
        while let Some((partition, keys, kept)) = sent.try_next().await? {
            parts.put_back += keys;
            parts.kept.insert(partition, kept);
        }
        Ok(())
    }
}
