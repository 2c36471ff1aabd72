//! What `/proc` says about a process and about the machine.

use std::fs;
use std::time::Duration;

/// Processor time the threads of a process have used, in user and kernel mode. Kernel workers that act for it are not
/// in it.
pub fn cpu(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanos = threads.flatten().filter_map(|thread| {
        // Nanoseconds on a processor, nanoseconds waiting for one, times scheduled.
        let line = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<u64>().ok()
    });
    Some(Duration::from_nanos(nanos.sum()))
}

/// Resident memory of a process, in bytes.
pub(super) fn memory(pid: u32) -> Option<u64> {
    kib_of(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// Memory the machine could give to programs, in bytes. Unlike socket statistics it misses nothing the kernel queues.
pub fn memory_available() -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();
        assert!(cpu(pid).is_some());
        assert!(memory(pid).is_some_and(|bytes| bytes > 1 << 20));
        assert!(memory_available() > memory(pid));
    }
}
