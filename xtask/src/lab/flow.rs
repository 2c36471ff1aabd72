//! A running flow, as the daemon lists it.

use std::net::SocketAddr;

use serde::Deserialize;

/// Of what `GET /api/v1/flows` tells, what tests and the benchmark ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Flow {
    pub client: SocketAddr,
    pub backend: String,
    pub forwarder: String,
    pub why: String,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// The part of `bytes_up` that never came to userspace.
    pub kernel_up: u64,
    pub kernel_down: u64,
}

impl Flow {
    /// What carries it now, and why.
    pub fn carrier(&self) -> (&str, &str) {
        (&self.forwarder, &self.why)
    }

    /// Bytes that never came to userspace, both ways.
    pub fn in_kernel(&self) -> u64 {
        self.kernel_up + self.kernel_down
    }
}
