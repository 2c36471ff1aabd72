//! Where a client is, by whom it is known best: the operator's overrides, the address itself, the geo data.

use super::ports::{GeoResolver, GeoSource};
use crate::domain::{ClientAddr, CountryCode, GeoPlace, Locality, Overrides, Position, Region, Snapshot};

/// Where a client is.
#[derive(Debug, Clone, PartialEq)]
pub struct Location {
    pub country: Option<CountryCode>,
    /// `None`: nobody knows; the client is served as one of this POP's.
    pub region: Option<Region>,
    /// Of the client itself, where the geo data has it.
    pub position: Option<Position>,
    pub source: GeoSource,
}

/// Who is asked.
#[allow(missing_debug_implementations, reason = "ports need not be printable")]
pub struct Locator<'a> {
    pub geo: &'a dyn GeoResolver,
    /// The overrides of the settings; those of the routing database are the snapshot's.
    pub overrides: &'a Overrides,
    pub snapshot: &'a Snapshot,
    pub pop_region: &'a Region,
}

impl Locator<'_> {
    /// An override outranks everything, so that private addresses can be given a place, too. Private clients are this
    /// POP's own.
    pub fn locate(&self, client: ClientAddr) -> Location {
        if let Some(place) = self.overridden(client) {
            return self.at(place);
        }
        let nowhere = |source| Location { country: None, region: None, position: None, source };
        match client.locality() {
            Locality::Private => Location { region: Some(self.pop_region.clone()), ..nowhere(GeoSource::Private) },
            Locality::Reserved => nowhere(GeoSource::Reserved),
            Locality::Public(ip) => {
                let found = self.geo.locate(ip);
                let region = self.snapshot.regions().region_at(found.country, found.position);
                let known = found.country.is_some() || found.position.is_some();
                let source = if known { GeoSource::Database } else { GeoSource::Unknown };
                Location { country: found.country, region: region.cloned(), position: found.position, source }
            }
        }
    }

    /// The longest prefix counts; of two so long, that of the routing database, which changes while the daemon runs.
    fn overridden(&self, client: ClientAddr) -> Option<&GeoPlace> {
        let (here, there) = (self.overrides.at(client), self.snapshot.overrides().at(client));
        // Of equals the last one is the greatest.
        here.into_iter().chain(there).max_by_key(|(bits, _)| *bits).map(|(_, place)| place)
    }

    fn at(&self, place: &GeoPlace) -> Location {
        let of_country = || self.snapshot.regions().region_at(place.country, None).cloned();
        Location {
            country: place.country,
            region: place.region.clone().or_else(of_country),
            position: None,
            source: GeoSource::Override,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use std::net::IpAddr;

    use super::*;
    use crate::application::ports::GeoAnswer;
    use crate::domain::testing::region;
    use crate::domain::{GeoOverride, Regions, World};

    /// Knows the addresses below 2.0.0.0 to be in Brazil, at São Paulo.
    struct Geo;

    impl GeoResolver for Geo {
        fn locate(&self, ip: IpAddr) -> GeoAnswer {
            let known = matches!(ip, IpAddr::V4(ip) if ip.octets()[0] < 2);
            GeoAnswer {
                country: known.then(|| CountryCode::parse("BR").unwrap()),
                position: known.then(|| Position::new(-23.55, -46.63).unwrap()),
            }
        }
    }

    fn overrides(list: &[(&str, &str)]) -> Overrides {
        Overrides::new(list.iter().map(|(prefix, place)| GeoOverride {
            prefix: crate::domain::parse_client_prefix(prefix).unwrap(),
            place: GeoPlace::parse(place).unwrap(),
        }))
    }

    fn locate(ip: &str) -> (Option<String>, Option<String>, GeoSource) {
        let world = World {
            overrides: overrides(&[("9.0.0.0/8", "JP"), ("9.9.0.0/16", "region:us")]),
            ..World::from(Regions::default())
        };
        let locator = Locator {
            geo: &Geo,
            overrides: &overrides(&[("9.0.0.0/8", "DE"), ("9.9.9.0/24", "region:lab"), ("10.1.0.0/16", "PT")]),
            snapshot: &Snapshot::new(1, Vec::new(), world),
            pop_region: &region("eu"),
        };
        let found = locator.locate(ClientAddr::new(ip.parse().unwrap()));
        (found.country.map(|code| code.to_string()), found.region.map(|region| region.to_string()), found.source)
    }

    #[test]
    fn the_operators_word_outranks_the_address_and_the_address_the_data() {
        let known = |country: Option<&str>, region: Option<&str>, source| {
            (country.map(str::to_owned), region.map(str::to_owned), source)
        };
        for (ip, want) in [
            ("1.2.3.4", known(Some("BR"), Some("sa"), GeoSource::Database)),
            ("2002:102:304::1", known(Some("BR"), Some("sa"), GeoSource::Database)),
            ("8.8.8.8", known(None, None, GeoSource::Unknown)),
            ("9.1.1.1", known(Some("JP"), Some("ap"), GeoSource::Override)),
            ("9.9.1.1", known(None, Some("us"), GeoSource::Override)),
            ("9.9.9.1", known(None, Some("lab"), GeoSource::Override)),
            ("10.1.2.3", known(Some("PT"), Some("eu"), GeoSource::Override)),
            ("10.2.2.3", known(None, Some("eu"), GeoSource::Private)),
            ("192.0.2.1", known(None, None, GeoSource::Reserved)),
        ] {
            assert_eq!(locate(ip), want, "{ip}");
        }
    }
}
