//! The kernel path is correct or it is off, and whoever asks is told why.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use common::maps::map_of;
use common::{KERNEL, Over, Row, SOON, World, eventually};
use edge_common::Flow;
use socket2::{SockRef, TcpKeepalive};
use xtask::lab::{Daemon, Ns, Where};
use xtask::load::{Manner, Visit, connect_from};

#[test]
fn a_kernel_that_is_known_to_lose_data_is_denied() {
    let Some(world) = World::new(KERNEL, "a_kernel_that_is_known_to_lose_data_is_denied") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let config = world.config().ancient_kernel();
    for forwarder in ["auto", "sockmap"] {
        let daemon = Daemon::start(&world.lab, &config.clone().set("forwarder", forwarder)).unwrap();
        let why = common::assert_kernel_path_off(&daemon, "denied_kernel");
        assert!(why.starts_with("sockmap of kernel 2.6.") && why.contains("sockmap_on_denied_kernels"), "{why}");
        common::assert_in_userspace(&world.exchange(&daemon));
        let check = config.clone().set("forwarder", forwarder).command(&world.lab, &["check"]).output().unwrap();
        assert!(check.status.success(), "a POP without a kernel path is a POP all the same: {check:?}");
        assert!(String::from_utf8_lossy(&check.stdout).contains(&why), "{check:?}");
    }
}

#[test]
fn an_operator_may_insist_on_a_denied_kernel() {
    let Some(world) = World::new(KERNEL, "an_operator_may_insist_on_a_denied_kernel") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let config = world.config().ancient_kernel().set("forwarder", "sockmap").set("sockmap_on_denied_kernels", "true");
    let daemon = Daemon::start(&world.lab, &config).unwrap();
    assert_on(&daemon);
    common::assert_said(&daemon, "sockmap_on_denied_kernels is set");
    let record = world.exchange(&daemon);
    assert_eq!(record.forwarder.as_deref(), Some("sockmap"), "{record:?}");
    assert!(record.kernel_up > 0, "{record:?}");
}

/// The kernel path is on, and nothing says otherwise.
fn assert_on(daemon: &Daemon) {
    let status = daemon.status().unwrap();
    assert_eq!(status.text("/forwarder/active"), Some("sockmap"), "{:#}", status.0);
    assert_eq!(status.text("/forwarder/off"), None, "{:#}", status.0);
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_kernel_path_active 1\n"), "{metrics}");
    assert!(!metrics.lines().any(|line| line.starts_with("edgeproxy_kernel_path_off{") && line.ends_with(" 1")));
}

#[test]
fn a_failing_self_test_keeps_the_kernel_path_off() {
    let Some(world) = World::new(KERNEL, "a_failing_self_test_keeps_the_kernel_path_off") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    // The programs load, but the test's own connections can't be made.
    world.lab.cut_loopback().unwrap();
    for forwarder in ["auto", "sockmap"] {
        let daemon = world.daemon(&[("forwarder", forwarder)]);
        let why = common::assert_kernel_path_off(&daemon, "self_test");
        assert!(why.starts_with("the self-test failed: loopback connections could not be made"), "{why}");
        assert_eq!(daemon.status().unwrap().text("/forwarder/self_test"), Some("failed"));
        common::assert_in_userspace(&world.exchange(&daemon));
    }
}

