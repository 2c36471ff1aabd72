//! Gives memory back after a peak of connections: the allocator keeps what was freed, for a next time that may not come.
#![allow(unsafe_code)]

#[cfg(target_env = "gnu")]
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;

/// How often the number of connections is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Fewer that have ended are not worth the walk through the allocator's arenas.
const PEAK: usize = 256;

/// From this size on memory is asked of the kernel piece by piece, and given back at once. Larger than what waits for a
/// slow receiver (`MAX_READ`), so that its pages are used again.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 1024 * 1024;
/// So much that is free at the end of an arena is given back, whenever it is. Only this gives it back for the arenas of
/// the workers: `malloc_trim` leaves their ends alone. Twice `MAX_READ`, so that one slow receiver does not have the same
/// pages given back and asked for again and again.
#[cfg(target_env = "gnu")]
const TRIM_THRESHOLD: libc::c_int = 512 * 1024;

/// Room for what the first load of the routing database makes: 100,000 backends take 120 MiB. It is address space, and
/// costs nothing where it is not used.
#[cfg(target_env = "gnu")]
const LOADED: libc::c_int = 256 * 1024 * 1024;
/// What glibc asks of the kernel beyond what it needs, if nobody says otherwise.
#[cfg(target_env = "gnu")]
const TOP_PAD: libc::c_int = 128 * 1024;
/// The kernel has none that are smaller.
#[cfg(target_env = "gnu")]
const LARGE_PAGE: usize = 2 * 1024 * 1024;

/// While it lives, the first thread's heap is in large pages, as far as the kernel has them. A third of a start with many
/// backends was page faults.
#[cfg(target_env = "gnu")]
pub(super) struct LargePages(Range<usize>);

#[cfg(target_env = "gnu")]
impl LargePages {
    /// To be called by the first thread.
    pub(super) fn begin() -> Self {
        // SAFETY: glibc checks the numbers. The piece is freed at once: it only makes the heap grow, which then stays.
        let range = unsafe {
            let from = libc::sbrk(0).addr().checked_next_multiple_of(LARGE_PAGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LOADED);
            libc::mallopt(libc::M_TOP_PAD, LOADED);
            libc::free(std::hint::black_box(libc::malloc(MMAP_THRESHOLD as usize / 2)));
            libc::mallopt(libc::M_TOP_PAD, TOP_PAD);
            from.unwrap_or_default()..libc::sbrk(0).addr()
        };
        let pages = Self(range);
        pages.advise(libc::MADV_HUGEPAGE);
        pages
    }

    /// A kernel that can't do it refuses, and then pages are small.
    fn advise(&self, what: libc::c_int) {
        let start = std::ptr::with_exposed_provenance_mut(self.0.start);
        // SAFETY: says how the kernel is to back memory, and changes nothing in it.
        unsafe { libc::madvise(start, self.0.len(), what) };
    }
}

#[cfg(target_env = "gnu")]
impl Drop for LargePages {
    /// What is in large pages stays there. But the kernel is not to make large ones again of what is given back.
    fn drop(&mut self) {
        self.advise(libc::MADV_NOHUGEPAGE);
        // SAFETY: glibc checks the number.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD) };
    }
}

#[cfg(not(target_env = "gnu"))]
pub(super) struct LargePages;

#[cfg(not(target_env = "gnu"))]
impl LargePages {
    pub(super) fn begin() -> Self {
        Self
    }
}

/// To be called before anything takes memory. Left alone, glibc goes by the largest piece that was ever given back: after
/// the start, with its tables of the kernel's types, a worker would keep tens of megabytes.
#[cfg(target_env = "gnu")]
pub(super) fn bound_what_is_kept() {
    // SAFETY: no other thread is there yet; glibc checks the numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
    }
}

#[cfg(not(target_env = "gnu"))]
pub(super) fn bound_what_is_kept() {}

/// Watches the number of connections, for the life of the runtime it is called in.
pub(super) fn spawn_trim(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        // The start is a peak, too: it has read the database and tested the kernel path.
        let (mut ticks, mut peak) = (tokio::time::interval(LOOK), 2 * PEAK);
        // The first tick comes at once, when clients may be waiting.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let active = shared.connections.active();
            peak = active.max(peak);
            if peak - active >= PEAK && active < peak / 2 {
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
