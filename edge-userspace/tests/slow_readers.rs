//! What readers that read nothing cost in kernel memory, compared between forwarders.
//!
//! All of it is that of sockets in namespaces of the test's own, so that nothing else on the machine counts. Bytes that
//! no socket shows are found by what they must be: sent, and neither read nor in any queue.
//!
//! Receive buffers are of one size here. How far TCP tunes them hangs on how fast the first bytes went, and so differs
//! from run to run, whoever forwards; its bound is `tcp_rmem`, and the test with the buffers that Linux has by default is
//! in `bytes.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use common::stage::same_host_daemon;
use common::{KERNEL, Row, SOON, World};
use xtask::lab::{Cgroups, Daemon, Lab, Ns};
use xtask::load::{connect_from, poll};

const PAIRS: u16 = 16;
/// Nothing is taken any more for so long: then everything is full. The daemon looks for room every 100 ms at least.
const FULL: Duration = Duration::from_millis(1_500);
/// Measured so often while everything is full; the most counts.
const LOOKS: usize = 5;
/// Besides half as much again: one reading of the daemon's, 256 KiB, that a direction may hold or not.
const READING: u64 = 256 << 10;
/// More than any buffers hold.
const WITHOUT_BOUND: u64 = 64 << 20;
/// Bytes repeat so, which no buffer is a multiple of.
const PERIOD: usize = 251;
const CHUNK: usize = 64 << 10;

#[test]
fn slow_readers_cost_no_more_kernel_memory_than_with_copy() {
    let test = "slow_readers_cost_no_more_kernel_memory_than_with_copy";
    let Some(copy) = held_with("copy", test) else { return };
    let most = copy.in_all() * 3 / 2 + u64::from(PAIRS) * READING;
    eprintln!("copy: {copy:?}, so at most {most}");
    for forwarder in ["splice", "sockmap", "auto", "sk_msg"] {
        let held = held_with(forwarder, test).unwrap();
        eprintln!("{forwarder}: {held:?}, {}", held.in_all());
        assert!(held.in_all() <= most, "{forwarder}: {held:?}; copy: {copy:?}");
    }
}

/// What is held for all pairs together, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Memory that the daemon's sockets are charged for, and the applications' for what they have not read. What they
    /// have not sent yet is their own affair.
    charged: u64,
    /// Payload that is in no socket's queue.
    hidden: u64,
}

impl Held {
    fn in_all(self) -> u64 {
        self.charged + self.hidden
    }
}

/// Fills all that lies between senders and readers that read nothing, half of them clients, and measures it. After
/// that everything is read, and must be what was sent.
fn held_with(forwarder: &str, test: &str) -> Option<Held> {
    let scene = Scene::new(forwarder, test)?;
    let mut pairs: Vec<Pair> = (0..PAIRS).map(|n| scene.pair(n)).collect();
    let mut moved = Instant::now();
    while moved.elapsed() < FULL {
        if pairs.iter_mut().map(Pair::push).sum::<u64>() > 0 {
            moved = Instant::now();
        }
        thread::sleep(Duration::from_millis(10));
    }
    let sent = pairs.iter().map(|pair| pair.sent).sum();
    let look = |_| {
        thread::sleep(Duration::from_millis(100));
        held(&scene.world.lab, sent)
    };
    let most = (0..LOOKS).map(look).max_by_key(|held| held.in_all()).unwrap();
    pairs.into_iter().for_each(Pair::finish);
    scene.assert_carried();
    Some(most)
}

fn held(lab: &Lab, sent: u64) -> Held {
    let sockets: Vec<Socket> =
        [Ns::Clients, Ns::Pop, Ns::Backends].into_iter().flat_map(|at| sockets(lab, at)).collect();
    assert_eq!(sockets.len(), usize::from(PAIRS) * 4);
    let queued = sockets.iter().map(|socket| socket.queued).sum();
    Held { charged: sockets.iter().map(|socket| socket.charged).sum(), hidden: sent.saturating_sub(queued) }
}

/// What `ss` says of an established socket.
struct Socket {
    /// Payload to be read, and to be sent or acknowledged.
    queued: u64,
    charged: u64,
}

fn sockets(lab: &Lab, at: Ns) -> Vec<Socket> {
    let mut command = Command::new("ss");
    command.args(["--tcp", "--memory", "--numeric", "--no-header", "--oneline", "state", "established"]);
    let output = lab.command_in(at, &mut command).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // Not read; come while the socket was in use; not sent.
    let queues = if at == Ns::Pop { &["r", "bl", "w"][..] } else { &["r", "bl"] };
    String::from_utf8(output.stdout).unwrap().lines().map(|line| Socket::parse(line, queues)).collect()
}

