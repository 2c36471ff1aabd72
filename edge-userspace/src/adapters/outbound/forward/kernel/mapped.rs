//! BPF arrays mapped into the daemon, so that reading and publishing costs no system call, and a file of the kernel's.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use edge_common::{Control, Flow, GATE_FOR_LIFE};

/// A `BPF_F_MMAPABLE` array. Unmapped when dropped.
#[derive(Debug)]
pub(super) struct MappedArray<T> {
    start: NonNull<T>,
    entries: u32,
    _type: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel anyway; all access is by atomics through the views below.
unsafe impl<T> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for MappedArray<T> {}

impl<T> MappedArray<T> {
    /// Maps the array behind `map`, which must have `entries` values of type `T`.
    pub(super) fn new(map: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        let len = Self::bytes(entries);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping chosen by the kernel; it refuses a length beyond the map.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, entries, _type: PhantomData })
    }

    /// The kernel rounds each value up to eight bytes; ours are multiples of that.
    fn bytes(entries: u32) -> usize {
        const { assert!(size_of::<T>().is_multiple_of(8)) }
        entries as usize * size_of::<T>()
    }

    pub(super) fn entry(&self, index: u32) -> *mut T {
        assert!(index < self.entries, "index {index} beyond a map of {} entries", self.entries);
        // SAFETY: checked to lie inside the mapping.
        unsafe { self.start.as_ptr().add(index as usize) }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with the same length; views borrow `self`, so none is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), Self::bytes(self.entries)) };
    }
}

/// A whole file of the kernel's that never changes. Unmapped when dropped.
#[derive(Debug)]
pub(super) struct MappedFile {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: memory that nobody writes to.
unsafe impl Send for MappedFile {}

impl MappedFile {
    /// Maps `path`, which must be one of sysfs' files that don't change while the kernel runs.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping chosen by the kernel; it refuses an empty one, and what can't be mapped.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?, len })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped by `open` for reading, with this length, until `self` is dropped; nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with the same length; slices borrow `self`, so none is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl MappedArray<u64> {
    pub(super) fn get(&self, index: u32) -> u64 {
        // SAFETY: an aligned u64 that lives as long as `self` and is only accessed atomically.
        unsafe { AtomicU64::from_ptr(self.entry(index)) }.load(Ordering::Acquire)
    }
}

impl MappedArray<Control> {
    pub(super) fn set_gate_all(&self, gate: bool) {
        // SAFETY: as in `get`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entry(0)).gate_all) }.store(u32::from(gate), Ordering::Release);
    }

    pub(super) fn gate_all(&self) -> bool {
        // SAFETY: as in `get`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entry(0)).gate_all) }.load(Ordering::Acquire) != 0
    }

    pub(super) fn set_backlog_limit(&self, bytes: u32) {
        // SAFETY: as in `get`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.entry(0)).backlog_limit) }.store(bytes, Ordering::Release);
    }
}

impl MappedArray<Flow> {
    pub(super) fn flow(&self, slot: u32) -> FlowView<'_> {
        FlowView { flow: self.entry(slot), _array: PhantomData }
    }
}

/// One flow record. Reads what BPF counts, writes what userspace owns.
#[derive(Clone, Copy)]
pub(in super::super) struct FlowView<'a> {
    flow: *mut Flow,
    _array: PhantomData<&'a Flow>,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),*) => { $(
        $(#[$doc])*
        pub(in super::super) fn $name(self) -> u64 {
            // SAFETY: an aligned u64 inside the mapping, only accessed atomically.
            unsafe { AtomicU64::from_ptr(&raw mut (*self.flow).$name) }.load(Ordering::SeqCst)
        }
    )* };
}

impl FlowView<'_> {
    counters!(redirected, passed, consumed, fins, spills, skbs, trimmed);

    /// Makes the record that of a new flow. No socket may lead to it yet.
    pub(in super::super) fn begin(self, peer: u64) {
        // SAFETY: no program reads a record that no cookie leads to.
        unsafe { ptr::write_volatile(self.flow, Flow::towards(peer)) };
    }

    /// Publishes bytes written to the peer; always before [`Self::publish_consumed`].
    pub(in super::super) fn publish_written(self, bytes: u64) {
        // SAFETY: as in `counters`.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.flow).user_written) }.store(bytes, Ordering::SeqCst);
    }

    /// Publishes that the first `bytes` passed bytes have been written out: BPF may redirect again.
    pub(in super::super) fn publish_consumed(self, bytes: u64) {
        // SAFETY: as in `counters`. Sequentially consistent: see `pass` in edge-ebpf.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.flow).consumed) }.store(bytes, Ordering::SeqCst);
    }

    /// From now on everything is left to userspace.
    pub(in super::super) fn gate(self) {
        // SAFETY: as in `counters`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.flow).gate) }.store(GATE_FOR_LIFE, Ordering::SeqCst);
    }
}
