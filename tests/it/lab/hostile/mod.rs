//! What people and strangers do wrong: each is told, and the node serves on.

mod raw;
mod siege;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::{Lab, Said};

/// Longest that a stranger's connection is looked at.
const PATIENCE: Duration = Duration::from_secs(20);

fn serving() -> (Lab, u16) {
    let mut lab = Lab::this_machine();
    lab.up(0, &[]);
    lab.ready(0);
    lab.put(0, "key", "value");
    let line = lab.says(0, " listens on ");
    let port = line.rsplit(':').next().and_then(|port| port.trim().parse().ok()).expect("a port");
    (lab, port)
}

/// Ended with this code and one line that says this; the node serves as before.
fn refused(lab: &Lab, said: &Said, code: i32, hint: &str) {
    assert_eq!(said.code, Some(code), "{said:?}");
    assert!(said.err.contains(hint), "no {hint:?} in {said:?}");
    assert!(!said.err.contains("panicked"), "{said:?}");
    assert_eq!(lab.get(0, "key"), "value");
}

#[test]
fn too_large_is_refused_and_changes_nothing() {
    let (lab, _) = serving();
    refused(&lab, &lab.cli(0, &["put", &"k".repeat(4097), "v"]), 2, "4096 bytes");
    refused(&lab, &lab.cli(0, &["put", "", "v"]), 2, "at least one byte");
    let mut put = lab.roundtable(0);
    put.args(["put", "key", "-"]).stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut put = put.spawn().expect("the binary runs");
    // It stops reading when it has read enough.
    drop(put.stdin.take().expect("piped").write_all(&vec![b'v'; (1 << 20) + 1]));
    let output = put.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(err.contains("larger than 1048576 bytes"), "{err}");
    assert_eq!(lab.get(0, "key"), "value");
}

#[test]
fn wrong_addresses_tickets_secrets_and_flags_are_told() {
    let (lab, port) = serving();
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let nobody = nobody.to_string();
    let said = lab.cli(0, &["get", "key", "--join", &nobody, "--timeout", "2s"]);
    refused(&lab, &said, 6, "nothing was done");
    refused(&lab, &lab.cli(0, &["get", "key", "--join", "rt1nonsense"]), 2, "bad ticket");
    refused(&lab, &lab.cli(0, &["up", "--join", "rt1nonsense"]), 2, "bad ticket");
    refused(&lab, &lab.cli(0, &["get", "key", "--join", "not an address"]), 2, "address");
    refused(&lab, &lab.cli(0, &["up", "--lan", "--listen", "/ip4/127.0.0.1/tcp/1"]), 2, "give one of them");
    refused(&lab, &lab.cli(0, &["up", "--open"]), 2, "--open needs --lan");
    refused(&lab, &lab.cli(0, &["up", "--partitions", "0"]), 2, "0");
    refused(&lab, &lab.cli(0, &["up", "--partitions", "100000"]), 2, "100000");
    refused(&lab, &lab.cli(0, &["fly"]), 2, "fly");
    refused(&lab, &lab.cli(0, &["get", "key", "--secret-file", "/nowhere"]), 2, "secret");
    refused(&lab, &lab.cli(0, &["get", "key", "--swarm", "another"]), 6, "another");

    let theirs = lab.file("theirs");
    std::fs::write(&theirs, roundtable::net::Secret::random().to_text()).expect("a file");
    let theirs = theirs.to_str().expect("a name");
    let ours = format!("127.0.0.1:{port}");
    let said = lab.cli(0, &["get", "key", "--join", &ours, "--secret-file", theirs, "--timeout", "2s"]);
    refused(&lab, &said, 6, "secret");
}

#[test]
fn a_port_in_use_is_told() {
    let (lab, port) = serving();
    let said = lab.cli(0, &["up", "--port", &port.to_string()]);
    refused(&lab, &said, 1, &port.to_string());
}

#[test]
fn garbage_and_silence_at_the_port_harm_nobody() {
    let (mut lab, port) = serving();
    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let before = lab.node(0).resident_kib();
    let mut longest = vec![0xff_u8; 4];
    longest.extend(vec![0; 1 << 20]);
    let huge_line = [b"\xff\xff\xff\xff\x0f".as_slice(), &vec![b'/'; 1 << 16]].concat();
    let half = b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xffgarbage".to_vec();
    let http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    for bytes in [longest, huge_line, half, http, vec![0; 1 << 16]] {
        let mut stream = connect();
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        // It may hang up in the middle.
        drop(stream.write_all(&bytes));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let ended = stream.read_to_end(&mut Vec::new());
        let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out, "a stranger's connection is still open");
        assert_eq!(lab.get(0, "key"), "value");
    }
    // Strangers that say nothing, and stay: more than may be pending.
    let silent: Vec<TcpStream> = (0..300).map(|_| connect()).collect();
    assert_eq!(lab.get(0, "key"), "value", "strangers that say nothing keep nobody out");
    drop(silent);
    let grown = lab.node(0).resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more after the garbage");
    assert!(!lab.node(0).output().contains("panicked"));
}
