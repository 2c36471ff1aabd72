//! The path between applications of this host: byte-exact, bounded, and off where it can't be safe.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::bench::{Bench, memory_fall};
use common::http::{Http, Pace};
use common::{KERNEL, Row, SOON, World};
use xtask::lab::requirements::{Need, require};
use xtask::lab::{Cgroups, Daemon, Nginx, Ns, Record};
use xtask::load::{Behaviour, Load, Manner};

const WITH_NGINX: &[Need] = &[Need::Root, Need::Namespaces, Need::Bpf, Need::Nginx];
/// How long clients of nginx go on. `EDGEPROXY_SOAK_SECS` sets another time.
const SOAK: Duration = Duration::from_secs(5);

/// Starts a daemon outside the applications' cgroups; `named` are the directories that it is told.
fn daemon(world: &World, cgroups: &Cgroups, named: &Path, settings: &[(&str, &str)]) -> Daemon {
    let config = world.config().set("same_host_cgroup", named.display());
    let config = settings.iter().fold(config, |config, (name, value)| config.set(name, value));
    Daemon::start(&world.lab, &config.cgroup(cgroups.daemon())).unwrap()
}

fn why_off(daemon: &Daemon) -> Option<String> {
    daemon.status().unwrap().text("/forwarder/same_host/why").map(str::to_owned)
}

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
            daemon(world, &cgroups, cgroups.applications(), settings)
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

/// As in `bytes.rs`: sixteen connections push 64 MiB each to somebody who reads nothing for two seconds.
#[test]
fn applications_that_read_late_take_bounded_memory() {
    const READERS: u64 = 16;
    const BOUND: u64 = READERS * (12 << 20);
    let Some(marked) = Marked::new("applications_that_read_late_take_bounded_memory", &[]) else { return };
    let behaviours = vec![Behaviour::LateClient, Behaviour::LateBackend];
    let load = Load { at_once: 16, max_bytes: 64 << 20, behaviours, ..Load::mixed(READERS, 14) };
    // Other processes use memory, too: the least of three measurements counts.
    let fell = (0..3).map(|_| memory_fall(|| marked.bench.run(&load).assert_clean())).find(|fall| *fall < BOUND);
    assert!(fell.is_some(), "available memory fell by more than {} MiB in three runs", BOUND >> 20);
    marked.assert_sound();
}

#[test]
fn nginx_with_sendfile_serves_local_clients() {
    nginx("nginx_with_sendfile_serves_local_clients", true, Clients::Local);
}

#[test]
fn nginx_without_sendfile_serves_local_clients() {
    nginx("nginx_without_sendfile_serves_local_clients", false, Clients::Local);
}

