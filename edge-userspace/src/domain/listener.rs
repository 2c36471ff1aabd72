//! Where clients arrive, and which app that leads to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use super::{AppName, ListenerId};

/// A listener, as the settings or the routing database describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSpec {
    pub id: ListenerId,
    /// `None`: the only app of the database.
    pub app: Option<AppName>,
    pub place: Place,
    /// TLS server names that lead here; empty: all that no other listener of the place names.
    pub server_names: Vec<ServerName>,
    pub accept_proxy: AcceptProxy,
    /// Who may send a PROXY header.
    pub proxy_from: Vec<IpNet>,
    /// Connections held at once; 0 is no limit.
    pub max_connections: u32,
}

/// Whether a connection begins with a PROXY header, which names the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceptProxy {
    /// What looks like one is payload.
    #[default]
    Off,
    /// Where there is one it counts.
    Optional,
    /// Without one the connection is refused.
    Required,
}

/// Why a row is no listener.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenerError {
    #[error("address {0:?} is neither an IP address nor a prefix such as 203.0.113.0/24")]
    Address(String),
    #[error("address {found} has bits set beyond its prefix: write {meant}")]
    BitsBeyondPrefix { found: IpNet, meant: IpNet },
    #[error("last_port {last} is below port {first}: swap them")]
    PortsReversed { first: u16, last: u16 },
    #[error("server_name {0:?} is not a host name, with or without a leading `*.`")]
    ServerName(String),
    #[error("accept_proxy {0:?} is unknown: use off, optional or required")]
    AcceptProxy(String),
    #[error("proxy_from holds {0:?}, which is neither an IP address nor a prefix")]
    Prefix(String),
    #[error("accept_proxy needs proxy_from, the prefixes whose word is taken for where a client comes from")]
    NobodyTrusted,
    #[error("listener {other} has the same place with another accept_proxy or proxy_from: make them agree")]
    ProxyDisagrees { other: ListenerId },
    #[error("listener {other} has the server name {name} at the same place already")]
    NameTaken { other: ListenerId, name: ServerName },
    #[error("listener {other} takes every server name at the same place already: give one of them server_name")]
    PlaceTaken { other: ListenerId },
}

impl AcceptProxy {
    pub const ALL: [Self; 3] = [Self::Off, Self::Optional, Self::Required];

    pub fn parse(text: &str) -> Result<Self, ListenerError> {
        let found = Self::ALL.into_iter().find(|accept| accept.as_str() == text);
        found.ok_or_else(|| ListenerError::AcceptProxy(text.chars().take(60).collect()))
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

/// Ports from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    pub fn new(first: u16, last: u16) -> Result<Self, ListenerError> {
        if last < first {
            return Err(ListenerError::PortsReversed { first, last });
        }
        Ok(Self { first, last })
    }

    pub fn first(self) -> u16 {
        self.first
    }

    pub fn last(self) -> u16 {
        self.last
    }

    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports there are besides the first.
    pub fn width(self) -> u16 {
        self.last - self.first
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.width() {
            0 => self.first.fmt(f),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Addresses and ports that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub prefix: IpNet,
    pub ports: PortRange,
}

/// The more specific of two places counts: the longer prefix, then the fewer ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    prefix_len: u8,
    fewer_ports: std::cmp::Reverse<u16>,
}

impl Place {
    /// One address and port; the unspecified address stands for all of its family.
    pub fn of(addr: SocketAddr) -> Self {
        let ports = PortRange { first: addr.port(), last: addr.port() };
        Self { prefix: all_or_one(addr.ip()), ports }
    }

    /// An address or a prefix; the unspecified address stands for all of its family.
    pub fn parse_prefix(text: &str) -> Result<IpNet, ListenerError> {
        if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(all_or_one(ip));
        }
        let net: IpNet = text.parse().map_err(|_| ListenerError::Address(text.chars().take(60).collect()))?;
        match net.trunc() {
            meant if meant != net => Err(ListenerError::BitsBeyondPrefix { found: net, meant }),
            net => Ok(net),
        }
    }

    pub fn contains(&self, addr: SocketAddr) -> bool {
        self.prefix.contains(&addr.ip()) && self.ports.contains(addr.port())
    }

    pub fn specificity(&self) -> Specificity {
        Specificity { prefix_len: self.prefix.prefix_len(), fewer_ports: std::cmp::Reverse(self.ports.width()) }
    }

