//! Keeps the bindings on disk: now and then, and at the end. On a thread of its own, for a disk may be slow.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use edgeproxy::adapters::outbound::bindings::{BindingFile, BindingFileError, BindingTable};
use edgeproxy::application::bindings::{BindingFileStatus, SaveRecord};
use edgeproxy::application::events::{EventKind, Events, Subject};
use edgeproxy::config::Settings;

use super::{in_background, limits};

/// The bindings' place on disk, and how it went with it.
pub(crate) struct Keeper {
    file: BindingFile,
    table: Arc<BindingTable>,
    record: SaveRecord,
}

impl Keeper {
    /// Takes in what an earlier daemon left, if the settings name a place. What can't be used is no reason not to
    /// start; a place that can't be written is, for the operator would find out too late.
    pub(crate) fn open(settings: &Settings, table: &Arc<BindingTable>) -> Result<Option<Arc<Self>>, BindingFileError> {
        let Some(path) = &settings.bindings_path else { return Ok(None) };
        let file = BindingFile::at(path)?;
        let started = Instant::now();
        let restored = match file.load(table, SystemTime::now()) {
            Ok(restored) => {
                tracing::info!(restored, took = ?started.elapsed(), path = %path.display(), "bindings restored");
                restored
            }
            Err(why) => {
                tracing::warn!(%why, "clients may get another backend than before the restart");
                0
            }
        };
        let record = SaveRecord::new(path.display().to_string(), restored as u64);
        Ok(Some(Arc::new(Self { file, table: Arc::clone(table), record })))
    }

    pub(crate) fn status(&self) -> BindingFileStatus {
        self.record.status(SystemTime::now())
    }

    fn save(&self, events: &Events) {
        let started = Instant::now();
        let result = self.file.save(&self.table, SystemTime::now());
        let result = result.map(|saved| (saved.bindings, saved.bytes)).map_err(|why| why.to_string());
        if let Some(why) = self.record.note(result, SystemTime::now(), started.elapsed()) {
            events.emit(EventKind::BindingsUnsaved, Subject::bindings(), why);
        }
    }
}

/// The running thread.
pub(crate) struct Keeping {
    stop: mpsc::SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Keeping {
    pub(crate) fn start(keeper: Arc<Keeper>, events: Arc<Events>, interval: Duration) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::sync_channel(1);
        let work = move || {
            limits::yield_to_workers();
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) {
                keeper.save(&events);
            }
            keeper.save(&events);
        };
        Ok(Self { stop, thread: in_background("edge-bindings", work)? })
    }

    /// Saves a last time.
    pub(crate) fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that saves bindings died");
        }
    }
}
