#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::application::ports::{RoutingSource, SourceError};
use crate::application::routing::RoutingTable;
use crate::cli::db::{EXAMPLE, SCHEMA};
use crate::domain::{RawRouting, RawValue};

const SEED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../sql/seed.sql"));
const ROW: &str = "INSERT INTO backends (id, app, region, wg_ip, port) VALUES ('a', 'web', 'sa', '192.0.2.1', 80);";

struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("routing.db")
    }

    /// Runs a script in a connection of its own, as another process would.
    fn run(&self, script: &str) {
        run(&self.path(), script);
    }

    fn source(&self) -> SqliteSource {
        SqliteSource::new(self.path())
    }
}

fn run(path: &Path, script: &str) {
    Connection::open(path).unwrap().execute_batch(script).unwrap();
}

fn ids(raw: &RawRouting) -> Vec<String> {
    raw.backends.iter().map(|row| row.id().map_or_else(|why| why.to_string(), |id| id.to_string())).collect()
}

#[test]
fn a_missing_file_names_the_command_that_makes_it() {
    let files = Files::new();
    let mut source = files.source();
    assert!(matches!(source.changed(), Err(SourceError::Missing { .. })));
    let why = source.read_whole().unwrap_err().to_string();
    assert!(why.contains("edgeproxy db init"), "{why}");
    assert!(!files.path().exists(), "looking makes no file");
    files.run(SCHEMA);
    assert!(source.changed().unwrap());
    source.read_whole().unwrap();
    assert!(!source.changed().unwrap());
}

#[test]
fn the_seed_s_script_loads_unmodified() {
    let files = Files::new();
    files.run(SEED);
    let table = RoutingTable::new();
    let report = table.apply(&files.source().read_whole().unwrap(), false).unwrap();
    assert_eq!((report.accepted, report.apps, report.rejected.len()), (5, 1, 0));
    let snapshot = table.snapshot();
    let backend = |id: &str| snapshot.backends().find(|backend| backend.id.as_str() == id).unwrap();
    assert_eq!(backend("sa-node-1").addr.to_string(), "10.50.1.1:8080");
    assert_eq!((backend("sa-node-1").weight.0, backend("sa-node-1").limits.hard()), (2, 150));
    assert_eq!(backend("ap-node-1").addr.to_string(), "[fdaa:9:3ca6:a7b:5c5:84eb:a8dd:2]:8080");
    assert!(!backend("ap-node-1").healthy);
}

#[test]
fn the_seed_s_rows_load_into_our_schema() {
    let files = Files::new();
    files.run(SCHEMA);
    files.run(SEED.get(SEED.find("INSERT INTO").unwrap()..).unwrap());
    let report = RoutingTable::new().apply(&files.source().read_whole().unwrap(), false).unwrap();
    assert_eq!((report.accepted, report.rejected.len()), (5, 0));
}

#[test]
fn the_example_is_sound() {
    let files = Files::new();
    files.run(&format!("{SCHEMA} {EXAMPLE}"));
    let table = RoutingTable::new();
    let report = table.apply(&files.source().read_whole().unwrap(), false).unwrap();
    assert_eq!((report.accepted, report.apps, report.rejected.len()), (4, 1, 0));
    assert!(table.load().sole_app().is_some());
}

#[test]
fn commits_replacement_and_overwriting_are_noticed() {
    for mode in ["delete", "wal"] {
        let files = Files::new();
        files.run(&format!("PRAGMA journal_mode = {mode}; {SCHEMA}"));
        let mut source = files.source();
        source.read_whole().unwrap();
        assert!(!source.changed().unwrap());

        // Stays open, so that in WAL mode the log stays.
        let writer = Connection::open(files.path()).unwrap();
        writer.execute_batch(ROW).unwrap();
        assert!(source.changed().unwrap(), "{mode}: a commit");
        assert_eq!(ids(&source.read_whole().unwrap()), ["a"]);
        assert!(!source.changed().unwrap(), "{mode}: quiet again");
        writer.execute_batch("BEGIN; DELETE FROM backends;").unwrap();
        assert!(!source.changed().unwrap(), "{mode}: not yet committed");
        writer.execute_batch("ROLLBACK").unwrap();
        drop(writer);

        let other = files.directory.path().join("other.db");
        run(&other, &format!("{SCHEMA} {ROW} UPDATE backends SET id = 'b';"));
        // As `db init --force` does: a log that stays behind would be taken for the new file's.
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(files.directory.path().join(format!("routing.db{suffix}")));
        }
        std::fs::rename(&other, files.path()).unwrap();
        assert!(source.changed().unwrap(), "{mode}: replacement");
        assert_eq!(ids(&source.read_whole().unwrap()), ["b"]);
        assert!(!source.changed().unwrap());

        run(&other, &format!("{SCHEMA} {ROW} UPDATE backends SET id = 'c';"));
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::copy(&other, files.path()).unwrap();
        assert!(source.changed().unwrap(), "{mode}: overwritten in place");
        assert_eq!(ids(&source.read_whole().unwrap()), ["c"]);

        std::fs::remove_file(files.path()).unwrap();
        assert!(matches!(source.changed(), Err(SourceError::Missing { .. })));
    }
}

