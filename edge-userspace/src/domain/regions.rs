//! Regions: which countries belong to each, and how far apart they are.

use std::collections::HashMap;

use super::country::DEFAULT_REGIONS;
use super::{CountryCode, Region};

/// Mean radius of the Earth, in kilometres (IUGG).
const EARTH_RADIUS_KM: f64 = 6371.0088;

/// Where the default regions are: the cities where most of their networks meet (São Paulo, Ashburn, Frankfurt,
/// Singapore), as latitude and longitude in degrees.
const DEFAULT_POSITIONS: [(&str, f64, f64); 4] =
    [("sa", -23.55, -46.63), ("us", 39.04, -77.49), ("eu", 50.11, 8.68), ("ap", 1.35, 103.82)];

/// A point on the Earth, in degrees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Position {
    latitude: f64,
    longitude: f64,
}

impl Position {
    /// `None` unless latitude is within ±90 and longitude within ±180 degrees.
    pub fn new(latitude: f64, longitude: f64) -> Option<Self> {
        let valid = latitude.abs() <= 90.0 && longitude.abs() <= 180.0;
        valid.then_some(Self { latitude, longitude })
    }

    /// Great-circle distance in kilometres (haversine formula).
    pub fn distance_km(self, other: Self) -> f64 {
        let (lat1, lat2) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_lat = (lat2 - lat1) / 2.0;
        let half_lon = (other.longitude - self.longitude).to_radians() / 2.0;
        let h = half_lat.sin().powi(2) + lat1.cos() * lat2.cos() * half_lon.sin().powi(2);
        2.0 * EARTH_RADIUS_KM * h.sqrt().min(1.0).asin()
    }
}

/// A region as the operator describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct RegionSpec {
    pub name: Region,
    /// `None` keeps the default position of a default region.
    pub position: Option<Position>,
    /// Countries that belong here rather than to their default region.
    pub countries: Vec<CountryCode>,
}

/// All known regions. The four default ones are always known; the operator may move them, add others and give
/// countries to any.
#[derive(Debug, Clone)]
pub struct Regions {
    names: Vec<Region>,
    positions: Vec<Option<Position>>,
    index: HashMap<Region, usize>,
    /// Region of each country, by [`CountryCode::index`]; `u16::MAX` for codes that are no country.
    countries: Vec<u16>,
    /// Distance in kilometres between regions `a` and `b` at `a × names.len() + b`; NaN where one has no position.
    distances: Vec<f64>,
}

impl Default for Regions {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Regions {
    /// The default regions, changed and completed by `specs`; where two name the same country, the last wins.
    pub fn new(specs: &[RegionSpec]) -> Self {
        let mut regions = Self {
            names: Vec::new(),
            positions: Vec::new(),
            index: HashMap::new(),
            countries: vec![u16::MAX; 26 * 26],
            distances: Vec::new(),
        };
        for (name, latitude, longitude) in DEFAULT_POSITIONS {
            if let Ok(name) = Region::parse(name) {
                regions.place(&name, Position::new(latitude, longitude));
            }
        }
        for (name, countries) in DEFAULT_REGIONS {
            let Ok(name) = Region::parse(name) else { continue };
            regions.assign(&name, countries.split_whitespace().filter_map(|code| CountryCode::parse(code).ok()));
        }
        for spec in specs {
            regions.place(&spec.name, spec.position);
            regions.assign(&spec.name, spec.countries.iter().copied());
        }
        regions.measure();
        regions
    }

    fn place(&mut self, name: &Region, position: Option<Position>) {
        let Some(&at) = self.index.get(name) else {
            self.index.insert(name.clone(), self.names.len());
            self.names.push(name.clone());
            self.positions.push(position);
            return;
        };
        if let (Some(known), Some(_)) = (self.positions.get_mut(at), position) {
            *known = position;
        }
    }

    fn assign(&mut self, name: &Region, countries: impl Iterator<Item = CountryCode>) {
        let Some(region) = self.index.get(name).and_then(|&at| u16::try_from(at).ok()) else { return };
        for country in countries {
            if let Some(entry) = self.countries.get_mut(country.index()) {
                *entry = region;
            }
        }
    }

    fn measure(&mut self) {
        let distance = |a: &Option<Position>, b: &Option<Position>| match (a, b) {
            (Some(a), Some(b)) => a.distance_km(*b),
            _ => f64::NAN,
        };
        self.distances =
            self.positions.iter().flat_map(|a| self.positions.iter().map(move |b| distance(a, b))).collect();
    }

