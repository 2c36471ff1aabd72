//! How long clients feel a backend that fails.

use crate::measure::Figures;
use crate::scenes::{FAILS_AT, FAILS_FOR};

/// Part of the connects above which the failure is felt, over so many seconds.
const FELT: f64 = 0.05;
const WINDOW: usize = 5;

/// What became of the clients while one backend of five was ill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Failover {
    /// Connects to it.
    pub(super) met: u64,
    /// Clients that got nothing.
    pub(super) lost: u64,
    /// Connections that ended when it died.
    pub(super) cut: u64,
    /// From the failure to the last client that met it, in seconds.
    pub(super) last_met: usize,
    /// From the failure to the last client that met it while it was felt.
    pub(super) steady: usize,
    /// The longest that a client was held, served or not, in seconds.
    pub(super) longest: f64,
    /// From the recovery until the backend has four fifths of the connects that it had before; `None`: never.
    pub(super) back: Option<usize>,
}

impl Failover {
    pub(super) fn of(figures: &Figures) -> Self {
        let (from, until) = (FAILS_AT as usize, (FAILS_AT + FAILS_FOR) as usize);
        let within = |list: &[u64], last: usize| list[last + 1 - WINDOW..=last].iter().sum::<u64>() as f64;
        let is_felt = |second: &usize| {
            let share = within(&figures.met, *second) / within(&figures.connects, *second).max(1.0);
            figures.met[*second] > 0 && share > FELT
        };
        let ill = || from..until.min(figures.met.len());
        let share = |seconds: std::ops::Range<usize>| {
            let sum = |list: &[u64]| list.get(seconds.clone()).map_or(0, |part| part.iter().sum::<u64>()) as f64;
            sum(&figures.to_first) / sum(&figures.connects).max(1.0)
        };
        let fair = share(from / 2..from);
        let back = (until..figures.connects.len().saturating_sub(10)).find(|at| share(*at..at + 10) >= 0.8 * fair);
        Self {
            met: figures.met.iter().sum(),
            lost: figures.lost() + figures.refused,
            cut: figures.cut,
            last_met: ill().rfind(|second| figures.met[*second] > 0).map_or(0, |last| last + 1 - from),
            steady: ill().rfind(is_felt).map_or(0, |last| last + 1 - from),
            longest: figures.wait(1.0).max(figures.held_in_vain) / 1e3,
            back: back.map(|at| at - until),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_felt_until_few_meet_it() {
        let (from, until) = (FAILS_AT as usize, (FAILS_AT + FAILS_FOR) as usize);
        let mut figures = Figures { connects: vec![100; until + 60], ..Figures::default() };
        (figures.met, figures.to_first) = (vec![0; until + 60], vec![20; until + 60]);
        figures.met[from..from + 3].copy_from_slice(&[20, 20, 10]);
        figures.met[from + 40] = 1;
        figures.to_first[from..until + 15].fill(0);
        (figures.failed, figures.waits) = (7, vec![1.0, 3000.0]);
        let failover = Failover::of(&figures);
        assert_eq!((failover.met, failover.lost, failover.steady, failover.last_met), (51, 7, 3, 41));
        assert_eq!((failover.longest, failover.back), (3.0, Some(14)));
    }
}
