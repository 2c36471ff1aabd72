//! The real `edgeproxy run` inside a lab, with its database, admin socket and logs in hand.

// Between fork and exec: limits, user, and death with the parent.
#![allow(unsafe_code)]

use std::fs::Permissions;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde_json::Value;

use super::admin::{self, Answer};
use super::flow::Flow;
use super::logs::{Logs, Record};
use super::{Lab, Ns, cgroup, process};

/// How long a start or an orderly end may take.
const LIMIT: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(10);
/// Port of the listeners, IPv4 and IPv6, where the POP has a network of its own.
pub const PORT: u16 = 8080;

/// How to start a daemon. Settings are named as in its documentation (`idle_timeout_secs`).
#[derive(Debug, Clone)]
pub struct Config {
    binary: PathBuf,
    database: PathBuf,
    settings: Vec<(String, String)>,
    circumstances: Circumstances,
    cgroup: Option<PathBuf>,
    handed: Vec<(String, Arc<OwnedFd>)>,
}

/// What the child is made to be before it becomes the daemon.
#[derive(Debug, Clone, Copy, Default)]
struct Circumstances {
    open_files: Option<u64>,
    user: Option<(u32, CapabilitySet)>,
    ancient_kernel: bool,
}

impl Config {
    pub fn new(binary: impl Into<PathBuf>, database: impl Into<PathBuf>) -> Self {
        let (binary, database) = (binary.into(), database.into());
        Self {
            binary,
            database,
            settings: Vec::new(),
            circumstances: Circumstances::default(),
            cgroup: None,
            handed: Vec::new(),
        }
    }

    /// Sets a setting; the last of several wins.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().rfind(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Limits the files the daemon may have open.
    #[must_use]
    pub fn open_files(mut self, limit: u64) -> Self {
        self.circumstances.open_files = Some(limit);
        self
    }

    /// Runs the daemon as this user, without capabilities.
    #[must_use]
    pub fn user(self, user: u32) -> Self {
        self.privileged_user(user, CapabilitySet::empty())
    }

    /// Runs the daemon as this user, with exactly these capabilities.
    #[must_use]
    pub fn privileged_user(mut self, user: u32, capabilities: CapabilitySet) -> Self {
        self.circumstances.user = Some((user, capabilities));
        self
    }

    /// Has the kernel call itself 2.6 towards the daemon, as `setarch --uname-2.6` does.
    #[must_use]
    pub fn ancient_kernel(mut self) -> Self {
        self.circumstances.ancient_kernel = true;
        self
    }

    /// Starts the daemon in this cgroup (a directory of the cgroup v2 file system).
    #[must_use]
    pub fn cgroup(mut self, directory: &Path) -> Self {
        self.cgroup = Some(directory.to_owned());
        self
    }

    /// Hands an open socket over by name, as a service manager does; several may have the same name.
    #[must_use]
    pub fn hand_over(mut self, name: &str, socket: impl Into<OwnedFd>) -> Self {
        self.handed.push((name.to_owned(), Arc::new(socket.into())));
        self
    }

    /// `edgeproxy` with these settings and `arguments`, in the POP; for what is not started as a daemon.
    pub fn command(&self, lab: &Lab, arguments: &[&str]) -> Command {
        let mut command = match self.handed.is_empty() {
            true => edgeproxy(&self.binary, &self.database),
            false => self.activated(),
        };
        command.args(arguments);
        for (name, value) in &self.settings {
            command.env(format!("EDGEPROXY_{}", name.to_uppercase()), value);
        }
        lab.command_in(Ns::Pop, &mut command);
        // While it may still; in the wrong cgroup the daemon would say so at its start.
        let _ = self.cgroup.iter().try_for_each(|directory| cgroup::place(&mut command, directory));
        let circumstances = self.circumstances;
        // SAFETY: between fork and exec the closure makes system calls only and touches no lock or allocator.
        unsafe { command.pre_exec(move || confine(circumstances)) };
        let sockets: Vec<_> = self.handed.iter().map(|(_, socket)| Arc::clone(socket)).collect();
        // Last: it takes the numbers of descriptors that are used up to here.
        // SAFETY: as above.
        unsafe { command.pre_exec(move || put_in_place(&sockets)) };
        command
    }

    /// The shell knows the process id that the daemon is going to have.
    fn activated(&self) -> Command {
        let mut command = edgeproxy(Path::new("/bin/sh"), &self.database);
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(&self.binary);
        let names: Vec<_> = self.handed.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command
    }
}

/// A command of `edgeproxy`, free of the settings that the environment of the tests holds: those of the session, and
/// those that cargo sets while it builds.
pub fn edgeproxy(binary: &Path, database: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"EDGEPROXY_")) {
        command.env_remove(name);
    }
    command.env_remove("DEBUG").env("EDGEPROXY_DB_PATH", database);
    command
}

