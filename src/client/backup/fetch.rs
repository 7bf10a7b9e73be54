//! Takes everything out of a swarm.
//!
//! Of each partition, the leader makes an export at one moment and keeps it for a while; it is fetched in pieces,
//! read once as a restore would read it, and written. If the export is gone before it was fetched (the leader
//! ended, or was not asked for too long), that partition begins again.

use std::io;

use futures::{StreamExt, stream};
use tokio::io::AsyncWrite;

use super::super::call::{Action, Call, Outcome, Place, unexpected};
use super::super::{Client, Error};
use super::file::{Header, Writer};
use crate::id::{NodeId, PartitionId, SwarmId, Version};
use crate::state_machine::{Operation, StateMachine};
use crate::wire::{Refusal, Request, Response, Rpc, RpcError};

/// Partitions fetched at the same time, and so in memory.
const CONCURRENT_PARTITIONS: usize = 4;
/// Exports of one partition that are begun before it is given up.
const MAX_TRIES: u32 = 5;
/// Pause before a piece is asked for again.
const PIECE_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackupProgress {
    /// Partitions written.
    pub partitions: u32,
    /// Of so many.
    pub of: u32,
    /// Keys written.
    pub keys: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupSummary {
    /// Of which swarm.
    pub swarm: SwarmId,
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: u32,
    /// Number of keys.
    pub keys: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// No version or fencing token that was handed out before is higher.
    pub highest: Version,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The swarm could not be read.
    #[error("partition {partition} could not be read: {error}")]
    Partition {
        /// Which.
        partition: PartitionId,
        /// Why.
        #[source]
        error: Error,
    },
    /// The swarm could not be asked at all.
    #[error(transparent)]
    Store(#[from] Error),
    /// The file could not be written.
    #[error("the backup cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// A partition as it was at one moment.
struct Fetched {
    snapshot: Vec<u8>,
    keys: u64,
    highest: Version,
}

pub(in crate::client) async fn backup<R: Rpc, W: AsyncWrite + Unpin + Send>(
    client: &Client<R>,
    file: &mut W,
    mut progress: impl FnMut(BackupProgress) + Send,
) -> Result<BackupSummary, BackupError> {
    let view = client.known_view().await?;
    let header = Header { swarm: view.swarm, name: view.name.clone(), partitions: view.partitions };
    let mut writer = Writer::begin(file, &header).await?;
    let mut done = BackupProgress { of: view.partitions, ..BackupProgress::default() };
    let mut highest = Version(0);
    progress(done);
    let swarm = view.swarm;
    let mut partitions = stream::iter(0..view.partitions)
        .map(|partition| {
            let partition = PartitionId(partition);
            async move {
                let fetched = fetch(client, Place { swarm, partition }).await;
                fetched.map_err(|error| BackupError::Partition { partition, error })
            }
        })
        .buffered(CONCURRENT_PARTITIONS);
    while let Some(fetched) = partitions.next().await {
        let Fetched { snapshot, keys, highest: handed_out } = fetched?;
        writer.partition(&snapshot).await?;
        highest = highest.max(handed_out);
        done.partitions += 1;
        done.keys += keys;
        done.bytes += snapshot.len() as u64;
        progress(done);
    }
    let bytes = writer.end().await?;
    let Header { swarm, name, partitions } = header;
    Ok(BackupSummary { swarm, name, partitions, keys: done.keys, bytes, highest })
}

async fn fetch<R: Rpc>(client: &Client<R>, place: Place) -> Result<Fetched, Error> {
    for _ in 0..MAX_TRIES {
        // Changes nothing, but lets the partition's time catch up: what is left of the times to live is counted
        // by it, and it stands still while nothing is written.
        let operation = Operation::Raise { above: Version(0) };
        Call::new(client, Action::WritePartition { place, operation }).run().await?;
        let exported = Call::new(client, Action::Export { place }).run().await?;
        let Outcome::Exported { node, export, bytes } = exported else {
            return Err(unexpected());
        };
        let mut snapshot = Vec::new();
        while (snapshot.len() as u64) < bytes {
            match piece(client, node, export, snapshot.len() as u64).await? {
                Some(piece) if !piece.is_empty() => snapshot.extend_from_slice(&piece),
                _ => break,
            }
        }
        // As a restore will read it: a backup that cannot be read is none.
        if snapshot.len() as u64 == bytes
            && let Ok(state) = StateMachine::restore(&snapshot)
        {
            // It is dropped anyway, later.
            let end = Request::Piece { node, export, offset: bytes, forwarded: false };
            let router = &client.shared.router;
            if let Some(to) = router.towards(node) {
                drop(router.rpc.call(to, end, PIECE_PAUSE).await);
            }
            return Ok(Fetched { snapshot, keys: state.len() as u64, highest: state.highest() });
        }
    }
    Err(Error::TimedOut)
}

/// The next bytes of an export; `None`: it is gone.
async fn piece<R: Rpc>(
    client: &Client<R>,
    node: NodeId,
    export: u64,
    offset: u64,
) -> Result<Option<Vec<u8>>, Error> {
    let router = &client.shared.router;
    let deadline = client.now() + client.deadline;
    let mut last = Error::Unreachable;
    loop {
        let remaining = deadline.since(client.now());
        if remaining.is_zero() {
            return Err(last);
        }
        if let Some(to) = router.towards(node) {
            let request = Request::Piece { node, export, offset, forwarded: false };
            match router.rpc.call(to, request, remaining).await {
                Ok(Response::Piece(bytes)) => return Ok(Some(bytes)),
                Ok(Response::Refused(Refusal::NoExport | Refusal::NotServing)) => return Ok(None),
                Ok(Response::Refused(Refusal::Overloaded)) => last = Error::Overloaded,
                Ok(Response::Refused(Refusal::BadRequest(reason))) => return Err(Error::Refused(reason)),
                Ok(Response::Refused(_)) | Err(RpcError::NotSent(_)) => last = Error::Unreachable,
                Ok(_) => return Err(unexpected()),
                // The link broke: perhaps the node is gone, and its export with it.
                Err(RpcError::Lost(_)) if !router.rpc.linked().contains(&node) => return Ok(None),
                Err(RpcError::Lost(_)) => last = Error::TimedOut,
            }
        }
        tokio::time::sleep(PIECE_PAUSE.min(remaining)).await;
    }
}
