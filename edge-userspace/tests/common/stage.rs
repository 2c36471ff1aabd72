//! A real file server behind daemons that know it as a backend of the same host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use xtask::lab::requirements::Need;
use xtask::lab::{Cgroups, Daemon, Nginx, Ns, PollServer, daemon};

use super::http::{Http, Pace};
use super::{Row, World};

pub const WITH_NGINX: &[Need] = &[Need::Root, Need::Namespaces, Need::Bpf, Need::Nginx];
/// Sizes of the files.
pub const FILES: [usize; 6] = [1, 700, 8_192, 100_000, 262_144, 3_000_000];
/// Where the daemon of remote clients listens.
const REMOTE_PORT: u16 = daemon::PORT + 1;

/// Starts a daemon outside the applications' cgroups; `named` are the directories that it is told.
pub fn same_host_daemon(world: &World, cgroups: &Cgroups, named: &[&Path], settings: &[(&str, &str)]) -> Daemon {
    let named: Vec<_> = named.iter().map(|path| path.display().to_string()).collect();
    let config = world.config().set("same_host_cgroup", named.join(","));
    let config = settings.iter().fold(config, |config, (name, value)| config.set(name, value));
    Daemon::start(&world.lab, &config.cgroup(cgroups.daemon())).unwrap()
}

/// The address of a marked backend `b1`, and a daemon that hands bytes over between it and local clients. To be dropped in
/// reverse order: a cgroup can go when the daemon is gone.
pub fn one_marked(world: &World, settings: &[(&str, &str)]) -> (Cgroups, SocketAddr, Daemon) {
    let cgroups = Cgroups::create().unwrap();
    let addr = world.backend_addr(1);
    world.database.add(&Row::new("b1", addr).same_host());
    let daemon = same_host_daemon(world, &cgroups, &[cgroups.applications()], settings);
    (cgroups, addr, daemon)
}

/// Why the mark `same_host` has no effect.
pub fn why_off(daemon: &Daemon) -> Option<String> {
    daemon.status().unwrap().text("/forwarder/same_host/why").map(str::to_owned)
}

/// The backends that lost the mark.
pub fn withdrawn(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status().unwrap();
    let withdrawn = status.0.pointer("/forwarder/same_host/withdrawn").and_then(serde_json::Value::as_object);
    withdrawn.unwrap().keys().cloned().collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// In the named cgroups.
    Local,
    /// Not in them, which is all that makes a client remote to the daemon.
    Remote,
}

/// What serves the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx { sendfile: bool },
    Poll,
}

#[derive(Debug)]
pub enum FileServer {
    Nginx(Nginx),
    Poll(PollServer),
}

impl FileServer {
    pub fn start(kind: Kind, world: &World, addr: SocketAddr, cgroup: &Path) -> Self {
        let namespace = world.lab.namespace(Ns::Backends);
        let server = match kind {
            Kind::Nginx { sendfile } => Self::Nginx(Nginx::start(namespace, addr, cgroup, sendfile).unwrap()),
            Kind::Poll => Self::Poll(PollServer::start(this_test_as_a_server(), namespace, addr, cgroup).unwrap()),
        };
        for size in FILES {
            std::fs::write(server.root().join(size.to_string()), pattern(size, size as u64)).unwrap();
        }
        server
    }

    pub fn root(&self) -> PathBuf {
        match self {
            Self::Nginx(nginx) => nginx.root(),
            Self::Poll(server) => server.root(),
        }
    }
}

/// A binary that has [`a_poll_server`] among its tests.
fn this_test_as_a_server() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "a_poll_server", "--nocapture"]);
    command
}

/// What the test of that name, which is to be ignored, must call.
pub fn a_poll_server() {
    PollServer::be_one().unwrap();
}

/// A server with a few files, and a daemon in front of it for each kind of clients.
#[derive(Debug)]
pub struct Stage {
    daemons: Vec<(Clients, Daemon, SocketAddr)>,
    pub server: FileServer,
    world: World,
    // After the daemons, which are in them.
    _cgroups: [Cgroups; 2],
}

impl Stage {
    pub fn new(test: &str, kind: Kind, clients: &[Clients]) -> Option<Self> {
        let world = World::new(WITH_NGINX, test)?;
        let cgroups = [Cgroups::create().unwrap(), Cgroups::create().unwrap()];
        let (applications, servers) = (cgroups[0].applications(), cgroups[0].servers().to_owned());
        let addr = world.backend_addr(1);
        let server = FileServer::start(kind, &world, addr, &servers);
        world.database.add(&Row::new("files", addr).same_host());
        let start = |clients: &Clients| {
            // A daemon's cgroup is its own, or it would take another one's connections for its own.
            let daemon = match clients {
                Clients::Local => same_host_daemon(&world, &cgroups[0], &[applications, &servers], &[]),
                Clients::Remote => {
                    let listen = SocketAddr::new(world.lab.pop(), REMOTE_PORT).to_string();
                    same_host_daemon(&world, &cgroups[1], &[&servers], &[("listen_addr", &listen)])
                }
            };
            assert_eq!(why_off(&daemon), None, "{}", daemon.messages());
            let port = if *clients == Clients::Local { daemon::PORT } else { REMOTE_PORT };
            (*clients, daemon, SocketAddr::new(world.lab.pop(), port))
        };
        let daemons = clients.iter().map(start).collect();
        Some(Self { daemons, server, world, _cgroups: cgroups })
    }

    pub fn daemon(&self, of: Clients) -> &Daemon {
        &self.daemons.iter().find(|(clients, ..)| *clients == of).unwrap().1
    }

    pub fn connect(&self, of: Clients, n: u16) -> Http {
        let (.., addr) = self.daemons.iter().find(|(clients, ..)| *clients == of).unwrap();
        connect(&self.world, *addr, n)
    }

    /// See [`converse`].
    pub fn converse(&self, of: Clients, n: u16, pace: Pace, until: Instant) -> u64 {
        let root = self.server.root();
        let who = if of == Clients::Local { n } else { n + 100 };
        converse(&mut self.connect(of, n), &[&root], who, pace, |_| Instant::now() < until)
    }
}

pub fn connect(world: &World, to: SocketAddr, n: u16) -> Http {
    world.lab.run_in(Ns::Clients, || Http::connect(world.lab.client(n), to).unwrap())
}

/// Asks for files and stores some, as often as `more` says so and once at least, and compares every byte. How many
/// rounds there were. What is stored can be in any of `roots`.
pub fn converse(http: &mut Http, roots: &[&Path], n: u16, pace: Pace, more: impl Fn(u64) -> bool) -> u64 {
    let mut dice = fastrand::Rng::with_seed(n.into());
    let mut rounds = 0;
    while rounds == 0 || more(rounds) {
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
        let stored = |root: &&Path| std::fs::read(root.join(&path)).is_ok_and(|stored| stored == upload);
        assert!(roots.iter().any(stored), "client {n}: an upload of {} bytes differs", upload.len());
        rounds += 1;
        if let Pace::Fast = pace {
            // One that never pauses would take the processor from all others.
            std::thread::sleep(Duration::from_millis(25));
        }
    }
    rounds
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
