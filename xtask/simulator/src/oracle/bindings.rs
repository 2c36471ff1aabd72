//! Who is bound where, with a sliding time to live.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// App and client.
type Key = (usize, usize);

/// What is known of a client's binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Bound {
    No,
    To(usize),
    /// Its time is over, or not yet: real clocks count in milliseconds. Then it may also have been replaced by one of the
    /// others.
    Perhaps(Vec<usize>),
}

impl Bound {
    pub(super) fn may_be(&self, backend: usize) -> bool {
        match self {
            Self::No => false,
            Self::To(its) => *its == backend,
            Self::Perhaps(any) => any.contains(&backend),
        }
    }
}

#[derive(Debug)]
pub(super) struct Bindings {
    ttl: Duration,
    entries: HashMap<Key, Entry>,
    of_connections: HashMap<usize, Bound>,
    /// Connections for which the binding has yielded to a crowd, and stays.
    crowded: HashSet<usize>,
    /// Connections whose backend was chosen for a reason that binds nobody.
    makeshift: HashSet<usize>,
}

#[derive(Debug)]
struct Entry {
    /// What it may be; mostly one.
    backends: Vec<usize>,
    /// When it was used last for sure, and when it would have been used if it still was alive.
    used: Duration,
    perhaps: Duration,
}

impl Entry {
    /// For sure.
    fn is_alive(&self, now: Duration, ttl: Duration) -> bool {
        now.saturating_sub(self.used) + DOUBT <= ttl
    }
}

const DOUBT: Duration = Duration::from_millis(2);

impl Bindings {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            entries: HashMap::new(),
            of_connections: HashMap::new(),
            crowded: HashSet::new(),
            makeshift: HashSet::new(),
        }
    }

    /// A live binding is renewed by being found.
    pub(super) fn find(&mut self, key: Key, now: Duration) -> Bound {
        let Some(entry) = self.entries.get_mut(&key) else { return Bound::No };
        if now.saturating_sub(entry.perhaps) > self.ttl + DOUBT {
            return Bound::No;
        }
        entry.perhaps = now;
        if entry.is_alive(now, self.ttl) {
            entry.used = now;
            if let [its] = entry.backends[..] {
                return Bound::To(its);
            }
        }
        Bound::Perhaps(entry.backends.clone())
    }

    pub(super) fn bind(&mut self, key: Key, backend: usize, now: Duration) {
        self.entries.insert(key, Entry { backends: vec![backend], used: now, perhaps: now });
    }

    /// At the end of a connection: a client that is bound stays where it is; else it is bound again.
    pub(super) fn renew(&mut self, key: Key, backend: usize, now: Duration) {
        let ttl = self.ttl;
        let is_alive = self.entries.get(&key).is_some_and(|entry| entry.is_alive(now, ttl));
        match (self.find(key, now), self.entries.get_mut(&key)) {
            (Bound::Perhaps(any), Some(entry)) if any != [backend] => {
                if !is_alive && !any.contains(&backend) {
                    entry.backends.push(backend);
                }
                // Whichever it is.
                entry.used = now;
            }
            (Bound::To(_), _) => {}
            _ => self.bind(key, backend, now),
        }
    }

    /// What was found for a connection counts for all its attempts.
    pub(super) fn note(&mut self, connection: usize, bound: Bound) {
        self.of_connections.insert(connection, bound);
    }

    pub(super) fn of(&self, connection: usize) -> Bound {
        self.of_connections.get(&connection).cloned().unwrap_or(Bound::No)
    }

    pub(super) fn stays(&mut self, connection: usize, stays: bool) {
        if stays {
            self.crowded.insert(connection);
        } else {
            self.crowded.remove(&connection);
        }
    }

    pub(super) fn is_makeshift(&mut self, connection: usize, makeshift: bool) {
        if makeshift {
            self.makeshift.insert(connection);
        } else {
            self.makeshift.remove(&connection);
        }
    }

    pub(super) fn of_makeshift(&self, connection: usize) -> bool {
        self.makeshift.contains(&connection)
    }

    /// Whether the client is bound to where the connection was accepted.
    pub(super) fn is_bound_by(&self, connection: usize) -> bool {
        !self.crowded.contains(&connection) && !self.makeshift.contains(&connection)
    }

    pub(super) fn forget(&mut self, connection: usize) {
        self.crowded.remove(&connection);
        self.makeshift.remove(&connection);
        self.of_connections.remove(&connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_lives_as_long_as_it_is_used() {
        let secs = Duration::from_secs;
        let mut bindings = Bindings::new(secs(10));
        bindings.bind((0, 1), 7, secs(0));
        assert_eq!(bindings.find((0, 1), secs(9)), Bound::To(7));
        assert_eq!(bindings.find((0, 1), secs(18)), Bound::To(7));
        assert_eq!(bindings.find((0, 1), secs(28)), Bound::Perhaps(vec![7]));
        // If it was alive it still is.
        assert_eq!(bindings.find((0, 1), secs(30)), Bound::Perhaps(vec![7]));
        // Since the first of these ended it is one of both; that the next belongs to either says nothing of which.
        for (backend, at) in [(8, 40), (7, 41), (8, 42)] {
            bindings.renew((0, 1), backend, secs(at));
            assert_eq!(bindings.find((0, 1), secs(at)), Bound::Perhaps(vec![7, 8]));
        }
        // Nor does it move while it is alive.
        bindings.renew((0, 1), 9, secs(43));
        assert_eq!(bindings.find((0, 1), secs(44)), Bound::Perhaps(vec![7, 8]));
        bindings.renew((0, 1), 9, secs(54));
        let bound = bindings.find((0, 1), secs(55));
        assert!((7..10).all(|backend| bound.may_be(backend)) && !bound.may_be(10), "{bound:?}");
        assert_eq!(bindings.find((0, 1), secs(66)), Bound::No);
        // Nothing else would have taken its place.
        bindings.bind((0, 1), 7, secs(70));
        assert_eq!(bindings.find((0, 1), secs(80)), Bound::Perhaps(vec![7]));
        bindings.renew((0, 1), 7, secs(81));
        assert_eq!(bindings.find((0, 1), secs(82)), Bound::To(7));
        assert_eq!(bindings.find((1, 1), secs(9)), Bound::No, "of another app");
    }
}
