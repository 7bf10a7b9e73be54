//! `run`: a program over a dataset, a file, or keys, on all members at once.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::connect::{Target, connect};
use super::data::{interrupted, summary_json};
use super::exit::{Code, Failure};
use super::place::{Place, Temporary, fetch, place_input, place_output};
use super::render::Output;
use super::units;
use crate::client::{Job, JobError, JobProgress, JobStage, JobSummary, ShipError};
use crate::compute::{Limits, MAX_COMPONENT_BYTES};
use crate::dataset::Format;
use crate::net::Net;

/// Begins the names of datasets that are there while a program runs.
const TEMPORARY: &str = ".run/";

/// `run`.
#[derive(Debug)]
pub(super) struct Run {
    /// Which.
    pub(super) program: RunProgram,
    /// Its arguments.
    pub(super) arguments: Vec<OsString>,
    /// What it computes over.
    pub(super) input: RunInput,
    /// A dataset or a file; `None`: standard output.
    pub(super) output: Option<OsString>,
    /// What the records of a file are.
    pub(super) records: Format,
    /// What the output's records are; `None`: it depends on the input.
    pub(super) output_records: Option<Format>,
    /// What each task may use.
    pub(super) limits: Limits,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunProgram {
    /// That nodes have, with or without a version.
    Named(String),
    /// In a file, for all of them: a component.
    File(PathBuf),
}

impl RunProgram {
    /// Reads the file, if it is one.
    fn find(&self) -> Result<Found, Failure> {
        let file = match self {
            Self::Named(name) => return Ok(Found::Named(name.clone())),
            Self::File(file) => file,
        };
        let failed =
            |text: String| Failure::other(format!("the program {} {text}: nothing was done", file.display()));
        let opened = File::open(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
        // One byte more tells that it is too long.
        let (mut component, limit) = (Vec::new(), MAX_COMPONENT_BYTES as u64);
        let read = opened.take(limit + 1).read_to_end(&mut component);
        read.map_err(|error| failed(format!("cannot be read: {error}")))?;
        if component.len() as u64 > limit {
            return Err(failed(format!("has more than {limit} bytes")));
        }
        Ok(Found::Component(component))
    }
}

/// A program, as it is given to the swarm.
enum Found {
    Named(String),
    Component(Vec<u8>),
}

/// What a program computes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunInput {
    /// A dataset, a file, or `-`.
    Data(OsString),
    /// The keys that begin so.
    Keys(Vec<u8>),
}

impl Run {
    pub(super) async fn run(self, target: &Target, output: Output) -> Result<(), Failure> {
        let program = self.program.find()?;
        let session = connect(target).await?;
        let client = &session.client;
        let input = match &self.input {
            RunInput::Data(input) => place_input(client, input).await?,
            // They are in the swarm, as a dataset is.
            RunInput::Keys(prefix) => Place::Dataset(prefix.clone()),
        };
        let to = place_output(self.output.as_ref(), &input);
        let temporary = Temporary::new(TEMPORARY);
        let into = temporary.written(&to);
        let start = Instant::now();
        let result = async {
            let job = match program {
                Found::Named(name) => client.job(&name),
                Found::Component(component) => client.job_of(client.ship(component).await?),
            };
            temporary.put(client, &input, self.records).await?;
            let summary = self.compute(job, temporary.read(&input), into.clone()).await?;
            fetch(client, &into, &to).await?;
            Ok(summary)
        };
        let result: Result<_, Failure> = result.await;
        temporary.remove(client).await;
        let summary = result?;
        let json = json(&summary, start.elapsed().as_secs_f64());
        to.tell(output, text(&summary, start), json)
    }

    /// With all that was said of it.
    fn described(&self, job: Job<Net>, from: Vec<u8>, into: Vec<u8>) -> Job<Net> {
        let job = job.limits(self.limits).output(into);
        let job = match self.input {
            RunInput::Data(_) => job.input(from),
            RunInput::Keys(_) => job.keys(from),
        };
        let job = self.output_records.into_iter().fold(job, Job::format);
        let arguments = self.arguments.iter().map(|argument| argument.clone().into_encoded_bytes());
        arguments.fold(job, Job::argument)
    }

