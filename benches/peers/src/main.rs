//! Measures Roundtable beside what its users would otherwise pick; `benches/peers/run` says how.

mod etcd;
mod failover;
mod load;
mod nats;
mod peer;
mod redis_cluster;
mod redlock;
mod resp;
mod roundtable;
mod scaling;
mod servers;
mod setup;
mod table;
mod zookeeper;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use load::{Op, Task};
use peer::Peer;
use setup::{Mode, Setup};
use table::Results;

/// Idle CPU is little and its clock coarse: it is looked at for this many times as long as a load is measured.
const IDLE_FACTOR: u32 = 4;

// The servers' lives hang on the thread that starts them, which must be the one that lives longest: the main thread.
#[tokio::main]
async fn main() -> ExitCode {
    let setup = Setup::parse();
    let outcome = async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = run(&setup) => outcome,
            // What runs is dropped, and so are the servers.
            _ = terminate.recv() => bail!("ended from outside"),
        }
    };
    match outcome.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(setup: &Setup) -> Result<()> {
    if let Some(directory) = &setup.scaling {
        let curves = scaling::measure(setup).await?;
        scaling::draw(&curves, directory)?;
        print!("{}", scaling::table(&curves));
        return Ok(());
    }
    let mut results = Results::default();
    let mut report = setup.describe()?;
    report.push_str(" CPU in seconds per 100,000 operations.\n");
    for mode in setup.modes() {
        let peers = setup.peers(mode)?;
        for round in 1..=setup.rounds(mode) {
            for peer in &peers {
                eprintln!("{mode:?}, round {round} of {}: {}", setup.rounds(mode), peer.label());
                // One that fails leaves dashes, and the others are still worth having.
                if let Err(error) = measure(setup, mode, *peer, &mut results).await {
                    eprintln!("  failed: {error:#}");
                }
            }
        }
        if mode == Mode::Kv && !setup.no_fsyncs {
            for peer in peers.iter().filter(|peer| peer.durable()) {
                eprintln!("counting fsyncs: {}", peer.label());
                if let Err(error) = count_fsyncs(setup, *peer, &mut results).await {
                    eprintln!("  failed: {error:#}");
                }
            }
        }
        report.push('\n');
        report.push_str(&match mode {
            Mode::Kv => results.kv(&peers, &setup.clients),
            Mode::Locks => results.locks(&peers, setup.lock_clients),
            Mode::Failover => results.failover(&peers),
            Mode::Idle => results.idle(&peers),
        });
        report.push('\n');
        report.push_str(&table::promises(&peers, mode));
    }
    if let Some(file) = &setup.raw {
        let json = serde_json::to_vec_pretty(&results.raw())?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    print!("{report}");
    Ok(())
}

/// One round of one peer, from its start to its end.
async fn measure(setup: &Setup, mode: Mode, peer: Peer, results: &mut Results) -> Result<()> {
    let mut running = peer.start(setup, None).await?;
    let plan: Vec<(Op, usize)> = match mode {
        Mode::Kv => {
            setup.clients.iter().flat_map(|clients| [(Op::Put, *clients), (Op::Get, *clients)]).collect()
        }
        Mode::Locks => vec![(Op::LockDistinct, setup.lock_clients), (Op::LockContended, setup.lock_clients)],
        Mode::Failover => {
            let outage = running.fail().await?;
            eprintln!("  {outage:?}");
            results.add_outage(peer, outage);
            return Ok(());
        }
        Mode::Idle => {
            let idle = running.idle(IDLE_FACTOR * setup.duration(), setup.idle_keys()).await?;
            eprintln!("  {idle:?}");
            results.add_idle(peer, idle);
            return Ok(());
        }
    };
    for (op, clients) in plan {
        let sample = running.measure(Task { op, clients, duration: setup.duration() }).await?;
        eprintln!("  {op:?}, {clients} clients: {} in {:.1} s", sample.operations, sample.seconds);
        results.add(peer, op, clients, sample);
    }
    Ok(())
}

/// The separate pass in which fsyncs are counted; its rates are not shown, since counting slows it down.
async fn count_fsyncs(setup: &Setup, peer: Peer, results: &mut Results) -> Result<()> {
    let mut running = peer.start(setup, Some(&setup.strace)).await?;
    for clients in &setup.clients {
        let task = Task { op: Op::Put, clients: *clients, duration: setup.duration() };
        let sample = running.measure(task).await?;
        eprintln!("  {clients} clients: {:?} fsyncs, {} puts", sample.fsyncs, sample.operations);
        results.add_traced(peer, *clients, sample);
    }
    Ok(())
}
