//! What a run has found: tables, plots, JSON, and which targets are met.

mod carried;
mod markdown;
mod plot;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::candidate::Candidate;
use super::carried::Carried;
use super::procfs;
use super::run::{Absent, Plan};
use super::sample::{Metric, Sample, Unit};
use super::stats::Summary;
use super::workload::{Group, Workload};
use crate::{process, workspace};

/// Everything about a run. The shape of the JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    pub(super) took_seconds: f64,
    pub(super) absent: BTreeMap<&'static str, String>,
    /// Bytes a second of each stream of the paced workloads.
    pub(super) pace: BTreeMap<&'static str, u64>,
    pub(super) workloads: Vec<About>,
    pub(super) targets: Vec<target::Verdict>,
    pub(super) lines: Vec<Line>,
    pub(super) samples: Vec<Sample>,
}

/// Where and with what it was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Machine {
    pub(super) date: String,
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) kernel: String,
    pub(super) congestion_control: String,
    /// Of edgeproxy; `+` where files were changed since.
    pub(super) commit: String,
    pub(super) haproxy: String,
    pub(super) nginx: String,
}

impl Machine {
    fn this(congestion_control: &str) -> Self {
        let ask = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(process::find_system(program).unwrap_or_else(|| program.into()));
            process::ask(command.current_dir(workspace::root()).args(arguments))
        };
        let changed =
            ask("git", &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|list| !list.is_empty());
        let commit = ask("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "of unknown commit".to_owned());
        let version = |package: &str| ask("dpkg-query", &["-W", "-f", "${Package} ${Version}", package]);
        let missing = |name: &str| format!("no {name}");
        let sysctl = |name: &str| procfs::line(&format!("/proc/sys/{name}"));
        Self {
            date: ask("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default(),
            processor: procfs::processor(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: sysctl("kernel/osrelease"),
            congestion_control: congestion_control.to_owned(),
            commit: commit + if changed { "+" } else { "" },
            haproxy: version("haproxy").unwrap_or_else(|| missing("haproxy")),
            nginx: version("nginx").unwrap_or_else(|| missing("nginx")),
        }
    }
}

/// A workload, for readers of the JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct About {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) group: Group,
    pub(super) unit: Unit,
}

/// One candidate with one workload, over all rounds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Line {
    pub(super) workload: &'static str,
    pub(super) candidate: &'static str,
    pub(super) values: BTreeMap<Metric, Summary>,
    /// The same, as ratios to `direct` in the same round.
    pub(super) to_direct: BTreeMap<Metric, Summary>,
    /// Of ours only: all rounds without a fault together.
    pub(super) carried: Option<Carried>,
    pub(super) faults: u64,
    /// Most noise of a round.
    pub(super) noise: f64,
}

impl Results {
    pub(super) fn new(
        plan: &Plan,
        samples: Vec<Sample>,
        absent: Absent,
        pace: BTreeMap<&'static str, u64>,
        took: Duration,
    ) -> Self {
        let about = |workload: &&Workload| {
            let Workload { name, title, group, shape, .. } = **workload;
            About { name, title, group, unit: Unit::of(shape) }
        };
        let mut lines = Vec::new();
        for workload in &plan.workloads {
            let of_plan = plan.candidates.iter().filter(|candidate| candidate.is_in(workload.group));
            let present = of_plan.filter(|candidate| !absent.contains_key(candidate));
            lines.extend(present.map(|candidate| line(&samples, workload.name, candidate.name())));
        }
        let mut results = Self {
            machine: Machine::this(&plan.congestion_control),
            rounds: plan.rounds,
            seconds: plan.times.window.as_secs_f64(),
            took_seconds: took.as_secs_f64(),
            absent: absent.into_iter().map(|(candidate, why)| (candidate.name(), why)).collect(),
            pace,
            workloads: plan.workloads.iter().map(about).collect(),
            targets: Vec::new(),
            lines,
            samples,
        };
        results.targets = target::evaluate(&results);
        results
    }

