//! Datasets: streamed in and out, block by block, without ever being whole in memory.
//!
//! `placement` says where a block belongs, `blocks` brings one there or back, `writer` and `reader` do so for all
//! blocks of a dataset.

mod blocks;
mod placement;
mod reader;
mod writer;

use std::fmt;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, stream};

pub(crate) use blocks::Courier;
pub use placement::Placement;
pub use reader::DatasetReader;
pub use writer::DatasetWriter;
pub(super) use writer::seal;

use super::call::{Action, Call, Outcome, Place, unexpected};
use super::{Client, Error, failure};
use crate::dataset::{CutError, Format, Manifest};
use crate::id::{DatasetId, PartitionId};
use crate::state_machine::{Answer, MAX_LISTED_DATASETS, Operation, Query, Reply, SealedDataset};
use crate::wire::{BlockRefusal, BlockRequest, Request, Rpc};

/// Longest wait for a node to note that a dataset is given up: it would find out by itself.
const GIVE_UP_LIMIT: Duration = Duration::from_millis(500);

/// A dataset by its name, whether it is there or not; made by [`Client::dataset`].
pub struct Dataset<R> {
    client: Client<R>,
    name: Vec<u8>,
}

impl<R: Rpc> Client<R> {
    /// The dataset of that name: to be written, read, removed, or asked about. Names are keys of their own: a
    /// dataset and a key of the same name have nothing to do with each other.
    pub fn dataset(&self, name: impl Into<Vec<u8>>) -> Dataset<R> {
        Dataset { client: self.clone(), name: name.into() }
    }

    /// All datasets, partition by partition; in each, in the order of the bytes of their names. Not one moment's
    /// picture. The stream ends after its first error.
    pub fn datasets(&self) -> impl Stream<Item = Result<(Vec<u8>, SealedDataset), Error>> + Send + 'static {
        let client = self.clone();
        stream::once(async move {
            let view = client.known_view().await?;
            let swarm = view.swarm;
            let pages = (0..view.partitions).map(PartitionId).map(move |partition| {
                let first = Some((client.clone(), Place { swarm, partition }, Vec::new()));
                let pages = stream::try_unfold(first, next_page);
                Ok::<_, Error>(pages.map_ok(|page| stream::iter(page).map(Ok)).try_flatten())
            });
            Ok::<_, Error>(stream::iter(pages).try_flatten())
        })
        .try_flatten()
    }
}

impl<R: Rpc> Dataset<R> {
    /// Its name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What is known of it; `None`: there is no dataset of that name.
    ///
    /// # Errors
    /// If it was not answered before the deadline.
    pub async fn info(&self) -> Result<Option<SealedDataset>, Error> {
        self.ask(false).await
    }

    /// Its blocks; `None`: there is no dataset of that name.
    pub(crate) async fn manifest(&self) -> Result<Option<Manifest>, Error> {
        let Some(SealedDataset { summary, blocks, .. }) = self.ask(true).await? else { return Ok(None) };
        let blocks = blocks.ok_or_else(unexpected)?;
        Ok(Some(Manifest { id: summary.id, format: summary.format, blocks }))
    }

    async fn ask(&self, with_blocks: bool) -> Result<Option<SealedDataset>, Error> {
        let query = Query::Dataset { name: self.name.clone(), with_blocks };
        query.check()?;
        match Call::new(&self.client, Action::Ask { query }).run().await? {
            Outcome::Answer(Answer::Dataset(found)) => Ok(found),
            _ => Err(unexpected()),
        }
    }

    /// Begins to write it. It is there, whole and for good, when [`DatasetWriter::finish`] has succeeded; before
    /// that nobody sees anything of it. Each block has 30 s, or the client's deadline if that is longer.
    ///
    /// # Errors
    /// [`DatasetError::Exists`] if there is one of that name; or if the swarm cannot be asked.
    pub async fn create(&self, format: Format) -> Result<DatasetWriter<R>, DatasetError> {
        if self.info().await?.is_some() {
            return Err(DatasetError::Exists);
        }
        DatasetWriter::begin(self.client.clone(), self.name.clone(), format).await
    }

