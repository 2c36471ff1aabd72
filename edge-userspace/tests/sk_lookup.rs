//! Prefixes and ranges of ports: by one socket for each worker and an `sk_lookup` program, or bound where they are few.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
// Asks the kernel to run the program on questions of ours.
#![allow(unsafe_code)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::listening::{app, listen, listener, unlisten};
use common::{KERNEL, NETWORK, NOBODY, SOON, World, assert_said, eventually};
use edgeproxy::adapters::inbound::listeners::bind;
use edgeproxy::adapters::inbound::listeners::steering::{Claim, Family, Policy, Steering};
use edgeproxy::domain::{Endpoints, Place, RawListener};
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use rustix::thread::CapabilitySet;
use xtask::lab::requirements::require;
use xtask::lab::{Daemon, Namespace, Ns};
use xtask::load::{Manner, NamedBackend, Visit};

/// Has the POP take everything to `prefix` for its own.
fn route_here(world: &World, prefix: &str) {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let mut command = Command::new("ip");
    let command = command.args([family, "route", "add", "local", prefix, "dev", "lo"]);
    assert!(world.lab.command_in(Ns::Pop, command).status().unwrap().success());
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Which backend a new client gets.
fn backend_at(world: &World, to: SocketAddr) -> std::io::Result<String> {
    let from = if to.is_ipv4() { world.lab.client(7) } else { world.lab.client_v6(7) };
    let visit = world.lab.run_in(Ns::Clients, || Visit::start(from, to))?;
    let name = visit.backend.clone();
    visit.finish().map(|()| name)
}

fn leads_to(world: &World, to: &str, backend: &str) {
    eventually(&format!("{to} leads to {backend}"), || backend_at(world, addr(to)).is_ok_and(|name| name == backend));
}

/// Sockets that listen in the POP's network.
fn listening(world: &World) -> usize {
    world.lab.run_in(Ns::Pop, || edgeproxy::adapters::inbound::listeners::others::listening().unwrap().len())
}

#[test]
fn one_socket_answers_all_ports_of_an_address() {
    let Some(world) = World::new(KERNEL, "one_socket_answers_all_ports_of_an_address") else { return };
    let _backends = [app(&world, 1), app(&world, 2)];
    listen(&world, "all", "app1", "'0.0.0.0', 1, 65535");
    listen(&world, "few", "app2", "'0.0.0.0', 20000, 20100");
    listen(&world, "six", "app2", "'::', 1, 65535");
    let mut daemon = world.daemon(&[("listen_addr", "none"), ("workers", "2")]);
    assert_eq!(listener(&daemon, "all")["how"], "sk_lookup");
    assert_eq!(listening(&world), 4, "two workers, two families");
    let ports: Vec<u16> = (0..1_000).map(|n| 1 + n * 65).chain([65_535, 20_000, 20_100, 19_999]).collect();
    let wrong: Vec<_> = world
        .visits(ports.len() as u16, 8, |n| {
            let port = ports[n as usize];
            let expected = if (20_000..=20_100).contains(&port) { "b2" } else { "b1" };
            (port, expected, backend_at(&world, (world.lab.pop(), port).into()))
        })
        .into_iter()
        .filter(|(_, expected, got)| got.as_ref().ok().map(String::as_str) != Some(expected))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(backend_at(&world, (world.lab.pop_v6(), 50_000).into()).unwrap(), "b2");
    let record = daemon.access_log(Duration::ZERO, |_| true).into_iter().find(|r| r.to.port() == 66).unwrap();
    assert_eq!((record.listener.as_deref(), record.to.ip()), (Some("all"), world.lab.pop()));
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_sk_lookup_available 1"), "{metrics}");
    let steered = |line: &str| line.starts_with("edgeproxy_sk_lookup_verdicts_total{verdict=\"steered\"}");
    eventually("the program counts", || {
        daemon.metrics().unwrap().lines().any(|line| steered(line) && !line.ends_with(" 0"))
    });
    // The program goes away with the daemon, however that ends.
    daemon.kill();
    assert!(backend_at(&world, (world.lab.pop(), 5_000).into()).is_err());
    let _other =
        NamedBackend::start(world.lab.namespace(Ns::Pop), "other", (world.lab.pop(), 5_000).into(), Manner::Close);
    assert_eq!(backend_at(&world, (world.lab.pop(), 5_000).into()).unwrap(), "other");
}

#[test]
fn a_prefix_is_served_and_the_most_specific_place_counts() {
    let Some(world) = World::new(KERNEL, "a_prefix_is_served_and_the_most_specific_place_counts") else { return };
    let _backends = [app(&world, 1), app(&world, 2), app(&world, 3)];
    route_here(&world, "203.0.113.0/24");
    route_here(&world, "2001:db8:7::/64");
    listen(&world, "net", "app1", "'203.0.113.0/24', 443, NULL");
    listen(&world, "half", "app2", "'203.0.113.0/25', 400, 500");
    listen(&world, "one", "app3", "'203.0.113.7', 443, NULL");
    listen(&world, "any", "app1", "'0.0.0.0', 443, NULL");
    listen(&world, "six", "app2", "'2001:db8:7::/64', 443, NULL");
    let daemon = world.daemon(&[("listen_addr", "203.0.113.0/24:80-90"), ("app", "app1"), ("workers", "2")]);
    for (to, backend) in [
        ("203.0.113.200:443", Some("b1")),
        ("203.0.113.99:443", Some("b2")),
        ("203.0.113.99:401", Some("b2")),
        ("203.0.113.7:443", Some("b3")),
        ("10.63.0.1:443", Some("b1")),
        ("203.0.113.200:401", None),
        ("203.0.113.255:85", Some("b1")),
        ("203.0.113.255:91", None),
        ("[2001:db8:7::1234]:443", Some("b2")),
    ] {
        assert_eq!(backend_at(&world, addr(to)).ok().as_deref(), backend, "{to}");
    }
    // As seen from outside, the address that answered is the one that was asked.
    unlisten(&world, "half");
    leads_to(&world, "203.0.113.99:443", "b1");
    let how: Vec<_> = ["net", "one"].map(|id| listener(&daemon, id)["how"].clone()).into();
    assert_eq!(how, ["sk_lookup", "bind"]);
}

/// Also one that comes later, and the admin API's.
#[test]
fn sockets_of_other_programs_in_a_range_keep_their_clients() {
    let Some(world) = World::new(KERNEL, "sockets_of_other_programs_in_a_range_keep_their_clients") else { return };
    let _backend = app(&world, 1);
    let start = |name: &str, at: &str| {
        NamedBackend::start(world.lab.namespace(Ns::Pop), name, addr(at), Manner::Close).unwrap()
    };
    let exact = start("exact", "10.63.0.1:7001");
    let _wide = start("wide", "0.0.0.0:7002");
    listen(&world, "all", "app1", "'0.0.0.0', 1024, 65535");
    let daemon = world.daemon(&[("listen_addr", "none"), ("admin_listen", "127.0.0.1:9090")]);
    for (to, name) in [("10.63.0.1:7001", "exact"), ("10.63.0.1:7002", "wide"), ("10.63.0.1:7003", "b1")] {
        assert_eq!(backend_at(&world, addr(to)).unwrap(), name, "{to}");
    }
    let admin = world.lab.run_in(Ns::Pop, || {
        let mut stream = TcpStream::connect("127.0.0.1:9090").unwrap();
        stream.write_all(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(admin.ends_with("ok\n"), "{admin}");
    let _late = start("late", "10.63.0.1:7003");
    leads_to(&world, "10.63.0.1:7003", "late");
    drop(exact);
    leads_to(&world, "10.63.0.1:7001", "b1");
    assert_eq!(daemon.status().unwrap().number("/steering/verdicts/no_socket"), 0);
}

/// Sets how many files the daemon may have open.
fn may_open(daemon: &Daemon, files: u64) {
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(files), maximum: Some(4096) }).unwrap();
}

/// Without descriptors nobody can read which sockets there are.
#[test]
fn without_descriptors_other_programs_keep_their_clients_and_our_sockets_stay_ours() {
    let test = "without_descriptors_other_programs_keep_their_clients_and_our_sockets_stay_ours";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = app(&world, 1);
    let pop = world.lab.namespace(Ns::Pop);
    let _other = NamedBackend::start(pop, "other", addr("10.63.0.1:7001"), Manner::Close).unwrap();
    listen(&world, "all", "app1", "'0.0.0.0', 1024, 65535");
    listen(&world, "one", "app1", "'0.0.0.0', 81, NULL");
    let daemon = world.daemon(&[("listen_addr", "none")]);
    leads_to(&world, "10.63.0.1:7001", "other");
    leads_to(&world, "10.63.0.1:81", "b1");
    may_open(&daemon, 3);
    assert_said(&daemon, "listening sockets of this host can't be read");
    // It has looked again and again by then.
    for _ in 0..15 {
        assert_eq!(backend_at(&world, addr("10.63.0.1:7001")).unwrap(), "other");
        thread::sleep(Duration::from_millis(100));
    }
    may_open(&daemon, 4096);
    // Overlaps with one of ours.
    listen(&world, "near", "app1", "'10.63.0.1', 81, NULL");
    eventually("it is open", || listener(&daemon, "near")["open"] == true);
    assert_eq!(daemon.messages().matches("listening sockets of this host can't be read").count(), 1, "it is told once");
}

#[test]
fn ranges_come_and_go_under_load_without_a_lost_connection() {
    let Some(world) = World::new(KERNEL, "ranges_come_and_go_under_load_without_a_lost_connection") else { return };
    let _backend = app(&world, 1);
    route_here(&world, "203.0.113.0/24");
    listen(&world, "stays", "app1", "'203.0.113.0/24', 1000, 2000");
    let daemon = world.daemon(&[("listen_addr", "none")]);
    assert_eq!(backend_at(&world, addr("203.0.113.9:1500")).unwrap(), "b1");
    let over = AtomicBool::new(false);
    let failures: Vec<_> = thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) || rounds < 20 {
                rounds += 1;
                listen(&world, "goes", "app1", &format!("'203.0.113.0/25', {}, 1700", 1400 + rounds % 9));
                thread::sleep(Duration::from_millis(60));
                unlisten(&world, "goes");
                thread::sleep(Duration::from_millis(60));
            }
        });
        let visits = world.visits(2_000, 8, |n| {
            let to = SocketAddr::new(IpAddr::from([203, 0, 113, (n % 250) as u8]), 1000 + n % 1000);
            Visit::start(world.lab.client(n), to).and_then(Visit::finish)
        });
        over.store(true, Ordering::Relaxed);
        storm.join().unwrap();
        visits.into_iter().filter_map(Result::err).collect()
    });
    assert!(failures.is_empty(), "{} of 2,000 were lost, the first by {:?}", failures.len(), failures[0]);
    let mut held = world.visit(3, addr("203.0.113.9:1500")).unwrap();
    unlisten(&world, "stays");
    eventually("the removed range refuses", || backend_at(&world, addr("203.0.113.9:1500")).is_err());
    held.echo(b"what it accepted goes on").unwrap();
    held.finish().unwrap();
    // After the last range, too, one may come again.
    listen(&world, "stays", "app1", "'203.0.113.0/24', 1500, 1501");
    leads_to(&world, "203.0.113.9:1500", "b1");
    assert!(daemon.status().unwrap().text("/state") == Some("ready"));
}