impl Socket {
    /// `queues`: those whose memory counts, as `ss` names them.
    fn parse(line: &str, queues: &[&str]) -> Self {
        let mut words = line.split_whitespace();
        let mut number = || words.next().unwrap().parse::<u64>().unwrap();
        let queued = number() + number();
        let memory = line.split_once("skmem:(").and_then(|(_, rest)| rest.split_once(')')).expect(line).0;
        let of = |queue: &&str| {
            let value = |field: &str| field.strip_prefix(queue)?.parse::<u64>().ok();
            memory.split(',').find_map(value).expect(line)
        };
        Self { queued, charged: queues.iter().map(of).sum() }
    }
}

/// In the namespace of the calling thread.
fn fix_buffers() -> std::io::Result<()> {
    fs::write("/proc/sys/net/ipv4/tcp_moderate_rcvbuf", "0")?;
    fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 2097152 2097152")?;
    fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 4194304")
}

struct Scene {
    // Dropped in this order: a cgroup can go when the daemon is gone.
    daemon: Daemon,
    world: World,
    forwarder: String,
    listener: TcpListener,
    _cgroups: Cgroups,
}

impl Scene {
    fn new(forwarder: &str, test: &str) -> Option<Self> {
        let world = World::new(KERNEL, test)?;
        [Ns::Clients, Ns::Pop, Ns::Backends].into_iter().for_each(|at| world.lab.run_in(at, fix_buffers).unwrap());
        let (addr, cgroups) = (world.backend_addr(1), Cgroups::create().unwrap());
        let daemon = if forwarder == "sk_msg" {
            world.database.add(&Row::new("b1", addr).same_host());
            same_host_daemon(&world, &cgroups, &[cgroups.applications()], &[])
        } else {
            world.database.add(&Row::new("b1", addr));
            world.daemon(&[("forwarder", forwarder)])
        };
        let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
        Some(Self { daemon, world, forwarder: forwarder.to_owned(), listener, _cgroups: cgroups })
    }

    fn pair(&self, n: u16) -> Pair {
        let connect = || connect_from(self.world.lab.client(n), self.daemon.addr());
        let client = self.world.lab.run_in(Ns::Clients, connect).unwrap();
        let (backend, _) = self.listener.accept().unwrap();
        [&client, &backend].into_iter().for_each(|end| end.set_nonblocking(true).unwrap());
        let (sender, reader) = if n.is_multiple_of(2) { (client, backend) } else { (backend, client) };
        Pair { sender, reader, sent: 0 }
    }

    /// They were forwarded as they should be; what `auto` chooses is its own affair.
    fn assert_carried(&self) {
        let records = self.daemon.access_log(SOON, |records| records.len() == usize::from(PAIRS));
        for record in &records {
            let carried = record.forwarders.iter().any(|step| step.forwarder == self.forwarder);
            assert!(carried || self.forwarder == "auto", "{record:?}");
            assert_eq!((record.termination.as_str(), &record.fallback), ("--", &None), "{record:?}");
        }
    }
}

struct Pair {
    sender: TcpStream,
    reader: TcpStream,
    sent: u64,
}

impl Pair {
    /// Sends what is taken at once, and says how much that was.
    fn push(&mut self) -> u64 {
        let before = self.sent;
        loop {
            match self.sender.write(from(self.sent)) {
                Ok(taken) => {
                    self.sent += taken as u64;
                    assert!(self.sent < WITHOUT_BOUND, "{} bytes were taken, and none was read", self.sent);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return self.sent - before,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads everything, and sees both streams end.
    fn finish(mut self) {
        self.sender.shutdown(Shutdown::Write).unwrap();
        let (mut buffer, mut read) = (vec![0; CHUNK], 0_u64);
        loop {
            match self.reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    assert!(buffer[..n] == from(read)[..n], "bytes differ after {read}");
                    read += n as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let ready = poll(&self.reader, libc::POLLIN, 10_000).unwrap();
                    assert_ne!(ready, 0, "nothing comes after {read} of {}", self.sent);
                }
                Err(error) => panic!("after {read} of {}: {error}", self.sent),
            }
        }
        assert_eq!(read, self.sent);
    }
}

/// A chunk of the stream from this position on.
fn from(position: u64) -> &'static [u8] {
    static STREAM: LazyLock<Vec<u8>> = LazyLock::new(|| (0..CHUNK + PERIOD).map(|at| (at % PERIOD) as u8).collect());
    let start = (position % PERIOD as u64) as usize;
    &STREAM[start..start + CHUNK]
}
