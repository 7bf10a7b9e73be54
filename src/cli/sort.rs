//! `sort`: a dataset or a file, on all members at once.

use std::ffi::OsString;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::connect::{Client, Target, connect};
use super::data::{interrupted, summary_json};
use super::exit::{Code, Failure};
use super::place::{Temporary, fetch, place_input, place_output};
use super::render::Output;
use super::units;
use crate::client::{SortError, SortProgress, SortStage, SortSummary};
use crate::dataset::Format;
use crate::sort::Order;

/// Begins the names of datasets that are there while a file is sorted.
const TEMPORARY: &str = ".sort/";

/// `sort`.
#[derive(Debug)]
pub(super) struct Sort {
    /// A dataset, a file, or `-`.
    pub(super) input: OsString,
    /// A dataset or a file; `None`: standard output.
    pub(super) output: Option<OsString>,
    /// How.
    pub(super) order: Order,
    /// What the records of a file are.
    pub(super) records: Format,
}

impl Sort {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = &session.client;
        let input = place_input(client, &self.input).await?;
        let to = place_output(self.output.as_ref(), &input);
        let temporary = Temporary::new(TEMPORARY);
        let (from, into) = (temporary.read(&input), temporary.written(&to));
        let start = Instant::now();
        let result = async {
            temporary.put(client, &input, self.records).await?;
            let summary = self.sort(client, &from, &into).await?;
            fetch(client, &into, &to).await?;
            Ok(summary)
        };
        let result: Result<_, Failure> = result.await;
        temporary.remove(client).await;
        let summary = result?;
        let json = json(&summary, start.elapsed().as_secs_f64());
        to.tell(output, text(&summary, start), json)
    }

    async fn sort(&self, client: &Client, from: &[u8], into: &[u8]) -> Result<SortSummary, Failure> {
        let style = "{bar:40} {percent:>3}% {msg}, {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(0).with_style(style);
        let sort = client.sort(from, into, self.order);
        let progress = |progress: SortProgress| {
            let (stage, before) = match progress.stage {
                SortStage::Sampling => ("sampling", 0),
                SortStage::Sorting => ("sorting", 0),
                SortStage::Merging => ("merging", progress.of),
            };
            bar.set_length(2 * progress.of);
            bar.set_position(before + progress.bytes);
            let again =
                if progress.again > 0 { format!(" ({} again)", progress.again) } else { String::new() };
            bar.set_message(format!("{stage}{again}"));
        };
        let summary = tokio::select! {
            summary = sort.run(progress) => summary.map_err(Failure::from),
            _ = tokio::signal::ctrl_c() => Err(interrupted()),
        };
        bar.finish_and_clear();
        if summary.as_ref().is_err_and(|failure| failure.code == Code::Interrupted) {
            sort.cancel().await;
        }
        summary
    }
}

fn text(summary: &SortSummary, start: Instant) -> String {
    let SortSummary { output, dropped, tasks, again, moved_bytes, .. } = summary;
    let mut parts = vec![format!("{} records, {}", units::count(output.records), units::bytes(output.bytes))];
    if *dropped > 0 {
        parts.push(format!("{} left out", units::count(*dropped)));
    }
    parts.push(format!("{} tasks and {} ranges", tasks.0, tasks.1));
    parts.push(format!("{} between nodes", units::bytes(*moved_bytes)));
    if *again > 0 {
        parts.push(format!("{again} tasks done again"));
    }
    format!("{}: sorted in {}", parts.join(", "), units::duration(start.elapsed()))
}

fn json(summary: &SortSummary, seconds: f64) -> Value {
    json!({"output": summary_json(&summary.output), "records": summary.records, "dropped": summary.dropped,
        "tasks": summary.tasks.0, "ranges": summary.tasks.1, "again": summary.again,
        "fetched_blocks": summary.fetched_blocks, "moved_bytes": summary.moved_bytes, "seconds": seconds})
}

impl From<SortError> for Failure {
    fn from(error: SortError) -> Self {
        let code = match error {
            SortError::Dataset(error) => return error.into(),
            SortError::NoNode => Code::Unreachable,
            _ => Code::Failed,
        };
        Self::new(code, format!("{error}: there is no output"))
    }
}
