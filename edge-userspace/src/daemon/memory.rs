//! Gives memory back after a peak of connections: the allocator keeps what was freed, for a next time that may not come.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::Shared;

/// How often the number of connections is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// A peak below this is not worth the walk through the allocator's arenas.
const PEAK: usize = 512;

/// Watches the number of connections, for the life of the runtime it is called in.
pub(super) fn spawn_trim(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        // The start is a peak, too: it has read the database and tested the kernel path.
        let (mut ticks, mut peak) = (tokio::time::interval(LOOK), PEAK);
        // The first tick comes at once, when clients may be waiting.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let active = shared.connections.active();
            peak = active.max(peak);
            if peak >= PEAK && active < peak / 2 {
                peak = active;
                shared.flows.shrink();
                // Walks all arenas, a few milliseconds after a large peak.
                let _ = tokio::task::spawn_blocking(trim).await;
            }
        }
    });
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: no arguments to get wrong; glibc takes its own locks.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
