#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use xtask::lab::mmdb::{self, double, map, text};

use super::*;

fn locate(geo: &Geo, ip: &str) -> Option<String> {
    geo.locate(ip.parse().unwrap()).country.map(|country| country.to_string())
}

#[test]
fn the_embedded_database_knows_the_world() {
    let geo = Geo::open(None).unwrap();
    for (ip, country) in [
        ("200.160.2.3", "BR"),
        ("133.11.0.1", "JP"),
        ("196.25.1.1", "ZA"),
        ("193.0.6.139", "NL"),
        ("130.149.7.201", "DE"),
        ("2001:4860:4860::8888", "US"),
    ] {
        assert_eq!(locate(&geo, ip).as_deref(), Some(country), "{ip}");
    }
    assert_eq!(locate(&geo, "240.0.0.1"), None);
    let info = geo.info();
    assert_eq!(info.path, None);
    assert!(info.build_epoch > 1_700_000_000, "{info:?}");
    assert!(!info.database_type.is_empty());
    assert!(info.built().is_some());
}

#[test]
fn positions_of_cities_are_read_in_both_schemas() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("geo.mmdb");
    let position = |map: &[u8]| {
        std::fs::write(&path, mmdb::one_record(map)).unwrap();
        Geo::open(Some(&path)).unwrap().locate("192.0.2.1".parse().unwrap()).position.map(Position::degrees)
    };
    let degrees = [("latitude", double(-23.5)), ("longitude", double(-46.5))];
    assert_eq!(position(&map(&[("location", map(&degrees))])), Some((-23.5, -46.5)));
    assert_eq!(position(&map(&degrees)), Some((-23.5, -46.5)));
    assert_eq!(position(&map(&degrees[..1])), None);
    assert_eq!(position(&map(&[("latitude", double(91.0)), ("longitude", double(0.0))])), None);
    assert_eq!(position(&map(&[("latitude", text("north")), ("longitude", double(0.0))])), None);
}

#[test]
fn both_schemas_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("geo.mmdb");
    for (record, country) in [
        (map(&[("country_code", text("CL"))]), Some("CL")),
        (map(&[("country", map(&[("iso_code", text("PE"))]))]), Some("PE")),
        (map(&[("country", text("Peru"))]), None),
        (map(&[("country_code", text("Peru"))]), None),
    ] {
        std::fs::write(&path, mmdb::one_record(&record)).unwrap();
        let geo = Geo::open(Some(&path)).unwrap();
        assert_eq!(locate(&geo, "192.0.2.1").as_deref(), country);
        assert_eq!(geo.info().database_type, "test");
    }
}

#[test]
fn a_changed_file_is_taken_over_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("geo.mmdb");
    assert!(matches!(Geo::open(Some(&path)), Err(GeoError::File { .. })));
    let replace = |bytes: &[u8]| {
        std::fs::write(directory.path().join("new"), bytes).unwrap();
        std::fs::rename(directory.path().join("new"), &path).unwrap();
    };
    replace(&mmdb::one_record(&map(&[("country_code", text("CL"))])));
    let geo = Geo::open(Some(&path)).unwrap();
    assert!(!geo.maybe_reload().unwrap());

    replace(b"not a database");
    assert!(matches!(geo.maybe_reload(), Err(GeoError::Format { .. })));
    assert!(!geo.maybe_reload().unwrap(), "said once");
    assert_eq!(locate(&geo, "192.0.2.1").as_deref(), Some("CL"));

    replace(&mmdb::one_record(&map(&[("country_code", text("PE"))])));
    assert!(geo.maybe_reload().unwrap());
    assert_eq!(locate(&geo, "192.0.2.1").as_deref(), Some("PE"));

    std::fs::remove_file(&path).unwrap();
    assert!(geo.maybe_reload().is_err());
    assert_eq!(locate(&geo, "192.0.2.1").as_deref(), Some("PE"));
}
