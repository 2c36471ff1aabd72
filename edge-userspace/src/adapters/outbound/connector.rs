//! Connects to backends.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::forward::kernel::BackendCounts;
use super::tcp_options::TcpOptions;
use crate::application::ports::Connector;
use crate::domain::{BackendAddr, ConnectFailure};

/// Connects with TCP, and lets the kernel count the connection where it can.
#[derive(Debug, Clone)]
pub struct TcpConnector {
    options: TcpOptions,
    counts: Option<Arc<BackendCounts>>,
}

impl TcpConnector {
    pub fn new(options: TcpOptions, counts: Option<Arc<BackendCounts>>) -> Self {
        Self { options, counts }
    }
}

impl Connector for TcpConnector {
    async fn connect(&self, backend: BackendAddr, slot: u32, limit: Duration) -> Result<TcpStream, ConnectFailure> {
        let addr = backend.socket_addr();
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(|_| ConnectFailure::Local)?;
        // Before connecting: TCP_USER_TIMEOUT and keepalive count from the first packet.
        self.options.apply(&socket);
        let named = self.counts.as_ref().and_then(|counts| counts.name(socket.as_fd(), slot));
        let failure = match timeout(limit, socket.connect(addr)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => classify(&error),
            Err(_) => ConnectFailure::TimedOut,
        };
        // The socket is closed by now, so the kernel has counted it out if it ever counted it in.
        if let (Some(counts), Some(named)) = (&self.counts, named) {
            counts.forget(named);
        }
        Err(failure)
    }
}

fn classify(error: &io::Error) -> ConnectFailure {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => ConnectFailure::Refused,
        ErrorKind::TimedOut => ConnectFailure::TimedOut,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            ConnectFailure::Unreachable
        }
        _ => ConnectFailure::Local,
    }
}
