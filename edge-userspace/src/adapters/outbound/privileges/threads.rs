//! What the kernel says of each thread's capabilities.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::thread::CapabilitySet;

use super::names;

/// The sets that give a thread something now. The bounding set and no_new_privs only limit what exec could give.
const SETS: [&str; 4] = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
/// A thread that was just started may not have come to giving up its capabilities.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(2);

/// A thread with capabilities that it should not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exceeding {
    pub thread: String,
    pub capabilities: Vec<String>,
}

/// Reads back the capabilities of all threads; returns those that have more than `allowed`.
pub fn verify(allowed: CapabilitySet) -> io::Result<Vec<Exceeding>> {
    let mut found = exceeding(allowed)?;
    for _ in 0..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        found = exceeding(allowed)?;
    }
    Ok(found)
}

fn exceeding(allowed: CapabilitySet) -> io::Result<Vec<Exceeding>> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        // A thread that has ended in the meantime has no capabilities.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let excess = held(&status) - allowed;
        if !excess.is_empty() {
            let thread = field(&status, "Name:").unwrap_or_default().to_owned();
            found.push(Exceeding { thread, capabilities: names(excess) });
        }
    }
    Ok(found)
}

/// All that a thread has, by its `/proc/…/status`.
fn held(status: &str) -> CapabilitySet {
    let bits = SETS.into_iter().filter_map(|set| u64::from_str_radix(field(status, set)?, 16).ok());
    CapabilitySet::from_bits_retain(bits.fold(0, |all, bits| all | bits))
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_counts_but_the_bounding_set() {
        let status = "Name:\tedge-worker-0\nCapInh:\t0000000000000001\nCapPrm:\t0000000000000400\n\
                      CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000002\n";
        assert_eq!(held(status).bits(), 0x403);
        assert_eq!(field(status, "Name:"), Some("edge-worker-0"));
    }

    #[test]
    fn a_thread_with_more_than_is_allowed_is_found() {
        // Whatever this test runs with is its own upper limit.
        let own = held(&fs::read_to_string("/proc/thread-self/status").unwrap());
        assert_eq!(verify(CapabilitySet::from_bits_retain(u64::MAX)).unwrap(), []);
        assert_eq!(exceeding(CapabilitySet::empty()).unwrap().is_empty(), own.is_empty());
    }
}
