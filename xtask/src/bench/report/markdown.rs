//! The results as Markdown.

use std::fmt::Write as _;

use super::{About, Line, Results, carried};
use crate::bench::sample::{Metric, Unit};
use crate::bench::stats::Summary;

/// Above this share of foreign processor time a cell is named as noisy.
const NOISY: f64 = 0.05;

pub(super) fn page(results: &Results, plots: &[(&str, &str)]) -> String {
    let mut out = String::new();
    about(&mut out, results);
    targets(&mut out, results);
    for (file, alt) in plots {
        let _ = write!(
            out,
            "\n<picture>\n  <source media=\"(prefers-color-scheme: dark)\" srcset=\"{file}-dark.svg\">\n  <img \
             src=\"{file}-light.svg\" width=\"960\" alt=\"{alt}\">\n</picture>\n"
        );
    }
    for workload in &results.workloads {
        let lines: Vec<&Line> = results.lines.iter().filter(|line| line.workload == workload.name).collect();
        let _ = writeln!(out, "\n### {}\n\n`{}`\n", workload.title, workload.name);
        if workload.unit == Unit::None { memory(&mut out, &lines) } else { work(&mut out, workload, &lines) }
    }
    carried::table(&mut out, results);
    remarks(&mut out, results);
    out
}

fn about(out: &mut String, results: &Results) {
    let about = &results.machine;
    let _ = writeln!(
        out,
        "{}: {}, {} processors, Linux {}, congestion control {}. edgeproxy {}, {}, {}. {} rounds, {} s each cell, {:.0} \
         minutes in all.",
        about.date,
        about.processor,
        about.processors,
        about.kernel,
        about.congestion_control,
        about.commit,
        about.haproxy,
        about.nginx,
        results.rounds,
        results.seconds,
        results.took_seconds / 60.0
    );
    if !results.pace.is_empty() {
        let pace = |(name, rate): (&&str, &u64)| format!("`{name}` {:.2} GB/s for each stream", *rate as f64 / 1e9);
        let paces: Vec<String> = results.pace.iter().map(pace).collect();
        let _ = writeln!(out, "\nPaced: {}.", paces.join(", "));
    }
}

fn targets(out: &mut String, results: &Results) {
    if results.targets.is_empty() {
        return;
    }
    let met = results.targets.iter().filter(|verdict| verdict.met == Some(true)).count();
    let _ = writeln!(out, "\n### Targets\n\n{met} of {} are met.\n", results.targets.len());
    out.push_str("| target | workload | bound | measured | quartiles | met? |\n|---|---|---|---|---|---|\n");
    for verdict in &results.targets {
        let (median, spread) = match &verdict.measured {
            Some(summary) => (short(summary.median), format!("{} to {}", short(summary.low), short(summary.high))),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let met = match verdict.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "not measured",
        };
        let _ = writeln!(
            out,
            "| {} | `{}` | {} | {median} | {spread} | {met} |",
            verdict.target, verdict.workload, verdict.bound
        );
    }
}

fn work(out: &mut String, workload: &About, lines: &[&Line]) {
    let (rate, cpu) = match workload.unit {
        Unit::Byte => ("GB/s", "ms/GB"),
        Unit::Connection => ("connections/s", "µs/connection"),
        Unit::Request | Unit::None => ("requests/s", "µs/request"),
    };
    let latency = lines.iter().any(|line| line.values.contains_key(&Metric::P50));
    let _ = write!(out, "| | {rate} | to direct | CPU, {cpu} | to direct | of it the proxy |");
    out.push_str(if latency { " p50 µs | p99 µs | p99.9 µs |\n" } else { "\n" });
    out.push_str("|---|---:|---:|---:|---:|---:|");
    out.push_str(if latency { "---:|---:|---:|\n" } else { "\n" });
    for line in lines {
        let scale = if workload.unit == Unit::Byte { 1e-9 } else { 1.0 };
        let _ = write!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            line.candidate,
            spread(line.values.get(&Metric::Rate), scale),
            median(line.to_direct.get(&Metric::Rate)),
            spread(line.values.get(&Metric::CpuSystem), 1.0),
            median(line.to_direct.get(&Metric::CpuSystem)),
            median(line.values.get(&Metric::CpuProxy)),
        );
        for metric in [Metric::P50, Metric::P99, Metric::P999].into_iter().filter(|_| latency) {
            let _ = write!(out, " {} |", median(line.values.get(&metric)));
        }
        out.push('\n');
    }
}

fn memory(out: &mut String, lines: &[&Line]) {
    out.push_str(
        "Bytes for each connection; the kernel's include the sockets of client and backend. The last two columns are \
         the proxy's processes before the first connection and after the last, in MB.\n\n| | user | kernel \
         (MemAvailable) | of it slab | before, MB | after, MB |\n|---|---:|---:|---:|---:|---:|\n",
    );
    for line in lines {
        let megabytes = |metric| {
            let value: Option<&Summary> = line.values.get(&metric);
            value.map_or_else(|| "-".to_owned(), |summary| format!("{:.1}", summary.median / 1e6))
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            line.candidate,
            spread(line.values.get(&Metric::UserMemory), 1.0),
            spread(line.values.get(&Metric::KernelMemory), 1.0),
            median(line.values.get(&Metric::Slab)),
            megabytes(Metric::UserBefore),
            megabytes(Metric::UserAfter),
        );
    }
}

fn remarks(out: &mut String, results: &Results) {
    let mut remarks: Vec<String> = Vec::new();
    for (candidate, why) in &results.absent {
        let first = why.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        remarks.push(format!("{candidate} was not available: {first}"));
    }
    for line in results.lines.iter().filter(|line| line.faults > 0) {
        let words = results.samples.iter().filter(|sample| {
            sample.workload == line.workload && sample.candidate == line.candidate && !sample.words.is_empty()
        });
        let words = words.flat_map(|sample| sample.words.first()).next().map_or("", String::as_str);
        remarks.push(format!("{} with `{}` made {} faults: {words}", line.candidate, line.workload, line.faults));
    }
    let noisy = results.samples.iter().filter(|sample| sample.noise > NOISY).count();
    if noisy > 0 {
        remarks.push(format!(
            "in {noisy} of {} cells other programs of the machine used more than {:.0} % of its processors",
            results.samples.len(),
            NOISY * 100.0
        ));
    }
    if !remarks.is_empty() {
        out.push_str("\n### Remarks\n\n");
        remarks.iter().for_each(|remark| _ = writeln!(out, "- {remark}"));
    }
}

fn median(summary: Option<&Summary>) -> String {
    summary.map_or_else(|| "-".to_owned(), |summary| short(summary.median))
}

/// Median and the larger distance of a quartile from it.
fn spread(summary: Option<&Summary>, scale: f64) -> String {
    let Some(summary) = summary else { return "-".to_owned() };
    let off = (summary.high - summary.median).max(summary.median - summary.low) * scale;
    format!("{} ± {}", short(summary.median * scale), short(off))
}

/// About three digits.
fn short(number: f64) -> String {
    match number.abs() {
        large if large >= 100.0 => format!("{number:.0}"),
        middle if middle >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_about_three_digits() {
        assert_eq!([1234.4, 45.67, 1.234, -0.5].map(short), ["1234", "45.7", "1.23", "-0.50"]);
        let summary = Summary { median: 2e9, low: 1.5e9, high: 2.1e9, count: 3 };
        assert_eq!(spread(Some(&summary), 1e-9), "2.00 ± 0.50");
        assert_eq!(spread(None, 1.0), "-");
    }
}
