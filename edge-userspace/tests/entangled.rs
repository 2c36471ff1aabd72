//! Bytes that were left to the daemon wait behind those that the kernel can't send on the same socket.
//!
//! With the room that the verdict looks for it takes a send buffer that shrinks after the redirect, as under memory
//! pressure. Here it is shrunk by hand, on the daemon's own socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::descriptors::socket_of;
use common::{KERNEL, Row, SOON, World};
use socket2::SockRef;
use xtask::lab::{Daemon, Ns, Record};
use xtask::load::{connect_from, poll};

/// Nothing is taken any more for so long: then everything is full.
const FULL: Duration = Duration::from_secs(1);
const CHUNK: usize = 16 << 10;
/// More than any buffers hold.
const WITHOUT_BOUND: u64 = 64 << 20;
/// A send buffer with room for what may wait. Linux allows so much by default (`net.core.wmem_max`).
const LARGE: usize = 200 << 10;

/// A client that reads nothing until its server has everything that it sends.
#[test]
fn a_client_that_sends_all_before_it_reads_is_served_though_its_send_buffer_shrank() {
    let test = "a_client_that_sends_all_before_it_reads_is_served_though_its_send_buffer_shrank";
    let Some(world) = World::new(KERNEL, test) else { return };
    world.lab.default_buffers().unwrap();
    let (daemon, mut client, mut backend) = connected(&world);
    let near = socket_of(&daemon, client.stream.local_addr().unwrap());
    // Room there is, but what TCP has not sent yet keeps the kernel's worker from giving it more: what is redirected waits
    // in front of it. Then the room is gone, too.
    SockRef::from(&near).set_send_buffer_size(LARGE).unwrap();
    SockRef::from(&near).set_tcp_notsent_lowat(1).unwrap();
    backend.fill();
    SockRef::from(&near).set_send_buffer_size(0).unwrap();
    SockRef::from(&near).set_tcp_notsent_lowat(u32::MAX).unwrap();
    // The backend has no more room at some time: the rest is left to the daemon, behind what waits.
    client.fill();
    carry(&mut client, 1 << 20, &mut backend);
    carry(&mut backend, 1 << 20, &mut client);
    drop(near);
    let record = ended(&daemon, client, backend);
    assert_eq!(record.fallback.as_deref(), Some("entangled"), "{record:?}");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_forwarder_fallbacks_total{reason=\"entangled\"} 1\n"), "{metrics}");
    assert!(metrics.contains("edgeproxy_byte_mismatches_total 0\n"), "{metrics}");
}

/// Both ends of a connection in the kernel, on which a little was sent each way.
fn connected(world: &World) -> (Daemon, End, End) {
    let addr = world.backend_addr(1);
    world.database.add(&Row::new("b1", addr));
    let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
    let daemon = world.daemon(&[("forwarder", "sockmap")]);
    let client = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(0), daemon.addr())).unwrap();
    let (mut client, mut backend) = (End::new(client, 3), End::new(listener.accept().unwrap().0, 5));
    carry(&mut client, 1_000, &mut backend);
    carry(&mut backend, 1_000, &mut client);
    (daemon, client, backend)
}

/// Ends both streams; the access record, which has every byte and no fault.
fn ended(daemon: &Daemon, mut client: End, mut backend: End) -> Record {
    let local = client.stream.local_addr().unwrap();
    client.ends_at(&mut backend);
    backend.ends_at(&mut client);
    let record = daemon.record_of(local, SOON).unwrap();
    let counts = (record.bytes_up, record.bytes_down, record.termination.as_str());
    assert_eq!(counts, (client.sent, backend.sent, "--"), "{record:?}");
    assert!(record.kernel_up > 0 && record.kernel_down > 0, "{record:?}");
    record
}

/// What operators set for their servers: how much TCP takes that it can't send yet. Counted as room it would hold up the
/// kernel's worker in the same way.
#[test]
fn a_low_mark_of_unsent_bytes_does_not_entangle() {
    let Some(world) = World::new(KERNEL, "a_low_mark_of_unsent_bytes_does_not_entangle") else { return };
    world.lab.default_buffers().unwrap();
    let low = || fs::write("/proc/sys/net/ipv4/tcp_notsent_lowat", "4096");
    world.lab.run_in(Ns::Pop, low).unwrap();
    let (daemon, mut client, mut backend) = connected(&world);
    // As one that has grown.
    let near = socket_of(&daemon, client.stream.local_addr().unwrap());
    SockRef::from(&near).set_send_buffer_size(LARGE).unwrap();
    drop(near);
    backend.fill();
    client.fill();
    carry(&mut client, 1 << 20, &mut backend);
    carry(&mut backend, 1 << 20, &mut client);
    let record = ended(&daemon, client, backend);
    assert_eq!(record.fallback, None, "{record:?}");
}

