//! The engine against the plainest way to compute the same.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Cursor;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::sort::Fingerprint;

/// Spilled runs in memory.
#[derive(Default)]
struct InMemory;

impl Spills for InMemory {
    type File = Cursor<Vec<u8>>;

    fn create(&mut self) -> io::Result<Self::File> {
        Ok(Cursor::default())
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a task asks")]
fn go_on() -> Result<(), TaskError> {
    Ok(())
}

/// One task over blocks at these places.
fn map_task(
    program: &Program,
    arguments: &[Vec<u8>],
    ranges: Ranges,
    table_bytes: usize,
    blocks: &[(u32, &Vec<Vec<u8>>)],
) -> Result<(Mapped, Vec<u8>), TaskError> {
    let (executable, limits) = (program.executable(), Limits::default());
    let instance = executable.start(arguments, &limits)?;
    let out = (Vec::new(), InMemory);
    let mut task = MapTask::new(instance, (executable.shape(), &limits), ranges, table_bytes, &go_on, out);
    for (position, records) in blocks {
        task.block(*position, records.iter().map(Vec::as_slice))?;
    }
    task.finish()
}

/// How the input is cut, and how much room there is.
#[derive(Debug, Clone)]
struct Cut {
    ranges: u32,
    tasks: usize,
    table_bytes: usize,
    piece: usize,
}

fn cuts() -> impl Strategy<Value = Cut> {
    (1..7u32, 1..5usize, 6_000..30_000usize, 1..200usize)
        .prop_map(|(ranges, tasks, table_bytes, piece)| Cut { ranges, tasks, table_bytes, piece })
}

/// A whole job; the records of each range.
fn job(
    program: &Program,
    arguments: &[&str],
    blocks: &[Vec<Vec<u8>>],
    cut: &Cut,
) -> Result<Vec<Vec<Vec<u8>>>, TaskError> {
    let arguments: Vec<Vec<u8>> = arguments.iter().map(|text| text.as_bytes().to_vec()).collect();
    let (executable, limits) = (program.executable(), Limits::default());
    let by = if executable.shape().reduce {
        Partitioning::Key
    } else {
        Partitioning::Position { blocks: u32::try_from(blocks.len()).unwrap() }
    };
    let ranges = Ranges { count: cut.ranges, by };
    let mut runs = Vec::new();
    let mut produced = Fingerprint::default();
    for task in 0..cut.tasks {
        // Blocks that are not neighbours.
        let share: Vec<_> = (0..).zip(blocks).skip(task).step_by(cut.tasks).collect();
        let (mapped, bytes) = map_task(program, &arguments, ranges, cut.table_bytes, &share)?;
        assert_eq!(mapped.run.parts.iter().map(|part| part.bytes).sum::<u64>(), bytes.len() as u64);
        assert_eq!(mapped.run.parts.iter().map(|part| part.records).sum::<u64>(), mapped.run.pairs.records);
        assert_eq!(mapped.records, share.iter().map(|(_, records)| records.len() as u64).sum::<u64>());
        produced = produced.and(mapped.run.pairs);
        runs.push((mapped.run.parts, bytes));
    }
    let (mut out, mut consumed) = (Vec::new(), Fingerprint::default());
    for range in 0..cut.ranges as usize {
        // Ranges in which there is nothing are left out, unless there is nothing in any.
        let is_empty = runs.iter().all(|(parts, _)| parts[range].bytes == 0);
        if is_empty && (produced.records > 0 || range > 0) {
            out.push(Vec::new());
            continue;
        }
        let sources = runs.iter().map(|(parts, bytes)| {
            let start: u64 = parts[..range].iter().map(|part| part.bytes).sum();
            let bytes =
                &bytes[usize::try_from(start).unwrap()..][..usize::try_from(parts[range].bytes).unwrap()];
            bytes.chunks(cut.piece).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        });
        let mut records = Vec::new();
        let instance = executable.start(&arguments, &limits)?;
        let pairs = reduce(instance, (executable.shape(), &limits), sources, &go_on, &mut |record| {
            records.push(record.to_vec());
            Ok(())
        })?;
        consumed = consumed.and(pairs);
        out.push(records);
    }
    assert_eq!(produced, consumed);
    Ok(out)
}

fn ready(name: &str) -> Program {
    ready::programs().into_iter().find(|program| program.name().name == name).unwrap()
}

/// Counts words, with values of different lengths.
fn counting_in_text() -> Program {
    fn sum(counts: impl Iterator<Item: AsRef<[u8]>>) -> u64 {
        counts.map(|count| str::from_utf8(count.as_ref()).unwrap().parse::<u64>().unwrap()).sum()
    }
    Program::new("words", 1)
        .map(|line, out| {
            line.split(|byte| *byte == b' ')
                .filter(|word| !word.is_empty())
                .for_each(|word| out.pair(word, b"1"));
        })
        .combine(|_, counts, count| count.extend_from_slice(sum(counts).to_string().as_bytes()))
        .reduce(|word, counts, out| {
            out.record(&[word, format!("\t{}", sum(counts)).as_bytes()].concat());
        })
}

/// Texts of few different words, in blocks.
fn texts() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    let line = prop::collection::vec(0..60u32, 0..30).prop_map(|words| {
        words.iter().fold(Vec::new(), |mut line, word| {
            // Of different lengths, and one of them nine times in ten.
            let word = if word % 10 > 0 {
                "all".to_owned()
            } else {
                "w".repeat(*word as usize % 12 + 1) + &word.to_string()
            };
            line.extend_from_slice(word.as_bytes());
            line.push(b' ');
            line
        })
    });
    prop::collection::vec(prop::collection::vec(line, 0..20), 1..12)
}

fn words(blocks: &[Vec<Vec<u8>>]) -> BTreeMap<Vec<u8>, u64> {
    let mut counts = BTreeMap::new();
    for word in blocks.iter().flatten().flat_map(|line| line.split(|byte| *byte == b' ')) {
        if !word.is_empty() {
            *counts.entry(word.to_vec()).or_default() += 1;
        }
    }
    counts
}

proptest! {
    #[test]
    fn words_are_counted_as_one_process_would(blocks in texts(), cut in cuts(), as_text in any::<bool>()) {
        let program = if as_text { counting_in_text() } else { ready("word-count") };
        let ranges = job(&program, &[], &blocks, &cut).unwrap();
        for range in &ranges {
            prop_assert!(range.is_sorted());
        }
        let mut found: Vec<Vec<u8>> = ranges.concat();
        found.sort();
        let mut wanted: Vec<Vec<u8>> = words(&blocks)
            .into_iter()
            .map(|(word, count)| [&word[..], format!("\t{count}").as_bytes()].concat())
            .collect();
        wanted.sort();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn groups_without_combine_are_whole(blocks in texts(), cut in cuts()) {
        // Each word with the lengths of the lines in which it is.
        let program = Program::new("lengths", 1)
            .map(|line, out| {
                let length = line.len().to_string();
                for word in line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()) {
                    out.pair(word, length.as_bytes());
                }
            })
            .reduce(|word, lengths, out| {
                let mut lengths: Vec<Value<'_>> = lengths.collect();
                lengths.sort_unstable();
                out.record(&[word, b":", &lengths.join(&b' ')].concat());
            });
        let mut found: Vec<Vec<u8>> = job(&program, &[], &blocks, &cut).unwrap().concat();
        found.sort();
        let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for line in blocks.iter().flatten() {
            for word in line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()) {
                groups.entry(word.to_vec()).or_default().push(line.len().to_string().into_bytes());
            }
        }
        let mut wanted: Vec<Vec<u8>> = groups
            .into_iter()
            .map(|(word, mut lengths)| {
                lengths.sort();
                [&word[..], b":", &lengths.join(&b' ')].concat()
            })
            .collect();
        wanted.sort();
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn without_reduce_the_order_of_the_input_stays(blocks in texts(), cut in cuts()) {
        let found: Vec<Vec<u8>> = job(&ready("grep"), &["w"], &blocks, &cut).unwrap().concat();
        let wanted: Vec<Vec<u8>> =
            blocks.iter().flatten().filter(|line| line.contains(&b'w')).cloned().collect();
        prop_assert_eq!(found, wanted);
        let pairs = Program::new("pairs", 1).map(|line, out| out.pair(line, line.len().to_string().as_bytes()));
        let found: Vec<Vec<u8>> = job(&pairs, &[], &blocks, &cut).unwrap().concat();
        let with_length = |line: &Vec<u8>| [&line[..], format!("\t{}", line.len()).as_bytes()].concat();
        prop_assert_eq!(found, blocks.iter().flatten().map(with_length).collect::<Vec<_>>());
    }

    #[test]
    fn the_other_ready_made_programs(blocks in texts(), cut in cuts(), many in 1..40usize) {
        let lines: Vec<Vec<u8>> = blocks.concat();
        let found = job(&ready("count"), &[], &blocks, &cut).unwrap().concat();
        prop_assert_eq!(found, vec![lines.len().to_string().into_bytes()]);

        let mut found = job(&ready("distinct"), &[], &blocks, &cut).unwrap().concat();
        found.sort();
        let mut wanted = lines.clone();
        wanted.sort();
        wanted.dedup();
        prop_assert_eq!(found, wanted);

        let mut found = job(&ready("frequency"), &["1"], &blocks, &cut).unwrap().concat();
        found.sort();
        let mut first: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for line in &lines {
            *first.entry(line.split(|byte| *byte == b' ').next().unwrap().to_vec()).or_default() += 1;
        }
        let mut wanted: Vec<Vec<u8>> =
            first.into_iter().map(|(word, count)| [&word[..], format!("\t{count}").as_bytes()].concat()).collect();
        wanted.sort();
        prop_assert_eq!(found, wanted);

        let numbered: Vec<Vec<Vec<u8>>> = blocks
            .iter()
            .map(|block| block.iter().map(|line| format!("{} line", line.len()).into_bytes()).collect())
            .collect();
        let found = job(&ready("top"), &[&many.to_string(), "1"], &numbered, &cut).unwrap().concat();
        let mut wanted = numbered.concat();
        wanted.sort_by_key(|line| std::cmp::Reverse(str::from_utf8(line).unwrap()[..line.len() - 5].parse::<u32>().unwrap()));
        wanted.truncate(many);
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn what_is_no_run_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1..50usize) {
        let pieces = bytes.chunks(piece).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)));
        let program = ready("word-count").executable();
        let instance = program.start(&[], &Limits::default()).unwrap();
        let about = (program.shape(), &Limits::default());
        drop(reduce(instance, about, [pieces], &go_on, &mut |_| Ok(())));
    }
}

