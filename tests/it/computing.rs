//! Jobs on real nodes, against the plainest way to compute the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use roundtable::client::{DatasetError, Job, JobError, JobStage, JobSummary};
use roundtable::compute::{Limits, Program, ProgramError, sum};
use roundtable::dataset::Format;
use roundtable::node::{Node, NodeBuilder, StartError, Visitor};
use roundtable::wire::{Rpc, Site, WorkError};

use super::datasets::{get, lines, put};
use super::sorting::{fits_again_and_again, roundtable};
use super::swarm::{machine, on, settled, start, within};

/// Time between two looks at something that is to become so.
const LOOK: Duration = Duration::from_millis(20);

pub(super) async fn nodes(count: usize, builder: impl Fn() -> NodeBuilder) -> Vec<Node> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(start(builder().replace_after(Duration::from_secs(1))).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), count.min(3)).await;
    nodes
}

pub(super) async fn run<R: Rpc>(job: Job<R>) -> JobSummary {
    within("the job", job.run(|_| {})).await.unwrap()
}

async fn collect<R: Rpc>(job: Job<R>) -> Vec<String> {
    let (records, _) = within("the job", job.collect(|_| {})).await.unwrap();
    let mut records: Vec<String> =
        records.into_iter().map(|record| String::from_utf8(record).unwrap()).collect();
    records.sort();
    records
}

/// Words as `lines` makes them, and spaces instead of some letters.
pub(super) fn text(bytes: usize, seed: u64) -> Vec<u8> {
    lines(bytes, seed).into_iter().map(|byte| if byte > b't' { b' ' } else { byte }).collect()
}

/// `word<tab>count`, in the order of bytes.
fn counted(text: &[u8]) -> Vec<String> {
    let mut counts: BTreeMap<&[u8], u64> = BTreeMap::new();
    for word in text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
        *counts.entry(word).or_default() += 1;
    }
    let mut records: Vec<String> = counts
        .into_iter()
        .map(|(word, count)| format!("{}\t{count}", String::from_utf8_lossy(word)))
        .collect();
    records.sort();
    records
}

pub(super) fn sorted_lines(data: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> =
        Format::Lines.records(data).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_made_programs_make_what_one_process_would() {
    let machine = machine();
    let _nodes = nodes(3, || on(&machine)).await;
    let visitor = Visitor::builder().runtime_directory(machine.path().join("run"));
    let visitor = within("the visitor is linked", visitor.connect()).await.unwrap();
    let client = visitor.client();
    let data = text(5 << 20, 21);
    put(&client, "text", &data).await;

    let summary = run(client.job("word-count").input("text").output("counts")).await;
    let counts = within("get", get(&client, "counts")).await.unwrap();
    let wanted = counted(&data);
    assert_eq!(sorted_lines(&counts), wanted);
    let records = Format::Lines.records(&data).count() as u64;
    assert_eq!((summary.input_records, summary.records), (records, wanted.len() as u64));
    assert_eq!(summary.output.unwrap().records, wanted.len() as u64);
    // All blocks are everywhere, so each task is where its blocks are.
    assert_eq!((summary.local, summary.fetched_blocks), (summary.tasks.0, 0));
    assert!(summary.combined_pairs < summary.pairs, "{summary:?}");

    assert_eq!(collect(client.job("count@1").input("text")).await, [records.to_string()]);
    let (top, _) =
        client.job("top").argument("3").argument("2").input("counts").collect(|_| {}).await.unwrap();
    let mut most: Vec<(u64, &str)> = wanted
        .iter()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(word, count)| (count.parse().unwrap(), word))
        .collect();
    most.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(other.1)));
    let most: Vec<Vec<u8>> =
        most[..3].iter().map(|(count, word)| format!("{word}\t{count}").into_bytes()).collect();
    assert_eq!(top, most);

    // In the order of the input.
    run(client.job("grep").argument("qq").input("text").output("found")).await;
    let found: Vec<u8> = Format::Lines
        .records(&data)
        .filter(|line| line.windows(2).any(|pair| pair == b"qq"))
        .flat_map(|line| [line, b"\n"].concat())
        .collect();
    assert_eq!(within("get", get(&client, "found")).await.unwrap(), found);

    put(&client, "empty", b"").await;
    let summary = run(client.job("word-count").input("empty").output("no words")).await;
    assert_eq!((summary.records, summary.tasks.0), (0, 0));
    assert_eq!(collect(client.job("count").input("empty")).await, ["0"]);
    assert_eq!(collect(client.job("count").keys("none/")).await, ["0"]);
    visitor.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_an_input_as_well() {
    let machine = machine();
    let nodes = nodes(3, || on(&machine)).await;
    let client = nodes[1].client();
    for number in 0..300 {
        client.put(format!("user/{number}"), format!("city{}", number % 7)).await.unwrap();
        client.put(format!("other/{number}"), "x").await.unwrap();
    }
    let by_city: Vec<String> = (0..7).map(|city| format!("city{city}\t{}", (300 - city + 6) / 7)).collect();
    let job = client.job("frequency").argument("2").keys("user/");
    assert_eq!(collect(job).await, by_city);
    assert_eq!(collect(client.job("count").keys("")).await, ["600"]);
    let job = client.job("grep").argument("city3").keys("user/1").output("found");
    let summary = run(job).await;
    assert_eq!(summary.input_records, 111);
    let mut wanted: Vec<String> = (0..300)
        .filter(|number| number % 7 == 3 && number.to_string().starts_with('1'))
        .map(|number| format!("user/{number}\tcity3"))
        .collect();
    wanted.sort();
    assert_eq!(sorted_lines(&get(&client, "found").await.unwrap()), wanted);
}

