//! `auto` gives connections to the kernel by the thresholds that the operator sets, and lets those ask again that found
//! no room.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::{KERNEL, NETWORK, Row, SOON, World};
use xtask::lab::{Daemon, Flow, Ns};
use xtask::load::{Manner, Visit, connect_from};

/// Messages that would do many times over to be given to the kernel.
const PLENTY: usize = 2_000;

/// The flow of a client that is there.
fn flow_of(daemon: &Daemon, client: SocketAddr) -> Flow {
    daemon.flow_of(client).unwrap().expect("the flow runs")
}

/// Talks until the kernel has the flow, or long enough; the flow then.
fn talk_into_kernel(daemon: &Daemon, visit: &mut Visit, size: usize) -> Flow {
    let (deadline, message) = (Instant::now() + SOON, vec![7; size]);
    loop {
        (0..50).for_each(|_| visit.echo(&message).unwrap());
        let flow = flow_of(daemon, visit.local);
        if flow.forwarder == "sockmap" || Instant::now() > deadline {
            return flow;
        }
    }
}

fn assert_lively(flow: &Flow) {
    assert_eq!(flow.carrier(), ("sockmap", "lively"), "{flow:?}");
}

/// Talks a lot; the flow is copied from the start on, and nothing else.
fn assert_stays(daemon: &Daemon, visit: &mut Visit, size: usize) {
    let message = vec![7; size];
    (0..PLENTY).for_each(|_| visit.echo(&message).unwrap());
    let flow = flow_of(daemon, visit.local);
    assert_eq!(flow.carrier(), ("copy", "start"), "{flow:?}");
}

/// Conversations go to the kernel as far as `auto_conversations` allows, for each worker; those of larger messages all do
/// where `auto_sizeable_message_kib` says so.
#[test]
fn conversations_beyond_the_limit_are_copied_until_there_is_room() {
    let test = "conversations_beyond_the_limit_are_copied_until_there_is_room";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    // Slow machines have lively conversations, too.
    let few = [("workers", "1"), ("auto_conversations", "1"), ("auto_messages_per_sec", "20")];
    let daemon = world.daemon(&[&few[..], &[("forwarder", "auto"), ("auto_sizeable_message_kib", "8")]].concat());
    let [mut first, mut second, mut larger] = [0, 1, 2].map(|n| world.visit(n, daemon.addr()).unwrap());
    assert_lively(&talk_into_kernel(&daemon, &mut first, 600));
    assert_stays(&daemon, &mut second, 600);
    assert_lively(&talk_into_kernel(&daemon, &mut larger, 12_000));
    drop((first, larger));
    assert_lively(&talk_into_kernel(&daemon, &mut second, 600));
    drop((second, daemon));
    let strict = world.daemon(&[&few[..], &[("forwarder", "auto")]].concat());
    let [mut first, mut larger] = [3, 4].map(|n| world.visit(n, strict.addr()).unwrap());
    assert_lively(&talk_into_kernel(&strict, &mut first, 600));
    assert_stays(&strict, &mut larger, 12_000);
}

#[test]
fn nothing_is_given_to_the_kernel_before_the_window_is_over() {
    let Some(world) = World::new(KERNEL, "nothing_is_given_to_the_kernel_before_the_window_is_over") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let settings = [("forwarder", "auto"), ("auto_messages_per_sec", "20"), ("auto_window_ms", "60000")];
    let patient = world.daemon(&settings);
    let mut visit = world.visit(0, patient.addr()).unwrap();
    assert_stays(&patient, &mut visit, 600);
    drop((visit, patient));
    let hasty = world.daemon(&[("forwarder", "auto"), ("auto_messages_per_sec", "20"), ("auto_window_ms", "1")]);
    let mut visit = world.visit(0, hasty.addr()).unwrap();
    assert_lively(&talk_into_kernel(&hasty, &mut visit, 600));
}

/// Loading the programs takes longer than all else at a start. Clients wait for it only where they must.
#[test]
fn clients_of_the_first_moment_are_copied_and_taken_into_the_kernel_later() {
    let test = "clients_of_the_first_moment_are_copied_and_taken_into_the_kernel_later";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let config = world.config().set("forwarder", "auto").set("auto_messages_per_sec", "20");
    let mut daemon = Daemon::spawn(&world.lab, &config).unwrap();
    let deadline = Instant::now() + SOON;
    let mut visit = loop {
        match world.visit(0, daemon.addr()) {
            Ok(visit) => break visit,
            Err(why) => assert!(Instant::now() < deadline, "{why}: {}", daemon.messages()),
        }
        thread::sleep(Duration::from_millis(1));
    };
    visit.echo(b"the first one").unwrap();
    daemon.wait_ready().unwrap();
    assert_lively(&talk_into_kernel(&daemon, &mut visit, 600));
    let local = visit.local;
    visit.finish().unwrap();
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!((record.forwarder.as_deref(), record.fallback.as_deref()), (Some("sockmap"), None), "{record:?}");
    assert_eq!(order(&daemon), ["ready", "self-test"]);
    drop(daemon);
    let range = format!("{}:20000-20099", world.lab.pop());
    let first = [config.clone().set("forwarder", "sockmap"), config.set("listen_addr", range)];
    for config in first {
        assert_eq!(order(&Daemon::start(&world.lab, &config).unwrap()), ["self-test", "ready"]);
    }
}