#[test]
fn a_full_table_is_spilled_and_nothing_of_it_lost() {
    let lines: Vec<Vec<u8>> =
        (0..20_000u32).map(|number| format!("{number} {}", number / 2).into_bytes()).collect();
    let cut = Cut { ranges: 3, tasks: 1, table_bytes: 100_000, piece: 1000 };
    let mut found = job(&ready("word-count"), &[], std::slice::from_ref(&lines), &cut).unwrap().concat();
    found.sort();
    let mut wanted: Vec<Vec<u8>> = words(&[lines])
        .into_iter()
        .map(|(word, count)| [&word[..], format!("\t{count}").as_bytes()].concat())
        .collect();
    wanted.sort();
    assert_eq!(found, wanted);
}

/// A group of 20 MB between two short ones.
fn with_a_long_group(program: Program) -> Result<Vec<Vec<u8>>, TaskError> {
    let value = vec![b'x'; 100_000];
    let program = program.map(move |record, out| out.pair(record, &value));
    let mut records = vec![b"the key".to_vec(); 200];
    records.extend([b"after".to_vec(), b"before".to_vec(), b"zz".to_vec()]);
    let cut = Cut { ranges: 1, tasks: 1, table_bytes: TABLE_BYTES, piece: 100_000 };
    Ok(job(&program, &[], &[records], &cut)?.concat())
}