#[test]
fn two_capabilities_suffice_and_without_them_small_ranges_are_bound() {
    let test = "two_capabilities_suffice_and_without_them_small_ranges_are_bound";
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = app(&world, 1);
    route_here(&world, "203.0.113.0/24");
    listen(&world, "large", "app1", "'0.0.0.0', 2000, 60000");
    listen(&world, "small", "app1", "'203.0.113.0/30', 8000, 8009");
    let config = world.config_for_others().set("listen_addr", "none").set("forwarder", "copy");
    let two = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
    let daemon = Daemon::start(&world.lab, &config.clone().privileged_user(NOBODY, two)).unwrap();
    assert_eq!(daemon.status().unwrap().0["capabilities"], serde_json::json!([]));
    assert_eq!(backend_at(&world, addr("10.63.0.1:30000")).unwrap(), "b1");
    // What comes later is opened without privileges.
    listen(&world, "late", "app1", "'203.0.113.128/25', 9000, 9999");
    leads_to(&world, "203.0.113.200:9500", "b1");
    drop(daemon);
    for lacking in [CapabilitySet::BPF, CapabilitySet::NET_ADMIN] {
        let daemon = Daemon::start(&world.lab, &config.clone().privileged_user(NOBODY, two - lacking)).unwrap();
        let status = daemon.status().unwrap();
        let why = status.text("/steering/why").unwrap().to_owned();
        assert!(why.ends_with("is missing: sk_lookup needs CAP_BPF and CAP_NET_ADMIN"), "{why}");
        assert_bound(&world, &daemon);
    }
    let daemon = Daemon::start(&world.lab, &config.user(NOBODY)).unwrap();
    assert_bound(&world, &daemon);
    common::assert_said(&daemon, "takes 58001 sockets");
    assert!(daemon.metrics().unwrap().contains("edgeproxy_listener_up{listener=\"large\"} 0"));
    assert!(daemon.metrics().unwrap().contains("edgeproxy_sk_lookup_available 0"));
}

