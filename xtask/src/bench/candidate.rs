//! Who is measured, and how each is started.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::peers::{self, Peer};
use super::place::Place;
use super::workload::{Group, Shape};
use crate::lab::{Config, Daemon};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Candidate {
    /// No proxy: the limit.
    Direct,
    Haproxy,
    HaproxySplice,
    Nginx,
    /// `tokio::io::copy_bidirectional` with its defaults.
    TokioCopy,
    Copy,
    Splice,
    Sockmap,
    Auto,
    /// `auto` with the backend marked as `same_host`.
    SameHost,
}

pub(super) const CANDIDATES: [Candidate; 10] = [
    Candidate::Direct,
    Candidate::Haproxy,
    Candidate::HaproxySplice,
    Candidate::Nginx,
    Candidate::TokioCopy,
    Candidate::Copy,
    Candidate::Splice,
    Candidate::Sockmap,
    Candidate::Auto,
    Candidate::SameHost,
];

impl Candidate {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::TokioCopy => "tokio-copy",
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Auto => "auto",
            Self::SameHost => "same-host",
        }
    }

    /// Whether it takes part in the workloads of that group.
    pub(super) fn is_in(self, group: Group) -> bool {
        match group {
            Group::Remote => self != Self::SameHost,
            Group::Local => {
                matches!(self, Self::Direct | Self::Copy | Self::Splice | Self::Sockmap | Self::Auto | Self::SameHost)
            }
        }
    }

    /// Whether it comes from a package of the system.
    pub(super) fn is_installed(self) -> bool {
        matches!(self, Self::Haproxy | Self::HaproxySplice | Self::Nginx)
    }

    /// The setting `forwarder`, for ours.
    pub(super) fn forwarder(self) -> Option<&'static str> {
        match self {
            Self::Copy => Some("copy"),
            Self::Splice => Some("splice"),
            Self::Sockmap => Some("sockmap"),
            Self::Auto | Self::SameHost => Some("auto"),
            _ => None,
        }
    }

    /// Starts it in `place`, in front of the backend.
    pub(super) fn start(self, place: &Place) -> Result<Running> {
        let (haproxy, splice) = (peers::haproxy, true);
        let proxy = match self {
            Self::Direct => return Ok(Running { addr: place.backend(), proxy: None }),
            Self::Haproxy => Proxy::Peer(haproxy(place, !splice)?),
            Self::HaproxySplice => Proxy::Peer(haproxy(place, splice)?),
            Self::Nginx => Proxy::Peer(peers::nginx(place)?),
            Self::TokioCopy => Proxy::Peer(peers::tokio_copy(place)?),
            Self::Copy | Self::Splice | Self::Sockmap | Self::Auto | Self::SameHost => {
                Proxy::Daemon(Box::new(self.daemon(place)?))
            }
        };
        Ok(Running { addr: proxy.addr(place), proxy: Some(proxy) })
    }

    fn daemon(self, place: &Place) -> Result<Daemon> {
        let forwarder = self.forwarder().unwrap_or("auto");
        let database: &Path = place.database(self == Self::SameHost)?;
        // The others log no connections either.
        let mut config = Config::new(place.binary(), database).set("forwarder", forwarder).set("access_log", false);
        // As it comes; the lab's own is for tests, which are in a hurry.
        config = config.set("db_reload_secs", 5);
        if let Ok(cgroups) = place.cgroups() {
            config = config.cgroup(cgroups.daemon());
        }
        if self == Self::SameHost {
            config = config.set("same_host_cgroup", place.cgroups()?.applications().display());
        }
        let daemon = Daemon::start(place.lab(), &config)?;
        let status = daemon.status()?;
        let active = status.text("/forwarder/active").unwrap_or_default();
        let kernel_path = status.0.pointer("/forwarder/kernel_path").and_then(serde_json::Value::as_bool);
        if active != forwarder || (self == Self::Sockmap && kernel_path == Some(false)) {
            let why = status.text("/forwarder/why").unwrap_or("it does not say why");
            bail!("the daemon does not use {forwarder} but {active}: {why}");
        }
        if self == Self::SameHost
            && let Some(why) = status.text("/forwarder/same_host/why")
        {
            bail!("the daemon does not hand bytes over between applications of this host: {why}");
        }
        Ok(daemon)
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Candidate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || CANDIDATES.map(Self::name).join(", ");
        let found = CANDIDATES.into_iter().find(|candidate| candidate.name() == text);
        found.ok_or_else(|| format!("no candidate is called {text}; there are {}", names()))
    }
}

/// A candidate that accepts clients.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) addr: SocketAddr,
    proxy: Option<Proxy>,
}

#[derive(Debug)]
enum Proxy {
    Daemon(Box<Daemon>),
    Peer(Peer),
}

impl Proxy {
    fn addr(&self, place: &Place) -> SocketAddr {
        match self {
            Self::Daemon(daemon) => daemon.addr(),
            Self::Peer(_) => place.peer(),
        }
    }
}

impl Running {
    /// The first process of the proxy; others may be its children.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.proxy {
            None => None,
            Some(Proxy::Daemon(daemon)) => Some(daemon.pid()),
            Some(Proxy::Peer(peer)) => Some(peer.pid()),
        }
    }

    /// Of ours the daemon.
    pub(super) fn daemon(&self) -> Option<&Daemon> {
        match &self.proxy {
            Some(Proxy::Daemon(daemon)) => Some(daemon),
            Some(Proxy::Peer(_)) | None => None,
        }
    }

    /// Why the figures are not those of splicing, where another proxy was to splice and did not.
    pub(super) fn unspliced(&self, candidate: Candidate, shape: Shape) -> Result<Option<String>> {
        let bulk = matches!(shape, Shape::Bulk { .. });
        let Some(Proxy::Peer(peer)) = self.proxy.as_ref().filter(|_| bulk && candidate == Candidate::HaproxySplice)
        else {
            return Ok(None);
        };
        Ok((peer.spliced()? == 0).then(|| "no figures: HAProxy has not spliced a byte".to_owned()))
    }

    /// What is wrong with the proxy after the work: corrupted connections, a forwarder that was switched off.
    pub(super) fn complaint(&self) -> Option<String> {
        let messages = self.daemon()?.messages();
        messages.lines().find(|line| line.contains("ERROR") || line.contains("\"error\"")).map(str::to_owned)
    }
}
