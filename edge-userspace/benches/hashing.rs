//! What the tables of consistent hashing cost a load: `cargo bench --package edge-userspace --bench hashing`. Prints a
//! Markdown table, as it is in `docs/selection.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]
#![allow(unsafe_code, reason = "an allocator that counts what is held")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use edgeproxy::application::routing::RoutingTable;
use edgeproxy::domain::{RawApp, RawBackend, RawRouting};

static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ROUNDS: usize = 5;
const REGIONS: [&str; 4] = ["sa", "us", "eu", "ap"];

/// Apps, backends of each, regions that these are in, and their weights.
type Case = (usize, usize, usize, fn(usize) -> i64, &'static str);

const CASES: [Case; 8] = [
    (1, 100, 1, |_| 1, "1"),
    (1, 10_000, 1, |_| 1, "1"),
    (1, 10_000, 4, |_| 1, "1"),
    (1, 5_000, 1, |at| [1, 100][at % 2], "1 and 100, in turns"),
    (1, 10_001, 1, |at| if at == 0 { 1_000 } else { 1 }, "1, and one of 1,000"),
    (1, 10_001, 1, |at| if at == 0 { 1_000_000 } else { 1 }, "1, and one of 1,000,000"),
    (1_000, 100, 1, |_| 1, "1"),
    (1_000, 100, 4, |_| 1, "1"),
];

fn main() {
    println!("| apps | backends of each | regions | weights | `least_load` | `maglev` |");
    println!("|---:|---:|---:|---|---:|---:|");
    for (apps, each, regions, weight, weights) in CASES {
        let cost = |selection| {
            let rows = rows(apps, each, regions, weight, selection);
            let mut loads: Vec<_> = (0..ROUNDS).map(|_| load(&rows)).collect();
            loads.sort_unstable();
            let (time, held) = loads[ROUNDS / 2];
            format!("{:.1} ms, {:.1} MB", time.as_secs_f64() * 1e3, held as f64 / 1e6)
        };
        println!("| {apps} | {each} | {regions} | {weights} | {} | {} |", cost("least_load"), cost("maglev"));
    }
}

fn rows(apps: usize, each: usize, regions: usize, weight: fn(usize) -> i64, selection: &str) -> RawRouting {
    let app = |app: usize| format!("app-{app}");
    let backend = |at: usize| RawBackend {
        id: format!("backend-{at:06}").as_str().into(),
        app: app(at / each).as_str().into(),
        region: REGIONS[at % regions].into(),
        wg_ip: "192.0.2.1".into(),
        port: 80.into(),
        weight: weight(at).into(),
        ..RawBackend::default()
    };
    let row = |at: usize| RawApp { selection: selection.into(), ..RawApp::named(&app(at)) };
    RawRouting {
        backends: (0..apps * each).map(backend).collect(),
        apps: (0..apps).map(row).collect(),
        ..RawRouting::default()
    }
}

/// How long a first load takes, and the memory that it holds then.
fn load(rows: &RawRouting) -> (Duration, usize) {
    let table = RoutingTable::new();
    let (before, started) = (HELD.load(Ordering::Relaxed), Instant::now());
    let report = table.apply(rows, false).unwrap();
    let (time, held) = (started.elapsed(), HELD.load(Ordering::Relaxed) - before);
    assert_eq!((report.accepted, report.rejected.len()), (rows.backends.len(), 0));
    (time, held)
}
