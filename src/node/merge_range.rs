//! One range of a sort: fetched from the nodes that keep its runs, merged, and written as blocks of the output.

use std::sync::Arc;

use bytes::Bytes;

use super::shuffle::{self, CutShort, Fetching, Filler, NotTaken, Source};
use super::work::Desk;
use crate::dataset::Format;
use crate::id::{DatasetId, JobId, SwarmId};
use crate::sort::{Fingerprint, Merge, MergeError, Order};
use crate::wire::{MAX_TOLD_KEY_BYTES, RANGE_BLOCKS, RunRef, WorkError, WorkResponse};

/// A range to merge.
#[derive(Debug)]
pub(super) struct MergeRange {
    pub(super) swarm: SwarmId,
    pub(super) job: JobId,
    pub(super) range: u32,
    pub(super) order: Order,
    pub(super) format: Format,
    pub(super) runs: Vec<RunRef>,
    pub(super) output: DatasetId,
    pub(super) name: Vec<u8>,
}

/// What was merged.
struct Summed {
    output: Fingerprint,
    dropped: Fingerprint,
    ends: Option<(Bytes, Bytes)>,
}

impl MergeRange {
    pub(super) async fn run(self, desk: &Arc<Desk>) -> Result<WorkResponse, WorkError> {
        let mut fetching = Fetching::begin(desk, self.swarm, self.job, self.range, &self.runs);
        let sources = std::mem::take(&mut fetching.sources);
        let (order, format) = (self.order, self.format);
        let (filler, blocks) = Filler::new(format);
        let merging = desk.compute(move || merge(order, format, sources, filler));
        let writing = shuffle::write(desk, (self.output, &self.name), self.range * RANGE_BLOCKS, blocks);
        let (merged, written) = tokio::join!(merging, writing);
        // Why it could not be written is the reason for why it could not be merged.
        let blocks = written?;
        let Summed { output, dropped, ends } = merged?.map_err(|error| match error {
            Failed::Merge(MergeError::Source { at, .. }) => WorkError::RunLost { task: self.runs[at].task },
            Failed::Merge(_) => WorkError::Disorder,
            Failed::NotTaken => WorkError::Ended,
        })?;
        Ok(WorkResponse::Merged { blocks, output, dropped, ends, moved: fetching.moved() })
    }
}

enum Failed {
    Merge(MergeError<CutShort>),
    /// Nobody writes the blocks any more.
    NotTaken,
}

impl From<MergeError<CutShort>> for Failed {
    fn from(error: MergeError<CutShort>) -> Self {
        Self::Merge(error)
    }
}

impl From<NotTaken> for Failed {
    fn from(_: NotTaken) -> Self {
        Self::NotTaken
    }
}

/// Merges sources into blocks. Blocks.
fn merge(order: Order, format: Format, sources: Vec<Source>, mut filler: Filler) -> Result<Summed, Failed> {
    let mut merge = Merge::new(order, format, sources)?;
    let mut output = Fingerprint::default();
    let mut ends: Option<(Bytes, Bytes)> = None;
    let mut last_key = Vec::new();
    let told = |key: &[u8]| Bytes::copy_from_slice(&key[..key.len().min(MAX_TOLD_KEY_BYTES)]);
    while let Some(merged) = merge.next_record()? {
        if ends.is_none() {
            ends = Some((told(merged.key), Bytes::new()));
        }
        filler.push(merged.record)?;
        output.add(merged.record);
        last_key.clear();
        last_key.extend_from_slice(&merged.key[..merged.key.len().min(MAX_TOLD_KEY_BYTES)]);
    }
    if let Some((_, last)) = &mut ends {
        *last = Bytes::from(last_key);
    }
    filler.finish()?;
    Ok(Summed { output, dropped: merge.dropped(), ends })
}
