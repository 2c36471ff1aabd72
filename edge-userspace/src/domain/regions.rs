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

    /// Latitude and longitude.
    pub fn degrees(self) -> (f64, f64) {
        (self.latitude, self.longitude)
    }

    /// Great-circle distance in kilometres (haversine formula).
    pub fn distance_km(self, other: Self) -> f64 {
        let (lat1, lat2) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_lat = (lat2 - lat1) / 2.0;
        let half_lon = (other.longitude - self.longitude).to_radians() / 2.0;
        let h = half_lat.sin().powi(2) + lat1.cos() * lat2.cos() * half_lon.sin().powi(2);
        2.0 * EARTH_RADIUS_KM * h.sqrt().min(1.0).asin()
    }

    fn on_sphere(self) -> OnSphere {
        let (latitude, longitude) = (self.latitude.to_radians(), self.longitude.to_radians());
        OnSphere([latitude.cos() * longitude.cos(), latitude.cos() * longitude.sin(), latitude.sin()])
    }
}

/// A position as a vector of length 1, for comparing many distances: a few multiplications each.
#[derive(Debug, Clone, Copy)]
struct OnSphere([f64; 3]);

impl OnSphere {
    /// The square of the straight line between two: it grows as the great-circle distance does.
    fn apart(self, other: Self) -> f64 {
        self.0.iter().zip(other.0).map(|(a, b)| (a - b) * (a - b)).sum()
    }
}

/// What distances are measured from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Origin {
    /// The client itself.
    Position(Position),
    /// A region, by its place in [`Regions`].
    Region(usize),
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

/// Rows of regions there can be: a distance is kept for each pair, 8 MB for so many.
pub const MAX_REGIONS: usize = 1_000;

/// All known regions. The four default ones are always known; the operator may move them, add others and give
/// countries to any.
#[derive(Debug, Clone)]
pub struct Regions {
    names: Vec<Region>,
    positions: Vec<Option<Position>>,
    index: HashMap<Region, usize>,
    /// Region of each country, by [`CountryCode::index`]; `u16::MAX` for codes that are no country.
    countries: Vec<u16>,
    /// Countries that the operator gave to a region, likewise.
    claimed: Vec<bool>,
    /// Regions that the operator added, and placed.
    added: Vec<(usize, OnSphere)>,
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
            claimed: vec![false; 26 * 26],
            added: Vec::new(),
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
        let defaults = regions.names.len();
        for spec in specs {
            regions.place(&spec.name, spec.position);
            regions.assign(&spec.name, spec.countries.iter().copied());
            for country in &spec.countries {
                regions.claimed.get_mut(country.index()).into_iter().for_each(|claimed| *claimed = true);
            }
        }
        let placed = regions.positions.iter().enumerate().skip(defaults);
        regions.added = placed.filter_map(|(at, position)| Some((at, (*position)?.on_sphere()))).collect();
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

    /// The region of a client in that country and, where it is known, at that position.
    ///
    /// Countries that the operator gave to a region belong there, whatever the position. Others belong to their default
    /// region, which knows how networks are laid, unless a region that the operator added is nearer to the client. A
    /// client without a country is in the nearest region there is.
    pub fn region_at(&self, country: Option<CountryCode>, position: Option<Position>) -> Option<&Region> {
        let home = country.and_then(|country| Some(usize::from(*self.countries.get(country.index())?)));
        let home = home.filter(|at| *at < self.names.len());
        let claimed = country.is_some_and(|country| self.claimed.get(country.index()).is_some_and(|claimed| *claimed));
        let at = match (home, position) {
            (Some(home), Some(position)) if !claimed => self.nearer(home, position),
            (None, Some(position)) => self.nearest_to(position)?,
            (home, _) => home?,
        };
        self.names.get(at)
    }

