//! The kernel's own count of each backend's established connections (the sock_ops program `count`).

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{MapData, SkStorage};
use aya::programs::{CgroupAttachMode, SockOps};
use aya::util::KernelVersion;
use edge_common::MAX_BACKENDS;

use super::mapped::MappedArray;
use super::{KernelError, cgroup, map_array, take};

/// The first kernel with links to cgroups, which detach what its owner leaves behind.
const LINKS_SINCE: KernelVersion = KernelVersion::new(5, 7, 0);

/// Tells the kernel which backends sockets are for, and reads back what it counted.
#[derive(Debug)]
pub struct BackendCounts {
    backends: Mutex<SkStorage<MapData, u32>>,
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
            backends: Mutex::new(take(programs, "BACKEND_OF")?),
            connections: map_array(programs, "BACKEND_CONNECTIONS", MAX_BACKENDS)?,
        })
    }

    /// Established connections of the backend in `slot`, as the kernel counts them.
    pub fn connections(&self, slot: u32) -> u64 {
        self.connections.get(slot)
    }

    /// Says which backend `socket` is going to be connected to. Call before connecting. A socket that the kernel has no
    /// memory to remember it of is not counted.
    pub fn tell(&self, socket: BorrowedFd<'_>, slot: u32) {
        let _ = self.backends.lock().unwrap_or_else(PoisonError::into_inner).insert(&socket, slot, 0);
    }
}
