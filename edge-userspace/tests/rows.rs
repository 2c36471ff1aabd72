//! Rows that are wrong in every way that anybody thought of: each is refused by name with a reason, and harms nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use common::listening::app;
use common::{NETWORK, SOON, World};
use xtask::load::Manner;

/// Table, the columns besides the key, their values, and what the reason must say.
const CORPUS: &[(&str, &str, &str, &str)] = &[
    ("backends", "app, region, wg_ip, port", "'', 'sa', '192.0.2.1', 80", "app is missing"),
    ("backends", "app, region, wg_ip, port", "'a b', 'sa', '192.0.2.1', 80", "white space"),
    ("backends", "app, region, wg_ip, port", "x'00ff', 'sa', '192.0.2.1', 80", "app is a blob"),
    ("backends", "app, region, wg_ip, port", "'x', '', '192.0.2.1', 80", "region is missing"),
    ("backends", "app, region, wg_ip, port", "'x', 'sa', 'backend.example', 80", "not an IPv4 or IPv6 address"),
    ("backends", "app, region, wg_ip, port", "'x', 'sa', '0.0.0.0', 80", "unspecified"),
    ("backends", "app, region, wg_ip, port", "'x', 'sa', '224.0.0.1', 80", "unicast"),
    ("backends", "app, region, wg_ip, port", "'x', 'sa', '192.0.2.1', 0", "port is 0"),
    ("backends", "app, region, wg_ip, port", "'x', 'sa', '192.0.2.1', 65616", "port is 65616"),
    ("backends", "app, region, wg_ip, port", "'x', 'sa', '192.0.2.1', 'http'", "port is \"http\""),
    ("backends", "app, region, wg_ip, port, weight", "'x', 'sa', '192.0.2.1', 80, -1", "weight is -1"),
    ("backends", "app, region, wg_ip, port, weight", "'x', 'sa', '192.0.2.1', 80, 1.5", "weight is 1.5"),
    (
        "backends",
        "app, region, wg_ip, port, soft_limit, hard_limit",
        "'x', 'sa', '192.0.2.1', 80, 9, 3",
        "above hard_limit",
    ),
    ("backends", "app, region, wg_ip, port, healthy", "'x', 'sa', '192.0.2.1', 80, 2", "healthy is 2"),
    ("backends", "app, region, wg_ip, port, healthy", "'x', 'sa', '192.0.2.1', 80, 'yes'", "healthy is \"yes\""),
    (
        "backends",
        "app, region, wg_ip, port, state",
        "'x', 'sa', '192.0.2.1', 80, 'resting'",
        "use ready, drain or maint",
    ),
    ("backends", "app, region, wg_ip, port, country", "'x', 'sa', '192.0.2.1', 80, 'Brazil'", "two letters"),
    ("backends", "app, region, wg_ip, port, send_proxy", "'x', 'sa', '192.0.2.1', 80, 'v3'", "v3"),
    ("backends", "app, region, wg_ip, port, health_check", "'x', 'sa', '192.0.2.1', 80, 'ping'", "ping"),
    ("backends", "app, region, wg_ip, port, health_check", "'x', 'sa', '192.0.2.1', 80, 'http status=999'", "999"),
    ("apps", "selection", "'random'", "use least_load, maglev or nearest_rtt"),
    ("apps", "affinity", "'lax'", "use strict, soft or none"),
    ("apps", "queue_length", "'long'", "queue_length is \"long\""),
    ("apps", "queue_timeout_ms", "-5", "queue_timeout_ms is -5"),
    ("listeners", "port", "0", "port is 0"),
    ("listeners", "address, port", "'everywhere', 9000", "everywhere"),
    ("listeners", "address, port", "'203.0.113.7/24', 9000", "write 203.0.113.0/24"),
    ("listeners", "port, last_port", "9000, 8000", "below port 9000"),
    ("listeners", "port, server_name", "9000, 'no name!'", "host name"),
    ("listeners", "port, accept_proxy", "9000, 'maybe'", "use off, optional or required"),
    ("listeners", "port, accept_proxy", "9000, 'required'", "needs proxy_from"),
    ("listeners", "port, accept_proxy, proxy_from", "9000, 'required', 'lan'", "proxy_from \"lan\""),
    ("listeners", "port, max_connections", "9000, -1", "max_connections is -1"),
    ("regions", "latitude, longitude", "91, 0", "not a position"),
    ("regions", "latitude", "10", "not a position"),
    ("regions", "countries", "'ZA,Namibia'", "two letters"),
    ("geo_overrides", "country", "'Brazil'", "two letters"),
    ("acl", "prefix", "'everybody'", "everybody"),
    ("acl", "prefix", "'203.0.113.7/24'", "beyond its prefix"),
    ("acl", "prefix", "'64:ff9b::/96'", "write 0.0.0.0/0"),
    ("acl", "prefix", "'::ffff:0:0/96'", "write 0.0.0.0/0"),
    ("acl", "prefix", "'64:ff9b::/64'", "holds nobody"),
    ("listeners", "address, port", "'::ffff:0:0/96', 9000", "write 0.0.0.0/0"),
    ("listeners", "port, accept_proxy, proxy_from", "9000, 'required', '::ffff:0:0/96'", "write 0.0.0.0/0"),
    ("acl", "prefix, action", "'203.0.113.0/24', 'maybe'", "use allow or deny"),
    ("acl", "prefix, app", "'203.0.113.0/24', 'a b'", "white space"),
    ("acl", "prefix, listener", "'203.0.113.0/24', 'a b'", "white space"),
    ("geo_overrides", "country", "NULL", "leads nowhere"),
    ("geo_overrides", "region", "'a b'", "white space"),
    ("backends", "app, region, wg_ip, port, same_host", "'x', 'sa', '192.0.2.1', 80, 2", "same_host is 2"),
    (
        "backends",
        "app, region, wg_ip, port, same_host, send_proxy",
        "'x', 'sa', '192.0.2.1', 80, 1, 'v2'",
        "same_host and send_proxy exclude each other",
    ),
    ("apps", "health_check", "'ping'", "ping"),
    ("apps", "queue_length", "1000001", "from 0 to 1000000"),
    ("apps", "queue_timeout_ms", "0", "from 1 to 600000"),
    ("listeners", "port, max_connections", "9000, 10000001", "from 0 to 10000000"),
    ("listeners", "port, app", "9000, 'a b'", "white space"),
    // Neither there nor deleted.
    ("backends", "app, region, wg_ip, port, deleted", "'x', 'sa', '192.0.2.1', 80, 2", "deleted is 2"),
    ("apps", "deleted", "'no'", "deleted is \"no\""),
    ("listeners", "port, deleted", "9000, -1", "deleted is -1"),
    ("regions", "deleted", "0.5", "deleted is 0.5"),
    ("geo_overrides", "country, deleted", "'BR', 2", "deleted is 2"),
    ("acl", "prefix, deleted", "'203.0.113.0/24', 2", "deleted is 2"),
];

