//! The thread that listens to the kernel on behalf of all offloaded pairs.
//!
//! Offloaded sockets must not be in tokio's epoll: it always asks for EPOLLIN, and every redirected skb would wake it,
//! which halves the throughput. Here they are watched for the end of the stream (EPOLLRDHUP), and for more only while
//! userspace has something to do. Every event is a hint: who is woken looks for itself, so a stale one does no harm.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;

use super::super::lane::Side;
use super::{Kernel, KernelError};
use crate::adapters::outbound::privileges;

/// How often flows are looked over for bytes that no event announced. Without it 2 of 600 connections got stuck.
const SWEEP: Duration = Duration::from_millis(100);
const RING: u64 = u64::MAX;
const LOGS: u64 = u64::MAX - 1;

/// What to be woken for besides the end of the stream and errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Interest {
    pub(in super::super) readable: bool,
    pub(in super::super) writable: bool,
}

impl Interest {
    fn epoll_bits(self) -> u32 {
        let mut bits = libc::EPOLLRDHUP | libc::EPOLLET;
        if self.readable {
            bits |= libc::EPOLLIN;
        }
        if self.writable {
            bits |= libc::EPOLLOUT;
        }
        bits.cast_unsigned()
    }
}

/// What happened to a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Ready(u32);

impl Ready {
    /// Nothing in particular: look again.
    pub(in super::super) const NONE: Self = Self(0);
    /// Look at everything.
    pub(in super::super) const ALL: Self = Self(ATTEND | HUNG_UP | HUNG_UP << 1);

    /// Whether the stream of `side` may have ended, by FIN or error.
    pub(in super::super) fn hung_up(self, side: Side) -> bool {
        self.0 & (HUNG_UP << side.index()) != 0
    }
}

const ATTEND: u32 = 1;
const HUNG_UP: u32 = 2;

#[derive(Debug, Default)]
struct PairEvents {
    live: AtomicBool,
    ready: AtomicU32,
    waker: AtomicWaker,
}

/// The event queue of all offloaded pairs.
#[derive(Debug)]
pub(super) struct Events {
    epoll: OwnedFd,
    pairs: Box<[PairEvents]>,
}

impl Events {
    pub(super) fn new(ring: RawFd, pairs: u32) -> io::Result<Self> {
        // SAFETY: no arguments to get wrong.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fresh and ours.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let events = Self { epoll, pairs: (0..pairs).map(|_| PairEvents::default()).collect() };
        events.control(libc::EPOLL_CTL_ADD, ring, libc::EPOLLIN.cast_unsigned(), RING)?;
        Ok(events)
    }

    pub(super) fn begin(&self, pair: u32) {
        if let Some(events) = self.pairs.get(pair as usize) {
            events.ready.store(0, Ordering::Relaxed);
            events.live.store(true, Ordering::Release);
        }
    }

    pub(super) fn end(&self, pair: u32) {
        if let Some(events) = self.pairs.get(pair as usize) {
            events.live.store(false, Ordering::Release);
            events.waker.take();
        }
    }

    /// The pairs that are in use now.
    pub(super) fn live_pairs(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.pairs).filter(|(_, events)| events.live.load(Ordering::Acquire)).map(|(pair, _)| pair)
    }

    pub(super) fn watch(&self, pair: u32, side: Side, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), interest.epoll_bits(), socket_key(pair, side))
    }

    pub(super) fn rewatch(&self, pair: u32, side: Side, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), interest.epoll_bits(), socket_key(pair, side))
    }

    pub(super) fn poll_ready(&self, pair: u32, cx: &mut Context<'_>) -> Poll<Ready> {
        let Some(events) = self.pairs.get(pair as usize) else { return Poll::Pending };
        events.waker.register(cx.waker());
        match events.ready.swap(0, Ordering::AcqRel) {
            0 => Poll::Pending,
            ready => Poll::Ready(Ready(ready)),
        }
    }

    fn announce(&self, pair: u32, what: u32) {
        if let Some(events) = self.pairs.get(pair as usize) {
            events.ready.fetch_or(what, Ordering::AcqRel);
            events.waker.wake();
        }
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, bits: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: bits, u64: data };
        // SAFETY: the event is valid for the call.
        let rc = unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &mut event) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn wait(&self, events: &mut [libc::epoll_event], limit: Duration) -> usize {
        // Rounded up: with 0 it would spin through the last millisecond.
        let millis = libc::c_int::try_from(limit.as_micros().div_ceil(1_000)).unwrap_or(libc::c_int::MAX);
        let room = libc::c_int::try_from(events.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the kernel writes at most `room` events. EINTR counts as nothing.
        let n = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), room, millis) };
        usize::try_from(n).unwrap_or(0)
    }
}

fn socket_key(pair: u32, side: Side) -> u64 {
    u64::from(pair) * 2 + u64::from(side.index())
}

/// Starts the thread. It ends when the last other holder of `kernel` is gone.
pub(super) fn spawn<L>(
    kernel: &Arc<Kernel>,
    mut ring: RingBuf<MapData>,
    mut logger: Option<EbpfLogger<L>>,
) -> Result<(), KernelError>
where
    L: log::Log + Send + 'static,
{
    if let Some(logger) = &logger {
        let readable = libc::EPOLLIN.cast_unsigned();
        kernel.events.control(libc::EPOLL_CTL_ADD, logger.as_raw_fd(), readable, LOGS)?;
    }
    let kernel: Weak<Kernel> = Arc::downgrade(kernel);
    std::thread::Builder::new().name("edge-events".into()).spawn(move || {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 256];
        let mut swept = Instant::now();
        // The programs are loaded; listening to them takes no privilege.
        privileges::forgo();
        while let Some(kernel) = kernel.upgrade() {
            let n = kernel.events.wait(&mut events, SWEEP.saturating_sub(swept.elapsed()));
            for event in events.iter().take(n) {
                match event.u64 {
                    RING => drain_ring(&kernel, &mut ring),
                    LOGS => logger.iter_mut().for_each(EbpfLogger::flush),
                    socket => announce_socket(&kernel, socket, event.events),
                }
            }
            if swept.elapsed() >= SWEEP {
                sweep(&kernel);
                swept = Instant::now();
            }
        }
    })?;
    Ok(())
}

fn drain_ring(kernel: &Kernel, ring: &mut RingBuf<MapData>) {
    while let Some(item) = ring.next() {
        if let Ok(slot) = <[u8; 4]>::try_from(&item[..]) {
            kernel.events.announce(u32::from_ne_bytes(slot) / 2, ATTEND);
        }
    }
}

fn announce_socket(kernel: &Kernel, socket: u64, bits: u32) {
    let Ok(socket) = u32::try_from(socket) else { return };
    let gone = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR).cast_unsigned();
    let what = if bits & gone != 0 { ATTEND | HUNG_UP << (socket % 2) } else { ATTEND };
    kernel.events.announce(socket / 2, what);
}

/// Wakes the pairs with passed bytes that userspace has not written out.
fn sweep(kernel: &Kernel) {
    for pair in kernel.events.live_pairs() {
        let behind = |slot| {
            let flow = kernel.flow(slot);
            flow.passed() != flow.consumed()
        };
        if behind(pair * 2) || behind(pair * 2 + 1) {
            kernel.events.announce(pair, ATTEND);
        }
    }
}
