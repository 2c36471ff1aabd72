//! The server of [`crate::load::serve_by_poll`] in a process, and so in a cgroup, of its own.

// Between fork and exec: death with the parent.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Namespace, cgroup};

/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Tells the process where to listen, and what to serve.
const ADDRESS: &str = "EDGEPROXY_LAB_POLL_SERVER_ADDRESS";
const ROOT: &str = "EDGEPROXY_LAB_POLL_SERVER_ROOT";

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct PollServer {
    child: Child,
    directory: tempfile::TempDir,
}

impl PollServer {
    /// Starts `program` inside `namespace` and the cgroup v2 `cgroup`. It has to call [`PollServer::be_one`].
    ///
    /// # Errors
    /// Where it can't be started or does not listen in time.
    pub fn start(mut program: Command, namespace: &Namespace, addr: SocketAddr, cgroup: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("edgeproxy-poll-server-").tempdir()?;
        program.env(ADDRESS, addr.to_string()).env(ROOT, directory.path());
        program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        cgroup::place(&mut program, cgroup)?;
        end_with_parent(&mut program);
        let server = Self { child: namespace.place(&mut program).spawn()?, directory };
        let deadline = Instant::now() + LIMIT;
        while namespace.run(|| std::net::TcpStream::connect(addr)).is_err() {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("the server does not listen on {addr}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Makes this process the server, if it was started as one.
    ///
    /// # Errors
    /// Where it can't listen or serve; otherwise it does not return.
    pub fn be_one() -> io::Result<()> {
        let (Ok(addr), Some(root)) = (std::env::var(ADDRESS), std::env::var_os(ROOT)) else { return Ok(()) };
        let addr: SocketAddr = addr.parse().map_err(io::Error::other)?;
        crate::load::serve_by_poll(&std::net::TcpListener::bind(addr)?, Path::new(&root))
    }

    /// Where the files are that it serves.
    pub fn root(&self) -> PathBuf {
        self.directory.path().to_owned()
    }
}

impl Drop for PollServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills what `command` starts when the thread that starts it ends, however that comes.
fn end_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call with plain numbers.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    };
}