    async fn compute(&self, job: Job<Net>, from: Vec<u8>, into: Vec<u8>) -> Result<JobSummary, Failure> {
        let style = "{bar:40} {percent:>3}% {msg}";
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(0).with_style(style);
        bar.set_message("asking for the program");
        let start = Instant::now();
        let job = self.described(job, from, into);
        let summary = tokio::select! {
            summary = job.run(|progress| show(&bar, &progress, start)) => summary.map_err(Failure::from),
            _ = tokio::signal::ctrl_c() => Err(interrupted()),
        };
        bar.finish_and_clear();
        if summary.as_ref().is_err_and(|failure| failure.code == Code::Interrupted) {
            job.cancel().await;
        }
        summary
    }
}

/// Shows how far a job is: half of the bar for each stage.
fn show(bar: &ProgressBar, progress: &JobProgress, start: Instant) {
    let JobProgress { stage, bytes, of, tasks, local, ranges, again, second_attempts, .. } = *progress;
    let whole = 1000;
    let share = |(done, of): (usize, usize)| (done * whole / of.max(1)) as u64;
    bar.set_length(2 * whole as u64);
    bar.set_position(share(tasks) + if stage == JobStage::Reducing { share(ranges) } else { 0 });
    let mut parts = vec![match stage {
        JobStage::Mapping => {
            format!("mapping: {} of {} tasks, {local} where their data is", tasks.0, tasks.1)
        }
        JobStage::Reducing => format!("reducing: {} of {} ranges", ranges.0, ranges.1),
    }];
    if of > 0 && stage == JobStage::Mapping {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "a rate for people"
        )]
        let rate = (bytes as f64 / start.elapsed().as_secs_f64().max(0.001)) as u64;
        parts.push(format!("{}/s", units::bytes(rate)));
    }
    if again > 0 {
        parts.push(format!("{again} again"));
    }
    if second_attempts > 0 {
        parts.push(format!("{second_attempts} second attempts"));
    }
    bar.set_message(parts.join(", "));
}

fn text(summary: &JobSummary, start: Instant) -> String {
    let JobSummary { input_records, records, tasks, local, again, second_attempts, moved_bytes, .. } =
        summary;
    let mut parts = vec![
        format!("{} records of {}", units::count(*records), units::count(*input_records)),
        format!("{} tasks, {local} where their data is", tasks.0),
        format!("{} between nodes", units::bytes(*moved_bytes)),
    ];
    if *again > 0 {
        parts.push(format!("{again} done again"));
    }
    if *second_attempts > 0 {
        parts.push(format!("{second_attempts} second attempts"));
    }
    if !summary.without.is_empty() {
        parts.push(format!("{} members do not have the program", summary.without.len()));
    }
    format!("{}: in {}", parts.join(", "), units::duration(start.elapsed()))
}

fn json(summary: &JobSummary, seconds: f64) -> Value {
    let without: Vec<String> = summary.without.iter().map(ToString::to_string).collect();
    json!({"output": summary.output.as_ref().map(summary_json), "input_records": summary.input_records,
        "records": summary.records, "pairs": summary.pairs, "combined_pairs": summary.combined_pairs,
        "tasks": summary.tasks.0, "local": summary.local, "ranges": summary.tasks.1, "again": summary.again,
        "second_attempts": summary.second_attempts, "fetched_blocks": summary.fetched_blocks,
        "moved_bytes": summary.moved_bytes, "without": without, "seconds": seconds})
}

impl From<JobError> for Failure {
    fn from(error: JobError) -> Self {
        let (code, advice) = match error {
            JobError::Dataset(error) => return error.into(),
            JobError::Name(_)
            | JobError::NoInput
            | JobError::NoOutput
            | JobError::Limit(_)
            | JobError::Limits
            | JobError::Versions { .. } => (Code::Usage, "nothing was done"),
            JobError::NoNode => (Code::Unreachable, "there is no output"),
            JobError::NoProgram { .. } => (Code::NotFound, "nothing was done"),
            JobError::Program(_) => (Code::Failed, "nothing was done"),
            _ => (Code::Failed, "there is no output"),
        };
        Self::new(code, format!("{error}: {advice}"))
    }
}

impl From<ShipError> for Failure {
    fn from(error: ShipError) -> Self {
        match error {
            ShipError::Dataset(error) => error.into(),
            error => Self::other(format!("{error}: nothing was done")),
        }
    }
}
