//! What `/proc` says about processor time and memory, of processes and of the whole machine.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Processor time the whole machine had spent at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Machine {
    /// Since boot.
    at: Duration,
    /// All processors together, waiting for disks included.
    idle: Duration,
    processors: u32,
}

impl Machine {
    /// Reads `/proc/timer_list`, which counts idle time in nanoseconds where `/proc/stat` has steps of 10 ms. A
    /// processor accounts for its idle time when it wakes up, so each is woken first.
    pub(super) fn now() -> Result<Self> {
        visit_processors()?;
        let text = fs::read("/proc/timer_list").context("read /proc/timer_list (needs root)")?;
        Self::parse(&String::from_utf8_lossy(&text)).context("/proc/timer_list is not as expected")
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let at = lines.find_map(|line| line.strip_prefix("now at "))?.strip_suffix(" nsecs")?.parse().ok()?;
        let (mut idle, mut processors) = (0_u64, 0);
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let nanos = || value.trim().strip_suffix(" nsecs").and_then(|value| value.parse::<u64>().ok());
            match name.trim() {
                ".idle_sleeptime" => (idle, processors) = (idle + nanos()?, processors + 1),
                ".iowait_sleeptime" => idle += nanos()?,
                _ => {}
            }
        }
        let (at, idle) = (Duration::from_nanos(at), Duration::from_nanos(idle));
        (processors > 0).then_some(Self { at, idle, processors })
    }

    /// Time that processors were not idle since `earlier`.
    pub(super) fn busy_since(&self, earlier: &Self) -> Duration {
        let all = self.at.saturating_sub(earlier.at) * self.processors;
        all.saturating_sub(self.idle.saturating_sub(earlier.idle))
    }

    pub(super) fn processors(&self) -> u32 {
        self.processors
    }
}

/// Runs the calling thread for a moment on each processor it may use.
fn visit_processors() -> io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    for processor in (0..CpuSet::MAX_CPU).filter(|processor| allowed.is_set(*processor)) {
        let mut only = CpuSet::new();
        only.set(processor);
        sched_setaffinity(None, &only)?;
    }
    Ok(sched_setaffinity(None, &allowed)?)
}

/// A line of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Ticks of processor time, of children that have ended included.
    ticks: u64,
    is_kernel: bool,
}

const PF_KTHREAD: u64 = 0x0020_0000;

fn parse_stat(line: &str) -> Option<Stat> {
    // The name is in parentheses and may hold anything.
    let fields: Vec<&str> = line.rsplit_once(") ")?.1.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat { parent: u32::try_from(number(1)?).ok()?, ticks, is_kernel: number(6)? & PF_KTHREAD != 0 })
}

fn all() -> HashMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let stat = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // Gone in between: not there.
        Some((pid, parse_stat(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
    };
    entries.flatten().filter_map(stat).collect()
}

/// `root` and all that descend from it.
fn family(stats: &HashMap<u32, Stat>, root: u32) -> BTreeSet<u32> {
    let mut family = BTreeSet::from([root]);
    loop {
        let more = stats.iter().filter(|(pid, stat)| family.contains(&stat.parent) && !family.contains(pid));
        let more: Vec<u32> = more.map(|(pid, _)| *pid).collect();
        if more.is_empty() {
            return family;
        }
        family.extend(more);
    }
}

/// Processor time of programs that have nothing to do with this benchmark, since boot. Ours are this process and what
/// it has started; work of the kernel can't be told apart.
pub(super) fn foreign() -> Duration {
    let stats = all();
    let ours = family(&stats, std::process::id());
    let foreign =
        stats.iter().filter(|(pid, stat)| !ours.contains(pid) && !stat.is_kernel && !is_ancestor(&stats, **pid));
    let ticks: u64 = foreign.map(|(_, stat)| stat.ticks).sum();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

/// Whether this process descends from `pid`: what those have waited for may be ours.
fn is_ancestor(stats: &HashMap<u32, Stat>, pid: u32) -> bool {
    let mut at = std::process::id();
    while let Some(stat) = stats.get(&at).filter(|stat| stat.parent != at) {
        at = stat.parent;
        if at == pid {
            return true;
        }
    }
    false
}

/// Processes of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Processes(Vec<u32>);

impl Processes {
    /// The process and its descendants, as they are now.
    pub(super) fn of(pid: u32) -> Self {
        Self(family(&all(), pid).into_iter().collect())
    }

    /// Processor time used so far, in user and kernel mode. Kernel workers that act for them are not in it.
    pub(super) fn cpu(&self) -> Duration {
        self.0.iter().filter_map(|pid| crate::lab::cpu_of(*pid)).sum()
    }

    /// Memory in bytes, resident, each shared page divided among those that share it.
    pub(super) fn memory(&self) -> u64 {
        let rollup = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            kib(&text, "Pss:")
        };
        self.0.iter().filter_map(rollup).sum()
    }
}

/// Memory of the whole machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) available: u64,
    pub(super) slab: u64,
}

