//! The benchmark itself: a tiny one, whose figures must make sense. Nothing here depends on how fast they are.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

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

/// Each proxy that is compared with, and each of our forwarders over a network, does its work.
#[test]
fn all_candidates_are_there() {
    let needs = [Need::Root, Need::Namespaces, Need::Bpf, Need::Nginx, Need::OtherProxies];
    if require(&needs, "all_candidates_are_there").is_none() {
        return;
    }
    let (results, page) = bench(&["--only", "rr64-8"]);
    assert_eq!(results["absent"], serde_json::json!({}));
    let peers = ["direct", "haproxy", "haproxy-splice", "nginx", "tokio-copy"];
    for candidate in peers.into_iter().chain(["copy", "splice", "sockmap", "auto"]) {
        let line = line(&results, "rr64-8", candidate);
        assert!(line["faults"] == 0 && median(line, "rate") > 1.0, "{line}");
        assert_eq!(line["carried"].is_null(), peers.contains(&candidate), "{line}");
    }
    // By the daemon's word all of it was in the kernel, and nothing was; counts of running flows are read one after the other.
    for (candidate, in_kernel) in [("sockmap", 8), ("copy", 0), ("splice", 0)] {
        let carried = &line(&results, "rr64-8", candidate)["carried"];
        assert_eq!(
            (&carried["connections"], &carried["connections_sockmap"]),
            (&8.into(), &in_kernel.into()),
            "{carried}"
        );
        assert!(carried["bytes"].as_u64() > Some(0), "{carried}");
        let share = carried["bytes_sockmap"].as_f64().unwrap() / carried["bytes"].as_f64().unwrap();
        assert!(if in_kernel > 0 { share > 0.9 } else { share == 0.0 }, "{carried}");
        assert_eq!(carried["fallbacks"], serde_json::json!({}), "{carried}");
    }
    let row = page.lines().find(|line| line.starts_with("| `rr64-8` | copied | "));
    assert!(row.is_some_and(|row| row.contains(" sockmap")), "{page}");
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

/// In the middle of a measurement, with a daemon, a peer of ours, namespaces, cgroups and files.
#[test]
fn an_interrupted_benchmark_leaves_nothing_behind() {
    if require(&[Need::Root, Need::Namespaces, Need::Bpf], "an_interrupted_benchmark_leaves_nothing_behind").is_none() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let temporary = tempfile::tempdir().unwrap();
        let child = at_work(temporary.path());
        let pid = child.id();
        let started = descendants(pid);
        assert!(fs::read_dir(temporary.path()).unwrap().count() > 0 && !cgroups_of(pid).is_empty());
        let output = interrupted(child, signal);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("error: interrupted"), "{said}");
        let left: Vec<_> = started.iter().filter(|id| Path::new(&format!("/proc/{id}")).exists()).collect();
        assert!(left.is_empty(), "processes {left:?} are left");
        let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?} are left");
        assert_eq!(cgroups_of(pid), Vec::<PathBuf>::new(), "are left");
    }
}

/// The second one begins and ends while the first is at work, which has empty cgroups, too.
#[test]
fn two_benchmarks_at_once_leave_each_other_their_cgroups() {
    let test = "two_benchmarks_at_once_leave_each_other_their_cgroups";
    if require(&[Need::Root, Need::Namespaces, Need::Bpf], test).is_none() {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let first = at_work(temporary.path());
    let before = cgroups_of(first.id());
    let second = std::panic::catch_unwind(|| bench(&["--only", "local-rr64-1", "--candidates", "same-host"]));
    let after = cgroups_of(first.id());
    interrupted(first, libc::SIGTERM);
    let (results, _) = second.unwrap();
    let second = line(&results, "local-rr64-1", "same-host");
    assert!(second["faults"] == 0 && median(second, "rate") > 1.0, "{second}");
    assert_eq!(second["carried"]["connections_sk_msg"], 1, "{second}");
    assert_eq!((before.len(), before), (3, after));
}

/// A benchmark in the middle of a measurement that takes long, with its files in `temporary`.
fn at_work(temporary: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["bench", "--debug-build", "--rounds", "9", "--seconds", "60", "--only", "local-rr64-1"]);
    command.args(["--candidates", "same-host"]).env("TMPDIR", temporary);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    // It starts each candidate once to see whether it is there; the next one stays.
    while !has_stayed(&descendants(child.id())) {
        assert!(Instant::now() < deadline, "no daemon was started");
        thread::sleep(Duration::from_millis(50));
    }
    child
}

/// Ends it by a signal; what it said.
fn interrupted(child: Child, signal: libc::c_int) -> Output {
    // SAFETY: our own child, which is not yet waited for.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
    child.wait_with_output().unwrap()
}

/// How long it may take until the benchmark is at work; it may have to be built first.
const PATIENCE: Duration = Duration::from_secs(300);

/// A daemon that has run for a second is one that is measured.
fn has_stayed(processes: &[u32]) -> bool {
    let age = |id: &u32| fs::metadata(format!("/proc/{id}")).and_then(|it| it.modified()).ok()?.elapsed().ok();
    processes.iter().any(|id| name_of(*id) == "edgeproxy" && age(id).is_some_and(|age| age > Duration::from_secs(1)))
}

fn name_of(process: u32) -> String {
    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim().to_owned()
}

/// All processes that `process` started, and those that they did.
fn descendants(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> =
        children.flat_map(|ids| ids.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
    children.iter().copied().chain(children.iter().flat_map(|child| descendants(*child))).collect()
}

/// Directories of cgroups that the process has made.
fn cgroups_of(process: u32) -> Vec<PathBuf> {
    let is_its = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("edgeproxy-") && name.contains(&format!("-{process}"))
    };
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = todo.pop() {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let below: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.extend(below.iter().filter(|path| is_its(path)).cloned());
        todo.extend(below);
    }
    found.sort();
    found
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    if require(&[Need::Root, Need::Namespaces], "what_is_not_there_is_refused_by_name").is_none() {
        return;
    }
    let unknown = [
        (["--only", "rr65"], "no workload is called rr65", "rr64-8"),
        (["--congestion-control", "x"], "congestion control x is not in", "reno"),
    ];
    for (arguments, why, instead) in unknown {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let output = command.args(["bench", "--debug-build"]).args(arguments).output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(why) && said.contains(instead), "{said}");
    }
}
