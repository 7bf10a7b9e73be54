//! Processes of a peer: started on loopback, measured through `/proc`, killed when dropped.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Unit of the times in `/proc/PID/stat`: what the kernel tells programs is always in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two looks at whether something is ready.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// A peer that is not ready by then has failed.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How much of a server's output is shown when it ended by itself.
const LOG_TAIL_BYTES: usize = 800;

/// The server processes of one peer.
#[derive(Debug)]
pub(crate) struct Servers {
    /// Holds their data and logs; removed with them.
    dir: PathBuf,
    /// Who counts the fsyncs of what is started, if they are counted.
    strace: Option<PathBuf>,
    running: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    name: String,
    child: Child,
}

impl Servers {
    /// None yet. With `strace`, each is started under it; it stops them at syncs, opens and writes at a place.
    pub(crate) fn new(dir: PathBuf, strace: Option<&PathBuf>) -> Result<Self> {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir, strace: strace.cloned(), running: Vec::new() })
    }

    /// A fresh directory for one of them.
    pub(crate) fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Starts one. It is killed with this process, however this process ends.
    pub(crate) fn start(&mut self, name: &str, command: &Command) -> Result<()> {
        let mut wrapped = Command::new("setpriv");
        wrapped.args(["--pdeathsig", "KILL"]);
        if let Some(strace) = &self.strace {
            // `-D`: the server stays our child, so that killing it kills it and not its tracer.
            wrapped.arg(strace).args([
                "-D",
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-y",
                "-e",
                "trace=fsync,fdatasync,openat,pwrite64",
                "-o",
            ]);
            wrapped.arg(self.dir.join(format!("{name}.strace")));
        }
        wrapped.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(key, value);
            }
        }
        let log = File::create(self.dir.join(format!("{name}.log")))?;
        wrapped.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = wrapped.spawn().with_context(|| format!("cannot start {name}"))?;
        self.running.push(Server { name: name.to_owned(), child });
        Ok(())
    }

    /// An error if one has ended by itself, with the end of what it said.
    pub(crate) fn check(&mut self) -> Result<()> {
        for server in &mut self.running {
            if let Some(status) = server.child.try_wait()? {
                let log = fs::read(self.dir.join(format!("{}.log", server.name))).unwrap_or_default();
                let tail =
                    String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
                bail!("{} ended by itself ({status}): {tail}", server.name);
            }
        }
        Ok(())
    }

    /// Waits until `ready` says so; what it last said otherwise is the error.
    pub(crate) async fn wait_until(
        &mut self,
        what: &str,
        mut ready: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            self.check()?;
            let outcome = ready().await;
            if matches!(outcome, Ok(true)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                outcome.with_context(|| format!("waited in vain: {what}"))?;
                bail!("waited in vain: {what}");
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Ends one at once, as a crash does.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        let index = self.running.iter().position(|server| server.name == name);
        let mut server = self.running.swap_remove(index.with_context(|| format!("no server {name}"))?);
        server.child.kill()?;
        server.child.wait()?;
        Ok(())
    }

    /// CPU time that all of them have used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.running.iter().map(|server| Ok(stat(server.child.id())?.cpu)).sum()
    }

    /// CPU time that all their threads that are still there have used so far: finer than [`cpu`](Self::cpu), for what
    /// is done in short moments.
    pub(crate) fn thread_time(&self) -> Result<Duration> {
        let mut nanos = 0;
        for server in &self.running {
            for thread in fs::read_dir(format!("/proc/{}/task", server.child.id()))? {
                let text = fs::read_to_string(thread?.path().join("schedstat"))?;
                nanos += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.running.len()
    }

    /// Resident memory of all of them, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        self.running.iter().map(|server| memory(server.child.id())).sum()
    }

    /// Syncs by all of them so far: calls of fsync and fdatasync, and writes to files that were opened so that a write
    /// is a sync; only when they were started to be traced.
    pub(crate) fn fsyncs(&self) -> Result<Option<u64>> {
        if self.strace.is_none() {
            return Ok(None);
        }
        let mut count = 0;
        for server in &self.running {
            let lines = fs::read_to_string(self.dir.join(format!("{}.strace", server.name)))?;
            let opened = lines.lines().filter(|line| line.contains("O_DSYNC"));
            let synced: HashSet<&str> = opened.filter_map(|line| between(line, '"', '"')).collect();
            // A call that another thread interrupts is written as two lines; the second does not name it so.
            let is_sync = |line: &&str| {
                line.contains("sync(")
                    || line.contains("pwrite64(")
                        && between(line, '<', '>').is_some_and(|path| synced.contains(path))
            };
            count += lines.lines().filter(is_sync).count() as u64;
        }
        Ok(Some(count))
    }
}

/// What stands between the first two of these characters.
fn between(line: &str, open: char, close: char) -> Option<&str> {
    line.split_once(open)?.1.split_once(close).map(|(inner, _)| inner)
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.running {
            let _ = server.child.kill();
        }
        for server in &mut self.running {
            let _ = server.child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What the kernel says of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    /// Of the process and of those of its children that have ended.
    pub(crate) cpu: Duration,
    /// Ended, and not yet waited for.
    pub(crate) ended: bool,
}

/// Reads `/proc/PID/stat`.
pub(crate) fn stat(pid: u32) -> Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    parse_stat(&fs::read_to_string(&path).with_context(|| path.clone())?).context(path)
}

/// Resident memory of a process, in bytes.
fn memory(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
    Ok(kibibytes * 1024)
}

fn parse_stat(text: &str) -> Result<Stat> {
    // The name of the program stands in parentheses and may contain spaces.
    let (_, fields) = text.rsplit_once(')').context("no program name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let state = fields.first().context("no state")?;
    // utime, stime, cutime and cstime are fields 14 to 17 of proc(5); the state is field 3.
    let times = fields.get(11..15).context("too short")?;
    let mut ticks = 0.0;
    for time in times {
        ticks += time.parse::<f64>()?;
    }
    Ok(Stat { cpu: Duration::from_secs_f64(ticks / TICKS_PER_SECOND), ended: *state == "Z" })
}

/// Ports of loopback that nobody listens on now.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All are held until all are known, so that none is given twice.
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_that_of_the_process_and_its_ended_children() {
        let text = "12 (a ) b) S 1 12 12 0 -1 4194560 100 200 0 0 150 50 30 20 20 0 5 0 100 1000 200";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.cpu, Duration::from_millis(2500));
        assert!(!stat.ended);
        assert!(parse_stat("12 (x) Z 1 1 1 0 -1 0 0 0 0 0 1 1 0 0 20").unwrap().ended);
        assert!(parse_stat("12 (x) S 1").is_err());
    }
}
