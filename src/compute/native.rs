//! Functions of Rust as programs.

use std::any::Any;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;
use std::sync::Arc;

use super::BATCH_BYTES;
use super::batch::{BatchFull, Groups, MAX_OUTPUT_BATCH_BYTES, Pairs, Records, Values};
use super::long::LongGroup;
use super::program::{Executable, Instance, Limits, MAX_PROGRAM_NAME_BYTES, ProgramError, Shape};

/// A program with its name and version, to be registered in the nodes that a process embeds.
///
/// Nodes that run a job together must mean the same by a name and version: give what changes another version.
/// Functions may be called from several threads at once, each time for another task; a panic fails the task. What
/// they compute cannot be interrupted, so an endless loop keeps one of the node's processors for good.
///
/// ```
/// use roundtable::compute::{Program, sum};
///
/// let lengths = Program::new("line-lengths", 1)
///     .map(|record, out| out.pair(record.len().to_string().as_bytes(), &1u64.to_le_bytes()))
///     .combine(|_, values, value| value.extend_from_slice(&sum(values).to_le_bytes()))
///     .reduce(|length, values, out| {
///         let text = String::from_utf8_lossy(length);
///         out.record(format!("{text}\t{}", sum(values)).as_bytes());
///     });
/// assert_eq!(lengths.name().to_string(), "line-lengths@1");
/// ```
#[derive(Debug, Clone)]
pub struct Program {
    name: ProgramName,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    Functions(Functions),
    Executable(Arc<dyn Executable>),
}

type MapFunction = dyn Fn(&Records, &mut PairSink<'_>) + Send + Sync;
type CombineFunction = dyn Fn(&Groups, &mut PairSink<'_>) + Send + Sync;
type ReduceFunction = dyn Fn(&[u8], AllValues<'_>, &mut RecordSink<'_>) + Send + Sync;

#[derive(Clone)]
struct Functions {
    map: Arc<MapFunction>,
    combine: Option<Arc<CombineFunction>>,
    reduce: Option<Arc<ReduceFunction>>,
}

impl Program {
    /// A program that makes of each record a pair of it and an empty value, until it is told otherwise. Without
    /// [`reduce`](Self::reduce) its output is what `map` makes, in the order of the input.
    pub fn new(name: impl Into<String>, version: u32) -> Self {
        let identity = |records: &Records, out: &mut PairSink<'_>| {
            records.iter().for_each(|record| out.record(record));
        };
        let functions = Functions { map: Arc::new(identity), combine: None, reduce: None };
        let name = ProgramName { name: name.into(), version: Some(version) };
        Self { name, body: Body::Functions(functions) }
    }

    /// A program that is more than functions: that prepares something of its arguments, or works on whole batches.
    pub fn from_executable(
        name: impl Into<String>,
        version: u32,
        executable: impl Executable + 'static,
    ) -> Self {
        let name = ProgramName { name: name.into(), version: Some(version) };
        Self { name, body: Body::Executable(Arc::new(executable)) }
    }

    /// What is done with each record.
    #[must_use]
    pub fn map(self, map: impl Fn(&[u8], &mut PairSink<'_>) + Send + Sync + 'static) -> Self {
        let map = move |records: &Records, out: &mut PairSink<'_>| {
            records.iter().for_each(|record| map(record, out));
        };
        self.with(|functions| functions.map = Arc::new(map))
    }

    /// Puts some values of a key together into one, which is to be appended to the last argument. It may be applied
    /// to what came of it.
    #[must_use]
    pub fn combine(self, combine: impl Fn(&[u8], Values<'_>, &mut Vec<u8>) + Send + Sync + 'static) -> Self {
        let combine = move |groups: &Groups, out: &mut PairSink<'_>| {
            let mut value = Vec::new();
            for (key, values) in groups.iter() {
                value.clear();
                combine(key, values, &mut value);
                out.pair(key, &value);
            }
        };
        self.with(|functions| functions.combine = Some(Arc::new(combine)))
    }

    /// Makes records of a key and all its values; if there is [`combine`](Self::combine), of what came of that. There
    /// may be any number of either: they come, and go, as they are taken and made.
    #[must_use]
    pub fn reduce(
        self,
        reduce: impl Fn(&[u8], AllValues<'_>, &mut RecordSink<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.with(|functions| functions.reduce = Some(Arc::new(reduce)))
    }

    fn with(mut self, change: impl FnOnce(&mut Functions)) -> Self {
        // What is an executable already has its own functions.
        if let Body::Functions(functions) = &mut self.body {
            change(functions);
        }
        self
    }

    /// What it is called; always with a version.
    pub fn name(&self) -> &ProgramName {
        &self.name
    }

    /// What is run.
    pub fn executable(&self) -> Arc<dyn Executable> {
        match &self.body {
            Body::Functions(functions) => Arc::new(functions.clone()),
            Body::Executable(executable) => Arc::clone(executable),
        }
    }
}

impl fmt::Debug for Functions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Functions").field(&self.shape()).finish()
    }
}

