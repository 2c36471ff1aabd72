//! `edgeproxy check`: would the daemon start, and with what?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use super::{CliError, SettingArgs, print};
use crate::adapters::outbound::forward::kernel::check_cgroups;
use crate::adapters::outbound::forward::kernel::releases::{self, Judgement};
use crate::adapters::outbound::geo::Geo;
use crate::adapters::outbound::sqlite::SqliteSource;
use crate::application::marked_behind_headers::{self, WaysToMarked};
use crate::application::ports::RoutingSource as _;
use crate::application::routing::RoutingTable;
use crate::application::status::GeoStatus;
use crate::application::unknown_regions::UnknownRegions;
use crate::config::{ForwarderChoice, Settings};
use crate::domain::{Endpoints, Overrides, Snapshot, Spot};

/// Prints what was found good; the error lists all that was not.
pub fn run(args: &SettingArgs) -> Result<(), CliError> {
    let settings = args.load()?.settings;
    let mut findings = Findings { good: "configuration  ok\n".to_owned(), ..Findings::default() };
    findings.database(&settings);
    findings.geo(&settings);
    findings.kernel(&settings);
    findings.same_host(&settings);
    print(&findings.good)?;
    match findings.bad.len() {
        0 => Ok(()),
        count => {
            let list = findings.bad.iter().map(|problem| format!("\n  {problem}")).collect::<String>();
            Err(CliError::Failed(format!("check found {count} problem{}:{list}", if count == 1 { "" } else { "s" })))
        }
    }
}

#[derive(Default)]
struct Findings {
    good: String,
    bad: Vec<String>,
    /// Backends with the mark `same_host`.
    marked: Vec<String>,
    /// Listeners whose clients marks are no good for.
    behind_headers: BTreeSet<Spot>,
}

impl Findings {
    fn database(&mut self, settings: &Settings) {
        let raw = match SqliteSource::new(&settings.db_path).read_whole() {
            Ok(raw) => raw,
            Err(error) => return self.bad.push(error.to_string()),
        };
        let table = RoutingTable::new();
        let report = match table.apply(&raw, true) {
            Ok(report) => report,
            Err(error) => return self.bad.push(error.to_string()),
        };
        self.bad.extend(report.rejected.iter().map(|(row, why)| format!("routing database, {row}: {why}")));
        self.marked = table.load().same_host().map(|backend| backend.id.to_string()).collect();
        let before = self.bad.len();
        self.behind_headers = ways_to_marked(settings).in_vain(&table.load());
        self.listeners(settings, &table.load());
        self.regions(settings, &table.load());
        if self.bad.len() == before {
            let _ = writeln!(
                self.good,
                "database       ok: {} ({} backends of {} apps)",
                settings.db_path.display(),
                report.accepted,
                report.apps
            );
        }
    }

    /// Whether there are any, and whether they lead anywhere.
    fn listeners(&mut self, settings: &Settings, snapshot: &Snapshot) {
        let before = self.bad.len();
        let of_settings = settings.listen_addr.as_slice().len();
        let of_database: BTreeMap<_, _> = snapshot
            .endpoints()
            .iter()
            .flat_map(|endpoint| endpoint.listeners())
            .map(|listener| (&listener.id, listener))
            .collect();
        let count = of_settings + of_database.len();
        if count == 0 {
            let problem = "no listener: listen_addr is none and the database has none; insert a row into listeners";
            self.bad.push(problem.to_owned());
        }
        if of_settings > 0 || of_database.values().any(|listener| listener.app.is_none()) {
            self.apps(settings, snapshot);
        }
        for (id, listener) in of_database {
            if let Some(app) = listener.app.as_ref().filter(|app| snapshot.app(app).is_none()) {
                let spot = &listener.spot;
                self.bad.push(format!(
                    "listener {id} ({spot}) leads to app {app}, which has no backends: add one with `edgeproxy db add`"
                ));
            }
        }
        if self.bad.len() == before {
            let _ = writeln!(self.good, "listeners      ok: {count}");
        }
    }

    /// No problem, for rows may come one after the other; but mostly a slip.
    fn regions(&mut self, settings: &Settings, snapshot: &Snapshot) {
        let overrides = Arc::new(Overrides::new(settings.geo_override.iter().cloned()));
        let known = UnknownRegions { pop_region: settings.region.clone(), overrides };
        for (region, why) in known.of(snapshot) {
            let _ = writeln!(self.good, "regions        unknown: {region}: {why}");
        }
    }

