//! From what was typed to a node, or to a client of a swarm; and from the library's errors to exit codes.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::exit::{Code, Failure};
use super::up::Up;
use crate::client::{Error, LockError};
use crate::id::NodeId;
use crate::net::{Net, Secret, Ticket};
use crate::node::{ConnectError, Node, StartError, Visitor};

/// The environment variable that holds a secret itself.
const SECRET_VARIABLE: &str = "ROUNDTABLE_SECRET";

/// Which swarm is meant, and how to reach it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The swarm's name.
    pub(super) swarm: String,
    /// Where its secret is.
    pub(super) secret_file: Option<PathBuf>,
    /// Addresses and tickets.
    pub(super) join: Vec<String>,
    /// Whether to look by multicast DNS.
    pub(super) mdns: bool,
    /// Where the nodes of this machine leave their addresses.
    pub(super) runtime_dir: Option<PathBuf>,
    /// How long an operation may take.
    pub(super) timeout: Duration,
}

/// The client that every command uses.
pub(super) type Client = crate::client::Client<Net>;

/// A connection to a swarm; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Session {
    /// Speaks to the swarm, with the deadline that was asked for.
    pub(super) client: Client,
    visitor: Visitor,
}

impl Session {
    /// A node that answers, if there is one at the moment.
    pub(super) fn linked_node(&self) -> Option<NodeId> {
        self.visitor.linked_node()
    }

    /// The swarm's nodes that this user runs on this machine.
    pub(super) fn local_nodes(&self) -> &[NodeId] {
        self.visitor.local_nodes()
    }
}

/// Connects as a visitor: by the addresses and tickets given, else through the nodes of this machine.
pub(super) async fn connect(target: &Target) -> Result<Session, Failure> {
    let mut visitor = Visitor::builder().swarm(&target.swarm).join(&target.join).timeout(target.timeout);
    if let Some(secret) = secret(target)? {
        visitor = visitor.secret(secret);
    }
    if let Some(directory) = &target.runtime_dir {
        visitor = visitor.runtime_directory(directory);
    }
    let visitor = visitor.connect().await?;
    Ok(Session { client: visitor.client().with_deadline(target.timeout), visitor })
}

/// Starts a node that listens as far as `reach` says.
pub(super) async fn start(target: &Target, up: &Up, reach: crate::node::Reach) -> Result<Node, Failure> {
    let mut node = Node::builder().swarm(&target.swarm).reach(reach).open(up.open).join(&target.join);
    if let Some(secret) = secret(target)? {
        node = node.secret(secret);
    }
    if let Some(port) = up.port {
        node = node.port(port);
    }
    if !target.mdns {
        node = node.mdns(false);
    }
    if let Some(partitions) = up.partitions {
        node = node.partitions(partitions);
    }
    if let Some(weight) = up.weight {
        node = node.weight(weight);
    }
    if let Some(limit) = up.data_limit {
        node = node.block_budget(limit);
    }
    if let Some(limit) = up.job_memory {
        node = node.job_memory(limit);
    }
    if let Some(grace) = up.replace_after {
        node = node.replace_after(grace);
    }
    if let Some(directory) = &target.runtime_dir {
        node = node.runtime_directory(directory);
    }
    let Some(directory) = &up.data_dir else { return Ok(node.start().await?) };
    let bar = progress_bar();
    let shown = bar.clone();
    let started = node
        .data_dir(directory)
        .on_loading(move |progress| {
            shown.set_length(progress.total);
            shown.set_position(progress.read);
        })
        .start()
        .await;
    bar.finish_and_clear();
    Ok(started?)
}

/// How far the reading of the data directory is; silent when piped.
fn progress_bar() -> ProgressBar {
    let style = "reading the data directory {wide_bar} {bytes}/{total_bytes}, {eta} left";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

/// The addresses behind `--join`, those within tickets included, and whether a secret came with them.
pub(super) fn looked_up(join: &[String]) -> Result<(Vec<String>, bool), Failure> {
    let mut addresses = Vec::new();
    let mut with_secret = false;
    for text in join {
        if Ticket::looks_like(text) {
            let ticket: Ticket = text.parse().map_err(StartError::from)?;
            addresses.extend(ticket.addresses);
            with_secret |= ticket.secret.is_some();
        } else {
            addresses.push(text.clone());
        }
    }
    Ok((addresses, with_secret))
}

/// The secret given by file, else by environment.
pub(super) fn secret(target: &Target) -> Result<Option<Secret>, Failure> {
    let read = match &target.secret_file {
        Some(file) => Secret::from_file(file),
        None => match std::env::var(SECRET_VARIABLE) {
            Ok(text) if !text.is_empty() => text.parse(),
            _ => return Ok(None),
        },
    };
    match read {
        Ok(secret) => Ok(Some(secret)),
        Err(error) => Err(Failure::new(Code::Usage, format!("the secret: {error}"))),
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Start(error) => error.into(),
            error @ ConnectError::NoNode { .. } => Self::new(
                Code::Unreachable,
                format!("{error}: `roundtable up` starts one, --join names one elsewhere"),
            ),
            error => Self::new(Code::Unreachable, format!("{error}: nothing was done")),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let code = match error {
            StartError::Net(_) | StartError::Data(_) => Code::Failed,
            _ => Code::Usage,
        };
        Self::new(code, error.to_string())
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Store(error) => error.into(),
            LockError::Lost => Self::new(Code::LockLost, error.to_string()),
            error => Self::new(Code::NotAcquired, format!("{error}; `roundtable lock --list` shows who")),
        }
    }
}

/// Says for people what went wrong, whether anything was changed and what to do, with the exit code.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, advice) = match &error {
            Error::NotFound => (Code::NotFound, "nothing was changed"),
            Error::Conflict { .. } => {
                (Code::Conflict, "nothing was written; read it again and try with that version")
            }
            Error::Fenced { .. } => (Code::Conflict, "nothing was written"),
            Error::NoQuorum => (
                Code::NoQuorum,
                "nothing was changed; `roundtable members` shows who is missing, `get --stale` reads nevertheless",
            ),
            Error::Overloaded => {
                (Code::Failed, "nothing was changed; try again later or with a longer --timeout")
            }
            Error::StorageFull => (
                Code::Failed,
                "nothing was changed; make room there, and writes go on by themselves (`roundtable where KEY` names the node)",
            ),
            Error::Unreachable => (
                Code::Unreachable,
                "nothing was changed; `roundtable up` starts a node, --join names one elsewhere",
            ),
            Error::NotServing => (
                Code::Unreachable,
                "nothing was changed; try again in a moment, `roundtable status` shows why",
            ),
            Error::TimedOut => (Code::Unreachable, "nothing was changed; try a longer --timeout"),
            Error::Unknown => (Code::Unknown, "read the key to see whether it was"),
            _ => (Code::Failed, "nothing was changed"),
        };
        Self::new(code, format!("{error}: {advice}"))
    }
}
