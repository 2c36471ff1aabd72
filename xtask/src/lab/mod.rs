//! A little internet on one machine: clients, a POP and backends, each with its own network.
//!
//! ```text
//! clients ── 10.63.0.0/30 ── POP ── 10.65.0.0/30 ── backends
//! 10.64.0.0/16, fd64::/32,          10.66.0.0/16, fd66::/64
//! public prefixes of five countries
//! ```
//!
//! Where namespaces can't be made, [`Lab::loopback`] offers the same places on 127.0.0.0/8.
#![allow(clippy::indexing_slicing, reason = "test apparatus: a panic is a failed test, not an outage")]

mod address;
mod admin;
mod cgroup;
pub mod daemon;
mod delay;
mod flow;
mod logs;
mod loss;
pub mod mmdb;
mod netns;
mod nginx;
mod other;
mod poll_server;
mod process;
pub mod requirements;
mod setup;

use std::io;
use std::net::IpAddr;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

pub use address::{BRAZIL, COUNTRIES, Country, GERMANY, JAPAN, SOUTH_AFRICA, UNITED_STATES};
pub use admin::{Answer, post};
pub use cgroup::Cgroups;
pub use daemon::{Config, Daemon, Status};
pub use delay::Delay;
pub use flow::Flow;
pub use logs::Record;
pub use loss::{Loss, Where};
pub use netns::Namespace;
pub use nginx::Nginx;
pub use other::OtherProxy;
pub use poll_server::PollServer;
pub use process::{cpu as cpu_of, memory_available};

/// The three places of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ns {
    Clients,
    Pop,
    Backends,
}

#[derive(Debug)]
pub struct Lab {
    clients: Namespace,
    pop: Namespace,
    backends: Namespace,
    isolated: bool,
}

impl Lab {
    /// Three network namespaces joined by two links. Needs root.
    pub fn new() -> io::Result<Self> {
        let lab = Self {
            clients: Namespace::create()?,
            pop: Namespace::create()?,
            backends: Namespace::create()?,
            isolated: true,
        };
        setup::links(&lab)?;
        Ok(lab)
    }

    /// The three places as addresses of one network of their own: everything on one host. Needs root.
    pub fn one_host() -> io::Result<Self> {
        let host = Namespace::create()?;
        setup::ip(&host, "link set lo up")?;
        Ok(Self { clients: host.clone(), pop: host.clone(), backends: host, isolated: false })
    }

    /// The same places as addresses of this host's loopback interface, for want of privileges. IPv4 only.
    pub fn loopback() -> Self {
        let host = Namespace::host();
        Self { clients: host.clone(), pop: host.clone(), backends: host, isolated: false }
    }

    /// Whether each place has a network of its own.
    pub fn is_isolated(&self) -> bool {
        self.isolated
    }

    pub fn namespace(&self, place: Ns) -> &Namespace {
        match place {
            Ns::Clients => &self.clients,
            Ns::Pop => &self.pop,
            Ns::Backends => &self.backends,
        }
    }

    /// Starts a thread inside `place`.
    pub fn thread_in<T: Send + 'static>(&self, place: Ns, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        self.namespace(place).spawn(work)
    }

    /// Runs `work` inside `place` and waits for it.
    pub fn run_in<T: Send>(&self, place: Ns, work: impl FnOnce() -> T + Send) -> T {
        self.namespace(place).run(work)
    }

    /// Makes `command` start inside `place`.
    pub fn command_in<'a>(&self, place: Ns, command: &'a mut Command) -> &'a mut Command {
        self.namespace(place).place(command)
    }

    /// The `n`-th client without a country (up to 65,000 of them).
    pub fn client(&self, n: u16) -> IpAddr {
        if self.isolated { address::client(n) } else { address::loopback_client(n) }
    }

    /// The `n`-th IPv6 client, in a /64 of its own.
    pub fn client_v6(&self, n: u16) -> IpAddr {
        address::client_v6(n)
    }

    /// The `host`-th client (1 to 254) of a country.
    pub fn client_of(&self, country: Country, host: u8) -> IpAddr {
        if self.isolated { country.v4(host) } else { country.loopback(host) }
    }

    /// Where clients reach the POP.
    pub fn pop(&self) -> IpAddr {
        if self.isolated { address::POP } else { IpAddr::from([127, 0, 0, 1]) }
    }

    pub fn pop_v6(&self) -> IpAddr {
        address::POP_V6
    }

    /// Address of the `n`-th backend.
    pub fn backend(&self, n: u8) -> IpAddr {
        if self.isolated { address::backend(n) } else { address::loopback_backend(n) }
    }

    pub fn backend_v6(&self, n: u8) -> IpAddr {
        address::backend_v6(n)
    }

    /// What `geo_override` must say so that `client_of` resolves; empty where the geo database does it.
    pub fn geo_override(&self) -> String {
        if self.isolated {
            return String::new();
        }
        COUNTRIES.map(Country::loopback_override).join(",")
    }

    /// Makes a backend's address swallow every packet, as a host that died or a firewall that drops does.
    pub fn mute(&self, backend: IpAddr) -> io::Result<()> {
        setup::ip(&self.backends, &format!("route add blackhole {backend} table local"))
    }

    /// Ends [`Lab::mute`]. A SYN that went unanswered is sent again by the POP's kernel after a second.
    pub fn unmute(&self, backend: IpAddr) -> io::Result<()> {
        setup::ip(&self.backends, &format!("route del blackhole {backend} table local"))
    }

    /// Gives all places the buffer limits of TCP that Linux has by default (`Documentation/networking/ip-sysctl.rst`:
    /// 6 MiB to receive, 4 MiB to send), whatever this host was tuned to: for measuring what connections take.
    pub fn default_buffers(&self) -> io::Result<()> {
        for place in [Ns::Clients, Ns::Pop, Ns::Backends] {
            self.run_in(place, || {
                std::fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 131072 6291456")?;
                std::fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 4194304")
            })?;
        }
        Ok(())
    }

    /// Takes the POP's loopback interface down: what it sends to itself does not arrive.
    pub fn cut_loopback(&self) -> io::Result<()> {
        setup::ip(&self.pop, "link set lo down")
    }

    /// Makes one backend far, the one that [`Delay::only`] names; for isolated labs and IPv4.
    pub fn delay(&self, late: Duration) -> io::Result<Delay> {
        Delay::start(&self.pop, &self.backends, address::POP_TO_BACKENDS, late)
    }

    /// Loses packets at random on all links of `place`, until the guard is dropped.
    pub fn lose(&self, place: Ns, at: Where, per_mille: u32) -> anyhow::Result<Loss> {
        Loss::start(self.namespace(place), setup::interfaces(place), at, per_mille)
    }
}

#[cfg(test)]
mod tests;
