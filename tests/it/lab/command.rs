//! Commands under a lock, as they are typed: alone, in turn, with a token, and ended when the lock is lost.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process};

use super::process::Process;
use super::{LIMIT, Lab, measured, now, since, within};

/// From the loss of the node to the end of a command under a lock with a lease of one second: the lease, and what
/// a shell takes to start and to end.
const END_LIMIT: Duration = Duration::from_millis(1_500);

impl Lab {
    /// Starts a command of the binary on host 0 and does not wait for it.
    fn begin(&self, name: &str, words: &[&str]) -> Process {
        let mut command = self.roundtable(0);
        command.args(words);
        Process::spawn(command, &self.file(name))
    }

    /// Waits until somebody holds the lock.
    fn held(&self, lock: &str) {
        within(LIMIT, "the lock is held", || {
            (self.cli(0, &["lock", "--list", lock]).code == Some(0)).then_some(())
        });
    }
}

fn one_node() -> Lab {
    let mut lab = Lab::this_machine();
    lab.up(0, &[]);
    lab.ready(0);
    lab
}

#[test]
fn a_command_runs_under_a_lock_and_nobody_else_does() {
    let lab = one_node();
    let script = "echo $ROUNDTABLE_LOCK_NAME $ROUNDTABLE_LOCK_TOKEN; exit 7";
    let said = lab.cli(0, &["lock", "nightly", "--", "sh", "-c", script]);
    assert_eq!(said.code, Some(7), "{said:?}");
    let token = said.out.trim().strip_prefix("nightly ").and_then(|token| token.parse::<u64>().ok());
    assert!(token.is_some_and(|token| token > 0), "{said:?}");

    let mut holder = lab.begin("holder", &["lock", "nightly", "--", "sh", "-c", "read line; exit 3"]);
    lab.held("nightly");
    let said = lab.cli(0, &["lock", "nightly", "--wait", "0s", "--", "echo", "ran"]);
    assert_eq!((said.code, said.out.as_str()), (Some(8), ""), "{said:?}");
    let said = lab.cli(0, &["lock", "nightly", "--wait", "300ms", "--", "echo", "ran"]);
    assert_eq!((said.code, said.out.as_str()), (Some(8), ""), "{said:?}");
    // It is served as soon as the first one ends.
    let mut next = lab.begin("next", &["lock", "nightly", "--", "echo", "ran"]);
    within(LIMIT, "the next one waits", || {
        let listed = lab.json(0, &["lock", "--list", "nightly"])?;
        (listed["waiters"].as_array()?.len() == 1).then_some(())
    });
    holder.close_input();
    assert_eq!(holder.ended(LIMIT).code(), Some(3));
    assert!(next.ended(LIMIT).success() && next.output() == "ran\n", "{}", next.output());
    assert_eq!(lab.cli(0, &["lock", "--list", "nightly"]).code, Some(3));
    // As many as there are permits, and no more.
    let mut first = lab.begin("first", &["lock", "pool", "-n", "2", "--", "sh", "-c", "read line"]);
    lab.held("pool");
    let two = ["lock", "pool", "-n", "2", "--wait", "0s", "--", "roundtable-is-not-there"];
    assert_eq!(lab.cli(0, &two).code, Some(127));
    let mut second = lab.begin("second", &["elect", "boss", "--", "sh", "-c", "read line"]);
    lab.held("boss");
    assert_eq!(lab.cli(0, &["elect", "boss", "--wait", "0s", "--", "true"]).code, Some(8));
    for process in [&mut first, &mut second] {
        process.close_input();
        process.ended(LIMIT);
    }
}

#[test]
fn a_write_with_the_token_of_an_earlier_holder_is_refused() {
    let lab = one_node();
    let token = || {
        let said = lab.cli(0, &["lock", "report", "--", "sh", "-c", "echo $ROUNDTABLE_LOCK_TOKEN"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        said.out.trim().to_owned()
    };
    let (earlier, later) = (token(), token());
    let put = |value: &str, token: &str| lab.cli(0, &["put", "report", value, "--token", token]).code;
    assert_eq!(put("first", &earlier), Some(0));
    assert_eq!(put("second", &later), Some(0));
    let said = lab.cli(0, &["put", "report", "late", "--token", &earlier]);
    assert!(said.code == Some(4) && said.err.contains(&later), "{said:?}");
    assert_eq!(lab.cli(0, &["del", "report", "--token", &earlier]).code, Some(4));
    assert_eq!(lab.get(0, "report"), "second");
    assert_eq!(lab.cli(0, &["del", "report", "--token", &later]).code, Some(0));
    // The token is remembered though the key is gone.
    assert_eq!(put("late", &earlier), Some(4));
    // That a command runs under a lock fences nothing by itself.
    let program = lab.roundtable(0).get_program().to_owned();
    let script = "exec \"$0\" put report plain";
    let words = ["lock", "report", "--", "sh", "-c", script, program.to_str().expect("a path")];
    assert_eq!(lab.cli(0, &words).code, Some(0));
    assert_eq!(lab.get(0, "report"), "plain");
}

#[test]
fn a_lock_taken_in_the_chat_is_held_until_it_is_given_back() {
    let lab = one_node();
    let program = lab.roundtable(0).get_program().to_owned();
    let script =
        "printf '/lock it\\n/lock it\\n/locks\\n/unlock it\\n/unlock it\\n/locks\\n' | \"$0\" chat bot";
    let mut chat = lab.command(0, Path::new("sh"));
    chat.args(["-c", script]).arg(program);
    let output = chat.output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("`it`") || line.starts_with("it\t") || *line == "no locks")
        .collect();
    let token = lines[0].trim_start_matches("you hold `it` (token ").trim_end_matches(')').to_owned();
    assert_eq!(
        lines[..],
        [
            format!("you hold `it` (token {token})"),
            format!("you hold `it` already (token {token})"),
            format!("it\theld\ttoken {token}\texclusive\tlease 10s\tbot"),
            "`it` is free".to_owned(),
            "you do not hold `it`".to_owned(),
            "no locks".to_owned(),
        ],
        "{said}"
    );
}

#[test]
fn a_command_and_its_children_end_before_the_lease_of_a_lost_lock() {
    let mut lab = one_node();
    let file = lab.file("child");
    // Neither listens to SIGTERM.
    let script = format!("trap '' TERM; sleep 300 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display());
    let mut holder = lab.begin("holder", &["lock", "it", "--lease", "1s", "--", "sh", "-c", &script]);
    let child = within(LIMIT, "the command runs", || std::fs::read_to_string(&file).ok());
    let child = Pid::from_raw(child.trim().parse().expect("a process")).expect("a process");
    assert!(test_kill_process(child).is_ok());
    lab.node(0).signal(Signal::STOP);
    let stopped = now();
    let status = holder.ended(LIMIT);
    measured("a command ends when its lock is lost", since(stopped), END_LIMIT);
    assert_eq!(status.code(), Some(9), "{}", holder.output());
    within(LIMIT, "its child is gone too", || test_kill_process(child).is_err().then_some(()));
    lab.resume(0);
}