#[test]
fn a_long_group_is_taken_piece_by_piece() {
    let lengths = Program::new("lengths", 1).reduce(|key, values, out| {
        let (mut count, mut bytes) = (0, 0);
        for value in values {
            (count, bytes) = (count + 1, bytes + value.len());
        }
        out.record(&[key, format!(" {count} {bytes}").as_bytes()].concat());
    });
    let wanted = ["after 1 100000", "before 1 100000", "the key 200 20000000", "zz 1 100000"];
    assert_eq!(with_a_long_group(lengths).unwrap(), wanted.map(|text| text.as_bytes().to_vec()));

    // More of it than one call may hand back; values that are kept stay what they are; others are not missed.
    let repeats = Program::new("repeats", 1).reduce(|key, values, out| {
        if key == b"the key" {
            let kept: Vec<Value<'_>> = values.collect();
            (0..4).for_each(|_| kept.iter().for_each(|value| out.record(value)));
        } else {
            out.record(key);
        }
    });
    let records = with_a_long_group(repeats).unwrap();
    assert_eq!((records.len(), records.last().unwrap().as_slice()), (803, &b"zz"[..]));
    assert!(records[2..802].iter().all(|record| record.len() == 100_000));
    let distinct = Program::new("distinct", 1).reduce(|key, _, out| out.record(key));
    assert_eq!(
        with_a_long_group(distinct).unwrap(),
        ["after", "before", "the key", "zz"].map(|text| text.as_bytes().to_vec())
    );

    // What is wrong with the program is said, and what is wrong beside it.
    let panics = Program::new("panics", 1).reduce(|_, values, _| assert!(values.count() < 200, "as it must"));
    let Err(TaskError::Program(error)) = with_a_long_group(panics) else { panic!() };
    assert_eq!(error, ProgramError::failed("it panicked: as it must"));
    let cut_off = [Ok(Bytes::from(long_run())), Err(())];
    let keeps_all = Program::new("keeps", 1).reduce(|key, values, out| {
        values.for_each(drop);
        out.record(key);
    });
    let executable = keeps_all.executable();
    let instance = executable.start(&[], &Limits::default()).unwrap();
    let about = (executable.shape(), &Limits::default());
    let reduced = reduce(instance, about, [cut_off.into_iter()], &go_on, &mut |_| Ok(()));
    assert!(matches!(reduced, Err(TaskError::Source { at: 0 })), "{reduced:?}");
}

