//! Applications of one host that come to read in another way in mid-flow: with blocking calls, or for a minimum of bytes.
//! Then nothing can be handed to them, and what follows must not overtake what went another way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use common::polling::Client;
use common::stage::{one_marked, withdrawn};
use common::{KERNEL, SOON, World};
use socket2::SockRef;
use xtask::lab::{Daemon, Ns};
use xtask::load::poll;

/// How a reader changes, and back.
#[derive(Debug, Clone, Copy)]
enum Change {
    Minimum,
    Blocking,
}

impl Change {
    fn apply(self, reader: &TcpStream, suited: bool) {
        match self {
            Self::Minimum => set_minimum(reader, if suited { 1 } else { 100 }),
            Self::Blocking => reader.set_nonblocking(suited).unwrap(),
        }
    }
}

#[allow(unsafe_code)]
fn set_minimum(reader: &TcpStream, least: libc::c_int) {
    let size = size_of_val(&least) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    // SAFETY: an integer, and its size.
    let rc = unsafe { libc::setsockopt(reader.as_raw_fd(), level, name, (&raw const least).cast(), size) };
    assert_eq!(rc, 0);
}

#[test]
fn what_a_reader_could_not_be_handed_comes_first_though_it_reads_as_before() {
    let test = "what_a_reader_could_not_be_handed_comes_first_though_it_reads_as_before";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (_cgroups, addr, daemon) = one_marked(&world, &[]);
    let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
    let mut n = 0;
    for change in [Change::Minimum, Change::Blocking] {
        for to_backend in [true, false] {
            for pause in [20, 400] {
                let mut client = Client::connect(&world, n, daemon.addr()).0;
                n += 1;
                let mut backend = listener.accept().unwrap().0;
                backend.set_nonblocking(true).unwrap();
                paired(&daemon, &mut client, &mut backend);
                let what = format!("{change:?}, to the backend: {to_backend}, {pause} ms");
                let (writer, reader) =
                    if to_backend { (&mut client, &mut backend) } else { (&mut backend, &mut client) };
                let pause = || thread::sleep(Duration::from_millis(pause));
                change.apply(reader, false);
                writer.write_all(b"AAAAAAAAAA").unwrap();
                pause();
                change.apply(reader, true);
                writer.write_all(b"BBBBBBBBBB").unwrap();
                pause();
                reader.set_nonblocking(true).unwrap();
                assert_eq!(String::from_utf8(take(reader, 20)).unwrap(), "AAAAAAAAAABBBBBBBBBB", "{what}");
                // It goes on, both ways, without a gap.
                for round in 0..50_u8 {
                    exchange(writer, reader, &[round; 3_000]);
                    exchange(reader, writer, &[round; 500]);
                }
                let local = client.local_addr().unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                assert_eq!(take(&mut backend, 1), b"", "{what}");
                drop(backend);
                let record = daemon.record_of(local, SOON).unwrap();
                let told = (record.termination.as_str(), record.fallback.as_deref());
                assert_eq!(told, ("--", Some("blocking")), "{what}: {record:?}");
            }
        }
    }
    // One that goes away is something else.
    let mut client = Client::connect(&world, n, daemon.addr()).0;
    let mut backend = listener.accept().unwrap().0;
    backend.set_nonblocking(true).unwrap();
    paired(&daemon, &mut client, &mut backend);
    backend.write_all(b"goodbye").unwrap();
    drop(backend);
    assert_eq!(take(&mut client, 8), b"goodbye");
    let local = client.local_addr().unwrap();
    // Into nothing, until that is told.
    let deadline = Instant::now() + SOON;
    while !client.write(&[7; 1_000]).is_err_and(|why| why.kind() != ErrorKind::WouldBlock) && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(1));
    }
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!(record.fallback, None, "{record:?}");
    // Nothing was lost, and nobody is to blame.
    assert_eq!(withdrawn(&daemon), [""; 0]);
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_byte_mismatches_total 0\n"), "{metrics}");
}

/// Talks until bytes are handed over both ways.
fn paired(daemon: &Daemon, client: &mut TcpStream, backend: &mut TcpStream) {
    let local = client.local_addr().unwrap();
    let both = || daemon.flow_of(local).unwrap().is_some_and(|flow| flow.kernel_up > 0 && flow.kernel_down > 0);
    let deadline = Instant::now() + SOON;
    while !both() {
        exchange(client, backend, b"there");
        exchange(backend, client, b"and back");
        assert!(Instant::now() < deadline, "nothing is handed over");
    }
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream, message: &[u8]) {
    from.write_all(message).unwrap();
    assert_eq!(take(to, message.len()), message);
}

/// So many bytes, or what comes before the end.
fn take(from: &mut TcpStream, len: usize) -> Vec<u8> {
    let (mut got, deadline) = (Vec::new(), Instant::now() + SOON);
    let mut buffer = [0; 4096];
    while got.len() < len {
        assert!(Instant::now() < deadline, "after {} bytes of {len}", got.len());
        let room = buffer.len().min(len - got.len());
        match from.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(read) => got.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => _ = poll(from, libc::POLLIN, 100).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
    got
}

/// A reader that takes what waits for it, slowly, while nobody sends any more, is not idle.
#[test]
fn sk_msg_lets_a_slow_reader_finish() {
    const PIECE: usize = 16 << 10;
    const SENT: usize = 25 * PIECE;
    let Some(world) = World::new(KERNEL, "sk_msg_lets_a_slow_reader_finish") else { return };
    let settings = [("idle_timeout_secs", "1"), ("half_close_timeout_secs", "60")];
    let (_cgroups, addr, daemon) = one_marked(&world, &settings);
    let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
    let mut client = Client::connect(&world, 0, daemon.addr()).0;
    let mut backend = listener.accept().unwrap().0;
    backend.set_nonblocking(true).unwrap();
    paired(&daemon, &mut client, &mut backend);
    // All of it waits on the host: in the reader's queue, in the daemon, in the sender's buffer.
    SockRef::from(&client).set_send_buffer_size(2 * SENT).unwrap();
    let sender = thread::spawn(move || {
        client.set_nonblocking(false).unwrap();
        client.write_all(&vec![7; SENT]).map(|()| client)
    });
    let mut got = 0;
    while got < SENT {
        // Much less than what finds room at once, some times within the limit: 8 s in all.
        got += take(&mut backend, PIECE).len();
        thread::sleep(Duration::from_millis(300));
        assert!(got.is_multiple_of(PIECE), "it was cut after {got} bytes");
    }
    drop(sender.join().unwrap().unwrap());
}
