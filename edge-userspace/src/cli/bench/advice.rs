//! What follows from the figures: a forwarder, and the settings of `auto` that were tried and found to pay.

use std::num::NonZero;
use std::thread::available_parallelism;

use serde::Serialize;

use super::load::{Shape, WORKLOADS, Workload};
use super::report::{Row, Unavailable};
use crate::config::Key;

/// Less processor time than this share of another's is better, if all rounds say so; the rest may be chance.
const BETTER: f64 = 0.97;
/// The least rate, in bytes a second, that is proposed for transfers: below it they cost next to nothing anyway.
const TRANSFER: f64 = 1e6;
/// Messages of so many bytes and more may go another way than smaller ones.
const SIZEABLE: usize = 8 * 1024;
/// `auto` with the settings that are proposed.
pub(super) const TUNED: &str = "tuned";

/// A setting of `auto` that one of the workloads speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) value: String,
    /// Which one.
    pub(super) workload: &'static str,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} = {}", self.name, self.value)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Recommendation {
    /// Value of the setting `forwarder`.
    pub(super) forwarder: &'static str,
    /// Others, besides their defaults.
    pub(super) settings: Vec<Setting>,
    pub(super) reasons: Vec<String>,
}

/// By how many percent `one` needs less processor time than `other`, if that is more than the rounds differ.
fn less(one: &Row, other: &Row) -> Option<f64> {
    let clear = one.cpu <= other.cpu * BETTER && one.cpu_most < other.cpu_least;
    clear.then(|| (1.0 - one.cpu / other.cpu) * 100.0)
}

fn find<'a>(rows: &'a [Row], workload: &Workload, forwarder: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.workload == workload.name && row.forwarder == forwarder)
}

/// Settings that are worth a try: the kernel path was clearly cheaper where `auto` by its defaults does not use it.
pub(super) fn proposals(rows: &[Row]) -> Vec<Setting> {
    WORKLOADS.iter().filter_map(|workload| proposal(rows, workload)).collect()
}

fn proposal(rows: &[Row], workload: &Workload) -> Option<Setting> {
    let row = |forwarder| find(rows, workload, forwarder);
    let (sockmap, auto) = (row("sockmap")?, row("auto")?);
    less(sockmap, row("copy")?)?;
    less(sockmap, auto)?;
    let (name, value) = match workload.shape {
        Shape::Down => {
            less(sockmap, row("splice")?)?;
            let of_one = sockmap.per_second / f64::from(workload.connections);
            ("auto_bytes_per_sec", TRANSFER.min(of_one / 2.0).max(1.0) as u32)
        }
        Shape::Calls(size) if size >= SIZEABLE => ("auto_sizeable_message_kib", u32::try_from(size / 2 / 1024).ok()?),
        Shape::Calls(_) => {
            let workers = available_parallelism().map_or(1, NonZero::get);
            let each = workload.connections.div_ceil(u32::try_from(workers).unwrap_or(u32::MAX));
            ("auto_conversations", Some(each).filter(|each| Some(*each) > default_of("auto_conversations"))?)
        }
        Shape::Churn(_) => return None,
    };
    Some(Setting { name, value: value.to_string(), workload: workload.name })
}

fn default_of(setting: &str) -> Option<u32> {
    Key::named(setting)?.default.parse().ok()
}

