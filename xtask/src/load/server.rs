//! A listener whose connections are served by a thread each, until it is dropped.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use socket2::{Domain, Protocol, Socket, Type};

use super::end::poll;
use crate::lab::Namespace;

/// Length of the accept queue; backends must not be what drops a SYN.
const BACKLOG: i32 = 4096;

/// Connections of a backend, as it sees them itself.
#[derive(Debug, Default)]
pub struct Gauge {
    active: AtomicUsize,
    most: AtomicUsize,
    total: AtomicUsize,
}

impl Gauge {
    /// Connections open now.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    /// The most that were ever open at once.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub fn total(&self) -> usize {
        self.total.load(Ordering::SeqCst)
    }

    fn enter(self: &Arc<Self>) -> Entered {
        self.total.fetch_add(1, Ordering::SeqCst);
        let active = self.active.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(active, Ordering::SeqCst);
        Entered(Arc::clone(self))
    }
}

/// One open connection of a backend.
struct Entered(Arc<Gauge>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) gauge: Arc<Gauge>,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on `addr` inside `namespace` (port 0 takes a free one) and gives each connection to `serve`.
    pub(super) fn start(
        namespace: &Namespace,
        addr: SocketAddr,
        serve: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = namespace.run(|| listen(addr))?;
        let addr = listener.local_addr()?;
        let (stop, gauge) = (Arc::new(AtomicBool::new(false)), Arc::new(Gauge::default()));
        let (stopping, counted) = (Arc::clone(&stop), Arc::clone(&gauge));
        let acceptor = thread::spawn(move || accept_until(&stopping, &listener, &counted, &Arc::new(serve)));
        Ok(Self { addr, gauge, stop, acceptor: Some(acceptor) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn accept_until<F: Fn(TcpStream) + Send + Sync + 'static>(
    stop: &AtomicBool,
    listener: &TcpListener,
    gauge: &Arc<Gauge>,
    serve: &Arc<F>,
) {
    while !stop.load(Ordering::SeqCst) {
        if poll(listener, libc::POLLIN, 20).is_err() {
            return;
        }
        while let Ok((stream, _)) = listener.accept() {
            let (entered, serve) = (gauge.enter(), Arc::clone(serve));
            thread::spawn(move || {
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_nodelay(true);
                // A peer must not be told of the end before it is counted: what it does next would be counted, too.
                let kept = stream.try_clone();
                serve(stream);
                drop(entered);
                drop(kept);
            });
        }
    }
}
