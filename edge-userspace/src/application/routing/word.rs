//! What an operator has said of backends by a changed row: `healthy` and `state`.

use crate::domain::{BackendId, BackendSpec};

/// At most this many are told one by one.
const TOLD: usize = 20;

/// The backends of which a load says otherwise than the one before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// The first few, and what has changed in words.
    pub told: Vec<(BackendId, String)>,
    /// How many there are besides.
    pub more: usize,
}

impl Words {
    /// Notes what there is to say of a backend that was there before: one that has come, or gone, is no change.
    pub(super) fn hear(&mut self, was: &BackendSpec, now: &BackendSpec) {
        match change(was, now) {
            Some(said) if self.told.len() < TOLD => self.told.push((now.id.clone(), said)),
            Some(_) => self.more += 1,
            None => {}
        }
    }
}

fn change(was: &BackendSpec, now: &BackendSpec) -> Option<String> {
    let yes = |healthy: bool| u8::from(healthy);
    let state = (was.state != now.state).then(|| format!("state {}, was {}", now.state.as_str(), was.state.as_str()));
    let healthy =
        (was.healthy != now.healthy).then(|| format!("healthy {}, was {}", yes(now.healthy), yes(was.healthy)));
    let said: Vec<_> = [state, healthy].into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join("; "))
}
