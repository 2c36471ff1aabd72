//! What the kernel path has done in all: pairs that have ended, and those that run.

use std::ops::AddAssign;

use super::mapped::FlowView;

/// Counts since the self-test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Payload given to peers' sockets, bytes.
    pub bytes: u64,
    /// Packets given to peers' sockets.
    pub redirected: u64,
    /// Packets left to the daemon because the peer's socket had no room.
    pub spilled: u64,
    /// Packets that were nothing but the end of a stream.
    pub ends: u64,
    /// Of retransmissions, bytes cut off that had been forwarded before.
    pub trimmed: u64,
    /// Packets that TCP dropped on the sockets of pairs that have ended, without those ends: old duplicates,
    /// acknowledgements after an end, or a loss.
    pub drops: u64,
}

impl Tally {
    pub(super) fn of(flow: FlowView<'_>) -> Self {
        Self {
            bytes: flow.redirected(),
            redirected: flow.skbs(),
            spilled: flow.spills(),
            ends: flow.fins(),
            trimmed: flow.trimmed(),
            drops: 0,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.redirected += other.redirected;
        self.spilled += other.spilled;
        self.ends += other.ends;
        self.trimmed += other.trimmed;
        self.drops += other.drops;
    }
}