#[test]
fn missing_and_unknown_columns_and_tables_are_tolerated() {
    let files = Files::new();
    files.run(
        "CREATE TABLE Backends (ID TEXT, app TEXT, region TEXT, wg_ip TEXT, port INTEGER, colour TEXT);
         INSERT INTO backends VALUES ('a', 'web', 'sa', '192.0.2.1', 80, 'red');
         CREATE TABLE regions (name TEXT, colour TEXT);
         INSERT INTO regions VALUES ('af', 'blue');",
    );
    let raw = files.source().read_whole().unwrap();
    assert_eq!((ids(&raw), raw.regions.len()), (vec!["a".to_owned()], 1));
    assert_eq!(raw.backends[0].weight, RawValue::Null);
    assert!(raw.backends[0].parse().is_ok());
}

#[test]
fn rows_of_wrong_types_are_refused_alone_by_id() {
    let files = Files::new();
    files.run(SEED);
    files.run(
        "UPDATE backends SET port = 'http' WHERE id = 'sa-node-1';
         UPDATE backends SET wg_ip = x'00ff' WHERE id = 'sa-node-2';
         UPDATE backends SET region = CAST(x'ff' AS TEXT) WHERE id = 'us-node-1';
         INSERT INTO backends (app) VALUES ('nameless');",
    );
    let report = RoutingTable::new().apply(&files.source().read_whole().unwrap(), false).unwrap();
    let mut names: Vec<&str> = report.rejected.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["row 1", "sa-node-1", "sa-node-2", "us-node-1"]);
    assert_eq!(report.accepted, 2);
}

#[test]
fn unusable_files_are_errors_that_say_so() {
    let files = Files::new();
    let said = |source: &mut SqliteSource| source.read_whole().unwrap_err().to_string();
    std::fs::write(files.path(), "this is no database, but it is longer than a header of one hundred bytes".repeat(3))
        .unwrap();
    assert!(said(&mut files.source()).contains("not a database"));
    std::fs::remove_file(files.path()).unwrap();
    files.run("CREATE TABLE other (id TEXT)");
    assert!(said(&mut files.source()).contains("no table `backends`"));
    files.run("CREATE TABLE backends (id TEXT, app TEXT, region TEXT, port INTEGER)");
    assert!(said(&mut files.source()).contains("no column `wg_ip`"));
    std::fs::remove_file(files.path()).unwrap();
    std::fs::create_dir(files.path()).unwrap();
    assert!(files.source().read_whole().is_err());
}

#[test]
fn a_locked_file_is_an_error_now_and_read_later() {
    let files = Files::new();
    files.run(&format!("{SCHEMA} {ROW}"));
    let mut source = files.source();
    let writer = Connection::open(files.path()).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let why = source.read_whole().unwrap_err().to_string();
    assert!(why.contains("locked"), "{why}");
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(ids(&source.read_whole().unwrap()), ["a"]);
    // Who only looks whether it has changed says the same.
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_eq!(source.changed().unwrap_err().to_string(), why);
    writer.execute_batch("COMMIT").unwrap();
    assert!(!source.changed().unwrap());
}

/// The schema keeps to what Corrosion accepts.
#[test]
fn the_schema_can_be_replicated() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    let text: String =
        SCHEMA.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
    for word in ["UNIQUE", "REFERENCES", "FOREIGN", "AUTOINCREMENT", "VIEW", "TRIGGER", "WITHOUT"] {
        assert!(!text.to_uppercase().contains(word), "{word}");
    }
    let mut columns = connection
        .prepare(
            "SELECT t.name || '.' || c.name, c.type, c.\"notnull\", c.dflt_value IS NOT NULL, c.pk
             FROM pragma_table_list t JOIN pragma_table_info(t.name) c WHERE t.name NOT LIKE 'sqlite_%'",
        )
        .unwrap();
    let columns: Vec<(String, String, bool, bool, i64)> = columns
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(columns.len() > 15);
    for (name, kind, not_null, has_default, key) in columns {
        match key {
            0 => assert!(!not_null || has_default, "{name} is NOT NULL without a default"),
            1 => assert!(kind == "TEXT" && not_null, "{name} is a key of type {kind}"),
            _ => panic!("{name}: composite key"),
        }
    }
}

