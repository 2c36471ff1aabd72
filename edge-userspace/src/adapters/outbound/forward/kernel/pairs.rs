//! Pairs of flow records: who holds which, and the life of one pair in the maps.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::super::lane::{Both, Side};
use super::super::socket;
use super::events::{Interest, Ready};
use super::mapped::FlowView;
use super::tally::Tally;
use super::{Kernel, KernelError};
use crate::application::flows::InKernel;

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

    pub(super) fn give_back(&self, index: u32) {
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
    cookies: Both<u64>,
}

impl PairSlot {
    pub(super) fn new(kernel: Arc<Kernel>, index: u32) -> Self {
        // The counts of the pair before are not this one's, whatever becomes of it.
        kernel.flow(index * 2).begin(0);
        kernel.flow(index * 2 + 1).begin(0);
        kernel.events.begin(index);
        Self { kernel, index, cookies: Both::default() }
    }

    /// Prepares both records and makes them known by the sockets' cookies. The sockets are not in the map yet.
    pub(in super::super) fn prepare(&mut self, sockets: Both<BorrowedFd<'_>>) -> Result<(), KernelError> {
        self.cookies = Both { client: socket::cookie(sockets.client)?, backend: socket::cookie(sockets.backend)? };
        let Both { client, backend } = self.cookies;
        self.flow(Side::Client).begin(backend);
        self.flow(Side::Backend).begin(client);
        self.kernel.insert_slot(client, self.index * 2)?;
        self.kernel.insert_slot(backend, self.index * 2 + 1)?;
        Ok(())
    }

    /// Puts one of the sockets  under the verdict. It never leaves the map while it lives.
    pub(in super::super) fn insert(&self, side: Side, socket: BorrowedFd<'_>) -> Result<(), KernelError> {
        Ok(self.kernel.insert_socket(self.cookies[side], socket)?)
    }

    /// The record of the direction that begins at `side` .
    pub(in super::super) fn flow(&self, side: Side) -> FlowView<'_> {
        self.kernel.flow(self.index * 2 + side.index())
    }

    /// Packets that TCP dropped on the pair's sockets.
    pub(in super::super) fn note_drops(&self, drops: u64) {
        self.kernel.ended().packets.dropped += drops;
    }

    /// That the pair's bytes were compared because some were dropped while neither stream had ended.
    pub(in super::super) fn note_drop_check(&self) {
        self.kernel.ended().packets.drop_checks += 1;
    }

    /// Whether the switch that leaves everything to userspace is on.
    pub(in super::super) fn kernel_is_off(&self) -> bool {
        self.kernel.control.gate_all()
    }

    /// Reads the pair's bytes while it runs.
    pub(in super::super) fn counts(&self) -> Arc<PairCounts> {
        Arc::new(PairCounts { kernel: Arc::clone(&self.kernel), index: self.index })
    }

    /// Starts watching a socket for the end of its stream.
    pub(in super::super) fn watch(&self, side: Side, socket: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.kernel.events.watch(self.index, side, socket, interest)
    }

    pub(in super::super) fn rewatch(&self, side: Side, socket: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.kernel.events.rewatch(self.index, side, socket, interest)
    }

    /// What has happened since the last call.
    pub(in super::super) fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Ready> {
        self.kernel.events.poll_ready(self.index, cx)
    }
}

/// What the kernel has forwarded for a pair. Not to be kept longer than the pair.
pub(in super::super) struct PairCounts {
    kernel: Arc<Kernel>,
    index: u32,
}

impl InKernel for PairCounts {
    fn bytes(&self) -> (u64, u64) {
        let redirected = |side: Side| self.kernel.flow(self.index * 2 + side.index()).redirected();
        (redirected(Side::Client), redirected(Side::Backend))
    }
}

impl Drop for PairSlot {
    fn drop(&mut self) {
        for cookie in self.cookies.iter().filter(|c| **c != 0) {
            self.kernel.remove_slot(*cookie);
        }
        let mut ended = self.kernel.ended();
        Side::BOTH.into_iter().for_each(|side| *ended += Tally::of(self.flow(side)));
        self.kernel.events.end(self.index);
        drop(ended);
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
