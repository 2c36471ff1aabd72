//! Plots as SVG, written by hand: one row of dots for each workload, one lane for each candidate.

use std::fmt::Write as _;

use super::{Line, Results};
use crate::bench::sample::Metric;
use crate::bench::stats::Summary;
use crate::bench::workload::Group;
use crate::sheet::{DARK, LIGHT, Sheet, WIDTH, text};

const LEFT: f64 = 316.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 96.0;
const LANE: f64 = 7.0;
const GAP: f64 = 12.0;

/// A page, and the colours of the candidates on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theme {
    pub(super) sheet: Sheet,
    others: &'static str,
    ours: [&'static str; 5],
}

pub(super) const THEMES: [Theme; 2] = [
    Theme { sheet: LIGHT, others: "#8c959f", ours: ["#0969da", "#1a7f37", "#bc4c00", "#cf222e", "#8250df"] },
    Theme { sheet: DARK, others: "#7d8590", ours: ["#58a6ff", "#3fb950", "#f0883e", "#ff7b72", "#bc8cff"] },
];

const OURS: [&str; 5] = ["copy", "splice", "sockmap", "auto", "same-host"];

/// What a plot shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plot {
    pub(super) file: &'static str,
    pub(super) title: &'static str,
    pub(super) subtitle: &'static str,
    pub(super) metric: Metric,
    /// Ratios to `direct`, else the values themselves.
    pub(super) relative: bool,
}

pub(super) const PLOTS: [Plot; 3] = [
    Plot {
        file: "cpu",
        title: "Processor time of the whole machine per request, connection or GB",
        subtitle: "ratio to the direct route, medians and quartiles; left is better",
        metric: Metric::CpuSystem,
        relative: true,
    },
    Plot {
        file: "rate",
        title: "Requests, connections or bytes per second",
        subtitle: "ratio to the direct route, medians and quartiles; right is better",
        metric: Metric::Rate,
        relative: true,
    },
    Plot {
        file: "latency",
        title: "Latency that 99 of 100 requests stay below",
        subtitle: "microseconds, medians and quartiles; left is better",
        metric: Metric::P99,
        relative: false,
    },
];

/// A row: a workload, and what there is of it.
struct Row<'a> {
    title: &'a str,
    dots: Vec<(&'static str, Summary)>,
}

/// `None` where nothing of it was measured.
pub(super) fn draw(plot: &Plot, results: &Results, theme: &Theme) -> Option<String> {
    let rows = rows(plot, results);
    let all = rows.iter().flat_map(|row| row.dots.iter().map(|(_, summary)| summary));
    let positive = |value: &f64| *value > 0.0;
    let low = all.clone().map(|summary| summary.low).filter(positive).min_by(f64::total_cmp)?;
    let high = all.map(|summary| summary.high).max_by(f64::total_cmp)?;
    let axis = Axis::of(low, high);
    let lanes = rows.iter().map(|row| row.dots.len() as f64 * LANE + GAP);
    let height = TOP + lanes.sum::<f64>() + 40.0;
    let mut out = theme.sheet.begin(height, plot.title, plot.subtitle);
    legend(&mut out, &rows, theme);
    grid(&mut out, &axis, height, theme);
    let mut y = TOP + GAP / 2.0;
    for row in &rows {
        y = draw_row(&mut out, row, y, &axis, theme);
    }
    out.push_str("</svg>\n");
    Some(out)
}

fn rows<'a>(plot: &Plot, results: &'a Results) -> Vec<Row<'a>> {
    let dot = |line: &Line| {
        let values = if plot.relative { &line.to_direct } else { &line.values };
        let shown = !(plot.relative && line.candidate == "direct");
        values.get(&plot.metric).filter(|_| shown).map(|summary| (line.candidate, *summary))
    };
    let row = |about: &'a super::About| {
        let dots: Vec<_> = results.lines.iter().filter(|line| line.workload == about.name).filter_map(dot).collect();
        (!dots.is_empty()).then_some(Row { title: about.title, dots })
    };
    let mut workloads: Vec<_> = results.workloads.iter().collect();
    workloads.sort_by_key(|about| about.group == Group::Local);
    workloads.into_iter().filter_map(row).collect()
}

/// A logarithmic axis.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    fn of(low: f64, high: f64) -> Self {
        Self { low: low * 0.93, high: high.max(low * 1.2) * 1.07 }
    }

    fn x(&self, value: f64) -> f64 {
        let share = (value.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Round values on it, thinned out where there would be too many.
    fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = match self.high / self.low {
            narrow if narrow < 12.0 => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            middle if middle < 200.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let decades = -6..9;
        let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)));
        all.filter(|value| (self.low..=self.high).contains(value)).collect()
    }
}

