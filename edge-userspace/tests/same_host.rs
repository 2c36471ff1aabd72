//! The path between applications of this host: byte-exact, bounded, and off where it can't be safe.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::cell::RefCell;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use common::bench::{Bench, memory_fall};
use common::http::{Http, Pace};
use common::polling;
use common::stage::{self, Clients, FileServer, Kind, Stage, one_marked, same_host_daemon, why_off, withdrawn};
use common::{KERNEL, Over, Row, SOON, World, eventually, maps};
use xtask::lab::{Cgroups, Daemon, Flow, Record};
use xtask::load::{Behaviour, Load, Manner};

/// Checked backends, all of them marked.
struct Marked {
    // Dropped in this order: a cgroup can go when the daemon is gone.
    bench: Bench,
    _cgroups: Cgroups,
}

impl Marked {
    fn new(test: &str, settings: &[(&str, &str)]) -> Option<Self> {
        let world = World::new(KERNEL, test)?;
        let cgroups = Cgroups::create().unwrap();
        let bench = Bench::of(world, "sk_msg", |world| {
            world.database.execute("UPDATE backends SET same_host = 1");
            same_host_daemon(world, &cgroups, &[cgroups.applications()], settings)
        });
        assert_eq!(why_off(&bench.daemon), None, "{}", bench.daemon.messages());
        Some(Self { bench, _cgroups: cgroups })
    }

    /// Nothing was lost, nobody is left, and no mark was withdrawn.
    fn assert_sound(&self) {
        self.bench.assert_at_rest();
        let status = self.bench.daemon.status().unwrap();
        assert_eq!(status.number("/forwarder/same_host/flows"), 0);
        assert_eq!(status.0.pointer("/forwarder/same_host/withdrawn"), Some(&serde_json::json!({})));
    }
}

#[test]
fn applications_of_one_host_get_every_byte() {
    let Some(marked) = Marked::new("applications_of_one_host_get_every_byte", &[]) else { return };
    let report = marked.bench.run(&Load::mixed(70 * Behaviour::ALL.len() as u64, 11));
    marked.bench.assert_clean(&report);
    marked.bench.assert_log_agrees(&report);
    marked.assert_sound();
}

/// A budget of a few messages: the way changes between hand-over and TCP all the time.
#[test]
fn a_small_budget_loses_nothing() {
    let Some(marked) = Marked::new("a_small_budget_loses_nothing", &[("same_host_budget_kib", "16")]) else { return };
    let report = marked.bench.run(&Load::mixed(20 * Behaviour::ALL.len() as u64, 12));
    marked.bench.assert_clean(&report);
    marked.bench.assert_log_agrees(&report);
    marked.assert_sound();
}

/// The backends answer the second SYN only; by then the clients have sent, closed, or both.
#[test]
fn what_is_sent_before_the_pairing_comes_first() {
    let settings = [("connect_timeout_ms", "8000")];
    let Some(marked) = Marked::new("what_is_sent_before_the_pairing_comes_first", &settings) else { return };
    let lab = &marked.bench.world.lab;
    let backends: Vec<IpAddr> = (1..=2).flat_map(|n| [lab.backend(n), lab.backend_v6(n)]).collect();
    backends.iter().for_each(|addr| lab.mute(*addr).unwrap());
    let report = thread::scope(|scope| {
        let load = scope.spawn(|| marked.bench.run(&Load { at_once: 150, ..Load::mixed(150, 13) }));
        thread::sleep(Duration::from_millis(500));
        backends.iter().for_each(|addr| lab.unmute(*addr).unwrap());
        load.join().unwrap()
    });
    marked.bench.assert_clean(&report);
    marked.bench.assert_log_agrees(&report);
    marked.assert_sound();
}

