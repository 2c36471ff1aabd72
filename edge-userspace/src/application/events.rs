//! What has happened to this POP, for operators: the last few thousand events, each with its time, its subject and its
//! reason in words. Emitting one is the only way to tell: the same call logs it and counts it.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::domain::{AppName, Backend, BackendId, Region, Spot};

/// So many events are kept.
pub const KEPT: usize = 4096;
/// A longer reason is cut.
const MAX_REASON: usize = 512;
/// So many may wait for news at once: each of them holds a connection of the admin API.
const MAX_WAITING: usize = 32;

/// How much an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Makes of one list the kinds, their names and their levels.
macro_rules! kinds {
    ($( $(#[doc = $help:literal])+ $kind:ident = $name:literal, $level:ident; )+) => {
        /// What happened. A bounded set: it labels a metric.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventKind { $( $(#[doc = $help])+ $kind, )+ }

        impl EventKind {
            pub const ALL: &[Self] = &[ $( Self::$kind, )+ ];

            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$kind => $name, )+ }
            }

            const fn level(self) -> Level {
                match self { $( Self::$kind => Level::$level, )+ }
            }
        }
    };
}

kinds! {
    /// The daemon takes connections.
    Ready = "ready", Info;
    /// No new connections; the daemon ends when the last one has.
    Draining = "draining", Info;
    /// The deadline of the drain has passed: what was left is cut.
    DrainCut = "drain_cut", Warn;
    /// Connections, of clients or the POP's own, have shown a backend to be ill: it gets none for a while.
    BackendEjected = "backend_ejected", Warn;
    /// A backend gets clients again, few at first.
    BackendBack = "backend_back", Info;
    /// A backend has its whole share of clients again.
    BackendRecovered = "backend_recovered", Info;
    /// The checks of a backend fail: it gets no clients, as long as another in service is trusted.
    BackendDown = "backend_down", Warn;
    /// The checks of a backend pass again.
    BackendUp = "backend_up", Info;
    /// The address or the check of a backend has changed: what was known of it is forgotten.
    BackendAnew = "backend_anew", Info;
    /// The routing database says otherwise of a backend: `healthy` or `state` has changed.
    BackendState = "backend_state", Info;
    /// All backends of an app that are in service are out: those whose checks fail are asked, too.
    FailOpenBegan = "fail_open_began", Error;
    /// A backend of the app is trusted again.
    FailOpenEnded = "fail_open_ended", Info;
    /// An operator told the daemon to give a backend no new connections.
    BackendDraining = "backend_draining", Info;
    /// The deadline of a backend's drain has passed: what was left is cut.
    BackendDrainCut = "backend_drain_cut", Warn;
    /// The drain of a backend is over: an operator gives it new connections again, or it was removed and is forgotten.
    BackendReady = "backend_ready", Info;
    /// A row of the routing database is bad; its last good version stays, if there is one.
    RowRejected = "row_rejected", Warn;
    /// A region is named that nobody knows: misspelt, or not described yet.
    RegionUnknown = "region_unknown", Warn;
    /// The routing database was refused as a whole; the last good table stays.
    ReloadRefused = "reload_refused", Warn;
    /// The routing database is accepted again.
    ReloadMended = "reload_mended", Info;
    /// A listener accepts connections: it is new, or could not be opened before.
    ListenerOpened = "listener_opened", Info;
    /// A listener can't be opened, or not everywhere.
    ListenerFailed = "listener_failed", Warn;
    /// A listener was removed; connections that it has accepted go on.
    ListenerClosed = "listener_closed", Info;
    /// A new geo database is in use.
    GeoReloaded = "geo_reloaded", Info;
    /// A geo database can't be used; the last good one stays.
    GeoRefused = "geo_refused", Warn;
    /// An operator has ended bindings.
    BindingsCleared = "bindings_cleared", Info;
    /// Bindings could not be saved; it is tried again.
    BindingsUnsaved = "bindings_unsaved", Warn;
    /// An operator changed the forwarder.
    ForwarderSet = "forwarder_set", Info;
    /// The kernel path was switched off because byte counts disagreed.
    KernelPathCondemned = "kernel_path_condemned", Error;
    /// A connection in userspace did not move what it received; if it was spliced, nothing is any more.
    BytesDisagree = "bytes_disagree", Error;
    /// A backend lost the mark `same_host` because byte counts disagreed.
    MarkWithdrawn = "mark_withdrawn", Error;
    /// There is no path between applications of this host, though cgroups were named for it.
    SameHostOff = "same_host_off", Warn;
    /// The applications of a named cgroup don't take part in the same-host path: it is gone, or not there yet.
    CgroupLost = "cgroup_lost", Warn;
    /// They do: it is there, or there again.
    CgroupFound = "cgroup_found", Info;
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    what: &'static str,
    name: String,
    app: Option<String>,
}

impl Subject {
    fn new(what: &'static str, name: impl Into<String>) -> Self {
        Self { what, name: name.into(), app: None }
    }

    /// This daemon.
    pub fn pop() -> Self {
        Self::new("pop", "")
    }

    pub fn backend(backend: &Backend) -> Self {
        Self { app: Some(backend.app.to_string()), ..Self::new("backend", backend.id.as_str()) }
    }

    /// A backend that the routing table may have lost.
    pub fn backend_id(id: &BackendId) -> Self {
        Self::new("backend", id.as_str())
    }