    /// The address to bind, where one socket is enough: one port, and one address or all of a family.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let one = self.ports.width() == 0;
        let bindable = self.prefix.prefix_len() == self.prefix.max_prefix_len() || self.prefix.prefix_len() == 0;
        (one && bindable).then(|| SocketAddr::new(self.prefix.addr(), self.ports.first))
    }
}

fn all_or_one(ip: IpAddr) -> IpNet {
    let ip = ip.to_canonical();
    let bits = match ip {
        _ if ip.is_unspecified() => 0,
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    // The lengths are in range.
    IpNet::new(ip, bits).unwrap_or_else(|_| ip.into())
}

impl fmt::Display for Place {
    /// As an address and port, where it is one: `0.0.0.0:80`, `203.0.113.0/24:8000-8999`, `[2001:db8::/32]:443`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.socket_addr(), self.prefix) {
            (Some(addr), _) => addr.fmt(f),
            (None, IpNet::V4(net)) if net.prefix_len() == 32 => write!(f, "{}:{}", net.addr(), self.ports),
            (None, IpNet::V6(net)) if net.prefix_len() == 128 => write!(f, "[{}]:{}", net.addr(), self.ports),
            (None, IpNet::V4(net)) => write!(f, "{net}:{}", self.ports),
            (None, IpNet::V6(net)) => write!(f, "[{net}]:{}", self.ports),
        }
    }
}

/// A TLS server name (RFC 6066), or all names below one: `*.example.com`. In lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName(String);

/// Longest host name, in bytes (RFC 1035).
const MAX_HOST_NAME: usize = 253;

impl ServerName {
    /// Letters, digits, hyphens and underscores in labels joined by dots; the first label may be `*`.
    pub fn parse(text: &str) -> Result<Self, ListenerError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let host = name.strip_prefix("*.").unwrap_or(&name);
        let is_label = |label: &str| {
            let chars = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&label.len()) && label.chars().all(chars)
        };
        if host.len() > MAX_HOST_NAME || !host.split('.').all(is_label) {
            return Err(ListenerError::ServerName(text.chars().take(60).collect()));
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the `*`, dot included, of a name that stands for all below it.
    pub fn wildcard(&self) -> Option<&str> {
        self.0.strip_prefix('*')
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn place(prefix: &str, first: u16, last: u16) -> Place {
        Place { prefix: Place::parse_prefix(prefix).unwrap(), ports: PortRange::new(first, last).unwrap() }
    }

    #[test]
    fn places_are_shown_as_they_are_written() {
        for (place, shown) in [
            (place("0.0.0.0", 80, 80), "0.0.0.0:80"),
            (place("::", 80, 80), "[::]:80"),
            (place("203.0.113.0/24", 8000, 8999), "203.0.113.0/24:8000-8999"),
            (place("203.0.113.7", 8000, 8999), "203.0.113.7:8000-8999"),
            (place("2001:db8::/32", 443, 443), "[2001:db8::/32]:443"),
            (place("[2001:db8::1]", 443, 443), "[2001:db8::1]:443"),
            (place("::ffff:192.0.2.1", 1, 2), "192.0.2.1:1-2"),
        ] {
            assert_eq!(place.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_remedy() {
        assert!(matches!(Place::parse_prefix("host"), Err(ListenerError::Address(_))));
        let why = Place::parse_prefix("203.0.113.7/24").unwrap_err().to_string();
        assert!(why.ends_with("write 203.0.113.0/24"), "{why}");
        assert!(PortRange::new(10, 9).is_err());
    }

    #[test]
    fn the_longer_prefix_then_the_fewer_ports_are_more_specific() {
        let order = [
            place("0.0.0.0", 1, 65_535),
            place("0.0.0.0", 80, 80),
            place("203.0.113.0/24", 1, 65_535),
            place("203.0.113.0/24", 80, 90),
            place("203.0.113.7", 1, 65_535),
        ];
        assert!(order.windows(2).all(|pair| pair[0].specificity() < pair[1].specificity()));
    }

    #[test]
    fn server_names_are_host_names() {
        assert_eq!(ServerName::parse("WWW.Example.com.").unwrap().as_str(), "www.example.com");
        assert_eq!(ServerName::parse("*.example.com").unwrap().wildcard(), Some(".example.com"));
        for bad in ["", "*", "*.", "a..b", "a b", "*.*.example", "x*.example", &"a".repeat(64), &"a.".repeat(200)] {
            assert!(ServerName::parse(bad).is_err(), "{bad}");
        }
    }
}
