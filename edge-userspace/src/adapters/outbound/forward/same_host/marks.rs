//! Which backends may be handed bytes, and taking that from one at the first sign of trouble.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::super::kernel::LocalSlot;
use crate::domain::BackendId;

/// The marks of all backends.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Backends that lost the mark for the life of the daemon, and why.
    withdrawn: BTreeMap<BackendId, String>,
    /// The part of `withdrawn` that nobody was told yet.
    news: BTreeMap<BackendId, String>,
    pairs: BTreeMap<BackendId, Vec<Weak<LocalSlot>>>,
}

/// The mark of one backend, as a pair of it knows it.
#[derive(Debug)]
pub(super) struct Mark {
    marks: Arc<Marks>,
    backend: BackendId,
}

impl Marks {
    /// Backends that lost the mark, and why.
    pub(super) fn withdrawn(&self) -> BTreeMap<BackendId, String> {
        self.state().withdrawn.clone()
    }

    /// Those that were not asked for yet.
    pub(super) fn take_news(&self) -> BTreeMap<BackendId, String> {
        std::mem::take(&mut self.state().news)
    }

    pub(super) fn is_withdrawn(&self, backend: &BackendId) -> bool {
        self.state().withdrawn.contains_key(backend)
    }

    /// A pair that must be stopped when its backend loses the mark, be it at this very moment.
    pub(super) fn enter(self: &Arc<Self>, backend: &BackendId, slot: &Arc<LocalSlot>) -> Mark {
        let mut state = self.state();
        let pairs = state.pairs.entry(backend.clone()).or_default();
        // Each time it would have to grow: what has ended makes room.
        if pairs.len() == pairs.capacity() {
            pairs.retain(|pair| pair.strong_count() > 0);
        }
        pairs.push(Arc::downgrade(slot));
        if state.withdrawn.contains_key(backend) {
            slot.set_gate(true);
        }
        Mark { marks: Arc::clone(self), backend: backend.clone() }
    }

    /// Forgets pairs that have ended. Backends that lost the mark have lost it, also those that are gone.
    pub(super) fn forget_ended(&self) {
        self.state().pairs.retain(|_, pairs| pairs.iter().any(|pair| pair.strong_count() > 0));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mark {
    /// The first sign of trouble: nothing is handed over to or from this backend any more until a restart. What its
    /// pairs send from now on goes through TCP and the daemon.
    pub(super) fn withdraw(&self, what: &str) {
        let mut state = self.marks.state();
        for pair in state.pairs.remove(&self.backend).unwrap_or_default() {
            pair.upgrade().iter().for_each(|slot| slot.set_gate(true));
        }
        if state.withdrawn.insert(self.backend.clone(), what.to_owned()).is_none() {
            state.news.insert(self.backend.clone(), what.to_owned());
        }
    }

    pub(super) fn is_withdrawn(&self) -> bool {
        self.marks.is_withdrawn(&self.backend)
    }

    /// Opens the gate of a pair again, unless the mark is gone: then it stays as it is for all.
    pub(super) fn reopen(&self, slot: &LocalSlot) {
        // Held meanwhile: nobody can withdraw the mark between the look and the gate.
        let state = self.marks.state();
        if !state.withdrawn.contains_key(&self.backend) {
            slot.set_gate(false);
        }
    }
}
