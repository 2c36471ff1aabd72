//! Tables that suddenly are empty or gone, as in a file that was restored by half, change nothing until that is confirmed;
//! nor does a file that is none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs;

use common::listening::{listen, listener};
use common::{NETWORK, SOON, World, edgeproxy, eventually};
use xtask::lab::Daemon;
use xtask::load::{Manner, Visit};

/// Client 1 is denied, and there is a listener on port 90.
fn world(test: &str) -> Option<(World, xtask::load::NamedBackend, Daemon)> {
    let world = World::new(NETWORK, test)?;
    let backend = world.backend(1, Manner::Echo, |row| row);
    let denied = world.lab.client(1);
    world.database.execute(&format!("INSERT INTO acl (id, prefix, action) VALUES ('bad', '{denied}', 'deny')"));
    listen(&world, "more", "web", "'10.63.0.1', 90, NULL");
    let daemon = world.daemon(&[]);
    eventually("the listener is open", || listener(&daemon, "more")["open"] == true);
    Some((world, backend, daemon))
}

fn is_served(world: &World, daemon: &Daemon, n: u16, port: u16) -> bool {
    world.visit(n, (daemon.addr().ip(), port).into()).and_then(Visit::finish).is_ok()
}

/// Waits until a reload is refused for that reason, by status and event.
fn is_refused(daemon: &Daemon, why: &str) {
    let is_told = |error: Option<&str>| error.is_some_and(|error| error.contains(why));
    let status = daemon.wait_status(SOON, |status| is_told(status.text("/routing/last_reload/error"))).unwrap();
    assert!(is_told(status.text("/routing/last_reload/error")), "{why}: {:#}", status.0);
    let events = daemon.get("/api/v1/events").unwrap().body;
    assert!(events.contains("reload_refused") && events.contains(why), "{why}: {events}");
}

#[test]
fn tables_that_vanish_or_lose_all_rows_are_refused_until_confirmed() {
    let test = "tables_that_vanish_or_lose_all_rows_are_refused_until_confirmed";
    let Some((world, _backend, daemon)) = world(test) else { return };
    let port = daemon.addr().port();
    let as_before = || {
        assert!(!is_served(&world, &daemon, 1, port), "the rule is in force");
        assert!(is_served(&world, &daemon, 2, 90), "the listener is open");
    };
    as_before();
    let generation = || daemon.status().unwrap().number("/routing/generation");
    let before = generation();
    world.database.execute("DELETE FROM acl");
    is_refused(&daemon, "no rows in `acl` where there were 1");
    as_before();
    world.database.execute("DROP TABLE acl");
    is_refused(&daemon, "no table `acl` where there was one with 1 rows");
    as_before();
    world.database.execute("ALTER TABLE listeners RENAME TO kept");
    is_refused(&daemon, "no table `listeners` where there was one with 1 rows");
    as_before();
    // Insisting without confirmation is answered with the way out.
    let (code, said) = edgeproxy(&daemon, &["reload"]);
    assert!(code != 0 && said.contains("`acl`") && said.contains("--allow-empty"), "{code}: {said}");
    assert_eq!(generation(), before);

    // One of them is restored, the other is meant.
    world.database.execute("ALTER TABLE kept RENAME TO listeners");
    let (code, said) = edgeproxy(&daemon, &["reload", "--allow-empty"]);
    assert_eq!(code, 0, "{said}");
    assert!(is_served(&world, &daemon, 1, port) && is_served(&world, &daemon, 2, 90));
    assert_eq!(daemon.status().unwrap().text("/routing/last_reload/error"), None);
}

#[test]
fn the_last_row_is_removed_by_the_commands_without_confirmation() {
    let test = "the_last_row_is_removed_by_the_commands_without_confirmation";
    let Some((world, _backend, daemon)) = world(test) else { return };
    for arguments in [["db", "acl", "rm", "bad"], ["db", "listener", "rm", "more"]] {
        let output = world.config().command(&world.lab, &arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    eventually("the rule is gone", || is_served(&world, &daemon, 1, daemon.addr().port()));
    eventually("the listener is closed", || !is_served(&world, &daemon, 2, 90));
    assert_eq!(daemon.status().unwrap().text("/routing/last_reload/error"), None);
}

#[test]
fn a_file_that_is_no_database_changes_nothing_until_it_is_replaced() {
    let test = "a_file_that_is_no_database_changes_nothing_until_it_is_replaced";
    let Some((world, _backend, daemon)) = world(test) else { return };
    let path = world.database.path();
    let (good, bad) = (path.with_extension("good"), path.with_extension("bad"));
    fs::copy(&path, &good).unwrap();
    fs::write(&bad, [b'x'; 10_000]).unwrap();
    fs::rename(&bad, &path).unwrap();
    is_refused(&daemon, "not a database");
    assert!(!is_served(&world, &daemon, 1, daemon.addr().port()), "the rule is in force");
    assert!(is_served(&world, &daemon, 2, 90), "the listener is open");
    let rejected = "edgeproxy_reloads_total{result=\"rejected\"} ";
    let metrics = daemon.metrics().unwrap();
    assert!(metrics.contains(rejected) && !metrics.contains(&format!("{rejected}0\n")), "{metrics}");

    fs::rename(&good, &path).unwrap();
    let is_well = |status: &xtask::lab::Status| status.text("/routing/last_reload/error").is_none();
    daemon.wait_status(SOON, is_well).unwrap();
    assert!(daemon.get("/api/v1/events").unwrap().body.contains("reload_mended"));
    world.database.execute("DELETE FROM acl; INSERT INTO acl (id, prefix, action) VALUES ('b', '10.0.0.9', 'deny')");
    eventually("the file that is there now counts", || is_served(&world, &daemon, 1, daemon.addr().port()));
}