/// The small range is served by binding, the large one refused with a reason.
fn assert_bound(world: &World, daemon: &Daemon) {
    for to in ["203.0.113.0:8000", "203.0.113.3:8009"] {
        assert_eq!(backend_at(world, addr(to)).unwrap(), "b1", "{to}");
    }
    assert!(backend_at(world, addr("203.0.113.4:8000")).is_err());
    assert_eq!(listener(daemon, "small")["how"], "bind");
    let large = listener(daemon, "large");
    let why = large["why"].as_str().unwrap();
    assert!(large["open"] == false && why.contains("takes 58001 sockets") && why.contains("sk_lookup"), "{large}");
}

#[test]
fn a_small_range_is_bound_around_what_is_in_use() {
    let Some(world) = World::new(NETWORK, "a_small_range_is_bound_around_what_is_in_use") else { return };
    let _backend = app(&world, 1);
    let other =
        NamedBackend::start(world.lab.namespace(Ns::Pop), "other", addr("10.63.0.1:8003"), Manner::Close).unwrap();
    let config = world.config_for_others().user(NOBODY).set("listen_addr", "10.63.0.1:8000-8009").set("app", "app1");
    let daemon = Daemon::start(&world.lab, &config).unwrap();
    assert_eq!(backend_at(&world, addr("10.63.0.1:8002")).unwrap(), "b1");
    assert_eq!(backend_at(&world, addr("10.63.0.1:8003")).unwrap(), "other");
    let status = listener(&daemon, "10.63.0.1:8000-8009");
    assert!(status["why"].as_str().unwrap().starts_with("1 of 10 sockets could not be opened"), "{status}");
    drop(other);
    leads_to(&world, "10.63.0.1:8003", "b1");
}

