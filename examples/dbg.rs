use std::time::Duration;
use roundtable::net::Secret;
use roundtable::node::Node;
#[tokio::main]
async fn main() {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    let secret = Secret::random();
    let mk = |d: &str| Node::builder().port(0).runtime_directory(format!("/tmp/dbg/{d}{}", std::process::id())).secret(secret.clone());
    let first = mk("a").start().await.unwrap(); first.ready().await;
    first.client().put("key", "value").await.unwrap();
    let second = mk("b").start().await.unwrap(); second.ready().await;
    let third = mk("c").join([first.addresses(), second.addresses()].concat()).start().await.unwrap(); third.ready().await;
    for n in [&first,&second,&third] { let mut e = n.events(); let id=n.id().short(); std::mem::forget(tokio::task::spawn(async move { while let Ok(ev)=e.recv().await { eprintln!("{id}: {ev:?}"); } })); }
    for i in 0..12 { tokio::time::sleep(Duration::from_millis(1000)).await;
      for n in [&first,&second,&third] { let v=n.client().view().await.map(|v|v.members.len()); let s=n.client().status(n.id()).await.map(|s| (s.replicas.len(), s.replicas.iter().filter(|r|r.voters.len()==3).count(), s.links.len(), s.replicas.iter().filter(|r|r.leader.is_none()).count())); eprintln!("{i} {} {:?} {v:?} {s:?}", n.id().short(), n.swarm()); } }
    std::process::exit(0);
}
