//! What the threads of one cell share: orders one way, counts the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Faults that are kept in words; the rest is only counted.
const WORDS: usize = 5;

#[derive(Debug)]
pub(in crate::bench) struct Control {
    epoch: Instant,
    recording: AtomicBool,
    stopping: AtomicBool,
    ended: AtomicBool,
    /// Whether clients read what they get; not while they play the slow reader.
    reading: AtomicBool,
    established: AtomicU64,
    units: AtomicU64,
    received: AtomicU64,
    faults: AtomicU64,
    words: Mutex<Vec<String>>,
    /// Bytes of streams, over the whole cell: what was sent must have arrived.
    sent_in_all: AtomicU64,
    received_in_all: AtomicU64,
}

/// A snapshot of what was done since the start of the cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::bench) struct Counts {
    /// Requests answered, or connections made, served and closed.
    pub(in crate::bench) units: u64,
    /// Bytes of streams that arrived, both ways.
    pub(in crate::bench) bytes: u64,
}

impl Control {
    pub(in crate::bench) fn new(reading: bool) -> Self {
        Self {
            epoch: Instant::now(),
            recording: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            reading: AtomicBool::new(reading),
            established: AtomicU64::new(0),
            units: AtomicU64::new(0),
            received: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            words: Mutex::new(Vec::new()),
            sent_in_all: AtomicU64::new(0),
            received_in_all: AtomicU64::new(0),
        }
    }

    /// Nanoseconds since the cell began: the clock of messages.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(in crate::bench) fn record(&self, on: bool) {
        self.recording.store(on, SeqCst);
    }

    pub(super) fn is_recording(&self) -> bool {
        self.recording.load(Relaxed)
    }

    /// Nothing new is begun; what is under way is finished.
    pub(in crate::bench) fn stop(&self) {
        self.reading.store(true, SeqCst);
        self.stopping.store(true, SeqCst);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// The clients have gone: the backend may, too.
    pub(in crate::bench) fn end(&self) {
        self.stop();
        self.ended.store(true, SeqCst);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    pub(super) fn is_reading(&self) -> bool {
        self.reading.load(Relaxed)
    }

    /// A connection is through to the backend, which has answered on it.
    pub(super) fn establish(&self) {
        self.established.fetch_add(1, Relaxed);
    }

    pub(in crate::bench) fn established(&self) -> u64 {
        self.established.load(Relaxed)
    }

    pub(super) fn unit(&self) {
        self.units.fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    pub(in crate::bench) fn counts(&self) -> Counts {
        Counts { units: self.units.load(SeqCst), bytes: self.received.load(SeqCst) }
    }

    /// A stream has ended at this end.
    pub(super) fn settle(&self, sent: u64, received: u64) {
        self.sent_in_all.fetch_add(sent, SeqCst);
        self.received_in_all.fetch_add(received, SeqCst);
    }

    pub(super) fn fault(&self, what: impl Into<String>) {
        self.faults.fetch_add(1, SeqCst);
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() < WORDS {
            words.push(what.into());
        }
    }

    /// How many faults there were, and the first of them in words. To be asked when both ends have finished.
    pub(in crate::bench) fn faults(&self) -> (u64, Vec<String>) {
        let (sent, received) = (self.sent_in_all.load(SeqCst), self.received_in_all.load(SeqCst));
        if sent != received {
            self.fault(format!("{sent} bytes were sent in all streams and {received} arrived"));
        }
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        (self.faults.load(SeqCst), words.clone())
    }
}
