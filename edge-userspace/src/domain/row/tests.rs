#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;
use crate::domain::testing::row;
use crate::domain::{
    AcceptProxy, Affinity, AppName, AppSpec, BackendState, CountryCode, NextRegion, Position, Selection, Weight,
};

fn refused(change: impl FnOnce(&mut RawBackend)) -> String {
    let mut row = row("b", "sa");
    change(&mut row);
    row.parse().unwrap_err().to_string()
}

#[test]
fn null_columns_have_defaults() {
    let spec = row("b", "sa").parse().unwrap();
    assert!(spec.healthy);
    assert_eq!((spec.weight, spec.state, spec.country), (Weight(1), BackendState::Ready, None));
    assert_eq!((spec.limits.soft(), spec.limits.hard()), (100, 0));
    let small = RawBackend { hard_limit: 5.into(), ..row("b", "sa") }.parse().unwrap();
    assert_eq!((small.limits.soft(), small.limits.hard()), (5, 5));
}

#[test]
fn a_proxy_header_and_a_hand_over_exclude_each_other() {
    let both = |same_host: i64, kind: &'static str| {
        move |row: &mut RawBackend| {
            (row.same_host, row.send_proxy) = (same_host.into(), kind.into());
        }
    };
    assert!(refused(both(1, "v2")).contains("same_host and send_proxy exclude each other"));
    for (same_host, kind) in [(1, "off"), (0, "v1")] {
        let mut row = row("b", "sa");
        both(same_host, kind)(&mut row);
        assert_eq!(row.parse().unwrap().same_host, same_host == 1);
    }
}

#[test]
fn addresses_are_of_either_family_with_or_without_brackets() {
    for (text, want) in [
        (" 192.0.2.9 ", "192.0.2.9:8080"),
        ("[2001:db8::1]", "[2001:db8::1]:8080"),
        ("fdaa:9:3ca6:a7b:5c5:84eb:a8dd:2", "[fdaa:9:3ca6:a7b:5c5:84eb:a8dd:2]:8080"),
        ("::ffff:192.0.2.9", "192.0.2.9:8080"),
    ] {
        let spec = RawBackend { wg_ip: text.into(), ..row("b", "sa") }.parse().unwrap();
        assert_eq!(spec.addr.to_string(), want);
    }
}

#[test]
fn bad_values_are_named() {
    for port in [0, -1, 65_536, 65_536 + 80] {
        let why = refused(|row| row.port = port.into());
        assert_eq!(why, format!("port is {port}: it must be an integer from 1 to 65535"));
    }
    assert_eq!(refused(|row| row.port = "http".into()), "port is \"http\": it must be an integer from 1 to 65535");
    assert_eq!(refused(|row| row.port = RawValue::Null), "port is missing: give it a value");
    assert!(refused(|row| row.wg_ip = "backend.example".into()).contains("not an IPv4 or IPv6 address"));
    assert!(refused(|row| row.wg_ip = "0.0.0.0".into()).contains("unspecified"));
    assert!(refused(|row| row.app = "".into()).contains("app is missing"));
    assert!(refused(|row| row.region = RawValue::Blob).contains("region is a blob"));
    assert!(refused(|row| row.id = RawValue::Null).contains("id is missing"));
    assert!(refused(|row| row.weight = (-1).into()).contains("weight is -1"));
    assert!(refused(|row| row.soft_limit = "many".into()).contains("soft_limit is \"many\""));
    assert!(refused(|row| row.hard_limit = RawValue::Real(1.5)).contains("hard_limit is 1.5"));
    assert!(refused(|row| (row.soft_limit, row.hard_limit) = (20.into(), 10.into())).contains("above hard_limit 10"));
    assert!(refused(|row| row.state = "resting".into()).contains("use ready, drain or maint"));
    assert!(refused(|row| row.country = "Brazil".into()).contains("two letters"));
    assert!(refused(|row| row.healthy = "yes".into()).contains("healthy is \"yes\""));
    assert!(refused(|row| row.deleted = "no".into()).contains("deleted is \"no\""));
}

