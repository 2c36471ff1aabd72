//! A daemon for the measurement: this program again, on a port of its own, with everything it needs in a directory that
//! goes with it.

// Between fork and exec: death with the parent.
#![allow(unsafe_code)]

use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::{Method, StatusCode};
use rusqlite::Connection;
use tokio::time::{Instant, sleep};

use super::super::client::ask;
use super::super::db::SCHEMA;
use super::advice::Setting;
use super::machine;
use crate::application::status::{ForwarderStatus, PopState, Status};

/// How long the daemon may take to be ready.
const LIMIT: Duration = Duration::from_secs(20);

/// A running daemon; killed, and its files removed, when dropped.
#[derive(Debug)]
pub(super) struct Child {
    // Dropped in this order.
    process: Process,
    addr: SocketAddr,
    _directory: Directory,
}

impl Child {
    /// Starts a daemon that uses `forwarder`, with `settings`; the error says why that can't be measured here.
    pub(super) async fn start(forwarder: &str, settings: &[Setting], backend: SocketAddr) -> Result<Self, String> {
        let directory = Directory::create().map_err(|why| why.to_string())?;
        let database = directory.path().join("routing.db");
        make_database(&database, backend).map_err(|why| why.to_string())?;
        let addr = free_addr().map_err(|why| why.to_string())?;
        let socket = directory.path().join("admin.sock");
        let mut command = command(&database, &socket, addr, forwarder).map_err(|why| why.to_string())?;
        for Setting { name, value, .. } in settings {
            command.env(format!("EDGEPROXY_{}", name.to_ascii_uppercase()), value);
        }
        let process = Process(command.spawn().map_err(|why| why.to_string())?);
        let mut child = Self { process, addr, _directory: directory };
        let status = child.ready(&socket).await?;
        refuse_another(&status, forwarder)?;
        Ok(child)
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Processor time used so far. What kernel workers do for it is not in it.
    pub(super) fn cpu(&self) -> Duration {
        machine::cpu_of(self.process.0.id())
    }

    async fn ready(&mut self, socket: &Path) -> Result<ForwarderStatus, String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = status(socket).await {
                return Ok(status);
            }
            if let Ok(Some(status)) = self.process.0.try_wait() {
                return Err(format!("the daemon ended at its start ({status}): {}", self.process.words()));
            }
            if Instant::now() > deadline {
                return Err(format!("the daemon was not ready within {} s", LIMIT.as_secs()));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// `None` until the daemon is ready and has loaded its programs.
async fn status(socket: &Path) -> Option<ForwarderStatus> {
    let answer = ask(socket, Method::GET, "/api/v1/status", String::new()).await.ok()?;
    let status = serde_json::from_str::<Status>(&answer.body).ok()?;
    let complete = status.state == PopState::Ready && !status.forwarder.loading;
    (answer.code == StatusCode::OK && complete).then_some(status.forwarder)
}

/// A daemon that can't do what it was asked goes on with something else, and says why.
fn refuse_another(status: &ForwarderStatus, forwarder: &str) -> Result<(), String> {
    let needs_kernel = matches!(forwarder, "sockmap" | "auto");
    if status.active == forwarder && (status.kernel_path || !needs_kernel) {
        return Ok(());
    }
    Err(status.why.clone().unwrap_or_else(|| format!("the daemon uses {} instead", status.active)))
}

fn command(database: &Path, socket: &Path, addr: SocketAddr, forwarder: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // The operator's settings are for another daemon.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"EDGEPROXY_")) {
        command.env_remove(name);
    }
    command
        .env_remove("DEBUG")
        .env("EDGEPROXY_DB_PATH", database)
        .env("EDGEPROXY_ADMIN_SOCKET", socket)
        .env("EDGEPROXY_LISTEN_ADDR", addr.to_string())
        .env("EDGEPROXY_FORWARDER", forwarder)
        .env("EDGEPROXY_ACCESS_LOG", "false")
        .env("EDGEPROXY_LOG_LEVEL", "error");
    // SAFETY: between fork and exec the closure makes one system call and touches no lock or allocator.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
    Ok(command)
}

fn make_database(path: &Path, backend: SocketAddr) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    connection.execute_batch(SCHEMA)?;
    connection.execute(
        "INSERT INTO backends (id, app, region, wg_ip, port, soft_limit) VALUES ('bench', 'bench', 'sa', ?1, ?2, 0)",
        (backend.ip().to_string(), backend.port()),
    )?;
    Ok(())
}

/// An address that nobody listens on now.
fn free_addr() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Killed when dropped.
#[derive(Debug)]
struct Process(std::process::Child);

impl Process {
    /// What it wrote to standard error. Waits for its end.
    fn words(&mut self) -> String {
        let mut words = String::new();
        if let Some(stderr) = &mut self.0.stderr {
            // What can't be read is left out.
            let _ = stderr.read_to_string(&mut words);
        }
        words.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory for nobody else; removed when dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn create() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("edgeproxy-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Left-over files of a measurement harm nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_directory_goes_with_its_owner() {
        let directory = Directory::create().unwrap();
        let path = directory.path().to_owned();
        make_database(&path.join("routing.db"), free_addr().unwrap()).unwrap();
        assert!(path.join("routing.db").exists());
        drop(directory);
        assert!(!path.exists());
    }
}