#[test]
fn a_disagreement_switches_the_kernel_path_off_and_running_pairs_go_on() {
    let test = "a_disagreement_switches_the_kernel_path_off_and_running_pairs_go_on";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "sockmap")]);
    let flows = Flows::of(&daemon);
    let mut victim = world.visit(0, daemon.addr()).unwrap();
    victim.echo(&[1; 12_345]).unwrap();
    let (rounds, switched) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        // Where an assertion fails, the others must end, too.
        let done = Over(&switched);
        let others: Vec<_> = (1..=8).map(|n| world.visit(n, daemon.addr()).unwrap()).collect();
        let others: Vec<_> = others.into_iter().map(|visit| scope.spawn(|| talk(visit, &rounds, &switched))).collect();
        eventually("the others are at it", || rounds.load(Ordering::SeqCst) >= 8 * 50);
        flows.change(12_345, |flow| flow.redirected += 1_000);
        let local = victim.local;
        // Its client sees a reset or what came before it: anything but an orderly end.
        assert!(victim.finish().is_err());
        assert_eq!(daemon.record_of(local, SOON).unwrap().termination, "ID");
        let why = common::assert_kernel_path_off(&daemon, "byte_mismatch");
        assert!(why.contains("13345 bytes passed the verdict, 12346 were received"), "{why}");
        common::assert_in_userspace(&world.exchange(&daemon));
        drop(done);
        for other in others {
            let (local, bytes) = other.join().unwrap();
            let record = daemon.record_of(local, SOON).unwrap();
            assert_eq!((record.bytes_up, record.termination.as_str()), (bytes, "--"), "{record:?}");
            assert!(record.kernel_up > 0 && record.kernel_up < record.bytes_up, "{record:?}");
        }
    });
    let error = daemon.messages().lines().find(|line| line.contains("\"ERROR\"")).map(str::to_owned);
    assert!(error.is_some_and(|line| line.contains("byte counts of a connection disagree")), "{}", daemon.messages());
    // Somebody has looked.
    assert_eq!(daemon.post("/api/v1/forwarder", "{\"forwarder\": \"sockmap\"}").unwrap().code, 200);
    assert_on(&daemon);
    assert!(world.exchange(&daemon).kernel_up > 0);
    assert!(daemon.metrics().unwrap().contains("edgeproxy_byte_mismatches_total 1\n"));
}

/// Echoes random amounts of changing bytes until `switched`, and as much again afterwards.
fn talk(mut visit: Visit, rounds: &AtomicU64, switched: &AtomicBool) -> (SocketAddr, u64) {
    let (mut bytes, mut left) = (0, 50);
    for round in 0_u32.. {
        let size = 1 + (round * 7_919) as usize % 60_000;
        let block: Vec<_> = (0..size).map(|n| (n as u32 ^ round).to_le_bytes()[0]).collect();
        visit.echo(&block).unwrap();
        bytes += size as u64;
        rounds.fetch_add(1, Ordering::SeqCst);
        left -= u32::from(switched.load(Ordering::SeqCst));
        if left == 0 {
            break;
        }
    }
    let local = visit.local;
    visit.finish().unwrap();
    (local, bytes)
}

/// TCP drops probes of the peer, as it does what it has already.
#[test]
fn packets_that_a_running_connection_drops_have_its_bytes_compared() {
    let test = "packets_that_a_running_connection_drops_have_its_bytes_compared";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "sockmap")]);
    let mut visit = world.visit(0, daemon.addr()).unwrap();
    visit.echo(b"over a sound link").unwrap();
    assert!(daemon.metrics().unwrap().contains("edgeproxy_kernel_drop_checks_total 0\n"));
    let second = Duration::from_secs(1);
    let probes = TcpKeepalive::new().with_time(second).with_interval(second);
    SockRef::from(visit.stream()).set_tcp_keepalive(&probes).unwrap();
    // Where nothing wakes the pair it is looked at every ten seconds.
    let deadline = Instant::now() + 4 * SOON;
    while daemon.metrics().unwrap().contains("edgeproxy_kernel_drop_checks_total 0\n") {
        assert!(Instant::now() < deadline, "no alarm");
        thread::sleep(second / 10);
    }
    assert!(!daemon.metrics().unwrap().contains("edgeproxy_kernel_drops_total 0\n"));
    visit.echo(b"and on").unwrap();
    let local = visit.local;
    visit.finish().unwrap();
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!((record.termination.as_str(), record.bytes_up), ("--", 23), "{record:?}");
    assert_on(&daemon);
}