/// Rows that are good by themselves and contradict one that is in force, before which each would be read.
const INTRUDERS: &[(&str, &str, &str, &str)] = &[
    ("listeners", "id, app, address, port", "'aaa', 'other', '10.63.0.1', 90", "web-main"),
    (
        "listeners",
        "id, app, address, port, server_name, accept_proxy, proxy_from",
        "'aab', 'web', '10.63.0.1', 90, 'a.example', 'required', '10.63.0.0/24'",
        "web-main",
    ),
    ("listeners", "id, app, address, port", "' web-main', 'other', '10.63.0.1', 91", "id occurs twice"),
    ("acl", "id, prefix, action", "'allow-all', 'CLIENT', 'allow'", "deny-bad"),
    ("acl", "id, prefix, action", "' deny-bad', 'CLIENT', 'allow'", "id occurs twice"),
    ("geo_overrides", "prefix, country", "'9.0.0.0/8', 'JP'", "the same prefix"),
    ("regions", "name, latitude, longitude", "' af', 60, 60", "the same name"),
    ("apps", "name, health_check", "' web', 'tcp interval=1s'", "the same name"),
    ("backends", "id, app, region, wg_ip, port", "' b1', 'web', 'sa', '192.0.2.1', 80", "id occurs twice"),
];

fn key_of(table: &str) -> &'static str {
    match table {
        "apps" | "regions" => "name",
        "geo_overrides" => "prefix",
        _ => "id",
    }
}

/// The key of the `n`-th bad row.
fn name_of(table: &str, n: usize) -> String {
    if table == "geo_overrides" { format!("10.{n}.0.0/16") } else { format!("bad-{n:02}") }
}

