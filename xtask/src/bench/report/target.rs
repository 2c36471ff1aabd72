//! What the comparison must show: fixed ratios, each set against what was measured.

use serde::Serialize;

use super::{Line, Results};
use crate::bench::sample::{Metric, Sample};
use crate::bench::stats::Summary;

/// A promise in the form "this quantity of ours is at most (or at least) so many times that of another".
struct Target {
    text: &'static str,
    metric: Metric,
    candidate: &'static str,
    /// The best of these.
    against: &'static [&'static str],
    workloads: &'static [&'static str],
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {bound:.2}"),
            Self::AtLeast(bound) => format!("≥ {bound:.2}"),
        }
    }
}

const BULK: &[&str] = &["up-1", "up-8", "down-1", "down-8", "both-1", "both-8"];
const WORK: &[&str] = &[
    "rr64-1",
    "rr64-8",
    "rr64-64",
    "rr64-512",
    "rr16k-1",
    "rr16k-8",
    "rr16k-64",
    "rr16k-512",
    "up-1",
    "up-8",
    "down-1",
    "down-8",
    "both-1",
    "both-8",
    "paced-1",
    "paced-8",
    "connect-1",
    "connect-64",
    "rate-200",
    "local-rr64-1",
    "local-rr64-64",
    "local-rr16k-64",
    "local-down-8",
];
const LOCAL: &[&str] = &["local-rr64-1", "local-rr64-64", "local-rr16k-64", "local-down-8"];
/// Between which `auto` chooses.
const OURS: &[&str] = &["copy", "splice", "sockmap"];

const TARGETS: [Target; 13] = [
    Target {
        text: "copy: CPU per request at 64 connections, to HAProxy's",
        metric: Metric::CpuSystem,
        candidate: "copy",
        against: &["haproxy"],
        workloads: &["rr64-64", "rr16k-64"],
        bound: Bound::AtMost(0.95),
    },
    Target {
        text: "copy: bulk CPU per GB, to HAProxy's",
        metric: Metric::CpuSystem,
        candidate: "copy",
        against: &["haproxy"],
        workloads: BULK,
        bound: Bound::AtMost(0.85),
    },
    Target {
        text: "copy: connect-request-close rate, to HAProxy's",
        metric: Metric::Rate,
        candidate: "copy",
        against: &["haproxy"],
        workloads: &["connect-1", "connect-64"],
        bound: Bound::AtLeast(1.0),
    },
    Target {
        text: "splice: bulk CPU per GB, to HAProxy's with splice",
        metric: Metric::CpuSystem,
        candidate: "splice",
        against: &["haproxy-splice"],
        workloads: BULK,
        bound: Bound::AtMost(0.85),
    },
    Target {
        text: "sockmap: paced bulk CPU per GB, to our copy's",
        metric: Metric::CpuSystem,
        candidate: "sockmap",
        against: &["copy"],
        workloads: &["paced-1", "paced-8"],
        bound: Bound::AtMost(0.70),
    },
    Target {
        text: "sockmap: saturating bulk CPU per GB, to our copy's",
        metric: Metric::CpuSystem,
        candidate: "sockmap",
        against: &["copy"],
        workloads: BULK,
        bound: Bound::AtMost(0.95),
    },
    Target {
        text: "sockmap: CPU per 16 KB request, to our copy's",
        metric: Metric::CpuSystem,
        candidate: "sockmap",
        against: &["copy"],
        workloads: &["rr16k-1", "rr16k-8", "rr16k-64", "rr16k-512"],
        bound: Bound::AtMost(0.85),
    },
    Target {
        text: "sockmap: CPU per 64 B request at 64 connections, to our copy's",
        metric: Metric::CpuSystem,
        candidate: "sockmap",
        against: &["copy"],
        workloads: &["rr64-64"],
        bound: Bound::AtMost(1.0),
    },
    Target {
        text: "sk_msg: CPU with both ends local, to our copy's",
        metric: Metric::CpuSystem,
        candidate: "same-host",
        against: &["copy"],
        workloads: LOCAL,
        bound: Bound::AtMost(0.4),
    },
    Target {
        text: "sk_msg: rate with both ends local, to direct loopback's",
        metric: Metric::Rate,
        candidate: "same-host",
        against: &["direct"],
        workloads: LOCAL,
        bound: Bound::AtLeast(1.0),
    },
    Target {
        text: "auto: CPU, to the best of our forwarders",
        metric: Metric::CpuSystem,
        candidate: "auto",
        against: OURS,
        workloads: WORK,
        bound: Bound::AtMost(1.05),
    },
    Target {
        text: "auto: rate, to the best of our forwarders",
        metric: Metric::Rate,
        candidate: "auto",
        against: OURS,
        workloads: WORK,
        bound: Bound::AtLeast(0.95),
    },
    Target {
        text: "sockmap: kernel memory behind a slow reader, to our copy's",
        metric: Metric::KernelMemory,
        candidate: "sockmap",
        against: &["copy"],
        workloads: &["slow-reader"],
        bound: Bound::AtMost(1.5),
    },
];