#[test]
fn a_disagreement_is_noticed_at_a_reset() {
    noticed("CD", &[], "a_disagreement_is_noticed_at_a_reset", |visit, _| {
        SockRef::from(visit.stream()).set_linger(Some(Duration::ZERO)).unwrap();
        drop(visit);
    });
}

#[test]
fn a_disagreement_is_noticed_at_the_idle_limit() {
    let limit = [("idle_timeout_secs", "1")];
    noticed("cD", &limit, "a_disagreement_is_noticed_at_the_idle_limit", |visit, _| {
        let _ = visit.stream().read(&mut [0]);
    });
}

#[test]
fn a_disagreement_is_noticed_when_a_drain_cuts_the_connection() {
    let limit = [("drain_timeout_secs", "0")];
    noticed("KD", &limit, "a_disagreement_is_noticed_when_a_drain_cuts_the_connection", |visit, daemon| {
        daemon.ask_to_end();
        let _ = visit.stream().read(&mut [0]);
    });
}

/// What is under way when a connection is cut is no disagreement, however much it is.
#[test]
fn a_cut_in_full_flow_is_no_disagreement() {
    let Some(world) = World::new(KERNEL, "a_cut_in_full_flow_is_no_disagreement") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    for _ in 0..5 {
        let mut daemon = world.daemon(&[("forwarder", "sockmap"), ("drain_timeout_secs", "0")]);
        let visits: Vec<_> = (0..6).map(|n| world.visit(n, daemon.addr()).unwrap()).collect();
        let (began, done) = (Instant::now(), |began: &Instant| began.elapsed() > SOON);
        thread::scope(|scope| {
            // Both ways at once, as fast as it goes, until it is cut.
            for visit in &visits {
                visit.stream().set_write_timeout(Some(SOON)).unwrap();
                scope.spawn(|| while visit.stream().write_all(&[7; 100_000]).is_ok() && !done(&began) {});
                scope.spawn(|| while visit.stream().read(&mut [0; 100_000]).is_ok_and(|n| n > 0) && !done(&began) {});
            }
            thread::sleep(Duration::from_millis(300));
            assert_eq!(daemon.terminate().unwrap().code(), Some(0));
        });
        assert_eq!(daemon.access_log(SOON, |records| records.len() == 6).len(), 6);
        assert!(!daemon.messages().contains("\"ERROR\""), "{}", daemon.messages());
    }
}

/// Both kinds of disagreement, at an end that comes before the ends of the streams; and none where there is none.
fn noticed(termination: &str, settings: &[(&str, &str)], test: &str, end: impl Fn(Visit, &Daemon)) {
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let forged: [(i64, &str); 3] = [(1_000, "13345 bytes passed"), (-1_000, "11345 bytes passed"), (0, "")];
    for (change, what) in forged {
        let daemon = world.daemon(&[&[("forwarder", "sockmap")], settings].concat());
        let mut visit = world.visit(0, daemon.addr()).unwrap();
        visit.echo(&[1; 12_345]).unwrap();
        Flows::of(&daemon).change(12_345, |flow| flow.redirected = flow.redirected.strict_add_signed(change));
        let local = visit.local;
        end(visit, &daemon);
        // Bytes that TCP received and nobody has seen are waited for, 10 s at most.
        let record = daemon.record_of(local, SOON * 2).unwrap();
        let told = daemon.messages().contains("byte counts of a connection disagree");
        if change == 0 {
            assert!(!told, "{}", daemon.messages());
            assert_eq!((record.termination.as_str(), record.bytes_up), (termination, 12_345), "{record:?}");
        } else {
            common::assert_said(&daemon, "byte counts of a connection disagree");
            common::assert_said(&daemon, what);
        }
    }
}