fn rejected_rows(status: &xtask::lab::Status) -> Vec<serde_json::Value> {
    status.0["routing"]["rejected_rows"].as_array().unwrap().clone()
}

#[test]
fn each_malformed_row_is_refused_by_name_and_harms_nobody() {
    let Some(world) = World::new(NETWORK, "each_malformed_row_is_refused_by_name_and_harms_nobody") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let mut daemon = world.daemon(&[("app", "web")]);
    let mut held = world.visit(1, daemon.addr()).unwrap();
    let mut sql = String::from("PRAGMA ignore_check_constraints = ON; BEGIN;");
    for (n, (table, columns, values, _)) in CORPUS.iter().enumerate() {
        let key = key_of(table);
        sql += &format!("INSERT INTO {table} ({key}, {columns}) VALUES ('{}', {values});", name_of(table, n));
    }
    world.database.execute(&(sql + "COMMIT;"));
    let status = daemon.wait_status(SOON, |status| rejected_rows(status).len() >= CORPUS.len()).unwrap();
    let rejected = rejected_rows(&status);
    for (n, (table, _, values, words)) in CORPUS.iter().enumerate() {
        let name = name_of(table, n);
        let of_row = rejected.iter().find(|row| row["row"].as_str().unwrap().ends_with(&name));
        let row = of_row.unwrap_or_else(|| panic!("{name} ({values}) is not among {rejected:?}"));
        assert!(row["why"].as_str().unwrap().contains(words), "{name} ({values}): {row}");
    }
    assert_eq!(rejected.len(), CORPUS.len(), "{rejected:?}");
    held.echo(b"still here").unwrap();
    assert_eq!(world.visit(2, daemon.addr()).unwrap().backend, "b1");
    assert_eq!(status.0["backends"].as_array().unwrap().len(), 1);
    // A daemon that starts with such a file begins its work, too.
    drop(held);
    assert!(daemon.terminate().unwrap().success());
    let daemon = world.daemon(&[("app", "web")]);
    assert_eq!(world.visit(2, daemon.addr()).unwrap().backend, "b1");
    assert_eq!(rejected_rows(&daemon.status().unwrap()).len(), CORPUS.len());
}

/// Whoever is in force stays, and the newcomer is refused, while the daemon runs. Without that a row could take a place
/// from another, or let those in whom another one keeps out.
#[test]
fn a_row_that_contradicts_one_in_force_is_refused_itself() {
    let Some(world) = World::new(NETWORK, "a_row_that_contradicts_one_in_force_is_refused_itself") else { return };
    let _backends = [world.backend(1, Manner::Echo, |row| row), app(&world, 2)];
    let denied = world.lab.client(1).to_string();
    let sql = format!(
        "UPDATE backends SET app = 'other' WHERE id = 'b2';
         INSERT INTO listeners (id, app, address, port) VALUES ('web-main', 'web', '10.63.0.1', 90);
         INSERT INTO acl (id, prefix, action) VALUES ('deny-bad', '{denied}', 'deny');
         INSERT INTO geo_overrides (prefix, country) VALUES ('::ffff:9.0.0.0/104', 'BR');
         INSERT INTO regions (name, latitude, longitude) VALUES ('af', -26, 28);
         INSERT INTO apps (name) VALUES ('web');"
    );
    world.database.execute(&sql);
    let daemon = world.daemon(&[("app", "web")]);
    let main = (daemon.addr().ip(), 90).into();
    let is_as_before = || {
        assert_eq!(world.visit(2, main).unwrap().backend, "b1");
        assert!(world.visit(1, main).is_err(), "the rule is in force");
    };
    is_as_before();
    for (table, columns, values, words) in INTRUDERS {
        let values = values.replace("CLIENT", &denied);
        world.database.execute(&format!("INSERT INTO {table} ({columns}) VALUES ({values})"));
        let is_told = |row: &serde_json::Value| row["why"].as_str().unwrap().contains(words);
        let status = daemon.wait_status(SOON, |status| rejected_rows(status).iter().any(is_told)).unwrap();
        let rejected = rejected_rows(&status);
        assert!(rejected.len() == 1 && is_told(&rejected[0]), "{values}: {rejected:?}");
        is_as_before();
        let key = values.split(',').next().unwrap();
        world.database.execute(&format!("DELETE FROM {table} WHERE {} = {key}", key_of(table)));
        daemon.wait_status(SOON, |status| rejected_rows(status).is_empty()).unwrap();
    }
    is_as_before();
}