/// `tried` are the proposals; what came of them is in the rows [`TUNED`].
pub(super) fn recommend(rows: &[Row], unavailable: &[Unavailable], tried: Vec<Setting>) -> Recommendation {
    let (mut settings, mut reasons, mut gain) = (Vec::new(), Vec::new(), false);
    let auto = if unavailable.iter().any(|missing| missing.forwarder == "auto") { "splice" } else { "auto" };
    for workload in &WORKLOADS {
        let title = workload.title;
        let Some(copy) = find(rows, workload, "copy") else { continue };
        let Some(mut chosen) = find(rows, workload, auto) else { continue };
        let mut with = String::new();
        if let Some(setting) = tried.iter().find(|setting| setting.workload == workload.name)
            && let Some(tuned) = find(rows, workload, TUNED)
        {
            if less(tuned, chosen).is_some() {
                (chosen, with) = (tuned, format!(" with {setting}"));
                settings.push(setting.clone());
            } else {
                reasons.push(format!("{title}: {setting} was tried, and auto gains nothing by it"));
            }
        }
        // Nothing is spliced where messages are small: what differs there is chance.
        let may_gain = auto == "auto" || workload.counts_bytes();
        // What does not last is copied by all of them.
        let lasts = !matches!(workload.shape, Shape::Churn(_));
        if let Some(percent) = less(chosen, copy).filter(|_| may_gain && lasts) {
            gain = true;
            reasons.push(format!("{title}: {auto}{with} needs {percent:.0} % less processor time than copy"));
        } else if let Some(percent) = less(copy, chosen).filter(|_| may_gain) {
            reasons.push(format!("{title}: copy needs {percent:.0} % less processor time than {auto}"));
        } else {
            reasons.push(format!("{title}: {auto} and copy need the same processor time, as far as can be told"));
        }
    }
    if gain && auto == "auto" {
        reasons.push("auto begins with copy and changes only those connections that gain by it".to_owned());
    }
    for Unavailable { forwarder, .. } in unavailable {
        reasons.push(format!("{forwarder} was left out of account"));
    }
    Recommendation { forwarder: if gain { auto } else { "copy" }, settings, reasons }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A row of a workload, by its processor time in each of three rounds.
    fn row(workload: &str, forwarder: &'static str, cpu: [f64; 3]) -> Row {
        let workload = WORKLOADS.iter().find(|known| known.name == workload).unwrap();
        let [cpu_least, cpu, cpu_most] = cpu;
        Row {
            workload: workload.name,
            title: workload.title,
            forwarder,
            unit: "request",
            per_second: 4e8,
            cpu,
            cpu_least,
            cpu_most,
            daemon_cpu: cpu / 2.0,
        }
    }

    /// All workloads, with the same figures; those given replace them.
    fn rows(changes: &[(&str, &'static str, f64)]) -> Vec<Row> {
        let mut rows = Vec::new();
        for workload in &WORKLOADS {
            for forwarder in ["direct", "copy", "splice", "sockmap", "auto", TUNED] {
                let change = changes.iter().find(|(w, f, _)| *w == workload.name && *f == forwarder);
                let cpu = change.map_or(100.0, |(_, _, cpu)| *cpu);
                if forwarder != TUNED || change.is_some() {
                    rows.push(row(workload.name, forwarder, [cpu * 0.99, cpu, cpu * 1.01]));
                }
            }
        }
        rows
    }

    fn names(settings: &[Setting]) -> Vec<&str> {
        settings.iter().map(|setting| setting.name).collect()
    }

    #[test]
    fn what_auto_was_seen_to_gain_speaks_for_it() {
        let rows = rows(&[("large", "sockmap", 80.0), ("large", "auto", 82.0), ("bulk", "splice", 70.0)]);
        assert!(proposals(&rows).is_empty());
        let recommended = recommend(&rows, &[], Vec::new());
        assert_eq!(recommended.forwarder, "auto");
        let line = "requests and answers of 16 KB, 32 connections: auto needs 18 % less processor time than copy";
        assert!(recommended.reasons.iter().any(|reason| reason == line), "{recommended:?}");
    }

    /// A gain that `auto` does not bring by itself is no reason for it, unless a setting was seen to bring it.
    #[test]
    fn bulk_on_the_kernel_path_is_recommended_only_with_its_setting_and_once_tried() {
        let gains = [("bulk", "sockmap", 60.0), ("bulk", "splice", 80.0), ("bulk", "auto", 100.0)];
        let proposed = proposals(&rows(&gains));
        assert_eq!(names(&proposed), ["auto_bytes_per_sec"]);
        assert_eq!(proposed.first().unwrap().to_string(), "auto_bytes_per_sec = 1000000");
        let helps = rows(&[&gains[..], &[("bulk", TUNED, 62.0)]].concat());
        let recommended = recommend(&helps, &[], proposed.clone());
        assert_eq!((recommended.forwarder, names(&recommended.settings)), ("auto", vec!["auto_bytes_per_sec"]));
        let no_help = rows(&[&gains[..], &[("bulk", TUNED, 99.0)]].concat());
        let recommended = recommend(&no_help, &[], proposed);
        assert_eq!((recommended.forwarder, names(&recommended.settings)), ("copy", vec![]));
        assert!(recommended.reasons.iter().any(|reason| reason.contains("was tried")), "{recommended:?}");
        // Where splicing is as good, nothing needs to be set.
        let splice = rows(&[("bulk", "sockmap", 60.0), ("bulk", "splice", 61.0), ("bulk", "auto", 61.0)]);
        assert!(proposals(&splice).is_empty());
        assert_eq!(recommend(&splice, &[], Vec::new()).forwarder, "auto");
    }

    #[test]
    fn a_crowd_on_the_kernel_path_is_proposed_for_those_messages_that_gain() {
        let gains = |workload| [(workload, "sockmap", 60.0), (workload, "auto", 100.0)];
        let large = proposals(&rows(&gains("large")));
        assert_eq!(large.first().map(ToString::to_string).as_deref(), Some("auto_sizeable_message_kib = 8"));
        let workers = u32::try_from(available_parallelism().map_or(1, NonZero::get)).unwrap();
        let beyond_default = 32_u32.div_ceil(workers) > default_of("auto_conversations").unwrap();
        let expected: &[&str] = if beyond_default { &["auto_conversations"] } else { &[] };
        assert_eq!(names(&proposals(&rows(&gains("small")))), expected);
    }

    #[test]
    fn noise_and_gains_on_short_connections_speak_for_copy() {
        let mut noisy = rows(&[]);
        // In the middle 5 % less, but the rounds overlap.
        noisy.retain(|row| row.forwarder != "auto");
        noisy.extend(WORKLOADS.iter().map(|workload| row(workload.name, "auto", [90.0, 95.0, 99.5])));
        assert_eq!(recommend(&noisy, &[], Vec::new()).forwarder, "copy");
        let short = rows(&[("short", "auto", 50.0), ("short", "sockmap", 50.0)]);
        assert!(proposals(&short).is_empty());
        assert_eq!(recommend(&short, &[], Vec::new()).forwarder, "copy");
    }

    #[test]
    fn without_a_kernel_path_splice_is_judged_by_bulk_alone() {
        let missing = |forwarder| Unavailable { forwarder, why: "needs CAP_BPF".to_owned() };
        let unavailable = [missing("sockmap"), missing("auto")];
        let without = |changes: &[(&str, &'static str, f64)]| {
            let mut rows = rows(changes);
            rows.retain(|row| !["sockmap", "auto"].contains(&row.forwarder));
            recommend(&rows, &unavailable, proposals(&rows))
        };
        assert_eq!(without(&[("small", "splice", 90.0)]).forwarder, "copy", "nothing is spliced there");
        let bulk = without(&[("bulk", "splice", 80.0)]);
        assert_eq!(bulk.forwarder, "splice");
        assert!(bulk.reasons.iter().any(|reason| reason == "sockmap was left out of account"), "{bulk:?}");
    }
}
