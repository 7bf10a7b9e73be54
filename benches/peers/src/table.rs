//! Medians, and the tables of them as markdown. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::failover::Outage;
use crate::load::{Op, Sample};
use crate::peer::{Idle, Peer};
use crate::setup::Mode;

/// In which unit CPU time is told.
const CPU_PER_OPERATIONS: f64 = 100_000.0;

/// All samples of a run.
#[derive(Debug, Default)]
pub(crate) struct Results {
    samples: BTreeMap<(Peer, Op, usize), Vec<Sample>>,
    /// Of the separate pass that counts fsyncs.
    traced: BTreeMap<(Peer, usize), Sample>,
    outages: BTreeMap<Peer, Vec<Outage>>,
    idle: BTreeMap<Peer, Idle>,
}

impl Results {
    pub(crate) fn add(&mut self, peer: Peer, op: Op, clients: usize, sample: Sample) {
        self.samples.entry((peer, op, clients)).or_default().push(sample);
    }

    pub(crate) fn add_traced(&mut self, peer: Peer, clients: usize, sample: Sample) {
        self.traced.insert((peer, clients), sample);
    }

    pub(crate) fn add_outage(&mut self, peer: Peer, outage: Outage) {
        self.outages.entry(peer).or_default().push(outage);
    }

    pub(crate) fn add_idle(&mut self, peer: Peer, idle: Idle) {
        self.idle.insert(peer, idle);
    }

    /// Every single sample.
    pub(crate) fn raw(&self) -> serde_json::Value {
        let samples = self.samples.iter().map(|((peer, op, clients), samples)| {
            serde_json::json!({"peer": peer, "op": op, "clients": clients, "samples": samples})
        });
        let traced = self.traced.iter().map(|((peer, clients), sample)| {
            serde_json::json!({"peer": peer, "op": Op::Put, "clients": clients, "traced": sample})
        });
        let outages =
            self.outages.iter().map(|(peer, outages)| serde_json::json!({"peer": peer, "outages": outages}));
        let idle = self.idle.iter().map(|(peer, idle)| serde_json::json!({"peer": peer, "idle": idle}));
        samples.chain(traced).chain(outages).chain(idle).collect()
    }

