//! The load of a benchmark: clients and a backend, one thread each, both epoll loops that check what they read.
//!
//! Both are the same for every candidate and use as little processor time as they can, so that what differs between
//! two candidates is theirs.
#![allow(clippy::indexing_slicing, reason = "test apparatus: a panic is a failed benchmark, not an outage")]

mod backend;
mod bulk;
mod call;
mod churn;
mod control;
mod hold;
mod message;
mod reactor;
mod rpc;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use hdrhistogram::Histogram;

pub(super) use self::backend::Backend;
pub(super) use self::control::{Control, Counts};
pub(super) use self::socket::raise_open_files;
use super::workload::Shape;
use crate::lab::Namespace;

/// What a client thread leaves behind.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Nanoseconds from the intended moment of sending to the last byte of the answer.
    pub(super) latency: Histogram<u64>,
}

impl Outcome {
    fn new() -> io::Result<Self> {
        // One nanosecond to a minute, three digits.
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)?;
        Ok(Self { latency })
    }

    fn record(&mut self, nanos: u64) {
        self.latency.saturating_record(nanos);
    }
}

/// The client of one cell, running.
#[derive(Debug)]
pub(super) struct Client {
    thread: JoinHandle<io::Result<Outcome>>,
}

impl Client {
    /// Starts the load in `namespace` against `to`. `pace` is in bytes a second, for each stream; 0 is no limit.
    pub(super) fn start(
        namespace: &Namespace,
        shape: Shape,
        to: SocketAddr,
        pace: u64,
        control: &Arc<Control>,
    ) -> Self {
        let control = Arc::clone(control);
        let thread = namespace.spawn(move || match shape {
            Shape::Rpc { connections, bytes } => rpc::closed_loop(to, connections, bytes, &control),
            Shape::Open { connections, per_second } => rpc::open_loop(to, connections, per_second, &control),
            Shape::Bulk { way, streams, .. } => bulk::run(to, way, streams, pace, &control),
            Shape::Churn { at_once } => churn::run(to, at_once, &control),
            Shape::Idle { connections } => hold::run(to, connections, &control),
            Shape::SlowReader { streams } => bulk::run(to, super::workload::Way::Down, streams, 0, &control),
        });
        Self { thread }
    }

    /// Waits for the end, which [`Control::stop`] asks for.
    pub(super) fn join(self) -> io::Result<Outcome> {
        self.thread.join().map_err(|_| io::Error::other("the thread of the clients panicked"))?
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}
