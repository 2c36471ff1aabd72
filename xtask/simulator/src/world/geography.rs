//! A coarse world: where clients live, where regions are, and how long light takes between them. Written down once more
//! rather than taken from the code under test.

use std::time::Duration;

use super::Place;
use crate::dice;

/// Degrees of latitude and longitude.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point(pub f64, pub f64);

impl Point {
    /// Great-circle distance, by the angle between the two points seen from the centre.
    pub fn distance_km(self, other: Self) -> f64 {
        let vector = |Self(latitude, longitude): Self| {
            let (lat, lon) = (latitude.to_radians(), longitude.to_radians());
            [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()]
        };
        let dot: f64 = vector(self).iter().zip(vector(other)).map(|(a, b)| a * b).sum();
        6371.0 * dot.clamp(-1.0, 1.0).acos()
    }
}

/// There and back in fibre (200 km/ms), on paths 1.4 times as long as the great circle, and 1 ms for the rest.
pub fn round_trip(km: f64) -> Duration {
    dice::seconds(0.001 + 2.0 * km * 1.4 / 200_000.0)
}

#[derive(Debug, PartialEq)]
pub struct Country {
    pub code: &'static str,
    pub region: &'static str,
    /// Where most of its clients are.
    pub position: Point,
    /// Of 1,000 clients.
    pub clients: f64,
}

const fn country(code: &'static str, region: &'static str, at: (f64, f64), clients: f64) -> Country {
    Country { code, region, position: Point(at.0, at.1), clients }
}

/// The clients of an imaginary operator.
pub static COUNTRIES: [Country; 24] = [
    country("BR", "sa", (-23.5, -46.6), 90.0),
    country("AR", "sa", (-34.6, -58.4), 30.0),
    country("CO", "sa", (4.7, -74.1), 20.0),
    country("CL", "sa", (-33.4, -70.7), 15.0),
    country("US", "us", (39.0, -90.0), 160.0),
    country("MX", "us", (19.4, -99.1), 40.0),
    country("CA", "us", (43.7, -79.4), 30.0),
    country("DE", "eu", (50.1, 8.7), 70.0),
    country("GB", "eu", (51.5, -0.1), 60.0),
    country("FR", "eu", (48.9, 2.4), 50.0),
    country("ES", "eu", (40.4, -3.7), 30.0),
    country("IT", "eu", (41.9, 12.5), 35.0),
    country("PL", "eu", (52.2, 21.0), 25.0),
    country("TR", "eu", (41.0, 28.9), 30.0),
    country("SA", "eu", (24.7, 46.7), 15.0),
    country("NG", "af", (6.5, 3.4), 30.0),
    country("ZA", "af", (-26.2, 28.0), 25.0),
    country("KE", "af", (-1.3, 36.8), 15.0),
    country("EG", "af", (30.0, 31.2), 20.0),
    country("IN", "ap", (19.1, 72.9), 80.0),
    country("ID", "ap", (-6.2, 106.8), 45.0),
    country("JP", "ap", (35.7, 139.7), 60.0),
    country("AU", "ap", (-33.9, 151.2), 25.0),
    country("SG", "ap", (1.35, 103.8), 20.0),
];

/// The four default regions of edgeproxy, and one that the operator has added.
pub fn regions() -> Vec<Place> {
    let place = |name, position| Place { name, position: Some(position) };
    vec![
        place("sa", Point(-23.55, -46.63)),
        place("us", Point(39.04, -77.49)),
        place("eu", Point(50.11, 8.68)),
        place("ap", Point(1.35, 103.82)),
        place("af", Point(-26.2, 28.05)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_and_round_trips_are_those_of_the_globe() {
        let (paris, tokyo) = (Point(48.8566, 2.3522), Point(35.6762, 139.6503));
        assert!((paris.distance_km(tokyo) - 9712.0).abs() < 10.0);
        assert!((Point(0.0, 179.5).distance_km(Point(0.0, -179.5)) - 111.2).abs() < 0.2);
        assert_eq!(round_trip(0.0), Duration::from_millis(1));
        assert_eq!(round_trip(10_000.0), Duration::from_millis(141));
    }

    #[test]
    fn all_countries_are_in_a_region() {
        let regions = regions();
        assert!(COUNTRIES.iter().all(|country| regions.iter().any(|region| region.name == country.region)));
    }
}
