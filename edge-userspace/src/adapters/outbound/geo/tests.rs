#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;

fn locate(geo: &Geo, ip: &str) -> (Option<String>, GeoSource) {
    let answer = geo.locate(ClientAddr::new(ip.parse().unwrap()));
    (answer.country.map(|country| country.to_string()), answer.source)
}

fn cc(code: &str) -> CountryCode {
    CountryCode::parse(code).unwrap()
}

#[test]
fn the_embedded_database_knows_the_world() {
    let geo = Geo::open(None, &[]).unwrap();
    for (ip, country) in [
        ("200.160.2.3", "BR"),
        ("133.11.0.1", "JP"),
        ("196.25.1.1", "ZA"),
        ("193.0.6.139", "NL"),
        ("130.149.7.201", "DE"),
        ("2001:4860:4860::8888", "US"),
        ("::ffff:200.160.2.3", "BR"),
    ] {
        assert_eq!(locate(&geo, ip), (Some(country.into()), GeoSource::Database), "{ip}");
    }
    let info = geo.info();
    assert_eq!(info.path, None);
    assert!(info.build_epoch > 1_700_000_000, "{info:?}");
    assert!(!info.database_type.is_empty());
    assert!(info.built().is_some());
}

#[test]
fn private_and_reserved_addresses_are_told_apart() {
    let geo = Geo::open(None, &[]).unwrap();
    for ip in ["10.0.0.1", "127.0.0.1", "169.254.1.1", "100.64.1.1", "fd00::1", "fe80::1", "::1"] {
        assert_eq!(locate(&geo, ip), (None, GeoSource::Private), "{ip}");
    }
    assert_eq!(locate(&geo, "240.0.0.1"), (None, GeoSource::Unknown));
}

#[test]
fn the_longest_override_wins_over_everything() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let overrides = [
        (net("127.0.0.0/8"), cc("US")),
        (net("127.0.1.0/24"), cc("BR")),
        (net("200.160.2.3/16"), cc("PT")),
        (net("2001:4860::/32"), cc("JP")),
    ];
    let geo = Geo::open(None, &overrides).unwrap();
    for (ip, country) in
        [("127.0.1.9", "BR"), ("127.0.2.9", "US"), ("200.160.9.9", "PT"), ("2001:4860:4860::8888", "JP")]
    {
        assert_eq!(locate(&geo, ip), (Some(country.into()), GeoSource::Override), "{ip}");
    }
    assert_eq!(locate(&geo, "::1").1, GeoSource::Private);
}

#[test]
fn both_schemas_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("geo.mmdb");
    for (map, country) in [
        (text_map(&[("country_code", text("CL"))]), Some("CL")),
        (text_map(&[("country", text_map(&[("iso_code", text("PE"))]))]), Some("PE")),
        (text_map(&[("country", text("Peru"))]), None),
        (text_map(&[("country_code", text("Peru"))]), None),
    ] {
        std::fs::write(&path, database(&map)).unwrap();
        let geo = Geo::open(Some(&path), &[]).unwrap();
        let source = if country.is_some() { GeoSource::Database } else { GeoSource::Unknown };
        assert_eq!(locate(&geo, "192.0.2.1"), (country.map(str::to_owned), source));
        assert_eq!(geo.info().database_type, "test");
    }
}

#[test]
fn a_changed_file_is_taken_over_and_a_broken_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("geo.mmdb");
    assert!(matches!(Geo::open(Some(&path), &[]), Err(GeoError::File { .. })));
    let replace = |bytes: &[u8]| {
        std::fs::write(directory.path().join("new"), bytes).unwrap();
        std::fs::rename(directory.path().join("new"), &path).unwrap();
    };
    replace(&database(&text_map(&[("country_code", text("CL"))])));
    let geo = Geo::open(Some(&path), &[]).unwrap();
    assert!(!geo.maybe_reload().unwrap());

    replace(b"not a database");
    assert!(matches!(geo.maybe_reload(), Err(GeoError::Format { .. })));
    assert!(!geo.maybe_reload().unwrap(), "said once");
    assert_eq!(locate(&geo, "192.0.2.1").0.as_deref(), Some("CL"));

    replace(&database(&text_map(&[("country_code", text("PE"))])));
    assert!(geo.maybe_reload().unwrap());
    assert_eq!(locate(&geo, "192.0.2.1").0.as_deref(), Some("PE"));

    std::fs::remove_file(&path).unwrap();
    assert!(geo.maybe_reload().is_err());
    assert_eq!(locate(&geo, "192.0.2.1").0.as_deref(), Some("PE"));
}

// A writer for the smallest possible file of the MaxMind DB format 2.0: one node, both sides of which lead to one record.

fn text(value: &str) -> Vec<u8> {
    [&[0x40 | value.len() as u8], value.as_bytes()].concat()
}

fn text_map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut map = vec![0xe0 | entries.len() as u8];
    for (key, value) in entries {
        map.extend(text(key));
        map.extend(value);
    }
    map
}

fn number(type_number: u8, value: u32) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    match type_number {
        // Types above 7 are extended: the type minus 7 follows.
        9 => [&[4, 2], &bytes[..]].concat(),
        small => {
            let width = if small == 5 { 2 } else { 4 };
            [&[small << 5 | width], &bytes[4 - usize::from(width)..]].concat()
        }
    }
}

fn database(record: &[u8]) -> Vec<u8> {
    // Records of 24 bits: the data section starts at node count + 16.
    let node = [0, 0, 17, 0, 0, 17];
    let metadata = text_map(&[
        ("binary_format_major_version", number(5, 2)),
        ("binary_format_minor_version", number(5, 0)),
        ("build_epoch", number(9, 1_700_000_000)),
        ("database_type", text("test")),
        ("description", text_map(&[])),
        ("ip_version", number(5, 4)),
        ("languages", vec![0, 4]),
        ("node_count", number(6, 1)),
        ("record_size", number(5, 24)),
    ]);
    [&node[..], &[0; 16], record, b"\xab\xcd\xefMaxMind.com", &metadata].concat()
}