fn grid(out: &mut String, axis: &Axis, height: f64, theme: &Theme) {
    for value in axis.ticks() {
        let x = axis.x(value);
        // No proxy at all is the line to look for.
        let (width, colour) =
            if (value - 1.0).abs() < 1e-9 { (1.6, theme.sheet.faint) } else { (1.0, theme.sheet.grid) };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
            height - 30.0
        );
        text(out, (x, height - 12.0), theme.sheet.faint, "text-anchor=\"middle\"", &tick(value));
    }
}

fn tick(value: f64) -> String {
    let rounded = (value * 1000.0).round() / 1000.0;
    if rounded >= 10_000.0 { format!("{:.0}k", rounded / 1000.0) } else { format!("{rounded}") }
}

fn legend(out: &mut String, rows: &[Row<'_>], theme: &Theme) {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flat_map(|row| &row.dots) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let mut x = 26.0;
    for name in names {
        mark(out, name, x, 70.0, theme);
        text(out, (x + 10.0, 74.5), theme.sheet.text, "", name);
        x += 30.0 + 7.4 * name.len() as f64;
    }
}

fn draw_row(out: &mut String, row: &Row<'_>, top: f64, axis: &Axis, theme: &Theme) -> f64 {
    let height = row.dots.len() as f64 * LANE;
    let middle = top + height / 2.0;
    text(out, (LEFT - 14.0, middle + 1.0), theme.sheet.text, "text-anchor=\"end\" font-size=\"11.5\"", row.title);
    for (lane, (name, summary)) in row.dots.iter().enumerate() {
        let y = top + lane as f64 * LANE;
        let (from, to, colour) = (axis.x(summary.low), axis.x(summary.high), colour(name, theme));
        let _ = writeln!(
            out,
            "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" \
             stroke-width=\"1.5\"/>"
        );
        mark(out, name, axis.x(summary.median), y, theme);
    }
    let bottom = top + height + GAP;
    let line = bottom - GAP / 2.0 - LANE / 2.0;
    let _ = writeln!(
        out,
        "<line x1=\"20\" x2=\"{:.0}\" y1=\"{line:.1}\" y2=\"{line:.1}\" stroke=\"{}\" stroke-width=\"0.5\"/>",
        WIDTH - RIGHT,
        theme.sheet.grid
    );
    bottom
}

fn colour(name: &str, theme: &Theme) -> &'static str {
    let ours = OURS.iter().zip(theme.ours).find(|(known, _)| **known == name);
    ours.map_or(theme.others, |(_, colour)| colour)
}

/// Ours are coloured discs, `auto` a ring around one; the others have shapes of their own.
fn mark(out: &mut String, name: &str, x: f64, y: f64, theme: &Theme) {
    let colour = colour(name, theme);
    let back = theme.sheet.background;
    let shape = match name {
        "haproxy" => square(x, y, colour, colour),
        "haproxy-splice" => square(x, y, back, colour),
        "nginx" => polygon(&[(x, y - 4.0), (x - 3.8, y + 3.0), (x + 3.8, y + 3.0)], colour, colour),
        "tokio-copy" => polygon(&[(x, y - 4.2), (x - 4.2, y), (x, y + 4.2), (x + 4.2, y)], back, colour),
        "direct" => {
            polygon(&[(x - 1.0, y - 4.0), (x + 1.0, y - 4.0), (x + 1.0, y + 4.0), (x - 1.0, y + 4.0)], colour, colour)
        }
        _ => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" fill=\"{colour}\"/>"),
    };
    out.push_str(&shape);
    out.push('\n');
}

fn square(x: f64, y: f64, fill: &str, stroke: &str) -> String {
    polygon(&[(x - 3.0, y - 3.0), (x + 3.0, y - 3.0), (x + 3.0, y + 3.0), (x - 3.0, y + 3.0)], fill, stroke)
}

fn polygon(points: &[(f64, f64)], fill: &str, stroke: &str) -> String {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("<polygon points=\"{}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.3\"/>", points.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_goes_from_left_to_right_by_factors() {
        let axis = Axis { low: 1.0, high: 100.0 };
        assert!((axis.x(1.0) - LEFT).abs() < 1e-9);
        assert!((axis.x(10.0) - (LEFT + (WIDTH - LEFT - RIGHT) / 2.0)).abs() < 1e-6);
        assert!((axis.x(1000.0) - (WIDTH - RIGHT)).abs() < 1e-9);
        assert_eq!(axis.ticks(), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([0.2, 1.5, 3000.0, 20_000.0].map(tick), ["0.2", "1.5", "3000", "20k"]);
    }
}
