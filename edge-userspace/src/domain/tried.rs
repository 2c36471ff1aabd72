//! The backends one connection has tried already.

use std::sync::Arc;

use super::Backend;

/// Kept without allocating: connections rarely try more than three.
const INLINE: usize = 8;

/// A small set of backends. The first eight take no allocation.
#[derive(Debug, Default)]
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
