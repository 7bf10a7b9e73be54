//! One attempt of one task: an instance with its limits.

use wasmtime::Store;
use wasmtime::component::{
    ComponentExportIndex, ComponentNamedList, ComponentType, Instance as ComponentInstance, Lift, Lower,
    WasmList,
};

use super::limits::Attempt;
use super::ticker::Ticker;
use super::{Exports, HOST_CALL_BYTES, LoadError, MAX_HANDLES, Runtime, Shipped, short};
use crate::compute::{
    BadBatch, Groups, Instance, Limits, MAX_OUTPUT_BATCH_BYTES, Pairs, ProgramError, Records, Shape,
};

/// `batch` of the interface, as it is handed in.
#[derive(ComponentType, Lower)]
#[component(record)]
struct BatchIn<'a> {
    bytes: &'a [u8],
    ends: &'a [u32],
}

/// `groups`.
#[derive(ComponentType, Lower)]
#[component(record)]
struct GroupsIn<'a> {
    bytes: &'a [u8],
    ends: &'a [u32],
    counts: &'a [u32],
}

impl<'a> From<&'a Groups> for GroupsIn<'a> {
    fn from(groups: &'a Groups) -> Self {
        Self { bytes: groups.bytes(), ends: groups.ends(), counts: groups.counts() }
    }
}

/// `batch`, as it is handed back: still in the program's memory.
#[derive(ComponentType, Lift)]
#[component(record)]
struct BatchOut {
    bytes: WasmList<u8>,
    ends: WasmList<u32>,
}

/// `shape`.
#[derive(ComponentType, Lift)]
#[component(record)]
struct ShapeOut {
    combine: bool,
    reduce: bool,
}

type Answer<T> = Result<T, String>;

/// A running program.
pub(super) struct Running {
    runtime: std::sync::Arc<Runtime>,
    store: Store<Attempt>,
    instance: ComponentInstance,
    exports: Exports,
    limits: Limits,
    /// Of its time.
    ticks_left: u64,
    /// Bytes that it may still hand back.
    output_left: u64,
}

impl Running {
    /// Makes an instance. That may run code of it.
    pub(super) fn begin(shipped: &Shipped, limits: &Limits) -> Result<Self, ProgramError> {
        let runtime = std::sync::Arc::clone(&shipped.runtime);
        let mut store = Store::new(&runtime.engine, Attempt::new(limits));
        store.limiter(|attempt| attempt);
        store.set_hostcall_fuel(HOST_CALL_BYTES);
        store.set_max_component_handles(MAX_HANDLES);
        store.set_fuel(limits.fuel).map_err(|error| ProgramError::trapped(short(&error)))?;
        let ticks = Ticker::ticks(limits.time_ms);
        store.set_epoch_deadline(ticks);
        let watch = runtime.ticker.watch();
        let instance = shipped.instance.instantiate(&mut store);
        let ticks_left = ticks.saturating_sub(watch.ticks());
        drop(watch);
        let instance = instance.map_err(|error| store.data().error(&error, limits))?;
        let (exports, limits) = (shipped.exports, *limits);
        Ok(Self { runtime, store, instance, exports, limits, ticks_left, output_left: limits.output_bytes })
    }

