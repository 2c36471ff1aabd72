//! What becomes of the clients while the way to one backend of five is longer.

use std::ops::Range;

use crate::measure::{Figures, Mean};
use crate::scenes::{DETOUR_AT, DETOUR_FOR};

/// A backend has been left when it has less than this part of its share, and has it again with this part.
const LEFT: f64 = 0.2;
const BACK: f64 = 0.8;
const WINDOW: usize = 3;
const AT_FIRST: usize = 10;

#[derive(Debug, Clone, Copy)]
pub(super) struct Detour {
    /// From POP to the backends that connects went to, in milliseconds: before the way becomes longer, in the first
    /// seconds, for the rest of the time, and when it is as before.
    pub(super) before: Mean,
    pub(super) at_first: Mean,
    pub(super) later: Mean,
    pub(super) after: Mean,
    /// Until the backend has nearly no connects any more; `None`: it always has some.
    pub(super) left: Option<usize>,
    /// From when the way is as before until the backend has its share again; `None` also if it never was without.
    pub(super) back: Option<usize>,
}

impl Detour {
    pub(super) fn of(figures: &Figures) -> Self {
        let (from, until) = (DETOUR_AT as usize, (DETOUR_AT + DETOUR_FOR) as usize);
        let way = |seconds: Range<usize>| {
            let each = figures.ways.get(seconds).unwrap_or_default();
            each.iter().fold(Mean::default(), |all, one| Mean { sum: all.sum + one.sum, count: all.count + one.count })
        };
        let share = |seconds: Range<usize>| {
            let sum = |list: &[u64]| list.get(seconds.clone()).map_or(0, |part| part.iter().sum::<u64>()) as f64;
            sum(&figures.to_first) / sum(&figures.connects).max(1.0)
        };
        let fair = share(from / 2..from);
        let left = (from..until).find(|at| share(*at..at + WINDOW) < LEFT * fair).map(|at| at - from);
        let last = figures.connects.len().saturating_sub(WINDOW);
        let back = (until..last).find(|at| share(*at..at + WINDOW) >= BACK * fair);
        Self {
            before: way(from / 2..from),
            at_first: way(from..from + AT_FIRST),
            later: way(from + AT_FIRST..until),
            after: way(until..figures.ways.len()),
            left,
            back: left.and(back.map(|at| at - until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_left_and_has_its_share_again() {
        let (from, until) = (DETOUR_AT as usize, (DETOUR_AT + DETOUR_FOR) as usize);
        let way = |ms: f64| Mean { sum: 100.0 * ms, count: 100 };
        let mut figures = Figures { connects: vec![100; until + 60], ..Figures::default() };
        figures.to_first = vec![20; until + 60];
        figures.ways = vec![way(1.0); until + 60];
        figures.ways[from..from + 5].fill(way(7.0));
        assert_eq!((Detour::of(&figures).left, Detour::of(&figures).back), (None, None));
        figures.to_first[from + 5..until + 7].fill(1);
        let detour = Detour::of(&figures);
        let ways = [detour.before, detour.at_first, detour.later, detour.after].map(|way| way.value().unwrap());
        assert_eq!(ways, [1.0, 4.0, 1.0, 1.0]);
        assert_eq!((detour.left, detour.back), (Some(5), Some(7)));
    }
}
