//! A node's data directory as the node drives it: who it is, which swarm it is in, whom it knows there, and the
//! store of its replicas.
//!
//! The identity is drawn with the directory and goes with it: a node that has left its swarm and starts again is
//! a new one. The swarm's own file is written before the first of its data, so that data without a swarm never
//! occurs; a swarm without any data and without anybody known in it was never really entered, and is forgotten.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::swarm::Remembered;
use crate::codec::{decode, encode};
use crate::id::{PartitionId, SwarmId};
use crate::net::{Identity, Secret};
use crate::replication::{Stored, Write};
use crate::ring::PartitionCount;
use crate::storage::{
    DataDir, Event, FileError, Finding, OpenError, Progress, Store, StoreConfig, StoreError, SubmitError,
};
use crate::wire::StorageStatus;

/// The identity's file: 32 secret bytes, or nothing if the next start is to draw another.
const IDENTITY_FILE: &str = "node";
/// The swarm's file.
const SWARM_FILE: &str = "swarm";
/// Incarnations that one life of a node may use up: each life begins above all of the one before.
const INCARNATIONS_PER_LIFE: u64 = 1 << 32;
/// Lives are counted no further; it would take a restart every second for a century.
const MAX_LIVES: u64 = (1 << 31) - 1;
/// How soon a small file is tried again that there was no room for.
const SAVE_AGAIN: Duration = Duration::from_millis(500);
/// Room that a node needs to begin in a swarm, in bytes: the beginning of its log, its reserve, and something to go on
/// with.
const BEGIN_ROOM_BYTES: u64 = 16 * 1024 * 1024;

/// The directory, and the store of the swarm that the node is in.
#[derive(Debug)]
pub(super) struct Data {
    dir: DataDir,
    config: StoreConfig,
    swarm: Option<SwarmFile>,
    store: Option<Store>,
    /// Batches that the store had no room for.
    backlog: VecDeque<(u64, Vec<Write>)>,
    /// Partitions whose state the store wants.
    wanted: BTreeSet<PartitionId>,
    /// Whether it was told that the disk is full.
    full: bool,
    /// Whether the store says so.
    store_full: bool,
    /// Writes the swarm's file when members change; one at a time.
    saving: JoinSet<Result<(), FileError>>,
    unsaved: bool,
    /// There was no room for the swarm's file: when it is tried again.
    save_at: Option<Instant>,
}

/// What is kept of the swarm beside its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SwarmFile {
    name: String,
    swarm: SwarmId,
    partitions: u32,
    secret: Option<[u8; 32]>,
    /// How often this node has started in it.
    lives: u64,
    members: Vec<Remembered>,
}

/// What a directory held when it was opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) data: Data,
    pub(super) identity: Identity,
    /// The swarm that the node is in.
    pub(super) swarm: Option<FoundSwarm>,
}

/// The swarm that a node was in before it restarted.
#[derive(Debug)]
pub(super) struct FoundSwarm {
    pub(super) name: String,
    pub(super) secret: Option<Secret>,
    pub(super) resume: Resume,
}

/// What a node goes on from.
#[derive(Debug)]
pub(super) struct Resume {
    pub(super) swarm: SwarmId,
    pub(super) partitions: PartitionCount,
    /// Above all that this node had before.
    pub(super) incarnation: u64,
    pub(super) members: Vec<Remembered>,
    pub(super) stored: Stored,
    /// What was not as it should be on the disk, for a person to read.
    pub(super) findings: Vec<String>,
}

/// Why a data directory cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The directory itself.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A small file in it.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store of the swarm.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no room for what a node writes before it is anything.
    #[error(
        "no room in {}: free at least {} MiB there and start again; nothing was changed",
        path.display(),
        bytes / (1024 * 1024)
    )]
    Full {
        /// The directory.
        path: PathBuf,
        /// How much it takes.
        bytes: u64,
    },
    /// A file that says something else than such a file says.
    #[error("{path}: not what this version writes there")]
    Contents {
        /// The file.
        path: String,
    },
}

impl Data {
    /// Opens a directory and reads all that is in it. Blocks. A full disk keeps nobody from going on in its swarm.
    pub(super) fn open(path: &Path, progress: impl FnMut(Progress)) -> Result<Found, DataError> {
        Self::read(path, progress).map_err(|error| error.or_full(path))
    }

