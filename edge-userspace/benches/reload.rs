//! How long a reload of 100,000 backends in 1,000 apps takes, step by step:
//! `cargo bench --package edge-userspace --bench reload`. Prints a Markdown table, as it is in `docs/reload.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use edgeproxy::adapters::outbound::sqlite::SqliteSource;
use edgeproxy::application::ports::RoutingSource as _;
use edgeproxy::application::reload;
use edgeproxy::application::routing::RoutingTable;
use edgeproxy::cli::db::SCHEMA;
use xtask::lab::Namespace;
use xtask::load::{Manner, NamedBackend};

const BINARY: &str = env!("CARGO_BIN_EXE_edgeproxy");

const ROUNDS: usize = 9;

fn main() {
    steps();
    cold_start();
    accept_latency();
}

/// The steps of a reload, in this process.
fn steps() {
    println!("| backends | apps | what changed | read | validated and indexed | both at once |");
    println!("|---:|---:|---|---:|---:|---:|");
    for (backends, apps) in [(10_000, 1_000), (100_000, 1_000), (100_000, 1)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routing.db");
        make(&path, backends, apps);
        let first = (0..ROUNDS).map(|_| {
            let [table, other] = [RoutingTable::new(), RoutingTable::new()];
            measure([&table, &other], &mut SqliteSource::new(&path))
        });
        report(backends, apps, "first load", first.collect());
        let tables = [RoutingTable::new(), RoutingTable::new()];
        let (tables, mut source) = ([&tables[0], &tables[1]], SqliteSource::new(&path));
        measure(tables, &mut source);
        for (what, change) in [
            ("nothing", ""),
            ("one row", "UPDATE backends SET weight = 1 + weight % 3 WHERE id = 'backend-00077'"),
            ("one row in a hundred", "UPDATE backends SET weight = 1 + weight % 3 WHERE rowid % 100 = 7"),
            ("every row", "UPDATE backends SET weight = 1 + weight % 3"),
        ] {
            let round = |_| {
                rusqlite::Connection::open(&path).unwrap().execute_batch(change).unwrap();
                measure(tables, &mut source)
            };
            report(backends, apps, what, (0..ROUNDS).map(round).collect());
        }
    }
}

/// From the start of the process to the first connection that is open, and to the first client that is connected to its
/// backend, with 10,000 backends.
fn cold_start() {
    println!("\n| cold start, 10,000 backends | open: median | longest | served: median | longest |");
    println!("|---|---:|---:|---:|---:|");
    for (what, settings) in [("all defaults", &[][..]), ("`forwarder = copy`", &[("forwarder", "copy")][..])] {
        let world = World::new(10_000);
        let starts: Vec<_> = (0..STARTS).map(|_| world.start(settings).1).collect();
        let [open, served] = [|start: &Start| start.open, |start: &Start| start.served].map(|of| {
            let mut times: Vec<_> = starts.iter().map(of).collect();
            times.sort_unstable();
            format!("{:.1} ms | {:.1} ms", ms(times[times.len() / 2]), ms(times[times.len() - 1]))
        });
        println!("| {what} | {open} | {served} |");
    }
}

const STARTS: usize = 21;

/// Each situation has its turn so often, for so long: what else happens on the machine meets all of them.
const TURNS: usize = 10;
const TURN: Duration = Duration::from_secs(3);

/// One client after the other, while nothing and while everything is reloaded. The database is changed by renaming a file
/// that was made before: writing one would take the processor from the clients, too.
fn accept_latency() {
    println!(
        "\n| connect, be connected, close; 100,000 backends | clients | median | 99 of 100 | 999 of 1,000 | longest | beyond 1 ms |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let world = World::new(100_000);
    let (daemon, _) = world.start(&[("db_reload_secs", "3600")]);
    let one_row = "UPDATE backends SET weight = 1 + weight % 3 WHERE id = 'backend-00077'";
    let every_row = "UPDATE backends SET weight = 1 + weight % 3";
    let mut situations = [
        ("no reload", None),
        ("reloads without pause, one row changed", Some(world.versions("one-row", one_row))),
        ("reloads without pause, every row changed", Some(world.versions("every-row", every_row))),
    ]
    .map(|(what, versions)| Situation { what, versions, times: Vec::new(), reloads: 0 });
    for _ in 0..TURNS {
        situations.iter_mut().for_each(|situation| situation.take_turn(&world, &daemon));
    }
    for Situation { what, mut times, reloads, .. } in situations {
        times.sort_unstable();
        let at = |per_mille: usize| ms(times[(times.len() - 1) * per_mille / 1000]);
        println!(
            "| {what} ({reloads} reloads) | {} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {:.1} in 1,000 |",
            times.len(),
            at(500),
            at(990),
            at(999),
            at(1000),
            1e3 * times.iter().filter(|time| **time > Duration::from_millis(1)).count() as f64 / times.len() as f64
        );
    }
}

struct Situation {
    what: &'static str,
    /// The database as it is, and changed.
    versions: Option<[PathBuf; 2]>,
    times: Vec<Duration>,
    reloads: usize,
}

impl Situation {
    fn take_turn(&mut self, world: &World, daemon: &Running) {
        let over = AtomicBool::new(false);
        let Self { versions, times, reloads, .. } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while let Some(versions) = versions.as_ref().filter(|_| !over.load(Ordering::SeqCst)) {
                    *reloads += 1;
                    world.replace(&versions[*reloads % 2]);
                    let answer = xtask::lab::post(&world.admin(), "/api/v1/reload", "{}").unwrap();
                    assert_eq!(answer.code, 200, "{}", answer.body);
                }
            });
            let started = Instant::now();
            while started.elapsed() < TURN {
                let since = Instant::now();
                daemon.visit(|| ()).unwrap();
                times.push(since.elapsed());
                std::thread::sleep(Duration::from_micros(500));
            }
            over.store(true, Ordering::SeqCst);
        });
    }
}

