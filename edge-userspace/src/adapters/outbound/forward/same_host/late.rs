//! Ends of connections that were given up on at the very moment when a program may have been taking them up.

use std::sync::{Mutex, PoisonError};

use edge_common::OwnSocket;

/// To be looked for once more, when that program must have come to its end.
#[derive(Debug, Default)]
pub(super) struct Late(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    new: Vec<OwnSocket>,
    old: Vec<OwnSocket>,
}

impl Late {
    pub(super) fn push(&self, own: OwnSocket) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).new.push(own);
    }

    /// Those that were there at the last call but one already.
    pub(super) fn take_due(&self) -> Vec<OwnSocket> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = std::mem::take(&mut generations.new);
        std::mem::replace(&mut generations.old, new)
    }
}

#[cfg(test)]
mod tests {
    use edge_common::End;

    use super::*;

    #[test]
    fn none_is_due_before_a_whole_period_has_passed() {
        let late = Late::default();
        late.push(OwnSocket { end: End { sends_from: 1, receives_from: 2 }, address: 7 });
        assert_eq!(late.take_due().len(), 0, "it may have come a moment ago");
        assert_eq!(late.take_due().iter().map(|own| own.address).collect::<Vec<_>>(), [7]);
        assert_eq!(late.take_due().len(), 0);
    }
}
