//! What an address says about where its client is, before any database is asked. The table with the reason of each
//! range is in `docs/geography.md`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is to be done with an address to find out where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locality {
    /// Of a private or local network: the client is this POP's own.
    Private,
    /// Set aside for documents, tests and the like: nobody on the Internet has it, so no database is asked.
    Reserved,
    /// To be looked up; where an IPv6 address is a translated or tunnelled IPv4 one, the IPv4 address.
    Public(IpAddr),
}

/// A range: its first address and the length of its prefix.
type V4 = (Ipv4Addr, u32);
type V6 = (Ipv6Addr, u32);

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u32) -> V4 {
    (Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, c: u16, bits: u32) -> V6 {
    (Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), bits)
}

const PRIVATE_V4: [V4; 7] = [
    v4(0, 0, 0, 0, 8),      // "this network", RFC 791
    v4(10, 0, 0, 0, 8),     // RFC 1918
    v4(100, 64, 0, 0, 10),  // carrier-grade NAT, RFC 6598
    v4(127, 0, 0, 0, 8),    // loopback, RFC 1122
    v4(169, 254, 0, 0, 16), // link-local, RFC 3927
    v4(172, 16, 0, 0, 12),  // RFC 1918
    v4(192, 168, 0, 0, 16), // RFC 1918
];

const RESERVED_V4: [V4; 8] = [
    v4(192, 0, 0, 0, 24),    // IETF protocol assignments, RFC 6890
    v4(192, 0, 2, 0, 24),    // documentation, RFC 5737
    v4(192, 88, 99, 0, 24),  // former 6to4 relays, RFC 7526
    v4(198, 18, 0, 0, 15),   // benchmarks, RFC 2544
    v4(198, 51, 100, 0, 24), // documentation, RFC 5737
    v4(203, 0, 113, 0, 24),  // documentation, RFC 5737
    v4(224, 0, 0, 0, 4),     // multicast, RFC 5771
    v4(240, 0, 0, 0, 4),     // future use, and broadcast, RFC 1112
];

const PRIVATE_V6: [V6; 4] = [
    v6(0x64, 0xff9b, 1, 48), // translation of the operator's own, RFC 8215: where the IPv4 address is, only he knows
    v6(0xfc00, 0, 0, 7),     // unique local, RFC 4193
    v6(0xfe80, 0, 0, 10),    // link-local, RFC 4291
    v6(0xfec0, 0, 0, 10),    // former site-local, RFC 3879
];

const RESERVED_V6: [V6; 8] = [
    v6(0x100, 0, 0, 64),      // discard-only, RFC 6666
    v6(0x2001, 2, 0, 48),     // benchmarks, RFC 5180
    v6(0x2001, 0x10, 0, 28),  // former ORCHID, RFC 4843
    v6(0x2001, 0x20, 0, 28),  // ORCHIDv2, RFC 7343
    v6(0x2001, 0xdb8, 0, 32), // documentation, RFC 3849
    v6(0x3fff, 0, 0, 20),     // documentation, RFC 9637
    v6(0x5f00, 0, 0, 16),     // segment identifiers, RFC 9602
    v6(0xff00, 0, 0, 8),      // multicast, RFC 4291
];

/// IPv4 clients behind a stateless translator, RFC 6052.
const TRANSLATED: V6 = v6(0x64, 0xff9b, 0, 96);
/// RFC 3056.
const SIX_TO_FOUR: V6 = v6(0x2002, 0, 0, 16);
/// RFC 4380.
const TEREDO: V6 = v6(0x2001, 0, 0, 32);

