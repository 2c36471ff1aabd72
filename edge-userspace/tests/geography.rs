//! Clients reach the region that the operator and the geo data put them into, and changes of either take effect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::Path;

use common::{NETWORK, World, assert_said, eventually};
use serde_json::Value;
use xtask::lab::{BRAZIL, Country, Daemon, GERMANY, JAPAN, Ns, SOUTH_AFRICA, UNITED_STATES, mmdb};
use xtask::load::{Manner, NamedBackend, Visit};

/// A world with one backend in each of the regions, named like it.
struct Globe {
    world: World,
    _backends: Vec<NamedBackend>,
    /// Each client comes once, so that no binding decides.
    host: Cell<u8>,
}

impl Globe {
    fn new(test: &str, regions: &[&str]) -> Option<Self> {
        let world = World::new(NETWORK, test)?;
        let backends = regions.iter().zip(1..).map(|(region, n)| {
            let backend = world.backend(n, Manner::Echo, |row| row.region(region));
            world.database.execute(&format!("UPDATE backends SET id = '{region}' WHERE id = 'b{n}'"));
            backend
        });
        let backends = backends.collect();
        Some(Self { world, _backends: backends, host: Cell::new(0) })
    }

    /// The region that a new client of the country gets to, and why.
    fn visit(&self, daemon: &Daemon, country: Country) -> (String, String) {
        self.host.set(self.host.get() + 1);
        self.visit_from(daemon, country, self.host.get())
    }

    /// A new client of the country that stays.
    fn hold(&self, daemon: &Daemon, country: Country) -> Visit {
        self.host.set(self.host.get() + 1);
        self.connect(daemon, country, self.host.get())
    }

    fn connect(&self, daemon: &Daemon, country: Country, host: u8) -> Visit {
        self.world.lab.run_in(Ns::Clients, || Visit::start(country.v4(host), daemon.addr())).unwrap()
    }

    fn visit_from(&self, daemon: &Daemon, country: Country, host: u8) -> (String, String) {
        let visit = self.connect(daemon, country, host);
        let client = visit.local;
        visit.finish().unwrap();
        let record = daemon.record_of(client, common::SOON).unwrap();
        (record.backend.unwrap(), record.why.unwrap())
    }

