//! Tables.

use std::fmt::Write as _;

use super::detour::Detour;
use super::failover::Failover;
use super::{Outcome, Results, plot};
use crate::candidate::Kind;
use crate::measure::{Figures, Mean};
use crate::world::Happening;

pub(super) fn results(results: &Results) -> String {
    let mut out = String::new();
    let (decisions, words) = results.judged();
    let verdict = if words.is_empty() { "no fault".to_owned() } else { format!("FAULTS: {}", words.join("; ")) };
    let _ = writeln!(
        out,
        "Seed {}. The oracle judged {decisions} decisions of edgeproxy in the worlds of this page: {verdict}.\n",
        results.seed
    );
    let _ = writeln!(out, "### A busy hour\n\n{}\n", about(&results.busy));
    clients(&mut out, &results.busy);
    load(&mut out, &results.busy);
    plot::PICTURES.iter().for_each(|picture| picture.link(&mut out));
    out.push_str("### One backend of five fails\n\n");
    for (ailment, outcome) in &results.ill {
        let _ = writeln!(out, "**It {}**, after one minute, for two.\n", ailment.words());
        failover(&mut out, outcome);
    }
    out.push_str("### The way to a backend becomes longer\n\n");
    detour(&mut out, &results.detour);
    out.push_str("### A backend leaves or joins\n\n");
    changes(&mut out, &results.changes);
    out.push('\n');
    out.push_str(&small(&results.small));
    out
}

pub(super) fn small(outcome: &Outcome) -> String {
    let mut out = String::from("### A small world\n\n");
    let _ = writeln!(out, "{} A test plays this one again and compares.\n", about(outcome));
    clients(&mut out, outcome);
    load(&mut out, outcome);
    out.truncate(out.trim_end().len() + 1);
    out
}

fn about(outcome: &Outcome) -> String {
    let world = &outcome.world;
    let count = |is: fn(&Happening) -> bool| world.happenings.iter().filter(|(_, what)| is(what)).count();
    let (turns, edits) =
        (count(|what| matches!(what, Happening::Turns(..))), count(|what| matches!(what, Happening::Edited(_))));
    format!(
        "{} connections of {} clients in {} s, {} POPs, {} apps, {} backends in {} regions; {} times a backend fails or \
         works again, {} times the routing table changes.",
        world.arrivals.len(),
        world.clients.len(),
        world.length.as_secs(),
        world.pops.len(),
        world.apps.len(),
        world.backends.len(),
        world.regions.len(),
        turns,
        edits
    )
}

/// One line for each candidate, and empty cells where a figure makes no sense.
fn table(out: &mut String, outcome: &Outcome, heads: &[&str], row: &dyn Fn(&super::Run, Kind) -> Vec<String>) {
    let _ = writeln!(out, "| | {} |\n|---|{}", heads.join(" | "), "---:|".repeat(heads.len()));
    for (kind, run) in &outcome.runs {
        let _ = writeln!(out, "| {} | {} |", kind.name(), row(run, *kind).join(" | "));
    }
    out.push('\n');
}

fn clients(out: &mut String, outcome: &Outcome) {
    let heads = [
        "served",
        "lost",
        "refused: all full",
        "in the client's region",
        "km to the backend",
        "POP to backend, ms",
        "wait p50, ms",
        "p99",
        "p99.9",
        "same backend again",
    ];
    table(out, outcome, &heads, &|run, _| {
        let Figures { served, refused, at_home, km, round_trip, returned, .. } = &run.figures;
        vec![
            served.to_string(),
            run.figures.lost().to_string(),
            refused.to_string(),
            percent(at_home),
            mean(km, 0),
            mean(round_trip, 1),
            format!("{:.0}", run.figures.wait(0.5)),
            format!("{:.0}", run.figures.wait(0.99)),
            format!("{:.0}", run.figures.wait(0.999)),
            percent(returned),
        ]
    });
}

fn load(out: &mut String, outcome: &Outcome) {
    let heads = [
        "peak ÷ mean load",
        "share of short ones, off by",
        "time above soft limit",
        "connections above it",
        "needlessly above",
        "above hard limit",
        "at most by",
    ];
    table(out, outcome, &heads, &|run, _| {
        let figures = &run.figures;
        let excess = figures.excess.iter().sum::<u64>() as f64 / figures.excess.len().max(1) as f64;
        vec![
            mean(&figures.peak_to_mean, 2),
            figures.share_error.map_or_else(|| "-".to_owned(), |error| format!("{:.1} %", error * 100.0)),
            percent(&figures.over_soft),
            format!("{excess:.1}"),
            figures.over_soft_needlessly.to_string(),
            figures.admitted_over_hard.to_string(),
            figures.over_hard.to_string(),
        ]
    });
}

fn failover(out: &mut String, outcome: &Outcome) {
    let heads = [
        "connects to it",
        "clients lost",
        "connections cut",
        "felt for, s",
        "last client that met it, s",
        "longest wait, s",
        "whole share again after, s",
    ];
    table(out, outcome, &heads, &|run, _| {
        let failover = Failover::of(&run.figures);
        vec![
            failover.met.to_string(),
            failover.lost.to_string(),
            failover.cut.to_string(),
            failover.steady.to_string(),
            failover.last_met.to_string(),
            format!("{:.1}", failover.longest),
            failover.back.map_or_else(|| "-".to_owned(), |seconds| seconds.to_string()),
        ]
    });
}

fn detour(out: &mut String, outcome: &Outcome) {
    let heads = [
        "POP to backend before, ms",
        "in the first 10 s",
        "later",
        "after it",
        "left it after, s",
        "whole share again after, s",
    ];
    table(out, outcome, &heads, &|run, _| {
        let Detour { before, at_first, later, after, left, back } = Detour::of(&run.figures);
        let ways = [before, at_first, later, after].map(|way| mean(&way, 1)).into_iter();
        let seconds = |seconds: Option<usize>| seconds.map_or_else(|| "-".to_owned(), |seconds| seconds.to_string());
        ways.chain([seconds(left), seconds(back)]).collect()
    });
}

/// Both worlds in one table.
fn changes(out: &mut String, outcomes: &[Outcome]) {
    out.push_str("| | clients moved needlessly when one of ten leaves | when an eleventh joins |\n|---|---:|---:|\n");
    for (at, kind) in Kind::ALL.iter().enumerate() {
        let moved = outcomes.iter().map(|outcome| percent(&outcome.runs[at].1.figures.moved));
        let _ = writeln!(out, "| {} | {} |", kind.name(), moved.collect::<Vec<_>>().join(" | "));
    }
}

fn mean(of: &Mean, decimals: usize) -> String {
    of.value().map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn percent(of: &Mean) -> String {
    of.value().map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", value * 100.0))
}
