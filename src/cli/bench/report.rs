//! What a run of `bench` measured, for people and programs. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{Bench, Mix};
use crate::cli::units;

/// The percentiles that are shown.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// The outcome of a run.
#[derive(Debug)]
pub(super) struct Report {
    /// What was done.
    pub(super) plan: Bench,
    /// Until the last answer.
    pub(super) elapsed: Duration,
    /// Of successful operations, in nanoseconds.
    pub(super) latencies: Histogram<u64>,
    /// By kind.
    pub(super) errors: BTreeMap<String, u64>,
    /// Gets that found nothing.
    pub(super) missing: u64,
    /// Successful operations of the worker that did fewest, and of the one that did most.
    pub(super) cycles: (u64, u64),
    /// Successful operations in each full second.
    pub(super) per_second: Vec<u64>,
}

impl Report {
    /// Successful operations per second.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is positive and far below 2^53"
    )]
    fn rate(&self) -> u64 {
        let seconds = self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        (self.latencies.len() as f64 / seconds).round() as u64
    }

    /// How many times as many operations the fastest worker did as the slowest.
    #[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^53")]
    fn unevenness(&self) -> f64 {
        let (fewest, most) = self.cycles;
        most as f64 / fewest.max(1) as f64
    }

    fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    fn what(&self) -> &'static str {
        match self.plan.mix {
            Mix::Put => "put",
            Mix::Get if self.plan.stale => "get (stale)",
            Mix::Get => "get",
            Mix::Mixed if self.plan.stale => "put and get (stale)",
            Mix::Mixed => "put and get",
            Mix::Lock => "lock and unlock",
        }
    }

    /// A few lines.
    pub(super) fn text(&self) -> String {
        let nanos = |nanos| units::duration(Duration::from_nanos(nanos));
        let mut latency = String::new();
        for (name, percentile) in PERCENTILES {
            let _ = write!(latency, "{name} {}  ", nanos(self.latencies.value_at_percentile(percentile)));
        }
        let _ = write!(latency, "max {}", nanos(self.latencies.max()));
        let plan = &self.plan;
        let mut text = format!(
            "{}: {} operations in {}, {} per second\nlatency   {latency}\nload      {} clients x {} under way, {} keys, {} B values, {} connections",
            self.what(),
            units::count(self.latencies.len()),
            units::duration(self.elapsed),
            units::count(self.rate()),
            plan.clients,
            plan.pipeline,
            units::count(plan.keys as u64),
            plan.value_bytes,
            plan.connections,
        );
        if let (Some(slowest), Some(fastest)) = (self.per_second.iter().min(), self.per_second.iter().max()) {
            let _ = write!(
                text,
                "\nseconds   slowest {}, fastest {} operations",
                units::count(*slowest),
                units::count(*fastest)
            );
        }
        if plan.mix == Mix::Lock {
            let (fewest, most) = self.cycles;
            let (fewest, most) = (units::count(fewest), units::count(most));
            let ratio = self.unevenness();
            let _ =
                write!(text, "\nfairness  {fewest} to {most} cycles in each lane ({ratio:.2} times as many)");
        }
        if self.missing > 0 {
            let _ = write!(text, "\nmissing   {} gets found nothing", units::count(self.missing));
        }
        if self.errors.is_empty() {
            text.push_str("\nerrors    none");
        }
        for (kind, count) in &self.errors {
            let _ = write!(text, "\nerrors    {} {kind}", units::count(*count));
        }
        text
    }

    /// Everything; latencies in microseconds.
    pub(super) fn json(&self) -> Value {
        let micros = |nanos: u64| nanos.div_ceil(1000);
        let mut latency = serde_json::Map::new();
        for (name, percentile) in PERCENTILES {
            latency.insert(name.to_owned(), json!(micros(self.latencies.value_at_percentile(percentile))));
        }
        latency.insert("max".to_owned(), json!(micros(self.latencies.max())));
        let plan = &self.plan;
        json!({
            "op": match plan.mix { Mix::Put => "put", Mix::Get => "get", Mix::Mixed => "mixed", Mix::Lock => "lock" },
            "stale": plan.stale,
            "clients": plan.clients,
            "pipeline": plan.pipeline,
            "keys": plan.keys,
            "value_bytes": plan.value_bytes,
            "connections": plan.connections,
            "seconds": self.elapsed.as_secs_f64(),
            "operations": self.latencies.len(),
            "ops_per_second": self.rate(),
            "latency_us": latency,
            "per_second": self.per_second,
            "fewest_per_lane": self.cycles.0,
            "most_per_lane": self.cycles.1,
            "most_to_fewest": self.unevenness(),
            "missing": self.missing,
            "failed": self.failed(),
            "errors": self.errors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut latencies = Histogram::new_with_bounds(1_000, 120_000_000_000, 3).expect("bounds");
        for micros in 1..=1000_u64 {
            latencies.record(micros * 1_000).expect("in range");
        }
        Report {
            plan: Bench {
                mix: Mix::Put,
                clients: 64,
                pipeline: 1,
                keys: 10_000,
                value_bytes: 100,
                duration: Duration::from_secs(2),
                connections: 1,
                stale: false,
                keep: false,
            },
            elapsed: Duration::from_secs(2),
            latencies,
            errors: BTreeMap::new(),
            missing: 0,
            cycles: (500, 500),
            per_second: vec![400, 600],
        }
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let json = report().json();
        assert_eq!(json["operations"], 1000);
        assert_eq!(json["ops_per_second"], 500);
        assert_eq!(json["most_to_fewest"], 1.0);
        let latency = |name: &str| json["latency_us"][name].as_u64().expect("a number");
        for (name, expected) in [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999), ("max", 1000)] {
            let measured = latency(name);
            assert!(measured.abs_diff(expected) <= expected / 500 + 1, "{name}: {measured}");
        }
    }

    #[test]
    fn errors_are_told_by_kind_and_not_counted_as_operations() {
        let mut report = report();
        assert!(report.text().contains("errors    none"));
        report.errors.insert("no quorum".to_owned(), 3);
        report.errors.insert("unknown".to_owned(), 2);
        let text = report.text();
        assert!(text.contains("errors    3 no quorum\nerrors    2 unknown"), "{text}");
        assert!(text.contains("put: 1_000 operations in 2s, 500 per second"), "{text}");
        assert_eq!(report.json()["failed"], 5);
    }
}
