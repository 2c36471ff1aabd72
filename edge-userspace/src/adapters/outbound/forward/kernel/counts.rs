//! The kernel's own count of each backend's established connections (the sock_ops program `count`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::{CgroupAttachMode, SockOps};
use edge_common::MAX_BACKENDS;

use super::super::socket;
use super::mapped::MappedArray;
use super::{KernelError, cgroup, map_array, take};

/// Names upstream sockets to the kernel and reads back what it counted.
#[derive(Debug)]
pub struct BackendCounts {
    sockets: Mutex<HashMap<MapData, u64, u32>>,
    connections: MappedArray<u64>,
}

impl BackendCounts {
    /// Attaches the counting program to this process's cgroup.
    pub(super) fn attach(programs: &mut Ebpf) -> Result<Self, KernelError> {
        let cgroup = cgroup::open_own()?;
        let program: &mut SockOps =
            programs.program_mut("count").ok_or(KernelError::Missing("program count"))?.try_into()?;
        program.load()?;
        // As a bpf_link, which other programs in the same cgroup don't disturb.
        program.attach(cgroup, CgroupAttachMode::Single)?;
        Ok(Self {
            sockets: Mutex::new(take(programs, "BACKEND_SOCKETS")?),
            connections: map_array(programs, "BACKEND_CONNECTIONS", MAX_BACKENDS)?,
        })
    }

    /// Established connections of the backend in `slot`, as the kernel counts them.
    pub fn connections(&self, slot: u32) -> u64 {
        self.connections.get(slot)
    }

    /// Says whose connection `socket` is going to be. Call before connecting.
    pub fn name(&self, socket: BorrowedFd<'_>, slot: u32) -> Option<NamedSocket> {
        let cookie = socket::cookie(socket.as_fd()).ok()?;
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie, slot, 0).ok()?;
        Some(NamedSocket(cookie))
    }

    /// Takes the name back when the connect failed and the socket is closed. The kernel forgets established ones.
    pub fn forget(&self, named: NamedSocket) {
        let _ = self.sockets.lock().unwrap_or_else(PoisonError::into_inner).remove(&named.0);
    }
}

/// A socket that the kernel knows by its cookie.
#[derive(Debug)]
pub struct NamedSocket(u64);
