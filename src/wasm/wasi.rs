//! WASI 0.2 with nothing behind it.
//!
//! What the standard libraries of languages import is there, so that a component needs no special build. No program
//! has files, sockets, arguments, or an environment; its clocks stand still, and its random numbers are always the
//! same, so that each attempt of a task does the same. What it writes to its standard error is kept as the reason,
//! should it fail. What could not be answered like that stops it.

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, Resource, ResourceType, Val};

use super::LoadError;
use super::limits::{Attempt, Stop};

/// Bytes that a program may write at once, by its own standard output and error.
const WRITE_BYTES: u64 = 4096;
/// Most random bytes at once.
const MAX_RANDOM_BYTES: u64 = 4096;

/// A stream that leads nowhere, or the wait for one.
struct Stream;

/// Streams, by the numbers that a [`Resource`] has.
const NOWHERE: u32 = 0;
const STDERR: u32 = 1;

/// What a function of WASI does here.
#[derive(Debug, Clone, Copy)]
enum Function {
    /// An empty list: of variables, arguments, directories.
    EmptyList,
    /// There is none: no directory, no terminal.
    None,
    /// A stream, or the wait for it.
    Stream(u32),
    /// Nothing comes from a stream.
    Read,
    /// So much can be written to a stream.
    CheckWrite,
    Write,
    Flush,
    /// All that is waited for has happened.
    Ready,
    Poll,
    RandomBytes,
    Random,
    Seed,
    /// A time in nanoseconds.
    Instant(u64),
    /// A time in seconds and nanoseconds.
    DateTime(u32),
    Exit,
}

impl Function {
    fn find(interface: &str, function: &str) -> Option<Self> {
        Some(match (interface, function) {
            ("wasi:cli/environment", "get-environment" | "get-arguments")
            | ("wasi:filesystem/preopens", "get-directories") => Self::EmptyList,
            ("wasi:cli/environment", "initial-cwd")
            | ("wasi:cli/terminal-stdin", "get-terminal-stdin")
            | ("wasi:cli/terminal-stdout", "get-terminal-stdout")
            | ("wasi:cli/terminal-stderr", "get-terminal-stderr") => Self::None,
            ("wasi:cli/stdin", "get-stdin") | ("wasi:cli/stdout", "get-stdout") => Self::Stream(NOWHERE),
            ("wasi:cli/stderr", "get-stderr") => Self::Stream(STDERR),
            ("wasi:io/streams", function) => match function.strip_prefix("[method]")? {
                "input-stream.read" | "input-stream.blocking-read" => Self::Read,
                "output-stream.check-write" => Self::CheckWrite,
                "output-stream.write" | "output-stream.blocking-write-and-flush" => Self::Write,
                "output-stream.flush" | "output-stream.blocking-flush" => Self::Flush,
                "input-stream.subscribe" | "output-stream.subscribe" => Self::Stream(NOWHERE),
                _ => return None,
            },
            ("wasi:io/poll", "[method]pollable.ready" | "[method]pollable.block") => Self::Ready,
            ("wasi:io/poll", "poll") => Self::Poll,
            ("wasi:random/random", "get-random-bytes")
            | ("wasi:random/insecure", "get-insecure-random-bytes") => Self::RandomBytes,
            ("wasi:random/random", "get-random-u64")
            | ("wasi:random/insecure", "get-insecure-random-u64") => Self::Random,
            ("wasi:random/insecure-seed", "insecure-seed") => Self::Seed,
            ("wasi:clocks/monotonic-clock", "now") => Self::Instant(0),
            ("wasi:clocks/monotonic-clock", "resolution") => Self::Instant(1),
            ("wasi:clocks/wall-clock", "now") => Self::DateTime(0),
            ("wasi:clocks/wall-clock", "resolution") => Self::DateTime(1),
            ("wasi:cli/exit", "exit" | "exit-with-code") => Self::Exit,
            _ => return None,
        })
    }

