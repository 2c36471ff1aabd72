//! The others: proxies from Debian with configurations of our own, and what everybody writes with tokio.
//!
//! They run in the foreground as our children, never as services.
// Between fork and exec: death with the parent.
#![allow(unsafe_code)]

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::place::Place;
use super::procfs;
use crate::lab::Ns;
use crate::process;

/// How long a start or an end may take.
const LIMIT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(5);
/// Connections the others are set up for: two files each, and HAProxy's pipes, must fit the usual limit of 20,000.
const CONNECTIONS: u32 = 7000;

/// The name of HAProxy's socket for statistics.
const STATS: &str = "stats";

/// A proxy in the foreground; ended when dropped.
#[derive(Debug)]
pub(super) struct Peer {
    child: Child,
    directory: TempDir,
}

pub(super) fn haproxy(place: &Place, splice: bool) -> Result<Peer> {
    let program = process::find_system("haproxy").context("haproxy is not installed (Debian package haproxy)")?;
    // Not `splice-auto`, which on this work never splices.
    let option = if splice { "    option splice-request\n    option splice-response\n" } else { "" };
    let config = |directory: &Path| {
        format!(
            "global\n    maxconn {CONNECTIONS}\n    stats socket {} mode 600\ndefaults\n    mode tcp\n    timeout connect \
             10s\n    timeout client 1h\n    timeout server 1h\n{option}listen bench\n    bind {} backlog 4096\n    server \
             backend {}\n",
            directory.join(STATS).display(),
            place.peer(),
            place.backend()
        )
    };
    Peer::start(place, config, |file, _| {
        let mut command = Command::new(&program);
        command.args(["-db", "-q", "-f"]).arg(file);
        command
    })
}

pub(super) fn nginx(place: &Place) -> Result<Peer> {
    let program = process::find_system("nginx").context("nginx is not installed (Debian package nginx)")?;
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let mut config = String::new();
    if module.exists() {
        let _ = writeln!(config, "load_module {};", module.display());
    }
    let _ = write!(
        config,
        "daemon off;\nuser root;\nworker_processes auto;\nworker_rlimit_nofile {files};\nerror_log stderr warn;\npid \
         pid;\nevents {{ worker_connections {files}; }}\nstream {{\n    access_log off;\n    server {{\n        listen {} \
         backlog=4096;\n        proxy_pass {};\n        proxy_timeout 1h;\n        proxy_half_close on;\n    }}\n}}\n",
        place.peer(),
        place.backend(),
        files = 2 * CONNECTIONS,
    );
    Peer::start(
        place,
        |_| config,
        |file, directory| {
            let mut command = Command::new(&program);
            command.args(["-e", "stderr", "-p"]).arg(directory).arg("-c").arg(file);
            command
        },
    )
}

pub(super) fn tokio_copy(place: &Place) -> Result<Peer> {
    let program = std::env::current_exe().context("where this program is")?;
    Peer::start(
        place,
        |_| String::new(),
        |_, _| {
            let mut command = Command::new(&program);
            command.args(["bench-proxy", &place.peer().to_string(), &place.backend().to_string()]);
            command
        },
    )
}

impl Peer {
    fn start(
        place: &Place,
        config: impl FnOnce(&Path) -> String,
        make: impl FnOnce(&Path, &Path) -> Command,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("edgeproxy-bench-").tempdir()?;
        let (file, errors) = (directory.path().join("config"), directory.path().join("errors"));
        fs::write(&file, config(directory.path()))?;
        let mut command = make(&file, directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(errors)?);
        place.lab().command_in(Ns::Pop, &mut command);
        // SIGTERM, so that a proxy of several processes ends all of them.
        // SAFETY: between fork and exec the closure makes one system call and touches no lock or allocator.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        };
        let line = process::describe(&command);
        let child = command.spawn().with_context(|| format!("could not start `{line}`"))?;
        let mut peer = Self { child, directory };
        peer.wait_listening(place, &line)?;
        Ok(peer)
    }

    /// Looks at the kernel's table: a connect would be a connection to the backend, too.
    fn wait_listening(&mut self, place: &Place, line: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !procfs::is_listening(self.child.id(), place.peer().port())? {
            if let Some(status) = self.child.try_wait()? {
                bail!("`{line}` ended at its start ({status}): {}", self.errors());
            }
            if Instant::now() > deadline {
                bail!("`{line}` does not listen after {LIMIT:?}: {}", self.errors());
            }
            thread::sleep(STEP);
        }
        Ok(())
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes that HAProxy has spliced since its start, by its own word.
    pub(super) fn spliced(&self) -> Result<u64> {
        let mut stats = UnixStream::connect(self.directory.path().join(STATS)).context("HAProxy's statistics")?;
        stats.set_read_timeout(Some(LIMIT))?;
        stats.set_write_timeout(Some(LIMIT))?;
        stats.write_all(b"show info\n")?;
        let mut info = String::new();
        stats.read_to_string(&mut info)?;
        // Its versions spell it in several ways.
        let count = |line: &str| line.strip_prefix("TotalSpli")?.split_once("BytesOut: ")?.1.parse().ok();
        info.lines().find_map(count).context("HAProxy does not say how much it has spliced")
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.directory.path().join("errors")).unwrap_or_default().trim().replace('\n', "; ")
    }

    fn signal(&self, signal: Signal) {
        // Our own child, which is not yet waited for, so the number is not somebody else's.
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(STEP);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
