//! HAProxy and nginx as neighbours of the POP: in front of it, or as its backends, with a test's own configuration.
// Between fork and exec: death with the parent.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Namespace;
use crate::bench::procfs;
use crate::process;

/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Where Debian has nginx's module for connections that are not HTTP.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// One of them, in the foreground; ended when dropped.
#[derive(Debug)]
pub struct OtherProxy {
    child: Child,
    directory: tempfile::TempDir,
}

impl OtherProxy {
    /// HAProxy with these sections; waits until it listens on the IPv4 port.
    ///
    /// # Errors
    /// Where it is not there, ends or does not listen in time; the message holds what it said.
    pub fn haproxy(namespace: &Namespace, port: u16, sections: &str) -> io::Result<Self> {
        let limits = "timeout connect 10s\n timeout client 1m\n timeout server 1m\n";
        let config = format!("global\n maxconn 500\ndefaults\n mode tcp\n {limits}{sections}\n");
        Self::start(namespace, port, &config, |file, _| {
            let mut command = Command::new(process::find_system("haproxy")?);
            command.args(["-db", "-q", "-f"]).arg(file);
            Some(command)
        })
    }

    /// nginx with these blocks (`http`, `stream`).
    ///
    /// # Errors
    /// As [`Self::haproxy`].
    pub fn nginx(namespace: &Namespace, port: u16, blocks: &str) -> io::Result<Self> {
        let load = if Path::new(STREAM).exists() { format!("load_module {STREAM};\n") } else { String::new() };
        let config = format!(
            "{load}daemon off;\nmaster_process off;\nuser root;\npid pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 512; }}\n{blocks}\n"
        );
        Self::start(namespace, port, &config, |file, directory| {
            let mut command = Command::new(process::find_system("nginx")?);
            command.args(["-e", "stderr", "-p"]).arg(directory).arg("-c").arg(file);
            Some(command)
        })
    }

    fn start(
        namespace: &Namespace,
        port: u16,
        config: &str,
        make: impl FnOnce(&Path, &Path) -> Option<Command>,
    ) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("edgeproxy-other-").tempdir()?;
        let (file, errors) = (directory.path().join("config"), directory.path().join("errors"));
        fs::write(&file, config)?;
        let mut command = make(&file, directory.path()).ok_or_else(|| io::Error::other("it is not installed"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(errors)?);
        // SAFETY: between fork and exec the closure makes one system call and touches no lock or allocator.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            })
        };
        let child = namespace.place(&mut command).spawn()?;
        let mut other = Self { child, directory };
        other.wait_listening(port, &process::describe(&command))?;
        Ok(other)
    }

    /// Looks at the kernel's table: a connect would be passed on.
    fn wait_listening(&mut self, port: u16, line: &str) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !procfs::is_listening(self.child.id(), port).map_err(io::Error::other)? {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("`{line}` ended at its start ({status}): {}", self.said())));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("`{line}` does not listen on {port}: {}", self.said())));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// What it wrote to its standard error.
    pub fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("errors")).unwrap_or_default()
    }
}

impl Drop for OtherProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether nginx can pass on what is not HTTP.
pub(super) fn nginx_streams() -> bool {
    Path::new(STREAM).exists()
}
