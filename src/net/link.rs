//! Links: two long-lived substreams to one node, over which requests are answered and messages flow.
//!
//! A request costs no task and no stream. Callers append frames to a queue in memory; one writer per substream
//! takes all that queued meanwhile and sends it in one write and one flush, for each flush is a system call.
//! One reader per substream cuts what arrives into frames and hands them on at once; the handler must not
//! block, and answers through a [`Responder`] whenever it likes.
//!
//! A link that is silent for too long is closed: TCP alone would take minutes to notice a cut.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::behaviour::Channel;
use super::frame::{self, Frame, FrameReader, Kind, MAX_BODY_BYTES};
use super::{CallError, Inbound, LinkInfo, Role, SendError};
use crate::id::NodeId;

/// Bytes that may wait to be written; per substream. Twice that while a batch is being written.
const MAX_QUEUED_BYTES: usize = 2 * MAX_BODY_BYTES;
/// Bytes of refusals and heartbeats that may wait above [`MAX_QUEUED_BYTES`]; per substream. Beyond, the peer
/// sends requests without reading answers, and the link is closed.
const MAX_QUEUED_CONTROL_BYTES: usize = 256 * 1024;
/// Requests that a peer may have unanswered here; per link. Further ones are answered "overloaded".
const MAX_UNANSWERED_REQUESTS: usize = 4096;
/// Calls that may await their response; per link.
const MAX_PENDING_CALLS: usize = 65_536;
/// Bytes asked of a substream at once.
const READ_BYTES: usize = 64 * 1024;
/// A queue's buffer that grew beyond this is given back when it is empty.
const RETAINED_BYTES: usize = 256 * 1024;
/// How long a link that is closed in good order may take to flush and to hear the other end close.
const GOODBYE_LIMIT: Duration = Duration::from_millis(500);
/// Longest reason in a goodbye, in characters.
const MAX_REASON_CHARS: usize = 200;

/// Why a link ended if nothing more is known.
const CLOSED: &str = "connection closed";

/// When a silent link is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// How often each end says that it lives, unless it says something else. Well below `limit`.
    pub interval: Duration,
    /// A link on which nothing arrived for this long is closed. At least twice the longest round trip, and
    /// longer than a busy machine keeps a task waiting.
    pub limit: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: Duration::from_millis(500), limit: Duration::from_secs(2) }
    }
}

/// One link. Shared by its callers, its responders and the task that runs it.
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) role: Role,
    pub(super) address: String,
    pub(super) inbound: bool,
    pub(super) since: Instant,
    requests: Outbox,
    messages: Outbox,
    pending: Mutex<Pending>,
    unanswered: AtomicUsize,
    /// Reads that brought something, on both substreams: proof of life.
    reads: AtomicU64,
    /// Writes, on both substreams.
    writes: AtomicU64,
    stop: Mutex<Option<Stop>>,
    stopping: CancellationToken,
    /// The link is over and everyone was told.
    pub(super) ended: CancellationToken,
}

/// How a link is to end.
#[derive(Debug, Clone)]
enum Stop {
    /// Flush, say goodbye.
    InGoodOrder(String),
    AtOnce(String),
}

#[derive(Default)]
struct Pending {
    closed: bool,
    last_id: u64,
    callers: HashMap<u64, oneshot::Sender<Result<Bytes, CallError>>>,
}

