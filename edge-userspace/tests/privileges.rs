//! What the daemon may do: exactly what loading its programs takes, and after that next to nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use common::stage::why_off;
use common::{KERNEL, NETWORK, NOBODY, SOON, World, eventually};
use rustix::thread::CapabilitySet;
use xtask::lab::{Cgroups, Config, Daemon};
use xtask::load::Manner;

/// What the kernel path needs, as documented.
const LOADING: [(&str, CapabilitySet); 3] = [
    ("CAP_BPF", CapabilitySet::BPF),
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ("CAP_PERFMON", CapabilitySet::PERFMON),
];

/// The sets that give a thread something.
const OWN_SETS: [&str; 4] = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];

#[test]
fn three_capabilities_suffice_and_are_given_up() {
    let Some(world) = World::new(KERNEL, "three_capabilities_suffice_and_are_given_up") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let three = LOADING.into_iter().map(|(_, capability)| capability).collect();
    let config = world.config_for_others().privileged_user(NOBODY, three).set("forwarder", "sockmap");
    let daemon = Daemon::start(&world.lab, &config).unwrap();
    assert_privileges(&daemon, CapabilitySet::empty());
    let record = world.exchange(&daemon);
    assert_eq!(record.forwarder.as_deref(), Some("sockmap"), "{record:?}\n{}", daemon.messages());
    assert!(record.kernel_up > 0 && record.kernel_down > 0, "{record:?}");
    // The program that counts is attached to a cgroup, and its map is written for each connection.
    let visit = world.visit(0, daemon.addr()).unwrap();
    let counts = |count| {
        let counted = daemon.wait_status(SOON, |status| status.backends()[0].2 == Some(count)).unwrap();
        assert_eq!(counted.backends()[0].2, Some(count), "{:#}", counted.0);
    };
    counts(1);
    visit.finish().unwrap();
    counts(0);
}

#[test]
fn without_cap_bpf_connections_stay_in_userspace() {
    lacking("CAP_BPF", "without_cap_bpf_connections_stay_in_userspace");
}

#[test]
fn without_cap_net_admin_connections_stay_in_userspace() {
    lacking("CAP_NET_ADMIN", "without_cap_net_admin_connections_stay_in_userspace");
}

#[test]
fn without_cap_perfmon_connections_stay_in_userspace() {
    lacking("CAP_PERFMON", "without_cap_perfmon_connections_stay_in_userspace");
}