    fn read(path: &Path, progress: impl FnMut(Progress)) -> Result<Found, DataError> {
        let dir = DataDir::open(path)?;
        let mut data = Self {
            dir,
            config: StoreConfig::default(),
            swarm: None,
            store: None,
            backlog: VecDeque::new(),
            wanted: BTreeSet::new(),
            full: false,
            store_full: false,
            saving: JoinSet::new(),
            unsaved: false,
            save_at: None,
        };
        let identity = data.identity()?;
        let Some(mut file) = data.load_swarm()? else {
            return Ok(Found { data, identity, swarm: None });
        };
        file.lives = (file.lives + 1).min(MAX_LIVES);
        match data.save(&file) {
            // The next life may have the same number: that only takes the others a moment longer to tell apart.
            Err(error) if error.is_full() => data.save_later(),
            result => result?,
        }
        let (store, recovered) = Store::open(&data.dir, file.swarm, data.config.clone(), progress)?;
        if recovered.stored.replicas.is_empty() && file.members.is_empty() && recovered.findings.is_empty() {
            drop(store);
            data.dir.remove_swarm(file.swarm)?;
            data.dir.forget(SWARM_FILE)?;
            data.save_at = None;
            data.unsaved = false;
            return Ok(Found { data, identity, swarm: None });
        }
        let partitions = PartitionCount::new(file.partitions).map_err(|_| data.odd(SWARM_FILE))?;
        let swarm = FoundSwarm {
            name: file.name.clone(),
            secret: file.secret.map(Secret::from_bytes),
            resume: Resume {
                swarm: file.swarm,
                partitions,
                incarnation: file.lives * INCARNATIONS_PER_LIFE,
                members: file.members.clone(),
                stored: recovered.stored,
                findings: recovered.findings.iter().map(Finding::to_string).collect(),
            },
        };
        data.store = Some(store);
        data.swarm = Some(file);
        Ok(Found { data, identity, swarm: Some(swarm) })
    }

    fn identity(&self) -> Result<Identity, DataError> {
        match self.dir.load(IDENTITY_FILE)? {
            Some(bytes) if !bytes.is_empty() => {
                let bytes = <[u8; 32]>::try_from(&bytes[..]).map_err(|_| self.odd(IDENTITY_FILE))?;
                Ok(Identity::from_bytes(bytes))
            }
            _ => {
                let identity = Identity::generate();
                self.dir.save(IDENTITY_FILE, &identity.to_bytes())?;
                Ok(identity)
            }
        }
    }

    fn load_swarm(&self) -> Result<Option<SwarmFile>, DataError> {
        match self.dir.load(SWARM_FILE)? {
            Some(bytes) => decode(&bytes).map_err(|_| self.odd(SWARM_FILE)),
            None => Ok(None),
        }
    }

    fn save(&self, file: &SwarmFile) -> Result<(), FileError> {
        self.dir.save(SWARM_FILE, &encode(&Some(file)))
    }

    fn odd(&self, name: &str) -> DataError {
        DataError::Contents { path: self.dir.path().join(name).display().to_string() }
    }

    /// The node enters a swarm: from now on it is kept. Blocks for some milliseconds.
    pub(super) fn begin(
        &mut self,
        name: &str,
        secret: Option<&Secret>,
        swarm: SwarmId,
        partitions: PartitionCount,
    ) -> Result<(), DataError> {
        let file = SwarmFile {
            name: name.to_owned(),
            swarm,
            partitions: partitions.get(),
            secret: secret.map(|secret| *secret.as_bytes()),
            lives: 1,
            members: Vec::new(),
        };
        let full = |error: DataError| error.or_full(self.dir.path());
        self.save(&file).map_err(|error| full(error.into()))?;
        let (store, _) =
            Store::open(&self.dir, swarm, self.config.clone(), |_| {}).map_err(|error| full(error.into()))?;
        self.swarm = Some(file);
        self.store = Some(store);
        Ok(())
    }

    /// The swarm is no more, or the node has left it: nothing of it is kept. With it `identity` goes, if the node
    /// is not to be known any more.
    pub(super) fn abandon(&mut self, identity: bool) -> Result<(), DataError> {
        self.store = None;
        self.backlog.clear();
        self.wanted.clear();
        self.saving.abort_all();
        self.unsaved = false;
        self.save_at = None;
        self.store_full = false;
        let Some(file) = self.swarm.take() else { return Ok(()) };
        self.dir.forget(SWARM_FILE)?;
        self.dir.remove_swarm(file.swarm)?;
        if identity {
            self.dir.forget(IDENTITY_FILE)?;
        }
        Ok(())
    }

    /// These are to be looked for after a restart. Written in the background.
    pub(super) fn remember(&mut self, members: Vec<Remembered>) {
        if let Some(file) = &mut self.swarm
            && file.members != members
        {
            file.members = members;
            self.unsaved = true;
            self.save_soon();
        }
    }

    fn save_soon(&mut self) {
        let is_time = self.save_at.is_none_or(|at| Instant::now() >= at);
        if self.unsaved && is_time && self.saving.is_empty() {
            self.unsaved = false;
            let (dir, file) = (self.dir.clone(), encode(&self.swarm));
            self.saving.spawn_blocking(move || dir.save(SWARM_FILE, &file));
        }
    }