    /// What the program has, and whether its functions are what they should be.
    pub(super) fn describe(&mut self) -> Result<Shape, LoadError> {
        let Exports { describe, start, map, combine, reduce } = self.exports;
        self.check::<(), (ShapeOut,)>("describe", describe)?;
        self.check::<(&[Vec<u8>],), (Answer<()>,)>("start", start)?;
        self.check::<(BatchIn<'_>,), (Answer<BatchOut>,)>("map", map)?;
        self.check::<(GroupsIn<'_>,), (Answer<BatchOut>,)>("combine", combine)?;
        self.check::<(GroupsIn<'_>,), (Answer<BatchOut>,)>("reduce", reduce)?;
        self.call(describe, (), |_, ShapeOut { combine, reduce }| Ok(Shape { combine, reduce }))
            .map_err(LoadError::Describe)
    }

    fn check<P, R>(&mut self, function: &'static str, index: ComponentExportIndex) -> Result<(), LoadError>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let typed = self.instance.get_typed_func::<P, R>(&mut self.store, index);
        typed.map(|_| ()).map_err(|error| LoadError::WrongType { function, reason: short(&error) })
    }

    /// Hands it its arguments.
    pub(super) fn start(&mut self, arguments: &[Vec<u8>]) -> Result<(), ProgramError> {
        self.call(self.exports.start, (arguments,), |_, answer: Answer<()>| {
            answer.map_err(ProgramError::arguments)
        })
    }

    /// Calls a function and looks at what it hands back, within what is left of the limits.
    fn call<P, R, T>(
        &mut self,
        function: ComponentExportIndex,
        parameters: P,
        look: impl FnOnce(&Store<Attempt>, R) -> Result<T, ProgramError>,
    ) -> Result<T, ProgramError>
    where
        P: ComponentNamedList + Lower,
        (R,): ComponentNamedList + Lift,
    {
        let failed = |store: &Store<Attempt>, limits, error| store.data().error(&error, limits);
        let typed = self.instance.get_typed_func::<P, (R,)>(&mut self.store, function);
        let typed = typed.map_err(|error| failed(&self.store, &self.limits, error))?;
        let watch = self.runtime.ticker.watch();
        self.store.set_epoch_deadline(self.ticks_left);
        let result = match typed.call(&mut self.store, parameters) {
            Ok((answer,)) => {
                let looked = look(&self.store, answer);
                // Runs code of it again.
                let freed = typed.post_return(&mut self.store);
                looked.and_then(|looked| {
                    freed.map(|()| looked).map_err(|error| failed(&self.store, &self.limits, error))
                })
            }
            Err(error) => Err(failed(&self.store, &self.limits, error)),
        };
        self.ticks_left = self.ticks_left.saturating_sub(watch.ticks());
        result
    }

    /// Calls a function that hands back a batch, and appends that.
    fn call_for_batch<P: ComponentNamedList + Lower>(
        &mut self,
        function: ComponentExportIndex,
        parameters: P,
        append: impl FnOnce(&[u8], &[u32]) -> Result<(), BadBatch>,
    ) -> Result<(), ProgramError> {
        let (left, limit) = (self.output_left, self.limits.output_bytes);
        let bytes = self.call(function, parameters, |store, answer: Answer<BatchOut>| {
            let batch = answer.map_err(ProgramError::failed)?;
            let (bytes, ends) = (batch.bytes.as_le_slice(store), batch.ends.as_le_slice(store));
            let longest = bytes.len().max(size_of_val(ends));
            if longest > MAX_OUTPUT_BATCH_BYTES {
                return Err(ProgramError::TooMuchOutput { limit: MAX_OUTPUT_BATCH_BYTES as u64 });
            }
            let bytes_out = (bytes.len() + size_of_val(ends)) as u64;
            if bytes_out > left {
                return Err(ProgramError::TooMuchOutput { limit });
            }
            append(bytes, ends).map_err(ProgramError::bad_output)?;
            Ok(bytes_out)
        })?;
        self.output_left -= bytes;
        Ok(())
    }
}

impl Instance for Running {
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError> {
        let batch = BatchIn { bytes: records.bytes(), ends: records.ends() };
        self.call_for_batch(self.exports.map, (batch,), |bytes, ends| {
            out.append(bytes, ends.iter().copied().map(u32::from_le))
        })
    }

    fn combine(&mut self, groups: &Groups, out: &mut Pairs) -> Result<(), ProgramError> {
        self.call_for_batch(self.exports.combine, (GroupsIn::from(groups),), |bytes, ends| {
            out.append(bytes, ends.iter().copied().map(u32::from_le))
        })
    }

    fn reduce(&mut self, groups: &Groups, out: &mut Records) -> Result<(), ProgramError> {
        self.call_for_batch(self.exports.reduce, (GroupsIn::from(groups),), |bytes, ends| {
            out.append(bytes, ends.iter().copied().map(u32::from_le))
        })
    }
}
