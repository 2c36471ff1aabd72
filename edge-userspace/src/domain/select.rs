//! The routing decision: which backend gets this connection, and why.
//!
//! Lower is better, as in the formula of the project this one descends from:
//!
//! ```text
//! score = region_score × 100 + load_factor ÷ weight
//! region_score = 0 in the client's region · 1 in this POP's region · 2 elsewhere
//! load_factor  = connections ÷ soft_limit
//! ```
//!
//! Three refinements. Geography outranks load whatever the load (the second term never reaches 100). Within one
//! region score, backends below their soft limit go before those at or above it; among those elsewhere, near regions
//! go before far ones. And among the backends that are then left, scores that differ by a connection or two
//! count as equal: the first choice comes from a low-discrepancy sequence weighted by weight, a second one at random,
//! and the second wins only if it is less loaded even with one connection more against one less. So short connections,
//! which leave all loads near zero, are spread by weight too.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::index::{Group, Member};
use super::{AppIndex, Backend, BackendId, Permit, RandomSource, Region, Regions, Skip, Tried};

/// What is known about a connection before a backend is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `None` if the client's country is unknown; private clients count as being in the POP's region.
    pub client_region: Option<&'a Region>,
    pub pop_region: &'a Region,
    /// The backend the client is bound to by affinity.
    pub bound: Option<&'a BackendId>,
}

/// Why a backend was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PickReason {
    /// The client is bound to it.
    Affinity,
    /// In the client's region.
    ClientRegion,
    /// In this POP's region.
    PopRegion,
    /// In the nearest of the other regions that has capacity.
    NearestRegion,
    /// Somewhere: no position says what is near.
    Elsewhere,
}

impl PickReason {
    pub const ALL: [Self; 5] =
        [Self::Affinity, Self::ClientRegion, Self::PopRegion, Self::NearestRegion, Self::Elsewhere];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::ClientRegion => "client_region",
            Self::PopRegion => "pop_region",
            Self::NearestRegion => "nearest_region",
            Self::Elsewhere => "elsewhere",
        }
    }
}

impl fmt::Display for PickReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A chosen backend with a place reserved on it.
#[derive(Debug)]
pub struct Pick {
    pub backend: Arc<Backend>,
    pub reason: PickReason,
    pub permit: Permit,
    /// Why the client's binding was not honoured, where there was one.
    pub binding_yielded: Option<Skip>,
}

/// Why no backend was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NoBackend {
    #[error("no such app in the routing database")]
    NoSuchApp,
    #[error("no backend of the app takes new clients")]
    NoneEligible,
    #[error("all backends of the app are at their hard limit")]
    AllFull,
    #[error("all backends of the app were tried")]
    AllTried,
}

impl NoBackend {
    pub const ALL: [Self; 4] = [Self::NoSuchApp, Self::NoneEligible, Self::AllFull, Self::AllTried];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSuchApp => "no_such_app",
            Self::NoneEligible => "none_eligible",
            Self::AllFull => "all_full",
            Self::AllTried => "all_tried",
        }
    }
}

/// Picks the best eligible untried backend and reserves a place on it. Allocates nothing and takes no lock.
/// `regions` are those of the snapshot that `app` belongs to.
pub fn pick(
    app: &AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    tried: &Tried,
    rng: &mut dyn RandomSource,
) -> Result<Pick, NoBackend> {
    let mut binding_yielded = None;
    if let Some(id) = request.bound {
        match bound(app, id, tried) {
            Ok(backend) => match backend.load.try_reserve(backend.limits) {
                Some(permit) => {
                    let backend = Arc::clone(backend);
                    return Ok(Pick { backend, reason: PickReason::Affinity, permit, binding_yielded });
                }
                None => binding_yielded = Some(Skip::AtHardLimit),
            },
            Err(skip) => binding_yielded = Some(skip),
        }
    }
    let mut draw = Draw { rng, tried, advance: true };
    loop {
        let (member, reason) = choose(app, regions, request, &mut draw).ok_or_else(|| why_none(app, tried))?;
        // Another thread may have taken the last place since; then the member counts as full and others are chosen.
        if let Some(permit) = member.load.try_reserve(member.limits) {
            return Ok(Pick { backend: Arc::clone(&member.backend), reason, permit, binding_yielded });
        }
    }
}

/// The backend a client is bound to, or why the binding yields. Weight 0 keeps new clients away, not bound ones.
pub(super) fn bound<'a>(app: &'a AppIndex, id: &BackendId, tried: &Tried) -> Result<&'a Arc<Backend>, Skip> {
    let backend = app.backend(id).ok_or(Skip::Gone)?;
    match backend.out_of_service() {
        Some(skip) => Err(skip),
        None if tried.contains(backend) => Err(Skip::Tried),
        None if backend.limits.is_full(backend.load.active()) => Err(Skip::AtHardLimit),
        None => Ok(backend),
    }
}

