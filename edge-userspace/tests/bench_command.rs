//! `edgeproxy bench` on this host: figures that make sense, reasons where there are none, nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
// Signals.
#![allow(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{BINARY, KERNEL, SOON, eventually};
use serde_json::Value;
use tempfile::TempDir;
use xtask::lab::requirements::{Need, require};

/// A user without privileges: `nobody`.
const NOBODY: u32 = 65_534;
const WORKLOADS: [&str; 4] = ["small", "large", "bulk", "short"];

fn scratch() -> TempDir {
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

/// `edgeproxy bench`, whose files go to `directory`.
fn bench(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    // Settings of the operator must not reach the daemons that it starts.
    command.args(["bench", "--seconds", "0.1"]).args(arguments).env("EDGEPROXY_LISTEN_ADDR", "192.0.2.1:1");
    command.env("TMPDIR", directory);
    command
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn row<'a>(report: &'a Value, workload: &str, forwarder: &str) -> Option<&'a Value> {
    let rows = report["results"].as_array().unwrap();
    rows.iter().find(|row| row["workload"] == workload && row["forwarder"] == forwarder)
}

fn files(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn the_forwarders_are_measured_and_one_is_recommended() {
    if require(KERNEL, "the_forwarders_are_measured_and_one_is_recommended").is_none() {
        return;
    }
    let directory = scratch();
    let report = json(&bench(directory.path(), &["--json"]).output().unwrap());
    assert_eq!(report["unavailable"].as_array().unwrap().len(), 0, "{report}");
    for workload in WORKLOADS {
        for forwarder in ["direct", "copy", "splice", "sockmap", "auto"] {
            let row = row(&report, workload, forwarder).unwrap_or_else(|| panic!("{forwarder} {workload}: {report}"));
            assert!(row["per_second"].as_f64().unwrap() > 1.0, "{row}");
            let [least, middle, most] = ["cpu_least", "cpu", "cpu_most"].map(|name| row[name].as_f64().unwrap());
            assert!(0.0 < least && least <= middle && middle <= most, "{row}");
        }
        // Userspace can't forward without using time.
        assert!(row(&report, workload, "copy").unwrap()["daemon_cpu"].as_f64().unwrap() > 0.0, "{report}");
    }
    let recommended = report["recommendation"]["forwarder"].as_str().unwrap();
    assert!(["auto", "copy"].contains(&recommended), "{recommended}");
    // What is recommended was measured, and is understood by the daemon.
    for setting in report["recommendation"]["settings"].as_array().unwrap() {
        assert!(row(&report, setting["workload"].as_str().unwrap(), "tuned").is_some(), "{report}");
        let variable = format!("EDGEPROXY_{}", setting["name"].as_str().unwrap().to_ascii_uppercase());
        let config = Command::new(BINARY).arg("config").env(variable, setting["value"].as_str().unwrap()).output();
        assert!(config.unwrap().status.success(), "{setting}");
    }
    assert_eq!(files(directory.path()), 0);
}

#[test]
fn without_privileges_it_says_what_can_not_be_measured_and_why() {
    if require(&[Need::Root], "without_privileges_it_says_what_can_not_be_measured_and_why").is_none() {
        return;
    }
    let directory = scratch();
    let output = bench(directory.path(), &[]).uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let why = text.split("sockmap can't be measured here: ").nth(1).unwrap_or_else(|| panic!("{text}"));
    assert!(why.lines().next().unwrap().contains("CAP_"), "{text}");
    assert!(text.contains("auto can't be measured here: "), "{text}");
    assert!(text.contains("recommended: forwarder = ") && text.contains("bulk, 4 streams"), "{text}");
    assert_eq!(files(directory.path()), 0);
}

#[test]
fn a_signal_ends_it_with_all_that_it_started() {
    let directory = scratch();
    let mut process = bench(directory.path(), &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = process.id();
    let children = || {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    eventually("a daemon was started", || !children().is_empty());
    let started = children();
    // SAFETY: no pointers; a child that has not been waited for keeps its number.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGTERM) };
    let deadline = Instant::now() + SOON;
    let status = loop {
        match process.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it goes on"),
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(1));
    eventually("its daemon is gone", || started.iter().all(|child| !Path::new("/proc").join(child).exists()));
    assert_eq!(files(directory.path()), 0);
}