/// The kernel's `struct bpf_sk_lookup`, the context of the program.
#[repr(C)]
#[derive(Default)]
struct Question {
    /// In the answer: the cookie of the socket that was assigned.
    cookie: u64,
    family: u32,
    protocol: u32,
    remote_ip4: u32,
    remote_ip6: [u32; 4],
    remote_port: u16,
    _pad: u16,
    local_ip4: u32,
    local_ip6: [u32; 4],
    local_port: u32,
    ingress_ifindex: u32,
    _end: u32,
}

impl Question {
    fn to(addr: SocketAddr) -> Self {
        let mut question = Self { protocol: 6, local_port: addr.port().into(), ..Self::default() };
        match addr.ip() {
            IpAddr::V4(ip) => {
                question.family = 2;
                question.local_ip4 = u32::from_ne_bytes(ip.octets());
            }
            IpAddr::V6(ip) => {
                question.family = 10;
                let octets = ip.octets();
                for (word, bytes) in question.local_ip6.iter_mut().zip(octets.chunks_exact(4)) {
                    *word = u32::from_ne_bytes(bytes.try_into().unwrap());
                }
            }
        }
        question
    }
}

/// `union bpf_attr`, as BPF_PROG_TEST_RUN has it.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    /// Of one run, ns.
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _end: u32,
}

/// Has the kernel run the program `repeat` times: whether it assigned a socket, and the nanoseconds of one run.
fn run(steering: &Steering, addr: SocketAddr, repeat: u32) -> (bool, u32) {
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    let mut question = Question::to(addr);
    let context = (&raw mut question) as u64;
    let size = size_of::<Question>() as u32;
    let mut run = TestRun {
        program: steering.program().unwrap().as_raw_fd() as u32,
        repeat,
        context_size_in: size,
        context_size_out: size,
        context_in: context,
        context_out: context,
        ..TestRun::default()
    };
    // SAFETY: both structures live until the call returns, and their sizes are given.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<TestRun>()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    assert_eq!(run.result, 1, "the program never drops");
    (question.cookie != 0, run.duration)
}

