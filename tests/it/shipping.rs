//! Shipped code on real nodes: against the same program of native functions, and programs that do what they should
//! not.

use std::time::Duration;

use futures::TryStreamExt;
use roundtable::client::{Job, JobError, ShipError};
use roundtable::compute::{Limits, ProgramError};
use roundtable::dataset::Format;
use roundtable::node::{Node, Visitor};
use roundtable::wire::{ProgramRef, Rpc, Site, WorkError};

use super::computing::{nodes, run, sorted_lines, text};
use super::datasets::{get, lines, put};
use super::sorting::roundtable;
use super::swarm::{machine, on, within};
use super::written::{NO_BATCH, component};

/// Made by `tests/data/README.md`.
const WORD_COUNT: &[u8] = include_bytes!("../data/word_count.wasm");

#[tokio::test(flavor = "multi_thread")]
async fn shipped_code_makes_what_native_functions_make() {
    let machine = machine();
    let nodes = nodes(3, || on(&machine)).await;
    let visitor = Visitor::builder().runtime_directory(machine.path().join("run"));
    let visitor = within("the visitor is linked", visitor.connect()).await.unwrap();
    let client = visitor.client();
    put(&client, "text", &text(5 << 20, 31)).await;
    let program = client.ship(WORD_COUNT.to_vec()).await.unwrap();
    // Once more, from elsewhere: it is there.
    assert_eq!(nodes[1].client().ship(WORD_COUNT.to_vec()).await.unwrap(), program);

    let native = run(client.job("word-count").input("text").output("native")).await;
    let shipped = |output: &str| client.job_of(program.clone()).input("text").output(output);
    // Two at the same time: each node compiles it once.
    let (summary, other) = tokio::join!(run(shipped("shipped")), run(shipped("other")));
    let native_counts = sorted_lines(&get(&client, "native").await.unwrap());
    assert_eq!(sorted_lines(&get(&client, "shipped").await.unwrap()), native_counts);
    assert_eq!(sorted_lines(&get(&client, "other").await.unwrap()), native_counts);
    for summary in [&summary, &other] {
        assert_eq!((summary.input_records, summary.records), (native.input_records, native.records));
        assert_eq!((summary.pairs, summary.combined_pairs), (native.pairs, native.combined_pairs));
        assert_eq!((summary.local, summary.again), (summary.tasks.0, 0));
        assert!(summary.without.is_empty());
    }
    let names: Vec<_> = client.datasets().map_ok(|(name, _)| name).try_collect().await.unwrap();
    assert_eq!(names.iter().filter(|name| name.starts_with(b".program/")).count(), 1);
    visitor.close().await;
}

