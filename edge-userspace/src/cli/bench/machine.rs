//! Processor time, of the machine and of a process, from `/proc`.

use std::fs;
use std::time::{Duration, Instant};

use super::super::CliError;

/// A tick of `/proc`: USER_HZ is 100 on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// How much the processors had been idle at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    at: Instant,
    idle: Duration,
    processors: u32,
}

impl Usage {
    pub(super) fn now() -> Result<Self, CliError> {
        let text = fs::read_to_string("/proc/stat").map_err(|why| CliError::Failed(format!("/proc/stat: {why}")))?;
        let parsed = parse(&text).ok_or_else(|| CliError::Failed("/proc/stat is not as expected".to_owned()))?;
        Ok(Self { at: Instant::now(), idle: parsed.0, processors: parsed.1 })
    }

    /// Time of all processors together that they were not idle since `earlier`. The idle time is what the kernel
    /// measures; its other figures are samples.
    pub(super) fn busy_since(&self, earlier: &Self) -> Duration {
        let all = self.at.duration_since(earlier.at) * self.processors;
        all.saturating_sub(self.idle.saturating_sub(earlier.idle))
    }

    pub(super) fn busy_share_since(&self, earlier: &Self) -> f64 {
        let all = self.at.duration_since(earlier.at) * self.processors;
        self.busy_since(earlier).as_secs_f64() / all.as_secs_f64()
    }
}

/// Idle time, waiting for disks included, and the number of processors.
fn parse(stat: &str) -> Option<(Duration, u32)> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().skip(3);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let idle = TICK * ticks()?.checked_add(ticks()?)?;
    let one = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    let processors = stat.lines().filter(one).count();
    (processors > 0).then_some((idle, u32::try_from(processors).ok()?))
}

/// Processor time of all threads of a process.
pub(super) fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A process that is gone has used none.
    ticks_of(&stat).map_or(Duration::ZERO, |ticks| TICK * ticks)
}

fn ticks_of(stat: &str) -> Option<u32> {
    // The name is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    ticks()?.checked_add(ticks()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn idle_time_is_read_for_all_processors() {
        let stat = "cpu  10 0 5 700 50 0 1 0 0 0\ncpu0 5 0 2 350 25 0 1 0 0 0\ncpu1 5 0 3 350 25 0 0 0 0 0\nintr 7\n";
        assert_eq!(parse(stat), Some((Duration::from_millis(7500), 2)));
        assert_eq!(parse("cpu 1 2\n"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn time_of_a_process_is_read_behind_its_name() {
        assert_eq!(ticks_of("7 (a ) b) S 1 7 7 0 -1 0 0 0 0 0 12 30 1 1 20 0 1 0 5"), Some(42));
        assert_eq!(ticks_of("7 (x"), None);
    }

    #[test]
    fn a_busy_moment_is_seen() {
        let before = Usage::now().unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        assert!(Usage::now().unwrap().busy_since(&before) > Duration::from_millis(20));
    }
}
