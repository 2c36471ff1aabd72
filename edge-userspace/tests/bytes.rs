//! No forwarder may lose, repeat, reorder or invent a byte, nor hide how a connection ended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use common::bench::{Bench, memory_fall};
use common::{KERNEL, NETWORK, SOON, World};
use xtask::lab::requirements::Need;
use xtask::lab::{Ns, Record, Where};
use xtask::load::{Behaviour, Load, Manner};

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

/// Where sockets fail at random what arrives is a prefix of what was sent, ends in a reset, and nobody is left; the
/// connections that were not hit are whole. In no behaviour here is a reset a part of the play.
#[test]
fn chaos_that_fails_cuts_connections_and_changes_no_byte() {
    let test = "chaos_that_fails_cuts_connections_and_changes_no_byte";
    let Some(bench) = Bench::new("chaos", NETWORK, test, &[("chaos_fail_permille", "4")]) else { return };
    let behaviours = without_resets();
    let report = bench.run(&Load { behaviours, ..Load::mixed(240, 10) });
    bench.assert_cut_or_whole(&report);
    bench.assert_at_rest();
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
    if forwarder == "auto" {
        bench.assert_auto_chose();
    }
}

#[test]
fn switching_the_forwarder_while_connections_run_carries_every_byte() {
    let test = "switching_the_forwarder_while_connections_run_carries_every_byte";
    let Some(bench) = Bench::new("auto", KERNEL, test, &[]) else { return };
    switching(&bench, &Load { at_once: 100, ..Load::mixed(600, 7) });
}

/// What was read before a connection comes to the kernel is acknowledged or not, and comes again, in part or out of order.
#[test]
fn switching_the_forwarder_under_loss_carries_every_byte() {
    let test = "switching_the_forwarder_under_loss_carries_every_byte";
    let Some(bench) = Bench::new("auto", KERNEL, test, &[]) else { return };
    let _losses = lose(&bench, Where::OnTheWay);
    switching(
        &bench,
        &Load { at_once: 100, max_bytes: 256 << 10, behaviours: without_resets(), ..Load::mixed(400, 9) },
    );
    let dropped = bench.daemon.status().unwrap().number("/forwarder/kernel_packets/dropped");
    assert!(dropped > 0, "what comes twice is dropped, and counted");
}

fn switching(bench: &Bench, load: &Load) {
    let report = bench.run_while(load, |turn| {
        let forwarder = ["sockmap", "off", "splice", "auto", "copy"][turn % 5];
        let answer = bench.daemon.post("/api/v1/forwarder", &format!("{{\"forwarder\": \"{forwarder}\"}}")).unwrap();
        assert_eq!(answer.code, 200, "{}", answer.body);
        thread::sleep(Duration::from_millis(25));
    });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
    let records = bench.daemon.access_log(SOON, |records| records.len() as u64 >= load.connections);
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
fn chaos_survives_loss() {
    loss("chaos", Where::OnTheWay, "chaos_survives_loss");
}

#[test]
fn sockmap_survives_loss() {
    loss("sockmap", Where::OnTheWay, "sockmap_survives_loss");
}

#[test]
fn auto_survives_loss() {
    loss("auto", Where::OnTheWay, "auto_survives_loss");
}

#[test]
fn copy_survives_full_queues() {
    loss("copy", Where::AtTheSender, "copy_survives_full_queues");
}

#[test]
fn splice_survives_full_queues() {
    loss("splice", Where::AtTheSender, "splice_survives_full_queues");
}

#[test]
fn chaos_survives_full_queues() {
    loss("chaos", Where::AtTheSender, "chaos_survives_full_queues");
}

#[test]
fn sockmap_survives_full_queues() {
    loss("sockmap", Where::AtTheSender, "sockmap_survives_full_queues");
}

#[test]
fn auto_survives_full_queues() {
    loss("auto", Where::AtTheSender, "auto_survives_full_queues");
}

/// One packet in a hundred is lost on every link, in both directions. Nobody sends a lost reset again, so that no
/// connection here ends in one.
fn loss(forwarder: &str, at: Where, test: &str) {
    let Some(bench) = Bench::new(forwarder, KERNEL, test, &[]) else { return };
    let _losses = lose(&bench, at);
    let report = bench.run(&Load { max_bytes: 256 << 10, behaviours: without_resets(), ..Load::mixed(220, 2) });
    bench.assert_clean(&report);
    bench.assert_at_rest();
    bench.assert_log_agrees(&report);
}

fn lose(bench: &Bench, at: Where) -> [impl Drop + use<>; 3] {
    [Ns::Clients, Ns::Pop, Ns::Backends].map(|place| bench.world.lab.lose(place, at, 10).unwrap())
}

fn without_resets() -> Vec<Behaviour> {
    Behaviour::ALL.into_iter().filter(|behaviour| !behaviour.ends_in_reset()).collect()
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
fn chaos_keeps_what_is_sent_before_the_backend_is_connected() {
    early_data("chaos", NETWORK, "chaos_keeps_what_is_sent_before_the_backend_is_connected");
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

#[test]
fn auto_bounds_the_memory_of_slow_readers() {
    bounded_memory("auto", KERNEL, "auto_bounds_the_memory_of_slow_readers");
}

/// Sixteen connections on which one end pushes 64 MiB, 1 GiB in all, and the other reads nothing for two seconds.
/// The buffers of a connection's four sockets take about 6 MiB; without limits on the kernel path it was 22 to 32.
fn bounded_memory(forwarder: &str, needs: &[Need], test: &str) {
    const READERS: u64 = 16;
    const BOUND: u64 = READERS * (12 << 20);
    let Some(bench) = Bench::new(forwarder, needs, test, &[]) else { return };
    bench.world.lab.default_buffers().unwrap();
    let behaviours = vec![Behaviour::LateClient, Behaviour::LateBackend];
    let load = Load { at_once: 16, max_bytes: 64 << 20, behaviours, ..Load::mixed(READERS, 4) };
    // Other processes use memory, too: the least of three measurements counts.
    let mut falls = Vec::new();
    while falls.len() < 3 && falls.iter().all(|fall| *fall >= BOUND) {
        falls.push(memory_fall(|| bench.run(&load).assert_clean()));
    }
    let mib: Vec<u64> = falls.iter().map(|fall| fall >> 20).collect();
    assert!(falls.iter().any(|fall| *fall < BOUND), "available memory fell by {mib:?} MiB, not below {}", BOUND >> 20);
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
