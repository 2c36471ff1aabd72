//! Talks to the daemon through its admin socket.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::CliError;

/// A reload reads the whole database.
const LIMIT: Duration = Duration::from_secs(60);
/// The status of 10,000 backends has some 3 MB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// An answer of the daemon.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: StatusCode,
    pub(super) body: String,
}

/// Asks the daemon behind `socket`. Must run within a tokio runtime.
pub(super) async fn ask(socket: &Path, method: Method, path: &str, body: String) -> Result<Answer, CliError> {
    let unreachable = |why: String| CliError::Unreachable { path: socket.display().to_string(), why };
    match timeout(LIMIT, exchange(socket, method, path, body)).await {
        Ok(answer) => answer.map_err(unreachable),
        Err(_) => Err(unreachable(format!("no answer within {} s", LIMIT.as_secs()))),
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: String) -> Result<Answer, String> {
    let stream = UnixStream::connect(socket).await.map_err(|why| why.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|why| why.to_string())?;
    let request = Request::builder().method(method).uri(path).header(header::HOST, "edgeproxy");
    let request = request.body(Full::<Bytes>::from(body)).map_err(|why| why.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|why| why.to_string())?;
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|why| why.to_string())?;
        let body = String::from_utf8(body.to_bytes().into()).map_err(|_| "the answer is not text".to_owned())?;
        // Ends the connection, and with it the other half of the join.
        drop(sender);
        Ok(Answer { code, body })
    };
    // The connection has to be driven; its own error shows up in the answer, too.
    let (_, answer) = tokio::join!(connection, answer);
    answer
}

/// Runs one command's future on this thread.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|why| CliError::Failed(format!("no runtime could be started: {why}")))?.block_on(future)
}

/// The daemon's own words on a refusal.
pub(super) fn refusal(answer: &Answer) -> CliError {
    let value = serde_json::from_str::<serde_json::Value>(&answer.body).ok();
    let why = value.as_ref().and_then(|value| value.get("error")?.as_str());
    CliError::Failed(match why {
        Some(why) => why.to_owned(),
        None => format!("the daemon answered {}", answer.code),
    })
}
