//! Operators see which forwarder carries what, and change it while the daemon runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use common::polling::{AtTheEnd, Client, serve_one};
use common::stage::one_marked;
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
    // When, seconds after its beginning.
    let when = |flow: &Value| flow["since_secs"].as_f64().unwrap();
    assert!(when(&lively) > 0.0 && when(&lively) < when(&off), "{lively} {off}");
    assert!(when(&off) <= off["age_secs"].as_f64().unwrap(), "{off}");
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
    let metrics = daemon.metrics().unwrap();
    for (forwarder, why) in want {
        let counted = format!("edgeproxy_forwarder_chosen_total{{forwarder=\"{forwarder}\",reason=\"{why}\"}} 1\n");
        assert!(metrics.contains(&counted), "no {counted} in {metrics}");
    }
}

#[test]
fn byte_counts_of_copied_flows_are_live() {
    let Some(world) = World::new(NETWORK, "byte_counts_of_copied_flows_are_live") else { return };
    live(&world, "copy", &[1; 10_000]);
}

#[test]
fn byte_counts_of_chaotic_flows_are_live() {
    let Some(world) = World::new(NETWORK, "byte_counts_of_chaotic_flows_are_live") else { return };
    // Too little at a time to be spliced.
    live(&world, "chaos", &[5; 10_000]);
}

#[test]
fn byte_counts_of_spliced_flows_are_live() {
    let Some(world) = World::new(NETWORK, "byte_counts_of_spliced_flows_are_live") else { return };
    live(&world, "splice", &vec![2; 1 << 20]);
}

#[test]
fn byte_counts_of_flows_in_the_kernel_are_live() {
    let Some(world) = World::new(KERNEL, "byte_counts_of_flows_in_the_kernel_are_live") else { return };
    live(&world, "sockmap", &[3; 10_000]);
}

fn live(world: &World, forwarder: &str, message: &[u8]) {
    let _backend = world.backend(1, Manner::Echo, |row| row);
    let daemon = world.daemon(&[("forwarder", forwarder)]);
    let mut visit = world.visit(1, daemon.addr()).unwrap();
    let local = visit.local;
    // The backend says its name first.
    assert_live(&daemon, forwarder, local, 3, || {
        visit.echo(message).unwrap();
        message.len() as u64
    });
}

/// Between applications of this host what finds room is handed over, and the rest goes through the daemon.
#[test]
fn byte_counts_of_flows_on_one_host_are_live() {
    let Some(world) = World::new(KERNEL, "byte_counts_of_flows_on_one_host_are_live") else { return };
    let (_cgroups, addr, daemon) = one_marked(&world, &[("same_host_budget_kib", "16")]);
    serve_one(&world, addr, AtTheEnd::Close);
    let mut client = Client::connect(&world, 1, daemon.addr());
    assert_live(&daemon, "sk_msg", client.local(), 0, || {
        client.echo(&[4; 3_000]);
        client.echo(&[5; 20_000]);
        23_000
    });
}

/// While it runs the one flow has the counts of its ends, and so do the metrics. `talk` moves so many bytes each way,
/// after the backend's greeting.
fn assert_live(daemon: &Daemon, forwarder: &str, client: SocketAddr, greeting: u64, mut talk: impl FnMut() -> u64) {
    let copies = ["copy", "chaos"].contains(&forwarder);
    let mut sent = 0;
    let mut round = || {
        sent += talk();
        let counted = |flow: &Value| (number(flow, "bytes_up"), number(flow, "bytes_down"));
        let deadline = Instant::now() + SOON;
        loop {
            let flow = flows(daemon).pop().unwrap();
            if counted(&flow) == (sent, sent + greeting) {
                return flow;
            }
            assert!(Instant::now() < deadline, "{sent} bytes were sent and came back: {flow}");
        }
    };
    let by_kernel = |flow: &Value| (number(flow, "kernel_up"), number(flow, "kernel_down"));
    let carries = |flow: &Value| {
        let (up, down) = by_kernel(flow);
        flow["forwarder"] == forwarder && (copies || up > 0 && down > 0)
    };
    let first = (0..100).map(|_| round()).find(carries).expect("the forwarder carries it");
    assert_eq!(first["client"], client.to_string());
    let last = (0..10).map(|_| round()).last().unwrap();
    let (up, down) = by_kernel(&last);
    if copies {
        assert_eq!((up, down), (0, 0), "{last}");
    } else {
        assert!(up > number(&first, "kernel_up") && down > number(&first, "kernel_down"), "{first} {last}");
    }
    for (direction, kernel) in [("up", up), ("down", down)] {
        let all = number(&last, &format!("bytes_{direction}"));
        let shown = ["userspace", "kernel"].map(|path| moved(daemon, direction, path));
        assert_eq!(shown, [all - kernel, kernel], "{direction}: {last}");
    }
}

/// `edgeproxy_forwarded_bytes_total`.
fn moved(daemon: &Daemon, direction: &str, path: &str) -> u64 {
    let start = format!("edgeproxy_forwarded_bytes_total{{direction=\"{direction}\",path=\"{path}\"}} ");
    let metrics = daemon.metrics().unwrap();
    let count = metrics.lines().find_map(|line| line.strip_prefix(&start)).expect("the metric is there");
    count.parse().unwrap()
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