#[test]
fn nginx_with_the_mark_serves_remote_clients_as_ever() {
    nginx("nginx_with_the_mark_serves_remote_clients_as_ever", true, Clients::Remote);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clients {
    /// In the named cgroups.
    Local,
    /// Not in them, which is all that makes a client remote to the daemon.
    Remote,
}

/// Clients of all paces on connections that are kept alive, some of them slow; every byte is compared.
fn nginx(test: &str, sendfile: bool, clients: Clients) {
    let Some(_met) = require(WITH_NGINX, test) else { return };
    let stage = Stage::new(test, sendfile, clients).unwrap();
    let until = Instant::now() + soak();
    let paces = [
        Pace::Fast,
        Pace::Fast,
        Pace::Slow(300, Duration::from_millis(1)),
        Pace::Slow(16 * 1024, Duration::from_millis(20)),
        Pace::Slow(64 * 1024, Duration::from_millis(100)),
        Pace::Slow(256 * 1024, Duration::from_millis(700)),
    ];
    thread::scope(|scope| {
        for (n, pace) in paces.into_iter().enumerate() {
            let stage = &stage;
            scope.spawn(move || stage.converse(u16::try_from(n).unwrap(), pace, until));
        }
    });
    let records = stage.daemon.access_log(SOON, |records| records.len() >= paces.len());
    for record in &records {
        let handed_over = record.forwarder.as_deref() == Some("sk_msg");
        assert_eq!(handed_over, clients == Clients::Local, "{record:?}");
    }
    let in_kernel: u64 = records.iter().map(|record| record.kernel_up).sum();
    assert!(clients == Clients::Remote || in_kernel > 0, "nothing was handed over");
    let status = stage.daemon.status().unwrap();
    assert_eq!(status.0.pointer("/forwarder/same_host/withdrawn"), Some(&serde_json::json!({})));
}

fn soak() -> Duration {
    std::env::var("EDGEPROXY_SOAK_SECS").map_or(SOAK, |secs| Duration::from_secs(secs.parse().unwrap()))
}

/// nginx with a few files, and a daemon in front of it.
struct Stage {
    daemon: Daemon,
    nginx: Nginx,
    world: World,
    _cgroups: Cgroups,
}

/// Sizes of the files.
const FILES: [usize; 6] = [1, 700, 8_192, 100_000, 262_144, 3_000_000];

impl Stage {
    fn new(test: &str, sendfile: bool, clients: Clients) -> Option<Self> {
        let world = World::new(WITH_NGINX, test)?;
        let cgroups = Cgroups::create().unwrap();
        let place = if clients == Clients::Local { cgroups.applications() } else { cgroups.servers() };
        let addr = world.backend_addr(1);
        let nginx = Nginx::start(world.lab.namespace(Ns::Backends), addr, place, sendfile).unwrap();
        for size in FILES {
            std::fs::write(nginx.root().join(size.to_string()), pattern(size, size as u64)).unwrap();
        }
        world.database.add(&Row::new("nginx", addr).same_host());
        let daemon = daemon(&world, &cgroups, place, &[]);
        assert_eq!(why_off(&daemon), None, "{}", daemon.messages());
        Some(Self { daemon, nginx, world, _cgroups: cgroups })
    }

    fn connect(&self, n: u16) -> Http {
        let lab = &self.world.lab;
        lab.run_in(Ns::Clients, || Http::connect(lab.client(n), self.daemon.addr()).unwrap())
    }

    fn converse(&self, n: u16, pace: Pace, until: Instant) {
        let mut http = self.connect(n);
        let mut dice = fastrand::Rng::with_seed(n.into());
        let mut rounds = 0;
        while Instant::now() < until || rounds == 0 {
            let sizes: Vec<usize> = (0..dice.usize(1..4)).map(|_| choose(pace, &mut dice)).collect();
            let names: Vec<String> = sizes.iter().map(usize::to_string).collect();
            let paths: Vec<&str> = names.iter().map(String::as_str).collect();
            http.ask(&paths, dice.usize(0..1500)).unwrap_or_else(|error| panic!("client {n}, {pace:?}: {error}"));
            for size in sizes {
                let body = http.answer(pace).unwrap_or_else(|error| panic!("client {n}, {pace:?}: {size}: {error}"));
                assert!(body == pattern(size, size as u64), "client {n}, {pace:?}: {size} bytes differ");
            }
            let upload = pattern(dice.usize(1..400_000), rounds);
            let path = format!("up-{n}");
            http.put(&path, &upload, dice.usize(1_000..80_000))
                .unwrap_or_else(|error| panic!("client {n}, {pace:?}: PUT: {error}"));
            let stored = std::fs::read(self.nginx.root().join(&path)).unwrap();
            assert!(stored == upload, "client {n}: an upload of {} bytes differs", upload.len());
            rounds += 1;
        }
    }
}

/// The slowest don't take the largest files: a test has its time.
fn choose(pace: Pace, dice: &mut fastrand::Rng) -> usize {
    let most = if matches!(pace, Pace::Slow(..1_000, _)) { 3 } else { FILES.len() };
    FILES[dice.usize(..most)]
}

/// Bytes in which any shift or swap shows.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// The client learns of the end at once, and the place is given back.
#[test]
fn a_killed_server_ends_its_connections() {
    let Some(mut stage) = Stage::new("a_killed_server_ends_its_connections", true, Clients::Local) else { return };
    let mut http = stage.connect(0);
    http.ask(&["3000000"], 0).unwrap();
    thread::sleep(Duration::from_millis(200));
    stage.nginx.kill();
    let started = Instant::now();
    assert!(http.answer(Pace::Slow(64 * 1024, Duration::from_millis(1))).is_err(), "the body can't be whole");
    assert!(started.elapsed() < SOON);
    drop(http);
    let ended = |records: &[Record]| !records.is_empty();
    let record = &stage.daemon.access_log(SOON, ended)[0];
    assert_eq!(record.forwarder.as_deref(), Some("sk_msg"), "{record:?}");
    assert!(["--", "SD"].contains(&record.termination.as_str()), "{record:?}");
    let status = stage.daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    assert_eq!(status.number("/forwarder/same_host/flows"), 0);
}

/// The client goes away without having read: what nginx sends then has nowhere to go.
#[test]
fn a_client_that_goes_away_ends_its_connection() {
    let Some(stage) = Stage::new("a_client_that_goes_away_ends_its_connection", true, Clients::Local) else { return };
    for n in 0..10 {
        let mut http = stage.connect(n);
        http.ask(&["3000000", "100000"], 0).unwrap();
        thread::sleep(Duration::from_millis(20));
        drop(http);
    }
    let status = stage.daemon.wait_status(SOON, |status| status.active() == 0).unwrap();
    assert_eq!((status.active(), status.number("/forwarder/same_host/flows")), (0, 0));
    // And nginx is well.
    stage.converse(11, Pace::Fast, Instant::now());
}

/// Blocking reads are not what the kernel promises on such sockets, so those who use them take the ordinary way.
#[test]
fn applications_that_block_take_the_ordinary_way() {
    let Some(world) = World::new(KERNEL, "applications_that_block_take_the_ordinary_way") else { return };
    let cgroups = Cgroups::create().unwrap();
    let _backend = world.backend(1, Manner::Echo, Row::same_host);
    let daemon = daemon(&world, &cgroups, cgroups.applications(), &[]);
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

/// A mark without cgroups, or with one that holds the daemon itself, has no effect, and that is said.
#[test]
fn what_can_not_work_is_refused_with_the_reason() {
    let Some(world) = World::new(KERNEL, "what_can_not_work_is_refused_with_the_reason") else { return };
    let cgroups = Cgroups::create().unwrap();
    let _backend = world.backend(1, Manner::Echo, Row::same_host);
    let without = world.daemon(&[]);
    assert_eq!(why_off(&without).as_deref(), Some("same_host_cgroup names no cgroup"));
    drop(without);
    let own = daemon(&world, &cgroups, cgroups.daemon(), &[]);
    assert!(why_off(&own).unwrap().contains("holds this daemon"), "{:?}", why_off(&own));
    drop(own);
    let no_cgroup = daemon(&world, &cgroups, Path::new("/tmp"), &[]);
    assert!(why_off(&no_cgroup).unwrap().contains("cgroup v2"), "{:?}", why_off(&no_cgroup));
    let mut visit = world.visit(0, no_cgroup.addr()).unwrap();
    visit.echo(b"still served").unwrap();
}
