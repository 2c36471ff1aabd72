//! No forwarder may lose, repeat, reorder or invent a byte, nor hide how a connection ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{KERNEL, NETWORK, PORT, Row, SOON, World};
use xtask::lab::requirements::Need;
use xtask::lab::{Daemon, Lab, Ns, Record, Where, memory_available};
use xtask::load::{Behaviour, Checked, CheckedBackend, Ledger, Load, LoadReport, Manner};

/// Connections of the main suite: each behaviour 70 times.
const CONNECTIONS: u64 = 70 * Behaviour::ALL.len() as u64;

#[test]
fn copy_carries_every_byte() {
    every_byte("copy", NETWORK, "copy_carries_every_byte");
}

#[test]
fn splice_carries_every_byte() {
    every_byte("splice", NETWORK, "splice_carries_every_byte");
}

#[test]
fn chaos_that_stalls_and_cuts_short_carries_every_byte() {
    every_byte("chaos", NETWORK, "chaos_that_stalls_and_cuts_short_carries_every_byte");
}

#[test]
fn sockmap_carries_every_byte() {
    every_byte("sockmap", KERNEL, "sockmap_carries_every_byte");
}

#[test]
fn sockmap_carries_aborts() {
    let test = "sockmap_carries_aborts";
    let Some(bench) = Bench::new("sockmap", KERNEL, test, &[]) else { return };
    let behaviours = vec![Behaviour::BackendAborts, Behaviour::ClientAborts];
    let report = bench.run(&Load { behaviours, ..Load::mixed(400, 6) });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
}

#[test]
fn auto_carries_every_byte() {
    every_byte("auto", KERNEL, "auto_carries_every_byte");
}

fn every_byte(forwarder: &str, needs: &[Need], test: &str) {
    let Some(bench) = Bench::new(forwarder, needs, test, &[]) else { return };
    let report = bench.run(&Load::mixed(CONNECTIONS, 1));
    bench.assert_clean(&report);
    const { assert!(CONNECTIONS >= 1_000) };
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
}

#[test]
fn switching_the_forwarder_while_connections_run_carries_every_byte() {
    let test = "switching_the_forwarder_while_connections_run_carries_every_byte";
    let Some(bench) = Bench::new("auto", KERNEL, test, &[]) else { return };
    let report = bench.run_while(&Load { at_once: 100, ..Load::mixed(600, 7) }, |turn| {
        let forwarder = ["sockmap", "off", "splice", "auto", "copy"][turn % 5];
        let answer = bench.daemon.post("/api/v1/forwarder", &format!("{{\"forwarder\": \"{forwarder}\"}}")).unwrap();
        assert_eq!(answer.code, 200, "{}", answer.body);
        thread::sleep(Duration::from_millis(25));
    });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
    let records = bench.daemon.access_log(SOON, |records| records.len() >= 600);
    let switched = |forwarder: &str| {
        let to = |record: &&Record| record.forwarders.iter().any(|s| s.forwarder == forwarder && s.why == "switched");
        records.iter().filter(to).count()
    };
    let (copy, splice, sockmap) = (switched("copy"), switched("splice"), switched("sockmap"));
    assert!(copy > 0 && splice > 0 && sockmap > 0, "to copy {copy}, to splice {splice}, to sockmap {sockmap}");
}

/// The switch that leaves everything to userspace, thrown again and again under connections on the kernel path.
#[test]
fn the_kill_switch_loses_no_byte_of_running_connections() {
    let test = "the_kill_switch_loses_no_byte_of_running_connections";
    let Some(bench) = Bench::new("sockmap", KERNEL, test, &[]) else { return };
    let report = bench.run_while(&Load { at_once: 100, ..Load::mixed(600, 8) }, |turn| {
        let forwarder = ["off", "sockmap"][turn % 2];
        bench.daemon.post("/api/v1/forwarder", &format!("{{\"forwarder\": \"{forwarder}\"}}")).unwrap();
        thread::sleep(Duration::from_millis(10));
    });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
}

#[test]
fn copy_survives_loss() {
    loss("copy", Where::OnTheWay, "copy_survives_loss");
}