    /// There is no room for the swarm's file. The one that is there is as good as after a crash.
    fn save_later(&mut self) {
        self.unsaved = true;
        self.save_at = Some(Instant::now() + SAVE_AGAIN);
    }

    /// The swarm's file was written, or not.
    fn saved(&mut self, result: Result<Result<(), FileError>, JoinError>) -> Result<(), FileError> {
        match result {
            Ok(Err(error)) if error.is_full() => self.save_later(),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(())) => self.save_at = None,
            // Nobody wants it any more.
            Err(_) => {}
        }
        self.save_soon();
        Ok(())
    }

    /// Keeps a batch.
    pub(super) fn persist(&mut self, batch: u64, writes: Vec<Write>) {
        self.backlog.push_back((batch, writes));
        self.submit();
    }

    fn submit(&mut self) {
        let Some(store) = &self.store else { return };
        while let Some((batch, writes)) = self.backlog.pop_front() {
            match store.submit(batch, writes) {
                Ok(()) => {}
                Err(SubmitError::Busy(writes)) => return self.backlog.push_front((batch, writes)),
                // The store says so itself, as an event.
                Err(_) => return,
            }
        }
    }

    /// Whether what the node does next may lead to more that must be kept. While not, it takes nothing in.
    pub(super) fn has_room(&self) -> bool {
        self.backlog.is_empty() && self.store.as_ref().is_none_or(Store::has_room)
    }

    /// What has happened on the disk.
    pub(super) async fn next_event(&mut self) -> Event {
        loop {
            let full = self.store_full || self.save_at.is_some();
            if std::mem::replace(&mut self.full, full) != full {
                return if full { Event::Full } else { Event::Room };
            }
            let (store, save_at) = (self.store.as_ref(), self.save_at.filter(|_| self.saving.is_empty()));
            let event = async {
                match store {
                    Some(store) => store.next_event().await,
                    None => std::future::pending().await,
                }
            };
            let save_again = async {
                match save_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = event => match event {
                    Event::Full => self.store_full = true,
                    Event::Room => self.store_full = false,
                    event => return event,
                },
                Some(saved) = self.saving.join_next() => {
                    if let Err(error) = self.saved(saved) {
                        return Event::Failed(Arc::new(std::io::Error::other(error)));
                    }
                }
                () = save_again => self.save_soon(),
            }
        }
    }

    /// Takes note of an event before the core does.
    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::Persisted(_) => self.submit(),
            Event::WantState(partitions) => self.wanted.extend(partitions),
            Event::Full | Event::Room | Event::Failed(_) => {}
        }
    }

    /// A partition whose state the store wants; one at a time, since each takes time.
    pub(super) fn wanted(&mut self) -> Option<PartitionId> {
        if self.has_room() { self.wanted.pop_first() } else { None }
    }

    /// Whether [`wanted`](Self::wanted) has more.
    pub(super) fn wants(&self) -> bool {
        !self.wanted.is_empty() && self.has_room()
    }

    /// How it stands.
    pub(super) fn status(&self) -> StorageStatus {
        let stats = self.store.as_ref().map(Store::stats).unwrap_or_default();
        StorageStatus {
            path: self.dir.path().display().to_string(),
            full: self.full,
            fsyncs: stats.fsyncs,
            bytes_written: stats.bytes_written,
            log_bytes: stats.log_bytes,
            state_bytes: stats.state_bytes,
        }
    }

    /// Waits until everything is on the disk.
    pub(super) async fn close(mut self) {
        if let Some(store) = self.store.take()
            && let Err(error) = store.close().await
        {
            tracing::warn!(%error, "what was not acknowledged yet may not be kept");
        }
        while let Some(saved) = self.saving.join_next().await {
            if let Ok(Err(error)) = saved {
                tracing::warn!(%error, "the members known last are not kept");
            }
        }
        if let Some(file) = self.swarm.as_ref().filter(|_| self.unsaved)
            && let Err(error) = self.save(file)
        {
            tracing::warn!(%error, "the members known last are not kept");
        }
    }
}

impl DataError {
    /// If there is no room: that, and how much it takes.
    fn or_full(self, path: &Path) -> Self {
        let needed = match &self {
            Self::Open(error) if error.is_full() => BEGIN_ROOM_BYTES,
            Self::File(error) if error.is_full() => BEGIN_ROOM_BYTES,
            Self::Store(error) if error.is_full() => BEGIN_ROOM_BYTES,
            _ => return self,
        };
        Self::Full { path: path.to_owned(), bytes: needed }
    }
}
