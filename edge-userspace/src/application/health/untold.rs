//! What has come of changes of backends' health and is still to be told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::domain::{Backend, Transition};

/// Each backend's in the order in which it happened, whoever made it happen: what connections and checks say, time, and
/// reloads that forget.
#[derive(Debug, Default)]
pub struct Untold {
    queue: Mutex<VecDeque<(Arc<Backend>, Transition)>>,
    /// Held by who tells.
    telling: Mutex<()>,
}

impl Untold {
    /// To be called while the backend's health is held, so that nobody else's comes between.
    pub(in crate::application) fn push(&self, backend: &Arc<Backend>, transition: Transition) {
        lock(&self.queue).push_back((Arc::clone(backend), transition));
    }

    /// Tells what there is, others' too. Not while a backend's health is held: who is told looks at it.
    pub(super) fn tell(&self, tell: impl Fn(&Backend, Transition)) {
        let _one_at_a_time = lock(&self.telling);
        loop {
            let next = lock(&self.queue).pop_front();
            let Some((backend, transition)) = next else { return };
            tell(&backend, transition);
        }
    }
}