#[test]
fn splice_survives_loss() {
    loss("splice", Where::OnTheWay, "splice_survives_loss");
}

#[test]
fn sockmap_survives_loss() {
    loss("sockmap", Where::OnTheWay, "sockmap_survives_loss");
}

#[test]
fn copy_survives_full_queues() {
    loss("copy", Where::AtTheSender, "copy_survives_full_queues");
}

#[test]
fn sockmap_survives_full_queues() {
    loss("sockmap", Where::AtTheSender, "sockmap_survives_full_queues");
}

/// One packet in a hundred is lost on every link, in both directions. Nobody sends a lost reset again, so that no
/// connection here ends in one.
fn loss(forwarder: &str, at: Where, test: &str) {
    let Some(bench) = Bench::new(forwarder, KERNEL, test, &[]) else { return };
    let _losses = [Ns::Clients, Ns::Pop, Ns::Backends].map(|place| bench.world.lab.lose(place, at, 10).unwrap());
    let behaviours: Vec<_> = Behaviour::ALL.into_iter().filter(|behaviour| !behaviour.ends_in_reset()).collect();
    let report = bench.run(&Load { max_bytes: 256 << 10, behaviours, ..Load::mixed(220, 2) });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
}

#[test]
fn copy_keeps_what_is_sent_before_the_backend_is_connected() {
    early_data("copy", NETWORK, "copy_keeps_what_is_sent_before_the_backend_is_connected");
}

#[test]
fn splice_keeps_what_is_sent_before_the_backend_is_connected() {
    early_data("splice", NETWORK, "splice_keeps_what_is_sent_before_the_backend_is_connected");
}

#[test]
fn sockmap_keeps_what_is_sent_before_the_backend_is_connected() {
    early_data("sockmap", KERNEL, "sockmap_keeps_what_is_sent_before_the_backend_is_connected");
}

/// The backends answer the second SYN only; by then the clients have sent, closed, or both.
fn early_data(forwarder: &str, needs: &[Need], test: &str) {
    let Some(bench) = Bench::new(forwarder, needs, test, &[("connect_timeout_ms", "8000")]) else { return };
    let lab = &bench.world.lab;
    let backends: Vec<IpAddr> = (1..=2).flat_map(|n| [lab.backend(n), lab.backend_v6(n)]).collect();
    backends.iter().for_each(|addr| lab.mute(*addr).unwrap());
    let report = thread::scope(|scope| {
        let load = scope.spawn(|| bench.run(&Load { at_once: 150, ..Load::mixed(150, 3) }));
        thread::sleep(Duration::from_millis(500));
        backends.iter().for_each(|addr| lab.unmute(*addr).unwrap());
        load.join().unwrap()
    });
    bench.assert_clean(&report);
    bench.assert_log_agrees(&report);
}

#[test]
fn copy_bounds_the_memory_of_slow_readers() {
    bounded_memory("copy", NETWORK, "copy_bounds_the_memory_of_slow_readers");
}

#[test]
fn splice_bounds_the_memory_of_slow_readers() {
    bounded_memory("splice", NETWORK, "splice_bounds_the_memory_of_slow_readers");
}

#[test]
fn sockmap_bounds_the_memory_of_slow_readers() {
    bounded_memory("sockmap", KERNEL, "sockmap_bounds_the_memory_of_slow_readers");
}

/// Sixteen connections on which one end pushes 64 MiB, 1 GiB in all, and the other reads nothing for two seconds.
/// The buffers of a connection's four sockets take about 6 MiB; without limits on the kernel path it was 22 to 32.
fn bounded_memory(forwarder: &str, needs: &[Need], test: &str) {
    const READERS: u64 = 16;
    const BOUND: u64 = READERS * (12 << 20);
    let Some(bench) = Bench::new(forwarder, needs, test, &[]) else { return };
    let behaviours = vec![Behaviour::LateClient, Behaviour::LateBackend];
    let load = Load { at_once: 16, max_bytes: 64 << 20, behaviours, ..Load::mixed(READERS, 4) };
    // Other processes use memory, too: the least of three measurements counts.
    let fell = (0..3).map(|_| memory_fall(|| bench.run(&load).assert_clean())).find(|fall| *fall < BOUND);
    assert!(fell.is_some(), "available memory fell by more than {} MiB in three runs", BOUND >> 20);
    bench.assert_at_rest();
}

