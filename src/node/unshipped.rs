//! In place of [`shipped`](super::shipped) where the feature `wasm` is off: no shipped code.

use std::sync::Arc;

use super::work::Desk;
use crate::compute::Executable;
use crate::wire::WorkError;

#[derive(Debug)]
pub(super) struct ShippedCode;

impl ShippedCode {
    pub(super) fn new() -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "in place of what has something")]
    pub(super) fn find(
        &self,
        _sha256: [u8; 32],
        _desk: &Desk,
    ) -> impl Future<Output = Result<Arc<dyn Executable>, WorkError>> {
        std::future::ready(Err(WorkError::NoProgram))
    }
}
