//! Serves the admin API within bounds: so many connections, so long each, so much header and body.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::socket::{AdminError, AdminSocket};
use super::{Control, routes};

/// Connections at once on each listener; more wait in its queue.
const MAX_CONNECTIONS: usize = 64;
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// The whole life of a connection, whatever it does.
const CONNECTION_LIMIT: Duration = Duration::from_secs(60);
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Pause after a failed accept (EMFILE and the like).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The bound listeners of the admin API. The socket's file is removed when this, or the future of `run`, is dropped.
#[derive(Debug)]
pub struct AdminServer {
    socket: AdminSocket,
    tcp: Option<TcpListener>,
}

impl AdminServer {
    /// Binds the socket and, if given, a loopback address for the reading half.
    pub async fn bind(socket: &Path, tcp: Option<SocketAddr>) -> Result<Self, AdminError> {
        let socket = AdminSocket::bind(socket).await?;
        let tcp = match tcp {
            Some(addr) => Some(TcpListener::bind(addr).await.map_err(|why| AdminError::Tcp { addr, why })?),
            None => None,
        };
        Ok(Self { socket, tcp })
    }

    /// The loopback address that is served, its port filled in.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until the future is dropped.
    pub async fn run(self, control: Arc<dyn Control>) {
        let Self { socket, tcp } = self;
        let tcp = async {
            match &tcp {
                Some(listener) => serve_tcp(listener, routes::read_only(Arc::clone(&control))).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(serve_unix(&socket, routes::full(Arc::clone(&control))), tcp);
    }
}

async fn serve_unix(socket: &AdminSocket, router: Router) {
    let room = Room::default();
    loop {
        let permit = room.enter().await;
        match socket.listener.accept().await {
            Ok((stream, _)) => spawn(stream, router.clone(), permit),
            Err(why) => pause(&why).await,
        }
    }
}

async fn serve_tcp(listener: &TcpListener, router: Router) {
    let room = Room::default();
    loop {
        let permit = room.enter().await;
        match listener.accept().await {
            Ok((stream, _)) => spawn(stream, router.clone(), permit),
            Err(why) => pause(&why).await,
        }
    }
}

/// Bounds the connections of one listener.
struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CONNECTIONS)))
    }
}

impl Room {
    /// `None` only if the semaphore were closed, which nobody does.
    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

async fn pause(why: &std::io::Error) {
    tracing::warn!(%why, "accept failed on the admin listener; trying again shortly");
    sleep(ACCEPT_PAUSE).await;
}

fn spawn<S>(stream: S, router: Router, permit: Option<OwnedSemaphorePermit>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let _permit = permit;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_LIMIT)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        match timeout(CONNECTION_LIMIT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::debug!(%why, "admin connection ended"),
            Err(_) => tracing::debug!("admin connection cut at its time limit"),
        }
    });
}
