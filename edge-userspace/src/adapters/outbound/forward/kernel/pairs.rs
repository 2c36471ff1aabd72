//! Pairs of flow records: who holds which, and the life of one pair in the maps.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::super::socket;
use super::events::{Interest, Ready};
use super::mapped::FlowView;
use super::{Kernel, KernelError};

/// A record is not given out again for this long: a verdict that began before the socket closed may still be
/// running on another CPU with the record in its hands.
const REST: Duration = Duration::from_millis(100);

/// Free pairs, the longest unused first.
#[derive(Debug)]
pub(super) struct PairPool {
    free: Mutex<VecDeque<(u32, Option<Instant>)>>,
    in_use: AtomicU32,
}

impl PairPool {
    pub(super) fn new(pairs: u32) -> Self {
        Self { free: Mutex::new((0..pairs).map(|i| (i, None)).collect()), in_use: AtomicU32::new(0) }
    }

    pub(super) fn take(&self) -> Option<u32> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.front()?.1.is_some_and(|since| since.elapsed() < REST) {
            return None;
        }
        let (index, _) = free.pop_front()?;
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Some(index)
    }

    fn give_back(&self, index: u32) {
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push_back((index, Some(Instant::now())));
    }

    pub(super) fn in_use(&self) -> u32 {
        self.in_use.load(Ordering::Relaxed)
    }
}

/// A pair's place in the maps: two flow records and its events. Given back when dropped, after the sockets.
#[derive(Debug)]
pub(in super::super) struct PairSlot {
    kernel: Arc<Kernel>,
    index: u32,
    cookies: [u64; 2],
}

impl PairSlot {
    pub(super) fn new(kernel: Arc<Kernel>, index: u32) -> Self {
        kernel.events.begin(index);
        Self { kernel, index, cookies: [0; 2] }
    }

    /// Prepares both records and makes them known by the sockets' cookies. The sockets are not in the map yet.
    ///
    /// `sockets` are client and backend.
    pub(in super::super) fn prepare(&mut self, sockets: [BorrowedFd<'_>; 2]) -> Result<(), KernelError> {
        let [client, backend] = sockets;
        self.cookies = [socket::cookie(client)?, socket::cookie(backend)?];
        let [client, backend] = self.cookies;
        self.flow(0).begin(backend);
        self.flow(1).begin(client);
        self.kernel.insert_slot(client, self.index * 2)?;
        self.kernel.insert_slot(backend, self.index * 2 + 1)?;
        Ok(())
    }

    /// Puts one of the sockets (0 client, 1 backend) under the verdict. It never leaves the map while it lives.
    pub(in super::super) fn insert(&self, side: usize, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        let cookie = self.cookies.get(side).copied().unwrap_or_default();
        Ok(self.kernel.insert_socket(cookie, socket)?)
    }

    /// The record of the direction that begins at `side` (0 client, 1 backend).
    pub(in super::super) fn flow(&self, side: usize) -> FlowView<'_> {
        self.kernel.flow(self.index * 2 + u32::from(side != 0))
    }

    /// Starts watching a socket for the end of its stream.
    pub(in super::super) fn watch(&self, side: usize, socket: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.kernel.events.watch(self.index, side, socket, interest)
    }

    pub(in super::super) fn rewatch(&self, side: usize, socket: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.kernel.events.rewatch(self.index, side, socket, interest)
    }

    /// What has happened since the last call.
    pub(in super::super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Ready> {
        self.kernel.events.poll_ready(self.index, cx)
    }
}

impl Drop for PairSlot {
    fn drop(&mut self) {
        for cookie in self.cookies.iter().filter(|c| **c != 0) {
            self.kernel.remove_slot(*cookie);
        }
        let moved = self.flow(0).redirected() + self.flow(1).redirected();
        self.kernel.events.end(self.index);
        self.kernel.forwarded.fetch_add(moved, Ordering::Relaxed);
        self.kernel.pairs.give_back(self.index);
        self.kernel.set_share();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_rests_before_it_is_given_out_again() {
        let pool = PairPool::new(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_ne!(a, b);
        assert_eq!(pool.take(), None);
        pool.give_back(a);
        assert_eq!(pool.in_use(), 1);
        assert_eq!(pool.take(), None, "just given back");
        std::thread::sleep(REST + Duration::from_millis(20));
        assert_eq!(pool.take(), Some(a));
    }
}
