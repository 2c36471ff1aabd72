//! Clients that do what nobody should: none of it may lose a byte, hold a place for ever or switch the kernel path off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::polling::{Client, be_mute, serve};
use common::scene::Scene;
use common::stage::withdrawn;
use common::{KERNEL, NETWORK, SOON, World, eventually, urgent};
use socket2::SockRef;
use xtask::lab::requirements::Need;
use xtask::lab::{Daemon, Record};
use xtask::load::Manner;

/// A blocked pair is looked at every few seconds only.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nothing was lost, and what one client did has no consequences for others.
fn assert_unharmed(scene: &Scene) {
    let metrics = scene.daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_byte_mismatches_total 0\n"), "{metrics}");
    if scene.forwarder == "sk_msg" {
        assert_eq!(withdrawn(&scene.daemon), [""; 0]);
        assert_handed_over(scene, scene.client(1));
    } else {
        assert_eq!(scene.daemon.status().unwrap().text("/forwarder/active"), Some(scene.forwarder));
    }
}

/// Sends until something is handed over: what comes before the two are a pair goes through the daemon.
fn assert_handed_over(scene: &Scene, client: Client) {
    let local = client.local();
    eventually("another client's bytes are handed over", || {
        (&client.0).write_all(b"and I").unwrap();
        scene.daemon.flow_of(local).unwrap().is_some_and(|flow| flow.forwarder == "sk_msg" && flow.kernel_up > 0)
    });
}

#[test]
fn copy_carries_an_urgent_byte() {
    urgent("copy", NETWORK, "copy_carries_an_urgent_byte");
}

#[test]
fn splice_carries_an_urgent_byte() {
    urgent("splice", NETWORK, "splice_carries_an_urgent_byte");
}

#[test]
fn sockmap_carries_an_urgent_byte() {
    urgent("sockmap", KERNEL, "sockmap_carries_an_urgent_byte");
}

#[test]
fn auto_carries_an_urgent_byte() {
    urgent("auto", KERNEL, "auto_carries_an_urgent_byte");
}

#[test]
fn sk_msg_carries_an_urgent_byte() {
    urgent("sk_msg", KERNEL, "sk_msg_carries_an_urgent_byte");
}

/// TCP counts an urgent byte as received, but cuts it out of what is read unless it is told not to.
fn urgent(forwarder: &'static str, needs: &[Need], test: &str) {
    let Some(scene) = Scene::new(forwarder, &[], serve, needs, test) else { return };
    let mut client = scene.client(0);
    // At the start, and when there was enough, and fast enough, to be promoted.
    for _ in 0..2 {
        SockRef::from(&client.0).send_out_of_band(b"!").unwrap();
        client.expect(b"!");
        (0..200).for_each(|_| client.echo(&[7; 4_000]));
    }
    let record = end(&scene, client);
    assert_eq!((record.bytes_up, record.bytes_down), (1_600_002, 1_600_002), "{record:?}");
    if forwarder == "sk_msg" {
        assert_eq!(record.forwarder.as_deref(), Some("sk_msg"), "{record:?}");
        assert!(record.kernel_up > 800_000, "{record:?}");
    }
    assert_unharmed(&scene);
}

/// Ends the client's stream and awaits the backend's.
fn end(scene: &Scene, mut client: Client) -> Record {
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let record = scene.daemon.record_of(client.local(), SOON).unwrap();
    assert_eq!(record.termination, "--", "{record:?}");
    record
}

#[test]
fn copy_carries_what_came_with_an_urgent_byte() {
    burst("copy", NETWORK, "copy_carries_what_came_with_an_urgent_byte");
}

#[test]
fn splice_carries_what_came_with_an_urgent_byte() {
    burst("splice", NETWORK, "splice_carries_what_came_with_an_urgent_byte");
}

#[test]
fn sockmap_carries_what_came_with_an_urgent_byte() {
    burst("sockmap", KERNEL, "sockmap_carries_what_came_with_an_urgent_byte");
}

