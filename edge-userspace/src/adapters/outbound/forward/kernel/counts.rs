//! The kernel's own count of each backend's established connections (the sock_ops program `count`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::{CgroupAttachMode, SockOps};
use aya::util::KernelVersion;
use edge_common::MAX_BACKENDS;

use super::super::socket;
use super::mapped::MappedArray;
use super::{KernelError, cgroup, map_array, take};

/// The first kernel with links to cgroups, which detach what its owner leaves behind.
const LINKS_SINCE: KernelVersion = KernelVersion::new(5, 7, 0);

/// Names upstream sockets to the kernel and reads back what it counted.
#[derive(Debug)]
pub struct BackendCounts {
    sockets: Mutex<HashMap<MapData, u64, u32>>,
    connections: MappedArray<u64>,
}

impl BackendCounts {
    /// Attaches the counting program to this process's cgroup.
    pub(super) fn attach(programs: &mut Ebpf) -> Result<Self, KernelError> {
        // There it would be attached without a link, stay when this process is killed, and refuse all later ones.
        if KernelVersion::current().is_ok_and(|version| version < LINKS_SINCE) {
            return Err(KernelError::NoLinks);
        }
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
    pub fn name(self: &Arc<Self>, socket: BorrowedFd<'_>, slot: u32) -> Option<NamedSocket> {
        let cookie = socket::cookie(socket.as_fd()).ok()?;
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie, slot, 0).ok()?;
        Some(NamedSocket { cookie, counts: Arc::clone(self) })
    }
}

/// A socket that the kernel knows by its cookie. Dropping it takes the name back, also where connecting was given up
/// half-way; the socket must be closed by then.
#[derive(Debug)]
pub struct NamedSocket {
    cookie: u64,
    counts: Arc<BackendCounts>,
}

impl NamedSocket {
    /// The socket is connected: the kernel forgets the name when it closes.
    pub fn established(mut self) {
        self.cookie = 0;
    }
}

impl Drop for NamedSocket {
    fn drop(&mut self) {
        if self.cookie != 0 {
            let _ = self.counts.sockets.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.cookie);
        }
    }
}