/// What a job fails with whose program is that, after it was tried on both nodes.
async fn failure<R: Rpc>(job: Job<R>, limits: Limits) -> (Site, ProgramError, String) {
    let job = job.input("lines").output("output").limits(limits);
    match within("the job fails", job.run(|_| {})).await {
        Err(JobError::Task { attempts: 2, error: WorkError::Program { site, error } }) => {
            let text = WorkError::Program { site, error: error.clone() }.to_string();
            (site, error, text)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_does_what_it_should_not_fails_its_job_and_nothing_else() {
    let machine = machine();
    let nodes = nodes(2, || on(&machine)).await;
    let client = nodes[0].client();
    // From some place in the second block on, each line is one that the programs do not like.
    let good = lines(3 << 19, 32);
    let bad = Format::Lines.records(&good).flat_map(|line| [b"!", line, b"\n"].concat());
    let data: Vec<u8> = good.iter().copied().chain(bad).collect();
    put(&client, "lines", &data).await;
    let limits = Limits { fuel: 200_000_000, memory_bytes: 16 << 20, time_ms: 60_000, output_bytes: 1 << 30 };
    let out_of_time = Limits { fuel: u64::MAX, time_ms: 100, ..limits };
    let endless = "(loop $again (br $again))";
    let hog = "(loop $again (drop (memory.grow (i32.const 1))) (br $again))";
    let nonsense =
        "(i32.store (i32.const 0) (i32.const 9)) (return (call $batch (i32.const 8) (i32.const 1)))";
    let cases = [
        (endless, limits, "fuel of 200000000"),
        (endless, out_of_time, "longer than 100 ms"),
        (hog, limits, "more memory than 16777216 bytes"),
        ("unreachable", limits, "the program trapped"),
        ("(drop (i32.load (i32.const -8)))", limits, "the program trapped"),
        (nonsense, limits, "the program's output makes no sense"),
    ];
    for (code, limits, said) in cases {
        // 33 is the exclamation mark.
        let map =
            format!("(if (i32.eq (i32.load8_u (local.get 0)) (i32.const 33)) (then {code})) {NO_BATCH}");
        let program = client.ship(component(&[("map", &map)])).await.unwrap();
        let (site, error, text) = failure(client.job_of(program), limits).await;
        assert!(matches!(site, Site::Block(1..=3)), "{site}: {error}");
        assert!(text.contains("block") && text.contains(said), "{text}");
    }
    // What it starts with is no block's fault.
    let start = format!("{endless} unreachable");
    let program = client.ship(component(&[("start", &start)])).await.unwrap();
    let (site, error, _) = failure(client.job_of(program), limits).await;
    assert_eq!((site, error), (Site::Start, ProgramError::OutOfFuel { limit: limits.fuel }));

    // The nodes are unharmed, and nothing is left.
    assert!(client.dataset("output").info().await.unwrap().is_none());
    for node in &nodes {
        works(node).await;
    }
    let beyond = Limits { memory_bytes: u64::MAX, ..limits };
    let error = client.job("count").input("lines").limits(beyond).collect(|_| {}).await.unwrap_err();
    assert_eq!(error, JobError::Limits);
}

async fn works(node: &Node) {
    let client = node.client();
    client.put(node.id().to_string(), "value").await.unwrap();
    let program = client.ship(WORD_COUNT.to_vec()).await.unwrap();
    let (records, _) =
        within("the job", client.job_of(program).input("lines").collect(|_| {})).await.unwrap();
    assert!(!records.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_program_is_run_nowhere() {
    let machine = machine();
    let nodes = nodes(2, || on(&machine)).await;
    let client = nodes[0].client();
    put(&client, "lines", b"one\ntwo\n").await;
    let fails = async |program: ProgramRef| {
        let job = client.job_of(program).input("lines").output("output");
        within("the job fails", job.run(|_| {})).await.unwrap_err()
    };
    // Whoever ships it is told at once.
    let error = client.ship(b"no component".to_vec()).await.unwrap_err();
    assert!(matches!(error, ShipError::Program(ProgramError::Component(_))), "{error}");
    let imports = r#"(import "host:files/all@1.0.0" (instance (export "open" (func))))"#;
    let imports = component(&[("imports", imports)]);
    let error = client.ship(imports.clone()).await.unwrap_err().to_string();
    assert!(error.contains("it imports host:files/all@1.0.0"), "{error}");
    assert_eq!(client.datasets().try_collect::<Vec<_>>().await.unwrap().len(), 1);

    // Nodes find it out for themselves.
    let (sha256, name) = put_program(&client, &imports, None).await;
    let error = fails(ProgramRef::Shipped { sha256 }).await;
    assert!(matches!(&error, JobError::Program(ProgramError::Component(_))), "{error}");
    assert!(error.to_string().contains("it imports host:files/all@1.0.0"), "{error}");
    // Something else under a program's name, and then what it should be.
    assert!(client.dataset(name).remove().await.unwrap());
    let sound = component(&[]);
    let other = put_program(&client, WORD_COUNT, Some(&sound)).await;
    let error = fails(ProgramRef::Shipped { sha256: other.0 }).await;
    assert!(error.to_string().contains("its bytes are not those of its name"), "{error}");
    let error = fails(ProgramRef::Shipped { sha256: [7; 32] }).await;
    assert!(matches!(error, JobError::NoProgram { .. }), "{error}");
}

/// Puts a component into the swarm as [`Client::ship`](roundtable::client::Client::ship) does, but unchecked, and
/// under the name of another one if that is given.
async fn put_program<R: Rpc>(
    client: &roundtable::client::Client<R>,
    component: &[u8],
    named: Option<&[u8]>,
) -> ([u8; 32], String) {
    use sha2::{Digest, Sha256};
    let sha256: [u8; 32] = Sha256::digest(named.unwrap_or(component)).into();
    let name = sha256.iter().fold(".program/".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let mut writer = client.dataset(name.as_str()).create(Format::Records).await.unwrap();
    writer.write_record(component).await.unwrap();
    writer.finish().await.unwrap();
    (sha256, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn shipped_code_as_it_is_typed() {
    let machine = machine();
    let node = super::swarm::start(on(&machine)).await;
    let typed = |line: &str| roundtable(&machine, &line.split(' ').collect::<Vec<_>>());
    let write = |name: &str, bytes: &[u8]| std::fs::write(machine.path().join(name), bytes).unwrap();
    write("in.txt", b"a rose is a rose\nis a rose\n");
    write("count.wasm", WORD_COUNT);
    write("loop", &component(&[("map", "(loop $again (br $again)) unreachable")]));
    write("bad.wasm", b"(component)");
    let (code, counts) = typed("run count.wasm --input in.txt");
    assert_eq!(
        (code, sorted_lines(counts.as_bytes())),
        (0, vec!["a\t3".into(), "is\t2".into(), "rose\t3".into()])
    );
    assert_eq!(typed("run ./loop --input in.txt --task-fuel 1000000").0, 1);
    assert_eq!(typed("run ./loop --input in.txt --task-fuel 1000000000000 --task-time 20ms").0, 1);
    assert_eq!(typed("run ./loop --input in.txt --task-memory 2GiB").0, 2);
    assert_eq!(typed("run bad.wasm --input in.txt").0, 1);
    assert_eq!(typed("run none.wasm --input in.txt").0, 1);
    let (code, counts) = typed("run count.wasm --input in.txt");
    assert_eq!((code, counts.lines().count()), (0, 3));
    // The two programs stay, and nothing else.
    let left: Vec<_> = node.client().datasets().map_ok(|(name, _)| name).try_collect().await.unwrap();
    assert_eq!(left.iter().filter(|name| name.starts_with(b".program/")).count(), left.len());
    assert_eq!(left.len(), 2);
    tokio::time::timeout(Duration::from_secs(5), node.client().get("key")).await.unwrap().unwrap();
}
