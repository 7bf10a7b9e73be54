//! The programs that a node has.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::shipped::ShippedCode;
use super::work::Desk;
use crate::compute::{Executable, Program, ProgramName, ready};
use crate::wire::{ProgramRef, WorkError};

/// Programs by name and version: those that are ready-made, and those that the embedding process has registered; and
/// shipped code by its hash.
#[derive(Debug)]
pub(super) struct Programs {
    by_name: BTreeMap<String, BTreeMap<u32, Arc<dyn Executable>>>,
    shipped: ShippedCode,
}

/// Why programs cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramsError {
    /// The name is empty, too long, or has impossible letters.
    #[error("`{0}` is no name of a program")]
    Name(ProgramName),
    /// Two have the same name and version, or a ready-made one has them already.
    #[error("there are two programs `{0}`")]
    Twice(ProgramName),
}

impl Programs {
    /// The ready-made ones and these.
    pub(super) fn new(registered: &[Program]) -> Result<Self, ProgramsError> {
        let mut by_name: BTreeMap<String, BTreeMap<u32, Arc<dyn Executable>>> = BTreeMap::new();
        for program in ready::programs().iter().chain(registered) {
            let ProgramName { name, version } = program.name().clone();
            if !program.name().is_sound() {
                return Err(ProgramsError::Name(program.name().clone()));
            }
            let versions = by_name.entry(name).or_default();
            if versions.insert(version.unwrap_or_default(), program.executable()).is_some() {
                return Err(ProgramsError::Twice(program.name().clone()));
            }
        }
        Ok(Self { by_name, shipped: ShippedCode::new() })
    }

    /// A program and its version; that of shipped code is 0.
    pub(super) async fn find(
        &self,
        program: &ProgramRef,
        desk: &Desk,
    ) -> Result<(u32, Arc<dyn Executable>), WorkError> {
        match program {
            ProgramRef::Named { name, version } => self.named(name, *version),
            ProgramRef::Shipped { sha256 } => Ok((0, self.shipped.find(*sha256, desk).await?)),
        }
    }

    fn named(&self, name: &str, version: Option<u32>) -> Result<(u32, Arc<dyn Executable>), WorkError> {
        let versions = self.by_name.get(name).ok_or(WorkError::NoProgram)?;
        let found = match version {
            Some(version) => versions.get_key_value(&version),
            None => versions.last_key_value(),
        };
        found.map(|(version, found)| (*version, Arc::clone(found))).ok_or(WorkError::NoProgram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_that_is_asked_for_or_the_newest_is_found() {
        let own = |version| Program::new("own", version);
        let programs = Programs::new(&[own(3), own(12)]).unwrap();
        let find = |name: &str, version| programs.named(name, version).map(|(version, _)| version);
        assert_eq!([find("own", None), find("own", Some(3))], [Ok(12), Ok(3)]);
        assert_eq!(find("word-count", None), Ok(1));
        assert_eq!(
            [find("own", Some(4)), find("none", None)],
            [Err(WorkError::NoProgram), Err(WorkError::NoProgram)]
        );
        assert!(matches!(Programs::new(&[own(3), own(3)]), Err(ProgramsError::Twice(_))));
        assert!(matches!(Programs::new(&[Program::new("count", 1)]), Err(ProgramsError::Twice(_))));
        assert!(matches!(Programs::new(&[Program::new("a b", 1)]), Err(ProgramsError::Name(_))));
    }
}