    /// Begins to read it. The client's deadline is that of each block.
    ///
    /// # Errors
    /// [`DatasetError::NotFound`] if there is none of that name; or if the swarm cannot be asked.
    pub async fn read(&self) -> Result<DatasetReader<R>, DatasetError> {
        let manifest = self.manifest().await?.ok_or(DatasetError::NotFound)?;
        DatasetReader::begin(self.client.clone(), manifest).await
    }

    /// Removes it; whether it was there. Its blocks are dropped soon after, by each node for itself. Who is reading
    /// it may fail.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether it may be removed.
    pub async fn remove(&self) -> Result<bool, Error> {
        match self.client.write(Operation::RemoveDataset { name: self.name.clone(), id: None }).await? {
            Reply::DatasetRemoved { id: None } => Ok(false),
            Reply::DatasetRemoved { id: Some(id) } => {
                give_up(&self.client, id).await;
                Ok(true)
            }
            other => Err(failure(&other)),
        }
    }
}

impl<R> fmt::Debug for Dataset<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset").field("name", &String::from_utf8_lossy(&self.name)).finish_non_exhaustive()
    }
}

/// Tells the linked nodes that a dataset is removed or will never be sealed. Others find out by themselves.
pub(super) async fn give_up<R: Rpc>(client: &Client<R>, dataset: DatasetId) {
    let request = BlockRequest::GiveUp { dataset };
    client.shared.router.tell_linked(GIVE_UP_LIMIT, |swarm| Request::Blocks { swarm, request }).await;
}

/// The datasets of one partition behind a name, and where to go on.
type Behind<R> = Option<(Client<R>, Place, Vec<u8>)>;
type Named = (Vec<u8>, SealedDataset);

async fn next_page<R: Rpc>(from: Behind<R>) -> Result<Option<(Vec<Named>, Behind<R>)>, Error> {
    let Some((client, place, after)) = from else { return Ok(None) };
    let query = Query::Datasets { after, limit: MAX_LISTED_DATASETS };
    match Call::new(&client, Action::Scan { place, query }).run().await? {
        Outcome::Answer(Answer::Datasets { datasets, more }) => {
            let datasets: Vec<Named> =
                datasets.into_iter().map(|(name, dataset)| (name.into_vec(), dataset)).collect();
            let last = datasets.last().map(|(name, _)| name.clone()).filter(|_| more);
            Ok(Some((datasets, last.map(|last| (client, place, last)))))
        }
        _ => Err(unexpected()),
    }
}

/// Why a dataset was not written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// There is a dataset of that name. Nothing was changed.
    #[error("there is a dataset of that name")]
    Exists,
    /// There is no dataset of that name.
    #[error("there is no dataset of that name")]
    NotFound,
    /// The data is not what its format says. There is no dataset.
    #[error(transparent)]
    Data(#[from] CutError),
    /// A record cannot be written in that format: it holds a line end, or is too long. There is no dataset.
    #[error("the record cannot be written in the format {0}")]
    Record(Format),
    /// The data is longer than a dataset can be. There is no dataset.
    #[error("the data has more than {} blocks", crate::dataset::MAX_BLOCKS)]
    TooLong,
    /// The partition of the name knows as many datasets as it can. There is no dataset.
    #[error("too many datasets")]
    TooMany,
    /// A block was not kept by a majority of its replicas before the deadline. There is no dataset.
    #[error("a block is kept by {stored} nodes, {needed} are needed{}", because(reason.as_ref()))]
    NotKept {
        /// By how many nodes it is kept.
        stored: usize,
        /// How many are a majority of its replicas.
        needed: usize,
        /// What a node said that refused it.
        reason: Option<BlockRefusal>,
    },
    /// No node that can be reached returned a block before the deadline.
    #[error("block {number} was not found on any node that can be reached")]
    BlockMissing {
        /// Its number in the dataset.
        number: u32,
    },
    /// The swarm dissolved into another meanwhile.
    #[error("the swarm dissolved into another meanwhile")]
    Dissolved,
    /// The partition of the name. If it was to be sealed, [`Error::outcome`] says whether it may be.
    #[error(transparent)]
    Store(#[from] Error),
}

fn because(reason: Option<&BlockRefusal>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}
