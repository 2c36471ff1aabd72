//! A connection whose receiver is too slow for the kernel path, again and again, leaves it for life.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{KERNEL, Row, SOON, World};
use xtask::lab::{Daemon, Flow, Ns};
use xtask::load::connect_from;

/// How long the connection may go on until it is found to spill: three seconds are needed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of one message of the conversation.
const MESSAGE: usize = 600;

#[test]
fn a_pair_that_spills_again_and_again_leaves_the_kernel_for_life() {
    spills("a_pair_that_spills_again_and_again_leaves_the_kernel_for_life", 65_536);
}

/// Few bytes, and nearly all of them left to the daemon.
#[test]
fn a_pair_that_spills_slowly_leaves_the_kernel_for_life() {
    spills("a_pair_that_spills_slowly_leaves_the_kernel_for_life", 5_000);
}

/// To a receiver that takes no more than so many bytes in ten milliseconds.
fn spills(test: &str, pace: usize) {
    let Some(world) = World::new(KERNEL, test) else { return };
    let backend = Backend::start(&world);
    let daemon = world.daemon(&[("forwarder", "auto"), ("auto_messages_per_sec", "20")]);
    let client = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(0), daemon.addr())).unwrap();
    let mut client = Client { stream: client, sent: 0 };

    let in_kernel = client.talk_until(&daemon, |flow| flow.forwarder == "sockmap" && flow.kernel_up > 0);
    assert_eq!(in_kernel.why, "lively", "{in_kernel:?}");
    // Now it is a transfer, to somebody who reads no more than 6 or 0.5 MB each second.
    backend.state.pace.store(pace, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    let demoted = loop {
        (0..20).for_each(|_| drop(client.send(100_000)));
        let flow = the_flow(&daemon);
        if flow.why == "spilling" || Instant::now() > deadline {
            break flow;
        }
    };
    assert_eq!(demoted.carrier(), ("copy", "spilling"), "{demoted:?}");
    // The rest arrives, and what was a reason for the kernel once is none any more.
    backend.state.pace.store(usize::MAX, Ordering::SeqCst);
    common::eventually("the rest arrives", || backend.state.received.load(Ordering::SeqCst) == client.sent);
    backend.state.pace.store(0, Ordering::SeqCst);
    let before = the_flow(&daemon);
    let until = Instant::now() + Duration::from_secs(1);
    let after = client.talk_until(&daemon, |_| Instant::now() > until);
    assert_eq!(after.kernel_up, before.kernel_up, "{before:?} {after:?}");
    assert!(after.bytes_up > before.bytes_up, "{before:?} {after:?}");

    let (sent, local) = (client.sent, client.stream.local_addr().unwrap());
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.stream.read(&mut [0; 64]).unwrap(), 0);
    assert_eq!(backend.state.received.load(Ordering::SeqCst), sent);
    assert!(!backend.state.differs.load(Ordering::SeqCst), "what arrived differs from what was sent");
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!((record.bytes_up, record.termination.as_str()), (sent, "--"), "{record:?}");
    assert_eq!(record.fallback.as_deref(), Some("spilling"), "{record:?}");
    let last = record.forwarders.last().map(|step| (step.forwarder.as_str(), step.why.as_str()));
    assert_eq!(last, Some(("copy", "spilling")), "{record:?}");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_forwarder_fallbacks_total{reason=\"spilling\"} 1\n"), "{metrics}");
    assert!(metrics.contains("edgeproxy_byte_mismatches_total 0\n"), "{metrics}");
}

/// The flow that there is.
fn the_flow(daemon: &Daemon) -> Flow {
    daemon.flows().unwrap().remove(0)
}

/// The byte at a position of the stream.
fn byte_at(position: u64) -> u8 {
    let [a, b, c, ..] = position.to_le_bytes();
    a ^ b.wrapping_mul(3) ^ c.wrapping_mul(7)
}

struct Client {
    stream: TcpStream,
    sent: u64,
}

impl Client {
    fn send(&mut self, len: usize) -> Vec<u8> {
        let bytes: Vec<u8> = (self.sent..).take(len).map(byte_at).collect();
        self.stream.write_all(&bytes).unwrap();
        self.sent += len as u64;
        bytes
    }

    /// Messages that are echoed, until `enough` is true of the flow, which is returned.
    fn talk_until(&mut self, daemon: &Daemon, enough: impl Fn(&Flow) -> bool) -> Flow {
        let deadline = Instant::now() + SOON;
        loop {
            for _ in 0..50 {
                let sent = self.send(MESSAGE);
                let mut back = [0; MESSAGE];
                self.stream.read_exact(&mut back).unwrap();
                assert_eq!(back[..], sent);
            }
            let flow = the_flow(daemon);
            if enough(&flow) || Instant::now() > deadline {
                return flow;
            }
        }
    }
}

/// A backend that echoes, or reads at a pace and says nothing, as it is told.
struct Backend {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Bytes in ten milliseconds; 0: it echoes.
    pace: AtomicUsize,
    received: AtomicU64,
    differs: AtomicBool,
}

impl Backend {
    fn start(world: &World) -> Self {
        let addr = world.backend_addr(1);
        world.database.add(&Row::new("slow", addr));
        let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
        let state = Arc::<State>::default();
        let served = Arc::clone(&state);
        // It ends with its only connection.
        thread::spawn(move || served.serve(listener.accept().unwrap().0));
        Self { state }
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let mut buffer = [0; 65_536];
        let most = |pace: usize| if pace == 0 { 65_536 } else { pace.min(65_536) };
        while let Ok(n @ 1..) = stream.read(&mut buffer[..most(self.pace.load(Ordering::SeqCst))]) {
            let from = self.received.load(Ordering::SeqCst);
            let differs = buffer[..n].iter().zip(from..).any(|(byte, position)| *byte != byte_at(position));
            self.differs.fetch_or(differs, Ordering::SeqCst);
            self.received.store(from + n as u64, Ordering::SeqCst);
            if self.pace.load(Ordering::SeqCst) > 0 {
                thread::sleep(Duration::from_millis(10));
            } else if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    }
}
