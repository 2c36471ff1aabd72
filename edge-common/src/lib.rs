//! Types shared between the BPF programs and the daemon.
//!
//! Everything here lives in BPF maps, some of it memory-mapped into the daemon, so layout is part of the contract:
//! `repr(C)`, sizes and offsets asserted at compile time. Each counter has exactly one writer; the other side only
//! reads it. That is what makes the spill protocol (`docs/adr/0004-spill-protocol.md`) free of locks.
#![no_std]

mod local;
mod steer;

pub use local::*;
pub use steer::*;

/// Flow records in the `FLOWS` array: two per connection, one per direction.
pub const MAX_FLOWS: u32 = 32_768;

/// Backends whose connections the kernel counts at the same time (`BACKEND_CONNECTIONS`).
pub const MAX_BACKENDS: u32 = 131_072;

/// Bytes of the ring buffer that carries slot numbers to userspace.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// Set in [`Flow::gate`] by userspace: this direction is never redirected again.
pub const GATE_FOR_LIFE: u32 = 1;

/// One direction of a connection: from the socket whose cookie leads here to `peer`.
///
/// The three cache lines have three owners: constants, BPF, userspace.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub struct Flow {
    /// Cookie of the socket that this direction writes to. Constant while the flow lives.
    pub peer: u64,
    _constant: [u64; 7],

    /// Bytes given to the peer's socket by the kernel. Written by BPF only.
    pub redirected: u64,
    /// Bytes left for userspace to read. Written by BPF only.
    pub passed: u64,
    /// Zero-length skbs (FINs) dropped; end of stream is seen on the socket itself. Written by BPF only.
    pub fins: u64,
    /// Skbs that found no room at the peer. Written by BPF only.
    pub spills: u64,
    /// Skbs redirected. Written by BPF only.
    pub skbs: u64,
    /// Bytes of retransmission overlap cut off. Written by BPF only.
    pub trimmed: u64,
    /// `tcp_sock.copied_seq` of this socket before its first byte came through here. Written by BPF only.
    pub start_seq: u32,
    /// `tcp_sock.write_seq` of the peer before anything was written by this direction. Written by BPF only.
    pub peer_base: u32,
    /// [`STARTED`] and [`BASED`]. Written by BPF only.
    pub marks: u32,
    /// Skbs redirected since nothing waited in front of the peer; as many may wait there now. Written by BPF only.
    pub waiting_skbs: u32,

    /// Bytes that userspace wrote to the peer. Published before `consumed`. Written by userspace only.
    pub user_written: u64,
    /// Of the passed bytes, those that userspace has read *and* written out. Written by userspace only.
    pub consumed: u64,
    /// Zero or [`GATE_FOR_LIFE`]. Written by userspace only.
    pub gate: u32,
    _user: u32,
    _user_rest: [u64; 5],
}

impl Flow {
    /// A fresh record of the direction that writes to `peer`.
    pub fn towards(peer: u64) -> Self {
        Self { peer, ..Self::default() }
    }
}

/// [`Flow::start_seq`] is valid.
pub const STARTED: u32 = 1;
/// [`Flow::peer_base`] is valid.
pub const BASED: u32 = 2;

/// Settings of all flows, read by the programs at every packet. Written by userspace only.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(8))]
pub struct Control {
    /// Not zero: no direction redirects (the kill switch). Running flows go on in userspace, without loss.
    pub gate_all: u32,
    /// Bytes a direction may have waiting in front of its peer's socket.
    pub backlog_limit: u32,
}

const _: () = {
    assert!(size_of::<Flow>() == 192);
    assert!(core::mem::offset_of!(Flow, redirected) == 64);
    assert!(core::mem::offset_of!(Flow, user_written) == 128);
    assert!(size_of::<Control>() == 8);
};

#[cfg(feature = "user")]
mod user {
    #![allow(unsafe_code)]
    // SAFETY: `repr(C)`, made of integers only, every byte pattern is valid and padding is explicit.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Control {}
}
