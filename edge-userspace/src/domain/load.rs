//! Admission: a slot of a backend is reserved *before* connecting and given back by dropping the permit.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Limits;

/// Hands out the indices of the kernel's count map, each to one backend at a time.
#[derive(Debug)]
pub struct SlotPool {
    capacity: u32,
    state: Mutex<FreeSlots>,
}

#[derive(Debug, Default)]
struct FreeSlots {
    /// Indices from here up were never used.
    fresh: u32,
    returned: Vec<u32>,
}

impl SlotPool {
    /// A pool of the indices `0..capacity`.
    pub fn new(capacity: u32) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default() })
    }

    /// A free index, or `None` when `capacity` backends hold one.
    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match state.returned.pop() {
            Some(index) => index,
            None if state.fresh < self.capacity => {
                state.fresh += 1;
                state.fresh - 1
            }
            None => return None,
        };
        Some(Slot { index, pool: Arc::clone(self) })
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// One index of the kernel's count map; free again when dropped.
#[derive(Debug)]
pub struct Slot {
    index: u32,
    pool: Arc<SlotPool>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.state.lock().unwrap_or_else(PoisonError::into_inner).returned.push(self.index);
    }
}

/// How many connections a backend carries. It outlives the snapshot that named the backend: permits hold it, so the
/// count is right across reloads and a slot isn't reused while a connection of its former owner lives.
#[derive(Debug)]
pub struct BackendLoad {
    slot: Slot,
    active: AtomicU32,
}

impl BackendLoad {
    pub fn new(slot: Slot) -> Arc<Self> {
        Arc::new(Self { slot, active: AtomicU32::new(0) })
    }

    /// Index of this backend in the kernel's count map.
    pub fn slot(&self) -> u32 {
        self.slot.index
    }

    /// Connections admitted now, those still connecting included.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Counts one more connection unless the hard limit is reached. Check and count are one atomic step, so no
    /// interleaving exceeds the limit.
    pub fn try_reserve(self: &Arc<Self>, limits: Limits) -> Option<Permit> {
        let admit = |active: u32| if limits.is_full(active) { None } else { active.checked_add(1) };
        self.active.fetch_update(Ordering::AcqRel, Ordering::Relaxed, admit).ok()?;
        Some(Permit { load: Arc::clone(self) })
    }
}

/// A reserved connection of one backend; dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping the permit gives the place back"]
pub struct Permit {
    load: Arc<BackendLoad>,
}

impl Permit {
    pub fn load(&self) -> &Arc<BackendLoad> {
        &self.load
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.active.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