    /// An error where a candidate has made mistakes that are ours to mend. Those of the others' are on the page.
    pub(super) fn verdict(&self) -> Result<()> {
        let theirs = |name: &str| name.parse().is_ok_and(Candidate::is_installed);
        let faulty = self.samples.iter().filter(|sample| !sample.is_good() && !theirs(sample.candidate));
        let words: Vec<String> = faulty
            .map(|sample| format!("{} with {}: {}", sample.candidate, sample.workload, sample.words.join("; ")))
            .collect();
        if words.is_empty() { Ok(()) } else { bail!("{} cells were faulty: {}", words.len(), words.join(" | ")) }
    }
}

fn line(samples: &[Sample], workload: &'static str, candidate: &'static str) -> Line {
    let of = |name: &'static str| move |sample: &&Sample| sample.workload == workload && sample.candidate == name;
    let ours: Vec<&Sample> = samples.iter().filter(of(candidate)).collect();
    let direct: BTreeMap<u32, &Sample> =
        samples.iter().filter(of("direct")).map(|sample| (sample.round, sample)).collect();
    let metrics: BTreeSet<Metric> = ours.iter().flat_map(|sample| sample.values.keys().copied()).collect();
    let good = || ours.iter().filter(|sample| sample.is_good());
    let (mut values, mut to_direct) = (BTreeMap::new(), BTreeMap::new());
    for metric in metrics {
        if let Some(summary) = Summary::of(good().filter_map(|sample| sample.values.get(&metric).copied())) {
            values.insert(metric, summary);
        }
        let ratio = |sample: &&&Sample| {
            let limit = *direct.get(&sample.round)?.values.get(&metric)?;
            (limit != 0.0).then_some(sample.values.get(&metric)? / limit)
        };
        if let Some(summary) = Summary::of(good().filter_map(|sample| ratio(&sample))) {
            to_direct.insert(metric, summary);
        }
    }
    let carried = good().filter_map(|sample| sample.carried.as_ref()).fold(None, |sum: Option<Carried>, more| {
        let mut sum = sum.unwrap_or_default();
        sum += more;
        Some(sum)
    });
    let noise = ours.iter().map(|sample| sample.noise).fold(0.0, f64::max);
    let faults = ours.iter().map(|sample| sample.faults).sum();
    Line { workload, candidate, values, to_direct, carried, faults, noise }
}

/// To the terminal.
pub(super) fn print(results: &Results) {
    println!("{}", markdown::page(results, &[]));
}

/// The page between whose marks the results go.
const PAGE: &str = "README.md";
const OPEN: &str = "<!-- results: written by cargo xtask bench -->";
const CLOSE: &str = "<!-- end of results -->";

/// Writes plots, JSON and the tables of the page into `directory`. What people wrote on the page stays.
pub(super) fn publish(results: &Results, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let mut plots = Vec::new();
    for plot in &plot::PLOTS {
        for theme in &plot::THEMES {
            let Some(svg) = plot::draw(plot, results, theme) else { continue };
            write(&directory.join(format!("{}-{}.svg", plot.file, theme.sheet.name)), &svg)?;
            if !plots.contains(&(plot.file, plot.title)) {
                plots.push((plot.file, plot.title));
            }
        }
    }
    write_json(results, &directory.join("results.json"))?;
    let page = directory.join(PAGE);
    let old = fs::read_to_string(&page).unwrap_or_else(|_| format!("# Results\n\n{OPEN}\n{CLOSE}\n"));
    write(&page, &insert(&old, &markdown::page(results, &plots)).with_context(|| page.display().to_string())?)
}