/// Nothing guarded here is left half-changed by a panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(super) fn new(node: NodeId, role: Role, address: String, inbound: bool) -> Arc<Self> {
        Arc::new(Self {
            node,
            role,
            address,
            inbound,
            since: Instant::now(),
            requests: Outbox::default(),
            messages: Outbox::default(),
            pending: Mutex::default(),
            unanswered: AtomicUsize::new(0),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            stop: Mutex::new(None),
            stopping: CancellationToken::new(),
            ended: CancellationToken::new(),
        })
    }

    pub(super) fn info(&self) -> LinkInfo {
        LinkInfo {
            node: self.node,
            role: self.role,
            address: self.address.clone(),
            inbound: self.inbound,
            age: self.since.elapsed(),
        }
    }

    /// Grows while the peer lives.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Calls whose response is awaited.
    #[cfg(test)]
    pub(super) fn pending_calls(&self) -> usize {
        lock(&self.pending).callers.len()
    }

    pub(super) async fn call(&self, body: &[u8], timeout: Duration) -> Result<Bytes, CallError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(CallError::NotSent("the request is too large"));
        }
        let (caller, answered) = oneshot::channel();
        let id = {
            let mut pending = lock(&self.pending);
            if pending.closed {
                return Err(CallError::NotSent("the link is down"));
            }
            if pending.callers.len() >= MAX_PENDING_CALLS {
                return Err(CallError::NotSent("too many calls are waiting"));
            }
            pending.last_id += 1;
            let id = pending.last_id;
            pending.callers.insert(id, caller);
            id
        };
        let _call = Call { link: self, id };
        self.requests.push(Kind::Request, id, body).map_err(|error| CallError::NotSent(error.reason()))?;
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(CallError::Lost("the link broke")),
            Err(_) => Err(CallError::Lost("the time was up")),
        }
    }

    pub(super) fn send(&self, body: &[u8]) -> Result<(), SendError> {
        if body.len() > MAX_BODY_BYTES {
            return Err(SendError::TooLarge);
        }
        self.messages.push(Kind::Message, 0, body).map_err(|error| match error {
            PushError::Full => SendError::Full,
            PushError::Closed => SendError::NoLink,
        })
    }

    /// Closes the link after what is queued was written; the peer hears why.
    pub(super) fn close(&self, why: &str) {
        self.stop(Stop::InGoodOrder(clean(why)));
    }

    /// Closes the link without a word.
    pub(super) fn abort(&self, why: &str) {
        self.stop(Stop::AtOnce(why.to_owned()));
    }

    /// Whether that is how it ends now, and did not before.
    fn stop(&self, how: Stop) -> bool {
        let mut stop = lock(&self.stop);
        let news = matches!((&*stop, &how), (None, _) | (Some(Stop::InGoodOrder(_)), Stop::AtOnce(_)));
        if news {
            *stop = Some(how);
        }
        drop(stop);
        self.stopping.cancel();
        news
    }

    fn outbox(&self, channel: Channel) -> &Outbox {
        match channel {
            Channel::Requests => &self.requests,
            Channel::Messages => &self.messages,
        }
    }

    /// Puts a frame without a body into the queue of answers, even if it is full.
    fn push_control(&self, kind: Kind, id: u64) {
        if self.requests.push_control(kind, id, &[]) == Err(PushError::Full) {
            let why = "the other side does not read what it asked for";
            if self.stop(Stop::AtOnce(why.to_owned())) {
                tracing::warn!(peer = %self.node, address = %self.address, "link closed: {why}");
            }
        }
    }

    fn answer(&self, id: u64, outcome: Result<Bytes, CallError>) {
        let caller = lock(&self.pending).callers.remove(&id);
        if let Some(caller) = caller {
            // The caller may have given up at this very moment.
            let _ = caller.send(outcome);
        }
    }

    /// Refuses further calls and fails those that wait.
    fn fail_all(&self) {
        self.requests.close();
        self.messages.close();
        let callers = {
            let mut pending = lock(&self.pending);
            pending.closed = true;
            std::mem::take(&mut pending.callers)
        };
        drop(callers);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({:?} at {})", self.node, self.address)
    }
}

/// A call in progress: forgotten when its caller is gone, whatever made it go.
struct Call<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        lock(&self.link.pending).callers.remove(&self.id);
    }
}

/// Answers one request. Dropped without [`send`](Self::send), it tells the caller that there is no response.
#[derive(Debug)]
pub struct Responder {
    link: Arc<Link>,
    id: u64,
    answered: bool,
}

impl Responder {
    /// Sends the response; at most [`MAX_MESSAGE_BYTES`](crate::codec::MAX_MESSAGE_BYTES). If it is too large,
    /// or too much waits to be sent, the caller hears that there is no response.
    #[expect(clippy::needless_pass_by_value, reason = "callers have encoded it for this")]
    pub fn send(mut self, body: Vec<u8>) {
        self.answered = body.len() <= MAX_BODY_BYTES
            && self.link.requests.push(Kind::Response, self.id, &body) != Err(PushError::Full);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.link.unanswered.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            self.link.push_control(Kind::NotServed, self.id);
        }
    }
}

/// Frames that wait to be written, as one run of bytes.
#[derive(Default)]
struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Default)]
struct Queue {
    // Invariant: bytes.len() <= MAX_QUEUED_BYTES + MAX_QUEUED_CONTROL_BYTES.
    bytes: Vec<u8>,
    closed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum PushError {
    Full,
    Closed,
}

impl PushError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Full => "too much waits to be sent",
            Self::Closed => "the link is down",
        }
    }
}

impl Outbox {
    fn push(&self, kind: Kind, id: u64, body: &[u8]) -> Result<(), PushError> {
        self.push_up_to(MAX_QUEUED_BYTES, kind, id, body)
    }

    fn push_control(&self, kind: Kind, id: u64, body: &[u8]) -> Result<(), PushError> {
        self.push_up_to(MAX_QUEUED_BYTES + MAX_QUEUED_CONTROL_BYTES, kind, id, body)
    }

