//! The backends one connection has tried already.

use std::sync::Arc;

use super::Backend;

/// Kept without allocating: connections rarely try more than three.
const INLINE: usize = 8;

/// A small set of backends. The first eight take no allocation.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    inline: [Option<Arc<Backend>>; INLINE],
    more: Vec<Arc<Backend>>,
}

impl Tried {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, backend: &Arc<Backend>) {
        match self.inline.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(Arc::clone(backend)),
            None => self.more.push(Arc::clone(backend)),
        }
    }

    /// Whether the backend was tried, be it in an older snapshot: its load is the same object across reloads.
    pub fn contains(&self, backend: &Backend) -> bool {
        self.iter().any(|tried| Arc::ptr_eq(&tried.load, &backend.load))
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.inline.iter().map_while(Option::as_ref).chain(&self.more)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::domain::testing::{backends, row};

    #[test]
    fn more_than_fit_inline_are_remembered_too() {
        let rows: Vec<_> = (0..20).map(|at| row(&format!("b{at}"), "sa")).collect();
        let backends = backends(&rows);
        let mut tried = Tried::new();
        assert!(tried.is_empty());
        for (at, backend) in backends.iter().enumerate() {
            assert!(!tried.contains(backend));
            tried.push(backend);
            assert!(tried.contains(backend));
            assert_eq!(tried.len(), at + 1);
        }
    }

    #[test]
    fn a_backend_is_known_again_in_a_later_snapshot() {
        let backend = backends(&[row("b", "sa")])[0].clone();
        let mut later = Backend::clone(&backend);
        later.spec.region = crate::domain::testing::region("us");
        let mut tried = Tried::new();
        tried.push(&backend);
        assert!(tried.contains(&later));
    }
}
