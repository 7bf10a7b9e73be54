//! Components that do what they should not, each written as text.

use super::written::{NO_BATCH, component};
use super::*;
use crate::compute::{Groups, Pairs, Records};
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    fuel: 100_000_000,
    memory_bytes: 4 * 1024 * 1024,
    time_ms: 60_000,
    output_bytes: 64 * 1024 * 1024,
};
/// A word count, as its README says.
const WORD_COUNT: &[u8] = include_bytes!("../../tests/data/word_count.wasm");
const LOOP: &str = "(loop $again (br $again)) unreachable";

fn load(replaced: &[(&str, &str)]) -> Result<Shipped, LoadError> {
    Runtime::new().unwrap().load(&component(replaced))
}

/// What comes of handing one record to a program whose `map` is that.
fn map(map: &str, limits: &Limits) -> Result<Pairs, ProgramError> {
    run(&load(&[("map", map)]).unwrap(), limits)
}

fn run(program: &Shipped, limits: &Limits) -> Result<Pairs, ProgramError> {
    let mut records = Records::default();
    records.push(b"a record").unwrap();
    let mut pairs = Pairs::default();
    program.start(&[], limits)?.map(&records, &mut pairs)?;
    Ok(pairs)
}

#[test]
fn a_program_is_handed_what_the_interface_says_and_its_answer_comes_back() {
    // `map` hands back the bytes, with twice the end: a pair of the record and nothing.
    let map = "(i32.store (i32.const 0) (i32.load (local.get 2)))
        (i32.store (i32.const 4) (i32.load (local.get 2)))
        (drop (call $batch (local.get 1) (i32.const 2)))
        (i32.store (i32.const 36) (local.get 0))
        (i32.const 32)";
    // `reduce` hands back the first string, which is the first key, if there are two groups of one and two values.
    let reduce = "(if (i32.or (i32.ne (local.get 5) (i32.const 2)) (i64.ne (i64.load (local.get 4)) (i64.const 0x200000001)))
            (then unreachable))
        (i32.store (i32.const 0) (i32.load (local.get 2)))
        (drop (call $batch (i32.load (local.get 2)) (i32.const 1)))
        (i32.store (i32.const 36) (local.get 0))
        (i32.const 32)";
    let program = load(&[("map", map), ("reduce", reduce)]).unwrap();
    assert_eq!(program.shape(), Shape { combine: true, reduce: true });
    assert!(program.code_bytes() > 1024);
    let mut running = program.start(&[b"some".to_vec(), Vec::new()], &LIMITS).unwrap();
    let mut records = Records::default();
    records.push(b"a record").unwrap();
    let mut pairs = Pairs::default();
    running.map(&records, &mut pairs).unwrap();
    running.map(&records, &mut pairs).unwrap();
    assert_eq!(pairs.iter().collect::<Vec<_>>(), [(&b"a record"[..], &b""[..]); 2]);

    let mut groups = Groups::default();
    for (key, values) in [(&b"one"[..], 1), (b"two", 2)] {
        groups.push_key(key).unwrap();
        (0..values).for_each(|_| groups.push_value(b"value").unwrap());
    }
    let mut out = Records::default();
    running.reduce(&groups, &mut out).unwrap();
    assert_eq!(out.iter().collect::<Vec<_>>(), [b"one"]);
    running.combine(&groups, &mut pairs).unwrap();
    assert_eq!(pairs.len(), 2);
}