#[test]
fn regions_are_parsed() {
    let raw = RawRegion {
        name: "af".into(),
        latitude: RawValue::Real(-26.2),
        longitude: 28.into(),
        countries: "ZA, na,BW".into(),
        deleted: RawValue::Null,
    };
    let spec = raw.parse().unwrap();
    assert_eq!(spec.position, Position::new(-26.2, 28.0));
    assert_eq!(spec.countries.iter().map(CountryCode::as_str).collect::<Vec<_>>(), ["ZA", "NA", "BW"]);
    for bad in [
        RawRegion { latitude: RawValue::Null, ..raw.clone() },
        RawRegion { latitude: 91.into(), ..raw.clone() },
        RawRegion { countries: "ZA,Namibia".into(), ..raw.clone() },
        RawRegion { name: RawValue::Null, ..raw.clone() },
        RawRegion { deleted: "no".into(), ..raw.clone() },
    ] {
        assert!(bad.parse().is_err(), "{bad:?}");
    }
}

fn any_value() -> impl Strategy<Value = RawValue> {
    prop_oneof![
        Just(RawValue::Null),
        Just(RawValue::Blob),
        any::<i64>().prop_map(RawValue::Integer),
        (-2i64..70_000).prop_map(RawValue::Integer),
        any::<f64>().prop_map(RawValue::Real),
        any::<String>().prop_map(|text| RawValue::from(text.as_str())),
        prop::sample::select(vec!["sa", "ready", "drain", "BR", "192.0.2.1", "::1", "[::1]", "b"])
            .prop_map(RawValue::from),
    ]
}

/// A row of any values.
fn any_row<R: RawRow + std::fmt::Debug>() -> impl Strategy<Value = R> {
    let values = prop::collection::vec(any_value(), R::COLUMNS.len());
    values.prop_map(|values| {
        let mut values = values.into_iter();
        R::from_values(|| values.next().ok_or(())).unwrap()
    })
}

proptest! {
    /// Whatever a row holds, it becomes a sound backend or a short reason.
    #[test]
    fn no_row_panics(row in any_row::<RawBackend>()) {
        match row.parse() {
            Ok(spec) => {
                prop_assert!(spec.addr.socket_addr().port() != 0);
                prop_assert!(spec.limits.hard() == 0 || spec.limits.soft() <= spec.limits.hard());
            }
            Err(why) => prop_assert!(why.to_string().len() < 2000),
        }
    }

    #[test]
    fn no_row_of_other_tables_panics(
        app in any_row::<RawApp>(),
        region in any_row::<RawRegion>(),
        listener in any_row::<RawListener>(),
        place in any_row::<RawGeoOverride>(),
        rule in any_row::<RawAcl>(),
    ) {
        let reasons = [
            app.parse().err().map(|why| why.to_string()),
            region.parse().err().map(|why| why.to_string()),
            listener.parse().err().map(|why| why.to_string()),
            place.parse().err().map(|why| why.to_string()),
            rule.parse().err().map(|why| why.to_string()),
        ];
        prop_assert!(reasons.iter().flatten().all(|why| why.len() < 2000));
    }
}

