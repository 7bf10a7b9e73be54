//! Shipped code in the swarm: datasets that are named by what is in them.
//!
//! A program is put there once, whoever uses it, and stays until its dataset is removed. Whoever fetches it sees by
//! its name whether it is what was asked for.

use sha2::{Digest, Sha256};

use super::{Client, DatasetError};
use crate::compute::{MAX_COMPONENT_BYTES, ProgramError};
use crate::dataset::Format;
use crate::wire::{ProgramRef, Rpc, hexadecimal};

/// Begins the names of datasets that are programs; their hash follows.
const PREFIX: &str = ".program/";
/// Bytes of a record of such a dataset.
const RECORD_BYTES: usize = 64 * 1024;

/// Why a program was not put into the swarm, or not found there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShipError {
    /// It is none, or not what its name says. Nothing was done.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its dataset.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

impl<R: Rpc> Client<R> {
    /// Puts a program into the swarm, for [`Client::job_of`]: a WebAssembly component of the world that
    /// [shipped code](crate::docs::shipped_code) is. Where shipped code can be run (the feature `wasm`), it is compiled
    /// and checked first. Done again it costs a question.
    ///
    /// It is a dataset, whose name is `.program/` and the SHA-256 of the component, and stays until that is removed.
    ///
    /// # Errors
    /// If it is no program, or cannot be kept. An error says whether it may be there nevertheless.
    pub async fn ship(&self, component: Vec<u8>) -> Result<ProgramRef, ShipError> {
        check_length(component.len() as u64)?;
        #[cfg(feature = "wasm")]
        let component = checked(component).await?;
        let sha256 = Sha256::digest(&component).into();
        let dataset = self.dataset(name(&sha256));
        let program = ProgramRef::Shipped { sha256 };
        let mut writer = match dataset.create(Format::Records).await {
            Err(DatasetError::Exists) => return Ok(program),
            writer => writer?,
        };
        for record in component.chunks(RECORD_BYTES) {
            writer.write_record(record).await?;
        }
        match writer.finish().await {
            // Somebody else was faster, with the same.
            Err(DatasetError::Exists) | Ok(_) => Ok(program),
            Err(error) => Err(error.into()),
        }
    }

    /// The component of that hash.
    #[cfg(feature = "wasm")]
    pub(crate) async fn shipped(&self, sha256: &[u8; 32]) -> Result<Vec<u8>, ShipError> {
        use futures::TryStreamExt as _;

        let reader = self.dataset(name(sha256)).read().await?;
        // With the lengths of its records it is longer than they are together.
        check_length(reader.summary().bytes.saturating_sub(4 * reader.summary().records))?;
        let mut component = Vec::new();
        let mut blocks = std::pin::pin!(reader.blocks());
        while let Some(block) = blocks.try_next().await? {
            Format::Records.records(&block).for_each(|record| component.extend_from_slice(record));
        }
        if Sha256::digest(&component)[..] != sha256[..] {
            return Err(ProgramError::component("its bytes are not those of its name").into());
        }
        Ok(component)
    }
}

fn name(sha256: &[u8; 32]) -> String {
    format!("{PREFIX}{}", hexadecimal(sha256))
}

fn check_length(bytes: u64) -> Result<(), ProgramError> {
    let limit = MAX_COMPONENT_BYTES;
    if bytes > limit as u64 {
        return Err(ProgramError::component(format!("it has {bytes} bytes, more than {limit}")));
    }
    Ok(())
}

/// The component, if it is a program as far as can be told here.
#[cfg(feature = "wasm")]
async fn checked(component: Vec<u8>) -> Result<Vec<u8>, ProgramError> {
    let check = move || match crate::wasm::Runtime::new() {
        Ok(runtime) => runtime.load(&component).map(|_| component).map_err(ProgramError::from),
        // Nodes may be able to.
        Err(_) => Ok(component),
    };
    tokio::task::spawn_blocking(check).await.map_err(ProgramError::component)?
}