/// A namespace with the program loaded and a socket for each family.
fn with_steering<T: Send>(work: impl FnOnce(&mut Steering) -> T + Send) -> T {
    let namespace = Namespace::create().unwrap();
    namespace.run(|| {
        let mut steering = Steering::load(&mut aya::EbpfLoader::new()).unwrap();
        let sockets = [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")].map(|(family, home)| {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success());
            let socket = TcpListener::bind(home).unwrap();
            steering.set_socket(family, socket.as_fd()).unwrap();
            socket
        });
        let outcome = work(&mut steering);
        drop(sockets);
        outcome
    })
}

/// Places that overlap in many ways, and whether each is steered.
fn claims() -> impl Strategy<Value = Vec<Claim>> {
    let prefixes = ["0.0.0.0/0", "203.0.0.0/8", "203.0.113.0/24", "203.0.113.0/25", "203.0.113.4/30", "203.0.113.7/32"];
    let prefixes6 = ["::/0", "2001:db8::/32", "2001:db8:7::/48", "2001:db8:7::1/128"];
    let prefix = proptest::sample::select([&prefixes[..], &prefixes6].concat());
    let ports = proptest::sample::select(vec![
        (1, 65_535),
        (80, 80),
        (80, 90),
        (85, 200),
        (443, 443),
        (400, 500),
        (65_535, 65_535),
    ]);
    let claim = (prefix, ports, any::<bool>()).prop_map(|(prefix, (first, last), steered)| {
        let prefix: ipnet::IpNet = prefix.parse().unwrap();
        let text = match prefix {
            ipnet::IpNet::V4(net) => format!("{net}:{first}-{last}"),
            ipnet::IpNet::V6(net) => format!("[{net}]:{first}-{last}"),
        };
        Claim { place: Place::parse(&text).unwrap(), steered }
    });
    proptest::collection::vec(claim, 0..12).prop_map(|mut claims| {
        claims.sort_unstable();
        claims.dedup_by_key(|claim| claim.place);
        claims
    })
}

#[test]
fn the_kernel_decides_as_the_table_of_listeners_does() {
    let test = "the_kernel_decides_as_the_table_of_listeners_does";
    if require(KERNEL, test).is_none() {
        return;
    }
    let addresses = ["203.0.113.7", "203.0.113.5", "203.0.113.77", "203.0.113.200", "203.9.9.9", "198.51.100.1"];
    let addresses6 = ["2001:db8:7::1", "2001:db8:7::2", "2001:db8:8::1", "2001:db9::1", "::ffff:1"];
    let ips: Vec<IpAddr> = addresses.iter().chain(&addresses6).map(|ip| ip.parse().unwrap()).collect();
    let ports = [0, 1, 79, 80, 81, 85, 90, 91, 200, 201, 399, 400, 443, 444, 500, 501, 65_534, 65_535];
    with_steering(|steering| {
        let mut runner = TestRunner::new(Runs { cases: 200, failure_persistence: None, ..Runs::default() });
        let steering = std::cell::RefCell::new(steering);
        let outcome = runner.run(&claims(), |claims| {
            let mut steering = steering.borrow_mut();
            steering.apply(&Policy::new(&claims).unwrap()).unwrap();
            let mut endpoints = Endpoints::default();
            for (n, claim) in claims.iter().enumerate() {
                let row = RawListener {
                    id: format!("l{n}").as_str().into(),
                    address: claim.place.prefix.to_string().as_str().into(),
                    port: i64::from(claim.place.ports.first()).into(),
                    last_port: i64::from(claim.place.ports.last()).into(),
                    ..RawListener::default()
                };
                endpoints.add(row.parse().unwrap()).unwrap();
            }
            for addr in ips.iter().flat_map(|ip| ports.map(|port| SocketAddr::new(*ip, port))) {
                let place = endpoints.at(addr).and_then(|endpoint| endpoint.spot.place().copied());
                let steered = place.is_some_and(|place| claims.contains(&Claim { place, steered: true }));
                prop_assert_eq!(run(&steering, addr, 1).0, steered, "{} of {:?}", addr, place);
            }
            Ok(())
        });
        outcome.unwrap();
    });
}

