//! The daemon's admin socket, asked by hand: HTTP/1.1 over a Unix socket needs no client library.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The daemon answers at once or not at all.
const LIMIT: Duration = Duration::from_secs(10);

/// An answer of the admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    pub body: String,
}

/// `GET path`.
pub(super) fn get(socket: &Path, path: &str) -> Result<Answer> {
    request(socket, "GET", path, "")
}

/// `POST path` with a JSON body, which may be empty.
pub fn post(socket: &Path, path: &str, body: &str) -> Result<Answer> {
    request(socket, "POST", path, body)
}

fn request(socket: &Path, method: &str, path: &str, body: &str) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("read the answer to {method} {path}"))?;
    parse(&answer).with_context(|| format!("{method} {path}"))
}

fn parse(answer: &str) -> Result<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        bail!("the answer comes in chunks, which this client does not read");
    }
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("the answer has no status code")?;
    Ok(Answer { code, body: body.to_owned() })
}
