//! Capabilities: what the daemon may do beyond an ordinary process, and how it gives that up.
//!
//! Linux keeps capabilities for each thread, and a new thread gets those of the one that starts it. So they go in two
//! steps. [`begin`], before the first thread: everything that will never be needed goes. [`settle`], once the thread that
//! loads the BPF programs is there, and before the first client is: what loading takes goes. Threads that exist by then
//! give up all of theirs by [`forgo`], that one when it is done. [`verify`] then reads back what the kernel says of every thread. Which capabilities stay, and why:
//! `docs/privileges.md`.

mod bpf;
mod threads;

use std::io;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD};
pub use rustix::thread::CapabilitySet;
use rustix::thread::{self, CapabilitySets};

pub use self::threads::{Exceeding, verify};

/// What loading the BPF programs takes.
const LOADING: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN).union(CapabilitySet::PERFMON);
/// What loading the program takes that steers connections to prefixes and ranges of ports.
pub const STEERING: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::NET_ADMIN);
/// Stays, where it was there: listeners below port 1024 can be opened at any time.
const LISTENING: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;
/// Stays only where a file can't be read without it, see [`settle`].
const READING: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;
/// The kernel takes it for each of [`LOADING`].
const ALL_IN_ONE: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed: {why}; the daemon does not run with more privileges than it needs")]
pub struct PrivilegeError {
    step: &'static str,
    why: io::Error,
}

/// Gives up what will not be needed. Call before the first thread is started.
pub fn begin() -> Result<(), PrivilegeError> {
    thread::set_no_new_privs(true).map_err(at("setting no_new_privs"))?;
    let held = thread::capabilities(None).map_err(at("reading the capabilities"))?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        empty_bounding_set().map_err(at("emptying the bounding set of capabilities"))?;
    }
    let left = until_loaded(held.permitted);
    set(left, left)
}

/// Gives up what loading took; returns what is left.
///
/// `files` are those that the daemon reads again while it runs.
pub fn settle<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<CapabilitySet, PrivilegeError> {
    let held = thread::capabilities(None).map_err(at("reading the capabilities"))?.permitted;
    let mut left = held & LISTENING;
    // Tried as it is going to be; what turns out to be needed is still permitted.
    set(left, held)?;
    if held.contains(READING)
        && let Some(file) = files.into_iter().find(|file| is_denied(file))
    {
        tracing::warn!(file = %file.display(), "CAP_DAC_READ_SEARCH stays: a file can't be read without it");
        left |= READING;
    }
    if held.contains(CapabilitySet::BPF) && bpf::is_refused_without() {
        tracing::warn!("CAP_BPF stays: this kernel lets nobody without it use BPF maps");
        left |= CapabilitySet::BPF;
    }
    set(left, left)?;
    Ok(left)
}

/// Gives up all capabilities of the calling thread. For threads that are started before [`settle`] and need none.
pub fn forgo() {
    // Where this failed [`verify`] finds the thread.
    let _ = set(CapabilitySet::empty(), CapabilitySet::empty());
}

/// Which capabilities loading the BPF programs takes that this thread lacks, in words; `None` if all are there.
pub fn lacking() -> Option<String> {
    lacking_of(LOADING)
}

/// The same for a part of what loading takes.
pub fn lacking_of(needed: CapabilitySet) -> Option<String> {
    let held = thread::capabilities(None).ok()?.effective;
    let all_in_one = needed_for_loading(held) == ALL_IN_ONE;
    let lacking = if all_in_one { CapabilitySet::empty() } else { needed - held };
    let verb = if lacking.bits().count_ones() == 1 { "is" } else { "are" };
    (!lacking.is_empty()).then(|| format!("{} {verb} missing", names(lacking).join(", ")))
}

/// The names of capabilities, as `capabilities(7)` spells them.
pub fn names(set: CapabilitySet) -> Vec<String> {
    each(set)
        .map(|(bit, one)| one.iter_names().next().map_or_else(|| format!("CAP_{bit}"), |(n, _)| format!("CAP_{n}")))
        .collect()
}

/// What is kept from the start until the programs are loaded.
fn until_loaded(permitted: CapabilitySet) -> CapabilitySet {
    permitted & (needed_for_loading(permitted) | LISTENING | READING)
}

/// Before CAP_BPF and CAP_PERFMON had become known, containers were given CAP_SYS_ADMIN instead.
fn needed_for_loading(held: CapabilitySet) -> CapabilitySet {
    if !held.contains(LOADING) && held.contains(ALL_IN_ONE) { ALL_IN_ONE } else { LOADING }
}

fn set(effective: CapabilitySet, permitted: CapabilitySet) -> Result<(), PrivilegeError> {
    // What is not inheritable is not ambient either.
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets).map_err(at("giving up capabilities"))
}

fn empty_bounding_set() -> Result<(), rustix::io::Errno> {
    for (_, capability) in each(CapabilitySet::from_bits_retain(u64::MAX)) {
        match thread::capability_is_in_bounding_set(capability) {
            Ok(true) => thread::remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            // Beyond the last one that this kernel knows.
            Err(_) => break,
        }
    }
    Ok(())
}

/// Whether only the permissions are in the way.
fn is_denied(file: &Path) -> bool {
    rustix::fs::accessat(CWD, file, Access::READ_OK, AtFlags::EACCESS) == Err(rustix::io::Errno::ACCESS)
}

fn each(set: CapabilitySet) -> impl Iterator<Item = (u32, CapabilitySet)> {
    (0..u64::BITS)
        .map(|bit| (bit, CapabilitySet::from_bits_retain(1 << bit)))
        .filter(move |(_, one)| set.contains(*one))
}

fn at(step: &'static str) -> impl Fn(rustix::io::Errno) -> PrivilegeError {
    move |why| PrivilegeError { step, why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_needed_survives_the_beginning() {
        let all = CapabilitySet::from_bits_retain(u64::MAX);
        assert_eq!(until_loaded(all), LOADING | LISTENING | READING);
        assert_eq!(until_loaded(LOADING), LOADING);
        assert_eq!(until_loaded(CapabilitySet::empty()), CapabilitySet::empty());
        assert_eq!(until_loaded(CapabilitySet::SYS_PTRACE | CapabilitySet::BPF), CapabilitySet::BPF);
    }

    #[test]
    fn the_one_for_everything_is_kept_only_where_the_exact_ones_are_not_there() {
        let old = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::SYS_BOOT;
        assert_eq!(until_loaded(old), CapabilitySet::SYS_ADMIN);
        assert_eq!(until_loaded(LOADING | CapabilitySet::SYS_ADMIN), LOADING);
    }

    #[test]
    fn names_are_those_of_the_manual_also_where_they_are_not_known_yet() {
        assert_eq!(names(LOADING), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(names(CapabilitySet::from_bits_retain(1 << 60)), ["CAP_60"]);
    }
}
