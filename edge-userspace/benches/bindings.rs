//! What a million bindings take: `cargo bench --package edge-userspace --bench bindings`. Prints a Markdown table, as it
//! is in `docs/bindings.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use edgeproxy::adapters::outbound::bindings::{BindingFile, BindingTable};
use edgeproxy::application::ports::Bindings as _;
use edgeproxy::domain::{AffinityPrefix, AppName, BackendId, BindingKey, ClientAddr};

const BINDINGS: u32 = 1_000_000;
const TTL: Duration = Duration::from_secs(600);

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let file = BindingFile::at(&directory.path().join("bindings")).unwrap();
    let app = AppName::parse("web").unwrap();
    let backends: Vec<_> = (0..1000).map(|n| BackendId::parse(&format!("backend-{n}")).unwrap()).collect();
    let table = BindingTable::new(TTL, BINDINGS as usize);
    let before = resident();
    for n in 0..BINDINGS {
        table.bind(key(&app, n), &backends[n as usize % backends.len()]);
    }
    let full = resident();
    let over = AtomicBool::new(false);
    let (saved, took, during, alone) = std::thread::scope(|scope| {
        let alone =
            scope.spawn(|| look_ups(&table, &app, &AtomicBool::new(false), Duration::from_secs(3))).join().unwrap();
        let during = scope.spawn(|| look_ups(&table, &app, &over, Duration::from_secs(600)));
        let started = Instant::now();
        let mut saved = None;
        for _ in 0..5 {
            saved = Some(file.save(&table, SystemTime::now()).unwrap());
        }
        let took = started.elapsed() / 5;
        over.store(true, Ordering::SeqCst);
        (saved.unwrap(), took, during.join().unwrap(), alone)
    });
    let restored = BindingTable::new(TTL, BINDINGS as usize);
    let started = Instant::now();
    assert_eq!(file.load(&restored, SystemTime::now()).unwrap(), BINDINGS as usize);
    let load = started.elapsed();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("| a million bindings | |\n|---|---:|");
    println!("| memory | {:.0} MiB |", mib(full - before));
    println!("| file | {:.1} MiB |", mib(saved.bytes));
    println!("| saving | {:.0} ms |", took.as_secs_f64() * 1e3);
    println!("| restoring | {:.0} ms |", load.as_secs_f64() * 1e3);
    println!("| a look-up and a binding, alone (median, 999 of 1,000, longest) | {} |", show(alone));
    println!("| the same while saving | {} |", show(during));
}

fn key(app: &AppName, n: u32) -> BindingKey {
    AffinityPrefix::default().key(app, ClientAddr::new(Ipv4Addr::from_bits(0x0b00_0000 + n).into()))
}

/// What a connection does with the table, again and again.
fn look_ups(table: &BindingTable, app: &AppName, over: &AtomicBool, limit: Duration) -> Vec<Duration> {
    let mut rng = fastrand::Rng::with_seed(7);
    let (started, mut times) = (Instant::now(), Vec::new());
    while !over.load(Ordering::Relaxed) && started.elapsed() < limit {
        let key = key(app, rng.u32(..BINDINGS));
        let since = Instant::now();
        let backend = table.get(&key).unwrap();
        table.bind(key, &backend);
        times.push(since.elapsed());
    }
    times
}

fn show(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000].as_secs_f64() * 1e6;
    format!("{:.1} µs, {:.1} µs, {:.0} µs", at(500), at(999), at(1000))
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
