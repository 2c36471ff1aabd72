//! Prefixes as operators write them: an address that stands for itself, or an address and a number of bits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why a text is no prefix. To be said after the name of what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPrefix {
    #[error("{0:?} is neither an IP address nor a prefix such as 203.0.113.0/24")]
    Text(String),
    #[error("{found} has bits set beyond its prefix: write {meant}")]
    Bits { found: IpNet, meant: IpNet },
    #[error(
        "{0} is every IPv4 address, for these count as the IPv4 addresses they are: write 0.0.0.0/0 if that is meant"
    )]
    AllIpv4(Ipv6Net),
    #[error(
        "{found} holds nobody, for those in {inside} count as the IPv4 addresses they are: write their IPv4 prefix"
    )]
    Nobody { found: Ipv6Net, inside: Ipv6Net },
}

/// IPv4 addresses in IPv6 form, RFC 4291, and the prefix around them in which there is nothing else.
const MAPPED: (Ipv6Net, Ipv6Net) = (net([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), net([0, 0, 0, 0, 0, 0x8000, 0, 0], 81));
/// Likewise those that are translated, RFC 6052. The next /48 is for networks' own translation, RFC 8215.
const TRANSLATED: (Ipv6Net, Ipv6Net) =
    (net([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), net([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 48));

const fn net([a, b, c, d, e, f, g, h]: [u16; 8], bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), bits)
}

/// A prefix of addresses that are connected to, or from, as they are. IPv4 addresses in IPv6 form are IPv4 ones.
pub fn parse_prefix(text: &str) -> Result<IpNet, BadPrefix> {
    in_ipv4(parsed(text)?, &[MAPPED])
}

/// A prefix of clients, whose addresses are those that [`ClientAddr`](super::ClientAddr) has: translated ones are IPv4,
/// too.
pub fn parse_client_prefix(text: &str) -> Result<IpNet, BadPrefix> {
    in_ipv4(parsed(text)?, &[MAPPED, TRANSLATED])
}

fn parsed(text: &str) -> Result<IpNet, BadPrefix> {
    let bad = || BadPrefix::Text(text.chars().take(60).collect());
    let found = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| bad())?;
    match found.trunc() {
        meant if meant != found => Err(BadPrefix::Bits { found, meant }),
        net => Ok(net),
    }
}

/// The IPv4 prefix that stands in one of these ranges of IPv6. All of a range is hardly ever meant for all of IPv4, and a
/// prefix around it holds nobody.
fn in_ipv4(net: IpNet, ranges: &[(Ipv6Net, Ipv6Net)]) -> Result<IpNet, BadPrefix> {
    let IpNet::V6(found) = net else { return Ok(net) };
    for (inside, around) in ranges {
        if found == *inside {
            return Err(BadPrefix::AllIpv4(found));
        }
        if inside.contains(&found) {
            let ip = Ipv4Addr::from_bits(found.network().to_bits() as u32);
            return Ok(Ipv4Net::new(ip, found.prefix_len() - inside.prefix_len()).map_or(net, IpNet::V4));
        }
        if found.contains(inside) && around.contains(&found) {
            return Err(BadPrefix::Nobody { found, inside: *inside });
        }
    }
    Ok(net)
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

    /// Rules and trust for all of IPv4 must not come of a prefix that was meant for a few.
    #[test]
    fn a_range_that_stands_for_ipv4_is_refused_as_a_whole() {
        let why = |text| parse_client_prefix(text).unwrap_err().to_string();
        for text in ["::ffff:0:0/96", "::ffff:0.0.0.0/96", "64:ff9b::/96"] {
            assert!(why(text).ends_with("write 0.0.0.0/0 if that is meant"), "{text}: {}", why(text));
        }
        for text in ["64:ff9b::/64", "64:ff9b::/95", "64:ff9b::/48", "::fffe:0:0/95", "::8000:0:0/81"] {
            assert!(why(text).contains("holds nobody"), "{text}: {}", why(text));
        }
        assert!(parse_prefix("::ffff:0:0/96").is_err() && parse_prefix("::fffe:0:0/95").is_err());
        // Who connects, or is connected to, has that address on the socket.
        assert!(parse_prefix("64:ff9b::/96").is_ok() && parse_prefix("64:ff9b::/64").is_ok());
        for text in ["0.0.0.0/0", "::/0", "::/64", "64:ff9b::/47", "64:ff9b:1::/48", "64:ff9b::/97", "::ffff:0:0/97"] {
            assert!(parse_client_prefix(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_said_with_the_remedy() {
        assert!(parse_prefix("lan").unwrap_err().to_string().starts_with("\"lan\" is neither"));
        assert!(parse_prefix("203.0.113.7/24").unwrap_err().to_string().ends_with("write 203.0.113.0/24"));
    }
}