/// Starts a process. A binary that was copied a moment ago may still be open for writing in a child that another thread
/// of the tests has forked and that has not come to its own program yet.
fn patiently(command: &mut Command) -> io::Result<Child> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match command.spawn() {
            Err(why) if why.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                thread::sleep(STEP);
            }
            started => return started,
        }
    }
}

/// A running daemon; killed when dropped. It dies with the thread that started it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    logs: Logs,
    readers: Vec<JoinHandle<()>>,
    socket: PathBuf,
    directory: tempfile::TempDir,
    listeners: [SocketAddr; 2],
}

impl Daemon {
    /// Starts a daemon in the POP and waits until it is ready, and has loaded its programs.
    ///
    /// # Errors
    /// Where it ends or is not ready in time; the message holds what it said.
    pub fn start(lab: &Lab, config: &Config) -> Result<Self> {
        let mut daemon = Self::spawn(lab, config)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts a daemon in the POP and waits for nothing.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn spawn(lab: &Lab, config: &Config) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("edgeproxy-").tempdir()?;
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777))?;
        let own_socket = || directory.path().join("admin.sock");
        let socket = config.setting("admin_socket").map_or_else(own_socket, PathBuf::from);
        let port = if lab.is_isolated() { PORT } else { free_port(lab.pop())? };
        let listeners = [SocketAddr::new(lab.pop(), port), SocketAddr::new(lab.pop_v6(), port)];
        let listening = if lab.is_isolated() { &listeners[..] } else { &listeners[..1] };
        let addresses: Vec<_> = listening.iter().map(ToString::to_string).collect();
        let mut with_own = config.clone();
        with_own.settings.splice(
            0..0,
            [
                ("listen_addr".to_owned(), addresses.join(",")),
                ("admin_socket".to_owned(), socket.display().to_string()),
                ("geo_override".to_owned(), lab.geo_override()),
                ("db_reload_secs".to_owned(), "0.05".to_owned()),
            ],
        );
        let mut command = with_own.command(lab, &["run"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = patiently(&mut command).with_context(|| format!("start {}", config.binary.display()))?;
        let logs = Logs::default();
        let readers = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), Some(stderr)) => logs.collect(stdout, stderr).into(),
            _ => bail!("the daemon has no standard output"),
        };
        Ok(Self { child, logs, readers, socket, directory, listeners })
    }

    /// Waits until it is ready, and has loaded its programs.
    ///
    /// # Errors
    /// Where it ends or is not ready in time; the message holds what it said.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.is_complete() {
            if let Some(status) = self.child.try_wait()? {
                self.finish_reading();
                bail!("the daemon ended at its start ({status}):\n{}", self.messages());
            }
            if Instant::now() > deadline {
                bail!("the daemon was not ready after {LIMIT:?}:\n{}", self.messages());
            }
            thread::sleep(STEP);
        }
        Ok(())
    }

    /// It takes connections from the first on, a moment before the kernel path is there.
    fn is_complete(&self) -> bool {
        matches!(self.get("/readyz"), Ok(Answer { code: 200, .. }))
            && self.status().is_ok_and(|status| status.0.pointer("/forwarder/loading") == Some(&false.into()))
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.listeners[0]
    }

    pub fn addr_v6(&self) -> SocketAddr {
        self.listeners[1]
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn admin_socket(&self) -> &Path {
        &self.socket
    }

    /// A directory that lives as long as the daemon's handle.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `GET path` on the admin socket.
    pub fn get(&self, path: &str) -> Result<Answer> {
        admin::get(&self.socket, path)
    }

    /// `POST path` on the admin socket.
    pub fn post(&self, path: &str, body: &str) -> Result<Answer> {
        admin::post(&self.socket, path, body)
    }

    /// The daemon's status.
    pub fn status(&self) -> Result<Status> {
        let answer = self.get("/api/v1/status")?;
        Ok(Status(serde_json::from_str(&answer.body).context("status")?))
    }

    pub fn metrics(&self) -> Result<String> {
        Ok(self.get("/metrics")?.body)
    }

    /// The flows that run now, the oldest first.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        let answer = self.get("/api/v1/flows")?;
        serde_json::from_str(&answer.body).with_context(|| format!("flows: {}", answer.body))
    }

    /// The running flow of the connection from `client`.
    pub fn flow_of(&self, client: SocketAddr) -> Result<Option<Flow>> {
        Ok(self.flows()?.into_iter().find(|flow| flow.client == client))
    }

    /// Polls the status until `accept` says yes; the last status where it never did.
    pub fn wait_status(&self, limit: Duration, accept: impl Fn(&Status) -> bool) -> Result<Status> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status()?;
            if accept(&status) || Instant::now() > deadline {
                return Ok(status);
            }
            thread::sleep(STEP);
        }
    }

    /// What the daemon wrote besides its access log.
    pub fn messages(&self) -> String {
        self.logs.messages()
    }

    /// The access log, once `enough` says so or `limit` has passed.
    pub fn access_log(&self, limit: Duration, enough: impl Fn(&[Record]) -> bool) -> Vec<Record> {
        self.logs.records(limit, enough)
    }

    /// The access record of the connection from `client`.
    pub fn record_of(&self, client: SocketAddr, limit: Duration) -> Option<Record> {
        let is_it = |record: &&Record| record.client() == client;
        let records = self.access_log(limit, |records| records.iter().any(|record| is_it(&record)));
        records.iter().rfind(is_it).cloned()
    }

    /// Processor time used so far.
    pub fn cpu(&self) -> Duration {
        process::cpu(self.pid()).unwrap_or_default()
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        process::memory(self.pid()).unwrap_or_default()
    }

    /// Asks the daemon to end (SIGTERM) without waiting.
    pub fn ask_to_end(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Waits until the daemon ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.finish_reading();
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the daemon did not end within {limit:?}:\n{}", self.messages());
            }
            thread::sleep(STEP);
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.ask_to_end();
        self.wait(LIMIT)
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.finish_reading();
    }

    fn signal(&self, signal: libc::c_int) {
        let Ok(pid) = libc::pid_t::try_from(self.pid()) else { return };
        // SAFETY: our own child, which is not yet waited for, so the number is not somebody else's.
        unsafe { libc::kill(pid, signal) };
    }

    fn finish_reading(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The daemon's status as JSON, with the questions tests and the demo ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Status(pub Value);

impl Status {
    /// Connections open now.
    pub fn active(&self) -> u64 {
        self.number("/connections/active")
    }

    /// The number at a JSON pointer; 0 where there is none.
    pub fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    pub fn text(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer).and_then(Value::as_str)
    }

    /// Connections of each backend: its name, as the balancer counts them, as the kernel does.
    pub fn backends(&self) -> Vec<(String, u64, Option<u64>)> {
        let list = self.0.pointer("/backends").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let count = |backend: &Value, name: &str| backend.get(name).and_then(Value::as_u64);
        list.iter()
            .map(|backend| {
                let id = backend.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
                (id, count(backend, "connections").unwrap_or(0), count(backend, "kernel_connections"))
            })
            .collect()
    }
}

