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

use serde::Serialize;

use super::elsewhere::elsewhere;
use super::group::{Draw, best, last_resort};
use super::health::Distrust;
use super::index::Member;
use super::maglev::ClientHash;
use super::nearest::nearest;
use super::room::Standing;
use super::{
    Affinity, AppIndex, Backend, BackendId, ClientPrefix, Permit, Position, RandomSource, Region, Regions, Skip, Tried,
};

/// What is known about a connection before a backend is chosen.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `None` if the client's country is unknown; private clients count as being in the POP's region.
    pub client_region: Option<&'a Region>,
    /// Where the client itself is, if the geo data says so: from there regions are near or far.
    pub client_position: Option<Position>,
    pub pop_region: &'a Region,
    /// Who the client is, for apps that hash clients; `None` where that is not known.
    pub client: Option<&'a ClientPrefix>,
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
    /// The nearest by measured round-trip time, or as near.
    NearestRtt,
    /// To measure the way to it: nobody has, lately.
    RttProbe,
    /// It was ejected, and no other was left.
    LastResort,
    /// Its checks fail, as do those of all others in service.
    FailOpen,
}

impl PickReason {
    pub const ALL: [Self; 9] = [
        Self::Affinity,
        Self::ClientRegion,
        Self::PopRegion,
        Self::NearestRegion,
        Self::Elsewhere,
        Self::NearestRtt,
        Self::RttProbe,
        Self::LastResort,
        Self::FailOpen,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::ClientRegion => "client_region",
            Self::PopRegion => "pop_region",
            Self::NearestRegion => "nearest_region",
            Self::Elsewhere => "elsewhere",
            Self::NearestRtt => "nearest_rtt",
            Self::RttProbe => "rtt_probe",
            Self::LastResort => "last_resort",
            Self::FailOpen => "fail_open",
        }
    }
}

impl PickReason {
    /// Whether a client that was chosen a backend for this reason is bound to it. A makeshift would otherwise outlast
    /// what it was made for. A binding that the client has had before stays.
    pub const fn binds(self) -> bool {
        !matches!(self, Self::RttProbe | Self::LastResort | Self::FailOpen)
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
        match honoured(app, regions, request, id, tried, rng) {
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
    let mut draw = Draw { rng, tried, client: request.client.map(ClientHash::of), advance: true };
    loop {
        let (member, reason) = choose(app, regions, request, &mut draw).ok_or_else(|| why_none(app, tried))?;
        // Another thread may have taken the last place since; then the member counts as full and others are chosen.
        if let Some(permit) = member.load.try_reserve(member.limits) {
            return Ok(Pick { backend: Arc::clone(&member.backend), reason, permit, binding_yielded });
        }
    }
}

/// The backend that a bound client gets, or why its binding yields: for what [`bound`] says, or, where the app wants it,
/// because the backend is at its soft limit and another one is not.
pub(super) fn honoured<'a>(
    app: &'a AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    id: &BackendId,
    tried: &Tried,
    rng: &mut dyn RandomSource,
) -> Result<&'a Arc<Backend>, Skip> {
    let backend = bound(app, id, tried)?;
    if app.spec().affinity == Affinity::Soft && backend.limits.is_over_soft(backend.load.active()) {
        let client = request.client.map(ClientHash::of);
        let found = choose(app, regions, request, &mut Draw { rng, tried, client, advance: false });
        if found.is_some_and(|(other, _)| other.load.standing(other.limits) == Some(Standing::BelowSoft)) {
            return Err(Skip::AtSoftLimit);
        }
    }
    Ok(backend)
}

/// The backend a client is bound to, or why the binding yields. Weight 0 keeps new clients away, not bound ones.
pub(super) fn bound<'a>(app: &'a AppIndex, id: &BackendId, tried: &Tried) -> Result<&'a Arc<Backend>, Skip> {
    let backend = app.backend(id).ok_or(Skip::Gone)?;
    match backend.out_of_service() {
        Some(skip) => Err(skip),
        None if backend.load.is_draining() => Err(Skip::Drain),
        None if tried.contains(backend) => Err(Skip::Tried),
        None if let Some(skip) = distrusted(app, backend) => Err(skip),
        None if backend.limits.is_full(backend.load.active()) => Err(Skip::AtHardLimit),
        None => Ok(backend),
    }
}

