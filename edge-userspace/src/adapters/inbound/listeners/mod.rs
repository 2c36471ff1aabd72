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
use std::os::fd::AsFd;
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

/// Clients that are accepted from the queue of a socket that is closed before others have their turn, and at most.
const AT_ONCE: u32 = 64;
const LONGEST_QUEUE: u32 = 1 << 16;

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
    let mut early = Early { left: options.apply_to_listener(&listener), options };
    let way = Way { door: &door, own, address };
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
                early.greet(&client);
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
    match listener.into_std() {
        Ok(listener) => empty(&listener, &proxy, &way, &mut early).await,
        Err(why) => tracing::error!(%why, "clients in the queue of a listening socket can't be served"),
    }
}

/// Serves those who are in the queue of a socket that is about to be closed: they have been told that they are
/// connected. How many may come in a second is not asked: the kernel would take in more of them meanwhile.
///
/// The kernel is asked itself, because what the runtime says may be "not yet" while many wait: after so much work of one
/// task at a time, or where it has not heard of the socket yet.
async fn empty<C, F>(listener: &std::net::TcpListener, proxy: &Arc<Proxy<C, F>>, way: &Way<'_>, early: &mut Early)
where
    C: Connector + 'static,
    F: Forwarder + 'static,
{
    let mut pause = FIRST_PAUSE;
    // Who comes faster than clients are accepted does not keep the socket open for ever.
    let mut left = LONGEST_QUEUE;
    while left > 0 {
        match queued(listener) {
            Queued::Client(client, from) => {
                left -= 1;
                pause = FIRST_PAUSE;
                early.greet(&client);
                match client.set_nonblocking(true).and_then(|()| TcpStream::from_std(client)) {
                    Ok(client) => spawn(proxy, way, client, from),
                    Err(why) => tracing::error!(%why, %from, "a client that was accepted can't be served"),
                }
                if left.is_multiple_of(AT_ONCE) {
                    tokio::task::yield_now().await;
                }
            }
            Queued::Gone => left -= 1,
            Queued::Shortage(kind) => {
                proxy.observer.accept_failed(way.own, kind);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Queued::Nobody => break,
        }
    }
    // They count as connections once they have begun: only then may a daemon that waits for the last one look.
    tokio::task::yield_now().await;
}

/// What accept(2) says.
enum Queued {
    Client(std::net::TcpStream, SocketAddr),
    /// A client that was gone before we came, or whom a firewall keeps away.
    Gone,
    Shortage(&'static str),
    Nobody,
}

fn queued(listener: &std::net::TcpListener) -> Queued {
    match listener.accept() {
        Ok((client, from)) => Queued::Client(client, from),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Queued::Nobody,
        Err(error) => match (shortage(&error), error.raw_os_error()) {
            (Some(kind), _) => Queued::Shortage(kind),
            // It is no listening socket any more: nobody can be in its queue.
            (None, Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK)) => Queued::Nobody,
            (None, _) => Queued::Gone,
        },
    }
}

/// Clients that were there before the listening socket had its options: a socket that is handed over may have a long
/// queue. It is first in, first out, also for workers who share it: of those who were early none comes to a worker
/// after more than so many others.
struct Early {
    left: u32,
    options: TcpOptions,
}

impl Early {
    /// Gives the client the options that it may lack.
    fn greet(&mut self, client: &impl AsFd) {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            self.options.apply(client);
        }
    }
}

/// What all connections of a listening socket have in common.
struct Way<'a> {
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
    let to = way.address.or_else(|| client.local_addr().ok()).unwrap_or(way.own);
    let arrival = Arrival { from, to: canonical(to), door: Arc::clone(way.door) };
    tokio::spawn(Arc::clone(proxy).serve(client, arrival));
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
