//! Accepts clients.
//!
//! - [`manager`]: opens and closes listening sockets as the settings and the routing database ask for.
//! - [`bind`]: one socket for each worker and address, shared by SO_REUSEPORT.
//! - [`steering`]: one socket for each worker answers whole prefixes and ranges of ports, by an `sk_lookup` program.
//! - [`handed`]: sockets of the service manager.
//! - here: what a worker does with a listening socket.

pub mod bind;
pub mod handed;
pub mod manager;
pub mod others;
pub mod steering;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::adapters::outbound::tcp_options::TcpOptions;
use crate::application::arrival::{Arrival, Door};
use crate::application::ports::{Connector, Forwarder};
use crate::application::serve::Proxy;

/// Pauses after a failed accept: descriptors and memory come back when connections end.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Listening sockets for a worker to serve.
#[derive(Debug)]
pub struct Job {
    pub listener: std::net::TcpListener,
    /// Its address, where clients connect to no other.
    pub address: Option<SocketAddr>,
    pub door: Arc<Door>,
    /// Set, or gone: the listener is removed.
    pub closed: watch::Receiver<bool>,
}

/// Accepts clients and serves each in a task of its own until the listener is removed or `stop` resolves; then serves
/// those who are already in the listen queue, and closes it. An error of accept never ends it.
///
/// The queue of a socket that was handed over is left alone when the daemon stops: its successor serves it.
pub async fn serve<C, F>(job: Job, proxy: Arc<Proxy<C, F>>, options: TcpOptions, stop: impl Future<Output = ()>)
where
    C: Connector + 'static,
    F: Forwarder + 'static,
{
    let Job { listener, address, door, mut closed } = job;
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return tracing::error!(%why, "a listening socket can't be served"),
    };
    let Ok(own) = listener.local_addr() else { return };
    let way = Way { options, door: &door, own, address };
    let mut stop = pin!(stop);
    let mut removed = pin!(async move { _ = closed.wait_for(|closed| *closed).await });
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.as_mut() => match door.name() {
                Some(_) => return,
                None => break,
            },
            () = removed.as_mut() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, from)) => {
                pause = FIRST_PAUSE;
                spawn(&proxy, &way, client, from);
                let pause = proxy.admission.pause(Instant::now());
                if !pause.is_zero() {
                    let left = tokio::select! {
                        biased;
                        () = stop.as_mut() => Some(door.name().is_some()),
                        () = removed.as_mut() => Some(false),
                        () = tokio::time::sleep(pause) => None,
                    };
                    match left {
                        Some(true) => return,
                        Some(false) => break,
                        None => {}
                    }
                }
            }
            Err(error) => {
                if let Some(kind) = shortage(&error) {
                    proxy.observer.accept_failed(own, kind);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
    // These clients have been told that they are connected.
    while let Some(Ok((client, from))) = now_or_never(listener.accept()).await {
        spawn(&proxy, &way, client, from);
    }
}

/// What all connections of a listening socket have in common.
struct Way<'a> {
    options: TcpOptions,
    door: &'a Arc<Door>,
    /// The socket's own address.
    own: SocketAddr,
    address: Option<SocketAddr>,
}

/// The address that a client connected to is that of the socket only where that is bound to nothing wider: else it may
/// be one of many, and with `sk_lookup` is always another.
fn spawn<C, F>(proxy: &Arc<Proxy<C, F>>, way: &Way<'_>, client: TcpStream, from: SocketAddr)
where
    C: Connector + 'static,
    F: Forwarder + 'static,
{
    way.options.apply(&client);
    let to = way.address.or_else(|| client.local_addr().ok()).unwrap_or(way.own);
    let arrival = Arrival { from, to: canonical(to), door: Arc::clone(way.door) };
    let proxy = Arc::clone(proxy);
    tokio::spawn(async move { proxy.serve(client, arrival).await });
}

/// A socket for both families, as service managers make them, shows IPv4 in IPv6's clothes.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
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
