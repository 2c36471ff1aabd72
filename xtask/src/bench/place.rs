//! Where a group of workloads runs: networks, addresses, the routing database.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use tempfile::TempDir;

use super::workload::Group;
use crate::lab::{Cgroups, Lab, Ns, daemon};
use crate::process;

const BACKEND_PORT: u16 = 7000;
const PEER_PORT: u16 = 8081;

/// Settings of each network, so that results don't hang on those of the host: the kernel's own defaults, and more
/// ports, because thousands of connections a second use them up.
const SYSCTLS: [(&str, &str); 5] = [
    ("ipv4/ip_local_port_range", "10000 65000"),
    ("ipv4/tcp_tw_reuse", "1"),
    ("ipv4/tcp_rmem", "4096 131072 6291456"),
    ("ipv4/tcp_wmem", "4096 16384 4194304"),
    ("core/somaxconn", "8192"),
];

/// What Linux has by default for TCP's congestion control, as well. With `bbr`, which many hosts are tuned to, each packet
/// waits for a timer of its own where no `fq` queue paces it, and on virtual links none does: half of all that is measured
/// would be timers.
pub(super) const CONGESTION_CONTROL: &str = "cubic";

#[derive(Debug)]
pub(super) struct Place {
    lab: Lab,
    binary: PathBuf,
    _directory: TempDir,
    /// The routing database, or why there is none.
    plain: Result<PathBuf, String>,
    /// The same with the backend marked as `same_host`.
    same_host: Result<PathBuf, String>,
    /// Where applications and our daemon are told apart.
    cgroups: Result<Cgroups, String>,
}

impl Place {
    pub(super) fn new(group: Group, binary: &Path, congestion_control: &str) -> Result<Self> {
        let lab = match group {
            Group::Remote => Lab::new()?,
            Group::Local => Lab::one_host()?,
        };
        for place in [Ns::Clients, Ns::Pop, Ns::Backends] {
            let tune = || tune(congestion_control);
            lab.run_in(place, tune).with_context(|| format!("settings of the network of {place:?}"))?;
        }
        lab.run_in(Ns::Pop, || fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
        let directory = tempfile::Builder::new().prefix("edgeproxy-bench-").tempdir()?;
        let backend = (lab.backend(1), BACKEND_PORT).into();
        let database = |name, options: &[&str]| make_database(&directory.path().join(name), binary, backend, options);
        let (plain, same_host) = (database("routing.db", &[]), database("same-host.db", &["--same-host"]));
        // This process is client and backend: from here on its sockets are applications', and programs that our
        // daemon attaches to its own cgroup, which as a service it has for itself, don't run for them.
        let cgroups = Cgroups::create().map_err(|why| why.to_string());
        Ok(Self { lab, binary: binary.to_owned(), _directory: directory, plain, same_host, cgroups })
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    pub(super) fn backend(&self) -> SocketAddr {
        (self.lab.backend(1), BACKEND_PORT).into()
    }

    /// Where proxies other than ours listen.
    pub(super) fn peer(&self) -> SocketAddr {
        (self.lab.pop(), PEER_PORT).into()
    }

    /// The cgroups of applications and of our daemon.
    pub(super) fn cgroups(&self) -> Result<&Cgroups> {
        self.cgroups.as_ref().map_err(|why| anyhow!("{why}"))
    }

    pub(super) fn database(&self, same_host: bool) -> Result<&Path> {
        let database = if same_host { &self.same_host } else { &self.plain };
        database.as_ref().map(PathBuf::as_path).map_err(|why| anyhow!("{why}"))
    }
}

fn make_database(path: &Path, binary: &Path, backend: SocketAddr, options: &[&str]) -> Result<PathBuf, String> {
    let db = |arguments: &[&str]| {
        let mut command = daemon::edgeproxy(binary, path);
        process::output(command.arg("db").args(arguments)).map_err(|error| error.to_string())
    };
    let backend = backend.to_string();
    let add = ["add", "backend", "--app", "bench", "--region", "sa", "--addr", &backend];
    db(&["init"])?;
    db(&[&add, options].concat())?;
    Ok(path.to_owned())
}

/// In the network of the calling thread.
fn tune(congestion_control: &str) -> Result<()> {
    for (name, value) in SYSCTLS.into_iter().chain([("ipv4/tcp_congestion_control", congestion_control)]) {
        fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("set net/{name} to {value}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::bench::procfs;
    use crate::lab::requirements::{Need, require};

    #[test]
    fn networks_have_the_settings_of_the_benchmark_whatever_the_host_has() {
        if require(&[Need::Root, Need::Namespaces], "networks_have_the_settings_of_the_benchmark").is_none() {
            return;
        }
        let lab = Lab::new().unwrap();
        // Not one of them alone: the host's may be that.
        let allowed = procfs::line("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
        for name in allowed.split_whitespace() {
            let of_network = lab.run_in(Ns::Pop, || {
                tune(name).unwrap();
                procfs::line("/proc/sys/net/ipv4/tcp_congestion_control")
            });
            assert_eq!(of_network, name);
        }
        assert!(lab.run_in(Ns::Pop, || tune("none-such")).is_err());
    }
}
