//! Programs that every node has.
//!
//! | name | arguments | what comes out |
//! |---|---|---|
//! | `count` | | how many records there are, also if there are none |
//! | `word-count` | | each word (what blanks separate), a tab, and how often it occurs |
//! | `frequency` | \[FIELD\] | each record, or each content of that field, a tab, and how often it occurs |
//! | `top` | N \[FIELD\] | the N records with the greatest number in that field (the last unless given), greatest first |
//! | `distinct` | | each record once |
//! | `grep` | TEXT | the records that hold that text, in the order of the input |
//!
//! Fields are what blanks separate, counted from 1. What is missing is empty, or 0.

use std::cmp::Reverse;

use memchr::memmem::Finder;

use super::batch::{Groups, Pairs, Records};
use super::long::LongGroup;
use super::native::{PairSink, Program, RecordSink};
use super::program::{Executable, Instance, Limits, ProgramError, Shape};
use crate::dataset::Format;
use crate::sort::Order;

/// Version of all of them.
const VERSION: u32 = 1;
/// Most records that `top` keeps.
const MAX_TOP: usize = 1000;

/// All of them.
pub fn programs() -> Vec<Program> {
    vec![
        Program::from_executable("count", VERSION, Count),
        counting(Program::new("word-count", VERSION).map(|record, out| {
            let words = record.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            words.for_each(|word| out.pair(word, &ONE));
        })),
        counting(Program::new("frequency", VERSION).map(frequency)),
        Program::from_executable("top", VERSION, Top),
        Program::new("distinct", VERSION)
            .combine(|_, _, _| {})
            .reduce(|record, _, out: &mut RecordSink<'_>| out.record(record)),
        Program::from_executable("grep", VERSION, Grep),
    ]
}

const ONE: [u8; 8] = 1u64.to_le_bytes();

/// The sum of values that are numbers of 64 bits, little endian. What is not is not counted; it stops at the
/// greatest.
pub fn sum(values: impl IntoIterator<Item: AsRef<[u8]>>) -> u64 {
    let numbers =
        values.into_iter().filter_map(|value| value.as_ref().try_into().ok().map(u64::from_le_bytes));
    numbers.fold(0, u64::saturating_add)
}

/// Adds the values of each key, and writes key, tab, and sum.
fn counting(program: Program) -> Program {
    program
        .combine(|_, values, value| value.extend_from_slice(&sum(values).to_le_bytes()))
        .reduce(|key, values, out| out.record(&[key, format!("\t{}", sum(values)).as_bytes()].concat()))
}

fn frequency(record: &[u8], out: &mut PairSink<'_>) {
    match out.argument(0).map(parse::<usize>) {
        None => out.pair(record, &ONE),
        Some(Some(number)) if number > 0 => out.pair(field(record, Some(number)), &ONE),
        Some(_) => out.fail("the field is a number, counted from 1"),
    }
}

/// A field of a record; `None`: the last.
fn field(record: &[u8], number: Option<usize>) -> &[u8] {
    let mut fields = record.split(|byte| matches!(byte, b' ' | b'\t')).filter(|field| !field.is_empty());
    let found = match number {
        Some(number) => fields.nth(number.saturating_sub(1)),
        None => fields.next_back(),
    };
    found.unwrap_or_default()
}

fn parse<T: std::str::FromStr>(argument: &[u8]) -> Option<T> {
    str::from_utf8(argument).ok()?.parse().ok()
}

/// `count`: a pair for each batch, instead of one for each record.
#[derive(Debug)]
struct Count;

impl Executable for Count {
    fn shape(&self) -> Shape {
        Shape { combine: true, reduce: true }
    }

    fn start(&self, _: &[Vec<u8>], _: &Limits) -> Result<Box<dyn Instance>, ProgramError> {
        Ok(Box::new(Self))
    }
}

impl Instance for Count {
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError> {
        out.push(b"", &(records.len() as u64).to_le_bytes()).map_err(ProgramError::bad_output)
    }

    fn combine(&mut self, groups: &Groups, out: &mut Pairs) -> Result<(), ProgramError> {
        for (key, values) in groups.iter() {
            out.push(key, &sum(values).to_le_bytes()).map_err(ProgramError::bad_output)?;
        }
        Ok(())
    }

    fn reduce(&mut self, groups: &Groups, out: &mut Records) -> Result<(), ProgramError> {
        for (_, values) in groups.iter() {
            out.push(sum(values).to_string().as_bytes()).map_err(ProgramError::bad_output)?;
        }
        Ok(())
    }

    fn reduce_nothing(&mut self, out: &mut Records) -> Result<(), ProgramError> {
        out.push(b"0").map_err(ProgramError::bad_output)
    }
}

/// `grep`.
#[derive(Debug)]
struct Grep;

impl Executable for Grep {
    fn shape(&self) -> Shape {
        Shape::default()
    }

    fn start(&self, arguments: &[Vec<u8>], _: &Limits) -> Result<Box<dyn Instance>, ProgramError> {
        let [text] = arguments else {
            return Err(ProgramError::arguments("`grep` needs one, the text to look for"));
        };
        Ok(Box::new(Grepping(Finder::new(text).into_owned())))
    }
}

struct Grepping(Finder<'static>);

impl Instance for Grepping {
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError> {
        let found = records.iter().filter(|record| self.0.find(record).is_some());
        found.into_iter().try_for_each(|record| out.push(record, b"")).map_err(ProgramError::bad_output)
    }

    fn combine(&mut self, _: &Groups, _: &mut Pairs) -> Result<(), ProgramError> {
        Ok(())
    }

    fn reduce(&mut self, _: &Groups, _: &mut Records) -> Result<(), ProgramError> {
        Ok(())
    }
}

/// `top`.
#[derive(Debug)]
struct Top;

impl Executable for Top {
    fn shape(&self) -> Shape {
        Shape { combine: true, reduce: true }
    }

    fn start(&self, arguments: &[Vec<u8>], _: &Limits) -> Result<Box<dyn Instance>, ProgramError> {
        let wrong = || {
            let text =
                format!("`top` needs how many records are wanted, 1 to {MAX_TOP}, and may have a field");
            ProgramError::arguments(text)
        };
        let (count, number) = match arguments {
            [count] => (count, None),
            [count, number] => (count, Some(parse(number).filter(|number| *number > 0).ok_or_else(wrong)?)),
            _ => return Err(wrong()),
        };
        let count = parse(count).filter(|count| (1..=MAX_TOP).contains(count)).ok_or_else(wrong)?;
        Ok(Box::new(Topping { count, number, best: Vec::new() }))
    }
}

struct Topping {
    count: usize,
    number: Option<usize>,
    /// The best of one batch: what they are compared by, and where they are in it.
    best: Vec<(Reverse<Vec<u8>>, usize)>,
}

impl Topping {
    /// The best of some records, in order: greater numbers first, equal ones in the order of bytes.
    fn best<'a>(&mut self, records: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
        let by_number = Order { numeric: true, ..Order::default() };
        let records: Vec<&[u8]> = records.collect();
        let cut = |best: &mut Vec<(Reverse<Vec<u8>>, usize)>, count: usize| {
            best.sort_unstable_by(|one, other| {
                one.0.cmp(&other.0).then_with(|| records[one.1].cmp(records[other.1]))
            });
            best.truncate(count);
        };
        self.best.clear();
        for (at, record) in records.iter().enumerate() {
            let mut made = Vec::new();
            by_number.key_of(Format::Lines, field(record, self.number), &mut made);
            self.best.push((Reverse(made), at));
            if self.best.len() >= 2 * self.count + 64 {
                cut(&mut self.best, self.count);
            }
        }
        cut(&mut self.best, self.count);
        self.best.iter().map(|(_, at)| records[*at]).collect()
    }
}

impl Instance for Topping {
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError> {
        let best = self.best(records.iter());
        best.into_iter().try_for_each(|record| out.push(b"", record)).map_err(ProgramError::bad_output)
    }

    fn combine(&mut self, groups: &Groups, out: &mut Pairs) -> Result<(), ProgramError> {
        for (key, values) in groups.iter() {
            for record in self.best(values) {
                out.push(key, record).map_err(ProgramError::bad_output)?;
            }
        }
        Ok(())
    }

    fn reduce(&mut self, groups: &Groups, out: &mut Records) -> Result<(), ProgramError> {
        for (_, values) in groups.iter() {
            for record in self.best(values) {
                out.push(record).map_err(ProgramError::bad_output)?;
            }
        }
        Ok(())
    }

    fn reduce_long(&mut self, group: &mut LongGroup<'_>) -> Result<(), ProgramError> {
        let (mut best, mut piece): (Vec<Vec<u8>>, _) = (Vec::new(), Groups::default());
        while group.next_piece(&mut piece) {
            let more = piece.iter().flat_map(|(_, values)| values);
            best = self
                .best(best.iter().map(Vec::as_slice).chain(more))
                .into_iter()
                .map(<[u8]>::to_vec)
                .collect();
        }
        let mut out = Records::default();
        for record in best {
            out.push(&record).map_err(ProgramError::bad_output)?;
            group.take(&mut out);
        }
        Ok(())
    }
}