/// A routing database, and the one backend of the app `web` that it leads to.
struct World {
    _directory: tempfile::TempDir,
    path: PathBuf,
    _backend: NamedBackend,
    port: u16,
}

struct Running {
    child: Child,
    port: u16,
}

impl World {
    fn new(backends: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routing.db");
        make(&path, backends - 1, 999);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let backend = NamedBackend::start(&Namespace::host(), "web-1", any, Manner::Close).unwrap();
        let row = "INSERT INTO backends (id, app, region, wg_ip, port) VALUES ('web-1', 'web', 'sa', '127.0.0.1', ?1)";
        rusqlite::Connection::open(&path).unwrap().execute(row, [backend.addr().port()]).unwrap();
        let port = std::net::TcpListener::bind(any).unwrap().local_addr().unwrap().port();
        Self { _directory: directory, path, _backend: backend, port }
    }

    /// The database as it is, and changed.
    fn versions(&self, name: &str, change: &str) -> [PathBuf; 2] {
        [false, true].map(|is_changed| {
            let version = self.path.with_file_name(format!("{name}-{is_changed}"));
            std::fs::copy(&self.path, &version).unwrap();
            if is_changed {
                rusqlite::Connection::open(&version).unwrap().execute_batch(change).unwrap();
            }
            version
        })
    }

    fn replace(&self, version: &Path) {
        let link = self.path.with_file_name("next");
        std::fs::hard_link(version, &link).unwrap();
        std::fs::rename(&link, &self.path).unwrap();
    }

    fn admin(&self) -> PathBuf {
        self.path.with_file_name("admin.sock")
    }

    fn start(&self, settings: &[(&str, &str)]) -> (Running, Start) {
        let mut command = Command::new(BINARY);
        command.args(["run", "--app", "web", "--access-log", "false", "--log-level", "error", "--listen-addr"]);
        command.arg(format!("127.0.0.1:{}", self.port)).arg("--db-path").arg(&self.path);
        command.arg("--admin-socket").arg(self.admin());
        for (name, value) in settings {
            command.arg(format!("--{}", name.replace('_', "-"))).arg(value);
        }
        let started = Instant::now();
        let running = Running { child: command.spawn().unwrap(), port: self.port };
        let mut open = None;
        while running.visit(|| _ = open.get_or_insert_with(|| started.elapsed())).is_err() {
            std::thread::sleep(Duration::from_micros(200));
        }
        (running, Start { open: open.unwrap(), served: started.elapsed() })
    }
}

/// How long after the start of the process.
struct Start {
    /// The first connection was open.
    open: Duration,
    /// The first client was connected to its backend.
    served: Duration,
}

impl Running {
    fn visit(&self, connected: impl FnOnce()) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        connected();
        let mut name = Vec::new();
        stream.read_to_end(&mut name)?;
        if name == b"web-1\n" { Ok(()) } else { Err(std::io::Error::other("another backend")) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn make(path: &Path, backends: u32, apps: u32) {
    let mut connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    let transaction = connection.transaction().unwrap();
    let mut insert = transaction
        .prepare("INSERT INTO backends (id, app, region, wg_ip, port, weight, hard_limit, country) VALUES (?1, ?2, ?3, ?4, ?5, 1, 500, 'BR')")
        .unwrap();
    for n in 0..backends {
        let [_, b, c, d] = n.to_be_bytes();
        let region = ["sa", "us", "eu", "ap"][n as usize % 4];
        let (id, app) = (format!("backend-{n:05}"), format!("app-{:03}", n % apps));
        insert.execute((id, app, region, format!("10.{b}.{c}.{d}"), 1024 + n % 50_000)).unwrap();
    }
    drop(insert);
    transaction.commit().unwrap();
}

/// The steps one after the other into the first table, then both at once, as the daemon does, into the other.
fn measure(tables: [&RoutingTable; 2], source: &mut SqliteSource) -> [Duration; 3] {
    let started = Instant::now();
    let raw = source.read_whole().unwrap();
    let read = started.elapsed();
    tables[0].apply(&raw, false).unwrap();
    let applied = started.elapsed() - read;
    drop(raw);
    let started = Instant::now();
    reload::load(tables[1], source, false).unwrap();
    [read, applied, started.elapsed()]
}

/// The median of each step.
fn report(backends: u32, apps: u32, what: &str, times: Vec<[Duration; 3]>) {
    let median = |pick: &dyn Fn(&[Duration; 3]) -> Duration| {
        let mut all: Vec<_> = times.iter().map(pick).collect();
        all.sort_unstable();
        all[all.len() / 2].as_secs_f64() * 1e3
    };
    println!(
        "| {backends} | {apps} | {what} | {:.1} ms | {:.1} ms | {:.1} ms |",
        median(&|t| t[0]),
        median(&|t| t[1]),
        median(&|t| t[2])
    );
}
