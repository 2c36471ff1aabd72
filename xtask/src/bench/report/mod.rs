//! What a run has found: tables, JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::procfs;
use super::run::{Absent, Plan};
use super::sample::{Metric, Sample, Unit};
use super::stats::Summary;
use super::workload::{Group, Workload};

/// Everything about a run. The shape of the JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Results {
    pub(super) machine: String,
    pub(super) kernel: String,
    pub(super) rounds: u32,
    pub(super) seconds: f64,
    pub(super) took_seconds: f64,
    pub(super) absent: BTreeMap<&'static str, String>,
    /// Bytes a second of each stream of the paced workloads.
    pub(super) pace: BTreeMap<&'static str, u64>,
    pub(super) workloads: Vec<About>,
    pub(super) lines: Vec<Line>,
    pub(super) samples: Vec<Sample>,
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
        let (machine, kernel) = procfs::machine();
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
        Self {
            machine,
            kernel,
            rounds: plan.rounds,
            seconds: plan.times.window.as_secs_f64(),
            took_seconds: took.as_secs_f64(),
            absent: absent.into_iter().map(|(candidate, why)| (candidate.name(), why)).collect(),
            pace,
            workloads: plan.workloads.iter().map(about).collect(),
            lines,
            samples,
        }
    }

    /// An error where a candidate has made mistakes.
    pub(super) fn verdict(&self) -> Result<()> {
        let faulty = self.samples.iter().filter(|sample| !sample.is_good());
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
    let metrics: std::collections::BTreeSet<Metric> =
        ours.iter().flat_map(|sample| sample.values.keys().copied()).collect();
    let (mut values, mut to_direct) = (BTreeMap::new(), BTreeMap::new());
    for metric in metrics {
        let good = || ours.iter().filter(|sample| sample.is_good());
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
    let noise = ours.iter().map(|sample| sample.noise).fold(0.0, f64::max);
    Line { workload, candidate, values, to_direct, faults: ours.iter().map(|sample| sample.faults).sum(), noise }
}

pub(super) fn print(results: &Results) {
    println!("{} · Linux {} · {} rounds of {} s", results.machine, results.kernel, results.rounds, results.seconds);
    for about in &results.workloads {
        println!("\n{} ({})", about.title, about.name);
        for line in results.lines.iter().filter(|line| line.workload == about.name) {
            print!("  {:<15}", line.candidate);
            for (metric, summary) in &line.values {
                print!(" {} {:.1}", metric.name(), summary.median);
            }
            println!();
        }
    }
}

pub(super) fn write_json(results: &Results, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(results)?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}
