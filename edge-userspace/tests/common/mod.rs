//! What the end-to-end tests share: a lab, a routing database and the daemon under test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod bench;
pub mod descriptors;
pub mod headers;
pub mod hello;
pub mod http;
pub mod listening;
pub mod maps;
pub mod polling;
pub mod refusals;
pub mod scene;
pub mod stage;
pub mod urgent;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xtask::lab::requirements::{Need, require};
use xtask::lab::{Config, Daemon, Lab, Ns, Record, daemon};
use xtask::load::{Manner, NamedBackend, Visit};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_edgeproxy");
/// Port of backends.
pub const PORT: u16 = 7000;
/// A user without privileges: `nobody`.
pub const NOBODY: u32 = 65_534;
/// How long anything that should happen soon may take.
pub const SOON: Duration = Duration::from_secs(10);

/// Needs of tests in a lab of namespaces.
pub const NETWORK: &[Need] = &[Need::Root, Need::Namespaces];
/// Needs of tests of the kernel path.
pub const KERNEL: &[Need] = &[Need::Root, Need::Namespaces, Need::Bpf];

/// A lab and an empty routing database.
#[derive(Debug)]
pub struct World {
    pub lab: Lab,
    pub database: Database,
}

impl World {
    /// `None` where the machine lacks what the test needs.
    pub fn new(needs: &[Need], test: &str) -> Option<Self> {
        require(needs, test)?;
        Some(Self { lab: Lab::new().unwrap(), database: Database::new() })
    }

    pub fn config(&self) -> Config {
        Config::new(BINARY, self.database.path())
    }

    /// With a copy of the binary that other users may run: a build directory can be out of their reach.
    pub fn config_for_others(&self) -> Config {
        let binary = self.database.path().with_file_name("edgeproxy");
        std::fs::copy(BINARY, &binary).unwrap();
        Config::new(binary, self.database.path())
    }

    /// A daemon with the given settings.
    pub fn daemon(&self, settings: &[(&str, &str)]) -> Daemon {
        let config = settings.iter().fold(self.config(), |config, (name, value)| config.set(name, value));
        Daemon::start(&self.lab, &config).unwrap()
    }

    /// Address of the `n`-th backend.
    pub fn backend_addr(&self, n: u8) -> SocketAddr {
        (self.lab.backend(n), PORT).into()
    }

    /// Starts the `n`-th backend, named `b<n>`, and adds its row, which `change` may change first.
    pub fn backend(&self, n: u8, manner: Manner, change: impl FnOnce(Row) -> Row) -> NamedBackend {
        let (name, addr) = (format!("b{n}"), self.backend_addr(n));
        self.database.add(&change(Row::new(&name, addr)));
        NamedBackend::start(self.lab.namespace(Ns::Backends), &name, addr, manner).unwrap()
    }

    /// Runs `visit` for `0..count`, `at_once` at a time, in the clients' namespace; results in no order.
    pub fn visits<T: Send>(&self, count: u16, at_once: u16, visit: impl Fn(u16) -> T + Sync) -> Vec<T> {
        let visit = &visit;
        self.lab.run_in(Ns::Clients, || {
            thread::scope(|scope| {
                let share = |worker: u16| (worker..count).step_by(at_once.into()).map(visit).collect::<Vec<T>>();
                let workers: Vec<_> = (0..at_once).map(|worker| scope.spawn(move || share(worker))).collect();
                workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
            })
        })
    }

    /// Connects the `n`-th client and reads the name of the backend it got.
    pub fn visit(&self, n: u16, to: SocketAddr) -> std::io::Result<Visit> {
        self.lab.run_in(Ns::Clients, || Visit::start(self.lab.client(n), to))
    }

    /// One connection with enough traffic for the kernel, through to its end; its access record.
    pub fn exchange(&self, daemon: &Daemon) -> Record {
        let mut visit = self.visit(0, daemon.addr()).unwrap();
        (0..100).for_each(|_| visit.echo(&[7; 4_000]).unwrap());
        let local = visit.local;
        visit.finish().unwrap();
        let record = daemon.record_of(local, SOON).unwrap();
        assert_eq!((record.bytes_up, record.termination.as_str()), (400_000, "--"), "{record:?}");
        record
    }
}

/// A row of `backends`.
#[derive(Debug, Clone)]
pub struct Row {
    id: String,
    region: String,
    addr: SocketAddr,
    weight: u32,
    soft_limit: u32,
    hard_limit: u32,
    same_host: bool,
}