pub(super) fn why_none(app: &AppIndex, tried: &Tried) -> NoBackend {
    let members = || app.groups().iter().flat_map(|group| &group.members);
    if members().next().is_none() {
        NoBackend::NoneEligible
    } else if members().all(|member| tried.contains(&member.backend)) {
        NoBackend::AllTried
    } else {
        NoBackend::AllFull
    }
}

/// What breaks near-ties.
pub(super) struct Draw<'a> {
    pub(super) rng: &'a mut dyn RandomSource,
    pub(super) tried: &'a Tried,
    /// Whether the groups' sequences move on; `explain` only looks at them.
    pub(super) advance: bool,
}

/// The step of the sequence: 2⁶⁴ ÷ golden ratio, which spreads multiples most evenly.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draw<'_> {
    /// A number for the first choice. A retry follows a choice from the same sequence and would not be independent
    /// of it, so it is drawn at random.
    fn first(&mut self, group: &Group) -> u64 {
        if !self.tried.is_empty() {
            self.rng.next_u64()
        } else if self.advance {
            group.sequence.fetch_add(STEP, Ordering::Relaxed)
        } else {
            group.sequence.load(Ordering::Relaxed)
        }
    }

    fn second(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

/// Maps a uniform number to `0..total`.
fn scale(number: u64, total: u64) -> u64 {
    // The product of two 64-bit numbers shifted by 64 fits 64 bits.
    ((u128::from(number) * u128::from(total)) >> 64) as u64
}

/// Where a member stands against its own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    BelowSoft,
    OverSoft,
}

impl Member {
    /// `None` if it can't be chosen.
    fn standing(&self, tried: &Tried) -> Option<Standing> {
        let active = self.load.active();
        if self.limits.is_full(active) || tried.contains(&self.backend) {
            None
        } else if self.limits.is_over_soft(active) {
            Some(Standing::OverSoft)
        } else {
            Some(Standing::BelowSoft)
        }
    }

    /// Connections for which load factor ÷ weight is 1.
    fn scale(&self) -> f64 {
        self.limits.yardstick() * f64::from(self.weight)
    }

    /// Would, with one connection more, still be less loaded than `other` with one less. The distance between the two
    /// keeps small numbers of connections, which can't be split exactly by weight, from tilting the shares.
    fn relieves(&self, other: &Self) -> bool {
        let (own, its) = (f64::from(self.load.active()) + 1.0, f64::from(other.load.active()) - 1.0);
        own * other.scale() < its * self.scale()
    }
}

type Choice<'a> = (&'a Member, PickReason);

/// The member that should get the connection now. Reserves nothing.
pub(super) fn choose<'a>(
    app: &'a AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    draw: &mut Draw<'_>,
) -> Option<Choice<'a>> {
    let tiers = [(request.client_region, PickReason::ClientRegion), (Some(request.pop_region), PickReason::PopRegion)];
    for (region, reason) in tiers {
        let found = region.and_then(|region| app.group(region)).and_then(|group| best(group, draw));
        if let Some((member, _)) = found {
            return Some((member, reason));
        }
    }
    elsewhere(app, regions, request, draw)
}

/// The nearest group with a member below its soft limit, else the nearest with any.
fn elsewhere<'a>(
    app: &'a AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    draw: &mut Draw<'_>,
) -> Option<Choice<'a>> {
    let Some(from) = origin(regions, request) else {
        let (member, _) = best(app.everywhere()?, draw)?;
        return Some((member, PickReason::Elsewhere));
    };
    let mut over_soft = None;
    let placed = ByDistance { app, regions, from, last: None }.map(|group| (group, PickReason::NearestRegion));
    for (group, reason) in placed.chain(app.unplaced().map(|group| (group, PickReason::Elsewhere))) {
        match best(group, draw) {
            Some((member, Standing::BelowSoft)) => return Some((member, reason)),
            Some((member, Standing::OverSoft)) => over_soft = over_soft.or(Some((member, reason))),
            None => {}
        }
    }
    over_soft
}

/// The region that distances are measured from: the client's, or this POP's where the client's has no position.
pub(super) fn origin(regions: &Regions, request: &Request<'_>) -> Option<usize> {
    let place = |region| regions.index_of(region).filter(|at| regions.has_position(*at));
    request.client_region.and_then(place).or_else(|| place(request.pop_region))
}

/// Groups with a position, nearest first, without allocating: apps have few regions.
struct ByDistance<'a, 'r> {
    app: &'a AppIndex,
    regions: &'r Regions,
    from: usize,
    last: Option<(f64, usize)>,
}

