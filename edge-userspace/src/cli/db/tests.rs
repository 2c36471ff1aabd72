#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use clap::Parser;
use tempfile::TempDir;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    db: DbArgs,
}

struct Database {
    _directory: TempDir,
    path: PathBuf,
}

impl Database {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("routing.db");
        Self { _directory: directory, path }
    }

    fn run(&self, line: &str) -> Result<String> {
        let cli = Cli::try_parse_from(std::iter::once("db").chain(line.split_whitespace()))?;
        let mut out = Vec::new();
        execute(cli.db.command, &self.path, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    fn fails(&self, line: &str) -> String {
        format!("{:#}", self.run(line).unwrap_err())
    }

    fn rows(&self) -> serde_json::Value {
        serde_json::from_str(&self.run("list --json").unwrap()).unwrap()
    }
}

#[test]
fn init_makes_a_database_once() {
    let db = Database::new();
    assert!(db.fails("list").contains("edgeproxy db init"));
    db.run("init --example").unwrap();
    assert_eq!(db.rows().as_array().unwrap().len(), 4);
    assert!(db.fails("init").contains("--force"));
    db.run("init --force").unwrap();
    assert_eq!(db.rows().as_array().unwrap().len(), 0);
    let nowhere = Database { path: db.path.join("under/a/file"), _directory: tempfile::tempdir().unwrap() };
    assert!(nowhere.fails("init").contains("can't be"));
}

#[test]
fn a_backend_is_added_changed_and_removed() {
    let db = Database::new();
    db.run("init").unwrap();
    db.run("add b1 --app web --region sa --addr [2001:db8::1]:8080 --weight 2 --hard-limit 50 --country br").unwrap();
    let row = &db.rows()[0];
    assert_eq!(row["addr"], "[2001:db8::1]:8080");
    assert_eq!((&row["weight"], &row["soft_limit"], &row["hard_limit"]), (&json!(2), &json!(50), &json!(50)));
    assert_eq!((&row["country"], &row["state"], &row["healthy"]), (&json!("BR"), &json!("ready"), &json!(true)));
    assert!(db.fails("add b1 --app web --region sa --addr 192.0.2.1:1").contains("exists already"));

    for state in ["drain", "maint", "ready"] {
        db.run(&format!("{state} b1")).unwrap();
        assert_eq!(db.rows()[0]["state"], state);
    }
    db.run("set b1 weight=0 wg_ip=192.0.2.7 region=7 country=").unwrap();
    let row = &db.rows()[0];
    assert_eq!((&row["weight"], &row["addr"], &row["region"]), (&json!(0), &json!("192.0.2.7:8080"), &json!("7")));
    assert_eq!(row["country"], serde_json::Value::Null);
    assert!(db.run("list").unwrap().contains("192.0.2.7:8080"));

    db.run("rm b1").unwrap();
    assert_eq!(db.rows().as_array().unwrap().len(), 0);
    assert!(db.fails("drain b1").contains("no backend b1"));
    db.run("add b1 --app web --region us --addr 192.0.2.1:1").unwrap();
    assert_eq!(db.rows()[0]["region"], "us");
}

#[test]
fn what_the_loader_would_refuse_is_refused_and_nothing_changes() {
    let db = Database::new();
    db.run("init --example").unwrap();
    let before = db.rows();
    for (line, why) in [
        ("set sa-node-1 weight=3 port=0", "port is 0"),
        ("set sa-node-1 port=http", "an integer from 1 to 65535"),
        ("set sa-node-1 soft_limit=300", "above hard_limit 200"),
        ("set sa-node-1 state=resting", "ready, drain or maint"),
        ("set sa-node-1 wg_ip=backend.example", "not an IPv4 or IPv6 address"),
        ("set sa-node-1 app=", "app is missing"),
        ("set sa-node-1 colour=red", "no column \"colour\""),
        ("set sa-node-1 id=other", "id can't be set"),
        ("set sa-node-1 healthy=2", "healthy is \"2\": it must be 0 or 1"),
        ("set sa-node-1 country=XX", "country XX is none of ISO 3166-1"),
        ("add x --app web --region sa --addr 192.0.2.1:80 --country xx", "country XX is none"),
        ("set sa-node-1 weight", "write COLUMN=VALUE"),
        ("set nobody weight=1", "no backend nobody"),
        ("add x --app web --region sa --addr 0.0.0.0:80", "unspecified"),
        ("add x --app web --region sa --addr 192.0.2.1:80 --soft-limit 9 --hard-limit 5", "above hard_limit 5"),
        ("add x --app web --region sa --addr 192.0.2.1:80 --country Brazil", "two letters"),
    ] {
        let said = db.fails(line);
        assert!(said.contains(why), "{line}: {said}");
    }
    assert_eq!(db.rows(), before);
}

#[test]
fn the_seed_s_databases_can_be_edited() {
    let db = Database::new();
    let seed = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../sql/seed.sql"));
    Connection::open(&db.path).unwrap().execute_batch(seed).unwrap();
    db.run("drain sa-node-1").unwrap();
    let rows = db.rows();
    let state = |id: &str| rows.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap()["state"].clone();
    assert_eq!((state("sa-node-1"), state("sa-node-2")), (json!("drain"), json!("ready")));
}

#[test]
fn refused_rows_are_listed_with_the_reason() {
    let db = Database::new();
    Connection::open(&db.path)
        .unwrap()
        .execute_batch(
            "CREATE TABLE backends (id TEXT, app TEXT, region TEXT, wg_ip TEXT, port INTEGER);
             INSERT INTO backends VALUES ('a', 'web', 'sa', '192.0.2.1', 'http');",
        )
        .unwrap();
    assert!(db.run("list").unwrap().contains("\"a\" is refused: port is \"http\""));
    assert!(db.rows()[0]["refused"].as_str().unwrap().contains("port"));
}

#[test]
fn limits_are_changed_together_in_any_order() {
    let db = Database::new();
    db.run("init").unwrap();
    db.run("add b1 --app web --region sa --addr 192.0.2.1:1").unwrap();
    db.run("set b1 hard_limit=5 soft_limit=3").unwrap();
    db.run("set b1 soft_limit=50 hard_limit=60").unwrap();
    db.run("set b1 hard_limit=7 soft_limit=").unwrap();
    assert_eq!((&db.rows()[0]["hard_limit"], &db.rows()[0]["soft_limit"]), (&7.into(), &7.into()));
}

#[test]
fn a_backend_is_removed_by_rm_only() {
    let db = Database::new();
    db.run("init").unwrap();
    db.run("add b1 --app web --region sa --addr 192.0.2.1:1").unwrap();
    for change in ["deleted=1", "id=b2"] {
        assert!(db.fails(&format!("set b1 {change}")).contains("edgeproxy db rm"));
    }
    assert_eq!(db.rows()[0]["id"], "b1");
}

#[test]
fn a_failed_init_leaves_no_draft() {
    let db = Database::new();
    std::fs::create_dir(&db.path).unwrap();
    assert!(db.fails("init --force").contains("can't be put in place"));
    assert_eq!(std::fs::read_dir(db.path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn rows_of_other_tables_are_set_listed_and_removed() {
    let db = Database::new();
    db.run("init --example").unwrap();
    db.run("listener set tls address=203.0.113.0/24 port=443 last_port=444 app=web server_name=a.example").unwrap();
    db.run("app set web selection=maglev queue_length=7").unwrap();
    db.run("region set af latitude=-26.2 longitude=28 countries=ZA,NA").unwrap();
    db.run("geo set 198.51.100.0/24 country=br").unwrap();
    let list = |table: &str| -> serde_json::Value {
        serde_json::from_str(&db.run(&format!("{table} list --json")).unwrap()).unwrap()
    };
    assert_eq!((&list("listener")[0]["port"], &list("listener")[0]["last_port"]), (&json!(443), &json!(444)));
    assert_eq!(list("region")[0], json!({"name": "af", "latitude": -26.2, "longitude": 28.0, "countries": "ZA,NA"}));
    assert_eq!(list("geo")[0], json!({"prefix": "198.51.100.0/24", "country": "br"}));
    db.run("app set web queue_length=").unwrap();
    assert_eq!((&list("app")[0]["selection"], list("app")[0].get("queue_length")), (&json!("maglev"), None));
    assert!(db.run("listener list").unwrap().contains("a.example"));
    db.run("geo rm 198.51.100.0/24").unwrap();
    assert_eq!(list("geo"), json!([]));
    assert!(
        db.fails("geo rm 198.51.100.0/24").contains("no geo override 198.51.100.0/24: see `edgeproxy db geo list`")
    );
    db.run("geo set 198.51.100.0/24 region=eu").unwrap();
    assert_eq!(list("geo")[0], json!({"prefix": "198.51.100.0/24", "region": "eu"}), "it begins afresh");
}

#[test]
fn rows_of_other_tables_that_the_loader_would_refuse_are_refused() {
    let db = Database::new();
    db.run("init --example").unwrap();
    db.run("listener set m port=80").unwrap();
    let before = db.run("export").unwrap();
    for (line, why) in [
        ("listener set l port=0", "port is 0"),
        ("listener set l", "port"),
        ("listener set l port=81 last_port=80", "last_port 80 is below port 81"),
        ("listener set l port=81 accept_proxy=required", "needs proxy_from"),
        ("listener set l port=80", "listener l would be refused: "),
        ("listener set l port=81 colour=red", "no column \"colour\" to set: app, address"),
        ("listener set l port", "write COLUMN=VALUE"),
        ("listener set l port=81 deleted=1", "no column \"deleted\""),
        ("app set web selection=random", "use least_load, maglev"),
        ("app set web queue_timeout_ms=0", "from 1 to 600000"),
        ("region set af latitude=91 longitude=0", "not a position"),
        ("region set af latitude=9", "not a position"),
        ("region set af countries=ZA,XX", "country XX is none of ISO 3166-1"),
        ("geo set 198.51.100.1/24 country=BR", "write 198.51.100.0/24"),
        ("geo set 198.51.100.0/24", "leads nowhere"),
        ("geo set 198.51.100.0/24 country=ZZ", "country ZZ is none"),
        ("geo rm 9.9.9.9", "no geo override 9.9.9.9"),
    ] {
        let said = db.fails(line);
        assert!(said.contains(why), "{line}: {said}");
    }
    assert_eq!(db.run("export").unwrap(), before);
}

#[test]
fn databases_without_the_tables_get_them() {
    let db = Database::new();
    let seed = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../sql/seed.sql"));
    let old = "CREATE TABLE listeners (id TEXT PRIMARY KEY, port INTEGER, deleted INTEGER)";
    Connection::open(&db.path).unwrap().execute_batch(&format!("{seed};{old}")).unwrap();
    assert_eq!(db.run("region list --json").unwrap().trim(), "[]");
    db.run("region set af countries=ZA").unwrap();
    db.run("listener set l port=80 max_connections=9").unwrap();
    assert!(db.run("listener list --json").unwrap().contains("\"max_connections\": 9"));
    assert!(db.run("region list").unwrap().contains("ZA"));
}

#[test]
fn what_is_exported_can_be_imported() {
    let (one, other) = (Database::new(), Database::new());
    one.run("init --example").unwrap();
    one.run("region set af latitude=-26.2 longitude=28.05 countries=ZA").unwrap();
    one.run("listener set l port=443 server_name=*.example").unwrap();
    one.run("geo set 2001:4860::/32 region=af").unwrap();
    one.run("app set web affinity=soft").unwrap();
    one.run("rm eu-node-1").unwrap();
    let document = one.run("export").unwrap();
    let file = one.path.with_extension("json");
    std::fs::write(&file, &document).unwrap();
    other.run("init").unwrap();
    other.run("add stays --app web --region sa --addr 192.0.2.1:1").unwrap();
    assert_eq!(other.run(&format!("import {}", file.display())).unwrap(), "imported 7 rows\n");
    assert_eq!(other.rows().as_array().unwrap().len(), 4, "rows that are not in the document stay");
    other.run(&format!("import --replace {}", file.display())).unwrap();
    assert_eq!(other.run("export").unwrap(), document);

    for (text, why) in [
        (document.replace("\"port\": 9001", "\"port\": 0"), "would be refused"),
        (document.replace("\"weight\"", "\"wait\""), "no column \"wait\""),
        (document.replace("\"regions\"", "\"religions\""), "table religions"),
        (document.replace("\"version\": 1", "\"version\": 2"), "version 1"),
        ("[".to_owned(), "not JSON"),
    ] {
        std::fs::write(&file, text).unwrap();
        let said = other.fails(&format!("import {}", file.display()));
        assert!(said.contains(why), "{why}: {said}");
        assert_eq!(other.run("export").unwrap(), document);
    }
}

#[test]
fn every_command_says_that_the_file_is_locked() {
    let db = Database::new();
    db.run("init --example").unwrap();
    let writer = Connection::open(&db.path).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    for line in ["list", "app list", "export", "drain sa-node-1", "app set web affinity=soft"] {
        let said = db.fails(line);
        assert_eq!(said, format!("routing database {} is locked by another process", db.path.display()), "{line}");
    }
    writer.execute_batch("ROLLBACK").unwrap();
    db.run("list").unwrap();
}

/// As the reason that the daemon gives says that `db list` does.
#[test]
fn what_a_dead_writer_left_is_rolled_back_by_a_command_that_only_reads() {
    let (living, dead) = (Database::new(), Database::new());
    living.run("init --example").unwrap();
    let writer = Connection::open(&living.path).unwrap();
    writer.execute_batch("CREATE TABLE junk (a)").unwrap();
    let spills = "PRAGMA cache_size = 2; BEGIN IMMEDIATE; DELETE FROM backends; \
                  WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 200) \
                  INSERT INTO junk SELECT randomblob(4000) FROM n";
    writer.execute_batch(spills).unwrap();
    for suffix in ["", "-journal"] {
        std::fs::copy(beside(&living.path, suffix), beside(&dead.path, suffix)).unwrap();
    }
    assert_eq!(dead.rows().as_array().unwrap().len(), 4, "nothing was deleted");
    assert!(!beside(&dead.path, "-journal").exists());
}
