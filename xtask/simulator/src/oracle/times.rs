//! How far backends are by what their connects have told, and how they were ranked last: the books that `nearest_rtt` is
//! judged by. Formula and figures are those of `docs/selection.md`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::world::Table;

/// A sample this much later than the one before counts for 1 − 1/e.
const MEMORY_MS: f64 = 10_000.0;
/// What was not measured for so long is to be measured again, and then forgotten.
const STALE_MS: u64 = 60_000;
const FORGOTTEN_MS: u64 = 300_000;
/// Time between rankings.
const EVERY: Duration = Duration::from_secs(1);
/// One of so many choices measures.
const ONE_IN: f64 = 16.0;

#[derive(Debug)]
pub(super) struct Times {
    backends: Vec<Option<Estimate>>,
    /// By app.
    rankings: Vec<Ranking>,
    ranked: Option<Duration>,
    /// Choices of which one in sixteen should have measured, and those that did.
    chances: u64,
    probes: u64,
}

/// Times count in whole milliseconds: samples of one millisecond are one.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    micros: f64,
    at_ms: u64,
}

/// What was known of an app when it was ranked last.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// Backends that take new clients, by number, with their times in µs.
    members: Vec<(usize, Option<f64>)>,
    /// Those that somebody should measure, and has not been sent to since.
    unmeasured: BTreeSet<usize>,
    /// Those that were not to be trusted, or drained by the operator.
    out: BTreeSet<usize>,
}

impl Ranking {
    /// Whether there is something to compare.
    pub(super) fn is_of_use(&self) -> bool {
        let measured = self.members.iter().filter(|(_, time)| time.is_some());
        measured.count() >= self.members.len().min(2)
    }

    pub(super) fn time(&self, backend: usize) -> Option<f64> {
        self.members.iter().find(|(member, _)| *member == backend)?.1
    }

    /// The least time to one of the backends for which `is_there` says so.
    pub(super) fn nearest(&self, is_there: impl Fn(usize) -> bool) -> Option<f64> {
        let there = self.members.iter().filter(|(member, _)| is_there(*member));
        there.filter_map(|(_, time)| *time).reduce(f64::min)
    }

    pub(super) fn was_out(&self, backend: usize) -> bool {
        self.out.contains(&backend)
    }

    pub(super) fn backends(&self) -> impl Iterator<Item = usize> {
        self.members.iter().map(|(member, _)| *member)
    }

    pub(super) fn is_unmeasured(&self, backend: usize) -> bool {
        self.unmeasured.contains(&backend)
    }

    /// A client was sent to measure it: one is enough until the next ranking.
    pub(super) fn sent(&mut self, backend: usize) {
        self.unmeasured.remove(&backend);
    }
}

impl Times {
    pub(super) fn new(apps: usize, backends: usize) -> Self {
        let rankings = (0..apps).map(|_| Ranking::default()).collect();
        Self { backends: vec![None; backends], rankings, ranked: None, chances: 0, probes: 0 }
    }

    pub(super) fn of_app(&self, app: usize) -> &Ranking {
        &self.rankings[app]
    }

    pub(super) fn of_app_mut(&mut self, app: usize) -> &mut Ranking {
        &mut self.rankings[app]
    }

    /// A connect has taken so long.
    pub(super) fn measured(&mut self, backend: usize, took: Duration, now: Duration) {
        let (sample, at_ms) = (took.as_secs_f64() * 1e6, whole_ms(now));
        let micros = self.backends[backend].map_or(sample, |last| {
            let passed = (at_ms - last.at_ms) as f64;
            sample + (last.micros - sample) * (-passed / MEMORY_MS).exp()
        });
        self.backends[backend] = Some(Estimate { micros, at_ms });
    }

    /// Of a backend that was not there before nothing is known. Apps of which a row is another one are ranked anew by
    /// what is known, with what is stale among it until the next regular ranking. Who is only drained stays ranked.
    pub(super) fn reload(&mut self, before: &Table, now: &Table, is_out: impl Fn(usize) -> bool) {
        for at in (0..self.backends.len()).filter(|at| before.get(*at).is_none()) {
            self.backends[at] = None;
        }
        let rows = |table: &Table, app| table.of_app(app).map(|(at, row)| (at, row.undrained())).collect::<Vec<_>>();
        let changed = |app: &usize| rows(before, *app) != rows(now, *app);
        for app in (0..self.rankings.len()).filter(changed) {
            self.rankings[app] = self.rank(app, now, |_| false, &is_out);
        }
    }

