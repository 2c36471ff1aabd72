//! Idle and half-closed connections end at their limits, however they are forwarded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use common::polling::{AtTheEnd, Client, serve_one};
use common::scene::Scene;
use common::{KERNEL, NETWORK, Row, SOON, World};
use socket2::SockRef;
use xtask::lab::requirements::Need;
use xtask::lab::{Ns, Record};
use xtask::load::connect_from;

/// Within these a limit of one second has to end a connection.
const A_SECOND: std::ops::Range<Duration> = Duration::from_millis(700)..SOON;

#[test]
fn copy_ends_what_is_idle() {
    idle(&limited("copy", NETWORK, "copy_ends_what_is_idle"));
}

#[test]
fn splice_ends_what_is_idle() {
    idle(&limited("splice", NETWORK, "splice_ends_what_is_idle"));
}

#[test]
fn chaos_ends_what_is_idle() {
    idle(&limited("chaos", NETWORK, "chaos_ends_what_is_idle"));
}

#[test]
fn sockmap_ends_what_is_idle() {
    idle(&limited("sockmap", KERNEL, "sockmap_ends_what_is_idle"));
}

#[test]
fn sk_msg_ends_what_is_idle() {
    idle(&limited("sk_msg", KERNEL, "sk_msg_ends_what_is_idle"));
}

fn idle(scene: &Option<Scene>) {
    let Some(scene) = scene else { return };
    let mut client = connect(scene);
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(500));
        client.echo(b"busy connections stay");
    }
    let (took, record) = end_of(scene, client);
    assert!(A_SECOND.contains(&took), "took {took:?}");
    assert!(["cD", "sD"].contains(&record.termination.as_str()), "{record:?}");
}

#[test]
fn copy_ends_what_is_half_closed() {
    half_closed(&limited("copy", NETWORK, "copy_ends_what_is_half_closed"));
}

#[test]
fn splice_ends_what_is_half_closed() {
    half_closed(&limited("splice", NETWORK, "splice_ends_what_is_half_closed"));
}

#[test]
fn chaos_ends_what_is_half_closed() {
    half_closed(&limited("chaos", NETWORK, "chaos_ends_what_is_half_closed"));
}

#[test]
fn sockmap_ends_what_is_half_closed() {
    half_closed(&limited("sockmap", KERNEL, "sockmap_ends_what_is_half_closed"));
}

#[test]
fn sk_msg_ends_what_is_half_closed() {
    half_closed(&limited("sk_msg", KERNEL, "sk_msg_ends_what_is_half_closed"));
}

fn half_closed(scene: &Option<Scene>) {
    let Some(scene) = scene else { return };
    let mut client = connect(scene);
    client.echo(b"open in both directions");
    client.0.shutdown(Shutdown::Write).unwrap();
    let (took, record) = end_of(scene, client);
    assert!(A_SECOND.contains(&took), "took {took:?}");
    assert_eq!(record.termination, "sD", "{record:?}");
}

#[test]
fn copy_waits_for_the_answer_after_a_long_quiet() {
    late_end(&with_limits("copy", NETWORK, "copy_waits_for_the_answer_after_a_long_quiet", QUIET));
}

#[test]
fn splice_waits_for_the_answer_after_a_long_quiet() {
    late_end(&with_limits("splice", NETWORK, "splice_waits_for_the_answer_after_a_long_quiet", QUIET));
}

#[test]
fn chaos_waits_for_the_answer_after_a_long_quiet() {
    late_end(&with_limits("chaos", NETWORK, "chaos_waits_for_the_answer_after_a_long_quiet", QUIET));
}

#[test]
fn sockmap_waits_for_the_answer_after_a_long_quiet() {
    late_end(&with_limits("sockmap", KERNEL, "sockmap_waits_for_the_answer_after_a_long_quiet", QUIET));
}

#[test]
fn sk_msg_waits_for_the_answer_after_a_long_quiet() {
    late_end(&with_limits("sk_msg", KERNEL, "sk_msg_waits_for_the_answer_after_a_long_quiet", QUIET));
}

#[test]
fn copy_lets_a_slow_reader_finish() {
    slow("copy", NETWORK, "copy_lets_a_slow_reader_finish");
}

