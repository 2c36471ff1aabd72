//! How many connections each listener holds. The count is that of the live [`ListenerHeld`]s, whatever becomes of the
//! listener's row meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;

use crate::domain::ListenerId;

/// Counts by listener; those without connections are left out.
#[derive(Debug, Default)]
pub struct Listeners {
    active: DashMap<ListenerId, Arc<AtomicU32>>,
}

impl Listeners {
    /// Takes a place; `None` at `limit` (0 is no limit). Check and count are one atomic step.
    pub fn hold(self: &Arc<Self>, id: &ListenerId, limit: u32) -> Option<ListenerHeld> {
        let admit = |active: u32| (limit == 0 || active < limit).then(|| active.checked_add(1)).flatten();
        let held = |count: &Arc<AtomicU32>| {
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, admit).ok()?;
            Some(ListenerHeld { id: id.clone(), count: Arc::clone(count), of: Arc::clone(self) })
        };
        // Counted while the entry is locked for reading: it can't be removed meanwhile.
        if let Some(known) = self.active.get(id) {
            return held(known.value());
        }
        held(self.active.entry(id.clone()).or_default().value())
    }

    /// Connections of a listener now.
    pub fn active(&self, id: &ListenerId) -> u32 {
        self.active.get(id).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// All that have connections, also those whose rows are gone.
    pub fn all(&self) -> Vec<(ListenerId, u32)> {
        let mut all: Vec<_> =
            self.active.iter().map(|entry| (entry.key().clone(), entry.value().load(Ordering::Acquire))).collect();
        all.sort();
        all
    }
}

/// A connection's place on its listener; gives it back when dropped.
#[derive(Debug)]
pub struct ListenerHeld {
    id: ListenerId,
    count: Arc<AtomicU32>,
    of: Arc<Listeners>,
}

impl Drop for ListenerHeld {
    fn drop(&mut self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Unless another has come since: who counts holds the entry.
            self.of.active.remove_if(&self.id, |_, count| count.load(Ordering::Acquire) == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    fn id(name: &str) -> ListenerId {
        ListenerId::parse(name).unwrap()
    }

    #[test]
    fn a_listener_holds_no_more_than_its_limit_and_others_are_left_alone() {
        let listeners = Arc::new(Listeners::default());
        let held: Vec<_> = (0..3).map(|_| listeners.hold(&id("a"), 3).unwrap()).collect();
        assert!(listeners.hold(&id("a"), 3).is_none());
        assert!(listeners.hold(&id("b"), 3).is_some(), "and gives its place back at once");
        assert!(listeners.hold(&id("a"), 4).is_some(), "the limit is that of the row in force");
        assert_eq!(listeners.all(), [(id("a"), 3)]);
        drop(held);
        assert!(listeners.all().is_empty());
    }

    #[test]
    fn threads_never_exceed_the_limit_and_leave_nothing_behind() {
        let listeners = Arc::new(Listeners::default());
        let most = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let held = listeners.hold(&id("a"), 3);
                        most.fetch_max(listeners.active(&id("a")), Ordering::Relaxed);
                        std::hint::black_box(held);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3);
        assert!(listeners.all().is_empty());
    }
}