/// A port that nobody on this host listens on now.
fn free_port(ip: IpAddr) -> io::Result<u16> {
    Ok(TcpListener::bind((ip, 0))?.local_addr()?.port())
}

/// Descriptors from 3 on, open across exec. Runs in the child between fork and exec.
fn put_in_place(sockets: &[Arc<OwnedFd>]) -> io::Result<()> {
    /// Beyond all numbers that are about to be overwritten.
    const ASIDE: libc::c_int = 200;
    for (at, socket) in (ASIDE..).zip(sockets) {
        // SAFETY: numbers of descriptors.
        check(unsafe { libc::dup2(socket.as_raw_fd(), at) }.min(0))?;
    }
    for (at, _) in (ASIDE..).zip(sockets) {
        // SAFETY: as above.
        check(unsafe { libc::dup2(at, at - ASIDE + 3) }.min(0))?;
        // SAFETY: as above.
        check(unsafe { libc::close(at) })?;
    }
    Ok(())
}

/// Runs in the child between fork and exec.
fn confine(circumstances: Circumstances) -> io::Result<()> {
    if let Some(limit) = circumstances.open_files {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: a valid structure.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    if circumstances.ancient_kernel {
        let uname_2_6 = libc::c_ulong::from(libc::UNAME26.cast_unsigned());
        // SAFETY: plain numbers. Returns the persona of before, or -1.
        check(unsafe { libc::personality(uname_2_6) }.min(0))?;
    }
    if let Some((user, capabilities)) = circumstances.user {
        become_user(user, capabilities)?;
    }
    // After setuid, which would undo it: a daemon must not outlive the tests, however they end.
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
}

/// As a service manager does it: ambient capabilities are what an ordinary user's program is started with.
fn become_user(user: u32, capabilities: CapabilitySet) -> io::Result<()> {
    rustix::thread::set_keep_capabilities(true)?;
    // SAFETY: an empty list of groups, and plain numbers.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::setgid(user) })?;
    // SAFETY: plain numbers.
    check(unsafe { libc::setuid(user) })?;
    let sets = CapabilitySets { effective: capabilities, permitted: capabilities, inheritable: capabilities };
    rustix::thread::set_capabilities(None, sets)?;
    for capability in capabilities.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