/// Why a backend is not to be trusted. Where an app fails open, checks don't count: they may be what is wrong.
pub(super) fn distrusted(app: &AppIndex, backend: &Backend) -> Option<Skip> {
    match backend.load.distrust()? {
        Distrust::Down if app.fails_open() => None,
        distrust => Some(distrust.skip()),
    }
}

pub(super) fn why_none(app: &AppIndex, tried: &Tried) -> NoBackend {
    let fails_open = app.fails_open();
    // Those that an operator drains take nobody, and those whose checks fail would not be asked if the others had room.
    let is_asked = |member: &&Member| !member.load.is_draining() && (fails_open || !member.load.is_down());
    let mut asked = app.groups().iter().flat_map(|group| &group.members).filter(is_asked).peekable();
    if asked.peek().is_none() {
        NoBackend::NoneEligible
    } else if asked.all(|member| tried.contains(&member.backend)) {
        NoBackend::AllTried
    } else {
        NoBackend::AllFull
    }
}

/// Why a client has nothing to wait for, where it has not: nobody whom it may ask is left, full or not.
pub fn nothing_to_wait_for(app: &AppIndex, request: &Request<'_>, tried: &Tried) -> Option<NoBackend> {
    let why = why_none(app, tried);
    let is_bound = || request.bound.is_some_and(|id| bound(app, id, tried).is_ok());
    (why != NoBackend::AllFull && !is_bound()).then_some(why)
}

pub(super) type Choice<'a> = (&'a Member, PickReason);

/// The member that should get the connection now. Reserves nothing.
pub(super) fn choose<'a>(
    app: &'a AppIndex,
    regions: &Regions,
    request: &Request<'_>,
    draw: &mut Draw<'_>,
) -> Option<Choice<'a>> {
    if let Some(found) = nearest(app, request, draw) {
        return Some(found);
    }
    let tiers = [(request.client_region, PickReason::ClientRegion), (Some(request.pop_region), PickReason::PopRegion)];
    for (region, reason) in tiers {
        let found = region.and_then(|region| app.group(region)).and_then(|group| best(group, draw));
        if let Some((member, _)) = found {
            return Some((member, reason));
        }
    }
    elsewhere(app, regions, request, draw).or_else(|| match waits_rather(app, draw.tried) {
        true => None,
        false => distrusted_one(app, request, draw),
    })
}

/// Whether the client waits for a backend that is to be trusted: one that is not may cost it the whole connect limit.
/// The trusted ones that it has not tried are full, or one would have been chosen.
fn waits_rather(app: &AppIndex, tried: &Tried) -> bool {
    let mut members = app.everywhere().into_iter().flat_map(|all| &all.members);
    app.spec().queue.length > 0 && members.any(|member| member.load.is_trusted() && !tried.contains(&member.backend))
}

/// Who was ejected may be well again, and otherwise the client would be refused. Where nobody is trusted, checks don't
/// count. Near ones first.
fn distrusted_one<'a>(app: &'a AppIndex, request: &Request<'_>, draw: &mut Draw<'_>) -> Option<Choice<'a>> {
    let mut nearest = |standing| {
        let near = [request.client_region, Some(request.pop_region)].into_iter().flatten();
        let groups = near.filter_map(|region| app.group(region)).chain(app.everywhere());
        groups.filter_map(|group| last_resort(group, standing, draw)).next()
    };
    if let Some(member) = nearest(Standing::Ejected) {
        return Some((member, PickReason::LastResort));
    }
    let member = if app.fails_open() { nearest(Standing::Down)? } else { return None };
    Some((member, PickReason::FailOpen))
}

#[cfg(test)]
mod tests;