/// The beginning of a run of one range in which a key has more values than can be handed over at once.
fn long_run() -> Vec<u8> {
    let program = Program::new("ones", 1).map(|record, out| out.pair(b"key", record)).reduce(|_, _, _| {});
    let records = vec![vec![b'x'; 1000]; MAX_GROUP_BYTES / 1000 + 1000];
    let ranges = Ranges { count: 1, by: Partitioning::Key };
    map_task(&program, &[], ranges, TABLE_BYTES, &[(0, &records)]).unwrap().1
}

#[test]
fn the_best_of_records_that_are_long_together() {
    let records: Vec<Vec<u8>> =
        (0..400u32).map(|number| format!("{number} {}", "x".repeat(60_000)).into_bytes()).collect();
    let cut = Cut { ranges: 1, tasks: 2, table_bytes: TABLE_BYTES, piece: 100_000 };
    let found = job(&ready("top"), &["300", "1"], &[records[..200].to_vec(), records[200..].to_vec()], &cut);
    let wanted: Vec<Vec<u8>> = records.into_iter().rev().take(300).collect();
    assert!(found.unwrap().concat() == wanted);
}

#[test]
fn a_group_that_is_too_long_is_named() {
    let value = vec![b'x'; 100_000];
    let whole = Program::from_executable("whole", 1, Whole(value));
    let blocks = vec![vec![b"x".to_vec(); 200]];
    let cut = Cut { ranges: 1, tasks: 1, table_bytes: TABLE_BYTES, piece: 100_000 };
    let Err(TaskError::Program(error)) = job(&whole, &[], &blocks, &cut) else { panic!() };
    assert_eq!(error, ProgramError::GroupTooLong { key: "the key".to_owned(), bytes: 20_000_007 });
    assert!(
        error.to_string().contains("the key `the key` are 20000007 bytes together, and at most 16777216"),
        "{error}"
    );
}

