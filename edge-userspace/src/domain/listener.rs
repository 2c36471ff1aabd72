//! Where clients arrive, and which app that leads to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use super::{AppName, BadPrefix, ListenerId, NameError, SocketName, parse_prefix};

/// A listener, as the settings or the routing database describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerSpec {
    pub id: ListenerId,
    /// `None`: the only app of the database.
    pub app: Option<AppName>,
    pub spot: Spot,
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
    #[error("address {0}")]
    Address(BadPrefix),
    #[error("{0:?} is not ADDRESS:PORT, with a prefix or a range of ports where wanted, e.g. 203.0.113.0/24:8000-8999")]
    Place(String),
    #[error("address names a socket of the service manager, and {0}")]
    SocketName(#[from] NameError),
    #[error("last_port {last} is below port {first}: swap them")]
    PortsReversed { first: u16, last: u16 },
    #[error("server_name {0:?} is not a host name, with or without a leading `*.`")]
    ServerName(String),
    #[error("accept_proxy {0:?} is unknown: use off, optional or required")]
    AcceptProxy(String),
    #[error("proxy_from {0}")]
    ProxyFrom(BadPrefix),
    #[error("accept_proxy needs proxy_from, the prefixes whose word is taken for where a client comes from")]
    NobodyTrusted,
    #[error(
        "listener {other} has the same place with another accept_proxy or proxy_from: make them agree \
             (`edgeproxy db import` changes several rows at once)"
    )]
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

/// What a listener listens on. Listeners of the same spot share its sockets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spot {
    Place(Place),
    /// Sockets that the service manager hands over under this name, wherever they are bound.
    Handed(SocketName),
}

/// How the spot of a socket that is handed over is written.
const HANDED: &str = "fd:";

impl Spot {
    /// `fd:NAME`, or as [`Place::parse`].
    pub fn parse(text: &str) -> Result<Self, ListenerError> {
        match Self::parse_handed(text) {
            Some(handed) => handed,
            None => Place::parse(text).map(Self::Place),
        }
    }

    /// `None` where the text is not of the form `fd:NAME`.
    pub fn parse_handed(text: &str) -> Option<Result<Self, ListenerError>> {
        text.strip_prefix(HANDED).map(|name| Ok(Self::Handed(SocketName::parse(name)?)))
    }

    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Place(place) => Some(place),
            Self::Handed(_) => None,
        }
    }
}

impl From<Place> for Spot {
    fn from(place: Place) -> Self {
        Self::Place(place)
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(place) => place.fmt(f),
            Self::Handed(name) => write!(f, "{HANDED}{name}"),
        }
    }
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
        parse_prefix(text).map_err(ListenerError::Address)
    }

    /// As places are shown: an address or a prefix (that of IPv6 in brackets), a colon, a port or a range of ports.
    pub fn parse(text: &str) -> Result<Self, ListenerError> {
        let wrong = || ListenerError::Place(text.chars().take(60).collect());
        let (host, ports) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bracketed.is_none() && host.contains(':') {
            return Err(wrong());
        }
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
        let ports = PortRange::new(port(first)?, port(last)?)?;
        let prefix = Self::parse_prefix(bracketed.unwrap_or(host)).map_err(|why| match why {
            ListenerError::Address(BadPrefix::Text(_)) => wrong(),
            why => why,
        })?;
        Ok(Self { prefix, ports })
    }

    pub fn contains(&self, addr: SocketAddr) -> bool {
        self.prefix.contains(&addr.ip()) && self.ports.contains(addr.port())
    }

    pub fn specificity(&self) -> Specificity {
        Specificity { prefix_len: self.prefix.prefix_len(), fewer_ports: std::cmp::Reverse(self.ports.width()) }
    }

    /// Addresses and ports there are, as far as they can be counted.
    pub fn count(&self) -> u64 {
        let host_bits = u32::from(self.prefix.max_prefix_len() - self.prefix.prefix_len());
        let addresses = if self.prefix.prefix_len() == 0 { 1 } else { 1u64.checked_shl(host_bits).unwrap_or(u64::MAX) };
        addresses.saturating_mul(u64::from(self.ports.width()) + 1)
    }

    /// All of them: for places where they are few. The unspecified address counts as one.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        let all = self.prefix.prefix_len() == 0;
        let prefix = if all { self.prefix.addr().into() } else { self.prefix };
        let ports = self.ports;
        let hosts = match prefix {
            IpNet::V4(net) => ipnet::IpAddrRange::V4(ipnet::Ipv4AddrRange::new(net.network(), net.broadcast())),
            IpNet::V6(net) => ipnet::IpAddrRange::V6(ipnet::Ipv6AddrRange::new(net.network(), net.broadcast())),
        };
        hosts.flat_map(move |ip| (ports.first..=ports.last).map(move |port| SocketAddr::new(ip, port)))
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

    /// A client's word: a host name, and no wildcard.
    pub fn of_client(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?;
        Self::parse(name).ok().filter(|name| name.wildcard().is_none())
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
    fn places_are_read_as_they_are_shown() {
        for text in ["0.0.0.0:80", "[::]:80", "203.0.113.0/24:8000-8999", "[2001:db8::/32]:443", "[::1]:1-2"] {
            assert_eq!(Spot::parse(text).unwrap().to_string(), text);
        }
        for bad in
            ["", "80", "0.0.0.0", "0.0.0.0:", "::1:80", "2001:db8::/32:80", "1.2.3.4:70000", "h:1", "1.2.3.4:9-8"]
        {
            assert!(Spot::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Spot::parse("fd:web").unwrap(), Spot::Handed(SocketName::parse("web").unwrap()));
        assert!(Spot::parse("fd:").is_err());
    }

    #[test]
    fn addresses_are_counted_and_listed() {
        for (prefix, first, last, count) in [
            ("0.0.0.0", 1, 3, 3),
            ("203.0.113.4/30", 80, 81, 8),
            ("203.0.113.4", 80, 80, 1),
            ("2001:db8::/126", 80, 80, 4),
        ] {
            let place = place(prefix, first, last);
            assert_eq!((place.count(), place.addresses().count() as u64), (count, count), "{place}");
        }
        assert_eq!(place("2001:db8::/32", 1, 65_535).count(), u64::MAX);
        assert_eq!(place("203.0.113.4/30", 80, 80).addresses().next(), Some("203.0.113.4:80".parse().unwrap()));
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
