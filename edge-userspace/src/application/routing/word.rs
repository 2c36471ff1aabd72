//! What an operator has said of backends by a changed row: `healthy` and `state`.

use crate::domain::{BackendId, BackendSpec, Snapshot};

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
    /// A backend that has come, or gone, is no change; so the first load has none.
    pub(super) fn of(last: &Snapshot, now: &Snapshot) -> Self {
        let mut words = Self::default();
        for app in now.apps() {
            // What was taken over as it is has not changed.
            let Some(before) = last.app(app.name()).filter(|before| !std::ptr::eq(*before, app)) else { continue };
            for backend in app.backends() {
                let said = before.backend(&backend.id).and_then(|was| change(was, backend));
                match said {
                    Some(said) if words.told.len() < TOLD => words.told.push((backend.id.clone(), said)),
                    Some(_) => words.more += 1,
                    None => {}
                }
            }
        }
        words
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
