//! What the forwarders share: the two sides of a pair, and buffers that exist only while they hold bytes.

use std::cell::RefCell;
use std::ops::{Index, IndexMut};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A side of a pair, and the direction that begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Client, Self::Backend];

    pub(super) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Backend,
            Self::Backend => Self::Client,
        }
    }

    /// 0 for the client, 1 for the backend: their order in a pair of flow records.
    pub(super) const fn index(self) -> u32 {
        match self {
            Self::Client => 0,
            Self::Backend => 1,
        }
    }
}

/// One of something for each side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Both<T> {
    pub(super) client: T,
    pub(super) backend: T,
}

impl<T> Both<T> {
    pub(super) fn of(mut make: impl FnMut(Side) -> T) -> Self {
        Self { client: make(Side::Client), backend: make(Side::Backend) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.client, &self.backend].into_iter()
    }
}

impl<T> Index<Side> for Both<T> {
    type Output = T;

    fn index(&self, side: Side) -> &T {
        match side {
            Side::Client => &self.client,
            Side::Backend => &self.backend,
        }
    }
}

impl<T> IndexMut<Side> for Both<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Client => &mut self.client,
            Side::Backend => &mut self.backend,
        }
    }
}

/// The largest read. Beyond this a read no longer gets cheaper per byte but falls out of the CPU's cache.
pub(super) const MAX_READ: usize = 256 * 1024;

/// Bytes a direction moves before the other one, and other connections, get their turn.
pub(super) const TURN: usize = 4 * MAX_READ;

thread_local! {
    /// One buffer for all connections of a thread: bytes stay in it only between a read and the write that follows.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_READ].into_boxed_slice());
}

/// Bytes that are pending for all connections together.
static PENDING: AtomicUsize = AtomicUsize::new(0);
/// With so many of them pending, reads are no larger than [`SMALL_READ`]: then a connection whose receiver has stalled
/// keeps as little.
const MAX_PENDING: usize = 64 * 1024 * 1024;
pub(super) const SMALL_READ: usize = 16 * 1024;

/// Lends the thread's buffer, or a small part of it while much is pending. Not to be called within itself.
pub(super) fn with_scratch<R>(use_it: impl FnOnce(&mut [u8]) -> R) -> R {
    let room = if PENDING.load(Ordering::Relaxed) < MAX_PENDING { MAX_READ } else { SMALL_READ };
    SCRATCH.with_borrow_mut(|buffer| use_it(buffer.get_mut(..room).unwrap_or_default()))
}

/// Bytes that were read and could not be written yet. Takes memory only while there are any.
#[derive(Debug, Default)]
pub(super) struct Pending {
    bytes: Box<[u8]>,
    at: usize,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Keeps bytes; only when there are none.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        debug_assert!(self.is_empty(), "what is pending goes out first");
        PENDING.fetch_add(bytes.len(), Ordering::Relaxed);
        *self = Self { bytes: bytes.into(), at: 0 };
    }

    /// Takes `n` bytes off the front.
    pub(super) fn advance(&mut self, n: usize) {
        self.at += n;
        if self.at >= self.bytes.len() {
            *self = Self::default();
        }
    }

    pub(super) fn discard(&mut self) {
        *self = Self::default();
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            PENDING.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_much_is_pending_reads_are_small() {
        let room = || with_scratch(|buffer| buffer.len());
        assert_eq!(room(), MAX_READ);
        let piece = vec![0; MAX_READ];
        let mut stalled: Vec<Pending> = (0..MAX_PENDING / MAX_READ).map(|_| Pending::default()).collect();
        stalled.iter_mut().for_each(|pending| pending.keep(&piece));
        assert_eq!(room(), SMALL_READ);
        stalled[0].advance(MAX_READ);
        stalled[1].discard();
        drop(stalled);
        assert_eq!(room(), MAX_READ);
    }

    #[test]
    fn pending_gives_its_bytes_in_order_and_its_memory_back() {
        let mut pending = Pending::default();
        pending.keep(b"abcdef");
        pending.advance(2);
        assert_eq!(pending.rest(), b"cdef");
        pending.advance(4);
        assert!(pending.is_empty() && pending.rest().is_empty());
        pending.keep(b"x");
        assert_eq!(pending.rest(), b"x");
        pending.discard();
        assert!(pending.is_empty());
    }
}