#[test]
fn the_programs_in_the_kernel_speak_through_the_log() {
    let test = "the_programs_in_the_kernel_speak_through_the_log";
    let Some(bench) = Bench::new("sockmap", KERNEL, test, &[("log_level", "debug")]) else { return };
    let behaviours = vec![Behaviour::LateClient, Behaviour::LateBackend];
    bench.run(&Load { max_bytes: 16 << 20, behaviours, ..Load::mixed(4, 5) }).assert_clean();
    let said = |messages: &str| messages.lines().any(|line| line.contains("first spill") && line.contains("edge_ebpf"));
    assert!(said(&bench.daemon.messages()), "{}", bench.daemon.messages());
}

/// By how many bytes MemAvailable fell at most while `work` ran.
fn memory_fall(work: impl FnOnce()) -> u64 {
    let (before, done) = (memory_available().unwrap(), AtomicBool::new(false));
    let least = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut least = before;
            while !done.load(Ordering::SeqCst) {
                least = least.min(memory_available().unwrap());
                thread::sleep(Duration::from_millis(20));
            }
            least
        });
        work();
        done.store(true, Ordering::SeqCst);
        watch.join().unwrap()
    });
    before - least
}

#[test]
fn the_balancer_and_the_kernel_count_the_same_connections() {
    let test = "the_balancer_and_the_kernel_count_the_same_connections";
    let Some(world) = World::new(KERNEL, test) else { return };
    let backends = [1, 2, 3].map(|n| world.backend(n, Manner::Echo, |row| row));
    let daemon = world.daemon(&[("forwarder", "auto")]);
    let mut held: Vec<_> = (0..60).map(|n| world.visit(n, daemon.addr()).unwrap()).collect();
    held.iter_mut().for_each(|visit| visit.echo(b"still there?").unwrap());
    let seen: Vec<_> = backends.iter().map(|backend| backend.gauge().active() as u64).collect();
    let status = daemon.status().unwrap();
    let counts: Vec<_> = status.backends().into_iter().map(|(_, balancer, kernel)| (balancer, kernel)).collect();
    assert_eq!(counts, seen.iter().map(|n| (*n, Some(*n))).collect::<Vec<_>>());
    assert_eq!(status.active(), 60);
    drop(held);
    let rest =
        |status: &xtask::lab::Status| status.backends().iter().all(|(_, n, kernel)| (*n, *kernel) == (0, Some(0)));
    assert!(rest(&daemon.wait_status(SOON, rest).unwrap()));
}

/// Two IPv4 and two IPv6 backends that verify what they get, and the daemon in front of them.
struct Bench {
    world: World,
    ledger: Ledger,
    forwarder: String,
    daemon: Daemon,
    _backends: Vec<CheckedBackend>,
}

impl Bench {
    fn new(forwarder: &str, needs: &[Need], test: &str, settings: &[(&str, &str)]) -> Option<Self> {
        let (world, ledger) = (World::new(needs, test)?, Ledger::new());
        let start = |name: &str, ip: IpAddr| {
            let addr = SocketAddr::new(ip, PORT);
            world.database.add(&Row::new(name, addr));
            CheckedBackend::start(world.lab.namespace(Ns::Backends), name, addr, &ledger).unwrap()
        };
        let backends = (1..=2)
            .flat_map(|n| {
                [start(&format!("v4-{n}"), world.lab.backend(n)), start(&format!("v6-{n}"), world.lab.backend_v6(n))]
            })
            .collect();
        let daemon = world.daemon(&[&[("forwarder", forwarder)], settings].concat());
        if forwarder == "sockmap" {
            let status = daemon.status().unwrap();
            assert_eq!(status.text("/forwarder/active"), Some("sockmap"), "{:?}", status.text("/forwarder/why"));
        }
        Some(Self { world, ledger, forwarder: forwarder.to_owned(), daemon, _backends: backends })
    }