    fn push_up_to(&self, limit: usize, kind: Kind, id: u64, body: &[u8]) -> Result<(), PushError> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(PushError::Closed);
        }
        if queue.bytes.len() + frame::FRAME_OVERHEAD_BYTES + body.len() > limit {
            return Err(PushError::Full);
        }
        let was_empty = queue.bytes.is_empty();
        frame::append(&mut queue.bytes, kind, id, body);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Waits for bytes. `false`: closed, and nothing is left.
    async fn wait(&self) -> bool {
        loop {
            {
                let queue = lock(&self.queue);
                if !queue.bytes.is_empty() {
                    return true;
                }
                if queue.closed {
                    return false;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Swaps what waits into the empty `batch`.
    fn take(&self, batch: &mut Vec<u8>) {
        std::mem::swap(&mut lock(&self.queue).bytes, batch);
    }

    /// What is queued is still written; nothing is added.
    fn close(&self) {
        lock(&self.queue).closed = true;
        self.filled.notify_one();
    }
}

/// Runs a link until it ends, and returns why. The handler hears nothing of it any more when this returns.
pub(super) async fn run<S>(
    link: &Arc<Link>,
    requests: S,
    messages: S,
    inbound: &Arc<dyn Inbound>,
    heartbeat: Heartbeat,
) -> String
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut tasks = JoinSet::new();
    for (stream, channel) in [(requests, Channel::Requests), (messages, Channel::Messages)] {
        let (reader, writer) = stream.split();
        let (reading, writing, inbound) = (Arc::clone(link), Arc::clone(link), Arc::clone(inbound));
        tasks.spawn(async move { (channel, read(reader, reading, inbound).await) });
        tasks.spawn(async move { (channel, write(writer, &writing, channel).await) });
    }
    let reason = supervise(link, &mut tasks, heartbeat).await;
    tasks.shutdown().await;
    link.fail_all();
    reason
}

/// How a reader or writer ended.
enum End {
    /// The other side said that it closes the link.
    Goodbye(String),
    /// The other side sends no more.
    Finished,
    Broken(String),
}

type Tasks = JoinSet<(Channel, End)>;

async fn supervise(link: &Link, tasks: &mut Tasks, heartbeat: Heartbeat) -> String {
    let tick = heartbeat.interval.max(Duration::from_millis(1));
    let mut ticks = common_ticks(tick);
    let mut last_tick = Instant::now();
    let mut reads = 0;
    let mut writes = 0;
    let mut silence = Duration::ZERO;
    // When the other side closes in good order, its goodbye is on one substream and its last messages are on
    // the other: after the first of the two ends, the second has a moment.
    let mut goodbye = None;
    let mut messages_finished = false;
    let mut grace: Option<Instant> = None;
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(Ok((Channel::Requests, End::Goodbye(reason)))) => goodbye = Some(reason),
                Some(Ok((Channel::Messages, End::Finished))) => messages_finished = true,
                Some(Ok((_, End::Goodbye(reason) | End::Broken(reason)))) => {
                    return goodbye.unwrap_or(reason);
                }
                Some(Err(error)) if error.is_panic() => {
                    return "the handler of what it sent failed".to_owned();
                }
                _ => return goodbye.unwrap_or_else(|| CLOSED.to_owned()),
            },
            () = link.stopping.cancelled() => return say_goodbye(link, tasks).await,
            _ = ticks.tick() => {
                // If this process itself was held up, that is no silence of the peer: count two ticks at most.
                let passed = last_tick.elapsed().min(tick * 2);
                last_tick = Instant::now();
                silence = if link.reads() == reads { silence + passed } else { Duration::ZERO };
                reads = link.reads();
                if silence >= heartbeat.limit {
                    return format!("no heartbeat for {:?}", heartbeat.limit);
                }
                let written = link.writes.load(Ordering::Relaxed);
                let silent = written == writes;
                // Whoever says something else is alive as well; the heartbeat itself is one write.
                writes = written + u64::from(silent);
                if silent {
                    link.push_control(Kind::Heartbeat, 0);
                }
            }
            () = tokio::time::sleep_until(grace.unwrap_or(last_tick)), if grace.is_some() => {
                return goodbye.unwrap_or_else(|| CLOSED.to_owned());
            }
        }
        if goodbye.is_some() && messages_finished {
            return goodbye.unwrap_or_default();
        }
        if goodbye.is_some() || messages_finished {
            grace.get_or_insert(Instant::now() + GOODBYE_LIMIT);
        }
    }
}