    fn call(self, mut store: StoreContextMut<'_, Attempt>, parameters: &[Val]) -> wasmtime::Result<Val> {
        let streams = taken(parameters, &mut store)?;
        let ok = || Val::Result(Ok(None));
        Ok(match self {
            Self::EmptyList => Val::List(Vec::new()),
            Self::None => Val::Option(None),
            Self::Stream(stream) => {
                Val::Resource(Resource::<Stream>::new_own(stream).try_into_resource_any(store)?)
            }
            Self::Read => Val::Result(Err(Some(Box::new(Val::Variant("closed".to_owned(), None))))),
            Self::CheckWrite => Val::Result(Ok(Some(Box::new(Val::U64(WRITE_BYTES))))),
            Self::Flush => ok(),
            Self::Ready => Val::Bool(true),
            Self::Poll => Val::List((0..).zip(&streams).map(|(at, _)| Val::U32(at)).collect()),
            Self::Write => {
                if let ([STDERR], [_, Val::List(bytes)]) = (&streams[..], parameters) {
                    let bytes = bytes.iter().map(|byte| if let Val::U8(byte) = byte { *byte } else { b'?' });
                    store.data_mut().says(bytes);
                }
                ok()
            }
            Self::Random => Val::U64(store.data_mut().random()),
            Self::RandomBytes => {
                let wanted = match parameters {
                    [Val::U64(wanted)] => (*wanted).min(MAX_RANDOM_BYTES + 1),
                    _ => 0,
                };
                if wanted > MAX_RANDOM_BYTES {
                    return Err(Stop::Denied(format!("more than {MAX_RANDOM_BYTES} random bytes")).into());
                }
                Val::List((0..wanted).map(|_| Val::U8(store.data_mut().random().to_le_bytes()[0])).collect())
            }
            Self::Seed => Val::Tuple(vec![Val::U64(0), Val::U64(0)]),
            Self::Instant(nanoseconds) => Val::U64(nanoseconds),
            Self::DateTime(nanoseconds) => Val::Record(vec![
                ("seconds".to_owned(), Val::U64(0)),
                ("nanoseconds".to_owned(), Val::U32(nanoseconds)),
            ]),
            Self::Exit => return Err(Stop::Exited.into()),
        })
    }
}

/// The streams among what a function was called with. Each that it was lent has to be given back before it returns.
fn taken(parameters: &[Val], store: &mut StoreContextMut<'_, Attempt>) -> wasmtime::Result<Vec<u32>> {
    let mut streams = Vec::new();
    for parameter in parameters {
        let listed = if let Val::List(listed) = parameter { &listed[..] } else { &[] };
        for value in std::iter::once(parameter).chain(listed) {
            if let Val::Resource(stream) = value {
                streams.push(Resource::<Stream>::try_from_resource_any(*stream, &mut *store)?.rep());
            }
        }
    }
    Ok(streams)
}

/// Gives a component all that it imports.
///
/// # Errors
/// If it imports something that is not WASI 0.2.
pub(super) fn link(linker: &mut Linker<Attempt>, component: &Component) -> Result<(), LoadError> {
    let engine = linker.engine().clone();
    for (name, item) in component.component_type().imports(&engine) {
        let import = || LoadError::Import(name.to_owned());
        let (ComponentItem::ComponentInstance(instance), Some(interface)) = (item, wasi(name)) else {
            return Err(import());
        };
        let mut linked = linker.instance(name).map_err(|_| import())?;
        for (item_name, item) in instance.exports(&engine) {
            match item {
                ComponentItem::ComponentFunc(_) => link_function(&mut linked, interface, item_name),
                ComponentItem::Resource(_) => {
                    linked.resource(item_name, ResourceType::host::<Stream>(), |_, _| Ok(()))
                }
                ComponentItem::Type(_) => Ok(()),
                _ => return Err(import()),
            }
            .map_err(|_| import())?;
        }
    }
    Ok(())
}

/// An interface of WASI 0.2 without its version.
fn wasi(name: &str) -> Option<&str> {
    let (interface, version) = name.split_once('@')?;
    (interface.starts_with("wasi:") && version.starts_with("0.2.")).then_some(interface)
}

fn link_function(
    linked: &mut LinkerInstance<'_, Attempt>,
    interface: &str,
    name: &str,
) -> wasmtime::Result<()> {
    let function = Function::find(interface, name);
    let denied = format!("{interface} {name}");
    linked.func_new(name, move |store, parameters, results| {
        let Some(function) = function else { return Err(Stop::Denied(denied.clone()).into()) };
        let answer = function.call(store, parameters)?;
        // A component says itself what type a function has that it imports: it need not have a result.
        if let [result] = results {
            *result = answer;
        }
        Ok(())
    })
}
