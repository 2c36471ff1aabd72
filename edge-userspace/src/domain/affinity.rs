//! Who counts as the same client: the key under which a client's backend is remembered.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{AppName, ClientAddr};

/// A client address cut to a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientPrefix {
    ip: IpAddr,
    bits: u8,
}

impl ClientPrefix {
    /// Whatever is set beyond the prefix is dropped.
    pub fn new(ip: IpAddr, bits: u8) -> Result<Self, PrefixError> {
        let prefix = match ip {
            IpAddr::V4(_) => AffinityPrefix::new(bits, 128)?,
            IpAddr::V6(_) => AffinityPrefix::new(32, bits)?,
        };
        Ok(prefix.cut(ip))
    }

    pub fn ip(self) -> IpAddr {
        self.ip
    }

    pub fn bits(self) -> u8 {
        self.bits
    }

    pub fn net(self) -> IpNet {
        // The length fits the family: nobody can make another one.
        IpNet::new(self.ip, self.bits).unwrap_or_else(|_| self.ip.into())
    }

    /// Address (IPv4 as IPv4-mapped IPv6) and length, in network order.
    pub(super) fn octets(&self) -> [u8; 17] {
        let address = match self.ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let mut octets = [0; 17];
        let (prefix, length) = octets.split_at_mut(16);
        prefix.copy_from_slice(&address.octets());
        length.fill(self.bits);
        octets
    }
}

impl fmt::Display for ClientPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

/// Affinity is per app and client prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BindingKey {
    pub app: AppName,
    pub client: ClientPrefix,
}

/// Why a number isn't a prefix length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("affinity prefix /{bits} is too long for {family}: use 0 to {max}")]
pub struct PrefixError {
    bits: u8,
    family: &'static str,
    max: u8,
}

/// How much of an address identifies a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffinityPrefix {
    v4: u8,
    v6: u8,
}

impl Default for AffinityPrefix {
    /// A whole IPv4 address; the /64 that one IPv6 host draws its addresses from.
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl AffinityPrefix {
    pub fn new(v4: u8, v6: u8) -> Result<Self, PrefixError> {
        if v4 > 32 {
            return Err(PrefixError { bits: v4, family: "IPv4", max: 32 });
        }
        if v6 > 128 {
            return Err(PrefixError { bits: v6, family: "IPv6", max: 128 });
        }
        Ok(Self { v4, v6 })
    }

    pub fn key(&self, app: &AppName, client: ClientAddr) -> BindingKey {
        BindingKey { app: app.clone(), client: self.cut(client.ip()) }
    }

    /// The prefix that stands for a client.
    pub fn prefix(&self, client: ClientAddr) -> ClientPrefix {
        self.cut(client.ip())
    }

    fn cut(&self, ip: IpAddr) -> ClientPrefix {
        match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.v4)).unwrap_or(0);
                ClientPrefix { ip: Ipv4Addr::from_bits(ip.to_bits() & mask).into(), bits: self.v4 }
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.v6)).unwrap_or(0);
                ClientPrefix { ip: Ipv6Addr::from_bits(ip.to_bits() & mask).into(), bits: self.v6 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn prefix(affinity: AffinityPrefix, client: &str) -> String {
        let key = affinity.key(&AppName::parse("a").unwrap(), ClientAddr::new(client.parse().unwrap()));
        key.client.to_string()
    }

    #[test]
    fn clients_are_cut_to_their_prefix() {
        let default = AffinityPrefix::default();
        assert_eq!(prefix(default, "192.0.2.7"), "192.0.2.7/32");
        assert_eq!(prefix(default, "2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(prefix(AffinityPrefix::new(24, 128).unwrap(), "192.0.2.7"), "192.0.2.0/24");
        assert_eq!(prefix(AffinityPrefix::new(0, 0).unwrap(), "192.0.2.7"), "0.0.0.0/0");
        assert_eq!(prefix(AffinityPrefix::new(0, 0).unwrap(), "2001:db8::1"), "::/0");
    }

    #[test]
    fn impossible_prefixes_are_refused() {
        assert!(AffinityPrefix::new(33, 64).is_err());
        assert!(AffinityPrefix::new(32, 129).is_err());
    }
}
