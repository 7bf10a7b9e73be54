//! `sort`: a dataset or a file, on all members at once.
//!
//! A file is put into the swarm as a dataset that nobody else knows, sorted there, and what comes of it is fetched;
//! both datasets are removed at the end, whatever happened. If this process is killed, `data list` shows them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use super::connect::{Client, Target, connect};
use super::data::{bar, copy_in, copy_out, interrupted, open, summary_json};
use super::exit::{Code, Failure};
use super::partial::Partial;
use super::render::{Output, note};
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

/// Where records come from and go to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Dataset(Vec<u8>),
    File(PathBuf),
    /// Standard input or output.
    Pipe,
}

impl Sort {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        let client = &session.client;
        let input = self.input(client).await?;
        let to = place_output(self.output.as_ref(), &input);
        // Names that nobody else has.
        let job: u64 = rand::random();
        let (put, made) = (format!("{TEMPORARY}{job:016x}/input"), format!("{TEMPORARY}{job:016x}/output"));
        let from = match &input {
            Place::Dataset(name) => name.clone(),
            _ => put.clone().into_bytes(),
        };
        let into = match &to {
            Place::Dataset(name) => name.clone(),
            _ => made.clone().into_bytes(),
        };
        let start = Instant::now();
        let result = async {
            match &input {
                Place::Dataset(_) => {}
                Place::File(file) => self.put(client, file, &put).await?,
                Place::Pipe => self.put(client, Path::new("-"), &put).await?,
            }
            let summary = self.sort(client, &from, &into).await?;
            tokio::select! {
                fetched = fetch(client, &into, &to) => fetched?,
                _ = tokio::signal::ctrl_c() => return Err(interrupted()),
            }
            Ok(summary)
        };
        let result = result.await;
        for name in [put, made] {
            // It may not be there. What cannot be removed now is in `data list`.
            let _ = client.dataset(name).remove().await;
        }
        let summary = result?;
        let json = json(&summary, start.elapsed().as_secs_f64());
        let text = text(&summary, start);
        if to == Place::Pipe {
            note(&if output.json() { json.to_string() } else { text });
        } else {
            output.answer(|| text, || json)?;
        }
        Ok(())
    }

    async fn input(&self, client: &Client) -> Result<Place, Failure> {
        if self.input == "-" {
            return Ok(Place::Pipe);
        }
        let name = self.input.clone().into_encoded_bytes();
        let file = PathBuf::from(&self.input);
        if !name.contains(&b'/') && !name.is_empty() && client.dataset(name.clone()).info().await?.is_some() {
            return Ok(Place::Dataset(name));
        }
        if file.exists() {
            return Ok(Place::File(file));
        }
        let shown = file.display();
        Err(Failure::new(
            Code::NotFound,
            format!("there is no dataset and no file `{shown}`: nothing was done"),
        ))
    }

    async fn put(&self, client: &Client, file: &Path, name: &str) -> Result<(), Failure> {
        let (input, length) = open(file).await?;
        let mut writer = client.dataset(name).create(self.records).await?;
        let bar = bar(length);
        let copied = tokio::select! {
            copied = copy_in(input, &mut writer, &bar) => copied,
            _ = tokio::signal::ctrl_c() => Err(interrupted()),
        };
        bar.finish_and_clear();
        if let Err(failure) = copied {
            writer.abort().await;
            return Err(failure);
        }
        writer.finish().await?;
        Ok(())
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

/// Where the output goes: it is what the input is, and a path with a slash is always a file.
fn place_output(output: Option<&OsString>, input: &Place) -> Place {
    match output {
        None => Place::Pipe,
        Some(output) if output == "-" => Place::Pipe,
        Some(output) => {
            let name = output.clone().into_encoded_bytes();
            let is_path = name.contains(&b'/');
            match input {
                Place::Dataset(_) if !is_path => Place::Dataset(name),
                _ => Place::File(output.into()),
            }
        }
    }
}

/// Fetches what was sorted, unless it is to stay a dataset.
async fn fetch(client: &Client, name: &[u8], to: &Place) -> Result<(), Failure> {
    match to {
        Place::Dataset(_) => {}
        Place::File(file) => {
            let unwritable = |error: std::io::Error| {
                Failure::other(format!("{}: {error}: it is as it was before", file.display()))
            };
            let mut partial = Partial::create(file).map_err(unwritable)?;
            copy_out(client, name, &mut partial.file, &bar(None)).await?;
            partial.finish().await.map_err(unwritable)?;
        }
        Place::Pipe => {
            let mut out = tokio::io::stdout();
            copy_out(client, name, &mut out, &ProgressBar::hidden()).await?;
            out.flush().await?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_is_what_the_input_is() {
        let (dataset, file) = (Place::Dataset(b"in".to_vec()), Place::File("in".into()));
        let of = |output: &str, input: &Place| place_output(Some(&output.into()), input);
        assert_eq!(place_output(None, &dataset), Place::Pipe);
        assert_eq!(of("-", &file), Place::Pipe);
        assert_eq!(of("out", &dataset), Place::Dataset(b"out".to_vec()));
        assert_eq!(of("./out", &dataset), Place::File("./out".into()));
        assert_eq!(of("out", &file), Place::File("out".into()));
        assert_eq!(of("out", &Place::Pipe), Place::File("out".into()));
    }
}