/// Nothing but the dropped packets has anybody look.
#[test]
fn bytes_that_disagree_are_noticed_when_a_running_connection_drops_packets() {
    let test = "bytes_that_disagree_are_noticed_when_a_running_connection_drops_packets";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "sockmap")]);
    let mut visit = world.visit(0, daemon.addr()).unwrap();
    visit.echo(&[1; 12_345]).unwrap();
    Flows::of(&daemon).change(12_345, |flow| flow.redirected += 1_000);
    let _loss = world.lab.lose(Ns::Clients, Where::OnTheWay, 100).unwrap();
    let deadline = Instant::now() + 4 * SOON;
    while visit.stream().write_all(&[2; 100]).is_ok() {
        assert!(Instant::now() < deadline, "nobody noticed: {}", daemon.metrics().unwrap());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(daemon.record_of(visit.local, SOON).unwrap().termination, "ID");
    common::assert_said(&daemon, "byte counts of a connection disagree");
    common::assert_kernel_path_off(&daemon, "byte_mismatch");
}

/// Acknowledgements that come in after an end of a stream are such packets: here of what the backend says after the client
/// has ended its own. They are told when the connection has ended, and stay.
#[test]
fn packets_that_tcp_dropped_are_counted() {
    let Some(world) = World::new(KERNEL, "packets_that_tcp_dropped_are_counted") else { return };
    let addr = world.backend_addr(1);
    world.database.add(&Row::new("late", addr));
    let listener = world.lab.run_in(Ns::Backends, || TcpListener::bind(addr)).unwrap();
    // It ends with the test.
    thread::spawn(move || listener.incoming().flatten().for_each(answer_late));
    let daemon = world.daemon(&[("forwarder", "sockmap")]);
    assert_eq!(drops(&daemon), 0, "those of the self-test are not counted");
    let mut before = 0;
    for n in 0..3 {
        let mut client = world.lab.run_in(Ns::Clients, || connect_from(world.lab.client(n), daemon.addr())).unwrap();
        let local = client.local_addr().unwrap();
        // A client that ends its stream before the pair is in the kernel is copied.
        client.read_exact(&mut [0]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, [b'.'; ANSWER]);
        let record = daemon.record_of(local, SOON).unwrap();
        assert_eq!((record.forwarder.as_deref(), record.termination.as_str()), (Some("sockmap"), "--"), "{record:?}");
        let after = drops(&daemon);
        assert!(after > before, "{before} before, {after} after");
        before = after;
    }
}

/// Bytes of an answer.
const ANSWER: usize = 20;

/// Greets, and when the client has ended its stream answers bit by bit.
fn answer_late(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    stream.write_all(b"?").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    for _ in 0..ANSWER {
        stream.write_all(b".").unwrap();
        thread::sleep(Duration::from_millis(5));
    }
}

/// `edgeproxy_kernel_drops_total`.
fn drops(daemon: &Daemon) -> u64 {
    let metrics = daemon.metrics().unwrap();
    let count = metrics.lines().find_map(|line| line.strip_prefix("edgeproxy_kernel_drops_total "));
    count.expect("the metric is there").parse().unwrap()
}

/// The flow records of a daemon, as root may change them behind its back.
struct Flows(Array<MapData, Flow>);

impl Flows {
    fn of(daemon: &Daemon) -> Self {
        Self(Array::try_from(Map::Array(map_of(daemon, "forward", "FLOWS"))).unwrap())
    }

    /// Changes the record of the client's direction that has moved so many bytes. Nothing may be under way.
    fn change(mut self, bytes: u64, change: impl FnOnce(&mut Flow)) {
        let moved = |slot: &u32| {
            let flow = self.0.get(slot, 0).unwrap();
            flow.peer != 0 && flow.redirected > 0 && flow.redirected + flow.passed == bytes
        };
        // The even ones are those of clients.
        let slot = (0..64).step_by(2).find(moved).expect("a flow with that many bytes");
        let mut flow = self.0.get(&slot, 0).unwrap();
        change(&mut flow);
        self.0.set(slot, flow, 0).unwrap();
    }
}