/// `page` with `results` between the marks.
fn insert(page: &str, results: &str) -> Result<String> {
    let parts = page.split_once(OPEN).and_then(|(before, rest)| Some((before, rest.split_once(CLOSE)?.1)));
    let (before, after) = parts.with_context(|| format!("the page has no marks `{OPEN}` and `{CLOSE}`"))?;
    Ok(format!("{before}{OPEN}\n{results}{CLOSE}{after}"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

pub(super) fn write_json(results: &Results, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(results)?;
    write(path, &(text + "\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::bench::cell::Times;
    use crate::bench::workload::WORKLOADS;

    fn sample(workload: &'static str, candidate: &'static str, round: u32, cpu: f64, faults: u64) -> Sample {
        let values = BTreeMap::from([(Metric::Rate, 1000.0), (Metric::CpuSystem, cpu), (Metric::P99, 80.0 * cpu)]);
        let in_kernel =
            Carried { connections: 64, connections_sockmap: 64, bytes: 8, bytes_sockmap: 6, ..Carried::default() };
        let carried = (candidate == "sockmap").then_some(in_kernel);
        let words = vec!["lost a byte".to_owned()];
        Sample { workload, candidate, round, values, carried, noise: 0.2, faults, words }
    }

    fn results(faults: u64) -> Results {
        results_of("copy", faults)
    }

    /// With faults of this candidate.
    fn results_of(faulty: &str, faults: u64) -> Results {
        let workloads = WORKLOADS.iter().filter(|workload| workload.name == "rr64-64").collect();
        let times =
            Times { warm_up: Duration::ZERO, window: Duration::from_secs(1), fixed_rate: Duration::from_secs(1) };
        let candidates =
            vec![Candidate::Direct, Candidate::Haproxy, Candidate::Copy, Candidate::Sockmap, Candidate::Nginx];
        let congestion_control = "cubic".to_owned();
        let plan = Plan { workloads, candidates, rounds: 2, memory_rounds: 2, times, congestion_control };
        let samples = (0..2).flat_map(|round| {
            [("direct", 10.0), ("haproxy", 40.0), ("copy", 30.0), ("sockmap", 30.0)]
                .map(|(name, cpu)| sample("rr64-64", name, round, cpu, if name == faulty { faults } else { 0 }))
        });
        let absent = Absent::from([(Candidate::Nginx, "not installed".to_owned())]);
        Results::new(&plan, samples.collect(), absent, BTreeMap::new(), Duration::from_secs(60))
    }

    #[test]
    fn the_page_has_ratios_targets_and_who_is_missing() {
        let page = markdown::page(&results(0), &[]);
        for part in [
            "| copy | 1000 ± 0.00 | 1.00 | 30.0 ± 0.00 | 3.00 |",
            "| copy: CPU per request at 64 connections, to HAProxy's | `rr64-64` | ≤ 0.95 | 0.75 | 0.75 to 0.75 | yes |",
            "| auto: CPU, to the best of our forwarders | `rr64-64` | ≤ 1.05 | - | - | not measured |",
            "- nginx was not available: not installed",
            "in 8 of 8 cells other programs",
            "| | sockmap |\n|---|---|\n| `rr64-64` | 75 % sockmap |\n",
        ] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
        assert!(results(0).verdict().is_ok());
    }

    #[test]
    fn a_faulty_candidate_has_no_figures_and_fails_the_run() {
        let results = results(1);
        let page = markdown::page(&results, &[]);
        assert!(
            page.contains("| copy | - | - | - |") && page.contains("copy with `rr64-64` made 2 faults: lost a byte")
        );
        assert!(results.verdict().unwrap_err().to_string().contains("2 cells were faulty"));
        let theirs = results_of("haproxy", 1);
        assert!(markdown::page(&theirs, &[]).contains("haproxy with `rr64-64` made 2 faults: lost a byte"));
        assert!(theirs.verdict().is_ok(), "what others do wrong is on the page");
    }

    #[test]
    fn what_people_wrote_on_the_page_stays() {
        let page = format!("before\n{OPEN}\nold\n{CLOSE}\nafter\n");
        assert_eq!(insert(&page, "new\n").unwrap(), format!("before\n{OPEN}\nnew\n{CLOSE}\nafter\n"));
        assert!(insert("no marks", "new").is_err());
    }

    #[test]
    fn everything_is_written_and_the_pictures_are_well_formed() {
        let directory = tempfile::tempdir().unwrap();
        publish(&results(0), directory.path()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(read("README.md").contains("srcset=\"cpu-dark.svg\""));
        let json: serde_json::Value = serde_json::from_str(&read("results.json")).unwrap();
        assert_eq!(json["samples"].as_array().unwrap().len(), 8);
        assert_eq!(json["lines"][2]["to_direct"]["cpu_system"]["median"], 3.0);
        assert_eq!(json["samples"][3]["carried"]["bytes_sockmap"], 6);
        assert_eq!(json["lines"][3]["carried"]["bytes_sockmap"], 12, "both rounds");
        assert_eq!(json["lines"][2]["carried"], serde_json::Value::Null);
        for name in ["cpu-light.svg", "cpu-dark.svg", "rate-light.svg", "latency-dark.svg"] {
            let svg = read(name);
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"), "{name}");
            assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        }
    }
}