#[test]
fn what_a_program_says_is_its_error() {
    let module = ("module", r#"(data (i32.const 128) "what I do not like\ff")"#);
    let says = "(call $error (i32.const 128) (i32.const 18))";
    let program = load(&[module, ("map", says)]).unwrap();
    assert_eq!(run(&program, &LIMITS), Err(ProgramError::Failed("what I do not like".to_owned())));
    let program = load(&[module, ("start", says)]).unwrap();
    assert_eq!(run(&program, &LIMITS), Err(ProgramError::Arguments("what I do not like".to_owned())));
    // A text that is not UTF-8, behind the memory, or very long.
    for (at, bytes) in [(128, 19), (60_000, 60_000)] {
        let says = format!("(call $error (i32.const {at}) (i32.const {bytes}))");
        let program = load(&[module, ("map", &says)]).unwrap();
        assert!(matches!(run(&program, &LIMITS), Err(ProgramError::Trapped(_))));
    }
    let says = "(drop (memory.grow (i32.const 30))) (call $error (i32.const 0) (i32.const 1900000))";
    let program = load(&[module, ("map", says)]).unwrap();
    assert!(matches!(run(&program, &LIMITS), Err(ProgramError::Trapped(_))));
    let says = "(memory.fill (i32.const 1024) (i32.const 97) (i32.const 60000))
        (call $error (i32.const 1024) (i32.const 60000))";
    let program = load(&[module, ("map", says)]).unwrap();
    let Err(ProgramError::Failed(text)) = run(&program, &LIMITS) else { panic!() };
    assert!(text.len() < 2 * MAX_ERROR_BYTES);
}

#[test]
fn a_trap_ends_the_task() {
    for (code, text) in [
        ("unreachable", "unreachable"),
        ("(i32.div_u (i32.const 1) (i32.const 0))", "divide by zero"),
        ("(i32.load (i32.const 100000))", "out of bounds"),
        ("(call $map (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))", "call stack exhausted"),
    ] {
        let error = map(code, &LIMITS).unwrap_err();
        assert!(matches!(&error, ProgramError::Trapped(trapped) if trapped.contains(text)), "{error}");
    }
}

#[test]
fn an_endless_loop_ends_with_its_fuel() {
    let out_of_fuel = ProgramError::OutOfFuel { limit: LIMITS.fuel };
    assert_eq!(map(LOOP, &LIMITS), Err(out_of_fuel.clone()));
    // What frees the answer is code of the program like any other.
    let program = load(&[("done", "(loop $again (br $again))")]).unwrap();
    assert_eq!(run(&program, &LIMITS), Err(out_of_fuel.clone()));
    // So are what asks for memory, what starts, and what an instance begins with.
    let program = load(&[("start", LOOP)]).unwrap();
    assert_eq!(run(&program, &LIMITS), Err(out_of_fuel));
    let begins = ("module", "(func $begin (loop $again (br $again))) (start $begin)");
    let out_of_fuel = ProgramError::OutOfFuel { limit: DESCRIBE_LIMITS.fuel };
    assert_eq!(load(&[begins]).unwrap_err(), LoadError::Describe(out_of_fuel.clone()));
    let describes = ("describe", "(loop $again (br $again))");
    assert_eq!(load(&[describes]).unwrap_err(), LoadError::Describe(out_of_fuel));
}

#[test]
fn fuel_is_that_of_all_calls_together() {
    let program = load(&[]).unwrap();
    let mut running = program.start(&[], &Limits { fuel: 10_000, ..LIMITS }).unwrap();
    let (records, mut pairs) = (Records::default(), Pairs::default());
    let calls =
        (0..10_000).find_map(|call| running.map(&records, &mut pairs).err().map(|error| (call, error)));
    let (calls, error) = calls.unwrap();
    assert!(calls > 10, "{calls}");
    assert_eq!(error, ProgramError::OutOfFuel { limit: 10_000 });
}

#[test]
fn an_endless_loop_ends_with_its_time() {
    let limits = Limits { fuel: u64::MAX, time_ms: 50, ..LIMITS };
    let program = load(&[("map", LOOP)]).unwrap();
    let out_of_time = Err(ProgramError::OutOfTime { limit_ms: 50 });
    // Twice, and at the same time: one clock for all.
    assert_eq!(run(&program, &limits), out_of_time);
    std::thread::scope(|scope| {
        let runs = [(); 3].map(|()| scope.spawn(|| run(&program, &limits)));
        for ran in runs {
            assert_eq!(ran.join().unwrap(), out_of_time);
        }
    });
}

#[test]
fn time_is_that_of_all_calls_together() {
    let program = load(&[]).unwrap();
    let mut running = program.start(&[], &Limits { fuel: u64::MAX, time_ms: 30, ..LIMITS }).unwrap();
    let (records, mut pairs) = (Records::default(), Pairs::default());
    let error = std::iter::repeat_with(|| running.map(&records, &mut pairs)).find_map(Result::err);
    assert_eq!(error, Some(ProgramError::OutOfTime { limit_ms: 30 }));
}

#[test]
fn too_much_memory_ends_the_task() {
    let out_of_memory = ProgramError::OutOfMemory { limit: LIMITS.memory_bytes };
    let hog = "(loop $again (drop (memory.grow (i32.const 1))) (br $again)) unreachable";
    assert_eq!(map(hog, &LIMITS), Err(out_of_memory.clone()));
    // At once, in a table, and before it has begun.
    assert_eq!(map("(memory.grow (i32.const 65000))", &LIMITS), Err(out_of_memory.clone()));
    let table = ("module", "(table $table 0 funcref)");
    let program =
        load(&[table, ("map", "(table.grow $table (ref.null func) (i32.const 10000000))")]).unwrap();
    assert_eq!(run(&program, &LIMITS), Err(out_of_memory.clone()));
    let memory = ("module", r#"(memory $other (export "other") 100)"#);
    let program = load(&[memory]).unwrap();
    assert_eq!(run(&program, &LIMITS), Err(out_of_memory.clone()));
    // Its own limit is its own affair.
    let program =
        load(&[("maximum", "2"), ("map", &format!("(drop (memory.grow (i32.const 1000))) {NO_BATCH}"))]);
    assert_eq!(run(&program.unwrap(), &LIMITS), Ok(Pairs::default()));
    // What it is handed needs room, too.
    let program = load(&[]).unwrap();
    let mut running = program.start(&[], &LIMITS).unwrap();
    let mut records = Records::default();
    records.push(&vec![b'x'; 5_000_000]).unwrap();
    assert_eq!(running.map(&records, &mut Pairs::default()), Err(out_of_memory));
}

#[test]
fn nonsense_is_no_output() {
    let batch = |ends: &[u32], bytes: usize, count: usize| {
        let stores: String = (0..).zip(ends).fold(String::new(), |text, (at, end)| {
            format!("{text} (i32.store (i32.const {}) (i32.const {end}))", 4 * at)
        });
        map(&format!("{stores} (call $batch (i32.const {bytes}) (i32.const {count}))"), &LIMITS)
    };
    assert_eq!(batch(&[3, 8], 8, 2).unwrap().len(), 1);
    for (ends, bytes, count) in [
        (&[3, 9][..], 8, 2),
        (&[3, 7], 8, 2),
        (&[9, 8], 8, 2),
        (&[u32::MAX, 8], 8, 2),
        (&[8], 8, 1),
        (&[], 8, 0),
    ] {
        assert!(matches!(batch(ends, bytes, count), Err(ProgramError::BadOutput(_))), "{ends:?}");
    }
    // Behind its memory, not aligned, or no result at all: the runtime finds out.
    for code in [
        "(call $batch (i32.const 100000) (i32.const 2))",
        "(call $batch (i32.const 0) (i32.const -1))",
        "(drop (call $batch (i32.const 0) (i32.const 0))) (i32.store (i32.const 44) (i32.const 2)) (i32.const 32)",
        "(i32.const 33)",
        "(i32.const -4)",
        "(i32.store8 (i32.const 32) (i32.const 7)) (i32.const 32)",
    ] {
        assert!(matches!(map(code, &LIMITS), Err(ProgramError::Trapped(_))), "{code}");
    }
    // Memory for what it is handed that it does not have.
    let program =
        load(&[("module", r#"(func (export "no") (param i32) (result i32) (i32.const -8))"#)]).unwrap();
    assert!(run(&program, &LIMITS).is_ok());
}

#[test]
fn too_much_output_ends_the_task() {
    // 1 MiB of bytes in one string, and no value.
    let megabyte = "(drop (memory.grow (i32.const 17)))
        (i32.store (i32.const 0) (i32.const 1048576))
        (i32.store (i32.const 4) (i32.const 1048576))
        (call $batch (i32.const 1048576) (i32.const 2))";
    let program = load(&[("map", megabyte)]).unwrap();
    let limit = 3_000_000;
    let limits = Limits { output_bytes: limit, memory_bytes: 1 << 30, ..LIMITS };
    let mut running = program.start(&[], &limits).unwrap();
    let (records, mut pairs) = (Records::default(), Pairs::default());
    assert_eq!(running.map(&records, &mut pairs), Ok(()));
    assert_eq!(running.map(&records, &mut pairs), Ok(()));
    assert_eq!(running.map(&records, &mut pairs), Err(ProgramError::TooMuchOutput { limit }));

    let limits = Limits { output_bytes: u64::MAX, memory_bytes: 1 << 30, ..LIMITS };
    let limit = MAX_OUTPUT_BATCH_BYTES as u64;
    // Many strings of nothing are much output, too.
    for (bytes, ends) in [(70_000_000, 2), (0, 20_000_000)] {
        let code = format!(
            "(drop (memory.grow (i32.const 2000))) (call $batch (i32.const {bytes}) (i32.const {ends}))"
        );
        assert_eq!(map(&code, &limits), Err(ProgramError::TooMuchOutput { limit }));
    }
}

#[test]
fn what_is_no_program_is_told_why() {
    let runtime = Runtime::new().unwrap();
    let error = |bytes: &[u8]| runtime.load(bytes).unwrap_err();
    assert_eq!(
        error(&vec![0; MAX_COMPONENT_BYTES + 1]),
        LoadError::TooLarge { bytes: MAX_COMPONENT_BYTES + 1 }
    );
    for bytes in [&b""[..], b"#!/bin/sh", b"\0asm\x0d\0\x01\0nonsense", &wat::parse_str("(module)").unwrap()]
    {
        assert!(matches!(error(bytes), LoadError::NotComponent(_)), "{}", error(bytes));
    }
    let whole = component(&[]);
    for length in (0..whole.len()).step_by(7) {
        assert!(runtime.load(&whole[..length]).is_err());
    }
    assert_eq!(error(&wat::parse_str("(component)").unwrap()), LoadError::NoInterface);
    assert_eq!(error(&component(&[("interface", "roundtable:job/program@0.2.0")])), LoadError::NoInterface);
    assert_eq!(error(&component(&[("map-name", "mop")])), LoadError::Lacks("map"));
    let wrong = error(&component(&[("start-export", "(func $describe) (func (result $shape))")]));
    assert!(matches!(&wrong, LoadError::WrongType { function: "start", .. }), "{wrong}");
}

#[test]
fn nothing_can_be_imported_but_wasi() {
    for (import, named) in [
        (r#"(import "env:host/files@1.0.0" (instance (export "open" (func))))"#, "env:host/files@1.0.0"),
        (r#"(import "open" (func))"#, "open"),
        (r#"(import "wasi:cli/environment@0.3.0" (instance))"#, "wasi:cli/environment@0.3.0"),
        (r#"(import "wasi:cli/environment" (instance))"#, "wasi:cli/environment"),
        (r#"(import "code" (core module))"#, "code"),
    ] {
        assert_eq!(load(&[("imports", import)]).unwrap_err(), LoadError::Import(named.to_owned()));
    }
}

/// A program that calls a function of WASI, which has that type, and ignores what it says.
fn calling(interface: &str, function: &str, wasi_type: &str, core_type: &str, call: &str) -> Shipped {
    let imports = format!(
        r#"(import "{interface}" (instance $wasi (export "{function}" (func {wasi_type}))))
        (core module $memory-module (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
        (core instance $own (instantiate $memory-module))
        (core func $called (canon lower (func $wasi "{function}")
            (memory $own "memory") (realloc (func $own "realloc"))))
        (core instance $host (export "call" (func $called)))"#
    );
    let module = format!(r#"(import "host" "call" (func $call {core_type}))"#);
    load(&[
        ("imports", &imports),
        ("module", &module),
        ("with", r#"(with "host" (instance $host))"#),
        ("map", &format!("{call} {NO_BATCH}")),
    ])
    .unwrap()
}

#[test]
fn wasi_is_there_with_nothing_behind_it() {
    let variables = "(result (list (tuple string string)))";
    let environment = "wasi:cli/environment@0.2.6";
    let program =
        calling(environment, "get-environment", variables, "(param i32)", "(call $call (i32.const 0))");
    assert_eq!(run(&program, &LIMITS), Ok(Pairs::default()));
    let now = "(if (i64.ne (call $call) (i64.const 0)) (then unreachable))";
    let program = calling("wasi:clocks/monotonic-clock@0.2.0", "now", "(result u64)", "(result i64)", now);
    assert_eq!(run(&program, &LIMITS), Ok(Pairs::default()));

    // Each attempt has the same numbers.
    let number = "(i64.store (i32.const 8) (call $call))
        (i32.store (i32.const 0) (i32.const 8)) (i32.store (i32.const 4) (i32.const 16))
        (call $batch (i32.const 16) (i32.const 2)) return";
    let program =
        calling("wasi:random/random@0.2.3", "get-random-u64", "(result u64)", "(result i64)", number);
    let numbers = run(&program, &LIMITS).unwrap();
    assert_ne!(numbers.iter().next().unwrap().1, [0; 8]);
    assert_eq!(run(&program, &LIMITS), Ok(numbers));
}

#[test]
fn what_no_program_has_is_named() {
    let program = calling("wasi:sockets/instance-network@0.2.6", "instance-network", "", "", "(call $call)");
    let text = "a program has no wasi:sockets/instance-network instance-network".to_owned();
    assert_eq!(run(&program, &LIMITS), Err(ProgramError::Trapped(text)));
    let exit = calling(
        "wasi:cli/exit@0.2.6",
        "exit",
        r#"(param "status" (result))"#,
        "(param i32)",
        "(call $call (i32.const 0))",
    );
    assert_eq!(run(&exit, &LIMITS), Err(ProgramError::Failed("it exited".to_owned())));
    let bytes = r#"(param "len" u64) (result (list u8))"#;
    let much = "(call $call (i64.const 10000000000) (i32.const 0))";
    let program = calling("wasi:random/random@0.2.6", "get-random-bytes", bytes, "(param i64 i32)", much);
    assert!(matches!(run(&program, &LIMITS), Err(ProgramError::Trapped(_))));
}

#[test]
fn a_function_of_wasi_with_another_type_harms_nobody() {
    for (interface, function) in [
        ("wasi:cli/environment@0.2.6", "get-environment"),
        ("wasi:random/random@0.2.6", "get-random-bytes"),
        ("wasi:random/random@0.2.6", "get-random-u64"),
        ("wasi:cli/stderr@0.2.6", "get-stderr"),
        ("wasi:cli/exit@0.2.6", "exit"),
        ("wasi:clocks/wall-clock@0.2.6", "now"),
    ] {
        let program = calling(interface, function, "(result f32)", "(result f32)", "(drop (call $call))");
        assert!(
            matches!(run(&program, &LIMITS), Err(ProgramError::Trapped(_) | ProgramError::Failed(_))),
            "{function}"
        );
        let program = calling(interface, function, "", "", "(call $call)");
        let ran = run(&program, &LIMITS);
        assert!(!matches!(ran, Err(ProgramError::OutOfFuel { .. })), "{function}");
    }
}

#[test]
fn a_program_that_was_built_from_rust_counts_words() {
    let program = Runtime::new().unwrap().load(WORD_COUNT).unwrap();
    assert_eq!(program.shape(), Shape { combine: true, reduce: true });
    let mut running = program.start(&[], &Limits::default()).unwrap();
    let mut records = Records::default();
    for record in [&b"one two  two\t"[..], b"", b" one one\xff "] {
        records.push(record).unwrap();
    }
    let mut pairs = Pairs::default();
    running.map(&records, &mut pairs).unwrap();
    let one = 1u64.to_le_bytes();
    let words: Vec<(&[u8], &[u8])> = pairs.iter().collect();
    assert_eq!(words, [&b"one"[..], b"two", b"two", b"one", b"one\xff"].map(|word| (word, &one[..])));

    let mut groups = Groups::default();
    for (word, counts) in [(&b"one"[..], &[2, 40u64][..]), (b"none", &[]), (b"two", &[7])] {
        groups.push_key(word).unwrap();
        for count in counts {
            groups.push_value(&count.to_le_bytes()).unwrap();
        }
    }
    let mut combined = Pairs::default();
    running.combine(&groups, &mut combined).unwrap();
    let wanted = [(&b"one"[..], 42u64.to_le_bytes()), (b"none", [0; 8]), (b"two", 7u64.to_le_bytes())];
    assert!(combined.iter().eq(wanted.iter().map(|(word, count)| (*word, &count[..]))));
    let mut counts = Records::default();
    running.reduce(&groups, &mut counts).unwrap();
    assert_eq!(counts.iter().collect::<Vec<_>>(), [&b"one\t42"[..], b"none\t0", b"two\t7"]);

    // What it says is passed on, and so is what Rust says when it panics.
    let error = program.start(&[b"x".to_vec()], &LIMITS).err();
    assert_eq!(error, Some(ProgramError::Arguments("there are none".to_owned())));
    let mut fails = |counts: [&[u8]; 2]| {
        let mut groups = Groups::default();
        groups.push_key(b"word").unwrap();
        for count in counts {
            groups.push_value(count).unwrap();
        }
        running.combine(&groups, &mut combined).unwrap_err().to_string()
    };
    assert_eq!(fails([&one, b"seven"]), "the program failed: a count is no number");
    let panicked = fails([&one, &[0xff; 8]]);
    assert!(panicked.contains("attempt to add with overflow"), "{panicked}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// It is refused, or runs within its limits.
    #[test]
    fn a_damaged_component_harms_nobody(damage in prop::collection::vec((0..WORD_COUNT.len(), any::<u8>()), 1..4)) {
        let mut bytes = WORD_COUNT.to_vec();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        if let Ok(program) = Runtime::new().unwrap().load(&bytes) {
            let _ = run(&program, &LIMITS);
        }
    }
}
