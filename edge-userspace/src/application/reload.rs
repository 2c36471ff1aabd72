//! The use case that keeps the routing table up to date: notice a change, read, validate, swap; else keep the last
//! good table and say why. Runs on a thread of its own, so that reading never holds up a connection.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use super::events::{EventKind, Events, Subject};
use super::health::Watch;
use super::ports::{RoutingSource, SourceError};
use super::routing::{Emptied, ReloadReport, RoutingTable};
use crate::domain::{Courtesy, RawBackend};

/// At most this many refused rows are told one by one.
const TOLD_ROWS: usize = 20;

/// Why a reload was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Emptied(#[from] Emptied),
}

/// What one look at the source led to.
#[derive(Debug)]
pub enum Tick {
    Unchanged,
    Reloaded(ReloadReport),
    Refused(ReloadError),
}

/// Something asked of the reload thread from outside.
pub enum ReloadCommand {
    /// Reload now, changed or not; the answer goes to `done`.
    Reload {
        allow_empty: bool,
        done: Box<dyn FnOnce(Result<ReloadReport, ReloadError>) + Send>,
    },
    Stop,
}

impl std::fmt::Debug for ReloadCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reload { allow_empty, .. } => write!(f, "Reload {{ allow_empty: {allow_empty} }}"),
            Self::Stop => f.write_str("Stop"),
        }
    }
}

/// Batches of rows that may wait until they are taken in.
const WAITING: usize = 2;

/// Reads all rows and applies them, on two threads: what one reads the other takes in.
pub fn load<S: RoutingSource>(
    table: &RoutingTable,
    source: &mut S,
    allow_empty: bool,
) -> Result<ReloadReport, ReloadError> {
    std::thread::scope(|scope| {
        let (full, batches) = mpsc::sync_channel(WAITING);
        let read = move || {
            // Nobody takes it any more only where that thread dies.
            source.read(&mut |batch| _ = full.send(batch))
        };
        let reader =
            std::thread::Builder::new().name("edge-rows".into()).spawn_scoped(scope, Courtesy::inherited(read));
        let reader = reader.map_err(|why| SourceError::Thread { why: why.to_string() })?;
        table.apply_read(allow_empty, |take| {
            batches.iter().for_each(|batch: Vec<RawBackend>| take(&batch));
            let read = reader.join().map_err(|_| SourceError::Thread { why: "it died".into() })?;
            read.map_err(ReloadError::from)
        })
    })
}

/// Polls a source and applies what changed.
#[derive(Debug)]
pub struct ReloadLoop<S> {
    source: S,
    table: Arc<RoutingTable>,
    /// Whoever watches the backends, once there is somebody: of the first load there is nothing to say.
    watch: Option<Arc<Watch>>,
    events: Arc<Events>,
    /// The last read failed: try again even if nothing changed since.
    retry: bool,
    /// Why the last attempt was refused, so that a lasting failure is logged once.
    complaint: Option<String>,
    /// The rows that were refused last, and why; likewise told once.
    rejected: HashSet<(String, String)>,
}

impl<S: RoutingSource> ReloadLoop<S> {
    pub fn new(source: S, table: Arc<RoutingTable>, events: Arc<Events>) -> Self {
        Self { source, table, watch: None, events, retry: true, complaint: None, rejected: HashSet::new() }
    }

    /// The watch is told of each reload from now on.
    pub fn watched_by(self, watch: Arc<Watch>) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// Looks for a change every `interval` until it is told to stop or nobody can tell it any more. `also` runs after
    /// each look: other files that change under a running daemon are looked after there.
    pub fn run(mut self, interval: Duration, commands: &Receiver<ReloadCommand>, mut also: impl FnMut()) {
        loop {
            match commands.recv_timeout(interval) {
                Err(RecvTimeoutError::Timeout) => {
                    self.tick(SystemTime::now());
                    self.table.clear_away();
                    also();
                }
                Ok(ReloadCommand::Reload { allow_empty, done }) => {
                    done(self.reload(allow_empty, SystemTime::now()));
                    also();
                }
                Ok(ReloadCommand::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Reloads if the source changed or the last read failed.
    pub fn tick(&mut self, now: SystemTime) -> Tick {
        match self.source.changed() {
            Ok(false) if !self.retry => Tick::Unchanged,
            Ok(_) => match self.reload(false, now) {
                Ok(report) => Tick::Reloaded(report),
                Err(error) => Tick::Refused(error),
            },
            Err(error) => {
                self.retry = true;
                self.refused(&error, now);
                Tick::Refused(error.into())
            }
        }
    }

    /// Reloads now. `allow_empty` confirms that an empty table may replace a full one.
    pub fn reload(&mut self, allow_empty: bool, now: SystemTime) -> Result<ReloadReport, ReloadError> {
        let result = load(&self.table, &mut self.source, allow_empty);
        // Rows that were read and refused stay refused until they change or the operator insists.
        self.retry = matches!(result, Err(ReloadError::Source(_)));
        match &result {
            Ok(report) => self.accepted(report, now),
            Err(error) => self.refused(error, now),
        }
        result
    }

    fn accepted(&mut self, report: &ReloadReport, now: SystemTime) {
        self.table.record(now, Ok(report));
        if self.complaint.take().is_some() {
            let reason = format!("accepted again: generation {}", report.generation);
            self.events.emit(EventKind::ReloadMended, Subject::routing(), reason);
        }
        tracing::info!(
            generation = report.generation,
            backends = report.accepted,
            apps = report.apps,
            rejected = report.rejected.len(),
            "routing table loaded"
        );
        let snapshot = self.table.load();
        for (backend, said) in report.words.told.iter().filter_map(|(id, said)| Some((snapshot.backend(id)?, said))) {
            let reason = format!("the routing database says: {said}");
            self.events.emit(EventKind::BackendState, Subject::backend(backend), reason);
        }
        if report.words.more > 0 {
            let reason = format!("{} further backends have another state or health there", report.words.more);
            self.events.emit(EventKind::BackendState, Subject::routing(), reason);
        }
        drop(snapshot);
        self.watch.iter().for_each(|watch| watch.reloaded(report, Instant::now()));
        self.tell_rejected(report);
    }

    /// Rows that were refused before for the same reason are no news.
    fn tell_rejected(&mut self, report: &ReloadReport) {
        let known = std::mem::take(&mut self.rejected);
        let news: Vec<_> = report.rejected.iter().filter(|row| !known.contains(*row)).collect();
        for (row, why) in news.iter().take(TOLD_ROWS) {
            let reason = format!("refused, its last good version stays if there is one: {why}");
            self.events.emit(EventKind::RowRejected, Subject::row(row), reason);
        }
        if let Some(more) = news.len().checked_sub(TOLD_ROWS).filter(|more| *more > 0) {
            let reason = format!("{more} further rows refused; `edgeproxy status` lists them");
            self.events.emit(EventKind::RowRejected, Subject::routing(), reason);
        }
        self.rejected = report.rejected.iter().cloned().collect();
    }

    fn refused(&mut self, error: &dyn std::error::Error, now: SystemTime) {
        let why = error.to_string();
        self.table.record(now, Err(why.clone()));
        if self.complaint.as_ref() != Some(&why) {
            let reason = match self.table.status().loaded_at {
                Some(_) => format!("routing table not reloaded, the last good one stays: {why}"),
                None => format!("routing table not loaded: {why}"),
            };
            self.events.emit(EventKind::ReloadRefused, Subject::routing(), reason);
            self.complaint = Some(why);
        }
    }
}

#[cfg(test)]
mod tests;
