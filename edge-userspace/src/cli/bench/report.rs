//! What was measured, for people and as JSON, and what follows from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::load::{WORKLOADS, Workload};

/// Less processor time than this share of another's is better; the rest may be chance.
const BETTER: f64 = 0.97;
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
struct Row {
    workload: &'static str,
    title: &'static str,
    forwarder: &'static str,
    /// `request`, `connection` or `byte`.
    unit: &'static str,
    per_second: f64,
    /// Microseconds of the whole machine for a request or connection; milliseconds for a GB.
    cpu: f64,
    daemon_cpu: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Recommendation {
    /// Value of the setting `forwarder`.
    forwarder: &'static str,
    reasons: Vec<String>,
}

impl Report {
    pub(super) fn new(
        window: Duration,
        rounds: usize,
        background: f64,
        cells: &Cells,
        unavailable: Vec<Unavailable>,
    ) -> Self {
        let candidates = ["direct", "copy", "splice", "sockmap"];
        let rows = WORKLOADS.iter().flat_map(|workload| {
            let row = move |name| Some(row(workload, name, middle(cells.get(&(workload.name, name))?)?));
            candidates.into_iter().filter_map(row)
        });
        let results: Vec<Row> = rows.collect();
        let recommendation = recommend(&results, &unavailable);
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
        for reason in &self.recommendation.reasons {
            let _ = writeln!(out, "  {reason}");
        }
        out
    }
}

fn units(workload: &Workload) -> (&'static str, &'static str) {
    if workload.counts_bytes() { ("GB/s", "CPU, ms/GB") } else { ("per second", "CPU, µs each") }
}

fn row(workload: &Workload, forwarder: &'static str, figure: Figure) -> Row {
    let (unit, scale) = match workload.name {
        _ if workload.counts_bytes() => ("byte", 1e12),
        "short" => ("connection", 1e6),
        _ => ("request", 1e6),
    };
    let (cpu, daemon_cpu) = (figure.cpu * scale, figure.daemon_cpu * scale);
    let (workload, title) = (workload.name, workload.title);
    Row { workload, title, forwarder, unit, per_second: figure.rate, cpu, daemon_cpu }
}

/// The mean, which for two rounds is the median.
fn middle(figures: &[Figure]) -> Option<Figure> {
    let count = figures.len() as f64;
    let mean = |value: fn(&Figure) -> f64| figures.iter().map(value).sum::<f64>() / count;
    let (rate, cpu, daemon_cpu) = (mean(|of| of.rate), mean(|of| of.cpu), mean(|of| of.daemon_cpu));
    (!figures.is_empty()).then_some(Figure { rate, cpu, daemon_cpu })
}

/// `auto` wherever something is gained over `copy` on connections that last; it copies what does not last.
fn recommend(results: &[Row], unavailable: &[Unavailable]) -> Recommendation {
    let mut reasons = Vec::new();
    let mut gain = false;
    for workload in &WORKLOADS {
        let cpu = |forwarder: &str| {
            results.iter().find(|row| row.workload == workload.name && row.forwarder == forwarder).map(|row| row.cpu)
        };
        let Some(copy) = cpu("copy") else { continue };
        let others = ["splice", "sockmap"].into_iter().filter_map(|name| Some((name, cpu(name)? / copy)));
        let Some((name, ratio)) = others.min_by(|one, other| one.1.total_cmp(&other.1)) else { continue };
        let lasts = workload.name != "short";
        if ratio <= BETTER && lasts {
            gain = true;
            let less = (1.0 - ratio) * 100.0;
            reasons.push(format!("{}: {name} needs {less:.0} % less processor time than copy", workload.title));
        } else if ratio > BETTER {
            reasons.push(format!("{}: nothing needs less processor time than copy", workload.title));
        }
    }
    let forwarder = if gain { "auto" } else { "copy" };
    if gain {
        reasons.push("auto begins with copy and changes only those connections that gain by it".to_owned());
    }
    for Unavailable { forwarder, .. } in unavailable {
        reasons.push(format!("{forwarder} was left out of account"));
    }
    Recommendation { forwarder, reasons }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn report(sockmap: f64, short: f64, unavailable: Vec<Unavailable>) -> Report {
        let figure = |cpu: f64| vec![Figure { rate: 100.0, cpu: cpu * 1e-6, daemon_cpu: cpu * 5e-7 }; 2];
        let mut cells = Cells::new();
        for workload in &WORKLOADS {
            cells.insert((workload.name, "direct"), figure(10.0));
            cells.insert((workload.name, "copy"), figure(30.0));
            if unavailable.is_empty() {
                let ratio = if workload.name == "short" { short } else { sockmap };
                cells.insert((workload.name, "sockmap"), figure(30.0 * ratio));
            }
        }
        Report::new(Duration::from_secs(1), 2, 0.5, &cells, unavailable)
    }

    #[test]
    fn what_gains_on_lasting_connections_speaks_for_auto() {
        let report = report(0.8, 1.7, Vec::new());
        assert_eq!(report.recommendation.forwarder, "auto");
        let text = report.text();
        for part in [
            "bulk, 4 streams: sockmap needs 20 % less processor time than copy",
            "connect, request, close, 16 at once: nothing needs less processor time than copy",
            "recommended: forwarder = auto",
            "50 % of the processors were busy before the start",
            "sockmap               100               24.0             12.0     0.80",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn no_gain_or_one_on_short_connections_only_speaks_for_copy() {
        assert_eq!(report(1.0, 1.0, Vec::new()).recommendation.forwarder, "copy");
        assert_eq!(report(1.1, 0.5, Vec::new()).recommendation.forwarder, "copy");
    }

    #[test]
    fn what_could_not_be_measured_is_named_with_its_reason() {
        let missing = Unavailable { forwarder: "sockmap", why: "needs CAP_BPF".to_owned() };
        let report = report(1.0, 1.0, vec![missing]);
        assert_eq!(report.recommendation.forwarder, "copy");
        assert!(report.text().contains("sockmap can't be measured here: needs CAP_BPF"));
        assert!(report.text().contains("sockmap was left out of account"));
        assert!(!report.results.iter().any(|row| row.forwarder == "sockmap"));
    }
}
