//! Bytes in against bytes out, in userspace: a thief takes some out of the daemon's own sockets, and however the
//! connection ends, that is noticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::{NETWORK, SOON, World, assert_said, eventually};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use xtask::lab::Daemon;
use xtask::load::{Manner, Visit};

const LOOT: &[u8] = b"stolen";

/// Has the client send a few bytes that the daemon never sees: while it is stopped somebody else reads them.
fn steal(daemon: &Daemon, visit: &Visit) {
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    eventually("the daemon is stopped", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap_or_default();
        tasks.flatten().all(|task| status(task).contains("State:\tT"))
    });
    let mut client = visit.stream();
    client.write_all(LOOT).unwrap();
    let mut socket = socket_of(daemon, pid, visit.local);
    let mut taken = [0; LOOT.len()];
    let mut so_far = 0;
    while so_far < LOOT.len() {
        match socket.read(&mut taken[so_far..]) {
            Ok(n) => so_far += n,
            // The daemon's socket does not block, and they may still be on their way.
            Err(why) => assert_eq!(why.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!(taken, LOOT);
    drop(socket);
    kill_process(pid, Signal::CONT).unwrap();
}

/// The daemon's socket to a client, shared with it.
fn socket_of(daemon: &Daemon, pid: Pid, client: SocketAddr) -> TcpStream {
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().flatten();
    let sockets = files
        .filter(|file| fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")));
    let copy = |file: fs::DirEntry| {
        let number = file.file_name().to_string_lossy().parse().ok()?;
        Some(TcpStream::from(pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?))
    };
    sockets.filter_map(copy).find(|socket| socket.peer_addr().is_ok_and(|peer| peer == client)).unwrap()
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
    steal(&daemon, &visit);
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