/// One of them is in the kernel's map; by hash of the connection all are chosen.
#[test]
fn the_sockets_of_all_workers_share_what_is_steered() {
    let test = "the_sockets_of_all_workers_share_what_is_steered";
    if require(KERNEL, test).is_none() {
        return;
    }
    with_steering(|steering| {
        let manner = bind::Manner { count: 4, backlog: 512, own_overlap: false, free: false };
        let sockets = bind::open(addr("127.0.0.1:0"), manner).unwrap();
        steering.set_socket(Family::V4, sockets[0].as_fd()).unwrap();
        let claim = Claim { place: Place::parse("127.0.0.0/8:1000-60000").unwrap(), steered: true };
        steering.apply(&Policy::new(&[claim]).unwrap()).unwrap();
        let clients: Vec<_> =
            (0..400u16).map(|n| TcpStream::connect((format!("127.1.0.{}", n % 250), 2_000 + n)).unwrap()).collect();
        let accepted: Vec<usize> = sockets
            .iter()
            .map(|socket| {
                std::iter::from_fn(|| socket.accept().ok()).filter(|(peer, _)| peer.local_addr().is_ok()).count()
            })
            .collect();
        assert_eq!(accepted.iter().sum::<usize>(), clients.len(), "{accepted:?}");
        assert!(accepted.iter().all(|share| *share > 50), "{accepted:?}");
    });
}

/// Not a promise, a measurement: `cargo test --release --test sk_lookup -- --ignored --nocapture`.
#[test]
#[ignore = "measures; prints nanoseconds of a SYN's lookup"]
fn the_cost_of_a_lookup() {
    with_steering(|steering| {
        let cost = |steering: &Steering, to: &str| run(steering, addr(to), 1_000_000).1;
        println!("no policy: {} ns", cost(steering, "203.0.113.7:443"));
        let claim = |place: &str| Claim { place: Place::parse(place).unwrap(), steered: true };
        steering.apply(&Policy::new(&[claim("203.0.113.0/24:1-65535")]).unwrap()).unwrap();
        println!("one prefix, not ours: {} ns", cost(steering, "198.51.100.1:443"));
        println!("one prefix, steered: {} ns", cost(steering, "203.0.113.7:443"));
        let many: Vec<_> = (0..10_000u32).map(|n| claim(&format!("100.{}.{}.0/24:443", n / 256, n % 256))).collect();
        let begun = std::time::Instant::now();
        steering.apply(&Policy::new(&many).unwrap()).unwrap();
        println!("10,000 prefixes applied in {:?}", begun.elapsed());
        println!("10,000 prefixes, steered: {} ns", cost(steering, "100.20.7.7:443"));
    });
}

/// A daemon with a range on loopback takes the connections of another one's self-test, which then waits for nobody. That must
/// hold up neither clients nor operators.
#[test]
fn a_self_test_whose_connections_are_taken_holds_nobody_up() {
    let Some(world) = World::new(KERNEL, "a_self_test_whose_connections_are_taken_holds_nobody_up") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let first = world.daemon(&[("listen_addr", "0.0.0.0:20000-65535")]);
    eventually("the range is served", || backend_at(&world, (world.lab.pop(), 30_000).into()).is_ok());
    let config = world.config().set("forwarder", "auto");
    let mut second = Daemon::spawn(&world.lab, &config).unwrap();
    eventually("clients are served", || backend_at(&world, second.addr()).is_ok());
    let status = second.status().unwrap();
    assert_eq!(status.0["forwarder"]["loading"], true, "the test waits: {:#}", status.0);
    second.wait_ready().unwrap();
    let why = common::assert_kernel_path_off(&second, "self_test");
    assert!(why.contains("another program takes this host's own connections"), "{why}");
    assert_said(&second, "privileges given up");
    second.ask_to_end();
    assert_eq!(second.wait(SOON).unwrap().code(), Some(0));
    // While it waits, told to end with clients and without.
    for forwarder in ["auto", "sockmap"] {
        let mut third = Daemon::spawn(&world.lab, &config.clone().set("forwarder", forwarder)).unwrap();
        eventually("it is about to test", || third.messages().contains("routing table loaded"));
        thread::sleep(Duration::from_millis(500));
        let asked = std::time::Instant::now();
        third.ask_to_end();
        assert_eq!(third.wait(SOON).unwrap().code(), Some(0), "{forwarder}");
        assert!(!third.messages().contains("the self-test failed"), "{forwarder}: only after {:?}", asked.elapsed());
    }
    drop(first);
}
