//! Reads a dataset.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};

use super::super::Client;
use super::DatasetError;
use super::blocks::Courier;
use crate::dataset::{BlockId, DatasetSummary, Manifest};
use crate::wire::Rpc;

/// Blocks fetched at the same time, per reader.
const READ_AHEAD: usize = 4;

/// A dataset that is read; made by [`Dataset::read`](super::Dataset::read).
pub struct DatasetReader<R> {
    courier: Arc<Courier<R>>,
    manifest: Manifest,
}

impl<R: Rpc> DatasetReader<R> {
    pub(super) async fn begin(client: Client<R>, manifest: Manifest) -> Result<Self, DatasetError> {
        Ok(Self { courier: Courier::new(client).await?, manifest })
    }

    /// What is read.
    pub fn summary(&self) -> DatasetSummary {
        self.manifest.summary()
    }

    /// Its blocks in order, each whole records and verified: together they are what was written, byte for byte.
    /// In memory are at most four of 1 MiB. A block that one replica does not return is asked of the next. The
    /// stream ends after its first error.
    pub fn blocks(self) -> impl Stream<Item = Result<Bytes, DatasetError>> + Send + 'static {
        let Self { courier, manifest } = self;
        let Manifest { id: dataset, blocks, .. } = manifest;
        let mut failed = false;
        stream::iter(blocks)
            .map(move |info| {
                let courier = Arc::clone(&courier);
                async move { courier.get(BlockId { dataset, number: info.number }, info).await }
            })
            .buffered(READ_AHEAD)
            .take_while(move |block| std::future::ready(!std::mem::replace(&mut failed, block.is_err())))
    }
}

impl<R> fmt::Debug for DatasetReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatasetReader").field("dataset", &self.manifest.id).finish_non_exhaustive()
    }
}
