//! Reloads disturb nothing: not when they come a hundred times a second, not with a hundred thousand rows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::bench::Bench;
use common::{NETWORK, Over, PORT, SOON, World, tally};
use serde_json::Value;
use xtask::lab::{Daemon, Ns};
use xtask::load::{Behaviour, Load, Manner, Visit};

const STORM: Duration = Duration::from_secs(60);
const A_SECOND: u64 = 100;
/// On a machine that is too slow for a hundred a second the storm takes longer.
const LIMIT: Duration = Duration::from_secs(240);

/// 100 reloads a second for 60 seconds, each with rows that changed, while connections of all kinds come, live and end.
#[test]
fn a_storm_of_reloads_loses_no_connection() {
    let test = "a_storm_of_reloads_loses_no_connection";
    let Some(bench) = Bench::new("auto", NETWORK, test, &[("app", "web")]) else { return };
    let world = &bench.world;
    // Of another app, so that its row can be bad.
    let other = "INSERT INTO backends (id, app, region, wg_ip, port) VALUES ('b9', 'other', 'sa', '10.66.0.9', 7000)";
    world.database.execute(other);
    let over = AtomicBool::new(false);
    let (connections, reloads) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut met_by = Vec::new();
    let storm = || {
        let database = rusqlite::Connection::open(world.database.path()).unwrap();
        database.execute_batch("PRAGMA synchronous = OFF").unwrap();
        database.busy_timeout(SOON).unwrap();
        let started = Instant::now();
        let wanted = STORM.as_secs() * A_SECOND;
        for turn in 0..wanted {
            database.execute_batch(&changes(turn)).unwrap();
            let answer = bench.daemon.post("/api/v1/reload", "{}").unwrap();
            assert_eq!(answer.code, 200, "{}", answer.body);
            reloads.fetch_add(1, Ordering::Relaxed);
            let due = Duration::from_micros(1_000_000 / A_SECOND * (turn + 1));
            thread::sleep(due.saturating_sub(started.elapsed()));
            assert!(started.elapsed() < LIMIT, "not done within {LIMIT:?}: {}", rate(turn + 1, started.elapsed()));
        }
        let took = started.elapsed();
        over.store(true, Ordering::SeqCst);
        // Shown whatever fails after it.
        eprintln!("{}", rate(wanted, took));
        took
    };
    let took = thread::scope(|scope| {
        let storm = scope.spawn(|| {
            // Whatever happens, the load has to end.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(storm));
            over.store(true, Ordering::SeqCst);
            result
        });
        let mut seed = 0;
        while !over.load(Ordering::SeqCst) {
            seed += 1;
            let load = Load { at_once: 24, max_bytes: 1 << 18, ..Load::mixed(20 * Behaviour::ALL.len() as u64, seed) };
            let before = reloads.load(Ordering::Relaxed);
            let report = bench.run(&load);
            bench.assert_clean(&report);
            connections.fetch_add(load.connections, Ordering::Relaxed);
            met_by.push(reloads.load(Ordering::Relaxed) - before);
        }
        storm.join().unwrap().unwrap()
    });
    bench.assert_at_rest();
    let status = bench.daemon.status().unwrap();
    let made = reloads.load(Ordering::Relaxed);
    let achieved = format!("{}; those that met each pass of the load: {met_by:?}", rate(made, took));
    println!("{achieved}");
    assert!(made >= 6_000 && took >= STORM, "{achieved}");
    assert!(status.number("/routing/generation") > 6_000, "{achieved}\n{:#}", status.0);
    // Clients came all the while, and no pass slipped through between two reloads.
    assert!(met_by.len() >= 5 && met_by.iter().rev().skip(1).all(|met| *met >= 50), "{achieved}");
    let records = bench.daemon.access_log(SOON, |records| records.len() as u64 >= connections.load(Ordering::Relaxed));
    let turned_away: Vec<_> = records.iter().filter(|record| record.reject.is_some()).collect();
    assert!(turned_away.is_empty(), "{turned_away:?}");
}

fn rate(reloads: u64, took: Duration) -> String {
    format!("{reloads} reloads in {took:.1?}: {:.1} a second", reloads as f64 / took.as_secs_f64())
}

