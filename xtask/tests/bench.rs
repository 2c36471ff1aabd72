//! The benchmark itself: a tiny one, whose figures must make sense. Nothing here depends on how fast they are.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::process::Command;

use serde_json::Value;
use xtask::lab::requirements::{Need, require};

/// Runs `cargo xtask bench` with those arguments; what it wrote as JSON, and its page.
fn bench(arguments: &[&str]) -> (Value, String) {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("bench.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["bench", "--debug-build", "--rounds", "1", "--seconds", "0.3"]).args(arguments);
    let output = command.arg("--json").arg(&json).arg("--report").arg(directory.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&json).unwrap();
    (serde_json::from_str(&text).unwrap(), fs::read_to_string(directory.path().join("README.md")).unwrap())
}

fn line<'a>(results: &'a Value, workload: &str, candidate: &str) -> &'a Value {
    let lines = results["lines"].as_array().unwrap();
    let found = lines.iter().find(|line| line["workload"] == workload && line["candidate"] == candidate);
    found.unwrap_or_else(|| panic!("no line of {candidate} with {workload} in {results}"))
}

fn median(line: &Value, metric: &str) -> f64 {
    line["values"][metric]["median"].as_f64().unwrap_or_else(|| panic!("no {metric} in {line}"))
}

#[test]
fn a_tiny_benchmark_has_sane_figures() {
    if require(&[Need::Root, Need::Namespaces], "a_tiny_benchmark_has_sane_figures").is_none() {
        return;
    }
    let (results, page) = bench(&["--only", "rr64-8,both-8,connect-1", "--candidates", "direct,tokio-copy,copy"]);
    for candidate in ["direct", "tokio-copy", "copy"] {
        for workload in ["rr64-8", "both-8", "connect-1"] {
            let line = line(&results, workload, candidate);
            assert_eq!(line["faults"], 0, "{line}");
            assert!(median(line, "rate") > 1.0, "{line}");
            assert!((0.0..=1.05).contains(&median(line, "busy")), "{line}");
            // No proxy uses no time, and a proxy no more than there is.
            assert_eq!(median(line, "cpu_proxy") == 0.0, candidate == "direct", "{line}");
        }
        let calls = line(&results, "rr64-8", candidate);
        let latency = ["p50", "p99", "p999"].map(|metric| median(calls, metric));
        assert!(latency[0] > 0.0 && latency.is_sorted() && latency[2] < 60e6, "{latency:?}");
        // With 8 requests outstanding at most, the rate bounds the time of each.
        assert!(median(calls, "rate") * latency[0] / 1e6 <= 16.0, "{calls}");
    }
    assert!(page.contains("| tokio-copy |") && page.contains("cpu-dark.svg"));
}

#[test]
fn memory_and_fixed_rates_are_measured() {
    if require(&[Need::Root, Need::Namespaces], "memory_and_fixed_rates_are_measured").is_none() {
        return;
    }
    let (results, _) = bench(&["--only", "rate-200,idle-5000", "--candidates", "copy"]);
    let rate = line(&results, "rate-200", "copy");
    assert_eq!(rate["faults"], 0, "{rate}");
    // Open loop: what is sent does not depend on what comes back.
    assert!((150.0..250.0).contains(&median(rate, "rate")), "{rate}");
    let idle = line(&results, "idle-5000", "copy");
    assert_eq!(idle["faults"], 0, "{idle}");
    assert!((100.0..1e6).contains(&median(idle, "user_memory")), "{idle}");
    assert!(median(idle, "user_before") > 1e6, "{idle}");
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    if require(&[Need::Root, Need::Namespaces], "what_is_not_there_is_refused_by_name").is_none() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = command.args(["bench", "--debug-build", "--only", "rr65"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no workload is called rr65") && said.contains("rr64-8"), "{said}");
}
