//! What `/proc` says about a process and about the machine.

use std::fs;
use std::time::Duration;

/// Clock ticks a second in `/proc/<pid>/stat`: fixed at 100 for userspace on every architecture Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time a process has used, in user and kernel mode. Kernel workers that act for it are not in it.
pub(super) fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces. After it, utime and stime are fields 12 and 13.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next().and_then(|field| field.parse::<u64>().ok());
    let ticks = next()? + next()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
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