    /// The nearest of `home` and the regions that the operator added.
    fn nearer(&self, home: usize, position: Position) -> usize {
        let here = position.on_sphere();
        let home_place = self.positions.get(home).copied().flatten();
        let from_home = home_place.map_or(f64::INFINITY, |place| here.apart(place.on_sphere()));
        let added = self.added.iter().map(|(at, place)| (*at, here.apart(*place)));
        let nearest = added.min_by(|a, b| a.1.total_cmp(&b.1));
        nearest.filter(|(_, distance)| *distance < from_home).map_or(home, |(at, _)| at)
    }

    fn nearest_to(&self, position: Position) -> Option<usize> {
        let placed = self.positions.iter().enumerate();
        let distances = placed.filter_map(|(at, place)| Some((at, position.distance_km((*place)?))));
        distances.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Region, Option<Position>)> {
        self.names.iter().zip(self.positions.iter().copied())
    }

    /// Great-circle distance between two regions in kilometres; `None` where one has no known position.
    pub fn distance_km(&self, from: &Region, to: &Region) -> Option<f64> {
        self.distance_at(&Origin::Region(self.index_of(from)?), self.index_of(to)?)
    }

    /// Whether the region is a default one, or the operator has described it.
    pub fn knows(&self, region: &Region) -> bool {
        self.index.contains_key(region)
    }

    pub(super) fn index_of(&self, region: &Region) -> Option<usize> {
        self.index.get(region).copied()
    }

    pub(super) fn has_position(&self, at: usize) -> bool {
        self.positions.get(at).is_some_and(Option::is_some)
    }

    pub(super) fn distance_at(&self, from: &Origin, to: usize) -> Option<f64> {
        let distance = match from {
            Origin::Region(from) => *self.distances.get(from * self.names.len() + to)?,
            Origin::Position(from) => from.distance_km((*self.positions.get(to)?)?),
        };
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
    fn what_is_nearer_on_the_globe_is_nearer_on_the_sphere() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut place = || Position::new(rng.f64() * 180.0 - 90.0, rng.f64() * 360.0 - 180.0).unwrap();
        for _ in 0..1_000 {
            let (here, one, other) = (place(), place(), place());
            let apart = |there: Position| here.on_sphere().apart(there.on_sphere());
            assert_eq!(here.distance_km(one) < here.distance_km(other), apart(one) < apart(other));
        }
        let hundred_metres = [Position::new(50.0, 8.0).unwrap(), Position::new(50.0, 8.0014).unwrap()];
        let [one, other] = hundred_metres.map(Position::on_sphere);
        assert!(one.apart(other) > 0.0 && one.apart(one) == 0.0);
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

    #[test]
    fn positions_decide_where_the_operator_added_a_region_and_claimed_nothing() {
        let at = |lat, lon| Position::new(lat, lon);
        let (los_angeles, new_york, johannesburg) = (at(34.05, -118.24), at(40.71, -74.01), at(-26.2, 28.05));
        let default = Regions::default();
        assert_eq!(default.region_at(Some(country("US")), los_angeles), Some(&region("us")));
        // Nearer to São Paulo than to Frankfurt, but not by cable.
        assert_eq!(default.region_at(Some(country("ZA")), johannesburg), Some(&region("eu")));
        assert_eq!(default.region_at(None, los_angeles), Some(&region("us")));
        assert_eq!(default.region_at(None, None), None);
        assert_eq!(default.region_at(Some(country("ZZ")), None), None);
        let west = RegionSpec { name: region("us-west"), position: at(37.34, -121.89), countries: vec![] };
        let regions = Regions::new(std::slice::from_ref(&west));
        assert_eq!(regions.region_at(Some(country("US")), los_angeles), Some(&region("us-west")));
        assert_eq!(regions.region_at(Some(country("US")), new_york), Some(&region("us")));
        assert_eq!(regions.region_at(Some(country("US")), None), Some(&region("us")));
        assert_eq!(regions.region_at(Some(country("ZA")), johannesburg), Some(&region("eu")));
        let claims = RegionSpec { name: region("us"), position: None, countries: vec![country("US")] };
        let regions = Regions::new(&[west, claims]);
        assert_eq!(regions.region_at(Some(country("US")), los_angeles), Some(&region("us")), "the operator's word");
    }
}