/// A promise about memory in bytes.
const IDLE: &str = "idle-5000";
const IDLE_BYTES: f64 = 4096.0;
/// Of what a peak took, at most this part may still be held after it.
const KEPT: f64 = 0.1;

/// A row of the table of targets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::bench) struct Verdict {
    pub(super) target: &'static str,
    pub(super) workload: &'static str,
    pub(super) bound: String,
    /// `None` where a candidate is missing or was faulty.
    pub(super) measured: Option<Summary>,
    pub(super) met: Option<bool>,
}

/// Every target whose workloads were run.
pub(super) fn evaluate(results: &Results) -> Vec<Verdict> {
    let ran = |workload: &str| results.workloads.iter().any(|about| about.name == workload);
    let ratios = TARGETS.iter().flat_map(|target| {
        let workloads = target.workloads.iter().filter(|workload| ran(workload));
        workloads.map(|workload| {
            let measured = ratio(target, workload, &results.samples);
            verdict(target.text, workload, target.bound, measured)
        })
    });
    let mut verdicts: Vec<Verdict> = ratios.collect();
    if ran(IDLE) {
        verdicts.extend(["copy", "sockmap", "auto"].into_iter().flat_map(|candidate| memory(results, candidate)));
    }
    verdicts
}

fn verdict(target: &'static str, workload: &'static str, bound: Bound, measured: Option<Summary>) -> Verdict {
    let met = measured.map(|measured| bound.holds(measured.median));
    Verdict { target, workload, bound: bound.text(), measured, met }
}

/// Ratios within each round, since the machine may change between rounds. Of several others the best is the one with
/// the best median over all rounds: the best of each single round would be the luckiest of all, which nobody can choose.
fn ratio(target: &Target, workload: &str, samples: &[Sample]) -> Option<Summary> {
    let value = |round: u32, candidate: &str| {
        let mut found = samples.iter().filter(|sample| {
            sample.round == round && sample.workload == workload && sample.candidate == candidate && sample.is_good()
        });
        found.next()?.values.get(&target.metric).copied()
    };
    let rounds = samples.iter().map(|sample| sample.round).max()?;
    let median = |candidate: &&&str| Summary::of((0..=rounds).filter_map(|round| value(round, candidate)));
    let medians = target.against.iter().filter_map(|candidate| Some((candidate, median(&candidate)?.median)));
    let (best, _) = match target.bound {
        Bound::AtMost(_) => medians.min_by(|a, b| a.1.total_cmp(&b.1))?,
        Bound::AtLeast(_) => medians.max_by(|a, b| a.1.total_cmp(&b.1))?,
    };
    let of_round = |round: u32| {
        let best = value(round, best)?;
        (best > 0.0).then_some(value(round, target.candidate)? / best)
    };
    Summary::of((0..=rounds).filter_map(of_round))
}