    /// Whether listeners that name no app lead anywhere.
    fn apps(&mut self, settings: &Settings, snapshot: &Snapshot) {
        let path = settings.db_path.display();
        match &settings.app {
            Some(app) if snapshot.app(app).is_none() => {
                self.bad.push(format!("app {app} has no backends in {path}: add one with `edgeproxy db add`"));
            }
            None if snapshot.backends().next().is_none() => {
                self.bad.push(format!("{path} has no backends: add one with `edgeproxy db add`"));
            }
            None if snapshot.sole_app().is_none() => {
                self.bad.push(format!("{path} has several apps: set app to the one that the listeners lead to"));
            }
            _ => {}
        }
    }

    /// Never a problem: the daemon serves on any kernel, if need be in userspace.
    fn kernel(&mut self, settings: &Settings) {
        let judgement = match releases::judge_running() {
            _ if !matches!(settings.forwarder, ForwarderChoice::Auto | ForwarderChoice::Sockmap) => return,
            Judgement::Recommended => "ok: recommended for the kernel path".to_owned(),
            Judgement::Accepted => format!("ok: good for the kernel path; recommended is {}", releases::RECOMMENDATION),
            Judgement::Denied(why) if settings.sockmap_on_denied_kernels => {
                format!("denied, and used all the same: {why}")
            }
            Judgement::Denied(why) => format!("no kernel path: {why}"),
        };
        let _ = writeln!(self.good, "kernel         {judgement}");
    }

    /// Whether marks can have an effect, and whether the applications' cgroups can be told from this daemon's. Which
    /// clients are on this host, only their connections tell.
    fn same_host(&mut self, settings: &Settings) {
        let cgroups: Vec<_> = settings.same_host_cgroup.iter().map(|path| path.as_path().to_owned()).collect();
        match check_cgroups(&cgroups) {
            Err(why) if !cgroups.is_empty() => return self.bad.push(why.to_string()),
            // No problem: a service's cgroup is there while it runs.
            missing => missing.into_iter().flatten().for_each(|why| {
                let _ = writeln!(self.good, "same host      not yet: {why}; its applications take part once it is");
            }),
        }
        let in_vain = match settings.forwarder {
            _ if cgroups.is_empty() => {
                Some("same_host_cgroup names no cgroup: name those of the applications".to_owned())
            }
            ForwarderChoice::Auto | ForwarderChoice::Sockmap => None,
            other => Some(format!("forwarder = {} asks for userspace only", other.as_str())),
        };
        let (count, names) = (self.marked.len(), self.marked.iter().take(5).cloned().collect::<Vec<_>>().join(", "));
        // No problem: they are served the ordinary way, and an operator who goes back to userspace must be able to.
        let _ = match in_vain {
            Some(why) if count > 0 => {
                writeln!(self.good, "same host      no effect: the mark of {count} backends ({names}), as {why}")
            }
            Some(_) => Ok(()),
            None => writeln!(self.good, "same host      ok: {} cgroups, {count} marked backends", cgroups.len()),
        };
        for spot in self.behind_headers.iter().filter(|_| !cgroups.is_empty()) {
            let _ = writeln!(
                self.good,
                "same host      no effect for clients of listener {spot}: {}",
                marked_behind_headers::WHY
            );
        }
    }

    fn geo(&mut self, settings: &Settings) {
        match Geo::open(settings.geoip_path.as_deref()) {
            Ok(geo) => _ = writeln!(self.good, "geo data       ok: {}", GeoStatus::from(geo.info())),
            Err(error) => self.bad.push(error.to_string()),
        }
    }
}

