//! Choosing by measured round-trip time (`apps.selection = 'nearest_rtt'`).
//!
//! The backends of an app that were measured are ranked, off the data path, about once a second. A choice walks the
//! ranking from its start to the first backend that has room. Those that are not noticeably farther than that one are
//! its equals, and load and weight choose among them. Backends that nobody has measured lately get a small share of
//! the clients, so that one that was slow once is found to be quick again.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::group::Draw;
use super::index::{Group, Member};
use super::room::Standing;
use super::{AppIndex, PickReason, Request};

/// Who is no farther than the nearest by this part of its time, or by [`NEAR_ANYWAY`], is as near.
const NEAR_PART: u32 = 4;
const NEAR_ANYWAY: Duration = Duration::from_millis(1);

/// Up to here times are the same as the `nearest`.
pub(super) fn as_near_as(nearest: Duration) -> Duration {
    nearest.saturating_add(NEAR_ANYWAY.max(nearest / NEAR_PART))
}

/// What was not measured for so long is measured again.
const STALE: Duration = Duration::from_secs(60);

/// One of so many choices measures, while there is somebody to be measured. A power of two.
const PROBE_ONE_IN: u64 = 16;

/// Members a choice looks at before it leaves the rest to the usual order.
const LOOKS: usize = 64;

/// Draws among near-equals before the nearest itself is taken.
const DRAWS: usize = 4;

/// How the members of an app's group "everywhere" are ranked now.
#[derive(Debug, Default)]
pub(super) struct Nearest {
    now: ArcSwap<Ranking>,
}

#[derive(Debug, Default)]
struct Ranking {
    /// Nearest first.
    ranked: Box<[Ranked]>,
    /// Members that were never measured, or not lately. Those before `next` were asked, or looked at in vain.
    unmeasured: Box<[Unmeasured]>,
    next: AtomicUsize,
    /// By standing: those before it were found not to stand so. 0 while one walk comes to the first that does.
    start: [AtomicUsize; 2],
}

#[derive(Debug, Clone, Copy)]
struct Ranked {
    member: u32,
    rtt: Duration,
    /// Sum of the weights up to here, this one included.
    weights: u64,
}

#[derive(Debug)]
struct Unmeasured {
    member: u32,
    /// A client was sent to it since the ranking.
    asked: AtomicBool,
}

impl Nearest {
    pub(super) fn of(group: &Group) -> Self {
        let nearest = Self::default();
        nearest.now.store(Arc::new(Ranking::of(group, |_| false)));
        nearest
    }

    /// Ranks the members by what is known at `now`.
    pub(super) fn rank(&self, group: &Group, now: Instant) {
        let stale = |member: &Member| member.load.rtt().age(now).is_some_and(|age| age >= STALE);
        self.now.store(Arc::new(Ranking::of(group, stale)));
    }
}

impl Ranking {
    fn of(group: &Group, stale: impl Fn(&Member) -> bool) -> Self {
        let members = (0u32..).zip(&group.members);
        let measured = members.clone().filter_map(|(at, member)| Some((member.load.rtt().last()?, at, member.weight)));
        let mut measured: Vec<_> = measured.collect();
        measured.sort_unstable();
        let mut weights = 0;
        let ranked = measured.into_iter().map(|(rtt, member, weight)| {
            weights += u64::from(weight);
            Ranked { member, rtt, weights }
        });
        let is_unmeasured = |member: &Member| member.load.rtt().last().is_none() || stale(member);
        let unmeasured = members.filter(|(_, member)| is_unmeasured(member));
        let unmeasured = unmeasured.map(|(member, _)| Unmeasured { member, asked: AtomicBool::new(false) });
        let ranked: Box<[Ranked]> = ranked.collect();
        let start = [Standing::BelowSoft, Standing::OverSoft].map(|standing| first_standing(group, &ranked, standing));
        Self { start, ranked, unmeasured: unmeasured.collect(), next: AtomicUsize::new(0) }
    }