/// As in `bytes.rs`: the operator switches all the time, under running pairs and between new ones.
#[test]
fn switching_the_forwarder_while_pairs_run_carries_every_byte() {
    let test = "switching_the_forwarder_while_pairs_run_carries_every_byte";
    let Some(marked) = Marked::new(test, &[]) else { return };
    let load = Load { at_once: 100, ..Load::mixed(50 * Behaviour::ALL.len() as u64, 15) };
    let report = marked.bench.run_while(&load, |turn| {
        switch(&marked.bench.daemon, ["sockmap", "off", "splice", "auto", "copy"][turn % 5]);
        thread::sleep(Duration::from_millis(25));
    });
    marked.bench.assert_clean(&report);
    marked.bench.assert_log_agrees(&report);
    marked.assert_sound();
    let records = marked.bench.daemon.access_log(SOON, |records| records.len() as u64 >= load.connections);
    let with = |forwarder: &str, why: &str| {
        let steps = |record: &&Record| record.forwarders.iter().any(|s| s.forwarder == forwarder && s.why == why);
        records.iter().filter(steps).count()
    };
    let (paired, off, on) = (with("sk_msg", "same_host"), with("copy", "switched"), with("sk_msg", "switched"));
    eprintln!("{paired} of {} were pairs; {off} were seen switched off, {on} on again", records.len());
    assert!(paired > 0 && paired < records.len(), "{paired} of {} were pairs", records.len());
}

/// Pairs that last through many switches, and send all the while in both directions.
#[test]
fn lasting_pairs_are_switched_to_and_fro_and_lose_no_byte() {
    let test = "lasting_pairs_are_switched_to_and_fro_and_lose_no_byte";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (cgroups, addr, daemon) = one_marked(&world, &[]);
    let server = FileServer::start(Kind::Poll, &world, addr, cgroups.applications());
    let (root, done) = (server.root(), AtomicBool::new(false));
    let clients: Vec<_> = (0..8).map(|n| (n, stage::connect(&world, daemon.addr(), n))).collect();
    let talk = |(n, mut http): (u16, Http)| {
        stage::converse(&mut http, &[&root], n, Pace::Fast, |_| !done.load(Ordering::SeqCst));
        http.local_addr()
    };
    let talks: Vec<_> = thread::scope(|scope| {
        let _ended = Over(&done);
        let talks: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || talk(client))).collect();
        let pairs = || daemon.flows().unwrap().iter().filter(|flow| flow.forwarder == "sk_msg").count();
        eventually("all are forwarded", || daemon.status().unwrap().active() == 8 && pairs() > 0);
        // Longer than a pair takes to look at the switch, and then much shorter.
        for (turn, pause) in [1_200; 4].into_iter().chain((0..200).map(|n| n % 23)).enumerate() {
            switch(&daemon, ["off", "auto"][turn % 2]);
            thread::sleep(Duration::from_millis(pause));
        }
        done.store(true, Ordering::SeqCst);
        talks.into_iter().map(|talk| talk.join().unwrap()).collect()
    });
    let records: Vec<_> = talks.into_iter().map(|client| daemon.record_of(client, SOON).unwrap()).collect();
    assert!(records.iter().all(|record| record.termination == "--"), "{records:?}");
    // On a loaded host one may have been too late to accept.
    let pairs: Vec<_> = records.iter().filter(|record| record.fallback.is_none()).collect();
    assert!(pairs.len() >= 4, "{records:?}");
    for record in pairs {
        let steps: Vec<_> = record.forwarders.iter().map(|s| (s.forwarder.as_str(), s.why.as_str())).collect();
        assert!(steps.contains(&("copy", "switched")) && steps.contains(&("sk_msg", "switched")), "{record:?}");
        // Both ways were taken by bytes of both directions.
        assert!(0 < record.kernel_down && record.kernel_down < record.bytes_down, "{record:?}");
        assert!(0 < record.kernel_up && record.kernel_up < record.bytes_up, "{record:?}");
    }
    assert_eq!(withdrawn(&daemon), [""; 0]);
}

/// As in `bytes.rs`: sixteen connections push 64 MiB each to somebody who reads nothing for two seconds.
#[test]
fn applications_that_read_late_take_bounded_memory() {
    const READERS: u64 = 16;
    const BOUND: u64 = READERS * (12 << 20);
    let Some(marked) = Marked::new("applications_that_read_late_take_bounded_memory", &[]) else { return };
    marked.bench.world.lab.default_buffers().unwrap();
    let behaviours = vec![Behaviour::LateClient, Behaviour::LateBackend];
    let load = Load { at_once: 16, max_bytes: 64 << 20, behaviours, ..Load::mixed(READERS, 14) };
    // Other processes use memory, too: the least of three measurements counts.
    let fell = (0..3).map(|_| memory_fall(|| marked.bench.run(&load).assert_clean())).find(|fall| *fall < BOUND);
    assert!(fell.is_some(), "available memory fell by more than {} MiB in three runs", BOUND >> 20);
    marked.assert_sound();
}

