//! Accepts clients: one listening socket for each worker and address, shared by SO_REUSEPORT.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::adapters::outbound::tcp_options::TcpOptions;
use crate::application::ports::{Connector, Forwarder};
use crate::application::serve::Proxy;

/// Pauses after a failed accept: descriptors and memory come back when connections end.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("address {addr} is in use: is another edgeproxy running? (listen_addr, EDGEPROXY_LISTEN_ADDR)")]
    InUse { addr: SocketAddr },
    #[error("address {addr} can't be listened on: {why} (listen_addr, EDGEPROXY_LISTEN_ADDR)")]
    Failed { addr: SocketAddr, why: io::Error },
}

/// Opens `count` listening sockets for one address, each to be served by another worker.
pub fn open(addr: SocketAddr, count: usize, backlog: u32) -> Result<Vec<std::net::TcpListener>, ListenError> {
    let failed = |addr| {
        move |why: io::Error| match why.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { addr },
            _ => ListenError::Failed { addr, why },
        }
    };
    // Without SO_REUSEPORT first: with it, a second daemon would silently take half of the clients.
    let probe = bound(addr, false).map_err(failed(addr))?;
    probe.listen(1).map_err(failed(addr))?;
    // Port 0 means any: all workers must get the same.
    let addr = probe.local_addr().ok().and_then(|local| local.as_socket()).unwrap_or(addr);
    drop(probe);
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let open = || {
        let socket = bound(addr, true)?;
        socket.listen(backlog)?;
        Ok(socket.into())
    };
    (0..count).map(|_| open().map_err(failed(addr))).collect()
}

fn bound(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        // IPv4 clients come by IPv4 listeners, so that an address never has two forms.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// Accepts clients and serves each in a task of its own until `stop` resolves; then serves those who are already in
/// the listen queue, and closes the listener. An error of accept never ends it.
pub async fn serve<C, F>(
    listener: TcpListener,
    proxy: Arc<Proxy<C, F>>,
    options: TcpOptions,
    stop: impl Future<Output = ()>,
) where
    C: Connector + 'static,
    F: Forwarder + 'static,
{
    let Ok(address) = listener.local_addr() else { return };
    let mut stop = pin!(stop);
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.as_mut() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, from)) => {
                pause = FIRST_PAUSE;
                spawn(&proxy, options, client, from, address);
                let pause = proxy.admission.pause(Instant::now());
                if !pause.is_zero() && tokio::time::timeout(pause, stop.as_mut()).await.is_ok() {
                    break;
                }
            }
            Err(error) => {
                if let Some(kind) = shortage(&error) {
                    proxy.observer.accept_failed(address, kind);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
    // These clients have been told that they are connected.
    while let Some(Ok((client, from))) = now_or_never(listener.accept()).await {
        spawn(&proxy, options, client, from, address);
    }
}

/// `address` is that of the listening socket; the address that the client connected to may be one of many.
fn spawn<C, F>(proxy: &Arc<Proxy<C, F>>, options: TcpOptions, client: TcpStream, from: SocketAddr, address: SocketAddr)
where
    C: Connector + 'static,
    F: Forwarder + 'static,
{
    options.apply(&client);
    let to = if address.ip().is_unspecified() { client.local_addr().unwrap_or(address) } else { address };
    let proxy = Arc::clone(proxy);
    tokio::spawn(async move { proxy.serve(client, from, to).await });
}

/// What there is too little of; `None` if the error was the client's (it was gone before we came).
fn shortage(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error() {
        Some(libc::EMFILE) => Some("emfile"),
        Some(libc::ENFILE) => Some("enfile"),
        Some(libc::ENOMEM | libc::ENOBUFS) => Some("nomem"),
        _ => None,
    }
}

async fn now_or_never<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_refused_though_reuseport_would_share_it() {
        let first = open("127.0.0.1:0".parse().unwrap(), 2, 16).unwrap();
        let addr = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), addr);
        assert!(matches!(open(addr, 1, 16), Err(ListenError::InUse { .. })));
        drop(first);
        assert!(open(addr, 1, 16).is_ok());
    }

    #[test]
    fn ipv4_and_ipv6_listen_side_by_side_on_one_port() {
        let v6 = open("[::]:0".parse().unwrap(), 1, 16).unwrap();
        let port = v6[0].local_addr().unwrap().port();
        assert!(open(SocketAddr::from(([0, 0, 0, 0], port)), 1, 16).is_ok());
    }
}
