//! The file of a backup.
//!
//! ```text
//! "roundtable backup\n" | format u16 | length u32, header
//! of each partition, from the first to the last: length u64, snapshot (it ends with its own checksum)
//! SHA-256 over everything before
//! ```
//!
//! Little endian; the header is bincode of [`Header`]. Nothing follows. A file is read as hostile: memory is
//! reserved for bytes that are there, not for a length that is claimed.

use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::codec;
use crate::id::{PartitionId, SwarmId};
use crate::ring::PartitionCount;
use crate::state_machine::StateMachine;

/// First bytes of every backup.
const MAGIC: &[u8; 18] = b"roundtable backup\n";
/// Written by this build, and the only one that it reads.
const FORMAT: u16 = 1;
/// Longest header, in bytes.
const MAX_HEADER_BYTES: u32 = 4096;
/// Longest snapshot of one partition, in bytes: as between nodes.
const MAX_SNAPSHOT_BYTES: u64 = 1024 * 1024 * 1024;
const CHECKSUM_BYTES: usize = 32;

/// Of what the backup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) swarm: SwarmId,
    pub(super) name: String,
    pub(super) partitions: u32,
}

/// Why a file is no backup that can be put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("the file is no backup")]
    NotABackup,
    /// A later version of this program wrote it.
    #[error("the backup has format {0}, this program reads format {FORMAT}: use a later one")]
    Format(u16),
    /// It is not what was written.
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
}

/// Writes a backup.
pub(super) struct Writer<'a, W> {
    inner: &'a mut W,
    hash: Sha256,
    bytes: u64,
}

impl<'a, W: AsyncWrite + Unpin> Writer<'a, W> {
    pub(super) async fn begin(inner: &'a mut W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { inner, hash: Sha256::new(), bytes: 0 };
        let header = codec::encode(header);
        let length = u32::try_from(header.len()).map_err(io::Error::other)?;
        writer.put(MAGIC).await?;
        writer.put(&FORMAT.to_le_bytes()).await?;
        writer.put(&length.to_le_bytes()).await?;
        writer.put(&header).await?;
        Ok(writer)
    }

    /// Adds the snapshot of the next partition.
    pub(super) async fn partition(&mut self, snapshot: &[u8]) -> io::Result<()> {
        self.put(&(snapshot.len() as u64).to_le_bytes()).await?;
        self.put(snapshot).await
    }

    /// Ends the file; its length in bytes.
    pub(super) async fn end(mut self) -> io::Result<u64> {
        let checksum = std::mem::take(&mut self.hash).finalize();
        self.put(&checksum).await?;
        self.inner.flush().await?;
        Ok(self.bytes)
    }

    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.inner.write_all(bytes).await
    }
}

/// Reads a backup, partition by partition.
pub(super) struct Reader<'a, R> {
    inner: &'a mut R,
    hash: Sha256,
    header: Header,
    next: u32,
}

impl<'a, R: AsyncRead + Unpin> Reader<'a, R> {
    pub(super) async fn begin(inner: &'a mut R) -> Result<Self, FileError> {
        let header = Header { swarm: SwarmId(0), name: String::new(), partitions: 0 };
        let mut reader = Self { inner, hash: Sha256::new(), header, next: 0 };
        let mut magic = Vec::new();
        (&mut *reader.inner).take(MAGIC.len() as u64).read_to_end(&mut magic).await?;
        if magic != MAGIC {
            return Err(FileError::NotABackup);
        }
        reader.hash.update(&magic);
        let format = u16::from_le_bytes(reader.array().await?);
        if format != FORMAT {
            return Err(FileError::Format(format));
        }
        let length = u32::from_le_bytes(reader.array().await?);
        if length > MAX_HEADER_BYTES {
            return Err(FileError::Damaged("its header is too long"));
        }
        let header = reader.take(u64::from(length)).await?;
        reader.header =
            codec::decode(&header).map_err(|_| FileError::Damaged("its header cannot be read"))?;
        if PartitionCount::new(reader.header.partitions).is_err() {
            return Err(FileError::Damaged("its number of partitions is impossible"));
        }
        Ok(reader)
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The next partition and the bytes of its snapshot; `None` behind the last.
    pub(super) async fn next(&mut self) -> Result<Option<(PartitionId, StateMachine, u64)>, FileError> {
        if self.next == self.header.partitions {
            return Ok(None);
        }
        let partition = PartitionId(self.next);
        self.next += 1;
        let length = u64::from_le_bytes(self.array().await?);
        if length > MAX_SNAPSHOT_BYTES {
            return Err(FileError::Damaged("a partition is too long"));
        }
        let snapshot = self.take(length).await?;
        let state = StateMachine::restore(&snapshot)
            .map_err(|_| FileError::Damaged("a partition is not what was written"))?;
        Ok(Some((partition, state, length)))
    }

    /// Verifies, behind the last partition, that the whole file is what was written; its checksum.
    pub(super) async fn end(mut self) -> Result<[u8; CHECKSUM_BYTES], FileError> {
        let expected: [u8; CHECKSUM_BYTES] = std::mem::take(&mut self.hash).finalize().into();
        let found: [u8; CHECKSUM_BYTES] = self.array().await?;
        if found != expected {
            return Err(FileError::Damaged("its checksum is wrong"));
        }
        let mut behind = Vec::new();
        (&mut *self.inner).take(1).read_to_end(&mut behind).await?;
        if !behind.is_empty() {
            return Err(FileError::Damaged("something follows its end"));
        }
        Ok(expected)
    }

    async fn array<const N: usize>(&mut self) -> Result<[u8; N], FileError> {
        let bytes = self.take(N as u64).await?;
        bytes.try_into().map_err(|_| FileError::Damaged("it is cut short"))
    }

    async fn take(&mut self, length: u64) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        (&mut *self.inner).take(length).read_to_end(&mut bytes).await?;
        if bytes.len() as u64 != length {
            return Err(FileError::Damaged("it is cut short"));
        }
        self.hash.update(&bytes);
        Ok(bytes)
    }
}