impl Row {
    /// A backend of app `web` in region `sa`, without limits.
    pub fn new(id: &str, addr: SocketAddr) -> Self {
        Self {
            id: id.to_owned(),
            region: "sa".to_owned(),
            addr,
            weight: 1,
            soft_limit: 0,
            hard_limit: 0,
            same_host: false,
        }
    }

    pub fn region(self, region: &str) -> Self {
        Self { region: region.to_owned(), ..self }
    }

    /// The operator says that it runs on this host.
    pub fn same_host(self) -> Self {
        Self { same_host: true, ..self }
    }

    pub fn weight(self, weight: u32) -> Self {
        Self { weight, ..self }
    }

    pub fn limits(self, soft_limit: u32, hard_limit: u32) -> Self {
        Self { soft_limit, hard_limit, ..self }
    }
}

/// A routing database in a directory of its own.
#[derive(Debug)]
pub struct Database {
    directory: TempDir,
}

impl Database {
    /// As `edgeproxy db init` makes it.
    pub fn new() -> Self {
        let database = Self::missing();
        let made = daemon::edgeproxy(BINARY.as_ref(), &database.path()).args(["db", "init"]).output().unwrap();
        assert!(made.status.success(), "db init: {}", String::from_utf8_lossy(&made.stderr));
        database
    }

    /// A path where no database is.
    pub fn missing() -> Self {
        let directory = TempDir::new().unwrap();
        // Daemons that run as another user read it, too.
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { directory }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("routing.db")
    }

    pub fn add(&self, row: &Row) {
        let Row { id, region, addr, weight, soft_limit, hard_limit, same_host } = row;
        let (ip, port) = (addr.ip(), addr.port());
        self.execute(&format!(
            "INSERT INTO backends (id, app, region, wg_ip, port, healthy, weight, soft_limit, hard_limit) \
             VALUES ('{id}', 'web', '{region}', '{ip}', {port}, 1, {weight}, {soft_limit}, {hard_limit})"
        ));
        // Databases of the seed have no such column.
        if *same_host {
            self.execute(&format!("UPDATE backends SET same_host = 1 WHERE id = '{id}'"));
        }
    }

    /// Runs SQL as an operator's own tools would, past the daemon's validation.
    pub fn execute(&self, sql: &str) {
        execute(&self.path(), sql);
    }
}

pub fn execute(path: &Path, sql: &str) {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.busy_timeout(SOON).unwrap();
    connection.execute_batch(sql).unwrap();
}

/// Runs a command against the daemon; its exit code and what it printed.
pub fn edgeproxy(daemon: &Daemon, arguments: &[&str]) -> (i32, String) {
    let mut command = daemon::edgeproxy(BINARY.as_ref(), daemon.directory());
    let output = command.args(arguments).arg("--admin-socket").arg(daemon.admin_socket()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// Sets a flag when it is dropped, also by a panic: what loops until then ends, and the test fails instead of hanging.
#[derive(Debug)]
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the daemon's log holds `what`.
pub fn assert_said(daemon: &Daemon, what: &str) {
    let deadline = Instant::now() + SOON;
    while !daemon.messages().contains(what) {
        assert!(Instant::now() < deadline, "{what} is not in the log:\n{}", daemon.messages());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The kernel path is off for that reason by status, log and metrics; returns the reason in words.
pub fn assert_kernel_path_off(daemon: &Daemon, reason: &str) -> String {
    let status = daemon.status().unwrap();
    assert_eq!(status.text("/forwarder/off"), Some(reason), "{:#}", status.0);
    let why = status.text("/forwarder/why").unwrap().to_owned();
    // As a string of JSON, in which quotes are escaped.
    let logged = serde_json::to_string(why.trim_start_matches("byte counts disagreed: ")).unwrap();
    assert_said(daemon, logged.trim_matches('"'));
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_kernel_path_active 0\n"), "{metrics}");
    let on = |line: &&str| line.starts_with("edgeproxy_kernel_path_off{") && line.ends_with(" 1");
    let on: Vec<_> = metrics.lines().filter(on).collect();
    assert_eq!(on, [format!("edgeproxy_kernel_path_off{{reason=\"{reason}\"}} 1")], "{metrics}");
    why
}

/// The kernel path was wanted, and could not be had.
pub fn assert_in_userspace(record: &Record) {
    assert_ne!(record.forwarder.as_deref(), Some("sockmap"), "{record:?}");
    assert_eq!((record.fallback.as_deref(), record.kernel_up), (Some("unavailable"), 0), "{record:?}");
}

/// Counts equal items.
pub fn tally<T: std::hash::Hash + Eq>(items: impl IntoIterator<Item = T>) -> std::collections::HashMap<T, usize> {
    let mut counts = std::collections::HashMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}
