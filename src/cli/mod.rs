//! The command line: text -> clap's arguments -> typed arguments -> one command -> exit code.
//!
//! `args` is the only place that knows clap. Each command, or family of commands, has a file with its typed
//! arguments and what it does; `render` writes answers, `exit` says what went wrong, in one line that tells
//! whether anything was changed and what to do.

mod args;
mod backup;
mod bench;
mod chat;
mod connect;
mod data;
mod exit;
mod inspect;
mod kv;
mod leave;
mod lock;
mod partial;
mod place;
mod recover;
mod render;
mod run;
mod sort;
mod units;
mod up;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use connect::Target;
use exit::{Code, Failure};
use render::{Format, Output};

/// How long the tasks of a finished command may take to end: a blocked read of standard input never does.
const SHUTDOWN: Duration = Duration::from_millis(200);

/// A command line, understood.
#[derive(Debug)]
struct Invocation {
    target: Target,
    format: Format,
    threads: Option<usize>,
    command: Command,
}

/// What to do.
#[derive(Debug)]
enum Command {
    Up(up::Up),
    Put(kv::Put),
    Get(kv::Get),
    Del(kv::Del),
    Cas(kv::Cas),
    Incr(kv::Incr),
    Expire(kv::Expire),
    Scan(kv::Scan),
    Watch(kv::Watch),
    Members,
    Ring,
    Where(inspect::Where),
    Status(inspect::Status),
    Ticket,
    Leave(leave::Leave),
    Recover(recover::Recover),
    Backup(backup::Backup),
    Restore(backup::Restore),
    DataPut(data::Put),
    DataGet(data::Get),
    DataList,
    DataRemove(data::Remove),
    Sort(sort::Sort),
    Run(run::Run),
    Lock(lock::Run),
    Locks(lock::List),
    Bench(bench::Bench),
    Chat(chat::Chat),
    Version,
}

/// Runs the command line of this process and says how it went.
///
/// Exit codes: 0 done, 1 other failure, 2 wrong usage, 3 not found, 4 conflict, 5 no quorum, 6 no node or swarm
/// could be reached, 7 outcome unknown, 8 lock not acquired, 9 lock lost while the command ran, 130
/// ended by a second interrupt. `lock` and `elect` otherwise pass on the exit code of their command.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let invocation = match args::parse(args) {
        Ok(invocation) => invocation,
        Err(rejected) => {
            return if rejected.print() { Code::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let format = invocation.format;
    let threads = invocation.threads.unwrap_or_else(default_threads);
    let runtime = match runtime(threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            return Failure::other(format!("the system gives no threads: {error}")).report(format);
        }
    };
    let outcome = runtime.block_on(dispatch(invocation));
    runtime.shutdown_timeout(SHUTDOWN);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(format),
    }
}

/// One for every two processors. What a node does for a request is little and done in turn, so a second thread mostly
/// costs the waking of it: three nodes and their client on two processors write 1.4 times as fast with one each.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

/// A single thread has nobody to share its tasks with: a scheduler that knows saves 5 % of what an operation costs, and
/// a system call each time that a timer of an idle node rings.
fn runtime(threads: usize) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).enable_all().build()
}

async fn dispatch(invocation: Invocation) -> Result<(), Failure> {
    let Invocation { target, format, command, .. } = invocation;
    let output = Output::stdout(format);
    match command {
        Command::Up(up) => up.run(target, output).await,
        Command::Put(put) => put.run(&target, output).await,
        Command::Get(get) => get.run(&target, output).await,
        Command::Del(del) => del.run(&target, output).await,
        Command::Cas(cas) => cas.run(&target, output).await,
        Command::Incr(incr) => incr.run(&target, output).await,
        Command::Expire(expire) => expire.run(&target, output).await,
        Command::Scan(scan) => scan.run(&target, output).await,
        Command::Watch(watch) => watch.run(&target, output).await,
        Command::Members => inspect::members(&target, output).await,
        Command::Ring => inspect::ring(&target, output).await,
        Command::Where(place) => place.run(&target, output).await,
        Command::Status(status) => status.run(&target, output).await,
        Command::Ticket => inspect::ticket(&target, output).await,
        Command::Leave(leave) => leave.run(&target, output).await,
        Command::Recover(recover) => recover.run(&target, output).await,
        Command::Backup(backup) => backup.run(&target, output).await,
        Command::Restore(restore) => restore.run(&target, output).await,
        Command::DataPut(put) => put.run(&target, output).await,
        Command::DataGet(get) => get.run(&target, output).await,
        Command::DataList => data::list(&target, output).await,
        Command::DataRemove(remove) => remove.run(&target, output).await,
        Command::Sort(sort) => sort.run(&target, output).await,
        Command::Run(run) => run.run(&target, output).await,
        Command::Lock(lock) => lock.run(&target).await,
        Command::Locks(list) => list.run(&target, output).await,
        Command::Bench(bench) => bench.run(&target, output).await,
        Command::Chat(chat) => chat.run(target, output).await,
        Command::Version => version(output),
    }
}

fn version(output: Output) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let protocol = crate::wire::PROTOCOL_VERSION;
    output.answer(
        || format!("roundtable {version}, protocol {protocol}"),
        || json!({"version": version, "protocol": protocol}),
    )?;
    Ok(())
}
