//! A real nginx as a backend: edge-triggered, single-threaded, with and without sendfile.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Namespace, cgroup};
use crate::process;

/// How long a start may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A running nginx that serves and takes (PUT) files below its root; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    directory: tempfile::TempDir,
}

impl Nginx {
    /// Starts one inside `namespace` and the cgroup v2 `cgroup`.
    ///
    /// # Errors
    /// Where it can't be started or does not listen in time; the message holds what it said.
    pub fn start(namespace: &Namespace, addr: SocketAddr, cgroup: &Path, sendfile: bool) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("edgeproxy-nginx-").tempdir()?;
        fs::create_dir(directory.path().join("files"))?;
        let configuration = directory.path().join("nginx.conf");
        fs::write(&configuration, configure(directory.path(), addr, sendfile))?;
        let program = binary().ok_or_else(|| io::Error::other("nginx is not installed"))?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&configuration).arg("-p").arg(directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        cgroup::place(&mut command, cgroup)?;
        let child = namespace.place(&mut command).spawn()?;
        let nginx = Self { child, directory };
        nginx.wait(namespace, addr)?;
        Ok(nginx)
    }

    fn wait(&self, namespace: &Namespace, addr: SocketAddr) -> io::Result<()> {
        let deadline = Instant::now() + LIMIT;
        while namespace.run(|| std::net::TcpStream::connect(addr)).is_err() {
            if Instant::now() > deadline {
                let said = fs::read_to_string(self.directory.path().join("error.log")).unwrap_or_default();
                return Err(io::Error::other(format!("nginx does not listen on {addr}: {said}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Where the files are that it serves.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// Kills it as `kill -9` does: its sockets are closed by the kernel.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where nginx is, if it is installed.
pub(super) fn binary() -> Option<PathBuf> {
    let usual = PathBuf::from("/usr/sbin/nginx");
    process::find("nginx").or_else(|| usual.exists().then_some(usual))
}

/// Small buffers, so that reads often fill them exactly: nginx then asks FIONREAD whether there is more.
fn configure(directory: &Path, addr: SocketAddr, sendfile: bool) -> String {
    let directory = directory.display();
    let sendfile = if sendfile { "on" } else { "off" };
    format!(
        "daemon off; master_process off; user root; pid {directory}/pid; error_log {directory}/error.log warn;\n\
         events {{ worker_connections 512; }}\n\
         http {{\n\
             access_log off; sendfile {sendfile}; keepalive_requests 1000000; keepalive_timeout 300s;\n\
             client_max_body_size 64m; client_body_buffer_size 8k; client_header_buffer_size 256;\n\
             large_client_header_buffers 4 8k; send_timeout 120s; output_buffers 2 32k;\n\
             client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;\n\
             fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;\n\
             server {{ listen {addr}; root {directory}/files; location / {{ dav_methods PUT; }} }}\n\
         }}\n"
    )
}
