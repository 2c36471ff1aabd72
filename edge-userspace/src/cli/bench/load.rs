//! Clients and a backend on loopback, a thread each. Both check what they get.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::super::CliError;

/// What one workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Requests and answers of this size, one after the other.
    Calls(usize),
    /// A stream from the backend.
    Down,
    /// Connect, one request of this size, its answer, close.
    Churn(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) shape: Shape,
    pub(super) connections: u32,
}

pub(super) const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "small",
        title: "requests and answers of 64 B, 32 connections",
        shape: Shape::Calls(64),
        connections: 32,
    },
    Workload {
        name: "large",
        title: "requests and answers of 16 KB, 32 connections",
        shape: Shape::Calls(16 * 1024),
        connections: 32,
    },
    Workload { name: "bulk", title: "bulk, 4 streams", shape: Shape::Down, connections: 4 },
    Workload { name: "short", title: "connect, request, close, 16 at once", shape: Shape::Churn(64), connections: 16 },
];

impl Workload {
    /// Whether bytes are counted, and not requests.
    pub(super) fn counts_bytes(&self) -> bool {
        self.shape == Shape::Down
    }
}

/// Bytes sent or read at once on a stream, and its period.
const CHUNK: usize = 128 * 1024;

/// What all messages and streams are made of.
fn pattern() -> Vec<u8> {
    (0..CHUNK).map(|place| ((place * 7) ^ (place >> 8)) as u8).collect()
}

/// The first bytes of a connection: what it is for, and the size of its messages.
fn hello(shape: Shape) -> [u8; 5] {
    let (kind, size) = match shape {
        Shape::Calls(size) => (b'R', size),
        Shape::Down => (b'D', 0),
        Shape::Churn(size) => (b'C', size),
    };
    let [a, b, c, d] = u32::try_from(size).unwrap_or(0).to_le_bytes();
    [kind, a, b, c, d]
}

/// A thread with a runtime of its own, which ends when this is dropped.
#[derive(Debug)]
struct Worker {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(work: impl Future<Output = ()> + Send + 'static) -> Result<Self, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|why| CliError::Failed(format!("no runtime could be started: {why}")))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            // Tasks that `work` has spawned end with the runtime.
            runtime.block_on(async {
                tokio::select! { () = work => {}, _ = stopped => {} }
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed.
            let _ = thread.join();
        }
    }
}

/// The backend of all measurements.
#[derive(Debug)]
pub(super) struct Backend {
    addr: SocketAddr,
    _worker: Worker,
}

impl Backend {
    pub(super) fn start() -> Result<Self, CliError> {
        let failed = |why: io::Error| CliError::Failed(format!("no backend could be started on loopback: {why}"));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let worker = Worker::start(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            let bytes: Arc<[u8]> = pattern().into();
            while let Ok((stream, _)) = listener.accept().await {
                let bytes = Arc::clone(&bytes);
                // A connection that breaks is noticed by the client.
                tokio::spawn(async move { answer(stream, &bytes).await });
            }
        })?;
        Ok(Self { addr, _worker: worker })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

async fn answer(mut stream: TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await?;
    let [kind, size @ ..] = hello;
    if kind == b'D' {
        loop {
            stream.write_all(bytes).await?;
        }
    }
    let mut message = vec![0; u32::from_le_bytes(size) as usize];
    loop {
        stream.read_exact(&mut message).await?;
        stream.write_all(&message).await?;
        if kind == b'C' {
            return stream.shutdown().await;
        }
    }
}

/// Clients at work until this is dropped.
#[derive(Debug)]
pub(super) struct Load {
    counts: Arc<Counts>,
    _worker: Worker,
}

#[derive(Debug, Default)]
struct Counts {
    connected: AtomicU32,
    done: AtomicU64,
    fault: Mutex<Option<String>>,
}

impl Load {
    pub(super) fn start(workload: &Workload, to: SocketAddr) -> Result<Self, CliError> {
        let counts = Arc::new(Counts::default());
        let (Workload { shape, connections, .. }, of_worker) = (*workload, Arc::clone(&counts));
        let worker = Worker::start(async move {
            let bytes: Arc<[u8]> = pattern().into();
            for _ in 0..connections {
                let (bytes, counts) = (Arc::clone(&bytes), Arc::clone(&of_worker));
                tokio::spawn(async move {
                    if let Err(why) = client(shape, to, &bytes, &counts).await {
                        counts.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why.to_string());
                    }
                });
            }
            pending().await
        })?;
        Ok(Self { counts, _worker: worker })
    }

    /// Connections that have had an answer.
    pub(super) fn connected(&self) -> u32 {
        self.counts.connected.load(Relaxed)
    }

    /// Requests answered, connections served, or bytes received.
    pub(super) fn done(&self) -> u64 {
        self.counts.done.load(Relaxed)
    }

    /// The first thing that went wrong.
    pub(super) fn fault(&self) -> Option<String> {
        self.counts.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn client(shape: Shape, to: SocketAddr, bytes: &[u8], counts: &Counts) -> io::Result<()> {
    let mut first = true;
    let mut done = |units: u64| {
        counts.done.fetch_add(units, Relaxed);
        if std::mem::take(&mut first) {
            counts.connected.fetch_add(1, Relaxed);
        }
    };
    let connect = async || {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&hello(shape)).await?;
        io::Result::Ok(stream)
    };
    let mut buffer = vec![0; CHUNK];
    match shape {
        Shape::Calls(size) => {
            let mut stream = connect().await?;
            loop {
                call(&mut stream, size, bytes, &mut buffer).await?;
                done(1);
            }
        }
        Shape::Churn(size) => loop {
            let mut stream = connect().await?;
            call(&mut stream, size, bytes, &mut buffer).await?;
            if stream.read(&mut buffer).await? != 0 {
                return Err(io::Error::other("more came than the answer"));
            }
            done(1);
        },
        Shape::Down => {
            let (mut stream, mut place) = (connect().await?, 0);
            loop {
                let length = stream.read(&mut buffer).await?;
                if length == 0 {
                    return Err(io::Error::other("the stream ended"));
                }
                if buffer.first() != bytes.get(place) {
                    return Err(io::Error::other("the stream is not as it was sent"));
                }
                place = (place + length) % CHUNK;
                done(length as u64);
            }
        }
    }
}

async fn call(stream: &mut TcpStream, size: usize, bytes: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    let (Some(request), Some(answer)) = (bytes.get(..size), buffer.get_mut(..size)) else {
        return Err(io::Error::other("a message is larger than its buffer"));
    };
    stream.write_all(request).await?;
    stream.read_exact(answer).await?;
    if answer == request { Ok(()) } else { Err(io::Error::other("the answer is not as it was sent")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn each_workload_gets_its_answers_without_a_proxy() {
        let backend = Backend::start().unwrap();
        for workload in &WORKLOADS {
            let load = Load::start(workload, backend.addr()).unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            while load.connected() < workload.connections && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
            assert_eq!(load.connected(), workload.connections, "{}: {:?}", workload.title, load.fault());
            assert!(load.done() >= u64::from(workload.connections));
            assert_eq!(load.fault(), None);
        }
    }

    #[test]
    fn a_wrong_answer_is_a_fault() {
        // Answers, but not with what was sent.
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            use std::io::{Read as _, Write as _};
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 69]).unwrap();
            stream.write_all(&[0; 64]).unwrap();
        });
        let workload = Workload { name: "", title: "", shape: Shape::Calls(64), connections: 1 };
        let load = Load::start(&workload, addr).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while load.fault().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(load.fault().unwrap(), "the answer is not as it was sent");
        server.join().unwrap();
    }
}
