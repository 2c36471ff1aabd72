//! Line charts as SVG, light and dark, written by hand.

use std::fmt::Write as _;

use xtask::sheet::{DARK, LIGHT, Sheet, WIDTH, text};

use super::Results;
use crate::candidate::Kind;
use crate::measure::Figures;
use crate::scenes::{Ailment, FAILS_AT, FAILS_FOR};

const HEIGHT: f64 = 396.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 112.0;
const BOTTOM: f64 = 52.0;

/// A page, and the colours of the candidates on it.
struct Theme {
    sheet: Sheet,
    lines: [&'static str; 9],
}

const THEMES: [Theme; 2] = [
    Theme {
        sheet: LIGHT,
        lines: ["#0969da", "#1a7f37", "#9a6700", "#1b7c83", "#bc4c00", "#cf222e", "#8250df", "#bf3989", "#57606a"],
    },
    Theme {
        sheet: DARK,
        lines: ["#58a6ff", "#3fb950", "#d29922", "#39c5cf", "#f0883e", "#ff7b72", "#bc8cff", "#f778ba", "#8b949e"],
    },
];

/// A chart with one line for each candidate.
pub(super) struct Picture {
    file: &'static str,
    title: &'static str,
    subtitle: &'static str,
    x: &'static str,
    /// Points of a line: what is on the axes.
    points: fn(&Results, Kind) -> Vec<(f64, f64)>,
}

pub(super) const PICTURES: [Picture; 2] = [
    Picture {
        file: "simulation-overload",
        title: "Connections above the soft limits",
        subtitle: "a busy hour, all POPs together, means of 30 s; lower is better",
        x: "minutes",
        points: overload,
    },
    Picture {
        file: "simulation-failover",
        title: "Connects to a backend that has vanished",
        subtitle: "per cent of all connects, means of 3 s; one of five, silent from 60 s to 180 s; lower is better",
        x: "seconds",
        points: failures,
    },
];

impl Picture {
    pub(super) fn link(&self, out: &mut String) {
        let Self { file, title, .. } = self;
        let _ = write!(
            out,
            "<picture>\n  <source media=\"(prefers-color-scheme: dark)\" srcset=\"images/{file}-dark.svg\">\n  <img \
             src=\"images/{file}-light.svg\" width=\"960\" alt=\"{title}\">\n</picture>\n\n"
        );
    }
}

/// All pictures with their file names.
pub(super) fn pictures(results: &Results) -> Vec<(String, String)> {
    let each = PICTURES.iter().flat_map(|picture| THEMES.iter().map(move |theme| (picture, theme)));
    each.map(|(picture, theme)| (format!("{}-{}.svg", picture.file, theme.sheet.name), draw(picture, results, theme)))
        .collect()
}

fn figures_of(outcome: &super::Outcome, kind: Kind) -> Option<&Figures> {
    outcome.runs.iter().find(|(its, _)| *its == kind).map(|(_, run)| &run.figures)
}

fn overload(results: &Results, kind: Kind) -> Vec<(f64, f64)> {
    let Some(figures) = figures_of(&results.busy, kind) else { return Vec::new() };
    let length = results.busy.world.length.as_secs() as usize;
    let samples = figures.excess.get(..length.min(figures.excess.len())).unwrap_or_default();
    let mean = |part: &[u64]| part.iter().sum::<u64>() as f64 / part.len().max(1) as f64;
    samples.chunks(30).enumerate().map(|(at, part)| (at as f64 / 2.0, mean(part))).collect()
}

fn failures(results: &Results, kind: Kind) -> Vec<(f64, f64)> {
    let silent = results.ill.iter().find(|(ailment, _)| *ailment == Ailment::Silent);
    let Some(figures) = silent.and_then(|(_, outcome)| figures_of(outcome, kind)) else { return Vec::new() };
    let (from, until) = (FAILS_AT as usize - 15, (FAILS_AT + FAILS_FOR) as usize + 18);
    let sum = |list: &[u64], at: usize| list.get(at..at + 3).map_or(0, |part| part.iter().sum::<u64>()) as f64;
    let share = |at: usize| 100.0 * sum(&figures.met, at) / sum(&figures.connects, at).max(1.0);
    (from..until).step_by(3).map(|at| (at as f64, share(at))).collect()
}

fn draw(picture: &Picture, results: &Results, theme: &Theme) -> String {
    let lines: Vec<_> = Kind::ALL.iter().map(|kind| (*kind, (picture.points)(results, *kind))).collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let most = |value: fn(&(f64, f64)) -> f64| all().map(value).fold(0.0, f64::max).max(1e-9);
    let from = all().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let axes = Axes { from, until: most(|point| point.0), top: round_up(most(|point| point.1)) };
    let mut out = theme.sheet.begin(HEIGHT, picture.title, picture.subtitle);
    legend(&mut out, theme);
    grid(&mut out, &axes, picture, theme);
    // edgeproxy above all others.
    for (kind, points) in lines.iter().rev() {
        let path: Vec<String> =
            points.iter().map(|point| format!("{:.1},{:.1}", axes.x(point.0), axes.y(point.1))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-linejoin=\"round\"/>",
            path.join(" "),
            colour(*kind, theme),
            if *kind == Kind::Edgeproxy { 2.6 } else { 1.5 }
        );
    }
    out.push_str("</svg>\n");
    out
}

struct Axes {
    from: f64,
    until: f64,
    top: f64,
}

impl Axes {
    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.from) / (self.until - self.from).max(1e-9) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)
    }
}

