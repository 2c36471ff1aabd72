//! Operators see which forwarder carries what, and change it while the daemon runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{BINARY, KERNEL, NETWORK, SOON, World, edgeproxy};
use serde_json::Value;
use xtask::lab::{Daemon, daemon};
use xtask::load::{Manner, Visit};

/// The flows that `edgeproxy flows --json` prints.
fn flows(daemon: &Daemon) -> Vec<Value> {
    let (code, text) = edgeproxy(daemon, &["flows", "--json"]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Talks until `enough` is true of the one flow, and returns it.
fn talk_until(daemon: &Daemon, visit: &mut Visit, enough: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + SOON;
    loop {
        (0..50).for_each(|_| visit.echo(&[7; 600]).unwrap());
        let flow = flows(daemon).pop().unwrap();
        if enough(&flow) || Instant::now() > deadline {
            return flow;
        }
    }
}

fn number(flow: &Value, field: &str) -> u64 {
    flow[field].as_u64().unwrap()
}

#[test]
fn a_live_switch_takes_effect_on_running_flows() {
    let Some(world) = World::new(KERNEL, "a_live_switch_takes_effect_on_running_flows") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "auto")]);
    let mut visit = world.visit(1, daemon.addr()).unwrap();
    let lively =
        talk_until(&daemon, &mut visit, |flow| flow["forwarder"] == "sockmap" && number(flow, "kernel_up") > 0);
    assert_eq!((&lively["forwarder"], &lively["why"]), (&"sockmap".into(), &"lively".into()), "{lively}");

    assert_eq!(edgeproxy(&daemon, &["forwarder", "set", "off"]).0, 0);
    let off = talk_until(&daemon, &mut visit, |flow| flow["forwarder"] == "copy");
    assert_eq!(off["why"], "switched", "{off}");
    let before = flows(&daemon).pop().unwrap();
    (0..100).for_each(|_| visit.echo(&[7; 600]).unwrap());
    let after = flows(&daemon).pop().unwrap();
    assert_eq!(number(&after, "kernel_up"), number(&before, "kernel_up"), "the kernel forwarded while it was off");
    assert!(number(&after, "bytes_up") >= number(&before, "bytes_up") + 60_000, "{before} {after}");

    let (code, text) = edgeproxy(&daemon, &["forwarder", "set", "sockmap"]);
    assert!(code == 0 && text.contains("sockmap"), "{text}");
    let on = talk_until(&daemon, &mut visit, |flow| number(flow, "kernel_up") > number(&after, "kernel_up"));
    assert!(number(&on, "kernel_up") > number(&after, "kernel_up"), "{on}");
    let client = visit.local;
    drop(visit);
    let record = daemon.record_of(client, SOON).unwrap();
    let steps: Vec<_> = record.forwarders.iter().map(|s| (s.forwarder.as_str(), s.why.as_str())).collect();
    let want = [("copy", "start"), ("sockmap", "lively"), ("copy", "switched"), ("sockmap", "switched")];
    assert_eq!(steps, want);
    assert!(record.forwarders.windows(2).all(|two| two[0].at_ms <= two[1].at_ms), "{record:?}");
    assert!(flows(&daemon).is_empty());
}

#[test]
fn byte_counts_are_live_and_metrics_include_running_flows() {
    let Some(world) = World::new(NETWORK, "byte_counts_are_live_and_metrics_include_running_flows") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "copy")]);
    let mut visit = world.visit(1, daemon.addr()).unwrap();
    visit.echo(&[1; 10_000]).unwrap();
    let flow = talk_until(&daemon, &mut visit, |flow| number(flow, "bytes_up") >= 10_000);
    assert_eq!(flow["client"], visit.local.to_string());
    // The backend said its name, too.
    assert_eq!(number(&flow, "bytes_down"), number(&flow, "bytes_up") + 3, "{flow}");
    let shown = daemon.metrics().unwrap();
    let line = shown.lines().find(|line| line.contains("forwarded_bytes_total{direction=\"up\",path=\"userspace\"}"));
    let bytes: u64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(bytes, number(&flows(&daemon)[0], "bytes_up"));
}

#[test]
fn what_can_not_be_switched_to_is_refused_with_the_reason() {
    let Some(world) = World::new(NETWORK, "what_can_not_be_switched_to_is_refused_with_the_reason") else { return };
    let daemon = world.daemon(&[("forwarder", "copy")]);
    let (code, text) = edgeproxy(&daemon, &["forwarder", "set", "sockmap"]);
    assert!(code == 1 && text.contains("no program was loaded at the start"), "{code} {text}");
    let (code, text) = edgeproxy(&daemon, &["forwarder", "set", "chaos"]);
    assert!(code == 1 && text.contains("for tests"), "{code} {text}");
    let (code, text) = edgeproxy(&daemon, &["forwarder", "set", "spliced"]);
    assert!(code == 64 && text.contains("did you mean splice"), "{code} {text}");
    assert_eq!(edgeproxy(&daemon, &["forwarder", "set", "splice"]).0, 0);
    let (code, text) = edgeproxy(&daemon, &["forwarder"]);
    assert!(code == 0 && text.contains("new connections get splice"), "{code} {text}");
    assert_eq!(daemon.get("/api/v1/forwarder").unwrap().code, 405);
}

/// Echoes of which one operation in 200 fails: what comes back is right as far as it goes, and ends in a reset.
#[test]
fn chaos_that_fails_gives_prefixes_and_resets() {
    const CLIENTS: u16 = 200;
    let Some(world) = World::new(NETWORK, "chaos_that_fails_gives_prefixes_and_resets") else { return };
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", "chaos"), ("chaos_fail_permille", "5"), ("chaos_delay_permille", "5")]);
    let results = world.visits(CLIENTS, 20, |n| {
        let mut visit = Visit::start(world.lab.client(n), daemon.addr())?;
        (1..20).try_for_each(|i| visit.echo(&vec![i; 1_000 * usize::from(i)]))?;
        visit.finish()
    });
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(!failed.is_empty() && failed.len() < usize::from(CLIENTS), "{} of {CLIENTS} failed", failed.len());
    let resets = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
    assert!(failed.iter().all(|why| resets.contains(&why.kind())), "{failed:?}");
    let records = daemon.access_log(SOON, |records| records.len() == usize::from(CLIENTS));
    assert_eq!(records.len(), usize::from(CLIENTS));
    assert!(records.iter().all(|record| record.forwarder.as_deref() == Some("chaos")));
    let cut = records.iter().filter(|record| record.termination != "--").count();
    assert!(cut >= failed.len(), "{cut} recorded, {} seen", failed.len());
    assert_eq!(daemon.wait_status(SOON, |status| status.active() == 0).unwrap().active(), 0);
}

#[test]
fn flows_are_watched_until_interrupted() {
    let Some(world) = World::new(NETWORK, "flows_are_watched_until_interrupted") else { return };
    let daemon = world.daemon(&[("forwarder", "copy")]);
    let mut command = daemon::edgeproxy(BINARY.as_ref(), daemon.directory());
    let command = command.args(["flows", "--watch=1", "--admin-socket"]).arg(daemon.admin_socket());
    let mut watching = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(1_500));
    assert!(watching.try_wait().unwrap().is_none(), "it ended by itself");
    watching.kill().unwrap();
    let shown = String::from_utf8(watching.wait_with_output().unwrap().stdout).unwrap();
    assert!(shown.matches("0 flows").count() >= 2, "{shown}");
}