/// Makes pairs of one key, and takes groups only as a whole.
#[derive(Debug, Clone)]
struct Whole(Vec<u8>);

impl Executable for Whole {
    fn shape(&self) -> Shape {
        Shape { combine: false, reduce: true }
    }

    fn start(&self, _: &[Vec<u8>], _: &Limits) -> Result<Box<dyn Instance>, ProgramError> {
        Ok(Box::new(self.clone()))
    }
}

impl Instance for Whole {
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError> {
        records.iter().try_for_each(|_| out.push(b"the key", &self.0)).map_err(ProgramError::bad_output)
    }

    fn combine(&mut self, _: &Groups, _: &mut Pairs) -> Result<(), ProgramError> {
        Ok(())
    }

    fn reduce(&mut self, _: &Groups, _: &mut Records) -> Result<(), ProgramError> {
        Ok(())
    }
}

#[test]
fn limits_are_kept() {
    let flood =
        Program::new("flood", 1).map(|_, out| (0..20_000).for_each(|_| out.pair(&[b'x'; 10_000], b"")));
    let ranges = Ranges { count: 1, by: Partitioning::Key };
    let Err(TaskError::Program(error)) =
        map_task(&flood, &[], ranges, TABLE_BYTES, &[(0, &vec![b"x".to_vec()])])
    else {
        panic!()
    };
    assert_eq!(error, ProgramError::TooMuchOutput { limit: MAX_OUTPUT_BATCH_BYTES as u64 });

    let limits = Limits { output_bytes: 10, ..Limits::default() };
    let program = Program::new("some", 1).executable();
    let instance = program.start(&[], &limits).unwrap();
    let out = (Vec::new(), InMemory);
    let mut task = MapTask::new(instance, (program.shape(), &limits), ranges, TABLE_BYTES, &go_on, out);
    task.block(0, [&b"12345"[..], b"67890"]).unwrap();
    let Err(TaskError::Program(error)) = task.block(1, [&b"1"[..]]) else { panic!() };
    assert_eq!(error, ProgramError::TooMuchOutput { limit: 10 });

    let long = Program::new("long", 1).map(|_, out| out.pair(&vec![0; MAX_BATCH_BYTES], b"x"));
    let error = map_task(&long, &[], ranges, TABLE_BYTES, &[(0, &vec![b"x".to_vec()])]).unwrap_err();
    assert!(error.to_string().contains("longer than 1048576 bytes"), "{error}");

    let other_key = Program::from_executable("other", 1, OtherKey);
    let records = vec![b"one".to_vec(), b"one".to_vec()];
    let error = map_task(&other_key, &[], ranges, TABLE_BYTES, &[(0, &records)]).unwrap_err();
    assert!(error.to_string().contains("a key that it was not given"), "{error}");
}

/// Combines into a key that it was not given.
#[derive(Debug)]
struct OtherKey;

impl Executable for OtherKey {
    fn shape(&self) -> Shape {
        Shape { combine: true, reduce: true }
    }

    fn start(&self, _: &[Vec<u8>], _: &Limits) -> Result<Box<dyn Instance>, ProgramError> {
        Ok(Box::new(Self))
    }
}

impl Instance for OtherKey {
    fn map(&mut self, records: &Records, out: &mut Pairs) -> Result<(), ProgramError> {
        records.iter().try_for_each(|record| out.push(record, b"")).map_err(ProgramError::bad_output)
    }

    fn combine(&mut self, _: &Groups, out: &mut Pairs) -> Result<(), ProgramError> {
        out.push(b"another", b"").map_err(ProgramError::bad_output)
    }

    fn reduce(&mut self, _: &Groups, _: &mut Records) -> Result<(), ProgramError> {
        Ok(())
    }
}