    /// IPv4 and IPv6 clients take turns.
    fn run(&self, load: &Load) -> LoadReport {
        let lab: &Lab = &self.world.lab;
        load.run(lab.namespace(Ns::Clients), &self.ledger, |id| match u16::try_from(id).unwrap() {
            n if n % 2 == 0 => (lab.client(n), self.daemon.addr()),
            n => (lab.client_v6(n), self.daemon.addr_v6()),
        })
    }

    /// Runs the load, and `meanwhile` again and again until it is done.
    fn run_while(&self, load: &Load, meanwhile: impl Fn(usize)) -> LoadReport {
        thread::scope(|scope| {
            let load = scope.spawn(|| self.run(load));
            // A load that hangs ends by its own time limits.
            (0..).take_while(|_| !load.is_finished()).for_each(meanwhile);
            load.join().unwrap()
        })
    }

    /// Every byte was right and every end as it had to be; what the daemon says of those that were not is shown.
    fn assert_clean(&self, report: &LoadReport) {
        let failed: Vec<_> = report.connections.iter().filter(|checked| checked.fault().is_some()).collect();
        for client in failed.iter().take(5).filter_map(|checked| checked.client_addr) {
            eprintln!("{client}: {:?}", self.daemon.record_of(client, SOON));
        }
        if !report.faults().is_empty() {
            eprintln!("{}", self.daemon.messages());
        }
        report.assert_clean();
    }

    /// No connection is left, in the daemon's eyes and in the kernel's. The kernel may take longer: where packets are
    /// lost, a socket that the daemon has closed waits for the acknowledgement of its FIN.
    fn assert_at_rest(&self) {
        let counts = |status: &xtask::lab::Status| {
            let backends = status.backends();
            let left = backends.iter().map(|(_, connections, kernel)| connections + kernel.unwrap_or(0)).sum::<u64>();
            left + status.active() + status.number("/forwarder/flows_in_kernel")
        };
        let status = self.daemon.wait_status(SOON, |status| counts(status) == 0).unwrap();
        assert_eq!(counts(&status), 0, "connections are left:\n{:#}", status.0);
    }

    /// The access log tells the bytes that clients and backends counted, and who forwarded them.
    fn assert_log_agrees(&self, report: &LoadReport) {
        let expected = report.connections.len();
        let records = self.daemon.access_log(SOON, |records| records.len() >= expected);
        assert_eq!(records.len(), expected);
        let by_client: HashMap<SocketAddr, &Record> = records.iter().map(|record| (record.client(), record)).collect();
        for checked in &report.connections {
            let client = checked.client_addr.unwrap();
            agree(checked, by_client.get(&client).unwrap_or_else(|| panic!("no access record of {client}")));
        }
        let kernel: u64 = records.iter().map(|record| record.kernel_up + record.kernel_down).sum();
        match self.forwarder.as_str() {
            "copy" => assert_eq!(kernel, 0),
            "splice" => assert!(kernel > 0, "nothing was spliced"),
            "sockmap" => assert!(kernel > 0, "the kernel forwarded nothing"),
            _ => {}
        }
    }
}

fn agree(checked: &Checked, record: &Record) {
    let (counted, logged) = ((checked.bytes_up(), checked.bytes_down()), (record.bytes_up, record.bytes_down));
    let behaviour = checked.scenario.behaviour;
    if behaviour.is_complete() {
        assert_eq!(logged, counted, "{behaviour:?}: {record:?}");
    } else {
        // What was under way at the abort was forwarded, but not read.
        assert!(logged.0 >= counted.0 && logged.1 >= counted.1, "{behaviour:?}: counted {counted:?}, {record:?}");
    }
    assert!(record.kernel_up <= record.bytes_up && record.kernel_down <= record.bytes_down, "{record:?}");
    let reset = match behaviour {
        Behaviour::ClientResets | Behaviour::ClientAborts => "CD",
        Behaviour::BackendResets | Behaviour::BackendAborts => "SD",
        _ => "--",
    };
    assert_eq!(record.termination, reset, "{behaviour:?}: {record:?}");
}
