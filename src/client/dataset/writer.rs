//! Writes a dataset.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::super::{Client, Error, failure};
use super::blocks::Courier;
use super::{DatasetError, give_up};
use crate::dataset::{
    Block, BlockId, BlockInfo, Cutter, DatasetSummary, Format, MAX_BLOCKS, MAX_RECORD_BYTES, Manifest,
};
use crate::id::DatasetId;
use crate::state_machine::{Operation, Reply};
use crate::wire::Rpc;

/// Blocks on their way at the same time, per writer.
const MAX_UNDER_WAY: usize = 4;

/// Takes the bytes of a dataset and brings them to the swarm; made by [`Dataset::create`](super::Dataset::create).
///
/// In memory are at most four blocks of 1 MiB and the one that is being filled. Nobody sees anything of the dataset
/// before [`finish`](Self::finish) has succeeded. [`abort`](Self::abort) it if it is not to be; if it is dropped,
/// the nodes drop its blocks a quarter of an hour later.
pub struct DatasetWriter<R> {
    courier: Arc<Courier<R>>,
    name: Arc<[u8]>,
    id: DatasetId,
    format: Format,
    cutter: Cutter,
    /// Used again and again.
    full: Vec<Block>,
    under_way: JoinSet<Result<BlockInfo, DatasetError>>,
    kept: Vec<BlockInfo>,
    next: u32,
}

impl<R: Rpc> DatasetWriter<R> {
    pub(super) async fn begin(
        client: Client<R>,
        name: Vec<u8>,
        format: Format,
    ) -> Result<Self, DatasetError> {
        Ok(Self {
            courier: Courier::new(client).await?,
            name: name.into(),
            id: DatasetId(rand::random()),
            format,
            cutter: Cutter::new(format),
            full: Vec::new(),
            under_way: JoinSet::new(),
            kept: Vec::new(),
            next: 0,
        })
    }

    /// The next bytes, cut anywhere. Waits while four blocks are on their way.
    ///
    /// # Errors
    /// There will be no dataset then, and its blocks were given up.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), DatasetError> {
        let result = self.try_write(bytes).await;
        if result.is_err() {
            self.break_off().await;
        }
        result
    }

    async fn try_write(&mut self, bytes: &[u8]) -> Result<(), DatasetError> {
        let mut full = std::mem::take(&mut self.full);
        let cut = self.cutter.push(bytes, &mut full);
        for block in full.drain(..) {
            self.send(block).await?;
        }
        self.full = full;
        Ok(cut?)
    }

    /// The next record, without what ends it.
    ///
    /// # Errors
    /// [`DatasetError::Record`] if it is impossible in this format; otherwise as [`write`](Self::write).
    pub async fn write_record(&mut self, content: &[u8]) -> Result<(), DatasetError> {
        let mut record = Vec::with_capacity(content.len() + 4);
        self.format.append(&mut record, content);
        let is_one = self.format.records(&record).eq([content]);
        if !is_one || record.len() > MAX_RECORD_BYTES {
            return Err(DatasetError::Record(self.format));
        }
        self.write(&record).await
    }

    /// Bytes that are kept by the swarm so far.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.iter().map(|block| u64::from(block.length)).sum()
    }

    /// Ends the data and gives the dataset its name.
    ///
    /// # Errors
    /// There is no dataset then, and its blocks were given up, except if the error is [`DatasetError::Store`] with
    /// [`Error::Unknown`]: then it may be there, whole.
    pub async fn finish(mut self) -> Result<DatasetSummary, DatasetError> {
        let result = self.end().await;
        if !matches!(result, Ok(_) | Err(DatasetError::Store(Error::Unknown))) {
            self.break_off().await;
        }
        result
    }

    async fn end(&mut self) -> Result<DatasetSummary, DatasetError> {
        let cutter = std::mem::replace(&mut self.cutter, Cutter::new(self.format));
        let mut full = Vec::new();
        cutter.finish(&mut full)?;
        for block in full {
            self.send(block).await?;
        }
        while self.take_one().await? {}
        self.kept.sort_unstable_by_key(|block| block.number);
        let blocks = std::mem::take(&mut self.kept);
        let manifest = Manifest { id: self.id, format: self.format, blocks };
        let summary = manifest.summary();
        seal(&self.courier.client, &self.name, manifest).await?;
        Ok(summary)
    }

    /// There will be no dataset: the nodes that can be reached drop its blocks.
    pub async fn abort(mut self) {
        self.break_off().await;
    }

    async fn break_off(&mut self) {
        self.under_way.shutdown().await;
        give_up(&self.courier.client, self.id).await;
    }

    async fn send(&mut self, block: Block) -> Result<(), DatasetError> {
        while self.under_way.len() >= MAX_UNDER_WAY {
            self.take_one().await?;
        }
        let number = self.next;
        if number as usize >= MAX_BLOCKS {
            return Err(DatasetError::TooLong);
        }
        self.next += 1;
        let (courier, name) = (Arc::clone(&self.courier), Arc::clone(&self.name));
        let id = BlockId { dataset: self.id, number };
        self.under_way.spawn(async move {
            let Block { bytes, records } = block;
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let (checksum, bytes) = (crc32c::crc32c(&bytes), Bytes::from(bytes));
            courier.put(id, &name, checksum, &bytes).await?;
            Ok(BlockInfo { number, length, records, checksum })
        });
        Ok(())
    }

    /// Waits for a block to be kept; `false`: none is on its way.
    async fn take_one(&mut self) -> Result<bool, DatasetError> {
        match self.under_way.join_next().await {
            None => Ok(false),
            Some(Ok(kept)) => {
                self.kept.push(kept?);
                Ok(true)
            }
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Nobody but `abort` cancels them.
                Err(_) => Err(Error::Unreachable.into()),
            },
        }
    }
}

impl<R> fmt::Debug for DatasetWriter<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatasetWriter")
            .field("id", &self.id)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

/// Gives a dataset its name. All its blocks must be kept.
pub(in crate::client) async fn seal<R: Rpc>(
    client: &Client<R>,
    name: &[u8],
    manifest: Manifest,
) -> Result<(), DatasetError> {
    let operation = Operation::SealDataset { name: name.to_vec(), manifest };
    match client.write(operation).await? {
        Reply::DatasetSealed { .. } => Ok(()),
        Reply::DatasetExists { .. } => Err(DatasetError::Exists),
        Reply::TooManyDatasets => Err(DatasetError::TooMany),
        other => Err(failure(&other).into()),
    }
}