/// One end, which never waits in a read or a write.
struct End {
    stream: TcpStream,
    sent: u64,
    received: u64,
    /// Tells the two streams apart.
    salt: u64,
}

impl End {
    fn new(stream: TcpStream, salt: u64) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream, sent: 0, received: 0, salt }
    }

    /// Sends until nothing is taken any more.
    fn fill(&mut self) {
        let mut moved = Instant::now();
        while moved.elapsed() < FULL {
            if self.push(CHUNK) > 0 {
                moved = Instant::now();
            } else {
                thread::sleep(Duration::from_millis(10));
            }
            assert!(self.sent < WITHOUT_BOUND, "{} bytes were taken, and none was read", self.sent);
        }
    }

    /// Sends so much at most, and says how much was taken.
    fn push(&mut self, most: usize) -> usize {
        let bytes: Vec<u8> = (self.sent..).take(most).map(|at| byte(at, self.salt)).collect();
        let taken = or_none(self.stream.write(&bytes)).unwrap_or(0);
        self.sent += taken as u64;
        taken
    }

    /// Reads what is there of the other end's stream, and compares it.
    fn pull(&mut self, salt: u64) -> usize {
        let mut buffer = [0; CHUNK];
        let read = or_none(self.stream.read(&mut buffer));
        assert_ne!(read, Some(0), "an end after {} bytes", self.received);
        let read = read.unwrap_or(0);
        let right: Vec<u8> = (self.received..).take(read).map(|at| byte(at, salt)).collect();
        assert!(buffer[..read] == right, "bytes differ after {}", self.received);
        self.received += read as u64;
        read
    }

    /// Ends its stream, which the other one sees.
    fn ends_at(&self, other: &mut Self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
        assert_ne!(poll(&other.stream, libc::POLLIN, 10_000).unwrap(), 0, "no end comes");
        assert_eq!(other.stream.read(&mut [0]).unwrap(), 0);
    }
}

/// Has `from` send so many bytes more, and `to` read until it has all that was ever sent.
fn carry(from: &mut End, mut more: usize, to: &mut End) {
    let mut moved = Instant::now();
    while more > 0 || to.received < from.sent {
        let (pushed, pulled) = (from.push(more.min(CHUNK)), to.pull(from.salt));
        more -= pushed;
        if pushed + pulled > 0 {
            moved = Instant::now();
        } else {
            assert!(moved.elapsed() < SOON, "stuck with {} of {} received, {more} to send", to.received, from.sent);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn or_none(done: std::io::Result<usize>) -> Option<usize> {
    match done {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn byte(at: u64, salt: u64) -> u8 {
    (at.wrapping_mul(salt) ^ at >> 8).to_le_bytes()[0]
}

/// Much waits then for moments, everywhere, and nothing is stuck.
#[test]
fn two_that_both_send_as_fast_as_they_can_stay_in_the_kernel() {
    const LASTS: Duration = Duration::from_secs(2);
    let test = "two_that_both_send_as_fast_as_they_can_stay_in_the_kernel";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (daemon, client, backend) = connected(&world);
    let local = client.stream.local_addr().unwrap();
    let over = Instant::now() + LASTS;
    let (up, down) = thread::scope(|scope| {
        let up = scope.spawn(|| flood(&client.stream, &backend.stream, over));
        let down = scope.spawn(|| flood(&backend.stream, &client.stream, over));
        (up.join().unwrap(), down.join().unwrap())
    });
    drop((client, backend));
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!((record.bytes_up, record.bytes_down), (up + 1_000, down + 1_000), "{record:?}");
    assert_eq!((record.termination.as_str(), record.fallback.as_deref()), ("--", None), "{record:?}");
    // How much is spilled is another matter: nearly all of it.
    assert!(record.kernel_up > 1_000 && record.kernel_down > 1_000, "{record:?}");
}

/// Sends until it is time to end, while another thread reads all of it; how much it was.
fn flood(mut from: &TcpStream, mut to: &TcpStream, over: Instant) -> u64 {
    from.set_nonblocking(false).unwrap();
    to.set_nonblocking(false).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let (mut buffer, mut got) = (vec![0; 256 << 10], 0);
            loop {
                match to.read(&mut buffer).unwrap() {
                    0 => return got,
                    read => got += read as u64,
                }
            }
        });
        let (chunk, mut sent) = (vec![7; 64 << 10], 0);
        while Instant::now() < over {
            sent += from.write(&chunk).unwrap() as u64;
        }
        from.shutdown(Shutdown::Write).unwrap();
        assert_eq!(reader.join().unwrap(), sent);
        sent
    })
}