fn ways_to_marked(settings: &Settings) -> WaysToMarked {
    let mut endpoints = Endpoints::default();
    for spec in settings.listen_addr.as_slice().iter().filter_map(|spot| settings.listener(spot.clone()).ok()) {
        // One that contradicts another is told where listeners are judged.
        let _ = endpoints.add(spec);
    }
    WaysToMarked { endpoints: Arc::new(endpoints), app: settings.app.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;
    use crate::cli::db::{EXAMPLE, SCHEMA};
    use crate::config::Sources;

    fn findings(sql: Option<&str>, env: &[(&str, &str)]) -> (String, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("routing.db");
        if let Some(sql) = sql {
            rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        }
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let path = ("EDGEPROXY_DB_PATH".to_owned(), path.to_str().unwrap().to_owned());
        let settings = Settings::load(Sources { env: env.chain([path]).collect(), ..Sources::default() }).unwrap();
        let mut findings = Findings::default();
        findings.database(&settings);
        findings.geo(&settings);
        findings.same_host(&settings);
        (findings.good, findings.bad)
    }

    fn problems(sql: Option<&str>, env: &[(&str, &str)]) -> Vec<String> {
        findings(sql, env).1
    }

    #[test]
    fn the_example_is_good() {
        assert_eq!(problems(Some(&format!("{SCHEMA}{EXAMPLE}")), &[]), [""; 0]);
    }

    #[test]
    fn a_missing_database_names_its_remedy() {
        assert!(problems(None, &[])[0].contains("edgeproxy db init --example"));
    }

    #[test]
    fn an_app_without_backends_and_an_empty_table_are_problems() {
        let example = format!("{SCHEMA}{EXAMPLE}");
        assert!(problems(Some(&example), &[("EDGEPROXY_APP", "nobody")])[0].contains("app nobody has no backends"));
        assert!(problems(Some(SCHEMA), &[])[0].contains("has no backends: add one"));
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_told_and_may_come() {
        let env = [("EDGEPROXY_SAME_HOST_CGROUP", "/nowhere")];
        let (told, bad) = findings(Some(&format!("{SCHEMA}{EXAMPLE}")), &env);
        assert!(told.contains("not yet: same_host_cgroup /nowhere is not there"), "{told}");
        assert_eq!(bad, [""; 0]);
    }

    #[test]
    fn marks_that_only_clients_behind_headers_come_to_are_told() {
        let marked = format!("{SCHEMA}{EXAMPLE}UPDATE backends SET same_host = 1 WHERE id = 'sa-node-1';");
        let env = [
            ("EDGEPROXY_SAME_HOST_CGROUP", "/nowhere"),
            ("EDGEPROXY_LISTEN_ADDR", "0.0.0.0:8080"),
            ("EDGEPROXY_ACCEPT_PROXY", "required"),
            ("EDGEPROXY_PROXY_FROM", "10.0.0.0/8"),
        ];
        let (told, bad) = findings(Some(&marked), &env);
        assert!(told.contains("no effect for clients of listener 0.0.0.0:8080: accept_proxy = required"), "{told}");
        assert_eq!(bad, [""; 0]);
        let listener = "INSERT INTO listeners (id, port) VALUES ('plain', 81);";
        let (told, _) = findings(Some(&format!("{marked}{listener}")), &env[..2]);
        assert!(!told.contains("no effect"), "{told}");
    }

    #[test]
    fn marks_that_can_have_no_effect_are_told() {
        let marked = format!("{SCHEMA}{EXAMPLE}UPDATE backends SET same_host = 1 WHERE id = 'sa-node-1';");
        let (told, bad) = findings(Some(&marked), &[]);
        assert!(told.contains("no effect: the mark of 1 backends (sa-node-1), as same_host_cgroup names no"), "{told}");
        assert_eq!(bad, [""; 0]);
        assert!(problems(Some(&marked), &[("EDGEPROXY_SAME_HOST_CGROUP", "/tmp")])[0].contains("cgroup v2"));
    }

    #[test]
    fn a_mark_beside_a_proxy_header_is_a_problem() {
        let both =
            format!("{SCHEMA}{EXAMPLE}UPDATE backends SET same_host = 1, send_proxy = 'v2' WHERE id = 'sa-node-1';");
        assert!(problems(Some(&both), &[])[0].contains("same_host and send_proxy exclude each other"));
    }

    /// Nothing is in force that one of them could be measured by, so both are named.
    #[test]
    fn of_rows_that_contradict_each_other_both_are_named() {
        let two = "INSERT INTO listeners (id, address, port) VALUES ('b', '127.0.0.1', 90), ('a', '127.0.0.1', 90);
            INSERT INTO acl (id, prefix, action) VALUES ('d', '192.0.2.1', 'deny'), ('c', '192.0.2.1', 'allow');";
        let found = problems(Some(&format!("{SCHEMA}{EXAMPLE}{two}")), &[]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("listener b: ") && found[0].contains("listener a "), "{found:?}");
        assert!(found[1].contains("rule d: rule c is about the same"), "{found:?}");
    }

    #[test]
    fn bad_geo_data_is_reported_beside_other_problems() {
        let findings = problems(None, &[("EDGEPROXY_GEOIP_PATH", "/dev/null")]);
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(findings[1].contains("geo database /dev/null"));
    }
}