/// Weights and limits change, backends flap between states, come and go, regions move, rows turn bad and good. `v4-1`
/// always takes clients.
fn changes(turn: u64) -> String {
    let mut sql = String::from("BEGIN;");
    let weight = turn % 5 + 1;
    let _ = write!(sql, "UPDATE backends SET weight = {weight}, soft_limit = {} WHERE id = 'v4-1';", 50 + turn % 50);
    let state = if turn.is_multiple_of(2) { "drain" } else { "ready" };
    let _ = write!(sql, "UPDATE backends SET state = '{state}' WHERE id = 'v4-2';");
    let _ = write!(sql, "UPDATE backends SET deleted = {} WHERE id = 'v6-2';", u8::from(turn.is_multiple_of(3)));
    let _ = write!(sql, "UPDATE backends SET healthy = {} WHERE id = 'v6-1';", u8::from(!turn.is_multiple_of(7)));
    let _ = write!(sql, "INSERT OR REPLACE INTO regions (name, latitude, longitude) VALUES ('sa', {}, 0);", turn % 90);
    let _ =
        write!(sql, "INSERT OR REPLACE INTO geo_overrides (prefix, region) VALUES ('9.{}.0.0/16', 'sa');", turn % 256);
    let bad = if turn.is_multiple_of(4) { "'Brazil'" } else { "'BR'" };
    let _ = write!(sql, "PRAGMA ignore_check_constraints = ON; UPDATE backends SET country = {bad} WHERE id = 'b9';");
    sql += "COMMIT;";
    sql
}

/// `db_reload_secs` with 100,000 backends.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reloads now, changed or not, after which no change is left to be seen; the generation, and how long it took.
fn settled(daemon: &Daemon) -> (u64, Duration) {
    let from = Instant::now();
    let answer = daemon.post("/api/v1/reload", "{}").unwrap();
    let report: Value = serde_json::from_str(&answer.body).unwrap();
    (report["generation"].as_u64().unwrap(), from.elapsed())
}

/// Where a client of the app would go, from one snapshot. The status of so many backends, and their metrics, take long;
/// this looks at one app only.
fn explain(world: &World, daemon: &Daemon, app: &str) -> Value {
    let asked = format!("/api/v1/explain?client={}&app={app}", world.lab.client(50));
    serde_json::from_str(&daemon.get(&asked).unwrap().body).unwrap()
}

