//! A whole sort without network and disk, against the plainest sort there is.

use std::cmp::Ordering;
use std::convert::Infallible;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::dataset::Format;

/// What GNU `sort` does in the C locale, written as plainly as can be.
fn reference(order: Order, format: Format, records: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let key = |record: &Vec<u8>| order.key_of(format, record, &mut Vec::new()).to_vec();
    let turn = |ordering: Ordering| if order.reverse { ordering.reverse() } else { ordering };
    let mut sorted = records.to_vec();
    sorted.sort_by(|one, other| {
        let by_key = turn(key(one).cmp(&key(other)));
        if order.stable || order.unique { by_key } else { by_key.then_with(|| turn(one.cmp(other))) }
    });
    if order.unique {
        sorted.dedup_by_key(|record| key(record));
    }
    sorted
}

/// Cuts records into blocks, blocks into tasks, and the whole into ranges, and puts all together again.
fn sorted(
    order: Order,
    format: Format,
    records: &[Vec<u8>],
    (per_block, per_task, ranges, piece): (usize, usize, usize, usize),
) -> (Vec<Vec<u8>>, Vec<usize>) {
    let blocks: Vec<Vec<u8>> = records
        .chunks(per_block)
        .map(|records| {
            let mut block = Vec::new();
            for record in records {
                format.append(&mut block, record);
            }
            block
        })
        .collect();
    let input: Vec<InputBlock<'_>> =
        (0..).zip(&blocks).map(|(position, bytes)| InputBlock { position, bytes }).collect();
    let samples =
        input.iter().flat_map(|block| sample(order, format, block.position, block.bytes, 8)).collect();
    let splitters = splitters(order, samples, ranges);
    assert!(splitters.len() < ranges.max(1));
    // Tasks take blocks from all over the input.
    let tasks = input.len().div_ceil(per_task).max(1);
    let (mut runs, mut read, mut written) = (Vec::new(), Fingerprint::default(), Fingerprint::default());
    for task in 0..tasks {
        let blocks: Vec<_> = input.iter().copied().skip(task).step_by(tasks).collect();
        let mut out = Vec::new();
        let run = sort_into_run(order, format, &splitters, &blocks, &mut out).unwrap();
        assert_eq!(run.parts.iter().map(|part| part.bytes).sum::<u64>(), out.len() as u64);
        read = read.and(run.input);
        written = written.and(run.dropped);
        runs.push((run, out));
    }
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    for range in 0..=splitters.len() {
        let sources = runs.iter().map(|(run, out)| {
            let length = |part: &RunPart| usize::try_from(part.bytes).unwrap();
            let start = run.parts[..range].iter().map(length).sum::<usize>();
            let part = &out[start..][..length(&run.parts[range])];
            part.chunks(piece).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece)))
        });
        let mut merge = Merge::new(order, format, sources).unwrap();
        let before = all.len();
        while let Some(merged) = merge.next_record().unwrap() {
            written.add(merged.record);
            all.push(merged.record.to_vec());
        }
        written = written.and(merge.dropped());
        sizes.push(all.len() - before);
    }
    assert_eq!(read, written);
    assert_eq!(read.records, records.len() as u64);
    (all, sizes)
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        2 => Just(Key::Whole),
        1 => (1..4u32, 0..3u32).prop_map(|(first, more)| Key::Fields { first, last: first + more }),
        1 => (1..6u32, 0..6u32).prop_map(|(first, more)| Key::Bytes { first, last: first + more }),
    ]
}

fn order() -> impl Strategy<Value = Order> {
    (key(), any::<[bool; 4]>()).prop_map(|(key, [numeric, reverse, unique, stable])| Order {
        key,
        numeric,
        reverse,
        unique,
        stable,
    })
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof!["-?[0-9]{0,3}", "-?0{0,2}[0-9]{1,2}\\.[0-9]{0,3}", " [0-9]{1,12}"];
    let text = prop_oneof!["[ab ]{0,12}", "[a-c]{0,3} [0-9]{1,2} [a-c]{0,2}", number];
    text.prop_map(String::into_bytes)
}