/// The client learns of the end at once, and the place is given back.
#[test]
fn a_killed_server_ends_its_connections() {
    let nginx = Kind::Nginx { sendfile: true };
    let Some(mut stage) = Stage::new("a_killed_server_ends_its_connections", nginx, &[Clients::Local]) else { return };
    let mut http = stage.connect(Clients::Local, 0);
    http.ask(&["3000000"], 0).unwrap();
    thread::sleep(Duration::from_millis(200));
    if let FileServer::Nginx(nginx) = &mut stage.server {
        nginx.kill();
    }
    let started = Instant::now();
    assert!(http.answer(Pace::Slow(64 * 1024, Duration::from_millis(1))).is_err(), "the body can't be whole");
    assert!(started.elapsed() < SOON);
    drop(http);
    let ended = |records: &[Record]| !records.is_empty();
    let record = &stage.daemon(Clients::Local).access_log(SOON, ended)[0];
    assert_eq!(record.forwarder.as_deref(), Some("sk_msg"), "{record:?}");
    assert!(["--", "SD"].contains(&record.termination.as_str()), "{record:?}");
    let status = stage.daemon(Clients::Local).wait_status(SOON, |status| status.active() == 0).unwrap();
    assert_eq!(status.number("/forwarder/same_host/flows"), 0);
}

/// The client goes away without having read: what nginx sends then has nowhere to go.
#[test]
fn a_client_that_goes_away_ends_its_connection() {
    let nginx = Kind::Nginx { sendfile: true };
    let test = "a_client_that_goes_away_ends_its_connection";
    let Some(stage) = Stage::new(test, nginx, &[Clients::Local]) else { return };
    for n in 0..10 {
        let mut http = stage.connect(Clients::Local, n);
        http.ask(&["3000000", "100000"], 0).unwrap();
        thread::sleep(Duration::from_millis(20));
        drop(http);
    }
    let status = stage.daemon(Clients::Local).wait_status(SOON, |status| status.active() == 0).unwrap();
    assert_eq!((status.active(), status.number("/forwarder/same_host/flows")), (0, 0));
    // And nginx is well.
    stage.converse(Clients::Local, 11, Pace::Fast, Instant::now());
}