impl Locality {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::of_v4(ip),
            IpAddr::V6(ip) => Self::of_v6(ip),
        }
    }

    fn of_v4(ip: Ipv4Addr) -> Self {
        if PRIVATE_V4.iter().any(|range| holds_v4(*range, ip)) {
            Self::Private
        } else if RESERVED_V4.iter().any(|range| holds_v4(*range, ip)) {
            Self::Reserved
        } else {
            Self::Public(ip.into())
        }
    }

    fn of_v6(ip: Ipv6Addr) -> Self {
        if ip.is_loopback() || ip.is_unspecified() || PRIVATE_V6.iter().any(|range| holds_v6(*range, ip)) {
            Self::Private
        } else if RESERVED_V6.iter().any(|range| holds_v6(*range, ip)) {
            Self::Reserved
        } else {
            tunnelled(ip).map_or(Self::Public(ip.into()), Self::of_tunnel)
        }
    }

    /// A tunnel from a private network says nothing: its address is as good as any other that nobody has.
    fn of_tunnel(ip: Ipv4Addr) -> Self {
        match Self::of_v4(ip) {
            Self::Private => Self::Reserved,
            other => other,
        }
    }
}

/// The IPv4 client that a stateless translator put into an IPv6 source address.
pub(super) fn translated(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    holds_v6(TRANSLATED, ip).then(|| Ipv4Addr::from_bits(ip.to_bits() as u32))
}

/// The IPv4 host at the client's end of a tunnel.
fn tunnelled(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    if holds_v6(SIX_TO_FOUR, ip) {
        Some(Ipv4Addr::from_bits((ip.to_bits() >> 80) as u32))
    } else if holds_v6(TEREDO, ip) {
        // The client's public address, all bits inverted so that no NAT on the way changes it.
        Some(Ipv4Addr::from_bits(!(ip.to_bits() as u32)))
    } else {
        None
    }
}

fn holds_v4((first, bits): V4, ip: Ipv4Addr) -> bool {
    (first.to_bits() ^ ip.to_bits()) >> (32 - bits) == 0
}

fn holds_v6((first, bits): V6, ip: Ipv6Addr) -> bool {
    (first.to_bits() ^ ip.to_bits()) >> (128 - bits) == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use crate::domain::{ClientAddr, Locality};

    fn locality(text: &str) -> Locality {
        ClientAddr::new(text.parse().unwrap()).locality()
    }

    #[test]
    fn private_and_local_addresses_are_this_pops_own() {
        for text in [
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.1.9",
            "169.254.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.255.1",
            "::",
            "::1",
            "fc00::1",
            "fdaa::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "64:ff9b:1::1",
            "64:ff9b:1:ffff::1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::127.0.0.1",
        ] {
            assert_eq!(locality(text), Locality::Private, "{text}");
        }
    }

    #[test]
    fn ranges_of_documents_and_tests_are_nobodys() {
        for text in [
            "192.0.0.1",
            "192.0.2.1",
            "198.51.100.255",
            "203.0.113.9",
            "198.18.0.1",
            "198.19.255.255",
            "192.88.99.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "2001:db8::1",
            "3fff::1",
            "3fff:fff::1",
            "2001:2::1",
            "2001:20::1",
            "2001:2f:ffff::",
            "100::1",
            "5f00::1",
            "ff02::1",
            "64:ff9b::192.0.2.1",
        ] {
            assert_eq!(locality(text), Locality::Reserved, "{text}");
        }
    }

    #[test]
    fn all_others_are_looked_up() {
        for text in [
            "1.0.0.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "192.0.3.1",
            "198.17.255.255",
            "198.20.0.0",
            "200.160.2.3",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2001:db9::1",
            "2001:30::1",
            "3fff:1000::1",
            "64:ff9b:2::1",
            "100:0:0:1::",
        ] {
            assert_eq!(locality(text), Locality::Public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn an_ipv4_client_is_looked_up_by_its_ipv4_address_however_it_came() {
        let client = Locality::Public("200.160.2.3".parse().unwrap());
        // Mapped, translated, 6to4, Teredo (200.160.2.3 inverted is 37.5f.fd.fc).
        for text in ["::ffff:200.160.2.3", "64:ff9b::200.160.2.3", "2002:c8a0:203:1::9", "2001:0:5ef5:79fd::375f:fdfc"]
        {
            assert_eq!(locality(text), client, "{text}");
        }
        assert_eq!(locality("2002:a00:1::1"), Locality::Reserved, "6to4 of a private network is nobody's");
    }
}
