//! Addresses by role: the client's identity, and where a backend listens.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Serialize, Serializer};

use super::locality::{Locality, translated};

/// The address a client is known by: for geography, affinity, limits and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientAddr(IpAddr);

impl ClientAddr {
    /// An IPv4 client that arrives on an IPv6 socket (`::ffff:a.b.c.d`), or through a stateless translator
    /// (`64:ff9b::a.b.c.d`, RFC 6052), is the same client as on an IPv4 one. Otherwise all IPv4 clients behind a
    /// translator would share one /64, and with it one binding and one limit.
    pub fn new(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) => Self(translated(ip).map_or(ip.into(), IpAddr::V4)),
            ip => Self(ip),
        }
    }

    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// What the address by itself says about where the client is.
    pub fn locality(self) -> Locality {
        Locality::of(self.0)
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ClientAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Why an address can't be dialled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    #[error("port 0 can't be dialled: use 1 to 65535")]
    PortZero,
    #[error("address {0} is unspecified: name the backend's own address")]
    Unspecified(IpAddr),
    #[error("address {0} is link-local: it means something on one interface only; name an address that is routed")]
    LinkLocal(IpAddr),
    #[error("address {0} is multicast or broadcast: TCP needs a unicast address")]
    NotUnicast(IpAddr),
}

/// Where a backend listens: a unicast address and a port that isn't 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendAddr(SocketAddr);

impl BackendAddr {
    pub fn new(ip: IpAddr, port: u16) -> Result<Self, AddrError> {
        let ip = ip.to_canonical();
        if port == 0 {
            return Err(AddrError::PortZero);
        }
        if ip.is_unspecified() {
            return Err(AddrError::Unspecified(ip));
        }
        if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(AddrError::NotUnicast(ip));
        }
        // TCP takes an interface besides, which no column names. (169.254.0.0/16 is routed by addresses alone.)
        if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            return Err(AddrError::LinkLocal(ip));
        }
        Ok(Self(SocketAddr::new(ip, port)))
    }

    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for BackendAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn client(text: &str) -> ClientAddr {
        ClientAddr::new(text.parse().unwrap())
    }

    #[test]
    fn mapped_and_translated_clients_are_ipv4_clients() {
        assert_eq!(client("::ffff:192.0.2.7"), client("192.0.2.7"));
        assert_eq!(client("64:ff9b::192.0.2.7"), client("192.0.2.7"));
        assert_ne!(client("64:ff9b:1::192.0.2.7"), client("192.0.2.7"), "its layout is the operator's own");
    }

    #[test]
    fn a_backend_address_can_be_dialled() {
        let ok = |ip: &str, port| BackendAddr::new(ip.parse().unwrap(), port);
        assert_eq!(ok("::ffff:192.0.2.1", 80).unwrap().to_string(), "192.0.2.1:80");
        assert_eq!(ok("192.0.2.1", 0), Err(AddrError::PortZero));
        assert!(matches!(ok("0.0.0.0", 1), Err(AddrError::Unspecified(_))));
        assert!(matches!(ok("fe80::1", 1), Err(AddrError::LinkLocal(_))) && ok("169.254.169.254", 80).is_ok());
        for ip in ["224.0.0.1", "255.255.255.255", "ff02::1"] {
            assert!(matches!(ok(ip, 1), Err(AddrError::NotUnicast(_))), "{ip}");
        }
    }
}