#[test]
fn the_same_host_path_takes_the_same_three_capabilities() {
    let Some(world) = World::new(KERNEL, "the_same_host_path_takes_the_same_three_capabilities") else { return };
    let cgroups = Cgroups::create().unwrap();
    let config = |without: Option<&str>| {
        let there = LOADING.into_iter().filter(|(name, _)| Some(*name) != without).map(|(_, capability)| capability);
        let config = world.config_for_others().privileged_user(NOBODY, there.collect()).cgroup(cgroups.daemon());
        config.set("same_host_cgroup", cgroups.applications().display())
    };
    let with_all = Daemon::start(&world.lab, &config(None)).unwrap();
    assert_eq!(why_off(&with_all), None);
    assert_privileges(&with_all, CapabilitySet::empty());
    drop(with_all);
    for (name, _) in LOADING {
        let daemon = Daemon::start(&world.lab, &config(Some(name))).unwrap();
        let why = format!("{name} is missing: the same-host path needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
        assert_eq!(why_off(&daemon), Some(why));
    }
}

/// A service manager makes the cgroups of services, so it is done while the daemon runs, by a user without any privileges.
#[test]
fn a_cgroup_that_comes_later_takes_no_capability() {
    let Some(world) = World::new(KERNEL, "a_cgroup_that_comes_later_takes_no_capability") else { return };
    let cgroups = Cgroups::create().unwrap();
    let three = LOADING.into_iter().map(|(_, capability)| capability).collect();
    let config = world.config_for_others().privileged_user(NOBODY, three).cgroup(cgroups.daemon());
    let service = cgroups.servers().join("api.service");
    let daemon = Daemon::start(&world.lab, &config.set("same_host_cgroup", service.display())).unwrap();
    assert!(why_off(&daemon).is_some_and(|why| why.ends_with("is not there")), "{:?}", why_off(&daemon));
    assert_privileges(&daemon, CapabilitySet::empty());
    fs::create_dir(&service).unwrap();
    eventually("its applications take part", || why_off(&daemon).is_none());
    drop(daemon);
    fs::remove_dir(&service).unwrap();
}

/// With the two others, which are given up all the same.
fn lacking(name: &str, test: &str) {
    let Some(world) = World::new(KERNEL, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let others = LOADING.into_iter().filter(|(other, _)| *other != name).map(|(_, capability)| capability).collect();
    let config = world.config_for_others().privileged_user(NOBODY, others);
    for forwarder in ["auto", "sockmap"] {
        let daemon = Daemon::start(&world.lab, &config.clone().set("forwarder", forwarder)).unwrap();
        let why = common::assert_kernel_path_off(&daemon, "capability");
        assert_eq!(why, format!("{name} is missing: the kernel path needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"));
        assert_privileges(&daemon, CapabilitySet::empty());
        common::assert_in_userspace(&world.exchange(&daemon));
    }
}

#[test]
fn without_privileges_connections_stay_in_userspace_and_the_status_says_why() {
    let test = "without_privileges_connections_stay_in_userspace_and_the_status_says_why";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let config = world.config_for_others().user(NOBODY);
    for forwarder in ["auto", "sockmap"] {
        let daemon = Daemon::start(&world.lab, &config.clone().set("forwarder", forwarder)).unwrap();
        let why = common::assert_kernel_path_off(&daemon, "capability");
        assert!(why.starts_with("CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF are missing"), "{why}");
        common::assert_in_userspace(&world.exchange(&daemon));
    }
}

/// What is large is spliced then, as where the kernel path is not wanted.
#[test]
fn without_privileges_auto_splices_what_is_large() {
    let Some(world) = World::new(NETWORK, "without_privileges_auto_splices_what_is_large") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let config = world.config_for_others().user(NOBODY).set("forwarder", "auto");
    let daemon = Daemon::start(&world.lab, &config).unwrap();
    common::assert_kernel_path_off(&daemon, "capability");
    assert_eq!(daemon.status().unwrap().text("/forwarder/active"), Some("splice"));
    const SIZE: u64 = 32 << 20;
    let visit = world.visit(0, daemon.addr()).unwrap();
    let (local, mut sender) = (visit.local, visit.stream().try_clone().unwrap());
    let sent = std::thread::spawn(move || sender.write_all(&bytes(SIZE)));
    let mut back = vec![0; bytes(SIZE).len()];
    visit.stream().read_exact(&mut back).unwrap();
    assert!(back == bytes(SIZE), "the echo differs");
    sent.join().unwrap().unwrap();
    visit.finish().unwrap();
    let record = daemon.record_of(local, SOON).unwrap();
    assert_eq!((record.termination.as_str(), record.fallback.as_deref()), ("--", Some("unavailable")), "{record:?}");
    assert!(record.bytes_up == SIZE && record.bytes_down > SIZE, "{record:?}");
    let steps: Vec<_> = record.forwarders.iter().map(|step| step.forwarder.as_str()).collect();
    assert_eq!(steps, ["copy", "splice"], "{record:?}");
    // Most of it, and not a last piece.
    assert!(record.kernel_up > SIZE / 2 && record.kernel_down > SIZE / 2, "{record:?}");
}

/// In which any shift or swap shows.
fn bytes(count: u64) -> Vec<u8> {
    (0..count / 8).flat_map(u64::to_le_bytes).collect()
}

#[test]
fn root_gives_up_all_but_low_ports_and_everything_goes_on() {
    let Some(world) = World::new(KERNEL, "root_gives_up_all_but_low_ports_and_everything_goes_on") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let mut daemon = world.daemon(&[("forwarder", "sockmap")]);
    let kept = CapabilitySet::NET_BIND_SERVICE;
    assert_privileges(&daemon, kept);
    assert_bounding_set_is_empty(&daemon);
    assert_eq!(daemon.status().unwrap().0["capabilities"], serde_json::json!(["CAP_NET_BIND_SERVICE"]));
    // Pairs that are made now are inserted by threads without privileges.
    for _ in 0..3 {
        let record = world.exchange(&daemon);
        assert_eq!((record.forwarder.as_deref(), record.fallback.as_deref()), (Some("sockmap"), None), "{record:?}");
        assert!(record.kernel_up > 0 && record.kernel_down > 0, "{record:?}");
    }
    let _second = world.backend(2, Manner::Echo, |row| row);
    eventually("the database is read again", || daemon.status().unwrap().backends().len() == 2);
    let socket = daemon.admin_socket().to_owned();
    let mut held = world.visit(0, daemon.addr()).unwrap();
    daemon.ask_to_end();
    eventually("new connections are refused", || world.visit(1, daemon.addr()).is_err());
    held.echo(b"drained without privileges").unwrap();
    // Threads that were started since have none either.
    assert_privileges(&daemon, kept);
    held.finish().unwrap();
    assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0));
    assert!(!socket.exists(), "the admin socket is left behind");
}

