//! What this host lets the daemon have.
#![allow(unsafe_code)]

use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeproxy::adapters::outbound::forward::pipe;
use edgeproxy::application::admission::{Admission, SourceRules};
use edgeproxy::config::Settings;
use edgeproxy::domain::{AffinityPrefix, Courtesy, Rate};

use super::Shared;

/// Descriptors that are not connections: listeners, maps, the database, the admin API.
const RESERVED_FILES: u64 = 128;

/// Worker threads: as configured, or one for each core this process may use.
pub(crate) fn workers(settings: &Settings) -> usize {
    match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        count => count,
    }
}

/// Connections to hold at once: as configured, or two descriptors each of what may be open. Where pipes may be used,
/// theirs are set aside, a quarter of all at most.
pub(crate) fn connections(settings: &Settings) -> usize {
    let files = raise_file_limit().saturating_sub(RESERVED_FILES + 2 * checks(settings) as u64);
    let most = usize::try_from(settings.max_connections).unwrap_or(usize::MAX);
    let of_files = |files: u64| usize::try_from(files / 2).unwrap_or(usize::MAX);
    if most > 0 {
        pipe::limit(of_files(files.saturating_sub(2 * most as u64)));
        return most;
    }
    let pipes = (2 * pipe::MOST as u64).min(files / 4);
    pipe::limit(of_files(pipes));
    of_files(files - pipes).max(1)
}

/// How long a thread that can wait may use the processor before it is asked to leave it: the least that Linux takes.
const SLICE: Duration = Duration::from_micros(100);

/// Makes room for the calling thread's betters: connections are served before anything that can wait. Where all cores
/// are busy it still gets a tenth of what a worker gets. Threads that it starts have the same priority and slice.
pub(crate) fn yield_to_workers() {
    Courtesy::begin();
    // Only ever lowers the priority, which needs no privilege; of this thread alone, as Linux has it.
    if let Ok(nice) = rustix::process::nice(10) {
        shorten_slice(nice);
    }
}

/// Has the scheduler ask for the processor after [`SLICE`] instead of some 3 ms. Whoever gives way (`Courtesy`) forfeits the
/// rest of its slice, and with long ones a reload would starve on busy cores: 17 s for 100,000 backends instead of 3.
///
/// `sched_setattr(2)`: `sched_runtime` is a slice since Linux 6.12; older ones take it for nothing. Needs no privilege.
fn shorten_slice(nice: i32) {
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: 0,
        sched_flags: libc::SCHED_FLAG_KEEP_POLICY as u64,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: SLICE.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of `attr`, which lives until the call returns; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
}

/// Health checks at once, and as many trials of ejected backends: as configured, but not more than a sixteenth of what may be open.
pub(crate) fn checks(settings: &Settings) -> usize {
    let files = usize::try_from(raise_file_limit() / 16).unwrap_or(usize::MAX);
    usize::try_from(settings.health_checks_at_once).unwrap_or(usize::MAX).min(files).max(1)
}

/// Limits on who may have a connection at all.
pub(crate) fn admission(settings: &Settings) -> Admission {
    let sources = SourceRules {
        // The settings have the same ranges.
        prefix: AffinityPrefix::new(settings.source_prefix_v4, settings.source_prefix_v6).unwrap_or_default(),
        max_connections: settings.source_max_connections,
        rate: Rate::new(settings.source_rate, settings.source_burst),
        capacity: settings.source_capacity,
    };
    Admission::new(sources, Rate::new(settings.max_connection_rate, settings.max_connection_burst))
}

/// How often the first in each queue looks for a place though none was announced, and after a change all of them:
/// whatever makes room without being announced shows by then, and so does what leaves nothing to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How often sources that need not be remembered are forgotten.
const FORGET: Duration = Duration::from_secs(1);

/// Does what nobody's connection does.
pub(crate) fn spawn_upkeep(shared: &Shared) {
    let (routing, admission) = (Arc::clone(&shared.routing), Arc::clone(&shared.admission));
    tokio::spawn(async move {
        let (mut look, mut forget) = (tokio::time::interval(LOOK_AGAIN), tokio::time::interval(FORGET));
        loop {
            tokio::select! {
                _ = look.tick() => routing.lobby().reconsider(),
                _ = forget.tick() => {
                    let admission = Arc::clone(&admission);
                    // May walk many entries.
                    let _ = tokio::task::spawn_blocking(move || admission.sources().sweep(Instant::now())).await;
                }
            }
        }
    });
}

/// Raises the soft limit on open files to the hard one, and says what it is.
fn raise_file_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one struct.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: reads one struct.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 { raised.rlim_cur } else { limit.rlim_cur }
}