    pub fn app(name: &AppName) -> Self {
        Self { app: Some(name.to_string()), ..Self::new("app", name.as_str()) }
    }

    /// A row of the routing database, named as in the status.
    pub fn row(name: &str) -> Self {
        Self::new("row", name)
    }

    pub fn region(region: &Region) -> Self {
        Self::new("region", region.as_str())
    }

    /// The routing database as a whole.
    pub fn routing() -> Self {
        Self::new("routing", "")
    }

    /// A listener, by where it listens.
    pub fn listener(spot: &Spot) -> Self {
        Self::new("listener", spot.to_string())
    }

    pub fn geo() -> Self {
        Self::new("geo", "")
    }

    pub fn bindings() -> Self {
        Self::new("bindings", "")
    }

    pub fn forwarder() -> Self {
        Self::new("forwarder", "")
    }

    /// A cgroup of the same-host path, by its directory.
    pub fn cgroup(path: &Path) -> Self {
        Self::new("cgroup", path.display().to_string())
    }
}

/// One event, in the shape of `GET /api/v1/events` and of `edgeproxy events --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// 1 for the first of this daemon's life.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub at: String,
    pub kind: Cow<'static, str>,
    /// `info`, `warn` or `error`.
    pub level: Cow<'static, str>,
    /// What it is about, in a word (`backend`, `app`, `row`, …), and which one.
    pub subject: Cow<'static, str>,
    pub name: String,
    pub app: Option<String>,
    /// In words.
    pub reason: String,
}

/// What `GET /api/v1/events` asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only events with a greater number.
    #[serde(default)]
    pub after: u64,
    /// Where there are none: how long to wait for one, 30,000 at most.
    #[serde(default)]
    pub wait_ms: u32,
}

/// What it answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsAnswer {
    /// When this daemon began to count. Numbers of another one mean nothing here.
    pub since: String,
    /// The number of the newest event.
    pub last: u64,
    /// Events that were asked for and are no longer kept.
    pub lost: u64,
    pub events: Vec<Event>,
}

/// The events of this daemon.
#[derive(Debug)]
pub struct Events {
    since: String,
    ring: Mutex<Ring>,
    news: Notify,
    waiting: Semaphore,
}

#[derive(Debug, Default)]
struct Ring {
    last: u64,
    kept: VecDeque<Event>,
    totals: BTreeMap<&'static str, u64>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            since: rfc3339(SystemTime::now()),
            ring: Mutex::default(),
            news: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }
}

impl Events {
    /// The longest that a question waits for news.
    pub const LONGEST_WAIT: Duration = Duration::from_secs(30);

    /// Tells operators: keeps the event, logs it and wakes those who wait for news. Not for the way of a connection:
    /// it allocates and takes a lock.
    pub fn emit(&self, kind: EventKind, subject: Subject, reason: impl Into<String>) {
        let mut reason = reason.into();
        if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
            reason.truncate(end);
        }
        log(kind, &subject, &reason);
        let Subject { what, name, app } = subject;
        let mut ring = self.ring();
        ring.last += 1;
        let event = Event {
            seq: ring.last,
            at: rfc3339(SystemTime::now()),
            kind: kind.as_str().into(),
            level: kind.level().as_str().into(),
            subject: what.into(),
            name,
            app,
            reason,
        };
        *ring.totals.entry(kind.as_str()).or_default() += 1;
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(event);
        drop(ring);
        self.news.notify_waiters();
    }

    /// Events of each kind since the start.
    pub fn totals(&self) -> BTreeMap<String, u64> {
        self.ring().totals.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
    }

    /// The events that are asked for; waits for one if there are none and the question says so.
    pub async fn answer(&self, query: EventsQuery) -> EventsAnswer {
        let wait = Duration::from_millis(query.wait_ms.into()).min(Self::LONGEST_WAIT);
        let deadline = Instant::now() + wait;
        // Where too many wait already, the answer is what there is now.
        let _place = match self.waiting.try_acquire() {
            Ok(place) if !wait.is_zero() => place,
            _ => return self.after(query.after),
        };
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // Registered before the ring is looked at, so that no event slips through between the two.
            news.as_mut().enable();
            let answer = self.after(query.after);
            if !answer.events.is_empty() || timeout_at(deadline, news).await.is_err() {
                return answer;
            }
        }
    }

    fn after(&self, after: u64) -> EventsAnswer {
        let ring = self.ring();
        // A number from the future is that of a daemon before this one.
        let after = if after > ring.last { 0 } else { after };
        let oldest = ring.kept.front().map_or(ring.last + 1, |event| event.seq);
        let lost = oldest.saturating_sub(after + 1);
        let skipped = usize::try_from((after + 1).saturating_sub(oldest)).unwrap_or(usize::MAX);
        let events = ring.kept.iter().skip(skipped).cloned().collect();
        EventsAnswer { since: self.since.clone(), last: ring.last, lost, events }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(kind: EventKind, subject: &Subject, reason: &str) {
    let (event, Subject { what, name, app }) = (kind.as_str(), subject);
    match kind.level() {
        Level::Info => tracing::info!(event, subject = what, name, app, "{reason}"),
        Level::Warn => tracing::warn!(event, subject = what, name, app, "{reason}"),
        Level::Error => tracing::error!(event, subject = what, name, app, "{reason}"),
    }
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time.max(UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests;
