//! All keys with a prefix, in order, from all partitions: a merge of pages.
//!
//! Keys are spread over the partitions by their hash, so each partition holds some of any range. Of each, one
//! page is held, and the least key of all pages is next; a page that is used up is replaced before the merge
//! goes on. Pages are small when partitions are many: what is held at once is at most about [`HELD_ENTRIES`]
//! entries (or one of each partition, if that is more), and of each partition at most one page's bytes.

use std::collections::{BTreeMap, VecDeque};

use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::call::{Action, Call, Outcome, Place, unexpected};
use super::{Client, Entry, Error};
use crate::id::PartitionId;
use crate::state_machine::{Answer, MAX_SCAN_ENTRIES, Query};
use crate::wire::Rpc;

/// Entries held by one scan.
const HELD_ENTRIES: u32 = 8192;
/// Partitions asked at once by one scan.
const CONCURRENT_PAGES: usize = 16;

/// What is held of one partition.
struct Page {
    place: Place,
    entries: VecDeque<(Vec<u8>, Entry)>,
    more: bool,
}

struct Scan<R> {
    client: Client<R>,
    prefix: Vec<u8>,
    limit: u32,
    /// Pages with something in them, by their first key: a key is in one partition only.
    pages: BTreeMap<Vec<u8>, Page>,
}

pub(super) fn scan<R: Rpc>(
    client: Client<R>,
    prefix: Vec<u8>,
) -> impl Stream<Item = Result<(Vec<u8>, Entry), Error>> + Send + 'static {
    stream::once(Scan::begin(client, prefix))
        .map_ok(|scan| stream::try_unfold(scan, Scan::next))
        .try_flatten()
}

impl<R: Rpc> Client<R> {
    /// The next keys of one partition that begin with a prefix, in order, and whether there are more.
    pub(crate) async fn page_of(
        &self,
        partition: PartitionId,
        prefix: Vec<u8>,
        after: Vec<u8>,
    ) -> Result<(Vec<(Vec<u8>, Entry)>, bool), Error> {
        let swarm = self.known_view().await?.swarm;
        let page = fetch(self, Place { swarm, partition }, prefix, after, MAX_SCAN_ENTRIES).await?;
        Ok((page.entries.into(), page.more))
    }
}

impl<R: Rpc> Scan<R> {
    async fn begin(client: Client<R>, prefix: Vec<u8>) -> Result<Self, Error> {
        let query = Query::Scan { prefix: prefix.clone(), after: Vec::new(), limit: 1 };
        query.check()?;
        let view = client.known_view().await?;
        let limit = (HELD_ENTRIES / view.partitions.max(1)).clamp(1, MAX_SCAN_ENTRIES);
        let swarm = view.swarm;
        let pages: Vec<Page> = stream::iter(0..view.partitions)
            .map(|partition| {
                let partition = PartitionId(partition);
                let (client, prefix) = (client.clone(), prefix.clone());
                async move {
                    let place = Place { swarm, partition };
                    fetch(&client, place, prefix, Vec::new(), limit).await
                }
            })
            .buffer_unordered(CONCURRENT_PAGES)
            .try_collect()
            .await?;
        let mut scan = Self { client, prefix, limit, pages: BTreeMap::new() };
        for page in pages {
            scan.hold(page);
        }
        Ok(scan)
    }

    fn hold(&mut self, page: Page) {
        if let Some((first, _)) = page.entries.front() {
            self.pages.insert(first.clone(), page);
        }
    }

    async fn next(mut self) -> Result<Option<((Vec<u8>, Entry), Self)>, Error> {
        let Some((_, mut page)) = self.pages.pop_first() else {
            return Ok(None);
        };
        let Some((key, entry)) = page.entries.pop_front() else {
            return Ok(None);
        };
        if page.entries.is_empty() && page.more {
            let prefix = self.prefix.clone();
            page = fetch(&self.client, page.place, prefix, key.clone(), self.limit).await?;
        }
        self.hold(page);
        Ok(Some(((key, entry), self)))
    }
}

async fn fetch<R: Rpc>(
    client: &Client<R>,
    place: Place,
    prefix: Vec<u8>,
    after: Vec<u8>,
    limit: u32,
) -> Result<Page, Error> {
    let last = after.clone();
    let query = Query::Scan { prefix, after, limit };
    match Call::new(client, Action::Scan { place, query }).run().await? {
        Outcome::Answer(Answer::Page { entries, more }) => {
            let entries: VecDeque<_> =
                entries.into_iter().map(|(key, entry)| (key.into_vec(), entry)).collect();
            // A page that does not go on would be asked for for ever.
            let goes_on = entries.front().is_none_or(|(first, _)| *first > last);
            if !goes_on || (more && entries.is_empty()) {
                return Err(unexpected());
            }
            Ok(Page { place, entries, more })
        }
        _ => Err(unexpected()),
    }
}
