//! The order of preference that edgeproxy documents: region first, room below the soft limit second, distance third,
//! ejected backends after all others, those whose checks fail only where nobody is trusted; and a client that is bound goes to its backend.
//! Where measured times come first, `by_rtt` judges.

use ::edgeproxy::domain::{NoBackend, PickReason, Skip};

use super::by_rtt::as_near_as;
use super::{Fault, Oracle, is_affinity, is_out};
use crate::candidate::{Ask, Choice};
use crate::oracle::bindings::Bound;
use crate::world::{Affinity, Row};

/// Less is better. How far it is counts only between regions that are neither the client's nor the POP's.
type Rank = (Trust, u8, bool, Far);

#[derive(Debug, Clone, Copy)]
enum Far {
    /// As near as any.
    Not,
    Km(f64),
    /// In µs, to the nearest backend of the region.
    Time(f64),
    /// Nobody can say.
    Unsure,
}

impl Far {
    /// Distances that differ by less than a kilometre are the same, and so are times that are as near as each other: which
    /// of those comes first is left open.
    fn is_less(self, than: Self) -> bool {
        match (self, than) {
            (Self::Km(one), Self::Km(other)) => one + 1.0 < other,
            (Self::Time(one), Self::Time(other)) => as_near_as(one) < other,
            _ => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trust {
    Trusted,
    Ejected,
    /// Its checks fail.
    Down,
}

impl Oracle<'_> {
    pub(super) fn is_candidate(&self, ask: &Ask<'_>, (at, row): (usize, &Row)) -> bool {
        let asked = !self.health.is_down(at) || self.health.fails_open(ask.app, &self.table);
        asked && row.is_open() && !row.is_full(self.counts[at]) && !ask.tried.contains(&at)
    }

    pub(super) fn trust(&self, backend: usize) -> Trust {
        match () {
            () if self.health.is_down(backend) => Trust::Down,
            () if self.health.is_ejected(backend) => Trust::Ejected,
            () => Trust::Trusted,
        }
    }

    fn rank(&self, ask: &Ask<'_>, (at, row): (usize, &Row)) -> Rank {
        let client = self.world.clients[ask.client].region;
        let pop = self.world.pops[self.pop];
        let tier = match row.region {
            its if Some(its) == client => 0,
            its if its == pop => 1,
            _ => 2,
        };
        let trust = self.trust(at);
        if trust != Trust::Trusted {
            // Nobody asks how near or how busy a last resort is.
            return (trust, tier, false, Far::Not);
        }
        let place = |region: usize| self.world.regions[region].position;
        let from = client.and_then(place).or_else(|| place(pop));
        let far = match (tier, self.time_to(ask.app, row.region), from) {
            (2, Some(far), _) => far,
            (2, None, Some(from)) => Far::Km(place(row.region).map_or(f64::INFINITY, |to| from.distance_km(to))),
            _ => Far::Not,
        };
        (trust, tier, row.is_over_soft(self.counts[at]), far)
    }

    /// How far a region is by the time to the nearest of the app's backends there, where times say which one is next: while
    /// each region with a backend that is to be trusted was measured.
    fn time_to(&self, app: usize, region: usize) -> Option<Far> {
        if !self.world.apps[app].next_by_rtt {
            return None;
        }
        let ranking = self.times.of_app(app);
        let is_there = |region: usize| move |at: &usize| self.world.backends[*at].region == region;
        let time = |region: usize| ranking.nearest(|at| is_there(region)(&at));
        let goes_by_time = |is_out: &dyn Fn(usize) -> bool| {
            let mut regions = ranking.backends().map(|at| self.world.backends[at].region);
            regions.all(|region| time(region).is_some() || ranking.backends().filter(is_there(region)).all(is_out))
        };
        // Between one ranking and the next it is what it was, and the books may be behind by what has just happened.
        match (goes_by_time(&|at| ranking.was_out(at)), goes_by_time(&|at| is_out(&self.health, &self.table, at))) {
            (true, true) => Some(time(region).map_or(Far::Unsure, Far::Time)),
            (false, false) => None,
            _ => Some(Far::Unsure),
        }
    }

    /// The client's backend must have it, if it can.
    fn bound(&self, ask: &Ask<'_>, backend: usize) -> bool {
        let row = self.table.get(backend).filter(|row| row.app == ask.app && row.is_in_service());
        let has_room = row.is_some_and(|row| !row.is_full(self.counts[backend]));
        let trusted = match self.trust(backend) {
            Trust::Trusted => true,
            Trust::Ejected => false,
            Trust::Down => self.health.fails_open(ask.app, &self.table),
        };
        has_room && trusted && !ask.tried.contains(&backend)
    }

    /// Whether the binding has to yield to a crowd: its backend is at its soft limit, and the next best is not. `None`:
    /// that was left to chance.
    fn is_crowded(&self, ask: &Ask<'_>, backend: usize) -> Option<bool> {
        let soft = self.world.apps[ask.app].affinity == Affinity::Soft;
        let over = self.table.get(backend).is_some_and(|row| row.is_over_soft(self.counts[backend]));
        match () {
            () if !soft || !over => Some(false),
            () if self.promises.by_rtt => self.has_room_by_rtt(ask),
            () => Some(self.has_room(ask)),
        }
    }

    /// Whether the best by region and distance is below its soft limit.
    pub(super) fn has_room(&self, ask: &Ask<'_>) -> bool {
        let rivals = self.table.of_app(ask.app).filter(|rival| self.is_candidate(ask, *rival));
        let best = rivals.map(|rival| self.rank(ask, rival)).reduce(|a, b| if less(b, a) { b } else { a });
        best.is_some_and(is_below_soft)
    }

    pub(super) fn judge_choice(&mut self, ask: &Ask<'_>, choice: Choice) {
        let bound = self.bindings.of(ask.connection);
        let honoured = choice.reason.is_some_and(is_affinity);
        let wrong = match bound {
            Bound::To(its) if self.bound(ask, its) => {
                let right = match self.is_crowded(ask, its).unwrap_or(!honoured) {
                    true => !honoured && choice.yielded == Some(Skip::AtSoftLimit),
                    false => honoured && choice.backend == its,
                };
                !right
            }
            Bound::To(_) => honoured || matches!(choice.yielded, None | Some(Skip::AtSoftLimit)),
            Bound::Perhaps(_) if honoured => {
                let its = choice.backend;
                !bound.may_be(its) || !self.bound(ask, its) || self.is_crowded(ask, its) == Some(true)
            }
            _ => honoured,
        };
        if wrong {
            let words =
                format!("{} ({:?}) for a client that is bound: {bound:?}", self.name(choice.backend), choice.reason);
            self.fault(Fault::Binding, || words);
        } else if !honoured && self.promises.by_rtt {
            self.judge_by_rtt(ask, choice);
        } else if !honoured {
            self.judge_order(ask, choice);
        }
    }

    pub(super) fn judge_order(&mut self, ask: &Ask<'_>, choice: Choice) {
        let Some(row) = self.table.get(choice.backend) else { return };
        let chosen = self.rank(ask, (choice.backend, row));
        let rivals = self.table.of_app(ask.app).filter(|rival| self.is_candidate(ask, *rival));
        let better = rivals.map(|rival| (self.rank(ask, rival), rival.0)).find(|(rank, _)| less(*rank, chosen));
        let reason = match chosen {
            (Trust::Ejected, ..) => PickReason::LastResort,
            (Trust::Down, ..) => PickReason::FailOpen,
            (_, 0, ..) => PickReason::ClientRegion,
            (_, 1, ..) => PickReason::PopRegion,
            (_, _, _, Far::Time(_)) => PickReason::NearestRegion,
            (_, _, _, Far::Km(far)) if far > 0.0 && far.is_finite() => PickReason::NearestRegion,
            _ => PickReason::Elsewhere,
        };
        if matches!(chosen, (.., Far::Time(_))) {
            *self.seen.entry("next region by time").or_default() += 1;
        }
        if let Some((rank, rival)) = better {
            let names = (self.name(choice.backend), self.name(rival));
            let words = format!("{} {chosen:?} although there was {} {rank:?} at {:?}", names.0, names.1, ask.now);
            self.fault(Fault::Order, || words);
        } else if choice.reason != Some(reason) && !is_unsure(chosen, choice.reason) {
            let words = format!("{} because of {:?}, but {reason:?} is true", self.name(choice.backend), choice.reason);
            self.fault(Fault::Order, || words);
        }
    }

    pub(super) fn judge_refusal(&mut self, ask: &Ask<'_>, why: NoBackend) {
        let rows = || self.table.of_app(ask.app);
        let open: Vec<(usize, &Row)> = rows().filter(|(_, row)| row.is_open()).collect();
        let free = open.iter().find(|candidate| self.is_candidate(ask, **candidate)).map(|(at, _)| *at);
        let bound = match self.bindings.of(ask.connection) {
            Bound::To(its) => Some(its).filter(|its| self.bound(ask, *its)),
            Bound::No | Bound::Perhaps(_) => None,
        };
        let fails_open = self.health.fails_open(ask.app, &self.table);
        let truth = if rows().next().is_none() {
            NoBackend::NoSuchApp
        } else if open.is_empty() {
            NoBackend::NoneEligible
        } else if open
            .iter()
            .filter(|(at, _)| fails_open || !self.health.is_down(*at))
            .all(|(at, _)| ask.tried.contains(at))
        {
            NoBackend::AllTried
        } else {
            NoBackend::AllFull
        };
        if let Some(free) = free.or(bound) {
            let words = format!("{why:?} although {} was free at {:?}", self.name(free), ask.now);
            self.fault(Fault::Refusal, || words);
        } else if why != truth {
            self.fault(Fault::Refusal, || format!("{why:?}, but {truth:?} is true"));
        }
    }
}

/// Whether it goes by time or by position, one or the other of two reasons is right.
fn is_unsure((_, _, _, far): Rank, reason: Option<PickReason>) -> bool {
    matches!(far, Far::Unsure) && matches!(reason, Some(PickReason::NearestRegion | PickReason::Elsewhere))
}

fn is_below_soft((trust, _, over_soft, _): Rank) -> bool {
    trust == Trust::Trusted && !over_soft
}

fn less(a: Rank, b: Rank) -> bool {
    let (first, second) = ((a.0, a.1, a.2), (b.0, b.1, b.2));
    first < second || (first == second && a.3.is_less(b.3))
}