/// Ticks at the same moments for all links of a process: if it is idle, it wakes once for all of them.
fn common_ticks(tick: Duration) -> Interval {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let mut ticks = tokio::time::interval_at(Instant::now() + until_next(FIRST.elapsed(), tick), tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Time to the next whole number of ticks.
fn until_next(passed: Duration, tick: Duration) -> Duration {
    let ahead = tick.as_nanos() - passed.as_nanos() % tick.as_nanos();
    u64::try_from(ahead).map_or(tick, Duration::from_nanos)
}

async fn say_goodbye(link: &Link, tasks: &mut Tasks) -> String {
    let how = lock(&link.stop).clone();
    match how {
        Some(Stop::InGoodOrder(why)) => {
            // If the queue is full, the peer hears only that the connection closed.
            let _ = link.requests.push_control(Kind::Goodbye, 0, why.as_bytes());
            link.requests.close();
            link.messages.close();
            let all_ended = async { while tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(GOODBYE_LIMIT, all_ended).await;
            format!("closed here: {why}")
        }
        Some(Stop::AtOnce(why)) => why,
        None => "closed here".to_owned(),
    }
}

async fn write<W: AsyncWrite + Unpin>(mut writer: W, link: &Link, channel: Channel) -> End {
    let outbox = link.outbox(channel);
    let mut batch = Vec::new();
    let written: io::Result<()> = async {
        while outbox.wait().await {
            // Whoever else is ready to run may have something to say as well.
            stand_back().await;
            outbox.take(&mut batch);
            writer.write_all(&batch).await?;
            writer.flush().await?;
            link.writes.fetch_add(1, Ordering::Relaxed);
            batch.clear();
            if batch.capacity() > RETAINED_BYTES {
                batch = Vec::new();
            }
        }
        writer.close().await
    }
    .await;
    match written {
        Ok(()) => End::Broken("closed here".to_owned()),
        Err(error) => broken(&error),
    }
}

/// Lets all tasks run that are ready. A task that wakes another would otherwise be followed by that one at once, whoever
/// else waits; and `tokio::task::yield_now` also asks the system for news, which nobody needs here.
pub(crate) async fn stand_back() {
    let mut stood_back = false;
    poll_fn(|context| {
        if std::mem::replace(&mut stood_back, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn read<R: AsyncRead + Unpin>(mut reader: R, link: Arc<Link>, inbound: Arc<dyn Inbound>) -> End {
    let mut arrived = vec![0; READ_BYTES];
    let mut frames = FrameReader::default();
    loop {
        match reader.read(&mut arrived).await {
            Ok(0) => return End::Finished,
            Ok(count) => frames.feed(&arrived[..count]),
            Err(error) => return broken(&error),
        }
        link.reads.fetch_add(1, Ordering::Relaxed);
        loop {
            match frames.next() {
                Ok(Some(frame)) => {
                    if let Some(why) = handle(&link, &inbound, frame) {
                        return End::Goodbye(format!("closed by the other side: {why}"));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(peer = %link.node, address = %link.address, %error, "link closed");
                    return End::Broken(error.to_string());
                }
            }
        }
    }
}

/// Hands a frame on. `Some`: the other side closes the link, and why.
fn handle(link: &Arc<Link>, inbound: &Arc<dyn Inbound>, frame: Frame) -> Option<String> {
    let Frame { kind, id, body } = frame;
    match kind {
        Kind::Request => {
            if link.unanswered.fetch_add(1, Ordering::Relaxed) >= MAX_UNANSWERED_REQUESTS {
                link.unanswered.fetch_sub(1, Ordering::Relaxed);
                link.push_control(Kind::Overloaded, id);
            } else {
                let responder = Responder { link: Arc::clone(link), id, answered: false };
                inbound.request(link.node, link.role, body, responder);
            }
        }
        Kind::Response => link.answer(id, Ok(body)),
        Kind::NotServed => link.answer(id, Err(CallError::Lost("the node gave no response"))),
        Kind::Overloaded => link.answer(id, Err(CallError::NotSent("the node is overloaded"))),
        Kind::Message => inbound.message(link.node, body),
        Kind::Heartbeat => {}
        Kind::Goodbye => return Some(clean(&String::from_utf8_lossy(&body))),
    }
    None
}

fn broken(error: &io::Error) -> End {
    End::Broken(match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::WriteZero
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted => CLOSED.to_owned(),
        _ => format!("{CLOSED} ({error})"),
    })
}

/// A peer's words, fit for a terminal.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_tick_together_whenever_they_were_made() {
        let tick = Duration::from_millis(500);
        for passed in [0, 1, 499, 500, 501, 1234].map(Duration::from_millis) {
            let ahead = until_next(passed, tick);
            assert!(!ahead.is_zero() && ahead <= tick);
            assert_eq!((passed + ahead).as_nanos() % tick.as_nanos(), 0);
        }
    }
}