impl Executable for Functions {
    fn shape(&self) -> Shape {
        Shape { combine: self.combine.is_some(), reduce: self.reduce.is_some() }
    }

    fn start(&self, arguments: &[Vec<u8>], _: &Limits) -> Result<Box<dyn Instance>, ProgramError> {
        Ok(Box::new(Running { functions: self.clone(), arguments: arguments.to_vec() }))
    }
}

struct Running {
    functions: Functions,
    arguments: Vec<Vec<u8>>,
}

impl Instance for Running {
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError> {
        let mut sink = PairSink { out, arguments: &self.arguments, failed: None };
        caught(|| (self.functions.map)(records, &mut sink))?;
        sink.failed.map_or(Ok(()), Err)
    }

    fn combine(&mut self, groups: &Groups, out: &mut Pairs) -> Result<(), ProgramError> {
        let Some(combine) = &self.functions.combine else { return Ok(()) };
        let mut sink = PairSink { out, arguments: &self.arguments, failed: None };
        caught(|| combine(groups, &mut sink))?;
        sink.failed.map_or(Ok(()), Err)
    }

    fn reduce(&mut self, groups: &Groups, out: &mut Records) -> Result<(), ProgramError> {
        let Some(reduce) = &self.functions.reduce else { return Ok(()) };
        let mut sink = RecordSink { out, arguments: &self.arguments, take: None, failed: None };
        caught(|| {
            for (key, values) in groups.iter() {
                reduce(key, AllValues(Origin::Group(values)), &mut sink);
            }
        })?;
        sink.failed.map_or(Ok(()), Err)
    }

    fn reduce_long(&mut self, group: &mut LongGroup<'_>) -> Result<(), ProgramError> {
        let Some(reduce) = &self.functions.reduce else { return Ok(()) };
        let (key, pieces, taker) = group.split();
        let mut next = |piece: &mut Groups| pieces.next(piece);
        let values = AllValues(Origin::Pieces { next: &mut next, piece: Arc::default(), at: 0 });
        let mut out = Records::default();
        let mut take = |records: &mut Records| taker.take(records);
        let mut sink =
            RecordSink { out: &mut out, arguments: &self.arguments, take: Some(&mut take), failed: None };
        caught(|| reduce(key, values, &mut sink))?;
        sink.failed.map_or(Ok(()), Err)?;
        taker.take(&mut out);
        Ok(())
    }
}

/// Runs a user's function; a panic becomes an error. What it was handed is not looked at after that.
fn caught(run: impl FnOnce()) -> Result<(), ProgramError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = text_of(&*panic).unwrap_or("without saying why");
        ProgramError::failed(format!("it panicked: {text}"))
    })
}

fn text_of(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<&str>().copied().or_else(|| Some(panic.downcast_ref::<String>()?))
}

/// Takes the pairs that a function makes.
#[derive(Debug)]
pub struct PairSink<'a> {
    out: &'a mut Pairs,
    arguments: &'a [Vec<u8>],
    failed: Option<ProgramError>,
}

impl PairSink<'_> {
    /// A key and a value: 1 MiB together, at most.
    pub fn pair(&mut self, key: &[u8], value: &[u8]) {
        if let Err(BatchFull) = self.out.push(key, value) {
            self.failed.get_or_insert(too_much());
        }
    }

    /// A record of the output, for programs without `reduce`; a key with an empty value, for others.
    pub fn record(&mut self, record: &[u8]) {
        self.pair(record, b"");
    }

    /// An argument of the job, counted from 0.
    pub fn argument(&self, at: usize) -> Option<&[u8]> {
        self.arguments.get(at).map(Vec::as_slice)
    }

    /// The task fails; the text is told to whoever runs the job. The first counts.
    pub fn fail(&mut self, text: impl fmt::Display) {
        self.failed.get_or_insert_with(|| ProgramError::failed(text));
    }
}

/// All the values of a key, one after the other, in no particular order. There may be more than fit into memory: of
/// those that were taken is there only what a program keeps.
pub struct AllValues<'a>(Origin<'a>);

enum Origin<'a> {
    Group(Values<'a>),
    Pieces {
        next: &'a mut (dyn FnMut(&mut Groups) -> bool + 'a),
        /// One group.
        piece: Arc<Groups>,
        /// Its next value.
        at: usize,
    },
}

impl<'a> Iterator for AllValues<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        match &mut self.0 {
            Origin::Group(values) => values.next().map(|value| Value(Bytes::Here(value))),
            Origin::Pieces { next, piece, at } => {
                if *at == piece.values_of_first() {
                    // What was made of the last one may still be in use.
                    let mut more = Arc::try_unwrap(std::mem::take(piece)).unwrap_or_default();
                    if !next(&mut more) {
                        *at = 0;
                        return None;
                    }
                    (*piece, *at) = (Arc::new(more), 0);
                }
                *at += 1;
                Some(Value(Bytes::In { piece: Arc::clone(piece), at: *at - 1 }))
            }
        }
    }
}

