//! What one attempt may use, and how it ends if it wants more.

use wasmtime::{ResourceLimiter, Trap};

use crate::compute::{Limits, MAX_ERROR_BYTES, ProgramError};

/// Most instances of modules in one attempt, memories and tables, each: what tools make has a few.
const MAX_PARTS: usize = 100;
/// Bytes that an element of a table is counted as.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// Why the host stopped a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stop {
    #[error("too much memory")]
    Memory,
    #[error("a program has no {0}")]
    Denied(String),
    #[error("it exited")]
    Exited,
}

/// What is kept of a running attempt beside its memory.
#[derive(Debug)]
pub(super) struct Attempt {
    memory_limit: usize,
    /// Bytes of all memories and tables. Invariant: at most `memory_limit`.
    memory: usize,
    /// The end of what it said, [`MAX_ERROR_BYTES`] at most.
    said: Vec<u8>,
    /// Random numbers so far.
    random: u64,
}

impl Attempt {
    pub(super) fn new(limits: &Limits) -> Self {
        let memory_limit = usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX);
        Self { memory_limit, memory: 0, said: Vec::new(), random: 0 }
    }

    /// It wrote that to its standard error.
    pub(super) fn says(&mut self, bytes: impl Iterator<Item = u8>) {
        self.said.extend(bytes);
        let surplus = self.said.len().saturating_sub(MAX_ERROR_BYTES);
        self.said.drain(..surplus);
    }

    /// The next number, the same ones in each attempt (`SplitMix64`, Steele, Lea and Flood, 2014).
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// How a call that failed is told to the user.
    pub(super) fn error(&self, error: &wasmtime::Error, limits: &Limits) -> ProgramError {
        let said = String::from_utf8_lossy(&self.said);
        let said = said.trim();
        let colon = if said.is_empty() { "" } else { ": " };
        match (error.downcast_ref::<Stop>(), error.downcast_ref::<Trap>()) {
            (Some(Stop::Memory), _) => ProgramError::OutOfMemory { limit: limits.memory_bytes },
            (Some(Stop::Exited), _) => ProgramError::failed(format!("it exited{colon}{said}")),
            (Some(stop @ Stop::Denied(_)), _) => ProgramError::trapped(stop),
            (None, Some(Trap::OutOfFuel)) => ProgramError::OutOfFuel { limit: limits.fuel },
            (None, Some(Trap::Interrupt)) => ProgramError::OutOfTime { limit_ms: limits.time_ms },
            // What a panic comes to.
            (None, Some(Trap::UnreachableCodeReached)) if !said.is_empty() => ProgramError::failed(said),
            (None, Some(trap)) => ProgramError::trapped(format!("{trap}{colon}{said}")),
            (None, None) => ProgramError::trapped(format!("{error:#}{colon}{said}")),
        }
    }

    /// Whether a memory or table may grow so; `unit` is the bytes of what it is counted in.
    fn grow(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
        unit: usize,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let more = desired.saturating_sub(current).saturating_mul(unit);
        let memory = self.memory.saturating_add(more);
        if memory > self.memory_limit {
            return Err(Stop::Memory.into());
        }
        self.memory = memory;
        Ok(true)
    }
}

impl ResourceLimiter for Attempt {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, 1)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, ELEMENT_BYTES)
    }

    fn instances(&self) -> usize {
        MAX_PARTS
    }

    fn tables(&self) -> usize {
        MAX_PARTS
    }

    fn memories(&self) -> usize {
        MAX_PARTS
    }
}
