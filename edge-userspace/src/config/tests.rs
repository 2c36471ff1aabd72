//! What a user may write in each source, and what is said when it is wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::domain::{Region, Spot};

fn env(vars: &[(&str, &str)]) -> Sources {
    let env = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Sources { env: env.collect(), ..Sources::default() }
}

fn file(text: &str) -> Sources {
    Sources { file: Some((PathBuf::from("edge.toml"), text.to_owned())), ..Sources::default() }
}

fn problems(sources: Sources) -> Vec<String> {
    Settings::load(sources).err().into_iter().flatten().map(|error| error.to_string()).collect()
}

#[test]
fn defaults_are_those_of_the_seed() {
    let settings = Settings::load(Sources::default()).unwrap();
    assert_eq!(settings.listen_addr.as_slice(), [Spot::parse("0.0.0.0:8080").unwrap()]);
    assert_eq!(settings.db_path, Path::new("routing.db"));
    assert_eq!(settings.region, Region::parse("sa").unwrap());
    assert_eq!(settings.db_reload, Duration::from_secs(5));
    assert_eq!(settings.binding_ttl, Duration::from_secs(600));
    assert_eq!(settings.log_level, LogLevel::Info);
    assert!(settings.access_log && settings.app.is_none() && settings.geo_override.is_empty());
}

#[test]
fn flags_outrank_environment_outranks_file() {
    let mut sources = file("region = 'us'\nbacklog = 10\nconnect_attempts = 2\n");
    sources.env = env(&[("EDGEPROXY_REGION", "eu"), ("EDGEPROXY_BACKLOG", "20")]).env;
    sources.flags = vec![("region".to_owned(), "ap".to_owned())];
    let effective = Effective::load(&sources).unwrap();
    assert_eq!(effective.settings.region.as_str(), "ap");
    assert_eq!((effective.settings.backlog, effective.settings.connect_attempts), (20, 2));
    let json = effective.json();
    assert_eq!(json["region"]["origin"], "flag --region");
    assert_eq!(json["backlog"]["origin"], "environment EDGEPROXY_BACKLOG");
    assert_eq!(json["connect_attempts"]["origin"], "edge.toml:3");
    assert_eq!(json["workers"]["origin"], "default");
    assert!(json["app"]["value"].is_null());
    assert!(effective.text().contains("environment EDGEPROXY_BACKLOG"));
}

#[test]
fn file_takes_strings_numbers_booleans_and_arrays() {
    let text = "listen_addr = ['127.0.0.1:1', '[::1]:2']\ndb_reload_secs = 0.25\naccess_log = false\n\
                binding_capacity = 1_000\ngeo_override = '127.0.1.0/24=BR, 2001:db8::/32=DE'\nmax_flows = 0x10\n";
    let settings = Settings::load(file(text)).unwrap();
    assert_eq!(settings.listen_addr.as_slice().len(), 2);
    assert_eq!(settings.db_reload, Duration::from_millis(250));
    assert!(!settings.access_log);
    assert_eq!((settings.binding_capacity, settings.max_flows), (1000, 16));
    assert_eq!(settings.geo_override.len(), 2);
}

#[test]
fn empty_variable_is_unset_and_foreign_variables_are_no_concern() {
    let sources = env(&[
        ("EDGEPROXY_REGION", ""),
        ("EDGEPROXY_CONFIG", "x"),
        ("EDGEPROXY_TESTKIT_OBJECT", "1"),
        ("PATH", "/bin"),
        ("EDGE", "1"),
    ]);
    assert_eq!(Settings::load(sources).unwrap().region.as_str(), "sa");
}

#[test]
fn seeds_debug_switch_raises_the_log_level() {
    assert_eq!(Settings::load(env(&[("DEBUG", "1")])).unwrap().log_level, LogLevel::Debug);
    assert_eq!(Settings::load(env(&[("DEBUG", "")])).unwrap().log_level, LogLevel::Info);
    let both = env(&[("EDGEPROXY_LOG_LEVEL", "warn"), ("DEBUG", "1")]);
    assert_eq!(Settings::load(both).unwrap().log_level, LogLevel::Warn);
}

#[test]
fn all_errors_are_reported_at_once_with_their_origin() {
    let mut sources = file("regoin = 'us'\n\nbacklog = 0\nlisten_addr = {}\n");
    sources.env = env(&[("EDGEPROXY_LISTEN_ADR", "1"), ("EDGEPROXY_WORKERS", "many")]).env;
    sources.flags = vec![("forwarder".to_owned(), "sokmap".to_owned())];
    assert_eq!(
        problems(sources),
        [
            "edge.toml:4: listen_addr must be a string, number or boolean, not table",
            "edge.toml:1: regoin is not a setting: did you mean region?",
            "environment EDGEPROXY_LISTEN_ADR: EDGEPROXY_LISTEN_ADR is not a setting: did you mean \
             EDGEPROXY_LISTEN_ADDR?",
            "edge.toml:3: backlog must be a whole number from 1 to 65535",
            "environment EDGEPROXY_WORKERS: workers must be a whole number from 0 to 1024",
            "flag --forwarder: forwarder must be one of auto, copy, splice, sockmap, chaos: did you mean sockmap?",
        ]
    );
}

