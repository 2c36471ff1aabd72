//! One GET, of which only the status counts.

use std::net::SocketAddr;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Failure;
use crate::domain::{CheckResult, HttpCheck};

const USER_AGENT: &str = concat!("edgeproxy-health/", env!("CARGO_PKG_VERSION"));
/// For the head of the answer.
const MAX_HEAD: usize = 32 * 1024;

/// Asks and looks at the status; what follows it is not read.
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    addr: SocketAddr,
    check: &HttpCheck,
) -> Result<(), Failure> {
    let host = check.host.clone().unwrap_or_else(|| addr.to_string());
    let request = Request::get(&check.path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|why| Failure::new(CheckResult::Local, why))?;
    let io = TokioIo::new(stream);
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(io).await;
    let (mut sender, connection) = handshake.map_err(|why| failure(&why))?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    // The connection has to be driven; when it is over, the answer is there or will never be.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    let status = answer.map_err(|why| failure(&why))?.status().as_u16();
    if check.status.contains(status) {
        return Ok(());
    }
    Err(Failure::new(CheckResult::WrongStatus, format!("status {status}")))
}

fn failure(error: &hyper::Error) -> Failure {
    if error.is_parse() || error.is_parse_too_large() {
        return Failure::new(CheckResult::WrongAnswer, format!("no HTTP: {error}"));
    }
    Failure::new(CheckResult::Closed, error)
}