#[test]
fn a_low_port_is_served_by_who_may_bind_it() {
    let Some(world) = World::new(NETWORK, "a_low_port_is_served_by_who_may_bind_it") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let low = std::net::SocketAddr::new(world.lab.pop(), 443);
    let config = world.config_for_others().set("listen_addr", low);
    let daemon =
        Daemon::start(&world.lab, &config.clone().privileged_user(NOBODY, CapabilitySet::NET_BIND_SERVICE)).unwrap();
    assert_privileges(&daemon, CapabilitySet::NET_BIND_SERVICE);
    world.visit(0, low).unwrap().finish().unwrap();
    drop(daemon);
    assert!(Daemon::start(&world.lab, &config.user(NOBODY)).is_err(), "the capability makes no difference here");
}

#[test]
fn root_reads_a_database_that_only_its_owner_may_read() {
    let test = "root_reads_a_database_that_only_its_owner_may_read";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    // As in a home directory.
    let path = world.database.path();
    let home = path.parent().unwrap().join("home");
    fs::create_dir(&home).unwrap();
    let theirs = home.join("routing.db");
    fs::rename(&path, &theirs).unwrap();
    give_to_nobody(&theirs, 0o600);
    give_to_nobody(&home, 0o700);
    let daemon = Daemon::start(&world.lab, &Config::new(common::BINARY, &theirs).set("forwarder", "copy")).unwrap();
    assert_privileges(&daemon, CapabilitySet::NET_BIND_SERVICE | CapabilitySet::DAC_READ_SEARCH);
    common::assert_said(&daemon, "CAP_DAC_READ_SEARCH stays");
    common::execute(
        &theirs,
        "INSERT INTO backends (id, app, region, wg_ip, port) VALUES ('new', 'web', 'sa', '10.66.0.9', 1)",
    );
    eventually("the database is read again", || daemon.status().unwrap().backends().len() == 2);
}

#[test]
fn the_unit_grants_what_is_needed_and_no_more() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/edgeproxy.service")).unwrap();
    let mut needed: Vec<_> = LOADING.into_iter().map(|(name, _)| name).chain(["CAP_NET_BIND_SERVICE"]).collect();
    needed.sort_unstable();
    for set in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        let mut granted: Vec<_> = field(&unit, set).split(' ').collect();
        granted.sort_unstable();
        assert_eq!(granted, needed, "{set}");
    }
}

fn give_to_nobody(path: &Path, mode: u32) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The workers have exactly these capabilities, no thread has more, and none can get any back.
fn assert_privileges(daemon: &Daemon, kept: CapabilitySet) {
    let threads = threads(daemon);
    for (name, status) in &threads {
        for set in OWN_SETS {
            let held = capabilities(status, set);
            assert!(kept.contains(held), "thread {name} has {held:?} in {set}, more than {kept:?}");
        }
        assert_eq!(field(status, "NoNewPrivs:"), "1", "thread {name}");
    }
    let workers = threads.iter().filter(|(name, _)| name.starts_with("edge-worker"));
    let held: Vec<_> = workers.map(|(_, status)| capabilities(status, "CapEff:")).collect();
    assert!(!held.is_empty() && held.iter().all(|held| *held == kept), "{held:?}, not {kept:?}");
}

fn assert_bounding_set_is_empty(daemon: &Daemon) {
    for (name, status) in threads(daemon) {
        assert_eq!(capabilities(&status, "CapBnd:"), CapabilitySet::empty(), "thread {name}");
    }
}

fn capabilities(status: &str, set: &str) -> CapabilitySet {
    CapabilitySet::from_bits_retain(u64::from_str_radix(field(status, set), 16).unwrap())
}

/// Name and `/proc` status of each thread.
fn threads(daemon: &Daemon) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    // A thread may end while this looks.
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    statuses.map(|status| (field(&status, "Name:").to_owned(), status)).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}