#[test]
fn a_bad_value_is_an_error_even_where_it_is_overridden() {
    let mut sources = file("backlog = -1");
    sources.flags = vec![("backlog".to_owned(), "7".to_owned())];
    assert_eq!(problems(sources).len(), 1);
}

#[test]
fn names_of_features_that_are_not_here_are_named_as_such() {
    for name in ["TLS_ENABLED", "API_LISTEN_ADDR", "DNS_PORT", "REPLICATION_PEERS", "HEARTBEAT_TTL_SECS"] {
        let problems = problems(env(&[(&format!("EDGEPROXY_{name}"), "1")]));
        assert_eq!(problems.len(), 1, "{name}");
        assert!(problems[0].contains("which this version does not have"), "{problems:?}");
    }
}

#[test]
fn broken_toml_is_one_error_with_a_line() {
    let problems = problems(file("region = 'us'\nbacklog = = 1\n"));
    assert!(problems[0].starts_with("edge.toml:2: not valid TOML: "), "{problems:?}");
}

#[test]
fn values_that_look_right_and_are_not() {
    for (name, value, says) in [
        ("LISTEN_ADDR", "0.0.0.0", "write 0.0.0.0:8080"),
        ("LISTEN_ADDR", "::1", "write [::1]:8080"),
        ("LISTEN_ADDR", "127.0.0.1:1,127.0.0.1:1", "twice"),
        ("LISTEN_ADDR", ",", "at least one"),
        ("ADMIN_LISTEN", "0.0.0.0:9090", "must be a loopback address"),
        ("GEO_OVERRIDE", "10.0.0.1/8=BR", "write 10.0.0.0/8"),
        ("GEO_OVERRIDE", "64:ff9b::/96=BR", "write 0.0.0.0/0"),
        ("PROXY_FROM", "::ffff:0:0/96", "write 0.0.0.0/0"),
        ("GEO_OVERRIDE", "10.0.0.0/8", "PREFIX=COUNTRY"),
        ("GEO_OVERRIDE", "10.0.0.0/8=region:", "names no place"),
        ("GEO_OVERRIDE", "10.0.0.0/8=QQQ", "names no place"),
        ("DB_RELOAD_SECS", "NaN", "from 0.05 to 3600"),
        ("DB_RELOAD_SECS", "0", "from 0.05 to 3600"),
        ("CONNECT_TIMEOUT_MS", "1.5", "a whole number of milliseconds"),
        ("REGION", "south america", "is not a name"),
        ("ACCESS_LOG", "maybe", "true or false"),
        ("AFFINITY_PREFIX_V4", "33", "from 0 to 32"),
    ] {
        let problems = problems(env(&[(&format!("EDGEPROXY_{name}"), value)]));
        assert_eq!(problems.len(), 1, "{name}={value}: {problems:?}");
        assert!(problems[0].contains(says), "{problems:?}");
    }
}

#[test]
fn contradictions_between_settings_are_errors() {
    let sources = env(&[("EDGEPROXY_LISTEN_ADDR", "127.0.0.1:99"), ("EDGEPROXY_ADMIN_LISTEN", "127.0.0.1:99")]);
    assert!(problems(sources)[0].contains("choose another port"));
    let sources = env(&[("EDGEPROXY_SOCKMAP_MEMORY_MIB", "1"), ("EDGEPROXY_SOCKMAP_BACKLOG_KIB", "1024")]);
    assert!(problems(sources)[0].contains("lower sockmap_backlog_kib"));
}

#[test]
fn the_committed_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(committed == markdown(), "run `edgeproxy config --markdown > docs/settings.md`");
}

proptest::proptest! {
    #[test]
    fn no_file_panics(text in "\\PC{0,200}|([a-z_]{1,12} ?= ?[-0-9a-z'\"\\[\\]{}.,x_]{0,12}\n){0,6}") {
        let _ = Settings::load(file(&text));
    }

    #[test]
    fn no_value_panics(key in 0..KEYS.len(), text in "\\PC{0,60}|[-0-9.e:/=,A-Z]{0,30}") {
        let _ = Settings::load(Sources { flags: vec![(KEYS[key].name.to_owned(), text)], ..Sources::default() });
    }
}

#[test]
fn listeners_are_places_sockets_or_none() {
    let listen = |text: &str| Settings::load(env(&[("EDGEPROXY_LISTEN_ADDR", text)])).map(|s| s.listen_addr);
    assert!(listen("none").unwrap().as_slice().is_empty());
    let texts = ["203.0.113.0/24:8000-8999", "[2001:db8::/32]:443", "fd:web"];
    let shown: Vec<_> = listen(&texts.join(",")).unwrap().as_slice().iter().map(ToString::to_string).collect();
    assert_eq!(shown, texts);
    for (bad, why) in [
        ("none,0.0.0.0:80", "beside others"),
        ("0.0.0.0", "lacks a port"),
        ("203.0.113.1/24:80", "write 203.0.113.0/24"),
        ("0.0.0.0:90-80", "swap them"),
        ("0.0.0.0:80,0.0.0.0:80", "twice"),
    ] {
        let problem = listen(bad).unwrap_err()[0].to_string();
        assert!(problem.contains(why), "{problem}");
    }
}
