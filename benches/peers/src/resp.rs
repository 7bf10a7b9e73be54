//! The Redis protocol (RESP2), as much of it as the load generator needs: commands out, replies in.

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Room for replies that arrive together.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Deeper nesting than any reply that is asked for here.
const MAX_DEPTH: usize = 8;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR ...`
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$3 abc`, or nothing.
    Bulk(Option<Vec<u8>>),
    /// `*2 ...`
    Array(Vec<Reply>),
}

impl Reply {
    /// An error reply as an error.
    pub(crate) fn ok(self) -> Result<Self> {
        match self {
            Self::Error(error) => bail!("redis: {error}"),
            reply => Ok(reply),
        }
    }

    /// The number that it must be.
    pub(crate) fn integer(self) -> Result<i64> {
        match self.ok()? {
            Self::Integer(number) => Ok(number),
            reply => bail!("not a number: {reply:?}"),
        }
    }

    /// The text that it must be.
    pub(crate) fn text(self) -> Result<String> {
        match self.ok()? {
            Self::Simple(text) => Ok(text),
            Self::Bulk(Some(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            reply => bail!("not a text: {reply:?}"),
        }
    }

    /// The list that it must be.
    pub(crate) fn array(self) -> Result<Vec<Self>> {
        match self.ok()? {
            Self::Array(items) => Ok(items),
            reply => bail!("not a list: {reply:?}"),
        }
    }
}

/// Appends a command to what will be sent.
pub(crate) fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// Replies out of a stream.
#[derive(Debug)]
pub(crate) struct Replies<R> {
    stream: R,
    buffer: Vec<u8>,
    /// How much of the buffer has been understood.
    taken: usize,
}

impl<R: AsyncRead + Unpin> Replies<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: Vec::with_capacity(READ_BUFFER_BYTES), taken: 0 }
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Result<Reply> {
        loop {
            if let Some((reply, length)) = parse(&self.buffer[self.taken..], 0)? {
                self.taken += length;
                if self.taken == self.buffer.len() {
                    self.buffer.clear();
                    self.taken = 0;
                }
                return Ok(reply);
            }
            self.buffer.drain(..self.taken);
            self.taken = 0;
            if self.stream.read_buf(&mut self.buffer).await.context("reading from redis")? == 0 {
                bail!("redis closed the connection");
            }
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    out: OwnedWriteHalf,
    replies: Replies<OwnedReadHalf>,
}

impl Connection {
    pub(crate) async fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connecting to redis")?;
        stream.set_nodelay(true)?;
        let (read, out) = stream.into_split();
        Ok(Self { out, replies: Replies::new(read) })
    }

    /// Sends what [`command`] wrote.
    pub(crate) async fn send(&mut self, commands: &[u8]) -> Result<()> {
        self.out.write_all(commands).await.context("writing to redis")
    }

    /// The next reply.
    pub(crate) async fn reply(&mut self) -> Result<Reply> {
        self.replies.next().await
    }

    /// Sends one command and waits for its reply.
    pub(crate) async fn call(&mut self, parts: &[&str]) -> Result<Reply> {
        let mut out = Vec::new();
        command(&mut out, &parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
        self.send(&out).await?;
        self.reply().await
    }

    /// Its two halves, for a connection that many share.
    pub(crate) fn split(self) -> (OwnedWriteHalf, Replies<OwnedReadHalf>) {
        (self.out, self.replies)
    }
}

/// The first reply in `bytes` and its length; `None`: not yet all of it.
fn parse(bytes: &[u8], depth: usize) -> Result<Option<(Reply, usize)>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let (Some(kind), Ok(line)) = (bytes.first(), std::str::from_utf8(bytes.get(1..end).unwrap_or_default()))
    else {
        bail!("not RESP");
    };
    let after = end + 2;
    let reply = match kind {
        b'+' => (Reply::Simple(line.to_owned()), after),
        b'-' => (Reply::Error(line.to_owned()), after),
        b':' => (Reply::Integer(line.parse()?), after),
        b'$' | b'*' if line == "-1" => (Reply::Bulk(None), after),
        b'$' => {
            let length: usize = line.parse()?;
            let Some(body) = bytes.get(after..after + length + 2) else { return Ok(None) };
            (Reply::Bulk(Some(body[..length].to_vec())), after + length + 2)
        }
        b'*' => {
            if depth == MAX_DEPTH {
                bail!("nested too deeply");
            }
            let mut items = Vec::new();
            let mut at = after;
            for _ in 0..line.parse::<usize>()? {
                let Some((item, length)) = parse(&bytes[at..], depth + 1)? else { return Ok(None) };
                items.push(item);
                at += length;
            }
            (Reply::Array(items), at)
        }
        other => bail!("not RESP: it begins with byte {other}"),
    };
    Ok(Some(reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_arrives_in_pieces_is_read_once_it_is_whole() {
        let whole = b"*3\r\n:5461\r\n$3\r\na\r\n\r\n*1\r\n+OK\r\n";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end], 0).unwrap(), None, "{end} bytes");
        }
        let (reply, length) = parse(whole, 0).unwrap().unwrap();
        assert_eq!(length, whole.len());
        assert_eq!(
            reply,
            Reply::Array(vec![
                Reply::Integer(5461),
                Reply::Bulk(Some(b"a\r\n".to_vec())),
                Reply::Array(vec![Reply::Simple("OK".to_owned())]),
            ])
        );
        assert_eq!(parse(b"$-1\r\n:1\r\n", 0).unwrap(), Some((Reply::Bulk(None), 5)));
        assert!(parse(b"hello\r\n", 0).is_err());
    }

    #[test]
    fn a_command_is_a_list_of_byte_strings() {
        let mut out = Vec::new();
        command(&mut out, &[b"SET", b"k", b"a\r\n"]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\na\r\n\r\n");
    }
}