    /// The region a country belongs to; `None` only for codes that ISO 3166-1 doesn't assign.
    pub fn region_of(&self, country: CountryCode) -> Option<&Region> {
        self.names.get(usize::from(*self.countries.get(country.index())?))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Region, Option<Position>)> {
        self.names.iter().zip(self.positions.iter().copied())
    }

    /// Great-circle distance between two regions in kilometres; `None` where one has no known position.
    pub fn distance_km(&self, from: &Region, to: &Region) -> Option<f64> {
        self.distance_at(self.index_of(from)?, self.index_of(to)?)
    }

    pub(super) fn index_of(&self, region: &Region) -> Option<usize> {
        self.index.get(region).copied()
    }

    pub(super) fn has_position(&self, at: usize) -> bool {
        self.positions.get(at).is_some_and(Option::is_some)
    }

    pub(super) fn distance_at(&self, from: usize, to: usize) -> Option<f64> {
        let distance = *self.distances.get(from * self.names.len() + to)?;
        (!distance.is_nan()).then_some(distance)
    }

    /// The regions with a known position by distance from `from`, itself included; empty if `from` has none.
    pub fn nearest(&self, from: &Region) -> Vec<(&Region, f64)> {
        let mut near: Vec<_> =
            self.names.iter().filter_map(|name| Some((name, self.distance_km(from, name)?))).collect();
        near.sort_by(|a, b| a.1.total_cmp(&b.1));
        near
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn region(name: &str) -> Region {
        Region::parse(name).unwrap()
    }

    fn country(code: &str) -> CountryCode {
        CountryCode::parse(code).unwrap()
    }

    #[test]
    fn distances_are_those_of_the_globe() {
        let at = |lat, lon| Position::new(lat, lon).unwrap();
        let (paris, tokyo) = (at(48.8566, 2.3522), at(35.6762, 139.6503));
        assert!((paris.distance_km(tokyo) - 9712.0).abs() < 10.0);
        assert!((at(0.0, 179.5).distance_km(at(0.0, -179.5)) - 111.2).abs() < 0.1, "across the date line");
        assert!((at(90.0, 0.0).distance_km(at(-90.0, 0.0)) - 20015.1).abs() < 0.1, "pole to pole");
        assert_eq!(paris.distance_km(paris), 0.0);
        assert_eq!(Position::new(90.1, 0.0), None);
        assert_eq!(Position::new(f64::NAN, 0.0), None);
    }

    #[test]
    fn demo_countries_go_where_a_reader_expects() {
        let regions = Regions::default();
        for (code, name) in
            [("BR", "sa"), ("DE", "eu"), ("US", "us"), ("JP", "ap"), ("ZA", "eu"), ("SA", "eu"), ("IN", "ap")]
        {
            assert_eq!(regions.region_of(country(code)), Some(&region(name)), "{code}");
        }
        assert_eq!(regions.region_of(country("ZZ")), None);
    }

    #[test]
    fn nearest_regions_come_first() {
        let regions = Regions::default();
        let names: Vec<&str> = regions.nearest(&region("sa")).into_iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["sa", "us", "eu", "ap"]);
        assert!(regions.nearest(&region("moon")).is_empty());
    }

    #[test]
    fn the_operator_adds_moves_and_claims() {
        let johannesburg = Position::new(-26.2, 28.05);
        let regions = Regions::new(&[
            RegionSpec { name: region("af"), position: johannesburg, countries: vec![country("ZA"), country("NA")] },
            RegionSpec { name: region("us"), position: Position::new(37.34, -121.89), countries: vec![] },
            RegionSpec { name: region("eu"), position: None, countries: vec![country("NA")] },
            RegionSpec { name: region("lab"), position: None, countries: vec![] },
        ]);
        assert_eq!(regions.region_of(country("ZA")), Some(&region("af")));
        assert_eq!(regions.region_of(country("NA")), Some(&region("eu")), "the last claim wins");
        assert_eq!(regions.region_of(country("ZW")), Some(&region("eu")));
        assert!(regions.distance_km(&region("us"), &region("eu")).unwrap() > 9000.0, "moved to the west coast");
        assert!(regions.distance_km(&region("eu"), &region("af")).is_some(), "eu keeps its position");
        assert_eq!(regions.distance_km(&region("lab"), &region("eu")), None);
    }
}