/// The next number of the form 1, 2, 5 or 10 times a power of ten.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powi(value.log10().floor() as i32);
    let step = [1.0, 2.0, 4.0, 5.0, 8.0].into_iter().find(|step| step * decade >= value);
    step.unwrap_or(10.0) * decade
}

fn grid(out: &mut String, axes: &Axes, picture: &Picture, theme: &Theme) {
    for quarter in 0..=4 {
        let value = axes.top * f64::from(quarter) / 4.0;
        let y = axes.y(value);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{}\" stroke-width=\"1\"/>",
            WIDTH - RIGHT,
            theme.sheet.grid
        );
        text(out, (LEFT - 10.0, y + 4.5), theme.sheet.faint, "text-anchor=\"end\"", &format!("{value}"));
    }
    for sixth in 0..=6 {
        let value = axes.from + (axes.until - axes.from) * f64::from(sixth) / 6.0;
        text(out, (axes.x(value), HEIGHT - 30.0), theme.sheet.faint, "text-anchor=\"middle\"", &format!("{value:.0}"));
    }
    text(
        out,
        (LEFT + (WIDTH - LEFT - RIGHT) / 2.0, HEIGHT - 10.0),
        theme.sheet.faint,
        "text-anchor=\"middle\"",
        picture.x,
    );
}

fn legend(out: &mut String, theme: &Theme) {
    let (mut x, mut y) = (20.0, 70.0);
    for kind in Kind::ALL {
        let width = 44.0 + 6.6 * kind.name().len() as f64;
        if x + width > WIDTH {
            (x, y) = (20.0, y + 18.0);
        }
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\" stroke=\"{}\" stroke-width=\"3\"/>",
            x + 16.0,
            colour(kind, theme)
        );
        text(out, (x + 22.0, y + 4.5), theme.sheet.text, "", kind.name());
        x += width;
    }
}

fn colour(kind: Kind, theme: &Theme) -> &'static str {
    let at = Kind::ALL.iter().position(|its| *its == kind).unwrap_or(0);
    theme.lines[at % theme.lines.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!([0.3, 1.0, 3.0, 41.0, 99.0, 450.0].map(round_up), [0.4, 1.0, 4.0, 50.0, 100.0, 500.0]);
        let axes = Axes { from: 0.0, until: 60.0, top: 40.0 };
        assert_eq!((axes.x(0.0), axes.x(60.0)), (LEFT, WIDTH - RIGHT));
        assert_eq!((axes.y(0.0), axes.y(40.0)), (HEIGHT - BOTTOM, TOP));
    }
}
