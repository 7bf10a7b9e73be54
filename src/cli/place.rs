//! Where a job's records come from and go to: a dataset, a file, or a pipe.
//!
//! What is in a file is put into the swarm as a dataset that nobody else knows, and what goes to a file is fetched from
//! one; both are removed at the end, whatever happened. If this process is killed, `data list` shows them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::connect::Client;
use super::data::{bar, copy_in, copy_out, interrupted, open};
use super::exit::{Code, Failure};
use super::partial::Partial;
use super::render::{Output, note};
use crate::dataset::Format;

/// Where records come from and go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Dataset(Vec<u8>),
    File(PathBuf),
    /// Standard input or output.
    Pipe,
}

impl Place {
    /// Tells what was done, when the output is there: beside it, where it went through a pipe.
    pub(super) fn tell(&self, output: Output, text: String, json: Value) -> Result<(), Failure> {
        if *self == Self::Pipe {
            note(&if output.json() { json.to_string() } else { text });
            return Ok(());
        }
        Ok(output.answer(|| text, || json)?)
    }
}

/// The datasets that are there while a job runs.
#[derive(Debug)]
pub(super) struct Temporary {
    input: String,
    output: String,
}

impl Temporary {
    /// Names that nobody else has; they begin with `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        let job: u64 = rand::random();
        Self { input: format!("{prefix}{job:016x}/input"), output: format!("{prefix}{job:016x}/output") }
    }

    /// The dataset that is read for `input`.
    pub(super) fn read(&self, input: &Place) -> Vec<u8> {
        if let Place::Dataset(name) = input { name.clone() } else { self.input.clone().into_bytes() }
    }

    /// The dataset that is written for `output`.
    pub(super) fn written(&self, output: &Place) -> Vec<u8> {
        if let Place::Dataset(name) = output { name.clone() } else { self.output.clone().into_bytes() }
    }

    /// Brings a file or what comes through a pipe into the swarm.
    pub(super) async fn put(&self, client: &Client, input: &Place, records: Format) -> Result<(), Failure> {
        let file = match input {
            Place::Dataset(_) => return Ok(()),
            Place::File(file) => file.as_path(),
            Place::Pipe => Path::new("-"),
        };
        let (input, length) = open(file).await?;
        let mut writer = client.dataset(self.input.as_str()).create(records).await?;
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

    /// Removes them.
    pub(super) async fn remove(self, client: &Client) {
        for name in [self.input, self.output] {
            // It may not be there. What cannot be removed now is in `data list`.
            let _ = client.dataset(name).remove().await;
        }
    }
}

/// Where records come from that are named so: a dataset if there is one, otherwise a file.
pub(super) async fn place_input(client: &Client, input: &OsString) -> Result<Place, Failure> {
    if input == "-" {
        return Ok(Place::Pipe);
    }
    let name = input.clone().into_encoded_bytes();
    let file = PathBuf::from(input);
    if !name.contains(&b'/') && !name.is_empty() && client.dataset(name.clone()).info().await?.is_some() {
        return Ok(Place::Dataset(name));
    }
    if file.exists() {
        return Ok(Place::File(file));
    }
    let shown = file.display();
    Err(Failure::new(Code::NotFound, format!("there is no dataset and no file `{shown}`: nothing was done")))
}

/// Where the output goes: it is what the input is, and a path with a slash is always a file.
pub(super) fn place_output(output: Option<&OsString>, input: &Place) -> Place {
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

/// Fetches what was made, unless it is to stay a dataset.
pub(super) async fn fetch(client: &Client, name: &[u8], to: &Place) -> Result<(), Failure> {
    tokio::select! {
        fetched = fetch_whole(client, name, to) => fetched,
        _ = tokio::signal::ctrl_c() => Err(interrupted()),
    }
}

async fn fetch_whole(client: &Client, name: &[u8], to: &Place) -> Result<(), Failure> {
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