    fn explain(&self, daemon: &Daemon, client: &str) -> Value {
        let socket = daemon.admin_socket().display().to_string();
        let arguments = ["explain", "--json", "--admin-socket", &socket, "--client", client];
        let output = self.world.config().command(&self.world.lab, &arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Where the daemon believes an address to be: country, region, and by whom.
    fn place(&self, daemon: &Daemon, client: &str) -> [Value; 3] {
        let answer = self.explain(daemon, client);
        ["country", "client_region", "geo_source"].map(|field| answer[field].clone())
    }
}

fn got(region: &str, why: &str) -> (String, String) {
    (region.to_owned(), why.to_owned())
}

/// Replaced by renaming, as a download should be.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[test]
fn a_region_of_the_operators_takes_its_countries_and_gives_them_back() {
    let test = "a_region_of_the_operators_takes_its_countries_and_gives_them_back";
    let Some(globe) = Globe::new(test, &["eu", "af", "sa"]) else { return };
    let daemon = globe.world.daemon(&[("region", "sa")]);
    assert_eq!(globe.visit(&daemon, SOUTH_AFRICA), got("eu", "client_region"));
    globe
        .world
        .database
        .execute("INSERT INTO regions (name, latitude, longitude, countries) VALUES ('af', -26.2, 28.05, 'ZA,NA')");
    eventually("South Africa is in the new region", || {
        globe.place(&daemon, "196.25.1.99") == ["ZA", "af", "database"].map(Value::from)
    });
    assert_eq!(globe.visit(&daemon, SOUTH_AFRICA), got("af", "client_region"));
    assert_eq!(globe.visit(&daemon, GERMANY), got("eu", "client_region"));
    globe.world.database.execute("UPDATE regions SET deleted = 1 WHERE name = 'af'");
    eventually("South Africa is back in Europe's region", || {
        globe.place(&daemon, "196.25.1.99") == ["ZA", "eu", "database"].map(Value::from)
    });
    assert_eq!(globe.visit(&daemon, SOUTH_AFRICA), got("eu", "client_region"));
}

#[test]
fn a_misspelt_region_is_told() {
    let Some(globe) = Globe::new("a_misspelt_region_is_told", &["eu", "eeu"]) else { return };
    let daemon = globe.world.daemon(&[("region", "sa")]);
    let said = |region: &str, why: &str| {
        assert_said(&daemon, &format!("\"name\":\"{region}\""));
        assert_said(&daemon, why);
    };
    said("eeu", "backend eeu is there, and no client can be");
    let office = "INSERT INTO geo_overrides (prefix, region) VALUES ('198.51.100.0/24', 'ofice')";
    globe.world.database.execute(office);
    said("ofice", "prefixes are said to be there");
    let check = globe.world.config().set("region", "sa").command(&globe.world.lab, &["check"]).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    assert!(text.contains("unknown: eeu: ") && text.contains("unknown: ofice: "), "{text}");
    globe.world.database.execute("INSERT INTO regions (name) VALUES ('eeu'), ('ofice')");
    let check = globe.world.config().set("region", "sa").command(&globe.world.lab, &["check"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&check.stdout).contains("unknown"), "{check:?}");
}

#[test]
fn a_region_that_moves_is_near_or_far_from_then_on() {
    let test = "a_region_that_moves_is_near_or_far_from_then_on";
    let Some(globe) = Globe::new(test, &["eu", "us"]) else { return };
    let daemon = globe.world.daemon(&[("region", "sa")]);
    // From Singapore, Frankfurt is nearer than Ashburn.
    assert_eq!(globe.visit(&daemon, JAPAN), got("eu", "nearest_region"));
    globe.world.database.execute("INSERT INTO regions (name, latitude, longitude) VALUES ('us', 21.3, -157.9)");
    eventually("the region has moved to Honolulu", || globe.explain(&daemon, "133.11.0.99")["generation"] == 2);
    assert_eq!(globe.visit(&daemon, JAPAN), got("eu", "nearest_region"), "10,270 km against 10,800");
    globe.world.database.execute("UPDATE regions SET latitude = 35.7, longitude = 139.7 WHERE name = 'us'");
    eventually("the region has moved to Tokyo", || globe.explain(&daemon, "133.11.0.99")["generation"] == 3);
    assert_eq!(globe.visit(&daemon, JAPAN), got("us", "nearest_region"));
}

#[test]
fn the_nearest_region_with_capacity_is_next() {
    let Some(globe) = Globe::new("the_nearest_region_with_capacity_is_next", &["sa", "us", "eu"]) else { return };
    globe.world.database.execute("UPDATE backends SET soft_limit = 1, hard_limit = 1 WHERE id IN ('sa', 'us')");
    globe.world.database.execute("UPDATE backends SET state = 'drain' WHERE id = 'sa'");
    let daemon = globe.world.daemon(&[("region", "ap")]);
    assert_eq!(globe.visit(&daemon, BRAZIL), got("us", "nearest_region"));
    globe.world.database.execute("UPDATE backends SET weight = 0 WHERE id = 'us'");
    eventually("the nearest takes none", || globe.explain(&daemon, "200.160.2.99")["generation"] == 2);
    assert_eq!(globe.visit(&daemon, BRAZIL), got("eu", "nearest_region"));
}

#[test]
fn a_region_that_is_full_is_passed_over_until_its_connections_end() {
    let test = "a_region_that_is_full_is_passed_over_until_its_connections_end";
    let Some(globe) = Globe::new(test, &["us", "eu", "ap"]) else { return };
    let _second = globe.world.backend(4, Manner::Echo, |row| row.region("us"));
    globe.world.database.execute("UPDATE backends SET soft_limit = 1, hard_limit = 1 WHERE region IN ('us', 'eu')");
    // No backend is in the clients' region, which is this POP's.
    let daemon = globe.world.daemon(&[("region", "sa")]);
    let next = || globe.visit(&daemon, BRAZIL);
    let end = |visit: Visit| {
        let client = visit.local;
        visit.finish().unwrap();
        // Once it is on record its place is free.
        daemon.record_of(client, common::SOON).unwrap();
    };
    let in_us = [globe.hold(&daemon, BRAZIL), globe.hold(&daemon, BRAZIL)];
    let names = in_us.each_ref().map(|visit| visit.backend.as_str());
    assert!(names == ["b1", "b4"] || names == ["b4", "b1"], "{names:?}");
    assert_eq!([next(), next()], [got("eu", "nearest_region"), got("eu", "nearest_region")]);
    let in_eu = globe.hold(&daemon, BRAZIL);
    assert_eq!([next(), next()], [got("ap", "nearest_region"), got("ap", "nearest_region")]);
    end(in_eu);
    assert_eq!(next(), got("eu", "nearest_region"));
    let [first, second] = in_us;
    let freed = if second.backend == "b1" { "us" } else { "b4" };
    end(second);
    assert_eq!([next(), next()], [got(freed, "nearest_region"), got(freed, "nearest_region")]);
    end(first);
    assert!((0..4).all(|_| ["us", "b4"].contains(&next().0.as_str())), "all come back");
}

#[test]
fn overrides_of_the_database_take_effect_while_running() {
    let test = "overrides_of_the_database_take_effect_while_running";
    let Some(globe) = Globe::new(test, &["sa", "eu", "us", "lab"]) else { return };
    let settings = [("geo_override", "193.99.144.0/24=region:lab,133.11.0.0/16=US"), ("region", "sa")];
    let daemon = globe.world.daemon(&settings);
    let place = |ip: &str| globe.place(&daemon, ip);
    assert_eq!(place("193.99.144.9"), [Value::Null, "lab".into(), "override".into()]);
    assert_eq!(globe.visit(&daemon, GERMANY), got("lab", "client_region"));
    assert_eq!(globe.visit(&daemon, JAPAN), got("us", "client_region"));
    globe.world.database.execute(
        "INSERT INTO geo_overrides (prefix, country, region) VALUES \
         ('133.11.0.0/24', NULL, 'eu'), ('193.99.144.0/24', 'BR', NULL), ('10.64.0.0/16', 'DE', NULL)",
    );
    eventually("the database's word counts", || globe.explain(&daemon, "133.11.0.99")["client_region"] == "eu");
    assert_eq!(place("133.11.1.9"), ["US", "us", "override"].map(Value::from), "the shorter prefix still holds it");
    assert_eq!(place("193.99.144.9"), ["BR", "sa", "override"].map(Value::from), "of equals the database's counts");
    assert_eq!(place("10.64.0.7"), ["DE", "eu", "override"].map(Value::from), "private addresses, too");
    assert_eq!(globe.visit(&daemon, JAPAN), got("eu", "client_region"));
    assert_eq!(globe.visit(&daemon, GERMANY), got("sa", "client_region"));
    globe.world.database.execute("UPDATE geo_overrides SET deleted = 1");
    eventually("the settings' word counts again", || globe.explain(&daemon, "133.11.0.99")["client_region"] == "us");
}

#[test]
fn thousands_of_overrides_are_one_look_each() {
    let Some(globe) = Globe::new("thousands_of_overrides_are_one_look_each", &["sa", "eu"]) else { return };
    let rows = (0..20_000).map(|n| format!("('16.{}.{}.0/24', 'DE')", n / 256, n % 256)).collect::<Vec<_>>();
    globe.world.database.execute(&format!("INSERT INTO geo_overrides (prefix, country) VALUES {}", rows.join(",")));
    let daemon = globe.world.daemon(&[("region", "sa")]);
    assert_eq!(globe.place(&daemon, "16.78.31.7"), ["DE", "eu", "override"].map(Value::from));
    assert_ne!(globe.place(&daemon, "16.78.32.7")[2], "override");
}

#[test]
fn a_replaced_geo_database_is_taken_over_and_a_broken_one_is_not() {
    let test = "a_replaced_geo_database_is_taken_over_and_a_broken_one_is_not";
    let Some(globe) = Globe::new(test, &["sa", "eu"]) else { return };
    let path = globe.world.database.path().with_file_name("geo.mmdb");
    let japan_is = |country| {
        let flat = mmdb::map(&[("country_code", mmdb::text(country))]);
        mmdb::database(&[(Ipv4Addr::new(133, 11, 0, 0), 16, flat)])
    };
    replace(&path, &japan_is("BR"));
    let daemon = globe.world.daemon(&[("region", "ap"), ("geoip_path", path.to_str().unwrap())]);
    let country = || globe.explain(&daemon, "133.11.0.99")["country"].clone();
    assert_eq!(globe.visit(&daemon, JAPAN), got("sa", "client_region"));
    assert!(globe.place(&daemon, "200.160.2.9")[0].is_null(), "the embedded database is not asked");
    replace(&path, &mmdb::one_record(&mmdb::place("DE", None)));
    eventually("the new file is in use", || country() == "DE");
    assert_eq!(globe.visit(&daemon, JAPAN), got("eu", "client_region"));
    replace(&path, b"not a database");
    assert_said(&daemon, "geo database not reloaded; the old one stays");
    assert_eq!(country(), "DE");
    std::fs::remove_file(&path).unwrap();
    assert_said(&daemon, "can't be read");
    assert_eq!(country(), "DE");
    replace(&path, &japan_is("BR"));
    eventually("the mended file is in use", || country() == "BR");
}

#[test]
fn the_position_of_a_client_decides_between_regions_of_one_country() {
    let test = "the_position_of_a_client_decides_between_regions_of_one_country";
    let Some(globe) = Globe::new(test, &["us", "us-west", "eu"]) else { return };
    globe.world.database.execute("INSERT INTO regions (name, latitude, longitude) VALUES ('us-west', 37.34, -121.89)");
    let path = globe.world.database.path().with_file_name("geo.mmdb");
    let (los_angeles, new_york, anchorage) = ((34.05, -118.24), (40.71, -74.01), (61.2, -149.9));
    replace(
        &path,
        &mmdb::database(&[
            (Ipv4Addr::new(8, 8, 8, 0), 25, mmdb::place("US", Some(los_angeles))),
            (Ipv4Addr::new(8, 8, 8, 128), 25, mmdb::place("US", Some(new_york))),
            // As if a Japanese network were in Alaska.
            (Ipv4Addr::new(133, 11, 0, 0), 24, mmdb::place("JP", Some(anchorage))),
        ]),
    );
    let daemon = globe.world.daemon(&[("region", "sa"), ("geoip_path", path.to_str().unwrap())]);
    assert_eq!(globe.visit_from(&daemon, UNITED_STATES, 1), got("us-west", "client_region"));
    assert_eq!(globe.visit_from(&daemon, UNITED_STATES, 200), got("us", "client_region"));
    assert_eq!(globe.explain(&daemon, "8.8.8.1")["client_position"], serde_json::json!([34.05, -118.24]));
    // The operator's word outranks the position.
    globe.world.database.execute("INSERT INTO regions (name, countries) VALUES ('us', 'US'), ('ap', 'JP')");
    eventually("the claim counts", || globe.explain(&daemon, "8.8.8.2")["client_region"] == "us");
    assert_eq!(globe.visit_from(&daemon, UNITED_STATES, 3), got("us", "client_region"));
    // Further regions are near or far from the client, not from its region: Europe is nearer to Singapore than Ashburn.
    globe.world.database.execute("UPDATE backends SET state = 'drain' WHERE id = 'us-west'");
    eventually("two are left", || globe.explain(&daemon, "133.11.0.99")["winner"] == "us");
    assert_eq!(globe.visit(&daemon, JAPAN), got("us", "nearest_region"));
}

#[test]
fn special_addresses_are_treated_as_documented() {
    let Some(globe) = Globe::new("special_addresses_are_treated_as_documented", &["sa", "eu"]) else { return };
    let daemon = globe.world.daemon(&[("region", "eu")]);
    let text = |country: &str, region: &str, source: &str| {
        let text = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
        [text(country), text(region), text(source)]
    };
    for (ip, want) in [
        ("10.1.2.3", text("", "eu", "private")),
        ("127.0.0.1", text("", "eu", "private")),
        ("169.254.7.7", text("", "eu", "private")),
        ("100.64.0.1", text("", "eu", "private")),
        ("fd00::1", text("", "eu", "private")),
        ("fe80::1", text("", "eu", "private")),
        ("64:ff9b:1::1", text("", "eu", "private")),
        ("192.0.2.1", text("", "", "reserved")),
        ("198.51.100.1", text("", "", "reserved")),
        ("203.0.113.1", text("", "", "reserved")),
        ("198.18.0.1", text("", "", "reserved")),
        ("2001:db8::1", text("", "", "reserved")),
        ("3fff::1", text("", "", "reserved")),
        ("200.160.2.9", text("BR", "sa", "database")),
        ("::ffff:200.160.2.9", text("BR", "sa", "database")),
        ("64:ff9b::200.160.2.9", text("BR", "sa", "database")),
        ("64:ff9b::10.0.0.1", text("", "eu", "private")),
        ("2002:c8a0:209::1", text("BR", "sa", "database")),
        ("2001:0:1:2:3:4:375f:fdf6", text("BR", "sa", "database")),
    ] {
        assert_eq!(globe.place(&daemon, ip), want, "{ip}");
    }
    // A client that nobody can place is served as one of this POP's.
    assert_eq!(globe.explain(&daemon, "192.0.2.1")["winner"], "eu");
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains("edgeproxy_geo_lookups_total{source=\"reserved\"}"), "{metrics}");
}