    /// The first from the start that fits, and its place.
    fn first<'a>(
        &self,
        group: &'a Group,
        standing: Standing,
        fits: &mut dyn FnMut(&Member) -> bool,
    ) -> Option<(usize, &'a Member)> {
        let hint = self.start.get(usize::from(standing == Standing::OverSoft))?;
        let start = hint.load(Ordering::Relaxed);
        for (at, ranked) in self.ranked.iter().enumerate().skip(start).take(LOOKS) {
            let member = group.members.get(ranked.member as usize)?;
            if fits(member) {
                return Some((at, member));
            }
        }
        let looked = self.ranked.len().min(start + LOOKS);
        if self.ranked.len() > LOOKS {
            // The next choices need not look at these again, until the next ranking.
            let _ = hint.compare_exchange(start, looked, Ordering::Relaxed, Ordering::Relaxed);
        }
        None
    }

    /// Members from `first` on that are as near as it is: the place behind the last one.
    fn equals(&self, first: usize) -> usize {
        let Some(best) = self.ranked.get(first) else { return first };
        let limit = as_near_as(best.rtt);
        self.ranked.partition_point(|ranked| ranked.rtt <= limit)
    }

    /// One of `equals` that is not `other`, by weight: `number` is uniform over all numbers.
    fn drawn(&self, equals: &Range<usize>, number: u64, other: Option<usize>) -> Option<usize> {
        let before = |at: usize| at.checked_sub(1).and_then(|at| self.ranked.get(at)).map_or(0, |last| last.weights);
        let left_out = other.map_or(0..0, |other| before(other)..before(other + 1));
        let (from, to) = (before(equals.start), before(equals.end));
        let room = (to - from).checked_sub(left_out.end - left_out.start).filter(|room| *room > 0)?;
        // The product of two 64-bit numbers shifted by 64 fits 64 bits.
        let mut point = from + ((u128::from(number) * u128::from(room)) >> 64) as u64;
        if other.is_some() && point >= left_out.start {
            point += left_out.end - left_out.start;
        }
        Some(self.ranked.partition_point(|ranked| ranked.weights <= point))
    }

    fn member<'a>(&self, group: &'a Group, at: usize) -> Option<&'a Member> {
        group.members.get(self.ranked.get(at)?.member as usize)
    }

    /// The nearest with such a standing, or an equal of it that is less loaded.
    fn choose<'a>(&self, group: &'a Group, standing: Standing, draw: &mut Draw<'_>) -> Option<&'a Member> {
        let (at, nearest) = self.first(group, standing, &mut |member| draw.fits(member, standing))?;
        let equals = at..self.equals(at);
        if equals.len() < 2 {
            return Some(nearest);
        }
        let fitting = |number: u64, other: Option<usize>, draw: &mut Draw<'_>| {
            let drawn = self.drawn(&equals, number, other)?;
            let member = self.member(group, drawn).filter(|member| draw.fits(member, standing))?;
            Some((drawn, member))
        };
        let number = draw.first(group);
        let first = fitting(number, None, draw)
            .or_else(|| (1..DRAWS).find_map(|_| fitting(draw.second(), None, draw)))
            .unwrap_or((at, nearest));
        let second = (0..DRAWS).find_map(|_| fitting(draw.second(), Some(first.0), draw));
        Some(second.map(|(_, second)| second).filter(|second| second.relieves(first.1)).unwrap_or(first.1))
    }

    /// A member that somebody should measure, each once in a ranking; one of the client's or this POP's region rather
    /// than another.
    fn unmeasured<'a>(&self, group: &'a Group, request: &Request<'_>, draw: &mut Draw<'_>) -> Option<&'a Member> {
        let is_near = |member: &Member| {
            let region = &member.backend.region;
            request.client_region == Some(region) || request.pop_region == region
        };
        let start = self.next.load(Ordering::Relaxed);
        let mut found = None;
        for one in self.unmeasured.iter().skip(start).take(LOOKS) {
            let member = group.members.get(one.member as usize)?;
            if one.asked.load(Ordering::Relaxed) || !draw.fits(member, Standing::BelowSoft) {
                continue;
            }
            if is_near(member) {
                found = Some((one, member));
                break;
            }
            found = found.or(Some((one, member)));
        }
        if draw.advance {
            self.asks(start, found.map(|(one, _)| one));
        }
        found.map(|(_, member)| member)
    }

    /// The next choices need not look again at who is asked now; where there are many, not at who was looked at in vain
    /// either.
    fn asks(&self, start: usize, found: Option<&Unmeasured>) {
        let next = match found {
            Some(one) => {
                one.asked.store(true, Ordering::Relaxed);
                let rest = self.unmeasured.iter().skip(start);
                start + rest.take_while(|one| one.asked.load(Ordering::Relaxed)).count()
            }
            None if self.unmeasured.len() > LOOKS => (start + LOOKS).min(self.unmeasured.len()),
            None => start,
        };
        if next > start {
            self.next.fetch_max(next, Ordering::Relaxed);
        }
    }
}

/// Where walks are to start: at the beginning, unless the first that stands so is out of their reach from there.
fn first_standing(group: &Group, ranked: &[Ranked], standing: Standing) -> AtomicUsize {
    let stands = |ranked: &Ranked| {
        let member = group.members.get(ranked.member as usize);
        member.is_some_and(|member| member.load.standing(member.limits) == Some(standing))
    };
    let first = ranked.iter().position(stands).unwrap_or(ranked.len());
    AtomicUsize::new(if first < LOOKS { 0 } else { first })
}

impl Draw<'_> {
    /// Whether the connection may go to the member, which stands so.
    fn fits(&mut self, member: &Member, standing: Standing) -> bool {
        member.load.standing(member.limits) == Some(standing)
            && !self.tried.contains(&member.backend)
            && member.load.admits(|| self.rng.next_u64())
    }

    /// Whether this connection is one of those that measure. A retry has waited long enough, and `explain` only looks.
    fn measures(&mut self) -> bool {
        self.advance && self.tried.is_empty() && self.second().is_multiple_of(PROBE_ONE_IN)
    }
}

/// The member that should get the connection by measured times. `None` leaves the choice to the usual order: the app
/// does not choose by time, too little is known, or nobody who is known has room.
pub(super) fn nearest<'a>(
    app: &'a AppIndex,
    request: &Request<'_>,
    draw: &mut Draw<'_>,
) -> Option<(&'a Member, PickReason)> {
    let (nearest, group) = (app.nearest()?, app.everywhere()?);
    let ranking = nearest.now.load();
    // With one known there is nothing to compare; the usual order brings the first samples.
    if ranking.ranked.len() < group.members.len().min(2) {
        return None;
    }
    if draw.measures()
        && let Some(member) = ranking.unmeasured(group, request, draw)
    {
        return Some((member, PickReason::RttProbe));
    }
    let found = ranking.choose(group, Standing::BelowSoft, draw);
    let member = match found {
        Some(member) => member,
        // Rather one that is not known than one that is over its soft limit.
        None => match ranking.unmeasured(group, request, draw) {
            Some(member) => return Some((member, PickReason::RttProbe)),
            None => ranking.choose(group, Standing::OverSoft, draw)?,
        },
    };
    Some((member, PickReason::NearestRtt))
}

#[cfg(test)]
mod tests;
