//! The table of what carried the bytes, by candidate and workload.

use std::fmt::Write as _;

use super::{Line, Results};
use crate::bench::candidate::Candidate;
use crate::bench::carried::Carried;

/// Counts of a running flow are read one after the other: less than this share is no statement.
const LEAST: f64 = 0.001;

pub(super) fn table(out: &mut String, results: &Results) {
    let ours = [Candidate::Splice, Candidate::Sockmap, Candidate::Auto, Candidate::SameHost].map(Candidate::name);
    let shown = |name: &&str| results.lines.iter().any(|line| line.candidate == *name && line.carried.is_some());
    let ours: Vec<&str> = ours.into_iter().filter(shown).collect();
    if ours.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "\n### What carried the bytes\n\nThe share of the bytes in the window; what is not named was copied by the \
         daemon.\n\n| | {} |\n|---|{}\n",
        ours.join(" | "),
        "---|".repeat(ours.len())
    );
    for workload in &results.workloads {
        let of = |name: &str| {
            let line = results.lines.iter().find(|line| line.workload == workload.name && line.candidate == name);
            line.map_or_else(|| "-".to_owned(), cell)
        };
        let cells: Vec<String> = ours.iter().map(|name| of(name)).collect();
        let _ = writeln!(out, "| `{}` | {} |", workload.name, cells.join(" | "));
    }
}

fn cell(line: &Line) -> String {
    let Some(carried) = &line.carried else { return "no figures".to_owned() };
    let on = carried.connections_sockmap + carried.connections_sk_msg;
    let part = on > 0 && on < carried.connections;
    let connections = if part { format!(", {on} of {} connections", carried.connections) } else { String::new() };
    format!("{}{connections}{}", bytes(carried), carried.reasons())
}

fn bytes(carried: &Carried) -> String {
    let share = |bytes: u64| bytes as f64 / carried.bytes.max(1) as f64;
    // Of a connection that is in the kernel and spills all the time there may be no byte in the window.
    let parts = [
        ("sockmap", carried.bytes_sockmap, carried.connections_sockmap > 0),
        ("sk_msg", carried.bytes_sk_msg, carried.connections_sk_msg > 0),
        ("spliced", carried.bytes_spliced, share(carried.bytes_spliced) > LEAST),
    ];
    let parts = parts.into_iter().filter(|(_, _, is_told)| *is_told);
    let parts: Vec<String> = parts.map(|(name, bytes, _)| format!("{} {name}", percent(share(bytes)))).collect();
    if parts.is_empty() { "copied".to_owned() } else { parts.join(", ") }
}

fn percent(share: f64) -> String {
    match share {
        all if all >= 1.0 - LEAST => "all".to_owned(),
        none if none <= 0.0 => "0 %".to_owned(),
        little if little < LEAST => "< 0.1 %".to_owned(),
        // Rounded to all it would say what isn't so.
        share if share > 0.99 => format!("{:.1} %", share * 100.0),
        share if share < 0.1 => format!("{:.1} %", share * 100.0),
        share => format!("{:.0} %", share * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn line(carried: Option<Carried>) -> Line {
        let (values, to_direct) = (BTreeMap::new(), BTreeMap::new());
        Line { workload: "rr64-64", candidate: "sockmap", values, to_direct, carried, faults: 0, noise: 0.0 }
    }

    #[test]
    fn less_than_all_is_said() {
        let all = Carried {
            connections: 8,
            connections_sockmap: 8,
            bytes: 10_000,
            bytes_sockmap: 9_999,
            ..Carried::default()
        };
        let fallbacks = BTreeMap::from([("insert_refused".to_owned(), 3)]);
        let some =
            Carried { connections_sockmap: 5, bytes_sockmap: 9_940, bytes_spliced: 60, fallbacks, ..all.clone() };
        let little = Carried { bytes_sockmap: 1, bytes_spliced: 1, ..all.clone() };
        let spilled = Carried { bytes_sockmap: 0, ..all.clone() };
        let none = Carried { connections_sockmap: 0, bytes_sockmap: 0, ..all.clone() };
        for (carried, text) in [
            (Some(all), "all sockmap"),
            (Some(some), "99.4 % sockmap, 0.6 % spliced, 5 of 8 connections; 3 insert_refused"),
            (Some(little), "< 0.1 % sockmap"),
            (Some(spilled), "0 % sockmap"),
            (Some(none), "copied"),
            (None, "no figures"),
        ] {
            assert_eq!(cell(&line(carried)), text);
        }
    }
}