    pub(super) fn tick(&mut self, table: &Table, now: Duration, is_out: impl Fn(usize) -> bool) {
        if self.ranked.is_some_and(|last| now - last < EVERY) {
            return;
        }
        self.ranked = Some(now);
        let now_ms = whole_ms(now);
        let fresh = |known: &Estimate| now_ms - known.at_ms < FORGOTTEN_MS;
        self.backends.iter_mut().for_each(|known| *known = known.filter(fresh));
        for app in 0..self.rankings.len() {
            self.rankings[app] = self.rank(app, table, |known| now_ms - known.at_ms >= STALE_MS, &is_out);
        }
    }

    fn rank(
        &self,
        app: usize,
        table: &Table,
        is_stale: impl Fn(Estimate) -> bool,
        is_out: &dyn Fn(usize) -> bool,
    ) -> Ranking {
        let members = || table.of_app(app).filter(|(_, row)| row.is_listed()).map(|(at, _)| (at, self.backends[at]));
        Ranking {
            members: members().map(|(at, known)| (at, known.map(|known| known.micros))).collect(),
            out: members().map(|(at, _)| at).filter(|at| is_out(*at)).collect(),
            unmeasured: members().filter(|(_, known)| known.is_none_or(&is_stale)).map(|(at, _)| at).collect(),
        }
    }

    /// Somebody could have been measured, and somebody measured could have been chosen.
    pub(super) fn could_measure(&mut self, did: bool) {
        self.chances += 1;
        self.probes += u64::from(did);
    }

    /// One in sixteen, as far as chance lets it be judged.
    pub(super) fn judge_share(&self) -> Result<(), String> {
        let expected = self.chances as f64 / ONE_IN;
        // Six standard deviations, and as many again where there are few: once in many millions.
        let error = (self.probes as f64 - expected).abs();
        let (chances, probes) = (self.chances, self.probes);
        let right = error <= 6.0 * expected.sqrt() + 6.0;
        if right { Ok(()) } else { Err(format!("{probes} of {chances} choices measured instead of one in sixteen")) }
    }
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{Change, Edit, Row};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn times_are_averaged_ranked_and_forgotten() {
        let mut table = Table::new(&[Row::default(), Row::default()]);
        let mut times = Times::new(1, 2);
        times.reload(&Table::new(&[]), &table, |_| false);
        times.measured(0, 10 * MS, Duration::ZERO);
        assert!(!times.of_app(0).is_of_use(), "nothing is ranked yet");
        times.measured(1, 30 * MS, Duration::ZERO);
        times.measured(0, 110 * MS, 10_000 * MS);
        times.tick(&table, 10_000 * MS, |_| false);
        assert!(times.of_app(0).is_of_use());
        let expected = 110_000.0 - 100_000.0 * (-1f64).exp();
        assert!((times.of_app(0).time(0).unwrap() - expected).abs() < 1.0);
        // Not before a second is over.
        times.measured(1, 50 * MS, 10_500 * MS);
        times.tick(&table, 10_750 * MS, |_| false);
        assert!((times.of_app(0).time(1).unwrap() - 30_000.0).abs() < 1.0);
        times.tick(&table, 70_000 * MS, |_| false);
        assert!(times.of_app(0).is_unmeasured(0) && !times.of_app(0).is_unmeasured(1));
        times.of_app_mut(0).sent(0);
        assert!(!times.of_app(0).is_unmeasured(0));
        times.tick(&table, 310_000 * MS, |_| false);
        assert_eq!((times.of_app(0).time(0).is_some(), times.of_app(0).time(1).is_some()), (false, true));
        // Who leaves and comes back begins anew.
        for present in [false, true] {
            let before = table.clone();
            table.edit(&[Change { backend: 1, edit: Edit::Present(present) }]);
            times.reload(&before, &table, |_| false);
        }
        assert_eq!(times.of_app(0).time(1), None);
    }

    #[test]
    fn one_in_sixteen_measures() {
        let share = |chances: u64, probes: u64| Times { chances, probes, ..Times::new(0, 0) }.judge_share().is_ok();
        assert_eq!([(0, 0), (100, 0), (1600, 100), (1600, 60)].map(|(all, part)| share(all, part)), [true; 4]);
        assert_eq!([(1600, 0), (1600, 200), (16, 16)].map(|(all, part)| share(all, part)), [false; 3]);
    }
}