#[test]
fn auto_carries_what_came_with_an_urgent_byte() {
    burst("auto", KERNEL, "auto_carries_what_came_with_an_urgent_byte");
}

#[test]
fn sk_msg_carries_what_came_with_an_urgent_byte() {
    burst("sk_msg", KERNEL, "sk_msg_carries_what_came_with_an_urgent_byte");
}

/// A read stops short at an urgent byte, and no event tells of what is behind it: all of it was there before.
fn burst(forwarder: &'static str, needs: &[Need], test: &str) {
    let Some(scene) = Scene::new(forwarder, &[("connect_timeout_ms", "8000")], serve, needs, test) else { return };
    let lab = &scene.world.lab;
    // The first SYN to the backend is lost, so that everything waits in the client's socket when forwarding begins.
    lab.mute(lab.backend(1)).unwrap();
    let mut client = scene.client(0);
    urgent::send(&mut client.0);
    thread::sleep(Duration::from_millis(300));
    lab.unmute(lab.backend(1)).unwrap();
    client.expect(b"before!after");
    assert_eq!(end(&scene, client).bytes_up, 12);
    assert_unharmed(&scene);
}

/// Behind an urgent byte splice(2) moves nothing, and once the end has come it says so by a 0 like that of the end.
#[test]
fn an_urgent_byte_in_a_spliced_stream_is_not_its_end() {
    const BEFORE: usize = 24 << 20;
    const AFTER: usize = 100_000;
    let Some(world) = World::new(NETWORK, "an_urgent_byte_in_a_spliced_stream_is_not_its_end") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "splice")]);
    let visit = world.visit(0, daemon.addr()).unwrap();
    let mut writer = visit.stream().try_clone().unwrap();
    let sender = thread::spawn(move || {
        writer.write_all(&vec![7; BEFORE]).unwrap();
        SockRef::from(&writer).send_out_of_band(b"!").unwrap();
        writer.write_all(&[8; AFTER]).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // Every buffer on the way is full, so that the end comes while the urgent byte still waits.
    thread::sleep(Duration::from_secs(1));
    let mut back = Vec::new();
    visit.stream().read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert_eq!(back.len(), BEFORE + 1 + AFTER);
    assert!(back[..BEFORE].iter().all(|byte| *byte == 7) && back[BEFORE] == b'!' && back[BEFORE + 1..] == [8; AFTER]);
    let record = daemon.record_of(visit.local, SOON).unwrap();
    assert_eq!((record.forwarder.as_deref(), record.termination.as_str()), (Some("splice"), "--"), "{record:?}");
}

#[test]
fn copy_ends_a_blocked_pair_at_the_idle_limit() {
    blocked("copy", NETWORK, "copy_ends_a_blocked_pair_at_the_idle_limit");
}

#[test]
fn splice_ends_a_blocked_pair_at_the_idle_limit() {
    blocked("splice", NETWORK, "splice_ends_a_blocked_pair_at_the_idle_limit");
}

#[test]
fn auto_ends_a_blocked_pair_at_the_idle_limit() {
    blocked("auto", KERNEL, "auto_ends_a_blocked_pair_at_the_idle_limit");
}

#[test]
fn sockmap_ends_a_blocked_pair_at_the_idle_limit() {
    blocked("sockmap", KERNEL, "sockmap_ends_a_blocked_pair_at_the_idle_limit");
}

#[test]
fn sk_msg_ends_a_blocked_pair_at_the_idle_limit() {
    blocked("sk_msg", KERNEL, "sk_msg_ends_a_blocked_pair_at_the_idle_limit");
}

fn blocked(forwarder: &'static str, needs: &[Need], test: &str) {
    let Some(scene) = Scene::new(forwarder, &[("idle_timeout_secs", "3")], be_mute, needs, test) else { return };
    let client = scene.client(0);
    fill(&client.0);
    let record = scene.daemon.record_of(client.local(), PATIENCE).expect("the pair is still there");
    assert_eq!(record.termination, "cD", "{record:?}");
    assert_eq!(record.forwarder.as_deref(), Some(blocked_by(forwarder)), "{record:?}");
    assert_unharmed(&scene);
}

/// What carries so much from a client that nobody reads from.
fn blocked_by(forwarder: &str) -> &str {
    if forwarder == "auto" { "splice" } else { forwarder }
}

#[test]
fn copy_notices_a_reset_behind_bytes_that_nobody_takes() {
    blocked_reset("copy", NETWORK, "copy_notices_a_reset_behind_bytes_that_nobody_takes");
}

#[test]
fn splice_notices_a_reset_behind_bytes_that_nobody_takes() {
    blocked_reset("splice", NETWORK, "splice_notices_a_reset_behind_bytes_that_nobody_takes");
}

#[test]
fn auto_notices_a_reset_behind_bytes_that_nobody_takes() {
    blocked_reset("auto", KERNEL, "auto_notices_a_reset_behind_bytes_that_nobody_takes");
}

#[test]
fn sockmap_notices_a_reset_behind_bytes_that_nobody_takes() {
    blocked_reset("sockmap", KERNEL, "sockmap_notices_a_reset_behind_bytes_that_nobody_takes");
}

#[test]
fn sk_msg_notices_a_reset_behind_bytes_that_nobody_takes() {
    blocked_reset("sk_msg", KERNEL, "sk_msg_notices_a_reset_behind_bytes_that_nobody_takes");
}

fn blocked_reset(forwarder: &'static str, needs: &[Need], test: &str) {
    let Some(scene) = Scene::new(forwarder, &[], be_mute, needs, test) else { return };
    let client = scene.client(0);
    fill(&client.0);
    let record = reset_is_noticed(&scene.daemon, client.0);
    assert_eq!(record.forwarder.as_deref(), Some(blocked_by(forwarder)), "{record:?}");
    assert_unharmed(&scene);
}

#[test]
fn copy_notices_a_reset_after_a_half_close() {
    half_closed_reset("copy", NETWORK, "copy_notices_a_reset_after_a_half_close");
}

#[test]
fn splice_notices_a_reset_after_a_half_close() {
    half_closed_reset("splice", NETWORK, "splice_notices_a_reset_after_a_half_close");
}

#[test]
fn auto_notices_a_reset_after_a_half_close() {
    half_closed_reset("auto", KERNEL, "auto_notices_a_reset_after_a_half_close");
}

#[test]
fn sockmap_notices_a_reset_after_a_half_close() {
    half_closed_reset("sockmap", KERNEL, "sockmap_notices_a_reset_after_a_half_close");
}

#[test]
fn sk_msg_notices_a_reset_after_a_half_close() {
    half_closed_reset("sk_msg", KERNEL, "sk_msg_notices_a_reset_after_a_half_close");
}

fn half_closed_reset(forwarder: &'static str, needs: &[Need], test: &str) {
    let Some(scene) = Scene::new(forwarder, &[], be_mute, needs, test) else { return };
    let (client, daemon) = (scene.client(0), &scene.daemon);
    eventually("the pair is there", || daemon.status().unwrap().backends().iter().any(|(_, count, _)| *count == 1));
    client.0.shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(100));
    reset_is_noticed(daemon, client.0);
    assert_unharmed(&scene);
}

/// Writes until nothing has fitted for a while.
fn fill(mut client: &TcpStream) {
    let (chunk, mut last) = ([7; 65_536], Instant::now());
    while last.elapsed() < Duration::from_millis(700) {
        match client.write(&chunk) {
            Ok(_) => last = Instant::now(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("{error}"),
        }
    }
}

fn reset_is_noticed(daemon: &Daemon, client: TcpStream) -> Record {
    let local = client.local_addr().unwrap();
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let record = daemon.record_of(local, PATIENCE).expect("the reset was not noticed");
    assert_eq!(record.termination, "CD", "{record:?}");
    let rest = daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    assert_eq!(rest.number("/forwarder/same_host/flows"), 0);
    for (backend, connections, kernel) in rest.backends() {
        assert_eq!((connections, kernel.unwrap_or(0)), (0, 0), "{backend}");
    }
    record
}