/// Waits until a later snapshot than that of `before` is in force, and holds that none of these has the old row: the first
/// reload that began after the change has brought it. How long that may be is generous, for a debug build on a busy machine.
fn is_brought_by_the_first_reload(world: &World, daemon: &Daemon, before: (u64, Duration), winner: &str) {
    let (from, (before, takes)) = (Instant::now(), before);
    let limit = INTERVAL + 3 * takes + SOON;
    loop {
        let answer = explain(world, daemon, "web");
        let generation = answer["generation"].as_u64().unwrap();
        assert_eq!(answer["winner"] == winner, generation > before, "{winner} after generation {before}: {answer}");
        if generation > before {
            eprintln!("{winner} after {:?}, a reload takes {takes:?}: {before} → {generation}", from.elapsed());
            return;
        }
        assert!(from.elapsed() < limit, "no reload within {limit:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// 100,000 backends of 1,000 apps; rows change, each change is live with the next look at the file, and connections live,
/// come and go meanwhile.
#[test]
fn a_hundred_thousand_backends_are_reloaded_and_nobody_notices() {
    let test = "a_hundred_thousand_backends_are_reloaded_and_nobody_notices";
    let Some(world) = World::new(NETWORK, test) else { return };
    let _backends = [1, 2].map(|n| world.backend(n, Manner::Echo, |row| row));
    world.database.execute("UPDATE backends SET state = 'drain' WHERE id = 'b2'");
    world.database.execute(&format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 99998) \
         INSERT INTO backends (id, app, region, wg_ip, port) \
         SELECT 'x' || n, 'app-' || (n % 999), 'sa', '10.66.0.7', {PORT} FROM n"
    ));
    let daemon = world.daemon(&[("app", "web"), ("db_reload_secs", &INTERVAL.as_secs().to_string())]);
    let mut held: Vec<_> = (0..8).map(|n| world.visit(n, daemon.addr()).unwrap()).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&over);
        let visitor = scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::SeqCst) {
                count += 1;
                let client = world.lab.client(100 + count % 5_000);
                let visit = world.lab.run_in(Ns::Clients, || Visit::start(client, daemon.addr()));
                visit.and_then(Visit::finish).unwrap();
            }
            count
        });
        for turn in 1..=5 {
            let (from, to) = if turn % 2 == 1 { (1, 2) } else { (2, 1) };
            let before = settled(&daemon);
            // In one transaction, and so in one reload.
            world.database.execute(&format!(
                "PRAGMA ignore_check_constraints = ON; BEGIN; \
                 UPDATE backends SET state = 'ready' WHERE id = 'b{to}'; \
                 UPDATE backends SET state = 'drain' WHERE id = 'b{from}'; \
                 UPDATE backends SET weight = {turn} + 1 WHERE app = 'app-{turn}'; \
                 UPDATE backends SET port = 0 WHERE id = 'x{turn}'; COMMIT"
            ));
            let winner = format!("b{to}");
            is_brought_by_the_first_reload(&world, &daemon, before, &winner);
            assert_eq!(world.visit(50, daemon.addr()).unwrap().backend, winner);
            // Of the many, too, all but the bad one.
            let many = explain(&world, &daemon, &format!("app-{turn}"));
            let weights = many["candidates"].as_array().unwrap().iter().map(|row| row["weight"].as_u64().unwrap());
            assert_eq!(tally(weights), [(turn + 1, 100), (1, 1)].into(), "{many}");
            held.iter_mut().for_each(|visit| visit.echo(b"a reload leaves existing connections alone").unwrap());
        }
        over.store(true, Ordering::SeqCst);
        assert!(visitor.join().unwrap() > 5);
    });
    // One bad row each time, which was refused alone. The status of so many takes long: it is looked at once.
    let status = daemon.status().unwrap();
    assert_eq!((status.number("/routing/apps"), status.number("/routing/backends")), (1_000, 100_000));
    let rejected = status.0["routing"]["rejected_rows"].as_array().unwrap();
    let mut names: Vec<_> = rejected.iter().map(|row| row["row"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["x1", "x2", "x3", "x4", "x5"]);
    held.into_iter().for_each(|visit| visit.finish().unwrap());
}

/// What the thread's `/proc/…/sched` says under a name; `None` where this kernel says nothing.
fn of_thread(daemon: &Daemon, name: &str, what: &str) -> Option<u64> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap().path());
    let is_it =
        |path: &std::path::PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|found| found.trim() == name);
    let thread = threads.find(is_it).unwrap_or_else(|| panic!("no thread {name}"));
    let said = std::fs::read_to_string(thread.join("sched")).ok()?;
    let (_, value) = said.lines().filter_map(|line| line.split_once(':')).find(|(found, _)| found.trim() == what)?;
    value.trim().parse().ok()
}

/// Who reloads gives way to workers: see `domain/courtesy.rs`. How long they wait all the same is for the benchmark.
#[test]
fn threads_that_can_wait_have_a_low_priority_and_a_short_slice() {
    let test = "threads_that_can_wait_have_a_low_priority_and_a_short_slice";
    let Some(world) = World::new(NETWORK, test) else { return };
    let daemon = world.daemon(&[("app", "web")]);
    let (usual, low) = (120, 130);
    for name in ["edge-reload", "edge-listeners"] {
        assert_eq!(of_thread(&daemon, name, "prio").unwrap_or(low), low, "{name}");
        // Since Linux 6.12 in ns; some ms where nobody has asked for another one, and in older ones for all.
        if let (Some(slice), Some(of_worker)) =
            (of_thread(&daemon, name, "se.slice"), of_thread(&daemon, "edge-worker-0", "se.slice"))
        {
            let is_old = slice == of_worker && !has_slices();
            assert!(is_old || slice == 100_000, "{name}: {slice}, a worker's {of_worker}");
        }
    }
    assert_eq!(of_thread(&daemon, "edge-worker-0", "prio").unwrap_or(usual), usual);
}

/// Whether threads can ask for slices of another length.
fn has_slices() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}