fn memory(results: &Results, candidate: &'static str) -> [Verdict; 2] {
    let (each, kept) = match candidate {
        "copy" => ("copy: bytes of user memory per idle connection", "copy: share of them kept after the peak"),
        "sockmap" => {
            ("sockmap: bytes of user memory per idle connection", "sockmap: share of them kept after the peak")
        }
        _ => ("auto: bytes of user memory per idle connection", "auto: share of them kept after the peak"),
    };
    let line = results.lines.iter().find(|line| line.workload == IDLE && line.candidate == candidate);
    let bytes = line.and_then(|line| line.values.get(&Metric::UserMemory).copied());
    let mut first = verdict(each, IDLE, Bound::AtMost(IDLE_BYTES), bytes);
    first.bound = format!("≤ {IDLE_BYTES:.0}");
    [first, verdict(kept, IDLE, Bound::AtMost(KEPT), line.and_then(kept_share))]
}

/// What is left of the growth when all connections have gone.
fn kept_share(line: &Line) -> Option<Summary> {
    const CONNECTIONS: f64 = 5000.0;
    let median = |metric| line.values.get(&metric).map(|summary| summary.median);
    let growth = median(Metric::UserMemory)? * CONNECTIONS;
    let kept = median(Metric::UserAfter)? - median(Metric::UserBefore)?;
    Summary::of((growth > 0.0).then_some(kept / growth))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;

    fn sample(round: u32, candidate: &'static str, cpu: f64) -> Sample {
        let values = BTreeMap::from([(Metric::CpuSystem, cpu)]);
        Sample {
            workload: "rr64-64",
            candidate,
            round,
            values,
            carried: None,
            noise: 0.0,
            faults: 0,
            words: Vec::new(),
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_to_the_best() {
        // Twice as slow a machine in the second round: the ratio is the same.
        let samples: Vec<Sample> = [(0, 1.0), (1, 2.0)]
            .into_iter()
            .flat_map(|(round, slow)| {
                [("auto", 12.0), ("copy", 10.0), ("sockmap", 20.0)].map(|(name, cpu)| sample(round, name, cpu * slow))
            })
            .collect();
        let auto = TARGETS.iter().find(|target| target.text.starts_with("auto: CPU")).unwrap();
        let measured = ratio(auto, "rr64-64", &samples).unwrap();
        assert!((measured.median - 1.2).abs() < 1e-9);
        assert_eq!(measured.count, 2);
        assert_eq!(verdict(auto.text, "rr64-64", auto.bound, Some(measured)).met, Some(false));
    }

    #[test]
    fn the_best_of_several_is_the_best_over_all_rounds() {
        // Each is the luckiest once, and copy is the best; auto is as good as copy.
        let rounds = [("copy", [9.0, 10.0, 11.0]), ("splice", [12.0, 8.0, 13.0]), ("sockmap", [14.0, 15.0, 7.0])];
        let rounds = rounds.into_iter().chain([("auto", [9.0, 10.0, 11.0])]);
        let samples: Vec<Sample> =
            rounds.flat_map(|(name, cpu)| (0..).zip(cpu).map(move |(round, cpu)| sample(round, name, cpu))).collect();
        let auto = TARGETS.iter().find(|target| target.text.starts_with("auto: CPU")).unwrap();
        assert!((ratio(auto, "rr64-64", &samples).unwrap().median - 1.0).abs() < 1e-9);
    }

    #[test]
    fn what_was_faulty_or_missing_meets_no_target() {
        let mut samples = vec![sample(0, "copy", 1.0), sample(0, "haproxy", 2.0)];
        assert!(ratio(&TARGETS[0], "rr64-64", &samples).is_some());
        samples[0].faults = 1;
        assert_eq!(ratio(&TARGETS[0], "rr64-64", &samples), None);
        assert_eq!(verdict("", "", Bound::AtMost(1.0), None).met, None);
    }

    #[test]
    fn targets_name_what_there_is() {
        use crate::bench::{candidate::CANDIDATES, workload::WORKLOADS};
        let is_candidate = |name: &&str| CANDIDATES.iter().any(|candidate| candidate.name() == *name);
        for target in &TARGETS {
            assert!(is_candidate(&target.candidate) && target.against.iter().all(is_candidate));
            for name in target.workloads {
                assert!(WORKLOADS.iter().any(|workload| workload.name == *name), "{name}");
            }
        }
    }
}
