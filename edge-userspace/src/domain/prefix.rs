//! Prefixes as operators write them: an address that stands for itself, or an address and a number of bits.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::locality::translated;

/// Why a text is no prefix. To be said after the name of what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPrefix {
    #[error("{0:?} is neither an IP address nor a prefix such as 203.0.113.0/24")]
    Text(String),
    #[error("{found} has bits set beyond its prefix: write {meant}")]
    Bits { found: IpNet, meant: IpNet },
}

/// A prefix of addresses that are connected to, or from, as they are. IPv4 addresses in IPv6 form are IPv4 ones.
pub fn parse_prefix(text: &str) -> Result<IpNet, BadPrefix> {
    let bad = || BadPrefix::Text(text.chars().take(60).collect());
    let found = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| bad())?;
    match found.trunc() {
        meant if meant != found => Err(BadPrefix::Bits { found, meant }),
        net => Ok(in_ipv4(net, |ip| ip.to_ipv4_mapped())),
    }
}

/// A prefix of clients, whose addresses are those that [`ClientAddr`](super::ClientAddr) has: translated ones are IPv4,
/// too.
pub fn parse_client_prefix(text: &str) -> Result<IpNet, BadPrefix> {
    parse_prefix(text).map(of_clients)
}

/// The same prefix as clients' addresses have it.
pub(super) fn of_clients(net: IpNet) -> IpNet {
    in_ipv4(net, |ip| ip.to_ipv4_mapped().or_else(|| translated(ip)))
}

/// The IPv4 prefix that is inside, if `inner` finds one in the first address and the prefix reaches into it.
fn in_ipv4(net: IpNet, inner: impl Fn(Ipv6Addr) -> Option<std::net::Ipv4Addr>) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    let bits = v6.prefix_len().checked_sub(96);
    let v4 = bits.zip(inner(v6.network())).and_then(|(bits, ip)| Ipv4Net::new(ip, bits).ok());
    v4.map_or(net, IpNet::V4)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_form_is_the_prefix_that_addresses_are_compared_with() {
        for (text, plain, of_clients) in [
            ("203.0.113.7", "203.0.113.7/32", "203.0.113.7/32"),
            ("2001:db8::/32", "2001:db8::/32", "2001:db8::/32"),
            ("::ffff:203.0.113.0/120", "203.0.113.0/24", "203.0.113.0/24"),
            ("::ffff:203.0.113.7", "203.0.113.7/32", "203.0.113.7/32"),
            ("64:ff9b::203.0.113.0/120", "64:ff9b::cb00:7100/120", "203.0.113.0/24"),
            ("::/0", "::/0", "::/0"),
        ] {
            assert_eq!(parse_prefix(text).unwrap().to_string(), plain);
            assert_eq!(parse_client_prefix(text).unwrap().to_string(), of_clients);
        }
    }

    #[test]
    fn what_is_no_prefix_is_said_with_the_remedy() {
        assert!(parse_prefix("lan").unwrap_err().to_string().starts_with("\"lan\" is neither"));
        assert!(parse_prefix("203.0.113.7/24").unwrap_err().to_string().ends_with("write 203.0.113.0/24"));
    }
}
