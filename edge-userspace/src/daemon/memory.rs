//! Gives memory back after a peak of connections: the allocator keeps what was freed, for a next time that may not come.
#![allow(unsafe_code)]

#[cfg(target_env = "gnu")]
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[cfg(target_env = "gnu")]
use rustix::process::{Resource, getrlimit};

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

/// What the first load of the routing database makes is so many times as large as the file: with 100,000 backends 120 MiB
/// of 10. It is address space, and costs nothing where it is not used.
#[cfg(target_env = "gnu")]
const GROWTH: u64 = 16;
#[cfg(target_env = "gnu")]
const LEAST: u64 = 16 * 1024 * 1024;
#[cfg(target_env = "gnu")]
const MOST: u64 = 512 * 1024 * 1024;
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
    /// For the tables made of `file`. To be called by the first thread. `None` where address space is not to be had for
    /// nothing, because it is limited.
    pub(super) fn begin(file: &Path) -> Option<Self> {
        let limits = [Resource::Data, Resource::As].map(getrlimit);
        if limits.iter().any(|limit| limit.current.is_some()) {
            return None;
        }
        let file = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        let room = file.saturating_mul(GROWTH).clamp(LEAST, MOST);
        let room = libc::c_int::try_from(room).ok()?;
        // SAFETY: glibc checks the numbers.
        let range = unsafe {
            let from = libc::sbrk(0).addr().checked_next_multiple_of(LARGE_PAGE)?;
            libc::mallopt(libc::M_TRIM_THRESHOLD, room);
            libc::mallopt(libc::M_TOP_PAD, room);
            touch_the_end_of_the_heap();
            libc::mallopt(libc::M_TOP_PAD, TOP_PAD);
            from..libc::sbrk(0).addr()
        };
        let pages = Self(range);
        pages.advise(libc::MADV_HUGEPAGE);
        Some(pages)
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
        touch_the_end_of_the_heap();
    }
}

/// Has glibc look at the end of the heap, by a piece that is taken and given back: it grows, or what is beyond need goes.
#[cfg(target_env = "gnu")]
fn touch_the_end_of_the_heap() {
    const SOME: usize = MMAP_THRESHOLD as usize / 2;
    // SAFETY: nobody else has the piece. Its address is passed through a black box, or the compiler would leave out both calls.
    unsafe { libc::free(std::hint::black_box(libc::malloc(SOME))) };
}

#[cfg(not(target_env = "gnu"))]
pub(super) struct LargePages;

#[cfg(not(target_env = "gnu"))]
impl LargePages {
    pub(super) fn begin(_: &Path) -> Option<Self> {
        None
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
        let (mut ticks, mut peak, mut over) = (tokio::time::interval(LOOK), 2 * PEAK, false);
        // The first tick comes at once, when clients may be waiting.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            // One look later: what was a pair in the kernel is freed a while after its connection is over.
            if std::mem::take(&mut over) {
                shared.flows.shrink();
                // Walks all arenas, a few milliseconds after a large peak.
                let _ = tokio::task::spawn_blocking(trim).await;
            }
            let active = shared.connections.active();
            peak = active.max(peak);
            if peak - active >= PEAK && active < peak / 2 {
                (peak, over) = (active, true);
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
