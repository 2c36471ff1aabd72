//! Cgroups of the path between applications of this host: service managers make and remove them, and daemons must not
//! share theirs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{Map, SockHash};
use common::http::Pace;
use common::stage::{self, FileServer, Kind, same_host_daemon, why_off};
use common::{KERNEL, Row, SOON, World, eventually, maps, polling};
use xtask::lab::{Cgroups, Daemon, Record, daemon};

/// Where a second daemon listens.
const OTHER_PORT: u16 = daemon::PORT + 1;
/// Looking for an end that does not come takes each client so long. An exchange takes less than a tenth of it.
const LOOKS: Duration = Duration::from_millis(10);

/// A service's cgroup, as a service manager makes and removes it.
struct Service(PathBuf);

impl Service {
    fn below(slice: &Path) -> Self {
        let service = Self(slice.join("api.service"));
        service.make();
        service
    }

    fn make(&self) {
        fs::create_dir(&self.0).unwrap();
    }

    /// Its last process may have ended a moment ago only.
    fn remove(&self) {
        eventually("the cgroup is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A service that is to run the only backend, which is marked.
fn marked_service(world: &World) -> (Cgroups, Service) {
    let cgroups = Cgroups::create().unwrap();
    let service = Service::below(cgroups.servers());
    world.database.add(&Row::new("b1", world.backend_addr(1)).same_host());
    (cgroups, service)
}

#[test]
#[ignore = "is no test: other tests start it in a process of its own"]
fn a_poll_server() {
    stage::a_poll_server();
}

/// A few requests of the `n`-th client.
fn converse(world: &World, daemon: &Daemon, server: &FileServer, n: u16) -> Record {
    converse_by(world, daemon.addr(), daemon, server, n)
}

/// Likewise, where the daemon listens elsewhere.
fn converse_by(world: &World, to: SocketAddr, daemon: &Daemon, server: &FileServer, n: u16) -> Record {
    let mut http = stage::connect(world, to, n);
    let client = http.local_addr();
    stage::converse(&mut http, &[&server.root()], n, Pace::Fast, |_| false);
    drop(http);
    let record = daemon.record_of(client, SOON).unwrap();
    assert_eq!(record.termination, "--", "{record:?}");
    record
}

fn assert_handed_over(record: &Record) {
    assert_eq!((record.forwarder.as_deref(), record.fallback.as_deref()), (Some("sk_msg"), None), "{record:?}");
}

fn missing(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status().unwrap();
    let missing = status.0.pointer("/forwarder/same_host/missing_cgroups").and_then(serde_json::Value::as_object);
    missing.unwrap().keys().cloned().collect()
}

fn assert_metric(daemon: &Daemon, line: &str) {
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.lines().any(|other| other == line), "{line}: {metrics}");
}

/// The reasons of all events of that kind.
fn told(daemon: &Daemon, kind: &str) -> Vec<String> {
    let answer: serde_json::Value = serde_json::from_str(&daemon.get("/api/v1/events").unwrap().body).unwrap();
    let of_kind = answer["events"].as_array().unwrap().iter().filter(|event| event["kind"] == kind);
    of_kind.map(|event| format!("{} {}", event["name"].as_str().unwrap(), event["reason"].as_str().unwrap())).collect()
}

/// Connects and exchanges a few bytes, again and again; how long it took at least, as on a busy machine it may take longer.
fn fastest(world: &World, to: SocketAddr, first: u16) -> Duration {
    let took = (first..first + 31).map(|n| {
        let started = Instant::now();
        polling::Client::connect(world, n, to).echo(b"a few bytes");
        started.elapsed()
    });
    took.min().unwrap()
}

/// The backend's end is of no use then, and can't be seen where it is no application's.
#[test]
fn clients_from_elsewhere_wait_for_nothing() {
    let Some(world) = World::new(KERNEL, "clients_from_elsewhere_wait_for_nothing") else { return };
    let cgroups = Cgroups::create().unwrap();
    let addr = world.backend_addr(1);
    world.database.add(&Row::new("b1", addr).same_host());
    polling::serve(&world, addr);
    // Neither the clients nor the backend, which are threads of this test, are in there.
    let daemon = same_host_daemon(&world, &cgroups, &[cgroups.servers()], &[]);
    let took = fastest(&world, daemon.addr(), 0);
    eprintln!("connecting and an exchange took {took:?}");
    assert!(took < LOOKS, "{took:?}");
    let records = daemon.access_log(SOON, |records| records.len() == 31);
    assert!(records.iter().all(|record| record.fallback.is_none()), "{records:?}");
}

/// Local clients of a backend that is none of the named applications wait for its end, unless the operator has switched.
#[test]
fn while_all_is_to_be_in_userspace_nobody_waits() {
    let Some(world) = World::new(KERNEL, "while_all_is_to_be_in_userspace_nobody_waits") else { return };
    let (cgroups, addr, daemon) = stage::one_marked(&world, &[]);
    let server = FileServer::start(Kind::Poll, &world, addr, cgroups.servers());
    let record = converse(&world, &daemon, &server, 0);
    assert_eq!(record.fallback.as_deref(), Some("not_local"), "{record:?}");
    daemon.post("/api/v1/forwarder", "{\"forwarder\": \"off\"}").unwrap();
    let record = converse(&world, &daemon, &server, 1);
    assert_eq!(record.fallback, None, "{record:?}");
    let begun = record.forwarders.first().map(|step| step.at_ms).unwrap();
    eprintln!("forwarded after {begun} ms");
    assert!(begun < 10.0, "{record:?}");
}

/// Nobody waits for the backend's end, so it may be taken up while it is being given up on.
#[test]
fn what_is_taken_up_in_vain_is_let_go() {
    let Some(world) = World::new(KERNEL, "what_is_taken_up_in_vain_is_let_go") else { return };
    let cgroups = Cgroups::create().unwrap();
    let addr = world.backend_addr(1);
    world.database.add(&Row::new("b1", addr).same_host());
    // The server is one of the named applications, the clients are not.
    let server = FileServer::start(Kind::Poll, &world, addr, cgroups.servers());
    let daemon = same_host_daemon(&world, &cgroups, &[cgroups.servers()], &[]);
    let mut held: Vec<_> = (0..200).map(|n| stage::connect(&world, daemon.addr(), n)).collect();
    for (n, http) in (0..).zip(&mut held) {
        stage::converse(http, &[&server.root()], n, Pace::Fast, |_| false);
    }
    eventually("none stays under the verdict", || under_the_verdict(&daemon) == 0);
}

/// Sockets that the verdict sees.
fn under_the_verdict(daemon: &Daemon) -> usize {
    let sockets: SockHash<_, u64> =
        SockHash::try_from(Map::SockHash(maps::map_of(daemon, "adopt", "LOCAL_SOCKETS"))).unwrap();
    sockets.keys().count()
}

/// As a service manager does it: the cgroup that is made again is another one of the same name.
#[test]
fn a_service_that_is_restarted_takes_part_again() {
    let Some(world) = World::new(KERNEL, "a_service_that_is_restarted_takes_part_again") else { return };
    let (cgroups, service) = marked_service(&world);
    let start = || FileServer::start(Kind::Poll, &world, world.backend_addr(1), &service.0);
    let server = start();
    let daemon = same_host_daemon(&world, &cgroups, &[cgroups.applications(), &service.0], &[]);
    assert_handed_over(&converse(&world, &daemon, &server, 0));

    drop(server);
    service.remove();
    let path = service.0.display().to_string();
    eventually("that it is gone is noticed", || missing(&daemon) == [path.clone()]);
    assert_eq!(told(&daemon, "cgroup_lost"), [format!("{path} same_host_cgroup {path} is not there")]);
    assert_metric(&daemon, "edgeproxy_same_host_cgroups_missing 1");
    // The other one is there, and its applications could talk to each other.
    assert_eq!(why_off(&daemon), None);

    service.make();
    let server = start();
    eventually("it is taken in", || missing(&daemon).is_empty());
    assert_eq!(told(&daemon, "cgroup_found").len(), 1);
    assert_metric(&daemon, "edgeproxy_same_host_cgroups_missing 0");
    (1..5).for_each(|n| assert_handed_over(&converse(&world, &daemon, &server, n)));

    // And where nobody saw it missing.
    drop(server);
    service.remove();
    service.make();
    let server = start();
    eventually("it is taken in", || told(&daemon, "cgroup_found").len() == 2 && missing(&daemon).is_empty());
    assert_handed_over(&converse(&world, &daemon, &server, 5));
}

#[test]
fn a_cgroup_that_comes_after_the_daemon_is_taken_in() {
    let Some(world) = World::new(KERNEL, "a_cgroup_that_comes_after_the_daemon_is_taken_in") else { return };
    let (cgroups, service) = marked_service(&world);
    service.remove();
    polling::serve(&world, world.backend_addr(1));
    let daemon = same_host_daemon(&world, &cgroups, &[&service.0], &[]);
    let why = format!("same_host_cgroup {} is not there", service.0.display());
    assert_eq!(why_off(&daemon), Some(why.clone()));
    assert_eq!(told(&daemon, "cgroup_lost"), [format!("{} {why}", service.0.display())]);
    assert_metric(&daemon, "edgeproxy_same_host_path_active 0");
    common::assert_said(&daemon, "the mark same_host of backends has no effect");
    let took = fastest(&world, daemon.addr(), 0);
    assert!(took < LOOKS, "{took:?}");
    let check = common::edgeproxy(&daemon, &["status"]).1;
    assert!(check.contains(&why), "{check}");

    service.make();
    eventually("it is taken in", || why_off(&daemon).is_none());
    assert_metric(&daemon, "edgeproxy_same_host_path_active 1");
}

/// A program counts for the cgroups below its own, also for those that come later.
#[test]
fn a_slice_outlives_its_services() {
    let Some(world) = World::new(KERNEL, "a_slice_outlives_its_services") else { return };
    let (cgroups, service) = marked_service(&world);
    let start = || FileServer::start(Kind::Poll, &world, world.backend_addr(1), &service.0);
    let server = start();
    let daemon = same_host_daemon(&world, &cgroups, &[cgroups.applications(), cgroups.servers()], &[]);
    assert_handed_over(&converse(&world, &daemon, &server, 0));
    drop(server);
    service.remove();
    service.make();
    let server = start();
    // At once: nothing had to be noticed.
    (1..5).for_each(|n| assert_handed_over(&converse(&world, &daemon, &server, n)));
    assert_eq!((told(&daemon, "cgroup_lost").len(), told(&daemon, "cgroup_found").len()), (0, 0));
}

/// Each would take the other's connections for its own.
#[test]
fn a_second_daemon_in_one_cgroup_hands_nothing_over_and_says_why() {
    let test = "a_second_daemon_in_one_cgroup_hands_nothing_over_and_says_why";
    let Some(world) = World::new(KERNEL, test) else { return };
    let (cgroups, addr, mut first) = stage::one_marked(&world, &[]);
    let server = FileServer::start(Kind::Poll, &world, addr, cgroups.applications());
    let listen = SocketAddr::new(world.lab.pop(), OTHER_PORT);
    let below = Service::below(cgroups.daemon());
    for cgroup in [cgroups.daemon(), below.0.as_path()] {
        let second = second_daemon(&world, &cgroups, cgroup);
        let why = why_off(&second).unwrap();
        let theirs = format!("another daemon with a same-host path is in cgroup {}", cgroups.daemon().display());
        assert!(why.starts_with(&theirs), "{why}");
        assert!(told(&second, "same_host_off")[0].contains(&theirs), "{:?}", told(&second, "same_host_off"));
        common::assert_said(&second, &theirs);
        assert_metric(&second, "edgeproxy_same_host_path_active 0");
        for n in 0..20 {
            assert_handed_over(&converse(&world, &first, &server, n));
            let record = converse_by(&world, listen, &second, &server, n);
            assert_ne!(record.forwarder.as_deref(), Some("sk_msg"), "{record:?}");
        }
    }
    // What was killed leaves nothing behind; and one above would see what one below does.
    first.kill();
    let next = same_host_daemon(&world, &cgroups, &[cgroups.applications()], &[]);
    assert_handed_over(&converse(&world, &next, &server, 40));
    drop(next);
    let inside = second_daemon(&world, &cgroups, &below.0);
    assert_eq!(why_off(&inside), None);
    let above = same_host_daemon(&world, &cgroups, &[cgroups.applications()], &[]);
    assert!(why_off(&above).unwrap().contains(&below.0.display().to_string()), "{:?}", why_off(&above));
}

/// Anybody may who can read it.
#[test]
fn a_cgroup_that_somebody_else_has_locked_is_not_blamed_on_a_daemon_alone() {
    let test = "a_cgroup_that_somebody_else_has_locked_is_not_blamed_on_a_daemon_alone";
    let Some(world) = World::new(KERNEL, test) else { return };
    let cgroups = Cgroups::create().unwrap();
    let lock = fs::File::open(cgroups.daemon()).unwrap();
    lock.lock_shared().unwrap();
    let daemon = same_host_daemon(&world, &cgroups, &[cgroups.applications()], &[]);
    let why = why_off(&daemon).unwrap();
    assert!(why.contains("or somebody else has locked that directory"), "{why}");
}

/// One that listens elsewhere.
fn second_daemon(world: &World, cgroups: &Cgroups, own: &Path) -> Daemon {
    let listen = SocketAddr::new(world.lab.pop(), OTHER_PORT);
    let config = world.config().set("same_host_cgroup", cgroups.applications().display()).set("listen_addr", listen);
    Daemon::start(&world.lab, &config.cgroup(own)).unwrap()
}
