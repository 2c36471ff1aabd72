//! What one cell, one candidate with one workload in one round, has given.

use std::collections::BTreeMap;

use serde::Serialize;

use super::carried::Carried;
use super::workload::Shape;

/// A quantity. Names are those of the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// Requests, connections or bytes in a second.
    Rate,
    /// Processor time of the whole machine: microseconds for a request or connection, milliseconds for a GB.
    CpuSystem,
    /// Of that, what processes of the proxy used.
    CpuProxy,
    /// Share of all processors that was busy, load generators included.
    Busy,
    /// Microseconds.
    P50,
    P99,
    P999,
    /// Bytes for each connection, in processes of the proxy.
    UserMemory,
    /// Bytes for each connection of what the kernel has, both ends' sockets included: by MemAvailable, and by slab.
    KernelMemory,
    Slab,
    /// Bytes in processes of the proxy: before the first connection, and after the last has gone.
    UserBefore,
    UserAfter,
}

/// What is counted as work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Request,
    Connection,
    Byte,
    /// Memory is measured; there is no work.
    None,
}

impl Unit {
    pub(super) fn of(shape: Shape) -> Self {
        match shape {
            Shape::Rpc { .. } | Shape::Open { .. } => Self::Request,
            Shape::Churn { .. } => Self::Connection,
            Shape::Bulk { .. } => Self::Byte,
            Shape::Idle { .. } | Shape::SlowReader { .. } => Self::None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Sample {
    pub(super) workload: &'static str,
    pub(super) candidate: &'static str,
    pub(super) round: u32,
    pub(super) values: BTreeMap<Metric, f64>,
    /// Of ours only.
    pub(super) carried: Option<Carried>,
    /// Share of the processors that programs outside the benchmark used meanwhile. Taken off `cpu_system`.
    pub(super) noise: f64,
    /// Wrong answers, lost bytes, broken connections.
    pub(super) faults: u64,
    /// The first of them, or why there are no values.
    pub(super) words: Vec<String>,
}

impl Sample {
    pub(super) fn is_good(&self) -> bool {
        self.faults == 0 && !self.values.is_empty()
    }
}