impl<'a> Iterator for ByDistance<'a, '_> {
    type Item = &'a Group;

    fn next(&mut self) -> Option<&'a Group> {
        let after_last = |key: &(f64, usize)| self.last.is_none_or(|last| *key > last);
        let keys = self.app.groups().iter().enumerate().filter_map(|(at, group)| {
            let distance = self.regions.distance_at(self.from, group.place?)?;
            Some((distance, at))
        });
        let next = keys.filter(after_last).min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?;
        self.last = Some(next);
        self.app.groups().get(next.1)
    }
}

/// Up to this many members are all looked at; of more, a sample is.
const SCANNED: usize = 64;

/// How many members of a large group are drawn before it is searched from end to end.
const SAMPLES: usize = 16;

fn best<'a>(group: &'a Group, draw: &mut Draw<'_>) -> Option<(&'a Member, Standing)> {
    if group.members.len() <= SCANNED { scan(group, draw) } else { sample(group, draw) }
}

/// Members of a small group that may be chosen, as bits.
#[derive(Clone, Copy, Default)]
struct Candidates {
    bits: u64,
    weight: u64,
}

impl Candidates {
    fn add(&mut self, at: usize, member: &Member) {
        self.bits |= 1 << at;
        self.weight += u64::from(member.weight);
    }

    /// The member at `number`, where each takes as much room as its weight.
    fn at<'a>(&self, group: &'a Group, number: u64) -> Option<(usize, &'a Member)> {
        let mut room = scale(number, self.weight);
        let mut chosen = None;
        for (at, member) in group.members.iter().enumerate().filter(|(at, _)| self.bits & (1 << at) != 0) {
            chosen = Some((at, member));
            match room.checked_sub(u64::from(member.weight)) {
                Some(rest) => room = rest,
                None => break,
            }
        }
        chosen
    }

    fn without(mut self, at: usize, member: &Member) -> Self {
        self.bits &= !(1 << at);
        self.weight -= u64::from(member.weight);
        self
    }
}

fn scan<'a>(group: &'a Group, draw: &mut Draw<'_>) -> Option<(&'a Member, Standing)> {
    let (mut below, mut over) = (Candidates::default(), Candidates::default());
    for (at, member) in group.members.iter().enumerate() {
        match member.standing(draw.tried) {
            Some(Standing::BelowSoft) => below.add(at, member),
            Some(Standing::OverSoft) => over.add(at, member),
            None => {}
        }
    }
    let (class, standing) =
        if below.bits != 0 { (below, Standing::BelowSoft) } else { (over, Standing::OverSoft) };
    if class.bits == 0 {
        return None;
    }
    let (at, first) = class.at(group, draw.first(group))?;
    let rest = class.without(at, first);
    let second = if rest.bits == 0 { None } else { rest.at(group, draw.second()) };
    match second {
        Some((_, second)) if second.relieves(first) => Some((second, standing)),
        _ => Some((first, standing)),
    }
}

/// Draws members by weight until one is below its soft limit. If a whole sample isn't, searches the group, so that
/// a member below its soft limit is found if there is one.
fn sample<'a>(group: &'a Group, draw: &mut Draw<'_>) -> Option<(&'a Member, Standing)> {
    let mut fallback = None;
    for attempt in 0..SAMPLES {
        let number = if attempt == 0 { draw.first(group) } else { draw.second() };
        let member = drawn(group, number)?;
        match member.standing(draw.tried) {
            Some(Standing::BelowSoft) => return Some((lighter(group, member, draw), Standing::BelowSoft)),
            Some(Standing::OverSoft) => fallback = fallback.or(Some((member, Standing::OverSoft))),
            None => {}
        }
    }
    search(group, draw, fallback)
}

fn drawn(group: &Group, number: u64) -> Option<&Member> {
    let room = scale(number, group.total_weight());
    group.members.get(group.cumulative.partition_point(|sum| *sum <= room))
}

/// The second of two choices, if it is below its soft limit and relieves the first.
fn lighter<'a>(group: &'a Group, first: &'a Member, draw: &mut Draw<'_>) -> &'a Member {
    match drawn(group, draw.second()) {
        Some(second) if second.standing(draw.tried) == Some(Standing::BelowSoft) && second.relieves(first) => second,
        _ => first,
    }
}

fn search<'a>(
    group: &'a Group,
    draw: &mut Draw<'_>,
    mut fallback: Option<(&'a Member, Standing)>,
) -> Option<(&'a Member, Standing)> {
    // Starting anywhere spreads what is found over the group.
    let start = scale(draw.second(), group.members.len() as u64) as usize;
    let (head, tail) = group.members.split_at_checked(start)?;
    for member in tail.iter().chain(head) {
        match member.standing(draw.tried) {
            Some(Standing::BelowSoft) => return Some((member, Standing::BelowSoft)),
            Some(Standing::OverSoft) => fallback = fallback.or(Some((member, Standing::OverSoft))),
            None => {}
        }
    }
    fallback
}

#[cfg(test)]
mod tests;
