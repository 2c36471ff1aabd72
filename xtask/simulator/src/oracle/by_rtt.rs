//! The order of `nearest_rtt`: the nearest by measured time that is below its soft limit, or one that is as near; now and
//! then, and rather than one above its soft limit, one that is to be measured; and the order by region where too little
//! is known, or nobody of these fits.
//!
//! Latitude is left in two places. A backend that is coming back is passed over by chance, so that it can neither be
//! held against a choice that it wasn't chosen nor that it was. And whether a choice measures is chance: the share of
//! those that do is judged in the end.

use ::edgeproxy::domain::PickReason;

use super::order::Trust;
use super::{Fault, Oracle};
use crate::candidate::{Ask, Choice};
use crate::world::Row;

/// What is no farther than the nearest by a quarter, or by this many µs, is as near.
const NEAR_ANYWAY: f64 = 1000.0;
/// Of rounding: the daemon has its estimates in steps of 1/64 µs and compares whole ones.
const ROUNDED: f64 = 5.0;

/// Up to here a time is the same as the `nearest`.
pub(super) fn as_near_as(nearest: f64) -> f64 {
    nearest + NEAR_ANYWAY.max(nearest / 4.0) + ROUNDED
}

/// A backend that is below its hard limit, trusted and untried.
#[derive(Debug, Clone, Copy)]
struct Rival {
    backend: usize,
    /// In µs, as it was ranked last.
    time: Option<f64>,
    /// Was to be measured then, and nobody has been sent to do it.
    unmeasured: bool,
    over_soft: bool,
    /// Is not on its way back: nothing keeps clients away.
    sure: bool,
}

/// All that can be chosen by time.
struct Options(Vec<Rival>);

impl Options {
    /// Measured, with such a standing.
    fn measured(&self, over_soft: bool) -> impl Iterator<Item = (f64, Rival)> {
        let standing = self.0.iter().filter(move |one| one.over_soft == over_soft);
        standing.filter_map(|one| Some((one.time?, *one)))
    }

    fn has_measured(&self, over_soft: bool) -> bool {
        self.measured(over_soft).any(|(_, one)| one.sure)
    }

    fn unmeasured(&self) -> impl Iterator<Item = &Rival> {
        self.0.iter().filter(|one| one.unmeasured && !one.over_soft)
    }

    fn has_unmeasured(&self) -> bool {
        self.unmeasured().any(|one| one.sure)
    }

    /// Whether anybody would have to be chosen by time.
    fn has_any(&self) -> bool {
        self.has_measured(false) || self.has_unmeasured() || self.has_measured(true)
    }

    /// A choice for its time.
    fn judge_nearest(&self, backend: usize) -> Result<(), String> {
        let found = self.measured(false).chain(self.measured(true)).find(|(_, one)| one.backend == backend);
        let Some((time, chosen)) = found else {
            return Err("is not measured, or doesn't fit".to_owned());
        };
        if chosen.over_soft && (self.has_measured(false) || self.has_unmeasured()) {
            return Err("is over its soft limit and others are not".to_owned());
        }
        let rivals = self.measured(chosen.over_soft).filter(|(_, one)| one.sure);
        let nearest = rivals.map(|(time, _)| time).fold(time, f64::min);
        if time <= as_near_as(nearest) {
            Ok(())
        } else {
            Err(format!("is {time:.0} µs away, and the nearest {nearest:.0}"))
        }
    }

    /// A choice to measure it.
    fn judge_probe(&self, backend: usize, retry: bool) -> Result<(), &'static str> {
        match self.unmeasured().any(|one| one.backend == backend) {
            false => Err("need not be measured"),
            // A client that has waited in vain once gets one that is known, if there is one.
            true if retry && self.has_measured(false) => Err("is measured by a client that was failed before"),
            true => Ok(()),
        }
    }
}

impl Oracle<'_> {
    fn options(&self, ask: &Ask<'_>) -> Options {
        let ranking = self.times.of_app(ask.app);
        let fits = |one: &(usize, &Row)| self.is_candidate(ask, *one) && self.trust(one.0) == Trust::Trusted;
        let rival = |(at, row): (usize, &Row)| Rival {
            backend: at,
            time: ranking.time(at),
            unmeasured: ranking.is_unmeasured(at),
            over_soft: row.is_over_soft(self.counts[at]),
            sure: !self.health.is_coming_back(at),
        };
        Options(self.table.of_app(ask.app).filter(fits).map(rival).collect())
    }

    /// Whether the next best by time is below its soft limit; `None`: chance has decided.
    pub(super) fn has_room_by_rtt(&self, ask: &Ask<'_>) -> Option<bool> {
        let options = self.options(ask);
        let below = || options.measured(false).next().is_some() || options.unmeasured().next().is_some();
        match () {
            () if !self.times.of_app(ask.app).is_of_use() => Some(self.has_room(ask)),
            () if options.has_measured(false) || options.has_unmeasured() => Some(true),
            () if below() => None,
            () if options.has_measured(true) => Some(false),
            // Those on their way back are passed over, or not; then region and distance decide.
            () if options.measured(true).next().is_some() && self.has_room(ask) => None,
            () => Some(self.has_room(ask)),
        }
    }

    pub(super) fn judge_by_rtt(&mut self, ask: &Ask<'_>, choice: Choice) {
        let (options, of_use) = (self.options(ask), self.times.of_app(ask.app).is_of_use());
        let by_time = matches!(choice.reason, Some(PickReason::NearestRtt | PickReason::RttProbe));
        let probe = choice.reason == Some(PickReason::RttProbe);
        let wrong = match choice.reason {
            _ if by_time && !of_use => Err("is chosen by time, and too little is known".to_owned()),
            Some(PickReason::NearestRtt) => options.judge_nearest(choice.backend),
            Some(PickReason::RttProbe) => {
                options.judge_probe(choice.backend, !ask.tried.is_empty()).map_err(str::to_owned)
            }
            _ if of_use && options.has_any() => Err("is chosen by region, and times are known".to_owned()),
            _ => return self.judge_order(ask, choice),
        };
        if ask.tried.is_empty() && of_use && options.has_measured(false) && options.has_unmeasured() {
            self.times.could_measure(probe);
        }
        if probe {
            self.times.of_app_mut(ask.app).sent(choice.backend);
        }
        if let Err(why) = wrong {
            let words = format!("{} ({:?}) {why}, at {:?}", self.name(choice.backend), choice.reason, ask.now);
            self.fault(Fault::Order, || words);
        }
    }
}