impl Memory {
    pub(super) fn now() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo")?).context("/proc/meminfo is not as expected")
    }

    fn parse(text: &str) -> Option<Self> {
        Some(Self { available: kib(text, "MemAvailable:")?, slab: kib(text, "Slab:")? })
    }
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Whether anybody listens on the port in the network of the process.
pub(crate) fn is_listening(pid: u32, port: u16) -> Result<bool> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    Ok(has_listener(&table, port))
}

fn has_listener(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|local| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok());
        local == Some(port) && fields.nth(1) == Some(LISTEN)
    })
}

/// Model of the processor.
pub(super) fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown processor", |(_, model)| model).to_owned()
}

/// The one line of a file; empty where it can't be read.
pub(super) fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TIMERS: &str = "Timer List Version: v0.10\nnow at 5000000000 nsecs\n\ncpu: 0\n  .idle_entrytime : 1 nsecs\n  \
                          .idle_sleeptime : 3000000000 nsecs\n  .iowait_sleeptime: 500000000 nsecs\ncpu: 1\n  \
                          .idle_sleeptime : 4000000000 nsecs\n  .iowait_sleeptime: 0 nsecs\n";

    #[test]
    fn busy_is_what_was_not_idle() {
        let later = Machine::parse(TIMERS).unwrap();
        let none = Machine { at: Duration::ZERO, idle: Duration::ZERO, processors: 2 };
        assert_eq!(later.processors(), 2);
        // Ten seconds of two processors, of which 7.5 idle.
        assert_eq!(later.busy_since(&none), Duration::from_millis(2500));
        assert_eq!(Machine::parse("now at 1 nsecs\n"), None);
    }

    #[test]
    fn names_of_processes_may_hold_anything() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 2097152 0 0 0 0 10 20 3 4 20 0 1 0 5";
        assert_eq!(parse_stat(line), Some(Stat { parent: 7, ticks: 37, is_kernel: true }));
        assert_eq!(parse_stat("42 (x"), None);
    }

    #[test]
    fn a_family_is_the_process_and_its_descendants() {
        let stat = |parent| Stat { parent, ticks: 0, is_kernel: false };
        let stats = HashMap::from([(1, stat(0)), (5, stat(1)), (6, stat(5)), (9, stat(6)), (7, stat(1))]);
        assert_eq!(family(&stats, 5), BTreeSet::from([5, 6, 9]));
    }

    #[test]
    fn listeners_are_found_by_port_and_state() {
        let table = "  sl  local_address rem_address   st\n   0: 0100007F:1F91 00000000:0000 0A 0:0\n   \
                     1: 0100007F:1F92 00000000:0000 01 0:0\n";
        assert!(has_listener(table, 0x1f91));
        assert!(!has_listener(table, 0x1f92));
        assert!(!has_listener(table, 0x1f93));
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal: 100 kB\nMemAvailable:   7 kB\nSlab: 3 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { available: 7 * 1024, slab: 3 * 1024 }));
    }

    #[test]
    fn this_process_is_its_own_family_and_has_memory() {
        let own = Processes::of(std::process::id());
        assert!(own.memory() > 1 << 20);
        assert!(own.cpu() > Duration::ZERO);
    }
}
