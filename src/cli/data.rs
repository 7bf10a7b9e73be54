//! `data put`, `data get`, `data list`, `data rm`: datasets.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use super::connect::{Client, Target, connect};
use super::exit::{Code, Failure};
use super::partial::Partial;
use super::render::{Output, Table, json_bytes, note, printable};
use super::units;
use crate::client::{DatasetError, DatasetWriter, Error, Outcome};
use crate::dataset::{DatasetSummary, Format};
use crate::net::Net;
use crate::wire::BlockRefusal;

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 * 1024;

/// `data put`.
#[derive(Debug)]
pub(super) struct Put {
    /// The dataset.
    pub(super) name: Vec<u8>,
    /// What to write; `-`: standard input.
    pub(super) file: PathBuf,
    /// What its records are.
    pub(super) records: Format,
}

impl Put {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let (input, length) = open(&self.file).await?;
        let session = connect(target).await?;
        let start = Instant::now();
        let bar = bar(length);
        let mut writer = session.client.dataset(self.name).create(self.records).await?;
        let copied = tokio::select! {
            copied = copy_in(input, &mut writer, &bar) => copied,
            _ = tokio::signal::ctrl_c() => Err(interrupted()),
        };
        let summary = match copied {
            Ok(()) => writer.finish().await?,
            Err(failure) => {
                writer.abort().await;
                return Err(failure);
            }
        };
        bar.finish_and_clear();
        let took = start.elapsed();
        let DatasetSummary { blocks, records, bytes, .. } = summary;
        output.answer(
            || {
                let (records, bytes) = (units::count(records), units::bytes(bytes));
                format!("{records} records, {bytes} in {blocks} blocks, in {}", units::duration(took))
            },
            || timed_json(&summary, took),
        )?;
        Ok(())
    }
}

pub(super) async fn copy_in(
    mut input: impl AsyncRead + Unpin,
    writer: &mut DatasetWriter<Net>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = input.read(&mut buffer).await.map_err(|error| {
            Failure::other(format!("the input cannot be read: {error}: nothing was written"))
        })?;
        if count == 0 {
            return Ok(());
        }
        writer.write(&buffer[..count]).await?;
        bar.inc(count as u64);
    }
}

/// Opens what is to be read; its length, if it has one.
pub(super) async fn open(file: &Path) -> Result<(Box<dyn AsyncRead + Unpin + Send>, Option<u64>), Failure> {
    if file.as_os_str() == "-" {
        return Ok((Box::new(tokio::io::stdin()), None));
    }
    let unreadable =
        |error: io::Error| Failure::other(format!("{}: {error}: nothing was written", file.display()));
    let opened = tokio::fs::File::open(file).await.map_err(unreadable)?;
    let metadata = opened.metadata().await.map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(io::ErrorKind::IsADirectory.into()));
    }
    Ok((Box::new(opened), metadata.is_file().then_some(metadata.len())))
}

/// `data get`.
#[derive(Debug)]
pub(super) struct Get {
    /// The dataset.
    pub(super) name: Vec<u8>,
    /// Where to; `-`: standard output.
    pub(super) file: PathBuf,
}

impl Get {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        tokio::select! {
            result = self.fetch(&session.client, output) => result,
            _ = tokio::signal::ctrl_c() => Err(interrupted()),
        }
    }

    async fn fetch(&self, client: &Client, output: Output) -> Result<(), Failure> {
        let start = Instant::now();
        if self.file.as_os_str() == "-" {
            let mut out = tokio::io::stdout();
            copy_out(client, &self.name, &mut out, &ProgressBar::hidden()).await?;
            return Ok(out.flush().await?);
        }
        let unwritable = |error: io::Error| {
            Failure::other(format!("{}: {error}: it is as it was before", self.file.display()))
        };
        let mut partial = Partial::create(&self.file).map_err(unwritable)?;
        let summary = copy_out(client, &self.name, &mut partial.file, &bar(None)).await?;
        partial.finish().await.map_err(unwritable)?;
        let took = start.elapsed();
        let (records, bytes) = (units::count(summary.records), units::bytes(summary.bytes));
        output.answer(
            || format!("{records} records, {bytes} in {}", units::duration(took)),
            || timed_json(&summary, took),
        )?;
        Ok(())
    }
}

