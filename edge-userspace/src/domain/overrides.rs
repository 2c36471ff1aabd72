//! The operator's word on where prefixes are.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{BadPrefix, ClientAddr, CountryCode, CountryError, NameError, Region};

/// Where clients of one prefix are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeoOverride {
    /// As clients' addresses have it.
    pub prefix: IpNet,
    pub place: GeoPlace,
}

/// A country, a region, or both: then the region routes, and the country is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeoPlace {
    pub country: Option<CountryCode>,
    pub region: Option<Region>,
}

/// Why a text is not an override.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    #[error("prefix {0}")]
    Prefix(#[from] BadPrefix),
    #[error("prefix {prefix} leads nowhere: give it a country, a region or both")]
    Nowhere { prefix: String },
    #[error(transparent)]
    Country(#[from] CountryError),
    #[error(transparent)]
    Region(#[from] NameError),
}

/// What a region is written with, so that it can't be taken for a country.
const REGION: &str = "region:";

impl GeoPlace {
    /// `BR`, or `region:eu`.
    pub fn parse(text: &str) -> Result<Self, OverrideError> {
        Ok(match text.strip_prefix(REGION) {
            Some(region) => Self { country: None, region: Some(Region::parse(region.trim())?) },
            None => Self { country: Some(CountryCode::parse(text)?), region: None },
        })
    }
}

impl fmt::Display for GeoOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place.region, self.place.country) {
            (Some(region), _) => write!(f, "{}={REGION}{region}", self.prefix),
            (None, Some(country)) => write!(f, "{}={country}", self.prefix),
            (None, None) => write!(f, "{}", self.prefix),
        }
    }
}

/// Overrides, found by the longest prefix that holds an address: one look for each length that occurs.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    v4: Vec<Length<Ipv4Net>>,
    v6: Vec<Length<Ipv6Net>>,
}

/// The prefixes of one length. The operator chooses them: nobody can choose them to collide.
#[derive(Debug, Clone)]
struct Length<N> {
    bits: u8,
    places: HashMap<N, GeoPlace, foldhash::fast::RandomState>,
}

impl<N> Length<N> {
    fn new(bits: u8) -> Self {
        Self { bits, places: HashMap::default() }
    }
}

impl Overrides {
    /// Of two with the same prefix the later counts.
    pub fn new(list: impl IntoIterator<Item = GeoOverride>) -> Self {
        let mut overrides = Self::default();
        for GeoOverride { prefix, place } in list {
            match prefix {
                IpNet::V4(net) => add(&mut overrides.v4, net.prefix_len(), net.trunc(), place),
                IpNet::V6(net) => add(&mut overrides.v6, net.prefix_len(), net.trunc(), place),
            }
        }
        overrides
    }

    /// The longest prefix that holds the client: its length, and where it is.
    pub fn at(&self, client: ClientAddr) -> Option<(u8, &GeoPlace)> {
        match client.ip() {
            IpAddr::V4(ip) => self.v4.iter().find_map(|length| {
                let net = Ipv4Net::new(ip, length.bits).ok()?.trunc();
                Some((length.bits, length.places.get(&net)?))
            }),
            IpAddr::V6(ip) => self.v6.iter().find_map(|length| {
                let net = Ipv6Net::new(ip, length.bits).ok()?.trunc();
                Some((length.bits, length.places.get(&net)?))
            }),
        }
    }

    /// The regions that prefixes are said to be in.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        let v4 = self.v4.iter().flat_map(|length| length.places.values());
        let v6 = self.v6.iter().flat_map(|length| length.places.values());
        v4.chain(v6).filter_map(|place| place.region.as_ref())
    }

    pub fn len(&self) -> usize {
        let count = |places: usize, more: usize| places + more;
        let v4 = self.v4.iter().map(|length| length.places.len()).fold(0, count);
        self.v6.iter().map(|length| length.places.len()).fold(v4, count)
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// Longest first.
fn add<N: Eq + std::hash::Hash>(lengths: &mut Vec<Length<N>>, bits: u8, net: N, place: GeoPlace) {
    let at = lengths.binary_search_by(|known| bits.cmp(&known.bits));
    let at = at.unwrap_or_else(|free| {
        lengths.insert(free, Length::new(bits));
        free
    });
    if let Some(length) = lengths.get_mut(at) {
        length.places.insert(net, place);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::domain::parse_client_prefix;

    fn over(prefix: &str, place: &str) -> GeoOverride {
        GeoOverride { prefix: parse_client_prefix(prefix).unwrap(), place: GeoPlace::parse(place).unwrap() }
    }

    fn at(overrides: &Overrides, ip: &str) -> Option<String> {
        let (bits, place) = overrides.at(ClientAddr::new(ip.parse().unwrap()))?;
        let place = place.region.as_ref().map(ToString::to_string).or(place.country.map(|code| code.to_string()));
        Some(format!("/{bits} {}", place.unwrap()))
    }

    #[test]
    fn the_longest_prefix_wins() {
        let overrides = Overrides::new([
            over("127.0.0.0/8", "US"),
            over("127.0.1.0/24", "BR"),
            over("127.0.1.7", "region:lab"),
            over("2001:4860::/32", "JP"),
            over("::/0", "DE"),
        ]);
        for (ip, want) in [
            ("127.0.1.9", Some("/24 BR")),
            ("127.0.2.9", Some("/8 US")),
            ("127.0.1.7", Some("/32 lab")),
            ("128.0.0.1", None),
            ("2001:4860:4860::8888", Some("/32 JP")),
            ("2001:4861::", Some("/0 DE")),
        ] {
            assert_eq!(at(&overrides, ip).as_deref(), want, "{ip}");
        }
        assert_eq!(overrides.len(), 5);
    }

    #[test]
    fn ipv4_prefixes_in_ipv6_form_hold_ipv4_clients() {
        let overrides = Overrides::new([over("::ffff:198.51.100.0/120", "PE"), over("64:ff9b::/97", "CL")]);
        for ip in ["198.51.100.7", "::ffff:198.51.100.7", "64:ff9b::198.51.100.7"] {
            assert_eq!(at(&overrides, ip).as_deref(), Some("/24 PE"), "{ip}");
        }
        assert_eq!(at(&overrides, "9.9.9.9").as_deref(), Some("/1 CL"));
        assert_eq!(at(&overrides, "2001:db8::1"), None);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(GeoPlace::parse("Brazil").unwrap_err().to_string().contains("two letters"));
        assert!(GeoPlace::parse("region:").unwrap_err().to_string().contains("empty"));
        assert_eq!(over("203.0.113.0/24", "region:eu").to_string(), "203.0.113.0/24=region:eu");
        assert_eq!(over("203.0.113.0/24", "br").to_string(), "203.0.113.0/24=BR");
    }
}