    /// The table of kv mode.
    pub(crate) fn kv(&self, peers: &[Peer], clients: &[usize]) -> String {
        let mut table = "| clients | | put/s | p50 ms | p99 ms | server CPU | client CPU | fsyncs per put \
                         | get/s | p50 ms | p99 ms | server CPU | client CPU |\n\
                         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for clients in clients {
            for peer in peers {
                let fsyncs = self
                    .traced
                    .get(&(*peer, *clients))
                    .and_then(|sample| Some(format!("{:.2}", ratio(sample.fsyncs?, sample.operations))));
                let _ = writeln!(
                    table,
                    "| {clients} | {} | {} | {} | {} |",
                    peer.label(),
                    self.cells(*peer, Op::Put, *clients),
                    fsyncs.unwrap_or_else(|| "-".to_owned()),
                    self.cells(*peer, Op::Get, *clients),
                );
            }
        }
        table
    }

    /// The table of locks mode.
    pub(crate) fn locks(&self, peers: &[Peer], clients: usize) -> String {
        let mut table = "| locks | | cycles/s | p50 ms | p99 ms | server CPU | client CPU | worst wait ms \
                         | fewest to most cycles of a client |\n|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
        for (op, what) in [(Op::LockDistinct, "distinct"), (Op::LockContended, "one")] {
            for peer in peers {
                let samples = self.of(*peer, op, clients);
                let fairness = match samples {
                    [] => "- | -".to_owned(),
                    _ => format!(
                        "{} | {} to {}",
                        millis(median(samples, |sample| sample.max)),
                        median(samples, |sample| sample.fewest),
                        median(samples, |sample| sample.most)
                    ),
                };
                let cells = self.cells(*peer, op, clients);
                let _ = writeln!(table, "| {what} | {} | {cells} | {fairness} |", peer.label());
            }
        }
        table
    }

    /// The table of failover mode.
    pub(crate) fn failover(&self, peers: &[Peer]) -> String {
        let mut table =
            "| | kills | median s without a write | longest s | acknowledged writes | of these lost | not readable |\n\
                         |---|---|---|---|---|---|---|\n"
                .to_owned();
        for peer in peers {
            let outages = self.outages.get(peer).map_or(&[][..], Vec::as_slice);
            let mut seconds: Vec<f64> = outages.iter().map(|outage| outage.seconds).collect();
            seconds.sort_by(f64::total_cmp);
            let cell =
                |seconds: Option<&f64>| seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.2}"));
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} | {} | {} |",
                peer.label(),
                outages.len(),
                cell(seconds.get(seconds.len() / 2)),
                cell(seconds.last()),
                outages.iter().map(|outage| outage.acknowledged).sum::<u64>(),
                outages.iter().map(|outage| outage.lost).sum::<u64>(),
                outages.iter().map(|outage| outage.unread).sum::<u64>(),
            );
        }
        table
    }

    /// The table of idle mode.
    pub(crate) fn idle(&self, peers: &[Peer]) -> String {
        let mut table =
            "| | nodes | idle CPU of a node, % of a core | memory of a node, MB | keys | then MB \
                         | bytes per key and copy |\n|---|---|---|---|---|---|---|\n"
                .to_owned();
        for peer in peers {
            let _ = match self.idle.get(peer) {
                None => writeln!(table, "| {} | - | - | - | - | - | - |", peer.label()),
                Some(idle) => {
                    let nodes = as_f64(idle.nodes as u64);
                    let copies = as_f64((idle.keys * peer.copies()) as u64);
                    writeln!(
                        table,
                        "| {} | {} | {:.2} | {:.0} | {} | {:.0} | {:.0} |",
                        peer.label(),
                        idle.nodes,
                        100.0 * idle.cpu / idle.seconds / nodes,
                        as_f64(idle.memory) / nodes / 1e6,
                        thousands(as_f64(idle.keys as u64)),
                        as_f64(idle.full) / nodes / 1e6,
                        as_f64(idle.full.saturating_sub(idle.memory)) / copies,
                    )
                }
            };
        }
        table
    }

    /// Rate, p50, p99, CPU of servers and client.
    fn cells(&self, peer: Peer, op: Op, clients: usize) -> String {
        let samples = self.of(peer, op, clients);
        if samples.is_empty() {
            return "- | - | - | - | -".to_owned();
        }
        let rate = median_f64(samples, |sample| as_f64(sample.operations) / sample.seconds);
        let cpu = |of: fn(&Sample) -> f64| {
            median_f64(samples, |sample| of(sample) * CPU_PER_OPERATIONS / as_f64(sample.operations.max(1)))
        };
        let failed: u64 = samples.iter().map(|sample| sample.failed).sum();
        format!(
            "{}{} | {} | {} | {:.2} | {:.2}",
            thousands(rate),
            if failed > 0 { format!(" ({failed} failed)") } else { String::new() },
            millis(median(samples, |sample| sample.p50)),
            millis(median(samples, |sample| sample.p99)),
            cpu(|sample| sample.server_cpu),
            cpu(|sample| sample.client_cpu),
        )
    }

    fn of(&self, peer: Peer, op: Op, clients: usize) -> &[Sample] {
        self.samples.get(&(peer, op, clients)).map_or(&[], Vec::as_slice)
    }
}

/// What the rows of a table promise, as a list.
pub(crate) fn promises(peers: &[Peer], mode: Mode) -> String {
    peers.iter().fold(String::new(), |mut list, peer| {
        let _ = writeln!(list, "- {}: {}.", peer.label(), peer.promise(mode));
        list
    })
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(of).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn median_f64(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

fn ratio(part: u64, whole: u64) -> f64 {
    as_f64(part) / as_f64(whole.max(1))
}

/// Microseconds as milliseconds, with two significant digits below ten.
fn millis(micros: u64) -> String {
    let millis = as_f64(micros) / 1000.0;
    match micros {
        0..1_000 => format!("{millis:.2}"),
        1_000..10_000 => format!("{millis:.1}"),
        _ => format!("{millis:.0}"),
    }
}

/// `12,300`
fn thousands(rate: f64) -> String {
    let digits = format!("{rate:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_medians_and_a_dash_for_what_was_not_measured() {
        let mut results = Results::default();
        for operations in [900, 1_234_500, 10_000] {
            let sample = Sample {
                operations,
                seconds: 2.0,
                p50: operations,
                server_cpu: as_f64(operations) / 10_000.0,
                ..Sample::default()
            };
            results.add(Peer::Etcd, Op::Put, 64, sample);
        }
        let traced = Sample { operations: 100, fsyncs: Some(150), ..Sample::default() };
        results.add_traced(Peer::Etcd, 64, traced);
        let table = results.kv(&[Peer::Etcd], &[64]);
        assert!(
            table.ends_with("| 64 | etcd | 5,000 | 10 | 0.00 | 10.00 | 0.00 | 1.50 | - | - | - | - | - |\n"),
            "{table}"
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([123.0, 1234.4, 1_234_567.0].map(thousands), ["123", "1,234", "1,234,567"]);
        assert_eq!([87, 1234, 12_345].map(millis), ["0.09", "1.2", "12"]);
    }
}
