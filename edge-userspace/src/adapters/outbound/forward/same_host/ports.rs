//! Ports of marked backends: the programs look at connections to these only.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The ports of all backends that a client was sent to.
#[derive(Debug, Default)]
pub(super) struct Ports(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: BTreeSet<u16>,
    /// Those that the programs had no room for.
    refused: BTreeSet<u16>,
}

impl Ports {
    /// Tells the programs by `tell`, once for each port.
    pub(super) fn expect<E: std::fmt::Display>(&self, port: u16, tell: impl FnOnce() -> Result<(), E>) {
        let mut state = self.state();
        if state.known.contains(&port) || state.refused.contains(&port) {
            return;
        }
        // The lock is held meanwhile: nobody may forget the port in between.
        match tell() {
            Ok(()) => _ = state.known.insert(port),
            Err(why) => {
                state.refused.insert(port);
                tracing::warn!(port, %why, "backends on this port take the ordinary way");
            }
        }
    }

    /// Forgets all that no marked backend has any more. Those that were refused are tried again.
    pub(super) fn retain(&self, marked: &BTreeSet<u16>, forget: impl Fn(u16)) {
        let mut state = self.state();
        state.known.retain(|port| {
            marked.contains(port) || {
                forget(*port);
                false
            }
        });
        state.refused.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn each_port_is_told_once_until_no_backend_has_it() {
        let ports = Ports::default();
        let told = RefCell::new(Vec::new());
        let expect = |port: u16| {
            ports.expect(port, || {
                told.borrow_mut().push(port);
                if port == 9 { Err("no room") } else { Ok(()) }
            });
        };
        [7, 8, 9, 7, 9].into_iter().for_each(expect);
        assert_eq!(told.take(), [7, 8, 9]);
        let forgotten = RefCell::new(Vec::new());
        ports.retain(&BTreeSet::from([8, 9]), |port| forgotten.borrow_mut().push(port));
        assert_eq!(forgotten.take(), [7], "8 is in use, 9 was never known");
        [7, 8, 9].into_iter().for_each(expect);
        assert_eq!(told.take(), [7, 9], "where there was no room it is tried again");
    }
}