/// How long lines are, with all that a program of functions can have.
fn lengths(version: u32) -> Program {
    Program::new("lengths", version)
        .map(|line, out| {
            if out.argument(0).is_none_or(|text| line.starts_with(text)) {
                out.pair(line.len().to_string().as_bytes(), &1u64.to_le_bytes());
            }
        })
        .combine(|_, values, value| value.extend_from_slice(&sum(values).to_le_bytes()))
        .reduce(|length, values, out| {
            out.record(format!("{} {}", String::from_utf8_lossy(length), sum(values)).as_bytes());
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_where_it_is_registered() {
    let machine = machine();
    let mut nodes = nodes(2, || on(&machine).program(lengths(1)).program(lengths(2))).await;
    let client = nodes[0].client();
    put(&client, "lines", b"one\ntwo\nthree\nfour\n").await;
    assert_eq!(collect(client.job("lengths").input("lines")).await, ["3 2", "4 1", "5 1"]);
    let with_argument = client.job("lengths@1").argument("t").input("lines");
    assert_eq!(collect(with_argument).await, ["3 1", "5 1"]);

    // One without it joins: the others do it. Nobody has the third version.
    nodes.push(start(on(&machine)).await);
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let seen = async {
        // Until it serves the swarm it cannot say what it has.
        loop {
            let (records, summary) = client.job("lengths").input("lines").collect(|_| {}).await.unwrap();
            assert_eq!(records.len(), 3);
            if !summary.without.is_empty() {
                break summary.without;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    assert_eq!(within("all members have said what they have", seen).await, [nodes[2].id()]);
    let error = client.job("lengths@3").input("lines").collect(|_| {}).await.unwrap_err();
    let JobError::NoProgram { program, nodes: lacking } = &error else { panic!("{error}") };
    assert_eq!((program.as_str(), lacking.len()), ("lengths@3", 3));
    assert!(error.to_string().contains(&nodes[2].id().short()), "{error}");
    // Another newest version somewhere: whoever asks must say which.
    nodes.push(start(on(&machine).program(lengths(3))).await);
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let differ = async {
        loop {
            match client.job("lengths").input("lines").collect(|_| {}).await {
                Ok(_) => tokio::time::sleep(LOOK).await,
                Err(error) => break error,
            }
        }
    };
    let error = within("all members have said what they have", differ).await;
    assert!(matches!(error, JobError::Versions { .. }), "{error}");
    assert_eq!(collect(client.job("lengths@2").input("lines")).await.len(), 3);

    let twice = on(&machine).program(lengths(1)).program(lengths(1)).start().await;
    assert!(matches!(twice, Err(StartError::Programs(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_does_wrong_is_said_and_harms_nobody() {
    let machine = machine();
    let bad = || {
        let panics = Program::new("panics", 1).map(|line, out| {
            assert!(line != b"bad", "that is no line");
            out.record(line);
        });
        let floods = Program::new("floods", 1).map(|line, out| (0..100).for_each(|_| out.record(line)));
        let slow = Program::new("slow", 1).map(|_, _| std::thread::sleep(Duration::from_micros(100)));
        let breaks = Program::new("breaks", 1).map(|_, out| out.record(b"two\nlines"));
        [panics, floods, slow, breaks].into_iter().fold(on(&machine), NodeBuilder::program)
    };
    let nodes = nodes(2, bad).await;
    let client = nodes[0].client();
    let mut data = lines(3 << 20, 22);
    data.extend_from_slice(b"bad\n");
    put(&client, "lines", &data).await;
    let blocks = client.dataset("lines").info().await.unwrap().unwrap().summary.blocks;
    let fails = async |job: Job<_>| match within("fails", job.output("output").run(|_| {})).await {
        Err(JobError::Task { attempts: 2, error: WorkError::Program { site, error } }) => (site, error),
        other => panic!("{other:?}"),
    };

    let (site, error) = fails(client.job("panics").input("lines")).await;
    assert_eq!(site, Site::Block(blocks - 1));
    assert_eq!(error, ProgramError::failed("it panicked: that is no line"));
    let limits = Limits { output_bytes: 1 << 20, ..Limits::default() };
    let (_, error) = fails(client.job("floods").input("lines").limits(limits)).await;
    assert_eq!(error, ProgramError::TooMuchOutput { limit: 1 << 20 });
    let limits = Limits { time_ms: 50, ..Limits::default() };
    let (_, error) = fails(client.job("slow").input("lines").limits(limits)).await;
    assert_eq!(error, ProgramError::OutOfTime { limit_ms: 50 });
    let (site, error) = fails(client.job("breaks").input("lines")).await;
    assert!(
        matches!(site, Site::Range(_)) && error.to_string().contains("the format lines"),
        "{site} {error}"
    );
    let (site, _) = fails(client.job("top").argument("many").input("lines")).await;
    assert_eq!(site, Site::Start);
    let flood = client.job("floods").input("lines").collect(|_| {}).await.unwrap_err();
    assert_eq!(flood, JobError::Task { attempts: 2, error: WorkError::TooLong });

    // Nothing is left of it, and the nodes go on.
    assert!(client.dataset("output").info().await.unwrap().is_none());
    assert_eq!(collect(client.job("count").input("lines")).await.len(), 1);
    let errors = [
        (client.job("count").input("none").output("x"), DatasetError::NotFound),
        (client.job("count").input("lines").output("lines"), DatasetError::Exists),
    ];
    for (job, error) in errors {
        assert_eq!(job.run(|_| {}).await.unwrap_err(), JobError::Dataset(error));
    }
    assert!(matches!(client.job("a b").input("lines").collect(|_| {}).await, Err(JobError::Name(_))));
    assert_eq!(client.job("count").collect(|_| {}).await.unwrap_err(), JobError::NoInput);
    assert_eq!(client.job("count").input("lines").run(|_| {}).await.unwrap_err(), JobError::NoOutput);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_costs_only_its_own_work() {
    for stage in [JobStage::Mapping, JobStage::Reducing] {
        let machine = machine();
        let mut nodes = nodes(4, || on(&machine)).await;
        let client = nodes[0].client();
        let data = text(12 << 20, 23);
        within("put", put(&client, "text", &data)).await;
        let dies = nodes.pop().unwrap();
        let reached = AtomicBool::new(false);
        let job = client.job("word-count").input("text").output("counts");
        let running = job.run(|progress| {
            // Something of the stage is done, and something is not.
            let (done, of) = if stage == JobStage::Mapping { progress.tasks } else { progress.ranges };
            if progress.stage == stage && done > 0 && done < of {
                reached.store(true, Ordering::Relaxed);
            }
        });
        let killing = async {
            while !reached.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(dies);
        };
        let (summary, ()) = within("the job", async { tokio::join!(running, killing) }).await;
        let summary = summary.unwrap();
        assert!(sorted_lines(&get(&client, "counts").await.unwrap()) == counted(&data), "{stage:?}");
        assert!(summary.again < (summary.tasks.0 + summary.tasks.1) as u64, "{summary:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_stuck_is_not_waited_for() {
    let machine = machine();
    // One node does not come to an end with its task before the job is over.
    let over = Arc::new(AtomicBool::new(false));
    let waits = Arc::clone(&over);
    let stuck = Program::new("echo", 1).map(move |line, out| {
        while !waits.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        out.record(line);
    });
    let quick = Program::new("echo", 1).map(|line, out| out.record(line));
    let mut nodes = Vec::new();
    for program in [quick.clone(), quick, stuck] {
        nodes.push(start(on(&machine).program(program)).await);
    }
    settled(&nodes.iter().collect::<Vec<_>>(), 3).await;
    let client = nodes[0].client();
    let data = lines(4 << 20, 25);
    put(&client, "lines", &data).await;
    let summary = run(client.job("echo").input("lines").output("same")).await;
    over.store(true, Ordering::Relaxed);
    assert!(summary.second_attempts > 0 && summary.again == 0, "{summary:?}");
    assert!(get(&client, "same").await.unwrap() == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_of_most_records_is_no_more_than_its_share() {
    let machine = machine();
    let nodes = nodes(3, || on(&machine)).await;
    let client = nodes[0].client();
    let data: Vec<u8> =
        (0..400_000u32)
            .flat_map(|row| {
                if row % 10 > 0 { b"all of them\n".to_vec() } else { format!("only {row}\n").into_bytes() }
            })
            .collect();
    put(&client, "rows", &data).await;
    let summary = run(client.job("word-count").input("rows").output("counts")).await;
    assert_eq!(sorted_lines(&get(&client, "counts").await.unwrap()), counted(&data));
    // Of the frequent words each task has one pair left.
    assert!(summary.combined_pairs <= 40_000 + 4 * summary.tasks.0 as u64, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_broken_off_leaves_nothing() {
    let machine = machine();
    let begun = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&begun);
    let slow = Program::new("slow", 1).map(move |line, out| {
        tells.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(50));
        out.record(line);
    });
    let node = start(on(&machine).block_budget(64 << 20).program(slow)).await;
    let client = node.client();
    let data = lines(20 << 20, 24);
    within("put", put(&client, "lines", &data)).await;
    let job = client.job("slow").input("lines").output("copied");
    let begun = async {
        while !begun.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        result = job.run(|_| {}) => panic!("it was to be broken off: {result:?}"),
        () = begun => {}
    }
    job.cancel().await;
    // What it took of the room is given back, and so is the processor: the same fits again and again.
    fits_again_and_again(&client, &data).await;
    assert_eq!(collect(client.job("count").input("lines")).await.len(), 1);
    let left: Vec<_> = client.datasets().try_collect().await.unwrap();
    assert_eq!(left.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_as_they_are_typed() {
    let machine = machine();
    let panics = Program::new("panics", 3).map(|_, _| panic!("as it must"));
    let node = start(on(&machine).program(panics)).await;
    let file = |name: &str| machine.path().join(name);
    std::fs::write(file("in.txt"), "a rose is a rose\nis a rose\n").unwrap();
    let typed = |line: &str| roundtable(&machine, &line.split(' ').collect::<Vec<_>>());
    assert_eq!(typed("data put text in.txt").0, 0);
    let counted = "a\t3\nis\t2\nrose\t3\n";
    let lines = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines.concat()
    };
    let (code, counts) = typed("run word-count --input text");
    assert_eq!((code, lines(&counts)), (0, lines(counted)));
    // To a dataset, and from it; from a file, and to one.
    let (code, summary) = typed("run word-count --input text --output counts --format json");
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((code, &summary["records"], &summary["local"]), (0, &3.into(), &summary["tasks"]));
    assert_eq!(typed("run top --arg 2 --arg 2 --input counts").1, "a\t3\nrose\t3\n");
    assert_eq!(typed("run grep --arg a --input in.txt -o out.txt").0, 0);
    assert_eq!(std::fs::read_to_string(file("out.txt")).unwrap(), "a rose is a rose\nis a rose\n");
    node.client().put("city/rome", "old").await.unwrap();
    assert_eq!(typed("run distinct --keys city/"), (0, "city/rome\told\n".to_owned()));
    // What is wrong, and that nothing was made of it.
    assert_eq!(typed("run none --input text").0, 3);
    assert_eq!(typed("run word-count@2 --input text").0, 3);
    assert_eq!(typed("run count --input none").0, 3);
    assert_eq!(typed("run count --input text --output counts").0, 4);
    assert_eq!(typed("run panics@3 --input text --output other").0, 1);
    assert_eq!(typed("run grep --input text --output other").0, 1);
    assert_eq!(typed("run count").0, 2);
    assert_eq!(typed("run @ --input text").0, 2);
    let left: Vec<_> = node.client().datasets().try_collect().await.unwrap();
    assert_eq!(left.len(), 2);
}