#[test]
fn apps_have_defaults_and_bad_values_are_named() {
    let spec = RawApp::named("web").parse().unwrap();
    assert_eq!(spec, AppSpec::new(AppName::parse("web").unwrap()));
    let row = RawApp {
        selection: "maglev".into(),
        next_region: "rtt".into(),
        affinity: "soft".into(),
        queue_length: 10.into(),
        queue_timeout_ms: 250.into(),
        ..RawApp::named("web")
    };
    let spec = row.parse().unwrap();
    assert_eq!((spec.selection, spec.affinity), (Selection::Maglev, Affinity::Soft));
    assert_eq!(spec.next_region, NextRegion::Rtt);
    assert_eq!((spec.queue.length, spec.queue.timeout.as_millis()), (10, 250));
    let refused = |row: RawApp| row.parse().unwrap_err().to_string();
    let hashed = RawApp { selection: "maglev".into(), ..RawApp::named("web") };
    assert_eq!(hashed.parse().unwrap().affinity, Affinity::None, "a hash needs no bindings");
    assert!(refused(RawApp { selection: "random".into(), ..row.clone() }).contains("use least_load, maglev"));
    assert!(refused(RawApp { next_region: "moon".into(), ..row.clone() }).contains("use position or rtt"));
    assert!(refused(RawApp { affinity: "lax".into(), ..row.clone() }).contains("use strict, soft or none"));
    assert!(refused(RawApp { queue_length: "long".into(), ..row }).contains("queue_length is \"long\""));
}

#[test]
fn listeners_have_defaults_and_bad_values_are_named() {
    let row = RawListener { id: "l".into(), port: 80.into(), ..RawListener::default() };
    let spec = row.parse().unwrap();
    assert_eq!((spec.spot.to_string().as_str(), spec.app, spec.max_connections), ("0.0.0.0:80", None, 0));
    assert_eq!((spec.accept_proxy, spec.server_names.len()), (AcceptProxy::Off, 0));
    let full = RawListener {
        app: "web".into(),
        address: "203.0.113.0/24".into(),
        last_port: 90.into(),
        server_name: "a.example, *.b.example".into(),
        accept_proxy: "optional".into(),
        proxy_from: "10.0.0.0/8 2001:db8::1".into(),
        ..row.clone()
    };
    let spec = full.parse().unwrap();
    assert_eq!((spec.spot.to_string().as_str(), spec.server_names.len()), ("203.0.113.0/24:80-90", 2));
    assert_eq!(spec.proxy_from.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "2001:db8::1/128"]);
    let refused = |row: RawListener| row.parse().unwrap_err().to_string();
    assert!(refused(RawListener { port: 0.into(), ..row.clone() }).contains("port is 0"));
    assert!(refused(RawListener { last_port: 79.into(), ..row.clone() }).contains("last_port 79 is below port 80"));
    assert!(refused(RawListener { proxy_from: RawValue::Null, ..full.clone() }).contains("needs proxy_from"));
    assert!(refused(RawListener { proxy_from: "lan".into(), ..full.clone() }).contains("proxy_from \"lan\""));
    assert!(refused(RawListener { server_name: "a b!".into(), ..full }).contains("is not a host name"));
}

#[test]
fn overrides_lead_somewhere() {
    let row = RawGeoOverride { prefix: "203.0.113.0/24".into(), country: "br".into(), ..RawGeoOverride::default() };
    assert_eq!(row.parse().unwrap().to_string(), "203.0.113.0/24=BR");
    let both = RawGeoOverride { region: "eu".into(), ..row.clone() };
    assert_eq!(both.parse().unwrap().to_string(), "203.0.113.0/24=region:eu");
    let refused = |row: RawGeoOverride| row.parse().unwrap_err().to_string();
    assert!(refused(RawGeoOverride { country: RawValue::Null, ..row.clone() }).contains("leads nowhere"));
    assert!(refused(RawGeoOverride { prefix: "203.0.113.1/24".into(), ..row.clone() }).contains("beyond its prefix"));
    assert!(refused(RawGeoOverride { prefix: RawValue::Null, ..row.clone() }).contains("prefix is missing"));
    assert!(refused(RawGeoOverride { prefix: "64:ff9b::/96".into(), ..row.clone() }).contains("write 0.0.0.0/0"));
    assert!(refused(RawGeoOverride { prefix: "64:ff9b::/64".into(), ..row.clone() }).contains("holds nobody"));
    assert!(refused(RawGeoOverride { country: "Brazil".into(), ..row }).contains("two letters"));
}
