//! What was measured, for people and as JSON, and what follows from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::advice::{Recommendation, Setting, TUNED, recommend};
use super::load::{WORKLOADS, Workload};

/// Above this share of busy processors before the start, figures are doubtful.
const QUIET: f64 = 0.1;

/// One measurement, or the middle of several. Times in seconds for each request, connection or byte.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figure {
    /// Per second.
    pub(super) rate: f64,
    /// Of the whole machine, clients and backend included.
    pub(super) cpu: f64,
    pub(super) daemon_cpu: f64,
}

/// All measurements of a workload and a candidate.
pub(super) type Cells = BTreeMap<(&'static str, &'static str), Vec<Figure>>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Unavailable {
    pub(super) forwarder: &'static str,
    pub(super) why: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    seconds: f64,
    rounds: usize,
    /// Share of the processors that was busy before there was any load.
    background: f64,
    results: Vec<Row>,
    unavailable: Vec<Unavailable>,
    recommendation: Recommendation,
}

/// A line of the results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) workload: &'static str,
    pub(super) title: &'static str,
    pub(super) forwarder: &'static str,
    /// `request`, `connection` or `byte`.
    pub(super) unit: &'static str,
    pub(super) per_second: f64,
    /// Microseconds of the whole machine for a request or connection; milliseconds for a GB.
    pub(super) cpu: f64,
    /// In the best round and in the worst.
    pub(super) cpu_least: f64,
    pub(super) cpu_most: f64,
    pub(super) daemon_cpu: f64,
}

impl Report {
    pub(super) fn new(
        window: Duration,
        rounds: usize,
        background: f64,
        cells: &Cells,
        unavailable: Vec<Unavailable>,
        tried: Vec<Setting>,
    ) -> Self {
        let results = rows(cells);
        let recommendation = recommend(&results, &unavailable, tried);
        Self { seconds: window.as_secs_f64(), rounds, background, results, unavailable, recommendation }
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for workload in &WORKLOADS {
            let (rate, cpu) = units(workload);
            let _ = writeln!(out, "{}", workload.title);
            let _ = writeln!(out, "  {:<10} {rate:>14} {cpu:>18} {:>16} {:>8}", "forwarder", "of it daemon", "to copy");
            let rows = || self.results.iter().filter(|row| row.workload == workload.name);
            let copy = rows().find(|row| row.forwarder == "copy").map(|row| row.cpu);
            for row in rows() {
                let scale = if workload.counts_bytes() { 1e-9 } else { 1.0 };
                let digits = if workload.counts_bytes() { 2 } else { 0 };
                let ratio = copy.map_or_else(|| "-".to_owned(), |copy| format!("{:.2}", row.cpu / copy));
                let _ = writeln!(
                    out,
                    "  {:<10} {:>14.digits$} {:>18.1} {:>16.1} {ratio:>8}",
                    row.forwarder,
                    row.per_second * scale,
                    row.cpu,
                    row.daemon_cpu,
                );
            }
            out.push('\n');
        }
        for Unavailable { forwarder, why } in &self.unavailable {
            let _ = writeln!(out, "{forwarder} can't be measured here: {why}");
        }
        if self.background > QUIET {
            let _ = writeln!(
                out,
                "{:.0} % of the processors were busy before the start: other programs disturb these figures",
                self.background * 100.0
            );
        }
        let _ = writeln!(out, "recommended: forwarder = {}", self.recommendation.forwarder);
        for setting in &self.recommendation.settings {
            let _ = writeln!(out, "recommended: {setting}");
        }
        for reason in &self.recommendation.reasons {
            let _ = writeln!(out, "  {reason}");
        }
        out
    }
}

/// The lines, as far as there are figures.
pub(super) fn rows(cells: &Cells) -> Vec<Row> {
    let candidates = ["direct", "copy", "splice", "sockmap", "auto", TUNED];
    let rows = WORKLOADS.iter().flat_map(|workload| {
        let row = move |name| row(workload, name, cells.get(&(workload.name, name))?);
        candidates.into_iter().filter_map(row)
    });
    rows.collect()
}

fn units(workload: &Workload) -> (&'static str, &'static str) {
    if workload.counts_bytes() { ("GB/s", "CPU, ms/GB") } else { ("per second", "CPU, µs each") }
}

fn row(workload: &Workload, forwarder: &'static str, figures: &[Figure]) -> Option<Row> {
    let (unit, scale) = match workload.name {
        _ if workload.counts_bytes() => ("byte", 1e12),
        "short" => ("connection", 1e6),
        _ => ("request", 1e6),
    };
    let sorted = |value: fn(&Figure) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let middle = |values: &[f64]| values.get(values.len() / 2).copied();
    let cpu = sorted(|of| of.cpu);
    Some(Row {
        workload: workload.name,
        title: workload.title,
        forwarder,
        unit,
        per_second: middle(&sorted(|of| of.rate))?,
        cpu: middle(&cpu)? * scale,
        cpu_least: cpu.first()? * scale,
        cpu_most: cpu.last()? * scale,
        daemon_cpu: middle(&sorted(|of| of.daemon_cpu))? * scale,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn report(sockmap: f64, unavailable: Vec<Unavailable>) -> Report {
        let figure = |cpu: f64| Figure { rate: 100.0, cpu: cpu * 1e-6, daemon_cpu: cpu * 5e-7 };
        let rounds = |cpu: f64| [1.02, 0.98, 1.0].map(|noise| figure(cpu * noise)).to_vec();
        let mut cells = Cells::new();
        for workload in &WORKLOADS {
            cells.insert((workload.name, "direct"), rounds(10.0));
            cells.insert((workload.name, "copy"), rounds(30.0));
            if unavailable.is_empty() {
                cells.insert((workload.name, "sockmap"), rounds(30.0 * sockmap));
                cells.insert((workload.name, "auto"), rounds(30.0 * sockmap));
            }
        }
        Report::new(Duration::from_secs(1), 3, 0.5, &cells, unavailable, Vec::new())
    }

    #[test]
    fn the_text_has_the_figures_and_what_follows() {
        let report = report(0.8, Vec::new());
        let text = report.text();
        for part in [
            "bulk, 4 streams: auto needs 20 % less processor time than copy",
            "recommended: forwarder = auto",
            "50 % of the processors were busy before the start",
            "sockmap               100               24.0             12.0     0.80",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let row = report.results.iter().find(|row| (row.workload, row.forwarder) == ("small", "copy")).unwrap();
        assert!(row.cpu_least < 29.5 && row.cpu_most > 30.5, "{row:?}");
    }

    #[test]
    fn what_could_not_be_measured_is_named_with_its_reason() {
        let missing = |forwarder| Unavailable { forwarder, why: "needs CAP_BPF".to_owned() };
        let report = report(1.0, vec![missing("sockmap"), missing("auto")]);
        assert_eq!(report.recommendation.forwarder, "copy");
        assert!(report.text().contains("sockmap can't be measured here: needs CAP_BPF"));
        assert!(report.text().contains("sockmap was left out of account"));
        assert!(!report.results.iter().any(|row| row.forwarder == "sockmap"));
    }
}