/// What came first.
fn order(daemon: &Daemon) -> [&'static str; 2] {
    common::assert_said(daemon, "edgeproxy is ready");
    common::assert_said(daemon, "passed its self-test");
    let messages = daemon.messages();
    let mut said = [("edgeproxy is ready", "ready"), ("passed its self-test", "self-test")];
    said.sort_by_key(|(words, _)| messages.find(words));
    said.map(|(_, name)| name)
}

/// A steady stream one way, with pauses in which nothing is pending.
#[test]
fn a_transfer_takes_the_kernel_path_from_the_rate_that_is_set() {
    let Some(world) = World::new(KERNEL, "a_transfer_takes_the_kernel_path_from_the_rate_that_is_set") else { return };
    let addr = world.backend_addr(1);
    world.database.add(&Row::new("sink", addr));
    let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
    // They end with their connections; the thread with the test.
    thread::spawn(move || listener.incoming().flatten().for_each(|stream| _ = thread::spawn(move || swallow(stream))));

    let stream_to = |daemon: &Daemon, enough: &dyn Fn(&Flow) -> bool| {
        let mut client = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(0), daemon.addr())).unwrap();
        let local = client.local_addr().unwrap();
        let deadline = Instant::now() + SOON;
        loop {
            for _ in 0..20 {
                client.write_all(&[7; 4_000]).unwrap();
                thread::sleep(Duration::from_millis(2));
            }
            let flow = flow_of(daemon, local);
            if enough(&flow) || Instant::now() > deadline {
                return flow;
            }
        }
    };
    let off = world.daemon(&[("forwarder", "auto")]);
    let flow = stream_to(&off, &|flow| flow.bytes_up > 800_000);
    assert_eq!(flow.carrier(), ("copy", "start"), "0 is never: {flow:?}");
    drop(off);
    let on = world.daemon(&[("forwarder", "auto"), ("auto_bytes_per_sec", "20000")]);
    let flow = stream_to(&on, &|flow| flow.forwarder == "sockmap" && flow.kernel_up > 0);
    assert_eq!(flow.carrier(), ("sockmap", "bulk"), "{flow:?}");
    assert!(flow.kernel_up > 0, "{flow:?}");
}

fn swallow(mut stream: TcpStream) {
    let mut buffer = [0; 65_536];
    while let Ok(1..) = stream.read(&mut buffer) {}
}

/// As many full reads in a row as are asked for never come where the messages are smaller.
#[test]
fn what_is_spliced_is_settable() {
    let Some(world) = World::new(NETWORK, "what_is_spliced_is_settable") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    for (settings, expected) in [
        ([("forwarder", "splice"), ("splice_read_kib", "16"), ("splice_reads", "1")], "splice"),
        ([("forwarder", "splice"), ("splice_read_kib", "16"), ("splice_reads", "255")], "copy"),
    ] {
        let daemon = world.daemon(&settings);
        let mut visit = world.visit(0, daemon.addr()).unwrap();
        (0..20).for_each(|_| visit.echo(&[7; 200_000]).unwrap());
        let local = visit.local;
        visit.finish().unwrap();
        let record = daemon.record_of(local, SOON).unwrap();
        assert_eq!(record.forwarder.as_deref(), Some(expected), "{record:?}");
        assert_eq!(record.kernel_up > 0, expected == "splice", "{record:?}");
    }
}

/// Who came when all records were in use is no worse off for ever.
#[test]
fn a_connection_that_found_no_free_record_asks_again() {
    let Some(world) = World::new(KERNEL, "a_connection_that_found_no_free_record_asks_again") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "sockmap"), ("max_flows", "1")]);
    let mut first = world.visit(0, daemon.addr()).unwrap();
    assert_eq!(talk_into_kernel(&daemon, &mut first, 600).forwarder, "sockmap");
    let mut second = world.visit(1, daemon.addr()).unwrap();
    second.echo(&[7; 600]).unwrap();
    let flow = flow_of(&daemon, second.local);
    assert_eq!(flow.carrier(), ("copy", "no_free_record"), "{flow:?}");
    drop(first);
    let flow = talk_into_kernel(&daemon, &mut second, 600);
    assert_eq!(flow.carrier(), ("sockmap", "configured"), "{flow:?}");
    let local = second.local;
    (0..100).for_each(|_| second.echo(&[7; 600]).unwrap());
    second.finish().unwrap();
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!((record.fallback.as_deref(), record.termination.as_str()), (None, "--"), "{record:?}");
    assert!(record.kernel_up > 0, "{record:?}");
}