proptest! {
    #[test]
    fn any_cut_gives_what_a_plain_sort_gives(
        order in order(),
        records in prop::collection::vec(record(), 0..120),
        cuts in (1..20usize, 1..6usize, 1..9usize, 1..40usize),
        format in prop::sample::select(vec![Format::Lines, Format::Records, Format::Csv]),
    ) {
        let (sorted, _) = sorted(order, format, &records, cuts);
        prop_assert_eq!(sorted, reference(order, format, &records));
    }

    #[test]
    fn records_of_any_bytes_are_sorted(
        order in order(),
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..80),
        cuts in (1..20usize, 1..6usize, 1..9usize, 1..40usize),
    ) {
        let (sorted, _) = sorted(order, Format::Records, &records, cuts);
        prop_assert_eq!(sorted, reference(order, Format::Records, &records));
    }

    #[test]
    fn numbers_are_ordered_as_numbers(one in -1_000_000i64..1_000_000, other in -1_000_000i64..1_000_000, scale in 1..1000i64) {
        let order = Order { numeric: true, ..Order::default() };
        // Three digits behind the point, written with more zeros than needed.
        let text = |number: i64| {
            let sign = if number < 0 { "-" } else { "" };
            format!("{sign}00{}.{:03}00", number.abs() / 1000, number.abs() % 1000).into_bytes()
        };
        let key = |number| order.key_of(Format::Lines, &text(number), &mut Vec::new()).to_vec();
        prop_assert_eq!(key(one).cmp(&key(other)), one.cmp(&other));
        prop_assert_eq!(key(one * scale).cmp(&key(other * scale)), one.cmp(&other));
    }

    #[test]
    fn garbage_is_no_run_and_no_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..4), order in order()) {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
        if let Ok(mut merge) = Merge::new(order, Format::Lines, [pieces]) {
            while let Ok(Some(_)) = merge.next_record() {}
        }
    }
}

/// Nine of ten records are the same: no range is more than twice its share for that, and nothing is lost.
#[test]
fn one_key_of_most_records_is_shared_out_among_ranges() {
    let records: Vec<Vec<u8>> = (0..20_000u32)
        .map(|number| if number % 10 == 0 { number.to_string().into_bytes() } else { b"same".to_vec() })
        .collect();
    for stable in [false, true] {
        let key = if stable { Key::Fields { first: 1, last: 1 } } else { Key::Whole };
        let order = Order { key, stable, ..Order::default() };
        let (found, sizes) = sorted(order, Format::Lines, &records, (200, 10, 8, 4096));
        assert_eq!(found, reference(order, Format::Lines, &records));
        assert_eq!(sizes.len(), 8);
        assert!(sizes.iter().all(|size| *size < 2 * records.len() / 8), "{sizes:?}");
    }
    let order = Order { unique: true, ..Order::default() };
    let (found, _) = sorted(order, Format::Lines, &records, (200, 10, 8, 4096));
    assert_eq!(found, reference(order, Format::Lines, &records));
}

#[test]
fn ranges_are_about_equal() {
    let record = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec();
    let records: Vec<Vec<u8>> = (0..50_000u64).map(record).collect();
    let (_, sizes) = sorted(Order::default(), Format::Records, &records, (500, 10, 10, 1 << 16));
    let share = records.len() / 10;
    assert!(sizes.iter().all(|size| (share / 2..share * 2).contains(size)), "{sizes:?}");
}

#[test]
fn fields_of_csv_are_what_they_mean() {
    let order = |first, last| Order { key: Key::Fields { first, last }, ..Order::default() };
    let key = |order: Order, record: &str| {
        let key = order.key_of(Format::Csv, record.as_bytes(), &mut Vec::new()).to_vec();
        String::from_utf8(key).unwrap()
    };
    let record = "a,\"b,\"\"c\"\"\nd\",,e\r";
    assert_eq!(key(order(1, 1), record), "a\0");
    assert_eq!(key(order(2, 2), record), "b,\"c\"\nd\0");
    assert_eq!(key(order(3, 4), record), "\0e\0");
    assert_eq!(key(order(9, 9), record), "\0");
}

#[test]
fn keys_are_read_as_they_are_written() {
    for (text, key) in [
        ("2", Some(Key::Fields { first: 2, last: 2 })),
        ("2-3", Some(Key::Fields { first: 2, last: 3 })),
        ("bytes:1-10", Some(Key::Bytes { first: 1, last: 10 })),
        ("0", None),
        ("3-2", None),
        ("+1", None),
        ("bytes:", None),
        ("a", None),
    ] {
        assert_eq!(text.parse::<Key>().ok(), key, "{text}");
    }
}

#[test]
fn a_source_that_is_out_of_order_is_noticed() {
    let mut run = Vec::new();
    for record in [&b"b"[..], b"a"] {
        run.extend_from_slice(&1u32.to_le_bytes());
        run.extend_from_slice(record);
    }
    let pieces = [Ok::<_, Infallible>(Bytes::from(run))].into_iter();
    let mut merge = Merge::new(Order::default(), Format::Lines, [pieces]).unwrap();
    assert!(merge.next_record().unwrap().is_some());
    assert!(matches!(merge.next_record(), Err(MergeError::NoRun { at: 0 })));
}
