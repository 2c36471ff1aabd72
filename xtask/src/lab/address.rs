//! Who has which address in a lab.
//!
//! Whole prefixes belong to the clients and to the backends ("AnyIP": a `local` route on `lo`), so thousands of client
//! addresses cost nothing. The countries' prefixes are real public ones, so the embedded geo database resolves them;
//! the packets never leave the machine, since no namespace has a route out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A country with prefixes the embedded geo database places there: a /24 and a /32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Country {
    pub code: &'static str,
    v4: [u8; 3],
    v6: [u16; 2],
    /// Third octet of the loopback addresses that stand for the country where namespaces can't be made.
    loopback: u8,
}

pub const BRAZIL: Country = Country { code: "BR", v4: [200, 160, 2], v6: [0x2001, 0x12ff], loopback: 1 };
pub const GERMANY: Country = Country { code: "DE", v4: [193, 99, 144], v6: [0x2a02, 0x02e0], loopback: 2 };
pub const UNITED_STATES: Country = Country { code: "US", v4: [8, 8, 8], v6: [0x2001, 0x4860], loopback: 3 };
pub const JAPAN: Country = Country { code: "JP", v4: [133, 11, 0], v6: [0x2001, 0x0200], loopback: 4 };
pub const SOUTH_AFRICA: Country = Country { code: "ZA", v4: [196, 25, 1], v6: [0x2c0f, 0xfc00], loopback: 5 };

pub const COUNTRIES: [Country; 5] = [BRAZIL, GERMANY, UNITED_STATES, JAPAN, SOUTH_AFRICA];

impl Country {
    /// The `host`-th address of the country's /24 (1 to 254).
    pub fn v4(self, host: u8) -> IpAddr {
        let [a, b, c] = self.v4;
        Ipv4Addr::new(a, b, c, host).into()
    }

    pub fn v6(self, host: u16) -> IpAddr {
        let [a, b] = self.v6;
        Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, host).into()
    }

    pub(super) fn loopback(self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, 1, self.loopback, host).into()
    }

    /// What the operator's geo override must say for the loopback stand-in.
    pub(super) fn loopback_override(self) -> String {
        format!("127.1.{}.0/24={}", self.loopback, self.code)
    }

    pub(super) fn prefixes(self) -> [String; 2] {
        [format!("{}/24", self.v4(0)), format!("{}/32", self.v6(0))]
    }
}

/// The `n`-th address of a /16, leaving out .0 and .255 so that no reader wonders.
fn nth(a: u8, b: u8, n: u16) -> IpAddr {
    let (high, low) = (n / 254, n % 254 + 1);
    Ipv4Addr::new(a, b, u8::try_from(high).unwrap_or(u8::MAX), u8::try_from(low).unwrap_or(1)).into()
}

/// A client without a country: private addresses count as the POP's own.
pub(super) fn client(n: u16) -> IpAddr {
    nth(10, 64, n)
}

/// Each IPv6 client has its own /64, the default key of affinity.
pub(super) fn client_v6(n: u16) -> IpAddr {
    Ipv6Addr::new(0xfd64, 0, 0, n, 0, 0, 0, 1).into()
}

pub(super) fn backend(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 66, 0, n).into()
}

pub(super) fn backend_v6(n: u8) -> IpAddr {
    Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, n.into()).into()
}

pub(super) fn loopback_client(n: u16) -> IpAddr {
    nth(127, 64, n)
}

pub(super) fn loopback_backend(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 66, 0, n).into()
}

/// A link of the POP: the POP's end first, then the other.
pub(super) struct Link {
    pub(super) v4: [&'static str; 2],
    pub(super) v6: [&'static str; 2],
    /// Fixed and known to both ends, so that packet loss does not hit the search for a neighbour.
    pub(super) mac: [&'static str; 2],
}

pub(super) const TO_CLIENTS: Link = Link {
    v4: ["10.63.0.1", "10.63.0.2"],
    v6: ["fd63::1", "fd63::2"],
    mac: ["02:00:00:00:63:01", "02:00:00:00:63:02"],
};
pub(super) const TO_BACKENDS: Link = Link {
    v4: ["10.65.0.1", "10.65.0.2"],
    v6: ["fd65::1", "fd65::2"],
    mac: ["02:00:00:00:65:01", "02:00:00:00:65:02"],
};

pub(super) const POP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 63, 0, 1));
pub(super) const POP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd63, 0, 0, 0, 0, 0, 0, 1));

/// Where backends see the POP.
pub(super) const POP_TO_BACKENDS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 65, 0, 1));

/// Prefixes routed from the POP to the clients and to the backends.
pub(super) fn client_prefixes() -> Vec<String> {
    let mut prefixes = vec!["10.64.0.0/16".to_owned(), "fd64::/32".to_owned()];
    prefixes.extend(COUNTRIES.iter().flat_map(|country| country.prefixes()));
    prefixes
}

pub(super) fn backend_prefixes() -> Vec<String> {
    vec!["10.66.0.0/16".to_owned(), "fd66::/64".to_owned()]
}
