//! Servers with the mark `same_host` and slow clients, for minutes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::SOON;
use common::http::Pace;
use common::stage::{self, Clients, Kind, Stage, WITH_NGINX, withdrawn};
use xtask::lab::requirements::require;

/// How long it goes on. `EDGEPROXY_SOAK_SECS` sets another time.
const SOAK: Duration = Duration::from_secs(120);
/// What a client is like. The quick one pauses between requests, or it would take the processor from the others.
const PACES: [Pace; 5] = [
    Pace::Fast,
    Pace::Slow(300, Duration::from_millis(2)),
    Pace::Slow(16 * 1024, Duration::from_millis(20)),
    Pace::Slow(64 * 1024, Duration::from_millis(100)),
    Pace::Slow(256 * 1024, Duration::from_millis(700)),
];

/// nginx with and without sendfile, edge-triggered, and a level-triggered server with poll(2), all at once so that it
/// takes two minutes and not twelve. Each serves local clients, who are handed over, and remote ones, who are not.
#[test]
fn servers_with_the_mark_serve_slow_clients_for_minutes() {
    let test = "servers_with_the_mark_serve_slow_clients_for_minutes";
    if require(WITH_NGINX, test).is_none() {
        return;
    }
    let both = [Clients::Local, Clients::Remote];
    let kinds = [Kind::Nginx { sendfile: true }, Kind::Nginx { sendfile: false }, Kind::Poll];
    let stages = kinds.map(|kind| (kind, Stage::new(test, kind, &both).unwrap()));
    let until = Instant::now() + soak();
    thread::scope(|scope| {
        for (_, stage) in &stages {
            for clients in both {
                for (n, pace) in PACES.into_iter().enumerate() {
                    scope.spawn(move || stage.converse(clients, u16::try_from(n).unwrap(), pace, until));
                }
            }
        }
    });
    for (kind, stage) in &stages {
        both.iter().for_each(|clients| assert_sound(*kind, stage, *clients));
    }
}

/// Local clients were handed over and remote ones were not, and nothing made anybody lose a mark.
fn assert_sound(kind: Kind, stage: &Stage, clients: Clients) {
    let daemon = stage.daemon(clients);
    let records = daemon.access_log(SOON, |records| records.len() >= PACES.len());
    assert_eq!(records.len(), PACES.len(), "{kind:?} {clients:?}");
    for record in &records {
        let handed_over = record.forwarder.as_deref() == Some("sk_msg");
        assert_eq!(handed_over, clients == Clients::Local, "{kind:?} {record:?}");
        assert!(clients == Clients::Remote || record.kernel_up > 0, "{kind:?}: nothing was handed over: {record:?}");
        assert_eq!(record.termination, "--", "{kind:?} {record:?}");
        // The ordinary way may find that a client is too slow for the kernel.
        let may_be = if clients == Clients::Local { [None, None] } else { [None, Some("spilling")] };
        assert!(may_be.contains(&record.fallback.as_deref()), "{kind:?} {record:?}");
    }
    assert_eq!(withdrawn(daemon), [""; 0], "{kind:?}");
}

fn soak() -> Duration {
    std::env::var("EDGEPROXY_SOAK_SECS").map_or(SOAK, |secs| Duration::from_secs(secs.parse().unwrap()))
}

#[test]
#[ignore = "is no test: other tests start it in a process of its own"]
fn a_poll_server() {
    stage::a_poll_server();
}