pub(super) async fn copy_out(
    client: &Client,
    name: &[u8],
    out: &mut (impl AsyncWrite + Unpin),
    bar: &ProgressBar,
) -> Result<DatasetSummary, Failure> {
    let reader = client.dataset(name).read().await?;
    let summary = reader.summary();
    bar.set_length(summary.bytes);
    let mut blocks = pin!(reader.blocks());
    while let Some(block) = blocks.next().await {
        let block = block?;
        out.write_all(&block).await?;
        bar.inc(block.len() as u64);
    }
    bar.finish_and_clear();
    Ok(summary)
}

/// `data list`.
pub(super) async fn list(target: &Target, output: Output) -> Result<(), Failure> {
    let session = connect(target).await?;
    let mut datasets: Vec<_> = session.client.datasets().try_collect().await?;
    datasets.sort_by(|(one, _), (other, _)| one.cmp(other));
    let text = || {
        let mut table = Table::new(&["NAME", "RECORDS", "BYTES", "BLOCKS", "FORMAT"]);
        for (name, dataset) in &datasets {
            let DatasetSummary { format, blocks, records, bytes, .. } = dataset.summary;
            table.row([
                printable(name),
                units::count(records),
                units::bytes(bytes),
                blocks.to_string(),
                format.to_string(),
            ]);
        }
        table.render(output)
    };
    let json = || {
        let rows = datasets.iter().map(|(name, dataset)| {
            let mut row = serde_json::Map::new();
            json_bytes(&mut row, "name", name);
            if let Value::Object(rest) = summary_json(&dataset.summary) {
                row.extend(rest);
            }
            Value::Object(row)
        });
        Value::Array(rows.collect())
    };
    output.answer(text, json)?;
    Ok(())
}

/// `data rm`.
#[derive(Debug)]
pub(super) struct Remove {
    /// The dataset.
    pub(super) name: Vec<u8>,
}

impl Remove {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let session = connect(target).await?;
        if !session.client.dataset(self.name).remove().await? {
            return Err(DatasetError::NotFound.into());
        }
        output.answer(|| "removed".to_owned(), || json!({"removed": true}))?;
        Ok(())
    }
}

/// What was copied, and how long it took.
fn timed_json(summary: &DatasetSummary, took: Duration) -> Value {
    let mut json = summary_json(summary);
    json["seconds"] = json!(took.as_secs_f64());
    json
}

pub(super) fn summary_json(summary: &DatasetSummary) -> Value {
    json!({"id": summary.id.to_string(), "format": summary.format.name(), "records": summary.records,
        "bytes": summary.bytes, "blocks": summary.blocks})
}

pub(super) fn interrupted() -> Failure {
    note("interrupted");
    Failure::new(Code::Interrupted, "")
}

/// How far it is, on standard error; nothing when that is no terminal.
pub(super) fn bar(length: Option<u64>) -> ProgressBar {
    let template = if length.is_some() {
        "{bar:40} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left"
    } else {
        "{bytes}, {bytes_per_sec}"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.with_style(style)
}

impl From<DatasetError> for Failure {
    fn from(error: DatasetError) -> Self {
        let (code, advice) = match &error {
            DatasetError::Store(error) if error.outcome() == Outcome::MayBeApplied => {
                return Self::new(
                    Code::Unknown,
                    format!("{error}: `roundtable data list` shows whether the dataset is there"),
                );
            }
            DatasetError::Store(error) => return Error::clone(error).into(),
            DatasetError::Exists => (
                Code::Conflict,
                "nothing was changed; a dataset never changes: remove it or take another name",
            ),
            DatasetError::NotFound => (Code::NotFound, "`roundtable data list` shows those that there are"),
            DatasetError::NotKept { reason: Some(BlockRefusal::Full { .. }), .. } => {
                (Code::Failed, "there is no dataset; remove others, or let nodes keep more (--data-limit)")
            }
            DatasetError::NotKept { .. } => {
                (Code::NoQuorum, "there is no dataset; `roundtable members` shows who is missing")
            }
            DatasetError::BlockMissing { .. } => {
                (Code::NoQuorum, "what came before it is right; `roundtable members` shows who is missing")
            }
            _ => (Code::Failed, "there is no dataset"),
        };
        Self::new(code, format!("{error}: {advice}"))
    }
}
