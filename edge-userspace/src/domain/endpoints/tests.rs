#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use crate::domain::RawListener;

fn raw(id: &str, address: &str, port: i64, last_port: i64) -> RawListener {
    RawListener {
        id: id.into(),
        app: id.into(),
        address: address.into(),
        port: port.into(),
        last_port: last_port.into(),
        ..RawListener::default()
    }
}

fn named(id: &str, names: &str) -> RawListener {
    RawListener { server_name: names.into(), ..raw(id, "0.0.0.0", 443, 443) }
}

fn endpoints(rows: &[RawListener]) -> Endpoints {
    let mut endpoints = Endpoints::default();
    rows.iter().for_each(|row| endpoints.add(row.parse().unwrap()).unwrap());
    endpoints
}

fn app_at(endpoints: &Endpoints, addr: &str, name: Option<&str>) -> Option<String> {
    let endpoint = endpoints.at(addr.parse().unwrap())?;
    endpoint.listener(name).map(|listener| listener.app.as_ref().unwrap().to_string())
}

#[test]
fn the_most_specific_place_counts() {
    let endpoints = endpoints(&[
        raw("all", "0.0.0.0", 1, 65_535),
        raw("web", "0.0.0.0", 80, 80),
        raw("net", "203.0.113.0/24", 1000, 2000),
        raw("few", "203.0.113.0/24", 1500, 1600),
        raw("one", "203.0.113.7", 1550, 1550),
        raw("six", "2001:db8::/32", 80, 80),
    ]);
    for (addr, app) in [
        ("203.0.113.7:1550", Some("one")),
        ("203.0.113.8:1550", Some("few")),
        ("203.0.113.7:1400", Some("net")),
        ("203.0.113.7:80", Some("web")),
        ("198.51.100.1:9", Some("all")),
        ("[::ffff:203.0.113.7]:1550", Some("one")),
        ("[2001:db8::1]:80", Some("six")),
        ("[2001:db9::1]:80", None),
    ] {
        assert_eq!(app_at(&endpoints, addr, None).as_deref(), app, "{addr}");
    }
}

#[test]
fn names_exact_below_and_any() {
    let mut rows = vec![named("exact", "www.example.com api.example.com"), named("below", "*.example.com")];
    rows.extend([named("deeper", "*.eu.example.com"), raw("rest", "0.0.0.0", 443, 443)]);
    let endpoints = endpoints(&rows);
    for (name, app) in [
        (Some("www.example.com"), "exact"),
        (Some("other.example.com"), "below"),
        (Some("a.b.example.com"), "below"),
        (Some("a.eu.example.com"), "deeper"),
        (Some("example.com"), "rest"),
        (Some("example.org"), "rest"),
        (None, "rest"),
    ] {
        assert_eq!(app_at(&endpoints, "192.0.2.1:443", name).as_deref(), Some(app), "{name:?}");
    }
    assert!(endpoints.at("192.0.2.1:443".parse().unwrap()).unwrap().routes_by_name());
}

#[test]
fn without_a_listener_for_every_name_others_lead_nowhere() {
    let endpoints = endpoints(&[named("exact", "www.example.com")]);
    assert_eq!(app_at(&endpoints, "192.0.2.1:443", Some("example.org")), None);
}

#[test]
fn contradictions_are_refused_by_name() {
    let mut endpoints = endpoints(&[named("a", "x.example"), raw("b", "0.0.0.0", 443, 443)]);
    let mut refused = |row: RawListener| endpoints.add(row.parse().unwrap()).unwrap_err().to_string();
    assert!(refused(named("c", "X.example")).contains("listener a has the server name x.example"));
    assert!(refused(raw("d", "0.0.0.0", 443, 443)).contains("listener b takes every server name"));
    let proxied =
        RawListener { accept_proxy: "required".into(), proxy_from: "10.0.0.0/8".into(), ..named("e", "y.example") };
    assert!(refused(proxied).contains("another accept_proxy"));
    assert_eq!(app_at(&endpoints, "192.0.2.1:443", Some("y.example")).as_deref(), Some("b"), "nothing came of it");
}

#[test]
fn rows_of_one_place_agree_whose_header_they_believe_whatever_the_order() {
    let behind = |id: &str, from: &str| {
        let row = RawListener { accept_proxy: "required".into(), proxy_from: from.into(), ..named(id, id) };
        row.parse().unwrap()
    };
    let mut endpoints = Endpoints::default();
    endpoints.add(behind("one", "192.0.2.0/24, 198.51.100.7")).unwrap();
    endpoints.add(behind("two", "198.51.100.7 192.0.2.0/24")).unwrap();
    for other in ["192.0.2.0/24", "192.0.2.0/24, 198.51.100.8", "192.0.2.0/24, 198.51.100.7, 203.0.113.1"] {
        let error = endpoints.add(behind("three", other)).unwrap_err();
        assert!(matches!(error, ListenerError::ProxyDisagrees { .. }), "{other}: {error}");
    }
}
