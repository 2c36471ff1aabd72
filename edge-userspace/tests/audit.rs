//! Bytes in against bytes out, where they go through the daemon: a thief takes some out of its own sockets, and however
//! the connection ends, that is noticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use common::descriptors::socket_of;
use common::maps::divert;
use common::polling::{AtTheEnd, Client, serve_one};
use common::stage::{one_marked, withdrawn};
use common::{KERNEL, NETWORK, SOON, World, assert_said, eventually};
use rustix::process::{Pid, Signal, kill_process};
use socket2::SockRef;
use xtask::lab::Daemon;
use xtask::load::{Manner, Visit};

const LOOT: &[u8] = b"stolen";

/// Has the client send bytes that the daemon never sees: while it is stopped somebody else reads them.
fn steal(daemon: &Daemon, mut client: &TcpStream, loot: &[u8]) {
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    eventually("the daemon is stopped", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap_or_default();
        tasks.flatten().all(|task| status(task).contains("State:\tT"))
    });
    client.write_all(loot).unwrap();
    let mut socket = socket_of(daemon, client.local_addr().unwrap());
    let mut taken = vec![0; loot.len()];
    let mut so_far = 0;
    while so_far < loot.len() {
        match socket.read(&mut taken[so_far..]) {
            Ok(n) => so_far += n,
            // The daemon's socket does not block, and they may still be on their way.
            Err(why) => assert_eq!(why.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!(taken, loot);
    drop(socket);
    kill_process(pid, Signal::CONT).unwrap();
}

/// Takes bytes from a connection of a daemon with these settings, has it `end`, and says how that is recorded.
fn robbed(
    settings: &[(&str, &str)],
    test: &str,
    before: usize,
    end: impl Fn(Visit),
) -> Option<(World, Daemon, String)> {
    let world = World::new(NETWORK, test)?;
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(settings);
    let mut visit = world.visit(0, daemon.addr()).unwrap();
    visit.echo(&vec![7; before]).unwrap();
    steal(&daemon, visit.stream(), LOOT);
    let local = visit.local;
    end(visit);
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!(record.bytes_up, before as u64, "{record:?}");
    let what = format!(" bytes were received (Client), {before} were moved");
    assert_said(&daemon, &what);
    eventually("it is counted", || daemon.metrics().unwrap().contains("edgeproxy_byte_mismatches_total 1\n"));
    // One that nobody robs is none.
    assert_eq!(world.exchange(&daemon).termination, "--");
    assert!(daemon.metrics().unwrap().contains("edgeproxy_byte_mismatches_total 1\n"));
    Some((world, daemon, record.termination))
}

#[test]
fn bytes_that_vanish_from_a_copied_connection_are_noticed_at_its_end() {
    let test = "bytes_that_vanish_from_a_copied_connection_are_noticed_at_its_end";
    let Some(ended) = robbed(&[("forwarder", "copy")], test, 1_000, |visit| visit.finish().unwrap()) else { return };
    assert_eq!(ended.2, "--");
    assert_eq!(ended.1.status().unwrap().text("/forwarder/active"), Some("copy"));
}

#[test]
fn bytes_that_vanish_from_a_spliced_connection_switch_splice_off() {
    let test = "bytes_that_vanish_from_a_spliced_connection_switch_splice_off";
    let Some(ended) = robbed(&[("forwarder", "splice")], test, 4 << 20, |visit| visit.finish().unwrap()) else {
        return;
    };
    let active = || ended.1.status().unwrap().text("/forwarder/active").map(str::to_owned);
    assert_eq!(active().as_deref(), Some("copy"));
    assert_eq!(ended.1.post("/api/v1/forwarder", "{\"forwarder\": \"splice\"}").unwrap().code, 200);
    assert_eq!(active().as_deref(), Some("splice"), "somebody has looked");
}

#[test]
fn bytes_that_vanish_before_a_reset_are_noticed() {
    let reset = |visit: Visit| SockRef::from(visit.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    let Some(ended) = robbed(&[("forwarder", "copy")], "bytes_that_vanish_before_a_reset_are_noticed", 1_000, reset)
    else {
        return;
    };
    assert_eq!(ended.2, "CD");
}

#[test]
fn bytes_that_vanish_before_a_time_limit_are_noticed() {
    let settings = [("forwarder", "copy"), ("idle_timeout_secs", "2")];
    let test = "bytes_that_vanish_before_a_time_limit_are_noticed";
    let wait = |visit: Visit| _ = std::io::copy(&mut visit.stream().try_clone().unwrap(), &mut std::io::sink());
    let Some(ended) = robbed(&settings, test, 1_000, wait) else { return };
    assert_eq!(ended.2, "cD");
}

/// Two ends of a connection over loopback.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// The kernel gives the client's bytes to somebody else, and nothing moves any more. How that is recorded.
fn diverted(settings: &[(&str, &str)], test: &str) -> Option<String> {
    let world = World::new(KERNEL, test)?;
    let backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[&[("forwarder", "sockmap")], settings].concat());
    let visit = world.visit(0, daemon.addr()).unwrap();
    eventually("it is in the kernel", || daemon.metrics().unwrap().contains("edgeproxy_kernel_flows 1\n"));
    let (thief, mut fence) = connection();
    divert(&daemon, backend.addr(), &thief);
    visit.stream().write_all(LOOT).unwrap();
    let mut taken = [0; LOOT.len()];
    fence.read_exact(&mut taken).unwrap();
    assert_eq!(taken, LOOT);
    let record = daemon.record_of(visit.local, 3 * SOON).unwrap();
    assert_eq!((record.forwarder.as_deref(), record.kernel_up), (Some("sockmap"), LOOT.len() as u64), "{record:?}");
    assert_said(&daemon, "6 bytes were given to a socket that took 0");
    eventually("it is counted", || daemon.metrics().unwrap().contains("edgeproxy_byte_mismatches_total 1\n"));
    assert_eq!(daemon.status().unwrap().text("/forwarder/active"), Some("copy"));
    assert_eq!(world.exchange(&daemon).forwarder.as_deref(), Some("copy"), "until an operator says so");
    Some(record.termination)
}

#[test]
fn bytes_that_vanish_in_the_kernel_are_noticed_while_the_connection_is_open() {
    let test = "bytes_that_vanish_in_the_kernel_are_noticed_while_the_connection_is_open";
    if let Some(ended) = diverted(&[], test) {
        assert_eq!(ended, "ID");
    }
}

#[test]
fn bytes_that_vanish_in_the_kernel_are_noticed_at_a_time_limit() {
    let test = "bytes_that_vanish_in_the_kernel_are_noticed_at_a_time_limit";
    if let Some(ended) = diverted(&[("idle_timeout_secs", "3")], test) {
        assert_eq!(ended, "cD");
    }
}

/// Of a pair on one host the bytes that find no room go through the daemon.
#[test]
fn bytes_that_vanish_between_applications_of_one_host_take_the_mark() {
    let test = "bytes_that_vanish_between_applications_of_one_host_take_the_mark";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (_cgroups, addr, daemon) = one_marked(&world, &[("same_host_budget_kib", "16")]);
    serve_one(&world, addr, AtTheEnd::Close);
    let mut client = Client::connect(&world, 0, daemon.addr());
    // What is sent before the two are a pair goes through the daemon, too.
    let word = b"hand this over";
    let mut words = 0;
    while words == 0 || daemon.flows().unwrap()[0].kernel_up == 0 {
        client.echo(word);
        words += 1;
        assert!(words < 100, "nothing is handed over");
    }
    client.echo(&[7; 20_000]);
    steal(&daemon, &client.0, &[8; 20_000]);
    client.echo(b"what comes later arrives");
    assert_eq!(withdrawn(&daemon), [""; 0], "the bytes could still be on their way");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let record = daemon.record_of(client.local(), SOON).unwrap();
    assert_eq!((record.termination.as_str(), record.fallback.as_deref()), ("--", Some("withdrawn")), "{record:?}");
    assert_eq!(record.bytes_up, words * word.len() as u64 + 20_000 + 24, "{record:?}");
    assert!((1..record.bytes_up).contains(&record.kernel_up), "some by the kernel, some by the daemon: {record:?}");
    assert_said(&daemon, "the mark same_host is withdrawn until a restart");
    let read = record.bytes_up - record.kernel_up;
    // The end of the stream counts as one.
    assert_said(&daemon, &format!("{} bytes were received, {read} were read (Client)", read + 20_000 + 1));
    eventually("it is withdrawn", || withdrawn(&daemon) == ["b1"]);
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_byte_mismatches_total 1\n"), "{metrics}");
    assert!(metrics.contains("edgeproxy_same_host_withdrawn 1\n"), "{metrics}");
}
