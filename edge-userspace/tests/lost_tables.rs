//! Tables that suddenly are empty or gone, as in a file that was restored by half, change nothing until that is confirmed;
//! nor does a file that is none, or that another program has locked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fs;

use common::listening::{listen, listener};
use common::{NETWORK, SOON, World, assert_said, edgeproxy, eventually};
use rusqlite::{Connection, ErrorCode};
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
    assert!(reloads(&daemon, "rejected") > 0);

    fs::rename(&good, &path).unwrap();
    let is_well = |status: &xtask::lab::Status| status.text("/routing/last_reload/error").is_none();
    daemon.wait_status(SOON, is_well).unwrap();
    assert!(daemon.get("/api/v1/events").unwrap().body.contains("reload_mended"));
    world.database.execute("DELETE FROM acl; INSERT INTO acl (id, prefix, action) VALUES ('b', '10.0.0.9', 'deny')");
    eventually("the file that is there now counts", || is_served(&world, &daemon, 1, daemon.addr().port()));
}

/// Without a write-ahead log who writes keeps readers out; with one there is nothing to test.
#[test]
fn a_locked_file_changes_nothing_until_it_is_released() {
    let Some((world, _backend, daemon)) = world("a_locked_file_changes_nothing_until_it_is_released") else { return };
    let port = daemon.addr().port();
    let as_before = || {
        assert!(!is_served(&world, &daemon, 1, port), "the rule is in force");
        assert!(is_served(&world, &daemon, 2, 90), "the listener is open");
    };
    let mut held = world.visit(3, daemon.addr()).unwrap();
    let before = daemon.status().unwrap().number("/routing/generation");
    let writer = Connection::open(world.database.path()).unwrap();
    writer.busy_timeout(SOON).unwrap();
    let mode: String = writer.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
    // The rule is about client 2 from now on.
    let denied = world.lab.client(2);
    writer.execute_batch(&format!("BEGIN EXCLUSIVE; UPDATE acl SET prefix = '{denied}'")).unwrap();
    assert!(readers_are_kept_out(&world));

    is_refused(&daemon, "is locked by another process");
    assert_said(&daemon, "the last good one stays: routing database");
    as_before();
    let (code, said) = edgeproxy(&daemon, &["reload"]);
    assert!(code != 0 && said.contains("is locked by another process"), "{code}: {said}");
    // Each look tries again, and that is counted, but told once.
    let rejected = || reloads(&daemon, "rejected");
    let (ok, twice) = (reloads(&daemon, "ok"), rejected() + 2);
    eventually("it is tried again", || rejected() >= twice);
    held.echo(b"still here").unwrap();
    as_before();
    let status = daemon.status().unwrap();
    let told = (status.number("/events/reload_refused"), status.number("/routing/generation"), reloads(&daemon, "ok"));
    assert_eq!(told, (1, before, ok), "{:#}", status.0);
    assert!(readers_are_kept_out(&world), "it was locked all the while");

    writer.execute_batch("COMMIT").unwrap();
    eventually("the changed row is live", || is_served(&world, &daemon, 1, port));
    assert!(!is_served(&world, &daemon, 2, 90), "the rule is about another one");
    let status = daemon.status().unwrap();
    assert_eq!(status.text("/routing/last_reload/error"), None, "{:#}", status.0);
    assert_eq!((status.number("/events/reload_mended"), status.number("/events/reload_refused")), (1, 1));
    held.finish().unwrap();
}

/// A writer that is killed in the middle of a transaction leaves a file with half of it, and a journal.
#[test]
fn what_a_dead_writer_left_never_routes() {
    let Some((world, _backend, daemon)) = world("what_a_dead_writer_left_never_routes") else { return };
    let (port, path) = (daemon.addr().port(), world.database.path());
    world.database.execute("CREATE TABLE junk (a BLOB)");
    let before = || !is_served(&world, &daemon, 1, port) && is_served(&world, &daemon, 2, 90);
    eventually("the table is loaded again", || daemon.status().unwrap().number("/routing/generation") >= 2);
    let journal = path.with_file_name(format!("{}-journal", path.file_name().unwrap().display()));
    let has_journal = || std::fs::metadata(&journal).is_ok_and(|metadata| metadata.len() > 0);
    let writer = Connection::open(&path).unwrap();
    writer.busy_timeout(SOON).unwrap();
    let spills = "PRAGMA journal_mode = DELETE; PRAGMA cache_size = 2; BEGIN EXCLUSIVE; DELETE FROM acl; \
                  WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 200) \
                  INSERT INTO junk SELECT randomblob(4000) FROM n";
    writer.execute_batch(spills).unwrap();
    assert!(has_journal());
    // It never ends its transaction, and its locks are gone like those of a killed process: closing any descriptor of a
    // file gives up all of the process's locks on it (POSIX).
    std::mem::forget(writer);
    drop(std::fs::File::open(&path).unwrap());
    eventually("it is rolled back", || !has_journal());
    assert!(before(), "what was never committed routes nobody");
    let (code, said) = edgeproxy(&daemon, &["reload"]);
    assert_eq!(code, 0, "{said}");
    assert!(before(), "nor after a reload");
}

fn readers_are_kept_out(world: &World) -> bool {
    let reader = Connection::open(world.database.path()).unwrap();
    reader.busy_timeout(std::time::Duration::ZERO).unwrap();
    let read = reader.query_row("SELECT count(*) FROM acl", [], |row| row.get::<_, u32>(0));
    read.is_err_and(|why| why.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
}

fn reloads(daemon: &Daemon, result: &str) -> u64 {
    let metrics = daemon.metrics().unwrap();
    let name = format!("edgeproxy_reloads_total{{result=\"{result}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}
