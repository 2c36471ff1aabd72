//! The whole run: in each round every workload, with all candidates one after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use super::candidate::Candidate;
use super::cell::{Cell, Times};
use super::interrupt;
use super::place::Place;
use super::report::Results;
use super::sample::{Metric, Sample};
use super::stats::Summary;
use super::workload::{Group, Shape, WORKLOADS, Workload};

/// What is to be measured.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) workloads: Vec<&'static Workload>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) rounds: u32,
    /// Rounds in which memory is measured, too: that takes long and varies little.
    pub(super) memory_rounds: u32,
    pub(super) times: Times,
    /// Of TCP, in all networks.
    pub(super) congestion_control: String,
}

/// A candidate that can't be measured, and why.
pub(super) type Absent = BTreeMap<Candidate, String>;

struct Bench<'a> {
    plan: &'a Plan,
    places: BTreeMap<u8, Place>,
    absent: Absent,
    /// Bytes a second of each stream, by name of the workload.
    pace: BTreeMap<&'static str, u64>,
}

pub(super) fn run(plan: &Plan, binary: &Path) -> Result<Results> {
    let began = Instant::now();
    let mut bench = Bench::new(plan, binary)?;
    bench.find_absent()?;
    bench.find_pace()?;
    let mut samples = Vec::new();
    for round in 0..plan.rounds {
        let due = |workload: &&&Workload| !workload.shape.is_memory() || round < plan.memory_rounds;
        for workload in plan.workloads.iter().filter(due) {
            let candidates = bench.candidates(workload);
            let first = round as usize % candidates.len().max(1);
            for candidate in candidates.iter().cycle().skip(first).take(candidates.len()) {
                let sample = bench.cell(workload, *candidate)?.run(round);
                interrupt::check()?;
                progress(&sample, plan.rounds);
                samples.push(sample);
            }
        }
    }
    Ok(Results::new(plan, samples, bench.absent, bench.pace, began.elapsed()))
}

impl<'a> Bench<'a> {
    fn new(plan: &'a Plan, binary: &Path) -> Result<Self> {
        let mut places = BTreeMap::new();
        for group in [Group::Remote, Group::Local] {
            if plan.workloads.iter().any(|workload| workload.group == group) {
                places.insert(group as u8, Place::new(group, binary, &plan.congestion_control)?);
            }
        }
        Ok(Self { plan, places, absent: Absent::new(), pace: BTreeMap::new() })
    }

    fn place(&self, group: Group) -> Result<&Place> {
        match self.places.get(&(group as u8)) {
            Some(place) => Ok(place),
            None => bail!("there is no place for the group {group:?}"),
        }
    }

    /// Starts each candidate once.
    fn find_absent(&mut self) -> Result<()> {
        for candidate in &self.plan.candidates {
            interrupt::check()?;
            let groups = [Group::Remote, Group::Local].into_iter().filter(|group| candidate.is_in(*group));
            let Some(place) = groups.filter_map(|group| self.places.get(&(group as u8))).next() else { continue };
            if let Err(error) = candidate.start(place) {
                let why = format!("{error:#}");
                eprintln!("{candidate} is not available: {why}");
                self.absent.insert(*candidate, why);
            }
        }
        Ok(())
    }

    /// Measures what half of the direct rate is, for the paced workloads.
    fn find_pace(&mut self) -> Result<()> {
        for workload in self.plan.workloads.iter().filter(|workload| workload.shape.is_paced()) {
            let Shape::Bulk { way, streams, .. } = workload.shape else { continue };
            let shape = Shape::Bulk { way, streams, paced: false };
            let unpaced = WORKLOADS.iter().find(|other| other.shape == shape && other.group == workload.group);
            let Some(unpaced) = unpaced else { bail!("no workload is {} without a pace", workload.name) };
            let cell = self.cell(unpaced, Candidate::Direct)?;
            let rates = (0..3).filter_map(|round| cell.run(round).values.get(&Metric::Rate).copied());
            let rate = Summary::of(rates);
            interrupt::check()?;
            let Some(rate) = rate else { bail!("direct does not work with {}", unpaced.name) };
            let pace = rate.median / 2.0 / f64::from(streams);
            eprintln!("{}: {:.2} GB/s in all, half of what direct reaches", workload.name, rate.median / 2e9);
            self.pace.insert(workload.name, pace as u64);
        }
        Ok(())
    }

    fn candidates(&self, workload: &Workload) -> Vec<Candidate> {
        let takes_part =
            |candidate: &&Candidate| candidate.is_in(workload.group) && !self.absent.contains_key(candidate);
        self.plan.candidates.iter().filter(takes_part).copied().collect()
    }

    fn cell<'b>(&'b self, workload: &'b Workload, candidate: Candidate) -> Result<Cell<'b>> {
        let place = self.place(workload.group)?;
        let pace = self.pace.get(workload.name).copied().unwrap_or(0);
        Ok(Cell { place, workload, candidate, pace, times: self.plan.times })
    }
}

fn progress(sample: &Sample, rounds: u32) {
    let value = |metric| sample.values.get(&metric).copied().unwrap_or(f64::NAN);
    eprint!("[{}/{rounds}] {:<15} {:<15}", sample.round + 1, sample.workload, sample.candidate);
    if sample.values.contains_key(&Metric::Rate) {
        eprint!(
            " {:>14.0}/s  cpu {:>9.2}  proxy {:>9.2}",
            value(Metric::Rate),
            value(Metric::CpuSystem),
            value(Metric::CpuProxy)
        );
    } else if sample.values.contains_key(&Metric::UserMemory) {
        eprint!(" user {:>9.0} B  kernel {:>9.0} B", value(Metric::UserMemory), value(Metric::KernelMemory));
    }
    if sample.noise > 0.05 {
        eprint!("  noise {:.0} %", sample.noise * 100.0);
    }
    if let Some(words) = sample.words.first() {
        eprint!("  FAULTY ({}): {words}", sample.faults);
    }
    eprintln!();
}