/// The daemon's own sockets of one pair are taken out of the map, as no defect should do: what it hands over then goes
/// the wrong way. The backend of that pair loses its mark, the other one keeps it, and nobody loses a byte.
#[test]
fn trouble_takes_the_mark_from_its_backend_until_a_restart() {
    let test = "trouble_takes_the_mark_from_its_backend_until_a_restart";
    let Some(world) = World::new(KERNEL, test) else { return };
    let cgroups = Cgroups::create().unwrap();
    let servers = [1, 2].map(|n| {
        let addr = world.backend_addr(n);
        world.database.add(&Row::new(&format!("b{n}"), addr).same_host());
        FileServer::start(Kind::Poll, &world, addr, cgroups.applications())
    });
    let roots = servers.each_ref().map(FileServer::root);
    let roots = roots.each_ref().map(|root| root.as_path());
    let daemon = same_host_daemon(&world, &cgroups, &[cgroups.applications()], &[]);
    let (rounds, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let talk = |n: u16, enough: &(dyn Fn() -> bool + Sync)| {
        let mut http = stage::connect(&world, daemon.addr(), n);
        let local = http.local_addr();
        stage::converse(&mut http, &roots, n, Pace::Fast, |_| {
            rounds.fetch_add(1, Ordering::SeqCst);
            !enough()
        });
        local
    };
    let some_rounds = |what: &str| {
        let from = rounds.load(Ordering::SeqCst);
        eventually(what, || rounds.load(Ordering::SeqCst) >= from + 40);
    };
    let (before, after) = thread::scope(|scope| {
        let ended = Over(&done);
        let enough = || done.load(Ordering::SeqCst);
        let talks: Vec<_> = (0..8).map(|n| scope.spawn(move || talk(n, &enough))).collect();
        some_rounds("all are handed over");
        maps::break_a_relay(&daemon);
        // So that everything takes the way through the daemon, and nothing overtakes what goes the wrong way.
        switch(&daemon, "off");
        eventually("the mark is withdrawn", || !withdrawn(&daemon).is_empty());
        switch(&daemon, "auto");
        let lost = withdrawn(&daemon).pop();
        let gone = |flow: &Flow| lost.as_ref() != Some(&flow.backend) || flow.forwarder == "copy";
        eventually("its pairs have left", || daemon.flows().unwrap().iter().all(gone));
        some_rounds("everything goes on");
        let after: Vec<_> = (20..28).map(|n| talk(n, &|| true)).collect();
        drop(ended);
        (talks.into_iter().map(|talk| talk.join().unwrap()).collect::<Vec<_>>(), after)
    });
    let [lost] = &withdrawn(&daemon)[..] else { panic!("{:?} lost their marks", withdrawn(&daemon)) };
    for (clients, what) in [(&before, "before"), (&after, "after")] {
        let records = clients.iter().map(|client| daemon.record_of(*client, SOON).unwrap());
        let (troubled, others): (Vec<_>, Vec<_>) = records.partition(|record| record.backend.as_ref() == Some(lost));
        assert!(!troubled.is_empty() && !others.is_empty(), "{troubled:?} {others:?}");
        for record in troubled.iter().chain(&others) {
            assert_eq!(record.termination, "--", "{what}: {record:?}");
        }
        for record in &others {
            // The operator's switching to and fro above shows on those who were there.
            let mut steps = record.forwarders.iter().map(|step| (step.forwarder.as_str(), step.why.as_str()));
            assert_eq!((steps.next(), &record.fallback), (Some(("sk_msg", "same_host")), &None), "{what}: {record:?}");
            assert!(steps.all(|(_, why)| what == "before" && why == "switched"), "{what}: {record:?}");
        }
        for record in &troubled {
            assert_eq!(record.fallback.as_deref(), Some("withdrawn"), "{what}: {record:?}");
            let first = record.forwarders.first().map(|step| step.forwarder.as_str());
            assert_eq!(first == Some("sk_msg"), what == "before", "{record:?}");
            let last = record.forwarders.last().map(|step| (step.forwarder.as_str(), step.why.as_str()));
            assert!(what == "after" || last == Some(("copy", "withdrawn")), "{record:?}");
        }
    }
    assert!(daemon.metrics().unwrap().contains("edgeproxy_same_host_withdrawn 1\n"));
    common::assert_said(&daemon, "the mark same_host is withdrawn until a restart");
    drop(daemon);
    restarted(&world, &cgroups, &roots);
}

/// A new daemon hands over to both.
fn restarted(world: &World, cgroups: &Cgroups, roots: &[&Path]) {
    let daemon = same_host_daemon(world, cgroups, &[cgroups.applications()], &[]);
    for n in 0..8 {
        let mut http = stage::connect(world, daemon.addr(), n);
        stage::converse(&mut http, roots, n, Pace::Fast, |_| false);
    }
    let records = daemon.access_log(SOON, |records| records.len() == 8);
    assert!(records.iter().all(|record| record.forwarder.as_deref() == Some("sk_msg")), "{records:?}");
}

fn switch(daemon: &Daemon, forwarder: &str) {
    let answer = daemon.post("/api/v1/forwarder", &format!("{{\"forwarder\": \"{forwarder}\"}}")).unwrap();
    assert_eq!(answer.code, 200, "{answer:?}");
}

#[test]
#[ignore = "is no test: other tests start it in a process of its own"]
fn a_poll_server() {
    stage::a_poll_server();
}

/// The kill switch counts for new clients, who then take the ordinary way, and for those who are there.
#[test]
fn the_kill_switch_stops_new_pairs_and_shows_on_running_ones() {
    let test = "the_kill_switch_stops_new_pairs_and_shows_on_running_ones";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (cgroups, addr, daemon) = one_marked(&world, &[]);
    let server = FileServer::start(Kind::Poll, &world, addr, cgroups.applications());
    let root = server.root();
    let visit = |n: u16| {
        let mut http = stage::connect(&world, daemon.addr(), n);
        stage::converse(&mut http, &[&root], n, Pace::Fast, |_| false);
        http
    };
    let steps = |http: Http| -> Vec<(String, String)> {
        let client = http.local_addr();
        drop(http);
        let record = daemon.record_of(client, SOON).unwrap();
        assert_eq!((record.termination.as_str(), &record.fallback), ("--", &None), "{record:?}");
        record.forwarders.into_iter().map(|step| (step.forwarder, step.why)).collect()
    };
    let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
    let lasting = RefCell::new(visit(0));
    let talk = || stage::converse(&mut lasting.borrow_mut(), &[&root], 0, Pace::Fast, |_| false);
    switch(&daemon, "off");
    let first = steps(visit(1)).remove(0);
    assert_ne!(first.0, "sk_msg", "{first:?}");
    eventually("the running pair has seen it", || {
        talk();
        daemon.flows().unwrap().iter().any(|flow| flow.forwarder == "copy")
    });
    switch(&daemon, "auto");
    talk();
    assert_eq!(steps(lasting.into_inner())[..2], [pair("sk_msg", "same_host"), pair("copy", "switched")]);
    assert_eq!(steps(visit(2)), [pair("sk_msg", "same_host")]);
}

/// The programs have room for 1,024 ports, which would otherwise be all that a daemon could serve in its life.
#[test]
fn ports_that_no_marked_backend_has_any_more_are_forgotten() {
    let test = "ports_that_no_marked_backend_has_any_more_are_forgotten";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (_cgroups, addr, daemon) = one_marked(&world, &[]);
    let other = SocketAddr::new(addr.ip(), addr.port() + 1);
    [addr, other].into_iter().for_each(|addr| polling::serve(&world, addr));
    let known = || ports(&daemon).keys().map(Result::unwrap).collect::<Vec<u32>>();
    let visit = |n: u16| {
        let mut client = polling::Client::connect(&world, n, daemon.addr());
        client.echo(b"a few bytes");
        let local = client.local();
        drop(client);
        daemon.record_of(local, SOON).unwrap()
    };
    let change = |to: &str| {
        world.database.execute(&format!("UPDATE backends SET {to}"));
        assert_eq!(daemon.post("/api/v1/reload", "{}").unwrap().code, 200);
    };
    assert_eq!(visit(0).forwarder.as_deref(), Some("sk_msg"));
    assert_eq!(known(), [u32::from(addr.port())]);
    change(&format!("port = {}", other.port()));
    eventually("the former one is forgotten", || known().is_empty());
    assert_eq!(visit(1).forwarder.as_deref(), Some("sk_msg"));
    assert_eq!(known(), [u32::from(other.port())]);

    // And one for which there was no room is tried again.
    change(&format!("port = {}", addr.port()));
    eventually("this one, too", || known().is_empty());
    let others = 20_000..20_000 + 1_024;
    others.clone().for_each(|port| ports(&daemon).insert(port, 1, 0).unwrap());
    assert_eq!(visit(2).fallback.as_deref(), Some("not_local"));
    common::assert_said(&daemon, "backends on this port take the ordinary way");
    others.for_each(|port| ports(&daemon).remove(&port).unwrap());
    change("weight = 2");
    eventually("it is known now", || visit(3).forwarder.as_deref() == Some("sk_msg"));
}

fn ports(daemon: &Daemon) -> HashMap<MapData, u32, u32> {
    HashMap::try_from(Map::HashMap(maps::map_of(daemon, "own", "MARKED_PORTS"))).unwrap()
}

/// Blocking reads are not what the kernel promises on such sockets, so those who use them take the ordinary way.
#[test]
fn applications_that_block_take_the_ordinary_way() {
    let Some(world) = World::new(KERNEL, "applications_that_block_take_the_ordinary_way") else { return };
    let cgroups = Cgroups::create().unwrap();
    let _backend = world.backend(1, Manner::Echo, Row::same_host);
    let daemon = same_host_daemon(&world, &cgroups, &[cgroups.applications()], &[]);
    let mut visit = world.visit(0, daemon.addr()).unwrap();
    for _ in 0..20 {
        visit.echo(b"read with blocking calls").unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    visit.finish().unwrap();
    let record = &daemon.access_log(SOON, |records| !records.is_empty())[0];
    assert_eq!(record.fallback.as_deref(), Some("blocking"), "{record:?}");
    assert_eq!(record.termination, "--", "{record:?}");
}

/// One that is gone has no owner, which is no way to read.
#[test]
fn a_client_that_sends_and_closes_at_once_is_not_taken_for_one_that_blocks() {
    let test = "a_client_that_sends_and_closes_at_once_is_not_taken_for_one_that_blocks";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (_cgroups, addr, daemon) = one_marked(&world, &[]);
    polling::serve(&world, addr);
    for n in 0..20 {
        let mut client = polling::Client::connect(&world, n, daemon.addr());
        client.0.write_all(b"and no answer wanted").unwrap();
        let local = client.local();
        drop(client);
        let record = daemon.record_of(local, SOON).unwrap();
        assert_eq!(record.bytes_up, 20, "{record:?}");
        // It may have been gone before the two were a pair.
        assert_ne!(record.fallback.as_deref(), Some("blocking"), "{record:?}");
    }
    assert_eq!(withdrawn(&daemon), [""; 0]);
}

/// Where it is a matter of configuration that a mark can't work, that is said before any client comes.
#[test]
fn what_can_not_work_is_refused_with_the_reason() {
    let Some(world) = World::new(KERNEL, "what_can_not_work_is_refused_with_the_reason") else { return };
    let cgroups = Cgroups::create().unwrap();
    let _backend = world.backend(1, Manner::Echo, Row::same_host);
    let without = world.daemon(&[]);
    assert_in_vain(&without, "same_host_cgroup names no cgroup");
    // A mark that comes later is looked at when it comes.
    world.database.add(&Row::new("b2", world.backend_addr(2)).same_host());
    common::assert_said(&without, "[\\\"b2\\\"]");
    assert_eq!(without.status().unwrap().number("/forwarder/same_host/marked"), 2);
    drop(without);
    let applications = cgroups.applications();
    for (named, settings, why) in [
        (cgroups.daemon(), [("forwarder", "auto")], "holds this daemon"),
        (Path::new("/tmp"), [("forwarder", "auto")], "not a directory of a cgroup v2 file system"),
        (applications, [("forwarder", "splice")], "forwarder = splice asks for userspace only"),
    ] {
        let daemon = same_host_daemon(&world, &cgroups, &[named], &settings);
        assert_in_vain(&daemon, why);
        let mut visit = world.visit(0, daemon.addr()).unwrap();
        visit.echo(b"still served").unwrap();
    }
    let daemon = same_host_daemon(&world, &cgroups, &[applications], &[]);
    switch(&daemon, "off");
    assert_eq!(why_off(&daemon).as_deref(), Some("forwarder copy asks for userspace only"));
}

/// By status, log and metrics.
fn assert_in_vain(daemon: &Daemon, why: &str) {
    assert!(why_off(daemon).unwrap().contains(why), "{:?}", why_off(daemon));
    common::assert_said(daemon, "the mark same_host of backends has no effect");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_same_host_path_active 0\n"), "{metrics}");
    assert!(!metrics.contains("edgeproxy_same_host_marked 0\n"), "{metrics}");
}

/// The header would have to go through TCP, where a reader under the verdict may find nothing.
#[test]
fn a_mark_beside_a_proxy_header_is_refused_with_the_reason() {
    let test = "a_mark_beside_a_proxy_header_is_refused_with_the_reason";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    world.database.add(&Row::new("both", world.backend_addr(2)).same_host());
    world.database.execute("UPDATE backends SET send_proxy = 'v1' WHERE id = 'both'");
    let daemon = world.daemon(&[]);
    let status = daemon.status().unwrap();
    assert_eq!(status.text("/routing/rejected_rows/0/row"), Some("both"), "{:#}", status.0);
    let why = status.text("/routing/rejected_rows/0/why").unwrap();
    assert!(why.contains("same_host and send_proxy exclude each other"), "{why}");
    assert_eq!(world.exchange(&daemon).backend.as_deref(), Some("b1"));
    let check = world.config().command(&world.lab, &["check"]).output().unwrap();
    assert!(!check.status.success() && String::from_utf8_lossy(&check.stderr).contains(why), "{check:?}");
}
