//! The next region: where clients go for whom neither their own region nor this POP's has room.
//!
//! By position, or, where an app wants it (`apps.next_region = 'rtt'`), by the round-trip times that this POP has measured.
//! Times count only while each of the app's regions that has a backend to be trusted has one: a region that nobody has
//! measured would come last for want of clients, and never be measured. One that is down as a whole can't be measured, and has
//! nobody to offer.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use super::group::{Draw, best};
use super::index::Group;
use super::nearest::as_near_as;
use super::room::Standing;
use super::select::Choice;
use super::{AppIndex, Origin, PickReason, Regions, Request};

/// How the regions of an app's groups are placed by measured time, renewed off the data path.
#[derive(Debug, Default)]
pub(super) struct RegionTimes {
    places: ArcSwap<Places>,
}

/// By group: 0 is the nearest. Regions that are as near as each other share a place. Empty: not all are measured.
#[derive(Debug, Default)]
pub(super) struct Places(Box<[u32]>);

impl RegionTimes {
    pub(super) fn of(groups: &[Group]) -> Self {
        let times = Self::default();
        times.rank(groups);
        times
    }

    /// Places the regions by what is known now.
    pub(super) fn rank(&self, groups: &[Group]) {
        let is_down = |group: &Group| !group.members.iter().any(|member| member.load.is_trusted());
        let nearest = |group: &Group| group.members.iter().filter_map(|member| member.load.rtt().last()).min();
        let time = |group: &Group| nearest(group).or_else(|| is_down(group).then_some(Duration::MAX));
        let times: Option<Vec<Duration>> = groups.iter().map(time).collect();
        // Where all are down and unmeasured there is nothing to go by.
        let times = times.filter(|times| times.iter().any(|time| *time < Duration::MAX));
        self.places.store(Arc::new(times.map(|times| Places::of(&times)).unwrap_or_default()));
    }

    fn load(&self) -> Guard<Arc<Places>> {
        self.places.load()
    }
}

impl Places {
    fn of(times: &[Duration]) -> Self {
        let mut near_first: Vec<(Duration, usize)> = times.iter().copied().zip(0..).collect();
        near_first.sort_unstable();
        let (mut place, mut limit) = (0, near_first.first().map_or(Duration::ZERO, |(time, _)| as_near_as(*time)));
        let mut places: Vec<(usize, u32)> = Vec::with_capacity(near_first.len());
        for (time, group) in near_first {
            if time > limit {
                (place, limit) = (place + 1, as_near_as(time));
            }
            places.push((group, place));
        }
        places.sort_unstable();
        Self(places.into_iter().map(|(_, place)| place).collect())
    }

    pub(super) fn get(&self, group: usize) -> Option<u32> {
        self.0.get(group).copied()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl AppIndex {
    /// How the app's regions are placed by measured time, if that is what the next one goes by now.
    pub(super) fn places(&self) -> Option<Guard<Arc<Places>>> {
        self.region_times().map(RegionTimes::load).filter(|places| !places.is_empty())
    }
}

/// The nearest group with a member below its soft limit, else the nearest with any.
pub(super) fn elsewhere<'a>(
    app: &'a AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    draw: &mut Draw<'_>,
) -> Option<Choice<'a>> {
    let (places, from) = (app.places(), origin(regions, request));
    if places.is_none() && from.is_none() {
        let (member, _) = best(app.everywhere()?, draw)?;
        return Some((member, PickReason::Elsewhere));
    }
    let mut over_soft = None;
    // Those of the client's and this POP's region were found to have no room.
    let elsewhere = |group: &&Group| {
        let region = group.region.as_ref();
        region != request.client_region && region != Some(request.pop_region)
    };
    let rest = app.unplaced().filter(|_| places.is_none()).map(|group| (group, PickReason::Elsewhere));
    let near_first = NearFirst { app, regions, from, places: places.as_deref().map(Arc::as_ref), last: None };
    let placed = near_first.filter(elsewhere).map(|group| (group, PickReason::NearestRegion));
    for (group, reason) in placed.chain(rest) {
        match best(group, draw) {
            Some((member, Standing::BelowSoft)) => return Some((member, reason)),
            Some((member, _)) => over_soft = over_soft.or(Some((member, reason))),
            None => {}
        }
    }
    over_soft
}

/// What distances are measured from: the client itself, else its region, or this POP's where that has no position.
pub(super) fn origin(regions: &Regions, request: &Request<'_>) -> Option<Origin> {
    let place = |region| regions.index_of(region).filter(|at| regions.has_position(*at)).map(Origin::Region);
    let client = request.client_position.map(Origin::Position);
    client.or_else(|| request.client_region.and_then(place)).or_else(|| place(request.pop_region))
}

/// Groups in the order in which they are asked, without allocating: apps have few regions. By time those that are as near
/// go by position, and those without one after them; where times don't count, groups without a position are left out.
struct NearFirst<'a, 'r> {
    app: &'a AppIndex,
    regions: &'r Regions,
    from: Option<Origin>,
    places: Option<&'r Places>,
    last: Option<Key>,
}

/// Place by time, distance, place in the index.
type Key = (u32, f64, usize);

fn order(a: &Key, b: &Key) -> std::cmp::Ordering {
    a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
}

impl NearFirst<'_, '_> {
    fn key(&self, at: usize, group: &Group) -> Option<Key> {
        let distance = || self.regions.distance_at(self.from.as_ref()?, group.place?);
        match self.places {
            Some(places) => Some((places.get(at)?, distance().unwrap_or(f64::INFINITY), at)),
            None => Some((0, distance()?, at)),
        }
    }
}

impl<'a> Iterator for NearFirst<'a, '_> {
    type Item = &'a Group;

    fn next(&mut self) -> Option<&'a Group> {
        let after_last = |key: &Key| self.last.is_none_or(|last| order(key, &last).is_gt());
        let keys = self.app.groups().iter().enumerate().filter_map(|(at, group)| self.key(at, group));
        let next = keys.filter(after_last).min_by(order)?;
        self.last = Some(next);
        self.app.groups().get(next.2)
    }
}

#[cfg(test)]
mod tests;