impl fmt::Debug for AllValues<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllValues").finish_non_exhaustive()
    }
}

/// A value of a key: bytes.
#[derive(Clone)]
pub struct Value<'a>(Bytes<'a>);

#[derive(Clone)]
enum Bytes<'a> {
    Here(&'a [u8]),
    /// A value of a piece, which is kept as long as somebody has one of them.
    In {
        piece: Arc<Groups>,
        at: usize,
    },
}

impl Deref for Value<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Here(bytes) => bytes,
            Bytes::In { piece, at } => piece.value_of_first(*at),
        }
    }
}

impl AsRef<[u8]> for Value<'_> {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for Value<'_> {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Value<'_> {}

impl PartialOrd for Value<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Value<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.escape_ascii().to_string()).finish()
    }
}

/// Takes the records that a function makes.
pub struct RecordSink<'a> {
    out: &'a mut Records,
    arguments: &'a [Vec<u8>],
    /// Takes them on when they have become many.
    take: Option<&'a mut (dyn FnMut(&mut Records) + 'a)>,
    failed: Option<ProgramError>,
}

impl fmt::Debug for RecordSink<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordSink").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl RecordSink<'_> {
    /// A record of the output, without what ends it. It must be possible in the output's format.
    pub fn record(&mut self, record: &[u8]) {
        if let Err(BatchFull) = self.out.push(record) {
            self.failed.get_or_insert(too_much());
        }
        if let Some(take) = &mut self.take
            && self.out.bytes().len() >= BATCH_BYTES
        {
            take(self.out);
        }
    }

    /// An argument of the job, counted from 0.
    pub fn argument(&self, at: usize) -> Option<&[u8]> {
        self.arguments.get(at).map(Vec::as_slice)
    }

    /// The task fails; the text is told to whoever runs the job. The first counts.
    pub fn fail(&mut self, text: impl fmt::Display) {
        self.failed.get_or_insert_with(|| ProgramError::failed(text));
    }
}

fn too_much() -> ProgramError {
    ProgramError::TooMuchOutput { limit: MAX_OUTPUT_BATCH_BYTES as u64 }
}

/// What a program is called: `name@version`, or `name` if nodes have one version only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramName {
    /// 1 to [`MAX_PROGRAM_NAME_BYTES`] letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Which of that name; `None`: the newest.
    pub version: Option<u32>,
}

/// A text that is no name of a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name of a program: write name or name@version, the name of letters, digits, `-`, `_` and `.`"
)]
pub struct ProgramNameError(String);

impl ProgramName {
    /// Whether the name is possible; to be asked of what came from elsewhere.
    pub fn is_sound(&self) -> bool {
        let is_possible = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=MAX_PROGRAM_NAME_BYTES).contains(&self.name.len()) && self.name.bytes().all(is_possible)
    }
}

impl FromStr for ProgramName {
    type Err = ProgramNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ProgramNameError(text.chars().take(MAX_PROGRAM_NAME_BYTES).collect());
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let name = Self { name: name.to_owned(), version };
        if name.is_sound() { Ok(name) } else { Err(wrong()) }
    }
}

impl fmt::Display for ProgramName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(program: &Program) -> Box<dyn Instance> {
        program.executable().start(&[b"first".to_vec()], &Limits::default()).unwrap()
    }

    fn records(texts: &[&str]) -> Records {
        let mut records = Records::default();
        for text in texts {
            records.push(text.as_bytes()).unwrap();
        }
        records
    }

    #[test]
    fn a_panic_is_an_error_that_says_why() {
        let program = Program::new("bad", 1).map(|record, _| assert!(record != b"no", "not that"));
        let mut out = Pairs::default();
        assert_eq!(start(&program).map(&records(&["yes"]), &mut out), Ok(()));
        let Err(ProgramError::Failed(text)) = start(&program).map(&records(&["yes", "no"]), &mut out) else {
            panic!()
        };
        assert_eq!(text, "it panicked: not that");
    }

    #[test]
    fn functions_know_their_arguments_and_can_fail() {
        let program = Program::new("one", 1).map(|record, out| {
            if out.argument(0) == Some(record) { out.fail("found it") } else { out.record(record) }
        });
        let mut out = Pairs::default();
        assert_eq!(start(&program).map(&records(&["second"]), &mut out), Ok(()));
        assert_eq!(out.iter().collect::<Vec<_>>(), [(&b"second"[..], &b""[..])]);
        let failed = start(&program).map(&records(&["first"]), &mut out);
        assert_eq!(failed, Err(ProgramError::failed("found it")));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["word-count", "word-count@3", "a.b_c@0"] {
            assert_eq!(text.parse::<ProgramName>().unwrap().to_string(), text);
        }
        for text in ["", "@1", "a@", "a@b", "a b", "a@1@2", &"x".repeat(65)] {
            assert!(text.parse::<ProgramName>().is_err(), "{text}");
        }
    }
}
