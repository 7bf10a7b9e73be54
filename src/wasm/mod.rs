//! Shipped code: programs that come as WebAssembly components. The only module that knows wasmtime.
//!
//! **Guarantee.** A program can do nothing but turn its input into its output. It has no files, sockets, clocks or
//! chance. If it traps, loops, takes too much memory or hands back nonsense, its task fails with a [`ProgramError`]
//! that names the limit, and nothing else happens to the node.
//!
//! **Method.** Each attempt of a task has an instance of its own ([`Executable::start`]), with its own memory, fuel
//! and time. Fuel is counted by the code that is compiled; time by a thread that moves an epoch, at which that code
//! looks; memory is asked for. Records go in and out as [packed batches](crate::compute::Records), a copy each way.
//! The interface is `program.wit` beside this file; WASI is there in name only.
//!
//! Measured with lists of lists instead of packed batches, the calls of a word count took five times as long as the
//! counting; packed, a fifth of it. Fuel and epochs together cost less than could be measured beside that.

mod limits;
mod running;
mod survey;
#[cfg(test)]
mod tests;
mod ticker;
mod wasi;
#[cfg(test)]
mod written;

use std::fmt;
use std::sync::Arc;

use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};
use wasmtime::{Config, Engine};

use crate::compute::{
    Executable, Instance, Limits, MAX_COMPONENT_BYTES, MAX_ERROR_BYTES, MAX_OUTPUT_BATCH_BYTES, ProgramError,
    Shape,
};
use limits::Attempt;
use running::Running;
use ticker::Ticker;

/// The interface that a component exports.
pub const INTERFACE: &str = "roundtable:job/program@0.1.0";
/// What a component may use to say what it has.
const DESCRIBE_LIMITS: Limits =
    Limits { fuel: 100_000_000, memory_bytes: 256 * 1024 * 1024, time_ms: 10_000, output_bytes: 0 };
/// Bytes that the host looks at for one answer of a program, or one call of a function of WASI: both halves of the
/// largest batch, and a little.
const HOST_CALL_BYTES: usize = 2 * MAX_OUTPUT_BATCH_BYTES + 1024 * 1024;
/// Handles that an attempt has, of streams and of what it makes itself.
const MAX_HANDLES: usize = 1000;

/// Why a component is no program. It is not run anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// It is too large.
    #[error("it has {bytes} bytes, more than {MAX_COMPONENT_BYTES}")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// It cannot be read, or is not valid.
    #[error("it is not a WebAssembly component: {0}")]
    NotComponent(String),
    /// To compile it would take too long, or too much memory.
    #[error("{0} is too complex to be compiled safely")]
    TooComplex(&'static str),
    /// It wants something that no program has.
    #[error("it imports {0}: a program can import nothing but WASI 0.2")]
    Import(String),
    /// It does not export the interface.
    #[error("it does not export {INTERFACE}")]
    NoInterface,
    /// It does not export all of it.
    #[error("it does not export `{0}` of {INTERFACE}")]
    Lacks(&'static str),
    /// A function is there, but not as it should be.
    #[error("its `{function}` is not that of {INTERFACE}: {reason}")]
    WrongType {
        /// Which.
        function: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It did not say what it has.
    #[error("asked what it has, {0}")]
    Describe(ProgramError),
}

impl From<LoadError> for ProgramError {
    fn from(error: LoadError) -> Self {
        Self::component(error)
    }
}

/// There is no shipped code on this machine.
#[derive(Debug, thiserror::Error)]
#[error("no shipped code can be run on this machine: {0}")]
pub struct Unsupported(String);

/// What runs shipped code: one for a process is enough.
pub struct Runtime {
    engine: Engine,
    ticker: Ticker,
}

impl Runtime {
    /// Begins.
    ///
    /// # Errors
    /// If this machine's processor or operating system are not known to wasmtime.
    pub fn new() -> Result<Arc<Self>, Unsupported> {
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .epoch_interruption(true)
            // What a program computes must not depend on the processor.
            .relaxed_simd_deterministic(true)
            .wasm_backtrace(false)
            .generate_address_map(false);
        let engine = Engine::new(&config).map_err(|error| Unsupported(format!("{error:#}")))?;
        let ticker = Ticker::start(engine.clone()).map_err(|error| Unsupported(error.to_string()))?;
        Ok(Arc::new(Self { engine, ticker }))
    }

    /// Compiles a component, and asks it what it has. Takes about a second for each megabyte, and a
    /// processor; blocks.
    ///
    /// # Errors
    /// If it is no program.
    pub fn load(self: &Arc<Self>, bytes: &[u8]) -> Result<Shipped, LoadError> {
        if bytes.len() > MAX_COMPONENT_BYTES {
            return Err(LoadError::TooLarge { bytes: bytes.len() });
        }
        survey::survey(bytes)?;
        let component = Component::from_binary(&self.engine, bytes)
            .map_err(|error| LoadError::NotComponent(short(&error)))?;
        let exports = Exports::find(&component)?;
        let mut linker = Linker::new(&self.engine);
        wasi::link(&mut linker, &component)?;
        let instance =
            linker.instantiate_pre(&component).map_err(|error| LoadError::Import(short(&error)))?;
        let mut shipped = Shipped { runtime: Arc::clone(self), instance, exports, shape: Shape::default() };
        shipped.shape =
            Running::begin(&shipped, &DESCRIBE_LIMITS).map_err(LoadError::Describe)?.describe()?;
        Ok(shipped)
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// What went wrong, bounded.
fn short(error: &wasmtime::Error) -> String {
    format!("{error:#}").chars().take(MAX_ERROR_BYTES / 4).collect()
}

/// Where the functions of a component are.
#[derive(Debug, Clone, Copy)]
struct Exports {
    describe: ComponentExportIndex,
    start: ComponentExportIndex,
    map: ComponentExportIndex,
    combine: ComponentExportIndex,
    reduce: ComponentExportIndex,
}

impl Exports {
    fn find(component: &Component) -> Result<Self, LoadError> {
        let interface = component.get_export_index(None, INTERFACE).ok_or(LoadError::NoInterface)?;
        let find = |name| component.get_export_index(Some(&interface), name).ok_or(LoadError::Lacks(name));
        Ok(Self {
            describe: find("describe")?,
            start: find("start")?,
            map: find("map")?,
            combine: find("combine")?,
            reduce: find("reduce")?,
        })
    }
}

/// A program that came as a component, compiled; made by [`Runtime::load`].
#[derive(Clone)]
pub struct Shipped {
    runtime: Arc<Runtime>,
    instance: InstancePre<Attempt>,
    exports: Exports,
    shape: Shape,
}

impl Shipped {
    /// Bytes of memory that it takes, about, while it does not run.
    pub fn code_bytes(&self) -> usize {
        let image = self.instance.component().image_range();
        image.end.addr() - image.start.addr()
    }
}

impl Executable for Shipped {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn start(&self, arguments: &[Vec<u8>], limits: &Limits) -> Result<Box<dyn Instance>, ProgramError> {
        let mut running = Running::begin(self, limits)?;
        running.start(arguments)?;
        Ok(Box::new(running))
    }
}

impl fmt::Debug for Shipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shipped").field("shape", &self.shape).finish_non_exhaustive()
    }
}