#[test]
fn the_schema_refuses_what_the_loader_would() {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(&format!("{SCHEMA} {ROW}")).unwrap();
    for change in [
        "port = 0",
        "port = 65536",
        "port = 'http'",
        "port = 80.5",
        "weight = -1",
        "weight = 'much'",
        "soft_limit = -1",
        "hard_limit = 50",
        "healthy = 2",
        "state = 'resting'",
        "country = 'Brazil'",
        "app = ''",
        "region = ''",
        "wg_ip = ''",
        "deleted = 2",
    ] {
        assert!(connection.execute_batch(&format!("UPDATE backends SET {change}")).is_err(), "{change}");
    }
    for change in ["hard_limit = 100", "weight = NULL", "state = 'drain'", "soft_limit = 0", "port = 65535"] {
        connection.execute_batch(&format!("UPDATE backends SET {change}")).unwrap();
    }
}

/// As a user who may not write the directory finds it: a WAL database that its last writer has closed.
#[test]
fn immutable_reading_gives_the_same_rows() {
    let files = Files::new();
    files.run(&format!("PRAGMA journal_mode = wal; {SCHEMA} {ROW}"));
    let mut source = files.source();
    let mut backends = Vec::new();
    let others = source.read_without_log(&mut |batch| backends.extend(batch)).unwrap();
    assert_eq!(ids(&RawRouting { backends, ..others }), ["a"]);
    assert!(!source.changed().unwrap());
    let writer = Connection::open(files.path()).unwrap();
    writer.execute_batch("UPDATE backends SET id = 'b'").unwrap();
    assert!(source.changed().unwrap());
    assert!(source.read_without_log(&mut |_| {}).is_err(), "the log holds what the file lacks");
    assert_eq!(ids(&source.read_whole().unwrap()), ["b"]);
}

/// A copy of a database in the middle of a transaction that has written to the file already: as its writer leaves it that dies.
fn left_by_a_dead_writer() -> Files {
    let (living, dead) = (Files::new(), Files::new());
    living.run(&format!("{SCHEMA} {ROW} CREATE TABLE junk (a BLOB);"));
    let writer = Connection::open(living.path()).unwrap();
    let spills = "PRAGMA cache_size = 2; BEGIN IMMEDIATE; UPDATE backends SET id = 'never'; \
                  WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 200) \
                  INSERT INTO junk SELECT randomblob(4000) FROM n";
    writer.execute_batch(spills).unwrap();
    for suffix in ["", "-journal"] {
        let of = |files: &Files| files.directory.path().join(format!("routing.db{suffix}"));
        std::fs::copy(of(&living), of(&dead)).unwrap();
    }
    assert!(has_journal(&dead.path()));
    dead
}

#[test]
fn what_a_dead_writer_left_is_rolled_back_and_never_read() {
    let files = left_by_a_dead_writer();
    let half = Connection::open_with_flags(
        format!("file:{}?immutable=1", files.path().display()),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_URI,
    );
    let id: String = half.unwrap().query_row("SELECT id FROM backends", [], |row| row.get(0)).unwrap();
    assert_eq!(id, "never", "the file alone has what was never committed");
    let mut source = files.source();
    assert_eq!(ids(&source.read_whole().unwrap()), ["a"]);
    assert!(!has_journal(&files.path()) && !source.changed().unwrap());
}

/// Between the journal and the first page of the file: nothing but the journal shows that there was a writer.
#[test]
fn a_dead_writer_that_has_not_touched_the_file_stops_nobody() {
    let (files, dead) = (left_by_a_dead_writer(), left_by_a_dead_writer());
    let link = files.directory.path().join("link.db");
    std::os::unix::fs::symlink(files.path(), &link).unwrap();
    assert!(has_journal(&link), "SQLite looks beside the file that is linked to");
    let mut source = files.source();
    source.read_whole().unwrap();
    let journal = |files: &Files| files.directory.path().join("routing.db-journal");
    std::fs::copy(journal(&dead), journal(&files)).unwrap();
    assert!(source.changed().unwrap());
    assert_eq!(ids(&source.read_whole().unwrap()), ["a"]);
    assert!(!has_journal(&files.path()) && !source.changed().unwrap());
}

#[test]
fn what_a_dead_writer_left_is_not_read_where_it_cannot_be_rolled_back() {
    let files = left_by_a_dead_writer();
    let mut source = files.source();
    assert!(source.read_without_log(&mut |_| {}).is_err(), "the journal holds what the file lacks");
    // Nobody can write to it, not even root.
    let path = files.path().display().to_string();
    let mount = |arguments: &[&str]| {
        std::process::Command::new("mount")
            .args(arguments)
            .arg(&path)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let is_mounted = mount(&["--bind", &path]);
    let said = (is_mounted && mount(&["-o", "remount,bind,ro"])).then(|| source.read_whole().unwrap_err().to_string());
    if is_mounted {
        let _ = std::process::Command::new("umount").args(["--lazy", &path]).status();
    }
    // Without privileges it can't be tried.
    if let Some(said) = said {
        assert!(said.contains("died in the middle of a transaction") && said.contains("edgeproxy db list"), "{said}");
    }
    assert!(has_journal(&files.path()));
}
