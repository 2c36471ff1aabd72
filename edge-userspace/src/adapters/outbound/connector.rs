//! Connects to backends.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::forward;
use super::forward::KernelPath;
use super::tcp_options::TcpOptions;
use crate::application::ports::Connector;
use crate::domain::{BackendAddr, ConnectFailure};

/// Connects with TCP, and lets the kernel count the connection where it can.
#[derive(Debug, Clone)]
pub struct TcpConnector {
    options: TcpOptions,
    path: Arc<KernelPath>,
}

impl TcpConnector {
    /// `path` may get the program that counts later.
    pub fn new(options: TcpOptions, path: Arc<KernelPath>) -> Self {
        Self { options, path }
    }
}

impl Connector for TcpConnector {
    async fn connect(&self, backend: BackendAddr, slot: u32, limit: Duration) -> Result<TcpStream, ConnectFailure> {
        let addr = backend.socket_addr();
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(|why| classify(&why))?;
        // Before connecting: TCP_USER_TIMEOUT and keepalive count from the first packet.
        self.options.apply(&socket);
        if let Some(counts) = self.path.programs().and_then(|kernel| kernel.counts()) {
            counts.tell(socket.as_fd(), slot);
        }
        match timeout(limit, socket.connect(addr)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(classify(&error)),
            Err(_) => Err(ConnectFailure::TimedOut),
        }
    }

    fn round_trip(&self, stream: &TcpStream) -> Option<Duration> {
        forward::round_trip(stream.as_fd())
    }
}

/// What a failed connect, or a socket that can't be made, says.
pub(super) fn classify(error: &io::Error) -> ConnectFailure {
    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)) {
        return ConnectFailure::Exhausted;
    }
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => ConnectFailure::Refused,
        ErrorKind::TimedOut => ConnectFailure::TimedOut,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            ConnectFailure::Unreachable
        }
        _ => ConnectFailure::Local,
    }
}
