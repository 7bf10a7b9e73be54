//! Requests per second over one link on loopback, both ends in this process: `cargo bench --bench link`.
//!
//! 100-byte bodies are echoed; so many callers, each with one request in flight, for a few seconds each.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use roundtable::id::NodeId;
use roundtable::net::{Identity, Inbound, LinkInfo, Net, NetConfig, PortPolicy, Responder, Role};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long each round takes.
const ROUND: Duration = Duration::from_secs(3);
/// Bytes of a request and of its response.
const BODY_BYTES: usize = 100;

struct Echo {
    linked: Notify,
}

impl Inbound for Echo {
    fn link_up(&self, _: &LinkInfo) {
        self.linked.notify_one();
    }

    fn link_down(&self, _: NodeId, _: &str) {}

    fn request(&self, _: NodeId, _: Role, body: Bytes, respond: Responder) {
        respond.send(body.to_vec());
    }

    fn message(&self, _: NodeId, _: Bytes) {}
}

async fn start(echo: &Arc<Echo>) -> Result<Net, Box<dyn std::error::Error>> {
    let config = NetConfig {
        listen: vec!["127.0.0.1".into()],
        port: PortPolicy::Exact(0),
        ..NetConfig::new(Identity::generate(), "bench")
    };
    let (net, _) = Net::start(config, Arc::<Echo>::clone(echo)).await?;
    Ok(net)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let echo = Arc::new(Echo { linked: Notify::new() });
    let (a, b) = (start(&echo).await?, start(&echo).await?);
    a.dial(&b.listen_addresses()[0])?;
    while !a.is_linked(b.node_id()) {
        echo.linked.notified().await;
    }
    println!("in flight   requests/s   mean latency");
    for in_flight in [1, 64, 512] {
        let answered = Arc::new(AtomicU64::new(0));
        let end = Instant::now() + ROUND;
        let mut callers = JoinSet::new();
        for _ in 0..in_flight {
            let (net, to, answered) = (a.clone(), b.node_id(), Arc::clone(&answered));
            callers.spawn(async move {
                while Instant::now() < end {
                    let body = vec![7; BODY_BYTES];
                    if net.call(to, body, Duration::from_secs(5)).await.is_ok() {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        while callers.join_next().await.is_some() {}
        let count = answered.load(Ordering::Relaxed);
        let latency = ROUND * in_flight / u32::try_from(count.max(1))?;
        #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
        let rate = count as f64 / ROUND.as_secs_f64();
        println!("{in_flight:>9}   {rate:>10.0}   {latency:>12.1?}");
    }
    a.shutdown().await;
    b.shutdown().await;
    Ok(())
}