#[test]
fn splice_lets_a_slow_reader_finish() {
    slow("splice", NETWORK, "splice_lets_a_slow_reader_finish");
}

#[test]
fn chaos_lets_a_slow_reader_finish() {
    slow("chaos", NETWORK, "chaos_lets_a_slow_reader_finish");
}

#[test]
fn sockmap_lets_a_slow_reader_finish() {
    slow("sockmap", KERNEL, "sockmap_lets_a_slow_reader_finish");
}

/// All was sent long ago, and is still being delivered: that is not idle.
fn slow(forwarder: &str, needs: &[Need], test: &str) {
    // So much takes some ten seconds, and there is room to write only every two or three.
    const SENT: usize = 5 << 20;
    let Some(world) = World::new(needs, test) else { return };
    let addr = world.backend_addr(1);
    world.database.add(&Row::new("b1", addr));
    world.lab.default_buffers().unwrap();
    let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
    // What waits in the reader's own buffer is out of the daemon's sight.
    SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut got) = (vec![0; 64 << 10], 0);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(got),
                Ok(read) => got += read,
                Err(error) => return Err((error.kind(), got)),
            }
            thread::sleep(Duration::from_millis(100));
        }
    });
    let daemon =
        world.daemon(&[("forwarder", forwarder), ("idle_timeout_secs", "1"), ("half_close_timeout_secs", "60")]);
    let connect = || connect_from(world.lab.client(0), daemon.addr());
    let mut client = world.lab.run_in(Ns::Clients, connect).unwrap();
    client.write_all(&vec![7; SENT]).unwrap();
    // The limit of half-closed connections is another one.
    thread::sleep(Duration::from_secs(3));
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reader.join().unwrap(), Ok(SENT));
    let record = daemon.record_of(client.local_addr().unwrap(), SOON).unwrap();
    assert_eq!((record.bytes_up, record.termination.as_str()), (SENT as u64, "--"), "{record:?}");
}

/// The limit of a half-closed connection counts from its end of stream, not from the last byte before.
const QUIET: [(&str, &str); 2] = [("idle_timeout_secs", "60"), ("half_close_timeout_secs", "3")];

fn late_end(scene: &Option<Scene>) {
    let Some(scene) = scene else { return };
    let mut client = connect(scene);
    client.echo(b"and then nothing for longer than the other limit");
    thread::sleep(Duration::from_secs(4));
    client.0.shutdown(Shutdown::Write).unwrap();
    let (took, record) = end_of(scene, client);
    assert!((Duration::from_millis(2_500)..SOON).contains(&took), "took {took:?}");
    assert_eq!(record.termination, "sD", "{record:?}");
}

/// A daemon with limits of a second, and a backend that answers and never closes.
fn limited(forwarder: &'static str, needs: &[Need], test: &str) -> Option<Scene> {
    with_limits(forwarder, needs, test, [("idle_timeout_secs", "1"), ("half_close_timeout_secs", "1")])
}

fn with_limits(forwarder: &'static str, needs: &[Need], test: &str, limits: [(&str, &str); 2]) -> Option<Scene> {
    let serve = |world: &World, addr: SocketAddr| serve_one(world, addr, AtTheEnd::Stay);
    // A single full read, and a direction is spliced.
    Scene::new(forwarder, &[&limits[..], &[("splice_read_kib", "16")]].concat(), serve, needs, test)
}

fn connect(scene: &Scene) -> Client {
    let mut client = scene.client(0);
    let spliced = || scene.daemon.flows().unwrap().iter().any(|flow| flow.forwarder == "splice");
    while scene.forwarder == "splice" && !spliced() {
        client.echo(&[7; 40_000]);
    }
    client
}

/// How long the connection still lives, and what is said of it afterwards.
fn end_of(scene: &Scene, mut client: Client) -> (Duration, Record) {
    let since = Instant::now();
    let end = client.read(&mut [0]);
    let took = since.elapsed();
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    let record = scene.daemon.record_of(client.local(), SOON).unwrap();
    assert_eq!(record.forwarder.as_deref(), Some(scene.forwarder), "{record:?}");
    (took, record)
}
