//! What the kernel path has done in all: pairs that have ended, and those that run.

use std::ops::AddAssign;

use super::mapped::FlowView;
use crate::application::status::KernelPackets;

/// Counts since the self-test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Payload given to peers' sockets, bytes.
    pub bytes: u64,
    pub packets: KernelPackets,
}

impl Tally {
    pub(super) fn of(flow: FlowView<'_>) -> Self {
        let packets = KernelPackets {
            redirected: flow.skbs(),
            spilled: flow.spills(),
            ends: flow.fins(),
            trimmed_bytes: flow.trimmed(),
            // Noted by the pairs themselves.
            dropped: 0,
            drop_checks: 0,
        };
        Self { bytes: flow.redirected(), packets }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        let (sum, more) = (&mut self.packets, other.packets);
        sum.redirected += more.redirected;
        sum.spilled += more.spilled;
        sum.ends += more.ends;
        sum.dropped += more.dropped;
        sum.drop_checks += more.drop_checks;
        sum.trimmed_bytes += more.trimmed_bytes;
    }
}
